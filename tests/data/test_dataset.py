# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Torch data sets: pixels, labels, damaged images, caching and streaming."""

import io
import itertools
import pickle
import warnings

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, Subset, default_collate

from sparsejepa_hf.data import (
    ImageDataset,
    StreamingImageDataset,
    TooManyBadImagesError,
    build_image_dataset,
    collate_images,
    collate_pixels,
    load_image_dataset,
)
from sparsejepa_hf.data import dataset as dataset_module


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (level % 256, level // 256, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


BAD = [b"", b"not an image", png(1)[:40]]


def table(count: int, bad=(), labels=True) -> Dataset:
    """Image i has level i, label i % 7."""
    contents = [BAD[i % 3] if i in bad else png(i) for i in range(count)]
    columns = {"image": [{"bytes": content, "path": None} for content in contents]}
    if labels:
        columns["label"] = [i % 7 for i in range(count)]
    return Dataset.from_dict(columns).cast_column("image", datasets.Image())


def level(pixels: torch.Tensor) -> int:
    return int(pixels[0, 0, 0]) + 256 * int(pixels[1, 0, 0])


def levels_of(examples) -> list[int]:
    return [level(example["pixel_values"]) for example in examples]


@pytest.fixture(autouse=True)
def only_expected_warnings():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Undecodable images")
        yield


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("labels", [True, False])
def test_examples(cache, labels):
    data = ImageDataset(table(300, labels=labels), 4, cache=cache)
    assert len(data) == 300 and data.has_labels == labels and data.num_bad == 0
    for index in (0, 17, 299, -1):
        example = data[index]
        assert example["pixel_values"].shape == (3, 4, 4) and example["pixel_values"].dtype == torch.uint8
        assert level(example["pixel_values"]) == index % 300
        assert example.get("labels") == ((index % 300) % 7 if labels else None)
    assert levels_of(data.__getitems__([5, 290, 5])) == [5, 290, 5]
    for index in (300, -301):
        with pytest.raises(IndexError, match="expected at least -300 and below 300"):
            data[index]


def test_cache_tensors():
    data = ImageDataset(table(600), 4, cache=True, num_threads=3)
    assert data.pixel_values.shape == (600, 3, 4, 4) and data.pixel_values.dtype == torch.uint8
    assert [level(image) for image in data.pixel_values] == list(range(600))
    assert torch.equal(data.labels, torch.arange(600) % 7) and torch.equal(data.source_indices, torch.arange(600))


def test_lazy_holds_no_tensors():
    data = ImageDataset(table(3), 4, cache=False)
    assert data.pixel_values is None and data.labels is None and data.source_indices is None


def test_auto_caches_below_the_limit(monkeypatch):
    monkeypatch.setattr(dataset_module, "CACHE_LIMIT_BYTES", 10 * 3 * 16)
    assert ImageDataset(table(10), 4).pixel_values is not None
    assert ImageDataset(table(11), 4).pixel_values is None
    with pytest.raises(ValueError, match="cache is 'yes'"):
        ImageDataset(table(1), 4, cache="yes")


@given(bad=st.sets(st.integers(0, 19), max_size=19))
@settings(max_examples=30, deadline=None)
def test_cached_drops_bad_images(bad):
    data = ImageDataset(table(20, bad), 4, cache=True, max_bad_fraction=1.0)
    good = [i for i in range(20) if i not in bad]
    assert len(data) == len(good) and data.num_bad == len(bad)
    assert levels_of(data[i] for i in range(len(data))) == good == data.source_indices.tolist()
    assert data.labels.tolist() == [i % 7 for i in good]


@given(bad=st.sets(st.integers(0, 19), max_size=19))
@settings(max_examples=30, deadline=None)
def test_lazy_takes_the_next_good_image(bad):
    data = ImageDataset(table(20, bad), 4, cache=False, max_bad_fraction=1.0)
    expected = [next(j % 20 for j in range(i, i + 20) if j % 20 not in bad) for i in range(20)]
    examples = data.__getitems__(list(range(20)))
    assert levels_of(examples) == expected == levels_of(data[i] for i in range(20))
    assert [example["labels"] for example in examples] == [i % 7 for i in expected]


@pytest.mark.parametrize("cache", [True, False])
def test_all_bad_is_an_error(cache):
    with pytest.raises(TooManyBadImagesError, match="4 of the 4 images seen"):
        ImageDataset(table(4, bad=range(4)), 4, cache=cache, max_bad_fraction=0.5)[0]


@pytest.mark.parametrize("cache", [True, False])
def test_too_many_bad_is_an_error_with_the_first_failures(cache):
    def read_all():
        data = ImageDataset(table(300, bad=range(0, 300, 20)), 4, cache=cache)
        return [data[i] for i in range(len(data))]

    with pytest.raises(TooManyBadImagesError, match=r"5.\d% *\) could not be decoded.*1.0%.*image 0: .*image 20: "):
        read_all()


@pytest.mark.parametrize("cache", [True, False])
def test_one_warning(cache):
    with pytest.warns(UserWarning, match="Undecodable images are skipped; the first is image 150") as caught:
        data = ImageDataset(table(400, bad=[150, 300]), 4, cache=cache)
        assert len(levels_of(data[i] for i in range(len(data)))) == len(data)
    assert len([warning for warning in caught if "Undecodable" in str(warning.message)]) == 1


def test_a_missing_image_and_a_missing_label():
    source = Dataset.from_dict(
        {"image": [None, {"bytes": png(5), "path": None}], "label": [1, None]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    )
    for cache in (True, False):
        data = ImageDataset(source, 4, cache=cache, max_bad_fraction=0.5)
        assert level(data[0]["pixel_values"]) == 5 and data[0]["labels"] == -1


def test_files_in_a_folder_with_damaged_ones(tmp_path):
    folder = tmp_path / "images"
    for kind in ("a", "b"):
        (folder / kind).mkdir(parents=True)
        for number in range(3):
            (folder / kind / f"{number}.png").write_bytes(png(number + 1))
    (folder / "a" / "empty.jpg").write_bytes(b"")
    (folder / "b" / "text.jpg").write_text("not an image")
    (folder / "b" / "cut.png").write_bytes(png(3)[:50])
    source = load_image_dataset(folder, cache_dir=tmp_path / "cache")
    data = ImageDataset(source, 4, max_bad_fraction=0.5)
    assert data.num_bad == 3 and sorted(levels_of(data[i] for i in range(6))) == [1, 1, 2, 2, 3, 3]
    with pytest.raises(TooManyBadImagesError, match="empty.jpg.*cut.png"):
        ImageDataset(source, 4)


def test_wrong_inputs():
    with pytest.raises(ValueError, match="expected one named 'image'"):
        ImageDataset(table(2).rename_column("image", "img"), 4)
    with pytest.raises(ValueError, match="empty"):
        ImageDataset(table(2).select([]), 4)
    with pytest.raises(ValueError, match="max_bad_fraction is 2"):
        ImageDataset(table(2), 4, max_bad_fraction=2)


def test_collate():
    data = ImageDataset(table(9), 4)
    batch = collate_images([data[i] for i in (8, 0, 3)])
    assert batch["pixel_values"].shape == (3, 3, 4, 4) and batch["pixel_values"].dtype == torch.uint8
    assert batch["labels"].tolist() == [1, 0, 3] and batch["labels"].dtype == torch.int64
    assert set(collate_images([ImageDataset(table(2, labels=False), 4)[0]])) == {"pixel_values"}


@pytest.mark.parametrize("cache", [True, False])
def test_a_batch_is_taken_whole_and_is_a_sequence_of_examples_to_other_collators(cache):
    data = ImageDataset(table(9), 4, cache=cache)
    batch = data.__getitems__([8, 0, 3])
    taken = collate_images(batch)
    assert taken["pixel_values"] is batch.pixel_values and taken["labels"] is batch.labels
    for collate in (default_collate, lambda examples: collate_images(list(examples))):
        for name, values in collate(batch).items():
            assert torch.equal(values, taken[name])
    assert levels_of(batch[1:]) == [0, 3] and levels_of(batch) == [8, 0, 3] and batch[-1]["labels"] == 3


def kinds_of_images(count=3):
    """The same uint8 images in every form that an example's image may have."""
    pixels = torch.randint(0, 256, (count, 3, 6, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    arrays = pixels.numpy()
    return pixels, {
        "tensor": list(pixels),
        "array": list(arrays),
        "view": [x.transpose(2, 1, 0).copy().transpose(2, 1, 0)[:, ::-1].copy()[:, ::-1] for x in arrays],
        "lists": arrays.tolist(),
        "wide": list(pixels.long()),
        "16 bits": list(arrays.astype(np.uint16)),
        "PIL": [Image.fromarray(x.transpose(1, 2, 0)) for x in arrays],
    }


@pytest.mark.parametrize("kind", kinds_of_images()[1])
def test_an_image_in_any_form_and_an_example_in_any_form_make_the_same_batch(kind):
    pixels, kinds = kinds_of_images()
    images, labels = kinds[kind], [2, 0, 1]
    forms = [
        [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)],
        [{"pixel_values": image, "label": np.int32(label)} for image, label in zip(images, labels, strict=True)],
        [(image, torch.tensor(label)) for image, label in zip(images, labels, strict=True)],
    ]
    for examples in forms:
        batch = collate_images(examples)
        assert batch["pixel_values"].dtype == torch.uint8 and torch.equal(batch["pixel_values"], pixels)
        assert batch["labels"].tolist() == labels and batch["labels"].dtype == torch.int64
        assert list(collate_pixels(examples)) == ["pixel_values"]
    for examples in ([(image,) for image in images], images, [{"pixel_values": image} for image in images]):
        batch = collate_images(examples)
        assert list(batch) == ["pixel_values"] and torch.equal(batch["pixel_values"], pixels)


def test_floats_stay_floats_of_the_models_precision():
    values = np.random.default_rng(0).normal(size=(2, 3, 4, 4))
    for images in (list(values), values.tolist(), list(torch.from_numpy(values))):
        batch = collate_images([{"pixel_values": image} for image in images])["pixel_values"]
        assert batch.dtype == torch.float32 and torch.equal(batch, torch.from_numpy(values).float())
    half = [{"pixel_values": torch.zeros(3, 4, 4, dtype=torch.bfloat16)}]
    assert collate_images(half)["pixel_values"].dtype == torch.bfloat16


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4)])
def test_channels_of_a_pil_image_come_first(mode, channels):
    image = Image.new("RGB", (8, 6), (10, 20, 30)).convert(mode)
    batch = collate_images([image, image])["pixel_values"]
    assert batch.shape == (2, channels, 6, 8)
    assert batch[0, :, 0, 0].tolist() == np.atleast_1d(image.getpixel((0, 0))).tolist()


SMALL = torch.zeros(3, 8, 8, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([{"image": SMALL, "label": 1}], r"An example has \['image', 'label'\]; expected 'pixel_values'"),
        (["photo.png"], "An image is a str that makes no tensor"),
        ([None], "An image is a NoneType that makes no tensor"),
        ([[[1, 2], [3]]], "An image is a list that makes no tensor"),
        ([SMALL, SMALL[:, :4]], r"different kinds: uint8 \(3, 4, 8\), uint8 \(3, 8, 8\)"),
        ([SMALL, SMALL.float()], r"different kinds: float32 \(3, 8, 8\), uint8 \(3, 8, 8\)"),
        ([SMALL[0]], r"the shape \(8, 8\); expected \(channels, height, width\)\. Reshape"),
        ([SMALL[None]], r"the shape \(1, 3, 8, 8\); expected \(channels, height, width\)"),
        ([SMALL.permute(1, 2, 0)], r"the shape \(8, 8, 3\).*the channels seem to come last"),
        ([SMALL.long() + 256], "of type int64 and no pixels from 0 to 255"),
        ([SMALL.long() - 1], "of type int64 and no pixels from 0 to 255"),
        ([SMALL.bool()], "of type bool and no pixels"),
        ([Image.new("P", (8, 8))], "PIL image has the mode P"),
        ([(SMALL, "cat")], "A label is 'cat'; expected the number of a class"),
        ([(SMALL, None)], "A label is None; expected the number of a class"),
        ([(SMALL, [0, 1])], r"A label is \[0, 1\]; expected the number of a class"),
        ([(SMALL, 1.0)], "A label is 1.0; expected the number of a class"),
        ([(SMALL, 1), (SMALL,)], "1 of the 2 examples of a batch have no label"),
    ],
)
def test_what_makes_no_batch_is_refused_with_a_sentence(examples, message):
    with pytest.raises(ValueError, match=message):
        collate_images(examples)


def test_the_pixels_alone_are_taken_whatever_the_labels_are():
    labels = [None, "cat", [0, 1], {"bbox": [0, 0, 1, 1]}, 1.5]
    examples = [{"pixel_values": SMALL, "labels": label} for label in labels] + [{"pixel_values": SMALL}]
    batch = collate_pixels(examples)
    assert list(batch) == ["pixel_values"] and batch["pixel_values"].shape == (6, 3, 8, 8)
    whole = ImageDataset(table(9), 4).__getitems__([8, 0])
    assert collate_pixels(whole)["pixel_values"] is whole.pixel_values


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_loader_and_subset(cache, num_workers):
    data = Subset(ImageDataset(table(30), 4, cache=cache), range(10, 30))
    loader = DataLoader(data, batch_size=8, num_workers=num_workers, collate_fn=collate_images)
    batches = list(loader)
    assert [len(batch["labels"]) for batch in batches] == [8, 8, 4]
    assert [level(image) for batch in batches for image in batch["pixel_values"]] == list(range(10, 30))


def stream_of(count: int, bad=(), shards: int = 1, **options) -> StreamingImageDataset:
    return StreamingImageDataset(table(count, bad).to_iterable_dataset(num_shards=shards), 4, **options)


class TestStreaming:
    def test_order_and_labels(self):
        data = stream_of(30, shuffle_buffer_size=0)
        assert levels_of(data) == list(range(30)) and [example["labels"] for example in data][:9][-1] == 1

    def test_shuffling_follows_seed_and_epoch(self):
        data = stream_of(60, shuffle_buffer_size=20, seed=1)
        first, again = levels_of(data), levels_of(data)
        data.set_epoch(1)
        second = levels_of(data)
        assert first == again and first != second and sorted(first) == sorted(second) == list(range(60))
        assert levels_of(stream_of(60, shuffle_buffer_size=20, seed=2)) != first

    def test_bad_images_are_skipped(self):
        data = stream_of(300, bad=[3, 200], shuffle_buffer_size=0)
        with pytest.warns(UserWarning, match="Undecodable") as caught:
            assert levels_of(data) == [i for i in range(300) if i not in (3, 200)]
        assert len(caught) == 1 and data.num_bad == 2
        with pytest.raises(TooManyBadImagesError, match="could not be decoded"):
            levels_of(stream_of(300, bad=range(0, 300, 10)))

    @pytest.mark.parametrize("shards", [1, 4])
    @pytest.mark.parametrize("buffer", [0, 10])
    def test_processes_share_the_examples(self, shards, buffer):
        parts = [
            levels_of(stream_of(40, shards=shards, shuffle_buffer_size=buffer, rank=rank, world_size=2))
            for rank in (0, 1)
        ]
        assert sorted(parts[0] + parts[1]) == list(range(40)) and len(parts[0]) == len(parts[1])

    def test_workers_share_the_examples(self):
        loader = DataLoader(stream_of(40, shards=4), batch_size=5, num_workers=2, collate_fn=collate_images)
        seen = [level(image) for batch in loader for image in batch["pixel_values"]]
        assert sorted(seen) == list(range(40))

    @pytest.mark.parametrize("kind", ["lazy", "stream", "repeated stream"])
    def test_bad_images_of_all_workers_are_counted(self, kind, monkeypatch):
        monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
        bad = range(3, 240, 20)

        def build(fraction):
            if kind == "lazy":
                return ImageDataset(table(240, bad), 4, cache=False, max_bad_fraction=fraction)
            return stream_of(240, bad, 4, repeat=kind != "stream", max_bad_fraction=fraction)

        data = build(0.2)
        loader = DataLoader(data, batch_size=8, num_workers=2, collate_fn=collate_images)
        count = sum(
            len(batch["pixel_values"]) for batch in itertools.islice(loader, 60 if "repeated" in kind else None)
        )
        if "repeated" in kind:
            # Two epochs and some, and what workers had read ahead.
            assert 24 <= data.num_bad <= 30 and count == 480
        else:
            assert data.num_bad == len(bad) and count == (240 if kind == "lazy" else 240 - len(bad))
        # No worker alone sees a hundred images.
        small = build(0.02)
        loader = DataLoader(Subset(small, range(160)) if kind == "lazy" else small, 8, num_workers=2)
        with pytest.raises(TooManyBadImagesError, match=r"of the 1\d\d images seen"):
            list(itertools.islice(loader, 20))

    def test_pil_images_from_a_generator(self):
        def generate():
            for number in range(5):
                yield {"image": Image.new("RGB", (4, 4), (number, 0, 0)), "label": number}

        stream = load_image_dataset(datasets.IterableDataset.from_generator(generate))
        assert levels_of(StreamingImageDataset(stream, 4, shuffle_buffer_size=0)) == list(range(5))

    def test_pickles(self):
        data = pickle.loads(pickle.dumps(stream_of(5, shuffle_buffer_size=0)))
        assert levels_of(data) == list(range(5))


def test_factory():
    assert isinstance(build_image_dataset(table(3), 4), ImageDataset)
    stream = build_image_dataset(table(3).to_iterable_dataset(), 4, shuffle_buffer_size=0)
    assert isinstance(stream, StreamingImageDataset) and levels_of(stream) == [0, 1, 2]


def test_real_images_equal_a_direct_decode(data_dir):
    file = next((data_dir / "cifar100").glob("test-*.parquet"))
    stream = load_image_dataset(data_dir / "cifar100", "test", streaming=True, max_examples=500)
    # Undecoded, since `from_list` would encode decoded images anew.
    undecoded = stream.cast_column("image", datasets.Image(decode=False))
    cached = ImageDataset(Dataset.from_list(list(undecoded), features=stream.features), 32)
    streamed = collate_images(list(StreamingImageDataset(stream, 32, shuffle_buffer_size=0)))
    rows = next(pq.ParquetFile(file).iter_batches(500, columns=["img", "fine_label"])).to_pylist()
    direct = np.stack([np.asarray(Image.open(io.BytesIO(row["img"]["bytes"]))) for row in rows])
    for pixels, labels in ((cached.pixel_values, cached.labels), (streamed["pixel_values"], streamed["labels"])):
        np.testing.assert_array_equal(pixels.numpy(), direct.transpose(0, 3, 1, 2))
        assert labels.tolist() == [row["fine_label"] for row in rows]
