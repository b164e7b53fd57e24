# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Decoding: any image that PIL can read becomes 8-bit pixels, in training and in the image processor alike.

A saved image processor carries this file. It imports numpy and PIL alone, so that workers which decode start fast.
"""

import io
import os
import struct
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, cast

import numpy as np
from PIL import Image, ImageCms, ImageOps


_ORIENTATION_TAG = 0x0112
# How an image comes upright, by its EXIF orientation.
_TURNS: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_WHITE = (255, 255, 255, 255)
_ALPHA_MODES = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})
# What PIL's readers are known to raise on damaged files; programming errors such as TypeError stay visible.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


class UndecodableImageError(ValueError):
    """The bytes or file given are not an image that PIL can read to its end."""


def read_image(image: Any, mode: str | None = "RGB", open_file: Callable[[str, str], Any] = open) -> Image.Image:
    """Reads `image` upright and with 8 bits a channel.

    Args:
        image: a PIL image of any mode; the bytes of an image file; a path; the mapping `{"bytes": ..., "path": ...}`
            of `datasets.Image(decode=False)`; or an array of shape (H, W), (H, W, 1), (H, W, 2), (H, W, 3) or
            (H, W, 4).
        mode: `"RGB"`; `"L"`, the grey of that RGB; `"RGBA"`, which keeps transparency and is opaque without any; or
            None, which turns the image upright and converts nothing.
        open_file: called with a path and `"rb"`.

    Returns:
        A PIL image of `mode`. An EXIF orientation is applied, and metadata that cannot be read is left alone;
        transparency is composited over white, except in RGBA; of an animation the first frame is taken. Ranges are
        mapped onto 0 to 255 by rounding, with negative values read as 0: 16-bit grey from 0 to 65535; mode I also
        from 0 to 65535, or from 0 to 2**31 - 1 where a value lies above 65535; floats from 0 to 1, or 0 to 255 where
        a value lies above 1, or 0 to 65535 where one lies above 255; arrays of other integers as mode I, but from 0
        to 255 where no value lies above. Colour profiles are ignored, except that LAB is converted to sRGB.

    Raises:
        UndecodableImageError: `image` cannot be read: damaged, empty, missing, or with non-finite values.
        TypeError: `image` is of a type not listed above.
    """
    try:
        opened = _upright(_open(image, open_file))
        return opened if mode is None else _convert(opened, mode)
    except UndecodableImageError:
        raise
    except _DECODE_ERRORS as error:
        raise UndecodableImageError(
            f"{_describe(image)} could not be decoded as an image ({type(error).__name__}: {error}). Expected a "
            "complete image file in a format that PIL reads; replace the file or take it out of the data set."
        ) from error


def fit_pixels(pixels: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """The centre of an image, as large as the aspect ratio of `sides` allows, resized to them.

    An image of that size already keeps its pixels. Any other is resampled once, by an antialiased bicubic filter, from
    the very rectangle that fits into it: no side is rounded to whole pixels before the cut. Channels do not touch each
    other.

    Args:
        pixels: uint8 (H, W, C).
        sides: height and width of the result, in pixels.

    Returns:
        uint8 (C, height, width), C-contiguous.
    """
    if pixels.shape[:2] == tuple(sides):
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))
    if pixels.shape[2] == 3:
        # At once, which gives the same and takes half the time.
        return np.ascontiguousarray(_fit(pixels, sides).transpose(2, 0, 1))
    # PIL would weigh colours by a fourth channel, and knows no images of more.
    return np.stack([_fit(np.ascontiguousarray(channel), sides) for channel in np.moveaxis(pixels, 2, 0)])


def _fit(pixels: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    return np.asarray(ImageOps.fit(Image.fromarray(pixels), (sides[1], sides[0]), Image.Resampling.BICUBIC))


def to_8_bit(values: np.ndarray) -> np.ndarray:
    """An array of any type and shape as uint8, by the ranges of [`read_image`]."""
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if np.issubdtype(values.dtype, np.integer) and values.dtype != np.uint16 and values.max() <= 255:
        return values.clip(0, 255).astype(np.uint8)
    return _scale(values)


def _open(image: Any, open_file: Callable[..., Any]) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Mapping):
        content, path = image.get("bytes"), image.get("path")
        if content is None and path is None:
            raise UndecodableImageError("The image given has neither bytes nor a path; expected at least one.")
        image = path if content is None else content
    if isinstance(image, (str, os.PathLike)):
        with open_file(os.fspath(image), "rb") as file:
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
    return Image.fromarray(np.ascontiguousarray(to_8_bit(array)))


def _upright(image: Image.Image) -> Image.Image:
    # Pixels first: an error of theirs counts, whereas one of the metadata does not touch them.
    image.load()
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION_TAG))
    except Exception:
        return image
    if turn is None:
        return image
    turned = image.transpose(turn)
    # Without the orientation, or whoever reads the result next would turn it again.
    turned.info = {key: value for key, value in image.info.items() if key == "transparency"}
    return turned


def _convert(image: Image.Image, mode: str) -> Image.Image:
    has_alpha = image.mode in _ALPHA_MODES or "transparency" in image.info
    if image.mode == mode and (mode == "RGBA" or not has_alpha):
        return image
    if has_alpha:
        layer = image.convert("RGBA")
        if mode == "RGBA":
            return layer
        image = Image.alpha_composite(Image.new("RGBA", layer.size, _WHITE), layer)
    elif image.mode.startswith("I;16"):
        image = Image.fromarray(_scale(np.asarray(image).astype(np.uint16)))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_scale(np.asarray(image)))
    elif image.mode == "LAB":
        image = cast(Image.Image, ImageCms.applyTransform(image, _lab_to_srgb()))
    rgb = image.convert("RGB")
    return rgb if mode == "RGB" else rgb.convert(mode)


def _scale(values: np.ndarray) -> np.ndarray:
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
