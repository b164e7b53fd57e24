# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What the arguments refuse, and that none of them is ignored."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from transformers import HfArgumentParser, TrainingArguments

from sparsejepa_hf.training import SparseJEPATrainingArguments as Arguments


OWN = {f.name for f in dataclasses.fields(Arguments)} - {f.name for f in dataclasses.fields(TrainingArguments)}


@pytest.mark.parametrize(
    ("name", "value", "valid"),
    [
        ("ema_momentum", 1.0, r"in \[0, 1\)"),
        ("ema_momentum", -0.1, r"in \[0, 1\)"),
        ("ema_momentum_end", 1.0, r"in \[0, 1\)"),
        ("ema_momentum_end", float("nan"), r"in \[0, 1\)"),
        ("sparsity_warmup_steps", -1, "at least 0"),
        ("kl_warmup_steps", -0.5, "at least 0"),
        ("weight_decay_end", -0.1, "at least 0"),
        ("support_steps", 0, "at least 1"),
        ("group_learning_rate", -1e-3, "at least 0"),
        ("crop", "random", "'pad', 'resized', 'none'"),
        ("crop_padding", -1, "at least 0"),
        ("crop_scale", [0.5], "two numbers"),
        ("target_aspect_ratio", [1.0, 2.0, 3.0], "two numbers"),
        ("horizontal_flip", 1.5, r"in \[0, 1\]"),
        ("horizontal_flip", -0.5, r"in \[0, 1\]"),
        ("color_jitter", -0.1, r"in \[0, 1\]"),
        ("knn_steps", -1, "at least 0"),
        ("knn_k", 0, "at least 1"),
        ("knn_max_examples", 0, "at least 1"),
        ("monitor_samples", 0, r"in \[1, 1000000\]"),
        ("collapse_min_std", -1.0, "at least 0"),
        ("collapse_min_rank", -1.0, "at least 0"),
        ("collapse_action", "ignore", "'warn', 'stop'"),
        ("weight_decay", -1, "at least 0"),
        ("max_grad_norm", float("nan"), "at least 0"),
        ("collapse_min_std", float("nan"), "at least 0"),
        ("max_steps", 0, "at least 1, or -1"),
        ("gradient_accumulation_steps", 0, "at least 1"),
        ("per_device_train_batch_size", -8, "at least 1"),
        ("num_target_blocks", 1000, r"in \[1, 64\]"),
        ("num_train_epochs", 0, "above 0"),
        ("learning_rate", float("inf"), "at least 0"),
        ("adam_beta2", 1.0, r"in \[0, 1\)"),
        ("adam_epsilon", 0, "above 0"),
        ("seed", -1, r"in \[0, 4294967295\]"),
        ("seed", 2**64, r"an integer below 2\*\*63"),
        ("seed", 1.0, "an integer"),
        ("logging_steps", 0, "above 0"),
        ("crop_scale", [0.0, 1.0], r"in \(0, 1\]"),
        ("save_strategy", False, "no, steps, epoch, best"),
        ("eval_strategy", "never", "no, steps, epoch"),
        ("lr_scheduler_type", "cosin", "'cosine'"),
        ("optim", "adam", "adamw_torch"),
        ("report_to", ["tensorbord"], "'tensorboard'"),
        ("lr_scheduler_kwargs", {"min_lrr": 1}, "unexpected keyword argument 'min_lrr'.*expected the arguments"),
        ("lr_scheduler_kwargs", {"min_lr": 1.0}, "between 0 and learning_rate.*expected the arguments"),
        ("save_strategy", "best", "metric_for_best_model None.*expected a metric"),
        ("dataloader_persistent_workers", True, "at least one worker"),
    ],
)
def test_impossible_values_are_refused_in_a_sentence_that_names_field_value_and_what_is_valid(
    tmp_path, name, value, valid
):
    with pytest.raises(ValueError, match=rf"{name} is .*expected.*{valid}|{name} is .*{valid}") as raised:
        Arguments(output_dir=str(tmp_path), **{name: value})
    assert str(value) in str(raised.value)


def test_a_run_shorter_than_its_warm_up_is_told(tmp_path, hear_warnings):
    Arguments(str(tmp_path), use_cpu=True, max_steps=20, warmup_steps=100, sparsity_warmup_steps=20)
    assert hear_warnings.messages == ["warmup_steps is 100, but the run has only 20 steps, so it never ends."]


def test_numbers_and_paths_of_other_kinds_become_plain(tmp_path):
    arguments = Arguments(tmp_path, use_cpu=True, seed=np.int64(3), learning_rate=np.float32(0.5), crop_scale=(0.5, 1))
    assert (type(arguments.seed), type(arguments.learning_rate)) == (int, float)
    assert arguments.output_dir == str(tmp_path) and arguments.crop_scale == [0.5, 1]


def test_an_output_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="output_dir is .*file.*; expected a folder"):
        Arguments(str(tmp_path / "file" / "run"), use_cpu=True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_target_blocks", 0),
        ("num_target_patches", 16),
        ("num_context_patches", 16),
        ("target_aspect_ratio", [2.0, 1.0]),
        ("crop_padding", 16),
        ("crop_scale", [0.5, 1.5]),
        ("color_jitter", 1.5),
    ],
)
def test_values_that_do_not_fit_the_model_are_refused_before_training(make_trainer, name, value):
    with pytest.raises(ValueError, match=rf"{name} is .*expected"):
        make_trainer(**{name: value})


def test_a_knn_monitor_without_labelled_data_is_refused(make_trainer):
    with pytest.raises(ValueError, match="knn_steps is 2 .*, but there are no labelled data sets"):
        make_trainer(knn_steps=2)
    for name in ("knn_accuracy", "eval_knn_accuracy"):
        with pytest.raises(ValueError, match=f"metric_for_best_model {name}, but there are no labelled"):
            make_trainer(metric_for_best_model=name)


def test_a_foreign_model_or_foreign_arguments_are_refused(make_trainer, make_dataset, tmp_path):
    trainer = make_trainer()
    with pytest.raises(TypeError, match="args is a TrainingArguments; expected SparseJEPATrainingArguments"):
        type(trainer)(trainer.model, TrainingArguments(output_dir=str(tmp_path)), train_dataset=make_dataset())
    with pytest.raises(TypeError, match="model is a SparseJEPAModel; expected SparseJEPAForPreTraining"):
        type(trainer)(trainer.model.sparsejepa, trainer.args, make_dataset())


def test_arguments_pass_through_the_hugging_face_parser(tmp_path):
    flags = ["--output_dir", str(tmp_path), "--use_cpu", "--report_to", "none", "--ema_momentum", "0.5"]
    flags += ["--crop_scale", "0.25", "0.75", "--num_target_patches", "3", "--weight_decay_end", "0.2"]
    flags += ["--crop", "resized", "--warmup_steps", "0.25", "--lr_scheduler_type", "linear"]
    (parsed,) = HfArgumentParser(Arguments).parse_args_into_dataclasses(flags)
    assert (parsed.ema_momentum, parsed.crop_scale, parsed.num_target_patches) == (0.5, [0.25, 0.75], 3)
    assert (parsed.weight_decay_end, parsed.crop, parsed.warmup_steps) == (0.2, "resized", 0.25)
    untouched = Arguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    assert parsed.num_context_patches is untouched.num_context_patches is None


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup", "cosine_with_min_lr"])
def test_another_learning_rate_schedule_needs_no_other_argument(make_trainer, schedule):
    """The recipe's own schedule takes an extra argument that others refuse."""
    trainer = make_trainer(lr_scheduler_type=schedule, max_steps=2)
    assert trainer.train().global_step == 2


def test_the_recipe_s_schedule_takes_other_extra_arguments(make_trainer, train_logs_of):
    trainer = make_trainer(lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr_rate": 0.5})
    trainer.train()
    rates = [entry["learning_rate"] for entry in train_logs_of(trainer)]
    assert rates[0] == pytest.approx(3e-3) and min(rates) > 0.5 * 3e-3


# ---- no argument is ignored ----


# What every pair of runs below shares, unless it says otherwise.
SETTING: dict[str, Any] = {
    "max_steps": 2,
    "crop": "pad",
    "crop_padding": 2,
    "horizontal_flip": 0.5,
    "color_jitter": 0.2,
    "num_target_blocks": 2,
    "num_target_patches": 3,
    "num_context_patches": 6,
    "target_aspect_ratio": [0.75, 1.5],
    "weight_decay": 0.05,
    "sparsity_warmup_steps": 0,
    "kl_warmup_steps": 0,
    "group_learning_rate": 3e-3,
}
WITH_KNN = {"knn_steps": 1, "knn_k": 8, "knn_max_examples": 24}

# Argument, its other value, and what both runs need for it to matter.
CHANGES: list[tuple[str, Any, dict[str, Any]]] = [
    ("num_target_blocks", 3, {}),
    ("num_target_patches", 4, {}),
    ("num_context_patches", 5, {}),
    ("target_aspect_ratio", [0.3, 0.5], {"num_target_patches": 2, "target_aspect_ratio": [2.0, 3.0]}),
    ("ema_momentum", 0.5, {}),
    ("ema_momentum_end", 0.5, {}),
    ("weight_decay_end", 5.0, {}),
    ("weight_decay_end", 5.0, {"weight_decay": 0.0}),
    ("sparsity_warmup_steps", 2, {}),
    ("kl_warmup_steps", 2, {}),
    ("support_steps", 1, {}),
    ("group_learning_rate", 1e-1, {}),
    ("crop", "resized", {}),
    ("crop", "none", {}),
    ("crop_padding", 6, {}),
    ("crop_scale", [0.1, 0.2], {"crop": "resized", "crop_scale": [0.8, 1.0]}),
    ("horizontal_flip", 0.0, {}),
    ("color_jitter", 0.9, {}),
    ("knn_steps", 2, WITH_KNN),
    ("knn_k", 1, WITH_KNN),
    ("knn_max_examples", 4, WITH_KNN),
    ("monitor_samples", 16, {"monitor_samples": 8}),
    ("collapse_min_std", 1e9, {}),
    # The rank of few images is low by itself, so it takes some.
    ("collapse_min_rank", 8.0, {"monitor_samples": 256, "max_steps": 20}),
    ("collapse_action", "stop", {"collapse_min_std": 1e9}),
]


@pytest.fixture(scope="module")
def seen():
    """Outcomes by arguments: many of the pairs below share one of their two runs."""
    return {}


@pytest.fixture
def observe(make_trainer, make_dataset, weights_of, logs_of, hear_warnings):
    """A run's visible outcome: its weights, logs and warnings."""

    def run(**arguments: Any) -> dict[str, Any]:
        hear_warnings.clear()
        # Labels without meaning: neither all right nor all wrong, whatever the neighbours.
        knn_datasets = (make_dataset(24, random_labels=True), make_dataset(64, seed=1, random_labels=True))
        trainer = make_trainer(
            config={"sparsity_weight": 0.1}, train_dataset=make_dataset(16), knn_datasets=knn_datasets, **arguments
        )
        trainer.train()
        logs = [{k: v for k, v in entry.items() if k != "total_flos"} for entry in logs_of(trainer)]
        return {"weights": weights_of(trainer), "logs": logs, "warnings": list(hear_warnings.messages)}

    return run


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    weights = all(torch.equal(first["weights"][name], second["weights"][name]) for name in first["weights"])
    return weights and first["logs"] == second["logs"] and first["warnings"] == second["warnings"]


def test_a_run_repeats_itself(observe):
    """Without this the tests below would show nothing."""
    assert same(observe(**SETTING), observe(**SETTING))


@pytest.mark.parametrize(("name", "value", "needs"), CHANGES, ids=[f"{c[0]}={c[1]}" for c in CHANGES])
def test_each_argument_changes_what_a_run_of_two_steps_does(observe, seen, name, value, needs):
    setting = {**SETTING, **needs}
    if repr(setting) not in seen:
        seen[repr(setting)] = observe(**setting)
    assert not same(seen[repr(setting)], observe(**{**setting, name: value}))


def test_every_argument_of_ours_stands_in_the_list_of_those_that_change_something():
    # Where the images lie, what lay in the folder and what may differ at a resume is to change nothing. All three are
    # tested with the Trainer.
    others = {"data_on_device", "overwrite_output_dir", "resume_with_changes"}
    assert {name for name, _, _ in CHANGES} == OWN - others


def test_arguments_of_masks_and_augmentation_arrive_as_given(make_trainer):
    trainer = make_trainer(
        **{**SETTING, "num_target_blocks": 3, "num_context_patches": 5, "crop": "resized", "crop_scale": [0.4, 0.6]}
    )
    context_mask, target_mask = trainer.mask_sampler(8, 0)
    assert context_mask.shape == (8, 5) and target_mask.shape == (8, 3, 3)
    augmentation = trainer.augmentation
    assert (augmentation.crop, augmentation.crop_scale) == ("resized", (0.4, 0.6))
    assert (augmentation.horizontal_flip, augmentation.color_jitter) == (0.5, 0.2)


def test_what_could_only_do_harm_is_off_whatever_is_asked_for(tmp_path):
    """One would hide a non-finite loss, the other would drop the columns that the trainer lives on."""
    arguments = Arguments(str(tmp_path), use_cpu=True, logging_nan_inf_filter=True, remove_unused_columns=True)
    assert not arguments.logging_nan_inf_filter and not arguments.remove_unused_columns
