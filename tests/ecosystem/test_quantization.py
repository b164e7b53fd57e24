# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Quantised weights: near the float model's features, and the same features after a round trip through a folder."""

import copy
import warnings

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForImageClassification, BitsAndBytesConfig, TorchAoConfig

from sparsejepa_hf import SparseJEPAForPreTraining


def _bitsandbytes(**options):
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(**options)


def _torchao(name: str, *arguments):
    module = pytest.importorskip("torchao.quantization")
    if not hasattr(module, name):
        pytest.skip(f"torchao here has no {name}")
    return TorchAoConfig(getattr(module, name)(*arguments))


# On a CPU, bitsandbytes has no four-bit kernel for a classifier of three labels.
HEAD = {"llm_int8_skip_modules": ["classifier"]}

# What makes the configuration, the class of a quantised layer or weight, and the lowest cosine of a patch's features.
METHODS = {
    "bitsandbytes 8 bit": (lambda: _bitsandbytes(load_in_8bit=True), "Linear8bitLt", 0.999),
    "bitsandbytes fp4": (lambda: _bitsandbytes(load_in_4bit=True, **HEAD), "Linear4bit", 0.95),
    "bitsandbytes nf4": (
        lambda: _bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, **HEAD),
        "Linear4bit",
        0.97,
    ),
    "torchao int8": (lambda: _torchao("Int8WeightOnlyConfig"), "Int8Tensor", 0.999),
    "torchao int8, activations too": (
        lambda: _torchao("Int8DynamicActivationInt8WeightConfig"),
        "Int8Tensor",
        0.999,
    ),
    "torchao float8": (lambda: _torchao("Float8WeightOnlyConfig"), "Float8Tensor", 0.99),
    "torchao int4": (lambda: _torchao("IntxWeightOnlyConfig", torch.int4), "Intx", 0.95),
}


def _kinds(model) -> str:
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    return " ".join(f"{type(layer).__name__} {type(layer.weight).__name__}" for layer in layers)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForImageClassification])
def test_saved_and_reloaded(pretrained, classifier, pixel_values, first_output, cosine, tmp_path, auto_class, method):
    make_options, kind, lowest = METHODS[method]
    folder = pretrained if auto_class is AutoModel else classifier
    expected = first_output(auto_class.from_pretrained(folder), pixel_values)
    model = auto_class.from_pretrained(folder, quantization_config=make_options(), device_map="cpu")
    assert kind in _kinds(model)
    # Before it is called: on a CPU, bitsandbytes packs four-bit weights anew in the first call.
    model.save_pretrained(tmp_path)
    again = auto_class.from_pretrained(tmp_path)
    assert kind in _kinds(again)
    features = first_output(model, pixel_values)
    assert torch.equal(first_output(again, pixel_values), features)
    assert lowest < cosine(features, expected) < 1 - 1e-9


@pytest.mark.parametrize("overrides", [{}, {"latent_position": "encoder"}, {"predictor_type": "mlp"}], ids=str)
@pytest.mark.parametrize("method", ["bitsandbytes 8 bit", "torchao int8", "torch dynamic int8"])
def test_latents_and_loss_of_a_quantised_model(
    make_model, widths, pixel_values, masks, first_output, cosine, tmp_path, method, overrides
):
    model = make_model(SparseJEPAForPreTraining, **widths, **overrides)
    model.save_pretrained(tmp_path)
    if method == "torch dynamic int8":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    else:
        options = METHODS[method][0]()
        quantized = SparseJEPAForPreTraining.from_pretrained(
            tmp_path, quantization_config=options, device_map="cpu"
        ).eval()
    with torch.no_grad():
        for found, expected in zip(
            quantized.sparsejepa.encode_latents(pixel_values),
            model.sparsejepa.encode_latents(pixel_values),
            strict=True,
        ):
            assert 0.99 < cosine(found.flatten(2), expected.flatten(2)) < 1 - 1e-9
    loss = first_output(quantized, pixel_values, **masks)
    assert loss.item() == pytest.approx(first_output(model, pixel_values, **masks).item(), rel=0.05)
