# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The scripts that evaluate, as a user calls them."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def call(monkeypatch, capsys, tmp_path, runs_in_process):
    """Runs a script with these flags in `tmp_path`; returns what it printed."""

    def run(script, *flags):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [script, *map(str, flags)])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def recipe(image_folder, tmp_path, make_recipe):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(make_recipe(dataset=str(image_folder("images")), num_groups=4)))
    return path


def test_the_paper_s_table_is_made_rendered_and_taken_up_again(call, recipe, tmp_path):
    (tmp_path / "page.md").write_text("# Page\n<!-- results/table.json -->\n<!-- end -->\n")
    flags = [recipe, "--tasks", "mine=images", "--seeds", 0, 1]
    flags += ["--low_shot", 0.5, "--results", "results/table.json", "--into", "page.md", "--max_steps", 1]
    printed = call("reproduce_paper.py", *flags)
    record = json.loads((tmp_path / "results" / "table.json").read_text())
    assert {run["options"]["max_steps"] for run in record["runs"]} == {1}, "flags reach every run"
    assert {(run["method"], run["seed"]) for run in record["runs"]} == {
        (m, s) for m in ("I-JEPA", "SparseJEPA") for s in (0, 1)
    }
    assert "n = 2" in printed and "I-JEPA" in (tmp_path / "page.md").read_text()
    assert (tmp_path / "results" / "table.png").is_file()
    log = next((tmp_path / "runs" / "reproduce_paper" / "runs").glob("i-jepa-seed0-*/log.txt"))
    before = log.read_text()
    assert call("reproduce_paper.py", *flags) == printed and log.read_text() == before
    assert call("reproduce_paper.py", "--render", "results/table.json") == printed


def test_a_sweep_goes_on_when_a_point_fails(call, recipe, tmp_path):
    flags = [recipe, "--task", "mine=images", "--seeds", 0]
    flags += ["--axis", "sparsity_weight", 0, 0.1, 1, "--variant", "train_split=nowhere"]
    printed = call("sweep_sparsity.py", *flags, "--results", "sweep.json")
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert record["axes"] == {"sparsity_weight": [0, 0.1, 1]} and record["base"] == {"sparsity_weight": 0.1}
    assert "peak" in printed and (tmp_path / "sweep.png").is_file()
    weights = [r["options"]["sparsity_weight"] for r in record["runs"] if "options" in r and r["method"] != "I-JEPA"]
    assert sorted(weights) == [0, 0.1, 1]
    (failed,) = [run for run in record["runs"] if "failed" in run]
    assert "nowhere" in failed["failed"]


def test_one_checkpoint_is_probed_and_a_missing_data_set_is_an_error_at_the_end(call, recipe, tmp_path):
    printed = call("linear_probe.py", "pixels", "--tasks", "mine=images", "--low_shot", 0.5)
    assert "linear" in printed and "RankMe" in printed
    results = json.loads((tmp_path / "runs" / "linear_probe" / "linear_probe.json").read_text())
    assert results["results"]["mine"]["accuracy"] == 1
    with pytest.raises(SystemExit, match="Not probed: gone"):
        call("linear_probe.py", "pixels", "--tasks", "mine=images", "gone=nowhere", "--low_shot", 0.5)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["recipe.yaml", "--axis", "no_such_option", "1"], "no_such_option"),
        (["recipe.yaml", "--axis", "num_groups", "5"], "does not divide"),
        (["recipe.yaml", "--variant", "num_groups"], "expected name=value"),
        (["recipe.yaml", "--no_such_flag", "1"], "no_such_flag"),
        (["nowhere.yaml"], "There is no file"),
    ],
)
def test_impossible_sweeps_are_refused_before_anything_runs(call, recipe, tmp_path, flags, message, capsys):
    with pytest.raises((ValueError, SystemExit)) as error:
        call("sweep_sparsity.py", *flags, "--task", "mine=images")
    assert message in str(error.value) + capsys.readouterr().err
    assert not list(tmp_path.glob("runs/*/runs/*"))
