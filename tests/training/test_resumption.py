# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What a run was started with: a changed option that is allowed is applied, and equal batches may be cut anew."""

import json
import random
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from sparsejepa_hf.data import ImageDataset, ResidentImages, StreamingImageDataset, build_scenes, collate_pixels
from sparsejepa_hf.training import FineTuningArguments, FineTuningTrainer, load_classifier
from sparsejepa_hf.training.checkpoints import MANIFEST_NAME
from sparsejepa_hf.training.resumption import RUN_RECORD, describe_data


STEPS = {"max_steps": 6, "weight_decay_end": 0.1, "warmup_steps": 3, "lr_scheduler_type": "cosine"}


@pytest.fixture
def stopped(make_trainer):
    """Makes the checkpoint after 2 of 6 steps of a run, and returns its folder."""

    def run(**options):
        trainer = make_trainer(**{**STEPS, **options}, save_strategy="steps", save_steps=2)
        trainer.train()
        return str(Path(trainer.args.output_dir) / "checkpoint-2")

    return run


def hyper_parameters(trainer, record, **resume):
    """What the optimizer stepped with at each step, by group, and what was logged of the schedules."""
    recorder = record(lambda model, optimizer: None)
    seen = []

    def on_optimizer_step(args, state, control, optimizer, **kwargs):
        seen.append(
            [{k: v for k, v in group.items() if k not in ("params", "step")} for group in optimizer.param_groups]
        )

    recorder.on_optimizer_step = on_optimizer_step
    trainer.add_callback(recorder)
    trainer.train(**resume)
    logged = ("learning_rate", "weight_decay", "ema_momentum", "sparsity_weight", "kl_weight")
    logs = [
        {name: entry[name] for name in logged} for entry in trainer.state.log_history if "prediction_loss" in entry
    ]
    return list(zip(seen, logs[-len(seen) :], strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 7e-3},
        {"group_learning_rate": 7e-3},
        {"weight_decay": 0.2},
        {"weight_decay_end": 0.3},
        {"adam_beta1": 0.8},
        {"adam_beta2": 0.9},
        {"adam_epsilon": 1e-6},
        {"warmup_steps": 5},
        {"max_steps": 8},
        {"lr_scheduler_type": "linear"},
        {"ema_momentum": 0.5},
        {"sparsity_warmup_steps": 6},
        {"config": {"sparsity_weight": 0.5}},
        {"config": {"kl_weight": 0.5}},
        {"learning_rate": 7e-3, "weight_decay": 0.2, "max_steps": 7},
    ],
    ids=lambda change: ", ".join(change.get("config", change)),
)
def test_the_steps_after_a_resume_use_what_was_changed_by_name(stopped, make_trainer, record, change):
    """They go by the schedules of a run that had the new values from its start."""
    checkpoint, names = stopped(), list(change.get("config", change))
    expected = hyper_parameters(make_trainer(**{**STEPS, **change}), record)
    resumed = make_trainer(**{**STEPS, **change}, resume_with_changes=names)
    found = hyper_parameters(resumed, record, resume_from_checkpoint=checkpoint)
    assert found == expected[2:]
    unchanged = hyper_parameters(make_trainer(**STEPS), record, resume_from_checkpoint=checkpoint)
    assert unchanged != found


def test_a_rate_of_zero_leaves_the_weights_where_they_were(stopped, make_trainer, weights_of, assert_same_weights):
    checkpoint = stopped()
    resumed = make_trainer(**STEPS, resume_with_changes=["learning_rate"], learning_rate=0.0)
    resumed.train(resume_from_checkpoint=checkpoint)
    still = make_trainer(**STEPS | {"max_steps": 2})
    still.args.resume_with_changes = ["max_steps"]
    still.train(resume_from_checkpoint=checkpoint)
    found, expected = weights_of(resumed), weights_of(still)
    targets = {name for name in found if "target_encoder" in name}
    assert_same_weights(
        {name: found[name] for name in found.keys() - targets},
        {name: expected[name] for name in found.keys() - targets},
    )


def test_layer_decay_is_applied_too(checkpoint, make_dataset, tmp_path, record):
    def build(**options):
        torch.manual_seed(0)
        defaults = {"use_cpu": True, "report_to": "none", "max_steps": 4, "per_device_train_batch_size": 8}
        arguments = FineTuningArguments(str(tmp_path / "run"), **{**defaults, "save_steps": 2, **options})
        model = load_classifier(checkpoint, ["a", "b", "c", "d"])
        return FineTuningTrainer(model=model, args=arguments, train_dataset=make_dataset())

    def rates(trainer, **resume):
        recorder = record(lambda model, optimizer: [group["lr"] for group in optimizer.param_groups])
        trainer.add_callback(recorder)
        trainer.train(**resume)
        return recorder.values

    build().train()
    changed = {"layer_decay": 0.5, "resume_with_changes": ["layer_decay"], "save_strategy": "no"}
    checkpoint_2 = str(tmp_path / "run" / "checkpoint-2")
    assert rates(build(**changed), resume_from_checkpoint=checkpoint_2) == rates(build(**changed))[2:]


def test_a_change_is_written_into_the_checkpoints_that_follow(stopped, make_trainer):
    checkpoint = stopped()
    options = {**STEPS, "learning_rate": 1e-4, "save_strategy": "steps", "save_steps": 1}
    first = make_trainer(**options, resume_with_changes=["learning_rate"])
    first.train(resume_from_checkpoint=checkpoint)
    third = Path(first.args.output_dir) / "checkpoint-3"
    record = json.loads((third / RUN_RECORD).read_text())
    assert record["arguments"]["learning_rate"] == 1e-4
    assert record["changes"] == [{"from": "checkpoint-2", "learning_rate": [3e-3, 1e-4]}]
    # The same command goes on, and the name that no longer differs is no error.
    again = make_trainer(**options, resume_with_changes=["learning_rate"])
    again.train(resume_from_checkpoint=str(third))
    with pytest.raises(ValueError, match=r"learning_rate: 0\.0001 -> 0\.003"):
        make_trainer(**STEPS).train(resume_from_checkpoint=str(third))


def test_what_only_says_when_to_log_and_to_save_may_change_and_does(stopped, make_trainer):
    resumed = make_trainer(**STEPS, logging_steps=3, save_strategy="steps", save_steps=5)
    resumed.train(resume_from_checkpoint=stopped())
    steps = [entry["step"] for entry in resumed.state.log_history if "prediction_loss" in entry]
    assert steps == [1, 2, 3, 6]
    assert sorted(path.name for path in Path(resumed.args.output_dir).glob("checkpoint-*")) == [
        "checkpoint-5",
        "checkpoint-6",
    ]


def test_a_name_that_no_option_has_is_refused(stopped, make_trainer):
    with pytest.raises(ValueError, match=r"resume_with_changes has 'learning_rat'.*Did you mean 'learning_rate'\?"):
        make_trainer(**STEPS, resume_with_changes=["learning_rat"]).train(resume_from_checkpoint=stopped())


def test_names_are_words_or_have_commas_between_them(make_trainer):
    args = make_trainer(resume_with_changes=["seed,learning_rate", "max_steps"]).args
    assert args.resume_with_changes == ["seed", "learning_rate", "max_steps"]


def test_a_checkpoint_without_a_record_goes_on_with_a_warning(stopped, make_trainer, hear_warnings):
    checkpoint = stopped()
    # An older one has no manifest either.
    (Path(checkpoint) / RUN_RECORD).unlink()
    (Path(checkpoint) / MANIFEST_NAME).unlink()
    make_trainer(**STEPS).train(resume_from_checkpoint=checkpoint)
    assert any("does not say what its run was started with" in message for message in hear_warnings.messages)


def test_a_damaged_record_is_refused(stopped, make_trainer):
    checkpoint = stopped()
    (Path(checkpoint) / RUN_RECORD).write_text('{"arguments": 3}')
    (Path(checkpoint) / MANIFEST_NAME).unlink()
    with pytest.raises(ValueError, match=r"run_options\.json cannot be read .*Resume from another checkpoint"):
        make_trainer(**STEPS).train(resume_from_checkpoint=checkpoint)


def test_without_the_grouping_its_options_are_no_difference(stopped, make_trainer):
    plain = {"config": {"use_grouping": False, "kl_weight": 0.0}}
    trainer = make_trainer(**STEPS, config={"use_grouping": False, "kl_weight": 0.5, "num_latents": 8})
    trainer.train(resume_from_checkpoint=stopped(**plain))
    assert trainer.state.global_step == 6


# ---- how a batch is cut ----


def test_equal_batches_may_be_cut_anew(stopped, make_trainer, weights_of, assert_same_weights):
    """Images, masks and noise go by the place in the whole batch. Only rounding differs."""
    # Adam makes much of a gradient that is rounding alone, as that of a key's bias.
    options = {**STEPS, "optim": "sgd", "learning_rate": 0.1}
    checkpoint = stopped(**options)
    whole = make_trainer(**options)
    cut = make_trainer(**options, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    for trainer in (whole, cut):
        trainer.train(resume_from_checkpoint=checkpoint)
    assert_same_weights(weights_of(cut), weights_of(whole), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"per_device_train_batch_size": 4}, "per_device_train_batch_size: 8 -> 4"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps: 1 -> 2"),
    ],
)
def test_other_batches_are_refused(stopped, make_trainer, options, sizes):
    with pytest.raises(ValueError, match=sizes):
        make_trainer(**STEPS, **options).train(resume_from_checkpoint=stopped())


@pytest.mark.parametrize("count", [52, 44])
def test_a_cut_that_changes_the_end_of_an_epoch_is_refused(stopped, make_trainer, make_dataset, count):
    """52 images are six batches of 8, and seven steps of 4 + 4, the last of them half a batch."""
    images = make_dataset(count)
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "train_dataset": images}
    with pytest.raises(ValueError, match="per_device_train_batch_size: 8 -> 4"):
        make_trainer(**STEPS, **options).train(resume_from_checkpoint=stopped(train_dataset=images))


def test_with_dropout_a_batch_is_not_cut_anew(stopped, make_trainer):
    """Its noise comes from a generator of the process."""
    dropout = {"config": {"hidden_dropout_prob": 0.1}}
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, **dropout}
    with pytest.raises(ValueError, match="gradient_accumulation_steps: 1 -> 2"):
        make_trainer(**STEPS, **options).train(resume_from_checkpoint=stopped(**dropout))


# ---- what tells data apart ----


def scenes(seed=0, count=12):
    return build_scenes(count, image_size=16, seed=seed, split="train").select_columns(["image", "label"])


def test_data_are_known_by_their_images_however_they_are_held():
    cached, on_demand = ImageDataset(scenes(), 16), ImageDataset(scenes(), 16, cache=False)
    known = describe_data(cached, collate_pixels)
    assert known["train_images"] == 12 and known["train_pixels"] is not None
    assert describe_data(ResidentImages(cached, "cpu"), collate_pixels) == known
    assert describe_data(ImageDataset(scenes(seed=1), 16), collate_pixels) != known
    seen = describe_data(on_demand, collate_pixels)
    assert seen == describe_data(ImageDataset(scenes(), 16, cache=False), collate_pixels)
    assert seen != describe_data(ImageDataset(scenes(), 24, cache=False), collate_pixels)
    assert on_demand._tally.seen == 0, "what is looked at here is not counted"


def test_a_stream_is_known_by_its_files(tmp_path):
    def stream(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            scenes().to_parquet(str(tmp_path / name))
        files = [str(tmp_path / name) for name in names]
        return StreamingImageDataset(
            datasets.load_dataset("parquet", data_files=files, split="train", streaming=True), 16, repeat=True
        )

    known = describe_data(stream("a/0.parquet", "a/1.parquet"), None)
    assert known["train_shards"] == 2
    assert describe_data(stream("b/0.parquet", "b/1.parquet"), None) == known, "moved"
    assert describe_data(stream("a/0.parquet", "a/2.parquet"), None) != known


class Chance(Dataset):
    """Images that are augmented by chance."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        noise = random.random() + np.random.rand() + torch.rand(3, 8, 8)
        return {"pixel_values": noise + index}


class Fresh(Chance):
    """By a chance of their own, so never the same twice."""

    generator = torch.Generator().manual_seed(0)

    def __getitem__(self, index):
        return {"pixel_values": torch.rand(3, 8, 8, generator=self.generator)}


def test_looking_at_data_draws_no_random_number_of_the_run():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first, second = describe_data(Chance(), collate_pixels), describe_data(Chance(), collate_pixels)
    assert draw() == expected
    assert first == second and first["train_pixels"] is not None


def test_images_that_are_never_the_same_twice_are_not_compared():
    assert describe_data(Fresh(), collate_pixels) == {"train_images": 20, "train_pixels": None}
