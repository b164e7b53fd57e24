# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The usual input: PIL images, torchvision's transforms image by image, and a DataLoader with a mask collator."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision import transforms


def build_transform(
    image_size: int,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    *,
    crop: str = "pad",
    crop_padding: int = 4,
    horizontal_flip: float = 0.5,
    color_jitter: float = 0.0,
) -> Callable[[Image.Image], Tensor]:
    """torchvision's transforms for one RGB PIL image, as strong as `BatchAugmentation` with the same arguments.

    Returns:
        A callable from a PIL image (of `image_size`, unless `crop="resized"`) to float32 (3, image_size, image_size).
    """
    crops: dict[str, list[Any]] = {
        "pad": [transforms.RandomCrop(image_size, padding=crop_padding, padding_mode="reflect")],
        "resized": [transforms.RandomResizedCrop(image_size, scale=(0.3, 1.0))],
        "none": [],
    }
    steps = [*crops[crop], transforms.RandomHorizontalFlip(horizontal_flip)]
    if color_jitter:
        steps.append(transforms.ColorJitter(color_jitter, color_jitter, color_jitter))
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(image_mean, image_std)])


class PILImages(Dataset):
    """RGB PIL images held in memory, with labels, transformed each time they are asked for."""

    def __init__(
        self, images: Sequence[Image.Image], labels: Sequence[int], transform: Callable[[Image.Image], Tensor]
    ) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


class MultiBlockMaskCollator:
    """Collates examples and samples, in a loop over images, square target blocks and a context block without them.

    Written from I-JEPA's description (arXiv 2301.08243, section 3 and appendix A.1). The contexts of a batch are cut
    to the smallest of them, from the end. Draws come from torch's global generator, which a DataLoader seeds in each
    worker.

    Args:
        grid_size: (rows, columns) of the patch grid.
        num_target_blocks: M. Blocks may overlap one another.
        target_side: rows and columns of a target block.
    """

    def __init__(self, grid_size: tuple[int, int], num_target_blocks: int, target_side: int) -> None:
        self.grid_size, self.num_target_blocks, self.target_side = grid_size, num_target_blocks, target_side

    def __call__(self, examples: Sequence[Any]) -> tuple[Any, Tensor, Tensor]:
        """The collated examples, `context_mask` (B, Nc) and `target_mask` (B, M, Nt), both int64 and sorted."""
        return default_collate(examples), *self.sample(len(examples))

    def sample(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """`context_mask` (B, Nc) and `target_mask` (B, M, Nt) for a batch; Nc differs between batches."""
        # The context is a square of 85 % to 100 % of the grid before the targets are taken out.
        scale = 0.85 + 0.15 * torch.rand(()).item()
        context_shape = [round(side * math.sqrt(scale)) for side in self.grid_size]
        contexts, targets = [], []
        for _ in range(batch_size):
            context = self._draw_block(*context_shape)
            blocks = []
            for _ in range(self.num_target_blocks):
                block = self._draw_block(self.target_side, self.target_side)
                context[block] = False
                blocks.append(block.flatten().nonzero().squeeze(1))
            contexts.append(context.flatten().nonzero().squeeze(1))
            targets.append(torch.stack(blocks))
        shortest = min(len(context) for context in contexts)
        return torch.stack([context[:shortest] for context in contexts]), torch.stack(targets)

    def _draw_block(self, height: int, width: int) -> Tensor:
        """Membership, bool (rows, columns), of a block at a uniform place."""
        rows, columns = self.grid_size
        top = torch.randint(rows - height + 1, ()).item()
        left = torch.randint(columns - width + 1, ()).item()
        block = torch.zeros(rows, columns, dtype=torch.bool)
        block[top : top + height, left : left + width] = True
        return block
