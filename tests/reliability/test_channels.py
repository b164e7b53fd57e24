# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Images that are no RGB squares, from a folder to an explained checkpoint: every command, on files as they come."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from sparsejepa_hf.commands import embed, explain, finetune, pretrain, probe
from sparsejepa_hf.evaluation import load_encoder


CLASSES = ("across", "across, fine", "down", "down, fine")
# Height and width of the files and of the model's images, of other aspect ratios.
FILE, MODEL = (24, 44), (16, 32)
# What a file is, by its channels, and what it needs to be told.
KINDS = {1: "16-bit PNG of 12-bit values", 4: "RGBA", 13: ".npy of 12-bit values"}
RANGES = {1: "--value_range 0 4095", 4: "", 13: "--value_range measure"}


def draw(kind: int, num_channels: int, generator: np.random.Generator) -> np.ndarray:
    """Stripes of one class, of any phase, in half of the bands, under noise: values from 0 to 1, (H, W, C)."""
    height, width = FILE
    place = np.arange(height)[:, None] if kind < 2 else np.arange(width)[None, :]
    stripes = np.sin(place * (0.5, 1.3)[kind % 2] + generator.uniform(0, 2 * np.pi)) * np.ones(FILE)
    gains = np.where(np.arange(num_channels) % 2 == 0, 0.3, 0.0)
    image = 0.5 + stripes[..., None] * gains + generator.normal(0, 0.05, (*FILE, num_channels))
    return image.clip(0, 1)


def save(image: np.ndarray, path) -> None:
    num_channels = image.shape[2]
    if num_channels == 4:
        Image.fromarray((255 * image).astype(np.uint8)).save(path.with_suffix(".png"))
    elif num_channels == 1:
        Image.fromarray((4095 * image[..., 0]).astype(np.uint16)).save(path.with_suffix(".png"))
    else:
        np.save(path.with_suffix(".npy"), (4095 * image).astype(np.uint16))


@pytest.fixture(scope="module", params=list(KINDS))
def trained(request, tmp_path_factory):
    """Channels, the folder of images, the checkpoint, and what the run said."""
    num_channels, root = request.param, tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(num_channels)
    for split, count in (("train", 40), ("test", 12)):
        for kind, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                save(draw(kind, num_channels, generator), root / split / name / str(index))
    checkpoint = root.parent / f"checkpoint-{num_channels}"
    # A recipe of RGB squares, with the means of RGB.
    flags = f"--dataset {root} --output_dir {checkpoint} --num_channels {num_channels} --image_size 16 32"
    flags += " --patch_size 4 8 --preset vit-micro --num_hidden_layers 2 --label_column label --eval_split test"
    flags += " --max_steps 40 --per_device_train_batch_size 32 --knn_steps 0 --crop_padding 2 --color_jitter 0.1"
    flags += f" --report_to none --save_strategy no --eval_strategy no {RANGES[num_channels]}"
    results = pretrain.main(["cifar100-cpu", *flags.split()])
    return num_channels, root, checkpoint, results


def test_pre_training_learns_from_them(trained):
    num_channels, _, checkpoint, results = trained
    learnt = results["comparison"]["trained"]
    # Chance is a quarter.
    assert learnt["knn_accuracy"] > 0.7 and learnt["linear_accuracy"] > 0.7
    assert results["num_undecodable"] == 0
    card = (checkpoint / "README.md").read_text(encoding="utf-8")
    assert f"images of 16 x 32 pixels and {num_channels} channels" in card
    assert ("pipeline(" in card) == (num_channels < 5), "which knows grey, RGB and RGBA"


def test_the_saved_processor_feeds_the_model_what_training_fed_it(trained, record_fault):
    num_channels, root, checkpoint, _ = trained
    files = sorted((root / "test").glob("*/*"))
    processor, model = (kind.from_pretrained(checkpoint) for kind in (AutoImageProcessor, AutoModel))
    pixels = processor(files[:6], return_tensors="pt").pixel_values
    assert pixels.shape == (6, num_channels, *MODEL)
    encoder = load_encoder(checkpoint)
    kept = np.stack([encoder.pixel_format.read(str(file)) for file in files[:6]])
    torch.testing.assert_close(pixels, encoder.preprocess(torch.from_numpy(kept)), rtol=0, atol=1e-6)
    output = checkpoint / "features.parquet"
    embed.main([str(checkpoint), "--dataset", str(root), "--split", "test", "--output", str(output)])
    rows = pq.read_table(output).to_pylist()
    by_path = {row["path"]: row["last/mean"] for row in rows}
    assert len(rows) == len(files)
    with torch.inference_mode():
        direct = model.eval()(pixels).last_hidden_state.mean(dim=1)
    for file, features in zip(files, direct, strict=False):
        torch.testing.assert_close(torch.tensor(by_path[str(file)]), features, rtol=1e-4, atol=1e-4)
    kind = f"rectangles of {num_channels} channels ({KINDS[num_channels]})"
    record_fault("channels", f"{kind} trained on, and read back", injected=len(files), held=len(rows))


@pytest.mark.slow
def test_every_other_command_takes_the_checkpoint_and_the_files(trained, tmp_path):
    num_channels, root, checkpoint, _ = trained
    common = ["--tasks", f"mine={root}", "--low_shot", "0", "--feature_kinds", "last/mean"]
    probe.main([str(checkpoint), *common, "--output_dir", str(tmp_path / "probe")])
    (path,) = (tmp_path / "probe").glob("*.json")
    record = json.loads(path.read_text())
    assert record["results"]["mine"]["accuracy"] > 0.7
    raw = ["--num_channels", str(num_channels), "--image_size", *map(str, MODEL), "--value_range", "0", "4095"]
    probe.main(["pixels", *common, *raw, "--output_dir", str(tmp_path / "pixels")])
    page = tmp_path / "groups.html"
    figures = ["--figures", str(tmp_path)] if num_channels == 13 else []
    explain.main([str(checkpoint), "--dataset", str(root), "--max_examples", "24", "--report", str(page), *figures])
    assert "aspect-ratio: 32 / 16;" in page.read_text(encoding="utf-8")
    flags = f"--model_name_or_path {checkpoint} --dataset {root} --output_dir {tmp_path / 'classifier'}"
    flags += " --label_column label --max_steps 20 --per_device_train_batch_size 32 --learning_rate 2e-3"
    flags += " --report_to none --eval_strategy no --load_best_model_at_end false"
    results = finetune.main(["cifar100-cpu-finetune", *flags.split()])
    assert results["test"]["accuracy"] > 0.5
    before, after = (AutoImageProcessor.from_pretrained(path) for path in (checkpoint, tmp_path / "classifier"))
    assert after.to_dict() == before.to_dict(), "the same pixels, by the same range of values"
