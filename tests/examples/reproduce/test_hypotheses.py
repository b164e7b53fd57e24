# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Predictions are written down first, and what became of them follows from the figures alone."""

import json
from pathlib import Path

import pytest
import yaml

from examples.reproduce import hypotheses
from examples.reproduce.hypotheses import FAILED, HELD, METRICS, OPEN, methods_of, outcome, read_hypotheses, render
from examples.reproduce.runs import IJEPA, SPARSEJEPA, Run, Runs
from sparsejepa_hf.evaluation import paired_difference


FILES = sorted((Path(__file__).parents[3] / "examples" / "reproduce").glob("hypotheses-*.yaml"))


@pytest.mark.parametrize(
    "values, points, expected",
    [
        ((0.020, 0.021, 0.022), 1.0, HELD),
        ((0.020, 0.021, 0.022), 2.5, FAILED),
        ((-0.02, 0.03, 0.08), 1.0, OPEN),
        ((0.005, 0.020, 0.035), 1.5, OPEN),
        ((-0.020, -0.021, -0.022), 0.0, FAILED),
        ((0.05,), 1.0, OPEN),
    ],
)
def test_a_prediction_holds_only_if_it_is_reached_and_no_chance(values, points, expected):
    baseline = dict.fromkeys(range(len(values)), 0.0)
    assert outcome(paired_difference(baseline, dict(enumerate(values))), points) == expected


def make_record(gain):
    options = {"because": "It must.", "options": {}}
    found = {
        "gains": {**options, "predicts": {"metric": "kNN", "against": SPARSEJEPA, "points": 1.0}},
        "loses": {**options, "predicts": {"metric": "linear", "against": IJEPA, "points": 0.5}},
    }
    values = {"untrained": 0.1, IJEPA: 0.3, SPARSEJEPA: 0.25, "gains": 0.25 + gain, "loses": 0.3 - gain}
    evaluations = [
        {"task": "mine", "method": name, "seed": seed} | dict.fromkeys(METRICS.values(), value + seed / 100)
        for name, value in values.items()
        for seed in range(3)
    ]
    runs = [{"method": "gains", "seed": seed, "last": {"zero_columns": 0.5}} for seed in range(3)]
    return {
        "methods": list(values),
        "tasks": {"mine": {}},
        "evaluations": evaluations,
        "runs": runs,
        "hypotheses": found,
    }


def rows_of(text):
    return {
        cells[0]: cells[1:]
        for line in text.splitlines()
        if line.startswith("|") and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) > 1
    }


def test_each_prediction_is_measured_against_what_it_names():
    rows = rows_of(render(make_record(0.02)))
    assert rows["gains"] == ["It must.", "kNN: at least +1 against SparseJEPA", "+2.0 (2.0 to 2.0)", HELD]
    assert rows["loses"] == ["It must.", "linear: at least +0.5 against I-JEPA", "-2.0 (-2.0 to -2.0)", FAILED]
    assert rows[IJEPA] == ["31.0 ± 1.0"] * 3 + ["–"]


def test_what_was_not_measured_is_not_judged():
    record = make_record(0.02)
    record["evaluations"] = [entry for entry in record["evaluations"] if entry["method"] != "gains"]
    assert rows_of(render(record))["gains"][-2:] == ["–", "not measured"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_hypotheses_of_this_repository_describe_runs(path, tmp_path):
    found = read_hypotheses(path)
    runs = Runs(path.parents[2] / found["recipe"], [], tmp_path, found["options"])
    for name, options in methods_of(found).items():
        resolved = runs.resolve(Run(name, 0, options))
        assert all(resolved[key] == value for key, value in options.items()), name
    assert {entry["predicts"]["metric"] for entry in found["hypotheses"].values()} <= METRICS.keys()


def change(text, *keys, to):
    for key in keys[:-1]:
        text = text[key]
    text[keys[-1]] = to


@pytest.mark.parametrize(
    "keys, value, message",
    [
        (("seeds",), None, "hypotheses, options, recipe, seeds"),
        (("hypotheses", "one", "because"), None, "'one' is .*because, options, predicts"),
        (("hypotheses", "one", "predicts", "metric"), "luck", "metric 'luck'; expected one of linear"),
        (
            ("hypotheses", "one", "predicts", "against"),
            "nobody",
            "against 'nobody'; expected one of I-JEPA, SparseJEPA, one",
        ),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path, keys, value, message):
    predicts = {"metric": "kNN", "against": IJEPA, "points": 1}
    text = {"recipe": "a.yaml", "options": {}, "seeds": [0]}
    text["hypotheses"] = {"one": {"options": {}, "because": "x", "predicts": predicts}}
    change(text, *keys, to=value)
    if value is None:
        holder = text if len(keys) == 1 else text["hypotheses"]["one"]
        del holder[keys[-1]]
    (tmp_path / "file.yaml").write_text(yaml.safe_dump(text))
    with pytest.raises(ValueError, match=message):
        read_hypotheses(tmp_path / "file.yaml")


def test_a_run_of_the_script_measures_all_and_renders_them(
    images, tmp_path, runs_in_process, make_recipe, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(yaml.safe_dump(make_recipe(dataset=str(images), num_groups=4)))
    predicts = {"metric": "linear, last four", "against": IJEPA, "points": 0.5}
    one = {"options": {"num_latents": 12}, "because": "It must.", "predicts": predicts}
    text = {"recipe": "recipe.yaml", "options": {"max_steps": 1}, "seeds": [0], "hypotheses": {"one": one}}
    Path("file.yaml").write_text(yaml.safe_dump(text))
    Path("page.md").write_text("<!-- results/found.json -->\n<!-- end -->\n")
    hypotheses.main(["file.yaml", "--tasks", f"mine={images}", "--results", "found.json", "--into", "page.md"])
    record = json.loads(Path("found.json").read_text())
    assert [run["options"]["num_latents"] for run in record["runs"] if run["method"] == "one"] == [12]
    assert "It must." in Path("page.md").read_text() and "| one |" in Path("page.md").read_text()
