# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Features of data sets: the rows, their order and labels; the cache; constant memory; several processes."""

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Dataset, Features, Image, Value
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage
from torch import nn

import sparsejepa_hf
from sparsejepa_hf.data import ImageDataset, StreamingImageDataset, TooManyBadImagesError, resize_to_square
from sparsejepa_hf.evaluation import feature_store
from sparsejepa_hf.evaluation.encoders import load_encoder
from sparsejepa_hf.evaluation.feature_store import FeatureSet, extract_feature_set
from sparsejepa_hf.modeling_sparsejepa import SparseJEPAModel


KINDS = ("last/mean", "groups/mean")


def png(pixels):
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def noise(count, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def as_dataset(pixels, labels=None, label_type=None, bad=(), **columns):
    images = [{"bytes": b"no image", "path": None} if row in bad else png(x) for row, x in enumerate(pixels)]
    features = {"image": Image()}
    columns = {"image": images, **({} if labels is None else {"label": labels}), **columns}
    if labels is not None:
        features["label"] = label_type or Value("int64")
    features |= {name: Value("float64") for name in columns if name not in features}
    return Dataset.from_dict(columns, features=Features(features))


def channels_first(pixels):
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


@pytest.fixture
def encoder(make_model):
    return load_encoder(make_model(SparseJEPAModel))


@pytest.fixture
def passes(monkeypatch):
    """Sizes of the batches that encoders were given."""
    sizes, features = [], feature_store.VisionEncoder.features

    def counted(self, pixel_values, kinds=("last/mean",)):
        sizes.append(len(pixel_values))
        return features(self, pixel_values, kinds)

    monkeypatch.setattr(feature_store.VisionEncoder, "features", counted)
    return sizes


def extract(encoder, dataset, **options):
    return extract_feature_set(encoder, dataset, **{"kinds": KINDS, "batch_size": 4, "progress": False, **options})


# ---- rows, order, labels ----


def test_every_source_gives_the_features_of_its_images_in_order(encoder):
    pixels, labels = noise(11), list(range(11))
    names = [f"class {index}" for index in range(11)]
    dataset = as_dataset(pixels, labels, ClassLabel(names=names))
    expected = encoder.features(channels_first(pixels), KINDS)
    items = [{"pixel_values": image, "labels": i} for i, image in enumerate(channels_first(pixels))]
    sources = {
        "dataset": dataset,
        "stream": dataset.to_iterable_dataset(num_shards=2),
        "cached": ImageDataset(dataset, 32),
        "uncached": ImageDataset(dataset, 32, cache=False),
        "items": items,
    }
    for name, source in sources.items():
        found = extract(encoder, source)
        assert len(found) == 11 and found.labels.tolist() == labels and list(found) == list(KINDS), name
        assert found.labels.dtype == torch.int64 and found.dropped == () and found.rows.tolist() == labels
        assert found.label_names == (None if name == "items" else names)
        for kind in KINDS:
            assert found[kind].dtype == torch.float32 and found.features[kind].is_contiguous()
            torch.testing.assert_close(found[kind], expected[kind], rtol=1e-4, atol=1e-5, msg=name)


@given(count=st.integers(1, 9), batch_size=st.integers(1, 10), permutation=st.randoms(use_true_random=False))
def test_any_batch_size_and_any_order_of_rows(encoder_of_pixels, count, batch_size, permutation):
    pixels = noise(count, size=4)
    order = list(range(count))
    permutation.shuffle(order)
    dataset = as_dataset(pixels, list(range(count))).select(order)
    found = extract(encoder_of_pixels, dataset, kinds="pixels", batch_size=batch_size)
    torch.testing.assert_close(found["pixels"], channels_first(pixels)[order].flatten(1) / 255)
    assert found.labels.tolist() == order


@pytest.fixture(scope="module")
def encoder_of_pixels():
    return load_encoder("pixels", image_size=4)


def test_images_of_another_size_go_through_the_data_pipelines_resize(encoder):
    pixels = noise(5, size=40)
    by_hand = np.stack([resize_to_square(PILImage.fromarray(image), 32) for image in pixels])
    expected = encoder.features(torch.from_numpy(by_hand))["last/mean"]
    found = extract(encoder, as_dataset(pixels), kinds="last/mean")
    torch.testing.assert_close(found["last/mean"], expected, rtol=1e-4, atol=1e-5)
    # Decoded for another model; the originals are still at hand.
    found = extract(encoder, ImageDataset(as_dataset(pixels), 16), kinds="last/mean")
    torch.testing.assert_close(found["last/mean"], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="40 pixels a side, but the encoder takes 32"):
        extract(encoder, [{"pixel_values": image} for image in channels_first(pixels)])


def test_labels_of_every_kind(encoder_of_pixels):
    pixels = noise(3, size=4)

    def labels(dataset, **options):
        return extract(encoder_of_pixels, dataset, kinds="pixels", **options).labels

    found = labels(as_dataset(pixels, [0.5, 1.5, -2.0], Value("float64")))
    assert found.dtype == torch.float32 and found.tolist() == [0.5, 1.5, -2.0]
    assert labels(as_dataset(pixels, [True, False, True], Value("bool"))).tolist() == [1, 0, 1]
    assert labels(as_dataset(pixels, [3, -4, 5])).tolist() == [3, -4, 5], "plain integers may be counts of anything"
    both = as_dataset(pixels, [0, 1, 2], height=[1.0, 2.0, 3.0])
    assert labels(both, label_column="height").tolist() == [1.0, 2.0, 3.0]
    assert labels(both.to_iterable_dataset(), label_column="height").dtype == torch.float32
    found = extract(encoder_of_pixels, as_dataset(pixels), kinds="pixels")
    assert found.labels is None
    with pytest.raises(ValueError, match="no labels, but this evaluation needs them"):
        found.require_labels()


def test_wrong_labels_are_refused_before_anything_runs(encoder_of_pixels, passes):
    pixels = noise(6, size=4)

    def refused(error, message, dataset, **options):
        with pytest.raises(error, match=message):
            extract(encoder_of_pixels, dataset, kinds="pixels", **options)

    classes = ClassLabel(names=["a", "b"])
    refused(ValueError, "label of row 4 is -1; expected 0 to 1", as_dataset(pixels, [0, 1, 0, 1, -1, 0], classes))
    refused(ValueError, "1 of the 4 rows .* no label .*row 1", as_dataset(pixels, [0, None, 1, 1, 1, 1], classes))
    refused(ValueError, "row 5 is nan", as_dataset(pixels, [0.0] * 5 + [float("nan")], Value("float32")))
    refused(TypeError, "class_encode_column", as_dataset(pixels, list("abcdef"), Value("string")))
    refused(ValueError, "'size', which is not a column", as_dataset(pixels), label_column="size")
    refused(ValueError, "empty", as_dataset(pixels).select([]))
    refused(ValueError, "empty", as_dataset(pixels).to_iterable_dataset().take(0))
    refused(ValueError, "columns .*expected one named 'image'", Dataset.from_dict({"x": [1]}))
    refused(TypeError, "of 'train'; expected one split", datasets.DatasetDict(train=as_dataset(pixels)))
    refused(TypeError, "give the IterableDataset", StreamingImageDataset(as_dataset(pixels).to_iterable_dataset(), 4))
    refused(ValueError, "batch_size is 0", as_dataset(pixels), batch_size=0)
    refused(ValueError, "mixed_precision is 'int8'", as_dataset(pixels), mixed_precision="int8")
    assert passes == []


def test_undecodable_images_are_dropped_and_reported(encoder_of_pixels, tmp_path):
    pixels = noise(20, size=4)
    dataset = as_dataset(pixels, list(range(20)), bad={3, 4, 5, 6, 7, 17})
    kept = [row for row in range(20) if row not in {3, 4, 5, 6, 7, 17}]
    for source in (dataset, dataset.to_iterable_dataset()):
        with pytest.warns(UserWarning, match="6 of 20 images could not be decoded"):
            found = extract(encoder_of_pixels, source, kinds="pixels", max_bad_fraction=0.3, cache_dir=tmp_path)
        assert found.dropped == (3, 4, 5, 6, 7, 17)
        assert found.rows.tolist() == found.labels.tolist() == kept
        torch.testing.assert_close(found["pixels"], channels_first(pixels)[kept].flatten(1) / 255)
        assert extract(encoder_of_pixels, source, kinds="pixels", cache_dir=tmp_path).dropped == found.dropped
        for entry in tmp_path.iterdir():
            (entry / "features.json").unlink()
    with pytest.raises(TooManyBadImagesError, match="expected at most 20.0%.*row 3: "):
        extract(encoder_of_pixels, dataset, kinds="pixels", max_bad_fraction=0.2)
    with pytest.raises(TooManyBadImagesError, match="2 of the 2"):
        broken = as_dataset(pixels[:2], bad={0, 1})
        extract(encoder_of_pixels, broken, kinds="pixels", max_bad_fraction=1.0)


def test_non_finite_features_are_refused_with_their_number_and_the_first(tmp_path):
    class Poisoned(nn.Module):
        def forward(self, images):
            dark = images.mean(dim=(1, 2, 3), keepdim=True) < -0.99
            return torch.where(dark, torch.nan, images)

    pixels = noise(10, size=8)
    pixels[[6, 7]] = 0
    encoder = load_encoder(Poisoned(), image_size=8)
    with pytest.raises(ValueError, match=r"'last/mean' .* in 2 of the 4 images from row 4 on \(the first is row 6\)"):
        extract(encoder, as_dataset(pixels), kinds="last/mean", cache_dir=tmp_path)
    assert list(tmp_path.iterdir()) == [], "nothing half done is left"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_is_close_to_float32(encoder, precision):
    dataset = as_dataset(noise(8))
    full, mixed = extract(encoder, dataset), extract(encoder, dataset, mixed_precision=precision)
    for kind in KINDS:
        assert mixed[kind].dtype == torch.float32 and not torch.equal(mixed[kind], full[kind])
        torch.testing.assert_close(mixed[kind], full[kind], rtol=0.05, atol=0.05)


# ---- the cache ----


def test_a_second_call_runs_nothing(encoder, passes, tmp_path):
    dataset = as_dataset(noise(10), list(range(10)))
    first = extract(encoder, dataset, cache_dir=tmp_path)
    assert passes == [4, 4, 2], "one pass, batch by batch"
    again = extract(encoder, as_dataset(noise(10), list(range(10))), cache_dir=tmp_path, batch_size=3)
    stream = extract(encoder, dataset.to_iterable_dataset(), cache_dir=tmp_path)
    assert len(passes) == 3
    for found in (again, stream):
        assert found.key == first.key and torch.equal(found.labels, first.labels)
        assert all(torch.equal(found[kind], first[kind]) for kind in KINDS)
    (entry,) = tmp_path.iterdir()
    assert entry.name == first.key
    assert sorted(path.name for path in entry.iterdir()) == ["features.arrow", "features.json"]
    table = Dataset.from_file(str(entry / "features.arrow"))
    np.testing.assert_array_equal(np.array(table["last/mean"], dtype=np.float32), first["last/mean"].numpy())


def test_the_key_tells_apart_what_gives_other_features(make_model, encoder, tmp_path, monkeypatch):
    pixels, labels = noise(6), list(range(6))
    dataset = as_dataset(pixels, labels)
    other_pixels = pixels.copy()
    other_pixels[5, 31, 31, 2] ^= 1
    model = make_model(SparseJEPAModel)
    with torch.no_grad():
        model.target_encoder.layernorm.bias[7] += 1e-3
    runs = [
        extract(encoder, dataset, cache_dir=tmp_path),
        extract(load_encoder(model), dataset, cache_dir=tmp_path),
        extract(load_encoder(model, encoder="context"), dataset, cache_dir=tmp_path),
        extract(load_encoder(model, image_size=16), dataset, cache_dir=tmp_path),
        extract(encoder, as_dataset(other_pixels, labels), cache_dir=tmp_path),
        extract(encoder, as_dataset(pixels, labels[::-1]), cache_dir=tmp_path),
        extract(encoder, as_dataset(pixels), cache_dir=tmp_path),
        extract(encoder, dataset.select(range(5)), cache_dir=tmp_path),
        extract(encoder, dataset.select([1, 0, 2, 3, 4, 5]), cache_dir=tmp_path),
        extract(encoder, dataset, kinds="last/mean", cache_dir=tmp_path),
        extract(encoder, dataset, mixed_precision="bf16", cache_dir=tmp_path),
    ]
    monkeypatch.setattr(feature_store, "FEATURE_FORMAT", 0)
    runs.append(extract(encoder, dataset, cache_dir=tmp_path))
    assert len({found.key for found in runs}) == len(runs)


def test_files_are_known_by_what_they_hold(encoder, passes, tmp_path):
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        PILImage.fromarray(noise(1)[0]).save(tmp_path / folder / "image.png")
        paths.append({"image": [str(tmp_path / folder / "image.png")]})
    keys = [
        extract(encoder, Dataset.from_dict(path, features=Features(image=Image())), cache_dir=tmp_path / "c").key
        for path in paths
    ]
    assert keys[0] == keys[1] and len(passes) == 1


def test_incomplete_entries_are_made_anew(encoder, passes, tmp_path):
    dataset = as_dataset(noise(4))
    first = extract(encoder, dataset, cache_dir=tmp_path)
    expected = first["last/mean"].clone()
    table = tmp_path / first.key / "features.arrow"
    table.write_bytes(table.read_bytes()[:-100])
    with pytest.raises(FileNotFoundError, match="does not have its"):
        FeatureSet.load(tmp_path / first.key)
    assert torch.equal(extract(encoder, dataset, cache_dir=tmp_path)["last/mean"], expected)
    assert len(passes) == 2
    with pytest.raises(FileNotFoundError, match="no complete feature set"):
        FeatureSet.load(tmp_path)


def test_features_may_be_changed_without_changing_the_cache(encoder, tmp_path):
    dataset = as_dataset(noise(4))
    first = extract(encoder, dataset, cache_dir=tmp_path)
    kept = first["last/mean"].clone()
    first["last/mean"].zero_()
    assert torch.equal(extract(encoder, dataset, cache_dir=tmp_path)["last/mean"], kept)


def test_memory_holds_batches_and_not_the_data_set(monkeypatch):
    """Neither decoded batches nor features pile up, however long the data set is."""
    alive, most, written = [0], [0], []
    write = feature_store._PartWriter.write

    class Tracked(feature_store._Decoded):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            alive[0] += 1
            most[0] = max(most[0], alive[0])

        def __del__(self):
            alive[0] -= 1

    monkeypatch.setattr(feature_store, "_Decoded", Tracked)
    monkeypatch.setattr(
        feature_store._PartWriter,
        "write",
        lambda self, place, columns: (written.append(len(columns["row"])), write(self, place, columns)),
    )
    dataset = as_dataset(noise(120, size=4))
    for source in (dataset, dataset.to_iterable_dataset()):
        most[0], written[:] = 0, []
        encoder = load_encoder("pixels", image_size=4)
        extract(encoder, source, kinds="pixels", batch_size=2, num_threads=2)
        assert written == [2] * 60 and most[0] <= 5


def test_fifty_thousand_features_are_read_in_well_under_a_second(tmp_path):
    class Constant(nn.Module):
        def forward(self, images):
            return images.mean(dim=(1, 2, 3))[:, None].expand(-1, 192)

    class Items:
        def __len__(self):
            return 50_000

        def __getitem__(self, index):
            return {"pixel_values": torch.full((3, 1, 1), index % 256, dtype=torch.uint8), "labels": index}

        def __getitems__(self, indices):
            values = torch.tensor(indices).remainder(256).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
            return [{"pixel_values": image, "labels": i} for image, i in zip(values.unbind(0), indices, strict=True)]

    encoder = load_encoder(Constant(), image_size=1)
    key = extract(encoder, Items(), kinds="last/mean", batch_size=5000, cache_dir=tmp_path).key
    start = time.perf_counter()
    found = FeatureSet.load(tmp_path / key)
    total = found["last/mean"].sum()
    assert time.perf_counter() - start < 0.5
    assert found["last/mean"].shape == (50_000, 192) and found.labels[-1] == 49_999 and torch.isfinite(total)


# ---- a feature set by itself ----


def test_a_feature_set_is_a_mapping_of_equal_lengths():
    found = FeatureSet({"last/mean": torch.zeros(3, 2)}, torch.arange(3))
    assert len(found) == 3 and dict(found) == {"last/mean": found["last/mean"]} and "last4/mean" not in found
    assert found.require_labels() is found.labels and "last/mean: 2" in repr(found)
    with pytest.raises(KeyError, match="not among the features extracted: 'last/mean'"):
        found["last4/mean"]
    with pytest.raises(ValueError, match="all of one length"):
        FeatureSet({"last/mean": torch.zeros(3, 2)}, torch.arange(4))


# ---- processes ----


def test_an_accelerator_of_one_process_changes_nothing(encoder, tmp_path):
    dataset = as_dataset(noise(6))
    found = extract(encoder, dataset, accelerator=Accelerator(cpu=True), cache_dir=tmp_path)
    assert all(torch.equal(found[kind], extract(encoder, dataset)[kind]) for kind in KINDS)


EXTRACT = """
import json, sys
import torch
from accelerate import Accelerator
from datasets import Dataset
from sparsejepa_hf.data import TooManyBadImagesError
from sparsejepa_hf.evaluation.encoders import load_encoder
from sparsejepa_hf.evaluation.feature_store import extract_feature_set

torch.set_num_threads(1)
job = json.load(open(sys.argv[1]))
accelerator = Accelerator(cpu=True)
encoder, dataset = load_encoder(job["model"]), Dataset.load_from_disk(job["data"])
options = dict(kinds=job["kinds"], batch_size=4, progress=False, accelerator=accelerator)
found = {}
for name, source in (("table", dataset), ("stream", dataset.to_iterable_dataset())):
    for cache in (job["cache"], job["cache"], None):
        result = extract_feature_set(encoder, source, cache_dir=cache, max_bad_fraction=0.2, **options)
        saved = {kind: values.clone() for kind, values in result.features.items()}
        found[f"{name} {len(found)}"] = saved | {"labels": result.labels.clone(), "dropped": list(result.dropped)}
few = dataset.select(range(3))
found["fewer batches than processes"] = dict(extract_feature_set(encoder, few, **options).features) | {
    "labels": torch.arange(3), "dropped": []
}
try:
    extract_feature_set(encoder, dataset, max_bad_fraction=0.0, **options)
    error = ""
except TooManyBadImagesError as raised:
    error = str(raised)
result = {"found": found, "error": error, "count": accelerator.num_processes}
torch.save(result, f"{job['out']}-{accelerator.process_index}.pt")
accelerator.wait_for_everyone()
accelerator.end_training()
"""


def launch(tmp_path, name, command):
    script = tmp_path / "extract.py"
    script.write_text(EXTRACT, encoding="utf-8")
    job = {"model": str(tmp_path / "model"), "data": str(tmp_path / "data"), "kinds": list(KINDS)}
    job |= {"cache": str(tmp_path / f"cache-{name}"), "out": str(tmp_path / name)}
    (tmp_path / f"{name}.json").write_text(json.dumps(job), encoding="utf-8")
    path = [str(Path(sparsejepa_hf.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(script), str(tmp_path / f"{name}.json")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return [torch.load(path, weights_only=True) for path in sorted(tmp_path.glob(f"{name}-*.pt"))]


@pytest.mark.slow
def test_two_processes_extract_what_one_does_to_the_bit(make_model, tmp_path):
    """Bad images, a last batch that is not full, a table and a stream, a hit of the cache, and an error for both."""
    make_model(SparseJEPAModel).save_pretrained(tmp_path / "model")
    as_dataset(noise(22), list(range(22)), bad={5, 21}).save_to_disk(str(tmp_path / "data"))
    (one,) = launch(tmp_path, "one", [sys.executable])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    two = launch(tmp_path, "two", command)
    assert [result["count"] for result in (one, *two)] == [1, 2, 2]
    assert one["found"]["table 0"]["dropped"] == [5, 21]
    assert two[0]["error"] == two[1]["error"] and "could not be decoded" in two[0]["error"]
    for result in two:
        assert result["found"].keys() == one["found"].keys()
        for name, expected in one["found"].items():
            assert result["found"][name]["dropped"] == expected["dropped"]
            for column in ("labels", *KINDS):
                assert torch.equal(result["found"][name][column], expected[column]), (name, column)
    assert len(list((tmp_path / "cache-two").iterdir())) == 1
