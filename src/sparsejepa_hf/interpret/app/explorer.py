# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What the page shows, without the page: uploads, maps as colours, nearest images by group, what a group is."""

import io
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError

from ...data.images import PixelFormat
from ...evaluation import VisionEncoder
from ..disentanglement import ClassScores, class_scores
from ..groups import GroupStructure, find_grouping, find_model, group_structure
from ..measures import NotMeasurable
from ..patches import collect_patches, shown_colors


MAX_UPLOAD_BYTES = 10 * 1024**2
MAX_UPLOAD_PIXELS = 50_000_000
# What browsers and phones write. PIL's reader of PostScript would run another program.
UPLOAD_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
# Colours that colour-blind people can tell apart (Okabe and Ito), and an indigo. From the ninth group on they repeat,
# so each group is always numbered too.
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#F0E442", "#332288")
OPACITY = 0.75
# What a map's colour begins and ends at: quantiles of the group's activation over the indexed images.
LEVEL_RANGE = (0.5, 0.99)
_NUM_CLASSES = 3
_NUM_IMPORTANCE_TOKENS = 2048


class UnusableUploadError(ValueError):
    """This upload cannot be shown. The message is for the person who uploaded it."""


# ---- functions of arrays ----


def read_upload(path: str | Path, pixel_format: PixelFormat) -> np.ndarray:
    """An uploaded file as the model sees it.

    The number of pixels is read off the file's header, before anything is decoded.

    Args:
        path: of the file, whatever its name ends with.
        pixel_format: what the model takes.

    Returns:
        uint8 (C, H, W).

    Raises:
        UnusableUploadError: the file is empty, too large, too large once decoded, no image, or a damaged one; or the
            model takes other channels than grey, RGB and RGBA.
    """
    if pixel_format.num_channels not in (1, 3, 4):
        raise UnusableUploadError(
            f"The model takes {pixel_format.num_channels} channels, which an uploaded image has not. Pick one below."
        )
    num_bytes = os.path.getsize(path)
    if num_bytes == 0:
        raise UnusableUploadError("The file is empty (0 bytes). Choose another image.")
    if num_bytes > MAX_UPLOAD_BYTES:
        raise UnusableUploadError(
            f"The file has {num_bytes / 1024**2:.1f} MB; at most {MAX_UPLOAD_BYTES // 1024**2} MB are accepted. "
            "Choose a smaller image."
        )
    try:
        with warnings.catch_warnings():
            # The limit here is lower than the one that PIL warns at.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(Path(path).read_bytes()), formats=UPLOAD_FORMATS)
    except Image.DecompressionBombError:
        raise UnusableUploadError(_too_many_pixels("far more")) from None
    # Readers meet what nobody thought of in files from anywhere, and raise what nobody lists.
    except Exception as error:
        is_unknown = isinstance(error, UnidentifiedImageError)
        problem = "is not an image that can be read here" if is_unknown else "is a damaged image"
        raise UnusableUploadError(f"The file {problem}. Choose a JPEG, PNG, WebP, GIF, BMP or TIFF image.") from error
    width, height = image.size
    if width * height > MAX_UPLOAD_PIXELS:
        raise UnusableUploadError(_too_many_pixels(f"{width * height / 1e6:.0f} million"))
    try:
        return pixel_format.read(image)
    except Exception as error:
        raise UnusableUploadError(
            "The image is damaged or cut off, so it cannot be decoded to its end. Choose another copy of it."
        ) from error


def _too_many_pixels(found: str) -> str:
    return (
        f"The image has {found} pixels; at most {MAX_UPLOAD_PIXELS // 10**6} million are accepted. Make it smaller "
        "before you upload it."
    )


def color_of(group: int) -> tuple[int, int, int]:
    """Red, green and blue of a group, from 0 to 255."""
    code = COLORS[group % len(COLORS)]
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


def overlay(pixel_values: np.ndarray, levels: np.ndarray, groups: Sequence[int]) -> np.ndarray:
    """Colours an image where groups are active.

    Each pixel takes the colour of the chosen group with the highest level there, as opaque as that level. So colours
    never mix, and a pixel where all levels are 0 stays as it is.

    Args:
        pixel_values: uint8 (C, H, W), shown as by [`shown_colors`].
        levels: of all groups, from 0 to 1, (G, H, W).
        groups: the chosen ones; with none, the image comes back.

    Returns:
        uint8 (H, W, 3).
    """
    image = shown_colors(pixel_values)
    if not len(groups):
        return image
    chosen = levels[list(groups)]
    opacity = OPACITY * chosen.max(axis=0)[..., None]
    colors = np.array([color_of(group) for group in groups])[chosen.argmax(axis=0)]
    return np.rint((1 - opacity) * image + opacity * colors).astype(np.uint8)


def cosine_to_all(query: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Cosine between a vector (d,) and each row of `index` (n, d): float64 (n,), NaN where either is zero."""
    query, index = query.astype(np.float64), index.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return index @ query / (np.linalg.norm(index, axis=1) * np.linalg.norm(query))


# ---- one checkpoint and its images ----


@dataclass(frozen=True)
class Reading:
    """What the groups make of one image.

    Attributes:
        name: in words.
        pixel_values: uint8 (C, H, W).
        maps: a_g = ‖W⁽ᵍ⁾μ‖₂ of every patch, float32 (G, rows, columns).
        mean_input: u_g = W⁽ᵍ⁾μ, averaged over patches, float32 (G, p).
    """

    name: str
    pixel_values: np.ndarray
    maps: np.ndarray
    mean_input: np.ndarray


class GroupExplorer:
    """A checkpoint and an index of images, to look up what its groups see in another image.

    Args:
        encoder: a SparseJEPA with both encoders and predictor, by [`evaluation.load_encoder`].
        dataset: the images of the index, as `load_image_dataset` gives them, at least two.
        progress: show a bar.

    Attributes:
        structure: which latents hold which group, and how much they matter, over the index's own latents.
        readings: of the index's images, in order.
        label_names: of the classes; empty without labels.

    Raises:
        NotMeasurable: the checkpoint has no groups or gives NaN, or there is a single image.
        ValueError: the data set is empty or has no images.
    """

    def __init__(self, encoder: VisionEncoder, dataset: datasets.Dataset, *, progress: bool = True) -> None:
        # Before the pass over all images, which takes long.
        weight = find_grouping(encoder.module).group_weight.detach().float().cpu().numpy()
        record = collect_patches(encoder, dataset, progress=progress)
        latents, maps = record.require_groups()
        if len(record) < 2:
            raise NotMeasurable("The data set has a single image; nearest images need at least two.")
        self._encoder, self._model = encoder, find_model(encoder.module)
        # W is linear, so the mean over patches can be taken before it.
        mean_inputs = np.einsum("gpk,nk->ngp", weight, latents.mean(axis=1))
        self.label_names = record.label_names
        self._labels = record.labels
        names = [self._label_name(image) or f"image {image}" for image in range(len(record))]
        self.readings = [Reading(*parts) for parts in zip(names, record.pixel_values, maps, mean_inputs, strict=True)]
        self._center = mean_inputs.mean(axis=0)
        self._directions = mean_inputs - self._center
        self._strengths = maps.mean(axis=(2, 3), dtype=np.float64)
        labels = np.full(len(record), -1) if record.labels is None else record.labels
        self._scores: ClassScores | None = None
        try:
            self._scores = class_scores(self._strengths, labels)
        except NotMeasurable:
            pass
        # (2, G, rows, columns) and (2, G, 1, 1).
        self._range_by_place = np.quantile(maps, LEVEL_RANGE, axis=0)
        self._range = np.quantile(maps, LEVEL_RANGE, axis=(0, 2, 3), keepdims=True)[:, 0]
        tokens = latents.reshape(-1, latents.shape[-1])
        chosen = np.random.default_rng(0).permutation(len(tokens))[:_NUM_IMPORTANCE_TOKENS]
        self.structure: GroupStructure = group_structure(self._model, tokens[chosen])

    def __len__(self) -> int:
        return len(self.readings)

    @property
    def name(self) -> str:
        """Of the checkpoint."""
        return self._encoder.name

    @property
    def pixel_format(self) -> PixelFormat:
        """What images the model takes."""
        return self._encoder.pixel_format

    @property
    def num_groups(self) -> int:
        """G."""
        return len(self.structure.column_norms)

    def read(self, pixel_values: np.ndarray, name: str) -> Reading:
        """Runs the model on an image, uint8 (C, H, W)."""
        device, dtype = self._model.device, self._model.dtype
        images = self._encoder.preprocess(torch.from_numpy(pixel_values)[None].to(device)).to(dtype)
        self._model.eval()
        with torch.inference_mode():
            _, inputs = self._model.encode_latents(images)
        inputs = inputs[0].float()
        maps = torch.linalg.vector_norm(inputs, dim=-1).T.unflatten(1, self._model.config.grid_size)
        return Reading(name, pixel_values, maps.cpu().numpy(), inputs.mean(dim=0).cpu().numpy())

    def levels(self, reading: Reading, by_place: bool = True) -> np.ndarray:
        """How active each group is at each pixel, float64 (G, H, W), on one scale for all images of a group.

        0 up to the median of the group's activation over the index's images, 1 from its 99th percentile on, and
        straight in between; enlarged from patches bilinearly. A group that is the same in all images has 0.

        Args:
            reading: of the image.
            by_place: take median and percentile over the same place of the images. A group is often active at one
                place in every image, which says nothing about what an image shows. If False, over all patches.
        """
        low, high = self._range_by_place if by_place else self._range
        with np.errstate(invalid="ignore", divide="ignore"):
            levels = np.where(high > low, (reading.maps - low) / (high - low), 0).clip(0, 1)
        size = reading.pixel_values.shape[1:]
        enlarged = F.interpolate(torch.from_numpy(levels)[None], size=size, mode="bilinear", align_corners=False)
        return enlarged[0].numpy()

    def overlay(self, reading: Reading, groups: Sequence[int], by_place: bool = True) -> np.ndarray:
        """The image coloured by the chosen groups: uint8 (H, W, 3); see [`overlay`] and `levels`."""
        return overlay(reading.pixel_values, self.levels(reading, by_place), groups)

    def rank(self, reading: Reading) -> np.ndarray:
        """Share of the index's images in which each group is less active, averaged over patches: (G,)."""
        strength = reading.maps.mean(axis=(1, 2), dtype=np.float64)
        # One image may run through other kernels than a batch did, so equal strengths differ by rounding.
        return (self._strengths < strength - 1e-5 * np.abs(strength)).mean(axis=0)

    def nearest(self, reading: Reading, groups: Sequence[int], count: int) -> list[tuple[int, float]]:
        """The images that the chosen groups, taken together, find most alike, with their similarity.

        The similarity is the cosine between the groups' inputs u_g, averaged over patches, less their mean over the
        index, and put one after the other. Without taking the mean off, all images are alike, because most of u_g is
        the same for all. It is 1 for the same image, about 0 for unrelated ones, and negative for opposite ones.

        Args:
            reading: the image to compare with.
            groups: the chosen ones.
            count: how many images.

        Returns:
            (place in the index, similarity), the nearest first. Empty without groups, or where the chosen ones say
            the same of every image.
        """
        if not len(groups):
            return []
        chosen = list(groups)
        query = (reading.mean_input - self._center)[chosen].ravel()
        similarity = cosine_to_all(query, self._directions[:, chosen].reshape(len(self), -1))
        order = np.argsort(-similarity, kind="stable")[:count]
        return [(int(image), float(similarity[image])) for image in order if np.isfinite(similarity[image])]

    def classes(self, group: int) -> list[str] | None:
        """Names of up to three classes in whose images a group is more active than shuffled labels would make it, the
        strongest first; None where there are no classes to compare."""
        if self._scores is None:
            return None
        z = self._scores.z[group]
        order = np.argsort(-z, kind="stable")[:_NUM_CLASSES]
        return [self.label_names[self._scores.labels[c]] for c in order if z[c] > self._scores.threshold]

    def important_latents(self, group: int, count: int = 5) -> list[int]:
        """The latents that matter most to a group, the most important first; only those that hold it."""
        order = np.argsort(-self.structure.importance[group], kind="stable")[:count]
        return [int(latent) for latent in order if self.structure.held[group, latent]]

    def _label_name(self, image: int) -> str:
        """Empty where the image has no label."""
        if self._labels is None or self._labels[image] < 0:
            return ""
        return self.label_names[self._labels[image]]
