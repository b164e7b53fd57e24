# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Pre-train SparseJEPA, or I-JEPA, on any images.

    python examples/pretrain.py examples/configs/demo.yaml --output_dir runs/demo
    python examples/pretrain.py examples/configs/demo.yaml --output_dir runs/demo-ijepa --use_grouping false
    accelerate launch examples/pretrain.py examples/configs/cifar100-vit-tiny.yaml --num_train_epochs 100

Options stand in the YAML file; flags override them; `--help` lists them all. The output folder holds the checkpoint
with its image processor, the resolved options (`pretraining_options.yaml`, which runs again as it stands), the results
(`pretraining_results.json`) and a model card.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import set_seed

from sparsejepa_hf import SparseJEPAForPreTraining
from sparsejepa_hf.records import provenance
from sparsejepa_hf.training import (
    OPTION_TYPES,
    SparseJEPATrainer,
    compare_features,
    image_processor,
    load_pretraining_data,
    parse_options,
    refuse_other_checkpoints,
    write_options,
)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Pre-trains from `[FILE.yaml] [--flag value …]`, by default the command line's, and returns the results."""
    model_args, data_args, training_args = parse_options(OPTION_TYPES, arguments)
    refuse_other_checkpoints(training_args)
    # Asked for before the run: what is committed during it had no part in it.
    origin = provenance()
    set_seed(training_args.seed)

    config = model_args.build_config()
    data = load_pretraining_data(data_args, training_args, config)
    trainer = SparseJEPATrainer(
        model=SparseJEPAForPreTraining(config),
        args=training_args,
        train_dataset=data.train,
        eval_dataset=data.heldout,
        processing_class=image_processor(config.image_sides, data_args.image_mean, data_args.image_std),
        knn_datasets=(data.bank, data.heldout) if training_args.needs_knn else None,
    )
    if trainer.is_world_process_zero():
        write_options(training_args.output_dir, model_args, data_args, training_args)

    compares = data_args.probe and data.bank is not None
    comparison = compare_features(trainer, data, "untrained", with_pixels=True) if compares else {}
    output = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model()
    trainer.save_state()
    if compares:
        comparison |= compare_features(trainer, data, "trained")
    trainer.create_model_card(dataset=data_args.dataset, comparison=comparison)

    results = {
        "output_dir": training_args.output_dir,
        "num_train_examples": len(data.train) if hasattr(data.train, "__len__") else None,
        "num_undecodable": data.train.num_bad,
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


def report(results: dict[str, Any]) -> None:
    """Prints where the checkpoint is and what pre-training was worth."""
    print(f"\nCheckpoint: {results['output_dir']}  (AutoModel.from_pretrained loads it)")
    comparison = results.get("comparison", {})
    if "trained" in comparison:
        print(f"{'Top-1 on held-out images':<26}{'kNN':>8}{'linear':>9}")
        for name, result in comparison.items():
            print(f"  {name:<24}{result['knn_accuracy']:>8.1%}{result['linear_accuracy']:>9.1%}")
        trained, untrained = comparison["trained"], comparison["untrained"]
        gains = [100 * (trained[key] - untrained[key]) for key in ("knn_accuracy", "linear_accuracy")]
        print(
            f"Better than the untrained encoder by {gains[0]:+.1f} points (kNN) and {gains[1]:+.1f} points (linear)."
        )


if __name__ == "__main__":
    main()
