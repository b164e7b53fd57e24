# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""W as a table of groups: counts on a W made by hand, importance in closed form, maps as norms of W z."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsejepa_hf import SparseJEPAForPreTraining, SparseJEPAModel, SparseJEPAVisionModel
from sparsejepa_hf.interpret import NotMeasurable, find_grouping, group_activations, group_structure


@pytest.fixture
def model(make_model):
    return make_model(SparseJEPAModel)


def _set_columns(model, held):
    """W's columns random where `held` (G, K), else exactly zero."""
    weight = model.predictor.grouping.group_weight
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)) * held[:, None])


def test_counts_of_a_sparse_w(model):
    held = torch.zeros(4, 6)
    held[0, 0] = held[0, 1] = held[1, 1] = held[2, 2] = held[2, 3] = held[0, 3] = held[1, 3] = 1
    _set_columns(model, held)
    structure = group_structure(model)
    assert structure.zero_columns == pytest.approx(17 / 24)
    assert structure.groups_per_latent.tolist() == [1, 2, 1, 3, 0, 0]
    assert structure.latents_per_group.tolist() == [3, 2, 2, 0]
    assert structure.dead_latents.tolist() == [4, 5] and structure.dead_groups.tolist() == [3]
    assert np.array_equal(structure.held, held.bool().numpy()) and (structure.importance[~structure.held] == 0).all()
    assert structure.assignment[[0, 2, 4, 5]].tolist() == [0, 2, -1, -1] and structure.assignment[1] in (0, 1)
    # One group alone is all of a latent's importance; no group is none.
    assert structure.selectivity[[0, 2]] == pytest.approx(1) and np.isnan(structure.selectivity[[4, 5]]).all()
    assert 0 <= structure.selectivity[3] < 1


def test_column_norms_are_those_of_w(model):
    weight = model.predictor.grouping.group_weight
    expected = weight.detach().double().square().sum(dim=1).sqrt().numpy()
    np.testing.assert_allclose(group_structure(model).column_norms, expected)


def test_with_linear_generators_importance_is_the_column_through_the_generator_times_the_latent_s_spread(make_model):
    model = make_model(SparseJEPAModel)
    grouping = model.predictor.grouping
    grouping.activation_fn = nn.Identity()
    latents = torch.randn(200, 6, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 7) + 5
    through = torch.einsum(
        "gpk,gph,ghd->gkd", grouping.group_weight, grouping.generator_in_weight, grouping.generator_out_weight
    ).detach()
    expected = torch.linalg.vector_norm(through, dim=2) * latents.std(dim=0, correction=0)
    found = group_structure(model, latents).importance
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4)


def test_importance_is_the_generator_s_not_the_column_s(model):
    # A generator that ignores its input makes the largest column worth nothing.
    with torch.no_grad():
        model.predictor.grouping.generator_in_weight[1] = 0
        model.predictor.grouping.group_weight[1] *= 100
    structure = group_structure(model)
    assert structure.importance[1] == pytest.approx(0, abs=1e-6) and (structure.column_norms[1] > 1).all()
    assert 1 not in structure.assignment


def test_w_of_zeros_has_no_living_latent(model):
    _set_columns(model, torch.zeros(4, 6))
    structure = group_structure(model)
    assert structure.zero_columns == 1 and (structure.assignment == -1).all() and len(structure.dead_groups) == 4
    assert np.isnan(structure.selectivity).all()


def test_a_single_group_has_no_selectivity(make_model):
    structure = group_structure(make_model(SparseJEPAModel, num_groups=1))
    assert np.isnan(structure.selectivity).all() and (structure.assignment == 0).all()


@pytest.mark.parametrize("latent_position", ["predictor", "encoder"])
def test_maps_are_norms_of_w_times_the_latents(make_model, pixel_values, latent_position):
    model = make_model(SparseJEPAModel, latent_position=latent_position)
    latents, _ = model.encode_latents(pixel_values)
    expected = torch.einsum("gpk,bnk->bngp", model.predictor.grouping.group_weight, latents).norm(dim=-1)
    maps = group_activations(model, pixel_values)
    assert maps.shape == (2, 4, 8, 8)
    torch.testing.assert_close(maps.flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-5)
    enlarged = group_activations(model, pixel_values, output_size=(32, 32))
    # Enlarging keeps each patch's value at its centre's surroundings, and the mean.
    torch.testing.assert_close(F.avg_pool2d(enlarged, 4).mean(), maps.mean(), rtol=1e-3, atol=1e-4)
    assert enlarged.amax() <= maps.amax() and enlarged.amin() >= maps.amin()


def test_maps_of_other_sizes(make_model, make_images):
    model = make_model(SparseJEPAModel)
    maps = group_activations(model, make_images(1, (40, 48)), interpolate_pos_encoding=True)
    assert maps.shape == (1, 4, 10, 12)
    assert group_activations(SparseJEPAForPreTraining(model.config), make_images(1)).shape == (1, 4, 8, 8)


def test_what_has_no_groups_is_said_to_have_none(make_model, make_config):
    with pytest.raises(NotMeasurable, match=r"I-JEPA \(use_grouping=False\)"):
        find_grouping(make_model(SparseJEPAModel, use_grouping=False))
    with pytest.raises(NotMeasurable, match="a SparseJEPAVisionModel, which has no predictor"):
        find_grouping(SparseJEPAVisionModel(make_config()))
    model = make_model(SparseJEPAModel)
    with torch.no_grad():
        model.predictor.grouping.group_weight[0, 0, 0] = torch.nan
    with pytest.raises(NotMeasurable, match="group_weight holds a NaN"):
        group_structure(model)
    with pytest.raises(ValueError, match=r"latents has the shape \(3, 5\); expected \(tokens, 6\)"):
        group_structure(make_model(SparseJEPAModel), torch.zeros(3, 5))
