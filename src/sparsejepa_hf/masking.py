# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Multi-block masks (I-JEPA, arXiv 2301.08243, section 3) with exact, fixed token counts.

Every sample gets `num_target_blocks` contiguous blocks of exactly `num_target_patches` patches, and exactly
`num_context_patches` context patches that no block touches. The counts hold for the sampler's whole life, so shapes
are static; nothing is cut to a batch's minimum, and a sample's masks depend on its own key alone.

Two departures from I-JEPA follow. The context block is the whole image less the targets, truncated *at random*
(I-JEPA: a block of 85-100 % of the image, cut to the batch's minimum). All blocks of a sample share one shape, drawn
per sample (I-JEPA: one shape per batch).
"""

import math

import torch
from torch import Tensor

from .counter_rng import stream_keys, uniform


MASK_STREAM = 1
# Draws of all of a sample's blocks before they are pulled together.
_NUM_DRAWS = 2


def _block_shapes(
    grid_size: tuple[int, int], num_target_patches: int, aspect_ratio: tuple[float, float]
) -> list[tuple[int, int]]:
    """Rectangles that fit the grid and hold the block after losing less than one edge row or column."""
    rows, columns = grid_size
    shapes = []
    for height in range(1, rows + 1):
        for width in range(1, columns + 1):
            surplus = height * width - num_target_patches
            if not aspect_ratio[0] <= height / width <= aspect_ratio[1]:
                continue
            if 0 <= surplus < max(height, width):
                shapes.append((height, width))
    return shapes


def _block_cells(height: int, width: int, num_target_patches: int) -> list[list[tuple[int, int]]]:
    """The ways to trim a rectangle to the exact count: a run from either end of any of its four edges.

    What is left is 4-connected: the rectangle without that edge, and the rest of the edge next to it.
    """
    surplus = height * width - num_target_patches
    if surplus == 0:
        return [[(y, x) for y in range(height) for x in range(width)]]
    edges = []
    if surplus < width:
        edges += [[(y, x) for x in range(width)] for y in (0, height - 1)]
    if surplus < height:
        edges += [[(y, x) for y in range(height)] for x in (0, width - 1)]
    runs = {frozenset(run) for edge in edges for run in (edge[:surplus], edge[-surplus:])}
    cells = [(y, x) for y in range(height) for x in range(width)]
    return [[cell for cell in cells if cell not in run] for run in sorted(runs, key=sorted)]


def _nearest_count(grid_size: tuple[int, int], aspect_ratio: tuple[float, float], wanted: float) -> int:
    """The number of patches nearest to `wanted` for which a block exists."""
    num_patches = grid_size[0] * grid_size[1]
    counts = sorted(range(1, num_patches), key=lambda count: (abs(count - wanted), count))
    for count in counts:
        shapes = _block_shapes(grid_size, count, aspect_ratio)
        if shapes and max(h * w for h, w in shapes) < num_patches:
            return count
    raise ValueError(
        f"No target block of an aspect ratio in {aspect_ratio} fits a grid of {grid_size[0]}x{grid_size[1]} patches. "
        "Widen target_aspect_ratio."
    )


class MultiBlockMaskSampler:
    """Samples context and target masks for a whole batch in tensor code.

    Args:
        grid_size: (rows, columns) of the patch grid.
        num_target_blocks: M, at least 1. Blocks may overlap one another, as in I-JEPA.
        num_target_patches: Nt, patches of one block. None: the feasible count nearest to 14 % of the grid.
        num_context_patches: Nc, patches of the context. None: what M disjoint blocks leave, but at least a quarter of
            the grid (28 of 64 for four blocks of 9).
        target_aspect_ratio: (lowest, highest) height/width of a block before it is trimmed to exactly Nt patches.
        seed: seed of the run; masks are a function of (seed, step, slot).

    Raises:
        ValueError: at construction, if no masks with these counts exist on this grid.

    If a draw of all M blocks leaves fewer than Nc patches, a second draw is taken; if that fails too, its blocks are
    pulled half-way, then wholly to the first, which lays them all in one rectangle: counts hold always, with bounded
    work and no retry.

    ```python
    >>> sampler = MultiBlockMaskSampler((8, 8), num_target_blocks=4, num_target_patches=9, num_context_patches=28)
    >>> context_mask, target_mask = sampler(batch_size=256, step=0)
    >>> context_mask.shape, target_mask.shape
    (torch.Size([256, 28]), torch.Size([256, 4, 9]))
    ```
    """

    def __init__(
        self,
        grid_size: tuple[int, int],
        num_target_blocks: int = 4,
        num_target_patches: int | None = None,
        num_context_patches: int | None = None,
        target_aspect_ratio: tuple[float, float] = (0.75, 1.5),
        seed: int = 0,
    ):
        rows, columns = (int(side) for side in grid_size)
        num_patches = rows * columns
        lowest, highest = target_aspect_ratio
        if rows < 1 or columns < 1 or num_patches < 2:
            raise ValueError(f"grid_size is {rows}x{columns}; a mask needs a grid of at least two patches.")
        if num_target_blocks < 1:
            raise ValueError(f"num_target_blocks is {num_target_blocks}; expected at least 1.")
        if not (0 < lowest <= highest and math.isfinite(highest)):
            raise ValueError(
                f"target_aspect_ratio is ({lowest}, {highest}); expected 0 < lowest <= highest (height/width)."
            )
        self.grid_size = (rows, columns)
        self.num_patches = num_patches
        self.num_target_blocks = int(num_target_blocks)
        self.target_aspect_ratio = (float(lowest), float(highest))
        self.seed = int(seed)
        if num_target_patches is None:
            # Four disjoint blocks of 14 % leave 44 % to the context.
            num_target_patches = _nearest_count(self.grid_size, self.target_aspect_ratio, 0.14 * num_patches)
        self.num_target_patches = int(num_target_patches)
        shapes = self._feasible_shapes()
        free = num_patches - max(height * width for height, width in shapes)
        if num_context_patches is None:
            disjoint = num_patches - self.num_target_blocks * self.num_target_patches
            num_context_patches = min(free, max(disjoint, num_patches // 4))
        self.num_context_patches = int(num_context_patches)
        if not 1 <= self.num_context_patches <= free:
            raise ValueError(
                f"num_context_patches is {self.num_context_patches}; expected 1 to {free}: on a {rows}x{columns} grid "
                f"a target block of {self.num_target_patches} patches can leave no more than {free} free. "
                "Lower num_context_patches or num_target_patches."
            )
        self._build_tables(shapes)

    def _feasible_shapes(self) -> list[tuple[int, int]]:
        rows, columns = self.grid_size
        if not 1 <= self.num_target_patches < self.num_patches:
            raise ValueError(
                f"num_target_patches is {self.num_target_patches}; expected 1 to {self.num_patches - 1} on a "
                f"{rows}x{columns} grid."
            )
        shapes = _block_shapes(self.grid_size, self.num_target_patches, self.target_aspect_ratio)
        shapes = [shape for shape in shapes if shape[0] * shape[1] < self.num_patches]
        if shapes:
            return shapes
        raise ValueError(
            f"num_target_patches is {self.num_target_patches}, but no block of that many patches has an aspect ratio "
            f"in {self.target_aspect_ratio} on a {rows}x{columns} grid. Widen target_aspect_ratio, or use "
            f"{_nearest_count(self.grid_size, self.target_aspect_ratio, self.num_target_patches)} patches."
        )

    def _build_tables(self, shapes: list[tuple[int, int]]) -> None:
        rows, columns = self.grid_size
        variants = [_block_cells(height, width, self.num_target_patches) for height, width in shapes]
        most = math.lcm(*(len(variant) for variant in variants))
        # One row for each shape and way to trim it; shorter lists repeat, so that all ways stay equally likely.
        cells = [
            [y * columns + x for y, x in variant[index % len(variant)]]
            for variant in variants
            for index in range(most)
        ]
        self._num_variants = most
        worst_union = self.num_target_blocks * self.num_target_patches
        self._always_fits = worst_union <= self.num_patches - self.num_context_patches
        self._draws = 1 if self._always_fits else _NUM_DRAWS
        # For each shape, what its numbers in [0, 1) choose among: the ways to trim a block, then each corner's row and
        # column.
        blocks = self.num_target_blocks
        ranges = [
            [most] * blocks + [rows - height + 1, columns - width + 1] * (self._draws * blocks)
            for height, width in shapes
        ]
        self._cells = torch.tensor(cells, device="cpu")
        self._ranges = torch.tensor(ranges, dtype=torch.float32, device="cpu")

    def __call__(
        self, batch_size: int, step: int, *, first_slot: int = 0, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor]:
        """Samples masks for the slots `first_slot ... first_slot + batch_size - 1` of optimizer step `step`.

        Returns:
            `context_mask` (B, Nc) int64, sorted, and `target_mask` (B, M, Nt) int64, sorted within a block: indices of
            patches in row-major order.
        """
        return self.sample_slots(torch.arange(first_slot, first_slot + batch_size, device=device), step)

    def sample_slots(self, slots: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Samples masks for slots (B,) int64 of a step's global batch, on their device; returns as `__call__`."""
        keys = stream_keys(self.seed, step, slots, MASK_STREAM)
        target_mask = self._sample_targets(keys + 1)
        # The context is the first patches, in a random order, that no block touches.
        order = uniform(keys, self.num_patches).scatter_(1, target_mask.flatten(1), 2.0)
        context = order.topk(self.num_context_patches, dim=1, largest=False, sorted=False).indices
        return context.sort(dim=1).values, target_mask

    def _sample_targets(self, keys: Tensor) -> Tensor:
        """target_mask (B, M, Nt) int64 from keys (B,)."""
        if self._cells.device != keys.device:
            self._cells, self._ranges = self._cells.to(keys.device), self._ranges.to(keys.device)
        cells, ranges, blocks, batch = self._cells, self._ranges, self.num_target_blocks, keys.shape[0]
        numbers = uniform(keys, 1 + ranges.shape[1])
        shape = (numbers[:, 0] * ranges.shape[0]).long()
        # index_select costs half of what brackets do.
        places = (numbers[:, 1:] * ranges.index_select(0, shape)).long()
        variant, corners = places[:, :blocks], places[:, blocks:].view(batch, self._draws, blocks, 2)
        offsets = cells.index_select(0, (shape[:, None] * self._num_variants + variant).flatten())
        offsets = offsets.view(batch, 1, blocks, self.num_target_patches)
        if not self._always_fits:
            # The last draw again, pulled half-way to the first block's corner and then wholly. Truncation pulls
            # towards that block; `//` would pull towards the top left and make the masks lopsided.
            anchor = corners[:, -1:, :1]
            half_way = anchor + torch.div(corners[:, -1:] - anchor, 2, rounding_mode="trunc")
            corners = torch.cat([corners, half_way, anchor.expand_as(half_way)], dim=1)
        starts = corners[..., 0] * self.grid_size[1] + corners[..., 1]  # (B, draws, M)
        candidates = starts[..., None] + offsets  # (B, draws, M, Nt)
        if self._always_fits:
            return candidates[:, 0]
        members = torch.zeros(*starts.shape[:2], self.num_patches, dtype=torch.bool, device=keys.device)
        members.scatter_(2, candidates.flatten(2), True)
        fits = members.sum(dim=2) <= self.num_patches - self.num_context_patches
        # argmax of integers returns the first maximum: the first draw that leaves enough patches free.
        first = fits.to(torch.uint8).argmax(dim=1)
        return candidates[torch.arange(batch, device=keys.device), first]
