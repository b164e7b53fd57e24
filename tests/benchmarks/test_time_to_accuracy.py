# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Time to accuracy: thresholds count as written, monitors do not count as training, finished runs are kept."""

import json
from types import SimpleNamespace

import pytest
import transformers.trainer
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import clocked_pretrain, time_to_accuracy
from benchmarks.time_to_accuracy import first_reached, render


def curve(*accuracies):
    return [
        {"step": 10 * i, "images": 80 * i, "seconds": 2.0 * i, "cpu_seconds": 3.0 * i, "knn_accuracy": accuracy}
        for i, accuracy in enumerate(accuracies)
    ]


# ---- thresholds ----


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 1))
def test_the_first_measurement_at_or_above_a_threshold_counts_and_no_other(accuracies, threshold):
    points = curve(*accuracies)
    found = first_reached(points, threshold)
    if found is None:
        assert max(accuracies) < threshold
    else:
        index = points.index(found)
        assert accuracies[index] >= threshold and all(value < threshold for value in accuracies[:index])


def record(*runs):
    for run in runs:
        run.setdefault("reached", [first_reached(run.get("curve", []), 0.2)])
    return {
        "commit": "0123456789",
        "versions": {"torch": "2", "transformers": "5"},
        "machine": {"processor": "a CPU", "cores": 2, "accelerator": "a GPU"},
        "options": {"recipe": "r.yaml", "jobs": 2, "threads": 1, "seed": 0, "device": "cpu"},
        "knn_steps": 10,
        "thresholds": [0.2],
        "runs": list(runs),
    }


def test_a_median_stands_only_where_every_seed_got_there():
    runs = [
        {"method": "I-JEPA", "seed": seed, "curve": curve(*values)}
        for seed, values in enumerate([(0.1, 0.2), (0.1, 0.1, 0.3), (0.1, 0.1, 0.1, 0.2)])
    ]
    assert "| 20.0 | I-JEPA | 3 of 3 | 3, 6, 9 | 6 | 4 | 160 |" in render(record(*runs))
    runs.append({"method": "I-JEPA", "seed": 3, "curve": curve(0.1, 0.19)})
    assert "| 20.0 | I-JEPA | 3 of 4 | 3, 6, 9, not reached | – | – | – |" in render(record(*runs))


def test_a_gpu_is_compared_by_the_clock_on_the_wall():
    shown = record({"method": "I-JEPA", "seed": 0, "curve": curve(0.1, 0.2)})
    shown["options"]["device"] = "cuda"
    assert "| 20.0 | I-JEPA | 1 of 1 | 2 | 2 | 3 | 80 |" in render(shown)


def test_a_failed_run_is_named_and_counts_neither_as_reached_nor_as_not():
    failed = {"method": "SparseJEPA", "seed": 1, "failed": "exit status 1", "reached": None}
    text = render(record({"method": "SparseJEPA", "seed": 0, "curve": curve(0.3)}, failed))
    assert "| 20.0 | SparseJEPA | 1 of 1 | 0 |" in text and "SparseJEPA, seed 1, failed: exit status 1" in text


# ---- the clock ----


def test_time_in_measurements_is_no_training_time(monkeypatch, tmp_path):
    now = {"seconds": 100.0, "cpu_seconds": 50.0}
    monkeypatch.setattr(clocked_pretrain.Clock, "_now", lambda self: dict(now))
    clock = clocked_pretrain.Clock()
    args = SimpleNamespace(
        output_dir=tmp_path, train_batch_size=8, gradient_accumulation_steps=3, world_size=2, knn_steps=2
    )

    def run(seconds, cpu_seconds):
        now["seconds"] += seconds
        now["cpu_seconds"] += cpu_seconds

    def measure_knn(step):
        run(1000.0, 2000.0)
        clock.on_log(args, SimpleNamespace(global_step=step), None, logs={"knn_accuracy": 0.25})

    clock.on_train_begin(args, SimpleNamespace(global_step=0), None)
    measure_knn(0)
    for step in range(1, 6):
        run(1.0, 1.5)
        clock.on_step_end(args, SimpleNamespace(global_step=step), None)
        if step in (2, 4, 5):
            measure_knn(step)
        clock.on_log(args, SimpleNamespace(global_step=step), None, logs={"loss": 1.0})
    points = json.loads((tmp_path / "knn_curve.json").read_text(encoding="utf-8"))
    assert [point["step"] for point in points] == [0, 2, 4, 5]
    assert [point["seconds"] for point in points] == [0.0, 2.0, 4.0, 5.0]
    assert [point["cpu_seconds"] for point in points] == [0.0, 3.0, 6.0, 7.5]
    assert [point["images"] for point in points] == [48 * step for step in (0, 2, 4, 5)]


def test_a_run_that_goes_on_from_a_checkpoint_has_no_known_time():
    with pytest.raises(ValueError, match="goes on from step 3.*Delete its folder"):
        clocked_pretrain.Clock().on_train_begin(None, SimpleNamespace(global_step=3), None)


# ---- the command ----


def test_a_smoke_run_writes_curves_and_is_not_run_again(runs_in_process, tmp_path, monkeypatch):
    monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", [*transformers.trainer.DEFAULT_CALLBACKS])
    words = ["--effort", "smoke", "--threads", "1", "--runs_dir", str(tmp_path / "runs")]
    words += ["--results_dir", str(tmp_path)]
    time_to_accuracy.main(words)
    path = tmp_path / "benchmark_time_to_accuracy_cpu_smoke.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    assert render(found) + "\n" == path.with_suffix(".md").read_text(encoding="utf-8")
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert [(run["method"], run["seed"]) for run in found["runs"]] == [("I-JEPA", 0), ("SparseJEPA", 0)]
    for run in found["runs"]:
        assert [point["step"] for point in run["curve"]] == [0, 2, 4]
        seconds = [point["seconds"] for point in run["curve"]]
        assert seconds[0] == 0.0 and seconds == sorted(set(seconds))
        assert run["run"]["options"].get("use_grouping", True) is (run["method"] == "SparseJEPA")
    assert str(tmp_path) not in path.read_text(encoding="utf-8")

    def fail(self, run, wanted):
        raise time_to_accuracy.PreTrainingFailed("not here")

    monkeypatch.setattr(time_to_accuracy.Runs, "_start", fail)
    time_to_accuracy.main(words)
    again = json.loads(path.read_text(encoding="utf-8"))
    assert again["runs"] == found["runs"], "finished runs are taken as they are"
    # With another interval between measurements they are other runs.
    time_to_accuracy.main([*words, "--knn_steps", "1"])
    assert [run["failed"] for run in json.loads(path.read_text(encoding="utf-8"))["runs"]] == ["not here"] * 2


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--thresholds", "20"], "expected accuracies in (0, 1]"), (["--repeats", "2"], "runs are repeated by --seeds")],
)
def test_impossible_flags_are_refused_before_anything_runs(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit):
        time_to_accuracy.main(["--effort", "smoke", "--results_dir", str(tmp_path), *words])
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_methods_differ_in_what_their_names_say_alone(tmp_path):
    runs = time_to_accuracy.Runs(time_to_accuracy.CONFIGS / "cifar100-cpu.yaml", [], tmp_path)
    plain, sparse = (
        runs.resolve(time_to_accuracy.Run(method, 0, own)) for method, own in time_to_accuracy.METHODS.items()
    )
    changed = {name for name in {*sparse, *plain} if plain.get(name) != sparse.get(name)}
    assert changed == {"use_grouping"}
