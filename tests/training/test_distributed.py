# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Several processes, and the commands that people type: each in processes of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from transformers import AutoModel

import sparsejepa_hf


REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "examples" / "pretrain.py"
ONE_PROCESS = [sys.executable]
TWO_PROCESSES = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

# Trains every run of a JSON list, one after the other, and keeps what they end with.
TRAIN = """
import json, sys
import torch
from torch.utils.data import Dataset
from sparsejepa_hf import SparseJEPAConfig
from sparsejepa_hf.modeling_sparsejepa import SparseJEPAForPreTraining
from sparsejepa_hf.training import SparseJEPATrainer, SparseJEPATrainingArguments
from sparsejepa_hf.training.monitors import NonFiniteLossError


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
        return {"pixel_values": self.images[index], "labels": index % 4}


torch.set_num_threads(1)
for run in json.load(open(sys.argv[1])):
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
    if not error:
        result["eval_loss"] = trainer.evaluate()["eval_loss"]
    if trainer.is_world_process_zero():
        weights = {name: p.detach() for name, p in trainer.model.named_parameters()}
        torch.save({"weights": weights, "result": json.dumps(result)}, run["out"])
trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()
"""


def run(command, **options):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            [str(Path(sparsejepa_hf.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
        ),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True, timeout=300, **options
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    return done.stdout


@pytest.fixture
def train(tmp_path, make_small_config):
    """Runs a list of trainings in one launch; returns each one's weights and logs."""

    def launch(name, command, runs):
        script = tmp_path / "train.py"
        script.write_text(TRAIN, encoding="utf-8")
        jobs = []
        for index, options in enumerate(runs):
            arguments = {
                "output_dir": str(tmp_path / f"{name}-{index}"),
                "use_cpu": True,
                "report_to": "none",
                "disable_tqdm": True,
                "save_strategy": "no",
                "logging_steps": 1,
                "max_steps": 6,
                "optim": "sgd",
                "learning_rate": 0.1,
                "warmup_steps": 0,
                "sparsity_warmup_steps": 0,
                "ema_momentum": 0.5,
                "ema_momentum_end": 0.9,
                "color_jitter": 0.2,
                "crop_padding": 2,
                **options.get("arguments", {}),
            }
            config = make_small_config(**options.get("config", {"sparsity_weight": 1e-2})).to_dict()
            known = {k: v for k, v in config.items() if k in sparsejepa_hf.SparseJEPAConfig.__annotations__}
            known.pop("model_type", None)
            jobs.append(
                {
                    "config": known,
                    "arguments": arguments,
                    "resume": options.get("resume"),
                    "model_seed": options.get("model_seed", 0),
                    "poisoned": options.get("poisoned", False),
                    "out": str(tmp_path / f"{name}-{index}.pt"),
                }
            )
        (tmp_path / f"{name}.json").write_text(json.dumps(jobs), encoding="utf-8")
        run([*command, script, tmp_path / f"{name}.json"])
        saved = [torch.load(job["out"], weights_only=True) for job in jobs]
        return [(each["weights"], json.loads(each["result"])) for each in saved]

    return launch


def logged(result, name):
    return [entry[name] for entry in result["logs"] if name in entry]


@pytest.mark.slow
def test_two_processes_train_what_one_trains_with_twice_the_batch(train, assert_same_weights):
    """Masks, augmentation, noise, EMA and proximal step on; with and without accumulation. Only rounding differs."""
    one = train("one", ONE_PROCESS, [{"arguments": {"per_device_train_batch_size": 8}}])
    batch = "per_device_train_batch_size"
    two = train(
        "two",
        TWO_PROCESSES,
        [
            {"arguments": {batch: 4, "per_device_eval_batch_size": 4}},
            {"arguments": {batch: 2, "gradient_accumulation_steps": 2}},
            {"arguments": {batch: 4, "knn_steps": 2, "knn_k": 3, "gradient_checkpointing": True}},
        ],
    )
    weights, expected = one[0]
    zero_columns = logged(expected, "zero_columns")[-1]
    # W starts with three of four columns zero.
    assert zero_columns not in (0, 0.75, 1), "the proximal step has work to do here"
    for found, result in two:
        assert result["processes"] == 2 and expected["processes"] == 1
        assert_same_weights(found, weights, atol=1e-5)
        for name in ("loss", "prediction_loss", "kl_loss", "sparsity_loss", "zero_columns"):
            assert logged(result, name) == pytest.approx(logged(expected, name), rel=1e-4)
        assert result["eval_loss"] == pytest.approx(expected["eval_loss"], rel=1e-4)
    assert len(logged(two[2][1], "knn_accuracy")) == 4


@pytest.mark.slow
def test_two_processes_go_on_after_an_interruption_as_if_there_had_been_none(train, assert_same_weights, tmp_path):
    arguments = {"per_device_train_batch_size": 4, "max_steps": 7}
    checkpoint = str(tmp_path / "resume-0" / "checkpoint-3")
    whole, resumed = train(
        "resume",
        TWO_PROCESSES,
        [
            {"arguments": {**arguments, "save_strategy": "steps", "save_steps": 3}},
            {"arguments": arguments, "resume": checkpoint, "model_seed": 9},
        ],
    )
    assert_same_weights(resumed[0], whole[0])
    assert logged(resumed[1], "loss") == logged(whole[1], "loss")


@pytest.mark.slow
def test_nan_in_one_process_stops_both_before_anything_is_saved(train, tmp_path):
    """One image of 32 is NaN, so one process alone sees it first; nobody may wait for the other forever."""
    for name, arguments in (
        ("by-log", {"logging_steps": 1, "save_strategy": "steps", "save_steps": 1}),
        ("by-save", {"logging_steps": 100, "save_strategy": "steps", "save_steps": 1}),
    ):
        ((_, result),) = train(
            name, TWO_PROCESSES, [{"poisoned": True, "arguments": {"per_device_train_batch_size": 4, **arguments}}]
        )
        assert "The loss is nan" in result["error"]
        for path in (tmp_path / f"{name}-0").glob("checkpoint-*/model.safetensors"):
            assert all(torch.isfinite(tensor).all() for tensor in safetensors.torch.load_file(path).values())


# ---- the example ----


RUN = {
    "dataset": "synthetic-scenes",
    "eval_split": "test",
    "max_train_examples": 64,
    "max_eval_examples": 32,
    "preset": "vit-tiny",
    "num_groups": 4,
    "num_latents": 6,
    "max_steps": 3,
    "per_device_train_batch_size": 16,
    "save_strategy": "steps",
    "save_steps": 2,
}


@pytest.fixture
def recipe(tmp_path, make_recipe):
    def write(**overrides):
        path = tmp_path / "recipe.yaml"
        options = make_recipe(**{**RUN, "output_dir": str(tmp_path / "out"), **overrides})
        path.write_text(yaml.safe_dump(options), encoding="utf-8")
        return path

    return write


def assert_complete(folder: Path) -> None:
    assert AutoModel.from_pretrained(folder).config.hidden_size == 32
    results = json.loads((folder / "pretraining_results.json").read_text(encoding="utf-8"))
    assert set(results["comparison"]) == {"raw pixels", "untrained", "trained"}
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| untrained |" in card and "optimizer steps | 3 " in card


@pytest.mark.slow
def test_the_example_runs_from_a_file_alone_goes_on_and_repeats_itself(recipe, tmp_path):
    """From a YAML file; again from the options it wrote; and on from its last checkpoint."""
    printed = run([*ONE_PROCESS, SCRIPT, recipe()])
    assert "Better than the untrained encoder by" in printed and str(tmp_path / "out") in printed
    assert_complete(tmp_path / "out")
    first = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    options = tmp_path / "out" / "pretraining_options.yaml"
    for flags in (
        ["--output_dir", tmp_path / "again", "--no_probe"],
        ["--resume_from_checkpoint", "true", "--no_probe"],
    ):
        run([*ONE_PROCESS, SCRIPT, options, *flags])
        folder = tmp_path / "again" if "--output_dir" in flags else tmp_path / "out"
        again = safetensors.torch.load_file(folder / "model.safetensors")
        assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


@pytest.mark.slow
def test_the_example_runs_under_accelerate(recipe, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    run([*launch, SCRIPT, recipe(), "--sparsity_mode", "penalty"])
    assert_complete(tmp_path / "out")


@pytest.mark.slow
def test_the_example_runs_in_two_processes_and_reports_once(recipe, tmp_path):
    printed = run([*TWO_PROCESSES, SCRIPT, recipe(per_device_train_batch_size=8)])
    assert printed.count("Better than the untrained encoder") == 1
    assert_complete(tmp_path / "out")
