# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Any image, wherever it lies, as the 8-bit pixels of one shape that a run trains on."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import fsspec  # type: ignore[import-untyped]
import numpy as np
from PIL import Image

from ..image_decoding_sparsejepa import (
    UndecodableImageError,
    ValueRange,
    fit_image,
    fit_pixels,
    open_regular_file,
    read_image,
    read_pixels,
)


__all__ = ["PixelFormat", "UndecodableImageError", "resize_to_square", "sides_of", "to_rgb", "warn_of_dark_images"]


def open_file(path: str, mode: str = "rb") -> Any:
    """Opens a regular file on disk, or an fsspec address such as `zip://a.png::b.zip`."""
    return fsspec.open(path, mode) if "://" in path else open_regular_file(path, mode)


def to_rgb(
    image: Any, value_range: ValueRange | None = None, open_file: Callable[[str, str], Any] = open_file
) -> Image.Image:
    """Reads `image` as 8-bit RGB, by the rules of [`image_decoding_sparsejepa.read_image`].

    Args:
        image: whatever `read_image` takes; a path may also be an fsspec address such as `zip://a.png::b.zip`.
        value_range: the raw values that become 0 and 255; None: the file's type decides.
        open_file: called with a path and `"rb"`.

    Returns:
        A PIL image of mode RGB.

    Raises:
        UndecodableImageError: `image` cannot be read: damaged, empty, missing, too large, or with values that are
            not finite or outside the range of their type.
        TypeError: `image` is of a type that `read_image` does not take.
    """
    return read_image(image, open_file=open_file, value_range=value_range)


def resize_to_square(image: Image.Image, size: int) -> np.ndarray:
    """Resizes the short side of an RGB image to `size` pixels and cuts out the central square.

    Args:
        image: PIL image of mode RGB, any size of at least one pixel a side.
        size: side of the result, in pixels, at least 1.

    Returns:
        uint8 array of shape (3, size, size), C-contiguous. An image of that size already keeps its pixels; any
        other is resampled by an antialiased bicubic filter.

    Raises:
        ValueError: `size` is below 1 or the image is not RGB.
    """
    if image.mode != "RGB":
        raise ValueError(f"The image given has mode {image.mode}; expected RGB. Call to_rgb on it first.")
    return fit_pixels(np.asarray(image), sides_of(size))


def sides_of(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width, in pixels, of `image_size`: the side of a square, or both.

    Raises:
        ValueError: it is neither, or a side is below 1.
    """
    sides = tuple(image_size) if isinstance(image_size, Sequence) else (image_size,)
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise ValueError(
            f"The image size given is {image_size}; expected a number of pixels of at least 1, or height and width."
        )
    return sides[0], sides[-1]


@dataclass(frozen=True)
class PixelFormat:
    """What every image of a data set is made into: uint8 (C, height, width).

    Args:
        image_size: pixels: the side of a square, or height and width. Of other images the centre of that aspect ratio
            is taken and resized, see [`image_decoding_sparsejepa.fit_pixels`].
        num_channels: C: 1 grey, 3 RGB, 4 RGBA; of any other number images are arrays of as many channels.
        value_range: lowest and highest value of the images, which become 0 and 255; None: those of their type.
        open_file: called with the path of an image and `"rb"`.

    Raises:
        ValueError: a side or the number of channels is below 1.
    """

    image_size: int | Sequence[int]
    num_channels: int = 3
    value_range: Sequence[float] | None = None
    open_file: Callable[[str, str], Any] = open_file

    def __post_init__(self) -> None:
        sides_of(self.image_size)
        if self.num_channels < 1:
            raise ValueError(f"num_channels is {self.num_channels}; expected at least 1.")

    @cached_property
    def sides(self) -> tuple[int, int]:
        """Height and width."""
        return sides_of(self.image_size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """C, height and width."""
        return self.num_channels, *self.sides

    def read(self, image: Any) -> np.ndarray:
        """uint8 (C, height, width) of whatever [`image_decoding_sparsejepa.read_pixels`] takes, or an fsspec address.

        Raises:
            UndecodableImageError: `image` is missing or cannot be read, or has other channels.
        """
        if image is None:
            raise UndecodableImageError("The image is missing (null).")
        ends = None if self.value_range is None else (self.value_range[0], self.value_range[1])
        if self.num_channels == 3:
            # As fit_pixels does, without an array of the whole image in between.
            rgb = read_image(image, "RGB", self.open_file, ends)
            return np.ascontiguousarray(np.asarray(fit_image(rgb, self.sides)).transpose(2, 0, 1))
        return fit_pixels(read_pixels(image, self.num_channels, ends, self.open_file), self.sides)

    def try_read(self, image: Any) -> np.ndarray | UndecodableImageError:
        """As [`read`], with why an image cannot be read as a value."""
        try:
            return self.read(image)
        except UndecodableImageError as error:
            return error


def warn_of_dark_images(images: Sequence[Any], pixel_format: PixelFormat) -> None:
    """Warns where a few images of more than 8 bits fill less than a tenth of what their type could hold.

    Twelve bits of a detector in a file of sixteen are such values: of 4096 levels, 17 would be left.
    """
    if pixel_format.value_range is None and 0 < (brightest := _brightest(images, pixel_format)) < 255 / 10:
        # By this range 8-bit images stay as they are.
        if _brightest(images, replace(pixel_format, value_range=(0, 255))) > brightest:
            warnings.warn(
                f"The brightest pixel of the {len(images)} images looked at is {brightest} of 255, so that few levels "
                "are left: their files hold fewer bits than their type. Give value_range, the raw values that are "
                "black and white, such as 0 and 4095 for 12 bits.",
                stacklevel=3,
            )


def _brightest(images: Sequence[Any], pixel_format: PixelFormat) -> int:
    read = (pixel_format.try_read(image) for image in images)
    return max((int(pixels.max()) for pixels in read if isinstance(pixels, np.ndarray)), default=0)
