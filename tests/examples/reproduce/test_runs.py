# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Runs are made once, taken up again, told apart by their options, and fail alone."""

import json
import subprocess
import threading
from types import SimpleNamespace

import pytest
import yaml

from examples.reproduce import runs as module
from examples.reproduce.runs import IJEPA, IJEPA_OPTIONS, SPARSEJEPA, PreTrainingFailed, Run, Runs, as_options


@pytest.fixture
def recipe(tmp_path, make_recipe):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(make_recipe(dataset="synthetic-scenes", max_train_examples=32)))
    return path


@pytest.fixture
def make_runs(tmp_path, recipe, fake_command):
    return lambda **options: Runs(recipe, fake_command, tmp_path / "runs", **options)


def starts(folder):
    return (folder / "starts").read_text()


def test_a_finished_run_is_taken_as_it_is_and_other_options_are_another_run(make_runs, tmp_path):
    first, second = Run(SPARSEJEPA, 3, {}), Run(SPARSEJEPA, 3, {"sparsity_weight": 0.2})
    (record,) = make_runs().make([first])
    assert record.last == {"rankme": 3}
    again, other = make_runs().make([first, second])
    assert again.checkpoint == record.checkpoint and starts(record.checkpoint) == "auto "
    assert other.checkpoint != record.checkpoint
    assert other.options["sparsity_weight"] == 0.2 and record.options["sparsity_weight"] == 0.1


def test_how_a_run_reports_does_not_make_it_another_run(make_runs):
    (record,) = make_runs().make([Run(SPARSEJEPA, 3, {})])
    (again,) = make_runs(options={"logging_steps": 7, "knn_steps": 0}).make([Run("any name", 3, {})])
    assert again.checkpoint == record.checkpoint


def test_without_the_grouping_its_regularisers_tell_no_runs_apart(make_runs):
    """A baseline that was made with λ = 0 stands for any recipe's, and the other way round."""
    zeros = {"sparsity_weight": 0, "kl_weight": 0, "latent_residual": False}
    (old,) = make_runs().make([Run(IJEPA, 3, {**IJEPA_OPTIONS, **zeros})])
    (same,) = make_runs().make([Run(IJEPA, 3, IJEPA_OPTIONS)])
    (other,) = make_runs().make([Run(SPARSEJEPA, 3, zeros)])
    assert same.checkpoint == old.checkpoint != other.checkpoint
    runs = make_runs()
    folders = [runs.folder_of(Run(IJEPA, 3, {}), {"use_grouping": False, "kl_weight": value}) for value in (0, 1)]
    assert folders[0] == folders[1], "an interrupted one goes on, too"


def test_runs_whose_names_look_alike_have_folders_of_their_own(make_runs):
    runs = [Run("SparseJEPA, λ = 0", 3, {"sparsity_weight": 0}), Run("SparseJEPA, β = 0", 3, {"kl_weight": 0})]
    first, second = make_runs().make(runs)
    assert first.checkpoint != second.checkpoint
    assert first.options["kl_weight"] != 0 and second.options["sparsity_weight"] != 0


@pytest.mark.parametrize("name", ["pretraining_results.json", "pretraining_options.yaml", "trainer_state.json"])
def test_a_run_cut_off_while_it_wrote_is_made_again(make_runs, name):
    run = Run(SPARSEJEPA, 3, {})
    (record,) = make_runs().make([run])
    for count, left in enumerate(("", "{", "[]"), start=2):
        (record.checkpoint / name).write_text(left)
        (again,) = make_runs().make([run])
        assert again.last == {"rankme": 3} and starts(again.checkpoint) == "auto " * count


def test_a_run_that_fails_says_why_and_leaves_the_others_alone(make_runs, hear_warnings):
    failed, fine = make_runs().make([Run(SPARSEJEPA, 13, {}), Run(SPARSEJEPA, 14, {})])
    assert isinstance(failed, PreTrainingFailed) and "thirteen is unlucky" in str(failed)
    assert fine.last == {"rankme": 14}
    assert "SparseJEPA, seed 13 failed" in hear_warnings.text


def test_an_interrupted_run_goes_on_in_its_folder_if_it_can(make_runs):
    run = Run(SPARSEJEPA, 3, {})
    (record,) = make_runs().make([run])
    (record.checkpoint / "pretraining_results.json").unlink()
    (again,) = make_runs().make([run])
    assert again.checkpoint == record.checkpoint and starts(record.checkpoint) == "auto auto "


def test_a_preempted_run_counts_as_unfinished_and_the_next_start_goes_on(make_runs, hear_warnings):
    run = Run(SPARSEJEPA, 75, {})
    runs = make_runs()
    (preempted,) = runs.make([run])
    assert isinstance(preempted, PreTrainingFailed) and "is not finished; start again" in str(preempted)
    assert runs.finished(runs.resolve(run)) is None
    (record,) = runs.make([run])
    assert record.last == {"rankme": 75} and starts(record.checkpoint) == "auto auto "


def test_a_run_has_the_monitor_that_it_asks_for_and_none_else(make_runs):
    asking = Run("asking", 3, {"knn_steps": 5, "eval_split": "test"})
    records = make_runs().make([asking, Run("silent", 3, {})])
    assert [record.options["knn_steps"] for record in records] == [5, 0]


def test_impossible_options_are_refused_before_anything_runs(make_runs, tmp_path):
    runs = [Run(SPARSEJEPA, 0, {}), Run(SPARSEJEPA, 0, {"num_groups": 5})]
    with pytest.raises(ValueError, match="does not divide"):
        make_runs().make(runs)
    assert not (tmp_path / "runs").exists()


def test_a_record_says_nothing_of_the_machine_s_folders(make_runs, tmp_path):
    (record,) = make_runs().make([Run(SPARSEJEPA, 3, {})])
    assert str(tmp_path) not in json.dumps(record.to_dict())


def test_a_launcher_that_is_not_there_fails_the_run_with_its_name(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "subprocess", subprocess)
    (failed,) = Runs(recipe, ["no-such-launcher"], tmp_path / "runs").make([Run(SPARSEJEPA, 3, {})])
    assert "no-such-launcher" in str(failed)


def test_runs_go_side_by_side_with_their_threads(recipe, tmp_path, monkeypatch):
    """The barrier opens only if two are under way."""
    barrier, threads = threading.Barrier(2), []

    def run(command, env, **options):
        barrier.wait(timeout=60)
        threads.append(env["OMP_NUM_THREADS"])
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=run, STDOUT=None))
    made = Runs(recipe, [], tmp_path / "runs", jobs=2, threads=1).make([Run(SPARSEJEPA, seed, {}) for seed in (0, 1)])
    assert threads == ["1", "1"] and all("exit status 1" in str(failed) for failed in made)


def test_flags_that_a_script_does_not_know_become_options():
    words = ["--max_steps", "4", "--target_aspect_ratio", "0.5", "2", "--dataset=a=b"]
    assert as_options(words) == {"max_steps": "4", "target_aspect_ratio": ["0.5", "2"], "dataset": "a=b"}
    for wrong in (["4"], ["--max_steps"], ["--max_steps", "--seed", "1"]):
        with pytest.raises(ValueError, match="expected --"):
            as_options(wrong)
