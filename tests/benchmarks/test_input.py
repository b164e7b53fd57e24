# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The input benchmark: both pipelines give the same pixels where nothing is random, and a record renders itself."""

import argparse
import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks import input as benchmark
from benchmarks.alternatives.pil_pipeline import MultiBlockMaskCollator, build_transform
from sparsejepa_hf.counter_rng import stream_keys, uniform
from sparsejepa_hf.data import BatchAugmentation, resize_to_square, to_rgb
from sparsejepa_hf.masking import MASK_STREAM, MultiBlockMaskSampler


MEAN, STD = (0.48, 0.45, 0.4), (0.25, 0.24, 0.26)


def pixels_of(images: list[Image.Image]) -> torch.Tensor:
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])


def keys(count: int) -> torch.Tensor:
    return stream_keys(0, 0, torch.arange(count), 2)


# ---- images ----


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("crop", ["none", "pad"])
def test_pipelines_agree_where_nothing_is_random(crop, flip):
    images = benchmark.generated_images(6, 24, seed=1)
    options = {"crop": crop, "crop_padding": 0, "horizontal_flip": flip}
    ours = BatchAugmentation(24, MEAN, STD, **options)(pixels_of(images), keys(6))
    transform = build_transform(24, MEAN, STD, **options)
    theirs = torch.stack([transform(image) for image in images])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


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


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_every_source_of_ours_holds_the_same_images(tmp_path, suffix):
    case = benchmark.Case(16, 2, 3, 7, "pad", 0.1, suffix, "vit-tiny", step_batch=1)
    options = argparse.Namespace(seed=0, device="cpu")
    sources = benchmark.Sources(case, benchmark.generated_images(7, 16, seed=5), tmp_path, options)
    files = sorted((tmp_path / "images").rglob("*." + suffix))
    expected = sorted(resize_to_square(to_rgb(path), 16).tobytes() for path in files)
    for dataset in sources.ours.values():
        examples = [dataset[index] for index in range(len(dataset))]
        assert sorted(example["pixel_values"].numpy().tobytes() for example in examples) == expected
        assert sorted(example["labels"] for example in examples) == [0, 0, 0, 0, 1, 1, 1]
    seen = {name: call() for name, call in sources.passes(0).items()}
    assert seen == dict.fromkeys([*sources.pil, *sources.ours], 6), "whole batches"


# ---- masks ----


@given(batch_size=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_the_collator_s_contexts_are_a_square_less_the_targets_cut_to_the_smallest(batch_size, seed):
    torch.manual_seed(seed)
    context, target = MultiBlockMaskCollator((8, 8), 4, 3).sample(batch_size)
    assert context.dtype == target.dtype == torch.int64 and target.shape == (batch_size, 4, 9)
    assert context.shape[1] >= 1 and (context.diff(dim=-1) > 0).all() and (target.diff(dim=-1) > 0).all()
    for one_context, blocks in zip(context, target, strict=True):
        assert not torch.isin(one_context, blocks).any() and one_context.max() < 64
        for block in blocks:
            y, x = block // 8, block % 8
            assert y.max() - y.min() == x.max() - x.min() == 2, "nine patches in a square of three"


def test_every_place_of_a_block_occurs():
    torch.manual_seed(0)
    corners = MultiBlockMaskCollator((6, 5), 1, 2).sample(600)[1][:, 0, 0].tolist()
    assert set(corners) == {y * 5 + x for y, x in itertools.product(range(5), range(4))}


# Image 319273 of step 0 has a patch within the context that ties with one beyond it.
@pytest.mark.parametrize(("grid_size", "first_slot", "ties"), [((8, 8), 0, 0), ((8, 8), 319_200, 1), ((14, 14), 0, 0)])
def test_our_contexts_are_the_first_free_patches_in_a_random_order(grid_size, first_slot, ties):
    sampler = MultiBlockMaskSampler(grid_size)
    count = sampler.num_context_patches
    context, target = sampler(100, 0, first_slot=first_slot)
    keys = stream_keys(0, 0, torch.arange(first_slot, first_slot + 100), MASK_STREAM)
    order = uniform(keys, sampler.num_patches).scatter(1, target.flatten(1), 2.0)
    values = order.sort(dim=1).values
    assert (values[:, count - 1] == values[:, count]).sum() == ties
    first = order.topk(count, dim=1, largest=False, sorted=False).indices
    assert torch.equal(context, first.sort(dim=1).values)


# ---- the command ----


def test_the_fastest_rate_of_fewer_threads_counts_too():
    def row(name, rate, speedup=None):
        return {"candidate": name, "images_per_s": rate, "speedup": speedup}

    before = [row(benchmark.PIL_MEMORY, 600.0), row(benchmark.PIL_FOLDER, 100.0)]
    rows = [row(benchmark.PIL_MEMORY, 300.0), row(benchmark.PIL_FOLDER, 200.0)]
    rows += [row(benchmark.MEMORY, 1200.0, 4.0), row(benchmark.FOLDER, 1000.0, 5.5)]
    benchmark.compare_with_the_fastest(rows, before)
    assert [found["speedup"] for found in rows] == [None, None, 2.0, 5.0]


def test_a_smoke_run_writes_a_record_that_renders_itself(tmp_path):
    threads = torch.get_num_threads()
    try:
        benchmark.main(["--effort", "smoke", "--results_dir", str(tmp_path), "--threads", "1"])
    finally:
        torch.set_num_threads(threads)
    (path,) = tmp_path.glob("*.json")
    record = json.loads(path.read_text())
    assert path.with_suffix(".md").read_text() == benchmark.render(record) + "\n"
    assert {(row["workers"], row["threads"]) for row in record["pipeline"]} == {(0, 1), (2, 1)}
    targets = {row["candidate"]: row["target_tokens"] for row in record["masks"]}
    assert targets[benchmark.COLLATOR] == targets[benchmark.SAMPLER] == 9
    for row in record["masks"] + record["augmentation"] + record["pipeline"]:
        assert (row["speedup"] is None) == (row["candidate"] not in benchmark.BESIDE)
    for row in record["step"]:
        # One round: the median is that round's own share.
        assert row["share"] == pytest.approx(row["input_s"] / (row["input_s"] + row["step_s"]))
