# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What textured scenes are made of: stripes of any phase and colours, clutter behind them, uneven light and grain."""

from collections.abc import Mapping

import numpy as np


# The way that stripes run, in degrees anticlockwise from level, as they are seen.
ANGLES = tuple(range(0, 180, 15))
TEXTURES = tuple(f"stripes at {angle}°" for angle in ANGLES)

# Of how many uniform draws a surface, a wave of clutter and a background are made.
NUM_SURFACE_DRAWS, _NUM_WAVES, _NUM_WAVE_DRAWS = 8, 6, 6
NUM_BACKGROUND_DRAWS = 5 + _NUM_WAVES * _NUM_WAVE_DRAWS
GRAIN = 0.4
# In pixels of an image of 32 pixels a side; they grow with the side.
_PERIODS, _CLUTTER_PERIODS = (4.0, 7.0), (4.0, 16.0)
_MAX_TILT = 3.0
_CONTRASTS = (0.13, 0.3)
_COLOR_SPREAD, _CLUTTER, _MAX_LIGHT = 0.2, 0.08, 0.15
# Edges of stripes are this steep: sharp to the eye, and smooth enough to be sampled at the pixels' centres.
_STEEPNESS = 2.0


def stripes(across: np.ndarray, down: np.ndarray, surface: Mapping[str, np.ndarray | float]) -> np.ndarray:
    """Stripes at points of an image: tanh(2 sin(2π (across sin α + down cos α) / period + phase)).

    Args:
        across: places in pixels from the left edge.
        down: places in pixels from the top edge; broadcast with `across`.
        surface: `angle` α, the way that the stripes run, in degrees anticlockwise from level; `period`, from one
            stripe to the next of its colour, in pixels; `phase` in radians. All broadcast with the places.

    Returns:
        Values in (-1, 1), of the shape that all of these broadcast to: near -1 in one colour, near 1 in the other.
    """
    alpha = np.deg2rad(surface["angle"])
    way = across * np.sin(alpha) + down * np.cos(alpha)
    return np.tanh(_STEEPNESS * np.sin(2 * np.pi * way / surface["period"] + surface["phase"]))


def surfaces(texture: np.ndarray, draws: np.ndarray, image_size: int) -> dict[str, np.ndarray]:
    """Factors of the objects' surfaces by name, from `texture`, indices of `TEXTURES`, and `draws` (..., 8).

    `angle` (degrees, the texture's plus a tilt of up to 3), `period` (pixels) and `phase` (radians) as in [`stripes`];
    `red`, `green` and `blue`, the mean of its two colours on the scale from 0 to 1; `contrast`, half their difference,
    of either sign with equal chance. But for the tilt, all are independent of the texture and of each other.
    """
    d = np.moveaxis(draws, -1, 0)
    return {
        "angle": np.array(ANGLES)[texture] + _MAX_TILT * (2 * d[0] - 1),
        "period": _between(_PERIODS, d[1]) * image_size / 32,
        "phase": 2 * np.pi * d[2],
        **_mean_color(d[3:6]),
        "contrast": _between(_CONTRASTS, d[6]) * np.where(d[7] < 0.5, -1, 1),
    }


def backgrounds(draws: np.ndarray, image_size: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Factors of the backgrounds, and clutter, from `draws` (n, 41).

    Returns:
        `red`, `green`, `blue` (mean colour), `light` (how much brighter one side of the scene is than the other, as a
        share) and `light_angle` (radians, where the brighter side is, clockwise from the right), all (n,); and the
        backgrounds without light, float32 (n, image_size, image_size, 3), with clutter of six waves of any direction,
        period and colour.
    """
    d = draws.T
    factors = {**_mean_color(d[:3]), "light": _MAX_LIGHT * d[3], "light_angle": 2 * np.pi * d[4]}
    place = np.arange(image_size, dtype=np.float32) + 0.5
    across, down = place[None, None, :], place[None, :, None]
    image = np.stack([factors[name] for name in ("red", "green", "blue")], axis=-1)[:, None, None, :]
    image = np.broadcast_to(image, (len(draws), image_size, image_size, 3)).astype(np.float32)
    waves = d[5:].reshape(_NUM_WAVES, _NUM_WAVE_DRAWS, -1)
    for wave in waves:
        angle, phase = 2 * np.pi * wave[:2, :, None, None]
        period = _between(_CLUTTER_PERIODS, wave[2]) * image_size / 32
        way = across * np.cos(angle) + down * np.sin(angle)
        strength = _CLUTTER * (2 * wave[3:6] - 1).T[:, None, None, :]
        image += strength * np.sin(2 * np.pi * way / period[:, None, None] + phase)[..., None]
    return factors, image


def light_field(light: np.ndarray, light_angle: np.ndarray, image_size: int) -> np.ndarray:
    """The factor by which light changes every pixel, with mean 1 over an image: (n, image_size, image_size)."""
    place = (np.arange(image_size, dtype=np.float32) + 0.5) / image_size - 0.5
    light, angle = light[:, None, None], light_angle[:, None, None]
    return 1 + light * (place[None, None, :] * np.cos(angle) + place[None, :, None] * np.sin(angle))


def _between(bounds: tuple[float, float], draws: np.ndarray) -> np.ndarray:
    return bounds[0] + (bounds[1] - bounds[0]) * draws


def _mean_color(draws: np.ndarray) -> dict[str, np.ndarray]:
    return {
        name: 0.5 + _COLOR_SPREAD * (draw - 0.5) for name, draw in zip(("red", "green", "blue"), draws, strict=True)
    }
