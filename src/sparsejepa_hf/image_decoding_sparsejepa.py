# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Decoding: any image becomes 8-bit pixels, in training and in the image processor alike.

A saved image processor carries this file. It imports numpy and PIL alone, so that workers which decode start fast.
Bytes are data: no address is fetched, no pickle is loaded, and no format is read whose reader starts a program.
"""

import contextlib
import importlib
import io
import math
import os
import stat
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, TypeAlias, cast

import numpy as np
from PIL import Image, ImageCms, ImageOps


ValueRange: TypeAlias = tuple[float, float]

# The formats of image files that are read, WebP first since its reader would be tried late; beside them `.npy`. Others
# of PIL's readers would take any bytes for an image, and that of EPS starts Ghostscript.
Image.init()
FORMATS = tuple(
    name
    for name in ("WEBP", "PNG", "JPEG", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "AVIF")
    if name in Image.OPEN
)

_NPY_SIGNATURE, _PNG_SIGNATURE = b"\x93NUMPY", b"\x89PNG\r\n\x1a\n"
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Chunks of a PNG that tell nothing about its pixels, and may be damaged or longer than PIL allows.
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_BITS_TAG, _SAMPLES_TAG, _PLANES_TAG, _SIGN_TAG = 258, 277, 284, 339
_ORIENTATION_TAG = 0x0112
# What a TIFF says of its samples: what they are, that each channel lies in a plane of its own, and their sign.
_BLACK_IS_ZERO, _RGB = 1, 2
_IN_PLANES = 2
_UNSIGNED, _SIGNED = 1, 2
_ALPHAS = (1, 2)
_UNCOMPRESSED = 1
# Begins what a JPEG 2000 says of its channels.
_JPEG2000_SIZE = b"\xff\x51"
# Where a PNG says how many bits a value has.
_PNG_BITS = 24
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
# What an image file is converted to, by the number of channels wanted.
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_CHANNELS = {mode: count for count, mode in _MODES.items()}
# Pixels from which images are decoded one after the other in a process, so that threads do not add up their memory.
_LARGE = 2**24
_large_image = threading.Lock()


class UndecodableImageError(ValueError):
    """The bytes, file or array given cannot be read as an image."""


class _TooLargeError(UndecodableImageError):
    """It has more pixels than are allowed."""


def open_regular_file(path: str, mode: str = "rb") -> Any:
    """Opens a file on disk, unbuffered; what is no regular file, such as a pipe or a device, is refused unread.

    Raises:
        UndecodableImageError: `path` is an address such as `https://...`, or no regular file.
        OSError: it cannot be opened.
    """
    if "://" in path:
        raise UndecodableImageError("it is an address, and nothing is fetched here: download it and give the file")
    # A pipe without a writer would block the call that opens it.
    file = open(
        path, mode, buffering=0, opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
    )
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UndecodableImageError("it is no regular file (a pipe, socket or device): give a file")
    return file


def read_pixels(
    image: Any,
    num_channels: int = 3,
    value_range: ValueRange | None = None,
    open_file: Callable[[str, str], Any] = open_regular_file,
) -> np.ndarray:
    """The pixels of `image`, upright, 8 bits a channel, in as many channels as wanted.

    Args:
        image: what [`read_image`] takes.
        num_channels: 3 is RGB, 1 the grey of that RGB, 4 RGBA, as in [`read_image`]. Any other number takes arrays,
            `.npy` files and TIFF files of exactly as many channels (the package `tifffile` reads the latter).
        value_range: as in [`read_image`].
        open_file: as in [`read_image`].

    Returns:
        uint8 (H, W, num_channels); it may be read-only.

    Raises:
        UndecodableImageError: `image` cannot be read, or has another number of channels.
        TypeError: `image` is of a type that [`read_image`] does not take.
    """
    if num_channels in _MODES:
        pixels = np.asarray(read_image(image, _MODES[num_channels], open_file, value_range))
        return pixels if num_channels > 1 else pixels[..., None]
    try:
        opened = _open(image, num_channels, value_range, open_file)
        if isinstance(opened, Image.Image):
            raise UndecodableImageError(
                f"it has {len(opened.getbands())} channels, but {num_channels} are expected: give an array, a .npy "
                "file or a TIFF file of as many"
            )
        array = _channels_last(opened, num_channels)
        if array.shape[2] != num_channels:
            raise UndecodableImageError(
                f"it has {array.shape[2]} channels (shape {opened.shape}), but {num_channels} are expected"
            )
        return to_8_bit(array, value_range)
    except UndecodableImageError as error:
        raise _named(image, error) from error.__cause__


def read_image(
    image: Any,
    mode: str | None = "RGB",
    open_file: Callable[[str, str], Any] = open_regular_file,
    value_range: ValueRange | None = None,
) -> Any:
    """Reads `image` upright and with 8 bits a channel.

    Args:
        image: a PIL image of any mode; the bytes of an image file or of a `.npy` file; the path of one; the mapping
            `{"bytes": ..., "path": ...}` of `datasets.Image(decode=False)`; or an array of shape (H, W), (H, W, 1),
            (H, W, 2), (H, W, 3) or (H, W, 4). Files are of the formats [`FORMATS`] and hold at most
            `PIL.Image.MAX_IMAGE_PIXELS` pixels, 89 million unless it is set.
        mode: `"RGB"`; `"L"`, the grey of that RGB; `"RGBA"`, which keeps transparency and is opaque without any; or
            None, which turns the image upright and converts nothing.
        open_file: called with a path and `"rb"`; by default [`open_regular_file`], which fetches nothing.
        value_range: the raw values that become 0 and 255, of a whole data set: values between are mapped linearly
            and rounded, and those beyond are clipped. None: the file's type decides.

    Returns:
        A PIL image of `mode`; for None also an array, where an array or `.npy` is given. An EXIF orientation is
        applied, and metadata that cannot be read is left alone; transparency is composited over white, except in
        RGBA; of an animation the first frame is taken. Without `value_range`, 8-bit values stay, 16-bit values are
        mapped from 0 to 65535, floats from 0 to 1, and other whole numbers stay if all lie from 0 to 255. No single
        pixel changes how the others are read: floats and wide whole numbers outside are refused. Colour profiles are
        ignored, except that LAB is converted to sRGB.

    Raises:
        UndecodableImageError: `image` cannot be read: damaged, empty, missing, too large, of another format, or with
            values that are not finite or outside the range of their type.
        TypeError: `image` is of a type not listed above.
        ValueError: `value_range` is not two finite numbers, the lower one first.
    """
    try:
        opened = _open(image, 3 if mode is None else _CHANNELS[mode], value_range, open_file)
        if mode is None:
            return opened
        if isinstance(opened, np.ndarray):
            opened, value_range = _from_array(opened, value_range), None
        return _convert(opened, mode, value_range)
    except UndecodableImageError as error:
        raise _named(image, error) from error.__cause__


def fit_image(image: Image.Image, sides: tuple[int, int]) -> Image.Image:
    """The centre of an image of 8 bits a channel, as large as the aspect ratio of `sides` allows, resized to them.

    An image of that size already keeps its pixels. Any other is resampled once, by an antialiased bicubic filter, from
    the very rectangle that fits into it: no side is rounded to whole pixels before the cut.

    Args:
        image: of mode L or RGB. PIL would weigh the colours of other modes by a channel that is none.
        sides: height and width of the result, in pixels.
    """
    size = sides[1], sides[0]
    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.BICUBIC)


def fit_pixels(pixels: np.ndarray, sides: tuple[int, int]) -> np.ndarray:
    """[`fit_image`] of uint8 (H, W, C) as uint8 (C, height, width), C-contiguous; channels do not touch each other."""
    if pixels.shape[:2] == sides:
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))
    if pixels.shape[2] == 3:
        # At once, which gives the same and takes half the time.
        return np.ascontiguousarray(np.asarray(fit_image(Image.fromarray(pixels), sides)).transpose(2, 0, 1))
    channels = (np.ascontiguousarray(channel) for channel in np.moveaxis(pixels, 2, 0))
    return np.stack([np.asarray(fit_image(Image.fromarray(channel), sides)) for channel in channels])


def to_8_bit(values: np.ndarray, value_range: ValueRange | None = None) -> np.ndarray:
    """An array of any type and shape as uint8, by the ranges of [`read_image`]."""
    if values.dtype.kind not in "buif":
        raise UndecodableImageError(f"its values are of type {values.dtype}: expected numbers")
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    if value_range is None:
        if values.dtype == np.uint8:
            return values
        value_range = _range_of_type(values)
        if value_range == (0, 255):
            return values.astype(np.uint8)
    elif values.dtype.kind == "f":
        _ends(values)
    low, high = require_value_range(value_range)
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return _levels(8 * values.dtype.itemsize, low, high)[values]
    levels = np.empty(values.shape, np.uint8)
    # Part by part, since the numbers between take eight bytes each.
    step = max(1, 2**20 // max(1, values[:1].size))
    for start in range(0, len(values), step):
        levels[start : start + step] = _scale(values[start : start + step], low, high)
    return levels


def measure_value_range(
    images: Iterable[Any], open_file: Callable[[str, str], Any] = open_regular_file, num_channels: int = 3
) -> tuple[float, float]:
    """The lowest and the highest raw value of images, for `value_range` of [`read_image`].

    Args:
        images: what [`read_pixels`] takes; those that cannot be decoded are passed over. Transparency is no value.
        open_file: as in [`read_pixels`].
        num_channels: as in [`read_pixels`].

    Raises:
        ValueError: no image can be decoded, or all their values are the same.
    """
    lows, highs = [], []
    for image in images:
        try:
            low, high = _raw_ends(image, open_file, num_channels)
        except UndecodableImageError:
            continue
        lows.append(low)
        highs.append(high)
    if not lows:
        raise ValueError("No range of values can be measured: none of the images given can be decoded.")
    return require_value_range((min(lows), max(highs)))


def require_value_range(value_range: Any) -> tuple[float, float]:
    """The range as two floats.

    Raises:
        ValueError: it is not two finite numbers, the lower one first.
    """
    try:
        low, high = map(float, value_range)
        is_range = low < high and math.isfinite(high - low)
    except (TypeError, ValueError):
        is_range = False
    if not is_range:
        raise ValueError(
            f"value_range is {value_range!r}; expected two finite numbers, the raw value that becomes black and a "
            "higher one that becomes white, such as 0 and 4095 for 12 bits."
        )
    return low, high


# ---- from what is given to an image that is open ----


def _named(image: Any, error: UndecodableImageError) -> UndecodableImageError:
    """The error with the name of the image before the reason that it cannot be decoded."""
    return UndecodableImageError(
        f"{_describe(image)} could not be decoded as an image: {error}. Mend it or take it out of the data set."
    )


def _open(
    image: Any, num_channels: int, value_range: ValueRange | None, open_file: Callable[..., Any]
) -> Image.Image | np.ndarray:
    """A PIL image, loaded and upright, or the raw values of an array, (H, W) or (H, W, C)."""
    if isinstance(image, Mapping):
        content, path = image.get("bytes"), image.get("path")
        if content is None and path is None:
            raise UndecodableImageError("it has neither bytes nor a path: expected at least one")
        image = path if content is None else content
    if isinstance(image, (str, os.PathLike)):
        image = _read_file(os.fspath(image), open_file)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(image), num_channels, value_range)
    if isinstance(image, Image.Image):
        try:
            image.load()
        except Exception as error:
            raise _undecodable(error) from error
        return _upright(image)
    if isinstance(image, np.ndarray):
        return image.astype(image.dtype.newbyteorder("="), copy=False)
    raise TypeError(
        f"The image given is a {type(image).__name__}; expected a PIL image, bytes, a path, a mapping with bytes "
        "and path, or a numpy array."
    )


def _read_file(path: str, open_file: Callable[..., Any]) -> bytes:
    try:
        with open_file(path, "rb") as file:
            return file.read()
    # An archive raises what it likes about a damaged member.
    except Exception as error:
        raise _undecodable(error) from error


def _from_bytes(content: bytes, num_channels: int, value_range: ValueRange | None) -> Image.Image | np.ndarray:
    if content.startswith(_NPY_SIGNATURE):
        return _from_npy(content)
    if num_channels not in _MODES and content.startswith(_TIFF_SIGNATURES):
        # PIL would log an error for each.
        return _from_tiff(
            content, num_channels, UndecodableImageError(f"PIL reads no TIFF of {num_channels} channels")
        )
    try:
        opened = _decode(content, num_channels, value_range)
    except UndecodableImageError as error:
        if content.startswith(_TIFF_SIGNATURES) and not isinstance(error, _TooLargeError):
            return _from_tiff(content, num_channels, error)
        if not content.startswith(_PNG_SIGNATURE):
            raise
        # Once more without its texts, whose damage or length is none of the pixels.
        opened = _decode(_without_texts(content), num_channels, value_range)
    if opened.format == "PPM" and opened.mode == "I":
        # 16 bits a value, which PIL holds in 32.
        return Image.fromarray(np.asarray(opened).astype(np.uint16))
    return _upright(opened)


def _decode(content: bytes, num_channels: int, value_range: ValueRange | None) -> Image.Image:
    """The image in the bytes of a file, loaded."""
    try:
        opened = Image.open(io.BytesIO(content), formats=FORMATS)
        pixels = _require_size(*opened.size)
        may_lose = value_range is not None or opened.format == "TIFF"
        lost = _lost(opened, content, num_channels, value_range) if may_lose else None
        if not lost and pixels > _LARGE:
            with _large_image:
                opened.load()
        elif not lost:
            opened.load()
    # Whatever a decoder raises about damaged bytes; no code of ours stands above, but for the checks.
    except Exception as error:
        raise _undecodable(error, content) from error
    if lost:
        raise UndecodableImageError(lost)
    return opened


def _undecodable(error: Exception, content: bytes = b"") -> Exception:
    """What to raise for an error of a decoder."""
    if isinstance(error, UndecodableImageError):
        return error
    if isinstance(error, Image.UnidentifiedImageError):
        found = _format_of(content)
        if found in FORMATS:
            return UndecodableImageError(f"it begins as {found}, but is damaged or of a kind that PIL does not read")
        return UndecodableImageError(
            f"it begins as {found or 'no image'}, but is expected to be one of {', '.join(FORMATS)} and .npy"
        )
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return _TooLargeError(f"{error} Cut or shrink it, or set PIL.Image.MAX_IMAGE_PIXELS")
    if isinstance(error, MemoryError):
        try:
            # As much as the largest image takes. A decoder that wanted more was misled by damaged bytes.
            np.empty(4 * (Image.MAX_IMAGE_PIXELS or _LARGE), np.uint8)
        except MemoryError:
            return error
    # numpy repeats a damaged header whole.
    reason = str(error)
    return UndecodableImageError(f"{type(error).__name__}: {reason[:200]}{'...' if len(reason) > 200 else ''}")


def _format_of(content: bytes) -> str | None:
    """The format that PIL would take the bytes for, by their beginning alone."""
    for name, (_, accepts) in Image.OPEN.items():
        # Some look at bytes that are not there.
        with contextlib.suppress(Exception):
            if accepts is not None and accepts(content[:16]) is True:
                return name
    return None


def _require_size(width: int, height: int) -> int:
    """The number of pixels, if it is allowed."""
    pixels, limit = width * height, Image.MAX_IMAGE_PIXELS
    if limit is not None and pixels > limit:
        raise _TooLargeError(
            f"it has {width} x {height} pixels, more than the {limit} allowed: cut or shrink it, or set "
            "PIL.Image.MAX_IMAGE_PIXELS"
        )
    return pixels


def _lost(opened: Any, content: bytes, num_channels: int, value_range: ValueRange | None) -> str | None:
    """Why PIL would not give the values that are asked for as the file holds them; None: it does."""
    if opened.format == "TIFF":
        tags, bands = opened.tag_v2, len(opened.getbands())
        samples, sign = tags.get(_SAMPLES_TAG, 1), tags.get(_SIGN_TAG, (_UNSIGNED,))[0]
        # RGB with one more is RGB to whoever asks for that.
        if samples > bands and opened.mode != "P" and (bands < 3 or num_channels not in (1, 3)):
            return f"PIL reads {bands} of its {samples} channels"
        if (opened.mode, sign) in (("L", _SIGNED), ("I", _UNSIGNED)):
            return "PIL mistakes the sign of its values"
        if tags.get(_PLANES_TAG) == _IN_PLANES and _is_scaled(opened, content):
            return "PIL reads no 16-bit colours in planes"
    if value_range is not None and _is_scaled(opened, content):
        return "PIL scales its values, and value_range is of those in the file: save it as TIFF or .npy"
    return None


def _is_scaled(opened: Any, content: bytes) -> bool:
    """Whether PIL brings a file's values of another depth to 8 bits, or to 16."""
    is_wide = opened.mode[0] in "IF"
    if opened.format == "TIFF":
        return not is_wide and max(opened.tag_v2.get(_BITS_TAG, (1,))) > 8
    if opened.format == "PNG":
        return not is_wide and content[_PNG_BITS] > 8
    if opened.format == "PPM":
        # Where it scales, the mode and the highest value that there may be.
        arguments = opened.tile[0].args
        return not isinstance(arguments, str) and arguments[1] not in (0, 65535 if is_wide else 255)
    if opened.format == "JPEG2000":
        bits = 1 + (content[content.index(_JPEG2000_SIZE) + 40] & 0x7F)
        return bits != (16 if is_wide else 8)
    return False


def _from_npy(content: bytes) -> np.ndarray:
    try:
        array: Any = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception as error:
        raise _undecodable(error) from error
    if array.ndim > 1:
        _require_size(array.shape[1], array.shape[0])
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _from_tiff(content: bytes, num_channels: int, reason: UndecodableImageError) -> np.ndarray:
    """The first page of a TIFF that PIL does not read for that reason, as (H, W) or (H, W, C), upright.

    Grey pages, as many as there are to be channels, are the channels: so microscopes store them.
    """
    try:
        tifffile = importlib.import_module("tifffile")
    except ImportError:
        raise UndecodableImageError(f"{reason} (the package tifffile may read it: pip install tifffile)") from reason
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            pages = [file.pages[0]]
            if num_channels not in _MODES and pages[0].samplesperpixel == 1 and len(file.pages) == num_channels:
                pages = list(file.pages)
            arrays = [_from_page(page, len(content), num_channels // len(pages), reason) for page in pages]
            return np.dstack(arrays) if len(pages) > 1 else arrays[0]
    except Exception as error:
        raise _undecodable(error, content) from error


def _from_page(page: Any, length: int, num_channels: int, reason: UndecodableImageError) -> np.ndarray:
    _require_size(page.imagewidth, page.imagelength)
    count, is_rgb = page.samplesperpixel, page.photometric == _RGB
    # What lies beside grey or colours is transparency only where it is said to be.
    has_alpha = bool(page.extrasamples) and page.extrasamples[-1] in _ALPHAS
    fits = count in (1, 3, num_channels) or (count in (2, 4) and (is_rgb or has_alpha) and num_channels in _MODES)
    if not fits or page.axes not in ("YX", "YXS", "SYX"):
        raise UndecodableImageError(f"it has {count} channels, but {num_channels} are expected (axes {page.axes})")
    # What is missing would be filled with zeros.
    ends = [offset + size for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True) if size]
    is_whole = len(ends) == math.prod(page.chunked) and max(ends) <= length
    if page.compression == _UNCOMPRESSED:
        is_whole = is_whole and sum(page.databytecounts) >= page.nbytes
    # Of other kinds, such as palettes and CMYK, the samples are no grey and no colours.
    if not is_whole or not (is_rgb or page.photometric == _BLACK_IS_ZERO):
        raise reason
    array = page.asarray(maxworkers=1)
    array = np.moveaxis(array, 0, -1) if page.axes == "SYX" else array
    array = array[..., :3] if count == 4 != num_channels and not has_alpha else array
    orientation = page.tags.valueof(_ORIENTATION_TAG, default=1)
    array = array.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else array
    return array[:: -1 if orientation in (3, 4, 7, 8) else 1, :: -1 if orientation in (2, 3, 6, 7) else 1]


def _without_texts(content: bytes) -> bytes:
    """A PNG without chunks of text and without a colour profile."""
    kept, place = [_PNG_SIGNATURE], len(_PNG_SIGNATURE)
    while place < len(content):
        # Length, name, content, checksum.
        end = place + 12 + int.from_bytes(content[place : place + 4], "big")
        if content[place + 4 : place + 8] not in _PNG_TEXTS:
            kept.append(content[place:end])
        place = end
    return b"".join(kept)


def _upright(image: Image.Image) -> Image.Image:
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


# ---- from there to 8 bits ----


def _channels_last(array: np.ndarray, num_channels: int) -> np.ndarray:
    """(H, W, C) of (H, W), (H, W, C), or of (C, H, W) where the shape leaves no doubt."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or not array.size:
        raise UndecodableImageError(f"its shape is {array.shape}: expected (height, width, channels)")
    counts = {1, 2, 3, 4, num_channels}
    is_first = array.shape[2] not in counts and array.shape[0] in counts
    return np.moveaxis(array, 0, -1) if is_first else array


def _from_array(array: np.ndarray, value_range: ValueRange | None) -> Image.Image:
    array = _channels_last(array, 3)
    if array.shape[2] > 4:
        raise UndecodableImageError(
            f"its shape is {array.shape}, but 1 to 4 channels are expected, (height, width, channels): more are for a "
            "model whose num_channels they are"
        )
    array = array[:, :, 0] if array.shape[2] == 1 else array
    return Image.fromarray(np.ascontiguousarray(to_8_bit(array, value_range)))


def _convert(image: Image.Image, mode: str, value_range: ValueRange | None) -> Image.Image:
    is_wide = image.mode[0] in "IF"
    has_alpha = image.mode in _ALPHA_MODES or ("transparency" in image.info and not is_wide)
    if value_range is None and image.mode == mode and (mode == "RGBA" or not has_alpha):
        return image
    with _large_image if image.width * image.height > _LARGE else contextlib.nullcontext():
        if has_alpha:
            image = image.convert("RGBA")
        elif is_wide:
            values = np.asarray(image)
            # PIL names the order of bytes in the mode.
            values = values.astype(np.uint16) if image.mode.startswith("I;16") else values
            image, value_range = Image.fromarray(to_8_bit(values, value_range)), None
        elif image.mode == "LAB":
            image = cast(Image.Image, ImageCms.applyTransform(image, _lab_to_srgb()))
        if value_range is not None:
            image = image if has_alpha else image.convert("RGB")
            levels = _levels(8, *require_value_range(value_range)).tolist()
            # Transparency is no value of the scene.
            image = image.point(levels * 3 + list(range(256)) * has_alpha)
        if has_alpha and mode != "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image)
        # Grey and RGBA are made of the RGB.
        rgb = image if image.mode in ("RGB", "RGBA") and mode != "L" else image.convert("RGB")
        return rgb if rgb.mode == mode else rgb.convert(mode)


def _range_of_type(values: np.ndarray) -> tuple[float, float]:
    """What lies from black to white, by the type alone."""
    if values.dtype == np.uint16:
        return 0, 65535
    low, high = _ends(values)
    white = 1 if values.dtype.kind == "f" else 255
    if low < 0 or high > white:
        raise UndecodableImageError(
            f"its values are of type {values.dtype} and lie from {low:g} to {high:g}, but those of this type are "
            f"expected from 0 to {white}: give value_range, the values of the data set that are to be black and white"
        )
    return 0, white


def _ends(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(low) or not math.isfinite(high):
        raise UndecodableImageError("it holds values that are not finite: expected finite numbers")
    return low, high


def _raw_ends(image: Any, open_file: Callable[..., Any], num_channels: int) -> tuple[float, float]:
    """The lowest and the highest value that `value_range` maps."""
    # With any range, so that nothing is read at fewer bits.
    opened = _open(image, num_channels, (0, 1), open_file)
    if isinstance(opened, Image.Image):
        is_wide = opened.mode[0] in "IF"
        opened = np.asarray(opened) if is_wide else np.asarray(_convert(opened, "RGBA", None))[..., :3]
    if opened.dtype.kind not in "buif" or not opened.size:
        raise UndecodableImageError("it holds no numbers")
    return _ends(opened)


def _scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    scaled = (np.clip(values.astype(np.float64), low, high) - low) * (255.0 / (high - low))
    return np.floor(scaled + 0.5).astype(np.uint8)


@lru_cache(maxsize=8)
def _levels(bits: int, low: float, high: float) -> np.ndarray:
    """What becomes of each value of so many bits."""
    return _scale(np.arange(2**bits), low, high)


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
