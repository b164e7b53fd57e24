# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Scaling: exponents are fitted right, series vary what they say, and data is read to its end."""

import argparse
import json

import numpy as np
import pytest
import torch

from benchmarks import scaling
from benchmarks.harness.resources import in_fresh_process
from sparsejepa_hf import MultiBlockMaskSampler
from sparsejepa_hf.data import build_image_dataset, load_image_dataset


OPTIONS = argparse.Namespace(device="cpu", seed=0, repeats=1, threads=1, effort="short")


def test_a_power_law_gives_its_exponent_and_two_points_no_error():
    fitted = scaling.fit_exponent([1, 3, 10], [5.0 * x**1.5 for x in (1, 3, 10)])
    assert fitted["exponent"] == pytest.approx(1.5) and fitted["standard_error"] == pytest.approx(0.0, abs=1e-6)
    assert (fitted["from"], fitted["to"]) == (1, 10)
    assert scaling.fit_exponent([1, 4], [3, 6]) == {
        "exponent": pytest.approx(0.5),
        "standard_error": None,
        "from": 1,
        "to": 4,
    }


@pytest.mark.parametrize("effort", ["smoke", "short", "full"])
def test_every_planned_value_gives_a_model_that_is_possible(effort):
    planned = scaling.PLANS[effort]
    for name, values in planned["series"].items():
        for value in values if name != "batch" else ():
            config = scaling.make_config(planned["model"] | {name: value})
            assert getattr(config, name) == value and MultiBlockMaskSampler(config.grid_size).num_context_patches
    assert planned["rows"] == sorted(planned["rows"])


@pytest.mark.parametrize("name", ["batch", "image_size", "num_latents"])
def test_memory_grows_with_what_it_must_grow_with(name):
    """Bytes of activations are counted, not timed: twice the batch takes twice as much of them."""
    values = {"batch": [4, 8, 16], "image_size": [16, 32], "num_latents": [16, 512]}[name]
    series = scaling.measure_series(name, values, scaling.PLANS["smoke"], OPTIONS)
    peaks = [point["peak_bytes"] for point in series["points"]]
    assert peaks == sorted(peaks) and peaks[0] < peaks[-1]
    if name == "batch":
        assert series["memory_exponent"]["exponent"] == pytest.approx(1.0, abs=0.1)
    if name == "image_size":
        assert series["varied"] == "patches" and [p["value"] for p in series["points"]] == [16, 64]


def test_written_rows_are_read_back_pixel_for_pixel_streamed_and_in_memory(tmp_path):
    scaling.write_rows(tmp_path, 70, seed=3)
    expected = np.random.default_rng(3).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8).transpose(0, 3, 1, 2)
    cached = build_image_dataset(load_image_dataset(str(tmp_path), "train"), 32)
    stream = load_image_dataset(str(tmp_path), "train", streaming=True)
    streamed = list(build_image_dataset(stream, 32, shuffle_buffer_size=0))
    for images in (cached.pixel_values, torch.stack([example["pixel_values"] for example in streamed])):
        assert np.array_equal(images.numpy(), expected)


@pytest.mark.slow
def test_a_process_that_reads_every_row_into_memory_grows_by_their_bytes(tmp_path):
    for name, rows in (("warm", 100), ("all", 8000)):
        scaling.write_rows(tmp_path / name, rows, seed=0)
    row = in_fresh_process(scaling._read, scaling.IN_MEMORY, tmp_path / "all", 8000, tmp_path / "warm")
    assert row["rows"] == 8000 and row["grown_bytes"] > row["pixel_bytes"] == 8000 * 3 * 32 * 32


@pytest.mark.slow
def test_a_smoke_run_writes_a_record_that_renders_as_it_was_written(tmp_path):
    scaling.main(["--effort", "smoke", "--threads", "1", "--results_dir", str(tmp_path)])
    path = tmp_path / "benchmark_scaling_cpu_smoke.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    assert scaling.render(record) + "\n" == path.with_suffix(".md").read_text(encoding="utf-8")
    assert [series["varied"] for series in record["series"]] == ["batch", "patches"]
    assert {row["kind"] for row in record["data"]} == {"streamed", "streamed, a file at a time", "in memory"}
    (row,) = record["processes"]
    assert (row["kind"], row["processes"], row["batch_each"]) == ("weak", 2, 4)
    assert row["images_per_second"] == pytest.approx(2 * 4 / row["median_s"])
