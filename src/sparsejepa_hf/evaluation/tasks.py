# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The paper's data sets by name, stand-ins under names of their own, and any data of the user.

A *spec* says which data set is meant: `cifar100` (from the Hub), `cifar100=/data/cifar100` (the same data set from
local files, which are checked) or `my_data=/data/mine` (any other data, under a name of its own; with
`my_data:count=/data/mine` its labels are numbers of objects). The registered names stand in tasks.yaml.
"""

from __future__ import annotations

import glob
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import yaml
from datasets import ClassLabel, Dataset, Value

from ..data import SCENE_STYLES, align_classes, load_image_dataset


Kind = Literal["classification", "count"]


@dataclass(frozen=True)
class Task:
    """A labelled image data set with a train and a test split.

    Attributes:
        name: what results are reported under.
        kind: `"classification"` (labels 0 .. num_classes - 1) or `"count"` (labels are numbers of objects).
        num_train: rows of the train split; None where unknown, as for data of the user.
        num_test: rows of the test split; None where unknown.
        num_classes: number of classes, or of different counts; None where unknown.
        image_size: suggested side of the square images, in pixels; None where unknown.
        citation: authors, year and title.
        hub_id: name on the Hugging Face Hub; None where no copy is known.
        config: configuration on the Hub.
        train_split: its name on the Hub and in local files.
        test_split: the split that results are reported on; in local files `test` or `validation` may stand in for it.
        image_column: column of the images on the Hub; found by itself if None, as for local files.
        label_column: column of the labels on the Hub; found by itself if None, as for local files.
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
    kind: Kind
    num_train: int | None = None
    num_test: int | None = None
    num_classes: int | None = None
    image_size: int | None = None
    citation: str = ""
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

    def shape(self, split: str) -> tuple[tuple[int | None, ...], int | None, Kind]:
        """The numbers of rows that a split may have, the number of classes, and the kind."""
        return (
            (self.num_train, *self.other_num_train) if split == "train" else (self.num_test,),
            self.num_classes,
            self.kind,
        )


_REGISTRY = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
# YAML has no tuples, and a task with a list could not be a key.
TASKS: Mapping[str, Task] = MappingProxyType(
    {
        name: Task(name, **(entry | {"other_num_train": tuple(entry.get("other_num_train", ()))}))
        for name, entry in _REGISTRY.items()
    }
)


def find_task(spec: str) -> Task:
    """The task that a spec means, with `source` set to what follows its `=`.

    Args:
        spec: `NAME`, one of `TASKS`; `NAME=SOURCE`, the same data from a folder; or `OWN_NAME=SOURCE`, where
            SOURCE is a folder, a data set on the Hub, `synthetic-scenes` or `textured-scenes` (see
            [`load_image_dataset`]).
            `OWN_NAME:count=SOURCE` says that the labels are numbers of objects, not classes.

    Returns:
        The task.

    Raises:
        ValueError: the spec is not of this form, or a name without a source is not registered.
    """
    form = re.fullmatch(r"(?P<name>[\w.-]+)(:(?P<kind>classification|count))?(=(?P<source>.+))?", str(spec))
    if form is None:
        raise ValueError(
            f"The data set is given as {spec!r}; expected NAME, NAME=SOURCE or NAME:count=SOURCE, for example "
            "cifar100 or my_data=/data/mine."
        )
    name, kind, source = form["name"], form["kind"], form["source"]
    registered = TASKS.get(name)
    if registered is None and source is None:
        raise ValueError(
            f"There is no data set named {name!r}; expected one of {', '.join(TASKS)}, or NAME=SOURCE for data "
            "of your own."
        )
    if registered is None:
        return Task(name, "count" if kind == "count" else "classification", source=source)
    if kind not in (None, registered.kind):
        raise ValueError(
            f"The data set is given as {spec!r}, but the kind of {name} is {registered.kind}. Leave ':{kind}' out, or "
            "give the data under a name of its own."
        )
    return registered if source is None else replace(registered, source=source)


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
    other data are reported under that name. For data of the user, `test` is their split `test`, else `validation`;
    the classes are those of their train split. Class names of the test split are matched with those of train.

    Args:
        spec: see [`find_task`], or what it returns.
        split: `"train"` or `"test"`, whatever the files call them.
        max_examples: size of a random subset; None for all. The checks are made on all rows.
        seed: seed of the subset.
        image_column: column of the images; the registered one on the Hub, else found by itself if None.
        label_column: column of the labels; chosen in the same way.
        cache_dir: where `datasets` keeps its prepared files.

    Returns:
        A `datasets.Dataset`; `label` holds integers: ClassLabel or class indices from 0, or numbers of objects.

    Warns:
        UserWarning: data of the user lack some class in train, or the Hub's copy has another size than registered.

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
    dataset = _with_integer_labels(_read(task, split, options), task, split)
    if split == "test" and task.source is not None:
        train = _with_integer_labels(_read(task, "train", options), task, "train")
        _check_identity(train, task, "train")
        dataset = align_classes(dataset, train, (f"{task.name}: test", "train"))
        if task.kind == "classification" and task.num_classes is None:
            task = replace(task, num_classes=_num_classes(train, task.kind))
    _check_identity(dataset, task, split)
    _check_labels(dataset, task, split)
    if max_examples is None:
        return dataset
    return load_image_dataset(dataset, max_examples=max_examples, seed=seed)


def _read(task: Task, split: str, options: dict[str, Any]) -> Dataset:
    """A split as it lies on the Hub or in local files, not empty."""
    names = [task.train_split] if split == "train" else [task.test_split]
    if task.source is None:
        if task.hub_id is None:
            raise FileNotFoundError(f"{task.name} has no source. {task.notes}")
        columns = {name: options[name] or getattr(task, name) for name in ("image_column", "label_column")}
        try:
            dataset = load_image_dataset(task.hub_id, names[0], name=task.config, **(options | columns))
        except ConnectionError as error:
            raise ConnectionError(
                f"{task.name} is read from the Hub, which could not be reached. Give local files instead: "
                f"{task.name}=FOLDER. ({error})"
            ) from error
    else:
        path = Path(task.source).expanduser()
        # Of such sources `load_image_dataset` takes all rows, whatever the split.
        is_one_table = (path / "state.json").is_file() and not (path / "dataset_dict.json").is_file()
        is_pattern = not path.exists() and glob.has_magic(task.source)
        if task.source not in SCENE_STYLES and (path.is_file() or is_one_table or is_pattern):
            raise ValueError(
                f"{task.name}={task.source}: this is a file, a pattern or one saved table, of which train and test "
                "would be the same rows; expected a folder with a train and a test or validation split."
            )
        names += [] if split == "train" else [name for name in ("test", "validation") if name not in names]
        for name in names:
            try:
                dataset = load_image_dataset(task.source, name, **options)
                break
            except ValueError as error:
                # Some versions of `datasets` refuse a split without rows.
                if "no data" in str(error):
                    dataset = Dataset.from_dict({})
                    break
                if not re.search(r"has no split|Unknown split", str(error)) or name == names[-1]:
                    raise ValueError(f"{task.name}={task.source}: {error}") from error
    if len(dataset) == 0:
        raise ValueError(f"{task.name}: the {split} split is empty; expected at least one image. Check the files.")
    return dataset


def _with_integer_labels(dataset: Dataset, task: Task, split: str) -> Dataset:
    """The data set, every image with a label; for counts, the labels are numbers of objects."""
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
    if task.kind == "classification":
        return dataset
    feature, labels = dataset.features["label"], _labels(dataset)
    if isinstance(feature, ClassLabel):
        wrong = [name for name in feature.names if not name.isdecimal()]
        if wrong:
            raise ValueError(
                f"{task.name}: the {split} split has the classes {_shorten(wrong)}, but numbers of objects are "
                "expected. Give a column of integers, or name folders by the number."
            )
        labels = np.array([int(name) for name in feature.names])[labels]
    elif task.lowest_label and task.num_classes and labels.min() == 0 and labels.max() < task.num_classes:
        # Classes 0 .. C - 1 of counts that begin above 0, as VTAB numbers them.
        labels = labels + task.lowest_label
    elif feature == Value("int64"):
        return dataset
    # By column, so that images are neither decoded nor written anew.
    return dataset.remove_columns("label").add_column("label", labels)


def _check_identity(dataset: Dataset, task: Task, split: str) -> None:
    """Whether data under a registered name are the data set of that name, as far as numbers tell."""
    if not task.is_registered:
        return
    (rows, num_classes, _), classes = task.shape(split), _num_classes(dataset, task.kind)
    if len(dataset) in rows and classes == num_classes:
        return
    unit = "counts" if task.kind == "count" else "classes"
    found = f"{len(dataset):,} rows and {classes:,} {unit}"
    wanted = f"{' or '.join(f'{number:,}' for number in rows)} rows and {num_classes:,} {unit}"
    if task.source is None:
        warnings.warn(
            f"The Hub's {task.hub_id} has {found} in the {split} split; {wanted} were expected.", stacklevel=3
        )
        return
    shapes = {name: other.shape(split) for name, other in TASKS.items()}
    twins = [name for name, (r, c, kind) in shapes.items() if len(dataset) in r and (c, kind) == (classes, task.kind)]
    other = f"looks like {twins[0]}: give it as {twins[0]}=" if twins else "is another data set: give it as OWN_NAME="
    raise ValueError(
        f"{task.name}={task.source}: the {split} split has {found}, but {task.name} has {wanted}. This "
        f"{other}{task.source}, so that its results are not taken for those of {task.name}."
    )


def _check_labels(dataset: Dataset, task: Task, split: str) -> None:
    """Whether all labels are in their range and, in train, all classes occur."""
    labels, feature, lowest = _labels(dataset), dataset.features["label"], task.lowest_label
    num_classes = task.num_classes
    if num_classes is None and isinstance(feature, ClassLabel):
        num_classes = feature.num_classes
    wrong = (labels < lowest) | (labels >= lowest + (num_classes or np.inf))
    if wrong.any():
        wanted = f"from {lowest} to {lowest + num_classes - 1}" if num_classes else f"of at least {lowest}"
        raise ValueError(
            f"{task.name}: {wrong.sum()} of {len(labels)} labels of the {split} split are out of range, the first is "
            f"{labels[wrong][0]}; expected labels {wanted}. Leave these images out, or, if all are -1, give a split "
            "with labels."
        )
    # The user's counts may have gaps.
    if split == "test" or (task.kind == "count" and not task.is_registered):
        return
    expected = num_classes or _num_classes(dataset, task.kind)
    absent = np.setdiff1d(np.arange(lowest, lowest + expected), labels)
    if absent.size:
        names = feature.int2str(absent.tolist()) if isinstance(feature, ClassLabel) else list(map(str, absent))
        problem = f"{task.name}: train has no image of {absent.size} of its {expected} classes ({_shorten(names)})"
        if task.is_registered:
            raise ValueError(f"{problem}; expected images of all. Give the complete data set.")
        hint = "" if isinstance(feature, ClassLabel) else f" If the labels are counts, give {task.name}:count=."
        warnings.warn(f"{problem}; no probe can predict them.{hint}", stacklevel=3)


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
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
