# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Measure what the groups of SparseJEPAs of several seeds mean on one data set, beside nulls and I-JEPA twins.

    python -m examples.reproduce.interpret --checkpoints runs/sparse-0 runs/sparse-1 runs/sparse-2 \
        --baselines runs/ijepa-0 runs/ijepa-1 runs/ijepa-2 --dataset data/cifar100 --name cifar100 \
        --results results/interpret_cifar100_cpu.json
    python -m examples.reproduce.interpret --render results/interpret_cifar100_cpu.json --into docs/groups.md

The table goes between the marks `<!-- results/interpret_cifar100_cpu.json -->` and `<!-- end -->`.
"""

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsejepa_hf.data import load_image_dataset
from sparsejepa_hf.evaluation import load_encoder
from sparsejepa_hf.interpret import EXTRA_COLUMNS, explain
from sparsejepa_hf.interpret.measures import MORE
from sparsejepa_hf.records import provenance, table, write_record

from .experiment import Record, show


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, unless told to render only; then renders."""
    own = parse(arguments)
    path = Path(own.render or own.results)
    if not own.render:
        write_record(measure(own), path)
    show(path, own.into, RENDERINGS, plot, needs=("explanations",))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Checkpoints and images, or a results file to render."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoints", nargs="+", default=[], help="SparseJEPAs that differ in their seeds")
    add("--baselines", nargs="+", default=[], help="their I-JEPA twins, in the same order")
    add("--dataset", help="folder, files, Hub name, or synthetic-scenes")
    add("--name", help="what the table calls the data set; default: its source")
    add("--split", default="test")
    add("--label_column", help="found if not given")
    add("--max_examples", type=int, default=2000, help="images to look at")
    add("--probe_examples", type=int, default=10_000, help="training images that probes are fitted on")
    add("--seed", type=int, default=0, help="of the choice of images and of everything drawn")
    add("--results", default="results/interpret.json", help="file to write; table and plot go beside it")
    add("--render", help="measure nothing: render this results file")
    add("--into", nargs="+", default=[], help="Markdown files that carry the table between marks")
    own = parser.parse_args(arguments)
    if own.render is None and not (own.checkpoints and own.dataset):
        parser.error("--checkpoints and --dataset are needed, or --render a results file")
    if own.baselines and len(own.baselines) != len(own.checkpoints):
        parser.error(f"{len(own.baselines)} baselines are given for {len(own.checkpoints)} checkpoints; give one each")
    return own


def measure(own: argparse.Namespace) -> dict[str, Any]:
    """The record: one explanation for each checkpoint."""
    origin = provenance()

    def load(split: str, max_examples: int) -> Any:
        options = {"label_column": own.label_column, "extra_columns": EXTRA_COLUMNS, "seed": own.seed}
        return load_image_dataset(own.dataset, split, max_examples=max_examples, **options)

    images, probe_images = load(own.split, own.max_examples), load("train", own.probe_examples)
    explanations = []
    for place, checkpoint in enumerate(own.checkpoints):
        others = own.checkpoints[:place] + own.checkpoints[place + 1 :]
        explanation = explain(
            load_encoder(checkpoint),
            images,
            untrained=load_encoder(checkpoint, untrained=True, seed=own.seed),
            baseline=load_encoder(own.baselines[place]) if own.baselines else None,
            siblings=[load_encoder(other) for other in others],
            probe_dataset=probe_images,
            seed=own.seed,
        )
        explanations.append({"checkpoint": Path(checkpoint).name, **explanation.to_dict()})
    return {
        **origin,
        "dataset": own.name or own.dataset,
        "split": own.split,
        "num_images": len(images),
        "seed": own.seed,
        "baselines": [Path(baseline).name for baseline in own.baselines],
        "explanations": explanations,
    }


def render(record: Record) -> str:
    """Each question with its measures, over checkpoints, beside every null."""
    explanations = record["explanations"]
    parts = [
        f"{record['num_images']:,} images of {record['dataset']} ({record['split']}), {len(explanations)} models. "
        "Means over checkpoints, with the smallest and largest in brackets; nulls are means over all draws."
    ]
    for key, section in explanations[0]["sections"].items():
        parts.append(f"**{section['title']}**")
        if not section["is_measured"]:
            parts.append(section["finding"])
            continue
        rows = []
        for place, measured in enumerate(section["measures"]):
            found = [explanation["sections"][key]["measures"][place] for explanation in explanations]
            beaten = sum(one["verdict"] == MORE for one in found)
            nulls = [
                f"{null['name']}: {_number(np.mean([one['nulls'][which]['mean'] for one in found]))}"
                for which, null in enumerate(measured["nulls"])
            ]
            name = measured["name"] + (f" ({measured['unit']})" if measured["unit"] else "")
            verdict = f"{beaten} of {len(found)}" if measured["nulls"] else "–"
            rows.append([name, _spread([one["value"] for one in found]), "; ".join(nulls) or "–", verdict])
        parts.append(table(["measure", "groups", "nulls", "more than every null"], rows))
    return "\n\n".join(parts)


def _spread(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return _number(np.mean(values)) + (f" ({_number(low)} to {_number(high)})" if len(values) > 1 else "")


def _number(value: float) -> str:
    return f"{value:.3g}"


def plot(record: Record, path: Path) -> None:
    """Every measure of every checkpoint as a dot, over the ranges of its nulls."""
    from matplotlib.figure import Figure

    explanations = record["explanations"]
    rows = [
        (key, place, section["title"] if place == 0 else "")
        for key, section in explanations[0]["sections"].items()
        for place in range(len(section["measures"]))
    ]
    figure = Figure(figsize=(9, 0.75 * len(rows) + 0.6), layout="constrained")
    # Each measure has a scale of its own.
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis, (key, place, title) in zip(axes, rows, strict=True):
        found = [explanation["sections"][key]["measures"][place] for explanation in explanations]
        for which, null in enumerate(found[0]["nulls"]):
            nulls = [one["nulls"][which] for one in found]
            low, high = min(null["low"] for null in nulls), max(null["high"] for null in nulls)
            axis.plot([low, high], [0, 0], "|-", color="#8a8a8a", markersize=11, linewidth=8, alpha=0.6)
            # Neighbours' names lie one above the other.
            axis.text(
                (low + high) / 2,
                0.5 + 0.35 * (which % 2),
                null["name"],
                fontsize=6,
                ha="center",
                va="center",
                color="#555555",
            )
        axis.plot([one["value"] for one in found], [0] * len(found), "o", color="#0072b2", markersize=6)
        axis.set_yticks([0], [textwrap.fill(found[0]["name"], 45)], fontsize=8)
        axis.set_ylim(-0.6, 1.1)
        axis.tick_params(axis="x", labelsize=7)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.set_title(title, loc="left", fontsize=10)
    figure.suptitle("Blue: the groups, one dot a model. Grey: the range of each null over its draws.", fontsize=9)
    figure.savefig(path, dpi=120)


RENDERINGS = {"": render}


if __name__ == "__main__":
    main()
