# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""PEFT: every adapter learns, comes back from its folder, and merges into the weights."""

import pytest
import torch
from transformers import AutoModel, AutoModelForImageClassification


peft = pytest.importorskip("peft")

# Not PEFT's zero start: there, half of the gradients are zero at first.
ADAPTERS = {
    "lora": {"target_modules": ["q_proj", "v_proj"]},
    "lora on the patch projection": {"target_modules": ["projection", "fc1"]},
    "lora on all linear layers": {"target_modules": "all-linear"},
    "dora": {"target_modules": ["q_proj", "fc2"], "use_dora": True},
    "dora on the patch projection": {"target_modules": ["projection"], "use_dora": True},
    "feature extraction": {"target_modules": "all-linear", "task_type": "FEATURE_EXTRACTION"},
}


def _adapted(model, **options):
    torch.manual_seed(1)
    return peft.get_peft_model(model, peft.LoraConfig(r=2, init_lora_weights=False, **options))


def _train_a_step(model, pixel_values) -> None:
    model.train()
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    model(pixel_values=pixel_values)[0].square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("options", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForImageClassification])
def test_every_adapter_learns_comes_back_and_merges(
    pretrained, classifier, pixel_values, first_output, tmp_path, auto_class, options
):
    is_classifier = auto_class is AutoModelForImageClassification
    folder = classifier if is_classifier else pretrained
    head = {"modules_to_save": ["classifier"]} if is_classifier else {}
    model = _adapted(auto_class.from_pretrained(folder), **options, **head)
    before = first_output(model, pixel_values)
    _train_a_step(model, pixel_values)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert "lora_" in name or "classifier.modules_to_save" in name
            assert parameter.grad.abs().sum() > 0, name
    trained = first_output(model, pixel_values)
    assert (trained - before).abs().max() > 1e-5

    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(auto_class.from_pretrained(folder), tmp_path)
    assert torch.equal(first_output(again, pixel_values), trained)

    merged = model.merge_and_unload()
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(first_output(merged, pixel_values), trained, atol=1e-5, rtol=1e-4)


def test_an_adapters_folder_alone_loads_the_model_under_it(pretrained, pixel_values, first_output, tmp_path):
    model = _adapted(AutoModel.from_pretrained(pretrained), **ADAPTERS["feature extraction"])
    model.save_pretrained(tmp_path)
    again = peft.AutoPeftModelForFeatureExtraction.from_pretrained(tmp_path)
    assert torch.equal(first_output(again, pixel_values), first_output(model, pixel_values))


def test_lora_over_four_bit_weights(pretrained, pixel_values):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModel.from_pretrained(pretrained, quantization_config=quantized, device_map="cpu")
    model = _adapted(peft.prepare_model_for_kbit_training(model), target_modules=["q_proj", "v_proj", "fc1"])
    _train_a_step(model, pixel_values)
    adapters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert adapters and all("lora_" in name for name in adapters)
    assert all(parameter.grad.abs().sum() > 0 for parameter in adapters.values())
