# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A whole small table and a sweep, as a user calls them: one budget, failures reported, nothing done twice."""

import json
import re

import pytest
import yaml

from examples.reproduce import paper_table, sweep
from examples.reproduce.experiment import (
    RAW_PIXELS,
    UNTRAINED,
    make_parser,
    measure,
    parse_changes,
    read_record,
    show,
)
from examples.reproduce.runs import IJEPA, SPARSEJEPA, Runs
from sparsejepa_hf.evaluation import Evaluator, ProbeSettings, probe_settings


@pytest.fixture(scope="module")
def folder(images, tmp_path_factory, runs_in_process, make_recipe):
    """Where the scripts are called: a recipe, a link to the images, a page with marks."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(make_recipe(dataset=str(images), num_groups=4)))
    (folder / "images").symlink_to(images)
    marks = "<!-- results/table.json{} -->\n<!-- end -->\n"
    (folder / "page.md").write_text("# Page\n" + marks.format("#short") + marks.format(""))
    (folder / "other.md").write_text(marks.format(""))
    return folder


@pytest.fixture
def call(folder, monkeypatch, capsys):
    """Calls a script in that folder; returns what it printed."""

    def call(script, *flags):
        monkeypatch.chdir(folder)
        script.main(list(map(str, flags)))
        return capsys.readouterr().out

    return call


TABLE = ["recipe.yaml", "--max_steps", 1, "--seeds", 0, 1, "--low_shot", 0.5, "--output_dir", "work"]
TABLE += ["--tasks", "mine=images", "nothing=/no/such/folder", "--results", "results/table.json"]
TABLE += ["--into", "page.md", "other.md"]


@pytest.fixture(scope="module")
def table(folder):
    """The table's record, and what the script printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        paper_table.main(list(map(str, TABLE)))
    return json.loads((folder / "results" / "table.json").read_text())


def entry(record, method, task="mine", seed=0):
    (found,) = [
        e for e in record["evaluations"] if (e["method"], e["task"]) == (method, task) and e["seed"] in (seed, None)
    ]
    return found


def test_every_row_stands_beside_its_baselines(table):
    assert table["methods"] == [RAW_PIXELS, UNTRAINED, IJEPA, SPARSEJEPA]
    for method in table["methods"]:
        found = entry(table, method)
        assert 0 <= found["accuracy"] <= 1 and 0 <= found["knn_accuracy"] <= 1 and "low_shot_0.5" in found
        assert found["seed"] == (None if method == RAW_PIXELS else 0)
        assert found["num_test"] == 33, "test images that also occur in train are left out"
    assert entry(table, RAW_PIXELS)["accuracy"] == 1, "colours are told apart by raw pixels"
    assert table["tasks"]["mine"]["num_excluded"] == 3


def test_both_methods_have_the_same_budget_and_the_flags_reach_every_run(table):
    ijepa, sparse = (run["options"] for run in table["runs"][:2])
    differing = {key for key in ijepa.keys() | sparse.keys() if ijepa.get(key) != sparse.get(key)}
    assert "use_grouping" in differing
    assert differing <= {"use_grouping", "sparsity_weight", "kl_weight", "latent_residual"}
    assert {run["options"]["max_steps"] for run in table["runs"]} == {1}
    assert [(run["method"], run["seed"]) for run in table["runs"]] == [
        (m, s) for s in (0, 1) for m in (IJEPA, SPARSEJEPA)
    ]


def test_a_data_set_that_is_not_there_fails_alone(table):
    for method in table["methods"]:
        assert "/no/such/folder" in entry(table, method, "nothing")["failed"]


def test_a_results_file_names_no_folder(table, folder):
    table = {**table, "evaluations": [e for e in table["evaluations"] if e["task"] == "mine"]}
    assert str(folder) not in json.dumps(table)


def test_pages_carry_the_report_and_the_short_table(table, folder):
    text, short = (render(table) for render in (paper_table.render, paper_table.render_short))
    page, other = ((folder / name).read_text() for name in ("page.md", "other.md"))
    assert page.index(f"#short -->\n{short}\n<!-- end -->") < page.index(f".json -->\n{text}\n<!-- end -->")
    assert text in other and "**Failed**" in text and "n = 2" in text
    assert (folder / "results" / "table.md").read_text() == text + "\n"
    assert (folder / "results" / "table.png").is_file()


def test_nothing_is_done_twice(table, folder, call, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr(Runs, "_start", refuse)
    monkeypatch.setattr(Evaluator, "_probe", refuse)
    printed = call(paper_table, *TABLE)
    again = json.loads((folder / "results" / "table.json").read_text())
    assert again["evaluations"] == table["evaluations"] and again["runs"] == table["runs"]
    assert call(paper_table, "--render", "results/table.json") == printed


def test_a_sweep_goes_on_when_a_point_fails_and_takes_up_the_runs_that_are_there(table, folder, call):
    logs = sorted(folder.glob("work/runs/*seed0*/log.txt"))
    before = [log.read_text() for log in logs]
    flags = ["recipe.yaml", "--max_steps", 1, "--task", "mine=images", "--seeds", 0, "--output_dir", "work"]
    flags += ["--axis", "sparsity_weight", 0, 0.1, 1, "--variant", "train_split=nowhere", "--results", "sweep.json"]
    printed = call(sweep, *flags)
    record = json.loads((folder / "sweep.json").read_text())
    assert record["axes"] == {"sparsity_weight": [0, 0.1, 1]} and record["base"] == {"sparsity_weight": 0.1}
    assert "peak" in printed and (folder / "sweep.png").is_file()
    weights = [r["options"]["sparsity_weight"] for r in record["runs"] if "options" in r and r["method"] != IJEPA]
    assert sorted(weights) == [0, 0.1, 1]
    (failed,) = [run for run in record["runs"] if "failed" in run]
    assert "nowhere" in failed["failed"]
    assert [log.read_text() for log in logs] == before and len(logs) == 2


@pytest.mark.parametrize(
    "flags, message",
    [
        (["recipe.yaml", "--axis", "no_such_option", "1"], "no_such_option"),
        (["recipe.yaml", "--axis", "num_groups", "5"], "does not divide"),
        (["recipe.yaml", "--variant", "num_groups"], "expected name=value"),
        (["recipe.yaml", "--no_such_flag", "1"], "no_such_flag"),
        (["recipe.yaml", "--seed", "1"], "--seeds"),
        (["nowhere.yaml"], "There is no file"),
        (["--task", "mine=images"], "YAML file"),
        (["--render", "sweep.json", "--max_steps", "1"], "nothing is run"),
    ],
)
def test_impossible_sweeps_are_refused_before_anything_runs(folder, call, flags, message, capsys):
    with pytest.raises((ValueError, SystemExit)) as error:
        call(sweep, *flags, "--task", "mine=images", "--output_dir", "unused")
    assert message in str(error.value) + capsys.readouterr().err
    assert not (folder / "unused").exists()


@pytest.mark.parametrize(
    "given", [{"methods": {}}, {"seeds": [0, 0]}, {"tasks": []}, {"tasks": ["mine=/a", "mine=/b"]}]
)
def test_an_empty_table_is_refused(given):
    arguments = {"methods": {IJEPA: {}}, "seeds": [0], "tasks": ["cifar100"]} | given
    with pytest.raises(ValueError, match="expected at least one"):
        measure(None, evaluator=None, **arguments)


def test_variants_are_read_as_yaml_reads_values():
    assert parse_changes("num_groups=4 sparsity_weight=1e-3 latent_position=encoder latent_residual=true") == {
        "num_groups": 4,
        "sparsity_weight": 1e-3,
        "latent_position": "encoder",
        "latent_residual": True,
    }


def test_probe_flags_become_settings_and_reach_no_run():
    parser = make_parser(None, "results.json", "work")
    flags = ["--probe_seed", "3", "--keep_duplicates", "--probe_precision", "bf16", "--probe_train_examples", "9"]
    own, rest = parser.parse_known_args(["recipe.yaml", *flags, "--probe_device", "cpu", "--low_shot", "0.1"])
    assert rest == [] and probe_settings(own) == ProbeSettings(
        feature_kinds=("last/mean",),
        low_shot=(0.1,),
        exclude_duplicates=False,
        max_train_examples=9,
        seed=3,
        mixed_precision="bf16",
        device="cpu",
    )


def test_only_results_files_are_read_and_a_page_without_marks_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no results file"):
        read_record(tmp_path / "none.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="no runs and no evaluations"):
        read_record(tmp_path / "other.json")
    (tmp_path / "table.json").write_text('{"runs": [], "evaluations": []}')
    (tmp_path / "page.md").write_text("# Page\n")
    with pytest.raises(ValueError, match=re.escape("has no mark <!-- results/table.json -->")):
        show(tmp_path / "table.json", [tmp_path / "page.md"], {"": lambda record: "text"}, lambda *_: None)
