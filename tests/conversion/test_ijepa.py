# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Tests of encoders as transformers' I-JEPA, and of I-JEPA's checkpoints as models of this family."""

import importlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    IJepaConfig,
    IJepaForImageClassification,
    IJepaModel,
    ViTImageProcessor,
)

from sparsejepa_hf.conversion import export_encoder, from_ijepa, to_ijepa, to_timm
from sparsejepa_hf.data import build_image_dataset, build_scenes
from sparsejepa_hf.modeling_sparsejepa import (
    SparseJEPAForImageClassification,
    SparseJEPAForPreTraining,
    SparseJEPAModel,
    SparseJEPAVisionModel,
    sincos_position_embeddings,
)
from sparsejepa_hf.training import image_processor


# Vanilla transformers, in a process that has never seen the package.
VANILLA = """
import json, sys
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

encoder, classifier, work = sys.argv[1:]
pixels = torch.load(f"{work}/pixels.pt")
image = f"{work}/image.png"
with torch.no_grad():
    features = AutoModel.from_pretrained(encoder)(pixels).last_hidden_state
    logits = AutoModelForImageClassification.from_pretrained(classifier)(pixels).logits
    both = AutoModel.from_pretrained(classifier)(pixels).last_hidden_state
tensors = {"features": features, "logits": logits, "of the classifier": both}
tensors["piped"] = pipeline("image-feature-extraction", model=encoder)(image, return_tensors=True)
tensors["processed"] = AutoImageProcessor.from_pretrained(encoder)(image, return_tensors="pt").pixel_values
torch.save(tensors, f"{work}/tensors.pt")
report = {"classes": pipeline("image-classification", model=classifier)(image, top_k=3)}
report["package"] = "sparsejepa_hf" in sys.modules or any("transformers_modules" in name for name in sys.modules)
json.dump(report, open(f"{work}/report.json", "w"))
"""
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
LABELS = {0: "cat", 1: "dog", 2: "owl"}


def features(model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """Features of the target encoder, or logits."""
    with torch.no_grad():
        if isinstance(model, SparseJEPAForPreTraining):
            model = model.sparsejepa
        output = model(pixel_values)
    return output.logits if hasattr(output, "logits") else output.last_hidden_state


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def encoder(make_model) -> SparseJEPAVisionModel:
    return make_model(SparseJEPAVisionModel, use_grouping=False)


@pytest.fixture
def make_ijepa():
    """Builds a tiny I-JEPA of transformers that was pre-trained: sin-cos positions, and an epsilon of its own."""

    def build(**options: bool) -> IJepaModel:
        torch.manual_seed(3)
        config = IJepaConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=56,
            image_size=32,
            patch_size=4,
            layer_norm_eps=1e-5,
            initializer_range=0.1,
        )
        model = IJepaModel(config, **options).eval()
        with torch.no_grad():
            model.embeddings.position_embeddings.copy_(sincos_position_embeddings(32, (8, 8))[None])
        return model

    return build


@pytest.fixture
def ijepa(make_ijepa) -> IJepaModel:
    return make_ijepa()


class TestToIJepa:
    @pytest.mark.parametrize(
        "model_class",
        [SparseJEPAForPreTraining, SparseJEPAModel, SparseJEPAVisionModel, SparseJEPAForImageClassification],
    )
    def test_features_and_logits_are_equal(self, make_model, pixel_values, model_class):
        model = make_model(model_class, layer_norm_eps=1e-3, num_labels=3)
        converted = to_ijepa(model)
        assert type(converted) is (
            IJepaForImageClassification if model_class is SparseJEPAForImageClassification else IJepaModel
        )
        torch.testing.assert_close(features(converted, pixel_values), features(model, pixel_values), atol=1e-5, rtol=0)

    def test_in_double_precision_nothing_is_left_of_the_difference(self, make_model, pixel_values):
        model = make_model(SparseJEPAForImageClassification).double()
        difference = features(to_ijepa(model), pixel_values.double()) - features(model, pixel_values.double())
        assert difference.abs().max() < 1e-13

    def test_the_context_encoder_can_be_taken(self, make_model, pixel_values):
        model = make_model(SparseJEPAModel)
        everything = torch.arange(64).expand(2, -1)
        with torch.no_grad():
            expected = model.context_encoder(pixel_values, everything)
        converted = features(to_ijepa(model, encoder="context"), pixel_values)
        torch.testing.assert_close(converted, expected, atol=1e-5, rtol=0)
        assert (converted - features(model, pixel_values)).abs().max() > 0.1

    def test_half_precision_is_kept(self, encoder, pixel_values):
        model = encoder.bfloat16()
        converted = to_ijepa(model)
        assert converted.dtype is torch.bfloat16
        torch.testing.assert_close(features(converted, pixel_values), features(model, pixel_values), atol=0.1, rtol=0)

    def test_a_compiled_models_prefix_is_taken_off(self, encoder, pixel_values):
        converted = to_ijepa(torch.compile(encoder, backend="eager"))
        torch.testing.assert_close(
            features(converted, pixel_values), features(encoder, pixel_values), atol=1e-5, rtol=0
        )

    def test_other_sizes_differ_as_documented(self, make_model, make_images):
        """I-JEPA interpolates a table; the family evaluates the functions that the table was made of."""
        model, images = make_model(SparseJEPAVisionModel), make_images(size=(48, 48))
        with torch.no_grad():
            own = model(images, interpolate_pos_encoding=True).last_hidden_state
            other = to_ijepa(model)(images, interpolate_pos_encoding=True).last_hidden_state
        assert 1e-3 < (own - other).abs().max() < 1.0

    def test_a_trained_model_differs_at_twice_its_size_by_what_the_page_says(self):
        model = SparseJEPAVisionModel.from_pretrained(
            Path(__file__).parents[2] / "model_cards" / "sparsejepa-vit-micro-scenes"
        )
        scenes = build_image_dataset(build_scenes(32, style="textured", split="test", image_size=64), 64)
        images = scenes.pixel_values / 127.5 - 1
        with torch.no_grad():
            own = model(images, interpolate_pos_encoding=True).last_hidden_state
            other = to_ijepa(model)(images, interpolate_pos_encoding=True).last_hidden_state
        assert 0.03 < (own - other).abs().max() < 0.15 and 0.9 < own.std() < 1.1

    @settings(max_examples=15)
    @given(
        heads=st.integers(1, 3),
        head_size=st.sampled_from([4, 8]),
        depth=st.integers(1, 3),
        mlp=st.integers(1, 30),
        channels=st.integers(1, 4),
        patch=st.sampled_from([2, 3, (2, 3)]),
        grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
        qkv_bias=st.booleans(),
        act=st.sampled_from(["gelu", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu"]),
        eps=st.sampled_from([1e-12, 1e-6, 1e-2]),
    )
    def test_any_architecture_goes_there_and_back(
        self, make_model, heads, head_size, depth, mlp, channels, patch, grid, qkv_bias, act, eps
    ):
        sides = (patch, patch) if isinstance(patch, int) else patch
        size = (grid[0] * sides[0], grid[1] * sides[1])
        model = make_model(
            SparseJEPAVisionModel,
            use_grouping=False,
            hidden_size=heads * head_size,
            num_attention_heads=heads,
            num_hidden_layers=depth,
            intermediate_size=mlp,
            num_channels=channels,
            patch_size=patch,
            image_size=size,
            qkv_bias=qkv_bias,
            hidden_act=act,
            layer_norm_eps=eps,
        )
        images = torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(0))
        converted = to_ijepa(model)
        torch.testing.assert_close(features(converted, images), features(model, images), atol=1e-4, rtol=1e-4)
        back = from_ijepa(converted)
        assert same_weights(back, model) and torch.equal(features(back, images), features(model, images))

    def test_an_encoder_that_is_not_there_is_refused(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="SparseJEPAVisionModel, has no such encoder"):
            to_ijepa(encoder, encoder="context")
        with pytest.raises(ValueError, match="saved by SparseJEPAVisionModel, so it has no such encoder"):
            to_ijepa(tmp_path, encoder="context")
        with pytest.raises(ValueError, match="encoder is 'student'; expected 'target' or 'context'"):
            to_ijepa(encoder, encoder="student")

    def test_a_checkpoint_gives_what_its_model_gives(self, make_model, tmp_path):
        model = make_model(SparseJEPAForPreTraining)
        model.save_pretrained(tmp_path)
        for side in ("context", "target"):
            assert same_weights(to_ijepa(tmp_path, encoder=side), to_ijepa(model, encoder=side))

    @pytest.mark.parametrize("convert", [to_ijepa, to_timm])
    def test_adapters_and_quantised_weights_are_refused(self, make_model, convert):
        quantised = make_model(SparseJEPAVisionModel)
        for layer in quantised.target_encoder.layers:
            layer.mlp.fc1.weight = torch.nn.Parameter(layer.mlp.fc1.weight.to(torch.int8), requires_grad=False)
        with pytest.raises(ValueError, match=r"is not plain: layers\.0\.mlp\.fc1\.weight"):
            convert(quantised)
        peft = pytest.importorskip("peft")
        adapters = peft.LoraConfig(target_modules=["q_proj"])
        head = make_model(SparseJEPAForImageClassification)
        peft.get_peft_model(head, peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["classifier"]))
        with pytest.raises(ValueError, match=r"is not plain: classifier\.bias, classifier\.modules_to_save"):
            convert(head)
        with pytest.raises(ValueError, match="merge adapters first"):
            convert(peft.inject_adapter_in_model(adapters, make_model(SparseJEPAVisionModel)))


@pytest.fixture(scope="module")
def vanilla(make_model, make_images, tmp_path_factory, run_stranger):
    """(encoder, classifier, inputs, folder of the encoder, report, tensors) of a process without the package."""
    work, own = tmp_path_factory.mktemp("vanilla"), tmp_path_factory.mktemp("own")
    model = make_model(SparseJEPAForPreTraining)
    classifier = make_model(
        SparseJEPAForImageClassification, id2label=LABELS, label2id={name: i for i, name in LABELS.items()}
    )
    for name, saved in {"encoder": model, "classifier": classifier}.items():
        saved.save_pretrained(own / name)
        image_processor((32, 32), MEAN, STD).save_pretrained(own / name)
        export_encoder(own / name, work / name)
    pixels = make_images()
    torch.save(pixels, work / "pixels.pt")
    image = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    Image.fromarray(image).save(work / "image.png")
    run_stranger(VANILLA, work / "encoder", work / "classifier", work, work=work)
    report = json.loads((work / "report.json").read_text())
    return model, classifier, pixels, work, report, torch.load(work / "tensors.pt")


class TestExportEncoder:
    def test_vanilla_transformers_computes_the_same(self, vanilla):
        model, classifier, pixels, _, report, tensors = vanilla
        assert not report["package"]
        for name, expected in {
            "features": features(model, pixels),
            "logits": features(classifier, pixels),
            "of the classifier": features(classifier.sparsejepa, pixels),
        }.items():
            torch.testing.assert_close(tensors[name], expected, atol=1e-5, rtol=0)

    def test_pipelines_see_the_pixels_that_evaluation_sees(self, vanilla):
        """Of a square image to within rounding: two programs resize."""
        model, classifier, _, work, report, tensors = vanilla
        pixels = tensors["processed"]
        own = image_processor((32, 32), MEAN, STD)(Image.open(work / "image.png"), return_tensors="pt").pixel_values
        torch.testing.assert_close(pixels, own, atol=1.5 / 255 / min(STD), rtol=0)
        torch.testing.assert_close(tensors["piped"], features(model, pixels), atol=1e-5, rtol=0)
        scores = features(classifier, pixels).softmax(dim=1)[0].tolist()
        expected = sorted(zip(scores, LABELS.values(), strict=True), reverse=True)
        assert [entry["label"] for entry in report["classes"]] == [name for _, name in expected]
        assert [entry["score"] for entry in report["classes"]] == pytest.approx([s for s, _ in expected], abs=1e-5)

    def test_the_folder_has_no_code_and_names_no_code(self, vanilla):
        work = vanilla[3]
        for name in ("encoder", "classifier"):
            files = {path.name for path in (work / name).iterdir()}
            assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= files
            assert not [file for file in files if file.endswith((".py", ".bin"))]
            for file in ("config.json", "preprocessor_config.json"):
                assert "auto_map" not in json.loads((work / name / file).read_text())

    def test_the_card_takes_over_what_was_measured_of_the_target_encoder(self, tmp_path):
        source = Path(__file__).parents[2] / "model_cards" / "sparsejepa-vit-micro-cifar100"
        told = ModelCard.load(source / "README.md").data
        target = ModelCard.load(export_encoder(source, tmp_path / "target") / "README.md").data
        assert target.license == told.license == "apache-2.0" and target.datasets == told.datasets
        assert [r.metric_value for r in target.eval_results] == [r.metric_value for r in told.eval_results]
        context = ModelCard.load(export_encoder(source, tmp_path / "context", encoder="context") / "README.md").data
        assert context.eval_results is None and context.pipeline_tag == "image-feature-extraction"

    def test_without_an_image_processor_it_says_so(self, encoder, tmp_path, hear_warnings):
        folder = export_encoder(encoder, tmp_path / "new" / "folder")
        assert "taken as 0.5" in hear_warnings.text
        assert json.loads((folder / "preprocessor_config.json").read_text())["image_mean"] == [0.5] * 3

    def test_the_exported_processor_computes_what_the_checkpoint_s_does(self, encoder, tmp_path):
        image = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
        for place, options in enumerate(
            ({"do_normalize": False}, {"rescale_factor": 1 / 127.5}, {"do_rescale": False})
        ):
            source = tmp_path / f"source{place}"
            encoder.save_pretrained(source)
            own = ViTImageProcessor(size={"height": 32, "width": 32}, **options)
            own.save_pretrained(source)
            exported = AutoImageProcessor.from_pretrained(export_encoder(source, tmp_path / f"plain{place}"))
            pixels = [processor(image, return_tensors="pt").pixel_values for processor in (own, exported)]
            torch.testing.assert_close(*pixels, atol=1e-4, rtol=1e-5)

    def test_a_damaged_image_processor_is_told(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path / "source")
        (tmp_path / "source" / "preprocessor_config.json").write_text("{")
        with pytest.raises(OSError, match="not a valid JSON"):
            export_encoder(tmp_path / "source", tmp_path / "plain")

    def test_an_image_processor_of_other_channels_is_refused(self, make_model, tmp_path):
        make_model(SparseJEPAVisionModel, num_channels=1).save_pretrained(tmp_path / "grey")
        image_processor((32, 32)).save_pretrained(tmp_path / "grey")
        with pytest.raises(ValueError, match="expected 1 numbers each"):
            export_encoder(tmp_path / "grey", tmp_path / "out")

    def test_a_checkpoint_is_not_overwritten_by_its_export(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path)
        for export in (export_encoder, to_timm):
            with pytest.raises(ValueError, match="is the checkpoint itself"):
                export(tmp_path, tmp_path / "." / "")
        assert same_weights(SparseJEPAVisionModel.from_pretrained(tmp_path), encoder)

    def test_a_checkpoint_that_lacks_weights_is_refused(self, encoder, tmp_path):
        encoder.save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        gone = next(name for name in weights if "fc1.bias" in name)
        save_file({name: weights[name] for name in weights if name != gone}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match="lacks .*fc1.bias"):
            export_encoder(tmp_path, tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestFromIJepa:
    def test_a_folder_a_model_and_an_own_folder_give_the_same(self, ijepa, pixel_values, tmp_path):
        ijepa.save_pretrained(tmp_path / "theirs")
        model = from_ijepa(tmp_path / "theirs")
        assert type(model) is SparseJEPAVisionModel and model.config.layer_norm_eps == 1e-5
        torch.testing.assert_close(features(model, pixel_values), features(ijepa, pixel_values), atol=1e-5, rtol=0)
        model.save_pretrained(tmp_path / "ours")
        assert same_weights(SparseJEPAVisionModel.from_pretrained(tmp_path / "ours"), model)
        assert same_weights(from_ijepa(ijepa), model)
        assert same_weights(to_ijepa(model), ijepa)

    def test_weights_in_several_files_are_read(self, ijepa, tmp_path):
        ijepa.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 2
        assert same_weights(from_ijepa(tmp_path), from_ijepa(ijepa))

    def test_a_classifier_keeps_its_head_and_labels(self, make_model, pixel_values):
        theirs = to_ijepa(make_model(SparseJEPAForImageClassification, id2label=LABELS))
        model = from_ijepa(theirs)
        assert type(model) is SparseJEPAForImageClassification and model.config.id2label == LABELS
        assert torch.equal(features(model, pixel_values), features(from_ijepa(theirs), pixel_values))
        torch.testing.assert_close(features(model, pixel_values), features(theirs, pixel_values), atol=1e-5, rtol=0)
        assert type(from_ijepa(theirs, allow=("classifier.*",))) is SparseJEPAVisionModel

    def test_pretraining_starts_with_the_encoder_on_both_sides(self, ijepa, pixel_values, masks):
        model = from_ijepa(ijepa, model_class=SparseJEPAForPreTraining, num_groups=16, num_latents=32)
        base = model.sparsejepa
        assert model.group_weight.shape[0] == 16 and model.group_weight.shape[2] == 32
        assert same_weights(base.context_encoder, base.target_encoder)
        torch.testing.assert_close(features(model, pixel_values), features(ijepa, pixel_values), atol=1e-5, rtol=0)
        assert model(pixel_values, **masks).loss.isfinite()
        assert from_ijepa(ijepa, model_class=SparseJEPAForPreTraining, use_grouping=False).group_weight is None

    def test_learned_positions_are_refused_with_their_distance(self, ijepa):
        with torch.no_grad():
            ijepa.embeddings.position_embeddings[0, 3, 5] += 4.6
        with pytest.raises(ValueError, match=r"embeddings\.position_embeddings is up to 4\.6 away from the sin-cos"):
            from_ijepa(ijepa)

    def test_positions_in_half_precision_are_sin_cos_too(self, ijepa):
        assert from_ijepa(ijepa.to(torch.bfloat16)).dtype is torch.bfloat16

    def test_positions_that_were_trained_a_little_are_refused(self, ijepa):
        with torch.no_grad():
            ijepa.embeddings.position_embeddings += 1e-3
        with pytest.raises(ValueError, match=r"up to 0\.001 away"):
            from_ijepa(ijepa)

    def test_every_difference_is_listed_and_can_be_allowed_by_name(self, make_ijepa, tmp_path):
        with_extras = make_ijepa(add_pooling_layer=True, use_mask_token=True)
        state = with_extras.state_dict()
        with_extras.save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        del weights["layernorm.bias"]
        name = next(name for name in weights if name.endswith("layernorm_after.bias"))
        weights[name] = torch.zeros(31)
        save_file(weights, tmp_path / "model.safetensors")
        extra = ("embeddings.mask_token", "pooler.dense.bias", "pooler.dense.weight")
        with pytest.raises(ValueError) as refusal:
            from_ijepa(tmp_path)
        assert (
            f"unknown: {', '.join(extra)}; missing: layernorm.bias; of another shape: {name} (31,), not (32,)"
            in str(refusal.value)
        )
        with pytest.raises(ValueError, match=r"ViT without a class token; missing: layernorm\.bias\. Expected"):
            from_ijepa(tmp_path, allow=("*.mask_token", "pooler.*", name))
        model = from_ijepa(tmp_path, allow=(*extra, "layernorm.bias", name))
        assert torch.equal(model.target_encoder.layernorm.bias, torch.zeros(32))
        assert torch.equal(model.target_encoder.layernorm.weight, state["layernorm.weight"])

    def test_bad_repositories_are_refused(self, ijepa, encoder, tmp_path):
        with pytest.raises(OSError):
            from_ijepa(tmp_path / "nowhere")
        ijepa.save_pretrained(tmp_path)
        weights = (tmp_path / "model.safetensors").read_bytes()
        (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
        with pytest.raises(ValueError, match="damaged or cut short"):
            from_ijepa(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        torch.save(ijepa.state_dict(), tmp_path / "pytorch_model.bin")
        with pytest.raises(ValueError, match="no weights as safetensors.*Pickled weights are not opened"):
            from_ijepa(tmp_path)
        with pytest.raises(ValueError, match="of type 'sparsejepa'; expected 'ijepa'"):
            from_ijepa(encoder)

    def test_overrides_are_checked_as_everywhere(self, ijepa):
        with pytest.raises(ValueError, match="Did you mean 'num_groups'"):
            from_ijepa(ijepa, model_class=SparseJEPAForPreTraining, num_group=4)


class TestOriginalCheckpoints:
    """Files of I-JEPA's code: an encoder has the names of timm, and everything that training needs lies beside it."""

    @pytest.fixture
    def original(self, make_model, tmp_path):
        """(model whose weights they are, path, the file's content)."""
        model = make_model(SparseJEPAForPreTraining, seed=5)
        content = {
            part: {f"module.{name}": tensor for name, tensor in to_timm(model, encoder=side).state_dict().items()}
            for part, side in {"encoder": "context", "target_encoder": "target"}.items()
        }
        positions = sincos_position_embeddings(32, (8, 8))[None]
        content = {part: {**state, "module.pos_embed": positions} for part, state in content.items()}
        optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))])
        rest = {"opt": optimizer.state_dict(), "scaler": None, "epoch": 3, "loss": 0.2, "lr": 1e-3}
        content |= {"predictor": {"module.predictor_embed.weight": torch.zeros(2)}, **rest}
        path = tmp_path / "jepa-latest.pth.tar"
        torch.save(content, path)
        return model, path, content

    def test_the_target_encoder_becomes_the_encoder(self, original, pixel_values):
        model, path, content = original
        converted = from_ijepa(path, num_attention_heads=4)
        assert type(converted) is SparseJEPAVisionModel
        assert same_weights(converted.target_encoder, model.sparsejepa.target_encoder)
        # timm's own ViT is the reference.
        reference = to_timm(model)
        state = {name.removeprefix("module."): tensor for name, tensor in content["target_encoder"].items()}
        reference.load_state_dict(state)
        with torch.no_grad():
            expected = reference.forward_features(pixel_values)
        torch.testing.assert_close(features(converted, pixel_values), expected, atol=1e-5, rtol=0)

    def test_pretraining_gets_both_encoders_and_is_told_of_the_predictor(self, original, hear_warnings):
        model, path, _ = original
        converted = from_ijepa(path, model_class=SparseJEPAForPreTraining, num_attention_heads=4)
        for side in ("context_encoder", "target_encoder"):
            assert same_weights(getattr(converted.sparsejepa, side), getattr(model.sparsejepa, side))
        assert "The predictor of the checkpoint is left out" in hear_warnings.text

    def test_one_encoder_alone_is_a_checkpoint_too(self, original, tmp_path):
        model, _, content = original
        for content_alone in (content["target_encoder"], {"target_encoder": content["target_encoder"]}):
            torch.save(content_alone, tmp_path / "alone.pth")
            converted = from_ijepa(tmp_path / "alone.pth", model_class=SparseJEPAModel, num_attention_heads=4)
            for side in (converted.context_encoder, converted.target_encoder):
                assert same_weights(side, model.sparsejepa.target_encoder)

    def test_heads_are_asked_for_where_the_width_does_not_tell_them(self, original):
        with pytest.raises(ValueError, match="32 wide.*pass num_attention_heads"):
            from_ijepa(original[1])

    def test_nothing_is_unpickled(self, tmp_path):
        path, trace = tmp_path / "bad.pth.tar", tmp_path / "trace"

        class Bad:
            def __reduce__(self):
                return (os.mkdir, (str(trace),))

        torch.save({"encoder": {}, "opt": Bad()}, path)
        with pytest.raises(ValueError, match=r"could not be read as tensors alone \(\w.*mkdir") as refusal:
            from_ijepa(path)
        assert "weights_only" not in str(refusal.value)
        assert not trace.exists()

    def test_files_of_something_else_are_refused(self, original, tmp_path):
        path = original[1]
        with pytest.raises(FileNotFoundError, match="no file 'nowhere.pth.tar'"):
            from_ijepa("nowhere.pth.tar")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match="could not be read as tensors alone"):
            from_ijepa(path)
        torch.save({"model": {}, "epoch": 1}, tmp_path / "other.pth")
        with pytest.raises(ValueError, match="holds model, epoch; expected 'encoder' or 'target_encoder'"):
            from_ijepa(tmp_path / "other.pth")
        torch.save({"weight": torch.zeros(3)}, tmp_path / "layer.pth")
        with pytest.raises(ValueError, match=r"patch_embed\.proj\.weight is missing"):
            from_ijepa(tmp_path / "layer.pth")


class TestOtherFamilies:
    def test_loading_across_families_refuses_and_names_the_converter(self, ijepa, tmp_path):
        """Instead of starting with random weights."""
        ijepa.save_pretrained(tmp_path)
        for model_class in (SparseJEPAVisionModel, SparseJEPAForPreTraining, SparseJEPAForImageClassification):
            with pytest.raises(ValueError, match="of type 'ijepa'; expected 'sparsejepa'.*from_ijepa") as refusal:
                model_class.from_pretrained(tmp_path)
            named = re.search(r"sparsejepa_hf\.\w+", str(refusal.value))[0]
            assert importlib.import_module(named).from_ijepa is from_ijepa
