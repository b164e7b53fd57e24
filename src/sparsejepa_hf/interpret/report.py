# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""One page about the groups of a checkpoint: a single HTML file that needs no network, no script and no other file."""

import base64
import functools
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import matplotlib
import numpy as np
import yaml
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from PIL import Image

from .. import __version__
from . import figures
from .disentanglement import ClassScores, class_scores
from .groups import GroupStructure, find_model
from .measures import Measure, NotMeasurable
from .patches import PatchRecord, above_place, shown_colors


if TYPE_CHECKING:
    from .analysis import Explanation


MAX_BYTES = 5_000_000
_NUM_PICTURES = 6
_NUM_CLASSES = 5
# Pictures up to this side are enlarged without smoothing; larger ones are reduced to it and compressed with loss.
_PIXEL_ART = 64
_PICTURE_SIDE = 112
# Maps are coloured from this many standard deviations below a group's mean activation to as many above it.
_REACH = 2.5
# Colours that matplotlib draws with and the page replaces by its own, which follow the reader's light or dark theme.
_INK, _LINE = "#010203", "#040506"


@dataclass(frozen=True)
class _Picture:
    source: str
    alt: str
    caption: str = ""
    # Of the box around a patch, in per cent: left, top, width, height.
    box: tuple[float, float, float, float] | None = None


def write_report(path: str | Path, explanation: "Explanation", *, data_name: str = "") -> Path:
    """Writes the page about a checkpoint: what it is, each of its groups, and every section.

    Args:
        path: of the HTML file; its folder is made.
        explanation: as `explain` gives it. Without groups, as for an I-JEPA, the page says so and shows the rest.
        data_name: what to call the images, such as "cifar100, test".

    Returns:
        `path`. The file has at most 5 MB: with many groups or large images, fewer patches are shown.
    """
    path = Path(path)
    record, structure = explanation.record, explanation.structure
    common = {
        "name": _name(explanation.encoder.name),
        "data_name": data_name,
        "num_images": len(record),
        "facts": _facts(explanation),
        "sections": explanation.sections,
        "charts": _charts(explanation),
        "pixelated": max(record.pixel_values.shape[2:]) <= _PIXEL_ART,
        "aspect_ratio": "{3} / {2}".format(*record.pixel_values.shape),
        "version": __version__,
        "reach": _REACH,
        "color_bar": _data_uri(_colors(np.linspace(0, 1, 64)[None]), lossless=True),
        "summary": None if structure is None else _summary(structure),
        "is_prediction": find_model(explanation.encoder.module).config.latent_position == "predictor",
        "no_groups": record.no_groups,
    }
    template = _environment().get_template("report_template.html")

    @functools.cache
    def photo(index: int) -> str:
        return _data_uri(np.moveaxis(shown_colors(record.pixel_values[index]), -1, 0))

    # Groups come in the tens at most, but nothing stops a model from having hundreds.
    for num_patches in (8, 4, 2, 1):
        page = template.render(**common, **_groups(explanation, photo, num_patches))
        if len(page.encode()) <= MAX_BYTES:
            break
    else:
        raise ValueError(
            f"The page has {len(page.encode()):,} bytes; expected at most {MAX_BYTES:,}. Give fewer sections."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def write_figures(folder: str | Path, explanation: "Explanation") -> list[Path]:
    """Writes every figure that this checkpoint and these images allow, each as PNG and SVG.

    Args:
        folder: where to; it is made.
        explanation: as `explain` gives it.

    Returns:
        The files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record, structure = explanation.record, explanation.structure
    shown = _pictures_to_show(record)
    drawings: dict[str, Callable[[], Figure]] = {"pca": lambda: figures.pca_figure(record, shown)}
    if structure is not None:
        assert record.maps is not None
        pixels, maps, names = record.pixel_values[shown], record.maps[shown], [_class_name(record, i) for i in shown]
        drawings |= {
            "importance": lambda: figures.importance_figure(structure),
            "maps": lambda: figures.heat_map_figure(pixels, maps, names),
            "top_patches": lambda: figures.top_patches_figure(record),
            "top_images": lambda: figures.top_images_figure(record),
            "classes": lambda: figures.class_figure(record),
            "training": lambda: figures.training_figure(figures.read_training_history(_folder(explanation))),
        }
    written = []
    for name, draw in drawings.items():
        try:
            figure = draw()
        except NotMeasurable:
            continue
        for suffix in ("png", "svg"):
            written.append(folder / f"{name}.{suffix}")
            figure.savefig(written[-1], dpi=150)
    return written


# --- the model ----------------------------------------------------------------------------------------------------


def _folder(explanation: "Explanation") -> Path:
    """Where the checkpoint lies; a folder without the files of a run if it came from the Hub."""
    return Path(find_model(explanation.encoder.module).config._name_or_path or ".")


def _name(source: str) -> str:
    """A folder's own name; where it lies says more about a machine than about the model."""
    return Path(source).resolve().name if Path(source).is_dir() else source


def _facts(explanation: "Explanation") -> list[tuple[str, str]]:
    """Names and values, in words."""
    model = find_model(explanation.encoder.module)
    config = model.config
    height, width = config.patch_sides
    rows, columns = config.grid_size
    facts = [
        (
            "Encoder",
            f"Vision Transformer of {config.num_hidden_layers} layers, width {config.hidden_size}, "
            f"{config.num_attention_heads} heads",
        ),
        ("Images", f"{rows * height} × {columns * width} pixels in {rows} × {columns} patches"),
        (
            "Predictor",
            "a pooled context and a small MLP"
            if config.predictor_type == "mlp"
            else f"Transformer of {config.predictor_num_hidden_layers} layers, width {config.predictor_hidden_size}",
        ),
    ]
    if config.use_grouping:
        where = "on the predictor’s output" if config.latent_position == "predictor" else "on the encoder’s output"
        facts += [
            ("Latents", f"{config.num_latents}, {where}{', with noise in training' if config.variational else ''}"),
            ("Groups", f"{config.num_groups}, each of {config.group_size} inputs"),
            ("Sparsity", f"λ = {config.sparsity_weight:g}, {config.sparsity_mode}"),
            ("KL weight", f"β = {config.kl_weight:g}"),
        ]
    facts.append(("Parameters", f"{sum(weight.numel() for weight in model.parameters()):,}"))
    return facts + _recipe(_folder(explanation))


def _recipe(folder: Path) -> list[tuple[str, str]]:
    """How it was trained, where the run's options lie beside the weights."""
    try:
        options = yaml.safe_load((folder / "pretraining_options.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    if not isinstance(options, dict):
        return []
    shown = {
        "dataset": "Trained on",
        "max_steps": "Steps",
        "num_train_epochs": "Epochs",
        "per_device_train_batch_size": "Batch size of a process",
        "learning_rate": "Learning rate",
        "seed": "Seed",
    }
    if options.get("max_steps", -1) > 0:
        del shown["num_train_epochs"]
    else:
        del shown["max_steps"]
    # A path says more about a machine than about the data.
    return [
        (title, Path(str(options[key])).name if key == "dataset" else _plain(options[key]))
        for key, title in shown.items()
        if options.get(key) is not None
    ]


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _summary(structure: GroupStructure) -> list[tuple[str, str, str]]:
    """The numbers to see first: value, name, what it means."""
    groups, latents = structure.importance.shape
    living = structure.groups_per_latent[structure.groups_per_latent > 0]
    return [
        (
            f"{structure.zero_columns:.0%}",
            "of the columns of W are exactly zero",
            f"{groups * latents:,} columns: {groups} groups × {latents} latents",
        ),
        (
            f"{living.mean():.1f}" if len(living) else "–",
            "groups hold a living latent",
            f"of {groups}, on average",
        ),
        (f"{len(structure.dead_latents)}", "dead latents", f"of {latents}; no group holds them"),
        (f"{len(structure.dead_groups)}", "dead groups", f"of {groups}; they hold no latent"),
    ]


# --- the groups ---------------------------------------------------------------------------------------------------


def _groups(explanation: "Explanation", photo: Callable[[int], str], num_patches: int) -> dict[str, Any]:
    """What the template needs for pictures and groups."""
    record, structure = explanation.record, explanation.structure
    shown = _pictures_to_show(record)
    principal = figures.pca_colors(record, shown)
    pictures = [
        {
            "source": photo(index),
            "name": _class_name(record, index),
            "pca": _data_uri(_bytes(principal[position]), lossless=True),
        }
        for position, index in enumerate(shown)
    ]
    if structure is None or record.maps is None:
        return {"pictures": pictures, "groups": [], "num_groups": 0, "class_note": "", "class_threshold": None}
    maps = record.maps
    deviation = maps.std(axis=(0, 2, 3), keepdims=True)
    unit = np.where(deviation > 0, deviation, 1)
    raw = (maps[shown] - maps.mean(axis=(0, 2, 3), keepdims=True)) / unit
    above = above_place(maps)[shown] / unit
    mean = (maps.mean(axis=0) - maps.mean(axis=(0, 2, 3))[:, None, None]) / unit[0]
    shares, likeness = figures.variation_shares(maps), _likeness(maps)
    try:
        activity = maps.mean(axis=(2, 3), dtype=np.float64)
        scores, class_note = class_scores(activity, record.require_labels()), ""
    except NotMeasurable as reason:
        scores, class_note = None, str(reason)
    order = range(min(len(structure.importance), figures.MAX_GROUPS))
    groups = []
    for group in order:
        is_dead = group in structure.dead_groups
        groups.append(
            {
                "index": group,
                "is_dead": is_dead,
                "sentence": _sentence(structure, shares, group, len(record)),
                "mean": _Picture(
                    _map_uri(mean[group]), f"Group {group} on average over all images: {_describe(mean[group])}."
                ),
                "maps": [
                    {
                        "raw": _map_uri(raw[position, group]),
                        "above": _map_uri(above[position, group]),
                        "alt": f"Group {group} in picture {position + 1}"
                        f"{f' ({name})' if (name := pictures[position]['name']) else ''}: "
                        f"{_describe(raw[position, group])}.",
                        "alt_above": f"Compared with the same place in other images: "
                        f"{_describe(above[position, group])}.",
                    }
                    for position in range(len(shown))
                ],
                "patches": [] if is_dead else _patches(record, photo, group, num_patches, False),
                "patches_above": []
                if is_dead or len(record) < 2
                else _patches(record, photo, group, num_patches, True),
                "images": [] if is_dead else _images(record, photo, group, num_patches),
                "classes": [] if scores is None or is_dead else _classes(scores, record.label_names, group),
                "scores": _scores(structure, shares, likeness, explanation, group),
            }
        )
    return {
        "pictures": pictures,
        "groups": groups,
        "num_groups": len(structure.importance),
        "class_note": class_note,
        "class_threshold": None if scores is None else scores.threshold,
    }


def _pictures_to_show(record: PatchRecord) -> list[int]:
    """The first images of the record, each of another class while there are any."""
    labels = np.arange(len(record)) if record.labels is None else record.labels
    _, first = np.unique(labels, return_index=True)
    chosen = sorted(first)[:_NUM_PICTURES]
    others = [index for index in range(len(record)) if index not in chosen]
    return [int(index) for index in [*chosen, *others][:_NUM_PICTURES]]


def _sentence(structure: GroupStructure, shares: np.ndarray, group: int, num_images: int) -> str:
    held, latents = structure.latents_per_group[group], structure.importance.shape[1]
    if not held:
        return "No latent holds this group: all its columns of W are zero, so it is never active."
    own = int((structure.assignment == group).sum())
    verb = "matters" if own == 1 else "matter"
    text = f"It holds {held} of {latents} latents; {own or 'none'} of them {verb} more to it than to any other group."
    if num_images > 1 and np.isfinite(shares[group]).all():
        place, image, rest = shares[group]
        text += (
            f" Of the variation in its activity, {place:.0%} comes from the place in the image alone, {image:.0%} "
            f"from the image as a whole, and {rest:.0%} from what is at one place of one image."
        )
    return text


def _scores(
    structure: GroupStructure, shares: np.ndarray, likeness: np.ndarray, explanation: "Explanation", group: int
) -> list[tuple[str, str]]:
    """Names and values of what is known of one group."""
    own = structure.selectivity[structure.assignment == group]
    scores = [
        ("Latents held", f"{structure.latents_per_group[group]}"),
        ("Latents that matter most to it", f"{len(own)}"),
    ]
    if len(own) and np.isfinite(own).all():
        scores.append(("Selectivity of these latents", f"{own.mean():.2f}"))
    if np.isfinite(likeness[group]).any():
        other = int(np.nanargmax(likeness[group]))
        scores.append(("Group most like it", f"group {other}, r = {format_number(likeness[group, other], 2)}"))
    # Sections may score single groups: `details["by_group"]` maps a score's name to one number a group.
    for section in explanation.sections:
        for name, values in section.details.get("by_group", {}).items():
            if values[group] is not None:
                scores.append((name, format_number(values[group])))
    return scores


def _likeness(maps: np.ndarray) -> np.ndarray:
    """Correlation of groups over all patches, the mean at each place taken off, (G, G).

    NaN on the diagonal, and where a group never varies.
    """
    flat = np.moveaxis(above_place(maps), 1, 0).reshape(maps.shape[1], -1).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        likeness = np.atleast_2d(np.corrcoef(flat)).copy()
    np.fill_diagonal(likeness, np.nan)
    return likeness


def _patches(
    record: PatchRecord, photo: Callable[[int], str], group: int, count: int, for_place: bool
) -> list[_Picture]:
    rows, columns = record.grid
    found = figures.top_patches(record, group, count, for_place)
    pictures = []
    for patch in found:
        name = _class_name(record, patch.image)
        where = _place(patch.row, patch.column, rows, columns)
        pictures.append(
            _Picture(
                photo(patch.image),
                f"Image {patch.image}{f' ({name})' if name else ''}, with a box {where}.",
                name,
                (100 * patch.column / columns, 100 * patch.row / rows, 100 / columns, 100 / rows),
            )
        )
    return pictures


def _images(record: PatchRecord, photo: Callable[[int], str], group: int, count: int) -> list[_Picture]:
    return [
        _Picture(
            photo(index),
            f"Image {index}{f' ({name})' if (name := _class_name(record, index)) else ''}.",
            name,
        )
        for index in figures.top_images(record, group, count)
    ]


def _classes(scores: ClassScores, names: tuple[str, ...], group: int) -> list[dict[str, Any]]:
    z = scores.z[group]
    widest = max(float(np.abs(scores.z).max()), scores.threshold)
    return [
        {
            "name": names[scores.labels[index]],
            "z": format_number(z[index], 2),
            "width": round(100 * max(z[index], 0) / widest, 1),
            "stands_out": bool(z[index] > scores.threshold),
        }
        for index in np.argsort(-z, kind="stable")[:_NUM_CLASSES]
    ]


def _class_name(record: PatchRecord, index: int) -> str:
    if record.labels is None or record.labels[index] < 0:
        return ""
    return record.label_names[record.labels[index]]


def _describe(values: np.ndarray) -> str:
    """Where a map is strongest, for who cannot see it."""
    if np.ptp(values) < 0.1:
        return "the same everywhere"
    row, column = np.unravel_index(values.argmax(), values.shape)
    return f"strongest {_place(int(row), int(column), *values.shape)}"


def _place(row: int, column: int, rows: int, columns: int) -> str:
    vertical = ("upper", "middle", "lower")[min(3 * row // rows, 2)]
    horizontal = ("left", "centre", "right")[min(3 * column // columns, 2)]
    if vertical == "middle":
        return "in the centre" if horizontal == "centre" else f"at the {horizontal}"
    return f"at the {vertical} {horizontal}"


# --- charts -------------------------------------------------------------------------------------------------------


def _charts(explanation: "Explanation") -> dict[str, Any]:
    """SVG of the figures that concern the whole model, or the sentence that says why there is none."""
    structure = explanation.structure
    if structure is None:
        return {}
    drawings: dict[str, tuple[Callable[[], Figure], str]] = {
        "importance": (
            lambda: figures.importance_figure(structure),
            f"Importance of {structure.importance.shape[1]} latents for {structure.importance.shape[0]} groups. "
            f"{structure.zero_columns:.0%} of the cells are exactly zero.",
        ),
        "classes": (
            lambda: figures.class_figure(explanation.record),
            "Groups against the classes that excite them most.",
        ),
        "training": (
            lambda: figures.training_figure(figures.read_training_history(_folder(explanation))),
            "Zero columns, groups per living latent and dead latents through training.",
        ),
    }
    charts: dict[str, Any] = {}
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "report",
        "font.family": ["sans-serif"],
        "text.color": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.edgecolor": _LINE,
        "axes.facecolor": "none",
        "legend.edgecolor": _LINE,
    }
    for name, (draw, alt) in drawings.items():
        try:
            with matplotlib.rc_context(style):
                charts[name] = {"svg": _svg(draw(), name, alt)}
        except NotMeasurable as reason:
            charts[name] = {"svg": "", "reason": str(reason)}
    return charts


def _svg(figure: Figure, name: str, alt: str) -> Markup:
    """The figure as an SVG element whose colours are the page's."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", facecolor="none", metadata=nothing)
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    # HTML needs no namespaces.
    drawing = drawing.replace(' xmlns="http://www.w3.org/2000/svg"', "").replace(
        ' xmlns:xlink="http://www.w3.org/1999/xlink"', ""
    )
    # One page holds several drawings, and matplotlib names their parts alike.
    drawing = re.sub(r'( id="|url\(#|xlink:href="#)', rf"\g<1>{name}-", drawing)
    colors = {_INK: "--ink", _LINE: "--muted", figures.ZERO_COLOR: "--zero", figures.RULE_COLOR: "--paper"}
    for color, variable in colors.items():
        drawing = drawing.replace(color, f"var({variable})")
    # Never smaller than letters can be read: on a phone it scrolls inside its frame.
    width = 72 * figure.get_figwidth()
    style = f"min-width: {width:.0f}px; max-width: {1.6 * width:.0f}px"
    return Markup(drawing.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" style="{style}" ', 1))


def _strip(measure: Measure) -> Markup:
    """The measure (a dot, its interval a line) above the range of each null (bars), on one scale."""
    low, high = measure.interval or (measure.value, measure.value)
    ends = [measure.value, low, high, *(end for null in measure.nulls for end in (null.low, null.high, null.mean))]
    if not measure.nulls or not all(map(math.isfinite, ends)):
        return Markup("")
    start, stop = min(ends), max(ends)
    margin = 0.06 * (stop - start) or abs(stop) * 0.1 or 1.0
    start, stop = start - margin, stop + margin

    def x(value: float) -> str:
        return f"{100 * (value - start) / (stop - start):.1f}"

    parts = []
    for line, null in enumerate(measure.nulls):
        y = 20 + 9 * line
        wide = max(float(x(null.high)) - float(x(null.low)), 1.5)
        parts.append(f'<rect class="null" x="{x(null.low)}%" y="{y}" width="{wide:.1f}%" height="5" rx="2.5"/>')
    parts.append(f'<line class="interval" x1="{x(low)}%" x2="{x(high)}%" y1="9" y2="9"/>')
    parts.append(f'<circle class="value" cx="{x(measure.value)}%" cy="9" r="5"/>')
    height = 24 + 9 * len(measure.nulls)
    return Markup(f'<svg class="strip" aria-hidden="true" width="100%" height="{height}">{"".join(parts)}</svg>')


# --- helpers ------------------------------------------------------------------------------------------------------


def format_number(value: float, digits: int = 3) -> str:
    """A number to read: `digits` significant digits, a true minus sign, no exponent where it can be helped."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    text = f"{value:.{digits - 1}e}" if places > 7 else f"{round(value, places):,.{max(places, 0)}f}"
    return text.replace("-", "−")


def _words(text: str) -> Markup:
    """Text whose `names` are set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = format_number
    environment.filters["strip_chart"] = _strip
    environment.filters["words"] = _words
    return environment


def _colors(values: np.ndarray) -> np.ndarray:
    """viridis of values from 0 to 1, uint8 (3, rows, columns)."""
    return _bytes(matplotlib.colormaps["viridis"](values)[..., :3])


def _bytes(colors: np.ndarray) -> np.ndarray:
    """uint8 (3, rows, columns) of colours from 0 to 1 (rows, columns, 3)."""
    return np.moveaxis(np.round(255 * colors).astype(np.uint8), -1, 0)


def _map_uri(deviations: np.ndarray) -> str:
    return _data_uri(_colors(np.clip(deviations / (2 * _REACH) + 0.5, 0, 1)), lossless=True)


def _data_uri(pixels: np.ndarray, lossless: bool = False) -> str:
    """An image (3, rows, columns) as a URI that holds it."""
    image = Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))
    buffer = io.BytesIO()
    if lossless:
        image.save(buffer, "PNG", optimize=True)
    elif max(image.size) <= _PIXEL_ART:
        image.save(buffer, "WEBP", lossless=True, quality=80)
    else:
        image.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE), Image.Resampling.LANCZOS)
        image.save(buffer, "WEBP", quality=80)
    kind = "png" if lossless else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


__all__ = ["MAX_BYTES", "format_number", "write_figures", "write_report"]
