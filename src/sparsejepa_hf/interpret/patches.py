# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""One pass of a checkpoint over a data set: what every analysis of its groups reads."""

from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm.auto import tqdm

from ..data import ImageDataset
from ..data.images import sides_of
from ..data.row_files import row_opener
from ..evaluation import VisionEncoder
from ..evaluation.features import default_batch_size, frozen_module, preserved_rng
from ..image_decoding_sparsejepa import read_image
from .groups import find_grouping, find_model
from .measures import NotMeasurable


# What `collect_patches` reads beside images and labels.
EXTRA_COLUMNS = ("mask", "objects", "count", "background")


@dataclass(frozen=True)
class PatchRecord:
    """n images of N patches each, row-major over a grid of rows x columns, as one checkpoint sees them.

    Attributes:
        pixel_values: the images, uint8 (n, C, H, W).
        features: of the target encoder, float32 (n, N, D).
        latents: μ of every patch, float32 (n, N, K); None without groups.
        maps: a_g = ‖W⁽ᵍ⁾μ‖₂ of every group, float32 (n, G, rows, columns); None without groups.
        labels: int64 (n,); None where the data set has none.
        label_names: of the classes; numbers where the data set names none.
        masks: which object each pixel shows, 0 for none, uint8 (n, H, W); None where the data set has none.
        table: the data set's rows, one for each image, for columns such as `objects`.
        grid_size: rows and columns of patches; by default as many of both.
        no_groups: why there are neither latents nor maps, such as that the checkpoint is an I-JEPA.
    """

    pixel_values: np.ndarray
    features: np.ndarray
    latents: np.ndarray | None
    maps: np.ndarray | None
    labels: np.ndarray | None
    label_names: tuple[str, ...]
    masks: np.ndarray | None
    table: datasets.Dataset
    no_groups: str = "The checkpoint has no groups."
    grid_size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.pixel_values)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        side = round(self.features.shape[1] ** 0.5)
        return self.grid_size or (side, side)

    @property
    def aspect(self) -> float:
        """Height of an image, divided by its width."""
        return self.pixel_values.shape[2] / self.pixel_values.shape[3]

    def require_labels(self) -> np.ndarray:
        """The labels.

        Raises:
            NotMeasurable: there are none, or some are missing.
        """
        if self.labels is None:
            raise NotMeasurable("The data set has no labels, so nothing can be said about classes; give one that has.")
        if missing := int((self.labels < 0).sum()):
            raise NotMeasurable(
                f"{missing} of the {len(self)} images have no label, so nothing can be said about classes. Leave them "
                "out, or label them."
            )
        return self.labels

    def require_masks(self) -> np.ndarray:
        """The instance masks.

        Raises:
            NotMeasurable: there are none.
        """
        if self.masks is None:
            raise NotMeasurable(
                "The data set has no column `mask`, so maps cannot be compared with objects; give one with instance "
                "masks (0 for background, i for object i), such as synthetic-scenes."
            )
        return self.masks

    def require_groups(self) -> tuple[np.ndarray, np.ndarray]:
        """Latents (n, N, K) and maps (n, G, rows, columns).

        Raises:
            NotMeasurable: the checkpoint has no groups, or they are not finite.
        """
        if self.latents is None or self.maps is None:
            raise NotMeasurable(self.no_groups)
        return self.latents, self.maps


def shown_colors(pixel_values: np.ndarray) -> np.ndarray:
    """An image, uint8 (C, H, W), as a person can look at it, uint8 (H, W, 3): its first three channels, or the first
    of fewer as grey."""
    channels = pixel_values[:3] if len(pixel_values) >= 3 else pixel_values[[0, 0, 0]]
    return np.ascontiguousarray(channels.transpose(1, 2, 0))


def above_place(values: np.ndarray) -> np.ndarray:
    """Values (n, ...) of n images less their mean over images: what an image adds to the place.

    Much of what a group or a feature shows is the place itself, the same in every image: behind the predictor, how far
    a patch is from its context. That part says nothing about what an image shows. A single image stays as it is.
    """
    return values - values.mean(axis=0) if len(values) > 1 else values


def collect_patches(encoder: VisionEncoder, dataset: datasets.Dataset, *, progress: bool = True) -> PatchRecord:
    """Runs a checkpoint over all images of a data set; images that cannot be decoded are left out, with a warning.

    It holds everything in memory: 4·n·N·(D + K + G) bytes and the pixels.

    Args:
        encoder: of this family, by [`evaluation.load_encoder`]; an I-JEPA, or a model whose groups are not
            finite, gives features alone.
        dataset: with `image` and, where there are any, `label`, `mask` and other columns, as
            `load_image_dataset(..., extra_columns=EXTRA_COLUMNS)` gives it.
        progress: show a bar.

    Raises:
        NotMeasurable: the encoder is not of this family, holds the target encoder alone, or gives features that are
            NaN or infinite.
        ValueError: the data set is empty or has no column `image`.
    """
    model, no_groups = find_model(encoder.module), ""
    try:
        find_grouping(model)
    except NotMeasurable as reason:
        no_groups = str(reason)
    expected = encoder.pixel_format
    images = ImageDataset(
        dataset,
        expected.image_size,
        cache=True,
        num_channels=expected.num_channels,
        value_range=expected.value_range,
    )
    assert images.pixel_values is not None and images.source_indices is not None
    parts: dict[str, list[Tensor]] = {"features": [], "latents": [], "maps": []}
    step = default_batch_size(encoder.device)
    with frozen_module(model, model.device, model.device), preserved_rng(model.device), torch.inference_mode():
        for batch in tqdm(images.pixel_values.split(step), "Group maps", disable=not progress):
            inputs = encoder.preprocess(batch.to(model.device)).to(model.dtype)
            features = model(inputs).last_hidden_state
            parts["features"].append(features.float().cpu())
            if not no_groups:
                latents, group_inputs = model.encode_latents(inputs)
                parts["latents"].append(latents.float().cpu())
                norms = torch.linalg.vector_norm(group_inputs.float(), dim=-1)
                parts["maps"].append(norms.transpose(1, 2).unflatten(2, model.config.grid_size).cpu())
    arrays: dict[str, Any] = {name: torch.cat(part).numpy() if part else None for name, part in parts.items()}
    for name, array in arrays.items():
        if array is not None and not np.isfinite(array).all():
            problem = (
                f"The checkpoint gives {name} that are NaN or infinite; expected finite numbers. The run that saved "
                "it diverged; give an earlier checkpoint."
            )
            if name == "features":
                raise NotMeasurable(problem)
            arrays.update(latents=None, maps=None)
            no_groups = problem
            break
    table = dataset.select(images.source_indices.tolist())
    labels = None if images.labels is None else images.labels.numpy()
    return PatchRecord(
        pixel_values=images.pixel_values.numpy(),
        labels=labels,
        label_names=_label_names(table, labels),
        masks=_masks(table, sides_of(encoder.image_size)),
        table=table,
        no_groups=no_groups,
        grid_size=model.config.grid_size,
        **arrays,
    )


def _label_names(table: datasets.Dataset, labels: np.ndarray | None) -> tuple[str, ...]:
    if labels is None:
        return ()
    feature = table.features["label"]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    return tuple(str(label) for label in range(int(labels.max()) + 1))


def _masks(table: datasets.Dataset, sides: tuple[int, int]) -> np.ndarray | None:
    """Instance masks, cut and resized as the images were, each pixel taking the nearest one's object."""
    if "mask" not in table.column_names:
        return None
    # They name what the images beside them may name.
    opener = row_opener(table.features["image"])
    masks = table.select_columns(["mask"]).cast_column("mask", datasets.Image(decode=False))["mask"]
    return np.stack([_fit(read_image(mask or {}, None, opener), sides) for mask in masks])


def _fit(mask: Image.Image | np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    mode = "of an array" if isinstance(mask, np.ndarray) else mask.mode
    if isinstance(mask, np.ndarray) or mode not in ("L", "P", "I;16", "I"):
        raise NotMeasurable(
            f"An instance mask has the mode {mode}; expected one channel of whole numbers (0 for background, i for "
            "object i)."
        )
    size = sides[1], sides[0]
    fitted = mask if mask.size == size else ImageOps.fit(mask, size, Image.Resampling.NEAREST)
    objects = np.asarray(fitted)
    if objects.min() < 0 or objects.max() > np.iinfo(np.uint8).max:
        raise NotMeasurable(
            f"An instance mask holds numbers from {objects.min()} to {objects.max()}; expected 0 for background and "
            "up to 255 objects."
        )
    return objects.astype(np.uint8)
