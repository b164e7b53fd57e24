# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The image processor: what training did to its images, for whoever uses a checkpoint."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict

from .image_decoding_sparsejepa import UndecodableImageError, fit_to_square, read_image, to_8_bit


# What images are converted to, by the number of channels of the model.
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class SparseJEPAImageProcessor(PilBackend):
    """Makes of an image the pixels that training made of it.

    Images are PIL images of any mode, the bytes of files, paths, URLs, base64 texts, arrays, tensors, and lists of
    these. [`image_decoding_sparsejepa.read_image`] decodes them: upright, transparency over white, 16-bit and float
    values scaled. (URLs and base64 texts are decoded by transformers, which clips 16-bit values.) Without a format in
    `input_data_format`, channels come last in arrays and first in tensors where the shape allows both.

    The short side becomes `size["shortest_edge"]` and the centre is cut out in one resampling, as in training. With
    other sizes, crops or filters, and with any `do_` flag off, each step is that of transformers' PIL back end, on
    each channel by itself.

    Args:
        image_mean (`list[float]`, defaults to `[0.5, 0.5, 0.5]`): of each channel, on the scale from 0 to 1. There are
            as many channels as values. 3 is RGB; 1 is the grey of that RGB; 4 is RGBA, opaque where an image has no
            transparency, and an array or tensor of four channels keeps them all. Other numbers take arrays and
            tensors of as many channels.
        image_std (`list[float]`, defaults to `[0.5, 0.5, 0.5]`): of each channel, on the same scale.
        crop_size (`dict[str, int]`): by default what `size` says.
        do_convert_rgb (`bool`, defaults to `True`): whether to decode as described. Without it, PIL's and the array's
            own values are taken, as in transformers.
        kwargs: as for transformers' image processors.
    """

    _auto_class = "AutoImageProcessor"

    do_convert_rgb = True
    do_resize = True
    size: Any = {"shortest_edge": 32}
    default_to_square = False
    resample = PILImageResampling.BICUBIC
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if kwargs.get("crop_size") is None:
            side = self.size.shortest_edge
            self.crop_size = SizeDict(height=side or self.size.height, width=side or self.size.width)

    def preprocess(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """As in transformers; of floats `do_rescale=False` says what decoding finds by itself, a range from 0 to 1."""
        if kwargs.get("do_rescale") is False and kwargs.get("do_convert_rgb", self.do_convert_rgb):
            kwargs["do_rescale"] = _holds_floats(images)
        return super().preprocess(images, *args, **kwargs)

    def fetch_images(self, images: Any) -> Any:
        """As in transformers, which knows texts and images alone; also bytes, paths, `datasets`' mappings and 2D."""
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image) for image in images]
        is_file = isinstance(images, str) and os.path.isfile(images)
        if is_file or isinstance(images, (bytes, bytearray, memoryview, os.PathLike, Mapping)):
            return read_image(images, mode=None)
        if isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 2:
            return images[..., None] if isinstance(images, np.ndarray) else images[None]
        return super().fetch_images(images)

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        image_mean: float | Sequence[float] = 0.5,
        **kwargs: Any,
    ) -> np.ndarray:
        """One image as uint8 (C, H, W), where C is the number of values of `image_mean`."""
        if not do_convert_rgb:
            return super().process_image(image, do_convert_rgb=False, input_data_format=input_data_format)
        num_channels = len(image_mean) if isinstance(image_mean, Sequence) else 3
        if isinstance(image, (np.ndarray, torch.Tensor)):
            image = _channels_last(image, num_channels, input_data_format)
        if num_channels in _MODES:
            pixels = np.asarray(read_image(image, _MODES[num_channels]))
        elif isinstance(image, np.ndarray) and image.shape[-1] == num_channels:
            pixels = to_8_bit(image)
        else:
            raise UndecodableImageError(
                f"The {type(image).__name__} given cannot be read as an image of {num_channels} channels, which is "
                f"what the model takes; expected an array or tensor with {num_channels} channels."
            )
        return np.moveaxis(np.atleast_3d(pixels), -1, 0)

    def resize(self, image: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
        """As in transformers, channel by channel: PIL would weigh colours by a fourth channel."""
        resize = super().resize
        return np.concatenate([resize(channel[None], *args, **kwargs) for channel in image])

    def _preprocess(
        self,
        images: list[np.ndarray],
        do_resize: bool,
        size: SizeDict,
        resample: Any,
        do_center_crop: bool,
        crop_size: SizeDict,
        **kwargs: Any,
    ) -> BatchFeature:
        as_in_training = (
            (do_resize and do_center_crop and resample == PILImageResampling.BICUBIC)
            and (size.shortest_edge == crop_size.height == crop_size.width and not size.longest_edge)
            and all(image.dtype == np.uint8 for image in images)
        )
        if as_in_training:
            do_resize = do_center_crop = False
            images = [_square(image, size.shortest_edge) for image in images]
        return super()._preprocess(
            images,
            do_resize=do_resize,
            size=size,
            resample=resample,
            do_center_crop=do_center_crop,
            crop_size=crop_size,
            **kwargs,
        )


def image_processor(
    image_sides: tuple[int, int],
    image_mean: Sequence[float] = (0.5, 0.5, 0.5),
    image_std: Sequence[float] = (0.5, 0.5, 0.5),
) -> SparseJEPAImageProcessor:
    """The processor for a model: what held-out images go through in training.

    Args:
        image_sides: height and width of the model's images, in pixels. Equal sides: short side to theirs, then the
            centre. Others: every image is stretched to them.
        image_mean: of each of the model's channels, on the scale from 0 to 1.
        image_std: of each channel, on the same scale.
    """
    height, width = image_sides
    return SparseJEPAImageProcessor(
        size={"shortest_edge": height} if height == width else {"height": height, "width": width},
        do_center_crop=height == width,
        image_mean=list(image_mean),
        image_std=list(image_std),
    )


def _holds_floats(images: Any) -> bool:
    if isinstance(images, (list, tuple)):
        return any(map(_holds_floats, images))
    is_float = isinstance(images, torch.Tensor) and images.is_floating_point()
    return is_float or (isinstance(images, np.ndarray) and np.issubdtype(images.dtype, np.floating))


def _square(image: np.ndarray, side: int) -> np.ndarray:
    """The central square of uint8 (C, H, W), as uint8 (C, side, side)."""
    if len(image) == 3:
        # At once, which gives the same and takes half the time.
        return np.moveaxis(np.asarray(fit_to_square(Image.fromarray(np.moveaxis(image, 0, -1)), side)), -1, 0)
    return np.stack([np.asarray(fit_to_square(Image.fromarray(channel), side)) for channel in image])


def _channels_last(
    image: np.ndarray | torch.Tensor, num_channels: int, input_data_format: str | ChannelDimension | None
) -> np.ndarray:
    """An array (H, W, C) of one given in either layout."""
    axis = 0 if isinstance(image, torch.Tensor) else -1
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if input_data_format is not None:
        axis = 0 if ChannelDimension(input_data_format) is ChannelDimension.FIRST else -1
    elif image.shape[axis] not in (counts := {1, 2, 3, 4, num_channels}) and image.shape[-1 - axis] in counts:
        axis = -1 - axis
    return np.moveaxis(image, axis, -1)
