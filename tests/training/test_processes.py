# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What a process concludes from its environment, and what it says of others; real launches are in test_distributed."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType

from sparsejepa_hf.training import SparseJEPATrainingArguments
from sparsejepa_hf.training.processes import (
    LostProcessError,
    explain_silence,
    num_launched,
    set_up_sharding,
    whole_encoder,
)


@pytest.mark.parametrize("count", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_a_process_that_sees_no_other_of_its_launch_refuses_before_anything_is_written(count, tmp_path, monkeypatch):
    monkeypatch.setenv(count, "3")
    assert num_launched() == 3
    with pytest.raises(ValueError, match="started 3 processes, but the Trainer sees 1 .* Nothing was written"):
        SparseJEPATrainingArguments(str(tmp_path / "out"), report_to="none")
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv(count, "1")
    assert SparseJEPATrainingArguments(str(tmp_path / "out"), report_to="none").world_size == 1


def test_torchrun_s_count_goes_before_that_of_the_job_that_started_it(monkeypatch):
    """One task a node, each of which starts torchrun."""
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert num_launched() == 16


def sharding(kind=DistributedType.MULTI_GPU, **plugins):
    return SimpleNamespace(state=SimpleNamespace(distributed_type=kind, **plugins), mixed_precision="no")


@pytest.mark.parametrize(
    ("plugins", "said"),
    [
        ({"fsdp_plugin": SimpleNamespace(fsdp_version=1)}, "fsdp_version is 1, .* expected 2"),
        ({"deepspeed_plugin": SimpleNamespace(zero_stage=3)}, "ZeRO stage is 3, .* train with FSDP2"),
    ],
)
def test_an_engine_that_would_train_something_else_is_refused(plugins, said):
    with pytest.raises(ValueError, match=said):
        set_up_sharding(sharding(**plugins), None)


def test_fsdp_on_cpus_is_refused_beside_an_accelerator_that_torch_would_take(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    with pytest.raises(ValueError, match="FSDP and use_cpu are set, .* Hide it"):
        set_up_sharding(sharding(DistributedType.MULTI_CPU), {})


def test_engines_without_shards_are_left_as_they_are():
    for plugins in ({}, {"fsdp_plugin": None}, {"deepspeed_plugin": SimpleNamespace(zero_stage=2)}):
        accelerator = sharding(**plugins)
        set_up_sharding(accelerator, None)
        assert vars(accelerator.state) == {"distributed_type": DistributedType.MULTI_GPU, **plugins}


def trainer(world_size):
    arguments = SimpleNamespace(world_size=world_size, process_index=1, ddp_timeout=7)
    return SimpleNamespace(args=arguments, state=SimpleNamespace(global_step=5))


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("Timed out waiting 7000ms for recv operation to complete", "did not answer within 7 s .ddp_timeout. after"),
        ("Connection closed by peer [127.0.0.1]:6529", "Another process ended after step 5, so process 1 of 2 ends"),
    ],
)
def test_a_failed_exchange_says_what_it_means_and_what_to_do(raised, said):
    with pytest.raises(LostProcessError, match=f"{said}.*--resume_from_checkpoint auto") as caught:
        with explain_silence(trainer(2)):
            raise RuntimeError(raised)
    assert raised in str(caught.value.__cause__)
    with pytest.raises(RuntimeError, match=raised.split("[")[0]), explain_silence(trainer(1)):
        raise RuntimeError(raised)


def test_other_errors_of_several_processes_stay_what_they_are():
    with pytest.raises(RuntimeError, match="shapes"), explain_silence(trainer(2)):
        raise RuntimeError("shapes cannot be multiplied")


def test_a_model_that_is_not_in_shards_is_measured_as_it_is(make_trainer):
    model = make_trainer().model
    assert whole_encoder(model) is model.sparsejepa
