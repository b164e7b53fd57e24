# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Counter-based numbers: their distribution, their independence across addresses, and that they never change."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sparsejepa_hf.counter_rng import normal, stream_keys, uniform


GOLDEN_KEYS = [-1887772402414799673, 6475617371036985971, 599309377944830582]
GOLDEN_UNIFORM = [[15576324, 14679155, 14596588], [3363989, 8596151, 15513677]]
GOLDEN_NORMAL = [
    [0.3388141989707947, -0.4149058163166046, 0.18369600176811218],
    [1.6137514114379883, 1.0156306028366089, -0.780765175819397],
]

SIGNED_64 = st.integers(-(2**63), 2**63 - 1)


def _keys(slots: int = 4096, *, seed: int = 0, step: int = 0, stream: int = 1, first: int = 0) -> Tensor:
    return stream_keys(seed, step, torch.arange(first, first + slots), stream)


def _key_of(bits: int) -> Tensor:
    """The key whose first hash is `bits`: the SplitMix64 finaliser backwards."""
    mask = (1 << 64) - 1

    def unshift(value: int, shift: int) -> int:
        original = value
        for _ in range(64 // shift):
            original = value ^ (original >> shift)
        return original

    bits = unshift(bits, 31) * pow(0x94D049BB133111EB, -1, 1 << 64) & mask
    bits = unshift(bits, 27) * pow(0xBF58476D1CE4E5B9, -1, 1 << 64) & mask
    key = (unshift(bits, 30) - 0x9E3779B97F4A7C15) & mask
    return torch.tensor(key - (1 << 64) if key >> 63 else key)


def _ks_distance(sample: Tensor, cdf) -> float:
    """Largest distance between the empirical and the given distribution function."""
    values = cdf(sample.flatten().double().sort().values)
    count = values.numel()
    ranks = torch.arange(count, dtype=torch.float64)
    return max((values - ranks / count).max().item(), ((ranks + 1) / count - values).max().item())


def _correlation(first: Tensor, second: Tensor) -> float:
    return torch.corrcoef(torch.stack([first.flatten().double(), second.flatten().double()]))[0, 1].item()


def _normal_cdf(value: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(value / math.sqrt(2)))


class TestDistribution:
    def test_uniform_has_the_moments_and_the_distribution_of_a_uniform(self):
        sample = uniform(_keys(), 64)
        count = sample.numel()
        assert sample.mean().item() == pytest.approx(1 / 2, abs=5 / math.sqrt(12 * count))
        assert sample.var().item() == pytest.approx(1 / 12, abs=5 * math.sqrt(1 / 180 / count))
        assert _ks_distance(sample, lambda value: value) < 1.95 / math.sqrt(count)

    @pytest.mark.parametrize("count", [64, 63])
    def test_normal_has_the_moments_and_the_distribution_of_a_normal(self, count):
        sample = normal(_keys(), count)
        total = sample.numel()
        assert sample.isfinite().all()
        assert sample.mean().item() == pytest.approx(0, abs=5 / math.sqrt(total))
        assert sample.var().item() == pytest.approx(1, abs=5 * math.sqrt(2 / total))
        assert sample.double().pow(4).mean().item() == pytest.approx(3, abs=5 * math.sqrt(96 / total))
        assert _ks_distance(sample, _normal_cdf) < 1.95 / math.sqrt(total)

    def test_the_two_halves_of_a_box_muller_pair_are_independent(self):
        pairs = normal(_keys(1 << 16), 2)
        bound = 5 / math.sqrt(pairs.shape[0])
        assert abs(_correlation(pairs[:, 0], pairs[:, 1])) < bound
        assert abs(_correlation(pairs[:, 0].square(), pairs[:, 1].square())) < bound

    @given(keys=st.lists(SIGNED_64, min_size=1, max_size=50))
    def test_numbers_stay_in_their_half_open_ranges(self, keys):
        keys = torch.tensor(keys)
        sample = uniform(keys, 33)
        assert sample.min() >= 0 and sample.max() < 1

    def test_the_extremes_of_the_hash_give_the_extremes_of_the_ranges(self):
        """Once in 2**24 numbers: ones must not round up to 1, nor a logarithm be taken of zeros."""
        lowest, highest = _key_of(0), _key_of(2**64 - 1)
        assert uniform(lowest, 1).item() == 0
        assert uniform(highest, 1).item() == 1 - 2.0**-24
        assert normal(lowest, 1).item() == pytest.approx(math.sqrt(48 * math.log(2)), rel=1e-6)
        assert normal(highest, 2).abs().max() == 0


class TestIndependence:
    @pytest.mark.parametrize(
        "other",
        [{"first": 1}, {"first": 4096}, {"step": 1}, {"seed": 1}, {"stream": 2}, {"seed": 2**40}, {"seed": -1}],
        ids=str,
    )
    def test_neighbouring_addresses_are_uncorrelated(self, other):
        """Also against the other address's numbers shifted by one: a hash of sums would show there."""
        here, there = uniform(_keys(), 32), uniform(_keys(**other), 32)
        bound = 5 / math.sqrt(here.numel())
        assert abs(_correlation(here, there)) < bound
        assert abs(_correlation(here[:, 1:], there[:, :-1])) < bound
        assert abs(_correlation(here[:, :-1], there[:, 1:])) < bound

    def test_seed_step_and_stream_are_not_interchangeable(self):
        """Addresses with the same sum differ: (1, 0, 0), (0, 1, 0) and (0, 0, 1) are three streams."""
        keys = torch.stack([_keys(64, seed=a, step=b, stream=c) for a, b, c in [(1, 0, 0), (0, 1, 0), (0, 0, 1)]])
        assert keys.unique().numel() == keys.numel()

    def test_keys_of_many_addresses_do_not_collide(self):
        slots = torch.arange(2048)
        keys = torch.cat([stream_keys(seed, t, slots, m) for seed in range(3) for t in range(8) for m in range(4)])
        assert keys.unique().numel() == keys.numel()

    def test_numbers_of_one_key_are_uncorrelated_with_one_another(self):
        correlations = torch.corrcoef(uniform(_keys(1 << 14), 24).T.double()).fill_diagonal_(0)
        assert correlations.abs().max().item() < 5.5 / math.sqrt(1 << 14)

    @pytest.mark.parametrize("draw", [uniform, normal])
    @given(data=st.data(), size=st.integers(1, 40), seed=st.integers(0, 2**32), step=st.integers(0, 10**7))
    def test_slots_are_drawn_alone(self, draw, data, size, seed, step):
        """Permuting, splitting or reshaping the slots does the same to the numbers: no draw sees its neighbours."""
        slots = torch.arange(size)
        whole = draw(stream_keys(seed, step, slots, 3), 5)
        order = torch.tensor(data.draw(st.permutations(range(size))))
        cut = data.draw(st.integers(0, size))
        assert torch.equal(draw(stream_keys(seed, step, slots[order], 3), 5), whole[order])
        parts = [draw(stream_keys(seed, step, part, 3), 5) for part in (slots[:cut], slots[cut:])]
        assert torch.equal(torch.cat(parts), whole)
        assert torch.equal(draw(stream_keys(seed, step, slots.view(1, size), 3), 5), whole[None])

    @given(count=st.integers(1, 30), more=st.integers(0, 30))
    def test_uniform_numbers_do_not_depend_on_how_many_are_drawn(self, count, more):
        keys = _keys(8)
        assert torch.equal(uniform(keys, count + more)[:, :count], uniform(keys, count))


class TestFrozen:
    """Golden values: published results hang on them, so a change here is a breaking change."""

    def test_hash_is_splitmix64(self):
        """With key 0 the counter's stream is SplitMix64's from state 0; its first outputs are published."""
        published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
        expected = torch.tensor([(value >> 40) * 2.0**-24 for value in published])
        assert torch.equal(uniform(torch.tensor(0), 3), expected)

    @given(
        seed=st.integers(0, 2**63), step=st.integers(0, 2**40), slot=st.integers(0, 2**40), stream=st.integers(0, 99)
    )
    def test_wrapping_tensor_arithmetic_is_arithmetic_modulo_2_to_the_64(self, seed, step, slot, stream):
        """The int64 tensors compute what unbounded Python integers compute modulo 2**64."""
        golden, mask = 0x9E3779B97F4A7C15, (1 << 64) - 1

        def mix(value: int) -> int:
            value &= mask
            value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
            value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
            return value ^ (value >> 31)

        expected = mix(mix(slot * golden + mix(mix(mix(seed + golden) + step + golden) + stream + golden)))
        key = stream_keys(seed, step, torch.tensor(slot), stream)
        assert key.item() & mask == expected
        assert int(uniform(key, 1).item() * 2**24) == mix(expected + golden) >> 40

    def test_golden_keys(self):
        keys = stream_keys(42, 7, torch.tensor([0, 1, 1000]), 3)
        assert keys.tolist() == GOLDEN_KEYS

    def test_golden_numbers(self):
        keys = stream_keys(42, 7, torch.tensor([0, 1]), 3)
        assert (uniform(keys, 3) * 2**24).long().tolist() == GOLDEN_UNIFORM
        torch.testing.assert_close(normal(keys, 3), torch.tensor(GOLDEN_NORMAL), rtol=0, atol=2e-6)

    @pytest.mark.cuda
    def test_a_gpu_draws_the_same_bits(self):
        here = stream_keys(5, 6, torch.arange(1000), 2)
        there = stream_keys(5, 6, torch.arange(1000, device="cuda"), 2)
        assert torch.equal(here, there.cpu())
        assert torch.equal(uniform(here, 9), uniform(there, 9).cpu())
        torch.testing.assert_close(normal(here, 9), normal(there, 9).cpu(), rtol=0, atol=1e-5)
