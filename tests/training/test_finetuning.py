# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Fine-tuning: layer decay, the loss, and which checkpoints serve."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Trainer, TrainingArguments

from sparsejepa_hf import SparseJEPAForImageClassification, SparseJEPAForPreTraining, SparseJEPAVisionModel
from sparsejepa_hf.training import (
    FINE_TUNING_OPTION_TYPES,
    FineTuningArguments,
    FineTuningDataArguments,
    FineTuningTrainer,
    layer_decay_groups,
    load_classifier,
)


NAMES = ["red", "green", "blue"]

FAST = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "crop_padding": 2,
    "seed": 3,
}


@pytest.fixture
def make_classifier(make_small_config):
    def build(layers=2, classes=3):
        torch.manual_seed(0)
        return SparseJEPAForImageClassification(make_small_config(num_hidden_layers=layers, num_labels=classes))

    return build


@pytest.fixture
def make_trainer(tmp_path, make_classifier, make_dataset):
    def build(count=16, labels=4, callbacks=None, **arguments):
        return FineTuningTrainer(
            make_classifier(classes=labels),
            FineTuningArguments(**{"output_dir": str(tmp_path / "trainer"), **FAST, **arguments}),
            train_dataset=make_dataset(count),
            callbacks=callbacks,
        )

    return build


def weights_in(folder):
    return safetensors.torch.load_file(Path(folder) / "model.safetensors")


# ---- layer decay ----


@given(layers=st.integers(1, 12), decay=st.floats(0.1, 1.0), rate=st.floats(1e-5, 1.0))
def test_learning_rates_have_the_closed_form(layers, decay, rate, make_classifier):
    """lr · decay^(L+1−l); every trainable parameter once; no weight decay on what has one dimension."""
    model = make_classifier(layers)
    groups = layer_decay_groups(model, rate, 0.05, decay)
    names = {id(p): name for name, p in model.named_parameters()}
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(names), "each exactly once"
    for group in groups:
        for parameter in group["params"]:
            parts = names[id(parameter)].split(".")
            if "embeddings" in parts:
                layer = 0
            elif "layers" in parts:
                layer = 1 + int(parts[parts.index("layers") + 1])
            else:
                layer = layers + 1 if parts[0] == "classifier" else layers
            assert group["lr"] == pytest.approx(rate * decay ** (layers + 1 - layer), rel=1e-12)
            assert group["weight_decay"] == (0.0 if parameter.ndim == 1 else 0.05)


def test_the_optimizer_steps_with_these_rates_and_logs_the_one_that_was_asked_for(make_trainer):
    trainer = make_trainer(layer_decay=0.5, learning_rate=0.2, lr_scheduler_type="constant", warmup_steps=0)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.args.max_steps = 1
    trainer.train()
    assert trainer.state.log_history[0]["learning_rate"] == 0.2
    # The first step of AdamW moves every weight that has a gradient by its learning rate, but for weight decay.
    for name, rate in (("classifier.bias", 0.2), ("sparsejepa.target_encoder.layernorm.bias", 0.1)):
        moved = (dict(trainer.model.named_parameters())[name].detach() - before[name]).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-3, atol=0.0)


def test_frozen_parameters_are_in_no_group(make_classifier):
    model = make_classifier()
    model.sparsejepa.requires_grad_(False)
    groups = layer_decay_groups(model, 0.1, 0.05, 0.5)
    assert [id(p) for group in groups for p in group["params"]] == [
        id(model.classifier.bias),
        id(model.classifier.weight),
    ]
    assert {group["lr"] for group in groups} == {0.1}


# ---- the loss ----


def test_the_loss_is_smoothed_cross_entropy_in_training_and_plain_in_evaluation(make_trainer, make_dataset):
    trainer = make_trainer(crop="none", horizontal_flip=0.0, label_smoothing_factor=0.2)
    images = make_dataset(8)
    inputs = {"pixel_values": images.pixel_values, "labels": images.labels}
    expected = (images.pixel_values.float() / 255 - 0.5) / 0.5
    for training in (True, False):
        trainer.model.train(training)
        loss, outputs = trainer.compute_loss(trainer.model, inputs, return_outputs=True)
        log_probabilities = trainer.model(expected).logits.log_softmax(dim=1)
        smoothing = 0.2 if training else 0.0
        truth = log_probabilities.gather(1, images.labels[:, None])[:, 0]
        by_hand = -((1 - smoothing) * truth + smoothing * log_probabilities.mean(dim=1)).mean()
        torch.testing.assert_close(loss, by_hand, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alphas", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixing_makes_soft_labels_of_pairs_and_leaves_an_odd_batch(make_trainer, make_dataset, alphas):
    trainer = make_trainer(**alphas)
    images = make_dataset(8)
    np.random.seed(0)
    mixed, targets = trainer._training_views(images.pixel_values, images.labels)
    assert targets.shape == (8, 4) and (targets >= 0).all()
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(8))
    assert ((targets > 0).sum(dim=1) <= 2).all() and (targets < 1).any()
    labels = images.labels[:7]
    assert trainer._training_views(images.pixel_values[:7], labels)[1] is labels
    trainer.train()


def test_accumulation_makes_the_step_of_the_whole_batch(make_trainer, weights_of, assert_same_weights):
    """Augmentation included: a sample's place in the step decides it."""
    weights = []
    for batch, steps in ((8, 1), (2, 4)):
        trainer = make_trainer(
            per_device_train_batch_size=batch, gradient_accumulation_steps=steps, optim="sgd", max_steps=2
        )
        trainer.train()
        weights.append(weights_of(trainer))
    assert_same_weights(*weights, atol=1e-6)


def test_accumulation_does_not_scale_the_gradient_of_the_classifier(make_config, tmp_path):
    """Trainer divides a mean loss by the accumulation steps: four times two images make the step of eight."""
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    dataset = [{"pixel_values": image, "labels": i % 3} for i, image in enumerate(images)]
    weights = []
    for batch, steps in ((8, 1), (2, 4)):
        torch.manual_seed(0)
        model = SparseJEPAForImageClassification(make_config(num_labels=3))
        options = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
        options |= {"max_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
        arguments = TrainingArguments(
            tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=steps, **options
        )
        Trainer(model, arguments, train_dataset=dataset).train()
        weights.append(model.classifier.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-7)


# ---- checkpoints ----


def test_random_weights_are_those_of_the_seed_not_of_the_checkpoint(checkpoint):
    torch.manual_seed(1)
    random = load_classifier(checkpoint, NAMES, random_weights=True).state_dict()
    loaded = load_classifier(checkpoint, NAMES).state_dict()
    name = "sparsejepa.target_encoder.layers.1.mlp.fc1.weight"
    assert torch.equal(loaded[name], weights_in(checkpoint)[name])
    assert random.keys() == loaded.keys() and not torch.equal(random[name], loaded[name])


def test_a_half_precision_checkpoint_is_trained_in_full(checkpoint, tmp_path):
    SparseJEPAForPreTraining.from_pretrained(checkpoint).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert {p.dtype for p in load_classifier(str(tmp_path / "half"), NAMES).parameters()} == {torch.float32}


def test_every_checkpoint_of_the_family_serves_and_a_fitting_classifier_is_kept(checkpoint, tmp_path):
    SparseJEPAVisionModel.from_pretrained(checkpoint).save_pretrained(tmp_path / "vision")
    first = load_classifier(str(tmp_path / "vision"), NAMES)
    first.save_pretrained(tmp_path / "first")
    same = load_classifier(str(tmp_path / "first"), ["a", "b", "c"])
    other = load_classifier(str(tmp_path / "first"), ["a", "b"])
    assert torch.equal(same.classifier.weight, first.classifier.weight)
    assert other.classifier.weight.shape == (2, 32) and other.config.id2label == {0: "a", 1: "b"}
    name = "sparsejepa.target_encoder.embeddings.patch_embeddings.projection.weight"
    assert all(torch.equal(m.state_dict()[name], weights_in(checkpoint)[name]) for m in (first, same, other))


# ---- what is refused ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_decay": 0.0}, "layer_decay is 0.0"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5"),
        ({"mixup": -1.0}, "mixup is -1.0"),
        ({"cutmix": float("nan")}, "cutmix is nan"),
        ({"mixup": 0.8, "per_device_train_batch_size": 7}, "per_device_train_batch_size is 7; expected an even"),
        ({"label_smoothing_factor": 1.0}, "label_smoothing_factor is 1.0"),
    ],
)
def test_arguments_outside_their_ranges_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        FineTuningArguments(**{"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", **options})


def test_data_arguments_outside_their_ranges_are_refused():
    for options, message in (
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
        ({"validation_fraction": 0.0}, "validation_fraction is 0.0; expected"),
        ({"image_mean": [0.5, 0.5, 0.5]}, "one is given alone"),
    ):
        with pytest.raises(ValueError, match=message):
            FineTuningDataArguments(dataset="x", **options)


def test_options_of_the_three_kinds_do_not_share_a_name():
    names = [name for option_type in FINE_TUNING_OPTION_TYPES for name in option_type.__dataclass_fields__]
    assert len(names) == len(set(names))


def test_the_trainer_takes_its_own_kind_alone(make_classifier, make_small_config, tmp_path):
    arguments = FineTuningArguments(str(tmp_path), **FAST)
    with pytest.raises(TypeError, match="model is a SparseJEPAForPreTraining"):
        FineTuningTrainer(SparseJEPAForPreTraining(make_small_config()), arguments)
    with pytest.raises(TypeError, match="args is a TrainingArguments"):
        FineTuningTrainer(make_classifier(), TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))


# ---- data, models and predictions as transformers' Trainer takes them ----


def test_pairs_and_a_column_named_label_train_as_labels_do(make_classifier, make_dataset, weights_of, tmp_path):
    images = make_dataset(16)
    forms = (
        images,
        [(images.pixel_values[i], int(images.labels[i])) for i in range(16)],
        [{"pixel_values": images.pixel_values[i].numpy(), "label": int(images.labels[i])} for i in range(16)],
    )
    found = []
    for data in forms:
        arguments = FineTuningArguments(str(tmp_path), **{**FAST, "num_train_epochs": 1})
        trainer = FineTuningTrainer(make_classifier(classes=4), arguments, train_dataset=data)
        trainer.train()
        found.append(weights_of(trainer))
    assert all(torch.equal(other[name], weight) for other in found[1:] for name, weight in found[0].items())


def test_unlabelled_images_are_predicted_as_labelled_ones_are_but_not_trained_on(make_trainer, make_dataset):
    trainer = make_trainer()
    logits = trainer.predict(make_dataset(8)).predictions
    bare = make_dataset(8, labels=False)
    np.testing.assert_array_equal(trainer.predict(bare).predictions, logits)
    trainer.train_dataset = bare
    with pytest.raises(ValueError, match=r"A batch has \['pixel_values'\]; expected labels too"):
        trainer.train()


def test_the_encoder_of_a_new_model_is_frozen_too(make_classifier, make_dataset, tmp_path):
    arguments = FineTuningArguments(str(tmp_path), **FAST, freeze_encoder=True)
    images = make_dataset(16)
    trainer = FineTuningTrainer(args=arguments, train_dataset=images, model_init=lambda: make_classifier(classes=4))
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, start[name])}
    assert moved == {"classifier.weight", "classifier.bias"}
