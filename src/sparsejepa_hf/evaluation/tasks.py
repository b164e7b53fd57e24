# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The data sets of the paper by name, stand-ins under names of their own, and data sets of the user's.

A *spec* says which data set is meant: `cifar100` (from the Hub), `cifar100=/data/cifar100` (the same data set from
local files, which are checked to be it) or `my_data=/data/mine` (any other data, under a name of its own; with
`my_data:count=/data/mine` its labels are numbers of objects).
"""

from __future__ import annotations

import glob
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from datasets import ClassLabel, Dataset, Value

from ..data import SYNTHETIC_SCENES, load_image_dataset


Kind = Literal["classification", "count"]

_KRIZHEVSKY = "Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images"
_ZHOU_2014 = "Zhou, Lapedriza, Xiao, Torralba, Oliva 2014, Learning Deep Features for Scene Recognition using Places"
_ZHOU_2017 = "Zhou, Lapedriza, Khosla, Oliva, Torralba 2017, Places: A 10 Million Image Database for Scene Recognition"
_JOHNSON = (
    "Johnson et al. 2017, CLEVR: A Diagnostic Dataset for Compositional Language and Elementary Visual Reasoning"
)
_VAN_HORN = "Van Horn et al. 2018, The iNaturalist Species Classification and Detection Dataset"
_NETZER = "Netzer et al. 2011, Reading Digits in Natural Images with Unsupervised Feature Learning"
_TIAN = "Tian, Krishnan, Isola 2020, Contrastive Multiview Coding; Russakovsky et al. 2015, ImageNet"
_NILSBACK = "Nilsback, Zisserman 2008, Automated Flower Classification over a Large Number of Classes"
_SUHR = "Suhr, Lewis, Yeh, Artzi 2017, A Corpus of Natural Language for Visual Reasoning"
_SHOWN = 5


@dataclass(frozen=True)
class Task:
    """A labelled image data set with a train and a test split.

    Attributes:
        name: what results are reported under.
        num_train: rows of the train split; None where unknown, for a data set of the user's.
        num_test: rows of the test split; None where unknown.
        num_classes: number of classes, or of different counts; None where unknown.
        kind: `"classification"` (labels 0 .. num_classes - 1) or `"count"` (labels are numbers of objects).
        image_size: side of the square images to evaluate at, in pixels, a hint; None where unknown.
        citation: authors, year and title.
        hub_id: name on the Hugging Face Hub; None where no copy is known.
        config: configuration on the Hub.
        train_split: its name on the Hub and, first of all, in local files.
        test_split: the split that results are reported on.
        image_column: column of the images on the Hub; found by itself if None, as for local files.
        label_column: column of the labels on the Hub; likewise.
        lowest_label: smallest label, 0 except for counts.
        other_num_train: further sizes of the train split that are accepted.
        paper_name: column of the paper's table of results; None if the paper does not report on it.
        stands_for: name of the task that this one is a small substitute of, else None.
        caveat: for a stand-in, the sentence to print beside its results, else None.
        notes: what a user should know, such as which files to give where `hub_id` is None.
        verified: what of this entry was checked, and how.
        source: local path or other source that replaces the Hub; see [`find_task`].
    """

    name: str
    num_train: int | None
    num_test: int | None
    num_classes: int | None
    kind: Kind
    image_size: int | None
    citation: str
    hub_id: str | None = None
    config: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    image_column: str | None = None
    label_column: str | None = None
    lowest_label: int = 0
    other_num_train: tuple[int, ...] = ()
    paper_name: str | None = None
    stands_for: str | None = None
    caveat: str | None = None
    notes: str = ""
    verified: str = ""
    source: str | None = None

    @property
    def is_registered(self) -> bool:
        """Whether the name is one of `TASKS`, so that its sizes and classes are known and checked."""
        return self.name in TASKS

    def to_dict(self) -> dict[str, Any]:
        """The attributes, ready for JSON."""
        return {**asdict(self), "other_num_train": list(self.other_num_train)}


_CARD = "Hub name, splits, columns and sizes as in public dataset cards and code; not compared with a download."
_SIZES = "Sizes as published by the authors; not compared with a download."
_FILES = "Sizes, classes and label range checked on the files."

_PAPER = (
    Task(
        name="cifar100",
        hub_id="uoft-cs/cifar100",
        image_column="img",
        label_column="fine_label",
        num_train=50_000,
        num_test=10_000,
        num_classes=100,
        kind="classification",
        image_size=32,
        citation=_KRIZHEVSKY,
        paper_name="CIFAR-100",
        verified="Sizes, columns and classes checked on local files of the same layout. " + _CARD,
    ),
    Task(
        name="places205",
        test_split="validation",
        num_train=2_448_873,
        num_test=20_500,
        num_classes=205,
        kind="classification",
        image_size=224,
        citation=_ZHOU_2014,
        paper_name="Places205",
        notes=(
            "No public copy on the Hub is known. Give a folder with train and validation folders of one folder per "
            "scene, made from the images of places.csail.mit.edu and their lists of labels: places205=FOLDER."
        ),
        verified=_SIZES,
    ),
    Task(
        name="clevr_count",
        hub_id="clip-benchmark/wds_vtab-clevr_count_all",
        image_column="webp",
        label_column="cls",
        num_train=70_000,
        other_num_train=(63_000,),
        num_test=15_000,
        num_classes=8,
        lowest_label=3,
        kind="count",
        image_size=224,
        citation=_JOHNSON,
        paper_name="CLEVR/Count",
        notes=(
            "CLEVR v1.0, its validation images as test. The Hub copy follows VTAB: 63,000 train images, since VTAB "
            "sets 7,000 apart, and classes 0 to 7 for the counts 3 to 10, which are turned into counts."
        ),
        verified=(
            "Hub name, splits, columns, classes 0 to 7 for three to ten and 15,000 test rows as in the public dataset "
            "card; the 63,000 train rows follow from VTAB's split and were not compared with a download."
        ),
    ),
    Task(
        name="inat2018",
        test_split="validation",
        num_train=437_513,
        num_test=24_426,
        num_classes=8_142,
        kind="classification",
        image_size=224,
        citation=_VAN_HORN,
        paper_name="iNaturalist 2018",
        notes=(
            "No public copy on the Hub is known. Give a folder with train and validation folders of one folder per "
            "category, made from the archive and the train2018.json and val2018.json of the iNaturalist competition "
            "2018 (github.com/visipedia/inat_comp): inat2018=FOLDER."
        ),
        verified=_SIZES,
    ),
    Task(
        name="cifar10",
        hub_id="uoft-cs/cifar10",
        image_column="img",
        label_column="label",
        num_train=50_000,
        num_test=10_000,
        num_classes=10,
        kind="classification",
        image_size=32,
        citation=_KRIZHEVSKY,
        verified=_CARD,
    ),
    Task(
        name="svhn",
        hub_id="ufldl-stanford/svhn",
        config="cropped_digits",
        image_column="image",
        label_column="label",
        num_train=73_257,
        num_test=26_032,
        num_classes=10,
        kind="classification",
        image_size=32,
        citation=_NETZER,
        notes="The additional split `extra` of 531,131 easier images is not used.",
        verified=_CARD,
    ),
    Task(
        name="imagenet-100",
        hub_id="clane9/imagenet-100",
        image_column="image",
        label_column="label",
        test_split="validation",
        num_train=126_689,
        num_test=5_000,
        num_classes=100,
        kind="classification",
        image_size=224,
        citation=_TIAN,
        notes="The 100 classes of Tian et al.; other subsets of 100 classes go by the same name.",
        verified="The card rounds the train split to 127 thousand rows. " + _CARD,
    ),
)

_STAND_INS = (
    Task(
        name="miniplaces32",
        test_split="validation",
        num_train=10_000,
        num_test=5_000,
        num_classes=100,
        kind="classification",
        image_size=32,
        citation=_ZHOU_2017,
        stands_for="places205",
        caveat="A 100-scene subset of Places2 (Mini Places) at 32 pixels, 100 train images a scene; not Places205.",
        verified=_FILES,
    ),
    Task(
        name="clevr_count_64",
        num_train=4_000,
        num_test=850,
        num_classes=8,
        lowest_label=3,
        kind="count",
        image_size=64,
        citation=_JOHNSON,
        stands_for="clevr_count",
        caveat="Scenes rendered anew at 64 pixels with the assets of CLEVR, 4,000 train images; not CLEVR v1.0.",
        verified=_FILES,
    ),
    Task(
        name="flowers64",
        num_train=4_433,
        num_test=1_108,
        num_classes=89,
        kind="classification",
        image_size=64,
        citation=_NILSBACK,
        stands_for="inat2018",
        caveat="89 of the 102 Oxford flowers at 64 pixels, in a split of its own; not iNaturalist 2018.",
        verified=_FILES,
    ),
    Task(
        name="nlvr_count",
        num_train=1_998,
        num_test=828,
        num_classes=7,
        lowest_label=1,
        kind="count",
        image_size=64,
        citation=_SUHR,
        stands_for="clevr_count",
        caveat="Flat synthetic shapes, single boxes cut out of NLVR images at 64 pixels; not CLEVR.",
        verified=_FILES,
    ),
    Task(
        name="cifar10_subset",
        num_train=10_000,
        num_test=2_000,
        num_classes=10,
        kind="classification",
        image_size=32,
        citation=_KRIZHEVSKY,
        stands_for="cifar10",
        caveat="A fifth of CIFAR-10 as lossy JPEG images; not comparable with the full data set.",
        verified=_FILES,
    ),
)

_LOCAL_NOTE = (
    "No copy on the Hub. Give a folder of Parquet files or images with a train and a {split} split: {name}=FOLDER."
)

TASKS: Mapping[str, Task] = MappingProxyType(
    {task.name: task for task in _PAPER}
    | {
        task.name: replace(task, notes=_LOCAL_NOTE.format(split=task.test_split, name=task.name))
        for task in _STAND_INS
    }
)


def find_task(spec: str) -> Task:
    """The task that a spec means, with `source` set to what follows its `=`.

    Args:
        spec: `NAME`, one of `TASKS`; `NAME=SOURCE`, the same data from a folder; or `OWN_NAME=SOURCE`, where
            SOURCE is a folder, a data set on the Hub or `synthetic-scenes` (see [`load_image_dataset`]).
            `OWN_NAME:count=SOURCE` says that the labels are numbers of objects, not classes.

    Raises:
        ValueError: the spec is not of this form, or a name without a source is not registered.
    """
    head, equals, source = str(spec).partition("=")
    name, colon, kind = head.partition(":")
    is_task = not colon or kind in ("classification", "count")
    if not re.fullmatch(r"[\w.-]+", name) or not is_task or bool(equals) != bool(source):
        raise ValueError(
            f"The data set is given as {spec!r}; expected NAME, NAME=SOURCE or NAME:count=SOURCE, for example "
            "cifar100 or my_data=/data/mine."
        )
    registered = TASKS.get(name)
    if registered is None and not equals:
        raise ValueError(
            f"There is no data set named {name!r}; expected one of {', '.join(TASKS)}, or NAME=SOURCE for data "
            "of your own."
        )
    if registered is None:
        return Task(name, None, None, None, kind or "classification", None, citation="", source=source)
    if colon and kind != registered.kind:
        raise ValueError(
            f"The data set is given as {spec!r}, but the kind of {name} is {registered.kind}. Leave {colon + kind!r} "
            "out, or give the data under a name of its own."
        )
    return replace(registered, source=source) if equals else registered


def load_task(
    spec: str | Task,
    split: Literal["train", "test"],
    *,
    max_examples: int | None = None,
    seed: int = 0,
    image_column: str | None = None,
    label_column: str | None = None,
    cache_dir: str | Path | None = None,
) -> Dataset:
    """One split of a task, checked, with the columns `image` and `label`.

    Files under a registered name must have its number of rows and classes and no label out of its range, so that no
    other data are reported under that name. For data of the user's, `test` is their split `test`, else `validation`;
    the classes are those of their train split. Class names of the test split are matched with those of train.

    Args:
        spec: see [`find_task`], or what it returns.
        split: `"train"` or `"test"`, whatever the files call them.
        max_examples: keep so many, at random by `seed`; the checks are made before, on all.
        seed: seed of the subset.
        image_column: column of the images; the registered one on the Hub, else found by itself if None.
        label_column: column of the labels; likewise.
        cache_dir: where `datasets` keeps its prepared files.

    Returns:
        A `datasets.Dataset`; `label` holds integers: ClassLabel or class indices from 0, or numbers of objects.

    Warns:
        UserWarning: data of the user's lack some class in train, or the Hub's copy has another size than registered.

    Raises:
        ValueError: there are no labels or no rows; labels are missing, out of range or, for counts, no numbers; rows
            or classes are not those of the name; a class of a registered train split is missing; test has a class
            name that train lacks; or train and test would be read from the same rows.
        FileNotFoundError: nothing was found under the source, or no source is known.
        ConnectionError: the Hub could not be reached.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; expected 'train' or 'test'.")
    task = spec if isinstance(spec, Task) else find_task(spec)
    options = {"image_column": image_column, "label_column": label_column, "cache_dir": cache_dir}
    dataset = _with_counts(_load(task, split, options), task, split)
    if split == "test" and _is_local(task):
        train = _with_counts(_load(task, "train", options), task, "train")
        _check_identity(train, task, "train")
        dataset = _align_classes(dataset, train, task)
        if task.kind == "classification":
            task = replace(task, num_classes=task.num_classes or _num_classes(train, task.kind))
    _check(dataset, task, split)
    if max_examples is None:
        return dataset
    return load_image_dataset(dataset, max_examples=max_examples, seed=seed)


def _is_local(task: Task) -> bool:
    return task.source is not None


def _load(task: Task, split: str, options: dict[str, Any]) -> Dataset:
    if not _is_local(task):
        return _load_from_hub(task, split, options)
    _check_has_splits(task)
    first = task.train_split if split == "train" else task.test_split
    candidates = [first] if split == "train" else list(dict.fromkeys([first, "test", "validation"]))
    for candidate in candidates:
        try:
            return load_image_dataset(task.source, candidate, **options)
        except ValueError as error:
            if "no data" in str(error):
                raise ValueError(_empty(task, split)) from error
            if not re.search(r"has no split|Unknown split", str(error)) or candidate == candidates[-1]:
                raise ValueError(f"{task.name}={task.source}: {error}") from error
    raise AssertionError("the last candidate returns or raises")


def _load_from_hub(task: Task, split: str, options: dict[str, Any]) -> Dataset:
    if task.hub_id is None:
        raise FileNotFoundError(f"{task.name} has no source. {task.notes}")
    columns = {
        "image_column": options["image_column"] or task.image_column,
        "label_column": options["label_column"] or task.label_column,
    }
    name = task.train_split if split == "train" else task.test_split
    try:
        return load_image_dataset(task.hub_id, name, name=task.config, **{**options, **columns})
    except ConnectionError as error:
        raise ConnectionError(
            f"{task.name} is read from the Hub, which could not be reached. Give local files instead: "
            f"{task.name}=FOLDER. ({error})"
        ) from error


def _check_has_splits(task: Task) -> None:
    """Raise for the sources of which [`load_image_dataset`] takes all rows whatever the split."""
    source = str(task.source)
    path = Path(source).expanduser()
    if source == SYNTHETIC_SCENES:
        return
    is_one_table = (path / "state.json").is_file() and not (path / "dataset_dict.json").is_file()
    if path.is_file() or is_one_table or (not path.exists() and glob.has_magic(source)):
        raise ValueError(
            f"{task.name}={source}: this is a file, a pattern or one saved table, of which train and test would "
            "be the same rows; expected a folder with a train and a test or validation split."
        )


def _empty(task: Task, split: str) -> str:
    return f"{task.name}: the {split} split is empty; expected at least one image. Check the files."


def _with_counts(dataset: Dataset, task: Task, split: str) -> Dataset:
    """The data set, after checking that it has rows and labels; for counts, with numbers of objects as labels."""
    if len(dataset) == 0:
        raise ValueError(_empty(task, split))
    if "label" not in dataset.features:
        raise ValueError(
            f"{task.name}: the {split} split has no labels; expected a column of classes or counts. Name it with "
            "label_column, or put images into one folder per class."
        )
    missing = dataset.with_format("arrow").select_columns(["label"])[:].column("label").null_count
    if missing:
        raise ValueError(
            f"{task.name}: {missing} of {len(dataset)} labels of the {split} split are missing; expected one for "
            "every image. Leave the unlabelled images out."
        )
    return _to_counts(dataset, task, split) if task.kind == "count" else dataset


def _to_counts(dataset: Dataset, task: Task, split: str) -> Dataset:
    feature, labels = dataset.features["label"], _labels(dataset)
    counts = labels
    if isinstance(feature, ClassLabel):
        wrong = [name for name in feature.names if not name.isdecimal()]
        if wrong:
            raise ValueError(
                f"{task.name}: the {split} split has the classes {_shorten(wrong)}, but numbers of objects are "
                "expected. Give a column of integers, or name folders by the number."
            )
        counts = np.array([int(name) for name in feature.names])[labels]
    elif _holds_count_classes(labels, task):
        counts = labels + task.lowest_label
    if counts is labels and feature == Value("int64"):
        return dataset
    # By column, so that images are neither decoded nor written anew.
    return dataset.remove_columns("label").add_column("label", counts.astype(np.int64))


def _holds_count_classes(labels: np.ndarray, task: Task) -> bool:
    """Whether these are the classes 0 .. C - 1 of counts that begin above 0, as VTAB numbers them."""
    if not task.lowest_label or task.num_classes is None:
        return False
    return int(labels.min()) == 0 and int(labels.max()) < task.num_classes


def _align_classes(test: Dataset, train: Dataset, task: Task) -> Dataset:
    """Test with the class numbers of train: where names come from folders or strings, each split numbers its own."""
    own, other = test.features["label"], train.features["label"]
    if isinstance(own, ClassLabel) != isinstance(other, ClassLabel):
        raise ValueError(
            f"{task.name}: the labels are class names in one split and numbers in the other; expected the same "
            "kind in both."
        )
    if not isinstance(own, ClassLabel) or own.names == other.names:
        return test
    unseen = sorted(set(own.names) - set(other.names))
    if unseen:
        raise ValueError(
            f"{task.name}: test has {len(unseen)} classes that train lacks ({_shorten(unseen)}); expected test "
            "classes to be among those of train. Leave their images out, or add train images."
        )
    to_train = np.array([other.str2int(name) for name in own.names])
    labels = _labels(test)
    labels = np.where(labels < 0, labels, to_train[labels])
    return test.remove_columns("label").add_column("label", labels, feature=other)


def _check(dataset: Dataset, task: Task, split: str) -> None:
    labels = _labels(dataset)
    _check_identity(dataset, task, split)
    _check_range(dataset, labels, task, split)
    if split == "train":
        _check_classes_present(dataset, labels, task)


def _check_identity(dataset: Dataset, task: Task, split: str) -> None:
    if not task.is_registered:
        return
    registered = (task.num_train, *task.other_num_train) if split == "train" else (task.num_test,)
    classes = _num_classes(dataset, task.kind)
    if len(dataset) in registered and classes == task.num_classes:
        return
    kind = "counts" if task.kind == "count" else "classes"
    found = f"{len(dataset):,} rows and {classes:,} {kind}"
    wanted = f"{' or '.join(f'{rows:,}' for rows in registered)} rows and {task.num_classes:,} {kind}"
    if not _is_local(task):
        warnings.warn(
            f"The Hub's {task.hub_id} has {found} in the {split} split; {wanted} were expected.", stacklevel=4
        )
        return
    twin = _look_alike(len(dataset), classes, split, task.kind)
    other = f"looks like {twin}: give it as {twin}=" if twin else "is another data set: give it as OWN_NAME="
    raise ValueError(
        f"{task.name}={task.source}: the {split} split has {found}, but {task.name} has {wanted}. This "
        f"{other}{task.source}, so that its results are not taken for those of {task.name}."
    )


def _look_alike(rows: int, classes: int, split: str, kind: str) -> str | None:
    for name, other in TASKS.items():
        sizes = (other.num_train, *other.other_num_train) if split == "train" else (other.num_test,)
        if rows in sizes and (classes, kind) == (other.num_classes, other.kind):
            return name
    return None


def _check_range(dataset: Dataset, labels: np.ndarray, task: Task, split: str) -> None:
    lowest = task.lowest_label
    highest = lowest + task.num_classes - 1 if task.num_classes else None
    if task.kind == "classification" and highest is None and isinstance(dataset.features["label"], ClassLabel):
        highest = dataset.features["label"].num_classes - 1
    wrong = (labels < lowest) | (labels > highest) if highest is not None else labels < lowest
    if wrong.any():
        wanted = f"from {lowest} to {highest}" if highest is not None else f"of at least {lowest}"
        raise ValueError(
            f"{task.name}: {int(wrong.sum())} of {len(labels)} labels of the {split} split are out of range, the "
            f"first is {labels[wrong][0]}; expected labels {wanted}. Leave these images out, or, if all are -1, give "
            "a split with labels."
        )


def _check_classes_present(dataset: Dataset, labels: np.ndarray, task: Task) -> None:
    if task.kind == "count" and not task.is_registered:
        return
    lowest = task.lowest_label
    expected = task.num_classes or _num_classes(dataset, task.kind)
    absent = np.setdiff1d(np.arange(lowest, lowest + expected), labels)
    if absent.size == 0:
        return
    feature = dataset.features["label"]
    names = feature.int2str(absent.tolist()) if isinstance(feature, ClassLabel) else list(map(str, absent))
    problem = f"{task.name}: train has no image of {absent.size} of its {expected} classes ({_shorten(names)})"
    if task.is_registered:
        raise ValueError(f"{problem}; expected images of all. Give the complete data set.")
    hint = "" if isinstance(feature, ClassLabel) else f" If the labels are counts, give {task.name}:count=."
    warnings.warn(f"{problem}; no probe can predict them.{hint}", stacklevel=4)


def _num_classes(dataset: Dataset, kind: Kind) -> int:
    """Number of named classes; else of classes 0 .. largest; of counts, of the different ones that occur."""
    feature = dataset.features["label"]
    if isinstance(feature, ClassLabel):
        return feature.num_classes
    labels = _labels(dataset)
    return len(np.unique(labels)) if kind == "count" else int(labels.max()) + 1


def _labels(dataset: Dataset) -> np.ndarray:
    column = dataset.with_format("arrow").select_columns(["label"])[:].column("label")
    return column.to_numpy().astype(np.int64)


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
