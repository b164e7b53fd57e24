# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Weights kept in bf16 change no bit of what autocast computes; a CPU that is slow in bf16 is named so, once a run."""

import math
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sparsejepa_hf import SparseJEPAForPreTraining
from sparsejepa_hf.training import SparseJEPATrainer, precision
from sparsejepa_hf.training.precision import AutocastWeights, product_seconds, warn_of_slow_bf16


# ---- weights kept in bf16 ----


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count[str(function)] += 1
        return function(*args, **(kwargs or {}))


@pytest.fixture
def model(make_model):
    return make_model(SparseJEPAForPreTraining, variational=False, kl_weight=0.0).train()


@pytest.fixture
def step(model, pixel_values, masks):
    """Loss and gradients of a step under autocast to a type, or without, in one vector."""

    def run(dtype=torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = model(pixel_values, **masks).loss
        gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
        return torch.cat([loss.detach()[None], *(gradient.flatten() for gradient in gradients)])

    return run


def test_loss_and_gradients_are_equal_to_the_bit_and_two_casts_a_linear_map_are_gone(model, step):
    results, casts = [], []
    for keep in (False, True):
        if keep:
            kept = AutocastWeights(model.sparsejepa.target_encoder)
        with Operations() as operations:
            results.append(step())
        casts.append(operations.count["aten._to_copy.default"])
    assert torch.equal(*results)
    linears = [part for part in model.sparsejepa.target_encoder.modules() if isinstance(part, torch.nn.Linear)]
    assert casts[0] - casts[1] == 2 * len(linears)
    with Operations() as operations:
        kept.refresh()
    assert sum(operations.count.values()) == operations.count["aten._foreach_copy_.default"] == 1


@pytest.mark.parametrize("dtype", [None, torch.float16], ids=["fp32", "fp16"])
def test_another_precision_does_not_see_the_copies(model, step, dtype):
    expected = step(dtype)
    kept = AutocastWeights(model.sparsejepa.target_encoder)
    torch._foreach_zero_(kept._copies)
    assert torch.equal(step(dtype), expected)


def test_a_weight_that_changed_since_is_cast_anew_until_the_copies_are_refreshed(model, step):
    encoder = model.sparsejepa.target_encoder
    kept = AutocastWeights(encoder)
    with torch.no_grad():
        torch._foreach_mul_(list(encoder.parameters()), 1.5)
    changed = step()
    kept.refresh()
    with torch.no_grad():
        encoder.layers[0].mlp.fc1.bias.add_(1.0)
    assert not torch.equal(step(), changed), "a bias that changed alone"
    with torch.no_grad():
        encoder.layers[0].mlp.fc1.bias.sub_(1.0)
    kept.refresh()
    assert torch.equal(step(), changed)
    kept.remove()
    assert torch.equal(step(), changed)
    kept = AutocastWeights(encoder)
    torch._foreach_zero_(kept._copies)
    assert not torch.equal(step(), changed), "the copies are not used"


def test_parameters_buffers_and_checkpoints_stay_what_they_were(model):
    before = {name: id(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    saved = list(model.state_dict())
    kept = AutocastWeights(model.sparsejepa.target_encoder)
    assert {name: id(tensor) for name, tensor in (*model.named_parameters(), *model.named_buffers())} == before
    assert list(model.state_dict()) == saved
    kept.remove()
    assert not any("forward" in vars(part) for part in model.modules())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_run_in_bf16_trains_the_same_weights_with_and_without_them(
    make_trainer, weights_of, train_logs_of, assert_same_weights, monkeypatch, accumulation
):
    runs, refreshed, refresh = [], [], AutocastWeights.refresh
    monkeypatch.setattr(AutocastWeights, "refresh", lambda self: refreshed.append(1) or refresh(self))
    for keep in (True, False):
        if not keep:
            monkeypatch.setattr(SparseJEPATrainer, "_keeps_autocast_weights", lambda self: False)
        trainer = make_trainer(bf16=True, gradient_accumulation_steps=accumulation)
        trainer.train()
        runs.append(trainer)
        assert len(refreshed) == 4, "once an optimizer step, and never without them"
    assert_same_weights(*map(weights_of, runs))
    assert train_logs_of(runs[0]) == train_logs_of(runs[1])
    assert not any("forward" in vars(part) for part in runs[0].model.sparsejepa.modules())


@pytest.mark.parametrize(
    ("options", "keeps"),
    [({"bf16": True}, True), ({}, False), ({"bf16": True, "torch_compile": True}, False)],
    ids=["bf16", "fp32", "bf16, compiled"],
)
def test_they_are_kept_in_eager_bf16_alone_and_not_of_weights_in_pieces(make_trainer, options, keeps):
    trainer = make_trainer(**options)
    assert trainer._keeps_autocast_weights() is keeps
    trainer.is_fsdp_enabled = True
    assert not trainer._keeps_autocast_weights()


# ---- slow CPUs ----


@pytest.fixture
def pretend(monkeypatch):
    """Products that take the given milliseconds in fp32 and in bf16."""

    def pretend(fp32, bf16):
        seconds = {torch.float32: 1e-3 * fp32, torch.bfloat16: 1e-3 * bf16}
        monkeypatch.setattr(precision, "product_seconds", seconds.__getitem__)

    return pretend


def test_the_warning_names_the_ratio_that_was_measured(hear_warnings, pretend):
    pretend(fp32=2.0, bf16=10.6)
    warn_of_slow_bf16()
    (message,) = hear_warnings.messages
    assert "5.3 times as long in bf16 as in fp32" in message


def test_a_clock_that_does_not_see_a_product_says_nothing(hear_warnings, pretend):
    pretend(fp32=0.0, bf16=15.0)
    warn_of_slow_bf16()
    assert hear_warnings.messages == []


@pytest.mark.parametrize("bf16", [1.0, 2.0, 2.1], ids=["faster", "equal", "slower by less than noise"])
def test_bf16_that_is_no_slower_is_passed_over(hear_warnings, pretend, bf16):
    pretend(fp32=2.0, bf16=bf16)
    warn_of_slow_bf16()
    assert hear_warnings.messages == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_s_time_is_a_finite_number(dtype):
    assert 0 <= product_seconds(dtype) < math.inf


@pytest.mark.parametrize(("bf16", "warnings"), [(True, 1), (False, 0)])
def test_a_run_is_warned_once_and_only_in_bf16(make_trainer, hear_warnings, pretend, bf16, warnings):
    pretend(fp32=1.0, bf16=3.0)
    make_trainer(bf16=bf16).train()
    assert sum("in bf16 as in fp32" in message for message in hear_warnings.messages) == warnings
