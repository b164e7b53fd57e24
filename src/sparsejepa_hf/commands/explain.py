# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Explain the groups of a SparseJEPA on images: one page that a person can read, and the numbers behind it.

    sparsejepa explain runs/demo --dataset textured-scenes --split test
    sparsejepa explain model_cards/sparsejepa-vit-micro-cifar100 --dataset /data/cifar100 \
        --baseline model_cards/ijepa-vit-micro-cifar100 --figures groups/

The page needs no network and no other file. What the data cannot show (objects without masks, classes without labels)
is said there, and the rest is shown.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data import load_image_dataset
from ..evaluation import VisionEncoder, load_encoder
from ..interpret import EXTRA_COLUMNS, explain
from ..interpret.report import write_figures, write_report
from ..records import provenance, write_record


def main(arguments: Sequence[str] | None = None) -> None:
    """Explains a checkpoint, and writes the page and what else was asked for."""
    own = parse(arguments)
    origin = provenance()
    folder = Path(own.checkpoint) if Path(own.checkpoint).is_dir() else Path("runs") / Path(own.checkpoint).name
    report = Path(own.report or folder / "groups.html")

    def load(source: str, **options: Any) -> VisionEncoder:
        return load_encoder(source, trust_remote_code=own.trust_remote_code, device=own.device, **options)

    encoder = load(own.checkpoint)
    dataset = load_image_dataset(
        own.dataset,
        own.split,
        image_column=own.image_column,
        label_column=own.label_column,
        extra_columns=EXTRA_COLUMNS,
        max_examples=own.max_examples,
        seed=own.seed,
    )
    explanation = explain(
        encoder,
        dataset,
        untrained=load(own.checkpoint, untrained=True, seed=own.seed),
        baseline=load(own.baseline) if own.baseline else None,
        siblings=[load(source) for source in own.siblings],
        seed=own.seed,
    )
    write_report(report, explanation, data_name=f"{Path(own.dataset).name}, {own.split}")
    if own.figures:
        write_figures(own.figures, explanation)
    if own.results:
        about = {"checkpoint": Path(own.checkpoint).name, "dataset": own.dataset, "split": own.split, "seed": own.seed}
        write_record({**origin, **about, **explanation.to_dict()}, own.results)
    for section in explanation.sections:
        print(f"\n{section.title}\n  {section.finding}")
    print(f"\nGroups: {report}  (open it in a browser)")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The checkpoint, the images, and what to write."""
    parser = argparse.ArgumentParser(
        "sparsejepa explain",
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", help="folder or Hub name of a SparseJEPA that pre-training saved")
    add("--dataset", required=True, help="folder, files, Hub name, synthetic-scenes or textured-scenes")
    add("--split", default="test")
    add("--image_column", help="found if not given")
    add("--label_column", help="found if not given")
    add("--max_examples", type=int, default=2000, help="images to look at, a random choice by --seed")
    add("--baseline", help="an I-JEPA of the same data, as a null")
    add("--siblings", nargs="+", default=[], help="the same model of other seeds: are they the same groups?")
    add("--report", help="HTML file to write; default: groups.html in the checkpoint's folder")
    add("--figures", help="folder for the figures as PNG and SVG")
    add("--results", help="JSON file for the numbers")
    add("--seed", type=int, default=0, help="of the choice of images and of everything drawn")
    add("--device", help="where the model runs; default: the CPU")
    add("--trust_remote_code", action="store_true", help="run code that the checkpoint brings along")
    return parser.parse_args(arguments)
