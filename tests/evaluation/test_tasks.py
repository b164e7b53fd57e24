# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Tasks by name: nothing is reported under a name that it is not, and labels mean what they say."""

import io
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image

from sparsejepa_hf.evaluation import tasks
from sparsejepa_hf.evaluation.tasks import TASKS, Task, find_task, load_task


REAL = {
    "cifar100": "cifar100",
    "miniplaces32": "miniplaces32",
    "clevr_count_64": "clevr_count",
    "flowers64": "flowers64",
    "nlvr_count": "nlvr_count",
    "cifar10_subset": "cifar10",
}
PAPER = {"cifar100", "places205", "clevr_count", "inat2018"}


def _png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (level % 256, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def _write(folder: Path, split: str, labels, feature=None, column: str = "label") -> Path:
    columns = {"image": [{"bytes": _png(i), "path": None} for i in range(len(labels))], column: list(labels)}
    features = Features({"image": datasets.Image(), column: feature or Value("int64")})
    folder.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def load(tmp_path) -> Callable[..., Dataset]:
    """`load_task` with a cache of the test's own."""
    return lambda spec, split, **options: load_task(spec, split, cache_dir=tmp_path / "cache", **options)


@pytest.fixture
def tiny(monkeypatch) -> Callable[..., Task]:
    """Registers tiny tasks beside the real ones."""

    def register(**changes) -> Task:
        task = replace(Task("tiny", "classification", 6, 3, 3), **changes)
        monkeypatch.setattr(tasks, "TASKS", {**tasks.TASKS, task.name: task})
        return task

    return register


class TestRegistry:
    def test_every_stand_in_says_what_it_is_not(self):
        for task in TASKS.values():
            assert (task.stands_for is None) == (task.caveat is None)
            if task.stands_for:
                original = TASKS[task.stands_for]
                assert original.kind == task.kind and task.paper_name is None
                assert " not " in task.caveat and task.caveat.endswith(".")

    def test_the_columns_of_the_paper_are_the_full_data_sets(self):
        assert {name for name, task in TASKS.items() if task.paper_name} == PAPER
        assert all(TASKS[name].stands_for is None for name in PAPER)

    def test_names_are_keys_and_every_entry_is_complete(self):
        for name, task in TASKS.items():
            assert task.name == name and task.is_registered and task.source is None
            assert task.num_train > task.num_test > 0 and task.num_classes > 1
            assert task.citation and task.verified
            assert task.hub_id or f"{name}=FOLDER" in task.notes

    def test_every_task_can_be_a_key(self):
        # An evaluator remembers data sets by their task.
        assert len(set(TASKS.values())) == len(TASKS)

    def test_no_two_train_splits_look_alike(self):
        shapes = [(b.num_train, b.num_classes, b.kind) for b in TASKS.values()]
        assert len(set(shapes)) == len(shapes)


class TestSpecs:
    def test_a_source_replaces_the_hub(self):
        assert find_task("cifar100") is TASKS["cifar100"]
        assert find_task("cifar100=/data/x=y") == replace(TASKS["cifar100"], source="/data/x=y")

    def test_own_names_have_a_task(self):
        own = find_task("mine=/data/mine")
        assert (own.name, own.kind, own.source, own.is_registered) == ("mine", "classification", "/data/mine", False)
        assert find_task("mine:count=/data/mine").kind == "count"

    @pytest.mark.parametrize("spec", ["", "=x", "cifar100=", "a b=/x", "mine:size=/x", "/data/cifar100"])
    def test_other_forms_are_refused(self, spec):
        with pytest.raises(ValueError, match="expected NAME"):
            find_task(spec)

    def test_unknown_names_list_the_known(self):
        with pytest.raises(ValueError, match="no data set named 'cifar101'.*cifar100"):
            find_task("cifar101")

    def test_the_task_of_a_registered_name_is_fixed(self):
        assert find_task("clevr_count:count=/x").source == "/x"
        with pytest.raises(ValueError, match="the kind of cifar10 is classification"):
            find_task("cifar10:count=/x")


class TestRegisteredNames:
    def test_the_right_files_pass(self, tmp_path, load, tiny):
        tiny()
        _write(tmp_path / "d", "train", [0, 1, 2, 0, 1, 2])
        _write(tmp_path / "d", "test", [2, 1, 0])
        assert load(f"tiny={tmp_path / 'd'}", "train")["label"][:] == [0, 1, 2, 0, 1, 2]
        assert load(f"tiny={tmp_path / 'd'}", "test")["label"][:] == [2, 1, 0]

    @pytest.mark.parametrize("split", ["train", "test"])
    @pytest.mark.parametrize("labels", [[0, 1, 2], [0, 1, 2, 3, 0, 1], [0, 1, 0, 1, 0, 1]])
    def test_other_rows_or_classes_are_refused(self, tmp_path, load, tiny, split, labels):
        tiny()
        _write(tmp_path / "d", "train", labels)
        _write(tmp_path / "d", "test", [0, 1, 2])
        with pytest.raises(ValueError, match="6 rows and 3 classes. This is another data set: give it as OWN_NAME="):
            load(f"tiny={tmp_path / 'd'}", split)

    def test_a_stand_in_is_named(self, tmp_path, load, tiny):
        tiny()
        tiny(name="small", num_train=4)
        _write(tmp_path / "d", "train", [0, 1, 2, 0])
        with pytest.raises(ValueError, match="looks like small: give it as small="):
            load(f"tiny={tmp_path / 'd'}", "train")

    def test_a_class_missing_from_train_is_an_error(self, tmp_path, load, tiny):
        tiny()
        _write(tmp_path / "d", "train", [0, 2, 2, 0, 2, 2])
        with pytest.raises(ValueError, match=r"no image of 1 of its 3 classes \(1\)"):
            load(f"tiny={tmp_path / 'd'}", "train")

    def test_the_test_split_may_be_called_otherwise(self, tmp_path, load, tiny):
        tiny(test_split="validation")
        _write(tmp_path / "d", "train", [0, 1, 2, 0, 1, 2])
        _write(tmp_path / "d", "test", [-1, -1, -1])
        _write(tmp_path / "d", "val", [0, 1, 2])
        assert load(f"tiny={tmp_path / 'd'}", "test")["label"][:] == [0, 1, 2]

    def test_the_subset_is_drawn_after_the_checks(self, tmp_path, load, tiny):
        tiny()
        _write(tmp_path / "d", "train", [0, 1, 2, 0, 1, 2])
        few = load(f"tiny={tmp_path / 'd'}", "train", max_examples=4)
        assert len(few) == 4 and few[:]["label"] == load(f"tiny={tmp_path / 'd'}", "train", max_examples=4)[:]["label"]

    def test_the_hub_needs_a_connection_and_a_name(self, load):
        with pytest.raises(ConnectionError, match="cifar10=FOLDER"):
            load("cifar10", "train")
        with pytest.raises(FileNotFoundError, match="places.csail.mit.edu.*places205=FOLDER"):
            load("places205", "train")

    def test_another_size_on_the_hub_is_flagged(self, tmp_path, load, tiny):
        tiny(hub_id=str(_write(tmp_path / "d", "train", [0, 1, 2, 0])))
        with pytest.warns(UserWarning, match="4 rows and 3 classes in the train split; 6 rows"):
            assert len(load("tiny", "train")) == 4


class TestCounts:
    def test_classes_that_count_from_zero_become_counts(self, tmp_path, load, tiny):
        tiny(kind="count", lowest_label=3)
        _write(tmp_path / "d", "train", [0, 1, 2, 0, 1, 2], column="cls")
        _write(tmp_path / "d", "test", [2, 1, 0], column="cls")
        assert load(f"tiny={tmp_path / 'd'}", "train")["label"][:] == [3, 4, 5, 3, 4, 5]
        assert load(f"tiny={tmp_path / 'd'}", "test")["label"][:] == [5, 4, 3]

    def test_counts_stay_counts(self, tmp_path, load, tiny):
        tiny(kind="count", lowest_label=3)
        _write(tmp_path / "d", "train", [3, 4, 5, 3, 4, 5], Value("uint8"), column="count")
        dataset = load(f"tiny={tmp_path / 'd'}", "train")
        assert dataset["label"][:] == [3, 4, 5, 3, 4, 5] and dataset.features["label"] == Value("int64")
        assert [image.getpixel((0, 0))[0] for image in dataset["image"]] == list(range(6))

    def test_folders_named_by_a_number_are_counts(self, tmp_path, load):
        for split in ("train", "test"):
            for count in (2, 10):
                (tmp_path / "d" / split / str(count)).mkdir(parents=True)
                (tmp_path / "d" / split / str(count) / "a.png").write_bytes(_png(count))
        for split in ("train", "test"):
            dataset = load(f"mine:count={tmp_path / 'd'}", split)
            assert sorted(dataset["label"]) == [2, 10]
            assert [image.getpixel((0, 0))[0] for image in dataset["image"]] == dataset["label"][:]

    def test_names_are_no_counts(self, tmp_path, load):
        _write(tmp_path / "d", "train", [0, 1], ClassLabel(names=["few", "many"]))
        with pytest.raises(ValueError, match=r"classes few, many, but numbers"):
            load(f"mine:count={tmp_path / 'd'}", "train")

    def test_counts_out_of_range_are_refused(self, tmp_path, load, tiny):
        tiny(kind="count", lowest_label=3)
        _write(tmp_path / "d", "train", [3, 4, 9, 3, 4, 9])
        with pytest.raises(ValueError, match="2 of 6 labels of the train split.*the first is 9.*from 3 to 5"):
            load(f"tiny={tmp_path / 'd'}", "train")


class TestOwnData:
    def test_validation_serves_where_there_is_no_test(self, tmp_path, load):
        _write(tmp_path / "d", "train", [0, 1])
        _write(tmp_path / "d", "validation", [1])
        assert load(f"mine={tmp_path / 'd'}", "test")["label"][:] == [1]
        _write(tmp_path / "d", "test", [0])
        assert load(f"mine={tmp_path / 'd'}", "test")["label"][:] == [0]

    def test_without_either_the_splits_are_listed(self, tmp_path, load):
        _write(tmp_path / "d", "train", [0, 1])
        with pytest.raises(ValueError, match="mine=.*has no split.*'train'"):
            load(f"mine={tmp_path / 'd'}", "test")

    def test_class_numbers_of_test_follow_train_by_name(self, tmp_path, load):
        for split, names in (("train", "abc"), ("test", "cb")):
            for name in names:
                (tmp_path / "d" / split / name).mkdir(parents=True)
                (tmp_path / "d" / split / name / "0.png").write_bytes(_png("abc".index(name)))
        dataset = load(f"mine={tmp_path / 'd'}", "test")
        assert dataset.features["label"].names == ["a", "b", "c"]
        assert sorted(dataset["label"]) == [1, 2]
        assert [image.getpixel((0, 0))[0] for image in dataset["image"]] == dataset["label"][:]

    def test_class_names_that_train_lacks_are_refused(self, tmp_path, load):
        _write(tmp_path / "d", "train", ["cat", "dog"], Value("string"))
        _write(tmp_path / "d", "test", ["cat", "emu"], Value("string"))
        with pytest.raises(ValueError, match=r"test has 1 classes that train lacks \(emu\)"):
            load(f"mine={tmp_path / 'd'}", "test")

    def test_class_numbers_beyond_those_of_train_are_refused(self, tmp_path, load):
        _write(tmp_path / "d", "train", [0, 1])
        _write(tmp_path / "d", "test", [0, 5])
        with pytest.raises(ValueError, match="the first is 5; expected labels from 0 to 1"):
            load(f"mine={tmp_path / 'd'}", "test")

    def test_a_class_without_train_images_is_flagged(self, tmp_path, load):
        _write(tmp_path / "d", "train", [0, 2], ClassLabel(names=["ant", "bee", "cat"]))
        with pytest.warns(UserWarning, match=r"1 of its 3 classes \(bee\)"):
            load(f"mine={tmp_path / 'd'}", "train")

    def test_counts_may_have_gaps(self, tmp_path, load):
        _write(tmp_path / "d", "train", [1, 9])
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            assert load(f"mine:count={tmp_path / 'd'}", "train")["label"][:] == [1, 9]

    def test_sources_that_ignore_the_split_are_refused(self, tmp_path, load):
        file = next(_write(tmp_path / "d", "train", [0, 1]).iterdir())
        Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "c")).save_to_disk(tmp_path / "saved")
        for source in (file, tmp_path / "d" / "*.parquet", tmp_path / "saved"):
            with pytest.raises(ValueError, match="would be the same rows"):
                load(f"mine={source}", "test")

    def test_columns_can_be_named(self, tmp_path, load):
        _write(tmp_path / "d", "train", [0, 1], column="species")
        with pytest.raises(ValueError, match="the train split has no labels"):
            load(f"mine={tmp_path / 'd'}", "train")
        assert load(f"mine={tmp_path / 'd'}", "train", label_column="species")["label"][:] == [0, 1]

    def test_empty_splits_are_refused(self, monkeypatch, load):
        # Versions of `datasets` differ in whether they return, or refuse, a split without rows.
        def no_data(*_, **__):
            raise ValueError('Instruction "train" corresponds to no data!')

        features = Features({"image": datasets.Image(), "label": Value("int64")})
        empty = Dataset.from_dict({"image": [], "label": []}, features=features)
        for found in (no_data, lambda *_, **__: empty):
            monkeypatch.setattr(tasks, "load_image_dataset", found)
            with pytest.raises(ValueError, match="mine: the train split is empty; expected at least one image"):
                load("mine=/data/mine", "train")

    def test_missing_labels_are_refused(self, tmp_path, load):
        _write(tmp_path / "holes", "train", [0, None, 1])
        _write(tmp_path / "hidden", "train", [0, 1])
        _write(tmp_path / "hidden", "test", [-1, -1])
        with pytest.raises(ValueError, match="1 of 3 labels of the train split are missing"):
            load(f"mine={tmp_path / 'holes'}", "train")
        with pytest.raises(ValueError, match="the first is -1"):
            load(f"mine={tmp_path / 'hidden'}", "test")

    def test_splits_have_two_names(self, load):
        with pytest.raises(ValueError, match="split is 'validation'"):
            load("cifar100", "validation")


class TestRealFiles:
    @pytest.mark.parametrize("name", ["clevr_count_64", "flowers64", "nlvr_count", "cifar10_subset", "miniplaces32"])
    def test_stand_ins_are_what_the_registry_says(self, load, data_dir, name):
        task = TASKS[name]
        for split, rows in (("train", task.num_train), ("test", task.num_test)):
            dataset = load(f"{name}={data_dir / REAL[name]}", split)
            labels = np.unique(dataset.select_columns("label")[:]["label"])
            assert len(dataset) == rows and len(labels) == task.num_classes
            assert labels[0] == task.lowest_label and labels[-1] == labels[0] + len(labels) - 1
            assert dataset[0]["image"].size == (task.image_size,) * 2

    def test_cifar100_has_fine_labels(self, load, data_dir):
        test = load(f"cifar100={data_dir / 'cifar100'}", "test")
        assert len(test) == 10_000 and test.features["label"].num_classes == 100

    @pytest.mark.parametrize(
        ("name", "folder", "stand_in"),
        [
            ("clevr_count", "clevr_count", "clevr_count_64"),
            ("clevr_count", "nlvr_count", "nlvr_count"),
            ("cifar10", "cifar10", "cifar10_subset"),
            ("places205", "miniplaces32", "miniplaces32"),
            ("inat2018", "flowers64", "flowers64"),
        ],
    )
    @pytest.mark.parametrize("split", ["train", "test"])
    def test_no_stand_in_goes_under_a_name_of_the_paper(self, load, data_dir, name, folder, stand_in, split):
        with pytest.raises(ValueError, match=f"This looks like {stand_in}: give it as {stand_in}="):
            load(f"{name}={data_dir / folder}", split)
