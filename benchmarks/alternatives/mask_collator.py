# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Multi-block masks image by image in a DataLoader's collate function, from I-JEPA's description (arXiv 2301.08243,
section 3 and appendix A.1)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate


def rectangle(area: float, aspect_ratio: float, grid_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) in patches of about `area` patches and of `aspect_ratio` (height / width), cut to the grid."""
    height = round(math.sqrt(area * aspect_ratio))
    width = round(math.sqrt(area / aspect_ratio))
    return min(max(height, 1), grid_size[0]), min(max(width, 1), grid_size[1])


class MultiBlockMaskCollator:
    """Collates examples and samples, in a loop over images, M target blocks and a context block without them.

    Both kinds of block have one shape a batch. A context is cut to the smallest of its batch, from its end. The
    numbers come from torch's global generator, which a DataLoader seeds anew in each worker.

    Args:
        grid_size: (rows, columns) of the patch grid.
        num_target_blocks: M, at least 1. Blocks may overlap one another.
        target_scale: smallest and largest area of a target block, as fractions of the grid.
        target_aspect_ratio: smallest and largest height / width of a target block.
        context_scale: smallest and largest area of the context block, which is square on a square grid.
        collate: what stacks the examples.

    Raises:
        ValueError: at construction, if the context of an image could be left empty.
    """

    def __init__(
        self,
        grid_size: tuple[int, int],
        num_target_blocks: int = 4,
        target_scale: tuple[float, float] = (0.15, 0.2),
        target_aspect_ratio: tuple[float, float] = (0.75, 1.5),
        context_scale: tuple[float, float] = (0.85, 1.0),
        collate: Callable[[Sequence[Any]], Any] = default_collate,
    ) -> None:
        self.grid_size = grid_size
        self.num_target_blocks = num_target_blocks
        self.target_scale = target_scale
        self.target_aspect_ratio = target_aspect_ratio
        self.context_scale = context_scale
        self.collate = collate
        self._require_some_context()

    def _require_some_context(self) -> None:
        num_patches = self.grid_size[0] * self.grid_size[1]
        height, width = rectangle(self.context_scale[0] * num_patches, 1.0, self.grid_size)
        targets = self.num_target_blocks * self._largest_target()
        if targets >= height * width:
            raise ValueError(
                f"{self.num_target_blocks} target blocks can hold {targets} of the {height * width} patches of the "
                "smallest context block; expected fewer, so that some context is left. Lower num_target_blocks or "
                "target_scale, or raise context_scale."
            )

    def _largest_target(self) -> int:
        area = self.target_scale[1] * self.grid_size[0] * self.grid_size[1]
        low, high = self.target_aspect_ratio
        # Finer than the steps in which rounding changes the sides.
        shapes = [rectangle(area, low + (high - low) * step / 256, self.grid_size) for step in range(257)]
        return max(height * width for height, width in shapes)

    def __call__(self, examples: Sequence[Any]) -> tuple[Any, Tensor, Tensor]:
        """The collated examples, `context_mask` (B, Nc) and `target_mask` (B, M, Nt), both int64 and sorted."""
        context_mask, target_mask = self.sample(len(examples))
        return self.collate(examples), context_mask, target_mask

    def sample(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """`context_mask` (B, Nc) and `target_mask` (B, M, Nt) for a batch; Nc and Nt differ between batches."""
        target_shape = self._draw_shape(self.target_scale, self.target_aspect_ratio)
        context_shape = self._draw_shape(self.context_scale, (1.0, 1.0))
        contexts, targets = [], []
        for _ in range(batch_size):
            context = self._draw_block(context_shape)
            blocks = []
            for _ in range(self.num_target_blocks):
                block = self._draw_block(target_shape)
                context[block] = False
                blocks.append(block.flatten().nonzero().squeeze(1))
            contexts.append(context.flatten().nonzero().squeeze(1))
            targets.append(torch.stack(blocks))
        shortest = min(len(context) for context in contexts)
        return torch.stack([context[:shortest] for context in contexts]), torch.stack(targets)

    def _draw_shape(self, scale: tuple[float, float], aspect_ratio: tuple[float, float]) -> tuple[int, int]:
        draws = torch.rand(2).tolist()
        area = (scale[0] + draws[0] * (scale[1] - scale[0])) * self.grid_size[0] * self.grid_size[1]
        return rectangle(area, aspect_ratio[0] + draws[1] * (aspect_ratio[1] - aspect_ratio[0]), self.grid_size)

    def _draw_block(self, shape: tuple[int, int]) -> Tensor:
        """Membership, bool (rows, columns), of a block of `shape` at a uniform place."""
        (height, width), (rows, columns) = shape, self.grid_size
        top = torch.randint(rows - height + 1, ()).item()
        left = torch.randint(columns - width + 1, ()).item()
        block = torch.zeros(rows, columns, dtype=torch.bool)
        block[top : top + height, left : left + width] = True
        return block
