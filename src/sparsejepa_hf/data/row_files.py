# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Which files the rows of a data set may name: data that was downloaded must not choose what is opened or fetched."""

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import datasets

from .images import UndecodableImageError, open_file


# A rule travels with the data set, through select, shuffle and cast, as the id of its image feature.
_ANY = "any file or address"
# Files of an archive that is a file itself.
_INSIDE = ("zip", "tar", "gzip", "bz2", "xz", "zstd", "lz4")


def image_feature(roots: Sequence[str] | None, trusts_paths: bool = False, decode: bool = True) -> datasets.Image:
    """The feature of an image column, with the rule of what its rows may name.

    Args:
        roots: folders and addresses of folders that the files lie below; None where the caller made the rows, which
            may then name any local file.
        trusts_paths: rows may name any file and any address.
        decode: as for `datasets.Image`.
    """
    rule = _ANY if trusts_paths else None if roots is None else json.dumps(list(roots))
    return datasets.Image(decode=decode, id=rule)


def row_opener(feature: datasets.Image) -> Callable[[str, str], Any]:
    """`open(path, mode)` for the files that rows of this column name; it can be pickled.

    It raises an `UndecodableImageError` for what the rule leaves out: addresses, files of other folders, and what is
    no regular file, such as a pipe.
    """
    if feature.id == _ANY:
        return open_file
    return partial(_open_allowed, roots=None if feature.id is None else json.loads(feature.id))


def _open_allowed(path: str, mode: str, roots: list[str] | None) -> Any:
    # "zip://a.png::/data/b.zip" lies where b.zip does.
    *inner, place = path.split("::")
    place = place.removeprefix("file://")
    is_address = "://" in place or any(part.partition("://")[0] not in _INSIDE for part in inner)
    if not is_address:
        place = os.path.abspath(place)
    known = roots is not None and any(place.startswith(root.rstrip("/") + "/") or place == root for root in roots)
    if not known and (is_address or roots is not None):
        where = "an address" if is_address else "a file outside the data set's folder"
        raise UndecodableImageError(
            f"The row names {path!r}, {where}; expected bytes, or a file of the data set. Set trust_paths to open "
            "whatever its rows name."
        )
    if not is_address and not os.path.isfile(place):
        raise UndecodableImageError(f"The row names {path!r}, which is no regular file; expected an image file.")
    return open_file(path, mode)
