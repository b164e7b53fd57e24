# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What transformers asks of every model, of every class of this family."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.utils import ModelOutput

from sparsejepa_hf import (
    SparseJEPABackbone,
    SparseJEPAForImageClassification,
    SparseJEPAForPreTraining,
    SparseJEPAModel,
    SparseJEPAVisionModel,
)


CLASSES = (
    SparseJEPAVisionModel,
    SparseJEPAModel,
    SparseJEPAForPreTraining,
    SparseJEPAForImageClassification,
    SparseJEPABackbone,
)
every_class = pytest.mark.parametrize("model_class", CLASSES)
LAYERS = 2


@pytest.fixture
def inputs_of(pixel_values, masks):
    """All inputs of a class, with which it also has a loss, if it has one at all."""

    def build(model_class: type) -> dict[str, Any]:
        inputs: dict[str, Any] = {"pixel_values": pixel_values}
        if model_class in (SparseJEPAModel, SparseJEPAForPreTraining):
            inputs |= masks
        if model_class is SparseJEPAForImageClassification:
            inputs["labels"] = torch.tensor([0, 1])
        return inputs

    return build


def _encoder(model):
    return next(module for name, module in model.named_modules() if name.endswith("target_encoder"))


def _leaves(value) -> list[Tensor]:
    """All tensors of an output, in order."""
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return [leaf for part in values if part is not None for leaf in _leaves(part)]


def _run(model, inputs, **options):
    with torch.no_grad():
        return model(**inputs, **options)


@every_class
def test_a_tuple_holds_what_the_named_output_holds(make_model, inputs_of, model_class):
    model, inputs = make_model(model_class), inputs_of(model_class)
    named = _run(model, inputs, output_hidden_states=True)
    as_tuple = _run(model, inputs, output_hidden_states=True, return_dict=False)
    assert isinstance(named, ModelOutput) and isinstance(as_tuple, tuple)
    for found in (as_tuple, named.to_tuple()):
        assert all(torch.equal(a, b) for a, b in zip(_leaves(found), _leaves(named), strict=True))


@every_class
def test_hidden_states_begin_with_the_embeddings_and_end_with_the_features(make_model, inputs_of, model_class):
    model, inputs = make_model(model_class), inputs_of(model_class)
    output = _run(model, inputs, output_hidden_states=True)
    encoder, states = _encoder(model), output.hidden_states
    assert len(states) == 1 + LAYERS
    with torch.no_grad():
        assert torch.equal(states[0], encoder.embeddings(inputs["pixel_values"]))
        expected = encoder(inputs["pixel_values"])
        assert torch.equal(encoder.layernorm(states[-1]), expected)
    if "last_hidden_state" in output:
        assert torch.equal(output.last_hidden_state, expected)
    # As the configuration says, too.
    model.config.output_hidden_states = True
    assert len(_run(model, inputs).hidden_states) == 1 + LAYERS


@every_class
def test_attentions_are_distributions_over_the_patches(make_model, inputs_of, model_class):
    model = make_model(model_class, attn_implementation="eager")
    attentions = _run(model, inputs_of(model_class), output_attentions=True).attentions
    assert len(attentions) == LAYERS
    for weights in attentions:
        assert weights.shape == (2, 4, 64, 64) and (weights >= 0).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 64))


@every_class
def test_attention_back_ends_agree(make_model, inputs_of, model_class):
    model, inputs = make_model(model_class, attn_implementation="eager"), inputs_of(model_class)
    expected = _leaves(_run(model, inputs))
    model.set_attn_implementation("sdpa")
    found = _leaves(_run(model, inputs))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def _loss(model, inputs) -> Tensor:
    output = model(**inputs)
    if "loss" in output:
        return output.loss
    first = output.feature_maps[-1] if "feature_maps" in output else _leaves(output)[-1]
    return first.square().mean()


@every_class
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_gives_equal_gradients(make_model, inputs_of, model_class, use_reentrant):
    gradients = []
    for checkpointing in (False, True):
        model, inputs = make_model(model_class).train(), inputs_of(model_class)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        torch.manual_seed(0)
        _loss(model, inputs).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys() and plain
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, msg=name)


@pytest.mark.parametrize(
    "model_class", [SparseJEPAVisionModel, SparseJEPAModel, SparseJEPAForImageClassification, SparseJEPABackbone]
)
def test_gradients_are_kept_on_hidden_states_and_attentions(make_model, pixel_values, model_class):
    model = make_model(model_class, attn_implementation="eager")
    output = model(pixel_values, output_hidden_states=True, output_attentions=True)
    recorded = [*output.hidden_states, *output.attentions]
    for state in recorded:
        state.retain_grad()
    _leaves(output)[0].square().sum().backward()
    assert all(state.grad is not None and state.grad.abs().sum() > 0 for state in recorded)


@every_class
def test_saved_and_loaded_is_bit_equal(make_model, inputs_of, model_class, tmp_path):
    model, inputs = make_model(model_class), inputs_of(model_class)
    model.save_pretrained(tmp_path)
    again, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(again.state_dict()[key], value) for key, value in model.state_dict().items())
    for a, b in zip(_leaves(_run(again, inputs)), _leaves(_run(model, inputs)), strict=True):
        assert torch.equal(a, b)
    assert not again.training


@every_class
def test_every_weight_and_buffer_is_initialised(make_config, model_class):
    config = make_config()
    with torch.device("meta"):
        model = model_class(config)
    model.to_empty(device="cpu")
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.fill_(torch.nan)
    model.apply(model._init_weights)
    forgotten = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    assert not forgotten
    # Drawn where a model built at once is drawn, and constant where it is constant.
    built = model_class(config)
    for name, tensor in [*built.named_parameters(), *built.named_buffers()]:
        assert (tensor.std() == 0) == (tensors[name].std() == 0), name


@every_class
def test_a_files_unknown_keys_survive_a_load_and_a_save(make_model, model_class, tmp_path):
    make_model(model_class).save_pretrained(tmp_path / "first")
    path = tmp_path / "first" / "config.json"
    # One like a field of ours, one like another family's, one of a later version.
    added = {"layer_norm_epsilon": 1e-5, "hidden_sizes": [8, 16], "a_later_field": {"with": [1, None]}}
    written = json.loads(path.read_text()) | added
    path.write_text(json.dumps(written))
    model = model_class.from_pretrained(tmp_path / "first")
    assert model.config.to_dict().items() >= added.items()
    model.save_pretrained(tmp_path / "second")
    again = json.loads((tmp_path / "second" / "config.json").read_text())
    assert again == written | {"architectures": [model_class.__name__]}
    assert model_class.config_class.from_dict(model.config.to_dict()).to_dict() == model.config.to_dict()


@every_class
def test_weights_of_another_size_are_refused_unless_told_and_the_rest_is_loaded(make_model, model_class, tmp_path):
    model = make_model(model_class)
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        model_class.from_pretrained(tmp_path, intermediate_size=48)
    again = model_class.from_pretrained(tmp_path, intermediate_size=48, ignore_mismatched_sizes=True)
    saved, is_new = model.state_dict(), {"fc1.weight", "fc1.bias", "fc2.weight"}
    for name, tensor in again.state_dict().items():
        assert torch.isfinite(tensor).all()
        if "encoder.layers" in name and name.split("mlp.")[-1] in is_new:
            assert tensor.shape != saved[name].shape
        else:
            assert torch.equal(tensor, saved[name]), name


def test_a_new_number_of_labels_keeps_the_encoder(make_model, pixel_values, tmp_path):
    model = make_model(SparseJEPAForImageClassification, num_labels=3)
    model.save_pretrained(tmp_path)
    again = SparseJEPAForImageClassification.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert _run(again, {"pixel_values": pixel_values}).logits.shape == (2, 5)
    assert all(
        torch.equal(p, dict(again.named_parameters())[name])
        for name, p in model.sparsejepa.named_parameters(prefix="sparsejepa")
    )


@every_class
def test_an_image_does_not_depend_on_its_batch(make_model, make_images, model_class):
    model, images = make_model(model_class), make_images(3)
    options = {"return_loss": False} if model_class is SparseJEPAForPreTraining else {}
    whole = _leaves(_run(model, {"pixel_values": images}, **options))
    single = _leaves(_run(model, {"pixel_values": images[1:2]}, **options))
    for a, b in zip(single, whole, strict=True):
        torch.testing.assert_close(a[0], b[1], atol=1e-5, rtol=1e-4)


@every_class
def test_a_resized_model_takes_the_new_size(make_model, make_images, model_class, tmp_path):
    model = make_model(model_class)
    model.save_pretrained(tmp_path)
    again = model_class.from_pretrained(tmp_path, image_size=[24, 48])
    images = make_images(size=(24, 48))
    options = {"return_loss": False} if model_class is SparseJEPAForPreTraining else {}
    resized = {} if model_class is SparseJEPABackbone else {"interpolate_pos_encoding": True}
    for a, b in zip(
        _leaves(_run(again, {"pixel_values": images}, **options)),
        _leaves(_run(again, {"pixel_values": images}, **options, **resized)),
        strict=True,
    ):
        assert torch.equal(a, b)
