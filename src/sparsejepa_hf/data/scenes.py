# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The built-in scenes, plain or textured: shapes with exact masks and factors, rendered from a seed."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from ..counter_rng import stream_keys, uniform
from . import textures
from .textures import TEXTURES


SHAPES = ("circle", "square", "triangle", "cross")
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (45, 80, 215),
    "yellow": (240, 205, 40),
    "purple": (160, 50, 180),
    "cyan": (50, 195, 210),
}
COLORS = tuple(PALETTE)
LABELS = tuple(f"{color} {shape}" for shape in SHAPES for color in COLORS)
STYLES = ("plain", "textured")

_SUPERSAMPLING = 4
# Large enough for several patches: what a hidden block holds can then be told from what is seen of the object.
_SIZES = {"plain": (0.16, 0.30), "textured": (0.45, 0.60)}
_MARGINS = {"plain": 0.2, "textured": 0.3}
_MAX_OBJECTS = {"plain": 4, "textured": 1}
_MIN_VISIBLE_AT_32 = 12
_MAX_ATTEMPTS = 1000
_BLOCK_PIXELS = 256 * 32 * 32
_SPLITS = ("train", "validation", "test")
_COUNT_STREAM, _OBJECT_STREAM, _BACKGROUND_STREAM, _NOISE_STREAM = range(4)
_NOISE = 0.02

# All shapes of one size cover the area of a disc of that radius; lengths are in units of the size.
_SQUARE_HALF = np.sqrt(np.pi) / 2
_TRIANGLE_RADIUS = np.sqrt(4 * np.pi / (3 * np.sqrt(3)))
_CROSS_ARM = np.sqrt(np.pi / (8 * 0.38 - 4 * 0.38**2))
_CROSS_HALF_WIDTH = 0.38 * _CROSS_ARM


@dataclass
class _Layout:
    """Objects of n scenes, k places each: sizes and centres in pixels, all (n, k).

    Shapes are indices, and so are surfaces, of colours or of textures. `draws` (n, k, d) are uniform numbers that the
    rest of a textured surface is made of.
    """

    shape: np.ndarray
    surface: np.ndarray
    size: np.ndarray
    x: np.ndarray
    y: np.ndarray
    is_present: np.ndarray
    draws: np.ndarray


def build_scenes(
    num_examples: int = 4096,
    *,
    style: str = "plain",
    seed: int = 0,
    image_size: int = 32,
    min_objects: int = 1,
    max_objects: int | None = None,
    split: str = "train",
) -> Dataset:
    """Renders scenes of shapes, whose every factor is known.

    Example `i` depends only on `i`, `seed`, `split` and the arguments after the first, not on `num_examples`. The
    count is uniform from `min_objects` to `max_objects`. Each object's shape (4), surface, size and centre are drawn
    uniformly and independently of each other and of the other objects; all shapes of one size have the same area.
    Later objects cover earlier ones and the border may cut a part off. If an object shows fewer pixels than
    `min_visible_pixels(image_size)`, all objects of the scene are drawn again with the count kept: this alone makes
    the factors slightly dependent, with smaller and more distant objects in fuller scenes.

    `"plain"`: objects are of one of six colours. Their sizes are from 0.16 to 0.30 of the image's side, their centres
    at least 0.2 of the side from each border. Backgrounds are grey with a slight tint, a linear gradient and faint
    waves; a little noise lies over everything.

    `"textured"`: objects carry one of eight textures of random phase and period in two random colours, either of which
    may be the lighter. They lie on clutter of coloured waves in uneven light, under strong grain. The texture is
    shared by all patches of an object and shows in no single pixel. Sizes are from 0.45 to 0.60 of the side, divided
    by the square root of `max_objects`; centres are at least 0.3 of the side from each border.

    Args:
        num_examples: number of scenes, at least 1.
        style: `"plain"` or `"textured"`.
        seed: seed of everything.
        image_size: side of the images in pixels, from 16 to 512.
        min_objects: fewest objects, at least 1.
        max_objects: most objects, from `min_objects` to 8. None: 4 of plain scenes, 1 of textured ones, but at least
            `min_objects`.
        split: `"train"`, `"validation"` or `"test"`: scenes that are independent of each other.

    Returns:
        A data set held in memory. Its columns: `image`, PNG, RGB, antialiased by 4 x 4 samples a pixel; `mask`, PNG,
        8-bit grey, 0 for background and i for `objects[i - 1]`, exact at the pixels' centres; `label`, ClassLabel, of
        the object with the most visible pixels (the first of several): one of 24 names such as `"red circle"` of plain
        scenes, one of eight textures such as `"rising stripes"` of textured ones; `count`, int64, number of objects;
        `objects`, a list of `shape`, `size` (radius in pixels of a disc of the same area), `x` and `y` (centre in
        pixels from the left and the top edge; the centre of pixel (i, j) is at (i + 0.5, j + 0.5)), `visible_pixels`
        (in the mask), and `color` or, of textured objects, `texture`, `period` (pixels), `tilt` (degrees), `phase_u`
        and `phase_v` (radians) as in [`texture_values`], `red`, `green` and `blue` (mean of its two colours, from 0 to
        1) and `contrast` (signed, half their difference). Textured scenes have `background` too:
        `red`, `green`, `blue`, `light` (how much brighter one side of the scene is than the other, as a share) and
        `light_angle` (radians, where the brighter side is, clockwise from the right).

    Raises:
        ValueError: an argument is out of its range.
    """
    if num_examples < 1:
        raise ValueError(f"num_examples is {num_examples}; expected at least 1.")
    if style not in STYLES:
        raise ValueError(f"style is {style!r}; expected one of: {', '.join(map(repr, STYLES))}.")
    if not 16 <= image_size <= 512:
        raise ValueError(f"image_size is {image_size}; expected from 16 to 512 pixels.")
    if max_objects is None:
        max_objects = max(min_objects, _MAX_OBJECTS[style])
    if not 1 <= min_objects <= max_objects <= 8:
        raise ValueError(
            f"min_objects and max_objects are {min_objects} and {max_objects}; expected 1 <= min <= max <= 8."
        )
    if split not in _SPLITS:
        raise ValueError(
            f"The built-in scenes have no split {split!r}; expected one of: {', '.join(map(repr, _SPLITS))}."
        )
    block = max(1, _BLOCK_PIXELS // image_size**2)
    columns: dict[str, list[Any]] = {}
    for start in range(0, num_examples, block):
        slots = torch.arange(start, min(start + block, num_examples))
        for name, values in _build_block(slots, style, seed, image_size, min_objects, max_objects, split).items():
            columns.setdefault(name, []).extend(values)
    features = {
        "image": Image(),
        "mask": Image(),
        "label": ClassLabel(names=list(LABELS if style == "plain" else TEXTURES)),
        "count": Value("int64"),
        "objects": [{name: _feature(value) for name, value in columns["objects"][0][0].items()}],
    }
    if "background" in columns:
        features["background"] = {name: _feature(value) for name, value in columns["background"][0].items()}
    return Dataset.from_dict(columns, features=Features(features), split=split)


def _feature(value: str | int | float) -> Value:
    return Value({str: "string", int: "int64", float: "float32"}[type(value)])


def render_scene(
    objects: Sequence[Mapping[str, Any]], image_size: int, background: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Renders one plain scene without noise.

    Args:
        objects: mappings with `shape`, `color`, `size`, `x` and `y` as in [`build_scenes`]; later ones lie on top.
        image_size: side in pixels.
        background: colour on the scale from 0 to 1, (3,) or (image_size, image_size, 3).

    Returns:
        The image, uint8 (image_size, image_size, 3), and the mask, uint8 (image_size, image_size).

    Raises:
        ValueError: an object has an unknown shape or colour, or there are more than 255 objects.
    """
    if len(objects) > 255:
        raise ValueError(f"{len(objects)} objects are given; expected at most 255, the range of an 8-bit mask.")
    layout = _Layout(
        shape=np.array([[_index(thing["shape"], SHAPES, "shape") for thing in objects]], dtype=np.int64),
        surface=np.array([[_index(thing["color"], COLORS, "color") for thing in objects]], dtype=np.int64),
        size=np.array([[thing["size"] for thing in objects]], dtype=np.float32),
        x=np.array([[thing["x"] for thing in objects]], dtype=np.float32),
        y=np.array([[thing["y"] for thing in objects]], dtype=np.float32),
        is_present=np.ones((1, len(objects)), dtype=bool),
        draws=np.empty((1, len(objects), 0), dtype=np.float32),
    )
    background = np.broadcast_to(np.asarray(background, np.float32), (image_size, image_size, 3))
    image = _paint(layout, image_size, background[None])
    return _quantize(image)[0], _masks(layout, image_size, 1)[0]


def min_visible_pixels(image_size: int) -> int:
    """The fewest pixels that an object of [`build_scenes`] shows: 12 at 32 pixels a side, scaled by the area."""
    return max(4, round(_MIN_VISIBLE_AT_32 * (image_size / 32) ** 2))


def _index(name: str, names: Sequence[str], what: str) -> int:
    if name not in names:
        raise ValueError(f"The {what} given is {name!r}; expected one of: {', '.join(names)}.")
    return names.index(name)


def _draw(seed: int, attempt: int, slots: torch.Tensor, split: str, use: int, count: int) -> np.ndarray:
    stream = 4 * _SPLITS.index(split) + use
    return uniform(stream_keys(seed, attempt, slots, stream), count).numpy()


def _build_block(
    slots: torch.Tensor, style: str, seed: int, image_size: int, min_objects: int, max_objects: int, split: str
) -> dict[str, list[Any]]:
    layout = _draw_layouts(slots, style, seed, image_size, min_objects, max_objects, split)
    masks = _masks(layout, image_size, 1)
    factors: dict[str, np.ndarray] = {}
    columns: dict[str, list[Any]] = {}
    if style == "plain":
        background = _backgrounds(_draw(seed, 0, slots, split, _BACKGROUND_STREAM, 12), image_size)
        images, noise_amplitude, kind, kinds = _paint(layout, image_size, background), _NOISE, "color", COLORS
    else:
        draws = _draw(seed, 0, slots, split, _BACKGROUND_STREAM, textures.NUM_BACKGROUND_DRAWS)
        scene_factors, background = textures.backgrounds(draws, image_size)
        factors = textures.surfaces(layout.draws, image_size)
        images = _paint_textured(layout, factors, image_size, background)
        images *= textures.light_field(scene_factors["light"], scene_factors["light_angle"], image_size)[..., None]
        columns["background"] = _rows(scene_factors)
        noise_amplitude, kind, kinds = textures.GRAIN, "texture", TEXTURES
    noise = _draw(seed, 0, slots, split, _NOISE_STREAM, images[0].size).reshape(images.shape)
    images = _quantize(images + noise_amplitude * (2 * noise - 1))
    visible = _visible_pixels(masks, max_objects)
    scenes, largest = np.arange(len(slots)), visible.argmax(axis=1)
    labels = layout.surface[scenes, largest]
    if style == "plain":
        labels = layout.shape[scenes, largest] * len(COLORS) + labels
    objects = [
        [
            {
                "shape": SHAPES[layout.shape[scene, place]],
                kind: kinds[layout.surface[scene, place]],
                "size": float(layout.size[scene, place]),
                "x": float(layout.x[scene, place]),
                "y": float(layout.y[scene, place]),
                **{name: float(values[scene, place]) for name, values in factors.items()},
                "visible_pixels": int(visible[scene, place]),
            }
            for place in np.flatnonzero(layout.is_present[scene])
        ]
        for scene in range(len(slots))
    ]
    return {
        "image": [{"bytes": _png(image), "path": None} for image in images],
        "mask": [{"bytes": _png(mask), "path": None} for mask in masks],
        "label": labels.tolist(),
        "count": layout.is_present.sum(axis=1).tolist(),
        "objects": objects,
        **columns,
    }


def _rows(columns: Mapping[str, np.ndarray]) -> list[dict[str, float]]:
    return [dict(zip(columns, map(float, row), strict=True)) for row in zip(*columns.values(), strict=True)]


def _draw_layouts(
    slots: torch.Tensor, style: str, seed: int, image_size: int, min_objects: int, max_objects: int, split: str
) -> _Layout:
    spread = max_objects - min_objects + 1
    counts = min_objects + (_draw(seed, 0, slots, split, _COUNT_STREAM, 1)[:, 0] * spread).astype(np.int64)
    pending, margin = np.arange(len(slots)), _MARGINS[style] * image_size
    if style == "plain":
        num_surfaces, num_more, crowding = len(COLORS), 0, 1.0
    else:
        # However many there are, objects cover about the same share of the image.
        num_surfaces, num_more, crowding = len(TEXTURES), textures.NUM_SURFACE_DRAWS, max_objects**0.5
    smallest, largest = _SIZES[style]
    layout = None
    for attempt in range(_MAX_ATTEMPTS):
        count = (5 + num_more) * max_objects
        draws = _draw(seed, attempt, slots[pending], split, _OBJECT_STREAM, count)
        draws = draws.reshape(len(pending), max_objects, 5 + num_more)
        shape, surface, size, x, y = draws[..., :5].transpose(2, 0, 1)
        drawn = _Layout(
            shape=(shape * len(SHAPES)).astype(np.int64),
            surface=(surface * num_surfaces).astype(np.int64),
            size=(smallest + (largest - smallest) * size) * image_size / crowding,
            x=margin + (image_size - 2 * margin) * x,
            y=margin + (image_size - 2 * margin) * y,
            is_present=np.arange(max_objects) < counts[pending, None],
            draws=draws[..., 5:],
        )
        if layout is None:
            layout = drawn
        else:
            for name, values in vars(drawn).items():
                getattr(layout, name)[pending] = values
        visible = _visible_pixels(_masks(drawn, image_size, 1), max_objects)
        is_hidden = (visible < min_visible_pixels(image_size)) & drawn.is_present
        pending = pending[is_hidden.any(axis=1)]
        if not len(pending):
            return layout
    raise ValueError(f"No layout of {max_objects} objects with enough visible pixels was found; use fewer objects.")


def _masks(layout: _Layout, image_size: int, samples: int) -> np.ndarray:
    """Index of the topmost object, 0 for none, at `samples` points a pixel each way: uint8 (n, side, side)."""
    side = image_size * samples
    places = (np.arange(side, dtype=np.float32) + 0.5) / samples
    masks = np.zeros((len(layout.x), side, side), dtype=np.uint8)
    for place in range(layout.x.shape[1]):
        for shape in range(len(SHAPES)):
            scenes = np.flatnonzero(layout.is_present[:, place] & (layout.shape[:, place] == shape))
            size = layout.size[scenes, place, None]
            across = (places - layout.x[scenes, place, None]) / size
            down = (places - layout.y[scenes, place, None]) / size
            inside = _is_inside(SHAPES[shape], across[:, None, :], down[:, :, None])
            masks[scenes] = np.where(inside, np.uint8(place + 1), masks[scenes])
    return masks


def _is_inside(shape: str, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Whether points, in units of the size from the centre, lie inside a shape."""
    if shape == "circle":
        return across**2 + down**2 <= 1
    if shape == "square":
        return (np.abs(across) <= _SQUARE_HALF) & (np.abs(down) <= _SQUARE_HALF)
    if shape == "triangle":
        sides = np.float32(np.sqrt(3)) * np.abs(across) <= np.float32(_TRIANGLE_RADIUS) + down
        return sides & (down <= _TRIANGLE_RADIUS / 2)
    upright = (np.abs(across) <= _CROSS_HALF_WIDTH) & (np.abs(down) <= _CROSS_ARM)
    return upright | ((np.abs(across) <= _CROSS_ARM) & (np.abs(down) <= _CROSS_HALF_WIDTH))


def _visible_pixels(masks: np.ndarray, max_objects: int) -> np.ndarray:
    """Pixels of each object: int64 (n, max_objects)."""
    ids = np.arange(1, max_objects + 1, dtype=np.uint8)
    return np.stack([(masks == thing).sum(axis=(1, 2)) for thing in ids], axis=1)


def _paint(layout: _Layout, image_size: int, background: np.ndarray) -> np.ndarray:
    """Plain scenes without noise on the scale from 0 to 1: float32 (n, image_size, image_size, 3)."""
    palette = np.array([PALETTE[color] for color in COLORS], dtype=np.float32) / 255
    shares = _shares(layout, image_size)
    image = background * next(shares)[..., None]
    for place, share in enumerate(shares):
        image = image + share[..., None] * palette[layout.surface[:, place], None, None, :]
    return image


def _paint_textured(
    layout: _Layout, factors: Mapping[str, np.ndarray], image_size: int, background: np.ndarray
) -> np.ndarray:
    """Textured scenes without light and grain; `factors` are those of [`textures.surfaces`], (n, k) each."""
    places = np.arange(image_size, dtype=np.float32) + 0.5
    shares = _shares(layout, image_size)
    image = background * next(shares)[..., None]
    for place, share in enumerate(shares):
        values = np.zeros_like(share)
        for index, texture in enumerate(TEXTURES):
            scenes = np.flatnonzero(layout.is_present[:, place] & (layout.surface[:, place] == index))
            surface = {name: factor[scenes, place, None, None] for name, factor in factors.items()}
            values[scenes] = textures.texture_values(texture, places[None, None, :], places[None, :, None], surface)
        mean = np.stack([factors[name][:, place] for name in ("red", "green", "blue")], axis=-1)
        color = mean[:, None, None, :] + (factors["contrast"][:, place, None, None] * values)[..., None]
        image = image + share[..., None] * color
    return image


def _shares(layout: _Layout, image_size: int) -> Iterator[np.ndarray]:
    """The share of every pixel that shows the background, then each object: float32 (n, image_size, image_size)."""
    s = _SUPERSAMPLING
    fine = _masks(layout, image_size, s).reshape(-1, image_size, s, image_size, s)
    for thing in range(layout.x.shape[1] + 1):
        yield (fine == thing).mean(axis=(2, 4), dtype=np.float32)


def _backgrounds(draws: np.ndarray, image_size: int) -> np.ndarray:
    """Grey with a tint, a gradient and two waves: float32 (n, image_size, image_size, 3), from `draws` (n, 12)."""
    d = draws[:, :, None, None]
    place = (np.arange(image_size, dtype=np.float32) + 0.5) / image_size - 0.5
    x, y = place[None, None, :], place[None, :, None]
    angle = 2 * np.pi * d[:, 4]
    light = 0.25 + 0.5 * d[:, 0] + (0.05 + 0.15 * d[:, 5]) * (x * np.cos(angle) + y * np.sin(angle))
    for first in (6, 9):
        waves_x, waves_y = 8 * d[:, first] - 4, 8 * d[:, first + 1] - 4
        light = light + 0.025 * np.sin(2 * np.pi * (waves_x * x + waves_y * y + d[:, first + 2]))
    tint = 0.1 * draws[:, 1:4] - 0.05
    return (light[..., None] + tint[:, None, None, :]).astype(np.float32)


def _quantize(image: np.ndarray) -> np.ndarray:
    return np.floor(np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
