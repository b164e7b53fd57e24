# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""accelerate: weights on the CPU or on disk, wherever a device map puts them, compute the same."""

import accelerate
import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification

from sparsejepa_hf import SparseJEPAForPreTraining, SparseJEPAVisionModel


# One encoder, part by part: what is first, in the middle and last is on disk, and the rest is not.
PARTS = ("embeddings", "layers.0", "layers.1", "layernorm")
DEVICE_MAPS = {
    "cpu": {"": "cpu"},
    "auto": "auto",
    "disk": {"": "disk"},
    "first on disk": {f"target_encoder.{part}": "disk" if part == "embeddings" else "cpu" for part in PARTS},
    "last on disk": {f"target_encoder.{part}": "cpu" if part == "embeddings" else "disk" for part in PARTS},
}


@pytest.mark.parametrize("device_map", DEVICE_MAPS.values(), ids=DEVICE_MAPS)
def test_features_do_not_depend_on_where_weights_are(pretrained, pixel_values, first_output, tmp_path, device_map):
    expected = first_output(AutoModel.from_pretrained(pretrained), pixel_values)
    model = AutoModel.from_pretrained(pretrained, device_map=device_map, offload_folder=tmp_path)
    on_disk = device_map != "auto" and "disk" in device_map.values()
    assert any(parameter.is_meta for parameter in model.parameters()) == on_disk
    assert torch.equal(first_output(model, pixel_values), expected)


@pytest.mark.parametrize("device_map", ["cpu", {"": "disk"}])
def test_a_classifier(classifier, pixel_values, first_output, tmp_path, device_map):
    expected = first_output(AutoModelForImageClassification.from_pretrained(classifier), pixel_values)
    model = AutoModelForImageClassification.from_pretrained(classifier, device_map=device_map, offload_folder=tmp_path)
    assert torch.equal(first_output(model, pixel_values), expected)


def test_groups_and_predictor_on_disk(pretrained, pixel_values, masks, first_output, tmp_path):
    model = SparseJEPAForPreTraining.from_pretrained(pretrained).eval()
    offloaded = SparseJEPAForPreTraining.from_pretrained(
        pretrained, device_map={"": "disk"}, offload_folder=tmp_path
    ).eval()
    with torch.no_grad():
        for found, expected in zip(
            offloaded.sparsejepa.encode_latents(pixel_values),
            model.sparsejepa.encode_latents(pixel_values),
            strict=True,
        ):
            assert torch.equal(found, expected)
        # The loss needs W outside of its module, and is for training, where nothing is offloaded.
        found, expected = (m(pixel_values, **masks, return_loss=False) for m in (offloaded, model))
    assert torch.equal(found.predictor_output.last_hidden_state, expected.predictor_output.last_hidden_state)


@pytest.mark.parametrize("kind", ["cpu", "disk"])
def test_offloading_module_by_module(make_model, pixel_values, first_output, tmp_path, kind):
    model = make_model(SparseJEPAVisionModel)
    expected = first_output(model, pixel_values)
    device = torch.device("cpu")
    if kind == "cpu":
        accelerate.cpu_offload(model, execution_device=device)
    else:
        accelerate.disk_offload(model, tmp_path, execution_device=device)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(first_output(model, pixel_values), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(pretrained, classifier, pixel_values, first_output, cosine, dtype):
    for auto_class, folder in ((AutoModel, pretrained), (AutoModelForImageClassification, classifier)):
        expected = first_output(auto_class.from_pretrained(folder), pixel_values)
        model = auto_class.from_pretrained(folder, dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        # Images come in float32 from an image processor.
        found = first_output(model, pixel_values)
        assert found.dtype == dtype and cosine(found, expected) > 0.999
