# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Groups removed: errors against the model's own loss, probes against scikit-learn, causes that are known."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from sparsejepa_hf.evaluation import load_encoder
from sparsejepa_hf.interpret import GroupStructure, NotMeasurable, PatchRecord, ablation
from sparsejepa_hf.interpret.ablation import (
    PredictionErrors,
    ablation_section,
    fit_group_probe,
    group_columns,
    group_selectivity,
    pooled_inputs,
    random_columns,
    without_columns,
)
from sparsejepa_hf.masking import MultiBlockMaskSampler
from sparsejepa_hf.modeling_sparsejepa import SparseJEPAForPreTraining


KINDS = [
    {},
    {"latent_residual": True},
    {"latent_position": "encoder"},
    {"latent_position": "encoder", "latent_residual": True},
    {"loss_type": "mse", "target_normalization": "none"},
]


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(ablation, "_NUM_DRAWS", {"predictor": 4, "encoder": 2})
    monkeypatch.setattr(ablation, "_NUM_RESAMPLES", 50)
    monkeypatch.setattr(ablation, "_NUM_ORDERS", 20)


@pytest.fixture(scope="module")
def class_latents():
    """Latents (120, 64, 6) whose first tells three classes apart, and the classes."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    latents = rng.standard_normal((120, 64, 6)).astype(np.float32)
    latents[:, :, 0] += 3 * labels[:, None]
    return latents, labels


def _record(latents, labels) -> PatchRecord:
    count = len(latents)
    return PatchRecord(
        pixel_values=np.random.default_rng(5).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8),
        features=np.zeros((count, 64, 4), np.float32),
        latents=latents,
        maps=np.zeros((count, 4, 8, 8), np.float32),
        labels=labels,
        label_names=("a", "b", "c"),
        masks=None,
        table=None,
    )


def _partition(model) -> None:
    """W in which latent g holds group g alone, and latents 4 and 5 none."""
    with torch.no_grad():
        model.group_weight.zero_()
        for group in range(4):
            model.group_weight[group, :, group] = 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_the_models_own_loss_with_that_weight(make_model, make_images, kind):
    model, images = make_model(SparseJEPAForPreTraining, **kind), make_images(6)
    context_mask, target_mask = MultiBlockMaskSampler((8, 8), seed=3)(6, step=0)
    errors = PredictionErrors(model, images, seed=3)
    removed = without_columns(model.group_weight, group_columns(np.ones((4, 6), bool), 2))
    for weight in (model.group_weight.detach().clone(), removed):
        changed = copy.deepcopy(model)
        with torch.no_grad():
            changed.group_weight.copy_(weight)
            expected = changed(images, context_mask, target_mask).prediction_loss
        assert errors(weight).mean() == pytest.approx(float(expected), rel=1e-5)
        assert errors(weight).shape == (6, 4)


def test_behind_the_predictor_a_group_touches_its_own_slice_alone(make_model, make_images):
    model = make_model(SparseJEPAForPreTraining)
    errors = PredictionErrors(model, make_images(4))
    change = errors(without_columns(model.group_weight, group_columns(np.ones((4, 6), bool), 1)))
    change -= errors(model.group_weight.detach())
    assert (change[:, [0, 2, 3]] == 0).all() and (change[:, 1] != 0).all()


def test_the_model_is_left_as_it_was_also_on_error(make_model, make_images):
    model = make_model(SparseJEPAForPreTraining).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    errors = PredictionErrors(model, make_images(4))
    errors(torch.zeros_like(model.group_weight))
    with pytest.raises(RuntimeError):
        errors(torch.zeros(4, 3, 5))
    assert model.training and model.group_weight.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_random_columns_are_as_many_of_those_that_are_not_zero():
    held = np.random.default_rng(0).random((4, 10)) < 0.5
    drawn = [random_columns(held, 5, np.random.default_rng(seed)) for seed in range(200)]
    assert all(columns.sum() == 5 and not (columns & ~held).any() for columns in drawn)
    share = np.mean(drawn, axis=0)[held]
    np.testing.assert_allclose(share, 5 / held.sum(), atol=0.12)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_a_probe_taken_apart_adds_up_to_the_probe(num_classes):
    rng = np.random.default_rng(0)
    labels = np.arange(200) % num_classes
    inputs = (rng.standard_normal((200, 4, 6)) + labels[:, None, None] * rng.standard_normal((4, 6))).astype(
        np.float32
    )
    probe = fit_group_probe(inputs[:100], labels[:100], inputs[100:], labels[100:])
    flat = inputs.reshape(200, -1)
    mean, spread = flat[:100].mean(axis=0), flat[:100].std(axis=0)
    np.testing.assert_allclose(probe.features.reshape(100, -1), (flat[100:] - mean) / spread, atol=1e-4)
    reference = LogisticRegression(C=1.0).fit((flat[:100] - mean) / spread, labels[:100])
    agreement = reference.predict((flat[100:] - mean) / spread) == labels[100:]
    assert probe.is_right(probe.scores().sum(axis=1)).mean() == pytest.approx(agreement.mean(), abs=0.05)
    # A removed group is one that always has its train mean.
    held = inputs[100:].copy()
    held[:, 2] = mean.reshape(4, 6)[2]
    again = fit_group_probe(inputs[:100], labels[:100], held, labels[100:])
    total = probe.scores().sum(axis=1) - probe.scores()[:, 2]
    np.testing.assert_allclose(total, again.scores().sum(axis=1), atol=1e-4)


def test_pooled_inputs_are_means_and_deviations_of_groups(class_latents):
    latents, weight = class_latents[0], np.random.default_rng(0).standard_normal((4, 3, 6))
    inputs = np.einsum("gpk,nlk->nlgp", weight, latents)
    expected = np.concatenate([inputs.mean(axis=1), inputs.std(axis=1)], axis=2)
    np.testing.assert_allclose(pooled_inputs(weight, latents), expected, atol=1e-5)


def test_selectivity_of_a_group_is_that_of_its_latents_by_importance():
    importance = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    found = group_selectivity(GroupStructure(importance, importance))
    mixed = 1 - np.log(2) / np.log(3)
    np.testing.assert_allclose(found, [(2 + mixed) / 3, mixed, np.nan])


@pytest.mark.parametrize("kind", [{}, {"latent_position": "encoder"}])
def test_the_group_that_holds_the_classes_is_the_one_whose_loss_costs(make_model, class_latents, kind):
    model = make_model(SparseJEPAForPreTraining, **kind)
    _partition(model)
    before = model.group_weight.detach().clone()
    section = ablation_section(load_encoder(model), _record(*class_latents))
    assert torch.equal(model.group_weight.detach(), before)
    probe, error = section.details["probe"], section.details["prediction_error"]
    assert probe["accuracy"] > 0.9
    assert probe["change_by_group"][0] < -0.5 and min(probe["change_by_group"][1:]) > -0.05
    assert np.allclose(np.mean(probe["change_by_class_and_group"], axis=0), probe["change_by_group"], atol=1e-9)
    place = probe["kept"]["order"].index(0)
    assert probe["kept"]["accuracy"][place] > 0.85 and probe["kept"]["accuracy"][-1] == probe["accuracy"]
    assert (error["rise_in_own_slice"] is None) == bool(kind)
    assert len(section.measures) == 3 and all(measure.nulls for measure in section.measures)


def test_a_dead_group_has_nothing_to_remove(make_model, class_latents):
    model = make_model(SparseJEPAForPreTraining)
    _partition(model)
    with torch.no_grad():
        model.group_weight[3] = 0
    section = ablation_section(load_encoder(model), _record(*class_latents))
    assert section.details["groups"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("count", "labels", "message"),
    [
        (120, None, "no labels"),
        (120, np.zeros(120, np.int64), "one label"),
        (8, np.arange(8) % 3, "6 latents"),
        (20, np.arange(20), "single image"),
    ],
)
def test_without_a_probe_the_prediction_error_still_comes(make_model, class_latents, count, labels, message):
    model = make_model(SparseJEPAForPreTraining)
    section = ablation_section(load_encoder(model), _record(class_latents[0][:count], labels))
    assert len(section.measures) == 1 and "prediction error" in section.measures[0].name
    assert "Probe accuracy could not be measured" in section.finding and message in section.finding


def test_what_is_missing_is_said(make_model, class_latents):
    model = make_model(SparseJEPAForPreTraining)
    encoder, record = load_encoder(model), _record(*class_latents)
    with pytest.raises(NotMeasurable, match="no groups"):
        ablation_section(encoder, dataclasses.replace(record, latents=None, maps=None))
    with torch.no_grad():
        model.group_weight.zero_()
    with pytest.raises(NotMeasurable, match="Every column of W is zero"):
        ablation_section(encoder, record)
