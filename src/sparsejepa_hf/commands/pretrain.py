# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Pre-train SparseJEPA, or I-JEPA, on any images.

    sparsejepa pretrain --dataset /data/images --output_dir runs/images
    sparsejepa pretrain demo --use_grouping false --output_dir runs/demo-ijepa
    accelerate launch -m sparsejepa_hf pretrain cifar100-vit-tiny --num_train_epochs 100

Options stand in a YAML file or a built-in recipe; flags override them; `--help` lists them all. Without either the
recipe `imagefolder-vit-small` is taken, in bf16 where the GPU has it. The output folder holds the checkpoint
with its image processor, the resolved options (`pretraining_options.yaml`, which runs again as it stands), the results
(`pretraining_results.json`) and a model card.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import set_seed

from ..modeling_sparsejepa import SparseJEPAForPreTraining
from ..records import provenance
from ..training import (
    OPTION_TYPES,
    SparseJEPATrainer,
    compare_features,
    count_undecodable,
    finished_results,
    image_processor,
    load_pretraining_data,
    parse_options,
    refuse_other_checkpoints,
    saves_when_preempted,
)
from ..training.arguments import has_bf16
from ..training.options import RECIPES


# For images of any kind: of one's own, and of a size of their own.
DEFAULT_RECIPE = "imagefolder-vit-small"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Pre-trains from `[RECIPE] [--flag value …]`, by default the command line's, and returns the results."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0].startswith("-"):
        words = [DEFAULT_RECIPE, *_for_this_machine(), *words]
    model_args, data_args, training_args = parse_options(OPTION_TYPES, words, "sparsejepa pretrain")
    refuse_other_checkpoints(training_args)
    if (finished := finished_results(training_args, "pretraining_results.json")) is not None:
        return finished
    # Asked for before the run: what is committed during it had no part in it.
    origin = provenance()
    set_seed(training_args.seed)

    config = model_args.build_config()
    if config.num_channels != 3 and words[0] in RECIPES and not any(map(_is_statistic, words)):
        # A recipe's are of RGB.
        data_args.image_mean = data_args.image_std = None
    data = load_pretraining_data(data_args, training_args, config)
    trainer = SparseJEPATrainer(
        model=SparseJEPAForPreTraining(config),
        args=training_args,
        train_dataset=data.train,
        eval_dataset=data.heldout,
        processing_class=image_processor(
            config.image_sides, data_args.image_mean, data_args.image_std, data_args.value_range
        ),
        # Where there are steps, loading has seen to both.
        knn_datasets=(data.bank, data.heldout) if training_args.needs_knn else None,  # type: ignore[arg-type]
    )
    trainer.run_options = (model_args, data_args, training_args)
    # Remembered, for the cards of steps that are pushed.
    trainer.describe_run(dataset=data_args.dataset, split=data_args.eval_split, origin=origin)

    compares = data_args.probe and data.bank is not None
    comparison = compare_features(trainer, data, "untrained", with_pixels=True) if compares else {}
    with saves_when_preempted(trainer):
        output = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_run()
    if compares:
        comparison |= compare_features(trainer, data, "trained")
    trainer.create_model_card(comparison=comparison)

    results = {
        "output_dir": training_args.output_dir,
        "num_train_examples": len(data.train) if hasattr(data.train, "__len__") else None,
        "num_undecodable": count_undecodable(trainer.accelerator, data.train, data.heldout),
        # Fewer than asked for, where an alarm or a callback stopped the run.
        "num_steps": output.global_step,
        "train_metrics": output.metrics,
        "num_processes": training_args.world_size,
        "provenance": origin,
    }
    if compares:
        results["comparison"] = comparison
    if trainer.is_world_process_zero():
        path = Path(training_args.output_dir) / "pretraining_results.json"
        path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        report(results)
    trainer.finish()
    return results


def _for_this_machine() -> list[str]:
    """What the default recipe leaves to the machine; flags of the user override it."""
    return ["--bf16", str(has_bf16()), "--dataloader_num_workers", str(min(8, os.cpu_count() or 1))]


def _is_statistic(word: str) -> bool:
    return word.startswith(("--image_mean", "--image_std"))


def report(results: dict[str, Any]) -> None:
    """Prints where the checkpoint is and what pre-training was worth."""
    print(f"\nCheckpoint: {results['output_dir']}  (AutoModel.from_pretrained(..., trust_remote_code=True) loads it)")
    if results.get("num_undecodable"):
        print(f"Images that could not be decoded were met {results['num_undecodable']} times, and skipped.")
    comparison = results.get("comparison", {})
    if "trained" in comparison:
        print(f"{'Top-1 on held-out images':<26}{'kNN':>8}{'linear':>9}")
        for name, result in comparison.items():
            print(f"  {name:<24}{result['knn_accuracy']:>8.1%}{result['linear_accuracy']:>9.1%}")
        trained, untrained = comparison["trained"], comparison["untrained"]
        gains = [100 * (trained[key] - untrained[key]) for key in ("knn_accuracy", "linear_accuracy")]
        print(f"Against the untrained encoder: {gains[0]:+.1f} points (kNN) and {gains[1]:+.1f} points (linear).")
