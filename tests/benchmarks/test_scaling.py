# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Scaling: exponents are fitted right, series vary what they say, and data is read to its end."""

import argparse
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import scaling
from sparsejepa_hf.data import build_image_dataset, load_image_dataset


OPTIONS = argparse.Namespace(device="cpu", seed=0, repeats=1, threads=1, effort="short")


# ---- exponents ----


@given(st.floats(-3, 3), st.floats(0.01, 100), st.lists(st.integers(1, 10**6), min_size=3, max_size=8, unique=True))
def test_a_power_law_gives_its_exponent_without_error(exponent, factor, x):
    fitted = scaling.fit_exponent(x, [factor * value**exponent for value in x])
    assert fitted["exponent"] == pytest.approx(exponent, abs=1e-6)
    assert fitted["standard_error"] == pytest.approx(0.0, abs=1e-5)
    assert (fitted["from"], fitted["to"]) == (min(x), max(x))


@given(st.lists(st.floats(0.1, 100), min_size=4, max_size=8), st.integers(0, 100))
def test_slope_and_error_are_those_of_numpy_s_least_squares(y, seed):
    x = np.random.default_rng(seed).permutation(1000)[: len(y)] + 1.0
    (slope, _), covariance = np.polyfit(np.log(x), np.log(y), 1, cov=True)
    fitted = scaling.fit_exponent(list(x), y)
    assert fitted["exponent"] == pytest.approx(slope, rel=1e-6, abs=1e-9)
    assert fitted["standard_error"] == pytest.approx(math.sqrt(covariance[0, 0]), rel=1e-5, abs=1e-7)


def test_two_points_have_an_exponent_but_no_error():
    fitted = scaling.fit_exponent([1, 4], [3, 6])
    assert fitted == {"exponent": pytest.approx(0.5), "standard_error": None, "from": 1, "to": 4}


@pytest.mark.parametrize(
    ("x", "y"), [([1], [1]), ([2, 2], [1, 3]), ([1, 2], [0, 1]), ([1, 2], [1]), ([-1, 2], [1, 1])]
)
def test_what_has_no_exponent_is_refused(x, y):
    with pytest.raises(ValueError, match="expected two or more different positive x"):
        scaling.fit_exponent(x, y)


# ---- series ----


@pytest.mark.parametrize("effort", ["smoke", "short", "full"])
def test_every_planned_value_gives_a_model_that_exists(effort):
    planned = scaling.plan(effort)
    for name, values in planned["series"].items():
        for value in values:
            varied = {} if name == "batch" else {name: value}
            step = scaling.make_step(planned["model"], 1, "cpu", 0, **varied)
            assert name == "batch" or getattr(step.func.model.config, name) == value
    assert list(planned["rows"]) == sorted(planned["rows"])


@pytest.mark.parametrize("name", ["batch", "image_size", "num_latents"])
def test_memory_grows_with_what_it_must_grow_with(name):
    """Bytes of activations are counted, not timed: twice the batch takes twice as much of them."""
    planned = {**scaling.plan("smoke"), "held_batch": 4}
    values = {"batch": [4, 8, 16], "image_size": [16, 32], "num_latents": [16, 512]}[name]
    series = scaling.measure_series(name, values, planned, OPTIONS)
    peaks = [point["peak_bytes"] for point in series["points"]]
    assert peaks == sorted(peaks) and peaks[0] < peaks[-1]
    if name == "batch":
        assert series["memory_exponent"]["exponent"] == pytest.approx(1.0, abs=0.1)
    if name == "image_size":
        assert series["varied"] == "patches" and [p["value"] for p in series["points"]] == [16, 64]


def test_steps_from_the_same_seed_are_the_same():
    losses = [scaling.make_step(scaling._MINIMAL, 4, "cpu", 3, variational=False, kl_weight=0.0)() for _ in range(2)]
    assert torch.equal(*losses)


# ---- data sets ----


def test_written_rows_are_read_back_pixel_for_pixel_streamed_and_in_memory(tmp_path):
    scaling.write_rows(tmp_path / "train.parquet", 70, seed=3)
    expected = np.random.default_rng(3).integers(0, 256, (70, 32, 32, 3), dtype=np.uint8).transpose(0, 3, 1, 2)
    cached = build_image_dataset(load_image_dataset(str(tmp_path), "train"), 32)
    stream = load_image_dataset(str(tmp_path), "train", streaming=True)
    streamed = list(build_image_dataset(stream, 32, shuffle_buffer_size=0))
    for images in (cached.pixel_values, torch.stack([example["pixel_values"] for example in streamed])):
        assert np.array_equal(images.numpy(), expected)


@pytest.mark.slow
def test_processes_of_their_own_read_every_row_and_images_in_memory_take_their_bytes():
    rows = scaling.measure_data({"rows": [200, 8000]}, OPTIONS)
    kinds = ["streamed", "streamed, a file at a time", "in memory"]
    assert [(row["kind"], row["rows"]) for row in rows] == [(kind, count) for count in (200, 8000) for kind in kinds]
    assert rows[-1]["pixel_bytes"] == 8000 * 3 * 32 * 32
    assert rows[-1]["grown_bytes"] > rows[-1]["pixel_bytes"]


# ---- processes ----


def test_a_process_that_fails_is_an_error_with_its_last_lines():
    with pytest.raises(RuntimeError, match="status 1.*\n.*no module of this name|No module named"):
        scaling._run([scaling.sys.executable, "-c", "import no_module_of_this_name"], {})


@pytest.mark.slow
def test_two_processes_share_a_batch_or_have_one_each():
    planned = {**scaling.plan("smoke"), "held_batch": 4}
    rows = scaling.measure_processes(planned, SimpleNamespace(**{**vars(OPTIONS), "threads": 1}))
    assert [(row["kind"], row["processes"], row["batch_each"]) for row in rows] == [
        ("one process", 1, 4),
        ("strong", 2, 2),
        ("weak", 2, 4),
    ]
    for row in rows:
        assert row["images_per_second"] == pytest.approx(row["processes"] * row["batch_each"] / row["median_s"])


# ---- the command ----


@pytest.mark.slow
def test_a_smoke_run_writes_a_record_that_renders_as_it_was_written(tmp_path):
    scaling.main(["--effort", "smoke", "--threads", "1", "--results_dir", str(tmp_path)])
    path = tmp_path / "benchmark_scaling_cpu_smoke.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    assert scaling.render(record) + "\n" == path.with_suffix(".md").read_text(encoding="utf-8")
    assert [series["varied"] for series in record["series"]] == ["batch", "patches"]
    assert {row["kind"] for row in record["data"]} == {"streamed", "streamed, a file at a time", "in memory"}
    assert not {"worker", "reader"} & record["options"].keys()
