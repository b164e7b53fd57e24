# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Frozen features: what is computed, what is kept for the next time, and that nothing else changes."""

import io
import os
import socket

import datasets
import hypothesis
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import ClassLabel, Features, Image, Value
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage
from torch import nn
from torch.utils.data import Dataset
from transformers import ViTConfig, ViTModel
from transformers.modeling_outputs import BaseModelOutput

from sparsejepa_hf.data import TooManyBadImagesError, resize_to_square
from sparsejepa_hf.data.images import PixelFormat
from sparsejepa_hf.evaluation import extract_feature_set, extract_features, features, pixel_features
from sparsejepa_hf.evaluation.encoders import VisionEncoder, load_encoder
from sparsejepa_hf.evaluation.features import pool_tokens, small_pixel_features
from sparsejepa_hf.modeling_sparsejepa import SparseJEPAModel


KINDS = ("last/mean", "groups/mean")


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


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_batch_size_and_container_do_not_matter(vit, images, batch_size):
    whole = extract_features(vit, images)
    torch.testing.assert_close(extract_features(vit, images, batch_size=batch_size), whole)
    torch.testing.assert_close(extract_features(vit, _Images(images), batch_size=batch_size), whole)


def test_a_cpu_gets_small_batches_unless_told_otherwise():
    images = torch.zeros(130, 3, 4, 4, dtype=torch.uint8)
    for asked, expected in ((None, [64, 64, 2]), (100, [100, 30])):
        model = _Tokens(_rows)
        extract_features(model, images, batch_size=asked)
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
        (lambda images: images[:, 0], ValueError, r"\(N, C, H, W\)"),
        (lambda images: images[:0], ValueError, "no image"),
        (lambda images: iter(images), TypeError, "without a length"),
    ],
)
def test_refuses_wrong_images(images, change, error, message):
    with pytest.raises(error, match=message):
        extract_features(_Tokens(_rows), change(images))


def test_refuses_wrong_settings_and_outputs(images):
    with pytest.raises(ValueError, match="batch_size is 0"):
        extract_features(_Tokens(_rows), images, batch_size=0)
    with pytest.raises(ValueError, match="last_hidden_state has the shape"):
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
    with pytest.raises(ValueError, match=r"\(N, C, H, W\)"):
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


# ---- data sets through the cache ----


def noise(count, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def as_dataset(pixels, labels=None, label_type=None, bad=()):
    def png(array):
        buffer = io.BytesIO()
        PILImage.fromarray(array).save(buffer, format="PNG")
        return buffer.getvalue()

    images = [{"bytes": b"no image" if row in bad else png(x), "path": None} for row, x in enumerate(pixels)]
    columns, features = {"image": images}, {"image": Image()}
    if labels is not None:
        columns["label"], features["label"] = labels, label_type or Value("int64")
    return datasets.Dataset.from_dict(columns, features=Features(features))


def channels_first(pixels):
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


@pytest.fixture(scope="module")
def encoder(make_model):
    return load_encoder(make_model(SparseJEPAModel))


@pytest.fixture(scope="module")
def of_pixels():
    return load_encoder("pixels", image_size=4)


@pytest.fixture
def passes(monkeypatch):
    """Sizes of the batches that encoders were given."""
    sizes, run = [], VisionEncoder.features
    monkeypatch.setattr(
        VisionEncoder, "features", lambda self, x, kinds: (sizes.append(len(x)), run(self, x, kinds))[1]
    )
    return sizes


def extract(encoder, dataset, **options):
    kinds = KINDS if "groups/mean" in encoder.kinds else "pixels"
    return extract_feature_set(encoder, dataset, **{"kinds": kinds, "batch_size": 4, "progress": False, **options})


def test_a_feature_set_has_the_features_of_its_images_in_order(encoder):
    pixels = noise(11)
    found = extract(encoder, as_dataset(pixels, range(11), ClassLabel(num_classes=11)))
    assert list(found) == list(KINDS) and len(found) == 11 and found.labels.dtype == torch.int64
    assert found.labels.tolist() == found.rows.tolist() == list(range(11))
    for kind, expected in encoder.features(channels_first(pixels), KINDS).items():
        assert found[kind].dtype == torch.float32
        torch.testing.assert_close(found[kind], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(KeyError, match="not among the features extracted: 'last/mean', 'groups/mean'"):
        found["last4/mean"]


@given(count=st.integers(1, 9), batch_size=st.integers(1, 10), permutation=st.randoms(use_true_random=False))
@hypothesis.settings(max_examples=10)
def test_any_batch_size_any_order_of_rows_and_any_number_of_files(of_pixels, count, batch_size, permutation):
    pixels, order = noise(count, size=4), list(range(count))
    permutation.shuffle(order)
    dataset = as_dataset(pixels, range(count)).select(order)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "_IMAGES_PER_FILE", 3)
        found = extract(of_pixels, dataset, batch_size=batch_size)
    torch.testing.assert_close(found["pixels"], channels_first(pixels)[order].flatten(1) / 255)
    assert found.labels.tolist() == order and found.rows.tolist() == list(range(count))


def test_images_of_another_size_go_through_the_resize_of_pretraining(encoder):
    pixels = noise(5, size=40)
    by_hand = np.stack([resize_to_square(PILImage.fromarray(image), 32) for image in pixels])
    expected = encoder.features(torch.from_numpy(by_hand))["last/mean"]
    torch.testing.assert_close(extract(encoder, as_dataset(pixels))["last/mean"], expected, rtol=1e-4, atol=1e-5)


def test_labels_of_every_kind(of_pixels):
    pixels = noise(3, size=4)
    found = extract(of_pixels, as_dataset(pixels, [0.5, 1.5, -2.0], Value("float64"))).labels
    assert found.dtype == torch.float32 and found.tolist() == [0.5, 1.5, -2.0]
    assert extract(of_pixels, as_dataset(pixels, [True, False, True], Value("bool"))).labels.tolist() == [1, 0, 1]
    assert extract(of_pixels, as_dataset(pixels, [3, -4, 5])).labels.tolist() == [3, -4, 5], (
        "may be numbers of anything"
    )
    with pytest.raises(ValueError, match="no labels, but this evaluation needs them"):
        extract(of_pixels, as_dataset(pixels)).require_labels()


def test_wrong_data_sets_and_arguments_are_refused_before_anything_runs(of_pixels, passes):
    pixels, classes = noise(6, size=4), ClassLabel(names=["a", "b"])
    for error, message, dataset, options in (
        (ValueError, "label of row 4 is -1; expected 0 to 1", as_dataset(pixels, [0, 1, 0, 1, -1, 0], classes), {}),
        (ValueError, "1 of the 6 images .* no label .*row 1", as_dataset(pixels, [0, None, 1, 1, 1, 1], classes), {}),
        (ValueError, "row 5 is nan", as_dataset(pixels, [0.0] * 5 + [float("nan")], Value("float32")), {}),
        (TypeError, "class_encode_column", as_dataset(pixels, list("abcdef"), Value("string")), {}),
        (ValueError, "empty", as_dataset(pixels).select([]), {}),
        (ValueError, "columns .*expected one named 'image'", datasets.Dataset.from_dict({"x": [1]}), {}),
        (TypeError, "expected one split", datasets.DatasetDict(train=as_dataset(pixels)), {}),
        (TypeError, "without streaming", as_dataset(pixels).to_iterable_dataset(), {}),
        (ValueError, "batch_size is 0", as_dataset(pixels), {"batch_size": 0}),
        (ValueError, "mixed_precision is 'int8'", as_dataset(pixels), {"mixed_precision": "int8"}),
        (ValueError, "max_bad_fraction is 2", as_dataset(pixels), {"max_bad_fraction": 2}),
        (ValueError, "'last/mean'; raw pixels has 'pixels'", as_dataset(pixels), {"kinds": "last/mean"}),
    ):
        with pytest.raises(error, match=message):
            extract(of_pixels, dataset, **options)
    assert passes == []


def test_undecodable_images_are_left_out_and_reported(of_pixels, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_IMAGES_PER_FILE", 4)
    pixels, bad = noise(20, size=4), {3, 4, 5, 6, 7, 17}
    dataset, kept = as_dataset(pixels, range(20), bad=bad), [row for row in range(20) if row not in bad]
    for _ in range(2):
        with pytest.warns(UserWarning, match="6 of 20 images could not be decoded.*row 3: .*row 4: "):
            found = extract(of_pixels, dataset, max_bad_fraction=0.3, cache_dir=tmp_path)
        assert found.rows.tolist() == found.labels.tolist() == kept
        torch.testing.assert_close(found["pixels"], channels_first(pixels)[kept].flatten(1) / 255)
    for cache_dir in (tmp_path, None):
        with pytest.raises(TooManyBadImagesError, match="of the 20 images .*expected at most 20.0%.*row 3: "):
            extract(of_pixels, dataset, max_bad_fraction=0.2, cache_dir=cache_dir)
    with pytest.raises(TooManyBadImagesError, match="2 of the 2"):
        extract(of_pixels, as_dataset(pixels[:2], bad={0, 1}), max_bad_fraction=1.0)


def test_non_finite_features_of_a_data_set_are_refused_with_the_first_row(encoder, tmp_path, monkeypatch):
    run = VisionEncoder.features

    def poisoned(self, pixel_values, kinds):
        dark = pixel_values.amax(dim=(1, 2, 3)) == 0
        return {kind: torch.where(dark[:, None], torch.nan, x) for kind, x in run(self, pixel_values, kinds).items()}

    monkeypatch.setattr(VisionEncoder, "features", poisoned)
    pixels = noise(10)
    pixels[[6, 7]] = 0
    with pytest.raises(ValueError, match=r"'last/mean' .* in 2 of 4 images \(the first is row 6\)"):
        extract(encoder, as_dataset(pixels), cache_dir=tmp_path)
    assert not list(tmp_path.rglob("*.arrow")), "nothing half done is left"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_is_close_to_float32(encoder, precision):
    dataset = as_dataset(noise(8))
    full, mixed = extract(encoder, dataset), extract(encoder, dataset, mixed_precision=precision)
    for kind in KINDS:
        assert mixed[kind].dtype == torch.float32 and not torch.equal(mixed[kind], full[kind])
        torch.testing.assert_close(mixed[kind], full[kind], rtol=0.05, atol=0.05)


def test_a_second_call_runs_nothing_and_an_interrupted_one_goes_on(encoder, passes, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_IMAGES_PER_FILE", 4)
    first = extract(encoder, as_dataset(noise(10), range(10)), cache_dir=tmp_path)
    assert passes == [4, 4, 2], "one pass, a batch at a time"
    kept = {kind: values.clone() for kind, values in first.items()}
    first["last/mean"].zero_()
    again = extract(encoder, as_dataset(noise(10), range(10)), cache_dir=tmp_path, batch_size=3)
    assert len(passes) == 3 and again.key == first.key and torch.equal(again.labels, first.labels)
    assert all(torch.equal(again[kind], kept[kind]) for kind in KINDS), "writing to a tensor leaves the cache alone"
    sorted((tmp_path / first.key).iterdir())[1].unlink()
    again = extract(encoder, as_dataset(noise(10), range(10)), cache_dir=tmp_path)
    assert passes[3:] == [4] and all(torch.equal(again[kind], kept[kind]) for kind in KINDS)


def test_the_key_tells_apart_what_gives_other_features(make_model, encoder, tmp_path):
    pixels, labels = noise(6), list(range(6))
    dataset, other_pixels = as_dataset(pixels, labels), pixels.copy()
    other_pixels[5, 31, 31, 2] ^= 1
    model = make_model(SparseJEPAModel)
    with torch.no_grad():
        model.target_encoder.layernorm.bias[7] += 1e-3
    runs = [
        extract(encoder, dataset),
        extract(load_encoder(model), dataset),
        extract(load_encoder(model, encoder="context"), dataset),
        extract(load_encoder(model, image_size=16), dataset),
        extract(encoder, as_dataset(other_pixels, labels)),
        extract(encoder, as_dataset(pixels, labels[::-1])),
        extract(encoder, as_dataset(pixels)),
        extract(encoder, dataset.select(range(5))),
        extract(encoder, dataset.select([1, 0, 2, 3, 4, 5])),
        extract(encoder, dataset, kinds="last/mean"),
        extract(encoder, dataset, mixed_precision="bf16"),
    ]
    assert len({found.key for found in runs}) == len(runs)


def test_files_are_known_by_what_they_hold(of_pixels, tmp_path):
    keys = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        PILImage.fromarray(noise(1)[0]).save(tmp_path / folder / "image.png")
        paths = {"image": [str(tmp_path / folder / "image.png")]}
        keys.append(extract(of_pixels, datasets.Dataset.from_dict(paths, features=Features(image=Image()))).key)
    assert keys[0] == keys[1]


def test_memory_holds_a_batch_and_not_the_data_set(of_pixels, monkeypatch):
    alive, most = set(), [0]
    decode = PixelFormat.try_read

    class Pixels(np.ndarray):
        def __del__(self):
            alive.discard(id(self))

    def tracked(pixel_format, image):
        pixels = decode(pixel_format, image).view(Pixels)
        alive.add(id(pixels))
        most[0] = max(most[0], len(alive))
        return pixels

    monkeypatch.setattr(PixelFormat, "try_read", tracked)
    extract(of_pixels, as_dataset(noise(60, size=4)))
    assert most[0] <= 8


# ---- several processes ----


def _extract_in_turn(rank, count, folder):
    """One of `count` processes."""
    # The pool of threads is not inherited from the process that this one is a fork of.
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == count
    encoder, dataset = load_encoder(folder / "model"), datasets.Dataset.load_from_disk(str(folder / "data"))
    options = {"accelerator": accelerator, "max_bad_fraction": 0.2}
    found = extract(encoder, dataset, cache_dir=folder / "two", **options)
    few = extract(encoder, dataset.select(range(3)), cache_dir=folder / "few", **options)
    errors = []
    for wrong in ({"max_bad_fraction": 0.0, "cache_dir": folder / "none"}, {"cache_dir": None}):
        try:
            extract(encoder, dataset, **(options | wrong))
        except (ValueError, RuntimeError) as error:
            errors.append(str(error))
    tensors = {**found, "rows": found.rows, "labels": found.labels}
    torch.save({"found": tensors, "few": few["last/mean"], "errors": errors}, folder / f"{rank}.pt")
    accelerator.end_training()


def test_two_processes_extract_what_one_does_to_the_bit(make_model, tmp_path, monkeypatch):
    """With undecodable images, a last batch that is not full, fewer files than processes, and errors for both."""
    monkeypatch.setattr(features, "_IMAGES_PER_FILE", 4)
    make_model(SparseJEPAModel).save_pretrained(tmp_path / "model")
    as_dataset(noise(22), range(22), bad={5, 21}).save_to_disk(str(tmp_path / "data"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    # Forks, since importing everything anew would take most of the time.
    torch.multiprocessing.start_processes(_extract_in_turn, (2, tmp_path), nprocs=2, start_method="fork")
    encoder, dataset = load_encoder(tmp_path / "model"), datasets.Dataset.load_from_disk(str(tmp_path / "data"))
    with pytest.warns(UserWarning, match="2 of 22 images"):
        one = extract(encoder, dataset, max_bad_fraction=0.2, cache_dir=tmp_path / "one")
    assert len(one) == 20
    for rank in range(2):
        two = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.equal(two["found"]["rows"], one.rows) and torch.equal(two["found"]["labels"], one.labels)
        assert all(torch.equal(two["found"][kind], one[kind]) for kind in KINDS)
        assert torch.equal(two["few"], extract(encoder, dataset.select(range(3)))["last/mean"])
        assert "could not be decoded" in two["errors"][0] and "cache_dir is None" in two["errors"][1]
    assert [path.name for path in (tmp_path / "two").iterdir()] == [one.key]
