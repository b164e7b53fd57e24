# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What a step of pre-training does, and what it logs."""

import math

import pytest
import safetensors.torch
import torch
from transformers import EarlyStoppingCallback, TrainerCallback

from sparsejepa_hf import (
    SparseJEPAForPreTraining,
    SparseJEPATrainer,
    SparseJEPATrainingArguments,
)
from sparsejepa_hf.data import (
    build_image_dataset,
    collate_images,
    load_image_dataset,
)
from sparsejepa_hf.training import callbacks as steps
from sparsejepa_hf.training import kkt_residual, monitors, proximal, proximal_step_
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


def test_the_trainer_freezes_the_target_encoder_whoever_thawed_it(make_trainer, make_small_config):
    """Also of a model that it makes by itself, before the optimizer is made."""

    def thawed():
        model = SparseJEPAForPreTraining(make_small_config())
        model.requires_grad_(True)
        return model

    args = make_trainer().args
    given = SparseJEPATrainer(thawed(), args, train_dataset=make_trainer().train_dataset)
    made = SparseJEPATrainer(args=args, model_init=thawed, train_dataset=given.train_dataset)
    made.train()
    for trainer in (given, made):
        target = {id(p) for p in trainer.model.sparsejepa.target_encoder.parameters()}
        trainable = {id(p) for p in trainer.model.parameters() if p.requires_grad}
        assert not target & trainable and len(target) + len(trainable) == len(list(trainer.model.parameters()))
    assert not target & {id(p) for group in made.optimizer.param_groups for p in group["params"]}


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
        options = {"sparsity_warmup_steps": 0, "max_steps": 30, "logging_steps": 30}
        trainer = make_trainer(config={"sparsity_weight": weight}, **options)
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


def test_a_given_optimizer_without_a_group_of_w_s_own_is_refused(make_trainer):
    trainer = make_trainer(config={"sparsity_weight": 1.0})
    trainer.optimizer = torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad])
    with pytest.raises(ValueError, match="no parameter group of its own for W"):
        trainer.train()


def test_the_schedule_of_the_weight_decay_refuses_a_given_optimizer_and_serves_a_second_run(make_trainer):
    options = {"config": {"use_grouping": False}, "max_steps": 2, "weight_decay": 0.1, "weight_decay_end": 0.4}
    trainer = make_trainer(**options)
    trainer.optimizer = torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad])
    with pytest.raises(ValueError, match="does not reach an optimizer that is given"):
        trainer.train()
    trainer = make_trainer(**options)
    trainer.train()
    trainer.train()
    assert sorted({group["weight_decay"] for group in trainer.optimizer.param_groups}) == pytest.approx([0.0, 0.4])


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
        options = {"learning_rate": 3e-2, "weight_decay": 0.0, "max_steps": 30, "logging_steps": 30}
        trainer = make_trainer(config={"sparsity_weight": weight}, **options)
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
        max_steps=40,
        logging_steps=5,
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
    assert losses[-1] < 0.8 * losses[0]


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
    options = {"max_steps": 25, "logging_steps": 25, "per_device_train_batch_size": 16}
    trainer = make_trainer(train_dataset=images, eval_dataset=images, **options)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before


def test_the_best_checkpoint_and_early_stopping_go_by_the_knn_accuracy(
    make_trainer, make_dataset, weights_of, monkeypatch
):
    """It peaks at step 2 of the run, which ends at step 4 after two evaluations without a gain."""
    accuracies = iter([0.1, 0.3, 0.9, 0.5, 0.6, 0.7, 0.8])
    monkeypatch.setattr(monitors, "knn_accuracy", lambda *sets, k: next(accuracies))
    trainer = make_trainer(
        callbacks=[EarlyStoppingCallback(2)],
        knn_datasets=(make_dataset(8), make_dataset(8)),
        eval_dataset=make_dataset(8),
        max_steps=6,
        knn_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="knn_accuracy",
    )
    trainer.train()
    assert trainer.state.global_step == 4 and trainer.state.best_metric == 0.9
    best = safetensors.torch.load_file(f"{trainer.args.output_dir}/checkpoint-2/model.safetensors")
    assert all(torch.equal(best[name], weight) for name, weight in weights_of(trainer).items())
    assert trainer.evaluate()["eval_knn_accuracy"] == 0.7, "of the model as it is now, not of step 4"


def test_evaluations_measure_knn_without_steps_of_its_own(make_trainer, make_dataset, logs_of):
    sets = make_dataset(24), make_dataset(16, seed=1)
    named = {"a": make_dataset(8), "b": make_dataset(8, seed=2)}
    trainer = make_trainer(knn_datasets=sets, eval_dataset=named, knn_k=3, eval_strategy="steps", eval_steps=2)
    trainer.train()
    assert not any("knn_accuracy" in entry for entry in logs_of(trainer))
    for name in named:
        measured = [entry[f"eval_{name}_knn_accuracy"] for entry in logs_of(trainer) if f"eval_{name}_loss" in entry]
        assert len(measured) == 2 and all(0 <= accuracy <= 1 for accuracy in measured)


# ---- labels ----

LABELS = {
    "None": lambda i: {"labels": None},
    "text": lambda i: {"labels": "cat"},
    "several an image": lambda i: {"labels": [0] * (i % 3)},
    "every second": lambda i: {"labels": 1} if i % 2 else {},
    "boxes": lambda i: {"labels": {"bbox": [0, 0, 1, 1]}},
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_any_kind_are_left_out_of_training_and_evaluation(make_trainer, make_dataset, train_logs_of, kind):
    images = make_dataset(24, labels=False)
    labelled = [{**images[i], **LABELS[kind](i)} for i in range(24)]
    bare, other = (make_trainer(train_dataset=data, eval_dataset=data, max_steps=2) for data in (images, labelled))
    for trainer in (bare, other):
        trainer.train()
    assert train_logs_of(other) == train_logs_of(bare)
    assert other.evaluate()["eval_loss"] == bare.evaluate()["eval_loss"]


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


# ---- data on the device ----
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

    def test_held_out_images_are_stacked_as_ever(self, make_trainer):
        dataset = build_image_dataset(load_image_dataset("synthetic-scenes", max_examples=32), 16, cache=True)
        heldout = [{"pixel_values": dataset[i]["pixel_values"].numpy(), "labels": "cat"} for i in range(12)]
        losses = [
            make_trainer(train_dataset=dataset, eval_dataset=heldout, data_on_device=on_device).evaluate()["eval_loss"]
            for on_device in (False, True)
        ]
        assert losses[0] == losses[1]

    def test_a_collator_that_would_not_be_called_is_refused(self, make_small_config, tmp_path):
        dataset = build_image_dataset(load_image_dataset("synthetic-scenes", max_examples=32), 16, cache=True)
        arguments = SparseJEPATrainingArguments(str(tmp_path), use_cpu=True, report_to="none", data_on_device=True)
        with pytest.raises(ValueError, match="one or the other"):
            SparseJEPATrainer(SparseJEPAForPreTraining(make_small_config()), arguments, collate_images, dataset)

    def test_images_that_are_not_in_memory_are_refused(self, make_trainer, make_dataset):
        scenes = build_image_dataset(load_image_dataset("synthetic-scenes", max_examples=32), 16, cache=False)
        for dataset in (scenes, make_dataset()):
            with pytest.raises(ValueError, match="cache=True"):
                make_trainer(train_dataset=dataset, data_on_device=True)


# ---- what the model sees ----


def test_targets_carry_no_dropout_noise(make_trainer):
    """Two passes in training mode agree on the targets, not on the predictions."""
    model = make_trainer(
        config={"hidden_dropout_prob": 0.5, "use_grouping": False, "sparsity_weight": 0, "kl_weight": 0}
    ).model
    model.train()
    images = torch.randn(2, 3, 16, 16)
    context, target = torch.tensor([[0, 1, 2]] * 2), torch.tensor([[[8, 9]]] * 2)
    first, second = (model(images, context, target) for _ in range(2))
    assert torch.equal(first.target_hidden_state, second.target_hidden_state)
    assert not torch.equal(first.predictor_output.last_hidden_state, second.predictor_output.last_hidden_state)


def test_under_autocast_the_residual_stream_keeps_the_weights_precision(make_trainer):
    model = make_trainer().model
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = model.sparsejepa.context_encoder.embeddings(torch.randn(1, 3, 16, 16))
    assert embeddings.dtype == torch.float32
