# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Sweep λ, G and β, one at a time around a recipe: accuracy and group sparsity, where it peaks and where it falls.

    python examples/sweep_sparsity.py examples/configs/cifar100-cpu.yaml --task cifar100 --seeds 0 --jobs 2 \
        --axis sparsity_weight 0 1e-4 3e-4 1e-3 3e-3 1e-2 --axis num_groups 4 8 24 --axis kl_weight 0 1e-5 1e-4 \
        --variant 'latent_position=encoder latent_residual=true'
    python examples/sweep_sparsity.py --render results/sweep_sparsity.json --into README.md

Points are compared by the linear probe's accuracy on a validation part of the training set. What was finished before
an interruption is not done again; a run that fails is reported and the rest goes on. Flags that are not listed here go
to every pre-training run.
"""

from pathlib import Path
from typing import Any

from sparsejepa_hf.experiments import IJEPA, IJEPA_OPTIONS, SPARSEJEPA, Run, read_record, reproduce
from sparsejepa_hf.experiments.command_line import (
    make_evaluator,
    make_parser,
    make_runs,
    parse,
    parse_changes,
    parse_value,
)
from sparsejepa_hf.experiments.sparsity_sweep import plot, point_name, render
from sparsejepa_hf.records import render_into, write_record


DEFAULT_AXES = [["sparsity_weight", "0", "1e-4", "3e-4", "1e-3", "3e-3", "1e-2"], ["num_groups", "4", "8"]]
DEFAULT_AXES += [["kl_weight", "0", "1e-5", "1e-4"]]


def main() -> None:
    """Measures unless told to render only, then renders beside the results file."""
    parser = make_parser(__doc__, "results/sweep_sparsity.json")
    parser.add_argument("--task", default="cifar100", help="NAME, NAME=PATH or NAME:count=PATH")
    parser.add_argument("--axis", action="append", nargs="+", metavar="OPTION VALUE", help="an option and its values")
    parser.add_argument(
        "--variant", action="append", default=[], metavar="'option=value ...'", help="a point of its own"
    )
    own, options = parse(parser)
    path = Path(own.render or own.results)
    if not own.render:
        own.output_dir = own.output_dir or "runs/sweep_sparsity"
        write_record(measure(own, options), path)
    record = read_record(path)
    text = render(record)
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    plot(record, path.with_suffix(".png"))
    if own.into:
        target = Path(own.into)
        target.write_text(render_into(target.read_text(encoding="utf-8"), path.name, text), encoding="utf-8")
    print(text)


def measure(own: Any, options: dict[str, Any]) -> dict[str, Any]:
    """All points of all axes, and the variants."""
    runs = make_runs(own, options, Path(__file__).with_name("pretrain.py"))
    recipe = Run(SPARSEJEPA, own.seeds[0], {})
    axes = {name: [parse_value(value) for value in values] for name, *values in own.axis or DEFAULT_AXES}
    base = {name: runs.value(recipe, name) for name in axes}
    points = [{name: value} for name, values in axes.items() for value in values if value != base[name]]
    variants = [parse_changes(text) for text in own.variant]
    methods = {IJEPA: IJEPA_OPTIONS, SPARSEJEPA: {}} | {point_name(point): point for point in [*points, *variants]}
    record = reproduce(runs, methods, own.seeds, [own.task], make_evaluator(own, low_shot=()), baselines=False)
    return {**record, "axes": axes, "base": base, "variants": [point_name(variant) for variant in variants]}


if __name__ == "__main__":
    main()
