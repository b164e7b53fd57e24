# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Any image, wherever it lies, as the square 8-bit RGB pixels that a run trains on."""

from collections.abc import Callable
from typing import Any

import fsspec  # type: ignore[import-untyped]
import numpy as np
from PIL import Image

from ..image_decoding_sparsejepa import UndecodableImageError, ValueRange, fit_to_square, open_regular_file, read_image


__all__ = ["UndecodableImageError", "open_file", "resize_to_square", "to_rgb"]


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
    if size < 1:
        raise ValueError(f"The image size given is {size}; expected a number of pixels of at least 1.")
    if image.mode != "RGB":
        raise ValueError(f"The image given has mode {image.mode}; expected RGB. Call to_rgb on it first.")
    return np.ascontiguousarray(np.asarray(fit_to_square(image, size)).transpose(2, 0, 1))
