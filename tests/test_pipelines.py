# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""transformers' pipelines on the folder of a checkpoint: as they are, with the package and without it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from sparsejepa_hf import SparseJEPAImageProcessor
from sparsejepa_hf.modeling_sparsejepa import (
    SparseJEPAForImageClassification,
    SparseJEPAForPreTraining,
    SparseJEPAModel,
    SparseJEPAVisionModel,
)
from sparsejepa_hf.training import image_processor


NAMES = ["cat", "dog", "fish"]
KINDS = [SparseJEPAForPreTraining, SparseJEPAModel, SparseJEPAVisionModel, SparseJEPAForImageClassification]

# Without the package; prints what the two pipelines give for an image.
WITHOUT_PACKAGE = """
import json, sys
sys.modules["sparsejepa_hf"] = None
from transformers import pipeline

encoder, classifier, image = sys.argv[1:]
options = {"trust_remote_code": True, "device": "cpu"}
features = pipeline("image-feature-extraction", model=encoder, pool=True, **options)(image)
print("FOUND", json.dumps([features, pipeline("image-classification", model=classifier, **options)(image)]))
"""


@pytest.fixture(scope="module")
def folders(make_model, tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of each class, by its name, all of the same encoder."""
    made = {}
    for model_class in KINDS:
        folder = made[model_class.__name__] = tmp_path_factory.mktemp("checkpoint")
        labels = {"id2label": dict(enumerate(NAMES)), "label2id": {name: i for i, name in enumerate(NAMES)}}
        make_model(model_class, **labels).save_pretrained(folder)
        image_processor((32, 32), [0.4, 0.4, 0.4], [0.3, 0.3, 0.3]).save_pretrained(folder)
    return made


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> list[str]:
    folder, generator = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for place, size in enumerate([(32, 32, 3), (48, 40, 3), (30, 50, 3)]):
        Image.fromarray(generator.integers(0, 256, size, dtype=np.uint8)).save(folder / f"{place}.png")
    return [str(path) for path in sorted(folder.iterdir())]


@pytest.mark.parametrize("name", [model_class.__name__ for model_class in KINDS])
def test_features_are_the_model_s_and_the_pooled_ones_its_mean(folders, paths, name, hear_warnings):
    """Of paths, images and batches, from a checkpoint of any class; and loading says nothing of missing weights."""
    extract = pipeline("image-feature-extraction", model=str(folders[name]), device="cpu")
    assert type(extract.model) is SparseJEPAVisionModel
    images = [Image.open(path) for path in paths]
    with torch.no_grad():
        output = extract.model(**extract.image_processor(images, return_tensors="pt"))
    for inputs, options in ((paths, {}), (images, {}), (paths, {"batch_size": 2})):
        found = torch.cat([torch.tensor(one) for one in extract(inputs, **options)])
        torch.testing.assert_close(found, output.last_hidden_state, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.tensor(extract(paths[1]))[0], output.last_hidden_state[1], rtol=1e-5, atol=1e-5)
    pooled = torch.cat([torch.tensor(one) for one in extract(images, pool=True)])
    torch.testing.assert_close(pooled, output.pooler_output, rtol=1e-5, atol=1e-5)
    assert "MISSING" not in hear_warnings.text


def test_classes_are_named_by_their_probabilities(folders, paths, hear_warnings):
    classify = pipeline("image-classification", model=str(folders["SparseJEPAForImageClassification"]), device="cpu")
    with torch.no_grad():
        inputs = classify.image_processor([Image.open(path) for path in paths], return_tensors="pt")
        expected = classify.model(**inputs).logits.softmax(dim=-1)
    for found in (classify(paths), classify([Image.open(path) for path in paths], batch_size=2)):
        for entries, scores in zip(found, expected.tolist(), strict=True):
            assert [entry["score"] for entry in entries] == sorted((e["score"] for e in entries), reverse=True)
            by_name = {entry["label"]: entry["score"] for entry in entries}
            assert by_name == pytest.approx(dict(zip(NAMES, scores, strict=True)), abs=1e-5)
    assert [entry["score"] for entry in classify(paths[0], top_k=1)] == pytest.approx([max(expected[0].tolist())])
    assert "MISSING" not in hear_warnings.text
    pipeline("image-classification", model=str(folders["SparseJEPAForPreTraining"]), device="cpu")
    assert "classifier.weight | MISSING" in hear_warnings.text, "what is random is said"


@pytest.mark.parametrize("task", ["image-feature-extraction", "image-classification"])
def test_nobody_is_asked_whether_to_trust_the_code_of_the_package(folders, monkeypatch, task):
    def answer(prompt: str) -> str:
        asked.append(prompt)
        return "n"

    asked: list[str] = []
    monkeypatch.setattr("builtins.input", answer)
    made = pipeline(task, model=str(folders["SparseJEPAForImageClassification"]), device="cpu")
    assert type(made.image_processor) is SparseJEPAImageProcessor and made.video_processor is None
    assert not asked


def test_they_work_where_the_package_is_not_installed(folders, paths, run_stranger, tmp_path):
    encoder, classifier = (str(folders[f"SparseJEPA{name}"]) for name in ("VisionModel", "ForImageClassification"))
    done = run_stranger(WITHOUT_PACKAGE, encoder, classifier, paths[1], work=tmp_path)
    assert "MISSING" not in done.stdout + done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    features, entries = json.loads(line.removeprefix("FOUND "))
    extract = pipeline("image-feature-extraction", model=encoder, device="cpu", pool=True)
    assert np.allclose(features, extract(paths[1]), atol=1e-5)
    classify = pipeline("image-classification", model=classifier, device="cpu")
    assert [entry["label"] for entry in entries] == [entry["label"] for entry in classify(paths[1])]
