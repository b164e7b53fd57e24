# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Batched augmentation against a plain reference for one image at a time, driven by the same numbers."""

import math

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsejepa_hf.counter_rng import stream_keys, uniform
from sparsejepa_hf.data import BatchAugmentation, normalize_images


MEAN, STD = (0.48, 0.45, 0.4), (0.25, 0.24, 0.26)
LUMA = torch.tensor([0.299, 0.587, 0.114])


def batch_of(count: int, size: int | tuple = 32, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    height, width = size if isinstance(size, tuple) else (size, size)
    pixels = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)
    return pixels, stream_keys(seed, 3, torch.arange(count), 5)


def reference(image: torch.Tensor, draws: list[float], augmentation: BatchAugmentation) -> torch.Tensor:
    """One image (3, H, W), step by step with torchvision and numpy."""
    if augmentation.crop == "pad":
        padding, (height, width) = augmentation.crop_padding, augmentation.image_sides
        padded = np.pad(image.numpy(), ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
        top, left = (int(draw * (2 * padding + 1)) for draw in draws[1:3])
        image = torch.from_numpy(padded[:, top : top + height, left : left + width].copy())
    image = image.float()
    if augmentation.crop == "resized":
        box = [int(x) for x in augmentation.crop_boxes(torch.tensor([draws]), *image.shape[-2:])[0]]
        image = F.resized_crop(image, *box, size=list(augmentation.image_sides), antialias=False)
    image = F.horizontal_flip(image) if draws[0] < augmentation.horizontal_flip else image
    image = image / 255
    if augmentation.color_jitter:
        image = jitter(image, [1 + augmentation.color_jitter * (2 * draw - 1) for draw in draws[5:8]])
    return F.normalize(image, MEAN, STD)


def jitter(image: torch.Tensor, factors: list[float]) -> torch.Tensor:
    brightness, contrast, saturation = factors
    image = image.double() * brightness
    image = contrast * image + (1 - contrast) * torch.einsum("chw,c->hw", image, LUMA.double()).mean()
    image = saturation * image + (1 - saturation) * torch.einsum("chw,c->hw", image, LUMA.double())
    return image.clamp(0, 1).float()


def expected(augmentation: BatchAugmentation, pixels: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    draws = uniform(keys, 8).tolist()
    return torch.stack([reference(*pair, augmentation) for pair in zip(pixels, draws, strict=True)])


@pytest.mark.parametrize("crop", ["pad", "resized", "none"])
@pytest.mark.parametrize("color_jitter", [0.0, 0.3])
@pytest.mark.parametrize("horizontal_flip", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", [32, (16, 40)])
def test_equals_the_reference(crop, color_jitter, horizontal_flip, size):
    augmentation = BatchAugmentation(
        size, MEAN, STD, crop=crop, color_jitter=color_jitter, horizontal_flip=horizontal_flip
    )
    pixels, keys = batch_of(24, size)
    in_01 = (augmentation(pixels, keys) - expected(augmentation, pixels, keys)) * torch.tensor(STD).view(3, 1, 1)
    # grid_sample's normalised coordinates cost a few millionths of a pixel.
    assert in_01.abs().max() < (2e-5 if crop == "resized" else 1e-6)


@pytest.mark.parametrize("padding", [0, 1, 4, 31])
def test_padded_crops_and_flips_copy_whole_pixels(padding):
    augmentation = BatchAugmentation(32, (0, 0, 0), (1 / 255,) * 3, crop_padding=padding)
    pixels, keys = batch_of(40)
    result = augmentation(pixels, keys)
    draws = uniform(keys, 8).tolist()
    for image, draw, got in zip(pixels.numpy(), draws, result, strict=True):
        padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
        top, left = (int(value * (2 * padding + 1)) for value in draw[1:3])
        window = padded[:, top : top + 32, left : left + 32]
        window = window[:, :, ::-1] if draw[0] < 0.5 else window
        torch.testing.assert_close(got, torch.from_numpy(window.astype(np.float32)), rtol=1e-6, atol=0)


@pytest.mark.parametrize("crop", ["pad", "resized", "none"])
@pytest.mark.parametrize("size", [32, 40, (24, 36)])
@given(order=st.permutations(range(13)), cut=st.integers(1, 12))
@settings(max_examples=15, deadline=None)
def test_a_sample_depends_on_its_own_key_alone(crop, size, order, cut):
    augmentation = BatchAugmentation(size, MEAN, STD, crop=crop, color_jitter=0.3)
    pixels, keys = batch_of(13, size)
    whole = augmentation(pixels, keys)
    order = torch.tensor(order)
    assert torch.equal(augmentation(pixels[order], keys[order]), whole[order])
    assert torch.equal(
        torch.cat([augmentation(pixels[:cut], keys[:cut]), augmentation(pixels[cut:], keys[cut:])]), whole
    )
    assert torch.equal(augmentation(pixels[cut : cut + 1], keys[cut : cut + 1]), whole[cut : cut + 1])


def test_large_images_too_do_not_depend_on_the_batch():
    augmentation = BatchAugmentation(288, MEAN, STD, color_jitter=0.3)
    pixels, keys = batch_of(3, 288)
    whole = augmentation(pixels, keys)
    assert torch.equal(torch.cat([augmentation(pixels[i : i + 1], keys[i : i + 1]) for i in range(3)]), whole)


def test_different_keys_give_different_results_and_leave_the_input_alone():
    augmentation = BatchAugmentation(32, MEAN, STD, color_jitter=0.2)
    pixels, keys = batch_of(2)
    pixels[1] = pixels[0]
    before = pixels.clone()
    first, second = augmentation(pixels, keys)
    assert not torch.equal(first, second)
    assert torch.equal(pixels, before)


def test_flips_offsets_and_factors_are_uniform():
    count, padding = 20_000, 2
    ramp = torch.arange(8, dtype=torch.uint8) * 20
    pixels = (ramp.view(1, 1, 8, 1) + torch.arange(8, dtype=torch.uint8).view(1, 1, 1, 8)).expand(count, 3, 8, 8)
    keys = stream_keys(0, 0, torch.arange(count), 1)
    augmentation = BatchAugmentation(8, (0, 0, 0), (1 / 255,) * 3, crop_padding=padding)
    result = augmentation(pixels.contiguous(), keys)[:, 0].round().long()
    rows, columns = result // 20, result % 20
    flipped = columns[:, 4, 3] > columns[:, 4, 4]
    assert abs(flipped.float().mean() - 0.5) < 5 * 0.5 / math.sqrt(count)
    middle = torch.where(flipped, columns[:, 4, 4], columns[:, 4, 3])
    for places in (rows[:, 4, 4], middle):
        shares = torch.bincount(places - places.min()).float() / count
        assert len(shares) == 2 * padding + 1
        assert (shares - 1 / len(shares)).abs().max() < 5 * math.sqrt(0.16 / count)


@given(
    height=st.integers(8, 70),
    width=st.integers(8, 70),
    low=st.floats(0.05, 1.0),
    draws=st.lists(st.floats(0, 1 - 2**-24, width=32), min_size=8, max_size=8),
)
@settings(max_examples=100, deadline=None)
def test_resized_boxes_lie_in_the_image_with_the_stated_area_and_shape(height, width, low, draws):
    augmentation = BatchAugmentation(16, MEAN, STD, crop="resized", crop_scale=(low, 1.0))
    box = augmentation.crop_boxes(torch.tensor([draws]), height, width)[0]
    assert torch.equal(box, box.round())
    top, left, box_height, box_width = box.tolist()
    assert 0 <= top <= height - box_height and 0 <= left <= width - box_width
    assert box_height >= 1 and box_width >= 1
    if box_height < height and box_width < width:
        assert (box_height + 0.5) * (box_width + 0.5) >= low * height * width * (1 - 1e-5)
        ratio_slack = (1 + 0.5 / (box_width - 0.5)) * (1 + 0.5 / (box_height - 0.5)) * (1 + 1e-5)
        assert 3 / 4 / ratio_slack <= box_width / box_height <= 4 / 3 * ratio_slack


def test_the_whole_image_as_box_only_normalises():
    augmentation = BatchAugmentation(
        32, MEAN, STD, crop="resized", crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), horizontal_flip=0.0
    )
    pixels, keys = batch_of(4)
    torch.testing.assert_close(augmentation(pixels, keys), normalize_images(pixels, MEAN, STD), rtol=0, atol=1e-4)


def test_resized_takes_other_sizes_than_its_own():
    augmentation = BatchAugmentation(16, MEAN, STD, crop="resized")
    pixels, keys = torch.full((5, 3, 40, 24), 100, dtype=torch.uint8), batch_of(5)[1]
    result = augmentation(pixels, keys)
    assert result.shape == (5, 3, 16, 16)
    flat = normalize_images(pixels[:, :, :16, :16], MEAN, STD)
    torch.testing.assert_close(result, flat, rtol=0, atol=1e-5)


@given(draws=st.lists(st.floats(0, 1 - 2**-24, width=32), min_size=8, max_size=8), grey=st.integers(0, 255))
@settings(max_examples=50, deadline=None)
def test_jitter_of_a_grey_image_is_its_brightness(draws, grey):
    augmentation = BatchAugmentation(4, (0, 0, 0), (1, 1, 1), crop="none", color_jitter=0.4)
    pixels = torch.full((1, 3, 4, 4), float(grey))
    brightness = 1 + 0.4 * (2 * draws[5] - 1)
    result = augmentation._jitter_(pixels, torch.tensor([draws]), True)
    torch.testing.assert_close(result, torch.full_like(result, min(1.0, brightness * grey / 255)), rtol=0, atol=2e-6)


def test_switching_one_part_off_keeps_the_draws_of_the_others():
    pixels, keys = batch_of(16)
    flipped = BatchAugmentation(32, MEAN, STD, crop="none")(pixels, keys)
    cropped = BatchAugmentation(32, MEAN, STD, crop="pad", crop_padding=0)(pixels, keys)
    assert torch.equal(flipped, cropped)


def test_normalize_images():
    pixels = batch_of(4)[0]
    plain = (pixels.double() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(normalize_images(pixels, MEAN, STD), plain.float(), rtol=0, atol=1e-6)
    floats = (pixels.float() / 255).requires_grad_(False)
    before = floats.clone()
    torch.testing.assert_close(normalize_images(floats, MEAN, STD), plain.float(), rtol=0, atol=1e-6)
    assert torch.equal(floats, before)
    torch.testing.assert_close(normalize_images(pixels[0], MEAN, STD), plain[0].float(), rtol=0, atol=1e-6)
    with pytest.raises(TypeError, match="expected uint8"):
        normalize_images(pixels.long(), MEAN, STD)


def test_no_augmentation_equals_evaluation():
    pixels, keys = batch_of(8)
    augmentation = BatchAugmentation(32, MEAN, STD, crop="none", horizontal_flip=0.0)
    assert torch.equal(augmentation(pixels, keys), normalize_images(pixels, MEAN, STD))
    assert not list(augmentation.parameters()) and not augmentation.state_dict()


@pytest.mark.parametrize("crop", ["pad", "resized", "none"])
@pytest.mark.parametrize("channels", [1, 4, 6])
def test_crop_and_flip_do_to_any_channel_what_they_do_to_those_of_rgb(crop, channels):
    pixels, keys = batch_of(8)
    extra = torch.cat([pixels, pixels.flip(1)], dim=1)[:, :channels]
    mean, std = [0.48, 0.45, 0.4, 0.4, 0.4, 0.4][:channels], [0.25, 0.24, 0.26, 0.26, 0.26, 0.26][:channels]
    found = BatchAugmentation(32, mean, std, crop=crop)(extra, keys)
    colours = BatchAugmentation(32, MEAN, STD, crop=crop)(pixels, keys)
    shared = min(channels, 3)
    torch.testing.assert_close(found[:, :shared], colours[:, :shared], rtol=0, atol=1e-6)
    assert found.shape[1] == channels


def test_one_channel_is_jittered_as_the_grey_image_of_three(crop="pad"):
    grey, keys = batch_of(8)[0][:, :1], batch_of(8)[1]
    one = BatchAugmentation(32, [0.4], [0.3], crop=crop, color_jitter=0.4)(grey, keys)
    three = BatchAugmentation(32, [0.4] * 3, [0.3] * 3, crop=crop, color_jitter=0.4)(grey.repeat(1, 3, 1, 1), keys)
    torch.testing.assert_close(one, three[:, :1], rtol=0, atol=1e-5)


def test_the_colours_of_four_channels_are_jittered_as_rgb_and_the_fourth_without_saturation():
    pixels, keys = batch_of(8)
    four = torch.cat([pixels, pixels[:, :1].flip(3)], dim=1)
    options = {"crop": "none", "horizontal_flip": 0.0, "color_jitter": 0.4}
    found = BatchAugmentation(32, [0.0] * 4, [1.0] * 4, **options)(four, keys)
    assert torch.equal(found[:, :3], BatchAugmentation(32, [0.0] * 3, [1.0] * 3, **options)(pixels, keys))
    for image, draw, got in zip(four, uniform(keys, 8).tolist(), found, strict=True):
        brightness, contrast, _ = (1 + 0.4 * (2 * value - 1) for value in draw[5:8])
        bright = image.double() / 255 * brightness
        grey = torch.einsum("chw,c->hw", bright[:3], LUMA.double()).mean()
        expected_fourth = (contrast * bright[3] + (1 - contrast) * grey).clamp(0, 1).float()
        torch.testing.assert_close(got[3], expected_fourth, rtol=0, atol=1e-6)


def test_the_box_of_a_rectangle_keeps_its_shape():
    """With one ratio, the image is enlarged alike in both directions, to the rounding of the box to pixels."""
    augmentation = BatchAugmentation((32, 96), MEAN, STD, crop="resized", crop_ratio=(1.0, 1.0))
    boxes = augmentation.crop_boxes(torch.rand(200, 8), 320, 960)
    assert ((boxes[:, 3] / boxes[:, 2] - 3).abs() < 0.02).all()


def test_many_channels_are_jittered_each_by_itself_but_for_a_common_grey_level():
    """Saturation would mix them; with equal channels nothing is left of the mean over channels."""
    grey, keys = batch_of(8)[0][:, :1], batch_of(8)[1]
    options = {"crop": "none", "color_jitter": 0.4}
    one = BatchAugmentation(32, [0.4], [0.3], **options)(grey, keys)
    five = BatchAugmentation(32, [0.4] * 5, [0.3] * 5, **options)(grey.repeat(1, 5, 1, 1), keys)
    torch.testing.assert_close(five, one.expand_as(five), rtol=0, atol=1e-5)
    pixels = torch.cat([grey, grey.flip(0), grey.flip(2), grey.flip(3), grey.flip(0, 2)], dim=1)
    swapped = BatchAugmentation(32, [0.4] * 5, [0.3] * 5, **options)(pixels.flip(1), keys).flip(1)
    torch.testing.assert_close(
        BatchAugmentation(32, [0.4] * 5, [0.3] * 5, **options)(pixels, keys), swapped, rtol=0, atol=1e-5
    )


def test_images_of_another_number_of_channels_than_there_are_means_are_refused():
    """Broadcasting would make three channels of one."""
    grey, keys = torch.zeros(2, 1, 32, 32, dtype=torch.uint8), batch_of(2)[1]
    with pytest.raises(ValueError, match="1 channels, but there are 3 means"):
        normalize_images(grey, MEAN, STD)
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
        BatchAugmentation(32, MEAN, STD)(grey, keys)


@pytest.mark.parametrize(
    "options",
    [
        {"crop": "random"},
        {"crop_padding": 32},
        {"crop_padding": -1},
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.5, 0.3)},
        {"crop_ratio": (0.0, 1.0)},
        {"horizontal_flip": 1.5},
        {"color_jitter": -0.1},
    ],
)
def test_arguments_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is .*expected"):
        BatchAugmentation(32, MEAN, STD, **options)


def test_wrong_batches_are_refused():
    augmentation = BatchAugmentation(32, MEAN, STD)
    pixels, keys = batch_of(2)
    with pytest.raises(TypeError, match="expected uint8"):
        augmentation(pixels.float(), keys)
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\) and \(B,\)"):
        augmentation(pixels, keys[:1])
    with pytest.raises(ValueError, match="Load the images at that size"):
        augmentation(pixels[:, :, :16, :16], keys)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("crop", ["pad", "resized", "none"])
def test_cuda_equals_cpu(crop):
    pixels, keys = batch_of(32)
    on_cpu = BatchAugmentation(32, MEAN, STD, crop=crop, color_jitter=0.3)(pixels, keys)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        on_cuda = BatchAugmentation(32, MEAN, STD, crop=crop, color_jitter=0.3)(pixels.cuda(), keys)
    torch.testing.assert_close(on_cuda.cpu(), on_cpu, rtol=0, atol=1e-4 if crop == "resized" else 1e-5)
