# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Reliability: growth is told from noise and from filling up, losses are counted, an early end is told."""

import subprocess
import sys

import numpy as np
import pytest

from benchmarks import reliability


def looks(values):
    return [{"seconds": 3600.0 * i / 100, "resident": value} for i, value in enumerate(values)]


def test_growth_is_the_slope_of_the_last_two_thirds():
    found = reliability.slope(looks(5.0 + 40.0 * np.arange(90) / 100), "resident")
    assert found["per_hour"] == pytest.approx(40.0) and found["standard_error"] == pytest.approx(0.0, abs=1e-6)
    # What fills up at the beginning and then stays does not grow.
    filled = reliability.slope(looks(np.minimum(np.arange(90), 20.0)), "resident")
    assert filled["per_hour"] == 0.0 and filled["second_third"] == filled["last_third"] == 20.0


def test_every_fault_that_was_not_survived_counts_as_lost():
    faults = [
        {"kind": "fuzz", "fault": "images", "injected": 900, "held": 900},
        {"kind": "fuzz", "fault": "images", "injected": 100, "held": 98},
        {"kind": "checkpoints", "fault": "a file cut short", "injected": 13, "held": 13, "seconds": 0.25},
    ]
    tests = {"passed": 3, "failed": 1, "error": 0, "skipped": 0, "seconds": 60.0, "names_failed": ["test_x.py::test"]}
    flat = {"per_hour": 0.0, "standard_error": 0.0, "second_third": 1.0, "last_third": 1.0}
    soak = {"minutes": 30, "steps": 900, "saves": 9, "evaluations": 4, "exit_code": 143}
    soak |= {"slopes": dict.fromkeys(("resident", "descriptors", "threads", "processes"), flat)}
    machine = {"processor": "a CPU", "cores": 2, "accelerator": None}
    record = {"faults": faults, "tests": tests, "soak": {**soak, "results_file_at_the_end": False}}
    record |= {"machine": machine, "versions": {"torch": "2", "transformers": "5"}, "commit": "0" * 40}
    tests = {**tests, "failed": 0, "names_failed": []}
    record["again"] = [{"commit": "1" * 40, "files": ["test_x.py"], "tests": tests}]
    text = reliability.render(record | {"options": {"device": "cpu", "threads": 1, "seed": 0}})
    assert "run again at commit 1111111: `test_x.py`: 3 passed, 0 failed" in text
    assert "| fuzz | images | 1,000 | 998 | – |" in text
    assert "| all but soak |  | 1,013 | 1,011 | lost 2 |" in text and "failed: `test_x.py::test`" in text
    assert text.index("a file cut short") < text.index("images") and "seconds 0.25" in text


def test_a_run_that_ends_before_the_watch_is_an_error(tmp_path):
    run = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(RuntimeError, match="ended by itself with 3 before its first checkpoint"):
        reliability._watch(run, reliability.PLANS["smoke"], tmp_path)
