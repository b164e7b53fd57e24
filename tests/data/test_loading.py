# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Every kind of source leads to the same columns and the same pixels."""

import contextlib
import functools
import http.server
import io
import json
import os
import tarfile
import threading
import zipfile
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, IterableDataset, Value
from datasets.distributed import split_dataset_by_node
from PIL import Image
from torch.utils.data import DataLoader

from sparsejepa_hf.data import (
    align_classes,
    build_image_dataset,
    build_scenes,
    find_image_column,
    find_label_column,
    load_image_dataset,
    loading,
)
from sparsejepa_hf.image_decoding_sparsejepa import FORMATS


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (level, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def table(levels, **columns) -> Dataset:
    images = [{"bytes": png(level), "path": None} for level in levels]
    return Dataset.from_dict({"image": images, **columns}).cast_column("image", datasets.Image())


def levels_of(dataset) -> list[int]:
    return [example["image"].getpixel((0, 0))[0] for example in dataset]


def write_images(folder: Path, levels) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for level in levels:
        (folder / f"{level}.png").write_bytes(png(level))


@pytest.fixture
def load(tmp_path):
    """`load_image_dataset` with a cache of the test's own."""

    def call(source, *args, **options):
        return load_image_dataset(source, *args, cache_dir=tmp_path / "cache", **options)

    return call


class TestFoldersOfEveryKind:
    """What torchvision's ImageFolder finds is found here too, and what is left out is told."""

    def test_links_and_names_with_underscores(self, tmp_path, load):
        write_images(tmp_path / "pool" / "cat", [1, 2])
        write_images(tmp_path / "mine" / "train" / "__background__", [3])
        write_images(tmp_path / "mine" / "train" / "ant", [4])
        (tmp_path / "mine" / "train" / "cat").symlink_to(tmp_path / "pool" / "cat")
        # A link to a folder above itself must not be followed for ever.
        (tmp_path / "mine" / "train" / "ant" / "again").symlink_to(tmp_path / "mine")
        dataset = load(tmp_path / "mine")
        assert dataset.features["label"].names == ["__background__", "ant", "cat"]
        assert sorted(levels_of(dataset)) == [1, 2, 3, 4]
        # Nor two that lead to each other.
        (tmp_path / "mine" / "train" / "ant" / "over").symlink_to(tmp_path / "mine" / "train" / "__background__")
        (tmp_path / "mine" / "train" / "__background__" / "back").symlink_to(tmp_path / "mine" / "train" / "ant")
        assert sorted(levels_of(load(tmp_path / "mine"))) == [1, 2, 3, 3, 4, 4]
        (tmp_path / "links" / "test").mkdir(parents=True)
        (tmp_path / "links" / "test" / "cat").symlink_to(tmp_path / "pool" / "cat")
        assert sorted(levels_of(load(tmp_path / "links", "test"))) == [1, 2]

    def test_every_format_that_is_decoded_is_found(self, tmp_path, load):
        (tmp_path / "mine").mkdir()
        names = [f"{kind}.{kind.lower()}" for kind in FORMATS if kind in Image.SAVE]
        for name in names:
            (tmp_path / "mine" / name.replace("jpeg2000", "jp2")).write_bytes(in_format(1, name.partition(".")[0]))
        write_tar(tmp_path / "all.tar", {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()})
        for source in (tmp_path / "mine", tmp_path / "all.tar"):
            assert len(build_image_dataset(load(source), 4)) == len(names) > 8

    def test_a_folder_of_arrays_leaves_the_module_as_it_was(self, tmp_path, load):
        """`datasets` changes names of the modules that its readers lie in, such as `Path`."""
        (tmp_path / "mine").mkdir()
        np.save(tmp_path / "mine" / "a.npy", np.zeros((4, 4, 3), np.uint8))
        assert len(load(tmp_path / "mine")) == 1 == len(load(tmp_path / "mine"))

    def test_what_is_left_out_is_counted_and_named(self, tmp_path, load, monkeypatch):
        said = []
        monkeypatch.setattr(loading.logger, "warning", said.append)
        write_images(tmp_path / "mine", [1])
        load(tmp_path / "mine")
        assert not said
        for name in ("b.heic", "c.heic", "notes.txt", ".hidden"):
            (tmp_path / "mine" / name).write_text("")
        assert len(load(tmp_path / "mine")) == 1
        assert "3 of the 4 files" in said[0] and ".heic: 2, .txt: 1" in said[0]

    def test_what_is_found_and_loaded_is_said(self, tmp_path, load, monkeypatch):
        said = []
        monkeypatch.setattr(loading.logger, "info", said.append)
        monkeypatch.setattr(loading.logger, "warning", said.append)
        write_images(tmp_path / "mine" / "train" / "cat", range(3))
        write_images(tmp_path / "mine" / "train" / "dog", range(2))
        load(tmp_path / "mine")
        assert said == [f"{str(tmp_path / 'mine')!r}, split 'train': 5 images in 2 classes."]
        (tmp_path / "mine" / ".DS_Store").write_text("")
        (tmp_path / "mine" / "metadata.csv").write_text("file_name,label\n")
        (tmp_path / "mine" / "train" / "cat" / "metadata.csv").write_text("file_name,label\n0.png,1\n")
        load(tmp_path / "mine")
        assert "1 files or folders" in said[1] and "1 of the 7 files" in said[2] and "mine/metadata.csv" in said[2]
        assert "4 of the 5 images" in said[3] and "1 images" in said[4]

    def test_a_folder_that_cannot_be_read_is_named(self, tmp_path, load, monkeypatch):
        write_images(tmp_path / "mine" / "locked", [1])
        real = os.scandir

        def deny(path):
            if str(path).endswith("locked"):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        monkeypatch.setattr(os, "scandir", deny)
        with pytest.raises(PermissionError, match="locked' cannot be read"):
            load(tmp_path / "mine")


@pytest.mark.parametrize("streaming", [False, True])
class TestImageFolders:
    def test_flat(self, tmp_path, load, streaming):
        write_images(tmp_path / "flat", range(5))
        dataset = load(tmp_path / "flat", streaming=streaming)
        assert list(dataset.features) == ["image"]
        assert sorted(levels_of(dataset)) == [0, 1, 2, 3, 4]

    def test_names_like_splits_lose_no_image(self, tmp_path, load, streaming):
        folder = tmp_path / "flat"
        folder.mkdir()
        for level, name in enumerate(["train_station.png", "test-tube.png", "dog.png", "val.png"]):
            (folder / name).write_bytes(png(level))
        assert sorted(levels_of(load(folder, streaming=streaming))) == [0, 1, 2, 3]

    def test_class_folders_become_labels(self, tmp_path, load, streaming):
        write_images(tmp_path / "pets" / "cat", [1, 2])
        write_images(tmp_path / "pets" / "dog", [3])
        dataset = load(str(tmp_path / "pets"), streaming=streaming)
        names = dataset.features["label"].names
        labels = [names[example["label"]] for example in dataset]
        assert sorted(zip(levels_of(dataset), labels, strict=True)) == [(1, "cat"), (2, "cat"), (3, "dog")]

    def test_a_class_named_like_a_split_is_a_class(self, tmp_path, load, streaming):
        write_images(tmp_path / "vehicles" / "train", [1])
        write_images(tmp_path / "vehicles" / "bus", [2])
        dataset = load(tmp_path / "vehicles", streaming=streaming)
        assert sorted(levels_of(dataset)) == [1, 2] and dataset.features["label"].names == ["bus", "train"]

    def test_split_folders(self, tmp_path, load, streaming):
        for split, level in (("train", 1), ("val", 20)):
            write_images(tmp_path / "set" / split / "cat", [level])
            write_images(tmp_path / "set" / split / "dog", [level + 1])
        assert sorted(levels_of(load(tmp_path / "set", streaming=streaming))) == [1, 2]
        for name in ("validation", "val"):
            dataset = load(tmp_path / "set", name, streaming=streaming)
            assert sorted(levels_of(dataset)) == [20, 21] and dataset.features["label"].names == ["cat", "dog"]
        with pytest.raises(ValueError, match="no split 'test'; expected one of: 'train', 'validation'"):
            load(tmp_path / "set", "test", streaming=streaming)


def test_odd_characters_in_paths(tmp_path, load):
    write_images(tmp_path / "a [b] (c)*" / "x", [1])
    write_images(tmp_path / "a [b] (c)*" / "y", [2])
    assert sorted(levels_of(load(tmp_path / "a [b] (c)*"))) == [1, 2]


def test_one_image_and_a_glob_of_images(tmp_path, load):
    write_images(tmp_path / "set", range(12))
    assert levels_of(load(tmp_path / "set" / "3.png")) == [3]
    assert sorted(levels_of(load(str(tmp_path / "set" / "1*.png")))) == [1, 10, 11]


class TestParquet:
    @pytest.fixture
    def folder(self, tmp_path):
        folder = tmp_path / "set" / "data"
        folder.mkdir(parents=True)
        table([1, 2], label=[0, 1]).to_parquet(folder / "train-00000-of-00002.parquet")
        table([3], label=[1]).to_parquet(folder / "train-00001-of-00002.parquet")
        table([4], label=[0]).to_parquet(folder / "test-00000-of-00001.parquet")
        table([5], label=[0]).to_parquet(folder / "hard_test-00000-of-00001.parquet")
        return folder

    @pytest.mark.parametrize("streaming", [False, True])
    def test_names_give_the_split(self, folder, load, streaming):
        for split, expected in (("train", [1, 2, 3]), ("test", [4]), ("hard_test", [5])):
            for source in (folder, folder.parent):
                dataset = load(source, split, streaming=streaming)
                assert levels_of(dataset) == expected and list(dataset.features) == ["image", "label"]
                assert isinstance(dataset, IterableDataset) == streaming
        with pytest.raises(ValueError, match="no split 'validation'; expected one of: .*'test', 'train'"):
            load(folder, "validation")

    def test_slices(self, folder, load):
        assert levels_of(load(folder, "train[1:]")) == [2, 3]

    def test_a_file_is_taken_whole_and_a_glob_by_its_splits(self, folder, load):
        assert levels_of(load(folder / "test-00000-of-00001.parquet")) == [4]
        assert levels_of(load(str(folder / "test-*.parquet"))) == [4]
        assert levels_of(load(str(folder / "t*.parquet"), "train")) == [1, 2, 3]
        assert levels_of(load(str(folder.parent / "**" / "*.parquet"), "test")) == [4]

    @pytest.mark.parametrize("name", ["part-00000-of-00002", "0000", "data-00000-of-00001"])
    def test_names_without_a_split_are_train(self, tmp_path, load, name):
        (tmp_path / "set").mkdir()
        table([7]).to_parquet(tmp_path / "set" / f"{name}.parquet")
        assert levels_of(load(tmp_path / "set")) == [7]

    def test_split_folders(self, tmp_path, load):
        for split, level in (("train", 1), ("test", 2)):
            (tmp_path / "set" / split).mkdir(parents=True)
            table([level]).to_parquet(tmp_path / "set" / split / "0000.parquet")
        assert levels_of(load(tmp_path / "set", "test")) == [2]


def test_a_saved_split_without_rows_is_refused_and_leaves_the_others_alone(tmp_path, load):
    full = table([1, 2], label=[0, 1])
    DatasetDict({"train": full, "test": full}).save_to_disk(tmp_path / "set")
    # What newer versions of `datasets` write for a split without rows; older ones cannot save it.
    state = tmp_path / "set" / "test" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"_data_files": []}))
    assert levels_of(load(tmp_path / "set")) == [1, 2]
    with pytest.raises(ValueError, match="is empty; expected at least one example"):
        load(tmp_path / "set", "test")


@pytest.mark.parametrize("streaming", [False, True])
def test_arrow_and_saved_data_sets(tmp_path, load, streaming):
    both = DatasetDict({"train": table([1, 2], label=[0, 1]), "test": table([3], label=[0])})
    both.save_to_disk(tmp_path / "both")
    both["test"].save_to_disk(tmp_path / "one")
    assert levels_of(load(tmp_path / "both", streaming=streaming)) == [1, 2]
    assert levels_of(load(tmp_path / "both", "test", streaming=streaming)) == [3]
    assert levels_of(load(tmp_path / "one", streaming=streaming)) == [3]
    arrow = next((tmp_path / "both" / "train").glob("*.arrow"))
    assert levels_of(load(arrow, streaming=streaming)) == [1, 2]
    with pytest.raises(ValueError, match="no split 'validation'; expected one of: 'train', 'test'"):
        load(tmp_path / "both", "validation")


@pytest.mark.parametrize("streaming", [False, True])
def test_webdataset(tmp_path, load, streaming):
    with tarfile.open(tmp_path / "train-0000.tar", "w") as archive:
        for level in range(3):
            for suffix, content in (("png", png(level)), ("cls", str(level * 2).encode())):
                entry = tarfile.TarInfo(f"{level:04}.{suffix}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    dataset = load(tmp_path / "train-0000.tar", streaming=streaming)
    assert levels_of(dataset) == [0, 1, 2] and [example["label"] for example in dataset] == [0, 2, 4]


@pytest.mark.skipif(int(datasets.__version__.split(".")[0]) < 5, reason="before 5.0 datasets reads whole files")
def test_a_streamed_parquet_file_is_read_a_row_group_at_a_time(tmp_path, load, monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
    for index, levels in enumerate(([1, 2, 3, 4, 5], [6, 7, 8])):
        pq.write_table(table(levels).data.table, tmp_path / f"train-0000{index}-of-00002.parquet", row_group_size=2)
    dataset = load(tmp_path, streaming=True)
    assert dataset.num_shards == 3 + 2
    assert levels_of(dataset) == list(range(1, 9))
    # Processes and workers share out the row groups, and every image comes once.
    parts = [levels_of(split_dataset_by_node(dataset, rank, 5)) for rank in range(5)]
    assert sorted(map(sorted, parts)) == [[1, 2], [3, 4], [5], [6, 7], [8]]
    assert sorted(levels_of(dataset.shuffle(seed=0, buffer_size=3))) == list(range(1, 9))


@pytest.mark.parametrize("workers", [0, 3])
def test_the_first_examples_of_a_streamed_file_come_whole_to_any_number_of_workers(tmp_path, load, workers):
    pq.write_table(table(range(21)).data.table, tmp_path / "train.parquet", row_group_size=10)
    dataset = load(tmp_path, streaming=True, max_examples=18).with_format("torch")
    loader = DataLoader(
        dataset.map(lambda row: {"level": row["image"][0, 0, 0]}, remove_columns="image"), None, num_workers=workers
    )
    assert sorted(int(row["level"]) for row in loader) == list(range(18))


class TestLoadedDataSets:
    def test_dataset_and_dict(self, load):
        both = DatasetDict({"train": table([1]), "test": table([2])})
        assert levels_of(load(both, "test")) == [2] and levels_of(load(both["train"], "whatever")) == [1]
        with pytest.raises(ValueError, match="no split 'dev'; expected one of: 'train', 'test'"):
            load(both, "dev")

    def test_streams_with_and_without_known_features(self, load):
        def generate():
            for level in range(3):
                yield {"image": Image.new("RGB", (4, 4), (level, 0, 0)), "label": level, "extra": "x"}

        features = Features({"image": datasets.Image(), "label": Value("int64"), "extra": Value("string")})
        for stream in (
            IterableDataset.from_generator(generate),
            IterableDataset.from_generator(generate, features=features),
            table([0, 1, 2], label=[0, 1, 2], extra=list("xyz")).to_iterable_dataset(),
        ):
            dataset = load(stream)
            assert levels_of(dataset) == [0, 1, 2] and set(next(iter(dataset))) == {"image", "label"}

    def test_a_format_set_before_does_not_matter(self, load):
        assert levels_of(load(table([5, 6], label=[0, 1]).with_format("numpy"))) == [5, 6]

    def test_raw_bytes_become_images(self, load):
        raw = Dataset.from_dict({"jpg": [png(1), png(2)], "cls": [3, 4]})
        dataset = load(raw)
        assert levels_of(dataset) == [1, 2] and dataset["label"][:] == [3, 4]

    def test_string_labels_become_classes(self, load):
        dataset = load(table([1, 2, 3], label=["b", "a", "b"]))
        assert dataset.features["label"].names == ["a", "b"] and dataset["label"][:] == [1, 0, 1]
        stream = table([1], label=["b"]).to_iterable_dataset()
        assert list(load(stream).features) == ["image"]
        with pytest.raises(ValueError, match="load without streaming"):
            load(stream, label_column="label")

    def test_columns_given_by_name(self, load):
        dataset = table([1, 2], fine=[0, 1], other=[5, 6])
        dataset = datasets.concatenate_datasets([dataset, table([3, 4]).rename_column("image", "mask")], axis=1)
        result = load(dataset, image_column="mask", label_column="other")
        assert list(result.features) == ["image", "label"] and result["label"][:] == [5, 6]
        assert levels_of(result) == [3, 4]
        with pytest.raises(ValueError, match="image_column is 'pic', which is not a column.*image \\(Image\\)"):
            load(dataset, image_column="pic")
        with pytest.raises(ValueError, match="expected ClassLabels, integers"):
            load(dataset, label_column="mask")


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
@pytest.mark.parametrize("streaming", [False, True])
def test_lossy_files_are_not_encoded_a_second_time(tmp_path, load, format, streaming):
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format=format, quality=60)
    rows = {"pic": [{"bytes": buffer.getvalue(), "path": None}] * 3, "labels": ["b", "a", "b"], "cls": [0, 1, 2]}
    (tmp_path / "set").mkdir()
    Dataset.from_dict(rows).cast_column("pic", datasets.Image()).to_parquet(tmp_path / "set" / "train.parquet")
    dataset = load(tmp_path / "set", streaming=streaming, label_column="cls" if streaming else "labels")
    direct = np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))
    for example in dataset:
        np.testing.assert_array_equal(np.asarray(example["image"]), direct)
    for example in dataset.cast_column("image", datasets.Image(decode=False)):
        assert example["image"]["bytes"] == buffer.getvalue()


class TestColumnChoice:
    def test_image(self):
        image, binary = datasets.Image(), Value("binary")
        assert find_image_column({"pic": image, "label": Value("int64")}) == "pic"
        assert find_image_column({"mask": image, "image": image}) == "image"
        assert find_image_column({"mask": image, "img": image}) == "img"
        assert find_image_column({"png": binary, "json": binary}) == "png"
        assert find_image_column({"webp": {"bytes": binary, "path": Value("string")}}) == "webp"

    def test_image_in_doubt(self):
        image = datasets.Image()
        with pytest.raises(ValueError, match="several columns hold images \\(left, right\\).*id \\(int64\\)"):
            find_image_column({"left": image, "right": image, "id": Value("int64")})
        with pytest.raises(ValueError, match="no column holds images.*text \\(string\\)"):
            find_image_column({"text": Value("string")})

    def test_label(self):
        number, names = Value("int64"), ClassLabel(names=["a"])
        assert find_label_column({"species": names, "label": number}) == "species"
        assert find_label_column({"coarse_label": names, "fine_label": names}) == "fine_label"
        assert find_label_column({"cls": number, "id": number}) == "cls"
        assert find_label_column({"count": number, "objects": [number]}) == "count"
        assert find_label_column({"label": Value("float32"), "id": number}) is None


class TestMaxExamples:
    def test_a_seeded_random_subset(self, load):
        dataset = table(range(50))
        first, again, other = (levels_of(load(dataset, max_examples=20, seed=seed)) for seed in (0, 0, 1))
        assert first == again != other and len(set(first)) == 20 and first != sorted(first)
        assert levels_of(load(dataset, max_examples=5, seed=0)) == first[:5]
        assert levels_of(load(dataset, max_examples=99)) == list(range(50))

    def test_streams_are_cut(self, load):
        assert levels_of(load(table(range(9)).to_iterable_dataset(), max_examples=4)) == [0, 1, 2, 3]

    def test_below_one(self, load):
        with pytest.raises(ValueError, match="max_examples is 0"):
            load(table([1]), max_examples=0)


def test_synthetic_scenes(load):
    dataset = load("synthetic-scenes", "val", max_examples=6, seed=3)
    scenes = build_scenes(6, seed=3, split="validation")
    assert list(dataset.features) == ["image", "label"] and dataset["label"][:] == scenes["label"][:]
    np.testing.assert_array_equal(np.asarray(dataset[5]["image"]), np.asarray(scenes[5]["image"]))
    stream = load("synthetic-scenes", max_examples=3, label_column="count", streaming=True)
    assert isinstance(stream, IterableDataset)
    assert [example["label"] for example in stream] == build_scenes(3)["count"][:]
    with pytest.raises(ValueError, match="no split 'holdout'"):
        load("synthetic-scenes", "holdout")


def test_textured_scenes(load):
    dataset = load("textured-scenes", "test", max_examples=4, seed=3)
    scenes = build_scenes(4, style="textured", seed=3, split="test")
    assert dataset["label"][:] == scenes["label"][:] and dataset.features["label"].names[1] == "upright stripes"
    np.testing.assert_array_equal(np.asarray(dataset[3]["image"]), np.asarray(scenes[3]["image"]))
    with pytest.raises(ValueError, match="name is 'large'.*'textured-scenes', which has none"):
        load("textured-scenes", name="large")


class TestNothingThere:
    @pytest.mark.parametrize("source", ["./nowhere", "/no/such/folder", "a/b/c", "photos.parquet", "~/nowhere-at-all"])
    def test_paths_do_not_ask_the_hub(self, load, monkeypatch, source):
        monkeypatch.setattr(loading, "load_dataset", lambda *args, **options: pytest.fail("asked the Hub"))
        with pytest.raises(FileNotFoundError, match="there is no file or folder .*Check the path"):
            load(source)

    @pytest.mark.parametrize(
        "error", [FileNotFoundError("unknown"), ConnectionError("no route"), TimeoutError("late")]
    )
    def test_hub_names_tell_both_sides(self, load, monkeypatch, error):
        def fail(*args, **options):
            raise error

        monkeypatch.setattr(loading, "load_dataset", fail)
        expected = FileNotFoundError if isinstance(error, FileNotFoundError) else ConnectionError
        with pytest.raises(expected, match=f"no file or folder .*someone/something'.* Hub .*{error}"):
            load("someone/something")

    def test_a_hub_that_is_really_out_of_reach(self, load):
        # The suite runs offline.
        with pytest.raises(ConnectionError, match="no file or folder .* could not be reached"):
            load("someone/something-that-is-not-cached")

    def test_hub_names_are_passed_on(self, load, monkeypatch, tmp_path):
        calls = []

        def fake(*args, **options):
            calls.append((args, options))
            return table([1])

        monkeypatch.setattr(loading, "load_dataset", fake)
        load("uoft-cs/cifar100", "test", name="plain")
        options = {"split": "test", "streaming": False, "cache_dir": str(tmp_path / "cache")}
        assert calls == [(("uoft-cs/cifar100", "plain"), options)]

    def test_folders_without_images_and_with_mixed_files(self, tmp_path, load):
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty" / "notes.txt").write_text("x")
        with pytest.raises(FileNotFoundError, match="No images and no .parquet"):
            load(tmp_path / "empty")
        write_images(tmp_path / "mixed", [1])
        table([1]).to_parquet(tmp_path / "mixed" / "a.parquet")
        with pytest.raises(ValueError, match="mixes files for imagefolder and parquet"):
            load(tmp_path / "mixed")
        assert levels_of(load(str(tmp_path / "mixed" / "*.parquet"))) == [1]

    def test_a_transform_is_not_dropped_in_silence(self, load):
        transformed = table([1]).with_transform(lambda batch: {"pixel_values": batch["image"]})
        for take in (load, lambda data: build_image_dataset(data, 4)):
            with pytest.raises(ValueError, match="has a transform .* would not be applied"):
                take(transformed)
        assert len(load(transformed.with_format(None))) == 1

    def test_patterns_and_types(self, tmp_path, load):
        with pytest.raises(FileNotFoundError, match="No file matches the pattern"):
            load(str(tmp_path / "*.parquet"))
        with pytest.raises(TypeError, match="The source given is a int"):
            load(3)


def test_real_images_equal_a_direct_decode(load, data_dir):
    dataset = load(data_dir / "cifar100", "test", streaming=True, max_examples=500)
    assert dataset.features["label"].num_classes == 100
    file = next((data_dir / "cifar100").glob("test-*.parquet"))
    rows = next(pq.ParquetFile(file).iter_batches(500, columns=["img", "fine_label"])).to_pylist()
    assert [example["label"] for example in dataset] == [row["fine_label"] for row in rows]
    for example, row in zip(dataset, rows, strict=True):
        direct = np.asarray(Image.open(io.BytesIO(row["img"]["bytes"])))
        np.testing.assert_array_equal(np.asarray(example["image"]), direct)


class TestAlignedClasses:
    def test_numbers_follow_the_names_of_the_other_split_and_no_label_stays_none(self):
        train = table(range(3), label=[0, 1, 2]).cast_column("label", ClassLabel(names=["a", "b", "c"]))
        own = ClassLabel(names=["c", "unused", "b"])
        test = table(range(5), label=[0, 2, None, 0, -1]).cast_column("label", own)
        aligned = align_classes(test, train)
        assert aligned["label"][:] == [2, 1, None, 2, -1] and aligned.features["label"] == train.features["label"]
        assert levels_of(aligned) == list(range(5))
        assert align_classes(train, train) is train

    def test_a_class_of_its_own_and_labels_of_another_kind_are_refused(self):
        train = table(range(2), label=[0, 1]).cast_column("label", ClassLabel(names=["a", "b"]))
        test = table(range(2), label=[0, 1]).cast_column("label", ClassLabel(names=["b", "z"]))
        with pytest.raises(ValueError, match=r"held-out has 1 classes that mine lacks \(z\)"):
            align_classes(test, train, ("held-out", "mine"))
        with pytest.raises(ValueError, match="class names in one and numbers in the other"):
            align_classes(table(range(2), label=[0, 1]), train)

    @pytest.mark.parametrize("kind", [ClassLabel(names=list("abcdef")), Value("int64")])
    def test_a_split_that_is_cut_from_ordered_classes(self, kind, monkeypatch):
        said = []
        monkeypatch.setattr(loading.logger, "warning", said.append)
        both = table(range(12), label=[i // 2 for i in range(12)]).cast_column("label", kind)
        with pytest.raises(
            ValueError, match=r"2 classes \((e, f|4, 5)\) and train of 4 \(.*\.\.\.\), and none is in common"
        ):
            align_classes(both.select(range(8, 12)), both.select(range(8)))
        assert not said
        align_classes(both.select(range(7, 12)), both.select(range(8)))
        assert "2 of the 3 classes, 4 of the 5 images" in said[0]
        align_classes(both, both)
        assert len(said) == 1


def tar_bytes(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    path.write_bytes(tar_bytes(files))


@contextlib.contextmanager
def served(folder: Path):
    """The address of a server of this machine for a folder, and the requests that reach it."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            asked.append(arguments)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def in_format(level: int, format: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (level, 0, 0)).save(
        buffer, format=format, **({"lossless": True} if format == "WEBP" else {})
    )
    return buffer.getvalue()


@pytest.mark.parametrize("streaming", [False, True])
class TestWebDatasetsOfSeveralFormats:
    def test_no_format_is_lost_wherever_it_begins(self, tmp_path, load, streaming):
        write_tar(tmp_path / "train-0.tar", {f"{i:03}.png": png(i) for i in range(10)})
        others = {
            f"{i:03}.{'PNG' if i % 2 else 'webp'}": in_format(i, "PNG" if i % 2 else "WEBP") for i in range(10, 20)
        }
        write_tar(tmp_path / "train-1.tar", others)
        write_tar(
            tmp_path / "train-2.tar", {"020.tiff": in_format(20, "TIFF"), "021.png": png(21), "021.txt": b"\xff"}
        )
        dataset = load(tmp_path, streaming=streaming)
        assert list(dataset.features) == ["image"] and levels_of(dataset) == list(range(22))

    def test_labels_stay_what_they_are(self, tmp_path, load, streaming):
        parts = {"0.png": png(1), "0.cls": b"4", "1.webp": in_format(2, "WEBP"), "1.cls": b" 0\n", "2.png": png(3)}
        write_tar(tmp_path / "a.tar", parts)
        assert [row["label"] for row in load(tmp_path / "a.tar", streaming=streaming)] == [4, 0, None]
        write_tar(
            tmp_path / "b.tar",
            {"0.png": png(1), "0.json": b'{"label": 7, "url": "x"}', "1.png": png(2), "1.json": b"{"},
        )
        assert [row["label"] for row in load(tmp_path / "b.tar", streaming=streaming)] == [7, None]
        write_tar(tmp_path / "c.tar", {"0.png": png(1), "0.cls": b"cat", "1.png": png(2), "1.cls": b"ant"})
        dataset = load(tmp_path / "c.tar", streaming=streaming)
        assert ("label" in dataset.features) is not streaming
        assert streaming or [dataset.features["label"].names[row["label"]] for row in dataset] == ["cat", "ant"]

    def test_several_images_of_a_sample(self, tmp_path, load, streaming):
        write_tar(tmp_path / "a.tar", {"0.png": png(1), "0.mask.png": png(9), "1.jpg": in_format(0, "JPEG")})
        rows = list(load(tmp_path / "a.tar", streaming=streaming, extra_columns=["mask.png"]))
        assert [row["mask.png"] and row["mask.png"].getpixel((0, 0))[0] for row in rows] == [9, None]
        write_tar(tmp_path / "b.tar", {"0.png": png(1), "0.webp": in_format(2, "WEBP")})
        with pytest.raises(ValueError, match=r"The sample '0' of .*b\.tar' holds 2 images \(png, webp\)"):
            list(load(tmp_path / "b.tar", streaming=streaming))
        assert levels_of(load(tmp_path / "b.tar", streaming=streaming, image_column="webp")) == [2]

    def test_an_archive_without_images(self, tmp_path, load, streaming):
        write_tar(tmp_path / "a.tar", {"0.txt": b"x", "0.cls": b"1"})
        with pytest.raises(ValueError, match=r"No image is among the first 1 samples of .*a.tar.*0\.txt, 0\.cls"):
            load(tmp_path / "a.tar", streaming=streaming)


class TestBraceListsAndAddresses:
    @pytest.mark.parametrize("streaming", [False, True])
    def test_local_brace_lists(self, tmp_path, load, streaming):
        for i in range(12):
            write_tar(tmp_path / f"train-{i:03}.tar", {f"{i}.png": png(i)})
        for pattern, expected in (
            ("train-{000..011}.tar", list(range(12))),
            ("train-{009..011}.tar", [9, 10, 11]),
            ("train-00{3,1}.tar", [3, 1]),
            ("train-0{00..01}*.tar", [0, 1]),
            ("t{rain,est}-0{0,1}0.tar", None),
        ):
            if expected is None:
                with pytest.raises(FileNotFoundError, match="'.*test-000.tar' of its list"):
                    load(str(tmp_path / pattern), streaming=streaming)
            else:
                assert levels_of(load(str(tmp_path / pattern), streaming=streaming)) == expected

    def test_a_name_with_braces_that_exists_is_a_name(self, tmp_path, load):
        write_images(tmp_path / "a{1,2}", [5])
        assert levels_of(load(str(tmp_path / "a{1,2}"))) == [5]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_a_server_and_what_it_does_not_have(self, tmp_path, load, monkeypatch, streaming):
        # Of this machine: nothing leaves it.
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        write_tar(tmp_path / "train-00.tar", {f"{i}.png": png(i) for i in range(3)})
        write_tar(tmp_path / "train-01.tar", {"3.webp": in_format(3, "WEBP")})
        table([7, 8], label=[0, 1]).to_parquet(tmp_path / "x.parquet")
        with served(tmp_path) as (base, asked):
            assert levels_of(load(f"{base}/train-{{00..01}}.tar", streaming=streaming)) == [0, 1, 2, 3]
            assert levels_of(load(f"{base}/x.parquet", "test", streaming=streaming)) == [7, 8]
            with pytest.raises(FileNotFoundError, match="no.tar' was not found, or not reached"):
                load(f"{base}/no.tar", streaming=streaming)
            count = len(asked)
            with pytest.raises(ValueError, match="No data set can be read at the address .*name their files"):
                load(f"{base}/folder", streaming=streaming)
            with pytest.raises(ValueError, match="a protocol that fsspec knows"):
                load("odd://bucket/train.tar", streaming=streaming)
            assert len(asked) == count

    @pytest.mark.parametrize("streaming", [False, True])
    def test_any_file_system_of_fsspec(self, load, monkeypatch, streaming):
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        memory = fsspec.filesystem("memory")
        memory.pipe("/brace/0.tar", tar_bytes({"0.png": png(4)}))
        assert levels_of(load("memory://brace/{0..0}.tar", streaming=streaming)) == [4]

    def test_a_repository_by_its_address(self, load, monkeypatch):
        asked = []
        monkeypatch.setattr(loading, "load_dataset", lambda name, *args, **options: asked.append(name) or table([1]))
        assert levels_of(load("hf://datasets/someone/something")) == [1] and asked == ["someone/something"]


class TestWhatRowsName:
    """Rows are data: they choose neither what is opened nor what is fetched."""

    @pytest.fixture
    def read(self, load):
        def call(source, streaming=False, **options):
            images = build_image_dataset(
                load(source, streaming=streaming, **options), 4, max_bad_fraction=1.0, shuffle_buffer_size=0
            )
            return [int(example["pixel_values"][0, 0, 0]) for example in (images if streaming else list(images))]

        return call

    def rows(self, *images) -> Dataset:
        struct = [image if isinstance(image, dict) else {"bytes": None, "path": str(image)} for image in images]
        features = Features({"image": {"bytes": Value("binary"), "path": Value("string")}})
        return Dataset.from_dict({"image": struct}, features=features).cast_column("image", datasets.Image())

    @pytest.mark.parametrize("streaming", [False, True])
    def test_files_given_by_name_open_nothing_else(self, tmp_path, read, streaming, monkeypatch):
        write_images(tmp_path / "own" / "images", [1])
        write_images(tmp_path / "private", [2])
        os.mkfifo(tmp_path / "own" / "pipe.png")
        rows = self.rows(
            {"bytes": png(9), "path": "anything.png"},
            tmp_path / "own" / "images" / "1.png",
            tmp_path / "private" / "2.png",
            tmp_path / "own" / ".." / "private" / "2.png",
            "/etc/passwd",
            "/dev/zero",
            tmp_path / "own" / "pipe.png",
            f"zip://pipe.png::{tmp_path / 'own' / 'pipe.png'}",
            "http://127.0.0.1:9/a.png",
            f"file://{tmp_path / 'private' / '2.png'}",
            f"reference::{tmp_path / 'own' / 'images' / '1.png'}",
        )
        rows.info.features["image"].id = '"any"'
        table_of_rows = rows.cast_column("image", datasets.Image(decode=False, id='"any"')).data.table
        (tmp_path / "own" / "data").mkdir()
        pq.write_table(table_of_rows, tmp_path / "own" / "data" / "train.parquet")
        for source in (tmp_path / "own" / "data", tmp_path / "own" / "data" / "train.parquet"):
            with pytest.warns(UserWarning, match="its row names a file outside the data set's folder"):
                assert read(source, streaming) == [9]
        (tmp_path / "own" / "images").rename(tmp_path / "own" / "data" / "images")
        inside = self.rows(tmp_path / "own" / "data" / "images" / "1.png").cast_column(
            "image", datasets.Image(decode=False)
        )
        pq.write_table(inside.data.table, tmp_path / "own" / "data" / "train.parquet")
        assert read(tmp_path / "own" / "data" / "train.parquet", streaming) == [1]

    def test_nothing_is_fetched_unless_asked_for(self, tmp_path, read):
        write_images(tmp_path, [3])
        with served(tmp_path) as (base, asked):
            rows = self.rows({"bytes": png(9), "path": None}, f"{base}/3.png")
            strings = Dataset.from_dict({"image": [f"{base}/3.png"] * 2}).cast_column("image", datasets.Image())
            with pytest.warns(UserWarning, match="an address, and nothing is fetched for a row.*trust_paths"):
                assert read(rows) == [9] == read(rows.to_iterable_dataset(), streaming=True)
            with pytest.raises(ValueError, match="2 of the 2 images seen"):
                build_image_dataset(strings, 4)
            assert not asked
            assert read(rows, trust_paths=True) == [9, 3] == read(rows.to_iterable_dataset(), True, trust_paths=True)
            # One at least for each reading; the brightness of a few images is looked at beforehand.
            assert sum("GET" in request[1] for request in asked) >= 2

    def test_a_data_set_of_ones_own_names_files_anywhere(self, tmp_path, read):
        write_images(tmp_path / "a", [1, 2])
        with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
            archive.writestr("4.png", png(4))
        mine = self.rows(tmp_path / "a" / "1.png", tmp_path / "a" / "2.png", f"zip://4.png::{tmp_path / 'b.zip'}")
        assert read(mine) == [1, 2, 4] == read(mine.to_iterable_dataset(), streaming=True)
        paths = Dataset.from_dict({"image": [str(tmp_path / "a" / "1.png")]}).cast_column("image", datasets.Image())
        paths.save_to_disk(tmp_path / "saved")
        assert read(paths) == [1] == read(tmp_path / "saved")

    def test_the_rule_outlives_what_is_done_to_the_data_set(self, tmp_path, load):
        write_images(tmp_path / "private", [2])
        (tmp_path / "own").mkdir()
        rows = self.rows(tmp_path / "private" / "2.png", {"bytes": png(9), "path": None})
        raw = rows.cast_column("image", datasets.Image(decode=False))
        pq.write_table(raw.data.table, tmp_path / "own" / "train.parquet")
        dataset = (
            load(tmp_path / "own").shuffle(seed=0).select([0, 1]).cast_column("image", datasets.Image(decode=False))
        )
        # A cast to a new feature takes the rule off, as a caller may.
        assert len(build_image_dataset(dataset, 4, max_bad_fraction=1.0)) == 2
        kept = load(tmp_path / "own").shuffle(seed=0).select([0, 1])
        for source in (kept, load(kept), load(kept, max_examples=2)):
            assert len(build_image_dataset(source, 4, max_bad_fraction=1.0)) == 1
