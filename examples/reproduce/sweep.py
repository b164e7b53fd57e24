# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Sweep λ, G and β, one at a time around a recipe: where accuracy peaks, where it falls, how sparse W is.

    python -m examples.reproduce.sweep examples/configs/cifar100-cpu.yaml --task cifar100 --seeds 0 --jobs 2 \
        --axis sparsity_weight 0 1e-4 3e-4 1e-3 3e-3 1e-2 --axis num_groups 4 8 24 --axis kl_weight 0 1e-5 1e-4 \
        --variant 'latent_position=encoder latent_residual=true'
    python -m examples.reproduce.sweep --render results/sweep_sparsity.json --into docs/results.md

Points are compared by the linear probe's accuracy on a validation part of the training set; test accuracy is shown
and chooses nothing. After an interruption the same command goes on where it was. A run that fails is reported and
the others go on. Flags that are not listed here go to every pre-training run. The results file is that of
`paper_table` with `axes` (option -> values), `base` (the recipe's values of those options) and `variants`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsejepa_hf.evaluation import Evaluator, probe_settings, summarize
from sparsejepa_hf.records import NONE, mean_and_std, percent, table, write_record

from .experiment import (
    Record,
    last_values,
    make_parser,
    measure,
    parse,
    parse_changes,
    parse_value,
    show,
    values_by_seed,
)
from .runs import IJEPA, IJEPA_OPTIONS, SPARSEJEPA, Run


DEFAULT_AXES = [["sparsity_weight", "0", "1e-4", "3e-4", "1e-3", "3e-3", "1e-2"], ["num_groups", "4", "8"]]
DEFAULT_AXES += [["kl_weight", "0", "1e-5", "1e-4"]]
# The paper's symbols, for headings.
SYMBOLS = {"sparsity_weight": "λ", "kl_weight": "β", "num_groups": "G", "num_latents": "K", "group_size": "p"}
# Heading -> key in a run's last log: how sparse W is, and how near its optimum.
OF_W = {
    "groups per living latent": "groups_per_living_latent",
    "selectivity": "selectivity",
    "dead latents": "dead_latents",
    "‖ḡ‖": "group_gradient_norm",
    "KKT, zero": "kkt_residual_zero",
    "KKT, non-zero": "kkt_residual_nonzero",
}
# One setting's means over its seeds, shares in [0, 1]; what was not measured is None.
Point = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, unless told to render only; then renders."""
    parser = make_parser(__doc__, "results/sweep_sparsity.json", "runs/sweep_sparsity")
    parser.add_argument("--task", default="cifar100", help="NAME, NAME=PATH or NAME:count=PATH")
    parser.add_argument("--axis", action="append", nargs="+", metavar="OPTION VALUE", help="an option and its values")
    parser.add_argument(
        "--variant", action="append", default=[], metavar="'option=value ...'", help="a point of its own"
    )
    own, runs = parse(parser, arguments)
    path = Path(own.results)
    if runs is not None:
        axes = {name: [parse_value(value) for value in values] for name, *values in own.axis or DEFAULT_AXES}
        base = {name: runs.value(Run(SPARSEJEPA, own.seeds[0], {}), name) for name in axes}
        points = [{name: value} for name, values in axes.items() for value in values if value != base[name]]
        variants = [parse_changes(text) for text in own.variant]
        methods = {IJEPA: IJEPA_OPTIONS, SPARSEJEPA: {}} | {point_name(point): point for point in [*points, *variants]}
        evaluator = Evaluator(own.output_dir, probe_settings(own))
        record = measure(runs, methods, own.seeds, [own.task], evaluator, baselines=False)
        record |= {"axes": axes, "base": base, "variants": [point_name(variant) for variant in variants]}
        write_record(record, path)
    show(path, own.into, RENDERINGS, plot)


# ---- points ----


def point_name(options: Mapping[str, Any]) -> str:
    """The name of a run that differs from the recipe in `options`."""
    changes = ", ".join(f"{SYMBOLS.get(name, name)} = {_shown(value)}" for name, value in options.items())
    return f"{SPARSEJEPA}, {changes}" if changes else SPARSEJEPA


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def point(record: Record, method: str, label: str) -> Point:
    """The means of a method over its seeds on the sweep's task."""
    task = next(iter(record["tasks"]))
    metrics = {"validation": "validation_accuracy", "test": "accuracy", "knn": "knn_accuracy"}
    values = {name: values_by_seed(record, task, method, metric) for name, metric in metrics.items()}
    values |= {name: last_values(record, method, name) for name in ("zero_columns", *OF_W.values())}
    means = {name: summarize(of_seed).mean if of_seed else None for name, of_seed in values.items()}
    std = summarize(values["validation"]).std if values["validation"] else None
    return {"label": label, "validation_std": std, "seeds": len(values["validation"]), **means}


def axis_points(record: Record, option: str) -> dict[Any, Point]:
    """The points along one option, by value, numbers in ascending order; at the recipe's own value, the recipe."""
    base, values = record["base"][option], record["axes"][option]
    if all(isinstance(value, int | float) for value in values):
        values = sorted(values)
    methods = {value: SPARSEJEPA if value == base else point_name({option: value}) for value in values}
    return {value: point(record, method, _shown(value)) for value, method in methods.items()}


def peak(points: Mapping[Any, Point]) -> Any | None:
    """The value with the best validation accuracy, or None if nothing was measured."""
    measured = {value: p["validation"] for value, p in points.items() if p["validation"] is not None}
    return max(measured, key=measured.__getitem__) if measured else None


def falls_at(points: Mapping[Any, Point], floor: float | None) -> Any | None:
    """The first value beyond the peak from which accuracy stays under `floor` (I-JEPA's), or None."""
    best, fallen = peak(points), None
    if best is None or floor is None:
        return None
    values = [value for value, p in points.items() if p["validation"] is not None]
    for value in reversed(values[values.index(best) + 1 :]):
        if points[value]["validation"] >= floor:
            break
        fallen = value
    return fallen


# ---- what is shown ----


def render(record: Record) -> str:
    """One table for each option, and one of the variants, each beside I-JEPA."""
    baseline, parts = point(record, IJEPA, IJEPA), []
    columns = ["validation", "test", "kNN", "zero columns", *OF_W, "seeds", ""]
    for option in record["axes"]:
        points, symbol = axis_points(record, option), SYMBOLS.get(option, option)
        best, fallen = peak(points), falls_at(points, baseline["validation"])
        marks = dict.fromkeys(points, "") | ({} if fallen is None else {fallen: "falls below I-JEPA from here on"})
        if best is not None:
            floor = baseline["validation"]
            is_above = floor is not None and points[best]["validation"] > floor
            marks[best] = "peak" if is_above else "peak, not above I-JEPA"
        rows = [_row(baseline), *(_row(p, marks[value]) for value, p in points.items())]
        parts.append(f"**{symbol}** (`{option}`; the recipe's is {_shown(record['base'][option])})")
        parts.append(table([symbol, *columns], rows))
    if record.get("variants"):
        shown = [point(record, SPARSEJEPA, f"{SPARSEJEPA}, as the recipe has it")]
        shown += [point(record, method, method) for method in record["variants"]]
        shown.sort(key=lambda p: -1.0 if p["validation"] is None else p["validation"], reverse=True)
        parts.append("**Variants**, best first")
        parts.append(table(["variant", *columns], [_row(p) for p in [baseline, *shown]]))
    return "\n\n".join(parts)


def _row(p: Point, mark: str = "") -> list[str]:
    validation = NONE if p["validation"] is None else mean_and_std(p["validation"], p["validation_std"])
    zeros = NONE if p["zero_columns"] is None else f"{percent(p['zero_columns'])} %"
    numbers = [NONE if p[name] is None else f"{p[name]:.3g}" for name in OF_W.values()]
    return [p["label"], validation, percent(p["test"]), percent(p["knn"]), zeros, *numbers, str(p["seeds"]), mark]


def plot(record: Record, path: Path) -> None:
    """Accuracy, zero columns, groups per living latent and the optimality of W; one column for each numeric option."""
    from matplotlib.figure import Figure

    options = [name for name, values in record["axes"].items() if all(isinstance(v, int | float) for v in values)]
    figure = Figure(figsize=(4.1 * len(options) + 0.6, 9.6), layout="constrained")
    axes = figure.subplots(4, len(options), squeeze=False, sharex="col", sharey="row")
    baseline = point(record, IJEPA, IJEPA)
    # Row, what is drawn, style, colour, factor, label.
    lines = [
        (0, "validation", "o-", "C1", 100, "linear, validation"),
        (0, "test", "s--", "C2", 100, "linear, test"),
        (1, "zero_columns", "o-", "C3", 100, None),
        (2, "groups_per_living_latent", "o-", "C3", 1, None),
        (3, "group_gradient_norm", "o-", "0.5", 1, "median ‖ḡ‖ of a column"),
        (3, "kkt_residual_nonzero", "s--", "C0", 1, "KKT residual, columns that are not zero"),
        (3, "kkt_residual_zero", "^:", "C3", 1, "KKT residual, zero columns"),
    ]
    for column, option in zip(axes.T, options, strict=True):
        points = axis_points(record, option)
        for row, name, style, color, scale, label in lines:
            y = [float("nan") if p[name] is None else scale * p[name] for p in points.values()]
            column[row].plot(y, style, color=color, label=label, markersize=4, linewidth=1.2)
            if row == 0 and baseline[name] is not None:
                label = f"I-JEPA, {name}"
                column[0].axhline(100 * baseline[name], color=color, linestyle=":", linewidth=1, label=label)
        fallen = falls_at(points, baseline["validation"])
        for value, text, offset in ((peak(points), "peak", 9), (fallen, "falls", -14)):
            if value is not None:
                at = (list(points).index(value), 100 * points[value]["validation"])
                column[0].annotate(text, at, (0, offset), textcoords="offset points", ha="center", fontsize=8)
        column[0].margins(y=0.2)
        column[3].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        # Values stand at equal distances, since most are spread over decades and begin at zero.
        column[3].set_xticks(range(len(points)), [p["label"] for p in points.values()], fontsize=8)
        column[3].set_xlabel(SYMBOLS.get(option, option))
        for axis in column:
            axis.grid(alpha=0.3)
    labels = ("top-1, per cent", "zero columns of W,\nper cent", "groups per\nliving latent", "gradient's scale")
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label)
    for axis in axes[[0, 3], 0]:
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


# By the end of the mark in a page.
RENDERINGS = {"": render}

if __name__ == "__main__":
    main()
