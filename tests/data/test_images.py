# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Decoding of every image mode, of damaged files, and the resize to a square."""

import io
import os
import socket
import struct
import sys
import threading
import time
import warnings
import zipfile
import zlib
from contextlib import nullcontext

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import EpsImagePlugin, Image, ImageCms, PngImagePlugin

from sparsejepa_hf import image_decoding_sparsejepa
from sparsejepa_hf.data import ImageDataset, UndecodableImageError, resize_to_square, to_rgb
from sparsejepa_hf.data.images import PixelFormat, warn_of_dark_images
from sparsejepa_hf.image_decoding_sparsejepa import measure_value_range, read_pixels


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def png_of(width: int, height: int, header: bytes | None = None) -> bytes:
    """A PNG of zeros, which is small whatever its sides are; of RGB, 8 bits a channel, without `header`."""
    sides = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    header = header or b"\x00\x00\x00\x0dIHDR" + sides + b"\x08\x02\0\0\0"
    packer, rows = zlib.compressobj(), bytes(1 + width * 6)
    pixels = b"IDAT" + b"".join(packer.compress(rows) for _ in range(min(height, 100))) + packer.flush()
    chunks = (header[4:], pixels, b"IEND")
    framed = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def pixel(image, place=(0, 0)) -> tuple[int, ...]:
    return to_rgb(image).getpixel(place)


def random_rgb(height=9, width=7, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(values=arrays(np.uint8, (5, 6, 3)))
@settings(max_examples=25, deadline=None)
def test_lossless_files_keep_every_pixel(values):
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {})):
        np.testing.assert_array_equal(np.asarray(to_rgb(encode(Image.fromarray(values), format, **options))), values)


@given(values=arrays(np.uint16, (4, 5)))
@settings(max_examples=25, deadline=None)
def test_16_bit_grey_is_scaled_not_clipped(values):
    expected = np.floor(values / 257.0 + 0.5).astype(np.uint8)
    image = Image.fromarray(values)
    for source in (image, encode(image), encode(image, "TIFF"), encode(image, "PPM"), values):
        rgb = np.asarray(to_rgb(source))
        for channel in range(3):
            np.testing.assert_array_equal(rgb[..., channel], expected)


def test_ends_of_the_wide_ranges():
    assert pixel(Image.new("I;16", (1, 1), 65535)) == (255, 255, 255)
    assert pixel(Image.new("I;16B", (1, 1), 0)) == (0, 0, 0)
    assert pixel(Image.new("F", (1, 1), 1.0)) == (255, 255, 255)
    assert pixel(Image.new("F", (1, 1), 0.5)) == (128, 128, 128)


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.int64, np.float32, np.float64])
@pytest.mark.parametrize("outside", [-1.01, 1.01])
def test_no_single_pixel_changes_how_the_others_are_read(kind, outside):
    """A value outside the range of its type is refused, where it used to change the range of all."""
    white = 1 if np.issubdtype(kind, np.floating) else 255
    values = (np.linspace(0, 1, 12).reshape(3, 4) * white).astype(kind)
    np.testing.assert_array_equal(
        np.asarray(to_rgb(values))[..., 0], np.floor(values.astype(float) / white * 255 + 0.5)
    )
    values[1, 2] = outside if white == 1 else outside * 1000
    with pytest.raises(UndecodableImageError, match=rf"from 0 to {white}: give value_range"):
        to_rgb(values)
    np.testing.assert_array_equal(
        np.asarray(to_rgb(values, (0, white)))[..., 0],
        np.floor(np.clip(values.astype(float), 0, white) / white * 255 + 0.5),
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(value):
    with pytest.raises(UndecodableImageError, match="not finite"):
        to_rgb(Image.new("F", (2, 2), value))


def test_two_levels_and_grey():
    assert pixel(Image.new("1", (1, 1), 1)) == (255, 255, 255)
    assert pixel(Image.new("L", (1, 1), 77)) == (77, 77, 77)
    assert pixel(encode(Image.new("L", (1, 1), 77))) == (77, 77, 77)


@given(color=st.tuples(*[st.integers(0, 255)] * 4))
@settings(max_examples=50, deadline=None)
def test_alpha_is_composited_over_white(color):
    alpha = color[3] / 255
    expected = [alpha * value + (1 - alpha) * 255 for value in color[:3]]
    np.testing.assert_allclose(pixel(encode(Image.new("RGBA", (2, 2), color))), expected, atol=1)
    grey = alpha * color[0] + (1 - alpha) * 255
    np.testing.assert_allclose(pixel(Image.new("LA", (2, 2), (color[0], color[3]))), [grey] * 3, atol=1)


def test_palettes_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert pixel(encode(image)) == (10, 20, 30)
    assert pixel(encode(image), (1, 0)) == (200, 100, 50)
    clear = encode(image, transparency=1)
    assert pixel(clear) == (10, 20, 30)
    assert pixel(clear, (1, 0)) == (255, 255, 255)


def test_transparent_colour_of_an_rgb_png():
    image = Image.fromarray(np.array([[[1, 2, 3], [9, 8, 7]]], dtype=np.uint8))
    content = encode(image, transparency=(1, 2, 3))
    assert pixel(content) == (255, 255, 255)
    assert pixel(content, (1, 0)) == (9, 8, 7)


def test_cmyk_and_ycbcr():
    assert pixel(Image.new("CMYK", (1, 1), (0, 0, 0, 0))) == (255, 255, 255)
    assert pixel(Image.new("CMYK", (1, 1), (0, 255, 255, 0))) == (255, 0, 0)
    assert pixel(Image.new("CMYK", (1, 1), (0, 0, 0, 255))) == (0, 0, 0)
    red = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    np.testing.assert_allclose(pixel(red), (255, 0, 0), atol=6)
    red = Image.new("RGB", (1, 1), (255, 0, 0)).convert("YCbCr")
    np.testing.assert_allclose(pixel(red), (255, 0, 0), atol=2)


def test_lab_comes_back_as_the_srgb_it_was():
    rgb = Image.fromarray(random_rgb() // 2 + 64)
    forth = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    back = to_rgb(ImageCms.applyTransform(rgb, forth))
    assert np.abs(np.asarray(back, np.int64) - np.asarray(rgb, np.int64)).max() <= 6


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: x[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda x: np.rot90(x, 1)),
    ],
)
def test_exif_orientation_is_applied(orientation, undo):
    values, exif = random_rgb(), Image.Exif()
    exif[0x0112] = orientation
    content = encode(Image.fromarray(values), exif=exif)
    np.testing.assert_array_equal(np.asarray(to_rgb(content)), undo(values))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_odd_metadata_costs_no_image(format, data):
    """Broken in any byte, it may tell another orientation, and nothing else."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "text", 1.5
    content = bytearray(exif.tobytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = bytes(content[: data.draw(st.integers(1, len(content)))])
    image = Image.new("RGB", (4, 6), (10, 200, 30))
    got = to_rgb(encode(image, format, exif=content))
    assert got.size in ((4, 6), (6, 4))
    np.testing.assert_allclose(got.getpixel((1, 1)), (10, 200, 30), atol=4)


def test_an_image_is_turned_once():
    values, exif = random_rgb(), Image.Exif()
    exif[0x0112] = 6
    content = encode(Image.fromarray(values), exif=exif, xmp=b'tiff:Orientation="6"')
    given = Image.open(io.BytesIO(content))
    for _ in range(2):
        np.testing.assert_array_equal(np.asarray(to_rgb(to_rgb(given))), np.rot90(values, -1))
    assert given.getexif()[0x0112] == 6, "the image given is left as it was"


def test_every_way_to_give_an_image(tmp_path):
    values = random_rgb()
    content = encode(Image.fromarray(values))
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("a.png", content)
    sources = [values, content, bytearray(content), path, str(path), {"bytes": content, "path": None}]
    sources += [{"bytes": None, "path": str(path)}, f"zip://a.png::{tmp_path / 'b.zip'}", Image.open(path)]
    for source in sources:
        np.testing.assert_array_equal(np.asarray(to_rgb(source)), values)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixel(content) == (255, 0, 0)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
@given(share=st.floats(0, 0.6))
@settings(max_examples=15, deadline=None)
def test_truncated_files_are_undecodable(format, share):
    content = encode(Image.fromarray(random_rgb(64, 64)), format)
    with pytest.raises(UndecodableImageError, match="could not be decoded"):
        to_rgb(content[: int(share * len(content))])


@given(content=st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_other_bytes_are_undecodable(content):
    with pytest.raises(UndecodableImageError):
        to_rgb(content)


def test_failures_name_the_file(tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("not an image")
    with pytest.raises(UndecodableImageError, match="notes.jpg"):
        to_rgb(path)
    with pytest.raises(UndecodableImageError, match="missing.png"):
        to_rgb(tmp_path / "missing.png")
    with pytest.raises(UndecodableImageError, match="neither bytes nor a path"):
        to_rgb({"bytes": None, "path": None})
    with pytest.raises(TypeError, match="expected a PIL image"):
        to_rgb(3)


@given(values=arrays(np.uint8, (8, 8, 3)))
@settings(max_examples=20, deadline=None)
def test_an_image_of_the_right_size_keeps_its_pixels(values):
    square = resize_to_square(Image.fromarray(values), 8)
    np.testing.assert_array_equal(square, values.transpose(2, 0, 1))


@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_any_size_becomes_a_square_and_a_constant_stays(width, height, size):
    square = resize_to_square(Image.new("RGB", (width, height), (10, 200, 30)), size)
    assert square.shape == (3, size, size) and square.dtype == np.uint8 and square.flags.c_contiguous
    assert (square == np.array([10, 200, 30], np.uint8).reshape(3, 1, 1)).all()


def test_the_centre_is_kept():
    values = np.zeros((20, 60, 3), dtype=np.uint8)
    values[:, 20:40] = 255
    assert (resize_to_square(Image.fromarray(values), 20) == 255).all()
    assert (resize_to_square(Image.fromarray(values.transpose(1, 0, 2)), 20) == 255).all()


def test_reduction_is_antialiased():
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 254
    assert np.abs(resize_to_square(Image.fromarray(stripes), 16).astype(int) - 127)[:, :, 1:-1].max() <= 2


def test_bad_sizes_and_modes_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        resize_to_square(Image.new("RGB", (2, 2)), 0)
    with pytest.raises(ValueError, match="mode L"):
        resize_to_square(Image.new("L", (2, 2)), 2)


# ---- files are data ----


def test_formats_are_those_of_a_list_and_named(monkeypatch, tmp_path):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *a, **k: pytest.fail("Ghostscript was called"))
    image = Image.fromarray(random_rgb(16, 16))
    for format in ("EPS", "DDS", "ICO", "PCX"):
        path = tmp_path / "photo.jpg"
        path.write_bytes(encode(image, format))
        with pytest.raises(
            UndecodableImageError, match=rf"photo.jpg.* begins as {format}, but .*PNG, JPEG, .* and .npy"
        ):
            to_rgb(path)
    unknown = b"\x00\x00\x00\x0dIHDR" + (2).to_bytes(4, "big") * 2 + b"\x08\x07\0\0\0"
    with pytest.raises(UndecodableImageError, match="begins as PNG, but is damaged"):
        to_rgb(png_of(2, 2, unknown))


def test_only_regular_files_are_opened_and_nothing_waits(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.jpg"))
        for place in (*(tmp_path / f"{kind}.jpg" for kind in ("pipe", "folder", "socket")), "/dev/zero", "a\0b"):
            found = []

            def read(place=place, found=found):
                with pytest.raises(UndecodableImageError, match="could not be decoded"):
                    to_rgb(place)
                found.append(True)

            reader = threading.Thread(target=read, daemon=True)
            reader.start()
            reader.join(20)
            assert found, f"{place} was waited for, or read"
    (tmp_path / "a.png").write_bytes(encode(Image.fromarray(random_rgb())))
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    assert to_rgb(tmp_path / "link.png").size == (7, 9)


@pytest.mark.parametrize("address", ["https://example.org/a.png", "file:///a.png", "zip://a.png::b.zip"])
def test_the_decoder_itself_fetches_nothing(address, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *a: pytest.fail("a connection was opened"))
    for image in (address, {"bytes": None, "path": address}):
        with pytest.raises(UndecodableImageError, match="nothing is fetched"):
            read_pixels(image)


def test_members_of_damaged_archives_are_undecodable(tmp_path):
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("a.png", encode(Image.fromarray(random_rgb())))
    content = (tmp_path / "b.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[:100])
    (tmp_path / "bad.zip").write_bytes(content[:60] + bytes(20) + content[80:])
    for address in ("zip://a.png::{}/cut.zip", "zip://a.png::{}/bad.zip", "zip://other.png::{}/b.zip", "nonsense://a"):
        with pytest.raises(UndecodableImageError, match="could not be decoded"):
            to_rgb(address.format(tmp_path))


def test_arrays_of_objects_are_not_unpickled():
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("a pickle was loaded",)

    buffer = io.BytesIO()
    np.save(buffer, np.array([[Trap()]], dtype=object), allow_pickle=True)
    with pytest.raises(UndecodableImageError, match="[Oo]bject arrays"):
        to_rgb(buffer.getvalue())


def test_images_above_the_limit_are_refused_from_their_header(monkeypatch):
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("the pixels were decoded"))
    with pytest.raises(UndecodableImageError, match="PIL.Image.MAX_IMAGE_PIXELS"):
        to_rgb(png_of(14_000, 14_000))
    monkeypatch.undo()
    content = encode(Image.fromarray(random_rgb(20, 30)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 599)
    for source in (content, npy(random_rgb(20, 30))):
        with pytest.warns(Image.DecompressionBombWarning) if source is content else nullcontext():
            with pytest.raises(UndecodableImageError, match="30 x 20 pixels, more than the 599 allowed"):
                to_rgb(source)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    assert to_rgb(content).size == (30, 20)


def test_large_images_are_decoded_one_at_a_time(monkeypatch):
    """So that threads do not add up their memory."""
    inside, most = [0], [0]

    def load(self, load=PngImagePlugin.PngImageFile.load):
        if not self.tile:
            return load(self)
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        inside[0] -= 1
        return load(self)

    def decode(content):
        threads = [threading.Thread(target=to_rgb, args=(content,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    content = encode(Image.fromarray(random_rgb(20, 30)))
    decode(content)
    assert most[0] > 1
    monkeypatch.setattr(image_decoding_sparsejepa, "_LARGE", 599)
    most[0] = 0
    decode(content)
    assert most[0] == 1


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, KeyError, IndexError, zlib.error, MemoryError])
def test_whatever_a_decoder_raises_makes_an_image_undecodable(error, monkeypatch):
    def load(self):
        raise error("broken")

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", load)
    with pytest.raises(UndecodableImageError, match=f"The 8?[0-9]+ bytes given .*{error.__name__}.*broken"):
        to_rgb(encode(Image.fromarray(random_rgb())))


def test_a_machine_without_memory_is_not_taken_for_a_damaged_file(monkeypatch):
    def lack(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lack)
    monkeypatch.setattr(image_decoding_sparsejepa.np, "empty", lack)
    with pytest.raises(MemoryError):
        to_rgb(encode(Image.fromarray(random_rgb())))


@pytest.mark.parametrize("zip_text", [True, False])
def test_text_of_any_length_costs_no_image(zip_text):
    values, texts, exif = random_rgb(), PngImagePlugin.PngInfo(), Image.Exif()
    exif[0x0112] = 6
    for index in range(1 if zip_text else 70):
        texts.add_text(f"workflow {index}", "node " * 300_000, zip=zip_text)
    content = encode(Image.fromarray(values), pnginfo=texts, exif=exif)
    np.testing.assert_array_equal(np.asarray(to_rgb(content)), np.rot90(values, -1))


@pytest.mark.parametrize("name", [b"tEXt", b"zTXt", b"iTXt", b"iCCP"])
def test_damaged_text_costs_no_image(name):
    values = random_rgb()
    content = encode(Image.fromarray(values))
    for text in (b"", b"\xff" * 9, b"key\0\0not compressed", b"key\0\1\0\0\0" + zlib.compress(b"text")[:-4]):
        for checksum in (zlib.crc32(name + text).to_bytes(4, "big"), b"1234"):
            chunk = len(text).to_bytes(4, "big") + name + text + checksum
            # Behind the header, which takes 25 bytes.
            damaged = content[:33] + chunk + content[33:]
            np.testing.assert_array_equal(np.asarray(to_rgb(damaged)), values)


# ---- ranges of values ----


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("value_range", [(0, 4095), (-1000, 1000), (10.5, 20.25)])
def test_a_range_maps_raw_values_of_every_type_alike(kind, value_range):
    raw = np.random.default_rng(0).uniform(-1500, 5000, (6, 7))
    values = (raw.clip(0, 255) if kind == np.uint8 else raw.clip(0, None) if kind == np.uint16 else raw).astype(kind)
    low, high = value_range
    expected = np.floor((values.astype(float).clip(low, high) - low) * (255 / (high - low)) + 0.5)
    for channels in (1, 3):
        got = read_pixels(values, channels, value_range)
        assert got.shape == (6, 7, channels) and got.dtype == np.uint8
        np.testing.assert_array_equal(got, np.broadcast_to(expected[..., None], got.shape))
        np.testing.assert_array_equal(read_pixels(npy(values), channels, value_range), got)
        np.testing.assert_array_equal(
            read_pixels(npy(values.astype(values.dtype.newbyteorder())), 1, value_range), got[..., :1]
        )
    wide = np.stack([values] * 13, axis=-1)
    np.testing.assert_array_equal(read_pixels(wide, 13, value_range), np.broadcast_to(expected[..., None], (6, 7, 13)))
    if kind != np.float64:
        for format in ("PNG", "TIFF") if kind in (np.uint8, np.uint16) else ("TIFF",):
            if kind != np.int16:
                np.testing.assert_array_equal(
                    read_pixels(encode(Image.fromarray(values), format), 1, value_range), got[..., :1]
                )


def test_a_12_bit_scan_keeps_its_levels():
    scan = (np.arange(64 * 64).reshape(64, 64) % 4096).astype(np.uint16)
    assert len(np.unique(read_pixels(encode(Image.fromarray(scan))))) == 17
    assert len(np.unique(read_pixels(encode(Image.fromarray(scan)), 3, (0, 4095)))) == 256


def test_a_range_leaves_transparency():
    rgba = np.random.default_rng(0).integers(0, 256, (6, 7, 4), dtype=np.uint8)
    content = encode(Image.fromarray(rgba))
    levels = read_pixels(rgba[..., :3], 3, (50, 100))
    got = read_pixels(content, 4, (50, 100))
    np.testing.assert_array_equal(got[..., :3], levels)
    np.testing.assert_array_equal(got[..., 3], rgba[..., 3])
    over_white = levels * (rgba[..., 3:] / 255) + 255 * (1 - rgba[..., 3:] / 255)
    np.testing.assert_allclose(read_pixels(content, 3, (50, 100)), over_white, atol=1)


def test_values_that_pil_scales_take_no_range():
    """They would be of 8 or 16 bits, whatever the range is of."""
    deep_png = png_of(2, 2, b"\x00\x00\x00\x0dIHDR" + (2).to_bytes(4, "big") * 2 + b"\x10\x02\0\0\0")
    # Of 16 bits, said to be of 12.
    jp2 = bytearray(encode(Image.fromarray(np.full((8, 8), 99, np.uint16)), "JPEG2000"))
    jp2[jp2.index(b"\xff\x51") + 40] = 11
    colours = [b"P6 1 1 65535\n" + bytes(6), b"P6 1 1 4095\n" + bytes(6), b"P3 1 1 100 1 2 3", b"P5 1 1 4095\n\0\1"]
    for content in (deep_png, bytes(jp2), *colours):
        assert read_pixels(content).shape[2] == 3
        with pytest.raises(UndecodableImageError, match="PIL scales its values"):
            read_pixels(content, 3, (0, 4095))
    for content in (b"P6 1 1 255\n" + bytes(3), b"P5 1 1 65535\n\0\1", b"P2 1 1 65535 0", b"P1 1 1 1"):
        assert read_pixels(content, 3, (0, 4095)).shape == (1, 1, 3)


@pytest.mark.parametrize(
    "value_range", [(1, 1), (2, 1), (0, float("nan")), (0, float("inf")), (0,), "ab", (-1e308, 1e308)]
)
def test_bad_ranges_are_refused_by_name(value_range):
    with pytest.raises(ValueError, match="value_range is .*expected two finite numbers"):
        read_pixels(random_rgb(), 3, value_range)


def test_the_range_of_a_data_set_is_measured():
    scans = [np.full((3, 4), value, np.uint16) for value in (300, 17, 4000)]
    scans[1][0, 0] = 5
    images = [
        *map(Image.fromarray, scans[:2]),
        encode(scans_image := Image.fromarray(scans[2])),
        b"damaged",
        scans_image,
    ]
    assert measure_value_range(images) == (5, 4000)
    assert measure_value_range([np.array([[-1000, 1000]], np.int32)]) == (-1000, 1000)
    assert measure_value_range([encode(Image.fromarray(np.array([[[3, 4, 250]]], np.uint8)))]) == (3, 250)
    clear = np.array([[[3, 4, 90, 0], [5, 6, 7, 255]]], np.uint8)
    assert measure_value_range([encode(Image.fromarray(clear))]) == (3, 90), "transparency is no value, nor is white"
    deep = np.arange(13.0).reshape(1, 1, 13)
    assert measure_value_range([npy(deep), deep], num_channels=13) == (0, 12)
    with pytest.raises(ValueError, match="none of the images"):
        measure_value_range([b"damaged"])
    with pytest.raises(ValueError, match="value_range is"):
        measure_value_range(scans[:1])


def test_values_that_fill_little_of_their_type_are_warned_of():
    scan = Image.fromarray((np.arange(64).reshape(8, 8) * 64).astype(np.uint16))
    rows = datasets.Dataset.from_dict({"image": [{"bytes": encode(scan), "path": None}] * 3})
    with pytest.warns(UserWarning, match="Give value_range"):
        ImageDataset(rows, 8)
    with pytest.warns(UserWarning, match="brightest pixel of the 3 images looked at is 16 of 255.* Give value_range"):
        warn_of_dark_images([scan, b"damaged", scan], PixelFormat(8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_dark_images([scan], PixelFormat(8, value_range=(0, 4095)))
        warn_of_dark_images([np.zeros((8, 8), np.uint8), random_rgb()], PixelFormat(8))
        warn_of_dark_images([np.full((8, 8), level, np.uint8) for level in range(9)], PixelFormat(8))


# ---- other numbers of channels ----


def test_channels_must_be_those_wanted():
    values = np.random.default_rng(0).integers(0, 65536, (6, 7, 13)).astype(np.uint16)
    expected = np.floor(values / 257 + 0.5)
    for source in (values, npy(values), npy(np.asfortranarray(values)), npy(values.transpose(2, 0, 1).copy())):
        np.testing.assert_array_equal(read_pixels(source, 13), expected)
        for other in (3, 12):
            with pytest.raises(UndecodableImageError, match=rf"13.* {other} are expected|1 to 4 channels"):
                read_pixels(source, other)
    with pytest.raises(UndecodableImageError, match="it has 3 channels, but 13 are expected"):
        read_pixels(encode(Image.fromarray(random_rgb())), 13)
    rgba = values[..., :4].astype(np.uint8)
    np.testing.assert_array_equal(read_pixels(npy(rgba), 4), rgba)
    for shape in ((5,), (0, 4), (2, 3, 4, 5)):
        with pytest.raises(UndecodableImageError, match="shape"):
            read_pixels(npy(np.zeros(shape)), 3)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_of_many_channels(planar, compression):
    tifffile = pytest.importorskip("tifffile")
    values = np.random.default_rng(0).integers(0, 4096, (6, 7, 13)).astype(np.uint16)
    buffer = io.BytesIO()
    stored = values if planar == "contig" else values.transpose(2, 0, 1)
    tifffile.imwrite(buffer, stored, photometric="minisblack", planarconfig=planar, compression=compression)
    expected = np.floor(values * (255 / 4095) + 0.5)
    np.testing.assert_array_equal(read_pixels(buffer.getvalue(), 13, (0, 4095)), expected)
    assert measure_value_range([buffer.getvalue()], num_channels=13) == (values.min(), values.max())
    for length in (400, 900, len(buffer.getvalue()) - 1):
        with pytest.raises(UndecodableImageError):
            read_pixels(buffer.getvalue()[:length], 13)
    for other in (1, 3, 4, 12):
        with pytest.raises(UndecodableImageError, match=f"13 channels, but {other} are expected"):
            read_pixels(buffer.getvalue(), other)


def test_tiff_of_wide_colours_and_of_a_channel_more():
    tifffile = pytest.importorskip("tifffile")
    values = np.random.default_rng(0).integers(0, 4096, (6, 7, 3)).astype(np.uint16)
    for stored in (values, values.astype(np.float32)):
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, stored, photometric="rgb")
        np.testing.assert_array_equal(
            read_pixels(buffer.getvalue(), 3, (0, 4095)), np.floor(values * (255 / 4095) + 0.5)
        )
    four, buffer = np.random.default_rng(0).integers(0, 256, (6, 7, 4), dtype=np.uint8), io.BytesIO()
    tifffile.imwrite(buffer, four, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(read_pixels(buffer.getvalue(), 4), four)
    np.testing.assert_array_equal(read_pixels(buffer.getvalue(), 3), four[..., :3])


def tiff(values: np.ndarray, **options) -> bytes:
    buffer = io.BytesIO()
    pytest.importorskip("tifffile").imwrite(buffer, values, **options)
    return buffer.getvalue()


def test_samples_that_are_no_colours_are_not_taken_for_such():
    with pytest.raises(UndecodableImageError, match="begins as TIFF"):
        read_pixels(tiff(np.zeros((6, 7), np.uint32), photometric="miniswhite"))
    # A fourth or a second band is no transparency unless the file says so.
    for count in (2, 4):
        bands = np.full((6, 7, count), 100, np.uint8)
        plain = tiff(bands, photometric="minisblack", planarconfig="contig")
        with pytest.raises(UndecodableImageError, match=f"it has {count} channels, but 3 are expected"):
            read_pixels(plain)
        np.testing.assert_array_equal(read_pixels(plain, count), bands)
    said = tiff(bands, photometric="minisblack", planarconfig="contig", extrasamples=[0, 0, "unassalpha"])
    assert read_pixels(said).max() == round(100 * 100 / 255 + 155)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("value_range", [None, (0, 4095)])
def test_wide_colours_in_planes(channels, value_range):
    """PIL takes the bytes of such planes for values."""
    planes = np.random.default_rng(0).integers(0, 4096, (channels, 6, 7)).astype(np.uint16)
    expected = np.floor(planes.transpose(1, 2, 0) * (255 / (value_range or (0, 65535))[1]) + 0.5)
    content = tiff(planes, photometric="rgb", planarconfig="separate", extrasamples=[0] * (channels - 3))
    np.testing.assert_array_equal(read_pixels(content, channels, value_range), expected)
    np.testing.assert_array_equal(read_pixels(content, 3, value_range), expected[..., :3])


@pytest.mark.parametrize("kind", ["int8", "int16", "int32", "uint32", "int64", "float16", "float32", "float64"])
def test_tiff_values_of_every_type(kind):
    limits = np.iinfo(kind) if kind[0] in "ui" else np.finfo("float16")
    ends = max(float(limits.min), -(2.0**40)), min(float(limits.max), 2.0**40)
    values = np.linspace(*ends, 42).reshape(6, 7).astype(kind)
    expected = np.floor((values.astype(float) - ends[0]) * (255 / (ends[1] - ends[0])) + 0.5)
    content = tiff(values)
    np.testing.assert_allclose(measure_value_range([content]), ends, rtol=1e-6)
    np.testing.assert_array_equal(read_pixels(content, 1, ends)[..., 0], expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_comes_upright_whoever_reads_it(orientation):
    values = np.random.default_rng(0).integers(0, 256, (6, 7, 3)).astype(np.uint16)
    tags = [(274, "H", 1, orientation, True)]
    by_pil = read_pixels(tiff(values.astype(np.uint8), photometric="rgb", extratags=tags))
    np.testing.assert_array_equal(read_pixels(tiff(values, photometric="rgb", extratags=tags), 3, (0, 255)), by_pil)


def test_grey_pages_are_channels_where_as_many_are_expected():
    pages = np.random.default_rng(0).integers(0, 256, (13, 6, 7), dtype=np.uint8)
    content = tiff(pages, photometric="minisblack")
    np.testing.assert_array_equal(read_pixels(content, 13), pages.transpose(1, 2, 0))
    np.testing.assert_array_equal(read_pixels(content, 1)[..., 0], pages[0])
    with pytest.raises(UndecodableImageError, match="it has 1 channels.* but 12 are expected"):
        read_pixels(content, 12)


def test_tiff_that_pil_cannot_read_says_what_may(monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UndecodableImageError, match="begins as TIFF.*pip install tifffile"):
        read_pixels(encode(Image.fromarray(random_rgb()), "TIFF")[:60])
    with pytest.raises(UndecodableImageError, match="no TIFF of 13 channels.*pip install tifffile"):
        read_pixels(encode(Image.fromarray(random_rgb()), "TIFF"), 13)
