# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The built-in data set "synthetic-scenes": coloured shapes with exact masks and factors, rendered from a seed."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage

from ..counter_rng import stream_keys, uniform


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

_SUPERSAMPLING = 4
# Large enough for several patches: what a hidden block holds can then be told from what is seen of the object.
_MIN_SIZE, _MAX_SIZE = 0.16, 0.30
_MARGIN = 0.2
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
    """Objects of n scenes, k places each: shapes and colours as indices, sizes and centres in pixels, all (n, k)."""

    shape: np.ndarray
    color: np.ndarray
    size: np.ndarray
    x: np.ndarray
    y: np.ndarray
    is_present: np.ndarray


def build_scenes(
    num_examples: int = 4096,
    *,
    seed: int = 0,
    image_size: int = 32,
    min_objects: int = 1,
    max_objects: int = 4,
    split: str = "train",
) -> Dataset:
    """Renders scenes of coloured shapes, whose every factor is known.

    Example `i` depends only on `i`, `seed`, `split` and the arguments after the first, not on `num_examples`. The
    count is uniform from `min_objects` to `max_objects`. Each object's shape (4), colour (6), size (uniform from
    0.16 to 0.30 of the image's side) and centre (uniform, at least 0.2 of the side from each border) are drawn
    independently of each other and of the other objects; all shapes of one size have the same area. Later objects
    cover earlier ones and the border may cut a part off. If an object shows fewer pixels than
    `min_visible_pixels(image_size)`, all objects of the scene are drawn again with the count kept: this alone makes
    the factors slightly dependent, with smaller and more distant objects in fuller scenes. Backgrounds are grey with
    a slight tint, a linear gradient and faint waves; a little noise lies over everything.

    Args:
        num_examples: number of scenes, at least 1.
        seed: seed of everything.
        image_size: side of the images in pixels, from 16 to 512.
        min_objects: fewest objects, at least 1.
        max_objects: most objects, from `min_objects` to 8.
        split: `"train"`, `"validation"` or `"test"`: scenes that are independent of each other.

    Returns:
        A data set held in memory. Its columns: `image`, PNG, RGB, antialiased by 4 x 4 samples a pixel; `mask`, PNG,
        8-bit grey, 0 for background and i for `objects[i - 1]`, exact at the pixels' centres; `label`, ClassLabel of
        24 names such as `"red circle"`, colour and shape of the object with the most visible pixels (the first of
        several); `count`, int64, number of objects; `objects`, a list of `shape`, `color`, `size` (radius in pixels of
        a disc of the same area), `x` and `y` (centre in pixels from the left and the top edge; the centre of pixel
        (i, j) is at (i + 0.5, j + 0.5)) and `visible_pixels` (in the mask).

    Raises:
        ValueError: an argument is out of its range.
    """
    if num_examples < 1:
        raise ValueError(f"num_examples is {num_examples}; expected at least 1.")
    if not 16 <= image_size <= 512:
        raise ValueError(f"image_size is {image_size}; expected from 16 to 512 pixels.")
    if not 1 <= min_objects <= max_objects <= 8:
        raise ValueError(
            f"min_objects and max_objects are {min_objects} and {max_objects}; expected 1 <= min <= max <= 8."
        )
    if split not in _SPLITS:
        raise ValueError(
            f"The built-in scenes have no split {split!r}; expected one of: {', '.join(map(repr, _SPLITS))}."
        )
    block = max(1, _BLOCK_PIXELS // image_size**2)
    columns: dict[str, list[Any]] = {"image": [], "mask": [], "label": [], "count": [], "objects": []}
    for start in range(0, num_examples, block):
        slots = torch.arange(start, min(start + block, num_examples))
        for name, values in _build_block(slots, seed, image_size, min_objects, max_objects, split).items():
            columns[name].extend(values)
    thing = {name: Value("string") for name in ("shape", "color")}
    thing.update({name: Value("float32") for name in ("size", "x", "y")}, visible_pixels=Value("int64"))
    features = Features(
        {
            "image": Image(),
            "mask": Image(),
            "label": ClassLabel(names=list(LABELS)),
            "count": Value("int64"),
            "objects": [thing],
        }
    )
    return Dataset.from_dict(columns, features=features, split=split)


def render_scene(
    objects: Sequence[Mapping[str, Any]], image_size: int, background: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Renders one scene without noise.

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
        color=np.array([[_index(thing["color"], COLORS, "color") for thing in objects]], dtype=np.int64),
        size=np.array([[thing["size"] for thing in objects]], dtype=np.float32),
        x=np.array([[thing["x"] for thing in objects]], dtype=np.float32),
        y=np.array([[thing["y"] for thing in objects]], dtype=np.float32),
        is_present=np.ones((1, len(objects)), dtype=bool),
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
    slots: torch.Tensor, seed: int, image_size: int, min_objects: int, max_objects: int, split: str
) -> dict[str, list[Any]]:
    layout = _draw_layouts(slots, seed, image_size, min_objects, max_objects, split)
    masks = _masks(layout, image_size, 1)
    background = _backgrounds(_draw(seed, 0, slots, split, _BACKGROUND_STREAM, 12), image_size)
    images = _paint(layout, image_size, background)
    noise = _draw(seed, 0, slots, split, _NOISE_STREAM, images[0].size).reshape(images.shape)
    images = _quantize(images + _NOISE * (2 * noise - 1))
    visible = _visible_pixels(masks, max_objects)
    scenes, largest = np.arange(len(slots)), visible.argmax(axis=1)
    labels = layout.shape[scenes, largest] * len(COLORS) + layout.color[scenes, largest]
    objects = [
        [
            {
                "shape": SHAPES[layout.shape[scene, place]],
                "color": COLORS[layout.color[scene, place]],
                "size": float(layout.size[scene, place]),
                "x": float(layout.x[scene, place]),
                "y": float(layout.y[scene, place]),
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
    }


def _draw_layouts(
    slots: torch.Tensor, seed: int, image_size: int, min_objects: int, max_objects: int, split: str
) -> _Layout:
    spread = max_objects - min_objects + 1
    counts = min_objects + (_draw(seed, 0, slots, split, _COUNT_STREAM, 1)[:, 0] * spread).astype(np.int64)
    pending, margin = np.arange(len(slots)), _MARGIN * image_size
    layout = None
    for attempt in range(_MAX_ATTEMPTS):
        draws = _draw(seed, attempt, slots[pending], split, _OBJECT_STREAM, 5 * max_objects)
        shape, color, size, x, y = draws.reshape(len(pending), max_objects, 5).transpose(2, 0, 1)
        drawn = _Layout(
            shape=(shape * len(SHAPES)).astype(np.int64),
            color=(color * len(COLORS)).astype(np.int64),
            size=(_MIN_SIZE + (_MAX_SIZE - _MIN_SIZE) * size) * image_size,
            x=margin + (image_size - 2 * margin) * x,
            y=margin + (image_size - 2 * margin) * y,
            is_present=np.arange(max_objects) < counts[pending, None],
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
    """Scenes without noise on the scale from 0 to 1: float32 (n, image_size, image_size, 3)."""
    s = _SUPERSAMPLING
    fine = _masks(layout, image_size, s).reshape(-1, image_size, s, image_size, s)
    palette = np.array([PALETTE[color] for color in COLORS], dtype=np.float32) / 255
    image = background * (fine == 0).mean(axis=(2, 4), dtype=np.float32)[..., None]
    for place in range(layout.x.shape[1]):
        share = (fine == place + 1).mean(axis=(2, 4), dtype=np.float32)
        image = image + share[..., None] * palette[layout.color[:, place], None, None, :]
    return image


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
