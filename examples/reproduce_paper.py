# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Reproduce the table of SparseJEPA (arXiv 2504.16140): linear probes of I-JEPA and SparseJEPA on the data sets given.

    python examples/reproduce_paper.py examples/configs/cifar100-cpu.yaml --dataset data/cifar100 \
        --tasks cifar100=data/cifar100 flowers64=data/flowers64 --jobs 2 --threads 1
    python examples/reproduce_paper.py --render results/paper_table.json --into README.md

Both methods are pre-trained with the same seeds and budget. Probes choose on a validation part of the training set;
raw pixels and the untrained encoder stand beside. What was finished before an interruption is not done again. Flags
that are not listed here go to every pre-training run.
"""

from pathlib import Path

from sparsejepa_hf.evaluation import find_task
from sparsejepa_hf.experiments import IJEPA, IJEPA_OPTIONS, SPARSEJEPA, read_record, reproduce
from sparsejepa_hf.experiments.command_line import make_evaluator, make_parser, make_runs, parse, parse_changes
from sparsejepa_hf.experiments.paper_table import plot, render
from sparsejepa_hf.records import render_into, write_record


def main() -> None:
    """Measures unless told to render only, then renders beside the results file."""
    parser = make_parser(__doc__, "results/paper_table.json")
    parser.add_argument("--tasks", nargs="+", default=["cifar100"], help="NAME, NAME=PATH or NAME:count=PATH")
    parser.add_argument("--in_domain", help="data set whose gain over I-JEPA is compared ...")
    parser.add_argument("--out_of_domain", nargs="+", default=[], help="... with that on these")
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="'NAME: option=value ...'",
        help="a further SparseJEPA, by what differs from the recipe",
    )
    own, options = parse(parser)
    path = Path(own.render or own.results)
    if not own.render:
        own.output_dir = own.output_dir or "runs/reproduce_paper"
        methods = {IJEPA: IJEPA_OPTIONS, SPARSEJEPA: {}}
        for variant in own.variant:
            name, _, changes = variant.partition(":")
            methods[name.strip()] = parse_changes(changes)
        names = [find_task(spec).name for spec in own.tasks]
        for name in [*([own.in_domain] if own.in_domain else []), *own.out_of_domain]:
            if name not in names:
                parser.error(f"--in_domain and --out_of_domain take names among {', '.join(names)}; {name} is none")
        runs = make_runs(own, options, Path(__file__).with_name("pretrain.py"))
        record = reproduce(runs, methods, own.seeds, own.tasks, make_evaluator(own))
        transfer = {"in_domain": own.in_domain, "out_of_domain": own.out_of_domain}
        write_record({**record, **transfer}, path)
    record = read_record(path)
    text = render(record)
    path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    plot(record, path.with_suffix(".png"))
    if own.into:
        target = Path(own.into)
        target.write_text(render_into(target.read_text(encoding="utf-8"), path.name, text), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
