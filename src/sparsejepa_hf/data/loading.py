# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""One entry for every source of images: the Hub, local files, loaded data sets and the built-in scenes."""

import glob
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import (
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    IterableDataset,
    IterableDatasetDict,
    Value,
    load_dataset,
    load_from_disk,
)
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from .scenes import build_scenes


SYNTHETIC_SCENES = "synthetic-scenes"
_SYNTHETIC_SIZE = 4096
_BUILDER_OF_SUFFIX = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
_BUILDER_OF_SUFFIX.update(dict.fromkeys(ImageFolder.EXTENSIONS, "imagefolder"))
_SPLIT_OF_WORD = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_SHARD_NAME = re.compile(r"(?P<split>\w+(?:[.-]\w+)*?)-\d+-of-\d+")
_BYTES_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
_LABEL_NAMES = ("label", "labels", "fine_label", "coarse_label", "cls", "count")

AnyDataset = Dataset | IterableDataset


def load_image_dataset(
    source: str | Path | AnyDataset | DatasetDict | IterableDatasetDict,
    split: str = "train",
    *,
    name: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    streaming: bool = False,
    max_examples: int | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> AnyDataset:
    """Loads images, with labels where there are any, from any of these sources.

    Args:
        source: `"synthetic-scenes"` (see [`build_scenes`], 32 pixels, `max_examples` of them, else 4096); a folder
            of images, flat or with one folder per class, below `train`, `test`, ... folders or not; a folder, file
            or glob of Parquet, Arrow or WebDataset (`.tar`) files, whose split is read from names such as
            `train-00000-of-00002.parquet` or from folder names; a folder written by `save_to_disk`; a data set of
            the `datasets` library; or the name of a data set on the Hub. What exists on disk goes before the Hub.
        split: which split, as in `datasets` (`"train[:10%]"` works for local files and the Hub). `val` and `dev`
            mean `validation` for local files. A single file, or a glob that covers one split only, is taken whole
            whatever the split. Ignored for a `Dataset` or `IterableDataset`.
        name: configuration of a Hub data set.
        image_column: the column of images; found by [`find_image_column`] if None.
        label_column: the column of labels; found by [`find_label_column`] if None.
        streaming: read on the fly instead of preparing the data set on disk. Without `max_examples`, local
            Parquet files are read a row group at a time (by `datasets` before 5.0: a file), which bounds the memory.
        max_examples: keep so many: a random subset by `seed`, in random order; the first ones when streaming. All
            where there are fewer.
        seed: seed of the subset, and of the scenes.
        cache_dir: where `datasets` keeps its prepared files; its own default if None.

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
    dataset = _load(source, split, name, streaming, max_examples, seed, cache_dir)
    if streaming and isinstance(dataset, Dataset):
        dataset = dataset.to_iterable_dataset()
    return _limit(_select_columns(dataset, image_column, label_column), max_examples, seed)


def find_image_column(features: Mapping[str, Any]) -> str:
    """Name of the column that holds the images.

    It is the only one of type `datasets.Image`; of several, the one named `image`, else `img`; of none, the only
    column of raw bytes (or a struct with bytes) with a name such as `image`, `jpg`, `png` or `webp`.

    Raises:
        ValueError: no column or several fit; the message lists the columns with their types.
    """
    images = [column for column, feature in features.items() if isinstance(feature, Image)]
    if not images:
        images = [column for column in features if column.lower() in _BYTES_NAMES and _holds_bytes(features[column])]
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


def _load(
    source: Any,
    split: str,
    name: str | None,
    streaming: bool,
    max_examples: int | None,
    seed: int,
    cache_dir: str | Path | None,
) -> AnyDataset:
    if name is not None and not _is_hub_source(source):
        raise ValueError(
            f"name is {name!r}, the configuration of a Hub data set, but the source is "
            f"{source if isinstance(source, str) else type(source).__name__!r}, which has none. Leave name out."
        )
    if isinstance(source, (Dataset, IterableDataset)):
        return source
    if isinstance(source, (DatasetDict, IterableDatasetDict)):
        return source[_pick_split(split, source, "The data set given")]
    if not isinstance(source, (str, Path)):
        raise TypeError(
            f"The source given is a {type(source).__name__}; expected a name, a path or a data set of `datasets`."
        )
    if str(source) == SYNTHETIC_SCENES:
        return build_scenes(max_examples or _SYNTHETIC_SIZE, seed=seed, split=_SPLIT_OF_WORD.get(split, split))
    options = {"streaming": streaming, "cache_dir": None if cache_dir is None else str(cache_dir)}
    path = Path(source).expanduser()
    if path.is_dir():
        dataset = _load_folder(path, split, options)
    elif path.is_file():
        dataset = _load_files([path], path.parent, split, options, is_folder=False)
    elif glob.has_magic(str(path)):
        dataset = _load_glob(path, split, options)
    else:
        return _load_from_hub(str(source), split, name, options)
    # A parquet file that is read as a whole is buffered as a whole; row group by row group, it is not. Where only the
    # first examples are kept, `datasets` would share their number out over the row groups.
    if max_examples is None and isinstance(dataset, IterableDataset) and hasattr(dataset, "reshard"):
        return dataset.reshard()
    return dataset


def _is_hub_source(source: Any) -> bool:
    if not isinstance(source, (str, Path)) or str(source) == SYNTHETIC_SCENES:
        return False
    return not Path(source).expanduser().exists() and not glob.has_magic(str(source))


def _load_folder(folder: Path, split: str, options: dict[str, Any]) -> AnyDataset:
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        return _load_saved(folder / _pick_split(split, splits, f"The saved data set {str(folder)!r}"))
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        return _load_saved(folder)
    inside = (path.relative_to(folder) for path in folder.rglob("*"))
    files = sorted(folder / path for path in inside if not any(part.startswith(".") for part in path.parts))
    return _load_files(files, folder, split, options, is_folder=True)


def _load_saved(folder: Path) -> AnyDataset:
    # `datasets` stumbles over a saved set without rows, which has no file of them.
    if not json.loads((folder / "state.json").read_text(encoding="utf-8"))["_data_files"]:
        raise ValueError(f"The saved data set {str(folder)!r} is empty; expected at least one example.")
    return load_from_disk(str(folder))


def _load_glob(pattern: Path, split: str, options: dict[str, Any]) -> AnyDataset:
    files = [Path(path) for path in sorted(glob.glob(str(pattern), recursive=True))]
    if not files:
        raise FileNotFoundError(f"No file matches the pattern {str(pattern)!r}, looked up from {str(Path.cwd())!r}.")
    fixed = [part for part in pattern.parts if glob.has_magic(part)][0]
    return _load_files(files, Path(*pattern.parts[: pattern.parts.index(fixed)]), split, options, is_folder=False)


def _load_files(files: list[Path], root: Path, split: str, options: dict[str, Any], is_folder: bool) -> AnyDataset:
    builder = _builder_of(files, root)
    by_split = _split_files(files, root, builder, is_folder)
    base, slicing = _parse_split(split)
    if not is_folder and len(by_split) == 1:
        by_split = {base: next(iter(by_split.values()))}
    chosen = _pick_split(base, by_split, f"{str(root)!r}")
    return load_dataset(builder, data_files={chosen: by_split[chosen]}, split=f"{chosen}{slicing}", **options)


def _builder_of(files: list[Path], root: Path) -> str:
    found = sorted({_BUILDER_OF_SUFFIX[p.suffix.lower()] for p in files if p.suffix.lower() in _BUILDER_OF_SUFFIX})
    if not found:
        raise FileNotFoundError(
            f"No images and no .parquet, .arrow or .tar files were found in {str(root)!r}; expected one of them."
        )
    if len(found) > 1:
        raise ValueError(
            f"{str(root)!r} mixes files for {' and '.join(found)}; expected one kind. Choose with a glob pattern, "
            f"for example {str(root / '**/*.parquet')!r}."
        )
    return found[0]


def _split_files(files: list[Path], root: Path, builder: str, is_folder: bool) -> dict[str, list[str]]:
    """Paths or glob patterns by split."""
    files = [path for path in files if _BUILDER_OF_SUFFIX.get(path.suffix.lower()) == builder]
    by_split: dict[str, list[str]] = {}
    if builder == "imagefolder" and is_folder:
        # Given the folder alone, `datasets` reads splits from any image name with "train" or "test" in it.
        for folder, split in _split_folders(files, root).items():
            by_split.setdefault(split, []).append(f"{glob.escape(str(folder.absolute()))}/**")
        return by_split
    for path in files:
        split = "train" if builder == "imagefolder" else _split_of_data_file(path.relative_to(root))
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


def _parse_split(split: str) -> tuple[str, str]:
    base, bracket, rest = split.partition("[")
    return base, bracket + rest


def _pick_split(split: str, choices: Iterable[str], where: str) -> str:
    choices = list(choices)
    if split in choices:
        return split
    if _SPLIT_OF_WORD.get(split) in choices:
        return _SPLIT_OF_WORD[split]
    raise ValueError(f"{where} has no split {split!r}; expected one of: {', '.join(map(repr, choices))}.")


def _load_from_hub(source: str, split: str, name: str | None, options: dict[str, Any]) -> AnyDataset:
    looked = f"there is no file or folder {str(Path(source).expanduser().absolute())!r}"
    if _looks_like_path(source):
        raise FileNotFoundError(f"No data set was found under {source!r}: {looked}. Check the path.")
    try:
        return load_dataset(source, name, split=split, **options)
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


def _looks_like_path(source: str) -> bool:
    is_hub_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) and not source.startswith((".", "/", "~"))
    return not is_hub_name or Path(source).suffix.lower() in _BUILDER_OF_SUFFIX


def _select_columns(dataset: AnyDataset, image_column: str | None, label_column: str | None) -> AnyDataset:
    dataset = dataset.with_format(None)
    features = _features_of(dataset)
    for given, role in ((image_column, "image_column"), (label_column, "label_column")):
        if given is not None and given not in features:
            raise ValueError(f"{role} is {given!r}, which is not a column. The columns are {_list_columns(features)}.")
    image_column = image_column or find_image_column(features)
    if label_column is None:
        label_column = _usable_label_column(dataset, features)
    elif not _is_label(features[label_column]):
        raise ValueError(
            f"label_column is {label_column!r} of type {features[label_column]}; expected ClassLabels, integers, "
            "booleans or strings."
        )
    names = {image_column: "image"} | ({label_column: "label"} if label_column else {})
    if dataset.features is None:
        dataset = dataset.cast(features)
    # Renaming (streams) and class encoding would decode the images and encode them anew, lossy for JPEG and WebP.
    dataset = dataset.cast_column(image_column, Image(decode=False)).select_columns(list(names))
    renames = {column: new for column, new in names.items() if column != new}
    dataset = dataset.rename_columns(renames) if renames else dataset
    dataset = _encode_strings(dataset) if label_column else dataset
    return dataset.cast_column("image", Image())


def _usable_label_column(dataset: AnyDataset, features: Mapping[str, Any]) -> str | None:
    column = find_label_column(features)
    if column and isinstance(dataset, IterableDataset) and _is_string(features[column]):
        return None
    return column


def _encode_strings(dataset: AnyDataset) -> AnyDataset:
    if not _is_string(dataset.features["label"]):
        return dataset
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            "The label column holds strings, whose classes are unknown while streaming; expected ClassLabels or "
            "integers. Cast the column to ClassLabel first, or load without streaming."
        )
    return dataset.class_encode_column("label")


def _features_of(dataset: AnyDataset) -> Features:
    if dataset.features is not None:
        return dataset.features
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError("The streamed data set is empty; expected at least one example.")
    return Dataset.from_list([first]).features


def _limit(dataset: AnyDataset, max_examples: int | None, seed: int) -> AnyDataset:
    if max_examples is None:
        return dataset
    if isinstance(dataset, IterableDataset):
        return dataset.take(max_examples)
    if max_examples >= len(dataset):
        return dataset
    return dataset.select(np.random.default_rng(seed).permutation(len(dataset))[:max_examples])


def _holds_bytes(feature: Any) -> bool:
    if isinstance(feature, Mapping):
        return _holds_bytes(feature.get("bytes"))
    return isinstance(feature, Value) and feature.dtype in ("binary", "large_binary")


def _is_label(feature: Any) -> bool:
    if isinstance(feature, ClassLabel):
        return True
    return isinstance(feature, Value) and (feature.dtype.startswith(("int", "uint", "bool")) or _is_string(feature))


def _is_string(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _list_columns(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{column} ({_type_name(feature)})" for column, feature in features.items())


def _type_name(feature: Any) -> str:
    return feature.dtype if isinstance(feature, Value) else type(feature).__name__
