# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Fine-tune a pre-trained encoder as an image classifier.

    python examples/finetune.py examples/configs/cifar100-cpu-finetune.yaml
    accelerate launch examples/finetune.py examples/configs/cifar100-cpu-finetune.yaml --model_name_or_path runs/demo

Options stand in the YAML file; flags override them; `--help` lists them all.
"""

from sparsejepa_hf.training.command_line import parse_options
from sparsejepa_hf.training.finetuning import OPTION_TYPES, finetune


def main() -> None:
    """Parses, fine-tunes, reports."""
    model_arguments, data_arguments, training_arguments = parse_options(OPTION_TYPES)
    results = finetune(model_arguments.model_name_or_path, data_arguments, training_arguments)
    if training_arguments.process_index != 0:
        return
    print(f"\nClassifier: {results['output_dir']}  (pipeline('image-classification', ...) loads it)")
    for part in ("validation", "test"):
        if results[part] is not None:
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in results[part].items())
            print(f"  {part:<11}{results[f'num_{part}_examples']:>7} images: {numbers}")


if __name__ == "__main__":
    main()
