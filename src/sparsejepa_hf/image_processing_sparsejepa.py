# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The image processor: what training did to its images, for whoever uses a checkpoint."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from .image_decoding_sparsejepa import fit_pixels, read_image, read_pixels


# Of arrays that become grey, RGB or RGBA.
_ARRAY_CHANNELS = (1, 2, 3, 4)


class SparseJEPAImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """What a processor and a call of it take beside transformers' own."""

    num_channels: int
    value_range: list[float] | tuple[float, ...] | None


class SparseJEPAImageProcessor(PilBackend):
    """Makes of an image the pixels that training made of it.

    Images are PIL images of any mode, the bytes of files, paths, URLs, base64 texts, arrays, tensors, and lists of
    these. [`image_decoding_sparsejepa.read_pixels`] decodes them: upright, transparency over white, 16-bit and float
    values scaled. (URLs and base64 texts are decoded by transformers, which clips 16-bit values.) Without a format in
    `input_data_format`, the number of channels tells where they are; where the shape allows both, they come last in
    arrays and first in tensors.

    The central part of the aspect ratio of `crop_size` is resized to it in one resampling, as in training. With other
    sizes, crops or filters, and with any `do_` flag off, each step is that of transformers' PIL back end, on each
    channel by itself.

    Args:
        size (`dict[str, int]`, defaults to a side of 32): for squares `{"shortest_edge"}`, the side; for
            rectangles `{"height", "width"}`.
        crop_size (`dict[str, int]`): by default what `size` says.
        num_channels (`int`, defaults to the number of values of `image_mean`): of the pixels. 3 is RGB; 1 is the grey
            of that RGB; 4 is RGBA, opaque where an image has no transparency, and an array or tensor of four channels
            keeps them all. Other numbers take arrays, tensors and files of as many channels.
        value_range (`list[float]`, *optional*): lowest and highest value of the images, which become 0 and 255.
            By default what the type of an image says.
        image_mean (`list[float]`, defaults to 0.5): of each channel, on the scale from 0 to 1.
        image_std (`list[float]`, defaults to 0.5): of each channel, on the same scale.
        do_convert_rgb (`bool`, defaults to `True`): whether to decode as described. Without it, PIL's and the array's
            own values are taken, as in transformers.
        kwargs: as for transformers' image processors.

    Raises:
        ValueError: `image_mean` or `image_std` has another number of values than there are channels.
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
    num_channels = 3
    value_range = None
    valid_kwargs = SparseJEPAImageProcessorKwargs

    def __init__(self, **kwargs: Any) -> None:
        mean, count = kwargs.get("image_mean"), kwargs.get("num_channels")
        if count is None:
            # As in checkpoints that do not say it.
            kwargs["num_channels"] = count = len(mean) if isinstance(mean, Sequence) else self.num_channels
        for name in ("image_mean", "image_std"):
            if kwargs.get(name) is None:
                kwargs[name] = [0.5] * count
            elif isinstance(kwargs[name], Sequence) and len(kwargs[name]) != count:
                raise ValueError(
                    f"{name} is {kwargs[name]}, and num_channels {count}; expected one number for each channel."
                )
        super().__init__(**kwargs)
        if kwargs.get("crop_size") is None:
            side = self.size.shortest_edge
            self.crop_size = SizeDict(height=side or self.size.height, width=side or self.size.width)

    def preprocess(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """As in transformers; of floats `do_rescale=False` says what decoding finds by itself, a range from 0 to 1."""
        if isinstance(images, Sequence) and not isinstance(images, (str, bytes, bytearray, memoryview, list, tuple)):
            # Such as a column of a `datasets.Dataset`.
            images = list(images)
        if kwargs.get("do_convert_rgb", self.do_convert_rgb):
            if kwargs.get("do_rescale") is False:
                kwargs["do_rescale"] = _holds_floats(images)
            options = {name: kwargs.get(name, getattr(self, name)) for name in ("num_channels", "value_range")}
            images = self._read(images, input_data_format=kwargs.pop("input_data_format", None), **options)
        return super().preprocess(images, *args, **kwargs)

    def _read(
        self, image: Any, num_channels: int, value_range: Sequence[float] | None, input_data_format: Any
    ) -> list[Any] | np.ndarray:
        """uint8 (H, W, C) of an image, and a list of a list or a batch of images."""
        if isinstance(image, (list, tuple)) or getattr(image, "ndim", 0) == 4:
            return [self._read(each, num_channels, value_range, input_data_format) for each in image]
        if isinstance(image, str) and not os.path.isfile(image):
            image = super().fetch_images(image)
        elif isinstance(image, (np.ndarray, torch.Tensor)):
            image = _channels_last(image, num_channels, input_data_format)
        return read_pixels(image, num_channels, None if value_range is None else (value_range[0], value_range[1]))

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

    def process_image(self, image: Any, do_convert_rgb: bool | None = None, **kwargs: Any) -> np.ndarray:
        """One image as (C, H, W); uint8 where it was decoded."""
        if do_convert_rgb:
            return np.moveaxis(image, -1, 0)
        return super().process_image(image, do_convert_rgb=False, **kwargs)

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
        side = size.shortest_edge
        sides = (side, side) if side else (size.height, size.width)
        as_in_training = (
            (do_resize and do_center_crop and resample == PILImageResampling.BICUBIC)
            and (sides == (crop_size.height, crop_size.width) and None not in sides and not size.longest_edge)
            and all(image.dtype == np.uint8 for image in images)
        )
        if as_in_training:
            do_resize = do_center_crop = False
            images = [fit_pixels(np.moveaxis(image, 0, -1), sides) for image in images]
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
    value_range: Sequence[float] | None = None,
) -> SparseJEPAImageProcessor:
    """The processor for a model: what held-out images go through in training.

    Args:
        image_sides: height and width of the model's images, in pixels. The centre of that aspect ratio is cut out of
            other images, and resized.
        image_mean: of each of the model's channels, on the scale from 0 to 1.
        image_std: of each channel, on the same scale.
        value_range: lowest and highest value of the images; None: what their type says.
    """
    height, width = image_sides
    return SparseJEPAImageProcessor(
        size={"shortest_edge": height} if height == width else {"height": height, "width": width},
        image_mean=list(image_mean),
        image_std=list(image_std),
        value_range=None if value_range is None else list(value_range),
    )


def _holds_floats(images: Any) -> bool:
    if isinstance(images, (list, tuple)):
        return any(map(_holds_floats, images))
    is_float = isinstance(images, torch.Tensor) and images.is_floating_point()
    return is_float or (isinstance(images, np.ndarray) and np.issubdtype(images.dtype, np.floating))


def _channels_last(
    image: np.ndarray | torch.Tensor, num_channels: int, input_data_format: str | ChannelDimension | None
) -> np.ndarray:
    """An array (H, W) or (H, W, C) of one given in either layout."""
    axis = 0 if isinstance(image, torch.Tensor) else -1
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
    if image.ndim != 3:
        return image
    counts = _ARRAY_CHANNELS if num_channels in (1, 3, 4) else (num_channels,)
    if input_data_format is not None:
        axis = 0 if ChannelDimension(input_data_format) is ChannelDimension.FIRST else -1
    elif image.shape[axis] not in counts and image.shape[-1 - axis] in counts:
        axis = -1 - axis
    return np.moveaxis(image, axis, -1)
