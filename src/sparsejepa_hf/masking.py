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

import numpy as np
import torch
from torch import Tensor

from .counter_rng import counters, stream_keys, to_unit_interval, uniform_integers


MASK_STREAM = 1
# Draws of all of a sample's blocks before they are pulled together.
_NUM_DRAWS = 2
# Comes after every random number of 24 bits.
_LAST = 1 << 25


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

    What is left is the rectangle without that edge, plus the rest of the edge beside it: 4-connected.
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
        # One row a shape and a way to trim it; shorter lists repeat, so that all ways stay equally likely.
        cells = [
            [y * columns + x for y, x in variant[index % len(variant)]]
            for variant in variants
            for index in range(most)
        ]
        self._cells = torch.tensor(cells, dtype=torch.int64, device="cpu")
        self._num_variants = most
        # What turns a 24-bit number into a choice: of M ways to trim, then of the corners' (row, column).
        spans = [(rows - height + 1, columns - width + 1) for height, width in shapes]
        worst_union = self.num_target_blocks * self.num_target_patches
        self._always_fits = worst_union <= self.num_patches - self.num_context_patches
        self._draws = 1 if self._always_fits else _NUM_DRAWS
        blocks = self.num_target_blocks
        ranges = [[most] * blocks + [*span] * (self._draws * blocks) for span in spans]
        self._ranges = torch.tensor(ranges, dtype=torch.float32, device="cpu") * 2.0**-24
        # One hash for both uses: the context's order from the key itself, the targets from the key after it.
        num_target_numbers = 1 + self.num_target_blocks + 2 * self._draws * self.num_target_blocks
        self._counters = torch.cat([counters(self.num_patches), counters(num_target_numbers) + 1])
        self._tables: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    def _tables_on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        if device not in self._tables:
            self._tables[device] = tuple(t.to(device) for t in (self._cells, self._ranges, self._counters))
        return self._tables[device]

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
        cells, ranges, counters = self._tables_on(keys.device)
        numbers = uniform_integers(keys, counters)
        if keys.device.type == "cpu" and self._always_fits:
            return self._sample_arrays(numbers.numpy())
        return self._sample_tensors(numbers, cells, ranges)

    def _sample_tensors(self, numbers: Tensor, cells: Tensor, ranges: Tensor) -> tuple[Tensor, Tensor]:
        """Masks from integers of 24 bits, (B, N) for the context's order, then (B, 1 + M + 2 * draws * M)."""
        target_mask = self._sample_targets(numbers[:, self.num_patches :].to(torch.float32), cells, ranges)
        return self._first_free_patches(numbers[:, : self.num_patches], target_mask.flatten(1)), target_mask

    def _sample_arrays(self, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        """The same faster, on a CPU and for blocks that always fit: small calls cost numpy less than torch."""
        order, targets = numbers[:, : self.num_patches], self._first_draw(numbers[:, self.num_patches :])
        target_mask = torch.from_numpy(targets)
        within = targets.reshape(len(targets), self.num_target_blocks * self.num_target_patches)
        context_mask = self._first_free_patches_by_threshold(order, within)
        if context_mask is None:
            context_mask = self._first_free_patches(torch.from_numpy(order), target_mask.flatten(1))
        return context_mask, target_mask

    def _first_draw(self, draws: np.ndarray) -> np.ndarray:
        """As `_sample_targets`, for blocks that always fit."""
        numbers, ranges, blocks = draws.astype(np.float32), self._ranges.numpy(), self.num_target_blocks
        shape = (numbers[:, 0] * np.float32(len(ranges) * 2.0**-24)).astype(np.int64)
        places = (numbers[:, 1:] * ranges.take(shape, axis=0)).astype(np.int64)
        rows = places[:, :blocks] + (shape * self._num_variants)[:, None]
        starts = places[:, blocks::2] * self.grid_size[1] + places[:, blocks + 1 :: 2]
        targets = self._cells.numpy().take(rows, axis=0)
        targets += starts[..., None]
        return targets

    def _first_free_patches(self, order: Tensor, targets: Tensor) -> Tensor:
        """The `num_context_patches` patches outside `targets` (B, M * Nt) that come first in `order` (B, N), sorted by
        place: int64 (B, Nc)."""
        if order.device.type == "cpu":
            patches = self._first_free_patches_by_threshold(order.numpy(), targets.numpy())
            if patches is not None:
                return patches
        places = to_unit_interval(order.scatter(1, targets, _LAST))
        first = places.topk(self.num_context_patches, dim=1, largest=False, sorted=False).indices
        return first.sort(dim=1).values

    def _first_free_patches_by_threshold(self, order: np.ndarray, targets: np.ndarray) -> Tensor | None:
        """The same faster; None where the last patch within ties with the first beyond, about 1 image in a million."""
        rows, last = np.arange(len(order))[:, None] * self.num_patches, self.num_context_patches - 1
        # 24 bits fit, and half the memory is half the time.
        order = order.astype(np.int32)
        order.reshape(-1)[targets + rows] = _LAST
        highest = np.partition(order, last, axis=1)[:, last : last + 1]
        flat = np.flatnonzero(order <= highest)
        if len(flat) != len(order) * self.num_context_patches:
            return None
        return torch.from_numpy(flat.reshape(-1, self.num_context_patches) - rows)

    def _sample_targets(self, numbers: Tensor, cells: Tensor, ranges: Tensor) -> Tensor:
        """target_mask (B, M, Nt) from `numbers` (B, 1 + M + 2 * draws * M), float32 of 24 bits."""
        batch_size, blocks = numbers.shape[0], self.num_target_blocks
        shape = (numbers[:, 0] * (ranges.shape[0] * 2.0**-24)).long()
        # index_select costs half of what brackets do.
        places = (numbers[:, 1:] * ranges.index_select(0, shape)).long()
        variant, corners = places[:, :blocks], places[:, blocks:].view(batch_size, self._draws, blocks, 2)
        offsets = cells.index_select(0, (shape[:, None] * self._num_variants + variant).flatten())
        offsets = offsets.view(batch_size, blocks, self.num_target_patches)
        if not self._always_fits:
            corners = torch.cat([corners, self._contract(corners[:, -1])], dim=1)
        starts = corners[..., 0] * self.grid_size[1] + corners[..., 1]  # (B, draws, M)
        candidates = starts[..., None] + offsets[:, None]  # (B, draws, M, Nt)
        if self._always_fits:
            return candidates[:, 0]
        members = torch.zeros(batch_size, starts.shape[1], self.num_patches, dtype=torch.bool, device=numbers.device)
        members.scatter_(2, candidates.flatten(2), True)
        fits = members.sum(dim=2) <= self.num_patches - self.num_context_patches
        # argmax of integers returns the first maximum: the first draw that leaves enough patches free.
        first = fits.to(torch.uint8).argmax(dim=1)
        return candidates[torch.arange(batch_size, device=numbers.device), first]

    @staticmethod
    def _contract(corners: Tensor) -> Tensor:
        """Corners (B, M, 2) pulled half-way and wholly to the first block's: (B, 2, M, 2)."""
        anchor = corners[:, :1].expand_as(corners)
        # Towards the first block, not towards the top left: `//` would make the masks lopsided.
        half_way = anchor + torch.div(corners - anchor, 2, rounding_mode="trunc")
        return torch.stack([half_way, anchor], dim=1)
