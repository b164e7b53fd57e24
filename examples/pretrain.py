# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Pre-train SparseJEPA, or I-JEPA, on any images.

    python examples/pretrain.py examples/configs/demo.yaml --output_dir runs/demo
    accelerate launch examples/pretrain.py examples/configs/cifar100-vit-tiny.yaml --num_train_epochs 100

Options stand in the YAML file; flags override them; `--help` lists them all.
"""

from sparsejepa_hf.training.command_line import parse_options
from sparsejepa_hf.training.pretraining import OPTION_TYPES, pretrain


def main() -> None:
    """Parses, pre-trains, reports."""
    model_arguments, data_arguments, training_arguments = parse_options(OPTION_TYPES)
    results = pretrain(model_arguments, data_arguments, training_arguments)
    if training_arguments.process_index != 0:
        return
    print(f"\nCheckpoint: {results['output_dir']}  (AutoModel.from_pretrained loads it)")
    if "trained" in results.get("comparison", {}):
        print(f"{'Top-1 on held-out images':<26}{'kNN':>8}{'linear':>9}")
        for name, result in results["comparison"].items():
            print(f"  {name:<24}{result['knn_accuracy']:>8.1%}{result['linear_accuracy']:>9.1%}")
        trained, untrained = results["comparison"]["trained"], results["comparison"]["untrained"]
        gains = [100 * (trained[key] - untrained[key]) for key in ("knn_accuracy", "linear_accuracy")]
        print(
            f"Better than the untrained encoder by {gains[0]:+.1f} points (kNN) and {gains[1]:+.1f} points (linear)."
        )


if __name__ == "__main__":
    main()
