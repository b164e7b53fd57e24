# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A run is a function of its options alone, goes on as if nothing had happened, and writes nothing that is broken."""

import copy
import inspect
import json
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, Trainer, TrainerCallback

from sparsejepa_hf import SparseJEPAForPreTraining, SparseJEPATrainer, SparseJEPAVisionModel
from sparsejepa_hf.data import (
    StreamingImageDataset,
    build_scenes,
    collate_pixels,
    normalize_images,
    resize_to_square,
    to_rgb,
)
from sparsejepa_hf.training import ImageTrainer, NonFiniteLossError, image_processor


GROUP_WEIGHT = "sparsejepa.predictor.grouping.group_weight"


# ---- a run is a function of its options alone ----


@pytest.mark.parametrize("config", [{}, {"sparsity_mode": "penalty"}])
def test_splitting_the_batch_into_accumulated_parts_changes_nothing(
    make_trainer, weights_of, train_logs_of, assert_same_weights, config
):
    """1×8 = 4×2: masks, augmentation and latent noise belong to a place in the global batch. Only rounding differs."""
    whole = make_trainer(config=config, max_steps=5, optim="sgd", learning_rate=0.1)
    parts = make_trainer(
        config=config,
        max_steps=5,
        optim="sgd",
        learning_rate=0.1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
    )
    start = weights_of(whole)
    whole.train()
    parts.train()
    assert_same_weights(weights_of(parts), weights_of(whole), atol=1e-5)
    assert max((weights_of(whole)[name] - value).abs().max() for name, value in start.items()) > 1e-2
    for entry, expected in zip(train_logs_of(parts), train_logs_of(whole), strict=True):
        assert entry["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_splitting_the_batch_changes_nothing_under_the_recipe_s_optimizer_either(
    make_trainer, weights_of, assert_same_weights
):
    whole = make_trainer(max_steps=4, adam_epsilon=1e-3)
    parts = make_trainer(max_steps=4, adam_epsilon=1e-3, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    whole.train()
    parts.train()
    assert_same_weights(weights_of(parts), weights_of(whole), atol=1e-5)


def test_the_number_of_loader_workers_changes_nothing(make_trainer, weights_of, logs_of, assert_same_weights):
    runs = [make_trainer(dataloader_num_workers=workers) for workers in (0, 2)]
    for run in runs:
        run.train()
    assert_same_weights(weights_of(runs[1]), weights_of(runs[0]))
    assert logs_of(runs[1]) == logs_of(runs[0])


def test_the_global_random_state_changes_nothing(make_trainer, weights_of, assert_same_weights):
    class Disturb(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            torch.rand(3)

    runs = [make_trainer(callbacks=callbacks, max_steps=8) for callbacks in ([], [Disturb()])]
    for run in runs:
        run.train()
    assert_same_weights(weights_of(runs[1]), weights_of(runs[0]))


def test_another_seed_changes_masks_and_noise(make_trainer, make_dataset, weights_of):
    """All images in one batch, so that their order is the only other thing a seed decides."""
    runs = [make_trainer(train_dataset=make_dataset(8), max_steps=1, seed=seed) for seed in (1, 2)]
    masks = [run.mask_sampler(8, 0)[1] for run in runs]
    assert not torch.equal(*masks)
    for run in runs:
        run.train()
    assert not torch.equal(weights_of(runs[0])[GROUP_WEIGHT], weights_of(runs[1])[GROUP_WEIGHT])


def test_training_again_from_the_same_weights_repeats_the_first_run(make_trainer, weights_of, assert_same_weights):
    trainer = make_trainer(max_steps=1)
    start = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.train()
    first = weights_of(trainer)
    trainer.model.load_state_dict(start)
    trainer.optimizer = None
    trainer.train()
    assert_same_weights(weights_of(trainer), first)


def test_gradient_checkpointing_changes_nothing(make_trainer, weights_of, train_logs_of, assert_same_weights):
    plain, checkpointed = make_trainer(), make_trainer(gradient_checkpointing=True)
    plain.train()
    checkpointed.train()
    assert checkpointed.model.is_gradient_checkpointing
    assert_same_weights(weights_of(checkpointed), weights_of(plain), atol=1e-6)


@pytest.mark.parametrize("knn_steps", [1, 3])
def test_the_knn_monitor_logs_and_does_not_change_the_training(
    make_trainer, make_dataset, weights_of, logs_of, train_logs_of, assert_same_weights, knn_steps
):
    plain = make_trainer()
    watched = make_trainer(knn_steps=knn_steps, knn_k=3, knn_datasets=(make_dataset(24), make_dataset(16, seed=1)))
    plain.train()
    watched.train()
    assert_same_weights(weights_of(watched), weights_of(plain))
    assert train_logs_of(watched) == train_logs_of(plain)
    measured = {e["step"]: e["knn_accuracy"] for e in logs_of(watched) if "knn_accuracy" in e}
    assert list(measured) == [0, 1, 2, 3, 4] if knn_steps == 1 else [0, 3, 4]
    assert all(0 <= accuracy <= 1 for accuracy in measured.values())
    assert measured[0] > 0.5, "four classes told apart by colour"


def test_evaluating_on_the_way_does_not_change_the_training(
    make_trainer, make_dataset, weights_of, train_logs_of, assert_same_weights
):
    plain = make_trainer()
    watched = make_trainer(eval_dataset=make_dataset(12, seed=3), eval_strategy="steps", eval_steps=1)
    plain.train()
    watched.train()
    assert_same_weights(weights_of(watched), weights_of(plain))
    assert train_logs_of(watched) == train_logs_of(plain)


def test_labels_do_not_matter(make_trainer, make_dataset, weights_of, assert_same_weights):
    labelled, bare = (make_trainer(train_dataset=make_dataset(labels=labels)) for labels in (True, False))
    labelled.train()
    bare.train()
    assert_same_weights(weights_of(bare), weights_of(labelled))


def test_float_images_are_used_as_they_are(make_trainer, make_dataset, weights_of, assert_same_weights):
    """No augmentation: they equal uint8 images with every augmentation off, and its settings do not matter."""
    # Plain SGD: Adam blows rounding up where a gradient is zero, as that of a key's bias is.
    off = {"crop": "none", "horizontal_flip": 0.0, "color_jitter": 0.0, "optim": "sgd", "learning_rate": 0.1}
    loud = {**off, "crop": "pad", "crop_padding": 4, "color_jitter": 0.9}
    unaugmented = make_trainer(train_dataset=make_dataset(), **off)
    floats = make_trainer(train_dataset=make_dataset(floats=True), **off)
    loud = make_trainer(train_dataset=make_dataset(floats=True), **loud)
    for trainer in (unaugmented, floats, loud):
        trainer.train()
    assert_same_weights(weights_of(loud), weights_of(floats))
    assert_same_weights(weights_of(floats), weights_of(unaugmented), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 13])
def test_oblong_models_train_alike_on_uint8_and_on_the_same_images_normalised(make_trainer, channels):
    config = {"image_size": [16, 32], "num_channels": channels}
    pixels = torch.randint(0, 256, (16, channels, 16, 32), dtype=torch.uint8)
    options = {"max_steps": 2, "crop": "none", "horizontal_flip": 0.0, "color_jitter": 0.0}
    raw, ready = (
        make_trainer(config=config, train_dataset=[{"pixel_values": image} for image in images], **options)
        for images in (pixels, pixels / 127.5 - 1)
    )
    assert raw.train().training_loss == pytest.approx(ready.train().training_loss, rel=1e-4)


# ---- data as datasets, numpy and torchvision make them ----


def as_examples(kind, images):
    """The float images of a data set, in the form that `kind` names."""
    values = [images[i]["pixel_values"] for i in range(len(images))]
    if kind in ("with_transform", "map", "map, with_format"):
        rows = datasets.Dataset.from_dict({"place": list(range(len(values)))})

        def prepare(batch):
            return {"pixel_values": [values[place] for place in batch["place"]]}

        if kind == "with_transform":
            return rows.with_transform(prepare)
        mapped = rows.map(prepare, batched=True, remove_columns=["place"])
        return mapped if kind == "map" else mapped.with_format("torch")
    return [value.numpy() if kind == "arrays alone" else (value, 0) for value in values]


@pytest.mark.parametrize("kind", ["with_transform", "map", "map, with_format", "arrays alone", "pairs"])
def test_data_in_any_form_train_the_same_weights(make_trainer, make_dataset, weights_of, assert_same_weights, kind):
    images = make_dataset(16, floats=True, labels=False)
    plain, other = (
        make_trainer(train_dataset=data, eval_dataset=data, max_steps=2)
        for data in (images, as_examples(kind, images))
    )
    for trainer in (plain, other):
        trainer.train()
    assert_same_weights(weights_of(other), weights_of(plain))
    assert other.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]


def test_a_transform_without_pixel_values_is_told_what_is_expected(make_trainer):
    rows = datasets.Dataset.from_dict({"image": [0] * 8}).with_transform(lambda batch: {"pixels": batch["image"]})
    with pytest.raises(ValueError, match=r"An example has \['pixels'\]; expected 'pixel_values'"):
        make_trainer(train_dataset=rows).train()


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("floats", [False, True])
def test_images_of_any_number_of_channels_are_trained_on_and_evaluated(make_trainer, channels, floats):
    pixels = torch.randint(0, 256, (16, channels, 16, 16), dtype=torch.uint8)
    images = [{"pixel_values": image / 127.5 - 1 if floats else image} for image in pixels]
    trainer = make_trainer(
        config={"num_channels": channels}, train_dataset=images, eval_dataset=images, max_steps=2, color_jitter=0.2
    )
    assert len(trainer.processing_class.image_mean) == len(trainer.processing_class.image_std) == channels
    trainer.train()
    raw = make_trainer(config={"num_channels": channels}, eval_dataset=[{"pixel_values": x} for x in pixels])
    ready = make_trainer(
        config={"num_channels": channels}, eval_dataset=[{"pixel_values": x / 127.5 - 1} for x in pixels]
    )
    assert raw.evaluate()["eval_loss"] == pytest.approx(ready.evaluate()["eval_loss"], rel=1e-4)


def test_a_processor_with_other_channels_than_the_model_is_refused(make_trainer, make_small_config):
    trainer = make_trainer()
    with pytest.raises(ValueError, match=r"image_mean is .0.5, 0.5, 0.5., and the model's num_channels 1"):
        model = SparseJEPAForPreTraining(make_small_config(num_channels=1))
        SparseJEPATrainer(model, trainer.args, processing_class=trainer.processing_class)


# ---- the constructor of transformers' Trainer ----


def test_arguments_stand_in_the_order_of_transformers_trainer(make_trainer, make_dataset, monkeypatch, tmp_path):
    given = list(inspect.signature(Trainer.__init__).parameters)
    ours = list(inspect.signature(ImageTrainer.__init__).parameters)
    assert ours[:-1] == given[: len(ours) - 1]
    trainer, images = make_trainer(), make_dataset(8)
    same = SparseJEPATrainer(trainer.model, trainer.args, collate_pixels, images, images, trainer.processing_class)
    assert (same.train_dataset, same.eval_dataset) == (images, images)
    monkeypatch.chdir(tmp_path)
    assert SparseJEPATrainer(trainer.model).args.output_dir == "tmp_trainer"


def test_model_init_begins_each_run_from_the_weights_of_the_seed(make_trainer, make_small_config, weights_of):
    trainer = make_trainer(max_steps=2)

    def fresh():
        return SparseJEPAForPreTraining(make_small_config())

    first = SparseJEPATrainer(args=trainer.args, train_dataset=trainer.train_dataset, model_init=fresh)
    second = SparseJEPATrainer(None, trainer.args, train_dataset=trainer.train_dataset, model_init=fresh)
    found = []
    for run in (first, first, second):
        run.train()
        found.append(weights_of(run))
    assert all(torch.equal(other[name], weight) for other in found[1:] for name, weight in found[0].items())
    with pytest.raises(ValueError, match="not both"):
        SparseJEPATrainer(trainer.model, trainer.args, model_init=fresh)
    with pytest.raises(ValueError, match="SparseJEPATrainer makes its own loss.*Override compute_loss"):
        SparseJEPATrainer(trainer.model, trainer.args, compute_loss_func=lambda *_: 0)
    with pytest.raises(RuntimeError, match="either a `model` or `model_init`"):
        SparseJEPATrainer(args=trainer.args)
    with pytest.raises(TypeError, match="The model that model_init makes is a Linear; expected SparseJEPAForPreTr"):
        SparseJEPATrainer(args=trainer.args, model_init=lambda: torch.nn.Linear(1, 1))


def test_a_search_trains_each_trial_as_a_run_with_its_options(
    make_trainer, make_dataset, make_small_config, weights_of, assert_same_weights
):
    """The model and its grid, the seed and the masks of a trial are its own."""
    pytest.importorskip("optuna")
    trials = [
        {"patch_size": 4, "use_grouping": False, "num_target_blocks": 2, "learning_rate": 1e-3, "seed": 1},
        {"patch_size": 2, "use_grouping": True, "num_target_blocks": 3, "learning_rate": 3e-3, "seed": 2},
        {"patch_size": 4, "use_grouping": True, "num_target_blocks": 2, "learning_rate": 3e-3, "seed": 1},
    ]
    options = [{name: trial[name] for name in ("num_target_blocks", "learning_rate", "seed")} for trial in trials]
    images, found = make_dataset(16), []

    def build(number):
        config = {name: trials[number][name] for name in ("patch_size", "use_grouping")}
        # The seed of a trial is set after its model is made.
        torch.manual_seed(0)
        return SparseJEPAForPreTraining(make_small_config(**config))

    class Keep(TrainerCallback):
        def on_train_end(self, args, state, control, model=None, **kwargs):
            found.append({name: p.detach().clone() for name, p in model.named_parameters()})

    data = {"train_dataset": images, "eval_dataset": images}
    searcher = SparseJEPATrainer(
        args=make_trainer(max_steps=2).args,
        model_init=lambda trial: build(0 if trial is None else trial.number),
        callbacks=[Keep()],
        **data,
    )
    best = searcher.hyperparameter_search(hp_space=lambda trial: options[trial.number], n_trials=3)
    assert best.objective > 0
    for number, trial in enumerate(found):
        arguments = make_trainer(max_steps=2, **options[number]).args
        alone = SparseJEPATrainer(args=arguments, model_init=partial(build, number), **data)
        alone.train()
        assert_same_weights(trial, weights_of(alone))


class Cramped(SparseJEPAForPreTraining):
    """On a device with room for four images."""

    def forward(self, pixel_values, **inputs):
        output = super().forward(pixel_values, **inputs)
        if self.training and len(pixel_values) > 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return output


def test_a_batch_that_was_found_trains_what_that_batch_trains(
    make_trainer, make_small_config, train_logs_of, weights_of, assert_same_weights
):
    """Masks, augmentation, noise and monitors begin anew after each try; the state knows the batch for the card."""
    runs = []
    for batch, finds in ((16, True), (4, False)):
        args = make_trainer(
            max_steps=3, per_device_train_batch_size=batch, auto_find_batch_size=finds, gradient_accumulation_steps=2
        ).args
        torch.manual_seed(0)
        runs.append(SparseJEPATrainer(Cramped(make_small_config()), args, train_dataset=make_trainer().train_dataset))
        runs[-1].train()
    assert_same_weights(weights_of(runs[0]), weights_of(runs[1]))
    assert train_logs_of(runs[0]) == train_logs_of(runs[1])
    assert runs[0].state.train_batch_size == runs[0]._train_batch_size == 4


def test_the_state_of_a_resumed_run_knows_its_own_batch(make_trainer):
    first = make_trainer(save_strategy="steps", save_steps=1, max_steps=1)
    first.train()
    changes = ["per_device_train_batch_size", "max_steps"]
    resumed = make_trainer(per_device_train_batch_size=4, max_steps=2, resume_with_changes=changes)
    resumed.train(resume_from_checkpoint=f"{first.args.output_dir}/checkpoint-1")
    assert (first.state.train_batch_size, resumed.state.train_batch_size) == (8, 4)


# ---- interruption ----


def assert_resumes_exactly(make_trainer, assert_same_weights, weights_of, train_logs_of, *interrupted_at, **options):
    """Resumes a run from its own checkpoints, with models that start elsewhere, and compares each with the run that
    went on, to the bit: weights of both encoders, optimizer and logs."""
    whole = make_trainer(save_strategy="steps", save_steps=1, **options)
    whole.train()
    for step in interrupted_at:
        resumed = make_trainer(model_seed=99, **options)
        resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / f"checkpoint-{step}"))
        assert resumed.state.global_step == whole.state.global_step > step
        assert_same_weights(weights_of(resumed), weights_of(whole))
        assert train_logs_of(resumed) == train_logs_of(whole)
        states = [trainer.optimizer.state_dict() for trainer in (resumed, whole)]
        assert states[0]["param_groups"] == states[1]["param_groups"]
        for index, state in states[1]["state"].items():
            for name, value in state.items():
                assert torch.equal(torch.as_tensor(states[0]["state"][index][name]), torch.as_tensor(value))


@pytest.mark.parametrize("config", [{}, {"use_grouping": False}], ids=["grouping", "plain"])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    make_trainer, make_dataset, assert_same_weights, weights_of, train_logs_of, config
):
    """Interrupted amid an epoch of three steps, at its end, and in the second epoch."""
    options = {"config": config, "train_dataset": make_dataset(24), "max_steps": 7, "weight_decay_end": 0.3}
    assert_resumes_exactly(make_trainer, assert_same_weights, weights_of, train_logs_of, 2, 3, 5, **options)


def test_an_interrupted_run_in_bf16_goes_on_as_if_it_had_not_been(
    make_trainer, assert_same_weights, weights_of, train_logs_of
):
    assert_resumes_exactly(make_trainer, assert_same_weights, weights_of, train_logs_of, 2, bf16=True)


def test_an_interrupted_run_goes_on_under_accumulation_with_workers_and_monitors(
    make_trainer, make_dataset, assert_same_weights, weights_of, train_logs_of
):
    assert_resumes_exactly(
        make_trainer,
        assert_same_weights,
        weights_of,
        train_logs_of,
        4,
        config={"sparsity_weight": 6e-3},
        train_dataset=make_dataset(24),
        max_steps=7,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        dataloader_num_workers=2,
        monitor_samples=2,
        knn_steps=2,
        knn_k=3,
        knn_datasets=(make_dataset(12), make_dataset(8, seed=1)),
        group_learning_rate=1e-2,
    )


def test_a_killed_run_leaves_a_checkpoint_from_which_it_goes_on(
    make_trainer, assert_same_weights, weights_of, train_logs_of, tmp_path
):
    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    whole = make_trainer(max_steps=6)
    whole.train()
    options = {"max_steps": 6, "output_dir": str(tmp_path / "killed"), "save_strategy": "steps", "save_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        make_trainer(callbacks=[Kill()], **options).train()
    resumed = make_trainer(model_seed=5, **options)
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(weights_of(resumed), weights_of(whole))
    assert train_logs_of(resumed) == train_logs_of(whole)


def test_resuming_a_finished_run_changes_nothing(make_trainer, weights_of, assert_same_weights):
    """Its last step lies mid-epoch; transformers alone would train one step more."""
    finished = make_trainer(max_steps=3, save_strategy="steps", save_steps=3)
    finished.train()
    resumed = make_trainer(max_steps=3, model_seed=5)
    resumed.train(resume_from_checkpoint=str(Path(finished.args.output_dir) / "checkpoint-3"))
    assert resumed.state.global_step == 3
    assert_same_weights(weights_of(resumed), weights_of(finished))


def test_not_to_resume_may_be_said_as_text(make_trainer):
    assert make_trainer(max_steps=1).train(resume_from_checkpoint="false").global_step == 1


@pytest.mark.parametrize("problem", ["missing", "unexpected"])
def test_a_checkpoint_that_does_not_fit_the_model_is_refused(make_trainer, problem):
    """transformers would train on with whatever happened to load."""
    trainer = make_trainer(save_strategy="steps", save_steps=2)
    trainer.train()
    checkpoint = Path(trainer.args.output_dir) / "checkpoint-2"
    path = checkpoint / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    if problem == "missing":
        del tensors["sparsejepa.target_encoder.layernorm.weight"]
    else:
        tensors["sparsejepa.extra.weight"] = torch.zeros(2)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    # Or the change is what is refused.
    (checkpoint / "manifest.json").unlink()
    with pytest.raises(ValueError, match="does not fit the model.*(target_encoder.layernorm.weight|extra.weight)"):
        make_trainer().train(resume_from_checkpoint=str(checkpoint))


def test_a_checkpoint_of_the_other_method_is_refused(make_trainer):
    trainer = make_trainer(save_strategy="steps", save_steps=2, max_steps=2)
    trainer.train()
    with pytest.raises(ValueError, match="does not fit the model.*grouping"):
        make_trainer(config={"use_grouping": False}).train(
            resume_from_checkpoint=str(Path(trainer.args.output_dir) / "checkpoint-2")
        )


def stream(count=40, buffer=16, repeat=True):
    scenes = build_scenes(count, image_size=16, seed=0, split="train").select_columns(["image", "label"])
    assert isinstance(scenes, datasets.Dataset)
    return StreamingImageDataset(
        scenes.to_iterable_dataset(num_shards=2), 16, shuffle_buffer_size=buffer, repeat=repeat
    )


def test_a_stream_that_ends_is_refused(make_trainer):
    with pytest.raises(ValueError, match="repeat=True"):
        make_trainer(train_dataset=stream(repeat=False))


def test_an_interrupted_stream_goes_on_as_if_it_had_not_been(
    make_trainer, assert_same_weights, weights_of, train_logs_of
):
    """Past its end, and also when it was interrupted in the second pass: five steps are one."""
    options = {"train_dataset": stream(), "max_steps": 8}
    assert_resumes_exactly(make_trainer, assert_same_weights, weights_of, train_logs_of, 2, 6, **options)


# ---- numerical failure ----


class Poisoned(torch.utils.data.Dataset):
    """Float images; from the `good`-th call on they are NaN."""

    def __init__(self, good: int):
        self.good, self.calls = good, 0

    def __len__(self):
        return 80

    def __getitem__(self, index):
        self.calls += 1
        value = float("nan") if self.calls > self.good else 0.5
        return {"pixel_values": torch.full((3, 16, 16), value) + torch.randn(3, 16, 16)}


@pytest.mark.parametrize(
    ("logging_steps", "save_steps"),
    [(1, 1), (100, 1), (100, 4), (2, 100), (100, 100)],
    ids=["log", "save", "later save", "later log", "end"],
)
def test_a_non_finite_loss_stops_the_run_and_no_checkpoint_holds_it(make_trainer, logging_steps, save_steps):
    """However rarely the run looks at its loss: when it logs, saves, or ends."""
    trainer = make_trainer(
        train_dataset=Poisoned(good=24),
        max_steps=6,
        logging_steps=logging_steps,
        save_strategy="steps",
        save_steps=save_steps,
    )
    with pytest.raises(NonFiniteLossError, match="The loss is nan at step .*expected a finite number.*learning_rate"):
        trainer.train()
    for path in Path(trainer.args.output_dir).glob("checkpoint-*/model.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in safetensors.torch.load_file(path).values())
        assert int(path.parent.name.split("-")[1]) <= 3


def test_the_error_names_the_part_that_is_not_finite(make_trainer):
    with pytest.raises(NonFiniteLossError, match=r"prediction_loss nan, kl_loss nan, sparsity_loss \d"):
        make_trainer(train_dataset=Poisoned(good=0)).train()


# ---- precision, logs and what is written ----


def test_bfloat16_trains_and_stays_finite_and_near_float32(make_trainer, weights_of, train_logs_of):
    full, half = make_trainer(), make_trainer(bf16=True)
    full.train()
    half.train()
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for p in weights_of(half).values())
    for entry, expected in zip(train_logs_of(half), train_logs_of(full), strict=True):
        assert entry["prediction_loss"] == pytest.approx(expected["prediction_loss"], rel=0.1)
    assert train_logs_of(half) != train_logs_of(full)


def test_tensorboard_gets_the_parts_of_the_loss(make_trainer, tmp_path, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = make_trainer(report_to="tensorboard")
    trainer.train()
    folder = next(path.parent for path in tmp_path.rglob("events.out.tfevents*"))
    written = events.EventAccumulator(str(folder)).Reload()
    assert {"train/prediction_loss", "train/kl_loss", "train/rankme", "train/zero_columns"} <= set(
        written.Tags()["scalars"]
    )
    logged = [entry["prediction_loss"] for entry in trainer.state.log_history if "prediction_loss" in entry]
    assert [event.value for event in written.Scalars("train/prediction_loss")] == pytest.approx(logged)


def test_a_saved_run_loads_with_auto_model_to_the_same_features(make_trainer, make_images, tmp_path):
    trainer = make_trainer(output_dir=str(tmp_path / "encoder"))
    trainer.train()
    trainer.save_model()
    images = make_images(3, (16, 16))
    with torch.no_grad():
        expected = trainer.model.sparsejepa.eval()(images).pooler_output
        for model_class in (AutoModel, SparseJEPAVisionModel):
            loaded = model_class.from_pretrained(trainer.args.output_dir).eval()
            assert torch.equal(loaded(images).pooler_output, expected)
    processor = AutoImageProcessor.from_pretrained(trainer.args.output_dir)
    assert processor.image_mean == trainer.processing_class.image_mean
    raw = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    processed = processor(images=raw, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(trainer.normalize(raw), processed, rtol=0, atol=1e-5)


def test_the_model_card_is_ours_and_stays_so(make_trainer, tmp_path):
    """`Trainer.create_model_card`, which pushing to the Hub calls, would put a generic text in its place."""
    trainer = make_trainer(output_dir=str(tmp_path / "encoder"), model_seed=1)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    ours = (tmp_path / "encoder" / "README.md").read_text(encoding="utf-8")
    assert ours.startswith("---\nlibrary_name: transformers\n") and "# encoder" in ours
    assert f"| prediction loss at the end | {trainer.state.log_history[-2]['prediction_loss']:.4g} |" in ours
    trainer.create_model_card(model_name="generic", tags=["generic"])
    assert (tmp_path / "encoder" / "README.md").read_text(encoding="utf-8") == ours


def test_a_checkpoint_is_safetensors_and_carries_both_encoders(make_trainer):
    trainer = make_trainer(save_strategy="steps", save_steps=4)
    trainer.train()
    folder = Path(trainer.args.output_dir) / "checkpoint-4"
    saved = safetensors.torch.load_file(folder / "model.safetensors")
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(saved[name], parameter)
    assert not list(folder.glob("pytorch_model*"))
    assert json.loads((folder / "config.json").read_text())["model_type"] == "sparsejepa"


def test_no_file_of_a_run_holds_the_token(make_trainer, tmp_path, monkeypatch):
    """`Trainer` writes its arguments as a pickle: into checkpoints, beside the model and, in a push, again."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "run" / "events"))
    token = "hf_" + "secretletters" * 2
    trainer = make_trainer(
        output_dir=str(tmp_path / "run"), hub_token=token, save_strategy="steps", save_steps=2, report_to="tensorboard"
    )
    trainer.train()
    trainer.save_model()
    torch.save(trainer.args, tmp_path / "run" / "as-a-push-does.bin")
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"checkpoint-2", "checkpoint-4", "run", "events"} <= {path.parent.name for path in files}
    assert not [path for path in files if token.encode() in path.read_bytes()]
    assert not list((tmp_path / "run").rglob("training_args.bin"))
    assert trainer.args.hub_token == copy.deepcopy(trainer.args).hub_token == token
    resumed = make_trainer(max_steps=6, output_dir=str(tmp_path / "run"), resume_with_changes=["max_steps"])
    assert resumed.train(resume_from_checkpoint=True).global_step == 6


def test_a_saved_run_loads_without_a_warning(make_trainer, hear_warnings):
    """`Trainer` writes a `use_cache` of its own into the configuration, which ours does not know."""
    trainer = make_trainer(max_steps=1)
    trainer.train()
    trainer.save_model()
    AutoModel.from_pretrained(trainer.args.output_dir)
    assert not [message for message in hear_warnings.messages if "Configuration keys" in message]


# ---- data in and weights out ----


def test_weights_that_are_not_finite_are_not_saved(make_trainer, tmp_path):
    trainer = make_trainer()
    with torch.no_grad():
        trainer.model.sparsejepa.predictor.trunk.mask_token.fill_(torch.inf)
    with pytest.raises(NonFiniteLossError, match="weights are no longer finite"):
        trainer.save_model(str(tmp_path / "broken"))
    assert not (tmp_path / "broken").exists()


def test_every_held_out_image_is_evaluated(make_trainer, make_dataset):
    """Eleven images in batches of eight: the loader gives the last three too."""
    trainer = make_trainer(eval_dataset=make_dataset(11), dataloader_drop_last=True)
    assert sum(len(batch["pixel_values"]) for batch in trainer.get_eval_dataloader()) == 11
    assert trainer.args.dataloader_drop_last


def test_workers_of_the_evaluation_persist_if_asked_to(make_trainer, make_dataset):
    options = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    trainer = make_trainer(eval_dataset=make_dataset(11), **options)
    assert trainer.get_eval_dataloader() is trainer.get_eval_dataloader()


def test_an_optimizer_that_takes_the_whole_model_is_given_it(make_trainer):
    """As transformers' Muon and Dion, which are made by a factory."""

    class Factory:
        def __call__(self, model, lr):
            return torch.optim.SGD(model.parameters(), lr=lr)

    trainer = make_trainer(config={"use_grouping": False})
    trainer.optimizer_cls_and_kwargs = (Factory, {"lr": 0.5})
    (group,) = trainer.create_optimizer().param_groups
    assert len(group["params"]) == len(list(trainer.model.parameters())) and group["lr"] == 0.5


def test_a_data_set_of_raw_images_is_refused_with_the_way_to_wrap_it(make_trainer):
    raw = datasets.Dataset.from_dict({"image": [b""], "label": [0]})
    with pytest.raises(ValueError, match=r"columns \['image', 'label'\].*build_image_dataset"):
        make_trainer(train_dataset=raw)


@pytest.mark.parametrize(("mode", "size"), [("RGB", (16, 16)), ("RGB", (48, 32)), ("L", (32, 64)), ("P", (32, 32))])
def test_the_saved_image_processor_does_what_held_out_images_went_through(mode, size, tmp_path):
    """Whole multiples of the model's side, which no rounding can tell apart."""
    generator = np.random.default_rng(1)
    image = Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    image_processor((16, 16), mean, std).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    processed = processor(images=image, return_tensors="pt")["pixel_values"][0]
    pixels = torch.from_numpy(resize_to_square(to_rgb(image), 16).copy())
    # One level of 255 is the rounding of either resize.
    assert (processed - normalize_images(pixels, mean, std)).abs().max() <= 1.01 / 255 / min(std)
