# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""ONNX graphs compute what the model computes, under its names."""

import pytest
import torch

from sparsejepa_hf import (
    SparseJEPAForImageClassification,
    SparseJEPAForPreTraining,
    SparseJEPAVisionModel,
)
from sparsejepa_hf.conversion.onnx import export_onnx


onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def _session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _shapes(values) -> dict:
    return {value.name: value.shape for value in values}


def _agree(session, model, images, **options) -> None:
    found = session.run(None, {"pixel_values": images.numpy()})
    with torch.no_grad():
        expected = model(images, **options)
    for name, output in zip((value.name for value in session.get_outputs()), found, strict=True):
        torch.testing.assert_close(torch.from_numpy(output), expected[name], atol=2e-5, rtol=1e-4)


def test_features_of_any_batch(make_model, make_images, tmp_path):
    model = make_model(SparseJEPAVisionModel, num_hidden_layers=1).train()
    path = export_onnx(model, tmp_path / "model.onnx")
    assert path == tmp_path / "model.onnx" and model.training
    onnx.checker.check_model(path, full_check=True)
    session = _session(path)
    assert _shapes(session.get_inputs()) == {"pixel_values": ["batch", 3, 32, 32]}
    assert _shapes(session.get_outputs()) == {"last_hidden_state": ["batch", 64, 32], "pooler_output": ["batch", 32]}
    for batch in (1, 5):
        _agree(session, model.eval(), make_images(batch, seed=batch))


def test_logits_of_any_size(make_model, make_images, tmp_path):
    model = make_model(SparseJEPAForImageClassification, num_labels=3, num_hidden_layers=1)
    session = _session(export_onnx(model, tmp_path / "model.onnx", any_size=True))
    assert _shapes(session.get_inputs()) == {"pixel_values": ["batch", 3, "height", "width"]}
    assert _shapes(session.get_outputs()) == {"logits": ["batch", 3]}
    for batch, size in ((1, (32, 32)), (2, (24, 44)), (3, (64, 64))):
        _agree(session, model, make_images(batch, size), interpolate_pos_encoding=True)


@pytest.mark.parametrize("model_class", [SparseJEPAForPreTraining, SparseJEPAForImageClassification])
def test_of_a_checkpoint(make_model, make_images, tmp_path, model_class):
    model = make_model(model_class, num_labels=3, num_hidden_layers=1)
    model.save_pretrained(tmp_path)
    session = _session(export_onnx(str(tmp_path), tmp_path / "model.onnx"))
    options = {"return_loss": False} if model_class is SparseJEPAForPreTraining else {}
    _agree(session, model, make_images(), **options)


def test_a_model_of_half_precision(make_model, make_images, tmp_path):
    model = make_model(SparseJEPAVisionModel, num_hidden_layers=1).to(torch.float16)
    session = _session(export_onnx(model, tmp_path / "model.onnx"))
    images = make_images().half()
    (found,) = session.run(["pooler_output"], {"pixel_values": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), model(images).pooler_output, atol=1e-2, rtol=1e-2)


def test_what_is_no_model_of_the_family_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Linear, has no such encoder; expected"):
        export_onnx(torch.nn.Linear(2, 2), tmp_path / "model.onnx")
