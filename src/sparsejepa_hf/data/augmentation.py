# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Batched augmentation on the device of the batch, each sample's draws from its own key."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..counter_rng import uniform
from .images import sides_of


# Rec. 601 luma, as in torchvision and PIL.
_LUMA = (0.299, 0.587, 0.114)
# Each use has its own place, so switching one off leaves the others' draws as they are.
_FLIP, _TOP, _LEFT, _AREA, _RATIO, _BRIGHTNESS, _CONTRAST, _SATURATION = range(8)
_NUM_DRAWS = 8
# float32 adds integers exactly below 2**24, here 256 x 256 pixels of at most 255.
_EXACT_SUM_PIXELS = 2**16
# The same holds for a row of 256 pixels in 256ths: 256 x 255 x 256 is below 2**24.
_EXACT_SUM_COLUMNS = 256


def normalize_images(pixel_values: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """`(x / 255 - mean) / std` for uint8 pixels, `(x - mean) / std` for floats in [0, 1].

    Args:
        pixel_values: uint8 or floating, (B, C, H, W) or (C, H, W).
        mean: of each of the C channels, on the scale from 0 to 1.
        std: of each channel, on the same scale, positive.

    Returns:
        float32 of the shape of `pixel_values`, on its device.

    Raises:
        TypeError: `pixel_values` is neither uint8 nor floating.
        ValueError: `mean` and `std` are of another number of channels than the images.
    """
    if pixel_values.dtype != torch.uint8 and not pixel_values.is_floating_point():
        raise TypeError(f"pixel_values has type {pixel_values.dtype}; expected uint8, or floats in [0, 1].")
    if not len(mean) == len(std) == pixel_values.shape[-3]:
        raise ValueError(
            f"The images have {pixel_values.shape[-3]} channels, but there are {len(mean)} means and {len(std)} "
            "standard deviations; expected one of each a channel."
        )
    scale = 255.0 if pixel_values.dtype == torch.uint8 else 1.0
    return _normalize_(pixel_values.to(torch.float32, copy=True), mean, std, scale)


def _normalize_(pixels: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor, scale: float) -> Tensor:
    """`(pixels / scale - mean) / std` in place: memory traffic is what augmentation costs."""
    mean = torch.as_tensor(mean, dtype=torch.float32, device=pixels.device).view(-1, 1, 1)
    inverse_std = 1.0 / torch.as_tensor(std, dtype=torch.float32, device=pixels.device).view(-1, 1, 1)
    return pixels.mul_(inverse_std / scale).sub_(mean * inverse_std)


class BatchAugmentation(nn.Module):
    """Crop, flip, colour jitter and normalisation of a batch, without a loop over samples.

    A sample's result depends on its pixels and its key alone, whatever the batch around it. In this order:

    1. `crop="pad"`: a window of the image's size out of the image extended by `crop_padding` pixels on each side by
       reflection, at a uniform integer offset; pixels are copied exactly. Needs images of `image_size`.
       `crop="resized"`: a random box with area `crop_scale` of the image and an aspect ratio (width / height) that
       is the result's times a factor log-uniform in `crop_ratio`, sides rounded to pixels and cut to the image's,
       position uniform, resized bilinearly. There is no antialiasing: load images at about `image_size`, where the
       box is mostly enlarged.
       `crop="none"`: no crop. Needs images of `image_size`.
    2. A horizontal flip with probability `horizontal_flip`.
    3. With `color_jitter` j > 0: brightness, contrast and saturation factors, each uniform in [1 - j, 1 + j],
       applied in that order as in torchvision, but clamped to [0, 1] once, at the end. Saturation is of colours: of
       three channels, and of the first three of four. The contrast of those is about the mean of their grey, that
       of any other number about the mean over the channels.
    4. [`normalize_images`].

    Args:
        image_size: pixels of the result: the side of a square, or height and width.
        image_mean: mean of each channel, on the scale from 0 to 1.
        image_std: standard deviation of each channel, on the same scale.
        crop: kind of crop.
        crop_padding: pixels added on each side by `"pad"`, at least 0 and below the shorter side.
        crop_scale: smallest and largest area of the box of `"resized"`, as fractions of the image in (0, 1].
        crop_ratio: smallest and largest aspect ratio of that box, relative to the result's.
        horizontal_flip: probability from 0 to 1.
        color_jitter: strength j from 0 (none) to 1.

    Raises:
        ValueError: an argument is out of its range.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        image_size: int | Sequence[int],
        image_mean: Sequence[float],
        image_std: Sequence[float],
        *,
        crop: Literal["pad", "resized", "none"] = "pad",
        crop_padding: int = 4,
        crop_scale: tuple[float, float] = (0.3, 1.0),
        crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
        horizontal_flip: float = 0.5,
        color_jitter: float = 0.0,
    ) -> None:
        super().__init__()
        if crop not in ("pad", "resized", "none"):
            raise ValueError(f"crop is {crop!r}; expected 'pad', 'resized' or 'none'.")
        self.image_sides = sides_of(image_size)
        if crop == "pad" and not 0 <= crop_padding < min(self.image_sides):
            raise ValueError(f"crop_padding is {crop_padding}; expected at least 0 and below image_size {image_size}.")
        if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise ValueError(f"crop_scale is {crop_scale}; expected two increasing fractions in (0, 1].")
        if not 0 < crop_ratio[0] <= crop_ratio[1]:
            raise ValueError(f"crop_ratio is {crop_ratio}; expected two increasing positive numbers.")
        if not 0 <= horizontal_flip <= 1:
            raise ValueError(f"horizontal_flip is {horizontal_flip}; expected a probability from 0 to 1.")
        if not 0 <= color_jitter <= 1:
            raise ValueError(f"color_jitter is {color_jitter}; expected a strength from 0 to 1.")
        self.crop = crop
        self.crop_padding = crop_padding
        self.crop_scale = tuple(crop_scale)
        self.crop_ratio = tuple(crop_ratio)
        self.horizontal_flip = horizontal_flip
        self.color_jitter = color_jitter
        self.register_buffer("mean", torch.tensor(list(image_mean), dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(list(image_std), dtype=torch.float32), persistent=False)

    @torch.no_grad()
    def forward(self, pixel_values: Tensor, keys: Tensor) -> Tensor:
        """Augments a batch.

        Args:
            pixel_values: uint8 (B, C, H, W), with C the number of means.
            keys: int64 (B,), one for each sample (see `counter_rng.stream_keys`); moved to the device of the pixels.

        Returns:
            float32 (B, C, height, width), normalised, on the device of `pixel_values`.

        Raises:
            TypeError: the pixels are not uint8.
            ValueError: the shapes do not fit each other, or not `image_size` where the crop needs that.
        """
        shape = tuple(pixel_values.shape)
        if pixel_values.dtype != torch.uint8:
            raise TypeError(f"pixel_values has type {pixel_values.dtype}; expected uint8.")
        channels = len(self.mean)
        if len(shape) != 4 or shape[1] != channels or keys.shape != shape[:1]:
            raise ValueError(
                f"pixel_values has shape {shape} and keys {tuple(keys.shape)}; expected (B, {channels}, H, W) and "
                "(B,)."
            )
        if self.crop != "resized" and shape[2:] != self.image_sides:
            height, width = self.image_sides
            raise ValueError(
                f"pixel_values has {shape[2]} x {shape[3]} pixels; crop={self.crop!r} expects {height} x "
                f"{width}. Load the images at that size, or use crop='resized'."
            )
        if self.mean.device != pixel_values.device:
            self.to(pixel_values.device)
        draws = uniform(keys.to(pixel_values.device), _NUM_DRAWS)
        flip = draws[:, _FLIP] < self.horizontal_flip
        if self.crop == "resized":
            pixels = self._resized_crop(pixel_values, draws, flip)
        else:
            pixels = self._shifted_crop(pixel_values, draws, flip)
        is_exact = not pixels.is_floating_point() and pixels.shape[2] * pixels.shape[3] <= _EXACT_SUM_PIXELS
        pixels = pixels.float()
        if not self.color_jitter:
            return _normalize_(pixels, self.mean, self.std, 255.0)
        return _normalize_(self._jitter_(pixels, draws, is_exact), self.mean, self.std, 1.0)

    def _shifted_crop(self, pixels: Tensor, draws: Tensor, flip: Tensor) -> Tensor:
        (height, width), padding = self.image_sides, self.crop_padding if self.crop == "pad" else 0
        down, across = (torch.arange(side, device=pixels.device) for side in (height, width))
        columns = torch.where(flip[:, None], width - 1 - across, across)
        if not padding:
            return _gather(pixels, down.expand(len(flip), -1), columns) if self.horizontal_flip else pixels
        offsets = (draws[:, _TOP : _LEFT + 1] * (2 * padding + 1)).long() - padding
        rows = _reflect(down + offsets[:, :1], height)
        return _gather(pixels, rows, _reflect(columns + offsets[:, 1:], width))

    def _resized_crop(self, pixels: Tensor, draws: Tensor, flip: Tensor) -> Tensor:
        height, width = pixels.shape[-2:]
        top, left, box_height, box_width = self.crop_boxes(draws, height, width).unbind(1)
        rows = _resize_places(top, box_height, self.image_sides[0])
        columns = _resize_places(left, box_width, self.image_sides[1])
        columns = torch.where(flip[:, None], columns.flip(1), columns)
        across, down = (2 * columns[:, None, :] + 1) / width - 1, (2 * rows[:, :, None] + 1) / height - 1
        grid = torch.stack(torch.broadcast_tensors(across, down), dim=-1)
        with torch.autocast(pixels.device.type, enabled=False):
            return nn.functional.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)

    def crop_boxes(self, draws: Tensor, height: int, width: int) -> Tensor:
        """The boxes of `"resized"` for `draws` (B, 8) in [0, 1): float32 (B, 4) of whole pixels, top, left, height
        and width."""
        low, high = self.crop_scale
        area = (low + (high - low) * draws[:, _AREA]) * (height * width)
        low, high = (math.log(ratio) for ratio in self.crop_ratio)
        of_result = self.image_sides[1] / self.image_sides[0]
        root_ratio = torch.exp(0.5 * (low + (high - low) * draws[:, _RATIO])) * math.sqrt(of_result)
        box_height = (area.sqrt() / root_ratio).round().clamp(1, height)
        box_width = (area.sqrt() * root_ratio).round().clamp(1, width)
        top = (draws[:, _TOP] * (height - box_height + 1)).floor()
        left = (draws[:, _LEFT] * (width - box_width + 1)).floor()
        return torch.stack([top, left, box_height, box_width], dim=1)

    def _jitter_(self, pixels: Tensor, draws: Tensor, is_exact: bool) -> Tensor:
        """Jitters float pixels from 0 to 255 in place, to values from 0 to 1."""
        factors = 1 - self.color_jitter + 2 * self.color_jitter * draws[:, _BRIGHTNESS:]
        brightness, contrast, saturation = factors.view(-1, 3, 1, 1).unbind(1)
        if (num_colors := _num_colors(pixels)) is None:
            saturation = torch.ones_like(saturation)
        colors = pixels[:, :num_colors]
        mean_grey = _grey(_channel_means(colors, is_exact))
        # Without clamps in between, the three are one affine map: x -> scale * x + grey_scale * grey(x) + shift.
        scale = saturation * contrast * brightness / 255.0
        grey_scale = (1 - saturation) * contrast * brightness / 255.0
        shift = (1 - contrast) * brightness * mean_grey / 255.0
        grey = _grey(colors).mul_(grey_scale).add_(shift)
        if num_colors is not None and pixels.shape[1] > num_colors:
            # What is no colour has no saturation.
            pixels[:, num_colors:].mul_((contrast * brightness / 255.0).unsqueeze(1)).add_(shift.unsqueeze(1))
        colors.mul_(scale.unsqueeze(1)).add_(grey.unsqueeze(1))
        return pixels.clamp_(0.0, 1.0)


def _reflect(places: Tensor, size: int) -> Tensor:
    """Reflects places from -(size - 1) to 2 (size - 1) about the centres of the first and the last pixel."""
    return (size - 1) - ((size - 1) - places.abs()).abs()


def _gather(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """`out[b, c, i, j] = pixels[b, c, rows[b, i], columns[b, j]]`."""
    batch, channels, height, width = pixels.shape
    places = (rows.unsqueeze(2) * width + columns.unsqueeze(1)).view(batch, 1, -1)
    taken = pixels.reshape(batch, channels, -1).gather(2, places.expand(-1, channels, -1))
    return taken.view(batch, channels, rows.shape[1], columns.shape[1])


def _resize_places(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Where `size` output pixels lie along a box: float32 (B, size), in pixels, kept inside the box's pixels."""
    steps = torch.arange(size, device=start.device, dtype=torch.float32) + 0.5
    inside = steps * (length[:, None] / size) - 0.5
    return start[:, None] + torch.minimum(inside.clamp(min=0), length[:, None] - 1)


def _num_colors(pixels: Tensor) -> int | None:
    """How many of the first channels of (B, C, H, W) are red, green and blue; None where none is."""
    return len(_LUMA) if pixels.shape[1] in (len(_LUMA), len(_LUMA) + 1) else None


def _grey(pixels: Tensor) -> Tensor:
    """Luma of (B, 3, H, W), or the mean of any other number of channels, as (B, H, W)."""
    if pixels.shape[1] != len(_LUMA):
        return pixels.mean(dim=1)
    grey = pixels[:, 0] * _LUMA[0]
    return grey.add_(pixels[:, 1], alpha=_LUMA[1]).add_(pixels[:, 2], alpha=_LUMA[2])


def _channel_means(pixels: Tensor, is_exact: bool) -> Tensor:
    """Mean of each channel, float32 (B, C, 1, 1), the same in whatever order, hence batch, the pixels are summed."""
    count = pixels.shape[2] * pixels.shape[3]
    if is_exact:
        return pixels.sum((2, 3), keepdim=True) / count
    fixed_point = (pixels * 256.0).round_()
    if pixels.shape[3] <= _EXACT_SUM_COLUMNS:
        # The same integers with an eighth of the memory traffic.
        fixed_point = fixed_point.sum(3, keepdim=True)
    return (fixed_point.to(torch.int64).sum((2, 3), keepdim=True) / (256.0 * count)).float()
