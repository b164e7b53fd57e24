# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Tests of timm's ViTs as models of this family, and of encoders as timm's ViTs."""

import json
from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock, VisionTransformer

from sparsejepa_hf.conversion import from_ijepa, from_timm, to_ijepa, to_timm
from sparsejepa_hf.modeling_sparsejepa import (
    SparseJEPAForImageClassification,
    SparseJEPAForPreTraining,
    SparseJEPAVisionModel,
    sincos_position_embeddings,
)
from sparsejepa_hf.training import image_processor


@pytest.fixture
def make_vit():
    """Builds a tiny ViT of timm with random weights, biases too, and sin-cos positions behind those of its tokens."""

    def build(**options: Any) -> VisionTransformer:
        torch.manual_seed(0)
        sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 1.75}
        kind = {"class_token": False, "global_pool": "avg", "fc_norm": False, "num_classes": 0}
        model = VisionTransformer(**{**sizes, **kind, **options}).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            table = sincos_position_embeddings(32, (8, 8))[None]
            model.pos_embed.zero_()
            model.pos_embed[:, -64:] = table
        return model

    return build


def output(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """Features, or logits of a classifier."""
    with torch.no_grad():
        if isinstance(model, VisionTransformer):
            return model(pixel_values) if model.num_classes else model.forward_features(pixel_values)
        result = model(pixel_values)
    return result.logits if hasattr(result, "logits") else result.last_hidden_state


class TestToTimm:
    @pytest.mark.parametrize("act", ["gelu", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu"])
    @pytest.mark.parametrize("model_class", [SparseJEPAVisionModel, SparseJEPAForImageClassification])
    def test_there_and_back(self, make_model, make_images, model_class, act):
        """Another width of the MLP in each place, so that rounding it would show."""
        model = make_model(
            model_class,
            use_grouping=False,
            hidden_size=24,
            intermediate_size=47,
            hidden_act=act,
            layer_norm_eps=1e-3,
            image_size=(24, 32),
            qkv_bias=False,
            num_channels=2,
            num_labels=3,
        )
        images = make_images(size=(24, 32), channels=2)
        converted = to_timm(model)
        torch.testing.assert_close(output(converted, images), output(model, images), atol=1e-4, rtol=1e-4)
        back = from_timm(converted)
        assert type(back) is model_class
        assert torch.equal(output(back, images), output(model, images))
        for name in ("hidden_act", "layer_norm_eps", "num_attention_heads", "intermediate_size", "qkv_bias"):
            assert getattr(back.config, name) == getattr(model.config, name)

    def test_a_folder_loads_in_timm_with_its_statistics_and_labels(self, make_model, pixel_values, tmp_path):
        labels = {0: "cat", 1: "dog", 2: "owl"}
        model = make_model(SparseJEPAForImageClassification, id2label=labels)
        model.save_pretrained(tmp_path / "ours")
        image_processor((32, 32), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)).save_pretrained(tmp_path / "ours")
        to_timm(tmp_path / "ours", tmp_path / "theirs")
        loaded = timm.create_model(f"local-dir:{tmp_path / 'theirs'}", pretrained=True).eval()
        torch.testing.assert_close(output(loaded, pixel_values), output(model, pixel_values), atol=1e-5, rtol=0)
        data = timm.data.resolve_model_data_config(loaded)
        assert tuple(data["mean"]) == (0.4, 0.5, 0.6) and tuple(data["std"]) == (0.2, 0.3, 0.25)
        assert tuple(data["input_size"]) == (3, 32, 32) and data["interpolation"] == "bicubic"
        assert json.loads((tmp_path / "theirs" / "config.json").read_text())["label_names"] == list(labels.values())
        for vit in (to_timm(model), loaded):
            back = from_timm(vit).config
            assert back.id2label == labels and back.label2id == {"cat": 0, "dog": 1, "owl": 2}

    def test_what_timm_cannot_say_is_refused(self, make_model, tmp_path):
        with pytest.raises(ValueError, match="layer_norm_eps is 0.001, and timm can only save 1e-06"):
            to_timm(make_model(SparseJEPAVisionModel, layer_norm_eps=1e-3), tmp_path)
        with pytest.raises(ValueError, match="hidden_act is 'leaky_relu'; timm has gelu"):
            to_timm(make_model(SparseJEPAVisionModel, hidden_act="leaky_relu"))

    def test_both_ways_around_the_families_agree(self, make_model):
        """Through I-JEPA and through timm, bit for bit."""
        model = make_model(SparseJEPAVisionModel, use_grouping=False)
        by_ijepa, by_timm = from_ijepa(to_ijepa(model)).state_dict(), from_timm(to_timm(model)).state_dict()
        assert all(torch.equal(by_ijepa[name], tensor) for name, tensor in by_timm.items())
        assert by_ijepa.keys() == by_timm.keys() == model.state_dict().keys()


class TestFromTimm:
    def test_features_and_logits_are_equal(self, make_vit, pixel_values):
        for classes, model_class in ((0, SparseJEPAVisionModel), (5, SparseJEPAForImageClassification)):
            vit = make_vit(num_classes=classes)
            model = from_timm(vit)
            assert type(model) is model_class
            torch.testing.assert_close(output(model, pixel_values), output(vit, pixel_values), atol=1e-5, rtol=0)

    def test_the_model_given_stays_as_it_was(self, make_vit):
        vit = make_vit().train()
        vit.blocks[0].eval()
        from_timm(vit)
        assert vit.training and vit.blocks[1].training and not vit.blocks[0].training

    def test_by_name(self, make_vit, monkeypatch):
        """Weights of a name are timm's matter."""
        asked = []
        monkeypatch.setattr(timm, "create_model", lambda name, pretrained: asked.append((name, pretrained)) or vit)
        vit = make_vit()
        from_timm("vit_huge_patch14_gap_224.in1k_ijepa")
        assert asked == [("vit_huge_patch14_gap_224.in1k_ijepa", True)]

    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
    def test_a_state_dict_needs_what_it_does_not_tell(self, make_vit, prefix, pixel_values):
        vit = make_vit(norm_layer=partial(torch.nn.LayerNorm, eps=1e-2))
        state = {prefix + name: tensor for name, tensor in vit.state_dict().items()}
        with pytest.raises(ValueError, match="pass num_attention_heads"):
            from_timm(state)
        model = from_timm(state, num_attention_heads=4, layer_norm_eps=1e-2)
        torch.testing.assert_close(output(model, pixel_values), output(vit, pixel_values), atol=1e-5, rtol=0)

    def test_two_sets_of_the_same_weights_are_refused(self, make_vit):
        state = make_vit().state_dict()
        with pytest.raises(ValueError, match=r"twice, once behind a prefix, such as 'module\.norm\.bias'"):
            from_timm({f"module.{name}": state[name] for name in state} | {"norm.bias": state["norm.bias"]})

    def test_common_widths_tell_their_heads(self):
        vit = VisionTransformer(16, 8, embed_dim=192, depth=1, num_heads=3, class_token=False, global_pool="")
        with torch.no_grad():
            vit.pos_embed.copy_(sincos_position_embeddings(192, (2, 2))[None])
        assert from_timm(vit.state_dict(), allow=("head.*",)).config.num_attention_heads == 3

    def test_a_grid_that_is_not_square_has_to_be_stated(self, make_model):
        state = to_timm(make_model(SparseJEPAVisionModel, image_size=(16, 32))).state_dict()
        with pytest.raises(ValueError, match="32 rows, which is no square grid; pass image_size"):
            from_timm(state, num_attention_heads=4)
        assert from_timm(state, num_attention_heads=4, image_size=[16, 32]).config.grid_size == (4, 8)
        with pytest.raises(ValueError, match="away from the sin-cos positions of a grid of 8x4"):
            from_timm(state, num_attention_heads=4, image_size=[32, 16])

    def test_a_class_token_is_refused_and_can_be_left_out_by_name(self, make_vit, pixel_values):
        """As in masked autoencoders. What the patches no longer attend to is missing from the features."""
        vit = make_vit(class_token=True, global_pool="token")
        with pytest.raises(ValueError, match=r"unknown: cls_token\. Expected each weight once"):
            from_timm(vit)
        model = from_timm(vit, allow=("cls_token",))
        difference = output(model, pixel_values) - output(vit, pixel_values)[:, 1:]
        assert 1e-3 < difference.abs().max()
        with torch.no_grad():
            # Without the token, nothing else differs.
            tokens = vit.patch_embed(pixel_values) + vit.pos_embed[:, 1:]
            expected = vit.norm(vit.blocks(tokens))
        torch.testing.assert_close(output(model, pixel_values), expected, atol=1e-5, rtol=0)

    def test_a_head_on_a_class_token_is_not_taken_for_one_on_the_mean(self, make_vit):
        vit = make_vit(class_token=True, global_pool="token", num_classes=3)
        with pytest.raises(ValueError, match=r"unknown: head\.bias, head\.weight\. Expected"):
            from_timm(vit, allow=("cls_token",))
        assert type(from_timm(vit, allow=("cls_token", "head.*"))) is SparseJEPAVisionModel

    @pytest.mark.parametrize(
        "options, names",
        [
            ({"fc_norm": True}, "unknown: fc_norm.bias, fc_norm.weight; missing: norm.bias, norm.weight"),
            ({"init_values": 0.1}, "unknown: blocks.0.ls1.gamma, blocks.0.ls2.gamma, blocks.1.ls1.gamma"),
            ({"reg_tokens": 1, "no_embed_class": True}, "unknown: reg_token"),
            ({"qk_norm": True}, "unknown: blocks.0.attn.k_norm.bias, blocks.0.attn.k_norm.weight"),
            ({"pre_norm": True}, "unknown: norm_pre.bias, norm_pre.weight; missing: patch_embed.proj.bias"),
        ],
    )
    def test_what_this_family_does_not_have_is_listed(self, make_vit, options, names):
        with pytest.raises(ValueError) as refusal:
            from_timm(make_vit(**options))
        assert names in str(refusal.value)

    def test_learned_positions_are_refused(self, make_vit):
        vit = make_vit()
        with torch.no_grad():
            vit.pos_embed.normal_()
        with pytest.raises(ValueError, match=r"pos_embed is up to \d\.\d away from the sin-cos positions of a grid"):
            from_timm(vit)

    def test_what_names_and_shapes_do_not_tell_is_measured(self, make_vit):
        for options in ({"block_fn": ResPostBlock}, {"num_classes": 3, "global_pool": "max"}):
            with pytest.raises(ValueError, match="converted model's output differs by"):
                from_timm(make_vit(**options))
        with pytest.raises(ValueError, match="of the kind ParallelScalingBlock; expected timm's Block"):
            from_timm(make_vit(block_fn=ParallelScalingBlock))
        with pytest.raises(ValueError, match="expected a VisionTransformer of timm"):
            from_timm(torch.nn.Linear(2, 2))

    def test_pretraining_starts_from_it(self, make_vit, pixel_values, masks):
        model = from_timm(make_vit(), model_class=SparseJEPAForPreTraining, num_groups=2)
        assert model(pixel_values, **masks).loss.isfinite() and model.group_weight.shape[0] == 2
