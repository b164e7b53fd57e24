# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The candidates of the inference benchmark compute the same features, from the same weights."""

import argparse
import json
import math

import pytest
import torch

from benchmarks import inference
from sparsejepa_hf import SparseJEPAVisionModel


@pytest.fixture(scope="module")
def model(make_model) -> SparseJEPAVisionModel:
    return make_model(SparseJEPAVisionModel)


def features_of(model, images):
    with torch.no_grad():
        return inference.Features(model)(images)


@pytest.mark.parametrize("overrides", [{}, {"qkv_bias": False}, {"image_size": 24, "patch_size": 8}])
def test_transformers_and_timm_compute_our_pooled_output(make_model, make_images, overrides):
    ours = make_model(SparseJEPAVisionModel, **overrides)
    images = make_images(3, ours.config.image_sides)
    expected = features_of(ours, images)
    assert torch.equal(expected, ours(images).pooler_output)
    torch.testing.assert_close(features_of(inference.to_ijepa(ours), images), expected, atol=1e-5, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(inference.to_timm(ours)(images), expected, atol=1e-5, rtol=0)


def test_onnxruntime_at_batch_sizes_it_was_not_exported_with(model, make_images, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    path = inference.export_onnx(model, tmp_path / "model.onnx")
    session, quantized = (inference.onnx_session(p, 1) for p in (path, inference.quantize_onnx(path)))
    for batch in (1, 5):
        images = make_images(batch, seed=batch)
        expected = features_of(model, images)
        torch.testing.assert_close(session(images), expected, atol=1e-5, rtol=0)
        # Eight bits are not the same, but near.
        assert 1e-4 < (quantized(images) - expected).abs().max() < 0.2


def test_torch_int8_is_near_and_leaves_the_model_alone(model, make_images):
    images = make_images()
    expected = features_of(model, images)
    quantized = features_of(inference.quantize_torch(model), images)
    assert 1e-4 < (quantized - expected).abs().max() < 0.2
    assert torch.equal(features_of(model, images), expected)


def test_one_row_for_each_candidate_and_batch_and_a_reason_where_one_fails(model, tmp_path, monkeypatch):
    def broken(*_):
        raise NotImplementedError("no such kernel\nand a long story")

    monkeypatch.setattr(inference, "to_timm", broken)
    monkeypatch.setattr(inference, "export_onnx", broken)
    options = argparse.Namespace(device="cpu", seed=0, threads=1, repeats=None, effort="smoke")
    found = inference.measure_features("tiny", model.config, {1: 1, 3: 2}, options, tmp_path)
    reasons = {(row["name"], row["precision"]): row["reason"] for row in found if "reason" in row}
    assert reasons["timm VisionTransformer", "fp32"] == reasons["ours, onnxruntime", "fp32"] == "no such kernel"
    rows = [row for row in found if "reason" not in row]
    names = {(row["name"], row["precision"]) for row in rows}
    assert len(rows) == 2 * len(names) and ("transformers IJepaModel", "fp32") in names
    for row in rows:
        assert row["n"] == {1: 1, 3: 2}[row["batch"]] and row["tokens"] == 64
        assert row["images_per_s"] == pytest.approx(row["batch"] / row["median_s"])
        if row["precision"] == "fp32":
            assert row["max_difference"] < 1e-5 and row["centred_cosine"] > 1 - 1e-6
        if (row["name"], row["precision"]) == ("ours", "fp32"):
            assert row["speedup"] == 1.0 and row["max_difference"] == 0.0


def test_deviation_by_hand():
    expected = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    found = inference.deviation(torch.tensor([[1.0, 0.0], [3.0, 3.0]]), expected)
    # Without the mean (2, 0): (1, 3) against (1, 0).
    cosines = {"cosine": pytest.approx(math.sqrt(0.5)), "centred_cosine": pytest.approx(1 / math.sqrt(10))}
    assert found == {"max_difference": 3.0, **cosines}


def test_each_process_reports_its_memory_and_what_is_loaded_is_there(tiny_config, tmp_path):
    starts = {"a little": "pass", "more": "keep = bytearray(200_000_000)"}
    little, more = inference.measure_cold_starts(tiny_config, tmp_path, starts, repeats=1, threads=1)
    assert (little["name"], more["name"]) == ("a little", "more")
    assert more["peak_bytes"] - little["peak_bytes"] >= 190_000_000
    # In this process, since importing torch in new ones takes seconds.
    for code in inference.COLD_STARTS.values():
        exec(code, {"folder": str(tmp_path)})
    with pytest.raises(RuntimeError, match="(?s)'odd' failed.*no_such_module"):
        inference.measure_cold_starts(tiny_config, tmp_path, {"odd": "import no_such_module"}, 1, 1)


@pytest.mark.slow
def test_a_short_run_writes_a_record_that_renders_the_same_and_compiles(tmp_path, monkeypatch, capsys, model):
    threads = torch.get_num_threads()
    start = {"median_s": 1.0, "fastest_s": 1.0, "slowest_s": 1.0, "n": 1, "peak_bytes": 2**20}
    cold = [{"name": name, **start} for name in inference.COLD_STARTS]
    monkeypatch.setattr(inference, "measure_cold_starts", lambda *args: cold)
    # Another test exports.
    monkeypatch.setattr(inference, "export_onnx", None)
    monkeypatch.setattr(inference, "WORKLOADS", {"short": [("tiny", model.config, {1: 1})]})
    try:
        inference.main(["--effort", "short", "--repeats", "1", "--threads", "1", "--results_dir", str(tmp_path)])
    finally:
        torch.set_num_threads(threads)
    (path,) = tmp_path.glob("*.json")
    record = json.loads(path.read_text())
    text = inference.render(record)
    assert text == path.with_suffix(".md").read_text().removesuffix("\n") and text in capsys.readouterr().out
    assert "- ours, onnxruntime, fp32: 'NoneType'" in text
    compiled = [row for row in record["rows"] if row["name"] == "ours, torch.compile"]
    assert {row["precision"] for row in compiled} == {"fp32", "bf16 weights"}
    assert all(row["centred_cosine"] > 0.99 for row in compiled)
    assert inference.import_ratio(record) == ("from transformers import AutoModel", 1.0)
