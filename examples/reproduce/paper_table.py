# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Reproduce the table of SparseJEPA (arXiv 2504.16140): linear probes of I-JEPA and SparseJEPA on the tasks given.

    python -m examples.reproduce.paper_table examples/configs/cifar100-cpu.yaml --dataset data/cifar100 \
        --tasks cifar100=data/cifar100 flowers64=data/flowers64 --seeds 0 1 2 --jobs 2 --threads 1
    python -m examples.reproduce.paper_table --render results/paper_table.json --into README.md docs/results.md

Both methods are pre-trained with the same seeds and budget. Probes choose on a validation part of the training set.
Raw pixels and the untrained encoder stand beside them. After an interruption the same command goes on where it was.
Flags that are not listed here go to every pre-training run. Into a page the whole report goes between the marks
`<!-- results/paper_table.json -->` and `<!-- end -->`, a short table after `<!-- results/paper_table.json#short -->`.
"""

from collections.abc import Sequence
from pathlib import Path

from sparsejepa_hf.evaluation import Evaluator, probe_settings, summarize, verdict
from sparsejepa_hf.records import NONE, table, write_record

from .experiment import (
    UNTRAINED,
    Record,
    difference,
    last_values,
    make_parser,
    mean_of_seeds,
    measure,
    parse,
    parse_changes,
    show,
    values_by_seed,
)
from .runs import IJEPA, IJEPA_OPTIONS, SPARSEJEPA


# Top-1 of linear probes of a ViT-Tiny pre-trained on CIFAR-100, in per cent (arXiv 2504.16140).
PAPER: dict[str, dict[str, float]] = {
    "JEPA (paper)": {"cifar100": 40.01, "places205": 21.24, "clevr_count": 59.13, "inat2018": 16.52},
    "SparseJEPA (paper)": {"cifar100": 45.40, "places205": 23.36, "clevr_count": 62.33, "inat2018": 19.63},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, unless told to render only; then renders."""
    parser = make_parser(__doc__, "results/paper_table.json", "runs/reproduce_paper")
    parser.add_argument("--tasks", nargs="+", default=["cifar100"], help="NAME, NAME=PATH or NAME:count=PATH")
    parser.add_argument(
        "--variant", action="append", default=[], metavar="'NAME: option=value ...'", help="a further SparseJEPA"
    )
    own, runs = parse(parser, arguments)
    path = Path(own.results)
    if runs is not None:
        methods = {IJEPA: IJEPA_OPTIONS, SPARSEJEPA: {}}
        for name, _, changes in (variant.partition(":") for variant in own.variant):
            methods[name.strip()] = parse_changes(changes)
        evaluator = Evaluator(own.output_dir, probe_settings(own))
        write_record(measure(runs, methods, own.seeds, own.tasks, evaluator), path)
    show(path, own.into, RENDERINGS, plot)


# ---- what is shown ----


def render(record: Record) -> str:
    """The whole report in Markdown."""
    parts = ["**Linear probe, top-1 (counts: exact match)**, per cent", accuracy_table(record), verdict_table(record)]
    if any("knn_accuracy" in entry for entry in record["evaluations"]):
        parts.append("**kNN, top-1**, per cent")
        parts += [accuracy_table(record, "knn_accuracy"), verdict_table(record, "knn_accuracy")]
    for share in record["settings"]["low_shot"]:
        if any(f"low_shot_{share:g}" in entry for entry in record["evaluations"]):
            parts.append(f"**Linear probe on {100 * share:g} % of the labels, top-1**, per cent")
            parts.append(accuracy_table(record, f"low_shot_{share:g}"))
    parts += ["**How the runs ended**", training_table(record), "\n".join(caveats(record))]
    if failed := failures(record):
        parts += ["**Failed**", "\n".join(failed)]
    return "\n\n".join(part for part in parts if part)


def render_short(record: Record) -> str:
    """One row for the untrained encoder and each trained method, on the first task, and the verdicts below."""
    task, rows = next(iter(record["tasks"])), []
    metrics = {"linear probe": "accuracy", "kNN": "knn_accuracy"}
    for method in record["methods"]:
        if method not in (UNTRAINED, IJEPA, *sparse_methods(record)):
            continue
        accuracies = [_accuracy(record, task, method, metric) for metric in metrics.values()]
        zeros, groups = (last_values(record, method, name) for name in ("zero_columns", "groups_per_living_latent"))
        in_groups = NONE
        if groups:
            summary = summarize(groups)
            in_groups = f"{summary.mean:.2f}" + ("" if summary.std is None else f" ± {summary.std:.2f}")
        rows.append([method, *accuracies, mean_of_seeds(zeros), in_groups])
    header = ["encoder", "linear probe, top-1", "kNN, top-1", "zero columns of W", "groups per living latent"]
    seeds = f"mean ± standard deviation over {len(record['seeds'])} seeds of pre-training"
    parts = [table(header, rows), f"Probes on `{task}` and zero columns in per cent; {seeds}."]
    for method in sparse_methods(record):
        found = [(name, difference(record, task, method, metric)) for name, metric in metrics.items()]
        shown = [f"{name}, {verdict(value)}" for name, value in found if value is not None]
        parts += [f"{method} against {IJEPA}: {'; '.join(shown)}."] if shown else []
    return "\n\n".join(parts)


def accuracy_table(record: Record, metric: str = "accuracy") -> str:
    """Methods against tasks, mean ± standard deviation over seeds in per cent, with the paper's rows."""
    tasks = list(record["tasks"])
    rows = [[method, *(_accuracy(record, task, method, metric) for task in tasks)] for method in record["methods"]]
    if metric == "accuracy":
        for row, published in PAPER.items():
            rows.append([row, *(f"{published[task]:.1f}" if task in published else NONE for task in tasks)])
    return table(["features", *tasks], rows)


def _accuracy(record: Record, task: str, method: str, metric: str) -> str:
    of_cell = [entry for entry in record["evaluations"] if (entry["task"], entry["method"]) == (task, method)]
    failed = sum("failed" in entry for entry in of_cell)
    return mean_of_seeds(values_by_seed(record, task, method, metric)) + (f" ({failed} failed)" if failed else "")


def sparse_methods(record: Record) -> list[str]:
    """The trained methods that are measured against I-JEPA."""
    trained = {run["method"] for run in record["runs"]}
    return [method for method in record["methods"] if method in trained and method != IJEPA]


def verdict_table(record: Record, metric: str = "accuracy") -> str:
    """Whether each SparseJEPA is better than I-JEPA, by how much, and whether that exceeds the seeds' spread."""
    rows = []
    for method in sparse_methods(record):
        for task in record["tasks"]:
            found = difference(record, task, method, metric)
            if found is None:
                rows.append([method, task, NONE, NONE, "not measured"])
            else:
                spread = {None: NONE, True: "yes", False: "no"}[found.is_larger_than_spread]
                rows.append([method, task, f"{100 * found.mean:+.2f}", spread, verdict(found)])
    return table(["against I-JEPA", "data set", "points", "beyond the seeds' spread", "verdict"], rows)


def training_table(record: Record) -> str:
    """How every run ended: loss, effective rank, sparsity of W. A mean over seeds would hide a collapse."""
    header = ["run", "seed", "loss", "RankMe", "zero columns of W", "groups per living latent", "selectivity"]
    forms = {
        "prediction_loss": "{:.3f}",
        "rankme": "{:.1f}",
        "zero_columns": "{:.1%}",
        "groups_per_living_latent": "{:.2f}",
        "selectivity": "{:.2f}",
        "dead_latents": "{:.0f}",
    }
    rows = []
    for run in record["runs"]:
        if "failed" not in run:
            last = [form.format(run["last"][name]) if name in run["last"] else NONE for name, form in forms.items()]
            minutes = NONE if run["train_seconds"] is None else f"{run['train_seconds'] / 60:.1f}"
            rows.append([run["method"], str(run["seed"]), *(cell.replace("%", " %") for cell in last), minutes])
    return table([*header, "dead latents", "minutes"], rows)


def caveats(record: Record) -> list[str]:
    """Sizes of the data sets, what was left out of them, and what a stand-in is not; one line each."""
    lines = []
    for name, about in record["tasks"].items():
        stands = f", in place of {about['stands_for']}" if about.get("stands_for") else ""
        sizes = f"{about['num_train']:,} training and {about['num_test']:,} test images"
        duplicates = about.get("num_excluded")
        excluded = f"; {duplicates} test images that also occur in train are left out" if duplicates else ""
        note = f" {about['caveat']}" if about.get("caveat") else ""
        lines.append(f"- `{name}`{stands}: {sizes}{excluded}.{note}")
    return lines


def failures(record: Record) -> list[str]:
    """Runs and evaluations that failed, and why; those that failed alike on a task share a line."""
    lines = [f"- {run['method']}, seed {run['seed']}: {run['failed']}" for run in record["runs"] if "failed" in run]
    alike: dict[tuple[str, str, str], list[str]] = {}
    for entry in record["evaluations"]:
        who = entry["method"] + ("" if entry["seed"] is None else f", seed {entry['seed']}")
        for key in sorted(entry):
            if key == "failed" or key.endswith("_failed"):
                part = key.removesuffix("failed").replace("_", " ").strip()
                alike.setdefault((entry["task"], part, entry[key]), []).append(who)
    for (task, part, why), who in alike.items():
        names = "; ".join(who) if len(who) <= 3 else f"{len(who)} encoders"
        lines.append(f"- `{task}`{f', {part}' if part else ''} ({names}): {why}")
    return lines


def plot(record: Record, path: Path) -> None:
    """One panel for each task: every seed, mean and standard deviation of every method, and the paper's lines."""
    from matplotlib.figure import Figure

    tasks, methods = record["tasks"], record["methods"]
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = Figure(figsize=(3.9 * columns, 0.9 + (0.75 + 0.33 * len(methods)) * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axis in axes.flat[len(tasks) :]:
        axis.set_visible(False)
    for axis, (task, about) in zip(axes.flat, tasks.items(), strict=False):
        for row, method in enumerate(methods):
            if values := [100 * value for value in values_by_seed(record, task, method).values()]:
                summary = summarize(values)
                color = "C0" if method == IJEPA else "C1" if method in sparse_methods(record) else "0.55"
                axis.scatter(values, [row] * len(values), s=18, color=color, alpha=0.45, linewidths=0)
                axis.errorbar(summary.mean, row, xerr=summary.std or 0, fmt="|", color=color, markersize=13, capsize=3)
        for style, (label, published) in zip((":", "--"), PAPER.items(), strict=True):
            if task in published:
                axis.axvline(published[task], color="0.3", linestyle=style, linewidth=1, label=label)
                axis.legend(frameon=False, fontsize=7, loc="upper left")
        stands = f" (stands in for {about['stands_for']})" if about.get("stands_for") else ""
        axis.set_title(f"{task}{stands}", fontsize=9)
        axis.set_yticks(range(len(methods)), methods, fontsize=8)
        axis.set_ylim(len(methods) - 0.5, -0.5)
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(axis="x", alpha=0.3)
    figure.supxlabel("linear probe, top-1 (counts: exact match), per cent", fontsize=10)
    figure.savefig(path, dpi=130)
    plot_curves(record, path.with_name(f"{path.stem}_curves.png"))


def plot_curves(record: Record, path: Path) -> None:
    """Accuracy of the kNN monitor over epochs: every run thin, each method's mean over its seeds thick. Without such
    logs nothing is drawn."""
    from matplotlib.figure import Figure

    curves: dict[str, list[list[tuple[float, float]]]] = {}
    for run in record["runs"]:
        if run.get("knn_curve"):
            curves.setdefault(run["method"], []).append(run["knn_curve"])
    if not curves:
        return
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axis = figure.subplots()
    for number, (method, of_seeds) in enumerate(curves.items()):
        by_epoch: dict[float, list[float]] = {}
        for curve in of_seeds:
            axis.plot(
                *zip(*((epoch, 100 * value) for epoch, value in curve), strict=True), color=f"C{number}", alpha=0.3
            )
            for epoch, value in curve:
                by_epoch.setdefault(round(epoch, 3), []).append(100 * value)
        # A mean over fewer seeds than elsewhere would jump.
        whole = {epoch: values for epoch, values in sorted(by_epoch.items()) if len(values) == len(of_seeds)}
        means = [sum(values) / len(values) for values in whole.values()]
        axis.plot(list(whole), means, color=f"C{number}", linewidth=2, label=f"{method} (n = {len(of_seeds)})")
    axis.set_xlabel("epochs")
    axis.set_ylabel("kNN of the monitor, top-1, per cent")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


# By the end of the mark in a page.
RENDERINGS = {"": render, "#short": render_short}

if __name__ == "__main__":
    main()
