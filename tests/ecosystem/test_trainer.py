# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""transformers' stock Trainer fine-tunes a checkpoint, as its run_image_classification.py does."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    Trainer,
    TrainingArguments,
)

from sparsejepa_hf import SparseJEPAConfig, SparseJEPAForPreTraining, SparseJEPAVisionModel
from sparsejepa_hf.image_processing_sparsejepa import image_processor


# Fine classes of CIFAR-100 that differ in colour: sea, forest, sunflower, orange.
CLASSES = ("sea", "forest", "sunflower", "orange")


@pytest.fixture(scope="module")
def real_images(data_dir) -> dict[str, Dataset]:
    """Training and test images of four classes, 100 and 50 of each."""
    folder = data_dir / "cifar100"
    if not folder.is_dir():
        pytest.skip(f"no CIFAR-100 at {folder}")
    chosen = {}
    for split, count in (("train", 100), ("test", 50)):
        file = min(folder.glob(f"{split}-*.parquet"))
        data = Dataset(pq.read_table(file, columns=["img", "fine_label"])).rename_column("img", "image")
        names = data.features["fine_label"].names
        labels = np.array(data["fine_label"])
        rows = np.concatenate([np.flatnonzero(labels == names.index(name))[:count] for name in CLASSES])
        new_labels = [CLASSES.index(names[label]) for label in labels[rows]]
        chosen[split] = data.select_columns("image").select(rows).add_column("labels", new_labels)
    return chosen


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A pre-training checkpoint with its image processor, as `push_to_hub` would publish it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    config = SparseJEPAConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        predictor_hidden_size=32,
        predictor_num_hidden_layers=1,
        predictor_num_attention_heads=2,
    )
    torch.manual_seed(0)
    SparseJEPAForPreTraining(config).save_pretrained(folder)
    image_processor(config.image_sides).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_fine_tuning_on_real_images(real_images, checkpoint, tmp_path):
    labels = dict(enumerate(CLASSES))
    model = AutoModelForImageClassification.from_pretrained(
        checkpoint, id2label=labels, label2id={name: number for number, name in labels.items()}
    )
    processor = AutoImageProcessor.from_pretrained(checkpoint)

    def prepare(batch):
        return {**processor(batch["image"], return_tensors="pt"), "labels": batch["labels"]}

    def accuracy(prediction):
        return {"accuracy": (prediction.predictions.argmax(-1) == prediction.label_ids).mean().item()}

    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=6,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=100,
            learning_rate=1e-3,
            remove_unused_columns=False,
            logging_steps=13,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=0,
        ),
        train_dataset=real_images["train"].with_transform(prepare),
        eval_dataset=real_images["test"].with_transform(prepare),
        processing_class=processor,
        compute_metrics=accuracy,
    )
    untrained = trainer.evaluate()
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.6 * losses[0]
    trained = trainer.evaluate()
    # Chance is 25%.
    assert trained["eval_accuracy"] > 0.6 > untrained["eval_accuracy"]
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert not still
    # What is saved is a model of its own, and its features are those that were trained.
    trainer.save_model(str(tmp_path / "saved"))
    encoder = SparseJEPAVisionModel.from_pretrained(tmp_path / "saved")
    for name, parameter in encoder.named_parameters():
        assert torch.equal(parameter, dict(model.sparsejepa.named_parameters())[name])
