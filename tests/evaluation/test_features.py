# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Feature extraction: what is computed, and that nothing else about the model or the process changes."""

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import ViTConfig, ViTModel
from transformers.modeling_outputs import BaseModelOutput

from sparsejepa_hf.evaluation import extract_features, pixel_features
from sparsejepa_hf.evaluation.features import pool_tokens, small_pixel_features


class _Images(Dataset):
    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"pixel_values": self.images[index], "labels": 0}


class _Tokens(nn.Module):
    """Tokens computed from the pixels by a given function; keeps what it was given."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.frozen = nn.Linear(1, 1)
        self.seen = []

    def forward(self, pixel_values):
        self.seen.append((pixel_values, self.training, self.frozen.training, torch.is_inference_mode_enabled()))
        return BaseModelOutput(last_hidden_state=self.function(pixel_values))


def _rows(pixel_values):
    return pixel_values.flatten(2).transpose(1, 2)


@pytest.fixture
def images():
    return torch.randint(0, 256, (7, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def vit():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        hidden_dropout_prob=0.5,
        attention_probs_dropout_prob=0.5,
    )
    return ViTModel(config, add_pooling_layer=False)


def test_features_are_the_mean_of_the_eval_mode_tokens(vit, images):
    vit.eval()
    with torch.no_grad():
        expected = vit(pixel_values=images.float() / 255).last_hidden_state.mean(dim=1)
    vit.train()
    features = extract_features(vit, images)
    assert features.dtype == torch.float32 and features.device.type == "cpu" and features.shape == (7, 16)
    torch.testing.assert_close(features, expected)


def test_cls_pooling_takes_the_first_token(vit, images):
    vit.eval()
    with torch.no_grad():
        expected = vit(pixel_values=images.float() / 255).last_hidden_state[:, 0]
    torch.testing.assert_close(extract_features(vit, images, pooling="cls"), expected)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_batch_size_and_container_do_not_matter(vit, images, batch_size):
    whole = extract_features(vit, images)
    torch.testing.assert_close(extract_features(vit, images, batch_size=batch_size), whole)
    torch.testing.assert_close(extract_features(vit, _Images(images), batch_size=batch_size), whole)


def test_a_cpu_gets_small_batches_unless_told_otherwise():
    images = torch.zeros(130, 3, 4, 4, dtype=torch.uint8)
    for given, expected in ((None, [64, 64, 2]), (100, [100, 30])):
        model = _Tokens(_rows)
        extract_features(model, images, batch_size=given)
        assert [len(pixel_values) for pixel_values, *_ in model.seen] == expected


def test_preprocess_gets_uint8_and_its_result_reaches_the_model(images):
    model = _Tokens(_rows)
    dtypes = []

    def preprocess(batch):
        dtypes.append(batch.dtype)
        return batch.float() * 2 - 1

    features = extract_features(model, images, preprocess=preprocess)
    assert dtypes == [torch.uint8]
    torch.testing.assert_close(features, images.float().mean(dim=(2, 3)) * 2 - 1)


def test_default_preprocess_scales_to_unit_range(images):
    model = _Tokens(_rows)
    extract_features(model, images)
    torch.testing.assert_close(model.seen[0][0], images.float() / 255)


def test_inputs_follow_the_dtype_of_the_model_and_features_are_float32(vit, images):
    expected = extract_features(vit, images)
    features = extract_features(vit.to(torch.bfloat16), images)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, expected, rtol=0.1, atol=0.1)


def test_runs_in_eval_and_inference_mode_and_restores_each_training_flag(images):
    model = _Tokens(_rows).train()
    model.frozen.eval()
    extract_features(model, images)
    assert model.seen[0][1:] == (False, False, True)
    assert model.training and not model.frozen.training


def test_restores_each_training_flag_after_an_error(images):
    model = _Tokens(lambda pixel_values: 1 / 0).train()
    model.frozen.eval()
    with pytest.raises(ZeroDivisionError):
        extract_features(model, images)
    assert model.training and not model.frozen.training


@pytest.mark.parametrize("wrap", [lambda images: images, _Images])
def test_global_random_state_is_untouched_even_if_the_model_draws(images, wrap):
    model = _Tokens(lambda pixel_values: torch.rand(len(pixel_values), 2, 4))
    before = torch.get_rng_state()
    extract_features(model, wrap(images), batch_size=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_features_can_enter_autograd(vit, images):
    features = extract_features(vit, images)
    weight = torch.ones(16, requires_grad=True)
    (features @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, features.sum(dim=0))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_device_is_used_and_the_model_returns_home(vit, images):
    expected = extract_features(vit, images)
    before = torch.cuda.get_rng_state()
    features = extract_features(vit, images, device="cuda")
    assert features.device.type == "cpu" and next(vit.parameters()).device.type == "cpu"
    assert torch.equal(torch.cuda.get_rng_state(), before)
    torch.testing.assert_close(features, expected, rtol=1e-2, atol=1e-2)


def test_refuses_non_finite_features_and_names_the_image(images):
    def poisoned(pixel_values):
        tokens = _rows(pixel_values).clone()
        tokens[3] = float("nan")
        return tokens

    with pytest.raises(ValueError, match=r"1 of 7 images \(the first is image 3\)"):
        extract_features(_Tokens(poisoned), images)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda images: images.float(), TypeError, "torch.uint8"),
        (lambda images: _Images(images.float()), TypeError, "torch.uint8"),
        (lambda images: images[:, :1], ValueError, r"\(N, 3, S, S\)"),
        (lambda images: images[..., :4], ValueError, r"\(N, 3, S, S\)"),
        (lambda images: images[:0], ValueError, "no image"),
        (lambda images: iter(images), TypeError, "without a length"),
    ],
)
def test_refuses_wrong_images(images, change, error, message):
    with pytest.raises(error, match=message):
        extract_features(_Tokens(_rows), change(images))


def test_refuses_wrong_settings_and_outputs(images):
    with pytest.raises(ValueError, match="pooling is 'max'"):
        extract_features(_Tokens(_rows), images, pooling="max")
    with pytest.raises(ValueError, match="batch_size is 0"):
        extract_features(_Tokens(_rows), images, batch_size=0)
    with pytest.raises(ValueError, match="last_hidden_state has shape"):
        extract_features(_Tokens(lambda pixel_values: pixel_values), images)
    with pytest.raises(TypeError, match="no last_hidden_state"):
        extract_features(_Tokens(lambda pixel_values: None), images)


def test_pixel_features_are_the_flattened_images_in_unit_range(images):
    features = pixel_features(images)
    assert features.shape == (7, 3 * 8 * 8) and features.dtype == torch.float32
    torch.testing.assert_close((features * 255).reshape(7, 3, 8, 8), images.float())
    assert pixel_features(torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)).eq(1).all()


def test_pixel_features_refuses_wrong_images(images):
    with pytest.raises(TypeError, match="torch.uint8"):
        pixel_features(images.float())
    with pytest.raises(ValueError, match=r"\(N, 3, S, S\)"):
        pixel_features(images[0])


def test_small_pixel_features_average_areas_of_large_images_only():
    small = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(small_pixel_features(small), pixel_features(small))
    large = small.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    assert torch.equal(small_pixel_features(large), pixel_features(small))
    with pytest.raises(TypeError, match="torch.uint8"):
        small_pixel_features(small.float())


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_pooling_leaves_out_the_tokens_before_the_patches(prefix):
    patches = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    tokens = torch.cat([torch.full((2, prefix, 4), 100.0), patches], dim=1)
    torch.testing.assert_close(pool_tokens(tokens, "mean", prefix), patches.mean(dim=1))
    both = pool_tokens(tokens.bfloat16(), "mean+max", prefix)
    assert both.dtype == torch.float32 and torch.equal(both[:, 4:], patches.bfloat16().float().amax(dim=1))
    assert torch.equal(pool_tokens(tokens, "cls", prefix), tokens[:, 0])
    with pytest.raises(ValueError, match="pooling is 'max'"):
        pool_tokens(tokens, "max")
