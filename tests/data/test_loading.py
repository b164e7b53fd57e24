# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Every kind of source leads to the same columns and the same pixels."""

import io
import json
import os
import tarfile
from pathlib import Path

import datasets
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
        (tmp_path / "links" / "test").mkdir(parents=True)
        (tmp_path / "links" / "test" / "cat").symlink_to(tmp_path / "pool" / "cat")
        assert sorted(levels_of(load(tmp_path / "links", "test"))) == [1, 2]

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
def test_a_streamed_parquet_file_is_read_a_row_group_at_a_time(tmp_path, load):
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
