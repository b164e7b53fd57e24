# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Multi-block masks: exact counts, geometry, coverage, and independence of how a batch is split."""

import hashlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsejepa_hf.masking import MultiBlockMaskSampler


DEFAULT_RATIO = (0.75, 1.5)
GOLDEN_CONTEXT = [1, 2, 6, 7, 10, 11, 12, 13, 14, 15]
GOLDEN_TARGET = [[0, 4, 5], [4, 8, 9]]
GOLDEN_DIGESTS = [
    ({"grid_size": (8, 8)}, "3d7a53b5c45fdbf5"),
    ({"grid_size": (14, 14), "num_target_blocks": 3, "seed": 7}, "1ec7aef363f5cd27"),
    ({"grid_size": (8, 8), "num_target_patches": 9, "num_context_patches": 52}, "04d82d824468381a"),
]


def _shapes_that_hold(grid_size, count, ratio=DEFAULT_RATIO) -> list[tuple[int, int]]:
    """Rectangles smaller than the grid, of a fitting aspect ratio, that hold `count` patches with an edge to trim."""
    return [
        (height, width)
        for height in range(1, grid_size[0] + 1)
        for width in range(1, grid_size[1] + 1)
        if ratio[0] <= height / width <= ratio[1]
        and height * width < grid_size[0] * grid_size[1]
        and 0 <= height * width - count < max(height, width)
    ]


@st.composite
def feasible_samplers(draw, max_side: int = 64, tight: bool = False) -> MultiBlockMaskSampler:
    """Any grid from 4x4 to 64x64, 1 to 12 blocks, and counts for which masks exist (built, not filtered)."""
    rows, columns = draw(st.integers(4, max_side)), draw(st.integers(4, max_side))
    ratio = draw(st.sampled_from([DEFAULT_RATIO, (0.5, 2.0), (1.0, 1.0), (0.9, 1.1), (0.2, 0.5), (1, 3)]))
    boxes = [
        (height, width)
        for height in range(1, rows + 1)
        for width in range(1, columns + 1)
        if ratio[0] <= height / width <= ratio[1] and height * width < rows * columns
    ]
    height, width = draw(st.sampled_from(boxes))
    count = height * width - draw(st.integers(0, min(max(height, width), height * width) - 1))
    free = rows * columns - max(h * w for h, w in _shapes_that_hold((rows, columns), count, ratio))
    context = free if tight else draw(st.integers(1, free))
    return MultiBlockMaskSampler(
        (rows, columns),
        num_target_blocks=draw(st.integers(1, 12)),
        num_target_patches=count,
        num_context_patches=context,
        target_aspect_ratio=ratio,
        seed=draw(st.integers(0, 2**32)),
    )


def _is_connected(block: list[int], columns: int) -> bool:
    """Flood fill over the four neighbours."""
    left = {divmod(patch, columns) for patch in block}
    stack = [left.pop()]
    while stack:
        y, x = stack.pop()
        for neighbour in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
            if neighbour in left:
                left.remove(neighbour)
                stack.append(neighbour)
    return not left


def _check_masks(sampler: MultiBlockMaskSampler, context: Tensor, target: Tensor, batch_size: int) -> None:
    """Exact counts; indices sorted, unique, in range; context disjoint from every block; blocks 4-connected."""
    assert context.dtype == target.dtype == torch.int64
    assert context.shape == (batch_size, sampler.num_context_patches)
    assert target.shape == (batch_size, sampler.num_target_blocks, sampler.num_target_patches)
    for mask in (context, target):
        assert mask.min() >= 0 and mask.max() < sampler.num_patches
        assert (mask.diff(dim=-1) > 0).all(), "sorted without duplicates"
    is_target = _membership(target.flatten(1), sampler.num_patches)
    assert not is_target.gather(1, context).any(), "context and targets overlap"
    for block in target.flatten(0, 1).unique(dim=0).tolist()[:60]:
        assert _is_connected(block, sampler.grid_size[1]), f"{block} is not 4-connected"


def _membership(mask: Tensor, num_patches: int) -> Tensor:
    return torch.zeros(mask.shape[0], num_patches, dtype=torch.bool).scatter_(1, mask, True)


def _bounding_boxes(target: Tensor, columns: int) -> Tensor:
    """(height, width) of every block: (..., 2)."""
    y, x = target // columns, target % columns
    return torch.stack([y.amax(-1) - y.amin(-1), x.amax(-1) - x.amin(-1)], dim=-1) + 1


class TestEverySample:
    @settings(max_examples=60)
    @given(sampler=feasible_samplers(), step=st.integers(0, 10**6))
    def test_counts_are_exact_and_blocks_are_connected_and_context_is_disjoint(self, sampler, step):
        _check_masks(sampler, *sampler(4, step), batch_size=4)

    @settings(max_examples=40)
    @given(sampler=feasible_samplers(max_side=12, tight=True), step=st.integers(0, 1000))
    def test_counts_stay_exact_when_the_context_takes_all_that_a_block_can_leave(self, sampler, step):
        """The tightest budget: all blocks must lie in one rectangle, however many there are."""
        _check_masks(sampler, *sampler(16, step), batch_size=16)

    @pytest.mark.parametrize("num_context_patches", [28, 36, 44, 52, 55])
    def test_many_blocks_on_a_small_grid_stay_exact(self, num_context_patches):
        sampler = MultiBlockMaskSampler((8, 8), 12, 9, num_context_patches, target_aspect_ratio=(1, 1))
        _check_masks(sampler, *sampler(512, 3), batch_size=512)

    def test_4096_masks_come_in_one_call(self):
        sampler = MultiBlockMaskSampler((8, 8))
        context, target = sampler(4096, 0)
        _check_masks(sampler, context, target, batch_size=4096)
        pictures = torch.cat([context, target.flatten(1)], dim=1).unique(dim=0)
        assert len(pictures) == 4096, "samples of one batch share a mask"

    def test_an_empty_batch_has_no_masks(self):
        context, target = MultiBlockMaskSampler((8, 8))(0, 0)
        assert context.shape == (0, 28) and target.shape == (0, 4, 9)

    @given(rows=st.integers(2, 64), columns=st.integers(2, 64), blocks=st.integers(1, 12))
    def test_counts_can_be_left_to_the_sampler(self, rows, columns, blocks):
        """Derived counts exist on every grid; a block takes about 14 %, the context at least a quarter of the grid."""
        sampler = MultiBlockMaskSampler((rows, columns), num_target_blocks=blocks)
        _check_masks(sampler, *sampler(4, 0), batch_size=4)
        if rows == columns and rows >= 4:
            assert sampler.num_target_patches == pytest.approx(0.14 * rows * columns, abs=1.5)
            assert sampler.num_context_patches >= rows * columns // 4

    def test_the_defaults_on_an_8x8_grid_are_those_of_the_recipe(self):
        sampler = MultiBlockMaskSampler((8, 8))
        assert (sampler.num_target_blocks, sampler.num_target_patches, sampler.num_context_patches) == (4, 9, 28)


class TestAddresses:
    @given(sampler=feasible_samplers(max_side=10), data=st.data(), step=st.integers(0, 10**6))
    def test_masks_do_not_depend_on_the_batch_size_or_on_how_a_batch_is_split(self, sampler, data, step):
        """A slot's masks are its own: any split over processes or accumulation steps gives the same masks."""
        size = data.draw(st.integers(2, 24))
        cut = data.draw(st.integers(1, size - 1))
        whole = sampler(size, step)
        parts = sampler(cut, step), sampler(size - cut, step, first_slot=cut)
        for mask, *pieces in zip(whole, *parts, strict=True):
            assert torch.equal(mask, torch.cat(pieces))

    def test_an_equal_sampler_draws_equal_masks_in_any_order_of_steps(self):
        first, second = MultiBlockMaskSampler((8, 8), seed=3), MultiBlockMaskSampler((8, 8), seed=3)
        forward = [first(8, step) for step in range(5)]
        backward = [second(8, step) for step in reversed(range(5))][::-1]
        for here, there in zip(forward, backward, strict=True):
            assert torch.equal(here[0], there[0]) and torch.equal(here[1], there[1])

    def test_slots_may_come_in_any_order_and_with_gaps(self):
        """What a process of a distributed run needs: the masks of its own slots, whichever they are."""
        sampler = MultiBlockMaskSampler((6, 9), seed=11)
        slots = torch.tensor([7, 0, 31, 31, 12])
        for whole, chosen in zip(sampler(32, 5), sampler.sample_slots(slots, 5), strict=True):
            assert torch.equal(whole[slots], chosen)

    @pytest.mark.parametrize("other", [{"step": 1}, {"seed": 1}, {"first_slot": 500}], ids=str)
    def test_other_steps_seeds_and_slots_get_other_masks(self, other):
        """Context masks overlap no more than independent draws do: Nc/N of a context is in another by chance."""
        sampler = MultiBlockMaskSampler((8, 8), seed=0)
        other_sampler = MultiBlockMaskSampler((8, 8), seed=other.get("seed", 0))
        here = _membership(sampler(500, 0)[0], 64)
        there = _membership(other_sampler(500, other.get("step", 0), first_slot=other.get("first_slot", 0))[0], 64)
        expected = (here.double().mean(0) * there.double().mean(0)).sum().item()
        shared = (here & there).sum(1).double()
        assert shared.max() < sampler.num_context_patches
        assert shared.mean().item() == pytest.approx(expected, abs=5 * shared.std().item() / math.sqrt(500))

    def test_golden_masks(self):
        """Frozen: the first sample of seed 0, step 0. A change here changes every published result."""
        context, target = MultiBlockMaskSampler((4, 4), num_target_blocks=2, seed=0)(1, 0)
        assert context[0].tolist() == GOLDEN_CONTEXT
        assert target[0].tolist() == GOLDEN_TARGET

    @pytest.mark.parametrize(("options", "digest"), GOLDEN_DIGESTS, ids=lambda value: str(value))
    def test_golden_batches(self, options, digest):
        """Frozen too: blocks that always fit, and blocks that are drawn again and pulled together."""
        masks = MultiBlockMaskSampler(**options)(300, 5)
        content = b"".join(mask.contiguous().numpy().astype("<i8").tobytes() for mask in masks)
        assert hashlib.sha256(content).hexdigest()[:16] == digest

    @pytest.mark.cuda
    def test_a_gpu_draws_the_same_masks(self):
        sampler = MultiBlockMaskSampler((14, 14), seed=4)
        for here, there in zip(sampler(256, 9), sampler(256, 9, device="cuda"), strict=True):
            assert there.is_cuda and torch.equal(here, there.cpu())


class TestCoverage:
    @pytest.mark.parametrize("grid_size", [(8, 8), (4, 4), (14, 14), (5, 9), (9, 4), (2, 3)], ids=str)
    def test_every_patch_is_sometimes_context_and_sometimes_target(self, grid_size):
        """An exclusive upper bound on the offset would leave out the last row and column."""
        sampler = MultiBlockMaskSampler(grid_size)
        context, target = sampler(4096, 0)
        context_count = context.flatten().bincount(minlength=sampler.num_patches).view(grid_size)
        target_count = target.flatten().bincount(minlength=sampler.num_patches).view(grid_size)
        assert (context_count > 20).all(), context_count
        assert (target_count > 20).all(), target_count

    @pytest.mark.parametrize(
        "options",
        [
            {"grid_size": (8, 8)},
            {"grid_size": (4, 4)},
            {"grid_size": (5, 9)},
            {"grid_size": (8, 8), "num_target_patches": 10},
            {"grid_size": (8, 8), "num_target_patches": 9, "num_context_patches": 44},
            {"grid_size": (8, 8), "num_target_patches": 9, "num_context_patches": 52},
            {"grid_size": (8, 8), "num_target_blocks": 8},
        ],
        ids=str,
    )
    def test_the_target_probability_is_symmetric_under_flips_of_the_grid(self, options):
        """Nothing prefers top to bottom or left to right, also where blocks are pulled together to fit.

        Counts of a patch and its mirror image come from disjoint halves of the samples, so they are independent.
        """
        sampler = MultiBlockMaskSampler(**options)
        half = 8192
        counts = [
            _membership(sampler(half, 0, first_slot=first)[1].flatten(1), sampler.num_patches)
            .sum(0)
            .double()
            .view(sampler.grid_size)
            for first in (0, half)
        ]
        for axes in ([0], [1]):
            mirrored = counts[1].flip(axes)
            pooled = (counts[0] + mirrored) / (2 * half)
            z = (counts[0] - mirrored) / (2 * half * pooled * (1 - pooled)).clamp_min(1e-9).sqrt()
            assert z.abs().max() < 4.5, z
            rms = z.square().mean().sqrt().item()
            assert rms < 1.6, f"RMS z of {rms:.2f}: biased all over"

    @pytest.mark.parametrize("num_context_patches", [10, 28, 40])
    def test_truncation_is_random_and_not_in_raster_order(self, num_context_patches):
        """Given the targets, each of the F free patches is context with probability Nc/F, the bottom row's too."""
        sampler = MultiBlockMaskSampler((8, 8), 4, 9, num_context_patches)
        context, target = sampler(8192, 0)
        free = ~_membership(target.flatten(1), 64)
        chosen = _membership(context, 64).double()
        expected = num_context_patches / free.sum(1, keepdim=True).double() * free
        variance = (expected * (1 - expected)).sum(0)
        z = (chosen - expected).sum(0) / variance.sqrt()
        assert z.abs().max() < 4.5, z.view(8, 8)
        rows = (chosen - expected).sum(0).view(8, 8).sum(1) / expected.sum(0).view(8, 8).sum(1)
        assert rows.abs().max() < 0.02, "a row is in the context more or less often than its share"

    def test_pairs_of_free_patches_enter_the_context_together_at_random(self):
        """Not a contiguous run of the free patches: next neighbours in raster order are no likelier together."""
        sampler = MultiBlockMaskSampler((8, 8), 1, 9, 28)
        context, target = sampler(8192, 0)
        free = ~_membership(target.flatten(1), 64)
        chosen = _membership(context, 64)
        both_free = free[:, :-1] & free[:, 1:]
        together = (chosen[:, :-1] & chosen[:, 1:])[both_free].double().mean().item()
        assert together == pytest.approx(28 / 55 * 27 / 54, abs=0.005)


class TestBlockShapes:
    @pytest.mark.parametrize("ratio", [DEFAULT_RATIO, (1.0, 1.0), (0.4, 0.7), (1.5, 2.5)])
    @pytest.mark.parametrize("count", [9, 10, 12])
    def test_blocks_respect_the_aspect_ratio_and_every_shape_is_as_likely(self, ratio, count):
        shapes = set(_shapes_that_hold((10, 10), count, ratio))
        if not shapes:
            with pytest.raises(ValueError, match="aspect ratio"):
                MultiBlockMaskSampler((10, 10), 4, count, 20, ratio)
            return
        sampler = MultiBlockMaskSampler((10, 10), 4, count, 20, ratio)
        boxes = _bounding_boxes(sampler(4096, 0)[1], 10)
        assert (boxes == boxes[:, :1]).all(), "the blocks of a sample share one shape"
        seen, times = boxes[:, 0].unique(dim=0, return_counts=True)
        assert {tuple(box) for box in seen.tolist()} == shapes
        expected = 4096 / len(shapes)
        assert ((times - expected).abs() < 5 * math.sqrt(expected)).all(), times

    def test_trimming_takes_every_end_of_every_edge_equally_often(self):
        """10 patches in a 3x4 box lose two: from either end of the long edges or of the short ones."""
        sampler = MultiBlockMaskSampler((10, 10), 1, 10, 20, target_aspect_ratio=(0.75, 0.75))
        _, target = sampler(8192, 0)
        y, x = target // 10, target % 10
        relative = (y - y.amin(-1, keepdim=True)) * 4 + x - x.amin(-1, keepdim=True)
        missing = ~_membership(relative[:, 0], 12)
        share = missing.double().mean(0).view(3, 4)
        # Eight runs of two: a corner lies in two of them, as does the middle of a short edge.
        expected = torch.tensor([[2, 1, 1, 2], [2, 0, 0, 2], [2, 1, 1, 2]]) / 8
        torch.testing.assert_close(share, expected.double(), rtol=0, atol=5 * math.sqrt(0.19 / 8192))

    def test_blocks_of_a_sample_lie_apart_when_there_is_room(self):
        """With budget to spare the corners are independent: the first two blocks' rows are uncorrelated."""
        sampler = MultiBlockMaskSampler((8, 8), 4, 9, 28, target_aspect_ratio=(1, 1))
        _, target = sampler(8192, 0)
        rows = (target[:, :2, 0] // 8).double()
        assert abs(torch.corrcoef(rows.T)[0, 1].item()) < 5 / math.sqrt(8192)
        assert rows.min() == 0 and rows.max() == 5


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "sentences"),
        [
            ({"grid_size": (0, 8)}, ["grid_size is 0x8", "at least two patches"]),
            ({"grid_size": (1, 1)}, ["grid_size is 1x1", "at least two patches"]),
            ({"grid_size": (-8, -8)}, ["grid_size is -8x-8"]),
            ({"num_target_blocks": 0}, ["num_target_blocks is 0", "at least 1"]),
            ({"num_target_patches": 0}, ["num_target_patches is 0", "1 to 63"]),
            ({"num_target_patches": 64}, ["num_target_patches is 64", "1 to 63"]),
            ({"num_target_patches": 63}, ["num_target_patches is 63", "aspect ratio", "or use 56 patches"]),
            ({"num_context_patches": 0}, ["num_context_patches is 0", "1 to"]),
            ({"num_context_patches": 53, "num_target_patches": 9}, ["num_context_patches is 53", "1 to 52"]),
            ({"target_aspect_ratio": (0, 1)}, ["target_aspect_ratio is (0, 1)", "0 < lowest <= highest"]),
            ({"target_aspect_ratio": (2, 1)}, ["target_aspect_ratio is (2, 1)", "0 < lowest <= highest"]),
            ({"target_aspect_ratio": (1, float("inf"))}, ["target_aspect_ratio is (1, inf)"]),
            ({"target_aspect_ratio": (float("nan"), 1)}, ["target_aspect_ratio is (nan, 1)"]),
            ({"target_aspect_ratio": (9, 10)}, ["aspect ratio", "(9.0, 10.0)", "8x8", "Widen target_aspect_ratio"]),
        ],
        ids=str,
    )
    def test_impossible_parameters_are_refused_at_construction(self, options, sentences):
        """The message names the field, its value and what would do."""
        with pytest.raises(ValueError) as refusal:
            MultiBlockMaskSampler(**{"grid_size": (8, 8), **options})
        for sentence in sentences:
            assert sentence in str(refusal.value)

    @pytest.mark.parametrize("count", [11, 13, 29, 31, 62, 63])
    def test_the_counts_that_a_refusal_proposes_do_work(self, count):
        if _shapes_that_hold((8, 8), count, (1, 1)):
            assert MultiBlockMaskSampler((8, 8), 4, count, 1, (1, 1)).num_target_patches == count
            return
        with pytest.raises(ValueError) as refusal:
            MultiBlockMaskSampler((8, 8), 4, count, 1, (1, 1))
        proposed = int(str(refusal.value).split("or use ")[1].split(" patches")[0])
        sampler = MultiBlockMaskSampler((8, 8), 4, proposed, 1, (1, 1))
        _check_masks(sampler, *sampler(4, 0), batch_size=4)

    @given(
        rows=st.integers(1, 9),
        columns=st.integers(1, 9),
        blocks=st.integers(1, 6),
        count=st.integers(-1, 82),
        context=st.integers(-1, 82),
    )
    @settings(max_examples=150)
    def test_parameters_are_refused_exactly_when_no_masks_exist(self, rows, columns, blocks, count, context):
        """Never a loop and never a wrong count: a constructor that returns has masks for every key."""
        shapes = _shapes_that_hold((rows, columns), count) if 1 <= count < rows * columns else []
        possible = bool(shapes) and 1 <= context <= rows * columns - max(h * w for h, w in shapes)
        if possible:
            sampler = MultiBlockMaskSampler((rows, columns), blocks, count, context)
            _check_masks(sampler, *sampler(8, 0), batch_size=8)
        else:
            with pytest.raises(ValueError, match="num_target_patches|num_context_patches|grid_size"):
                MultiBlockMaskSampler((rows, columns), blocks, count, context)
