# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Any checkpoint as an encoder: what its features are, what tells two encoders apart, and what is refused."""

import copy
import shutil

import pytest
import safetensors.torch
import timm
import torch
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    Dinov2WithRegistersConfig,
    IJepaConfig,
    IJepaForImageClassification,
    ResNetConfig,
    SiglipVisionConfig,
    ViTConfig,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTModel,
    set_seed,
)

from sparsejepa_hf.evaluation.encoders import load_encoder
from sparsejepa_hf.image_processing_sparsejepa import image_processor
from sparsejepa_hf.modeling_sparsejepa import (
    SparseJEPAForImageClassification,
    SparseJEPAForPreTraining,
    SparseJEPAModel,
    SparseJEPAVisionModel,
)


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 4,
}


def randomised(model, seed=0):
    """In evaluation mode, with every parameter moved, so that no two of its parts are alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def build(config, seed=0):
    torch.manual_seed(seed)
    return randomised(AutoModel.from_config(config))


def halved(images):
    return images.float() / 127.5 - 1


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def images32():
    return torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def pretraining(make_model):
    """Context and target encoder differ, as after training."""
    return make_model(SparseJEPAForPreTraining)


# ---- what the features are ----


@torch.no_grad()
def test_ijepa_features_are_poolings_of_its_hidden_states(images):
    model = build(IJepaConfig(**SMALL))
    encoder = load_encoder(model)
    assert encoder.image_size == 16 and set(encoder.kinds) == {
        f"{layers}/{pooling}" for layers in ("last", "last4") for pooling in ("mean", "mean+max")
    }
    output = model(pixel_values=halved(images), output_hidden_states=True)
    found = encoder.features(images, encoder.kinds)
    tokens = output.last_hidden_state
    torch.testing.assert_close(found["last/mean"], tokens.mean(dim=1))
    torch.testing.assert_close(found["last/mean+max"], torch.cat([tokens.mean(1), tokens.amax(1)], dim=1))
    # Five blocks: those before the last count from the back of the tuple, which begins with the embeddings.
    before = [model.layernorm(states) for states in output.hidden_states[2:5]]
    tokens = torch.cat([*before, tokens], dim=2)
    torch.testing.assert_close(found["last4/mean"], tokens.mean(dim=1))
    torch.testing.assert_close(found["last4/mean+max"], torch.cat([tokens.mean(1), tokens.amax(1)], dim=1))


@torch.no_grad()
def test_class_and_register_tokens_are_left_out_of_the_mean(images):
    for config, prefix in ((ViTConfig(**SMALL), 1), (Dinov2WithRegistersConfig(**SMALL, num_register_tokens=3), 4)):
        model = build(config)
        tokens = model(pixel_values=halved(images)).last_hidden_state
        assert tokens.shape[1] == 16 + prefix
        encoder = load_encoder(model)
        found = encoder.features(images, ["last/mean", "last/cls", "last4/cls"])
        torch.testing.assert_close(found["last/mean"], tokens[:, prefix:].mean(dim=1))
        torch.testing.assert_close(found["last/cls"], tokens[:, 0])
        torch.testing.assert_close(found["last4/cls"][:, -16:], tokens[:, 0])
        assert found["last4/cls"].shape == (5, 64)


@torch.no_grad()
def test_timm_features_are_poolings_of_what_timm_gives(images32):
    encoder = load_encoder("timm/vit_tiny_patch16_224", untrained=True, seed=1, image_size=32)
    torch.manual_seed(1)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0).eval()
    found, tokens = encoder.features(images32, encoder.kinds), model.forward_features(halved(images32))
    assert encoder.image_size == 32 and tokens.shape == (4, 5, 192)
    torch.testing.assert_close(found["last/mean"], tokens[:, 1:].mean(dim=1))
    torch.testing.assert_close(found["last/cls"], tokens[:, 0])
    blocks = model.get_intermediate_layers(halved(images32), n=4, norm=True, return_prefix_tokens=True)
    torch.testing.assert_close(found["last4/mean"], torch.cat([patches for patches, _ in blocks], dim=2).mean(dim=1))
    torch.testing.assert_close(found["last4/cls"], torch.cat([prefix for _, prefix in blocks], dim=2)[:, 0])


@torch.no_grad()
def test_maps_of_convolutional_networks_are_tokens(images):
    model = build(ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"))
    encoder = load_encoder(model, image_size=16)
    assert encoder.kinds == ("last/mean", "last/mean+max")
    states = model(pixel_values=halved(images)).last_hidden_state
    assert states.ndim == 4
    found = encoder.features(images, encoder.kinds)["last/mean+max"]
    torch.testing.assert_close(found, torch.cat([states.mean((2, 3)), states.amax((2, 3))], dim=1))


@torch.no_grad()
def test_masked_autoencoders_see_every_patch_and_do_so_each_time_alike(images):
    model = build(ViTMAEConfig(**SMALL, mask_ratio=0.75))
    encoder = load_encoder(model)
    assert torch.equal(encoder.features(images)["last/mean"], encoder.features(images)["last/mean"])
    whole = copy.deepcopy(model)
    whole.config.mask_ratio = 0.0
    expected = whole(pixel_values=halved(images)).last_hidden_state[:, 1:].mean(dim=1)
    torch.testing.assert_close(encoder.features(images)["last/mean"], expected, rtol=1e-4, atol=1e-5)
    assert model.config.mask_ratio == 0.75


@torch.no_grad()
def test_family_target_and_context_features(pretraining, images32):
    target, context = load_encoder(pretraining), load_encoder(pretraining, encoder="context")
    inputs, model = halved(images32), pretraining.sparsejepa
    torch.testing.assert_close(target.features(images32)["last/mean"], model(inputs).pooler_output)
    expected = model.context_encoder(inputs).mean(dim=1)
    torch.testing.assert_close(context.features(images32)["last/mean"], expected)
    assert not torch.allclose(target.features(images32)["last/mean"], expected, atol=1e-2)
    assert target.fingerprint != context.fingerprint
    # Both of its blocks, where there are fewer than four.
    found = target.features(images32, "last4/mean")["last4/mean"]
    states = model(inputs, output_hidden_states=True).hidden_states
    normed = [model.target_encoder.layernorm(states[1]), model(inputs).last_hidden_state]
    torch.testing.assert_close(found, torch.cat(normed, dim=2).mean(dim=1))


@torch.no_grad()
@pytest.mark.parametrize("config", [CLIPVisionConfig, SiglipVisionConfig])
def test_blocks_of_models_without_a_named_final_norm_are_left_as_they_are(config, images):
    model = build(config(**SMALL))
    encoder = load_encoder(model)
    states = model(pixel_values=halved(images), output_hidden_states=True).hidden_states
    tokens = torch.cat(states[-4:], dim=2)[:, -16:]
    torch.testing.assert_close(encoder.features(images, "last4/mean")["last4/mean"], tokens.mean(dim=1))


@torch.no_grad()
@pytest.mark.parametrize("position", ["predictor", "encoder"])
def test_family_latents_and_groups(make_model, images32, position):
    model = make_model(SparseJEPAModel, latent_position=position)
    encoder = load_encoder(model)
    mean, inputs = model.encode_latents(halved(images32))
    found = encoder.features(images32, ["latents/mean", "latents/mean+max", "groups/mean", "last/mean"])
    assert mean.shape == (4, 64, 6) and inputs.shape == (4, 64, 4, 3)
    torch.testing.assert_close(found["latents/mean"], mean.mean(dim=1))
    torch.testing.assert_close(found["latents/mean+max"][:, 6:], mean.amax(dim=1))
    torch.testing.assert_close(found["groups/mean"], inputs.square().sum(dim=-1).sqrt().mean(dim=1))


def test_kinds_of_hidden_states_share_one_forward_pass(pretraining, images32):
    encoder, calls = load_encoder(pretraining), []
    pretraining.sparsejepa.target_encoder.register_forward_hook(lambda *args: calls.append(1))
    encoder.features(images32, ["last/mean", "last/mean+max", "last4/mean", "last4/mean+max"])
    assert len(calls) == 1


def test_without_grouping_there_are_no_latents(make_model):
    kinds = load_encoder(make_model(SparseJEPAModel, use_grouping=False)).kinds
    assert kinds == ("last/mean", "last/mean+max", "last4/mean", "last4/mean+max")


@pytest.mark.parametrize("size", [16, 32])
def test_pixels_are_the_flattened_images(size):
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    encoder = load_encoder("pixels", image_size=size)
    assert encoder.kinds == ("pixels",)
    torch.testing.assert_close(encoder.features(images, "pixels")["pixels"], images.flatten(1) / 255)


def test_large_pixels_are_averaged_over_areas():
    images = torch.randint(0, 64, (3, 3, 64, 64), dtype=torch.uint8) * 4
    found = load_encoder("pixels", image_size=64).features(images, "pixels")["pixels"].view(3, 3, 32, 32)
    areas = images.double().unflatten(3, (32, 2)).unflatten(2, (32, 2)).mean(dim=(3, 5))
    torch.testing.assert_close(found.double(), areas.round() / 255)
    assert load_encoder("pixels").image_size == 32


def test_features_do_not_depend_on_the_batch_and_leave_model_and_random_state_alone(pretraining, images32):
    pretraining.train()
    flags = {name: module.training for name, module in pretraining.named_modules()}
    encoder, before = load_encoder(pretraining), torch.get_rng_state()
    whole = encoder.features(images32, encoder.kinds)
    for kind in encoder.kinds:
        parts = torch.cat([encoder.features(part, kind)[kind] for part in images32.split(1)])
        torch.testing.assert_close(whole[kind], parts, rtol=1e-4, atol=1e-5)
        assert whole[kind].dtype == torch.float32 and not whole[kind].is_inference()
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: module.training for name, module in pretraining.named_modules()} == flags


@torch.no_grad()
def test_other_image_sizes_interpolate_positions(pretraining, images):
    encoder = load_encoder(pretraining, image_size=16)
    expected = pretraining.sparsejepa(halved(images), interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(encoder.features(images)["last/mean"], expected)
    assert encoder.features(images, "groups/mean")["groups/mean"].shape == (5, 4)


# ---- checkpoints ----


@pytest.mark.parametrize("model_class", [SparseJEPAForPreTraining, SparseJEPAModel])
def test_family_checkpoints_keep_both_encoders(make_model, tmp_path, images32, model_class):
    model = make_model(model_class)
    model.save_pretrained(tmp_path)
    for which in ("target", "context"):
        saved, held = load_encoder(tmp_path, encoder=which), load_encoder(model, encoder=which)
        assert saved.fingerprint == held.fingerprint
        kinds = ["last/mean", "latents/mean"]
        for kind, values in saved.features(images32, kinds).items():
            torch.testing.assert_close(values, held.features(images32, kinds)[kind], rtol=0, atol=0)


@pytest.mark.parametrize("model_class", [SparseJEPAVisionModel, SparseJEPAForImageClassification])
def test_family_checkpoints_of_the_target_encoder_alone(make_model, tmp_path, images32, model_class):
    model = make_model(model_class)
    model.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    assert encoder.kinds == ("last/mean", "last/mean+max", "last4/mean", "last4/mean+max")
    vision = getattr(model, "sparsejepa", model)
    with torch.no_grad():
        torch.testing.assert_close(encoder.features(images32)["last/mean"], vision(halved(images32)).pooler_output)
    with pytest.raises(ValueError, match="has no context encoder"):
        load_encoder(tmp_path, encoder="context")


def test_untrained_is_what_pretraining_with_that_seed_starts_from(make_config, tmp_path, images32):
    set_seed(3)
    start = SparseJEPAForPreTraining(make_config())
    expected = load_encoder(start).features(images32)["last/mean"]
    randomised(copy.deepcopy(start)).save_pretrained(tmp_path)
    before = torch.get_rng_state()
    fresh = load_encoder(tmp_path, untrained=True, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert fresh.fingerprint == load_encoder(start).fingerprint
    assert torch.equal(fresh.features(images32)["last/mean"], expected)
    assert fresh.fingerprint != load_encoder(tmp_path, untrained=True, seed=4).fingerprint
    assert "untrained, seed 3" in fresh.name


def test_normalisation_and_size_come_from_the_checkpoints_processor(tmp_path, images):
    model = build(ViTConfig(**SMALL))
    model.save_pretrained(tmp_path)
    plain = load_encoder(tmp_path)
    assert plain.image_mean == (0.5, 0.5, 0.5) and plain.image_size == 16
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    processor = ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=mean, image_std=std)
    processor.save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    by_hand = (images.float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(encoder.preprocess(images), by_hand)
    assert encoder.fingerprint != plain.fingerprint
    image_processor((16, 16), mean, std).save_pretrained(tmp_path)
    again = load_encoder(tmp_path)
    assert (again.image_mean, again.image_std, again.image_size) == (encoder.image_mean, encoder.image_std, 16)
    ViTImageProcessor(size={"height": 24, "width": 24}, rescale_factor=1 / 127.5, do_normalize=False).save_pretrained(
        tmp_path
    )
    encoder = load_encoder(tmp_path)
    assert encoder.image_size == 24
    torch.testing.assert_close(encoder.preprocess(images), images.float() / 127.5)
    with torch.no_grad():
        larger = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8)
        output = model(pixel_values=larger.float() / 127.5, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(encoder.features(larger)["last/mean"], output[:, 1:].mean(dim=1))


def test_checkpoints_of_classifiers_and_vision_towers(tmp_path, images):
    torch.manual_seed(0)
    classifier = randomised(IJepaForImageClassification(IJepaConfig(**SMALL)))
    classifier.save_pretrained(tmp_path / "classifier")
    found = load_encoder(tmp_path / "classifier").features(images)["last/mean"]
    with torch.no_grad():
        torch.testing.assert_close(found, classifier.ijepa(halved(images)).last_hidden_state.mean(dim=1))
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    clip = randomised(CLIPModel(CLIPConfig(text_config={**text, "vocab_size": 20}, vision_config=SMALL)))
    clip.save_pretrained(tmp_path / "clip")
    encoder = load_encoder(tmp_path / "clip")
    with torch.no_grad():
        tokens = clip.vision_model(pixel_values=halved(images)).last_hidden_state
    torch.testing.assert_close(encoder.features(images)["last/mean"], tokens[:, 1:].mean(dim=1))


def test_weights_that_no_checkpoint_held_do_not_change_the_fingerprint(tmp_path):
    torch.manual_seed(0)
    ViTModel(ViTConfig(**SMALL), add_pooling_layer=False).save_pretrained(tmp_path)
    assert load_encoder(tmp_path).fingerprint == load_encoder(tmp_path).fingerprint


def test_timm_by_name_from_a_file_and_from_a_folder(tmp_path, images32):
    fresh = load_encoder("timm/vit_tiny_patch16_224", untrained=True, seed=1, image_size=32)
    wrapper = fresh.module
    safetensors.torch.save_file(wrapper.timm_model.state_dict(), tmp_path / "weights.safetensors")
    wrapper.save_pretrained(tmp_path / "folder")
    for source in (f"timm/vit_tiny_patch16_224@{tmp_path / 'weights.safetensors'}", tmp_path / "folder"):
        loaded = load_encoder(source, image_size=32)
        assert loaded.fingerprint == fresh.fingerprint and loaded.image_mean == fresh.image_mean
        assert torch.equal(loaded.features(images32)["last/mean"], fresh.features(images32)["last/mean"])
    assert load_encoder(tmp_path / "folder").image_size == 32
    assert load_encoder("timm/resnet18", untrained=True, image_size=32).kinds == ("last/mean", "last/mean+max")
    with pytest.raises(ValueError, match="no model 'vit_tinny'"):
        load_encoder("timm/vit_tinny", untrained=True)
    with pytest.raises(FileNotFoundError, match="no file"):
        load_encoder("timm/resnet18@/nowhere.safetensors")


# ---- the fingerprint ----


def test_fingerprint_changes_with_one_weight_and_not_with_the_place(make_model, tmp_path):
    model = make_model(SparseJEPAForPreTraining)
    model.save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first = load_encoder(tmp_path / "a").fingerprint
    assert load_encoder(tmp_path / "b").fingerprint == first and len(first) == 64
    weight = model.sparsejepa.target_encoder.layers[1].mlp.fc2.weight
    encoder = load_encoder(model)
    assert encoder.fingerprint == first
    with torch.no_grad():
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(torch.inf))
    assert encoder.fingerprint != first, "one bit, and read anew"


def test_fingerprint_changes_with_configuration_and_image_size(make_model):
    model, other = make_model(SparseJEPAModel), make_model(SparseJEPAModel, layer_norm_eps=1e-5)
    fingerprints = {
        load_encoder(model).fingerprint,
        load_encoder(other).fingerprint,
        load_encoder(model, image_size=16).fingerprint,
        load_encoder(copy.deepcopy(model).bfloat16()).fingerprint,
    }
    assert len(fingerprints) == 4


# ---- what is refused ----


def test_refuses_what_is_no_vision_checkpoint(tmp_path):
    BertConfig().save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="'bert', which does not take images"):
        load_encoder(tmp_path / "bert")
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_encoder(tmp_path / "missing")
    (tmp_path / "run" / "checkpoint-5").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-5" / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="its folders checkpoint-5 have one"):
        load_encoder(tmp_path / "run")
    (tmp_path / "file.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="is a file"):
        load_encoder(tmp_path / "file.safetensors")
    with pytest.raises(FileNotFoundError, match="neither as a folder nor on the Hub"):
        load_encoder("nobody/nothing")


def test_refuses_checkpoints_that_lack_weights(tmp_path):
    build(ViTConfig(**SMALL)).save_pretrained(tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    removed = next(name for name in weights if "mlp" in name or "fc1" in name or "dense" in name)
    del weights[removed]
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="lacks 1 of the encoder's weights"):
        load_encoder(tmp_path)


def test_without_grouping_no_feature_needs_the_predictor(make_model, tmp_path, images32):
    """As in checkpoints of I-JEPA whose predictor ended in a module of another name."""
    model = randomised(make_model(SparseJEPAForPreTraining, use_grouping=False))
    weights = {name: value for name, value in model.state_dict().items() if ".predictor.head." not in name}
    assert len(weights) < len(model.state_dict())
    model.save_pretrained(tmp_path, state_dict=weights)
    with torch.no_grad():
        expected, found = (load_encoder(source).features(images32, "last/mean") for source in (model, tmp_path))
    assert torch.equal(expected["last/mean"], found["last/mean"])


def test_refuses_wrong_kinds_images_and_arguments(pretraining, images, images32):
    encoder = load_encoder(pretraining)
    with pytest.raises(ValueError, match="'last/cls'; .* has 'last/mean', .*'groups/mean'"):
        encoder.features(images32, ["last/mean", "last/cls"])
    with pytest.raises(ValueError, match="each once"):
        encoder.features(images32, ["last/mean", "last/mean"])
    with pytest.raises(ValueError, match=r"shape .3, 16, 16., but .* takes .3, 32, 32."):
        encoder.features(images)
    with pytest.raises(TypeError, match="uint8"):
        encoder.features(images32.float())
    with pytest.raises(ValueError, match="'target' or 'context'"):
        load_encoder(pretraining, encoder="teacher")
    with pytest.raises(ValueError, match="patches of 4x4 do not divide"):
        load_encoder(pretraining, image_size=18)
    vit = build(ViTConfig(**SMALL))
    with pytest.raises(ValueError, match="one encoder only"):
        load_encoder(vit, encoder="context")
    for given in ({"source": nn.Identity()}, {"source": vit, "untrained": True}, {"source": vit, "device": "cpu"}):
        with pytest.raises(ValueError, match="expected a model of transformers, without untrained and device"):
            load_encoder(**given)
    with pytest.raises(ValueError, match="pass image_size"):
        load_encoder(build(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")))
    with pytest.raises(ValueError, match="no last_hidden_state"):
        load_encoder(IJepaForImageClassification(IJepaConfig(**SMALL)))
