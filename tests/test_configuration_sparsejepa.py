# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The configuration: presets, what it refuses and how it says so, and round trips through files."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, IJepaConfig

from sparsejepa_hf import PRESETS, SparseJEPAConfig, SparseJEPAForPreTraining


# Width, depth, heads and MLP width: of the published ViTs (ViT: arXiv 2010.11929, DeiT: arXiv 2012.12877), and of one
# that is small enough for a CPU.
VITS = {
    "vit-micro": (96, 3, 3, 384),
    "vit-tiny": (192, 12, 3, 768),
    "vit-small": (384, 12, 6, 1536),
    "vit-base": (768, 12, 12, 3072),
    "vit-large": (1024, 24, 16, 4096),
    "vit-huge": (1280, 32, 16, 5120),
}


class TestPresets:
    def test_every_preset_has_the_sizes_that_its_name_stands_for(self):
        assert set(PRESETS) == set(VITS)
        for name, shape in VITS.items():
            config = SparseJEPAConfig.from_preset(name)
            got = config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size
            assert got == shape, name

    @pytest.mark.parametrize("name", VITS)
    def test_every_preset_builds_and_its_encoder_has_the_parameters_of_that_vit(self, name):
        """Closed form: 12 D² + 13 D per layer (MLP ratio 4), the patch projection and the last LayerNorm."""
        config = SparseJEPAConfig.from_preset(name)
        with torch.device("meta"):
            model = SparseJEPAForPreTraining(config).sparsejepa
        width, patch_size = config.hidden_size, config.patch_size
        layers = config.num_hidden_layers * (12 * width**2 + 13 * width)
        expected = layers + (3 * patch_size**2 + 1) * width + 2 * width
        for encoder in (model.context_encoder, model.target_encoder):
            assert sum(parameter.numel() for parameter in encoder.parameters()) == expected

    def test_the_defaults_are_the_tiny_preset(self):
        assert SparseJEPAConfig().to_dict() == SparseJEPAConfig.from_preset("vit-tiny").to_dict()

    def test_overrides_win_over_a_preset_and_leave_the_preset_alone(self):
        before = json.dumps(PRESETS)
        config = SparseJEPAConfig.from_preset("vit-base", image_size=64, num_groups=4)
        assert (config.image_size, config.num_groups, config.hidden_size) == (64, 4, 768)
        assert json.dumps(PRESETS) == before
        assert SparseJEPAConfig.from_preset("vit-base").image_size == 224

    def test_an_unknown_preset_is_refused_with_those_there_are(self):
        with pytest.raises(ValueError, match=f"'vit-giant'.*{', '.join(VITS)}"):
            SparseJEPAConfig.from_preset("vit-giant")

    def test_overrides_of_a_preset_are_checked(self):
        with pytest.raises(ValueError, match="num_groups is 7.*192"):
            SparseJEPAConfig.from_preset("vit-tiny", num_groups=7)


REFUSED = [
    *(
        ({name: value}, [f"{name} is {value}", "at least 1"])
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "num_channels",
            "predictor_hidden_size",
            "predictor_num_hidden_layers",
            "predictor_num_attention_heads",
            "predictor_intermediate_size",
            "num_groups",
            "num_latents",
            "group_size",
            "generator_hidden_size",
        )
        for value in (0, -4)
    ),
    ({"image_size": 0}, ["image_size is 0", "at least 1 pixel"]),
    ({"patch_size": [4, 0]}, ["patch_size is [4, 0]", "at least 1 pixel"]),
    ({"image_size": [32, 32, 3]}, ["image_size is [32, 32, 3]", "[height, width]"]),
    ({"patch_size": [4]}, ["patch_size is [4]", "[height, width]"]),
    ({"image_size": 30}, ["image_size", "height of 30", "patch_size 4", "28"]),
    ({"image_size": [32, 30]}, ["image_size", "width of 30", "patch_size 4", "28"]),
    ({"patch_size": 64}, ["image_size", "32", "patch_size 64", "such as 64"]),
    ({"sparsity_weight": -0.1}, ["sparsity_weight is -0.1", "at least 0"]),
    ({"kl_weight": float("nan")}, ["kl_weight is nan", "finite"]),
    ({"sparsity_weight": float("inf")}, ["sparsity_weight is inf", "finite"]),
    ({"hidden_dropout_prob": 1.0}, ["hidden_dropout_prob is 1.0", "[0, 1)"]),
    ({"attention_probs_dropout_prob": -0.1}, ["attention_probs_dropout_prob is -0.1", "[0, 1)"]),
    ({"initializer_range": 0}, ["initializer_range is 0", "above 0"]),
    ({"patch_projection_scale": 0}, ["patch_projection_scale is 0", "above 0"]),
    ({"layer_norm_eps": -1e-6}, ["layer_norm_eps is -1e-06", "above 0"]),
    ({"predictor_type": "lstm"}, ["predictor_type is 'lstm'", "'transformer', 'mlp'"]),
    ({"loss_type": "l1"}, ["loss_type is 'l1'", "'smooth_l1', 'mse'"]),
    ({"target_normalization": "batch_norm"}, ["target_normalization is 'batch_norm'", "'layer_norm', 'none'"]),
    ({"sparsity_mode": "hard"}, ["sparsity_mode is 'hard'", "'proximal', 'penalty'"]),
    ({"hidden_act": "gellu"}, ["hidden_act is 'gellu'", "gelu"]),
    ({"variational": False, "kl_weight": 0.1}, ["kl_weight is 0.1", "variational is False", "variational=True"]),
    ({"hidden_size": 190}, ["hidden_size is 190", "num_attention_heads=3", "multiple of 3"]),
    ({"hidden_size": 198, "num_groups": 6}, ["hidden_size is 198", "multiple of 4"]),
    ({"predictor_hidden_size": 98}, ["predictor_hidden_size is 98", "predictor_num_attention_heads=3"]),
    ({"predictor_hidden_size": 90}, ["predictor_hidden_size is 90", "multiple of 4"]),
    ({"num_groups": 7}, ["num_groups is 7", "hidden_size=192", "6, 8]"]),
]


class TestRefusals:
    @pytest.mark.parametrize(("arguments", "sentences"), REFUSED, ids=lambda value: str(value)[:60])
    def test_an_impossible_value_is_refused_with_its_field_and_what_would_do(self, arguments, sentences):
        with pytest.raises(ValueError) as refusal:
            SparseJEPAConfig(**arguments)
        for sentence in sentences:
            assert sentence in str(refusal.value)

    @pytest.mark.parametrize("name", ["hidden_sise", "sparsity_wieght", "num_group", "predictor_hiden_size"])
    def test_a_misspelt_argument_is_refused_and_the_right_one_is_named(self, name):
        right = {"hidden_sise": "hidden_size", "sparsity_wieght": "sparsity_weight", "num_group": "num_groups"}
        expected = right.get(name, "predictor_hidden_size")
        with pytest.raises(ValueError, match=f"no argument '{name}'. Did you mean '{expected}'"):
            SparseJEPAConfig(**{name: 1})

    def test_an_argument_like_no_other_is_refused_without_a_guess(self):
        with pytest.raises(ValueError) as refusal:
            SparseJEPAConfig(zzqqxx=1)
        assert "zzqqxx" in str(refusal.value) and "Did you mean" not in str(refusal.value)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("hidden_size", np.int64(192)),
            ("hidden_size", 192.0),
            ("num_groups", "8"),
            ("kl_weight", "0.1"),
            ("image_size", "32"),
            ("variational", "yes"),
            ("loss_type", 1),
            ("image_size", [32.0, 32.0]),
        ],
    )
    def test_a_value_of_a_wrong_type_is_refused_with_its_field(self, name, value):
        with pytest.raises(Exception, match=name) as refusal:
            SparseJEPAConfig(**{name: value})
        assert "Strict" in type(refusal.value).__name__ or isinstance(refusal.value, (TypeError, ValueError))

    def test_whole_numbers_serve_where_a_float_is_expected(self):
        config = SparseJEPAConfig(sparsity_weight=1, kl_weight=0, hidden_dropout_prob=0)
        assert (config.sparsity_weight, config.kl_weight) == (1, 0)

    def test_what_transformers_itself_passes_is_taken(self):
        config = SparseJEPAConfig(num_labels=5, output_hidden_states=True, dtype="float32", architectures=["X"])
        assert config.num_labels == 5 and config.output_hidden_states


class TestDerived:
    @given(rows=st.integers(1, 20), columns=st.integers(1, 20), height=st.integers(1, 16), width=st.integers(1, 16))
    def test_the_grid_is_the_image_in_patches(self, rows, columns, height, width):
        config = SparseJEPAConfig(image_size=[rows * height, columns * width], patch_size=(height, width))
        assert config.grid_size == (rows, columns)
        assert config.num_patches == rows * columns

    def test_the_predictors_mlp_is_four_times_its_width_unless_given(self):
        assert SparseJEPAConfig(predictor_hidden_size=48).predictor_intermediate_size == 192
        assert SparseJEPAConfig(predictor_intermediate_size=77).predictor_intermediate_size == 77


class TestFiles:
    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"image_size": [48, 32], "patch_size": [8, 4], "sparsity_weight": 0.3, "sparsity_mode": "penalty"},
            {"use_grouping": False, "predictor_type": "mlp", "loss_type": "mse", "target_normalization": "none"},
            {"variational": False, "num_labels": 7, "kl_weight": 0, "predictor_intermediate_size": 100},
            {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}},
        ],
        ids=lambda value: ",".join(value) or "defaults",
    )
    def test_a_saved_configuration_comes_back_equal(self, arguments, tmp_path):
        config = SparseJEPAConfig(**arguments)
        config.save_pretrained(tmp_path)
        for loaded in (SparseJEPAConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
            assert type(loaded) is SparseJEPAConfig
            # What a loaded configuration knows in addition to its fields: where it came from, and where its code is.
            elsewhere = {"_name_or_path": None, "auto_map": None}
            assert {**loaded.to_dict(), **elsewhere} == {**config.to_dict(), **elsewhere}
            for name, value in arguments.items():
                assert getattr(loaded, name) == value

    def test_a_tuple_size_survives_a_file_as_the_same_grid(self, tmp_path):
        """JSON knows no tuples; what matters, the grid, comes back."""
        config = SparseJEPAConfig(image_size=(48, 32))
        config.save_pretrained(tmp_path)
        loaded = SparseJEPAConfig.from_pretrained(tmp_path)
        assert loaded.grid_size == config.grid_size == (12, 8)
        assert tuple(loaded.image_size) == config.image_size

    def test_every_field_is_written(self, tmp_path):
        """A class attribute without annotation would not be saved, and a loaded model would differ silently."""
        SparseJEPAConfig(sparsity_weight=0.25, num_latents=32, group_size=5).save_pretrained(tmp_path)
        written = json.loads((tmp_path / "config.json").read_text())
        assert written["model_type"] == "sparsejepa"
        assert (written["sparsity_weight"], written["num_latents"], written["group_size"]) == (0.25, 32, 5)
        assert {name.lstrip("_") for name in SparseJEPAConfig.__annotations__} - {"model_type"} <= set(written)

    def test_overrides_of_a_file_are_applied_and_checked(self, tmp_path):
        SparseJEPAConfig(sparsity_weight=0.1).save_pretrained(tmp_path)
        assert SparseJEPAConfig.from_pretrained(tmp_path, sparsity_weight=0.2).sparsity_weight == 0.2
        assert AutoConfig.from_pretrained(tmp_path, image_size=[64, 48]).grid_size == (16, 12)
        with pytest.raises(ValueError, match="num_groups is 5"):
            AutoConfig.from_pretrained(tmp_path, num_groups=5)
        plain = SparseJEPAConfig.from_pretrained(tmp_path, use_grouping=False)
        assert not plain.use_grouping and plain.sparsity_weight == 0

    def test_an_impossible_value_in_a_file_is_refused(self, tmp_path):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "sparsejepa", "hidden_size": 190}))
        with pytest.raises(ValueError, match="hidden_size is 190"):
            SparseJEPAConfig.from_pretrained(tmp_path)

    def test_what_a_file_holds_beyond_the_fields_is_kept(self, tmp_path):
        """A quantised model's configuration, and keys of a later version, also those that resemble a field."""
        others = {
            "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
            "hidden_sizes": [1, 2],
            "layer_norm_epsilon": 1e-5,
            "zz_of_the_future": 1,
        }
        written = {**SparseJEPAConfig(num_latents=32).to_dict(), **others}
        (tmp_path / "config.json").write_text(json.dumps(written))
        for load in (SparseJEPAConfig.from_pretrained, AutoConfig.from_pretrained):
            loaded = load(tmp_path, hidden_sizes=[3])
            assert loaded.num_latents == 32 and loaded.zz_of_the_future == 1 and loaded.hidden_sizes == [3]
            loaded.hidden_sizes = [1, 2]
            again = SparseJEPAConfig.from_dict(loaded.to_dict()).to_dict()
            assert again == loaded.to_dict() and again.items() >= others.items()

    def test_a_misspelt_override_of_a_file_is_refused(self, tmp_path):
        SparseJEPAConfig().save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="'sparsity_wieght'. Did you mean 'sparsity_weight'"):
            SparseJEPAConfig.from_pretrained(tmp_path, sparsity_wieght=0.1)

    def test_another_family_is_refused_with_the_converter(self, tmp_path):
        IJepaConfig().save_pretrained(tmp_path)
        for load in (SparseJEPAConfig.from_pretrained, SparseJEPAForPreTraining.from_pretrained):
            with pytest.raises(ValueError, match="'ijepa'; expected 'sparsejepa'.*sparsejepa_hf.conversion"):
                load(tmp_path)

    def test_feature_maps_are_chosen_by_name_or_number(self, tmp_path):
        config = SparseJEPAConfig(num_hidden_layers=3, out_indices=[1, 3])
        assert config.out_features == ["stage1", "stage3"]
        config.save_pretrained(tmp_path)
        assert AutoConfig.from_pretrained(tmp_path).out_indices == [1, 3]
        assert AutoConfig.from_pretrained(tmp_path, out_features=["stem"]).out_indices == [0]
        with pytest.raises(ValueError, match="stage4"):
            SparseJEPAConfig(num_hidden_layers=3, out_features=["stage4"])


@pytest.mark.parametrize(
    "given", [{"latent_position": "encoder"}, {"latent_residual": True}, {"sparsity_weight": 0.1}, {"kl_weight": 0.1}]
)
def test_without_grouping_what_belongs_to_it_is_off(given):
    """So that use_grouping=False alone makes the I-JEPA baseline of any configuration."""
    plain = SparseJEPAConfig(use_grouping=False).to_dict()
    assert SparseJEPAConfig(use_grouping=False, **given).to_dict() == plain
    assert SparseJEPAConfig(**given).to_dict().items() >= given.items()
