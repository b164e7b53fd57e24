# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Make a model folder of a finished run: weights, code, image processor, log, and a card with its measured numbers.

    python -m examples.reproduce.publish runs/paper_table/runs/sparsejepa------7e-4-seed0-98a63a86 \
        model_cards/sparsejepa-vit-micro-cifar100 --dataset uoft-cs/cifar100 --license apache-2.0 \
        --results results/paper_table_cpu.json --method SparseJEPA
    python -m examples.reproduce.publish runs/paper_table/runs/i-jepa-seed0-05592c3f \
        model_cards/ijepa-vit-micro-cifar100 --dataset uoft-cs/cifar100 --license apache-2.0 \
        --results results/paper_table_cpu.json --method I-JEPA
    python -m examples.reproduce.publish runs/demo_scenes/sparsejepa-seed0-55d1c7e9 \
        model_cards/sparsejepa-vit-micro-scenes --dataset textured-scenes --license apache-2.0

The weights of a folder that is there already stay; all else is made anew. The folder's code is a link to this
package's, so that it never grows old here; an upload to the Hub follows links.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerState

import sparsejepa_hf
from sparsejepa_hf import SparseJEPAForPreTraining
from sparsejepa_hf.publishing import write_model_card
from sparsejepa_hf.training import OPTION_TYPES, image_processor, parse_options, pixel_statistics

from .experiment import UNTRAINED, read_record
from .runs import SPARSEJEPA


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the folder."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished pre-training run")
    parser.add_argument("folder", type=Path, help="where the model goes; its name is the model's")
    parser.add_argument("--dataset", required=True, help="what the card calls the training data")
    parser.add_argument("--license", help="of the model, as the Hub calls it; default: none is named")
    parser.add_argument("--results", help="results file of the paper's table; default: what the run measured")
    parser.add_argument("--method", default=SPARSEJEPA, help="what the results file calls it")
    own = parser.parse_args(arguments)

    model = load_whole(own.folder if (own.folder / "config.json").is_file() else own.run)
    for code in list(own.folder.glob("*.py")):
        # Else what is saved would be written through the link.
        code.unlink()
    model.save_pretrained(own.folder)
    image_processor(model.config.image_sides, *pixel_statistics(str(own.run))).save_pretrained(own.folder)
    shutil.copyfile(own.run / "trainer_state.json", own.folder / "trainer_state.json")
    source = Path(sparsejepa_hf.__file__).resolve().parent
    for code in list(own.folder.glob("*.py")):
        code.unlink()
        code.symlink_to(Path(*[".."] * len(own.folder.parts), "src", source.name, code.name))
    _, data, args = parse_options(OPTION_TYPES, [str(own.run / "pretraining_options.yaml")])
    path = own.run / "pretraining_results.json"
    of_run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    write_model_card(
        own.folder,
        kind="pretraining",
        config=model.config,
        dataset=own.dataset,
        split=data.eval_split,
        results=measured(own.results, own.method, args.seed) if own.results else of_run.get("comparison"),
        license=own.license,
        training=args,
        state=TrainerState.load_from_json(str(own.run / "trainer_state.json")),
        origin=of_run.get("provenance", {}),
    )
    print(f"Written to {own.folder}")


def load_whole(folder: Path) -> SparseJEPAForPreTraining:
    """The model in a folder.

    Raises:
        ValueError: the folder lacks weights.
    """
    model, info = SparseJEPAForPreTraining.from_pretrained(folder, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(
            f"{folder} lacks {sorted(info['missing_keys'])}, which would be random; expected a run whose weights "
            "have the names of this version."
        )
    return model


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
