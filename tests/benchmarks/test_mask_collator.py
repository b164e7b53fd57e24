# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The usual mask collator's masks are what I-JEPA describes; ours equal their definition, ties included."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.alternatives.mask_collator import MultiBlockMaskCollator, rectangle
from sparsejepa_hf.counter_rng import stream_keys, uniform
from sparsejepa_hf.masking import MASK_STREAM, MultiBlockMaskSampler


GRIDS = [(8, 8), (14, 14), (7, 10)]


def sample(grid_size: tuple[int, int], batch_size: int, seed: int, **options):
    torch.manual_seed(seed)
    return MultiBlockMaskCollator(grid_size, **options).sample(batch_size)


@pytest.mark.parametrize("grid_size", GRIDS)
@pytest.mark.parametrize("num_target_blocks", [1, 3])
@given(batch_size=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_masks_are_sorted_in_range_and_disjoint(grid_size, num_target_blocks, batch_size, seed):
    context, target = sample(grid_size, batch_size, seed, num_target_blocks=num_target_blocks)
    assert context.dtype == target.dtype == torch.int64
    assert target.shape[:2] == (batch_size, num_target_blocks) and context.shape[0] == batch_size
    assert context.shape[1] >= 1
    for mask in (context, target):
        assert mask.min() >= 0 and mask.max() < grid_size[0] * grid_size[1]
        assert (mask.diff(dim=-1) > 0).all()
    for one_context, one_target in zip(context, target, strict=True):
        assert not torch.isin(one_context, one_target).any()


@pytest.mark.parametrize("grid_size", GRIDS)
@given(seed=st.integers(0, 2**31))
def test_targets_are_rectangles_of_one_shape_in_the_stated_range(grid_size, seed):
    targets = sample(grid_size, 6, seed, num_target_blocks=2)[1].flatten(0, 1)
    rows, columns = targets // grid_size[1], targets % grid_size[1]
    shapes = set()
    for y, x in zip(rows, columns, strict=True):
        height, width = int(y.max() - y.min()) + 1, int(x.max() - x.min()) + 1
        assert height * width == len(y)
        shapes.add((height, width))
    ((height, width),) = shapes
    num_patches = grid_size[0] * grid_size[1]
    # Each side is rounded by at most half a patch.
    assert (height - 0.5) * (width - 0.5) <= 0.2 * num_patches and (height + 0.5) * (width + 0.5) >= 0.15 * num_patches
    assert (height - 0.5) / (width + 0.5) <= 1.5 and (height + 0.5) / (width - 0.5) >= 0.75


@given(seed=st.integers(0, 2**31))
def test_contexts_are_a_rectangle_less_the_targets_cut_to_the_smallest(seed):
    # The whole image is the context block, so what is left is known without its draws.
    context, target = sample((8, 8), 5, seed, num_target_blocks=3, context_scale=(1.0, 1.0))
    left = [[place for place in range(64) if place not in blocks] for blocks in target.flatten(1).tolist()]
    shortest = min(map(len, left))
    assert context.tolist() == [places[:shortest] for places in left]


def test_every_place_of_a_block_occurs():
    torch.manual_seed(0)
    collator = MultiBlockMaskCollator((6, 5), 1, (0.2, 0.2), (1.0, 1.0))
    height, width = rectangle(6, 1.0, (6, 5))
    corners = collator.sample(600)[1][:, 0, 0].tolist()
    assert set(corners) == {y * 5 + x for y, x in itertools.product(range(7 - height), range(6 - width))}


def test_collates_the_examples_too():
    images = [torch.full((3, 4, 4), float(index)) for index in range(3)]
    (pixels, labels), context, target = MultiBlockMaskCollator((8, 8), 2)(list(zip(images, range(3), strict=True)))
    assert torch.equal(pixels, torch.stack(images)) and labels.tolist() == [0, 1, 2]
    assert len(context) == len(target) == 3


def test_an_empty_context_is_refused():
    with pytest.raises(ValueError, match="can hold 64 of the 49 patches"):
        MultiBlockMaskCollator((8, 8), 4, (0.25, 0.25), (1.0, 1.0))


# Image 319273 of step 0 has a patch within the context that ties with one beyond it.
@pytest.mark.parametrize(("grid_size", "first_slot", "ties"), [((8, 8), 0, 0), ((8, 8), 319_200, 1), ((14, 14), 0, 0)])
def test_our_contexts_are_the_first_free_patches_in_a_random_order(grid_size, first_slot, ties):
    sampler = MultiBlockMaskSampler(grid_size)
    count = sampler.num_context_patches
    context, target = sampler(100, 0, first_slot=first_slot)
    keys = stream_keys(0, 0, torch.arange(first_slot, first_slot + 100), MASK_STREAM)
    order = uniform(keys, sampler.num_patches).scatter(1, target.flatten(1), 2.0)
    values = order.sort(dim=1).values
    assert (values[:, count - 1] == values[:, count]).sum() == ties
    first = order.topk(count, dim=1, largest=False, sorted=False).indices
    assert torch.equal(context, first.sort(dim=1).values)
