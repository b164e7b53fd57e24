# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""`sparsejepa finetune`: whole runs on coloured squares, and what is refused before they begin."""

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
from huggingface_hub import ModelCard
from PIL import Image
from transformers import BertConfig, TrainerCallback, pipeline

import sparsejepa_hf
from sparsejepa_hf.commands import finetune
from sparsejepa_hf.records import provenance
from sparsejepa_hf.training import FineTuningTrainer, NonFiniteLossError, run_data


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
def run(tmp_path, checkpoint, save_data, as_flags):
    """Fine-tunes on coloured squares, or on `dataset`."""

    def run(dataset=None, model=None, **options):
        given = {"model_name_or_path": model or checkpoint, "dataset": dataset or save_data()}
        return finetune.main(as_flags(**given, **{"output_dir": tmp_path / "run", **FAST, **options}))

    return run


def weights_in(folder):
    return safetensors.torch.load_file(Path(folder) / "model.safetensors")


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
    card = ModelCard.load(folder / "README.md")
    assert card.data.eval_results[0].dataset_split == "test" and card.data.base_model is None
    assert card.data.eval_results[0].metric_value == round(results["test"]["accuracy"], 4)
    assert "| data | images of a local folder, squares |" in card.text and str(tmp_path) not in str(card)
    assert not (folder / "pretraining_options.yaml").exists()
    classifier = pipeline("image-classification", model=str(folder), device="cpu")
    for row in squares(6, seed=9):
        assert classifier(row["image"])[0]["label"] == NAMES[row["label"]]
    assert list(classifier.image_processor.image_mean) == [0.4, 0.4, 0.4], "normalised as in pre-training"


def test_the_pipeline_gives_what_the_run_measured(run, tmp_path, save_data):
    """Every test image through the saved processor and classifier: the same cross entropy."""
    data = save_data(train=squares(24))
    results = run(data, num_train_epochs=1)
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


def test_selection_sees_a_stratified_part_of_train_and_never_the_test_split(run, tmp_path, monkeypatch):
    """The best checkpoint on the validation part is the one that is saved and tested, though the last is useless."""
    seen = []
    predict = FineTuningTrainer.predict
    monkeypatch.setattr(
        FineTuningTrainer, "predict", lambda self, d, **k: seen.append(self.is_in_train) or predict(self, d, **k)
    )
    monkeypatch.setattr(finetune, "FineTuningTrainer", _SpoiledAtTheEnd)
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
    finetune.main([str(options), "--output_dir", str(tmp_path / "again")])
    first, again = weights_in(tmp_path / "run"), weights_in(tmp_path / "again")
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


def test_integer_labels_name_themselves(run, save_data):
    parts = (squares(count, label_type=datasets.Value("int64")) for count in (24, 9))
    assert run(save_data(*parts), max_steps=1)["class_names"] == ["0", "1", "2"]


def test_training_images_may_be_decoded_larger_than_the_model_takes_them(run):
    run(load_size=24, crop="resized", max_steps=1)


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
        ({"test": named}, r"The split 'test' has 1 classes that the split 'train' lacks \(yellow\)"),
    ]
    for index, (parts, message) in enumerate(cases):
        with pytest.raises(ValueError, match=message):
            run(save_data(**parts, name=f"case-{index}"))
    with pytest.raises(ValueError, match="split 'test' is empty"):
        run_data._labels_of(squares(12).select([]), "test")
    plain = [squares(n, label_type=datasets.Value("int64"), labels=labels) for n, labels in ((6, None), (2, [0, 7]))]
    with pytest.raises(ValueError, match="1 of the 2 images of the split 'test' .*0 to 2, such as 7"):
        run(save_data(*plain, name="plain"))


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
    with pytest.raises(ValueError, match="holds an earlier run: checkpoint-1, finetuning_results.json"):
        run()


def test_a_loss_that_is_not_finite_ends_the_run_before_anything_is_saved(run, tmp_path, monkeypatch):
    load = finetune.load_classifier

    def broken(*args):
        model = load(*args)
        with torch.no_grad():
            model.classifier.bias.fill_(torch.nan)
        return model

    monkeypatch.setattr(finetune, "load_classifier", broken)
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
def test_two_processes_train_what_one_trains_with_twice_the_batch(checkpoint, save_data, tmp_path, capsys):
    options = {**FAST, "model_name_or_path": checkpoint, "dataset": save_data(), "max_steps": 6, "optim": "sgd"}
    options |= {"eval_strategy": "steps", "eval_steps": 3}
    recipes = {}
    for name, batch in (("one", 8), ("two", 4)):
        recipes[name] = str(tmp_path / f"{name}.yaml")
        own = {"per_device_train_batch_size": batch, "output_dir": str(tmp_path / name)}
        Path(recipes[name]).write_text(yaml.safe_dump({**options, **own}), encoding="utf-8")
    finetune.main([recipes["one"]])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    source = str(Path(sparsejepa_hf.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launch, "-m", "sparsejepa_hf", "finetune", recipes["two"]]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    for printed in (capsys.readouterr().out, done.stdout):
        assert printed.count("Classifier: ") == 1
    two = weights_in(tmp_path / "two")
    for name, tensor in weights_in(tmp_path / "one").items():
        torch.testing.assert_close(two[name], tensor, rtol=0.0, atol=1e-5)
    one, two = (json.loads((tmp_path / name / "finetuning_results.json").read_text()) for name in ("one", "two"))
    for part in ("validation", "test"):
        assert two[part] == pytest.approx(one[part], rel=1e-3)
