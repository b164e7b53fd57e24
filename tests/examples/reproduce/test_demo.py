# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The demo's results: one run for each seed, medians over seeds, a table in a page."""

import json

import pytest
import yaml

from examples.reproduce import demo
from examples.reproduce.runs import PreTrainingFailed, Runs


# Adds to what the stand-in for a run writes the comparison, better with every seed.
COMPARISON = """
if options[1].probe:
    accuracies = {"raw pixels": 0.1, "untrained": 0.5, "trained": 0.6 + options[2].seed / 100}
    results["comparison"] = {k: {"knn_accuracy": v / 2, "linear_accuracy": v} for k, v in accuracies.items()}
    (folder / "pretraining_results.json").write_text(json.dumps(results))
"""


@pytest.fixture
def command(fake_command):
    with open(fake_command[1], "a", encoding="utf-8") as script:
        script.write(COMPARISON)
    return fake_command


@pytest.fixture
def recipe(tmp_path, make_recipe):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(make_recipe(dataset="textured-scenes", max_train_examples=32)))
    return path


def test_every_seed_is_measured_and_the_medians_stand_last(recipe, command, tmp_path):
    record = demo.measure(Runs(recipe, command, tmp_path / "runs", {"probe": True}), [3, 1, 8])
    assert [run["seed"] for run in record["runs"]] == record["seeds"] == [3, 1, 8]
    assert all(run["seconds"] > 0 and run["options"]["seed"] == run["seed"] for run in record["runs"])
    assert {"commit", "machine", "versions"} <= record.keys()
    *_, first, second, third, median = demo.render(record).splitlines()
    assert first.startswith("| 3 | 10.0 | 50.0 | 63.0 | 13.0 | 5.0 | 25.0 | 31.5 |")
    assert "| 68.0 | 18.0 |" in third and "| 61.0 | 11.0 |" in second
    assert median.startswith("| median | 10.0 | 50.0 | 63.0 | 13.0 | 5.0 | 25.0 | 31.5 |")


def test_a_run_taken_as_it_was_has_no_time(recipe, command, tmp_path):
    runs = Runs(recipe, command, tmp_path / "runs", {"probe": True})
    demo.measure(runs, [1])
    record = demo.measure(runs, [1, 2])
    assert ["seconds" in run for run in record["runs"]] == [False, True]
    assert demo.render(record).splitlines()[2].endswith("| – | – |")


def test_a_failed_run_or_one_without_a_comparison_ends_it(recipe, command, tmp_path):
    with pytest.raises(PreTrainingFailed, match="thirteen"):
        demo.measure(Runs(recipe, command, tmp_path / "runs", {"probe": True}), [13])
    with pytest.raises(PreTrainingFailed, match="not compared"):
        demo.measure(Runs(recipe, command, tmp_path / "runs"), [1])


def test_a_results_file_is_rendered_into_a_page(recipe, command, tmp_path, capsys):
    record = demo.measure(Runs(recipe, command, tmp_path / "runs", {"probe": True}), [1])
    path, page = tmp_path / "demo.json", tmp_path / "page.md"
    path.write_text(json.dumps(record))
    page.write_text("<!-- results/demo.json -->\n<!-- end -->\n")
    demo.main(["--render", str(path), "--into", str(page)])
    assert demo.render(record) in page.read_text() and demo.render(record) in capsys.readouterr().out
    with pytest.raises(SystemExit):
        demo.main(["--seeds", "1"])
