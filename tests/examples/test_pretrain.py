# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Whole runs from their options, and what is refused before or after them."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, Trainer, TrainingArguments

from sparsejepa_hf import SparseJEPAForImageClassification
from sparsejepa_hf.data import normalize_images, resize_to_square, to_rgb
from sparsejepa_hf.records import provenance
from sparsejepa_hf.training.command_line import parse_options
from sparsejepa_hf.training.monitors import NonFiniteLossError
from sparsejepa_hf.training.pretraining import OPTION_TYPES, pretrain
from sparsejepa_hf.training.trainer import image_processor


@pytest.fixture
def run(tmp_path, make_recipe):
    sizes = {"max_train_examples": 64, "max_eval_examples": 48, "eval_split": "test"}

    def run(**options):
        given = make_recipe(**{**sizes, "output_dir": tmp_path / "run", **options})
        flags = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
        return pretrain(*parse_options(OPTION_TYPES, flags))

    return run


@pytest.fixture
def image_folder(tmp_path):
    """A folder root/split/class/i.png, seeded, of images of 40x30 pixels."""

    def build(**splits):
        generator = np.random.default_rng(0)
        for split, classes in splits.items():
            for name in classes:
                folder = tmp_path / "images" / split / name
                folder.mkdir(parents=True)
                for i in range(12):
                    pixels = generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{i}.png")
        return tmp_path / "images"

    return build


def test_a_run_writes_what_the_readme_says(run, tmp_path):
    results = run(knn_steps=1)
    folder = tmp_path / "run"
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "modeling_sparsejepa.py", "preprocessor_config.json"} <= names
    assert {"pretraining_options.yaml", "README.md"} <= names
    assert json.loads((folder / "pretraining_results.json").read_text()) == results
    assert set(results["comparison"]) == {"raw pixels", "untrained", "trained"}
    assert results["provenance"] == provenance()
    assert "| data | synthetic-scenes |" in (folder / "README.md").read_text()
    assert "| optimizer steps | 2 |" in (folder / "README.md").read_text()


def test_training_images_may_be_decoded_larger_than_the_model_takes_them(run, image_folder):
    """Training crops them; monitors, probes and the evaluation see the model's size."""
    folder = image_folder(train=["cat", "dog"], test=["cat", "dog"])
    options = {"dataset": folder, "load_size": 24, "crop": "resized", "knn_steps": 1, "eval_strategy": "steps"}
    results = run(**options, eval_steps=1, max_train_examples=None, max_eval_examples=None)
    assert results["num_train_examples"] == 24 and "trained" in results["comparison"]


def test_splits_that_number_their_classes_differently_are_refused(run, image_folder):
    folder = image_folder(train=["cat", "dog", "fish"], test=["dog", "fish"])
    with pytest.raises(ValueError, match="number their classes differently.*'cat'"):
        run(dataset=folder, max_train_examples=None)


def test_less_than_one_batch_is_refused(run):
    with pytest.raises(ValueError, match="64 images, less than one batch of 65"):
        run(per_device_train_batch_size=65)


def test_the_monitor_without_labels_is_refused(run):
    with pytest.raises(ValueError, match="knn_steps is 1.*eval_split"):
        run(knn_steps=1, eval_split="none")


def test_a_folder_with_checkpoints_of_another_run_is_refused(run):
    run(save_strategy="steps", save_steps=1)
    with pytest.raises(ValueError, match=r"holds checkpoints of an earlier run, such as checkpoint-2"):
        run()
    run(resume_from_checkpoint="true", max_steps=3)


def test_a_configuration_name_without_a_hub_data_set_is_refused(run):
    with pytest.raises(ValueError, match="name is 'x', the configuration of a Hub data set"):
        run(dataset=Path(__file__).parent, dataset_config_name="x")


def test_oblong_models_are_refused_before_any_data_is_read(run):
    flags = ["--output_dir", "unused", "--use_cpu", "true", "--image_size", "16", "32", "--patch_size", "4"]
    with pytest.raises(ValueError, match="square RGB images"):
        pretrain(*parse_options(OPTION_TYPES, [*flags, "--dataset", "nowhere/at-all"]))


def test_scenes_are_rendered_at_the_model_s_size(run, monkeypatch):
    sizes = []
    from sparsejepa_hf.training import pretraining

    build = pretraining.build_scenes
    monkeypatch.setattr(
        pretraining,
        "build_scenes",
        lambda *a, image_size, **k: sizes.append(image_size) or build(*a, image_size=16, **k),
    )
    run(probe="false")
    assert set(sizes) == {16}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": -1}, "streaming is set and max_steps is -1"),
        ({"max_steps": 4, "knn_steps": 2}, "streaming is set and knn_steps is 2"),
    ],
)
def test_a_stream_without_an_end_or_a_bank_is_refused_at_once(run, options, message):
    with pytest.raises(ValueError, match=message):
        run(streaming="true", **options)


def test_streaming_trains_without_the_held_out_split(run):
    results = run(streaming="true", max_steps=12)
    assert "comparison" not in results and results["num_train_examples"] is None


@pytest.mark.parametrize(("mode", "size"), [("RGB", (16, 16)), ("RGB", (48, 32)), ("L", (32, 64)), ("P", (32, 32))])
def test_the_saved_image_processor_does_what_held_out_images_went_through(mode, size, tmp_path):
    """Whole multiples of the model's side, which no rounding can tell apart."""
    generator = np.random.default_rng(1)
    image = Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    image_processor((16, 16), mean, std).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    processed = processor(images=image, return_tensors="pt")["pixel_values"][0]
    pixels = torch.from_numpy(resize_to_square(to_rgb(image), 16).copy())
    # One level of 255 is the rounding of either resize.
    assert (processed - normalize_images(pixels, mean, std)).abs().max() <= 1.01 / 255 / min(std)


def test_accumulation_does_not_scale_the_gradient_of_the_classifier(make_config, tmp_path):
    """Trainer divides a mean loss by the accumulation steps: four times two images make the step of eight."""
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    dataset = [{"pixel_values": image, "labels": i % 3} for i, image in enumerate(images)]
    weights = []
    for batch, steps in ((8, 1), (2, 4)):
        torch.manual_seed(0)
        model = SparseJEPAForImageClassification(make_config(num_labels=3))
        options = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
        options |= {"max_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
        arguments = TrainingArguments(
            tmp_path, per_device_train_batch_size=batch, gradient_accumulation_steps=steps, **options
        )
        Trainer(model, arguments, train_dataset=dataset).train()
        weights.append(model.classifier.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-7)


def test_an_optimizer_that_cannot_threshold_w_is_refused(make_trainer):
    trainer = make_trainer(config={"sparsity_weight": 1.0})
    optimizer = torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad])
    trainer.optimizer = optimizer
    with pytest.raises(ValueError, match="no parameter group of its own for W"):
        trainer.train()


def test_an_i_jepa_trainer_trains_twice_with_a_schedule_of_the_weight_decay(make_trainer):
    trainer = make_trainer(config={"use_grouping": False}, max_steps=2, weight_decay=0.1, weight_decay_end=0.4)
    trainer.train()
    trainer.train()
    assert sorted({group["weight_decay"] for group in trainer.optimizer.param_groups}) == pytest.approx([0.0, 0.4])


def test_weights_that_are_not_finite_are_not_saved(make_trainer, tmp_path):
    trainer = make_trainer()
    with torch.no_grad():
        trainer.model.sparsejepa.predictor.trunk.mask_token.fill_(torch.inf)
    with pytest.raises(NonFiniteLossError, match="weights are no longer finite"):
        trainer.save_model(str(tmp_path / "broken"))
    assert not (tmp_path / "broken").exists()


def test_targets_carry_no_dropout_noise(make_trainer):
    """Two passes in training mode agree on the targets, not on the predictions."""
    model = make_trainer(
        config={"hidden_dropout_prob": 0.5, "use_grouping": False, "sparsity_weight": 0, "kl_weight": 0}
    ).model
    model.train()
    images = torch.randn(2, 3, 16, 16)
    context, target = torch.tensor([[0, 1, 2]] * 2), torch.tensor([[[8, 9]]] * 2)
    first, second = (model(images, context, target) for _ in range(2))
    assert torch.equal(first.target_hidden_state, second.target_hidden_state)
    assert not torch.equal(first.predictor_output.last_hidden_state, second.predictor_output.last_hidden_state)


def test_every_held_out_image_is_evaluated(make_trainer, make_dataset):
    """Eleven images in batches of eight: the loader gives the last three too."""
    trainer = make_trainer(eval_dataset=make_dataset(11), dataloader_drop_last=True)
    assert sum(len(batch["pixel_values"]) for batch in trainer.get_eval_dataloader()) == 11
    assert trainer.args.dataloader_drop_last


def test_a_data_set_of_raw_images_is_refused_with_the_way_to_wrap_it(make_trainer):
    raw = datasets.Dataset.from_dict({"image": [b""], "label": [0]})
    with pytest.raises(ValueError, match=r"columns \['image', 'label'\].*build_image_dataset"):
        make_trainer(train_dataset=raw)


def test_under_autocast_the_residual_stream_keeps_the_weights_precision(make_trainer):
    model = make_trainer().model
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = model.sparsejepa.context_encoder.embeddings(torch.randn(1, 3, 16, 16))
    assert embeddings.dtype == torch.float32
