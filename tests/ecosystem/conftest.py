# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints on disk, as other people's tools find them."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsejepa_hf import SparseJEPAForImageClassification, SparseJEPAForPreTraining


@pytest.fixture(scope="session")
def widths() -> dict[str, int]:
    """Sizes that bitsandbytes' four-bit kernel for a CPU takes: multiples of 64 in, and of 16 out."""
    return {
        "hidden_size": 64,
        "intermediate_size": 128,
        "predictor_hidden_size": 64,
        "predictor_num_attention_heads": 4,
        "predictor_intermediate_size": 128,
        "num_latents": 16,
    }


@pytest.fixture(scope="session")
def pretrained(make_model, widths, tmp_path_factory) -> Path:
    """A full checkpoint: both encoders, predictor and grouping."""
    folder = tmp_path_factory.mktemp("pretrained")
    make_model(SparseJEPAForPreTraining, **widths).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def classifier(make_model, widths, tmp_path_factory) -> Path:
    """A checkpoint of a classifier with three labels."""
    folder = tmp_path_factory.mktemp("classifier")
    make_model(SparseJEPAForImageClassification, num_labels=3, **widths).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def first_output():
    """The first output of a model in evaluation mode, without gradient: features, or logits."""

    @torch.no_grad()
    def run(model: torch.nn.Module, pixel_values: Tensor, **options) -> Tensor:
        return model.eval()(pixel_values=pixel_values, **options)[0]

    return run


@pytest.fixture(scope="session")
def cosine():
    """The lowest cosine of two tensors' last dimension."""
    return lambda a, b: F.cosine_similarity(a.double(), b.double(), dim=-1).min().item()
