# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What is measured is what it says: turns, counts, bytes, operations."""

import json
import time

import pytest
import torch

from benchmarks.harness import memory, records
from benchmarks.harness.flops import counted_flops, step_flops
from benchmarks.harness.machine import matmul_peak
from benchmarks.harness.timing import interleaved, speedup, summary
from sparsejepa_hf import SparseJEPAForPreTraining


class TestTiming:
    def test_candidates_take_turns_and_the_first_place_rotates(self):
        order: list[str] = []
        calls = {name: lambda name=name: order.append(name) for name in "abc"}
        seconds = interleaved(calls, repeats=3, warmup=2)
        assert "".join(order) == "abcabc" + "abc" + "bca" + "cab"
        assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3, "c": 3}

    def test_a_slower_call_takes_longer_by_what_it_sleeps(self):
        seconds = interleaved({"idle": lambda: None, "sleeps": lambda: time.sleep(0.05)}, repeats=3)
        assert min(seconds["sleeps"]) >= 0.05

    def test_short_calls_are_called_often_and_their_mean_counts(self, monkeypatch):
        now, calls = [0.0], []

        def call():
            # The first after the warm-up says how many fill the time; the rest run hot.
            now[0] += 0.01 if len(calls) < 2 else 0.002
            calls.append(None)

        monkeypatch.setattr(time, "perf_counter", lambda: now[0])
        assert interleaved({"a": call}, repeats=3, min_seconds=0.05)["a"] == pytest.approx([0.002] * 3)
        assert len(calls) == 1 + 1 + 3 * 5

    def test_a_speedup_pairs_the_times_of_a_round(self):
        """A round in which the machine was slow for both does not count for either."""
        assert speedup([2.0, 20.0, 4.0], [1.0, 10.0, 1.0]) == 2.0
        assert summary([3.0, 1.0, 2.0]) == {"median_s": 2.0, "fastest_s": 1.0, "slowest_s": 3.0, "n": 3}

    def test_nothing_to_time_is_an_error(self):
        with pytest.raises(ValueError, match="0 candidates"):
            interleaved({}, repeats=1)
        with pytest.raises(ValueError, match="0 repeats"):
            interleaved({"a": lambda: None}, repeats=0)


class TestMemory:
    def test_the_peak_is_that_of_what_is_alive_at_a_time(self):
        def call() -> None:
            first = torch.empty(1_000_000)  # 4 MB
            second = torch.empty(2_000_000)  # 12 MB with the first
            del first, second
            torch.empty(2_500_000)  # 10 MB

        assert memory.peak_tensor_bytes(call) == pytest.approx(12e6, rel=0.001)

    def test_tensors_from_before_do_not_count(self):
        before = torch.empty(5_000_000)
        assert memory.peak_tensor_bytes(lambda: before[:10].clone()) < 1e4

    def test_the_process_grows_by_what_it_touches(self):
        memory.reset_peak_resident()
        before = memory.peak_resident_bytes()
        torch.ones(50_000_000)
        assert memory.peak_resident_bytes() - before == pytest.approx(200e6, rel=0.1)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"use_grouping": False},
        {"latent_residual": True, "variational": False},
        {"predictor_num_hidden_layers": 1, "image_size": [24, 40], "patch_size": [4, 8]},
    ],
    ids=["SparseJEPA", "I-JEPA", "residual", "oblong"],
)
def test_the_formula_counts_what_the_counter_counts(make_config, overrides):
    config = make_config(**overrides)
    model = SparseJEPAForPreTraining(config).train()
    batch, patches = 3, config.grid_size[0] * config.grid_size[1]
    context_mask = torch.arange(7).expand(batch, -1)
    target_mask = torch.arange(patches - 8, patches).view(2, 4).expand(batch, -1, -1)
    images = torch.randn(batch, 3, *config.image_sides)
    formula = step_flops(config, 7, 2, 4)
    assert counted_flops(lambda: model(images, context_mask, target_mask).loss.backward()) == batch * formula["total"]
    assert formula["total"] == sum(count for part, count in formula.items() if part != "total")


def test_operations_of_another_predictor_are_not_made_up(make_config):
    with pytest.raises(ValueError, match="'mlp'"):
        step_flops(make_config(predictor_type="mlp"), 7, 2, 4)


def test_the_machines_peak_is_the_best_of_its_products():
    peak = matmul_peak("fp32", seconds=0.01)
    assert peak["flops"] > 0
    assert {"rows", "inner", "columns"} <= peak.keys()


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
