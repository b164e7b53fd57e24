# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Time to accuracy: thresholds count as written, monitors do not count as training, finished runs are kept."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import time_to_accuracy
from benchmarks.time_to_accuracy import ClockedMonitor, first_reached, render
from sparsejepa_hf.training import monitors


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


def test_an_accuracy_equal_to_the_threshold_reaches_it_and_a_later_fall_changes_nothing():
    assert first_reached(curve(0.1, 0.2, 0.05), 0.2)["step"] == 10
    assert first_reached(curve(0.1, 0.19), 0.2) is None


def record(runs, thresholds=(0.2,)):
    for run in runs:
        run.setdefault("reached", [first_reached(run.get("curve", []), t) for t in thresholds])
    machine = {"processor": "a CPU", "cores": 2, "accelerator": None}
    return {
        "benchmark": "time_to_accuracy",
        "commit": "0123456789",
        "versions": {"torch": "2", "transformers": "5"},
        "machine": machine,
        "options": {"recipe": "r.yaml", "jobs": 2, "threads": 1, "seed": 0, "device": "cpu"},
        "knn_steps": 10,
        "thresholds": list(thresholds),
        "runs": runs,
    }


def test_a_median_stands_only_where_every_seed_got_there():
    runs = [
        {"method": "I-JEPA", "seed": seed, "curve": curve(*values)}
        for seed, values in enumerate([(0.1, 0.2), (0.1, 0.1, 0.3), (0.1, 0.1, 0.1, 0.2)])
    ]
    assert "| 20.0 | I-JEPA | 3 of 3 | 3, 6, 9 | 6 | 4 | 160 |" in render(record(runs))
    runs.append({"method": "I-JEPA", "seed": 3, "curve": curve(0.1, 0.19)})
    assert "| 20.0 | I-JEPA | 3 of 4 | 3, 6, 9, not reached | – | – | – |" in render(record(runs))


def test_a_gpu_is_compared_by_the_clock_on_the_wall():
    shown = record([{"method": "I-JEPA", "seed": 0, "curve": curve(0.1, 0.2)}])
    shown["options"]["device"], shown["machine"]["accelerator"] = "cuda", "a GPU"
    assert "| 20.0 | I-JEPA | 1 of 1 | 2 | 2 | 3 | 80 |" in render(shown)


def test_a_failed_run_is_named_and_counts_neither_as_reached_nor_as_not():
    text = render(
        record(
            [
                {"method": "SparseJEPA", "seed": 0, "curve": curve(0.3)},
                {"method": "SparseJEPA", "seed": 1, "failed": "exit status 1", "reached": None},
            ]
        )
    )
    assert "| 20.0 | SparseJEPA | 1 of 1 | 0 |" in text and "SparseJEPA, seed 1, failed: exit status 1" in text


# ---- clocks ----


class Clock:
    """Seconds and CPU seconds that pass only when told to."""

    def __init__(self, monkeypatch):
        self.now = {"seconds": 100.0, "cpu_seconds": 50.0}
        monkeypatch.setattr(time_to_accuracy, "_clocks", lambda: dict(self.now))

    def run(self, seconds, cpu_seconds):
        self.now["seconds"] += seconds
        self.now["cpu_seconds"] += cpu_seconds


@pytest.fixture
def monitored(monkeypatch, tmp_path):
    """A monitor whose every measurement takes 1000 seconds."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr(monitors, "labelled_images", lambda *args: (None, None))
    logged = []
    throughput = monitors.Throughput()
    monitor = ClockedMonitor(tmp_path / "curve.json", None, None, None, logged.append, throughput)

    def measure(self, args, model):
        clock.run(1000.0, 2000.0)
        self._log({"knn_accuracy": 0.25})

    monkeypatch.setattr(monitors.KNNMonitor, "_measure", measure)
    return monitor, clock, logged, tmp_path / "curve.json"


ARGUMENTS = SimpleNamespace(
    knn_steps=2, knn_max_examples=4, train_batch_size=8, gradient_accumulation_steps=3, world_size=2
)


def test_time_in_measurements_is_no_training_time(monitored):
    monitor, clock, logged, path = monitored
    control = SimpleNamespace(should_log=False)
    monitor.on_train_begin(ARGUMENTS, SimpleNamespace(global_step=0, max_steps=5), control, model=None)
    for step in range(1, 6):
        clock.run(1.0, 1.5)
        monitor.on_step_end(ARGUMENTS, SimpleNamespace(global_step=step, max_steps=5), control, model=None)
    points = json.loads(path.read_text(encoding="utf-8"))
    assert [point["step"] for point in points] == [0, 2, 4, 5]
    assert [point["seconds"] for point in points] == [0.0, 2.0, 4.0, 5.0]
    assert [point["cpu_seconds"] for point in points] == [0.0, 3.0, 6.0, 7.5]
    assert [point["images"] for point in points] == [48 * step for step in (0, 2, 4, 5)]
    assert logged == [{"knn_accuracy": 0.25}] * 4, "the run's own log has them too"


def test_a_run_that_goes_on_from_a_checkpoint_has_no_known_time(monitored):
    monitor, *_ = monitored
    with pytest.raises(ValueError, match="goes on from step 3.*Delete its folder"):
        monitor.on_train_begin(ARGUMENTS, SimpleNamespace(global_step=3, max_steps=5), None, model=None)


# ---- the command ----


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smoke")
    words = ["--effort", "smoke", "--threads", "1", "--results_dir", str(folder), "--runs_dir", str(folder / "runs")]
    time_to_accuracy.main(words)
    return folder, words


@pytest.mark.slow
def test_a_smoke_run_writes_curves_and_a_record_that_renders_as_it_was_written(smoke):
    folder, _ = smoke
    path = folder / "benchmark_time_to_accuracy_cpu_smoke.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    assert render(found) + "\n" == path.with_suffix(".md").read_text(encoding="utf-8")
    assert [(run["method"], run["seed"]) for run in found["runs"]] == [("I-JEPA", 0), ("SparseJEPA", 0)]
    for run in found["runs"]:
        assert [point["step"] for point in run["curve"]] == [0, 2, 4]
        seconds = [point["seconds"] for point in run["curve"]]
        assert seconds[0] == 0.0 and seconds == sorted(set(seconds))
        assert run["run"]["options"].get("use_grouping", True) is (run["method"] == "SparseJEPA")
    assert str(folder) not in path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_finished_runs_are_not_run_again_and_another_interval_is_another_run(smoke, monkeypatch):
    folder, words = smoke
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").glob("*/*/knn_curve.json")}
    started = []
    monkeypatch.setattr(time_to_accuracy.Runs, "_start", lambda self, run, wanted: started.append(run) or fail())

    def fail():
        raise time_to_accuracy.PreTrainingFailed("not here")

    time_to_accuracy.main(words)
    assert started == [] and len(before) == 2
    assert before == {path: path.stat().st_mtime_ns for path in before}
    time_to_accuracy.main([*words, "--knn_steps", "1", "--results_dir", str(folder / "other")])
    # Started together, in either order.
    assert sorted(run.method for run in started) == ["I-JEPA", "SparseJEPA"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--thresholds", "20"], "expected accuracies in (0, 1]"),
        (["--knn_steps", "-1"], "at least 1 each"),
        (["--recipe", "none.yaml"], "expected a YAML file"),
    ],
)
def test_impossible_flags_are_refused_before_anything_runs(tmp_path, capsys, words, message):
    with pytest.raises(SystemExit):
        time_to_accuracy.main(["--effort", "smoke", "--results_dir", str(tmp_path), *words])
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_recipe_of_the_baseline_is_refused(tmp_path):
    twin = time_to_accuracy.CONFIGS / "demo-ijepa.yaml"
    words = ["--effort", "smoke", "--results_dir", str(tmp_path), "--runs_dir", str(tmp_path), "--recipe", str(twin)]
    with pytest.raises(ValueError, match="expected a recipe of SparseJEPA"):
        time_to_accuracy.main(words)


def test_the_methods_differ_in_what_their_names_say_alone(tmp_path):
    runs = time_to_accuracy.Runs(time_to_accuracy.CONFIGS / "cifar100-cpu.yaml", [], tmp_path)
    options = [runs.resolve(time_to_accuracy.Run(m, 0, o)) for m, o in time_to_accuracy.METHODS.items()]
    plain, sparse, residual = options
    changed = {name for name in {*sparse, *residual} if residual.get(name) != sparse.get(name)}
    assert changed == {"latent_residual", "sparsity_weight"} and residual["latent_residual"] is True
    changed = {name for name in {*sparse, *plain} if plain.get(name) != sparse.get(name)}
    assert changed == {"use_grouping", "sparsity_weight", "kl_weight", "latent_residual"}


def test_the_plot_shows_a_line_a_run(tmp_path):
    pytest.importorskip("matplotlib")
    shown = record([{"method": "I-JEPA", "seed": 0, "curve": curve(0.1, 0.3)}])
    assert time_to_accuracy.plot(shown, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
