# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A checkpoint is whole or absent, a run goes on from the right one, and nothing that may be wanted is lost."""

import json
import os
from pathlib import Path

import pytest
import torch

from sparsejepa_hf.training import newest_whole_checkpoint
from sparsejepa_hf.training.checkpoints import (
    choose_checkpoint,
    delete_oldest,
    faults_of,
    require_whole,
    resume_wish,
    seal,
    set_newer_aside,
    staging_folder,
    written_aside,
)


NEEDED = ["trainer_state.json", "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"]


@pytest.fixture
def run(tmp_path) -> Path:
    return tmp_path / "run"


def write(run: Path, step: int, content: str = "x", names: list[str] = NEEDED, sealed: bool = True) -> Path:
    """A checkpoint with files of the right names; unless `sealed`, it is left where it was written."""
    name = f"checkpoint-{step}"
    staged = Path(staging_folder(str(run)), name)
    staged.mkdir(parents=True)
    for file in names:
        (staged / file).parent.mkdir(exist_ok=True)
        (staged / file).write_text(json.dumps({"global_step": step}) if file == NEEDED[0] else content)
    if sealed:
        seal(str(staged), str(run / name))
    return run / name


def test_a_sealed_checkpoint_is_whole_and_leaves_nothing_beside_it(run):
    folder = write(run, 3, names=[*NEEDED, "optimizer_0/__0_0.distcp"])
    assert not faults_of(folder) and [path.name for path in run.iterdir()] == ["checkpoint-3"]
    assert set(json.loads((folder / "manifest.json").read_text())["files"]) == {*NEEDED, "optimizer_0/__0_0.distcp"}
    require_whole(folder)


@pytest.mark.parametrize(
    "names",
    [
        ["pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata", "scheduler.pt", "rng_state_0.pth"],
        ["pytorch_model_fsdp.bin", "optimizer.bin", "scheduler.pt", "rng_state_0.pth"],
        ["global_step3/mp_rank_00_model_states.pt", "latest", "rng_state_0.pth"],
    ],
    ids=["sharded FSDP", "full FSDP", "DeepSpeed"],
)
def test_engines_with_files_of_their_own_have_whole_checkpoints_too(run, names):
    assert not faults_of(write(run, 3, names=["trainer_state.json", *names]))


@pytest.mark.parametrize("has_manifest", [True, False])
@pytest.mark.parametrize("name", NEEDED)
def test_a_run_never_goes_on_with_some_of_its_state_afresh(run, name, has_manifest):
    folder = write(run, 3, names=[other for other in NEEDED if other != name])
    if not has_manifest:
        (folder / "manifest.json").unlink()
    assert newest_whole_checkpoint(run) is None
    with pytest.raises(ValueError, match=f"checkpoint-3 is not whole.*: {name}.* is missing"):
        choose_checkpoint(str(run), str(folder))


def test_the_newest_whole_one_is_taken_and_others_are_named_with_their_faults(run, hear_warnings):
    for step in (8, 9, 10, 11, 100):
        write(run, step)
    (run / "checkpoint-100" / "optimizer.pt").write_text("y")
    (run / "checkpoint-11" / "model.safetensors").write_text("xx")
    (run / "checkpoint-10" / "manifest.json").write_text("{")
    (run / "checkpoint-9" / "scheduler.pt").unlink()
    (run / "checkpoint-final").mkdir()
    assert newest_whole_checkpoint(run) == choose_checkpoint(str(run), True) == str(run / "checkpoint-8")
    warnings = hear_warnings.messages[:4]
    expected = {
        100: "optimizer.pt is damaged",
        11: "model.safetensors has 2 bytes, and 1 were written",
        10: "manifest.json cannot be read",
        9: "scheduler.pt is missing",
    }
    for warning, (step, fault) in zip(warnings, expected.items(), strict=True):
        assert f"checkpoint-{step} is not whole and is passed over: {fault}" in warning


def test_a_checkpoint_without_a_manifest_is_taken_with_a_warning_if_its_files_are_there(run, hear_warnings):
    folder = write(run, 3)
    (folder / "manifest.json").unlink()
    assert newest_whole_checkpoint(run) == str(folder)
    assert "has no manifest.json" in hear_warnings.text
    (folder / "scheduler.pt").write_text("")
    assert faults_of(folder) == ["scheduler.pt is empty"]
    (folder / "scheduler.pt").write_text("x")
    (folder / "trainer_state.json").write_text('{"global_')
    assert "trainer_state.json cannot be read" in faults_of(folder)[0]


@pytest.mark.parametrize("said", [True, "true", "True"])
def test_to_resume_without_a_whole_checkpoint_says_what_there_is_and_what_to_do(make_trainer, said):
    """A flag or a YAML file gives the wish as text."""
    trainer = make_trainer(max_steps=1)
    (Path(trainer.args.output_dir) / "checkpoint-3").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no whole checkpoint in .*holds checkpoint-3\..*checkpoint auto"):
        trainer.train(resume_from_checkpoint=said)
    assert trainer.train(resume_from_checkpoint="auto").global_step == 1, "and what it says to do works"
    assert (Path(trainer.args.output_dir) / "_abandoned-checkpoint-3").is_dir()
    with pytest.raises(ValueError, match="no folder checkpoint-N"):
        trainer.train(resume_from_checkpoint=said)


@pytest.mark.parametrize(
    ("said", "meant"),
    [("False", None), (False, None), (None, None), ("TRUE", True), ("Auto", "auto"), ("runs/a", "runs/a")],
)
def test_a_wish_may_be_text(said, meant):
    assert resume_wish(said) == meant


def test_a_folder_that_is_not_there_is_refused_by_name(run):
    with pytest.raises(ValueError, match="checkpoint-7 is not whole.*there is no such folder"):
        choose_checkpoint(str(run), str(run / "checkpoint-7"))


# ---- what a save that was cut off leaves behind ----


@pytest.mark.parametrize(("renames", "is_replacing"), [(0, False), (0, True), (1, True)])
def test_a_checkpoint_that_was_whole_when_the_run_ended_is_put_in_place(run, monkeypatch, renames, is_replacing):
    """Also between the two renames with which it takes the place of another."""
    if is_replacing:
        write(run, 3, content="old")
    left, rename = [renames], os.replace

    def replace(*paths):
        if not left[0]:
            raise InterruptedError
        left[0] -= 1
        rename(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(InterruptedError):
            write(run, 3, content="new")
    assert choose_checkpoint(str(run), "auto") == str(run / "checkpoint-3")
    assert (run / "checkpoint-3" / "model.safetensors").read_text() == "new"
    assert [path.name for path in run.iterdir()] == ["checkpoint-3"]


def test_what_was_written_of_a_checkpoint_is_removed_with_a_word(run, hear_warnings):
    write(run, 2)
    write(run, 3, sealed=False)
    assert choose_checkpoint(str(run), True) == str(run / "checkpoint-2")
    assert "checkpoint-3 is what was written of a checkpoint when the run ended" in hear_warnings.text
    assert [path.name for path in run.iterdir()] == ["checkpoint-2"]


def test_files_written_aside_replace_others_whole_or_not_at_all(run):
    for content in ("old", "new"):
        with written_aside(str(run)) as aside:
            Path(aside, "model").write_text(content)
            Path(aside, "adapter").mkdir()
            Path(aside, "adapter", "model").write_text(content)
    with pytest.raises(InterruptedError), written_aside(str(run)) as aside:
        Path(aside, "model").write_text("half")
        raise InterruptedError
    assert (run / "model").read_text() == (run / "adapter" / "model").read_text() == "new"
    assert sorted(path.name for path in run.iterdir()) == ["adapter", "model"]


# ---- two branches of one run ----


def test_what_was_set_aside_is_complete_and_never_taken(run, hear_warnings):
    for content in ("first", "second"):
        for step in (1, 2, 3):
            write(run, step, content)
        set_newer_aside(str(run), str(run / "checkpoint-1"))
        assert choose_checkpoint(str(run), "auto") == str(run / "checkpoint-1")
    assert "The run goes on from step 1, so" in hear_warnings.text
    assert {path.name for path in run.iterdir() if not path.name.startswith("_")} == {"checkpoint-1"}
    for step in (2, 3):
        for content, end in (("first", ""), ("second", "-2")):
            aside = run / f"_abandoned-checkpoint-{step}{end}"
            assert not faults_of(aside) and (aside / "model.safetensors").read_text() == content


def test_a_checkpoint_elsewhere_is_not_mixed_with_those_of_the_output_folder(run, tmp_path):
    theirs, _ = write(tmp_path / "theirs", 5), write(run, 2)
    with pytest.raises(ValueError, match="holds checkpoints of its own, such as checkpoint-2.*checkpoint auto"):
        choose_checkpoint(str(run), str(theirs))
    assert choose_checkpoint(str(tmp_path / "empty"), str(theirs)) == str(theirs)


def test_nothing_moves_before_a_resume_is_refused(make_trainer, monkeypatch):
    trainer = make_trainer(save_strategy="steps", save_steps=1, max_steps=2)
    trainer.train()

    def refuse(self, folder):
        raise ValueError("other options")

    monkeypatch.setattr(type(trainer), "_compare_with_run", refuse)
    folder = Path(trainer.args.output_dir)
    with pytest.raises(ValueError, match="other options"):
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-1"))
    assert {path.name for path in folder.iterdir()} == {"checkpoint-1", "checkpoint-2"}


def test_a_run_begun_again_by_code_sets_the_earlier_one_aside(make_trainer, tmp_path):
    """Else, once it is cut off, a resume would end with the weights of the earlier one."""
    for _ in range(2):
        trainer = make_trainer(save_strategy="steps", save_steps=2, max_steps=2, output_dir=str(tmp_path / "run"))
        trainer.train()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoint-2", "_abandoned-checkpoint-2"}


# ---- through the Trainer ----


def test_metrics_of_a_resumed_run_say_where_they_begin(make_trainer, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "output_dir": str(tmp_path / "run")}
    assert "resumed_from_step" not in make_trainer(**options).train().metrics
    rest = make_trainer(**options).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1")).metrics
    assert rest["resumed_from_step"] == 1 and rest["train_loss"] > 0
    done = make_trainer(**options).train(resume_from_checkpoint="auto").metrics
    assert done["resumed_from_step"] == 3 and "train_loss" not in done, "no step has no mean"


def test_a_copy_of_a_run_loses_its_oldest_checkpoint_first(run):
    """Whatever the times of the copies."""
    for step in (9, 10, 11):
        os.utime(write(run, step), (100 - step, 100 - step))
    delete_oldest(str(run), 2, None)
    assert {path.name for path in run.iterdir()} == {"checkpoint-10", "checkpoint-11"}


def test_a_best_checkpoint_that_is_damaged_does_not_become_the_model(make_trainer, make_dataset):
    options = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}
    options |= {"metric_for_best_model": "loss", "load_best_model_at_end": True, "save_only_model": True}
    trainer = make_trainer(eval_dataset=make_dataset(8), **options)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    content = bytearray((best / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (best / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="best checkpoint .*cannot be loaded.*model.safetensors is damaged"):
        trainer._load_best_model()


def test_rotation_and_the_best_checkpoint_go_by_whole_ones(make_trainer, make_dataset, monkeypatch):
    """The second is the best, as if the loss had been lowest there."""
    options = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    options |= {"metric_for_best_model": "loss", "load_best_model_at_end": True, "save_total_limit": 2}
    trainer = make_trainer(eval_dataset=make_dataset(8), **options)
    loss = lambda self, *args, **kwargs: {"eval_loss": abs(self.state.global_step - 2.0)}  # noqa: E731
    monkeypatch.setattr(type(trainer), "evaluate", loss)
    trainer.train()
    folder = Path(trainer.args.output_dir)
    assert trainer.state.best_model_checkpoint == str(folder / "checkpoint-2")
    assert {path.name for path in folder.iterdir()} == {"checkpoint-2", "checkpoint-4"}
    for checkpoint in folder.iterdir():
        assert not faults_of(checkpoint)
        state = json.loads((checkpoint / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == trainer.state.best_model_checkpoint


def test_a_record_of_the_run_is_sealed_with_the_checkpoint(make_trainer, monkeypatch):
    trainer = make_trainer(save_strategy="steps", save_steps=4)
    monkeypatch.setattr(
        type(trainer), "_write_run_record", lambda self, folder: Path(folder, "run_options.json").write_text("{}")
    )
    trainer.train()
    folder = Path(trainer.args.output_dir) / "checkpoint-4"
    assert "run_options.json" in json.loads((folder / "manifest.json").read_text())["files"] and not faults_of(folder)


def test_weights_alone_are_saved_and_not_resumed(make_trainer):
    trainer = make_trainer(save_strategy="steps", save_steps=4, save_only_model=True)
    trainer.train()
    folder = Path(trainer.args.output_dir) / "checkpoint-4"
    assert torch.is_tensor(type(trainer.model).from_pretrained(folder).group_weight)
    with pytest.raises(ValueError, match="optimizer.pt .which save_only_model leaves out. is missing"):
        trainer.train(resume_from_checkpoint=str(folder))


def test_nodes_that_would_go_on_from_different_checkpoints_are_told(make_trainer, monkeypatch):
    """Each node that saves has looked into its own folder."""
    trainer = make_trainer()
    told = [(True, "checkpoint-3", None), (False, None, None), (True, "checkpoint-3", None)]
    monkeypatch.setattr(type(trainer.args), "world_size", 3)
    monkeypatch.setattr("sparsejepa_hf.training.base_trainer.gather_object", lambda mine: told)
    assert trainer._choose_checkpoint(None) == "checkpoint-3"
    told[2] = (True, "checkpoint-2", None)
    with pytest.raises(ValueError, match="different checkpoints: checkpoint-2, checkpoint-3. Name one"):
        trainer._choose_checkpoint(None)
    told[1] = (True, None, "checkpoint-9 is not whole")
    with pytest.raises(ValueError, match="checkpoint-9 is not whole"):
        trainer._choose_checkpoint(None)
