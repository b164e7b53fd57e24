# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Decoding of every image mode, of damaged files, and the resize to a square."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageCms

from sparsejepa_hf.data import UndecodableImageError, resize_to_square, to_rgb


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


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
