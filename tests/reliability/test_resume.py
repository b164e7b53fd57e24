# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A run that is resumed with an option changed is refused with the option's name, and nothing of it is touched."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from sparsejepa_hf.commands.pretrain import main


# What a user may change between a kill and the resume, on the command line, and how the refusal names it.
CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "seed": ({"seed": 1}, "seed: 42 -> 1"),
    "order of the data": ({"data_seed": 5}, "data_seed: None -> 5"),
    "number of images": ({"max_train_examples": 40}, "train_images: 32 -> 40"),
    "images": ({"dataset_seed": 3}, "train_pixels: "),
    "data set": ({"dataset": "textured-scenes"}, "train_pixels: "),
    "pixel statistics": (
        {"image_mean": [0.4, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
        r"image_mean: \[0\.5, 0\.5, 0\.5\] -> \[0\.4, 0\.5, 0\.5\]",
    ),
    "size at which images are loaded": ({"load_size": 20, "crop": "resized"}, "load_size: None -> 20"),
    "lambda": ({"sparsity_weight": 0.2}, r"sparsity_weight: 0\.1 -> 0\.2"),
    "lambda's warm-up": ({"sparsity_warmup_steps": 3}, r"sparsity_warmup_steps: 0\.1 -> 3"),
    "beta": ({"kl_weight": 0.01}, r"kl_weight: 0\.001 -> 0\.01"),
    "number of masks": ({"num_target_blocks": 2}, "num_target_blocks: 4 -> 2"),
    "shape of masks": ({"target_aspect_ratio": [1.0, 1.0]}, "target_aspect_ratio: "),
    "moving average": ({"ema_momentum": 0.9}, r"ema_momentum: 0\.996 -> 0\.9"),
    "loss": ({"loss_type": "mse"}, "loss_type: smooth_l1 -> mse"),
    "image size": ({"image_size": 32}, "image_size: 16 -> 32"),
    "heads": ({"num_attention_heads": 4}, "num_attention_heads: 2 -> 4"),
    "sparsity mode": ({"sparsity_mode": "penalty"}, "sparsity_mode: proximal -> penalty"),
    "grouping": ({"use_grouping": False}, "use_grouping: True -> False"),
    "schedule": ({"lr_scheduler_type": "linear"}, "lr_scheduler_type: cosine_with_min_lr -> linear"),
    "length": ({"max_steps": 6}, "max_steps: 4 -> 6"),
    "batch of a process": ({"per_device_train_batch_size": 4}, "per_device_train_batch_size: 8 -> 4"),
    "accumulation": ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps: 1 -> 2"),
    "learning rate": ({"learning_rate": 1e-4}, r"learning_rate: 0\.001 -> 0\.0001"),
    "weight decay": ({"weight_decay": 0.3}, r"weight_decay: 0\.05 -> 0\.3"),
    "optimizer": ({"optim": "sgd"}, "optim: adamw_torch_fused -> sgd"),
    "clipping": ({"max_grad_norm": 0.1}, r"max_grad_norm: 1\.0 -> 0\.1"),
    "augmentation": ({"color_jitter": 0.0}, r"color_jitter: 0\.1 -> 0\.0"),
    "precision": ({"bf16": True}, "mixed_precision: no -> bf16"),
}
FIXED = {"image size", "heads", "sparsity mode", "grouping", "optimizer"}
HELD: list[str] = []


@pytest.fixture(scope="module")
def options(tmp_path_factory, make_recipe) -> dict[str, Any]:
    """Of a run that was killed after two of four steps: it left checkpoint-2."""
    folder = tmp_path_factory.mktemp("killed") / "run"
    return make_recipe(
        max_steps=4, max_train_examples=32, save_strategy="steps", save_steps=2, probe=False, output_dir=str(folder)
    )


def call(options: dict[str, Any], path: Path, *flags: str) -> dict[str, Any]:
    path.write_text(yaml.safe_dump(options), encoding="utf-8")
    return main([str(path), *flags])


@pytest.fixture(scope="module")
def killed(options, tmp_path_factory) -> Path:
    """The folder of the run."""
    scratch = tmp_path_factory.mktemp("scratch")
    call(options, scratch / "run.yaml")
    folder = Path(options["output_dir"])
    for path in folder.iterdir():
        if path.is_file() and path.name != "pretraining_options.yaml":
            path.unlink()
    for path in (folder / "checkpoint-4").iterdir():
        path.unlink()
    (folder / "checkpoint-4").rmdir()
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_option_is_refused_by_its_name(killed, options, tmp_path, name):
    change, message = CHANGES[name]
    before = content(killed)
    with pytest.raises(ValueError, match=message) as refusal:
        call({**options, **change}, tmp_path / "run.yaml", "--resume_from_checkpoint", "true")
    assert ("cannot change on a resume" in str(refusal.value)) == (name in FIXED)
    assert ("--resume_with_changes" in str(refusal.value)) == (name not in FIXED)
    assert content(killed) == before
    HELD.append(name)


def test_all_differences_are_told_at_once_and_allowed_as_the_message_says(killed, options, tmp_path):
    changed = {**options, "learning_rate": 1e-4, "seed": 1, "kl_weight": 0.01, "output_dir": str(tmp_path / "on")}
    words = ["--resume_from_checkpoint", str(killed / "checkpoint-2")]
    with pytest.raises(ValueError, match=r"learning_rate.*\n.*seed.*\n.*kl_weight") as refusal:
        call(changed, tmp_path / "run.yaml", *words)
    said = str(refusal.value)
    allowed = said[said.index("--resume_with_changes") :].split()
    results = call(changed, tmp_path / "run.yaml", *words, *allowed)
    assert results["train_metrics"]["train_loss"] > 0
    written = yaml.safe_load((tmp_path / "on" / "pretraining_options.yaml").read_text())
    assert written["learning_rate"] == 1e-4 and "resume_with_changes" not in written


def test_what_does_not_shape_the_run_may_change_and_the_weights_do_not(killed, options, tmp_path):
    free = {"logging_steps": 2, "save_steps": 3, "save_total_limit": 1, "dataloader_num_workers": 1, "run_name": "x"}
    free |= {"eval_split": "test", "max_eval_examples": 16, "knn_steps": 0, "gradient_checkpointing": True}
    resume = ["--resume_from_checkpoint", str(killed / "checkpoint-2")]
    weights = []
    for name, change in (("same", {}), ("changed", free)):
        folder = tmp_path / name
        call({**options, **change, "output_dir": str(folder)}, tmp_path / "run.yaml", *resume)
        weights.append(safetensors.torch.load_file(folder / "model.safetensors"))
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_the_results_of_an_earlier_end_are_gone_while_the_run_goes_on(killed, options, tmp_path, monkeypatch):
    """A run that is lengthened, and then killed, must not count as finished."""
    folder = tmp_path / "run"
    short = {**options, "output_dir": str(folder)}
    call(short, tmp_path / "run.yaml")
    assert (folder / "pretraining_results.json").is_file()

    def kill(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("sparsejepa_hf.training.SparseJEPATrainer.save_run", kill)
    words = ["--resume_from_checkpoint", "true", "--resume_with_changes", "max_steps"]
    with pytest.raises(KeyboardInterrupt):
        call({**short, "max_steps": 5}, tmp_path / "run.yaml", *words)
    assert not (folder / "pretraining_results.json").exists()


def test_the_changes_are_counted(record_fault):
    """Last in this file."""
    if HELD:
        assert len(set(HELD)) == len(HELD)
        record_fault("resume", "an option changed before a resume", injected=len(HELD), held=len(HELD))
