# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What textured scenes are made of: periodic textures, clutter behind the objects, uneven light and grain."""

from collections.abc import Mapping

import numpy as np


# Pattern of each texture, and the angle of its first axis in degrees clockwise from the right, since y runs down.
_PATTERNS: dict[str, tuple[str, float]] = {
    "level stripes": ("stripes", 90.0),
    "upright stripes": ("stripes", 0.0),
    "rising stripes": ("stripes", 45.0),
    "falling stripes": ("stripes", -45.0),
    "checks": ("checks", 0.0),
    "diamonds": ("checks", 45.0),
    "dots": ("dots", 0.0),
    "grid": ("grid", 0.0),
}
TEXTURES = tuple(_PATTERNS)

# Of how many uniform draws a surface, a wave of clutter and a background are made.
NUM_SURFACE_DRAWS, _NUM_WAVES, _NUM_WAVE_DRAWS = 9, 6, 6
NUM_BACKGROUND_DRAWS = 5 + _NUM_WAVES * _NUM_WAVE_DRAWS
GRAIN = 0.4
# In pixels of an image of 32 pixels a side; they grow with the side.
_PERIODS, _CLUTTER_PERIODS = (4.0, 7.0), (4.0, 16.0)
_MAX_TILT = 6.0
_CONTRASTS = (0.12, 0.28)
_COLOR_SPREAD, _CLUTTER, _MAX_LIGHT = 0.15, 0.08, 0.15
# Edges are this steep: sharp to the eye, and smooth enough to be sampled at the pixels' centres.
_STEEPNESS = 2.0


def texture_values(
    texture: str, across: np.ndarray, down: np.ndarray, surface: Mapping[str, np.ndarray | float]
) -> np.ndarray:
    """A texture at points of an image.

    Let α be the texture's angle plus `tilt`, u = 2π (across cos α + down sin α) / period + phase_u and
    v = 2π (down cos α - across sin α) / period + phase_v. The value is tanh(2 w), where w is sin u for stripes,
    1.4 sin u sin v for checks, cos u + cos v - 0.9 for dots and 1.2 max(cos u, cos v) - 0.8 for a grid.

    Args:
        texture: one of `TEXTURES`. α is 90, 0, 45 and -45 degrees for level, upright, rising and falling stripes, 45
            for diamonds, which are checks, and 0 for the others.
        across: places in pixels from the left edge.
        down: places in pixels from the top edge; broadcast with `across`.
        surface: `period` in pixels, `tilt` in degrees clockwise, `phase_u` and `phase_v` in radians; all broadcast
            with the places.

    Returns:
        Values in (-1, 1), of the shape that all of these broadcast to: near -1 in one colour, near 1 in the other.
    """
    pattern, angle = _PATTERNS[texture]
    alpha, scale = np.deg2rad(angle + surface["tilt"]), 2 * np.pi / surface["period"]
    u = scale * (across * np.cos(alpha) + down * np.sin(alpha)) + surface["phase_u"]
    v = scale * (down * np.cos(alpha) - across * np.sin(alpha)) + surface["phase_v"]
    if pattern == "stripes":
        wave = np.sin(u)
    elif pattern == "checks":
        wave = 1.4 * np.sin(u) * np.sin(v)
    elif pattern == "dots":
        wave = np.cos(u) + np.cos(v) - 0.9
    else:
        wave = 1.2 * np.maximum(np.cos(u), np.cos(v)) - 0.8
    return np.tanh(_STEEPNESS * wave)


def surfaces(draws: np.ndarray, image_size: int) -> dict[str, np.ndarray]:
    """Independent factors of the objects' surfaces by name, of the shape of `draws` (..., 9) less its last axis.

    `period` (pixels), `tilt` (degrees), `phase_u` and `phase_v` (radians) as in [`texture_values`]; `red`, `green` and
    `blue`, the mean of its two colours on the scale from 0 to 1; `contrast`, half their difference, of either sign
    with equal chance.
    """
    d = np.moveaxis(draws, -1, 0)
    return {
        "period": _between(_PERIODS, d[0]) * image_size / 32,
        "tilt": _MAX_TILT * (2 * d[1] - 1),
        "phase_u": 2 * np.pi * d[2],
        "phase_v": 2 * np.pi * d[3],
        **_mean_color(d[4:7]),
        "contrast": _between(_CONTRASTS, d[7]) * np.where(d[8] < 0.5, -1, 1),
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
