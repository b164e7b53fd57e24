# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A queue's runs come in order, are made once, fail alone, and its description says how far they are."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from sparsejepa_hf.experiments.run_queue import describe, read_queue, work


PRETRAIN = Path(__file__).parents[2] / "examples" / "pretrain.py"


@pytest.fixture
def read(tmp_path, make_recipe, runs_in_process):
    """Reads a queue of these stages; their recipe is tiny.yaml, of two epochs."""
    recipe = make_recipe(max_train_examples=16, num_train_epochs=2, save_strategy="epoch")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({**recipe, "max_steps": -1}))

    def read(*stages, **options):
        path = tmp_path / "queue.yaml"
        path.write_text(yaml.safe_dump([{"recipe": "tiny.yaml", **stage} for stage in stages], sort_keys=False))
        return read_queue(path, tmp_path, [sys.executable, str(PRETRAIN)], tmp_path / "runs", **options)

    return read


def test_stages_come_in_order_and_all_methods_before_the_next_seed(read):
    queue = read(
        {"seeds": [3, 4], "methods": {"first": {}}},
        {"seeds": [0, 1], "methods": {"b": {"num_groups": 4}, "a": None}, "options": {"ema_momentum": 0.5}},
    )
    wanted = [("first", 3), ("first", 4), ("b", 0), ("a", 0), ("b", 1), ("a", 1)]
    assert [(run.method, run.seed) for _, run in queue] == wanted
    resolved = [runs.resolve(run) for runs, run in queue]
    assert [options["ema_momentum"] == 0.5 for options in resolved] == [False] * 2 + [True] * 4
    assert resolved[2]["num_groups"] == 4 and "num_groups" not in resolved[3]


@pytest.mark.parametrize(
    "stage, message",
    [
        ({"seeds": [0], "methods": {"a": {}}, "sedes": [1]}, "sedes"),
        ({"methods": {"a": {}}}, "seeds"),
        ({"seeds": [0], "methods": {"a": {"no_such_option": 1}}}, "no_such_option"),
        ({"seeds": [0], "methods": {"a": {}, "b": {"num_groups": 5}}}, "does not divide"),
        ({"seeds": [0], "methods": {"a": {"max_steps": 4}}}, "max_steps"),
        ({"seeds": [0], "methods": {"a": {}}, "recipe": "nowhere.yaml"}, "nowhere.yaml"),
    ],
)
def test_what_cannot_be_run_is_refused(read, stage, message):
    with pytest.raises(ValueError, match=message):
        read(stage)


def test_a_failure_is_written_down_and_passed_and_only_it_is_tried_again(read, tmp_path, capsys):
    queue = read({"seeds": [0], "methods": {"good": {}, "bad": {"dataset": "nowhere"}, "better": {"num_groups": 4}}})
    state = tmp_path / "state.json"
    work(queue, state)
    begun = [line.split()[2] for line in capsys.readouterr().out.splitlines() if line.endswith("running")]
    assert begun == ["good,", "bad,", "better,"]
    rows = json.loads(state.read_text())
    assert [row["state"] for row in rows] == ["finished", "failed", "finished"]
    assert "nowhere" in rows[1]["reason"][-1]
    good, bad, better, total = describe(state, alive=False)
    assert "finished  2 of 2 epochs, loss" in good and "zero columns" in better
    assert "failed    0 of 2 epochs" in bad and "nowhere" in bad

    work(read({"seeds": [0], "methods": {"good": {}, "bad": {"max_train_examples": 8}}}), state)
    begun = [line.split()[2] for line in capsys.readouterr().out.splitlines() if line.endswith("running")]
    assert begun == ["bad,"]
    finished = state.read_text()
    assert [row["state"] for row in json.loads(finished)] == ["finished", "finished"]

    state.write_text(finished.replace('"finished"', '"running"'))
    work(read({"seeds": [0], "methods": {"good": {}, "bad": {"max_train_examples": 8}}}), state)
    assert state.read_text() == finished, "cut off between a run's end and its note"


def test_the_description_counts_what_lies_in_checkpoints_and_what_is_left(tmp_path):
    row = {"seed": 0, "recipe": "r.yaml", "epochs": 40.0, "images_per_step": 64}
    names = {"gone": "finished", "now": "running", "next": "waiting"}
    rows = [{**row, "name": name, "state": s, "folder": str(tmp_path / name)} for name, s in names.items()]
    rows.append({**rows[2], "name": "other", "recipe": "s.yaml"})
    (tmp_path / "state.json").write_text(json.dumps(rows))
    for folder, epoch in (("gone", 40.0), ("now/checkpoint-1000", 10.0)):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "model.safetensors").touch()
        # 100 steps of 64 images an epoch at 64 images a second: 100 s.
        history = [{"loss": 0.5, "zero_columns": 0.0, "images_per_second": 64.0}, {"loss": 0.25, "zero_columns": 0.5}]
        state = {"epoch": epoch, "num_train_epochs": 40, "max_steps": 4000, "log_history": history}
        (tmp_path / folder / "trainer_state.json").write_text(json.dumps(state))
    gone, now, after, other, total = describe(tmp_path / "state.json", alive=True)
    assert "finished  40 of 40 epochs" in gone and "left" not in gone
    assert "running   10 of 40 epochs, loss 0.25, zero columns 50.0%; about 0.8 h left" in now
    assert "waiting   0 of 40 epochs; about 1.1 h left" in after and "left" not in other
    assert total == "About 1.9 h left, not counting 1 of unknown pace."
    assert "waiting   10 of 40" in describe(tmp_path / "state.json", alive=False)[1], "nobody is at it"
