# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Make a model folder of a finished run: weights, code, image processor, log, and a card with its measured numbers.

    python -m examples.reproduce.publish runs/reproduce_paper/runs/sparsejepa-seed0-98a63a86 \
        model_cards/sparsejepa-vit-micro-cifar100 --dataset CIFAR-100 \
        --results results/paper_table_cpu.json --method SparseJEPA

The folder's code is a link to this package's, so that it never grows old here; an upload to the Hub follows links.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers import TrainerState

import sparsejepa_hf
from sparsejepa_hf import SparseJEPAForPreTraining
from sparsejepa_hf.training import OPTION_TYPES, parse_options
from sparsejepa_hf.training.model_card import write_model_card

from .experiment import UNTRAINED, read_record
from .runs import SPARSEJEPA


CODE = ("configuration_sparsejepa.py", "modeling_sparsejepa.py")
COPIED = ("preprocessor_config.json", "trainer_state.json")


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished pre-training run")
    parser.add_argument("folder", type=Path, help="where the model goes; its name is the model's")
    parser.add_argument("--dataset", required=True, help="what the card calls the training data")
    parser.add_argument("--results", help="results file of the paper's table; default: what the run measured")
    parser.add_argument("--method", default=SPARSEJEPA, help="what the results file calls it")
    own = parser.parse_args(arguments)

    model = SparseJEPAForPreTraining.from_pretrained(own.run)
    model.save_pretrained(own.folder)
    for name in COPIED:
        shutil.copyfile(own.run / name, own.folder / name)
    source = Path(sparsejepa_hf.__file__).resolve().parent
    for name in CODE:
        (own.folder / name).unlink()
        (own.folder / name).symlink_to(Path(*[".."] * len(own.folder.parts), "src", source.name, name))
    _, _, args = parse_options(OPTION_TYPES, [str(own.run / "pretraining_options.yaml")])
    state = TrainerState.load_from_json(str(own.run / "trainer_state.json"))
    comparison = measured(own.results, own.method, args.seed) if own.results else compared(own.run)
    write_model_card(str(own.folder), model.config, args, state, own.dataset, comparison)
    print(f"Written to {own.folder}")


def compared(run: Path) -> dict[str, dict[str, float]] | None:
    """What the run itself measured at its end, where it did."""
    path = run / "pretraining_results.json"
    return json.loads(path.read_text(encoding="utf-8")).get("comparison") if path.is_file() else None


def measured(results: str, method: str, seed: int) -> dict[str, dict[str, float]]:
    """Top-1 of a run's encoder and of the untrained one of its seed, on the first task, as the card lists them.

    Raises:
        ValueError: the results file does not have the run.
    """
    record = read_record(results)
    task, names = next(iter(record["tasks"])), {UNTRAINED: UNTRAINED, method: "trained"}
    found = {
        names[entry["method"]]: {"knn_accuracy": entry["knn_accuracy"], "linear_accuracy": entry["accuracy"]}
        for entry in record["evaluations"]
        if (entry["task"], entry["seed"]) == (task, seed) and entry["method"] in names
    }
    if len(found) < len(names):
        raise ValueError(
            f"{results} measured {sorted(found)} of seed {seed} on {task}; expected {list(names)}. Its methods are "
            f"{record['methods']}."
        )
    return found


if __name__ == "__main__":
    main()
