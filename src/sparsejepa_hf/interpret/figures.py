# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Pictures of groups. Every `*_figure` returns a matplotlib Figure, to save as PNG or SVG.

Colours are those of viridis, cividis and Okabe and Ito, which colour-blind readers can tell apart, too.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import CenteredNorm, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from sklearn.decomposition import PCA

from .disentanglement import class_scores
from .groups import GroupStructure
from .measures import NotMeasurable
from .patches import PatchRecord, above_place, shown_colors


MAX_GROUPS = 64
MAX_IMAGES = 8
# Behind a latent that does not hold a group. No colour of the scale is near it.
ZERO_COLOR = "#e8e8e8"
# Between groups of latents.
RULE_COLOR = "#fefefe"
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_NUM_PCA_PATCHES = 20_000
_GAP = 0.06
_OUTLINE = [withStroke(linewidth=2, foreground="black")]


@dataclass(frozen=True)
class TopPatch:
    """A patch that excites a group: its image, its place in the grid, and how active the group is there."""

    image: int
    row: int
    column: int
    activation: float


# --- what the pictures show ---------------------------------------------------------------------------------------


def latent_order(structure: GroupStructure) -> np.ndarray:
    """Latents sorted by the group they matter most to, the most important first, dead latents last: int64 (K,)."""
    assignment = structure.assignment
    rank = np.where(assignment < 0, len(structure.importance), assignment)
    return np.lexsort((-structure.importance.max(axis=0), rank))


def variation_shares(maps: np.ndarray) -> np.ndarray:
    """Where the variation of each group's activation comes from, in shares that add up to 1.

    The activation of image i at place s is m + place_s + image_i + rest_is (two-way analysis of variance); the
    squares of the three terms add up to those of the activation around its mean m.

    Args:
        maps (n, G, rows, columns): of one record.

    Returns:
        Shares of place, image and rest, float64 (G, 3); NaN for a group whose activation never varies.
    """
    values = maps.reshape(*maps.shape[:2], -1).astype(np.float64)
    values = values - values.mean(axis=(0, 2), keepdims=True)
    total = values.var(axis=(0, 2))
    place, image = values.mean(axis=0).var(axis=1), values.mean(axis=2).var(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = np.stack([place, image, total - place - image]) / total
    return np.where(total > 0, shares, np.nan).T


def top_patches(record: PatchRecord, group: int, count: int = 8, for_place: bool = False) -> list[TopPatch]:
    """The patches where a group is most active, the strongest first; at most one of each image.

    Images with the same pixels count as one. Fewer than `count` come back where there are fewer images.

    Args:
        record: with groups.
        group: which.
        count: how many patches.
        for_place: compare each patch with the same place in the other images (see [`patches.above_place`]).

    Raises:
        NotMeasurable: the record has no groups.
    """
    _, maps = record.require_groups()
    of_group = maps[:, group]
    values = (above_place(of_group) if for_place else of_group).reshape(len(record), -1)
    place = values.argmax(axis=1)
    peak = values[np.arange(len(record)), place]
    columns = maps.shape[3]
    return [
        TopPatch(int(i), int(place[i]) // columns, int(place[i]) % columns, float(peak[i]))
        for i in _strongest(record, peak, count)
    ]


def top_images(record: PatchRecord, group: int, count: int = 8) -> list[int]:
    """The images in which a group is most active on average over patches, the strongest first.

    Raises:
        NotMeasurable: the record has no groups.
    """
    _, maps = record.require_groups()
    return [int(i) for i in _strongest(record, maps[:, group].mean(axis=(1, 2)), count)]


def _strongest(record: PatchRecord, values: np.ndarray, count: int) -> list[int]:
    """Indices of the largest values, no two of images with the same pixels."""
    chosen: list[int] = []
    seen: set[bytes] = set()
    for index in np.argsort(-values, kind="stable"):
        if len(chosen) == count:
            break
        pixels = record.pixel_values[index].tobytes()
        if pixels not in seen:
            seen.add(pixels)
            chosen.append(int(index))
    return chosen


def pca_colors(record: PatchRecord, images: Sequence[int]) -> np.ndarray:
    """First three principal components of patch features as red, green and blue: (len(images), rows, columns, 3).

    The components, and the scale of each colour (from the 1st to the 99th percentile), are those of the whole record,
    so that colours can be compared between images. The mean over images at the same place is taken off first, where
    there are several images: without that, the components show little but the place.
    """
    width = record.features.shape[2]
    features = above_place(record.features)
    flat = features.reshape(-1, width)
    if len(flat) > _NUM_PCA_PATCHES:
        flat = flat[np.random.default_rng(0).choice(len(flat), _NUM_PCA_PATCHES, replace=False)]
    components = min(3, *flat.shape)
    pca = PCA(components, svd_solver="covariance_eigh" if len(flat) > width else "full").fit(flat)
    low, high = np.percentile(pca.transform(flat), (1, 99), axis=0)
    values = pca.transform(features[list(images)].reshape(-1, width))
    scaled = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
    colors = np.full((len(values), 3), 0.5)
    colors[:, :components] = scaled
    return colors.reshape(len(images), *record.grid, 3)


def read_training_history(checkpoint: str | Path) -> list[dict[str, Any]]:
    """What a run logged about its groups, from `trainer_state.json` in the checkpoint's folder.

    Returns:
        The entries that hold `step` and `zero_columns`, in order.

    Raises:
        NotMeasurable: there is no such file, or nothing about groups in it.
    """
    path = Path(checkpoint) / "trainer_state.json"
    if not path.is_file():
        raise NotMeasurable(
            f"There is no file {path}, so nothing is known of its training; give the folder that pre-training saved."
        )
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["log_history"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise NotMeasurable(
            f"{path} is not a state of the Trainer ({type(error).__name__}: {error}); expected JSON with a "
            "`log_history`. Give the folder that pre-training saved."
        ) from None
    history = [entry for entry in entries if "zero_columns" in entry and "step" in entry]
    if not history:
        raise NotMeasurable(
            f"{path} says nothing about groups (no entry has `zero_columns`); expected the log of a SparseJEPA. An "
            "I-JEPA has no groups, and a run shorter than `logging_steps` logs nothing."
        )
    return history


# --- figures ------------------------------------------------------------------------------------------------------


def importance_figure(structure: GroupStructure) -> Figure:
    """Importance of every latent (columns, sorted by group) for every group (rows).

    A latent that does not hold a group, because its column of W is exactly zero, leaves its cell grey, however small
    the importance of others is.
    """
    importance, note = structure.importance[:MAX_GROUPS], _cap_note(len(structure.importance))
    groups, latents = importance.shape
    order = latent_order(structure)
    values = np.ma.masked_where(~structure.held[:groups, order], importance[:, order])
    figure = Figure(
        figsize=(min(max(6.0, 0.13 * latents + 2.2), 24), min(1.6 + 0.32 * groups, 15)), layout="constrained"
    )
    axes = figure.subplots()
    # Three decades at most, so that one tiny value does not use up the scale.
    top = float(values.max()) if values.count() and values.max() > 0 else 1.0
    positive = values.compressed()[values.compressed() > 0]
    bottom = max(float(positive.min()), top / 1000) if len(positive) else top / 1000
    scale = LogNorm(min(bottom, 0.999 * top), top, clip=True)
    colors = matplotlib.colormaps["viridis"].with_extremes(bad=(0, 0, 0, 0))
    axes.set_facecolor(ZERO_COLOR)
    image = axes.imshow(values, cmap=colors, norm=scale, aspect="auto", interpolation="none")
    assignment = structure.assignment[order]
    starts = np.flatnonzero(np.diff(assignment, prepend=np.nan) != 0)
    ends = np.append(starts[1:], latents)
    for start in starts[1:]:
        axes.axvline(start - 0.5, color=RULE_COLOR, linewidth=1.2)
    for row in range(1, groups):
        axes.axhline(row - 0.5, color=RULE_COLOR, linewidth=0.4)
    names = ["dead" if assignment[start] < 0 else str(assignment[start]) for start in starts]
    axes.set_xticks((starts + ends - 1) / 2, names, rotation=90 if len(starts) > 24 else 0)
    axes.set_yticks(range(groups), [str(group) for group in range(groups)], fontsize=9 if groups <= 32 else 6)
    axes.tick_params(length=0)
    axes.set_xlabel(f"{latents} latents, sorted by the group they matter most to{note}")
    axes.set_ylabel("Group")
    figure.colorbar(image, ax=axes, label="Importance", pad=0.01, extend="min" if len(positive) else "neither")
    axes.legend(
        handles=[Patch(facecolor=ZERO_COLOR, edgecolor="0.5", label="exactly zero")],
        loc="lower right",
        bbox_to_anchor=(1, 1),
        frameon=False,
        borderaxespad=0.2,
    )
    return figure


def heat_map_figure(
    pixel_values: np.ndarray, maps: np.ndarray, names: Sequence[str] | None = None, groups: Sequence[int] | None = None
) -> Figure:
    """Activation of every group in every image, all on one scale.

    Args:
        pixel_values: images, uint8 (n, C, H, W); the first eight are drawn.
        maps: their activations a_g, (n, G, rows, columns); the first 64 groups are drawn.
        names: what to write beside each image.
        groups: which groups to draw; all if None.

    Raises:
        ValueError: not one map for each image, or no image.
    """
    if not len(maps) or len(maps) != len(pixel_values):
        raise ValueError(f"There are {len(maps)} maps for {len(pixel_values)} images; expected one for each image.")
    chosen = list(range(maps.shape[1]) if groups is None else groups)
    shown, count, note = chosen[:MAX_GROUPS], min(len(maps), MAX_IMAGES), _cap_note(len(chosen))
    if len(maps) > count:
        note += f"; first {count} of {len(maps)} images"
    across = min(8, len(shown))
    lines = -(-len(shown) // across)
    aspect = pixel_values.shape[2] / pixel_values.shape[3]
    figure, axes = _mosaic(across + 1, count * lines, note, aspect)
    scale = Normalize(0, float(maps[:count, shown].max()) or 1.0)
    for image in range(count):
        top = image * lines
        _tile(axes, 0, top, shown_colors(pixel_values[image]))
        for position, group in enumerate(shown):
            column, row = 1 + position % across, top + position // across
            _tile(axes, column, row, maps[image, group], cmap="viridis", norm=scale)
            if lines == 1 and image == 0:
                _caption(axes, column, row, f"group {group}")
            elif lines > 1:
                axes.text(
                    column + 0.05, row + 0.07, str(group), fontsize=7, va="top", color="white", path_effects=_OUTLINE
                )
    if names is not None:
        labels = [_shorten(name) for name in names[:count]]
        axes.set_yticks(np.arange(count) * lines + 0.5 - _GAP / 2, labels)
    figure.colorbar(
        ScalarMappable(scale, "viridis"), ax=axes, label="Activation ‖W⁽ᵍ⁾z‖₂", shrink=min(1, 4 / (count * lines))
    )
    return figure


def top_patches_figure(record: PatchRecord, groups: Sequence[int] | None = None, count: int = 8) -> Figure:
    """The patches that excite each group most, a row a group, each in its image with a box around it.

    Raises:
        NotMeasurable: the record has no groups.
    """
    return _top_figure(record, groups, count, with_box=True)


def top_images_figure(record: PatchRecord, groups: Sequence[int] | None = None, count: int = 8) -> Figure:
    """The images that excite each group most on average over patches, a row a group.

    Raises:
        NotMeasurable: the record has no groups.
    """
    return _top_figure(record, groups, count, with_box=False)


def _top_figure(record: PatchRecord, groups: Sequence[int] | None, count: int, with_box: bool) -> Figure:
    _, maps = record.require_groups()
    chosen = list(range(maps.shape[1]) if groups is None else groups)
    shown = chosen[:MAX_GROUPS]
    figure, axes = _mosaic(min(count, len(record)), len(shown), _cap_note(len(chosen)), record.aspect)
    rows, columns = record.grid
    for line, group in enumerate(shown):
        patches = top_patches(record, group, count) if with_box else []
        for position, image in enumerate(
            top_images(record, group, count) if not with_box else [p.image for p in patches]
        ):
            _tile(axes, position, line, shown_colors(record.pixel_values[image]))
            if with_box:
                side = 1 - _GAP
                corner = (
                    position + patches[position].column / columns * side,
                    line + patches[position].row / rows * side,
                )
                for color, width in (("black", 3.0), ("white", 1.4)):
                    axes.add_patch(
                        Rectangle(corner, side / columns, side / rows, fill=False, edgecolor=color, linewidth=width)
                    )
    axes.set_yticks(np.arange(len(shown)) + 0.5 - _GAP / 2, [f"group {group}" for group in shown])
    return figure


def class_figure(record: PatchRecord, per_group: int = 3) -> Figure:
    """Groups (columns) against the classes (rows) that excite any of them most, the classes sorted by group.

    Args:
        record: with labels.
        per_group: how many classes to take for each group. Classes beyond the 60 strongest are left out, and the
            axis says so.

    Raises:
        NotMeasurable: the record has no groups, or as [`disentanglement.class_scores`].
    """
    _, maps = record.require_groups()
    scores = class_scores(maps.mean(axis=(2, 3), dtype=np.float64), record.require_labels())
    z, note = scores.z[:MAX_GROUPS], _cap_note(len(scores.z))
    strongest = np.argsort(-z, axis=1, kind="stable")[:, :per_group]
    candidates = np.unique(strongest)
    kept = candidates[np.argsort(-z[:, candidates].max(axis=0), kind="stable")][:60]
    rows = kept[np.lexsort((-z[:, kept].max(axis=0), z[:, kept].argmax(axis=0)))]
    height = 1.5 + 0.21 * len(rows)
    figure = Figure(figsize=(min(4.2 + 0.34 * len(z), 20), height), layout="constrained")
    axes = figure.subplots()
    reach = max(float(np.abs(z[:, rows]).max()), scores.threshold)
    image = axes.imshow(z[:, rows].T, cmap="PuOr_r", norm=CenteredNorm(0, reach), aspect="auto", interpolation="none")
    for row, column in np.argwhere(np.abs(z[:, rows].T) > scores.threshold):
        axes.plot(
            column,
            row,
            marker="o",
            markersize=3,
            color="black" if abs(z[column, rows[row]]) < 0.6 * reach else "white",
        )
    axes.set_yticks(range(len(rows)), [_shorten(record.label_names[scores.labels[row]]) for row in rows], fontsize=9)
    axes.set_xticks(range(len(z)), [str(group) for group in range(len(z))], fontsize=9 if len(z) <= 32 else 7)
    axes.tick_params(length=0)
    left_out = f"; {len(rows)} of {len(scores.labels)} classes" if len(rows) < len(scores.labels) else ""
    axes.set_xlabel(f"Group{note}{left_out}\n● beyond ±{scores.threshold:.1f}: rare if labels were shuffled")
    figure.colorbar(image, ax=axes, label="z against shuffled labels", pad=0.02, aspect=30)
    return figure


def training_figure(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Zero columns, groups of a living latent and dead latents against the optimizer step.

    Args:
        history: as [`read_training_history`] gives it.

    Raises:
        NotMeasurable: it is empty.
    """
    if not history:
        raise NotMeasurable(
            "The history holds no entry, so there is nothing to draw; give a run that logged something."
        )
    curves = (
        ("zero_columns", "Zero columns, %", 100),
        ("groups_per_living_latent", "Groups per living latent", 1),
        ("dead_latents", "Dead latents", 1),
    )
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    for axes, (key, title, factor), color in zip(figure.subplots(1, 3), curves, OKABE_ITO, strict=False):
        points = [(entry["step"], factor * entry[key]) for entry in history if key in entry]
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("Step")
        axes.plot(
            [step for step, _ in points],
            [value for _, value in points],
            color=color,
            linewidth=2,
            marker="o" if len(points) < 8 else "",
        )
        highest = max((value for _, value in points), default=0)
        axes.set_ylim(0, 100 if key == "zero_columns" else max(1.0, 1.08 * highest))
        if key == "dead_latents":
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.5, alpha=0.4)
    return figure


def pca_figure(record: PatchRecord, images: Sequence[int], groups: Sequence[int] | None = None) -> Figure:
    """Images, the first three principal components of their patch features as colours, and group maps beside them.

    Args:
        record: of any checkpoint; one without groups shows no maps.
        images: indices into the record; the first eight are drawn.
        groups: which groups to draw, eight at most; the first eight if None.

    Raises:
        ValueError: no image is given.
    """
    if not len(images):
        raise ValueError("No image is given; expected at least one index into the record.")
    rows = list(images)[:MAX_IMAGES]
    available = 0 if record.maps is None else record.maps.shape[1]
    shown = list(range(available) if groups is None else groups)[:8]
    note = f"First {len(shown)} of {available} groups" if len(shown) < available else ""
    figure, axes = _mosaic(2 + len(shown), len(rows), note, record.aspect)
    colors = pca_colors(record, rows)
    scale = Normalize(0, 1)
    if record.maps is not None and shown:
        scale = Normalize(0, float(record.maps[np.ix_(rows, shown)].max()) or 1.0)
    for line, image in enumerate(rows):
        _tile(axes, 0, line, shown_colors(record.pixel_values[image]))
        _tile(axes, 1, line, colors[line])
        for position, group in enumerate(shown):
            assert record.maps is not None
            _tile(axes, 2 + position, line, record.maps[image, group], cmap="viridis", norm=scale)
    for column, title in enumerate(["image", "PCA 1–3", *[f"group {group}" for group in shown]]):
        _caption(axes, column, 0, title)
    if shown:
        figure.colorbar(
            ScalarMappable(scale, "viridis"), ax=axes, label="Activation ‖W⁽ᵍ⁾z‖₂", shrink=min(1, 4 / len(rows))
        )
    return figure


# --- helpers ------------------------------------------------------------------------------------------------------


def _mosaic(columns: int, rows: int, note: str = "", aspect: float = 1.0) -> tuple[Figure, Axes]:
    """A figure with one pair of axes for a table of tiles: thousands of tiles need no thousands of axes.

    `aspect` is the height of a tile, divided by its width.
    """
    side = 1.0 if rows <= 16 else 0.8
    figure = Figure(figsize=(side * columns + 1.4, side * rows * aspect + 0.6), layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, -0.2)
    axes.set_aspect(aspect)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(note.removeprefix("; ").capitalize())
    return figure, axes


def _tile(axes: Axes, column: int, row: int, array: np.ndarray, **options: Any) -> None:
    limits = axes.get_xlim(), axes.get_ylim()
    side = 1 - _GAP
    extent = (column, column + side, row + side, row)
    axes.imshow(array, extent=extent, interpolation="nearest", aspect=axes.get_aspect(), **options)
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])


def _caption(axes: Axes, column: int, row: int, text: str) -> None:
    axes.text(column + 0.02, row - 0.02, _shorten(text, 13), fontsize=7, va="bottom")


def _shorten(text: str, length: int = 24) -> str:
    # matplotlib reads $…$ as mathematics.
    short = text if len(text) <= length else text[: length - 1] + "…"
    return short.replace("$", r"\$")


def _cap_note(count: int) -> str:
    return f"; first {MAX_GROUPS} of {count} groups" if count > MAX_GROUPS else ""
