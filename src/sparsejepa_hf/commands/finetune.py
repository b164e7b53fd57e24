# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Fine-tune a pre-trained encoder as an image classifier, and test it.

    sparsejepa finetune --model_name_or_path runs/images --dataset /data/folder-of-classes --output_dir runs/classifier
    accelerate launch -m sparsejepa_hf finetune cifar100-cpu-finetune --model_name_or_path runs/demo

Options stand in a YAML file or a built-in recipe; flags override them; `--help` lists them all. The output folder
holds the classifier with its class names and image processor, the resolved options (`finetuning_options.yaml`, which
runs again as it stands) the results (`finetuning_results.json`) and a model card.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import set_seed

from ..evaluation.encoders import find_processor
from ..records import provenance
from ..training import (
    FINE_TUNING_OPTION_TYPES,
    FineTuningTrainer,
    count_undecodable,
    finished_results,
    image_processor,
    load_classifier,
    load_finetuning_data,
    parse_options,
    pixel_statistics,
    read_config,
    refuse_other_checkpoints,
    saves_when_preempted,
)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Fine-tunes from `[RECIPE] [--flag value …]`, by default the command line's, and returns the results."""
    model_args, data_args, training_args = parse_options(FINE_TUNING_OPTION_TYPES, arguments, "sparsejepa finetune")
    checkpoint, folder = model_args.model_name_or_path, Path(training_args.output_dir)
    if folder.resolve() == Path(checkpoint).resolve():
        raise ValueError(
            f"output_dir is {str(folder)!r}, which holds the checkpoint to begin from; the result would overwrite it. "
            "Choose another output_dir."
        )
    refuse_other_checkpoints(training_args)
    if (finished := finished_results(training_args, "finetuning_results.json")) is not None:
        return finished
    # Asked for before the run: what is committed during it had no part in it.
    origin = provenance()

    config = read_config(checkpoint)
    if data_args.value_range is None:
        # As in pre-training.
        data_args.value_range = getattr(find_processor(checkpoint), "value_range", None)
    data = load_finetuning_data(data_args, config, holds_out=training_args.eval_strategy != "no")
    # After the data, so that the classifier starts the same whether they were in a cache or not.
    set_seed(training_args.seed)
    statistics = pixel_statistics(checkpoint, data_args.image_mean, data_args.image_std)
    trainer = FineTuningTrainer(
        model=load_classifier(checkpoint, data.class_names, training_args.random_weights),
        args=training_args,
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=image_processor(config.image_sides, *statistics, data_args.value_range),
    )
    trainer.run_options = (model_args, data_args, training_args)
    # Remembered, for the cards of steps that are pushed.
    trainer.describe_run(dataset=data_args.dataset, finetuned_from=checkpoint, origin=origin)

    with saves_when_preempted(trainer):
        output = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_run()
    parts = (data.train, data.validation, data.test)
    results = {
        "output_dir": training_args.output_dir,
        "model_name_or_path": checkpoint,
        "num_steps": output.global_step,
        "train_metrics": output.metrics,
        "class_names": data.class_names,
        "num_train_examples": len(data.train),
        "num_validation_examples": 0 if data.validation is None else len(data.validation),
        "num_test_examples": len(data.test),
        "num_undecodable": count_undecodable(trainer.accelerator, *parts),
        "validation": None if data.validation is None else trainer.measure(data.validation),
        "test": trainer.measure(data.test),
        "provenance": origin,
    }
    measured = {data_args.test_split: results["test"], f"held out of {data_args.train_split}": results["validation"]}
    trainer.create_model_card(results={split: scores for split, scores in measured.items() if scores})
    if trainer.is_world_process_zero():
        (folder / "finetuning_results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        report(results)
    trainer.finish()
    return results


def report(results: dict[str, Any]) -> None:
    """Prints where the classifier is and what it reaches."""
    loads = "pipeline('image-classification', ..., trust_remote_code=True) loads it"
    print(f"\nClassifier: {results['output_dir']}  ({loads})")
    for part in ("validation", "test"):
        if results[part] is not None:
            numbers = ", ".join(f"{name} {value:.4g}" for name, value in results[part].items())
            print(f"  {part:<11}{results[f'num_{part}_examples']:>7} images: {numbers}")
