# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A CPU that is slow in bf16 is named so, once a run."""

import math

import pytest
import torch

from sparsejepa_hf.training import precision
from sparsejepa_hf.training.precision import product_seconds, warn_of_slow_bf16


@pytest.fixture
def pretend(monkeypatch):
    """Products that take so many milliseconds in fp32 and in bf16."""

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
