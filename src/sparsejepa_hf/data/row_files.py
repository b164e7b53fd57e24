# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Which files the rows of a data set may name: data that was downloaded must not choose what is opened or fetched."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import datasets

from .images import UndecodableImageError, open_file


# Rules made by this process. One travels with its data set, through select, shuffle and cast, as the id of the image
# feature; a file may hold an id too, which counts for nothing.
_made_here: set[str] = set()
_ANY = json.dumps("any")
# Archives that are files themselves.
_ARCHIVES = ("zip", "tar", "gzip", "bz2", "xz", "zstd", "lz4")


def image_feature(
    roots: Sequence[str] | None, trusts_paths: bool = False, decode: bool = True, before: Any = None
) -> datasets.Image:
    """The feature of an image column, with the rule of what its rows may name.

    Args:
        roots: folders, on disk or of addresses, that the files lie below; None where the caller made the rows, which
            may then name any local file.
        trusts_paths: rows may name any file and any address.
        decode: as for `datasets.Image`.
        before: the feature that this one takes the place of; where the caller made the rows, its rule stays.
    """
    rule = _rule_of(before) if roots is None else json.dumps(list(roots))
    rule = _ANY if trusts_paths else rule
    if rule is not None:
        _made_here.add(rule)
    return datasets.Image(decode=decode, id=rule)


def row_opener(feature: datasets.Image) -> Callable[[str, str], Any]:
    """`open(path, mode)` for the files that rows of this column name; it can be pickled.

    It raises an `UndecodableImageError` for what the rule leaves out: addresses, files of other folders, and what is
    no regular file, such as a pipe.
    """
    rule = _rule_of(feature)
    return open_file if rule == _ANY else partial(_open_allowed, roots=None if rule is None else json.loads(rule))


def _rule_of(feature: Any) -> str | None:
    rule = getattr(feature, "id", None)
    return rule if rule in _made_here else None


def encoded_bytes(image: Mapping[str, Any] | None, open_file: Callable[[str, str], Any]) -> bytes | None:
    """A row's image as it is stored, not decoded; None where there is none, or it may not be opened."""
    content, path = ((image or {}).get(part) for part in ("bytes", "path"))
    if content is None and path is not None:
        try:
            with open_file(path, "rb") as file:
                return file.read()
        # An archive raises what it likes.
        except Exception:
            return None
    return content


def _open_allowed(path: str, mode: str, roots: list[str] | None) -> Any:
    # "zip://a.png::/data/b.zip" lies where b.zip does.
    *inside, place = path.split("::")
    place = place.removeprefix("file://")
    is_address = "://" in place
    place = place if is_address else os.path.abspath(place)
    if any(part.partition("://")[0] not in _ARCHIVES for part in inside) or (is_address and "/../" in place):
        refusal = "an address of an unknown kind"
    elif roots is not None and any(_lies_below(place, root) for root in roots):
        refusal = ""
    elif is_address:
        refusal = "an address, and nothing is fetched for a row"
    else:
        refusal = "" if roots is None else "a file outside the data set's folder"
    if refusal:
        raise UndecodableImageError(
            f"its row names {refusal}: expected bytes, or a file of the data set (in training and load_image_dataset, "
            "trust_paths opens any)"
        )
    if is_address or not inside:
        return open_file(path if is_address else place, mode)
    # Closed again at once: it is no pipe.
    open_file(place, mode).close()
    return open_file(path, mode)


def _lies_below(place: str, root: str) -> bool:
    # A repository's address may name a revision: hf://datasets/user/name@main/...
    return place.startswith((root.rstrip("/") + "/", *([f"{root}@"] if root.startswith("hf://") else [])))
