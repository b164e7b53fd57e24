# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Damaged image files of every format: each is 8-bit pixels or refused by name, and no process dies of it.

The files are decoded in a process of their own, with a limit on its memory and on the time that it may take for one.
"""

import io
import multiprocessing
import resource
import struct
import sys
import zlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin, features

from sparsejepa_hf.image_decoding_sparsejepa import FORMATS, UndecodableImageError, read_pixels


MEMORY = 4 * 1024**3
SECONDS = 60
# What damage in a header likes to say.
EDGES = [0, 1, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]


def encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    # Copies, since saving leaves settings in the images.
    others = {"append_images": [other.copy() for other in options.get("append_images", [])]}
    image.copy().save(buffer, format=format, **options | others)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def whole_files() -> list[bytes]:
    """A small file of each format, in each mode that it has."""
    rgba = Image.fromarray(np.random.default_rng(0).integers(0, 256, (17, 23, 4), dtype=np.uint8))
    rgb, wide = rgba.convert("RGB"), np.arange(17 * 23).reshape(17, 23)
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    images = {mode: rgba.convert(mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")}
    images |= {"I;16": Image.fromarray(wide.astype(np.uint16)), "I": Image.fromarray(wide.astype(np.int32) % 256)}
    images |= {"F": Image.fromarray(wide.astype(np.float32) / wide.size)}
    images |= {"LAB": ImageCms.applyTransform(rgb, ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))}
    text, exif = PngImagePlugin.PngInfo(), Image.Exif()
    text.add_text("zipped", "node " * 300, zip=True)
    text.add_itxt("international", "text", zip=True)
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "text", 1.5
    profile = ImageCms.ImageCmsProfile(srgb).tobytes()
    lists = {"save_all": True, "append_images": [rgb.rotate(90, expand=True).resize(rgb.size)]}
    kinds = [
        *(("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        ("PNG", "RGB", {"pnginfo": text, "exif": exif, "icc_profile": profile}),
        ("PNG", "RGB", {"transparency": (1, 2, 3)}),
        ("PNG", "P", {"transparency": bytes(range(0, 250, 5))}),
        ("PNG", "RGBA", lists),
        *(("JPEG", mode, {}) for mode in ("L", "RGB", "CMYK")),
        ("JPEG", "RGB", {"progressive": True, "exif": exif, "icc_profile": profile, "comment": b"text"}),
        ("MPO", "RGB", lists),
        *(("WEBP", "RGBA", options) for options in ({}, {"lossless": True}, {"exif": exif, "quality": 20}, lists)),
        *(("TIFF", mode, {}) for mode in images if mode != "YCbCr"),
        *(("TIFF", "RGB", {"compression": kind}) for kind in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")),
        ("TIFF", "1", {"compression": "group4"}),
        ("TIFF", "I;16", {"compression": "tiff_adobe_deflate", "exif": exif}),
        ("TIFF", "RGB", lists),
        *(("BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
        ("DIB", "RGB", {}),
        *(("GIF", mode, {}) for mode in ("1", "L", "P", "RGBA")),
        ("GIF", "RGB", lists),
        *(("PPM", mode, {}) for mode in ("1", "L", "I;16", "RGB", "F")),
        *(("JPEG2000", mode, {}) for mode in ("L", "LA", "RGB", "RGBA", "I;16")),
        ("JPEG2000", "RGB", {"no_jp2": True, "tile_size": (8, 8)}),
        *(("ICO", "RGBA", {}), ("EPS", "RGB", {}), ("DDS", "RGBA", {}), ("TGA", "RGB", {}), ("PCX", "L", {})),
    ]
    if features.check("avif"):
        kinds += [("AVIF", "RGB", {}), ("AVIF", "RGBA", {"exif": exif, "quality": 20})]
    files = [encode(images[mode], format, **options) for format, mode, options in kinds]
    files += [b"P3 2 2 255 1 2 3 4 5 6 7 8 9 10 11 12", b"P2 2 1 65535 0 65535", b"P1 3 2 101 010"]
    arrays = [wide.astype(kind) for kind in (np.uint8, ">u2", np.int64, np.float16, bool)] + [np.asarray(rgba)]
    return files + [npy(array) for array in (*arrays, np.asfortranarray(rgb), np.zeros((5, 6, 13), np.uint16))]


FILES = whole_files()


def with_right_checksums(content: bytes) -> bytes:
    """A PNG whose damaged chunks pass for whole ones, so that the damage goes deeper."""
    place, parts = 8, [content[:8]]
    while place + 12 <= len(content):
        end = place + 8 + struct.unpack(">I", content[place : place + 4])[0]
        parts += [content[place:end], struct.pack(">I", zlib.crc32(content[place + 4 : end]))]
        place = end + 4
    return b"".join(parts) + content[place:]


@st.composite
def damaged_files(draw) -> bytes:
    content = bytearray(draw(st.sampled_from(FILES)))
    for kind in draw(st.lists(st.sampled_from(["flip", "set", "edge", "insert", "cut", "end", "splice"]), max_size=6)):
        # Most of what can go wrong stands in the first hundred bytes.
        last = max(0, len(content) - 1)
        place = draw(st.one_of(st.integers(0, min(100, last)), st.integers(0, last)))
        if kind == "flip" and content:
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and content:
            content[place] = draw(st.integers(0, 255))
        elif kind == "edge":
            number = struct.pack(draw(st.sampled_from("<>")) + "I", draw(st.sampled_from(EDGES)))
            number = number[: draw(st.sampled_from([2, 4]))]
            content[place : place + len(number)] = number
        elif kind == "insert":
            content[place:place] = draw(st.binary(max_size=20))
        elif kind == "cut":
            del content[place : place + draw(st.integers(1, 50))]
        elif kind == "end":
            del content[place:]
        elif kind == "splice":
            other = draw(st.sampled_from(FILES))
            start = draw(st.integers(0, len(other)))
            content[place : place + 40] = other[start : start + 40]
    whole = bytes(content)
    return with_right_checksums(whole) if whole[:4] == b"\x89PNG" and draw(st.booleans()) else whole


def decode_for(pipe) -> None:
    """Decodes what comes through a pipe, and sends back what came of it."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while (task := pipe.recv()) is not None:
        content, num_channels, value_range = task
        try:
            pixels = read_pixels(content, num_channels, value_range)
            is_held = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.size > 0
            pipe.send("pixels" if is_held and pixels.shape[2] == num_channels else f"{pixels.dtype} {pixels.shape}")
        except UndecodableImageError as error:
            pipe.send("refused" if 50 < len(str(error)) < 1000 else f"an unclear message: {error}")
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {error}")
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


class Decoder:
    """A process that decodes, and another one after each that died."""

    def __init__(self) -> None:
        self.counts = {"pixels": 0, "refused": 0}
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=decode_for, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def __call__(self, *task) -> str:
        try:
            self._pipe.send(task)
            result = self._pipe.recv() if self._pipe.poll(SECONDS) else f"no answer within {SECONDS} s"
        except (EOFError, OSError):
            self._process.join()
            result = f"the process died ({self._process.exitcode})"
        if result in self.counts:
            self.counts[result] += 1
        elif not self._process.is_alive() or result.startswith("no answer"):
            self._process.kill()
            self._start()
        return result

    def close(self) -> int:
        """Ends the process; the most memory that it held, in bytes."""
        self._pipe.send(None)
        peak = self._pipe.recv()
        self._process.join()
        return peak


@pytest.fixture(scope="module")
def decoder():
    decoder = Decoder()
    yield decoder
    decoder._process.kill()


def test_whole_files_are_read(decoder):
    """So that the damage below is done to files that are read without it."""
    results = [decoder(content, 3, None) for content in FILES]
    assert set(results) == {"pixels", "refused"}
    found = {
        Image.open(io.BytesIO(c)).format
        for c, result in zip(FILES, results, strict=True)
        if result == "pixels" and not c.startswith(b"\x93")
    }
    assert found >= set(FORMATS) - {"AVIF"}


def test_damaged_files_are_pixels_or_refused(decoder, record_fault):
    decoder.counts.update(pixels=0, refused=0)

    @hypothesis.settings(hypothesis.settings.get_profile("fuzz"))
    @hypothesis.given(
        content=damaged_files(),
        num_channels=st.sampled_from([3, 3, 1, 4, 13]),
        value_range=st.sampled_from([None, None, (0.0, 4095.0), (-1000.0, 1000.0)]),
    )
    def check(content, num_channels, value_range):
        assert decoder(content, num_channels, value_range) in ("pixels", "refused")

    check()
    cases, peak = sum(decoder.counts.values()), decoder.close()
    assert peak < MEMORY
    record_fault("fuzz", "images", injected=cases, held=cases, **decoder.counts, peak_mib=peak // 2**20)
