# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The candidates of the inference benchmark compute the same features, from the same weights."""

import argparse
import importlib.util
import json
import math

import pytest
import torch

from benchmarks import inference
from sparsejepa_hf import SparseJEPAVisionModel


@pytest.fixture(scope="module")
def model(make_model) -> SparseJEPAVisionModel:
    return make_model(SparseJEPAVisionModel)


@pytest.fixture
def options(tmp_path) -> argparse.Namespace:
    return argparse.Namespace(
        device="cpu", seed=0, threads=1, repeats=1, effort="smoke", checkpoint=None, results_dir=tmp_path
    )


def _features(model, images):
    with torch.no_grad():
        return inference.Features(model)(images)


class TestSameFeatures:
    @pytest.mark.parametrize("overrides", [{}, {"qkv_bias": False}, {"image_size": 24, "patch_size": 8}])
    def test_transformers_and_timm(self, make_model, make_images, overrides):
        ours = make_model(SparseJEPAVisionModel, **overrides)
        images = make_images(3, ours.config.image_sides)
        expected = _features(ours, images)
        torch.testing.assert_close(_features(inference.to_ijepa(ours), images), expected, atol=1e-5, rtol=0)
        with torch.no_grad():
            torch.testing.assert_close(inference.to_timm(ours)(images), expected, atol=1e-5, rtol=0)

    def test_the_pooled_output_is_what_is_measured(self, model, make_images):
        images = make_images()
        assert torch.equal(_features(model, images), model(images).pooler_output)

    def test_onnxruntime_at_batch_sizes_it_was_not_exported_with(self, model, make_images, tmp_path):
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
        path = inference.export_onnx(model, tmp_path / "model.onnx")
        session, quantized = (inference.onnx_session(p, 1) for p in (path, inference.quantize_onnx(path)))
        for batch in (1, 5):
            images = make_images(batch, seed=batch)
            expected = _features(model, images)
            torch.testing.assert_close(session(images), expected, atol=1e-5, rtol=0)
            # Eight bits are not the same, but near.
            assert 1e-4 < (quantized(images) - expected).abs().max() < 0.2

    def test_torch_int8_is_near_and_leaves_the_model_alone(self, model, make_images):
        images = make_images()
        expected = _features(model, images)
        quantized = _features(inference.quantize_torch(model), images)
        assert 1e-4 < (quantized - expected).abs().max() < 0.2
        assert torch.equal(_features(model, images), expected)

    @pytest.mark.slow
    def test_compiled(self, model, make_images):
        images = make_images()
        with torch.no_grad():
            compiled = inference._compiled(model)(images)
        torch.testing.assert_close(compiled, _features(model, images), atol=1e-5, rtol=0)


class TestCandidates:
    def test_what_fails_is_a_row_with_its_reason(self, model, options, tmp_path, monkeypatch):
        def broken(*_):
            raise NotImplementedError("no such kernel\nand a long story")

        monkeypatch.setattr(inference, "to_timm", broken)
        found = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name == "onnxscript" else found(name, *rest)
        )
        workload = inference.Workload("tiny", model.config, {2: 1})
        rows = inference.measure_features(workload, options, tmp_path)
        reasons = {(row["name"], row["precision"]): row["reason"] for row in rows if "reason" in row}
        assert reasons["timm VisionTransformer", "fp32"] == "no such kernel"
        assert reasons["ours, onnxruntime", "fp32"] == "onnxscript is not installed; pip install onnxscript"
        assert ("ours, onnxruntime", "int8") in reasons
        assert ("transformers IJepaModel", "fp32") not in reasons

    def test_rows(self, model, options, tmp_path):
        """One row for each candidate and batch size; ours is its own measure."""
        workload = inference.Workload("tiny", model.config, {1: 1, 3: 2})
        options.repeats = None
        rows = [row for row in inference.measure_features(workload, options, tmp_path) if "reason" not in row]
        names = {(row["name"], row["precision"]) for row in rows}
        assert len(rows) == 2 * len(names) and len(names) >= 8
        for row in rows:
            assert row["n"] == {1: 1, 3: 2}[row["batch"]] and row["tokens"] == 64
            assert row["images_per_s"] == pytest.approx(row["batch"] / row["median_s"])
            if row["precision"] == "fp32":
                assert row["max_difference"] < 1e-5 and row["centred_cosine"] > 1 - 1e-6
            if (row["name"], row["precision"]) == ("ours", "fp32"):
                assert row["speedup"] == 1.0 and row["max_difference"] == 0.0


class TestDeviation:
    def test_by_hand(self):
        expected = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
        features = torch.tensor([[1.0, 0.0], [3.0, 3.0]])
        found = inference.deviation(features, expected)
        assert found["max_difference"] == 3.0
        assert found["cosine"] == pytest.approx(math.sqrt(0.5))
        # Without the mean (2, 0): (1, 3) against (1, 0).
        assert found["centred_cosine"] == pytest.approx(1 / math.sqrt(10))

    def test_equal_features(self):
        features = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
        found = inference.deviation(features, features)
        assert found["max_difference"] == 0.0 and found["cosine"] == found["centred_cosine"] == pytest.approx(1.0)


class TestColdStarts:
    def test_each_process_reports_its_memory(self, tiny_config, tmp_path):
        starts = {"a little": "pass", "more": "keep = bytearray(200_000_000)"}
        little, more = inference.measure_cold_starts(tiny_config, tmp_path, starts, repeats=1, threads=1)
        assert (little["name"], more["name"]) == ("a little", "more")
        assert more["peak_bytes"] - little["peak_bytes"] >= 190_000_000

    @pytest.mark.slow
    @pytest.mark.parametrize("name", [name for name in inference.COLD_STARTS if "." in name])
    def test_loading_works(self, tiny_config, tmp_path, name):
        code = {name: inference.COLD_STARTS[name] + "\nassert 'torch' in sys.modules"}
        (row,) = inference.measure_cold_starts(tiny_config, tmp_path, code, repeats=1, threads=1)
        assert row["n"] == 1

    def test_a_failing_process_says_why(self, tiny_config, tmp_path):
        with pytest.raises(RuntimeError, match="(?s)'odd' failed.*no_such_module"):
            inference.measure_cold_starts(tiny_config, tmp_path, {"odd": "import no_such_module"}, 1, 1)


class TestCommand:
    def test_what_is_written_renders_the_same(self, tmp_path, monkeypatch, capsys):
        threads = torch.get_num_threads()
        monkeypatch.setattr(inference, "_FEW_STARTS", ("import transformers", "import sparsejepa_hf"))
        inference.main(["--effort", "smoke", "--repeats", "1", "--threads", "1", "--results_dir", str(tmp_path)])
        torch.set_num_threads(threads)
        (path,) = tmp_path.glob("*.json")
        text = inference.render(json.loads(path.read_text()))
        assert text == path.with_suffix(".md").read_text().removesuffix("\n") and not text.endswith("\n")
        assert text in capsys.readouterr().out
        for part in ("ours, onnxruntime", "IJepaModel", "torch.compile, fp32: left out", "`import sparsejepa_hf`"):
            assert part in text
