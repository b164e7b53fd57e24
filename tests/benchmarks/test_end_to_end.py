# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What a run costs beyond its steps is counted right."""

import json

import pytest

from benchmarks import end_to_end


def test_parts_are_counted_once_and_apart_from_what_is_between_them(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(end_to_end, "timer", lambda: now[0])
    parts = end_to_end.Parts()

    def pass_time(seconds):
        now[0] += seconds

    inner = parts.watched("inner", pass_time)

    def outer_call():
        pass_time(1.0)
        inner(5.0)

    outer = parts.watched("outer", outer_call)
    outer()
    pass_time(100.0)
    inner(7.0)
    outer()
    assert parts.take() == {"outer": 12.0, "inner": 7.0}
    assert parts.take() == {}


def test_an_error_in_a_part_is_passed_on_and_closes_it():
    parts = end_to_end.Parts()

    def fail():
        raise KeyError("here")

    with pytest.raises(KeyError, match="here"):
        parts.watched("failing", fail)()
    parts.watched("next", lambda: None)()
    assert set(parts.take()) == {"failing", "next"}


def test_costs_of_a_record_written_by_hand():
    case = {
        "bare": {"median_s": 2.0},
        "watched_bare_s": 2.5,
        "excess": 0.10,
        "log_s": 4.0,
        "logging_steps": 50,
        "knn_s": 30.0,
        "knn_steps": 300,
        "parts": {
            "forward": {"run_s": 1.5, "bare_s": 1.0},
            "optimizer": {"run_s": 0.06, "bare_s": 0.02},
            "data loading": {"run_s": 0.10},
            "augmentation": {"run_s": 0.06},
            "masks": {"run_s": 0.02},
        },
    }
    assert end_to_end.costs(case) == {
        "whole": pytest.approx(0.10 + 4.0 / 50 / 2.0 + 0.1 / 2.0),
        "added": pytest.approx((0.04 + 0.10 + 0.06 + 0.02 + 0.1) / 2.5),
        "added_without_input": pytest.approx((0.04 + 0.02 + 0.1) / 2.5),
        "knn": pytest.approx(0.1 / 2.0),
    }


def test_the_bare_step_runs_at_the_run_s_batch_and_token_counts(make_trainer):
    trainer = make_trainer(num_target_blocks=2, num_target_patches=4, num_context_patches=5)
    pixel_values, context_mask, target_mask = end_to_end.bare_step(trainer).args
    assert pixel_values.shape == (8, 3, 16, 16)
    assert context_mask.shape == (8, 5) and target_mask.shape == (8, 2, 4)


def test_a_smoke_run_writes_a_record_that_renders_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    end_to_end.main(["--effort", "smoke", "--threads", "1", "--results_dir", str(tmp_path)])
    path = tmp_path / "benchmark_end_to_end_cpu_smoke.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    assert end_to_end.render(record) + "\n" == path.with_suffix(".md").read_text(encoding="utf-8")
    (case,) = record["cases"]
    assert case["run"]["n"] == case["bare"]["n"] == 2
    # Every part has passed some time, on the sides where it is.
    shared = {"forward", "backward", "optimizer", end_to_end.CALLBACKS, end_to_end.REST}
    run = shared | {end_to_end.LOADING, end_to_end.AUGMENTATION, "masks", end_to_end.LOGGING}
    assert {name for name, part in case["parts"].items() if part.get("run_s", 0.0) > 0} == run
    assert {name for name, part in case["parts"].items() if part.get("bare_s", 0.0) > 0} == shared
    assert case["patches"] == 64 and case["batch"] == 8
    assert case["knn_s"] > 0 and case["knn_examples"] == 100 and case["knn_steps"] == 3125
