# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The paper's table of linear probes, rendered from a results file: Markdown and a plot, nothing flattered.

A results file holds `methods` (the order of the rows; the first trained one is the baseline), `tasks`, `runs` and
`evaluations`; see [`experiments.reproduction`].
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.statistics import PairedDifference, paired_difference, summarize, transfer_gain, verdict
from ..records import NONE, mean_and_std, percent, table
from .runs import IJEPA


Record = Mapping[str, Any]

# Top-1 of linear probes of a ViT-Tiny pre-trained on CIFAR-100, in per cent (arXiv 2504.16140).
PAPER: dict[str, dict[str, float]] = {
    "JEPA (paper)": {"cifar100": 40.01, "places205": 21.24, "clevr_count": 59.13, "inat2018": 16.52},
    "SparseJEPA (paper)": {"cifar100": 45.40, "places205": 23.36, "clevr_count": 62.33, "inat2018": 19.63},
}
ACCURACY = "linear probe, top-1 (counts: exact match)"


def headings(record: Record) -> dict[str, str]:
    """What is shown of an evaluation, and its heading."""
    shown = {"accuracy": ACCURACY, "knn_accuracy": "kNN, top-1"}
    for fraction in record["settings"]["low_shot"]:
        shown[f"low_shot_{fraction:g}"] = f"linear probe on {100 * fraction:g} % of the labels, top-1"
    return shown


def values_by_seed(record: Record, task: str, method: str, metric: str = "accuracy") -> dict[int, float]:
    """A metric of the finished evaluations of one row and column, by seed; -1 stands for "no seed" (raw pixels)."""
    return {
        -1 if entry["seed"] is None else entry["seed"]: entry[metric]
        for entry in record["evaluations"]
        if entry["task"] == task and entry["method"] == method and entry.get(metric) is not None
    }


def difference(record: Record, task: str, method: str, metric: str = "accuracy") -> PairedDifference | None:
    """`method` minus I-JEPA over the seeds that both have; None if there is none."""
    baseline, values = (values_by_seed(record, task, name, metric) for name in (IJEPA, method))
    shared = sorted(set(baseline) & set(values))
    if not shared:
        return None
    return paired_difference({s: baseline[s] for s in shared}, {s: values[s] for s in shared})


def sparse_methods(record: Record) -> list[str]:
    """The trained methods that are measured against I-JEPA."""
    trained = {run["method"] for run in record["runs"]}
    return [method for method in record["methods"] if method in trained and method != IJEPA]


def accuracy_table(record: Record, metric: str = "accuracy") -> str:
    """Methods against data sets, mean ± standard deviation over seeds in per cent, with the paper's rows."""
    names = list(record["tasks"])
    rows = [[method, *(_cell(record, name, method, metric) for name in names)] for method in record["methods"]]
    if metric == "accuracy":
        for row, published in PAPER.items():
            rows.append([row, *(f"{published[name]:.1f}" if name in published else NONE for name in names)])
    return table(["features", *names], rows)


def _cell(record: Record, task: str, method: str, metric: str) -> str:
    values = values_by_seed(record, task, method, metric)
    failed = sum(
        "failed" in entry for entry in record["evaluations"] if (entry["task"], entry["method"]) == (task, method)
    )
    shown = NONE
    if values:
        summary = summarize(values)
        shown = mean_and_std(summary.mean, summary.std)
    return f"{shown} ({failed} failed)" if failed else shown


def verdict_table(record: Record, metric: str = "accuracy") -> str:
    """Whether each SparseJEPA is better than I-JEPA, by how much, and whether that exceeds the seeds' spread."""
    rows = []
    for method in sparse_methods(record):
        for name in record["tasks"]:
            found = difference(record, name, method, metric)
            if found is None:
                rows.append([method, name, NONE, NONE, "not measured"])
                continue
            spread = {None: NONE, True: "yes", False: "no"}[found.is_larger_than_spread]
            rows.append([method, name, f"{100 * found.mean:+.2f}", spread, verdict(found)])
    return table(["against I-JEPA", "data set", "points", "beyond the seeds' spread", "verdict"], rows)


def transfer_sentences(record: Record) -> list[str]:
    """In-domain against out-of-domain gains over I-JEPA, one sentence a method and data set."""
    in_domain, others = record.get("in_domain"), record.get("out_of_domain", [])
    sentences = []
    for method in sparse_methods(record):
        gain = difference(record, in_domain, method) if in_domain else None
        for name in others:
            other = difference(record, name, method)
            if gain is not None and other is not None:
                sentences.append(f"{method}, {in_domain} → {name}: {transfer_gain(gain, other)}.")
    return sentences


def caveats(record: Record) -> list[str]:
    """What a data set is not, one line each, and what was left out of it."""
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
    """Runs and evaluations that failed, and why; one line for all that failed alike on a data set."""
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


def training_table(record: Record) -> str:
    """How the runs ended: loss, effective rank, sparsity of W; medians over seeds would hide a collapse."""
    rows = []
    for run in record["runs"]:
        if "failed" in run:
            continue
        last = run["last"]
        numbers = [
            *(_number(last.get(k), digits) for k, digits in (("prediction_loss", 3), ("rankme", 1))),
            NONE if "zero_columns" not in last else f"{percent(last['zero_columns'])} %",
            _number(last.get("groups_per_living_latent"), 2),
            _number(last.get("selectivity"), 2),
            _number(last.get("dead_latents"), 0),
            f"{run['train_seconds'] / 60:.1f}",
        ]
        rows.append([run["method"], str(run["seed"]), *numbers])
    header = ["run", "seed", "loss", "RankMe", "zero columns of W", "groups per living latent", "selectivity"]
    header += ["dead latents", "minutes"]
    return table(header, rows)


def _number(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:.{digits}f}"


def _capital(text: str) -> str:
    return text if text.startswith("kNN") else text[0].upper() + text[1:]


def render(record: Record) -> str:
    """The whole report in Markdown."""
    parts = [f"**{_capital(ACCURACY)}**, per cent", accuracy_table(record)]
    parts += [verdict_table(record)]
    if sentences := transfer_sentences(record):
        parts.append("\n".join(f"- {sentence}" for sentence in sentences))
    for metric, heading in headings(record).items():
        if metric != "accuracy" and any(entry.get(metric) is not None for entry in record["evaluations"]):
            parts += [f"**{_capital(heading)}**, per cent", accuracy_table(record, metric)]
            parts += [verdict_table(record, metric)] if metric == "knn_accuracy" else []
    parts += ["**How the runs ended**", training_table(record), "\n".join(caveats(record))]
    if failed := failures(record):
        parts += ["**Failed**", "\n".join(failed)]
    return "\n\n".join(part for part in parts if part)


def plot(record: Record, path: Path) -> None:
    """One panel a data set: every seed, mean and standard deviation of every method, and the paper's lines."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names, methods = list(record["tasks"]), record["methods"]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    size = (3.9 * columns, 0.9 + (0.75 + 0.33 * len(methods)) * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, sharey=True)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, names, strict=False):
        _panel(axis, record, name, methods)
    figure.supxlabel(f"{ACCURACY}, per cent", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(axis: Any, record: Record, name: str, methods: Sequence[str]) -> None:
    for row, method in enumerate(methods):
        values = [100 * value for value in values_by_seed(record, name, method).values()]
        if not values:
            continue
        summary = summarize(values)
        color = "0.55" if method in ("raw pixels", "untrained") else "C0" if method == IJEPA else "C1"
        axis.scatter(values, [row] * len(values), s=18, color=color, alpha=0.45, linewidths=0)
        axis.errorbar(summary.mean, row, xerr=summary.std or 0, fmt="|", color=color, markersize=13, capsize=3)
    for style, (label, published) in zip((":", "--"), PAPER.items(), strict=True):
        if name in published:
            axis.axvline(published[name], color="0.3", linestyle=style, linewidth=1, label=label)
            axis.legend(frameon=False, fontsize=7, loc="upper left")
    about = record["tasks"][name]
    axis.set_title(
        name if not about.get("stands_for") else f"{name} (stands in for {about['stands_for']})", fontsize=9
    )
    axis.set_yticks(range(len(methods)), methods, fontsize=8)
    axis.set_ylim(len(methods) - 0.5, -0.5)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", alpha=0.3)
