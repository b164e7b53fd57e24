# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""One entry for every source of images: the Hub, local files, loaded data sets and the built-in scenes."""

import glob
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from datasets import (
    Array2D,
    Array3D,
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    Value,
    config,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError
from fsspec import available_protocols  # type: ignore[import-untyped]
from huggingface_hub.constants import HF_HUB_CACHE
from transformers.utils import logging

from .builders import ArrayFiles, ImageFiles, ImageTars
from .row_files import image_feature
from .scenes import build_scenes


logger = logging.get_logger(__name__)

SYNTHETIC_SCENES, TEXTURED_SCENES = "synthetic-scenes", "textured-scenes"
# The style of each built-in data set.
SCENE_STYLES: Mapping[str, str] = {SYNTHETIC_SCENES: "plain", TEXTURED_SCENES: "textured"}
_SYNTHETIC_SIZE = 4096
_BUILDER_OF_SUFFIX = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
_BUILDER_OF_SUFFIX.update(dict.fromkeys(ImageFiles.EXTENSIONS, "imagefolder"))
_BUILDER_OF_SUFFIX.update(dict.fromkeys(ArrayFiles.EXTENSIONS, "arrayfolder"))
_SPLIT_OF_WORD = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
# What `datasets` reads beside images.
_METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
_BRACES = re.compile(r"\{(?:(?P<first>\d+)\.\.(?P<last>\d+)|(?P<words>[^{}]*,[^{}]*))\}")
_SHARD_NAME = re.compile(r"(?P<split>\w+(?:[.-]\w+)*?)-\d+-of-\d+")
_BYTES_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "avif", "npy")
_LABEL_NAMES = ("label", "labels", "fine_label", "coarse_label", "cls", "count")

AnyDataset: TypeAlias = Dataset | IterableDataset


def load_image_dataset(
    source: str | Path | AnyDataset | DatasetDict | IterableDatasetDict,
    split: str = "train",
    *,
    name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    extra_columns: Sequence[str] = (),
    streaming: bool = False,
    max_examples: int | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    trust_paths: bool = False,
) -> AnyDataset:
    """Loads images, with labels where there are any, from any of these sources.

    Args:
        source: `"synthetic-scenes"` or `"textured-scenes"` (see [`build_scenes`]; 32 pixels, `max_examples` of them,
            else 4096); a folder of images or, without images, of `.npy` files, flat or with one folder per class,
            below `train`, `test`, ... folders or not; a folder, file or glob of Parquet, Arrow or WebDataset (`.tar`)
            files, whose split is read from names such as `train-00000-of-00002.parquet` or from folder names; such
            files at an address that fsspec reads (`https://`, `s3://`, `hf://datasets/`); a folder written by
            `save_to_disk`; a data set of the `datasets` library; or the name of a data set on the Hub. Paths and
            addresses may hold brace lists, such as `train-{000..012}.tar` or `{a,b}.parquet`. What exists on disk goes
            before the Hub.
        split: which split, as in `datasets` (`"train[:10%]"` works for local files and the Hub). `val` and `dev`
            mean `validation` for local files. A single file, or a glob that covers one split only, is taken whole
            whatever the split. Ignored for a `Dataset` or `IterableDataset`.
        name: configuration of a Hub data set.
        image_column: the column of images; found by [`find_image_column`] if None.
        label_column: the column of labels; found by [`find_label_column`] if None.
        extra_columns: other columns to keep where the data set has them, such as `mask` or `objects`.
        streaming: read on the fly instead of preparing the data set on disk. Without `max_examples`, local
            Parquet files are read a row group at a time (by `datasets` before 5.0: a file), which bounds the memory.
        max_examples: how many examples to keep: a random subset by `seed`, in random order, or the first ones when
            streaming. All if there are fewer.
        seed: seed of the subset, and of the scenes.
        cache_dir: where `datasets` keeps its prepared files; its own default if None.
        trust_paths: rows may name any file and any address, which is fetched. By default the rows of what is given by
            name hold bytes or name files of its own folder or repository, and those of a data set of the `datasets`
            library may name local files too; other images count as undecodable.

    Returns:
        A `Dataset`, or an `IterableDataset` when streaming, with the column `image` and, where a label was found,
        `label` (integers or ClassLabel; strings are turned into ClassLabel).

    Raises:
        FileNotFoundError: nothing was found under `source`, on disk or on the Hub.
        ConnectionError: `source` is not on disk and the Hub could not be reached.
        ValueError: unknown split, unclear or unknown columns, or mixed file formats; the message lists the choice.
        TypeError: `source` is of another type.
    """
    if max_examples is not None and max_examples < 1:
        raise ValueError(f"max_examples is {max_examples}; expected at least 1, or None for all examples.")
    others = (*_LABEL_NAMES, *([] if label_column is None else [label_column]), *extra_columns)
    options = _Options(streaming, None if cache_dir is None else str(cache_dir), image_column, others)
    dataset, roots = _load(source, split, name, max_examples, seed, options)
    # Where `datasets` listed files itself, rows name what it found.
    trust_paths = trust_paths or (roots is None and dataset.info.builder_name == "imagefolder")
    if streaming and isinstance(dataset, Dataset):
        dataset = dataset.to_iterable_dataset()
    image = partial(image_feature, roots, trust_paths)
    dataset = _select_columns(dataset, image_column, label_column, extra_columns, image)
    if isinstance(source, (str, Path)) and isinstance(dataset, Dataset):
        _tell_loaded(source, split, dataset)
    if max_examples is None:
        return dataset
    if isinstance(dataset, IterableDataset):
        return dataset.take(max_examples)
    if max_examples >= len(dataset):
        return dataset
    return dataset.select(np.random.default_rng(seed).permutation(len(dataset))[:max_examples])


def find_image_column(features: Mapping[str, Any]) -> str:
    """Name of the column that holds the images.

    It is the only one of type `datasets.Image`; of several, the one named `image`, else `img`; of none, the only
    column of raw bytes (or a struct with bytes) with a name such as `image`, `jpg`, `png` or `webp`; or the only
    column of arrays of two or three dimensions.

    Raises:
        ValueError: no column or several fit; the message lists the columns with their types.
    """
    images = [column for column, feature in features.items() if isinstance(feature, Image)]
    if not images:
        for column, feature in features.items():
            content = feature.get("bytes") if isinstance(feature, Mapping) else feature
            is_bytes = isinstance(content, Value) and content.dtype in ("binary", "large_binary")
            if column.lower() in _BYTES_NAMES and is_bytes:
                images.append(column)
    images = images or [column for column, feature in features.items() if isinstance(feature, (Array2D, Array3D))]
    if len(images) == 1:
        return images[0]
    for column in ("image", "img"):
        if column in images:
            return column
    problem = f"several columns hold images ({', '.join(images)})" if images else "no column holds images"
    raise ValueError(
        f"The image column cannot be told: {problem}. Name it with image_column. The columns are "
        f"{_list_columns(features)}."
    )


def find_label_column(features: Mapping[str, Any]) -> str | None:
    """Name of the column that holds class labels, or None.

    It is the only ClassLabel column; otherwise the first of `label`, `labels`, `fine_label`, `coarse_label`, `cls`
    and `count` that holds ClassLabels, integers, booleans or strings.
    """
    classes = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
    if len(classes) == 1:
        return classes[0]
    return next((column for column in _LABEL_NAMES if _is_label(features.get(column))), None)


def align_classes(dataset: Dataset, reference: Dataset, names: tuple[str, str] = ("test", "train")) -> Dataset:
    """`dataset` with the class numbers of `reference`: where names come from folders or strings, each split numbers
    its own.

    Args:
        dataset: with a column `label`; classes that it has no image of may be absent.
        reference: with a column `label`.
        names: what the two are called in messages.

    Raises:
        ValueError: `dataset` has a class that `reference` lacks, one of the two has no names of classes, or no class
            has images in both. Where some classes have, a warning counts the others.
    """
    dataset = _with_numbers_of(dataset, reference, names)
    _require_common_classes(dataset, reference, names)
    return dataset


def _with_numbers_of(dataset: Dataset, reference: Dataset, names: tuple[str, str]) -> Dataset:
    own, other = dataset.features["label"], reference.features["label"]
    if isinstance(own, ClassLabel) != isinstance(other, ClassLabel):
        raise ValueError(
            f"{names[0]} and {names[1]}: the labels are class names in one and numbers in the other; expected the "
            "same kind in both."
        )
    if not isinstance(own, ClassLabel) or own.names == other.names:
        return dataset
    column = _labels(dataset)
    # None and -1 stand for no label.
    found = {own.names[label] for label in column if label is not None and label >= 0}
    unseen = sorted(found - set(other.names))
    if unseen:
        listed = ", ".join(unseen[:5]) + (", ..." if len(unseen) > 5 else "")
        raise ValueError(
            f"{names[0]} has {len(unseen)} classes that {names[1]} lacks ({listed}); expected its classes to be among "
            "those. Leave their images out, or give both the same classes."
        )
    numbers = [other.str2int(name) if name in found else -1 for name in own.names]
    labels = [label if label is None or label < 0 else numbers[label] for label in column]
    # By column, so that images are neither decoded nor written anew.
    return dataset.remove_columns("label").add_column("label", labels, feature=other)


def _require_common_classes(dataset: Dataset, reference: Dataset, names: tuple[str, str]) -> None:
    """A split that is cut from images in the order of their classes may have none of the other's."""
    labels, known = (
        Counter(label for label in _labels(part) if label is not None and label >= 0) for part in (dataset, reference)
    )
    absent = sorted(set(labels) - set(known))
    if not absent or not known:
        return

    def listed(classes: Iterable[int]) -> str:
        feature = reference.features["label"]
        shown = [feature.names[c] if isinstance(feature, ClassLabel) else str(c) for c in sorted(classes)]
        return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")

    if len(absent) < len(labels):
        logger.warning(
            f"{names[0]}: {len(absent)} of the {len(labels)} classes, {sum(labels[c] for c in absent)} of the "
            f"{labels.total()} images, are of classes that {names[1]} has no image of ({listed(absent)})."
        )
        return
    raise ValueError(
        f"{names[0]} has images of {len(labels)} classes ({listed(labels)}) and {names[1]} of {len(known)} "
        f"({listed(known)}), and none is in common; expected the same classes in both. Where images lie in the "
        "order of their classes, shuffle them before they are cut into splits."
    )


def _labels(dataset: Dataset) -> list[int | None]:
    return dataset.select_columns("label").with_format("arrow")[:]["label"].to_pylist()


class _Options(NamedTuple):
    """How files are read. `others`: the columns beside the image that are of use, of those a WebDataset may have."""

    streaming: bool
    cache_dir: str | None
    image_column: str | None
    others: tuple[str, ...]

    @property
    def of_datasets(self) -> dict[str, Any]:
        return {"streaming": self.streaming, "cache_dir": self.cache_dir}


def _load(
    source: Any, split: str, name: str | None, max_examples: int | None, seed: int, options: _Options
) -> tuple[AnyDataset, list[str] | None]:
    """The data set, and below which folders its rows may name files; None: anywhere on disk."""
    path = Path(source).expanduser() if isinstance(source, (str, Path)) else None
    style = SCENE_STYLES.get(str(source))
    is_address = isinstance(source, str) and "://" in source
    is_glob = path is not None and (glob.has_magic(str(path)) or bool(_BRACES.search(str(path))))
    if name is not None and (path is None or style or is_address or is_glob or path.exists()):
        raise ValueError(
            f"name is {name!r}, the configuration of a Hub data set, but the source is "
            f"{source if isinstance(source, str) else type(source).__name__!r}, which has none. Leave name out."
        )
    if isinstance(source, (Dataset, IterableDataset)):
        return source, None
    if isinstance(source, (DatasetDict, IterableDatasetDict)):
        return source[_pick_split(split, source, "The data set given")], None
    if path is None:
        raise TypeError(
            f"The source given is a {type(source).__name__}; expected a name, a path or a data set of `datasets`."
        )
    if style is not None:
        size, split = max_examples or _SYNTHETIC_SIZE, _SPLIT_OF_WORD.get(split, split)
        return build_scenes(size, style=style, seed=seed, split=split), None
    if is_address:
        return _load_address(str(source), split, options)
    if path.is_dir():
        dataset, root = _load_folder(path, split, options), path
    elif path.is_file():
        dataset, root = _load_files([path], path.parent, split, options, is_folder=False), path.parent
    elif is_glob:
        files, root = _matching_files(path)
        dataset = _load_files(files, root, split, options, is_folder=False)
    else:
        return _load_from_hub(str(source), split, name, options)
    # A parquet file that is read as a whole is buffered as a whole; row group by row group, it is not. Where only the
    # first examples are kept, `datasets` would share their number out over the row groups.
    if max_examples is None and isinstance(dataset, IterableDataset) and hasattr(dataset, "reshard"):
        dataset = dataset.reshard()
    return dataset, [str(root.absolute())]


def _load_folder(folder: Path, split: str, options: _Options) -> AnyDataset:
    saved = folder
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        saved = folder / _pick_split(split, splits, f"The saved data set {str(folder)!r}")
    if saved != folder or all((folder / name).is_file() for name in ("state.json", "dataset_info.json")):
        # `datasets` cannot load a saved set without rows, which has no file of them.
        if not json.loads((saved / "state.json").read_text(encoding="utf-8"))["_data_files"]:
            raise ValueError(f"The saved data set {str(saved)!r} is empty; expected at least one example.")
        return load_from_disk(str(saved))
    files, num_hidden = _files_below(folder)
    if num_hidden:
        logger.info(f"{num_hidden} files or folders in {str(folder)!r} are hidden by a dot in front, and left out.")
    return _load_files(files, folder, split, options, is_folder=True)


def _files_below(folder: Path) -> tuple[list[Path], int]:
    """All files of a folder, through links to folders too, and how many files and folders a dot in front hides.

    Raises:
        PermissionError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise PermissionError(
            f"The folder {error.filename!r} cannot be read ({error.strerror}), so its images would be missing. Give "
            "read permission, or move it out of the data set."
        ) from error

    files, num_hidden = [], 0
    # Where each folder really lies, and those that it was reached through: a link to one of them would never end.
    real = Path(os.path.realpath(folder))
    chains = {str(folder): {str(real), *map(str, real.parents)}}
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        num_hidden += sum(name.startswith(".") for name in (*folders, *names))
        chain, entered = chains.pop(place), []
        for name in sorted(name for name in folders if not name.startswith(".")):
            path = os.path.join(place, name)
            if (link := os.path.realpath(path)) not in chain:
                chains[path] = chain | {link}
                entered.append(name)
        folders[:] = entered
        files += [Path(place, name) for name in names if not name.startswith(".")]
    return sorted(files), num_hidden


def _expand_braces(pattern: str) -> list[str]:
    """`a{0..2}.tar` and `a{0,1,2}.tar` -> a0.tar, a1.tar, a2.tar; numbers keep their zeros, as in a shell."""
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    first, last = found["first"], found["last"]
    if first is None:
        words = found["words"].split(",")
    else:
        step = 1 if int(first) <= int(last) else -1
        words = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + step, step)]
    start, end = pattern[: found.start()], pattern[found.end() :]
    return [start + word + rest for rest in _expand_braces(end) for word in words]


def _matching_files(pattern: Path) -> tuple[list[Path], Path]:
    """The files of a glob pattern or a brace list, and the folder that they share."""
    files: list[Path] = []
    patterns = _expand_braces(str(pattern))
    for each in patterns:
        # A name that exists is no pattern.
        found = [each] if Path(each).is_file() else sorted(glob.glob(each, recursive=True))
        if not found:
            what = f"the pattern {str(pattern)!r}" + (f", nor {each!r} of its list" if len(patterns) > 1 else "")
            raise FileNotFoundError(f"No file matches {what}, looked up from {str(Path.cwd())!r}.")
        files += [Path(path) for path in found if Path(path) not in files]
    is_fixed = [not glob.has_magic(part) and not _BRACES.search(part) for part in pattern.parts]
    return files, Path(*pattern.parts[: is_fixed.index(False)])


def _load_address(source: str, split: str, options: _Options) -> tuple[AnyDataset, list[str]]:
    """Files at an address that fsspec reads, or a data set repository by its address."""
    repository = re.fullmatch(r"hf://datasets/([\w.-]+/[\w.-]+)/?", source)
    if repository:
        return _load_from_hub(repository[1], split, None, options)
    addresses = _expand_braces(source)
    names = [Path(address.partition("?")[0].partition("://")[2]) for address in addresses]
    kinds = {_BUILDER_OF_SUFFIX.get(name.suffix.lower()) for name in names}
    builder = kinds.pop()
    if kinds or builder is None or source.partition("://")[0] not in available_protocols():
        raise ValueError(
            f"No data set can be read at the address {source!r}; expected files of one format (.parquet, .arrow, .tar "
            "or images), such as https://host/train-{000..012}.tar, and a protocol that fsspec knows. Folders are not "
            "listed over the network: name their files, or download them."
        )
    by_split: dict[str, list[str]] = {}
    for address, name in zip(addresses, names, strict=True):
        by_split.setdefault(_split_of_data_file(Path(name.name)), []).append(address)
    base = split.partition("[")[0]
    if len(by_split) == 1:
        by_split = {base: next(iter(by_split.values()))}
    chosen = _pick_split(base, by_split, repr(source))
    try:
        dataset = _read(builder, chosen, by_split[chosen], split.replace(base, chosen, 1), options)
    except ImportError as error:
        raise ImportError(f"To read {source!r}, a package is missing: {error}.") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{source!r} was not found, or not reached ({error}). Check the address.") from error
    except ValueError:
        raise
    except Exception as error:
        # Each protocol has errors of its own.
        raise ConnectionError(
            f"{source!r} could not be read ({type(error).__name__}: {error}). Check the address and the connection, "
            "or give a local path."
        ) from error
    return dataset, sorted({address.rpartition("/")[0] for address in addresses})


def _load_files(files: list[Path], root: Path, split: str, options: _Options, is_folder: bool) -> AnyDataset:
    kinds = sorted({_BUILDER_OF_SUFFIX[p.suffix.lower()] for p in files if p.suffix.lower() in _BUILDER_OF_SUFFIX})
    if not kinds:
        raise FileNotFoundError(
            f"No images and no .parquet, .arrow or .tar files were found in {str(root)!r}; expected one of them."
        )
    if len(kinds) > 1 and "arrayfolder" in kinds:
        # Beside images, an array is something else, such as an embedding.
        kinds.remove("arrayfolder")
    if len(kinds) > 1:
        raise ValueError(
            f"{str(root)!r} mixes files for {' and '.join(kinds)}; expected one kind. Choose with a glob pattern, "
            f"for example {str(root / '**/*.parquet')!r}."
        )
    _tell_left_out(files, kinds[0], root)
    by_split = _split_files(files, root, kinds[0], is_folder)
    base, bracket, slicing = split.partition("[")
    if not is_folder and len(by_split) == 1:
        by_split = {base: next(iter(by_split.values()))}
    chosen = _pick_split(base, by_split, f"{str(root)!r}")
    dataset = _read(kinds[0], chosen, by_split[chosen], f"{chosen}{bracket}{slicing}", options)
    if kinds[0] == "imagefolder" and not slicing and isinstance(dataset, Dataset):
        _tell_unlisted(files, by_split[chosen], len(dataset), root)
    return dataset


def _read(builder: str, name: str, files: list[str], split: str, options: _Options) -> AnyDataset:
    """Files of one format as the split `name`; `split` may be a slice of it."""
    own = {"cache_dir": options.cache_dir, "data_files": {name: files}}
    if builder == "webdataset":
        reader = ImageTars(**own, image=options.image_column, others=options.others)
    elif builder in ("imagefolder", "arrayfolder"):
        reader = (ImageFiles if builder == "imagefolder" else ArrayFiles)(**own)
    else:
        return load_dataset(builder, data_files={name: files}, split=split, **options.of_datasets)
    if options.streaming:
        return reader.as_streaming_dataset(split=split)
    try:
        reader.download_and_prepare()
    except DatasetGenerationError as error:
        # It does not say why; its cause does.
        raise error.__cause__ if isinstance(error.__cause__, ValueError) else error from None
    return reader.as_dataset(split=split)


def _tell_loaded(source: str | Path, split: str, dataset: Dataset) -> None:
    label = dataset.features.get("label")
    classes = f" in {len(label.names)} classes" if isinstance(label, ClassLabel) else "" if label else ", unlabelled"
    logger.info(f"{str(source)!r}, split {split!r}: {len(dataset)} images{classes}.")


def _tell_unlisted(files: list[Path], patterns: list[str], count: int, root: Path) -> None:
    """Beside a metadata file, `datasets` takes the images that it lists and no others."""
    folders = {Path(pattern).parent for pattern in patterns}
    images = [p for p in files if p.suffix.lower() in ImageFiles.EXTENSIONS]
    found = sum(glob.escape(str(p.parent.absolute())) in map(str, folders) for p in images)
    if count < found:
        logger.warning(
            f"{found - count} of the {found} images in {str(root)!r} are left out, since the metadata file there does "
            "not list them. Add them, or take the metadata file away."
        )


def _tell_left_out(files: list[Path], builder: str, root: Path) -> None:
    used = {path.parent for path in files if _BUILDER_OF_SUFFIX.get(path.suffix.lower()) == builder}
    others = [path for path in files if _BUILDER_OF_SUFFIX.get(path.suffix.lower()) != builder]
    # A metadata file is read where it lies beside images.
    others = [path for path in others if not (path.name in _METADATA_NAMES and path.parent in used)]
    if others:
        kinds = Counter(path.suffix.lower() or "no suffix" for path in others)
        counts = ", ".join(f"{kind}: {count}" for kind, count in kinds.most_common(5))
        logger.warning(
            f"{len(others)} of the {len(files)} files in {str(root)!r} are left out, since they are not read as "
            f"{builder} ({counts}). The first is {str(others[0])!r}."
        )


def _split_files(files: list[Path], root: Path, builder: str, is_folder: bool) -> dict[str, list[str]]:
    """Paths or glob patterns by split."""
    files = [path for path in files if _BUILDER_OF_SUFFIX.get(path.suffix.lower()) == builder]
    by_split: dict[str, list[str]] = {}
    has_folders = builder in ("imagefolder", "arrayfolder")
    if has_folders and is_folder:
        # Given the folder alone, `datasets` reads splits from any image name with "train" or "test" in it.
        # One pattern a folder: under `**` it would pass over links and over folders that begin with "__".
        roots = _split_folders(files, root)
        for folder in sorted({path.parent for path in files}):
            split = next(split for top, split in roots.items() if top == folder or top in folder.parents)
            by_split.setdefault(split, []).append(f"{glob.escape(str(folder.absolute()))}/*")
        return by_split
    for path in files:
        split = "train" if has_folders else _split_of_data_file(path.relative_to(root))
        by_split.setdefault(split, []).append(glob.escape(str(path.absolute())))
    return by_split


def _split_folders(images: list[Path], root: Path) -> dict[Path, str]:
    """`{root/train: "train", ...}` if every image lies below a folder named like a split, else `{root: "train"}`."""
    inside = [path.relative_to(root).parts for path in images]
    first = {parts[0] for parts in inside if len(parts) > 1}
    if all(len(parts) > 1 for parts in inside) and all(name.lower() in _SPLIT_OF_WORD for name in first):
        return {root / name: _SPLIT_OF_WORD[name.lower()] for name in sorted(first)}
    splits = sorted(name for name in first if name.lower() in _SPLIT_OF_WORD)
    if len(splits) > 1:
        raise ValueError(
            f"{str(root)!r} has the split folders {', '.join(splits)}, but other images beside them, in "
            f"{', '.join(sorted(map(repr, first - set(splits)))) or 'the folder itself'}. Move those out, or name one "
            "split's folder."
        )
    return {root: "train"}


def _split_of_data_file(path: Path) -> str:
    sharded = _SHARD_NAME.match(path.stem)
    if sharded and sharded["split"].lower() not in ("data", "part", "shard"):
        return _SPLIT_OF_WORD.get(sharded["split"].lower(), sharded["split"])
    words = [re.split(r"[^a-z]", path.stem.lower())[0], *(part.lower() for part in reversed(path.parts[:-1]))]
    return next((_SPLIT_OF_WORD[word] for word in words if word in _SPLIT_OF_WORD), "train")


def _pick_split(split: str, choices: Iterable[str], where: str) -> str:
    choices = list(choices)
    if split in choices:
        return split
    if _SPLIT_OF_WORD.get(split) in choices:
        return _SPLIT_OF_WORD[split]
    raise ValueError(f"{where} has no split {split!r}; expected one of: {', '.join(map(repr, choices))}.")


def _load_from_hub(source: str, split: str, name: str | None, options: _Options) -> tuple[AnyDataset, list[str]]:
    looked = f"there is no file or folder {str(Path(source).expanduser().absolute())!r}"
    is_hub_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) and not source.startswith((".", "/", "~"))
    if not is_hub_name or Path(source).suffix.lower() in _BUILDER_OF_SUFFIX:
        raise FileNotFoundError(f"No data set was found under {source!r}: {looked}. Check the path.")
    try:
        dataset = load_dataset(source, name, split=split, **options.of_datasets)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"No data set was found under {source!r}: {looked}, and the Hub has no data set of this name that you "
            f"may read ({error}). Check the spelling, or log in if the data set is private or gated."
        ) from error
    except (ConnectionError, TimeoutError) as error:
        raise ConnectionError(
            f"No data set could be loaded from {source!r}: {looked}, and the Hugging Face Hub could not be reached "
            f"({error}). Check the path or the connection; offline, give a local folder or {SYNTHETIC_SCENES!r}."
        ) from error
    # Streamed, rows name files of the repository; else copies of them.
    copies = (options.cache_dir, config.HF_DATASETS_CACHE, config.DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE)
    return dataset, [f"hf://datasets/{source}", *(os.path.abspath(place) for place in copies if place is not None)]


def refuse_transform(dataset: AnyDataset) -> None:
    """Raises a ValueError for a data set of `with_transform`: images are decoded here anew, past the transform."""
    if isinstance(dataset, Dataset) and dataset.format["type"] == "custom":
        raise ValueError(
            "The data set given has a transform (with_transform, set_transform), which would not be applied here. If "
            "it makes 'pixel_values', give the data set to the trainer itself; else make the images by map, or take "
            "the transform off by with_format(None)."
        )


def _select_columns(
    dataset: AnyDataset,
    image_column: str | None,
    label_column: str | None,
    extra_columns: Sequence[str],
    image: Callable[..., Image],
) -> AnyDataset:
    """The columns `image`, `label` if any, and extra ones. No image is decoded: writing it again could lose detail."""
    refuse_transform(dataset)
    dataset, is_stream = dataset.with_format(None), isinstance(dataset, IterableDataset)
    features = dataset.features
    if features is None:
        first = next(iter(dataset), None)
        if first is None:
            raise ValueError("The streamed data set is empty; expected at least one example.")
        features = Dataset.from_list([first]).features
        dataset = dataset.cast(features)
    for given, role in ((image_column, "image_column"), (label_column, "label_column")):
        if given is not None and given not in features:
            raise ValueError(f"{role} is {given!r}, which is not a column. The columns are {_list_columns(features)}.")
    image_column = image_column or find_image_column(features)
    if label_column is None:
        label_column = find_label_column(features)
        if label_column and is_stream and _is_string(features[label_column]):
            label_column = None
    elif not _is_label(features[label_column]):
        raise ValueError(
            f"label_column is {label_column!r} of type {features[label_column]}; expected ClassLabels, integers, "
            "booleans or strings."
        )
    new_names = {image_column: "image"} | ({label_column: "label"} if label_column else {})
    # Before any cast, which would copy the other columns too.
    extra = [column for column in extra_columns if column in features and column not in new_names]
    dataset = dataset.select_columns([*new_names, *extra])
    if isinstance(features[image_column], (Array2D, Array3D)):
        dataset = _as_files(dataset, image_column)
    if label_column and _is_string(features[label_column]):
        if is_stream:
            raise ValueError(
                "The label column holds strings, whose classes are unknown while streaming; expected ClassLabels or "
                "integers. Cast the column to ClassLabel first, or load without streaming."
            )
        if features[label_column].dtype != "string":
            dataset = dataset.cast_column(label_column, Value("string"))
        names = sorted(name for name in dataset.unique(label_column) if name is not None)
        dataset = dataset.cast_column(label_column, ClassLabel(names=names))
    renames = {column: name for column, name in new_names.items() if column != name}
    # A stream is renamed example by example, with images as its features say: decoded, unless told otherwise.
    before = features[image_column]
    dataset = dataset.cast_column(image_column, image(decode=not (is_stream and renames), before=before))
    dataset = dataset.rename_columns(renames) if renames else dataset
    return dataset.cast_column("image", image(before=before)) if is_stream and renames else dataset


def _as_files(dataset: AnyDataset, column: str) -> AnyDataset:
    """A column of arrays as one of `.npy` files in memory, which images can be read from."""
    dtype = dataset.features[column].dtype

    def write(batch: dict[str, Any]) -> dict[str, Any]:
        files = []
        for array in batch[column]:
            buffer = io.BytesIO()
            # A missing array is a missing image.
            if array is not None:
                np.save(buffer, np.asarray(array).astype(dtype), allow_pickle=False)
            files.append(None if array is None else {"bytes": buffer.getvalue(), "path": None})
        return {column: files}

    features = Features({**dataset.features, column: Image(decode=False)})
    return dataset.with_format("numpy").map(write, batched=True, batch_size=100, features=features).with_format(None)


def _is_label(feature: Any) -> bool:
    if isinstance(feature, ClassLabel):
        return True
    return isinstance(feature, Value) and (feature.dtype.startswith(("int", "uint", "bool")) or _is_string(feature))


def _is_string(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _list_columns(features: Mapping[str, Any]) -> str:
    types = {name: f.dtype if isinstance(f, Value) else type(f).__name__ for name, f in features.items()}
    return ", ".join(f"{name} ({kind})" for name, kind in types.items())
