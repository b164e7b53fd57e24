# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Accuracy and group sparsity against λ, G, β and whatever else is varied, one at a time around a recipe.

A results file is that of [`experiments.reproduction`] with `axes` (option -> values tried) and `base` (the recipe's
values of those options). Points are compared by the accuracy on the validation part of the training set; test accuracy
is shown and chooses nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluation.statistics import summarize
from ..records import NONE, mean_and_std, percent, table
from .paper_table import Record, values_by_seed
from .runs import IJEPA, SPARSEJEPA


# Greek, as in the paper, for headings.
SYMBOLS = {"sparsity_weight": "λ", "kl_weight": "β", "num_groups": "G", "num_latents": "K", "group_size": "p"}


def point_name(options: Mapping[str, Any]) -> str:
    """What a run that differs from the recipe in `options` is called."""
    changes = ", ".join(f"{SYMBOLS.get(name, name)} = {_shown(value)}" for name, value in options.items())
    return f"{SPARSEJEPA}, {changes}" if changes else SPARSEJEPA


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


# What of a run's last log tells how sparse W is, and how near its optimum.
OF_W = ("zero_columns", "groups_per_living_latent", "selectivity", "dead_latents")
OF_W += ("group_gradient_norm", "kkt_residual_zero", "kkt_residual_nonzero")


@dataclass(frozen=True)
class Point:
    """One setting's result: means over its seeds, shares in [0, 1]; None where it was not measured."""

    label: str
    validation: float | None
    validation_std: float | None
    test: float | None
    knn: float | None
    zero_columns: float | None
    groups_per_living_latent: float | None
    selectivity: float | None
    dead_latents: float | None
    group_gradient_norm: float | None
    kkt_residual_zero: float | None
    kkt_residual_nonzero: float | None
    seeds: int


def point(record: Record, method: str, label: str | None = None) -> Point:
    """The result of all seeds of a method on the sweep's data set."""
    task = next(iter(record["tasks"]))
    means: dict[str, float | None] = {}
    std, seeds = None, 0
    for metric in ("validation_accuracy", "accuracy", "knn_accuracy"):
        values = values_by_seed(record, task, method, metric)
        means[metric] = summarize(values).mean if values else None
        if metric == "validation_accuracy" and values:
            std, seeds = summarize(values).std, len(values)
    last = {name: _mean_last(record, method, name) for name in OF_W}
    return Point(
        label=label or method,
        validation=means["validation_accuracy"],
        validation_std=std,
        test=means["accuracy"],
        knn=means["knn_accuracy"],
        seeds=seeds,
        **last,
    )


def _mean_last(record: Record, method: str, name: str) -> float | None:
    values = [run["last"][name] for run in record["runs"] if run["method"] == method and name in run.get("last", {})]
    return sum(values) / len(values) if values else None


def axis_points(record: Record, option: str) -> dict[Any, Point]:
    """The points along one option, by value, numbers ascending; the recipe's own value is the recipe's run."""
    base = record["base"][option]
    values = record["axes"][option]
    if all(isinstance(value, int | float) for value in values):
        values = sorted(values)
    methods = {v: SPARSEJEPA if v == base else point_name({option: v}) for v in values}
    return {value: point(record, method, _shown(value)) for value, method in methods.items()}


def peak(points: Mapping[Any, Point]) -> Any | None:
    """The value with the best validation accuracy; None if nothing was measured."""
    measured = {value: p.validation for value, p in points.items() if p.validation is not None}
    return max(measured, key=measured.__getitem__) if measured else None


def falls_at(points: Mapping[Any, Point], floor: float | None) -> Any | None:
    """The first value beyond the peak from which accuracy stays under `floor` (I-JEPA's); None if there is none."""
    best = peak(points)
    if best is None or floor is None:
        return None
    values = [value for value in points if points[value].validation is not None]
    beyond = values[values.index(best) + 1 :]
    fallen = None
    for value in reversed(beyond):
        if points[value].validation >= floor:
            break
        fallen = value
    return fallen


def render(record: Record) -> str:
    """One table an option, and one of the variants, each beside I-JEPA."""
    baseline = point(record, IJEPA)
    parts = []
    for option in record["axes"]:
        points = axis_points(record, option)
        best, fallen = peak(points), falls_at(points, baseline.validation)
        rows = [_row(baseline, "")]
        rows += [_row(p, _mark(v, best, fallen, p, baseline)) for v, p in points.items()]
        symbol = SYMBOLS.get(option, option)
        parts.append(f"**{symbol}** (`{option}`; the recipe's is {_shown(record['base'][option])})")
        parts.append(table([symbol, *_HEADER], rows))
    variants = [point(record, method, method) for method in record.get("variants", [])]
    if variants:
        recipe = point(record, SPARSEJEPA, f"{SPARSEJEPA}, as the recipe has it")
        ranked = sorted([recipe, *variants], key=lambda p: -1.0 if p.validation is None else -p.validation)
        parts += ["**Variants**, best first", table(["variant", *_HEADER], [_row(p, "") for p in [baseline, *ranked]])]
    return "\n\n".join(parts)


_HEADER = ["validation", "test", "kNN", "zero columns", "groups per living latent", "selectivity", "dead latents"]
_HEADER += ["‖ḡ‖", "KKT, zero", "KKT, non-zero", "seeds", ""]


def _row(p: Point, mark: str) -> list[str]:
    validation = NONE if p.validation is None else mean_and_std(p.validation, p.validation_std)
    zeros = NONE if p.zero_columns is None else f"{percent(p.zero_columns)} %"
    numbers = [NONE if (value := getattr(p, name)) is None else f"{value:.3g}" for name in OF_W[1:]]
    return [p.label, validation, percent(p.test), percent(p.knn), zeros, *numbers, str(p.seeds), mark]


def _mark(value: Any, best: Any, fallen: Any, p: Point, baseline: Point) -> str:
    if value == best:
        above = p.validation is not None and baseline.validation is not None and p.validation > baseline.validation
        return "peak" if above else "peak, not above I-JEPA"
    return "falls below I-JEPA from here on" if fallen is not None and value == fallen else ""


def plot(record: Record, path: Path) -> None:
    """Accuracy, zero columns, groups per living latent and the optimality of W, one column an option with numbers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    options = [name for name, values in record["axes"].items() if all(isinstance(v, int | float) for v in values)]
    size = (4.1 * len(options) + 0.6, 9.6)
    figure, axes = plt.subplots(
        4, len(options), figsize=size, layout="constrained", squeeze=False, sharex="col", sharey="row"
    )
    baseline = point(record, IJEPA)
    for column, option in enumerate(options):
        points = axis_points(record, option)
        _accuracy_panel(axes[0, column], points, baseline)
        _line(axes[1, column], [p.zero_columns for p in points.values()], "o-", "C3", None)
        _line(axes[2, column], [p.groups_per_living_latent for p in points.values()], "o-", "C3", None, scale=1.0)
        _optimality_panel(axes[3, column], points)
        # Places, not a scale: most grids are spread over decades and begin at zero.
        axes[3, column].set_xticks(range(len(points)), [p.label for p in points.values()], fontsize=8)
        axes[3, column].set_xlabel(SYMBOLS.get(option, option))
        for axis in axes[:, column]:
            axis.grid(alpha=0.3)
    labels = ("top-1, per cent", "zero columns of W,\nper cent", "groups per\nliving latent", "gradient's scale")
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label)
    axes[0, 0].legend(frameon=False, fontsize=8)
    axes[3, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _optimality_panel(axis: Any, points: Mapping[Any, Point]) -> None:
    """How far zero columns and others miss the lasso's conditions, beside the gradient's norm."""
    for name, style, color, label in (
        ("group_gradient_norm", "o-", "0.5", "median ‖ḡ‖ of a column"),
        ("kkt_residual_nonzero", "s--", "C0", "KKT residual, columns that are not zero"),
        ("kkt_residual_zero", "^:", "C3", "KKT residual, zero columns"),
    ):
        _line(axis, [getattr(p, name) for p in points.values()], style, color, label, scale=1.0)
    axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))


def _accuracy_panel(axis: Any, points: Mapping[Any, Point], baseline: Point) -> None:
    best, fallen = peak(points), falls_at(points, baseline.validation)
    for style, name, label in (("o-", "validation", "linear, validation"), ("s--", "test", "linear, test")):
        color = "C1" if name == "validation" else "C2"
        _line(axis, [getattr(p, name) for p in points.values()], style, color, label)
        if getattr(baseline, name) is not None:
            level = 100 * getattr(baseline, name)
            axis.axhline(level, color=color, linestyle=":", linewidth=1, label=f"I-JEPA, {name}")
    places = list(points)
    for value, text, offset in ((best, "peak", 9), (fallen, "falls", -14)):
        if value is not None:
            at = (places.index(value), 100 * points[value].validation)
            axis.annotate(text, at, (0, offset), textcoords="offset points", ha="center", fontsize=8)
    axis.margins(y=0.2)


def _line(
    axis: Any,
    values: Sequence[float | None],
    style: str,
    color: str,
    label: str | None,
    scale: float = 100.0,
) -> None:
    """Measured values by place, shares as per cent."""
    found = [(place, scale * value) for place, value in enumerate(values) if value is not None]
    if found:
        axis.plot(*zip(*found, strict=True), style, color=color, label=label, markersize=4, linewidth=1.2)
