# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What is measured is what it says: turns, counts, bytes, operations."""

import json
import os
import time

import pytest
import torch
import torch.nn.functional as F

from benchmarks.harness import records, resources, timing


def test_candidates_take_turns_and_the_first_place_rotates():
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = timing.interleaved(calls, repeats=3, warmup=2)
    assert "".join(order) == "abcabc" + "abc" + "bca" + "cab"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_slower_call_takes_longer_by_what_it_sleeps():
    seconds = timing.interleaved({"idle": lambda: None, "sleeps": lambda: time.sleep(0.05)}, repeats=2)
    assert min(seconds["sleeps"]) >= 0.05


def test_short_calls_are_called_often_and_their_mean_counts(monkeypatch):
    now, calls = [0.0], []

    def call():
        # The first after the warm-up says how many fill the time; the rest run hot.
        now[0] += 0.01 if len(calls) < 2 else 0.002
        calls.append(None)

    monkeypatch.setattr(timing, "timer", lambda: now[0])
    assert timing.interleaved({"a": call}, repeats=3, min_seconds=0.05)["a"] == pytest.approx([0.002] * 3)
    assert len(calls) == 1 + 1 + 3 * 5


def test_a_speedup_pairs_the_times_of_a_round():
    """A round in which the machine was slow for both does not count for either."""
    assert timing.speedup([2.0, 20.0, 4.0], [1.0, 10.0, 1.0]) == 2.0
    assert timing.summary([3.0, 1.0, 2.0]) == {"median_s": 2.0, "fastest_s": 1.0, "slowest_s": 3.0, "n": 3}


def test_the_peak_is_that_of_what_is_alive_at_a_time_and_was_not_before():
    before = torch.empty(5_000_000)

    def call() -> None:
        first = before[:1_000_000].clone()  # 4 MB
        second = torch.empty(2_000_000)  # 12 MB with the first
        del first, second
        torch.empty(2_500_000)  # 10 MB

    assert resources.peak_tensor_bytes(call) == pytest.approx(12e6, rel=0.001)


def test_the_process_grows_by_what_it_touches():
    resources.reset_peak_resident()
    before = resources.resident_bytes()
    torch.ones(50_000_000)
    assert resources.resident_bytes(peak=True) - before == pytest.approx(200e6, rel=0.1)


def test_a_fresh_process_is_another_one():
    assert resources.in_fresh_process(os.getpid) != os.getpid()


def test_products_and_attention_are_counted_forward_and_backward():
    layer, inputs = torch.nn.Linear(16, 8), torch.randn(3, 5, 16)

    def call() -> None:
        outputs = layer(inputs)
        F.scaled_dot_product_attention(outputs, outputs, outputs).sum().backward()

    linear, attention = 2 * 15 * 16 * 8, 3 * 2 * (2 * 5 * 5 * 8)
    # Backward takes twice as much, except that the inputs of the layer need no gradient.
    assert resources.counted_flops(call) == 2 * linear + 3 * attention


def test_the_machine_s_peak_is_the_best_of_its_products(monkeypatch):
    monkeypatch.setattr(resources, "_PRODUCTS", {"cpu": ((1, 1, 1), (512, 512, 512))})
    peak = resources.matmul_peak("fp32", seconds=0.01)
    assert peak["flops"] > 0 and (peak["rows"], peak["inner"], peak["columns"]) == (512, 512, 512)


@pytest.mark.parametrize("flags", [["--device", "mps"], ["--repeats", "0"], ["--threads", "0"]], ids=" ".join)
def test_flags_that_would_measure_nothing_true_are_refused(flags):
    with pytest.raises(ValueError, match=flags[0]):
        records.start(records.parser("Title").parse_args(flags))


def test_a_short_run_does_not_replace_the_record_of_a_full_one(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "render", lambda record: "table")
    paths = []
    for effort in ("full", "short"):
        options = records.parser("Title").parse_args(["--results_dir", str(tmp_path), "--effort", effort])
        options.threads = torch.get_num_threads()
        paths.append(records.write("step", options, records.start(options), {"cases": []}))
    assert [path.name for path in paths] == ["benchmark_step_cpu.json", "benchmark_step_cpu_short.json"]
    record = json.loads(paths[0].read_text())
    assert record["benchmark"] == "step" and record["options"]["effort"] == "full"
    assert {"commit", "versions", "machine"} <= record.keys()
    assert str(tmp_path) not in paths[0].read_text()
