# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""`sparsejepa pretrain`: whole runs from their options, and what is refused before or after them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image
from transformers import AutoModel

import sparsejepa_hf
from sparsejepa_hf.commands.pretrain import main
from sparsejepa_hf.records import provenance
from sparsejepa_hf.training import run_data


@pytest.fixture
def run(tmp_path, make_recipe):
    sizes = {"max_train_examples": 64, "max_eval_examples": 48, "eval_split": "test", "probe": False}

    def run(**options):
        given = make_recipe(**{**sizes, "output_dir": tmp_path / "run", **options})
        given = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(given), encoding="utf-8")
        return main([str(tmp_path / "run.yaml")])

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
    results = run(knn_steps=1, probe=True)
    folder = tmp_path / "run"
    names = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "config.json", "modeling_sparsejepa.py", "preprocessor_config.json"} <= names
    assert {"pretraining_options.yaml", "README.md"} <= names
    assert json.loads((folder / "pretraining_results.json").read_text()) == results
    assert set(results["comparison"]) == {"raw pixels", "untrained", "trained"}
    assert results["provenance"] == provenance()
    assert "| data | synthetic-scenes (built in) |" in (folder / "README.md").read_text()
    assert "| optimizer steps | 2 |" in (folder / "README.md").read_text()


def test_training_images_may_be_decoded_larger_than_the_model_takes_them(run, image_folder):
    """Training crops them; monitors, probes and the evaluation see the model's size."""
    folder = image_folder(train=["cat", "dog"], test=["cat", "dog"])
    options = {"dataset": folder, "load_size": 24, "crop": "resized", "knn_steps": 1, "eval_strategy": "steps"}
    options["probe"] = True
    results = run(**options, eval_steps=1, max_train_examples=None, max_eval_examples=None)
    assert results["num_train_examples"] == 24 and "trained" in results["comparison"]


def test_a_class_that_only_the_held_out_split_has_is_refused(run, image_folder):
    folder = image_folder(train=["cat", "dog"], test=["dog", "emu"])
    with pytest.raises(ValueError, match=r"The split 'test' has 1 classes that the split 'train' lacks \(emu\)"):
        run(dataset=folder, max_train_examples=None)


def test_a_folder_and_a_place_to_write_will_do(images, tmp_path, capsys):
    """The recipe for images of any kind is taken, here made small; without the two, nothing begins."""
    small = {"preset": "vit-micro", "load_size": 40, "max_steps": 1, "per_device_train_batch_size": 8}
    words = ["--dataset", str(images), "--output_dir", str(tmp_path / "run"), "--use_cpu", "true", "--bf16", "false"]
    words += [word for name, value in small.items() for word in (f"--{name}", str(value))]
    assert main([*words, "--report_to", "none", "--dataloader_num_workers", "0"])["num_train_examples"] == 60
    written = yaml.safe_load((tmp_path / "run" / "pretraining_options.yaml").read_text())
    assert written["crop"] == "resized" and written["image_mean"] == [0.485, 0.456, 0.406]
    with pytest.raises(SystemExit):
        main([])
    assert "required: --dataset, --output_dir" in capsys.readouterr().err


def test_bf16_without_a_device_for_it_is_refused(run, monkeypatch):
    monkeypatch.setattr("sparsejepa_hf.training.arguments.has_bf16", lambda: False)
    with pytest.raises(ValueError, match="bf16 is true, but there is no GPU here that has it. Set bf16 to false"):
        run(bf16=True, use_cpu=False)


def test_less_than_one_batch_is_refused(run):
    with pytest.raises(ValueError, match="64 images, less than one batch of 65"):
        run(per_device_train_batch_size=65)


def test_knn_without_labels_is_refused(run):
    best = {"metric_for_best_model": "knn_accuracy"}
    for options, message in (({"knn_steps": 1}, "knn_steps is 1 "), (best, "metric_for_best_model knn_accuracy, ")):
        with pytest.raises(ValueError, match=f"{message}.*eval_split"):
            run(**options, eval_split="none")


def test_the_best_checkpoint_by_knn_is_what_is_kept(run, tmp_path):
    options = {"metric_for_best_model": "knn_accuracy", "load_best_model_at_end": True, "eval_strategy": "steps"}
    run(**options, eval_steps=1, save_strategy="steps", save_steps=1)
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    accuracies = [entry["eval_knn_accuracy"] for entry in state["log_history"] if "eval_knn_accuracy" in entry]
    assert len(accuracies) == 2 and state["best_metric"] == max(accuracies)


def test_a_folder_that_holds_a_run_is_not_overwritten_without_a_word(run, tmp_path):
    """With checkpoints there is a way to go on, without them none; a job that is queued again goes on or begins."""
    for wish in (None, "false"):
        run(resume_from_checkpoint=wish, save_strategy="steps", save_steps=1, overwrite_output_dir=True)
        with pytest.raises(ValueError, match=r"an earlier run: checkpoint-2, model.*checkpoint auto"):
            run(resume_from_checkpoint=wish)
    assert (
        run(resume_from_checkpoint="auto", max_steps=3, resume_with_changes="max_steps")["train_metrics"]["epoch"]
        == 0.375
    )
    files = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert run(resume_from_checkpoint="auto", max_steps=3)["num_steps"] == 3, "a finished run stays as it is"
    assert files == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for folder in (tmp_path / "run").glob("checkpoint-*"):
        # As save_only_model leaves them.
        (folder / "optimizer.pt").unlink()
    for wish in (None, "auto"):
        with pytest.raises(ValueError, match=r"checkpoint-2, .*It has no checkpoint to go on"):
            run(resume_from_checkpoint=wish)
    for folder in (tmp_path / "run").glob("checkpoint-*"):
        shutil.rmtree(folder)
    for wish in (None, "auto"):
        with pytest.raises(ValueError, match=r"pretraining_results.json. It has no checkpoint to go on"):
            run(resume_from_checkpoint=wish)
    (tmp_path / "run" / "pretraining_results.json").unlink()
    with pytest.raises(ValueError, match="an earlier run: model.safetensors"):
        run()
    assert run(resume_from_checkpoint="auto")["train_metrics"]["epoch"] == 0.25


def test_a_checkpoint_that_is_not_there_is_told_before_any_data_is_read(run, tmp_path):
    for wish, message in (("true", "holds no folder checkpoint-N"), (tmp_path / "gone", "there is no such folder")):
        with pytest.raises(ValueError, match=message):
            run(resume_from_checkpoint=wish, dataset=tmp_path / "no images")
    assert not (tmp_path / "run").exists()


def test_a_configuration_name_without_a_hub_data_set_is_refused(run):
    with pytest.raises(ValueError, match="name is 'x', the configuration of a Hub data set"):
        run(dataset=Path(__file__).parent, dataset_config_name="x")


def test_means_of_another_number_of_channels_are_refused_before_any_data_is_read(run):
    with pytest.raises(ValueError, match=r"image_mean is \[0.5, 0.5, 0.5\], and num_channels 1; expected one"):
        run(num_channels=1, image_mean=[0.5] * 3, image_std=[0.5] * 3, dataset="nowhere/at-all")


def test_scenes_are_rendered_at_the_model_s_size(run, monkeypatch):
    sizes, build = [], run_data.build_scenes
    monkeypatch.setattr(
        run_data,
        "build_scenes",
        lambda *a, image_size, **k: sizes.append(image_size) or build(*a, image_size=16, **k),
    )
    run()
    assert set(sizes) == {16}


def test_the_name_of_the_scenes_says_their_style_and_a_flag_the_most_objects(run, monkeypatch):
    asked, build = [], run_data.build_scenes
    monkeypatch.setattr(run_data, "build_scenes", lambda *a, **k: asked.append(k) or build(*a, **k))
    run(dataset="textured-scenes", scene_max_objects=3)
    assert {(options["style"], options["max_objects"]) for options in asked} == {("textured", 3)}


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


# ---- the commands that people type ----


def assert_complete(folder: Path) -> None:
    assert AutoModel.from_pretrained(folder).config.hidden_size == 32
    results = json.loads((folder / "pretraining_results.json").read_text(encoding="utf-8"))
    assert set(results["comparison"]) == {"raw pixels", "untrained", "trained"}
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| untrained |" in card and "optimizer steps | 3 " in card


@pytest.fixture
def recipe(tmp_path, make_recipe) -> Path:
    """A YAML file of three steps of a run that compares features."""
    options = {"eval_split": "test", "max_train_examples": 64, "max_eval_examples": 32, "max_steps": 3}
    path = tmp_path / "recipe.yaml"
    options = make_recipe(**options, save_strategy="steps", save_steps=2, output_dir=str(tmp_path / "run"))
    path.write_text(yaml.safe_dump(options), encoding="utf-8")
    return path


def test_a_file_alone_will_do_and_the_options_it_wrote_repeat_the_run_and_go_on(recipe, tmp_path, capsys):
    """To the bit: again from the options it wrote, and on from its last checkpoint."""
    main([str(recipe)])
    printed = capsys.readouterr().out
    assert "Against the untrained encoder: " in printed and str(tmp_path / "run") in printed
    assert_complete(tmp_path / "run")
    first = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    options = str(tmp_path / "run" / "pretraining_options.yaml")
    for folder, flags in (
        ("again", ["--output_dir", str(tmp_path / "again"), "--no_probe"]),
        ("run", ["--resume_from_checkpoint", "true", "--no_probe"]),
    ):
        main([options, *flags])
        again = safetensors.torch.load_file(tmp_path / folder / "model.safetensors")
        assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["accelerate.commands.launch", "--cpu", "--num_processes", "1"],
        ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    ],
    ids=["accelerate", "two processes"],
)
def test_it_runs_under_a_launcher_and_reports_once(recipe, tmp_path, launcher):
    source = str(Path(sparsejepa_hf.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", *launcher, "-m", "sparsejepa_hf", "pretrain", str(recipe), "--use_cpu", "true"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    assert done.stdout.count("Against the untrained encoder") == 1
    assert_complete(tmp_path / "run")
