# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Groups over seeds: similarities against definitions and invariances, runs that share groups and runs that do not."""

import dataclasses

import numpy as np
import pytest
import torch

from sparsejepa_hf.evaluation import load_encoder
from sparsejepa_hf.interpret import NotMeasurable, PatchRecord, stability
from sparsejepa_hf.interpret.stability import (
    block_moments,
    group_codes,
    input_similarity,
    map_correlation,
    match,
    matched_similarity,
    random_grouping,
    stability_section,
)
from sparsejepa_hf.modeling_sparsejepa import SparseJEPAForPreTraining


GROUPS, SIZE, LATENTS = 4, 3, 12


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(stability, "_NUM_DRAWS", 20)
    monkeypatch.setattr(stability, "_NUM_RESAMPLES", 30)


def _rotation(size: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]


def _weight(seed: int = 0) -> np.ndarray:
    """W of four groups of three latents each, without overlap."""
    weight = np.zeros((GROUPS, SIZE, LATENTS), np.float32)
    for group in range(GROUPS):
        weight[group, :, 3 * group : 3 * group + 3] = _rotation(SIZE, seed + group)
    return weight


@pytest.fixture(scope="module")
def latents():
    """Latents whose three of a group share their strength, so that groups have maps of their own."""
    rng = np.random.default_rng(0)
    strength = rng.gamma(1.0, size=(80, 64, GROUPS)).repeat(3, axis=2)
    return (strength * rng.standard_normal((80, 64, LATENTS))).astype(np.float32)


@pytest.fixture(scope="module")
def other_basis():
    """How another run names the same groups: rotated within a group, groups in another order."""
    change = np.zeros((LATENTS, LATENTS), np.float32)
    for group, name in enumerate((2, 0, 3, 1)):
        change[3 * name : 3 * name + 3, 3 * group : 3 * group + 3] = _rotation(3, 20 + group)
    return change


@pytest.fixture(scope="module")
def make_encoder(make_model):
    def build(weight: np.ndarray, seed: int = 0):
        model = make_model(
            SparseJEPAForPreTraining, seed=seed, num_groups=GROUPS, num_latents=LATENTS, group_size=SIZE
        )
        with torch.no_grad():
            model.group_weight.copy_(torch.from_numpy(weight))
        return load_encoder(model)

    return build


def _record(latents: np.ndarray) -> PatchRecord:
    count = len(latents)
    return PatchRecord(
        pixel_values=np.random.default_rng(5).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8),
        features=np.zeros((count, 64, 4), np.float32),
        latents=latents,
        maps=np.zeros((count, GROUPS, 8, 8), np.float32),
        labels=None,
        label_names=(),
        masks=None,
        table=None,
    )


def test_map_correlation_is_pearsons(latents):
    first, second = group_codes(_weight(), latents).maps, group_codes(_weight(7), latents[..., ::-1]).maps
    found = map_correlation(block_moments(first, second)[0], GROUPS)
    flat = [maps.reshape(-1, GROUPS).T for maps in (first, second)]
    np.testing.assert_allclose(found, np.corrcoef(*flat)[:GROUPS, GROUPS:], atol=1e-4)


def test_input_similarity_is_linear_cka_of_the_inputs(latents):
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 3, LATENTS)), rng.standard_normal((4, 2, LATENTS))
    others = latents @ rng.standard_normal((LATENTS, LATENTS)).astype(np.float32) + rng.standard_normal(latents.shape)
    one, two = latents - latents.mean(axis=0), others - others.mean(axis=0)
    found = input_similarity(first, second, block_moments(one, two)[0])
    for g in range(2):
        for h in range(4):
            x, y = (a.reshape(-1, LATENTS) @ w.T for a, w in ((one, first[g]), (two, second[h])))
            kernels = [np.linalg.norm(a.T @ b) for a, b in ((x, y), (x, x), (y, y))]
            assert found[g, h] == pytest.approx(kernels[0] ** 2 / (kernels[1] * kernels[2]), rel=1e-4)


def test_moments_of_blocks_sum_to_those_of_all(latents):
    np.testing.assert_allclose(
        block_moments(latents, latents, 7).sum(axis=0), block_moments(latents, latents)[0], rtol=1e-3
    )


def test_matching_is_the_best_of_all_matchings():
    similarity = np.array([[0.9, 0.8, 0.1], [0.8, 0.1, 0.2]])
    assert [place.tolist() for place in match(similarity)] == [[0, 1], [1, 0]]
    assert matched_similarity(similarity) == pytest.approx(0.8)
    assert matched_similarity(np.eye(5)[[3, 1, 4, 0, 2]]) == 1.0


def test_a_random_grouping_keeps_sizes_overlaps_and_what_latents_bring(latents):
    weight = _weight()
    weight[1, :, 0] = 0.5
    weight[:, :, 11] = 0
    drawn = random_grouping(weight, latents, np.random.default_rng(0))
    scale = np.sqrt(np.square(latents).mean(axis=(0, 1)))
    brought, kept = (np.linalg.norm(w, axis=1) * scale for w in (weight, drawn))
    np.testing.assert_allclose(np.sort(brought, axis=1), np.sort(kept, axis=1), rtol=1e-4)
    assert (drawn[:, :, 11] == 0).all()
    assert sorted((drawn != 0).any(axis=1).sum(axis=0)) == sorted((weight != 0).any(axis=1).sum(axis=0))
    assert not np.array_equal((drawn != 0).any(axis=1), (weight != 0).any(axis=1))


def test_codes_drop_dead_groups_and_what_place_explains(latents):
    weight = _weight()
    weight[2] = 0
    place = np.random.default_rng(0).standard_normal((1, 64, LATENTS))
    codes = group_codes(weight, latents + place.astype(np.float32))
    assert codes.groups.tolist() == [0, 1, 3]
    assert abs(codes.maps.mean(axis=0)).max() < 1e-5 and abs(codes.latents.mean(axis=0)).max() < 1e-5


def test_runs_with_the_same_groups_in_other_words_are_found_the_same(latents, other_basis, make_encoder):
    section = stability_section(
        [make_encoder(_weight(0)), make_encoder(_weight(30), seed=1)],
        [_record(latents), _record(latents @ other_basis.T)],
    )
    for measure, name in zip(section.measures, ("maps", "inputs"), strict=True):
        assert measure.value == pytest.approx(1, abs=1e-4)
        about = section.details["pairs"][0][name]
        assert dict(zip(*about["groups"], strict=True)) == {0: 2, 1: 0, 2: 3, 3: 1}
        assert measure.exceeds(next(null for null in measure.nulls if null.name == "random groupings"))
        assert measure.exceeds(next(null for null in measure.nulls if null.name == "other images"))


def test_runs_with_other_groups_of_the_same_latents_are_not(latents, make_encoder):
    one, other = (random_grouping(_weight(), latents, np.random.default_rng(seed)) for seed in (4, 5))
    section = stability_section(
        [make_encoder(one), make_encoder(other, seed=1)], [_record(latents), _record(2 * latents)]
    )
    assert "do not find the same groups" in section.finding and "random groupings" in section.finding
    # They see the same images, so they are more alike than on other images; hence the null.
    assert section.measures[0].exceeds(section.measures[0].nulls[0])


def test_what_is_missing_is_said(latents, make_encoder):
    encoder, record = make_encoder(_weight()), _record(latents)
    zeros = make_encoder(np.zeros_like(_weight()))
    for encoders, records, message in (
        ([encoder], [record], "one checkpoint"),
        ([encoder, encoder], [record, record], "are the same"),
        ([encoder, encoder], [record, _record(latents[:50])], "different images"),
        ([encoder, zeros], [record, _record(2 * latents)], "W of zeros"),
        ([encoder, encoder], [record, dataclasses.replace(record, latents=None, maps=None)], "no groups"),
        ([encoder, encoder], [_record(latents[:1]), _record(2 * latents[:1])], "1 image"),
    ):
        with pytest.raises(NotMeasurable, match=message):
            stability_section(encoders, records)


def test_the_global_random_state_stays(latents, make_encoder):
    encoders = [make_encoder(_weight()), make_encoder(_weight(5), seed=1)]
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    stability_section(encoders, [_record(latents), _record(2 * latents)])
    assert torch.rand(1) == expected
