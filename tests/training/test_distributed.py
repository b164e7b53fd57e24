# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Processes train what one does, with DDP and with FSDP2, and go on and end together. One launch trains many runs."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

import sparsejepa_hf


LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]

# Trains every run of a JSON list, one after the other, and keeps what they end with.
TRAIN = """
import json, os, sys
import torch
from accelerate.utils import gather_object
from torch.utils.data import Dataset
from sparsejepa_hf import SparseJEPAConfig
from sparsejepa_hf.modeling_sparsejepa import SparseJEPAForPreTraining
from sparsejepa_hf.training.ema import full_tensor
from sparsejepa_hf.training import NonFiniteLossError, SparseJEPATrainer, SparseJEPATrainingArguments


class Images(Dataset):
    def __init__(self, poisoned):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (32, 3, 16, 16), generator=generator, dtype=torch.uint8)
        if poisoned:
            self.images = self.images.float() / 127.5 - 1
            self.images[:1] = float("nan")

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        # Each process has labels of its own, so each measures another kNN accuracy.
        return {"pixel_values": self.images[index], "labels": index % (4 - int(os.environ.get("RANK", 0)))}


for run in json.load(open(sys.argv[1])):
    # As `accelerate launch` sets it, by the configuration of the examples.
    os.environ |= {"ACCELERATE_USE_FSDP": str(run["shards"]), "FSDP_VERSION": "2"}
    os.environ["FSDP_AUTO_WRAP_POLICY"] = "TRANSFORMER_BASED_WRAP"
    torch.manual_seed(run["model_seed"])
    model = SparseJEPAForPreTraining(SparseJEPAConfig(**run["config"]))
    images = Images(run["poisoned"])
    trainer = SparseJEPATrainer(
        model=model,
        args=SparseJEPATrainingArguments(**run["arguments"]),
        train_dataset=images,
        eval_dataset=images,
        knn_datasets=(images, images) if run["arguments"].get("knn_steps") else None,
    )
    error = ""
    try:
        trainer.train(resume_from_checkpoint=run["resume"])
    except NonFiniteLossError as raised:
        error = str(raised)
    result = {"error": error, "logs": trainer.state.log_history, "processes": trainer.args.world_size}
    # An evaluation leaves some shards gathered.
    result["shards"] = [hasattr(p, "full_tensor") for p in trainer.model.parameters()]
    weights = {name: full_tensor(p.detach()) for name, p in trainer.model.named_parameters()}
    if not error:
        metrics = trainer.evaluate()
        result["eval_loss"] = metrics["eval_loss"]
        result["eval_knn_accuracy"] = gather_object([metrics.get("eval_knn_accuracy")])
    if trainer.is_world_process_zero():
        torch.save({"weights": weights, "result": json.dumps(result)}, run["out"])
trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()
"""


BATCH = "per_device_train_batch_size"
ARGUMENTS = {
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "max_steps": 20,
    "optim": "sgd",
    "learning_rate": 0.1,
    "warmup_steps": 0,
    "sparsity_warmup_steps": 0,
    "ema_momentum": 0.5,
    "ema_momentum_end": 0.9,
    "color_jitter": 0.2,
    "crop_padding": 2,
    BATCH: 4,
}
SAVED = {"save_strategy": "steps", "max_steps": 7}
ADAM = {"optim": "adamw_torch_fused", "learning_rate": 1e-3, "weight_decay_end": 0.2}
KNN = {"knn_steps": 5, "knn_k": 3}
# The runs by the number of processes: arguments in addition to those above, and what else differs.
RUNS = {
    1: {"one": {"arguments": {BATCH: 8}}, "one, Adam": {"arguments": {BATCH: 8, **ADAM}}},
    2: {
        "plain": {},
        "accumulated": {"arguments": {BATCH: 2, "gradient_accumulation_steps": 2}},
        "watched": {"arguments": {**KNN, "gradient_checkpointing": True}},
        "Adam": {"arguments": ADAM},
        "whole": {"arguments": {**SAVED, "save_steps": 3}},
        "resumed": {"arguments": {**SAVED, "save_steps": 100}, "resume": "whole/checkpoint-3", "model_seed": 9},
        # One image of 32 is NaN, so one process alone sees it first; nobody may wait for the other forever.
        "poisoned, seen in a log": {"arguments": {**SAVED, "save_steps": 1}, "poisoned": True},
        "poisoned, seen in a save": {"arguments": {**SAVED, "save_steps": 1, "logging_steps": 100}, "poisoned": True},
        "sharded": {"arguments": KNN, "shards": True},
        "sharded, Adam": {"arguments": {**ADAM, BATCH: 2, "gradient_accumulation_steps": 2}, "shards": True},
        # On CPUs bf16 needs to be told so.
        "bf16": {"arguments": {"bf16": True, "use_cpu": True}},
        "sharded, bf16": {"arguments": {"bf16": True, "use_cpu": True}, "shards": True},
        "sharded, whole": {"arguments": {**SAVED, **ADAM, "save_steps": 3}, "shards": True},
        "sharded, resumed": {
            "arguments": {**SAVED, **ADAM, "save_steps": 100},
            "resume": "sharded, whole/checkpoint-3",
            "model_seed": 9,
            "shards": True,
        },
    },
}
IS_LONG = "SPARSEJEPA_RELIABILITY_RECORD" in os.environ
LONG = pytest.mark.skipif(not IS_LONG, reason="part of the long form")
if IS_LONG:
    # More processes than W has groups: some hold none of it.
    FOUR = {"arguments": {BATCH: 2}}
    RUNS[4] = {"of four": FOUR, "of four, sharded": {**FOUR, "shards": True}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, make_small_config):
    """The folder of the runs, and each one's weights and results by name; "one" is of one process."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "train.py").write_text(TRAIN, encoding="utf-8")
    config = make_small_config(sparsity_weight=1e-2).to_diff_dict()
    fields = sparsejepa_hf.SparseJEPAConfig.__annotations__.keys() - {"model_type"}

    def job(name, arguments=None, resume=None, model_seed=0, poisoned=False, shards=False):
        return {
            "config": {key: value for key, value in config.items() if key in fields},
            "arguments": {**ARGUMENTS, "output_dir": str(folder / name), **(arguments or {})},
            "resume": resume and str(folder / resume),
            "model_seed": model_seed,
            "poisoned": poisoned,
            "shards": shards,
            "out": str(folder / f"{name}.pt"),
        }

    def train(jobs, num_processes):
        (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
        words = [str(folder / "train.py"), str(folder / "jobs.json")]
        if num_processes == 1:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", words)
                patch.setattr(os, "environ", {**os.environ})
                runpy.run_path(words[0])
            return
        source = str(Path(sparsejepa_hf.__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}
        environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
        command = [*LAUNCHER, str(num_processes), *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]

    found = {}
    for num_processes, runs in RUNS.items():
        train([job(name, **options) for name, options in runs.items()], num_processes)
        found |= {name: torch.load(folder / f"{name}.pt", weights_only=True) for name in runs}
    return folder, {name: (saved["weights"], json.loads(saved["result"])) for name, saved in found.items()}


def logged(result, name):
    return [entry[name] for entry in result["logs"] if name in entry]


PARTS = ("loss", "prediction_loss", "kl_loss", "sparsity_loss", "grad_norm")
SCHEDULES = ("learning_rate", "weight_decay", "ema_momentum", "sparsity_weight", "kl_weight")
MONITORS = ("zero_columns", "selectivity", "generator_norm", "group_gradient_norm", "kkt_residual_nonzero")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "of_one", "num_processes"),
    [
        ("plain", "one", 2),
        ("accumulated", "one", 2),
        ("watched", "one", 2),
        ("Adam", "one, Adam", 2),
        pytest.param("of four", "one", 4, marks=LONG),
        ("sharded", "one", 2),
        ("sharded, Adam", "one, Adam", 2),
        pytest.param("of four, sharded", "one", 4, marks=LONG),
    ],
)
def test_processes_train_what_one_trains_with_their_batches_together(
    trained, assert_same_weights, record_fault, name, of_one, num_processes
):
    """Masks, augmentation, noise, EMA and proximal step on; with and without accumulation. Only rounding differs."""
    (weights, expected), (found, result) = trained[1][of_one], trained[1][name]
    # W starts with three of four columns zero.
    assert logged(expected, "zero_columns")[-1] not in (0, 0.75, 1), "the proximal step has work to do here"
    assert result["processes"] == num_processes and expected["processes"] == 1
    assert all(result["shards"]) == any(result["shards"]) == ("sharded" in name), "every parameter, or none"
    if "Adam" in name:
        # The softmax does not see them, so their gradient is rounding, and Adam makes steps of full length of it.
        found, weights = ({k: w for k, w in each.items() if "k_proj.bias" not in k} for each in (found, weights))
    assert_same_weights(found, weights, atol=1e-6)
    for part in (*PARTS, *MONITORS):
        assert logged(result, part) == pytest.approx(logged(expected, part), rel=1e-5), part
    for schedule in SCHEDULES:
        assert logged(result, schedule) == logged(expected, schedule) and len(logged(result, schedule)) == 20
    assert result["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-5)
    losses = (logged(result, "loss"), logged(expected, "loss"))
    engine = "FSDP2" if "sharded" in name else "DDP"
    optimizer = "AdamW" if "Adam" in name else "SGD"
    accumulated = ", accumulated" if "accumulation_steps" in str(RUNS[num_processes][name]) else ""
    record_fault(
        "processes",
        f"20 steps of {num_processes} processes beside those of one: {engine}, {optimizer}{accumulated}",
        injected=1,
        held=1,
        weights_differ_by=max(float((found[key] - weights[key]).abs().max()) for key in weights),
        losses_differ_by=max(abs(a / b - 1) for a, b in zip(*losses, strict=True)),
    )


@pytest.mark.slow
def test_all_processes_go_by_one_knn_accuracy_which_ddp_and_fsdp2_measure_alike(trained):
    (_, watched), (_, sharded) = trained[1]["watched"], trained[1]["sharded"]
    accuracies = logged(watched, "knn_accuracy")
    assert len(accuracies) == 5 and watched["eval_knn_accuracy"] == [accuracies[-1]] * 2
    assert logged(sharded, "knn_accuracy") == accuracies and sharded["eval_knn_accuracy"] == [accuracies[-1]] * 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "sharded, "])
def test_processes_go_on_after_an_interruption_as_if_there_had_been_none(trained, assert_same_weights, kind):
    (weights, whole), (found, resumed) = trained[1][f"{kind}whole"], trained[1][f"{kind}resumed"]
    assert_same_weights(found, weights)
    assert logged(resumed, "loss") == logged(whole, "loss")
    assert logged(resumed, "group_gradient_norm") == logged(whole, "group_gradient_norm")


@pytest.mark.slow
def test_in_bf16_shards_train_like_whole_weights_and_keep_them_in_float32(trained):
    """The casts differ: FSDP2 casts what it gathers, and autocast what enters a product."""
    (weights, expected), (found, result) = trained[1]["bf16"], trained[1]["sharded, bf16"]
    assert logged(result, "loss") == pytest.approx(logged(expected, "loss"), rel=0.02)
    assert logged(result, "zero_columns") == pytest.approx(logged(expected, "zero_columns"), abs=0.1)
    assert {weight.dtype for weight in found.values()} == {torch.float32}
    target = "sparsejepa.target_encoder.layers.0.mlp.fc1.weight"
    torch.testing.assert_close(found[target], weights[target], atol=5e-3, rtol=0)


@pytest.mark.slow
def test_a_checkpoint_of_shards_is_one_that_anyone_loads(trained):
    folder, results = trained
    name = "sharded, whole"
    weights = safetensors.torch.load_file(folder / name / "checkpoint-7" / "model.safetensors")
    assert weights.keys() == results[name][0].keys()
    assert all(torch.equal(weights[key], value) for key, value in results[name][0].items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["poisoned, seen in a log", "poisoned, seen in a save"])
def test_nan_in_one_process_stops_both_before_anything_is_saved(trained, name):
    folder, results = trained
    error = results[name][1]["error"]
    assert "The loss is nan" in error and ", first at step " in error
    for path in (folder / name).glob("checkpoint-*/model.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in safetensors.torch.load_file(path).values())
