# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The usual input: PIL images, torchvision's transforms image by image, and a DataLoader with a mask collator."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder


def build_transform(
    image_size: int,
    image_mean: Sequence[float],
    image_std: Sequence[float],
    *,
    crop: Literal["pad", "resized", "none"] = "pad",
    crop_padding: int = 4,
    crop_scale: tuple[float, float] = (0.3, 1.0),
    horizontal_flip: float = 0.5,
    color_jitter: float = 0.0,
) -> Callable[[Image.Image], Tensor]:
    """torchvision's transforms for one RGB PIL image, as strong as `BatchAugmentation` with the same arguments.

    Returns:
        A callable from a PIL image (of `image_size`, unless `crop="resized"`) to float32 (3, image_size, image_size).
    """
    steps: list[Any] = []
    if crop == "pad":
        steps.append(transforms.RandomCrop(image_size, padding=crop_padding, padding_mode="reflect"))
    elif crop == "resized":
        steps.append(transforms.RandomResizedCrop(image_size, scale=crop_scale))
    elif crop != "none":
        raise ValueError(f"crop is {crop!r}; expected 'pad', 'resized' or 'none'.")
    if horizontal_flip:
        steps.append(transforms.RandomHorizontalFlip(horizontal_flip))
    if color_jitter:
        steps.append(transforms.ColorJitter(color_jitter, color_jitter, color_jitter))
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(image_mean, image_std)])


class PILImages(Dataset):
    """RGB PIL images held in memory, with labels, transformed each time they are asked for."""

    def __init__(
        self, images: Sequence[Image.Image], labels: Sequence[int], transform: Callable[[Image.Image], Tensor]
    ) -> None:
        if len(images) != len(labels):
            raise ValueError(f"There are {len(images)} images and {len(labels)} labels; expected one label an image.")
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def folder_images(folder: Path, transform: Callable[[Image.Image], Tensor]) -> Dataset:
    """The images of a folder with a subfolder for each class, decoded by PIL each time they are asked for."""
    return ImageFolder(str(folder), transform)


def build_loader(
    dataset: Dataset,
    batch_size: int,
    collate: Callable[[Sequence[Any]], Any],
    num_workers: int,
    pin_memory: bool = False,
) -> DataLoader:
    """Shuffled whole batches, in pinned memory if asked for; workers, if any, live as long as the loader."""
    return DataLoader(
        dataset,
        batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
    )
