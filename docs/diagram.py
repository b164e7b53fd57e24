# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Draws docs/diagram.svg: what one step does, from an image to the groups.

    python docs/diagram.py

The masks are real ones of `MultiBlockMaskSampler`, the image is one of the built-in scenes. The picture has a light
ground of its own, so it reads the same on light and dark pages. Colours are Okabe and Ito's, which colour-blind
readers can tell apart; shapes and labels say the same without them.
"""

from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle  # noqa: E402

from sparsejepa_hf.data import build_scenes  # noqa: E402
from sparsejepa_hf.masking import MultiBlockMaskSampler  # noqa: E402


GROUND, INK, FAINT = "#ffffff", "#22262e", "#6b7280"
BLUE, ORANGE, GREEN, SKY, PURPLE = "#0072b2", "#d55e00", "#009e73", "#56b4e9", "#cc79a7"
GROUPS = (BLUE, ORANGE, GREEN, PURPLE)
WIDTH, HEIGHT = 16.4, 6.5
GRID, PATCH = 8, 16


def main() -> None:
    """Draws the picture beside this file."""
    plt.rcParams |= {"font.family": "DejaVu Sans", "mathtext.fontset": "dejavusans", "svg.hashsalt": "sparsejepa"}
    figure = plt.figure(figsize=(WIDTH, HEIGHT), facecolor=GROUND)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT), aspect="equal")
    axes.axis("off")
    draw(axes)
    # Without a date, the same code draws the same file.
    figure.savefig(Path(__file__).with_suffix(".svg"), facecolor=GROUND, metadata={"Date": None})


def draw(axes: Axes) -> None:
    """Everything, left to right: images, encoders, predictor, latents, W, generators, loss."""
    image = np.asarray(build_scenes(33, min_objects=4, image_size=GRID * PATCH)[32]["image"])
    context_mask, target_mask = (mask[0].numpy() for mask in MultiBlockMaskSampler((GRID, GRID), seed=5)(1, 0))
    context = np.isin(np.arange(GRID * GRID), context_mask).reshape(GRID, GRID)
    top, bottom = 4.75, 1.45  # middles of the two rows

    picture(axes, image, (0.4, 3.1), 1.55)
    label(axes, 1.175, 2.85, "image $x$")
    picture(axes, image, (2.6, top - 0.8), 1.6, shown=context)
    label(axes, 3.4, top + 1.12, "context", BLUE, bold=True)
    label(axes, 3.4, top - 1.05, f"{context.sum()} of {GRID * GRID} patches")
    picture(axes, image, (2.6, bottom - 0.8), 1.6, blocks=target_mask)
    label(axes, 3.4, bottom + 1.05, "targets", ORANGE, bold=True)
    label(axes, 3.4, bottom - 1.05, f"{len(target_mask)} blocks of {target_mask.shape[1]}")
    arrow(axes, (2.0, 4.15), (2.5, top))
    arrow(axes, (2.0, 3.6), (2.5, bottom + 0.2))

    box(axes, (5.75, top), "context\nencoder", r"$E_\theta$", BLUE)
    box(axes, (5.75, bottom), "target\nencoder", r"$E_{\bar\theta}$", FAINT)
    arrow(axes, (4.28, top), (4.98, top))
    arrow(axes, (4.28, bottom), (4.98, bottom))
    arrow(axes, (5.75, top - 0.68), (5.75, bottom + 0.68), FAINT, dashed=True)
    label(axes, 5.86, (top + bottom) / 2, "moving\naverage", FAINT, align="left")

    box(axes, (7.95, top), "predictor", r"$P_\varphi$", BLUE)
    arrow(axes, (6.52, top), (7.18, top))

    latents(axes, 9.75, top)
    arrow(axes, (8.72, top), (9.5, top))
    matrix(axes, 11.5, top)
    arrow(axes, (10.02, top), (10.5, top))
    generators(axes, 13.95, top)

    arrow(axes, (15.25, top - 1.5), (15.25, 2.42), INK)
    label(axes, 15.38, 2.82, r"$\hat s$", INK, align="left", size=15)
    arrow(axes, (6.52, bottom), (13.55, bottom))
    label(axes, 10.0, bottom + 0.26, "embeddings of the hidden patches, normalised: $s$", INK)
    label(axes, 10.0, bottom - 0.26, "no gradient", FAINT)
    rounded(axes, (14.85, bottom), (2.4, 1.7), INK, fill="#f3f4f6")
    label(axes, 14.85, bottom + 0.5, r"$\mathcal{L}_{\mathrm{pred}}(\hat s, s)$", INK, size=13)
    label(axes, 14.85, bottom, r"$+\ \beta\,\mathrm{KL}(q(z)\,\|\,\mathcal{N}(0, I))$", INK, size=11)
    label(axes, 14.85, bottom - 0.5, r"$+\ \lambda\,\sum_{g,j}\,\|W^{(g)}_{\cdot j}\|_2$", INK, size=12)


def picture(
    axes: Axes,
    image: np.ndarray,
    corner: tuple[float, float],
    side: float,
    shown: np.ndarray | None = None,
    blocks: np.ndarray | None = None,
) -> None:
    """The image; with `shown` only these patches, with `blocks` (M, Nt) their patches outlined."""
    x, y = corner
    pixels, cell = image.copy(), side / GRID
    if shown is not None:
        hidden = ~np.kron(shown, np.ones((PATCH, PATCH), dtype=bool))
        pixels[hidden] = 232
    axes.imshow(pixels, extent=(x, x + side, y, y + side), interpolation="none", zorder=2)
    for line in range(GRID + 1):
        axes.plot([x, x + side], [y + line * cell] * 2, color="white", lw=0.6, zorder=3)
        axes.plot([x + line * cell] * 2, [y, y + side], color="white", lw=0.6, zorder=3)
    axes.add_patch(Rectangle(corner, side, side, fc="none", ec=FAINT, lw=0.8, zorder=4))
    for block in () if blocks is None else blocks:
        outline(axes, set(block.tolist()), (x, y + side), cell)


def outline(axes: Axes, block: set[int], corner: tuple[float, float], cell: float) -> None:
    """The border of a block of patches, whose first row is the highest."""
    x, y = corner
    for patch in block:
        row, column = divmod(patch, GRID)
        left, top = x + column * cell, y - row * cell
        axes.add_patch(Rectangle((left, top - cell), cell, cell, fc=ORANGE, alpha=0.22, lw=0, zorder=4))
        edges = {
            (-1, 0): ((left, top), (left + cell, top)),
            (1, 0): ((left, top - cell), (left + cell, top - cell)),
            (0, -1): ((left, top), (left, top - cell)),
            (0, 1): ((left + cell, top), (left + cell, top - cell)),
        }
        for (down, right), (start, end) in edges.items():
            is_inside = 0 <= column + right < GRID and (row + down) * GRID + column + right in block
            if not is_inside:
                axes.plot(*zip(start, end, strict=True), color=ORANGE, lw=2.6, solid_capstyle="round", zorder=5)


def rounded(
    axes: Axes, centre: tuple[float, float], size: tuple[float, float], color: str, fill: str = GROUND
) -> None:
    """A box with round corners."""
    corner = (centre[0] - size[0] / 2, centre[1] - size[1] / 2)
    style = "round,pad=0.02,rounding_size=0.12"
    axes.add_patch(FancyBboxPatch(corner, *size, boxstyle=style, fc=fill, ec=color, lw=2))


def box(axes: Axes, centre: tuple[float, float], text: str, symbol: str, color: str) -> None:
    """A network."""
    x, y = centre
    rounded(axes, centre, (1.5, 1.24), color)
    label(axes, x, y + 0.2, text, INK, size=11.5)
    label(axes, x, y - 0.36, symbol, color, size=13)


def latents(axes: Axes, x: float, y: float) -> None:
    """The latents z, eight of them."""
    for place in range(8):
        # The last belongs to no group.
        color = SKY if place < 7 else GROUND
        axes.add_patch(plt.Circle((x, y + 1.12 - 0.32 * place), 0.125, fc=color, ec=INK, lw=0.9, zorder=3))
    label(axes, x, y + 1.52, "latents $z$", INK, bold=True)
    label(axes, x, y - 1.5, r"$z = \mu + \sigma\odot\varepsilon$", FAINT)


def matrix(axes: Axes, x: float, y: float) -> None:
    """W as a table of groups against latents: a filled cell is a column that is not zero."""
    held = np.array(
        [[1, 1, 0, 0, 0, 0, 1, 0], [0, 0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1, 0]]
    )
    cell_x, cell_y = 0.46, 0.32
    left, upper = x - 2 * cell_x, y + 1.28
    for group in range(4):
        for latent in range(8):
            corner = (left + group * cell_x, upper - (latent + 1) * cell_y)
            color = GROUPS[group] if held[group, latent] else "#eef0f3"
            axes.add_patch(Rectangle(corner, cell_x, cell_y, fc=color, ec="white", lw=1.4, zorder=3))
    label(axes, x, y + 1.52, "group matrix $W$", INK, bold=True)
    label(axes, x, y - 1.5, r"a cell: $W^{(g)}_{\cdot j}$; grey: zero", FAINT)


def generators(axes: Axes, x: float, y: float) -> None:
    """One generator for each group, and the slices of the embedding that they make."""
    for group, color in enumerate(GROUPS):
        middle = y + 0.96 - 0.64 * group
        arrow(axes, (12.5, middle), (x - 0.72, middle), color)
        rounded(axes, (x, middle), (1.24, 0.44), color)
        label(axes, x, middle, f"$f_{group + 1}(W^{{({group + 1})}} z)$", INK, size=10.5)
        arrow(axes, (x + 0.7, middle), (15.08, middle), color)
        axes.add_patch(Rectangle((15.1, middle - 0.32), 0.3, 0.64, fc=color, ec="white", lw=1.2, zorder=3))
    label(axes, x, y + 1.52, "generators", INK, bold=True)
    label(axes, 15.25, y + 1.52, "prediction", INK, bold=True)


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str = INK, dashed: bool = False
) -> None:
    """An arrow."""
    style: dict[str, Any] = {"linestyle": (0, (4, 3))} if dashed else {}
    style |= {"arrowstyle": "-|>", "mutation_scale": 13, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, color=color, lw=1.6, **style))


def label(
    axes: Axes,
    x: float,
    y: float,
    text: str,
    color: str = FAINT,
    *,
    bold: bool = False,
    align: str = "center",
    size: float = 11,
) -> None:
    """Text about a point."""
    weight = "bold" if bold else "normal"
    axes.text(x, y, text, color=color, ha=align, va="center", fontsize=size, fontweight=weight, linespacing=1.15)


if __name__ == "__main__":
    main()
