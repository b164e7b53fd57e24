# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The input benchmark: both pipelines give the same pixels where nothing is random, and a record renders itself."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import input as benchmark
from benchmarks.alternatives.mask_collator import MultiBlockMaskCollator
from benchmarks.alternatives.pil_pipeline import PILImages, build_loader, build_transform, folder_images
from sparsejepa_hf.counter_rng import stream_keys
from sparsejepa_hf.data import BatchAugmentation, resize_to_square, to_rgb


MEAN, STD = (0.48, 0.45, 0.4), (0.25, 0.24, 0.26)


def pixels_of(images: list[Image.Image]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])


def keys(count: int) -> torch.Tensor:
    return stream_keys(0, 0, torch.arange(count), 2)


def test_the_fastest_rate_of_fewer_threads_counts_too():
    def row(name, rate, speedup=None):
        return {"candidate": name, "images_per_s": rate, "speedup": speedup}

    before = [row(benchmark.PIL_MEMORY, 600.0), row(benchmark.PIL_FOLDER, 100.0)]
    rows = [row(benchmark.PIL_MEMORY, 300.0), row(benchmark.PIL_FOLDER, 200.0)]
    rows += [row(benchmark.MEMORY, 1200.0, 4.0), row(benchmark.FOLDER, 1000.0, 5.5)]
    benchmark._hold_against_the_best(rows, before)
    assert [found["speedup"] for found in rows] == [None, None, 2.0, 5.0]


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("crop", ["none", "pad"])
def test_pipelines_agree_where_nothing_is_random(crop, flip):
    images = benchmark.generated_images(6, 24, seed=1)
    options = {"crop": crop, "crop_padding": 0, "horizontal_flip": flip}
    ours = BatchAugmentation(24, MEAN, STD, **options)(pixels_of(images), keys(6))
    transform = build_transform(24, MEAN, STD, **options)
    theirs = torch.stack([transform(image) for image in images])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


def test_a_resized_crop_of_everything_agrees():
    image = benchmark.generated_images(1, 24, seed=2)[0]
    ours = BatchAugmentation(24, MEAN, STD, crop="resized", crop_scale=(1, 1), crop_ratio=(1, 1), horizontal_flip=0)
    theirs = build_transform(24, MEAN, STD, crop="none", horizontal_flip=0)
    torch.testing.assert_close(ours(pixels_of([image]), keys(1))[0], theirs(image), rtol=0, atol=1e-4)


def test_both_draw_from_the_same_padded_windows():
    image = benchmark.generated_images(1, 8, seed=3)[0]
    options = {"crop": "pad", "crop_padding": 1, "horizontal_flip": 0.5}
    scale = {"image_mean": (0, 0, 0), "image_std": (1 / 255,) * 3}
    torch.manual_seed(0)
    transform = build_transform(8, **scale, **options)
    theirs = {tuple(transform(image).round().int().flatten().tolist()) for _ in range(400)}
    ours = BatchAugmentation(8, **scale, **options)(pixels_of([image] * 400), keys(400))
    assert {tuple(window.round().int().flatten().tolist()) for window in ours} == theirs
    assert len(theirs) == 9 * 2


def test_both_jitter_brightness_alike():
    # Contrast and saturation leave an even grey alone.
    image, scale = Image.new("RGB", (8, 8), (120, 120, 120)), {"image_mean": (0, 0, 0), "image_std": (1, 1, 1)}
    options = {"crop": "none", "color_jitter": 0.4}
    torch.manual_seed(0)
    transform = build_transform(8, **scale, **options)
    theirs = torch.stack([transform(image)[0, 0, 0] for _ in range(2000)])
    ours = BatchAugmentation(8, **scale, **options)(pixels_of([image] * 2000), keys(2000))[:, 0, 0, 0]
    # PIL keeps whole grey levels in between.
    levels = torch.linspace(0.05, 0.95, 19)
    torch.testing.assert_close(ours.quantile(levels), theirs.quantile(levels), rtol=0, atol=0.025)


def test_loaders_give_whole_batches_with_masks(tmp_path):
    images = benchmark.generated_images(7, 8, seed=4)
    paths = benchmark.write_folder(images, tmp_path, "png")
    assert [np.array(Image.open(path)).tolist() for path in paths] == [np.array(image).tolist() for image in images]
    transform = build_transform(8, (0, 0, 0), (1 / 255,) * 3, crop="none", horizontal_flip=0)
    in_memory = PILImages(images, [index % 2 for index in range(7)], transform)
    for dataset in (in_memory, folder_images(tmp_path, transform)):
        batches = list(build_loader(dataset, 3, MultiBlockMaskCollator((8, 8), 2), 0))
        assert len(batches) == 2
        for (pixels, labels), context, target in batches:
            assert len(pixels) == len(labels) == len(context) == len(target) == 3
            for image, label in zip(pixels, labels, strict=True):
                found = [i for i, known in enumerate(pixels_of(images)) if torch.equal(image.round().byte(), known)]
                assert [i % 2 for i in found] == [int(label)]


def test_unequal_labels_and_unknown_crops_are_refused():
    with pytest.raises(ValueError, match="1 images and 2 labels"):
        PILImages([Image.new("RGB", (2, 2))], [0, 1], lambda image: image)
    with pytest.raises(ValueError, match="expected 'pad', 'resized' or 'none'"):
        build_transform(8, MEAN, STD, crop="centre")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_every_source_of_ours_holds_the_same_images(tmp_path, suffix):
    case = benchmark.Case(16, 2, 3, 7, "pad", suffix, jitter=0.1, step_batch=1, step_model={})
    options = argparse.Namespace(color_jitter=0.1, seed=0, device="cpu")
    sources = benchmark.Sources(case, benchmark.generated_images(7, 16, seed=5), tmp_path, options)
    files = sorted((tmp_path / "images").rglob("*." + suffix))
    expected = sorted(resize_to_square(to_rgb(path), 16).tobytes() for path in files)
    for dataset in sources.ours.values():
        examples = [dataset[index] for index in range(len(dataset))]
        assert sorted(example["pixel_values"].numpy().tobytes() for example in examples) == expected
        assert sorted(example["labels"] for example in examples) == [0, 0, 0, 0, 1, 1, 1]
    assert {name: call() for name, call in sources.passes(0).items()} == dict.fromkeys(
        [*sources.pil, *sources.ours], 6
    )


def test_real_images_come_as_squares_and_too_few_are_refused(tmp_path):
    benchmark.write_folder([Image.new("RGB", (20, 12), (9, 8, 7))] * 3, tmp_path, "png")
    images = benchmark.real_images(str(tmp_path), 3, 8, seed=0)
    assert [image.size for image in images] == [(8, 8)] * 3 and images[0].getpixel((0, 0)) == (9, 8, 7)
    with pytest.raises(ValueError, match="has 3 images; expected at least 4"):
        benchmark.real_images(str(tmp_path), 4, 8, seed=0)


def test_a_smoke_run_writes_a_record_that_renders_itself(tmp_path):
    threads = torch.get_num_threads()
    try:
        benchmark.main(["--effort", "smoke", "--results_dir", str(tmp_path), "--threads", "1"])
    finally:
        torch.set_num_threads(threads)
    (path,) = tmp_path.glob("*.json")
    record = json.loads(path.read_text())
    assert path.with_suffix(".md").read_text() == benchmark.render(record) + "\n"
    assert {row["candidate"] for row in record["pipeline"]} == {
        benchmark.PIL_MEMORY,
        benchmark.PIL_FOLDER,
        benchmark.MEMORY,
        benchmark.ROWS,
        benchmark.FOLDER,
    }
    assert {(row["workers"], row["threads"]) for row in record["pipeline"]} == {(0, 1), (2, 1)}
    targets = {row["candidate"]: row["target_tokens"] for row in record["masks"]}
    assert targets[benchmark.COLLATOR] == targets[benchmark.SAMPLER] == 9
    for part in ("masks", "augmentation", "pipeline"):
        for row in record[part]:
            held_against = benchmark.BESIDE.get(row["candidate"])
            assert (row["speedup"] is None) == (held_against is None)
    for row in record["step"]:
        assert 0 < row["share"] < 1
        # One round: the median is that round's own share.
        assert row["share"] == pytest.approx(row["input_s"] / (row["input_s"] + row["step_s"]))


def test_negative_workers_are_refused(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--workers", "-1"])
    assert "--workers is -1; expected 0 (none) or more" in capsys.readouterr().err
