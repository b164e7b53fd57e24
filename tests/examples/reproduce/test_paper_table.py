# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The table says what was measured: means, spreads, verdicts, failures, and the paper's rows under its own names."""

import pytest
from matplotlib.axes import Axes

from examples.reproduce.paper_table import (
    PAPER,
    accuracy_table,
    difference,
    failures,
    plot,
    plot_curves,
    render,
    render_short,
    verdict_table,
)


def make_record(gain=0.02, spread=0.001):
    """Two data sets, three seeds; SparseJEPA is better by `gain` on cifar100 and worse by it on mine."""
    evaluations = [
        {"task": name, "method": "raw pixels", "seed": None, "accuracy": 0.1} for name in ("cifar100", "mine")
    ]
    for seed in range(3):
        noise = spread * (seed - 1)
        for name, sign in (("cifar100", 1), ("mine", -1)):
            values = {
                "untrained": 0.15,
                "I-JEPA": 0.2 + 0.01 * seed,
                "SparseJEPA": 0.2 + 0.01 * seed + sign * gain + noise,
            }
            evaluations += [
                {"task": name, "method": method, "seed": seed, "accuracy": value, "knn_accuracy": value / 2}
                for method, value in values.items()
            ]
    last = {"prediction_loss": 0.08, "rankme": 38.0}
    runs = [{"method": "I-JEPA", "seed": seed, "last": last, "train_seconds": 60.0} for seed in range(3)]
    for seed in range(3):
        of_w = {"zero_columns": 0.5 + 0.1 * seed, "groups_per_living_latent": 2.0 + seed}
        runs.append({"method": "SparseJEPA", "seed": seed, "last": last | of_w, "train_seconds": 60.0})
    return {
        "methods": ["raw pixels", "untrained", "I-JEPA", "SparseJEPA"],
        "tasks": {
            "cifar100": {"num_train": 50_000, "num_test": 9_990, "num_excluded": 10},
            "mine": {"num_train": 100, "num_test": 50, "stands_for": "inat2018", "caveat": "Small."},
        },
        "settings": {"low_shot": [0.05]},
        "seeds": [0, 1, 2],
        "runs": runs,
        "evaluations": evaluations,
    }


def row_of(text, name):
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_rows_are_means_and_standard_deviations_over_the_seeds():
    text = accuracy_table(make_record(spread=0.0))
    assert row_of(text, "I-JEPA")[1:] == ["21.0 ± 1.0", "21.0 ± 1.0"]
    assert row_of(text, "SparseJEPA")[1:] == ["23.0 ± 1.0", "19.0 ± 1.0"]
    assert row_of(text, "raw pixels")[1:] == ["10.0", "10.0"]


def test_the_papers_figures_stand_under_the_papers_data_sets_alone():
    text = accuracy_table(make_record())
    assert row_of(text, "SparseJEPA (paper)")[1:] == ["45.4", "–"]
    assert not any(name in accuracy_table(make_record(), "knn_accuracy") for name in PAPER)


def test_differences_are_paired_by_seed():
    """The seeds differ by 1 point, the gains by a tenth of that: only paired is the gain beyond the spread."""
    found = difference(make_record(), "cifar100", "SparseJEPA")
    assert found.mean == pytest.approx(0.02) and found.std == pytest.approx(0.001)
    text = verdict_table(make_record())
    lines = text.splitlines()
    assert "better by 2.0 points" in lines[2] and "| yes |" in lines[2]
    assert "worse by 2.0 points" in lines[3]


def test_a_gain_within_the_seeds_spread_is_no_difference():
    text = verdict_table(make_record(gain=0.001, spread=0.01))
    assert "no difference shown" in text and "| no |" in text and "better" not in text


def test_a_seed_that_failed_leaves_the_others_and_is_reported():
    record = make_record()
    record["evaluations"][-1] = {"task": "mine", "method": "SparseJEPA", "seed": 2, "failed": "ValueError: no labels"}
    record["runs"][-1] = {"method": "SparseJEPA", "seed": 2, "failed": "exit status 1"}
    assert row_of(accuracy_table(record), "SparseJEPA")[2].endswith("(1 failed)")
    assert difference(record, "mine", "SparseJEPA").n == 2
    assert failures(record) == [
        "- SparseJEPA, seed 2: exit status 1",
        "- `mine` (SparseJEPA, seed 2): ValueError: no labels",
    ]
    assert "**Failed**" in render(record) and "**Failed**" not in render(make_record())


def test_few_labels_are_shown_or_said_to_be_too_few():
    record = make_record()
    record["evaluations"][1] |= {"low_shot_0.05": 0.07}
    record["evaluations"][2] |= {"low_shot_0.05_failed": "leaves no validation sample"}
    text = render(record)
    assert "on 5 % of the labels" in text
    assert "- `cifar100`, low shot 0.05 (untrained, seed 0): leaves no validation sample" in text


def test_what_fails_alike_on_a_data_set_takes_one_line():
    record = make_record()
    record["evaluations"] = [
        {k: c[k] for k in ("task", "method", "seed")} | {"failed": "gone"} if c["task"] == "mine" else c
        for c in record["evaluations"]
    ]
    assert failures(record) == ["- `mine` (10 encoders): gone"]


def test_a_method_with_no_finished_seed_is_not_measured():
    record = make_record()
    record["evaluations"] = [c for c in record["evaluations"] if (c["method"], c["task"]) != ("SparseJEPA", "mine")]
    assert "not measured" in verdict_table(record).splitlines()[3]


def test_the_report_says_what_a_stand_in_is_not_and_what_was_left_out():
    text = render(make_record())
    assert "`mine`, in place of inat2018: 100 training and 50 test images. Small." in text
    assert "10 test images that also occur in train are left out" in text
    assert "kNN" in text


def test_the_short_table_has_one_row_for_each_encoder_and_says_the_verdict():
    text = render_short(make_record(spread=0.0))
    assert len([line for line in text.splitlines() if line.startswith("|")]) == 5
    assert row_of(text, "untrained")[1:] == ["15.0 ± 0.0", "7.5 ± 0.0", "–", "–"]
    assert row_of(text, "I-JEPA")[1:] == ["21.0 ± 1.0", "10.5 ± 0.5", "–", "–"]
    assert row_of(text, "SparseJEPA")[1:] == ["23.0 ± 1.0", "11.5 ± 0.5", "60.0 ± 10.0", "3.00 ± 1.00"]
    assert "3 seeds" in text and "linear probe, better by 2.0 points" in text


def test_the_plot_is_drawn(tmp_path):
    plot(make_record(), tmp_path / "table.png")
    assert (tmp_path / "table.png").stat().st_size > 10_000


def test_curves_are_drawn_of_runs_that_were_monitored_and_only_then(tmp_path, monkeypatch):
    plot(make_record(), tmp_path / "table.png")
    assert not (tmp_path / "table_curves.png").exists()
    record, drawn = make_record(), []
    for run in record["runs"]:
        run["knn_curve"] = [(1.0, 0.1), (2.0, 0.1 + 0.01 * run["seed"])]
    # A run that was cut short takes no part in the means beyond its end.
    record["runs"][0]["knn_curve"] = record["runs"][0]["knn_curve"][:1]
    own = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, *args, **kw: drawn.append((args, kw)) or own(self, *args, **kw))
    plot_curves(record, tmp_path / "curves.png")
    means = {kw["label"]: [list(values) for values in args] for args, kw in drawn if "label" in kw}
    assert means["I-JEPA (n = 3)"] == [[1.0], [pytest.approx(10.0)]]
    assert means["SparseJEPA (n = 3)"] == [[1.0, 2.0], [pytest.approx(10.0), pytest.approx(11.0)]]
    assert (tmp_path / "curves.png").stat().st_size > 10_000
