# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The trainer: what a step does, that a run is a function of its options alone, and what it writes."""

import json
import math
from pathlib import Path

import datasets
import pytest
import safetensors.torch
import torch
from transformers import AutoImageProcessor, AutoModel, TrainerCallback

from sparsejepa_hf import (
    SparseJEPAForPreTraining,
    SparseJEPATrainer,
    SparseJEPATrainingArguments,
    SparseJEPAVisionModel,
)
from sparsejepa_hf.data import (
    StreamingImageDataset,
    build_image_dataset,
    build_scenes,
    collate_images,
    load_image_dataset,
)
from sparsejepa_hf.training import NonFiniteLossError, kkt_residual, proximal, proximal_step_
from sparsejepa_hf.training import callbacks as steps
from sparsejepa_hf.training.checkpoints import last_complete_checkpoint
from sparsejepa_hf.training.proximal import AVERAGE_GRADIENT, optimizer_metric, own_parameter_group, settle_columns_


GROUP_WEIGHT = "sparsejepa.predictor.grouping.group_weight"


def encoder(model, kind):
    return [p.detach().clone() for p in getattr(steps.unwrap(model).sparsejepa, f"{kind}_encoder").parameters()]


def group_weight(model):
    return steps.unwrap(model).group_weight.detach().clone()


def average_gradient(trainer):
    return trainer.optimizer.state[trainer.model.group_weight][AVERAGE_GRADIENT]


# ---- where the latents sit ----


@pytest.mark.parametrize("residual", [False, True])
def test_latents_in_front_of_the_predictor_train_and_their_noise_is_replayed(make_trainer, weights_of, residual):
    config = {"latent_position": "encoder", "latent_residual": residual, "sparsity_weight": 0.1, "kl_weight": 1e-2}
    first, second = (make_trainer(config=config, max_steps=2) for _ in range(2))
    before = weights_of(first)
    for trainer in (first, second):
        trainer.train()
    after, again = weights_of(first), weights_of(second)
    assert all(torch.equal(after[name], again[name]) for name in after)
    name = "sparsejepa.predictor.grouping.latent_mean.weight"
    assert not torch.equal(before[name], after[name])


# ---- the target encoder ----


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_target_encoder_is_the_closed_form_average_of_the_context_encoder(make_trainer, record, accumulation):
    """Once per optimizer step, whatever the accumulation: θ̄_n = Π m_i θ̄_0 + Σ (1 − m_i) Π_{j>i} m_j θ_i."""
    recorder = record(lambda model, _: encoder(model, "context"))
    trainer = make_trainer(
        callbacks=[recorder],
        max_steps=5,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=accumulation,
        ema_momentum=0.5,
        ema_momentum_end=0.9,
    )
    start = encoder(trainer.model, "target")
    trainer.train()
    momenta = [0.5, 0.6, 0.7, 0.8, 0.9]
    assert len(recorder.values) == 5
    for index, target in enumerate(encoder(trainer.model, "target")):
        expected = start[index].double() * math.prod(momenta)
        for step, sources in enumerate(recorder.values):
            expected += (1 - momenta[step]) * math.prod(momenta[step + 1 :]) * sources[index].double()
        torch.testing.assert_close(target.double(), expected, rtol=0, atol=1e-6)
    moved = [not torch.equal(a, b) for a, b in zip(encoder(trainer.model, "context"), start, strict=True)]
    assert all(moved), "the context encoder learns, all of it"


# ---- the optimizer ----


def test_every_trainable_parameter_is_optimised_exactly_once_and_the_target_encoder_never(make_trainer):
    trainer = make_trainer()
    optimizer = trainer.create_optimizer()
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    trainable = {id(p): name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert len(held) == len(set(held)) and set(held) == set(trainable)
    assert not any("target_encoder" in name for name in trainable.values())


def test_biases_norms_mask_token_and_w_take_no_weight_decay_and_all_other_weights_do(make_trainer):
    trainer = make_trainer(weight_decay=0.3)
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    decay = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    undecayed = {name for name, value in decay.items() if value == 0}
    for name, value in decay.items():
        is_exempt = "norm" in name or "bias" in name or name.endswith(("mask_token", "group_weight"))
        assert value == (0.0 if is_exempt else 0.3), name
    assert any("mask_token" in name for name in undecayed) and GROUP_WEIGHT in undecayed
    generators = {name for name in decay if "generator" in name and name.endswith("weight")}
    assert len(generators) == 2 and not generators & undecayed, "f_g must not undo the shrinkage of W by growing"


def test_w_is_alone_in_its_group_with_its_own_learning_rate(make_trainer):
    trainer = make_trainer(group_learning_rate=0.125)
    groups = trainer.create_optimizer().param_groups
    weight = trainer.model.get_parameter(GROUP_WEIGHT)
    (own,) = [group for group in groups if any(p is weight for p in group["params"])]
    assert len(own["params"]) == 1 and own["lr"] == 0.125 and own["weight_decay"] == 0.0
    assert all(group["lr"] == trainer.args.learning_rate for group in groups if group is not own)
    assert own_parameter_group(trainer.optimizer, weight) is own
    shared = own.keys() & groups[0].keys() - {"params", "lr", "weight_decay", steps.DECAYED}
    assert "betas" in shared and all(own[key] == groups[0][key] for key in shared)


def test_the_learning_rate_of_w_follows_the_schedule_from_its_own_peak(make_trainer, record):
    rates = record(lambda _, optimizer: [(g["lr"], len(g["params"]) == 1) for g in optimizer.param_groups])
    make_trainer(callbacks=[rates], group_learning_rate=0.3, lr_scheduler_type="linear").train()
    for step, groups in enumerate(rates.values, start=1):
        left = 1 - step / 4
        for rate, is_own in groups:
            assert rate == pytest.approx((0.3 if is_own else 3e-3) * left, abs=1e-9)


def test_without_grouping_there_is_no_group_for_w(make_trainer):
    trainer = make_trainer(config={"use_grouping": False})
    assert own_parameter_group(trainer.create_optimizer(), trainer.model.group_weight) is None


@pytest.mark.parametrize("start", [0.1, 0.0])
def test_the_weight_decay_schedule_reaches_decayed_groups_alone(make_trainer, record, train_logs_of, start):
    """From zero too: what is decayed is a matter of the parameter, not of the decay it begins with."""
    decays = record(lambda _, optimizer: [(g[steps.DECAYED], g["weight_decay"]) for g in optimizer.param_groups])
    trainer = make_trainer(callbacks=[decays], max_steps=5, weight_decay=start, weight_decay_end=0.5)
    trainer.train()
    for step, groups in enumerate(decays.values):
        expected = 0.5 + (start - 0.5) * 0.5 * (1 + math.cos(math.pi * step / 4))
        assert sorted(is_decayed for is_decayed, _ in groups) == [False, False, True]
        for is_decayed, value in groups:
            assert value == pytest.approx(expected if is_decayed else 0.0)
        assert train_logs_of(trainer)[step]["weight_decay"] == pytest.approx(expected)


def test_stronger_weight_decay_at_the_end_shrinks_the_weights(make_trainer):
    norms = []
    for end in (0.0, 60.0):
        trainer = make_trainer(weight_decay=0.0, weight_decay_end=end)
        trainer.train()
        norms.append(trainer.model.sparsejepa.predictor.trunk.embed.weight.norm())
    assert norms[1] < 0.95 * norms[0]


# ---- sparsity ----


def zero_share(model):
    return (torch.linalg.vector_norm(group_weight(model), dim=1) == 0).float().mean().item()


def test_more_columns_are_zero_the_larger_lambda(make_trainer, train_logs_of):
    """From none at λ = 0, though W starts with one group a latent, to all."""
    shares = []
    for weight in (0.0, 6e-3, 2e-2, 10.0):
        trainer = make_trainer(config={"sparsity_weight": weight}, sparsity_warmup_steps=0, max_steps=30)
        trainer.train()
        shares.append(zero_share(trainer.model))
        assert train_logs_of(trainer)[-1]["zero_columns"] == pytest.approx(shares[-1])
    assert shares[0] == 0.0 and shares[-1] == 1.0
    assert shares[0] < shares[1] < shares[2] < shares[3]


class BeforeTheProximalStep(TrainerCallback):
    """What the optimizer has just done to W: W, its gradient, the metric and the learning rate of each step."""

    def __init__(self):
        self.values = []

    def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        group = own_parameter_group(optimizer, model.group_weight)
        weight = group["params"][0]
        metric = optimizer_metric(optimizer, group)
        self.values.append((weight.detach().clone(), weight.grad.clone(), metric, group["lr"]))


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "adamw_torch", "sgd"])
def test_after_the_optimizer_s_step_w_takes_the_proximal_step_in_its_metric(make_trainer, record, optim):
    before, after = BeforeTheProximalStep(), record(lambda model, _: group_weight(model))
    trainer = make_trainer(
        config={"sparsity_weight": 6e-3},
        callbacks=[before, after],
        sparsity_warmup_steps=2,
        optim=optim,
        learning_rate=1e-2,
        group_learning_rate=4e-2,
    )
    trainer.train()
    average = 0.0
    for step, ((weight, gradient, metric, rate), found) in enumerate(zip(before.values, after.values, strict=True)):
        strength = 6e-3 * min(1.0, (step + 1) / 2)
        average = average + (gradient - average) / (step + 1)
        expected = weight.clone()
        proximal_step_(expected, rate * strength, metric)
        settle_columns_(expected, average, strength, rate, trainer.args.support_steps, metric)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
        assert not torch.equal(found, weight)


def test_another_optimizer_is_refused_in_proximal_mode_and_allowed_without(make_trainer):
    with pytest.raises(ValueError, match="Adafactor, but the proximal step.*sparsity_mode='penalty'"):
        make_trainer(config={"sparsity_weight": 1e-3}, optim="adafactor").train()
    for config in ({"sparsity_weight": 1e-3, "sparsity_mode": "penalty"}, {"sparsity_weight": 0.0}):
        make_trainer(config=config, optim="adafactor").train()


def test_an_optimizer_that_hides_the_gradient_of_w_is_refused(make_trainer):
    class WithoutGradient(TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, **kwargs):
            model.group_weight.grad = None

    with pytest.raises(ValueError, match="W has no gradient.*penalty"):
        make_trainer(callbacks=[WithoutGradient()]).train()


def test_the_warm_up_of_lambda_and_the_optimality_of_w_are_logged(make_trainer, train_logs_of):
    trainer = make_trainer(config={"sparsity_weight": 1e-3}, max_steps=6, sparsity_warmup_steps=4)
    trainer.train()
    average = average_gradient(trainer)
    logs = train_logs_of(trainer)
    for step, entry in enumerate(logs):
        assert entry["sparsity_weight"] == pytest.approx(1e-3 * min(1.0, (step + 1) / 4))
    residual = kkt_residual(group_weight(trainer.model), average, 1e-3)
    is_zero = torch.linalg.vector_norm(group_weight(trainer.model), dim=1) == 0
    for name, kind in (("kkt_residual_zero", is_zero), ("kkt_residual_nonzero", ~is_zero)):
        expected = (residual * kind).sum() / kind.sum().clamp_min(1)
        assert logs[-1][name] == pytest.approx(expected.item(), rel=1e-4, abs=1e-9)
    norms = torch.linalg.vector_norm(average, dim=1)
    assert logs[-1]["group_gradient_norm"] == pytest.approx(norms.median().item(), rel=1e-4)


def test_the_average_of_w_s_gradient_is_the_mean_of_so_many_steps_and_then_runs(make_trainer):
    seen = BeforeTheProximalStep()
    trainer = make_trainer(callbacks=[seen], max_steps=6, support_steps=3)
    trainer.train()
    gradients = [gradient for _, gradient, _, _ in seen.values]
    expected = sum(gradients[:3]) / 3
    for late in gradients[3:]:
        expected = expected + (late - expected) / 3
    torch.testing.assert_close(average_gradient(trainer), expected)


def test_the_generators_do_not_grow_in_place_of_w(make_trainer, train_logs_of):
    """Without the hold they do: with λ = 0 it is off."""
    norms = []
    for weight in (0.0, 1e-4):
        trainer = make_trainer(config={"sparsity_weight": weight}, learning_rate=3e-2, weight_decay=0.0, max_steps=30)
        trainer.train()
        norms.append(train_logs_of(trainer)[-1]["generator_norm"])
    p, hidden, width, groups = 3, 5, 32 // 4, 4
    bound = math.sqrt(groups * (2 * p * hidden / (p + hidden) + 2 * hidden * width / (hidden + width)))
    assert norms[1] <= bound * (1 + 1e-5) < norms[0]


def test_lambda_zero_changes_no_bit(make_trainer, weights_of, assert_same_weights, monkeypatch):
    plain = make_trainer(config={"sparsity_weight": 0.0})
    plain.train()
    monkeypatch.setattr(steps, "group_lasso_step_", lambda *_: None)
    monkeypatch.setattr(steps, "hold_scales_", lambda *_: None)
    without = make_trainer(config={"sparsity_weight": 0.0})
    without.train()
    assert_same_weights(weights_of(plain), weights_of(without))


def test_in_penalty_mode_omega_pulls_through_its_gradient_and_nothing_is_thresholded(
    make_trainer, record, weights_of, monkeypatch
):
    """With plain SGD the first step moves each column by ηλ along its own direction, as ∂Ω/∂W says."""

    def refuse(*_):
        raise AssertionError("no proximal step in penalty mode")

    monkeypatch.setattr(proximal, "proximal_step_", refuse)
    monkeypatch.setattr(proximal, "settle_columns_", refuse)
    after = []
    for weight in (0.0, 3.0):
        recorder = record(lambda model, _: group_weight(model))
        trainer = make_trainer(
            config={"sparsity_weight": weight, "sparsity_mode": "penalty"},
            callbacks=[recorder],
            optim="sgd",
            max_grad_norm=0.0,
            sparsity_warmup_steps=0,
            learning_rate=1e-2,
        )
        start = group_weight(trainer.model)
        trainer.train()
        after.append(recorder.values[0])
    direction = torch.nn.functional.normalize(start, dim=1)
    torch.testing.assert_close(after[1], after[0] - 1e-2 * 3.0 * direction)


# ---- the loss and its logs ----


@pytest.mark.parametrize("mode", ["proximal", "penalty"])
def test_the_logged_parts_with_their_warmed_up_weights_add_up_to_the_logged_loss(make_trainer, train_logs_of, mode):
    trainer = make_trainer(
        config={"sparsity_mode": mode, "sparsity_weight": 0.02, "kl_weight": 0.03},
        max_steps=6,
        sparsity_warmup_steps=3,
        kl_warmup_steps=0.8,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=4,
    )
    trainer.train()
    logs = train_logs_of(trainer)
    assert [entry["sparsity_weight"] for entry in logs] == pytest.approx(
        [0.02 * w for w in (1 / 3, 2 / 3, 1, 1, 1, 1)]
    )
    assert [entry["kl_weight"] for entry in logs] == pytest.approx([0.03 * w for w in (0.2, 0.4, 0.6, 0.8, 1, 1)])
    for entry in logs:
        total = entry["prediction_loss"] + entry["kl_weight"] * entry["kl_loss"]
        if mode == "penalty":
            total += entry["sparsity_weight"] * entry["sparsity_loss"]
        assert entry["loss"] == pytest.approx(total, rel=1e-4)
        assert entry["kl_loss"] > 0 and entry["sparsity_loss"] > 0


def test_logs_over_several_steps_are_their_means(make_trainer, train_logs_of):
    every, third = (make_trainer(max_steps=6, logging_steps=n) for n in (1, 3))
    every.train()
    third.train()
    each, means = train_logs_of(every), train_logs_of(third)
    assert len(means) == 2
    for index, entry in enumerate(means):
        for name in ("loss", "prediction_loss", "kl_loss", "sparsity_loss"):
            expected = sum(e[name] for e in each[3 * index : 3 * index + 3]) / 3
            assert entry[name] == pytest.approx(expected, rel=1e-4)


def test_plain_jepa_logs_nothing_of_groups(make_trainer, train_logs_of):
    trainer = make_trainer(config={"use_grouping": False})
    trainer.train()
    for entry in train_logs_of(trainer):
        assert entry["loss"] == pytest.approx(entry["prediction_loss"], rel=1e-6)
        assert not {"zero_columns", "sparsity_weight", "kl_weight", "generator_norm"} & entry.keys()


@pytest.mark.parametrize(
    "config",
    [{}, {"use_grouping": False}, {"predictor_type": "mlp"}, {"variational": False, "kl_weight": 0.0}],
    ids=["grouping", "plain", "mlp predictor", "deterministic"],
)
def test_the_loss_falls_on_a_small_fixed_set(make_trainer, make_dataset, train_logs_of, config):
    """With a target encoder that all but stands still there is one answer to learn."""
    trainer = make_trainer(
        config=config,
        train_dataset=make_dataset(16),
        max_steps=60,
        per_device_train_batch_size=16,
        crop="none",
        color_jitter=0.0,
        horizontal_flip=0.0,
        learning_rate=1e-2,
        ema_momentum=0.9999,
        ema_momentum_end=0.9999,
    )
    trainer.train()
    losses = [entry["prediction_loss"] for entry in train_logs_of(trainer)]
    assert sum(losses[-10:]) / 10 < 0.7 * losses[0]


# ---- a run is a function of its options alone ----


@pytest.mark.parametrize("config", [{}, {"use_grouping": False}, {"sparsity_mode": "penalty"}])
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


def test_oblong_models_take_float_images_and_refuse_uint8_ones(make_trainer, make_dataset):
    config = {"image_size": [16, 32]}
    examples = [{"pixel_values": torch.randn(3, 16, 32)} for _ in range(16)]
    assert make_trainer(config=config, train_dataset=examples, max_steps=1).train().global_step == 1
    raw = [{"pixel_values": torch.zeros(3, 16, 32, dtype=torch.uint8)} for _ in range(16)]
    with pytest.raises(ValueError, match="augmented as squares only"):
        make_trainer(config=config, train_dataset=raw, max_steps=1).train()


# ---- evaluation ----


def test_evaluation_is_deterministic_whatever_the_labels_the_batch_and_the_augmentation(make_trainer, make_dataset):
    """Six batches or one: the masks of a held-out image belong to its place in the set."""
    losses = []
    for labels, arguments in (
        (True, {}),
        (True, {}),
        (False, {"crop": "resized", "color_jitter": 0.9}),
        (True, {"per_device_eval_batch_size": 4}),
    ):
        trainer = make_trainer(eval_dataset=make_dataset(24, seed=5, labels=labels), **arguments)
        metrics = trainer.evaluate()
        assert metrics["eval_loss"] == trainer.evaluate()["eval_loss"]
        losses.append(metrics["eval_loss"])
    assert losses[:3] == [losses[0]] * 3
    assert losses[3] == pytest.approx(losses[0], rel=1e-5)


def test_the_evaluation_loss_falls_with_training_and_takes_no_latent_noise(make_trainer, make_dataset):
    images = make_dataset(16)
    trainer = make_trainer(train_dataset=images, eval_dataset=images, max_steps=40, per_device_train_batch_size=16)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before


# ---- interruption ----


def assert_resumes_exactly(make_trainer, assert_same_weights, weights_of, train_logs_of, interrupted_at, **options):
    """Resumes a run from its own checkpoint, with a model that starts elsewhere, and compares it, to the bit, with the
    run that went on: weights of both encoders, optimizer and logs."""
    whole = make_trainer(save_strategy="steps", save_steps=interrupted_at, **options)
    whole.train()
    checkpoint = Path(whole.args.output_dir) / f"checkpoint-{interrupted_at}"
    resumed = make_trainer(model_seed=99, **options)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert_same_weights(weights_of(resumed), weights_of(whole))
    assert train_logs_of(resumed) == train_logs_of(whole)
    states = [trainer.optimizer.state_dict() for trainer in (resumed, whole)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for index, state in states[1]["state"].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(states[0]["state"][index][name]), torch.as_tensor(value))
    return resumed


@pytest.mark.parametrize("config", [{}, {"use_grouping": False}], ids=["grouping", "plain"])
@pytest.mark.parametrize(("interrupted_at", "where"), [(2, "mid-epoch"), (3, "epoch end"), (5, "second epoch")])
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
    make_trainer, make_dataset, assert_same_weights, weights_of, train_logs_of, config, interrupted_at, where
):
    resumed = assert_resumes_exactly(
        make_trainer,
        assert_same_weights,
        weights_of,
        train_logs_of,
        interrupted_at,
        config=config,
        train_dataset=make_dataset(24),
        max_steps=8,
        weight_decay_end=0.3,
    )
    assert resumed.state.global_step == 8


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


def test_resuming_takes_the_last_checkpoint_that_was_written_to_its_end(make_trainer, tmp_path, hear_warnings):
    options = {"output_dir": str(tmp_path / "run"), "save_strategy": "steps", "save_steps": 1}
    make_trainer(max_steps=4, **options).train()
    run = tmp_path / "run"
    (run / "checkpoint-4" / "trainer_state.json").unlink()
    state = run / "checkpoint-3" / "trainer_state.json"
    state.write_text(state.read_text(encoding="utf-8")[:40], encoding="utf-8")
    (run / "checkpoint-99").mkdir()
    (run / "checkpoint-final").mkdir()
    assert last_complete_checkpoint(str(run)) == str(run / "checkpoint-2")
    assert sum("not written to its end" in message for message in hear_warnings.messages) == 3
    resumed = make_trainer(max_steps=4, **options)
    seen = []

    class Begin(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            seen.append(state.global_step)

    resumed.add_callback(Begin())
    resumed.train(resume_from_checkpoint=True)
    assert seen == [2] and resumed.state.global_step == 4


def test_resuming_a_finished_run_changes_nothing(make_trainer, weights_of, assert_same_weights):
    """Its last step lies mid-epoch; transformers alone would train one step more."""
    finished = make_trainer(max_steps=3, save_strategy="steps", save_steps=3)
    finished.train()
    resumed = make_trainer(max_steps=3, model_seed=5)
    resumed.train(resume_from_checkpoint=str(Path(finished.args.output_dir) / "checkpoint-3"))
    assert resumed.state.global_step == 3
    assert_same_weights(weights_of(resumed), weights_of(finished))


@pytest.mark.parametrize("wish", [True, "true", "True"])
def test_resuming_without_a_checkpoint_is_an_error_that_says_so(make_trainer, wish):
    """A flag or a YAML file gives the wish as text."""
    with pytest.raises(ValueError, match="There is no complete checkpoint in .*; expected a folder checkpoint-N"):
        make_trainer().train(resume_from_checkpoint=wish)


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


def test_a_stream_trains_for_max_steps_past_its_end(make_trainer):
    assert make_trainer(train_dataset=stream(), max_steps=7).train().global_step == 7


def test_a_stream_that_ends_is_refused(make_trainer):
    with pytest.raises(ValueError, match="repeat=True"):
        make_trainer(train_dataset=stream(repeat=False))


@pytest.mark.parametrize("step", [2, 6])
def test_an_interrupted_stream_goes_on_as_if_it_had_not_been(
    make_trainer, assert_same_weights, weights_of, train_logs_of, step
):
    """Also in the second pass: five steps are one."""
    options = {"max_steps": 8}
    whole = make_trainer(train_dataset=stream(), save_strategy="steps", save_steps=step, **options)
    whole.train()
    resumed = make_trainer(train_dataset=stream(), model_seed=3, **options)
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / f"checkpoint-{step}"))
    assert_same_weights(weights_of(resumed), weights_of(whole))
    assert train_logs_of(resumed) == train_logs_of(whole)


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


# ---- collapse ----


def test_collapse_warns_and_goes_on_or_stops_as_asked(make_trainer, hear_warnings, train_logs_of):
    images = [{"pixel_values": torch.full((3, 16, 16), 100, dtype=torch.uint8)} for _ in range(48)]
    options = {"crop": "none", "horizontal_flip": 0.0, "color_jitter": 0.0}
    options |= {"collapse_min_std": 0.01, "collapse_min_rank": 1.5}
    warned = make_trainer(train_dataset=images, collapse_action="warn", **options)
    assert warned.train().global_step == 4
    assert sum("Collapse at step 1" in message for message in hear_warnings.messages) == 1
    assert train_logs_of(warned)[-1]["target_std"] == pytest.approx(0.0, abs=1e-4)
    stopped = make_trainer(train_dataset=images, collapse_action="stop", **options)
    assert stopped.train().global_step == 1
    assert "The run stops here" in hear_warnings.messages[-1]


def test_features_that_tell_images_apart_raise_no_alarm(make_trainer, hear_warnings, train_logs_of):
    trainer = make_trainer(collapse_min_std=0.01, collapse_min_rank=1.01, collapse_action="stop")
    assert trainer.train().global_step == 4
    assert not any("Collapse" in message for message in hear_warnings.messages)


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
    assert f"| last prediction_loss | {trainer.state.log_history[-2]['prediction_loss']:.4g} |" in ours
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


def test_a_saved_run_loads_without_a_warning(make_trainer, hear_warnings):
    """`Trainer` writes a `use_cache` of its own into the configuration, which ours does not know."""
    trainer = make_trainer(max_steps=1)
    trainer.train()
    trainer.save_model()
    AutoModel.from_pretrained(trainer.args.output_dir)
    assert not [message for message in hear_warnings.messages if "Configuration keys" in message]


class TestDataOnDevice:
    @pytest.mark.parametrize("accumulation", [1, 2])
    def test_it_changes_no_bit_of_the_weights(self, make_trainer, weights_of, accumulation):
        """Same images in the same order, over three epochs; labels, which training does not use, stay behind."""
        scenes = load_image_dataset("synthetic-scenes", max_examples=32)
        dataset = build_image_dataset(scenes, 16, cache=True)
        assert len(dataset) == 32 and dataset.has_labels
        found = []
        for data_on_device in (False, True):
            trainer = make_trainer(
                train_dataset=dataset,
                max_steps=10 // accumulation,
                gradient_accumulation_steps=accumulation,
                data_on_device=data_on_device,
            )
            trainer.train()
            found.append(weights_of(trainer))
        assert all(torch.equal(found[0][name], weight) for name, weight in found[1].items())

    @pytest.mark.cuda
    def test_on_a_gpu_it_changes_no_bit_of_the_loss_of_the_first_step(self, make_trainer):
        dataset = build_image_dataset(load_image_dataset("synthetic-scenes", max_examples=32), 16, cache=True)
        losses = []
        for data_on_device in (False, True):
            trainer = make_trainer(
                train_dataset=dataset,
                max_steps=1,
                use_cpu=False,
                dataloader_pin_memory=True,
                data_on_device=data_on_device,
            )
            losses.append(trainer.train().training_loss)
        assert losses[0] == losses[1]

    def test_a_collator_that_would_not_be_called_is_refused(self, make_small_config, tmp_path):
        dataset = build_image_dataset(load_image_dataset("synthetic-scenes", max_examples=32), 16, cache=True)
        arguments = SparseJEPATrainingArguments(str(tmp_path), use_cpu=True, report_to="none", data_on_device=True)
        with pytest.raises(ValueError, match="one or the other"):
            SparseJEPATrainer(
                SparseJEPAForPreTraining(make_small_config()), arguments, dataset, data_collator=collate_images
            )

    def test_images_that_are_not_in_memory_are_refused(self, make_trainer, make_dataset):
        scenes = build_image_dataset(load_image_dataset("synthetic-scenes", max_examples=32), 16, cache=False)
        for dataset in (scenes, make_dataset()):
            with pytest.raises(ValueError, match="cache=True"):
                make_trainer(train_dataset=dataset, data_on_device=True)
