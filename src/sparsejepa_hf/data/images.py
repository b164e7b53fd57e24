# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Decoding: any image that PIL can read becomes square 8-bit RGB pixels."""

import io
import os
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

import fsspec  # type: ignore[import-untyped]
import numpy as np
from PIL import Image, ImageCms, ImageOps


_ORIENTATION_TAG = 0x0112
_WHITE = (255, 255, 255, 255)
_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
# What PIL's readers are known to raise on damaged files; programming errors such as TypeError stay visible.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


class UndecodableImageError(ValueError):
    """The bytes or file given are not an image that PIL can read to its end."""


def to_rgb(image: Any) -> Image.Image:
    """Reads `image` as 8-bit RGB.

    Args:
        image: a PIL image of any mode; the bytes of an image file; a path (also an fsspec address such as
            `zip://a.png::b.zip`); the mapping `{"bytes": ..., "path": ...}` of `datasets.Image(decode=False)`; or
            an array of shape (H, W), (H, W, 1), (H, W, 2), (H, W, 3) or (H, W, 4).

    Returns:
        A PIL image of mode RGB. An EXIF orientation is applied; transparency is composited over white; of an
        animation the first frame is taken. Ranges are mapped onto 0 to 255 by rounding, with negative values read
        as 0: 16-bit grey from 0 to 65535; mode I also from 0 to 65535, or from 0 to 2**31 - 1 where a value lies
        above 65535; floats from 0 to 1, or 0 to 255 where a value lies above 1, or 0 to 65535 where one lies
        above 255. Colour profiles are ignored, except that LAB is converted to sRGB.

    Raises:
        UndecodableImageError: `image` cannot be read: damaged, empty, missing, or with non-finite values.
        TypeError: `image` is of a type not listed above.
    """
    try:
        opened = _open(image)
        # Most images are upright, and exif_transpose would copy them.
        if opened.getexif().get(_ORIENTATION_TAG, 1) != 1:
            opened = ImageOps.exif_transpose(opened)
        return _convert(opened)
    except UndecodableImageError:
        raise
    except _DECODE_ERRORS as error:
        raise UndecodableImageError(
            f"{_describe(image)} could not be decoded as an image ({type(error).__name__}: {error}). Expected a "
            "complete image file in a format that PIL reads; replace the file or take it out of the data set."
        ) from error


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
    if image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _open(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Mapping):
        content, path = image.get("bytes"), image.get("path")
        if content is None and path is None:
            raise UndecodableImageError("The image given has neither bytes nor a path; expected at least one.")
        image = path if content is None else content
    if isinstance(image, (str, os.PathLike)):
        path = os.fspath(image)
        # The file is read as a whole, so a buffer would only cost time.
        with fsspec.open(path, "rb") if "://" in path else open(path, "rb", buffering=0) as file:
            image = file.read()
    if isinstance(image, (bytes, bytearray, memoryview)):
        # PIL tries its WebP reader late; the exceptions of those before it take half the time of a small image.
        formats = ("WEBP",) if bytes(image[8:12]) == b"WEBP" else None
        return Image.open(io.BytesIO(image), formats=formats)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    raise TypeError(
        f"The image given is a {type(image).__name__}; expected a PIL image, bytes, a path, a mapping with bytes "
        "and path, or a numpy array."
    )


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (2, 3, 4)) or not array.size:
        raise UndecodableImageError(
            f"The array given has shape {array.shape}; expected (height, width) with 1 to 4 channels last."
        )
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype != np.uint8:
        array = _to_8_bit(array)
    return Image.fromarray(np.ascontiguousarray(array))


def _convert(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        image.load()
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray(_to_8_bit(np.asarray(image).astype(np.uint16))).convert("RGB")
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, _WHITE), layer).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.mode == "LAB":
        return cast(Image.Image, ImageCms.applyTransform(image, _lab_to_srgb()))
    return image.convert("RGB")


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Grey levels mapped from their full range onto 0 to 255; PIL would clip 16-bit values at 255 instead."""
    full = 65535.0
    if values.dtype != np.uint16:
        if not np.isfinite(values).all():
            raise UndecodableImageError(
                "The image given holds values that are not finite; expected finite grey levels."
            )
        highest = values.max()
        if np.issubdtype(values.dtype, np.floating) and highest <= 255:
            full = 1.0 if highest <= 1 else 255.0
        elif highest > 65535:
            full = float(2**31 - 1)
    scaled = np.clip(values.astype(np.float64), 0, full) * (255.0 / full)
    return np.floor(scaled + 0.5).astype(np.uint8)


@lru_cache(maxsize=1)
def _lab_to_srgb() -> ImageCms.ImageCmsTransform:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB")


def _describe(image: Any) -> str:
    if isinstance(image, Mapping):
        content, path = image.get("bytes"), image.get("path")
        image = path if path is not None else content
    if isinstance(image, (str, os.PathLike)):
        return f"The file {os.fspath(image)!r}"
    if isinstance(image, (bytes, bytearray, memoryview)):
        return f"The {len(image)} bytes given"
    return f"The {type(image).__name__} given"
