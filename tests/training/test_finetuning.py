# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Fine-tuning: layer decay, whole runs on coloured squares, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import BertConfig, EvalPrediction, TrainerCallback, TrainingArguments, pipeline

import sparsejepa_hf
from sparsejepa_hf import SparseJEPAForImageClassification, SparseJEPAForPreTraining, SparseJEPAVisionModel
from sparsejepa_hf.records import provenance
from sparsejepa_hf.training import finetuning
from sparsejepa_hf.training.command_line import parse_options
from sparsejepa_hf.training.finetuning import (
    OPTION_TYPES,
    FineTuningArguments,
    FineTuningDataArguments,
    FineTuningTrainer,
    classification_metrics,
    finetune,
    layer_decay_groups,
    load_classifier,
)
from sparsejepa_hf.training.monitors import NonFiniteLossError
from sparsejepa_hf.training.trainer import image_processor


NAMES = ["red", "green", "blue"]
SIDE = 16

FAST = {
    "use_cpu": True,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 16,
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "crop_padding": 2,
    "seed": 3,
}


def squares(count, names=NAMES, seed=0, label_type=None, labels=None):
    """A data set of noisy images, each of the colour of its class."""
    generator = np.random.default_rng(seed)
    labels = [i % 3 for i in range(count)] if labels is None else labels
    images = []
    for label in labels:
        pixels = generator.integers(0, 90, (SIDE, SIDE, 3), dtype=np.uint8)
        pixels[:, :, (label or 0) % 3] += 150
        images.append(Image.fromarray(pixels))
    label_type = label_type or datasets.ClassLabel(names=list(names))
    features = datasets.Features({"image": datasets.Image(), "label": label_type})
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


@pytest.fixture
def save_data(tmp_path):
    def save(train=None, test=None, name="squares"):
        parts = {
            "train": squares(96) if train is None else train,
            "test": squares(30, seed=1) if test is None else test,
        }
        datasets.DatasetDict(parts).save_to_disk(tmp_path / name)
        return str(tmp_path / name)

    return save


@pytest.fixture
def checkpoint(tmp_path, make_small_config):
    """A folder as pre-training leaves it, normalisation included."""
    torch.manual_seed(0)
    folder = tmp_path / "checkpoint"
    SparseJEPAForPreTraining(make_small_config(num_hidden_layers=2)).save_pretrained(folder)
    image_processor((SIDE, SIDE), [0.4, 0.4, 0.4], [0.3, 0.3, 0.3]).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(tmp_path, checkpoint, save_data):
    """Fine-tunes on coloured squares; `data` are data arguments, the rest training arguments."""

    def run(data=None, model=None, **arguments):
        data = {"dataset": None, **(data or {})}
        data["dataset"] = data["dataset"] or save_data()
        arguments = {"output_dir": str(tmp_path / "run"), **FAST, **arguments}
        return finetune(model or checkpoint, FineTuningDataArguments(**data), FineTuningArguments(**arguments))

    return run


@pytest.fixture
def make_classifier(make_small_config):
    def build(layers=2, classes=3):
        torch.manual_seed(0)
        return SparseJEPAForImageClassification(make_small_config(num_hidden_layers=layers, num_labels=classes))

    return build


@pytest.fixture
def make_trainer(tmp_path, make_classifier, make_dataset):
    def build(count=16, labels=4, callbacks=None, **arguments):
        return FineTuningTrainer(
            make_classifier(classes=labels),
            FineTuningArguments(**{"output_dir": str(tmp_path / "trainer"), **FAST, **arguments}),
            train_dataset=make_dataset(count),
            callbacks=callbacks,
        )

    return build


def weights_in(folder):
    return safetensors.torch.load_file(Path(folder) / "model.safetensors")


# ---- layer decay ----


@given(layers=st.integers(1, 12), decay=st.floats(0.1, 1.0), rate=st.floats(1e-5, 1.0))
def test_learning_rates_have_the_closed_form(layers, decay, rate, make_classifier):
    """lr · decay^(L+1−l); every trainable parameter once; no weight decay on what has one dimension."""
    model = make_classifier(layers)
    groups = layer_decay_groups(model, rate, 0.05, decay)
    names = {id(p): name for name, p in model.named_parameters()}
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(names), "each exactly once"
    for group in groups:
        for parameter in group["params"]:
            parts = names[id(parameter)].split(".")
            if "embeddings" in parts:
                layer = 0
            elif "layers" in parts:
                layer = 1 + int(parts[parts.index("layers") + 1])
            else:
                layer = layers + 1 if parts[0] == "classifier" else layers
            assert group["lr"] == pytest.approx(rate * decay ** (layers + 1 - layer), rel=1e-12)
            assert group["weight_decay"] == (0.0 if parameter.ndim == 1 else 0.05)


def test_the_optimizer_steps_with_these_rates_and_logs_the_one_that_was_asked_for(make_trainer):
    trainer = make_trainer(layer_decay=0.5, learning_rate=0.2, lr_scheduler_type="constant", warmup_steps=0)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.args.max_steps = 1
    trainer.train()
    assert trainer.state.log_history[0]["learning_rate"] == 0.2
    # The first step of AdamW moves every weight that has a gradient by its learning rate, but for weight decay.
    for name, rate in (("classifier.bias", 0.2), ("sparsejepa.target_encoder.layernorm.bias", 0.1)):
        moved = (dict(trainer.model.named_parameters())[name].detach() - before[name]).abs()
        torch.testing.assert_close(moved, torch.full_like(moved, rate), rtol=1e-3, atol=0.0)


def test_frozen_parameters_are_in_no_group(make_classifier):
    model = make_classifier()
    model.sparsejepa.requires_grad_(False)
    groups = layer_decay_groups(model, 0.1, 0.05, 0.5)
    assert [id(p) for group in groups for p in group["params"]] == [
        id(model.classifier.bias),
        id(model.classifier.weight),
    ]
    assert {group["lr"] for group in groups} == {0.1}


# ---- the loss ----


def test_the_loss_is_smoothed_cross_entropy_in_training_and_plain_in_evaluation(make_trainer, make_dataset):
    trainer = make_trainer(crop="none", horizontal_flip=0.0, label_smoothing_factor=0.2)
    images = make_dataset(8)
    inputs = {"pixel_values": images.pixel_values, "labels": images.labels}
    expected = (images.pixel_values.float() / 255 - 0.5) / 0.5
    for training in (True, False):
        trainer.model.train(training)
        loss, outputs = trainer.compute_loss(trainer.model, inputs, return_outputs=True)
        log_probabilities = trainer.model(expected).logits.log_softmax(dim=1)
        smoothing = 0.2 if training else 0.0
        truth = log_probabilities.gather(1, images.labels[:, None])[:, 0]
        by_hand = -((1 - smoothing) * truth + smoothing * log_probabilities.mean(dim=1)).mean()
        torch.testing.assert_close(loss, by_hand, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("alphas", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixing_makes_soft_labels_of_pairs_and_leaves_an_odd_batch(make_trainer, make_dataset, alphas):
    trainer = make_trainer(**alphas)
    images = make_dataset(8)
    np.random.seed(0)
    mixed, targets = trainer._training_views(images.pixel_values, images.labels)
    assert targets.shape == (8, 4) and (targets >= 0).all()
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(8))
    assert ((targets > 0).sum(dim=1) <= 2).all() and (targets < 1).any()
    labels = images.labels[:7]
    assert trainer._training_views(images.pixel_values[:7], labels)[1] is labels
    trainer.train()


def test_accumulation_makes_the_step_of_the_whole_batch(make_trainer, weights_of, assert_same_weights):
    """Augmentation included: a sample's place in the step decides it."""
    weights = []
    for batch, steps in ((8, 1), (2, 4)):
        trainer = make_trainer(
            per_device_train_batch_size=batch, gradient_accumulation_steps=steps, optim="sgd", max_steps=2
        )
        trainer.train()
        weights.append(weights_of(trainer))
    assert_same_weights(*weights, atol=1e-6)


# ---- metrics ----


@given(seed=st.integers(0, 2**16), classes=st.integers(2, 9), count=st.integers(1, 40))
def test_metrics_are_what_sklearn_says(seed, classes, count):
    from sklearn import metrics

    generator = np.random.default_rng(seed)
    logits = generator.standard_normal((count, classes)).astype(np.float32)
    labels = generator.integers(classes, size=count)
    found = classification_metrics(EvalPrediction(logits, labels))
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, logits.argmax(1)))
    recall = metrics.recall_score(labels, logits.argmax(1), labels=np.unique(labels), average="macro", zero_division=0)
    assert found["balanced_accuracy"] == pytest.approx(recall)
    assert found["cross_entropy"] == pytest.approx(
        metrics.log_loss(labels, torch.from_numpy(logits).double().softmax(1).numpy(), labels=range(classes)), rel=1e-5
    )
    assert ("top5_accuracy" in found) == (classes > 5)
    if classes > 5:
        top5 = metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(classes))
        assert found["top5_accuracy"] == pytest.approx(top5)


# ---- whole runs ----


def test_two_epochs_tell_coloured_squares_apart_and_the_pipeline_names_them(run, tmp_path, checkpoint):
    results = run()
    folder = tmp_path / "run"
    assert results["test"]["accuracy"] > 0.95 and results["test"]["balanced_accuracy"] > 0.95
    assert results["validation"] is None
    assert (results["num_train_examples"], results["num_validation_examples"], results["num_test_examples"]) == (
        96,
        0,
        30,
    )
    assert json.loads((folder / "finetuning_results.json").read_text()) == results
    assert results["provenance"] == provenance()
    assert not (folder / "pretraining_options.yaml").exists()
    classifier = pipeline("image-classification", model=str(folder), device="cpu")
    for row in squares(6, seed=9):
        assert classifier(row["image"])[0]["label"] == NAMES[row["label"]]
    assert list(classifier.image_processor.image_mean) == [0.4, 0.4, 0.4], "normalised as in pre-training"


def test_the_pipeline_gives_what_the_run_measured(run, tmp_path, save_data):
    """Every test image through the saved processor and classifier: the same cross entropy."""
    data = save_data(train=squares(24))
    results = run({"dataset": data}, num_train_epochs=1)
    classifier = pipeline("image-classification", model=str(tmp_path / "run"), device="cpu", top_k=3)
    rows = list(datasets.load_from_disk(data)["test"])
    predicted = [{entry["label"]: entry["score"] for entry in classifier(row["image"])} for row in rows]
    truth = [scores[NAMES[row["label"]]] for scores, row in zip(predicted, rows, strict=True)]
    assert -np.mean(np.log(truth)) == pytest.approx(results["test"]["cross_entropy"], rel=1e-4)


def test_a_frozen_encoder_stays_as_it_was(run, checkpoint, tmp_path):
    run(freeze_encoder=True)
    before, after = weights_in(checkpoint), weights_in(tmp_path / "run")
    encoder = [name for name in after if "target_encoder" in name]
    assert len(encoder) > 10
    assert all(torch.equal(after[name], before[name]) for name in encoder)
    run(output_dir=str(tmp_path / "whole"), layer_decay=0.1)
    whole = weights_in(tmp_path / "whole")
    assert all(not torch.equal(whole[name], before[name]) for name in encoder), "each moves otherwise"


def test_random_weights_are_those_of_the_seed_not_of_the_checkpoint(checkpoint):
    torch.manual_seed(1)
    random = load_classifier(checkpoint, NAMES, random_weights=True).state_dict()
    loaded = load_classifier(checkpoint, NAMES).state_dict()
    name = "sparsejepa.target_encoder.layers.1.mlp.fc1.weight"
    assert torch.equal(loaded[name], weights_in(checkpoint)[name])
    assert random.keys() == loaded.keys() and not torch.equal(random[name], loaded[name])


def test_a_half_precision_checkpoint_is_trained_in_full(checkpoint, tmp_path):
    SparseJEPAForPreTraining.from_pretrained(checkpoint).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert {p.dtype for p in load_classifier(str(tmp_path / "half"), NAMES).parameters()} == {torch.float32}


def test_every_checkpoint_of_the_family_serves_and_a_fitting_classifier_is_kept(checkpoint, tmp_path):
    SparseJEPAVisionModel.from_pretrained(checkpoint).save_pretrained(tmp_path / "vision")
    first = load_classifier(str(tmp_path / "vision"), NAMES)
    first.save_pretrained(tmp_path / "first")
    same = load_classifier(str(tmp_path / "first"), ["a", "b", "c"])
    other = load_classifier(str(tmp_path / "first"), ["a", "b"])
    assert torch.equal(same.classifier.weight, first.classifier.weight)
    assert other.classifier.weight.shape == (2, 32) and other.config.id2label == {0: "a", 1: "b"}
    name = "sparsejepa.target_encoder.embeddings.patch_embeddings.projection.weight"
    assert all(torch.equal(m.state_dict()[name], weights_in(checkpoint)[name]) for m in (first, same, other))


def test_selection_sees_a_stratified_part_of_train_and_never_the_test_split(run, tmp_path, monkeypatch):
    """The best checkpoint on the validation part is the one that is saved and tested, though the last is useless."""
    seen = []
    predict = FineTuningTrainer.predict
    monkeypatch.setattr(
        FineTuningTrainer, "predict", lambda self, d, **k: seen.append(self.is_in_train) or predict(self, d, **k)
    )
    monkeypatch.setattr(finetuning, "FineTuningTrainer", _SpoiledAtTheEnd)
    results = run(eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True)
    held_out = results["num_validation_examples"]
    assert 7 <= held_out <= 10 and results["num_train_examples"] == 96 - held_out, "a tenth of each class"
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    evaluations = [entry["eval_accuracy"] for entry in state["log_history"] if "eval_accuracy" in entry]
    assert evaluations[0] > 0.9 > evaluations[1] and state["best_metric"] == evaluations[0]
    assert results["validation"]["accuracy"] == evaluations[0] and results["test"]["accuracy"] > 0.9
    assert seen == [False, False], "predictions are made once the training is over"


class _SpoiledAtTheEnd(FineTuningTrainer):
    """Its weights are ruined in the second epoch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.add_callback(_Spoil())


class _Spoil(TrainerCallback):
    def on_epoch_begin(self, args, state, control, model=None, **kwargs):
        if state.epoch >= 1:
            with torch.no_grad():
                model.classifier.bias.copy_(torch.tensor([0.0, 0.0, 1e4]))


@pytest.mark.parametrize("mixup", [0.0, 0.8])
def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(run, tmp_path, mixup):
    options = {"save_strategy": "steps", "save_steps": 5, "max_steps": 14, "mixup": mixup}
    run(**options)
    whole = weights_in(tmp_path / "run")
    for folder in (tmp_path / "run").glob("checkpoint-1*"):
        for path in folder.iterdir():
            path.unlink()
    run(**options, resume_from_checkpoint="true")
    resumed = weights_in(tmp_path / "run")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_the_options_that_were_written_run_again_to_the_bit(run, tmp_path):
    run(max_steps=3)
    options = tmp_path / "run" / "finetuning_options.yaml"
    model, data, training = parse_options(OPTION_TYPES, [str(options), "--output_dir", str(tmp_path / "again")])
    finetune(model.model_name_or_path, data, training)
    first, again = weights_in(tmp_path / "run"), weights_in(tmp_path / "again")
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


def test_integer_labels_name_themselves(run, save_data):
    parts = (squares(count, label_type=datasets.Value("int64")) for count in (24, 9))
    assert run({"dataset": save_data(*parts)}, max_steps=1)["class_names"] == ["0", "1", "2"]


def test_training_images_may_be_decoded_larger_than_the_model_takes_them(run):
    run({"load_size": 24}, crop="resized", max_steps=1)


# ---- what is refused ----


def test_data_that_cannot_be_learnt_from_is_refused(run, save_data):
    unlabelled = squares(12).remove_columns("label")
    named = squares(12, names=["red", "green", "yellow"])
    cases = [
        ({"train": unlabelled}, "split 'train' has no column of labels"),
        ({"test": unlabelled}, "split 'test' has no column of labels"),
        ({"train": squares(8, labels=[1] * 8)}, "All 8 images of the split 'train' are of one class, 'green'"),
        ({"test": squares(4, labels=[-1] * 4)}, "4 of the 4 images of the split 'test' .*0 to 2, such as -1"),
        ({"train": squares(4, labels=[0, 1, None, 2])}, "1 of the 4 images of the split 'train'"),
        ({"test": named}, "number their classes differently.*'blue', 'yellow'"),
    ]
    for index, (parts, message) in enumerate(cases):
        with pytest.raises(ValueError, match=message):
            run({"dataset": save_data(**parts, name=f"case-{index}")})
    with pytest.raises(ValueError, match="split 'test' is empty"):
        finetuning._labels_of(squares(12).select([]), "test")
    plain = [squares(n, label_type=datasets.Value("int64"), labels=labels) for n, labels in ((6, None), (2, [0, 7]))]
    with pytest.raises(ValueError, match="1 of the 2 images of the split 'test' .*0 to 2, such as 7"):
        run({"dataset": save_data(*plain, name="plain")})


def test_checkpoints_of_other_kinds_are_refused(run, checkpoint, tmp_path):
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="a model of type 'bert'; expected a model of type 'sparsejepa'"):
        run(model=str(tmp_path / "bert"))
    with pytest.raises(ValueError, match="where there is no config.json"):
        run(model=str(tmp_path))
    with pytest.raises(ValueError, match="where no model was found"):
        run(model=str(tmp_path / "nowhere"))
    weights = {name: t for name, t in weights_in(checkpoint).items() if "target_encoder.layers.1" not in name}
    safetensors.torch.save_file(weights, Path(checkpoint) / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 16 weights of the target encoder, such as .*layers.1"):
        run()


def test_nothing_is_overwritten(run, checkpoint):
    with pytest.raises(ValueError, match="holds the checkpoint to begin from"):
        run(output_dir=checkpoint)
    run(save_strategy="steps", save_steps=1, max_steps=1)
    with pytest.raises(ValueError, match="holds checkpoints of an earlier run"):
        run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer_decay": 0.0}, "layer_decay is 0.0"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5"),
        ({"mixup": -1.0}, "mixup is -1.0"),
        ({"cutmix": float("nan")}, "cutmix is nan"),
        ({"mixup": 0.8, "per_device_train_batch_size": 7}, "per_device_train_batch_size is 7; expected an even"),
        ({"label_smoothing_factor": 1.0}, "label_smoothing_factor is 1.0"),
    ],
)
def test_arguments_outside_their_ranges_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        FineTuningArguments(**{"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", **options})


def test_data_arguments_outside_their_ranges_are_refused():
    for options, message in (
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0"),
        ({"validation_fraction": 0.0}, "set eval_strategy to no"),
        ({"image_mean": [0.5, 0.5, 0.5]}, "one is given alone"),
    ):
        with pytest.raises(ValueError, match=message):
            FineTuningDataArguments(dataset="x", **options)


def test_options_of_the_three_kinds_do_not_share_a_name():
    names = [name for option_type in OPTION_TYPES for name in option_type.__dataclass_fields__]
    assert len(names) == len(set(names))


def test_the_trainer_takes_its_own_kind_alone(make_classifier, make_small_config, tmp_path):
    arguments = FineTuningArguments(str(tmp_path), **FAST)
    with pytest.raises(TypeError, match="model is a SparseJEPAForPreTraining"):
        FineTuningTrainer(SparseJEPAForPreTraining(make_small_config()), arguments)
    with pytest.raises(TypeError, match="args is a TrainingArguments"):
        FineTuningTrainer(make_classifier(), TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))


def test_a_loss_that_is_not_finite_ends_the_run_before_anything_is_saved(run, tmp_path, monkeypatch):
    load = finetuning.load_classifier

    def broken(*args):
        model = load(*args)
        with torch.no_grad():
            model.classifier.bias.fill_(torch.nan)
        return model

    monkeypatch.setattr(finetuning, "load_classifier", broken)
    for logging_steps in (1, 1000):
        with pytest.raises(NonFiniteLossError, match="The loss is nan"):
            run(logging_steps=logging_steps)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_an_unknown_normalisation_is_said(run, checkpoint, hear_warnings):
    (Path(checkpoint) / "preprocessor_config.json").unlink()
    run(max_steps=1)
    assert "has no image processor" in hear_warnings.text


# ---- several processes ----


@pytest.mark.slow
def test_the_example_in_two_processes_trains_what_one_trains_with_twice_the_batch(checkpoint, save_data, tmp_path):
    options = {**FAST, "model_name_or_path": checkpoint, "dataset": save_data(), "max_steps": 6, "optim": "sgd"}
    options |= {"eval_strategy": "steps", "eval_steps": 3}
    script = Path(__file__).parents[2] / "examples" / "finetune.py"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(sparsejepa_hf.__file__).parents[1])]),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    found = {}
    for processes in (1, 2):
        recipe, folder = tmp_path / f"{processes}.yaml", tmp_path / f"run-{processes}"
        own = {"per_device_train_batch_size": 8 // processes, "output_dir": str(folder)}
        recipe.write_text(yaml.safe_dump({**options, **own}), encoding="utf-8")
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if processes == 2 else []
        command = [sys.executable, *launch, str(script), str(recipe)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
        assert done.stdout.count("Classifier: ") == 1
        found[processes] = weights_in(folder), json.loads((folder / "finetuning_results.json").read_text())
    (one, first), (two, second) = found[1], found[2]
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0.0, atol=1e-5)
    for part in ("validation", "test"):
        assert second[part] == pytest.approx(first[part], rel=1e-3)
