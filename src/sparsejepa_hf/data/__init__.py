# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Image data: loading, decoding, torch data sets, augmentation and the built-in synthetic scenes."""

from .augmentation import BatchAugmentation, normalize_images
from .dataset import (
    ImageDataset,
    ResidentImages,
    StreamingImageDataset,
    TooManyBadImagesError,
    build_image_dataset,
    collate_images,
    collate_pixels,
)
from .images import UndecodableImageError, resize_to_square, to_rgb
from .loading import (
    SCENE_STYLES,
    SYNTHETIC_SCENES,
    TEXTURED_SCENES,
    align_classes,
    find_image_column,
    find_label_column,
    load_image_dataset,
)
from .scenes import build_scenes, min_visible_pixels, render_scene
from .textures import texture_values


__all__ = [
    "SCENE_STYLES",
    "SYNTHETIC_SCENES",
    "TEXTURED_SCENES",
    "BatchAugmentation",
    "ImageDataset",
    "ResidentImages",
    "StreamingImageDataset",
    "TooManyBadImagesError",
    "UndecodableImageError",
    "align_classes",
    "build_image_dataset",
    "build_scenes",
    "collate_images",
    "collate_pixels",
    "find_image_column",
    "find_label_column",
    "load_image_dataset",
    "min_visible_pixels",
    "normalize_images",
    "render_scene",
    "resize_to_square",
    "texture_values",
    "to_rgb",
]
