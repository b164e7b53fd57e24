# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The model: closed forms, equivalences with plain references, invariances, gradients, and checkpoints."""

import copy
import io
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.distributions import Normal
from torch.distributions import kl_divergence as torch_kl_divergence
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    IJepaConfig,
    IJepaModel,
    ViTImageProcessor,
    pipeline,
)

from sparsejepa_hf import (
    SparseJEPABackbone,
    SparseJEPAConfig,
    SparseJEPAForImageClassification,
    SparseJEPAForPreTraining,
    SparseJEPAModel,
    SparseJEPAVisionModel,
    modeling_sparsejepa,
)
from sparsejepa_hf.configuration_sparsejepa import AUTO_MAP
from sparsejepa_hf.modeling_sparsejepa import (
    SparseJEPAGrouping,
    SparseJEPAPatchEmbeddings,
    group_lasso,
    kl_divergence,
    sincos_position_embeddings,
)


def _close(actual: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def _noise(config: SparseJEPAConfig, target_mask: Tensor, seed: int = 9) -> Tensor:
    return torch.randn(*target_mask.shape, config.num_latents, generator=torch.Generator().manual_seed(seed))


def _reference_layer(layer: nn.Module, tokens: Tensor, num_heads: int, allowed: Tensor | None = None) -> Tensor:
    """A pre-norm transformer layer written out; `allowed` (L, L) says which row may look at which column."""
    attention, normed = layer.attention, layer.layernorm_before(tokens)
    query, key, value = (
        projection(normed).unflatten(-1, (num_heads, -1)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    if allowed is not None:
        scores = scores.masked_fill(~allowed, -torch.inf)
    tokens = tokens + attention.o_proj((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
    mlp = layer.mlp
    return tokens + mlp.fc2(F.gelu(mlp.fc1(layer.layernorm_after(tokens))))


class TestGroupLasso:
    @given(groups=st.integers(1, 5), size=st.integers(1, 5), latents=st.integers(1, 7), seed=st.integers(0, 999))
    def test_it_is_the_sum_of_the_columns_norms(self, groups, size, latents, seed):
        weight = torch.randn(groups, size, latents, generator=torch.Generator().manual_seed(seed))
        expected = sum(
            math.sqrt(sum(weight[g, i, j].item() ** 2 for i in range(size)))
            for g in range(groups)
            for j in range(latents)
        )
        assert group_lasso(weight).item() == pytest.approx(expected, rel=1e-5)

    def test_it_scales_with_its_argument_and_sums_columns_not_rows(self):
        weight = torch.zeros(1, 2, 2)
        weight[0, :, 0] = torch.tensor([3.0, 4.0])
        assert group_lasso(weight).item() == 5
        assert group_lasso(weight.transpose(1, 2)).item() == 7
        assert group_lasso(-2 * weight).item() == 10

    def test_the_gradient_is_a_unit_vector_per_column_and_zero_at_a_zero_column(self):
        weight = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
        weight[1, :, 2] = 0
        weight.requires_grad_(True)
        group_lasso(weight).backward()
        expected = F.normalize(weight.detach(), dim=1)
        _close(weight.grad, expected)
        norms = weight.grad.norm(dim=1)
        assert norms[1, 2] == 0
        norms[1, 2] = 1
        _close(norms, torch.ones_like(norms))


class TestKLDivergence:
    @given(seed=st.integers(0, 999), scale=st.floats(0.01, 3))
    def test_it_is_torchs_kl_summed_over_latents_and_averaged_over_tokens(self, seed, scale):
        generator = torch.Generator().manual_seed(seed)
        mean, log_variance = (scale * torch.randn(2, 3, 4, 6, generator=generator) for _ in range(2))
        posterior = Normal(mean, (0.5 * log_variance).exp())
        expected = torch_kl_divergence(posterior, Normal(0.0, 1.0)).sum(-1).mean()
        torch.testing.assert_close(kl_divergence(mean, log_variance), expected, rtol=1e-4, atol=1e-5)

    def test_it_is_zero_at_the_prior_and_positive_elsewhere(self):
        zeros = torch.zeros(3, 5)
        assert kl_divergence(zeros, zeros) == 0
        for mean, log_variance in ((zeros + 0.1, zeros), (zeros, zeros + 0.1), (zeros, zeros - 0.1)):
            assert kl_divergence(mean, log_variance) > 0


class TestPositions:
    def test_known_values_on_a_small_grid(self):
        """Width 4: one frequency, 1. A patch at (row, column) is [sin c, cos c, sin r, cos r]."""
        positions = sincos_position_embeddings(4, (2, 3))
        expected = [
            [math.sin(c), math.cos(c), math.sin(r), math.cos(r)] for r in range(2) for c in range(3)
        ]  # row-major
        _close(positions, torch.tensor(expected), 1e-6)

    @given(rows=st.integers(1, 12), columns=st.integers(1, 12), quarter=st.integers(1, 16))
    def test_they_are_those_of_mae(self, rows, columns, quarter):
        """Written out as in MAE's and I-JEPA's get_2d_sincos_pos_embed, which put the column's half first."""

        def one_dimension(coordinates: np.ndarray) -> np.ndarray:
            omega = 1.0 / 10000 ** (np.arange(quarter) / quarter)
            angles = np.outer(coordinates.reshape(-1), omega)
            return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

        column, row = np.meshgrid(np.arange(columns), np.arange(rows))
        expected = np.concatenate([one_dimension(column), one_dimension(row)], axis=1)
        _close(sincos_position_embeddings(4 * quarter, (rows, columns)), torch.from_numpy(expected).float(), 1e-6)

    @given(rows=st.integers(1, 10), columns=st.integers(1, 10), factor=st.sampled_from([1, 3, 5]))
    def test_a_refined_grid_agrees_with_the_trained_one_at_the_centres_that_they_share(self, rows, columns, factor):
        """Splitting a patch into 3x3 leaves its centre where it was; factor 1 is the trained grid itself."""
        trained = sincos_position_embeddings(16, (rows, columns)).view(rows, columns, 16)
        fine = sincos_position_embeddings(16, (factor * rows, factor * columns), (rows, columns))
        fine = fine.view(factor * rows, factor * columns, 16)
        _close(fine[factor // 2 :: factor, factor // 2 :: factor], trained, 1e-6)

    def test_a_doubled_grid_lies_a_quarter_patch_around_the_trained_centres(self):
        positions = sincos_position_embeddings(4, (2, 6), (1, 3)).view(2, 6, 4)
        columns = torch.tensor([-0.25, 0.25, 0.75, 1.25, 1.75, 2.25])
        rows = torch.tensor([-0.25, 0.25])
        _close(positions[0, :, 0], columns.sin(), 1e-6)
        _close(positions[1, :, 1], columns.cos(), 1e-6)
        _close(positions[:, 4, 2], rows.sin(), 1e-6)

    def test_they_are_fixed_neither_trained_nor_saved(self, make_model):
        model = make_model(SparseJEPAForPreTraining)
        assert not any("position" in name for name, _ in model.named_parameters())
        assert not any("position" in name for name in model.state_dict())


class TestEmbeddings:
    @pytest.mark.parametrize(
        ("image_size", "patch_size", "channels"), [(32, 4, 3), ([16, 24], [4, 8], 2), ([12, 20], 4, 1)], ids=str
    )
    def test_the_matrix_product_is_the_strided_convolution(self, make_config, image_size, patch_size, channels):
        config = make_config(image_size=image_size, patch_size=patch_size, num_channels=channels)
        embeddings = SparseJEPAPatchEmbeddings(config)
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        images = torch.randn(2, channels, height, width)
        expected = embeddings.projection(images).flatten(2).transpose(1, 2)
        _close(embeddings(images), expected)
        assert embeddings(images).shape[1] == config.num_patches

    @pytest.mark.parametrize("images", ["noise", "photographs"])
    def test_content_and_position_start_at_like_scale(self, images, request):
        """With content five times weaker than position, JEPA learns to predict positions, and its loss looks fine."""
        torch.manual_seed(0)
        config = SparseJEPAConfig.from_preset("vit-tiny", num_hidden_layers=1, predictor_num_hidden_layers=1)
        embeddings = SparseJEPAForPreTraining(config).sparsejepa.context_encoder.embeddings
        if images == "noise":
            pixels = torch.randn(16, 3, 32, 32)
        else:
            pixels = _photographs(request.getfixturevalue("data_dir"))
        content = embeddings.patch_embeddings(pixels).square().mean().sqrt().item()
        position = embeddings.position_embeddings.square().mean().sqrt().item()
        assert position == pytest.approx(math.sqrt(0.5), rel=1e-4)
        assert 0.5 < content / position < 2


def _photographs(data_dir) -> Tensor:
    """64 CIFAR images, normalised per channel."""
    from datasets import load_dataset

    files = sorted(str(path) for path in (data_dir / "cifar100").glob("test*.parquet"))
    if not files:
        pytest.skip("no CIFAR-100 among the real data")
    rows = load_dataset("parquet", data_files=files, split="train", streaming=True).take(64)
    arrays = []
    for row in rows:
        image = next(value for value in row.values() if not isinstance(value, (int, str)))
        if isinstance(image, dict):
            image = Image.open(io.BytesIO(image["bytes"]))
        arrays.append(np.asarray(image.convert("RGB")))
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float()
    return (pixels - pixels.mean((0, 2, 3), keepdim=True)) / pixels.std((0, 2, 3), keepdim=True)


class TestInitialisation:
    """A spread is judged within 10 %: transformers skips custom modules in silence, and torch's defaults then stay."""

    @pytest.fixture
    def fresh(self) -> SparseJEPAForPreTraining:
        torch.manual_seed(0)
        config = SparseJEPAConfig.from_preset("vit-tiny", num_hidden_layers=1, predictor_num_hidden_layers=1)
        return SparseJEPAForPreTraining(config)

    def test_the_patch_projection_is_xavier_uniform_over_a_flattened_patch(self, fresh):
        projection = fresh.sparsejepa.context_encoder.embeddings.patch_embeddings.projection
        bound = math.sqrt(6 / (3 * 4 * 4 + 192))
        assert projection.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
        assert projection.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert projection.bias.count_nonzero() == 0

    @pytest.mark.parametrize("initializer_range", [0.005, 0.05])
    def test_linear_weights_have_the_spread_that_the_configuration_says(self, make_config, initializer_range):
        model = SparseJEPAForPreTraining(make_config(initializer_range=initializer_range)).sparsejepa
        for layer in (model.context_encoder.layers[0], model.predictor.trunk.layers[0]):
            for linear in (layer.attention.q_proj, layer.attention.o_proj, layer.mlp.fc1, layer.mlp.fc2):
                assert linear.weight.std().item() == pytest.approx(initializer_range, rel=0.15)
                assert linear.bias.count_nonzero() == 0
        projection = model.context_encoder.embeddings.patch_embeddings.projection.weight
        assert projection.std().item() == pytest.approx(math.sqrt(2 / (48 + 32)), rel=0.1)

    def test_every_latent_starts_in_one_group_with_group_inputs_at_the_latents_scale(self, fresh):
        """K/G latents a group; u_g = W⁽ᵍ⁾z has the variance of z; σ = e⁻¹."""
        grouping = fresh.sparsejepa.predictor.grouping
        held = grouping.group_weight.norm(dim=1) > 0
        assert held.sum(0).tolist() == [1] * 64 and held.sum(1).tolist() == [64 // 8] * 8
        inputs = torch.einsum("gpk,nk->ngp", grouping.group_weight, torch.randn(500, 64))
        assert inputs.std().item() == pytest.approx(1, rel=0.1)
        log_variance = grouping.latent_log_variance(torch.randn(5, 96))
        assert torch.equal((0.5 * log_variance).exp(), torch.full((5, 64), math.exp(-1)))
        assert grouping.generator_in_bias.count_nonzero() == grouping.generator_out_bias.count_nonzero() == 0

    def test_what_a_checkpoint_lacks_is_initialised_and_not_left_as_it_lay_in_memory(self, make_config, tmp_path):
        """An encoder's checkpoint into a pre-training model: loading begins with empty memory."""
        SparseJEPAVisionModel(make_config()).save_pretrained(tmp_path)
        torch.manual_seed(0)
        model = SparseJEPAForPreTraining.from_pretrained(tmp_path)
        fresh = dict(SparseJEPAForPreTraining(make_config()).named_parameters())
        for name, parameter in model.named_parameters():
            expected = fresh[name].square().mean().sqrt().item()
            assert parameter.square().mean().sqrt().item() == pytest.approx(expected, rel=0.35, abs=1e-6), name


class TestEncoder:
    def test_it_is_transformers_ijepa_with_the_same_weights(self, make_model, pixel_values):
        model = make_model(SparseJEPAVisionModel)
        config = model.config
        reference = IJepaModel(
            IJepaConfig(
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                intermediate_size=config.intermediate_size,
                image_size=config.image_size,
                patch_size=config.patch_size,
                layer_norm_eps=config.layer_norm_eps,
            ),
            add_pooling_layer=False,
        ).eval()
        weights = dict(model.target_encoder.state_dict())
        weights["embeddings.position_embeddings"] = model.target_encoder.embeddings.position_embeddings[None]
        # `strict`: the key map is the identity, so converting a checkpoint of either is a rename of nothing.
        missing, unexpected = reference.load_state_dict(weights, strict=False)
        assert not unexpected and all("mask_token" in name for name in missing)
        _close(model(pixel_values).last_hidden_state, reference(pixel_values).last_hidden_state)

    def test_it_is_a_pre_norm_transformer_on_the_kept_tokens(self, make_model, pixel_values, masks):
        """Token dropping = adding positions on the full grid, keeping a subset, then a plain transformer."""
        encoder = make_model(SparseJEPAModel).context_encoder
        index = masks["context_mask"]
        tokens = torch.take_along_dim(encoder.embeddings(pixel_values), index[..., None], dim=1)
        for layer in encoder.layers:
            tokens = _reference_layer(layer, tokens, num_heads=4)
        _close(encoder(pixel_values, index), encoder.layernorm(tokens))

    @pytest.mark.parametrize("model_class", [SparseJEPAModel, SparseJEPAForPreTraining])
    def test_context_features_do_not_depend_on_dropped_pixels(self, make_model, pixel_values, masks, model_class):
        """Bit for bit: masking a full encoding's outputs instead would leak the targets."""
        model = make_model(model_class)
        encoder = getattr(model, "sparsejepa", model).context_encoder
        dropped = torch.ones(2, 64).scatter_(1, masks["context_mask"], 0.0)
        dropped = dropped.view(2, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
        wild = torch.where(dropped.bool(), 1e4 * torch.randn(2, 3, 32, 32), pixel_values)
        here, there = model(pixel_values, **masks), model(wild, **masks)
        assert torch.equal(here.predictor_output.last_hidden_state, there.predictor_output.last_hidden_state)
        assert torch.equal(encoder(pixel_values, masks["context_mask"]), encoder(wild, masks["context_mask"]))
        assert not torch.allclose(here.target_hidden_state, there.target_hidden_state)

    def test_a_context_of_all_patches_is_the_full_encoding(self, make_model, pixel_values):
        encoder = make_model(SparseJEPAModel).context_encoder
        everything = torch.arange(64).expand(2, -1)
        _close(encoder(pixel_values, everything), encoder(pixel_values))

    def test_permuting_the_context_permutes_its_features(self, make_model, pixel_values, masks):
        """A token knows its place by its position, not by its index in the sequence."""
        encoder = make_model(SparseJEPAModel).context_encoder
        index = masks["context_mask"]
        order = torch.randperm(index.shape[1])
        _close(encoder(pixel_values, index[:, order]), encoder(pixel_values, index)[:, order])

    def test_positions_tell_equal_patches_apart(self, make_model):
        encoder = make_model(SparseJEPAModel).context_encoder
        features = encoder(torch.zeros(1, 3, 32, 32))[0]
        assert torch.cdist(features, features).fill_diagonal_(torch.inf).min() > 1e-2

    def test_every_sample_has_a_mask_of_its_own(self, make_model, pixel_values, masks):
        model = make_model(SparseJEPAModel)
        batch = model(pixel_values, **masks)
        for row in range(2):
            alone = model(pixel_values[row, None], **{name: mask[row, None] for name, mask in masks.items()})
            _close(batch.context_hidden_state[row], alone.context_hidden_state[0])
            _close(batch.target_hidden_state[row], alone.target_hidden_state[0])
            _close(batch.predictor_output.last_hidden_state[row], alone.predictor_output.last_hidden_state[0])


class TestPredictor:
    @pytest.fixture
    def context(self, masks) -> Tensor:
        return torch.randn(*masks["context_mask"].shape, 32, generator=torch.Generator().manual_seed(5))

    @pytest.mark.parametrize("use_grouping", [True, False])
    def test_one_pass_over_all_blocks_is_one_pass_per_block(self, make_model, masks, context, use_grouping):
        """The reference runs [context, block m] through masked attention: context sees itself, the block sees all."""
        predictor = make_model(SparseJEPAModel, use_grouping=use_grouping).predictor
        trunk, positions = predictor.trunk, predictor.position_embeddings
        num_context, num_targets = context.shape[1], masks["target_mask"].shape[2]
        allowed = torch.ones(num_context + num_targets, num_context + num_targets, dtype=torch.bool)
        allowed[:num_context, num_context:] = False
        blocks = []
        for block in masks["target_mask"].unbind(1):
            visible = trunk.embed(context) + positions[masks["context_mask"]]
            tokens = torch.cat([visible, trunk.mask_token[0] + positions[block]], dim=1)
            for layer in trunk.layers:
                tokens = _reference_layer(layer, tokens, num_heads=3, allowed=allowed)
            tokens = trunk.layernorm(tokens[:, num_context:])
            blocks.append(predictor.grouping(tokens).last_hidden_state if use_grouping else predictor.head(tokens))
        got = predictor(context, masks["context_mask"], masks["target_mask"]).last_hidden_state
        _close(got, torch.stack(blocks, dim=1))

    @pytest.mark.parametrize("predictor_type", ["transformer", "mlp"])
    def test_a_block_is_predicted_without_looking_at_the_others(self, make_model, masks, context, predictor_type):
        predictor = make_model(SparseJEPAModel, predictor_type=predictor_type).predictor
        moved = masks["target_mask"].clone()
        moved[:, 2] = (moved[:, 2] + 17) % 64
        here = predictor(context, masks["context_mask"], masks["target_mask"]).last_hidden_state
        there = predictor(context, masks["context_mask"], moved).last_hidden_state
        others = [0, 1, 3]
        _close(here[:, others], there[:, others], 1e-6)
        assert (here[:, 2] - there[:, 2]).abs().amax(-1).min() > 1e-4, "a prediction does not depend on its position"

    def test_context_tokens_do_not_look_at_any_block(self, make_model, masks, context):
        predictor = make_model(SparseJEPAModel, predictor_num_hidden_layers=3).predictor
        seen: list[Tensor] = []
        for layer in predictor.trunk.layers[:-1]:
            layer.register_forward_hook(lambda module, args, output: seen.append(output[:, : context.shape[1]]))
        predictor(context, masks["context_mask"], masks["target_mask"])
        predictor(context, masks["context_mask"], (masks["target_mask"] + 5) % 64)
        _close(seen[0], seen[2], 1e-6)
        _close(seen[1], seen[3], 1e-6)
        assert len(seen) == 4

    def test_the_last_layer_computes_the_blocks_alone_and_they_are_those_of_the_whole_layer(self, make_model):
        layer = make_model(SparseJEPAModel).predictor.trunk.layers[-1]
        tokens = torch.randn(3, 10 + 4 * 5, 24, generator=torch.Generator().manual_seed(0))
        whole = layer(tokens, num_context=10, num_blocks=4)
        blocks = layer(tokens, num_context=10, num_blocks=4, blocks_only=True)
        assert whole.shape[1] == 30
        _close(blocks, whole[:, 10:], 1e-6)

    def test_permuting_the_context_or_the_blocks_changes_nothing_but_the_order(self, make_model, masks, context):
        predictor = make_model(SparseJEPAModel).predictor
        expected = predictor(context, masks["context_mask"], masks["target_mask"]).last_hidden_state
        order = torch.randperm(context.shape[1])
        shuffled = predictor(context[:, order], masks["context_mask"][:, order], masks["target_mask"])
        _close(shuffled.last_hidden_state, expected)
        blocks, tokens = torch.tensor([3, 0, 2, 1]), torch.randperm(masks["target_mask"].shape[2])
        reordered = masks["target_mask"][:, blocks][:, :, tokens]
        shuffled = predictor(context, masks["context_mask"], reordered)
        _close(shuffled.last_hidden_state, expected[:, blocks][:, :, tokens])

    def test_the_transformer_knows_where_the_context_lies_and_the_mlp_only_what_it_holds(
        self, make_model, masks, context
    ):
        elsewhere = (masks["context_mask"] + 3) % 64
        for predictor_type, same in (("transformer", False), ("mlp", True)):
            predictor = make_model(SparseJEPAModel, predictor_type=predictor_type).predictor
            here = predictor(context, masks["context_mask"], masks["target_mask"]).last_hidden_state
            there = predictor(context, elsewhere, masks["target_mask"]).last_hidden_state
            other = predictor(context + 1, masks["context_mask"], masks["target_mask"]).last_hidden_state
            assert torch.equal(here, there) == same
            assert not torch.allclose(here, other)

    def test_the_mlp_predictor_is_pooled_context_plus_position_through_residual_mlps(self, make_model, masks, context):
        predictor = make_model(SparseJEPAModel, predictor_type="mlp").predictor
        trunk = predictor.trunk
        tokens = trunk.embed(context).mean(1)[:, None, None] + predictor.position_embeddings[masks["target_mask"]]
        for norm, layer in zip(trunk.norms, trunk.layers, strict=True):
            tokens = tokens + layer.fc2(F.gelu(layer.fc1(norm(tokens))))
        expected = predictor.grouping(trunk.layernorm(tokens)).last_hidden_state
        _close(predictor(context, masks["context_mask"], masks["target_mask"]).last_hidden_state, expected)


class TestGrouping:
    @pytest.fixture
    def grouping(self, make_model) -> SparseJEPAGrouping:
        return make_model(SparseJEPAModel).predictor.grouping

    @pytest.fixture
    def inputs(self) -> Tensor:
        return torch.randn(2, 4, 9, 24, generator=torch.Generator().manual_seed(3))

    def test_the_batched_product_is_one_mlp_per_group(self, grouping, inputs):
        latents = grouping.latent_mean(inputs)
        slices, activations = [], []
        for g in range(4):
            activation = latents @ grouping.group_weight[g].T
            hidden = F.gelu(activation @ grouping.generator_in_weight[g] + grouping.generator_in_bias[g])
            slices.append(hidden @ grouping.generator_out_weight[g] + grouping.generator_out_bias[g])
            activations.append(activation)
        output = grouping(inputs, output_group_activations=True)
        _close(output.last_hidden_state, torch.cat(slices, dim=-1))
        _close(output.group_activations, torch.stack(activations, dim=-2))
        assert torch.equal(output.latent_mean, latents)
        assert grouping(inputs).group_activations is None

    def test_a_latent_that_left_every_group_has_no_hold_on_the_prediction(self, grouping, inputs):
        """Column j of every W⁽ᵍ⁾ zero: the prediction is the same whatever latent j is; of one W⁽ᵍ⁾: slice g is."""

        def predict() -> Tensor:
            return grouping(inputs).last_hidden_state

        def shifted(latent: int) -> Tensor:
            with torch.no_grad():
                grouping.latent_mean.bias[latent] += 3
                output = predict()
                grouping.latent_mean.bias[latent] -= 3
            return output

        with torch.no_grad():
            grouping.group_weight[:, :, 2] = 0
            grouping.group_weight[1, :, 4] = 0
        here = predict()
        _close(shifted(2), here, 1e-5)
        change = (shifted(4) - here).unflatten(-1, (4, 8)).abs().amax((0, 1, 2, 4))
        assert change[1] < 1e-5 and change[[0, 2, 3]].min() > 1e-3

    def test_a_group_without_latents_generates_a_constant(self, grouping, inputs):
        with torch.no_grad():
            grouping.group_weight[2] = 0
        slices = grouping(inputs).last_hidden_state.unflatten(-1, (4, 8)).flatten(0, 2)
        spread = slices.std(0).amax(-1)
        assert spread[2] < 1e-6 and spread[[0, 1, 3]].min() > 1e-3

    @pytest.mark.parametrize(
        "name",
        ["group_weight", "generator_in_weight", "generator_in_bias", "generator_out_weight", "generator_out_bias"],
    )
    def test_a_groups_parameters_reach_its_own_slice_only(self, grouping, inputs, name):
        """Slice g of the embedding is channels g·D/G … (g+1)·D/G − 1, and only group g's parameters are in it."""
        prediction = grouping(inputs).last_hidden_state.unflatten(-1, (4, 8))
        for g in range(4):
            (gradient,) = torch.autograd.grad(prediction[..., g, :].sum(), getattr(grouping, name), retain_graph=True)
            sizes = gradient.abs().flatten(1).sum(1)
            assert sizes[g] > 0 and sizes[torch.arange(4) != g].max() == 0

    def test_evaluation_uses_the_mean_and_training_the_given_noise(self, grouping, inputs):
        """z = μ in evaluation; in training z = μ + σ⊙ε, checked through a grouping whose μ is that z."""
        noise = torch.randn(2, 4, 9, 6, generator=torch.Generator().manual_seed(4))
        in_evaluation = grouping(inputs, latent_noise=noise).last_hidden_state
        assert torch.equal(in_evaluation, grouping(inputs).last_hidden_state)
        grouping.train()
        first, second = (grouping(inputs, latent_noise=noise) for _ in range(2))
        assert torch.equal(first.last_hidden_state, second.last_hidden_state)
        without = grouping(inputs, latent_noise=torch.zeros_like(noise))
        _close(without.last_hidden_state, in_evaluation, 1e-6)
        latents = first.latent_mean + (0.5 * first.latent_log_variance).exp() * noise
        replayed = copy.deepcopy(grouping).eval()
        replayed.latent_mean = nn.Identity()
        _close(first.last_hidden_state, replayed_on(replayed, latents), 1e-5)

    def test_noise_is_drawn_anew_in_every_training_pass(self, grouping, inputs):
        grouping.train()
        torch.manual_seed(0)
        first, second = grouping(inputs).last_hidden_state, grouping(inputs).last_hidden_state
        torch.manual_seed(0)
        assert torch.equal(grouping(inputs).last_hidden_state, first)
        assert not torch.allclose(first, second)

    def test_without_variational_latents_there_is_no_noise_and_no_variance(self, make_model, inputs):
        grouping = make_model(SparseJEPAModel, variational=False).predictor.grouping
        expected = grouping(inputs)
        assert expected.latent_log_variance is None and grouping.latent_log_variance is None
        output = grouping.train()(inputs, latent_noise=torch.randn(2, 4, 9, 6))
        assert torch.equal(output.last_hidden_state, expected.last_hidden_state)

    def test_without_grouping_a_linear_map_ends_the_predictor(self, make_model, inputs):
        predictor = make_model(SparseJEPAModel, use_grouping=False).predictor
        assert predictor.grouping is None
        head = predictor.head
        assert [tuple(p.shape) for p in head.parameters()] == [(32, 24), (32,)]
        _close(head(inputs), inputs @ head.projection.weight.T + head.projection.bias)

    def test_the_group_weight_is_the_groupings_parameter_and_none_for_ijepa(self, make_model):
        model = make_model(SparseJEPAForPreTraining)
        assert model.group_weight is model.sparsejepa.predictor.grouping.group_weight
        assert model.group_weight.shape == (4, 3, 6)
        assert make_model(SparseJEPAForPreTraining, use_grouping=False).group_weight is None


def replayed_on(grouping: SparseJEPAGrouping, latents: Tensor) -> Tensor:
    """The prediction of a grouping whose μ is `latents`."""
    grouping.latent_log_variance = None
    return grouping(latents).last_hidden_state


class TestLatentPosition:
    """Where the latents sit, the path around them, and the latents of a whole image."""

    @staticmethod
    def _silence(model: SparseJEPAModel) -> None:
        """Groups that generate nothing."""
        with torch.no_grad():
            model.predictor.grouping.generator_out_weight.zero_()
            model.predictor.grouping.generator_out_bias.zero_()

    @pytest.mark.parametrize("position", ["predictor", "encoder"])
    def test_with_silent_groups_the_residual_path_is_plain_ijepa(self, make_model, pixel_values, masks, position):
        model = make_model(SparseJEPAModel, latent_position=position, latent_residual=True)
        self._silence(model)
        ijepa = make_model(SparseJEPAModel, use_grouping=False)
        for name in ("context_encoder", "target_encoder", "predictor.trunk"):
            ijepa.get_submodule(name).load_state_dict(model.get_submodule(name).state_dict())
        ijepa.predictor.head.load_state_dict(model.predictor.head.state_dict())
        found, expected = (m(pixel_values, **masks).predictor_output.last_hidden_state for m in (model, ijepa))
        _close(found, expected)

    def test_in_front_of_the_predictor_the_groups_generate_what_it_sees(self, make_model, pixel_values, masks):
        model = make_model(SparseJEPAModel, latent_position="encoder")
        output = model(pixel_values, **masks).predictor_output
        context = model.context_encoder(pixel_values, masks["context_mask"])
        grouped = model.predictor.grouping(context)
        assert output.latent_mean.shape[:2] == masks["context_mask"].shape
        _close(output.latent_mean, grouped.latent_mean)
        positions = model.predictor.position_embeddings
        tokens = model.predictor.trunk(grouped.last_hidden_state, *masks.values(), positions)
        _close(output.last_hidden_state, model.predictor.head(tokens))

    @pytest.mark.parametrize("position", ["predictor", "encoder"])
    @pytest.mark.parametrize("residual", [False, True])
    def test_every_trainable_parameter_gets_a_gradient(self, make_model, pixel_values, masks, position, residual):
        model = make_model(SparseJEPAForPreTraining, latent_position=position, latent_residual=residual, kl_weight=0.1)
        model.train()(pixel_values, **masks).loss.backward()
        without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert without == []

    @pytest.mark.parametrize("size", [(32, 32), (20, 28)])
    def test_a_quadrants_latents_are_predicted_from_the_other_three(self, make_model, make_images, size):
        images = make_images(size=size)
        model = make_model(SparseJEPAModel, image_size=list(size))
        rows, columns = size[0] // 4, size[1] // 4
        index = torch.arange(rows * columns).view(rows, columns)
        mean, activations = model.encode_latents(images)
        for vertical in (slice(0, rows // 2), slice(rows // 2, rows)):
            for horizontal in (slice(0, columns // 2), slice(columns // 2, columns)):
                target = index[vertical, horizontal].flatten()
                context = torch.tensor([i for i in range(rows * columns) if i not in target.tolist()])
                output = model(
                    images, context.expand(2, -1), target.expand(2, 1, -1), output_group_activations=True
                ).predictor_output
                _close(mean[:, target], output.latent_mean[:, 0])
                _close(activations[:, target], output.group_activations[:, 0])

    def test_a_quadrants_latents_do_not_see_its_own_pixels(self, make_model, pixel_values):
        model = make_model(SparseJEPAModel)
        changed = pixel_values.clone()
        changed[:, :, :16, 16:] += 1
        same = (model.encode_latents(pixel_values)[0] == model.encode_latents(changed)[0]).all(-1).view(2, 8, 8)
        assert same[:, :4, 4:].all()
        assert not same[:, 4:].any() and not same[:, :4, :4].any()

    def test_latents_in_front_of_the_predictor_are_read_off_the_target_encoder(self, make_model, pixel_values):
        model = make_model(SparseJEPAModel, latent_position="encoder")
        mean, activations = model.encode_latents(pixel_values)
        _close(mean, model.predictor.grouping.latent_mean(model(pixel_values).last_hidden_state))
        _close(activations, torch.einsum("gpk,bnk->bngp", model.predictor.grouping.group_weight, mean))

    @pytest.mark.parametrize("position", ["predictor", "encoder"])
    def test_a_model_in_training_mode_gives_the_same_latents(self, make_model, pixel_values, position):
        model = make_model(SparseJEPAModel, latent_position=position)
        expected = model.encode_latents(pixel_values)
        for found, wanted in zip(model.train().encode_latents(pixel_values), expected, strict=True):
            _close(found, wanted)

    def test_models_without_latents_or_quadrants_are_refused(self, make_model, pixel_values, make_images):
        with pytest.raises(ValueError, match="use_grouping=False"):
            make_model(SparseJEPAModel, use_grouping=False).encode_latents(pixel_values)
        with pytest.raises(ValueError, match="at least 2x2"):
            make_model(SparseJEPAModel, image_size=[4, 32]).encode_latents(make_images(size=(4, 32)))


class TestLoss:
    @pytest.mark.parametrize("loss_type", ["smooth_l1", "mse"])
    @pytest.mark.parametrize("mode", ["proximal", "penalty"])
    def test_it_is_the_sum_of_its_weighted_parts(self, make_model, pixel_values, masks, loss_type, mode):
        """L = L_pred + β·KL, plus λ·Ω in penalty mode only; every part is what its closed form says."""
        model = make_model(
            SparseJEPAForPreTraining, loss_type=loss_type, sparsity_mode=mode, kl_weight=0.3, sparsity_weight=0.02
        )
        output = model(pixel_values, **masks)
        predicted, targets = output.predictor_output.last_hidden_state, output.target_hidden_state
        difference = (predicted - targets).abs()
        squares = difference.square()
        if loss_type == "smooth_l1":
            expected = torch.where(difference < 1, 0.5 * squares, difference - 0.5).mean()
        else:
            expected = squares.mean()
        _close(output.prediction_loss, expected)
        kl = kl_divergence(output.predictor_output.latent_mean, output.predictor_output.latent_log_variance)
        _close(output.kl_loss, kl)
        omega = model.sparsejepa.predictor.grouping.group_weight.norm(dim=1).sum()
        _close(output.sparsity_loss, omega)
        _close(output.loss, expected + 0.3 * kl + (0.02 * omega if mode == "penalty" else 0))

    def test_weights_of_a_call_replace_the_configurations(self, make_model, pixel_values, masks):
        """Warm-ups come as numbers or tensors; zero is a weight too, not a missing one."""
        model = make_model(SparseJEPAForPreTraining, sparsity_mode="penalty", kl_weight=0.3, sparsity_weight=0.02)
        plain = model(pixel_values, **masks)
        for kl_weight, sparsity_weight in ((0.0, 0.0), (0.5, 0.1), (torch.tensor(0.5), torch.tensor(0.1))):
            output = model(pixel_values, **masks, kl_weight=kl_weight, sparsity_weight=sparsity_weight)
            expected = plain.prediction_loss + kl_weight * plain.kl_loss + sparsity_weight * plain.sparsity_loss
            _close(output.loss, expected)

    def test_without_grouping_it_is_ijepas(self, make_model, pixel_values, masks):
        output = make_model(SparseJEPAForPreTraining, use_grouping=False)(pixel_values, **masks)
        expected = F.smooth_l1_loss(output.predictor_output.last_hidden_state, output.target_hidden_state)
        assert torch.equal(output.loss, output.prediction_loss)
        _close(output.loss, expected)
        assert output.kl_loss == 0 and output.sparsity_loss == 0

    def test_without_variational_latents_there_is_no_kl(self, make_model, pixel_values, masks):
        output = make_model(SparseJEPAForPreTraining, variational=False)(pixel_values, **masks, kl_weight=5.0)
        assert output.kl_loss == 0
        assert torch.equal(output.loss, output.prediction_loss)

    @pytest.mark.parametrize("mode", ["proximal", "penalty"])
    def test_the_penalty_reaches_the_gradient_in_penalty_mode_only(self, make_model, pixel_values, masks, mode):
        """∂L/∂W changes by λ times the columns' unit vectors in penalty mode, not at all in proximal mode."""
        model = make_model(SparseJEPAForPreTraining, sparsity_mode=mode)
        weight = model.sparsejepa.predictor.grouping.group_weight
        gradients = []
        for sparsity_weight in (0.0, 0.5):
            (gradient,) = torch.autograd.grad(
                model(pixel_values, **masks, sparsity_weight=sparsity_weight).loss, weight
            )
            gradients.append(gradient)
        expected = 0.5 * F.normalize(weight.detach(), dim=1) if mode == "penalty" else torch.zeros_like(weight)
        _close(gradients[1] - gradients[0], expected, 1e-5)

    def test_targets_are_normalised_per_token_and_carry_no_gradient(self, make_model, pixel_values, masks):
        model = make_model(SparseJEPAModel)
        output = model(pixel_values, **masks)
        targets = output.target_hidden_state
        assert not targets.requires_grad
        _close(targets.mean(-1), torch.zeros(targets.shape[:-1]), 1e-5)
        _close(targets.var(-1, unbiased=False), torch.ones(targets.shape[:-1]), 1e-4)
        full = F.layer_norm(model.target_encoder(pixel_values), (32,), eps=model.config.layer_norm_eps)
        for row in range(2):
            _close(targets[row], full[row, masks["target_mask"][row]])

    def test_targets_without_normalisation_are_the_target_encoders_features(self, make_model, pixel_values, masks):
        model = make_model(SparseJEPAModel, target_normalization="none")
        output = model(pixel_values, **masks)
        for row in range(2):
            expected = output.last_hidden_state[row, masks["target_mask"][row]]
            assert torch.equal(output.target_hidden_state[row], expected)

    def test_the_loss_in_bf16_is_close_to_that_in_float32(self, make_model, pixel_values, masks):
        model = make_model(SparseJEPAForPreTraining, kl_weight=0.01)
        expected = model(pixel_values, **masks)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = model(pixel_values, **masks)
        assert output.loss.dtype == torch.float32
        assert output.loss.item() == pytest.approx(expected.loss.item(), rel=0.03)
        assert output.sparsity_loss.item() == pytest.approx(expected.sparsity_loss.item(), rel=1e-5)

    def test_a_whole_model_in_bf16_computes_a_float32_loss(self, make_model, pixel_values, masks):
        model = make_model(SparseJEPAForPreTraining, kl_weight=0.01)
        expected = model(pixel_values, **masks).loss.item()
        output = model.to(torch.bfloat16)(pixel_values, **masks)
        assert output.loss.dtype == torch.float32
        assert output.loss.item() == pytest.approx(expected, rel=0.05)

    def test_gradient_descent_on_one_batch_overfits_it(self, make_model, pixel_values, masks):
        """Through latents and groups wide enough to hold the targets, the whole chain can learn them by heart."""
        wide = {"num_latents": 32, "group_size": 8, "generator_hidden_size": 32}
        model = make_model(SparseJEPAForPreTraining, kl_weight=1e-4, **wide).train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        noise = _noise(model.config, masks["target_mask"])
        losses = []
        for _ in range(100):
            loss = model(pixel_values, **masks, latent_noise=noise).prediction_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.4 * losses[0]


class TestGradients:
    @pytest.mark.parametrize(
        "overrides",
        [
            {},
            {"predictor_type": "mlp"},
            {"use_grouping": False, "kl_weight": 0},
            {"variational": False, "kl_weight": 0},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("loaded", [False, True], ids=["fresh", "loaded"])
    def test_they_reach_everything_but_the_target_encoder(
        self, make_config, make_masks, make_images, tmp_path, overrides, loaded
    ):
        """Also after from_pretrained, which makes every parameter trainable before the target is frozen again."""
        torch.manual_seed(0)
        model = SparseJEPAForPreTraining(make_config(**{"kl_weight": 0.1, **overrides}))
        if loaded:
            model.save_pretrained(tmp_path)
            model = SparseJEPAForPreTraining.from_pretrained(tmp_path)
        masks = make_masks()
        model.train()(make_images(), **masks).loss.backward()
        for name, parameter in model.named_parameters():
            if ".target_encoder." in name:
                assert not parameter.requires_grad and parameter.grad is None, name
                continue
            assert parameter.requires_grad and parameter.grad is not None, name
            # Softmax does not see a constant added to all keys' scores: this gradient is zero in exact arithmetic.
            if not name.endswith("k_proj.bias"):
                assert parameter.grad.count_nonzero() > 0.5 * parameter.grad.numel(), name

    @pytest.mark.parametrize("model_class", [SparseJEPAModel, SparseJEPAForPreTraining])
    def test_a_fresh_target_encoder_is_an_exact_copy_of_its_own(self, make_config, model_class):
        torch.manual_seed(0)
        model = model_class(make_config())
        model = getattr(model, "sparsejepa", model)
        pairs = zip(model.context_encoder.parameters(), model.target_encoder.parameters(), strict=True)
        for context, target in pairs:
            assert torch.equal(context, target) and context.data_ptr() != target.data_ptr()
        assert model.context_encoder.layers[0].mlp.fc1.weight.std() > 0

    def test_resetting_copies_the_context_encoder(self, make_model):
        model = make_model(SparseJEPAModel)
        weight = model.target_encoder.layers[1].mlp.fc2.bias
        assert not torch.equal(weight, model.context_encoder.layers[1].mlp.fc2.bias)
        model.reset_target_encoder()
        for context, target in zip(model.context_encoder.parameters(), model.target_encoder.parameters(), strict=True):
            assert torch.equal(context, target)

    @pytest.mark.parametrize("model_class", [SparseJEPAModel, SparseJEPAVisionModel])
    def test_features_of_pixels_alone_let_gradients_flow_to_the_pixels(self, make_model, pixel_values, model_class):
        """Saliency: what a token's feature depends on; attention lets it depend on every patch."""
        pixel_values.requires_grad_(True)
        make_model(model_class)(pixel_values).last_hidden_state[0, 0, :5].sum().backward()
        per_patch = pixel_values.grad[0].unfold(1, 4, 4).unfold(2, 4, 4).abs().amax((0, 3, 4))
        assert (per_patch > 0).all()
        assert pixel_values.grad[1].count_nonzero() == 0

    @pytest.mark.parametrize("predictor_type", ["transformer", "mlp"])
    def test_checkpointing_gives_equal_gradients(self, make_model, pixel_values, masks, predictor_type):
        def gradients(checkpointing: bool) -> tuple[int, dict[str, Tensor]]:
            model = make_model(SparseJEPAForPreTraining, predictor_type=predictor_type, kl_weight=0.1).train()
            if checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            calls = []
            # Before, not after: recomputing stops as soon as the last saved tensor is there.
            mlp = model.sparsejepa.context_encoder.layers[0].mlp
            mlp.register_forward_pre_hook(lambda *_: calls.append(1))
            noise = _noise(model.config, masks["target_mask"])
            model(pixel_values, **masks, latent_noise=noise).loss.backward()
            return len(calls), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

        (plain_calls, plain), (calls, recomputed) = gradients(False), gradients(True)
        assert (plain_calls, calls) == (1, 2), "nothing was recomputed"
        assert plain.keys() == recomputed.keys()
        for name, gradient in plain.items():
            _close(recomputed[name], gradient, 1e-6)


class TestAttentionImplementations:
    @pytest.mark.parametrize("implementation", ["eager", pytest.param("flex_attention", marks=pytest.mark.slow)])
    def test_they_agree_with_sdpa(self, make_model, make_images, masks, implementation, monkeypatch):
        """Everywhere: both encoders and the predictor's isolated blocks. Heads of 16: flex takes no fewer."""
        monkeypatch.setattr(modeling_sparsejepa, "_PLAIN_CPU_TOKENS", 0)
        overrides = {"num_attention_heads": 2, "predictor_hidden_size": 32, "predictor_num_attention_heads": 2}
        model = make_model(SparseJEPAModel, **overrides)
        images = make_images()
        outputs = []
        for name in ("sdpa", implementation):
            model.set_attn_implementation(name)
            assert model.config._attn_implementation == name
            with torch.no_grad():
                outputs.append(model(images, **masks))
        _close(outputs[1].last_hidden_state, outputs[0].last_hidden_state)
        _close(outputs[1].context_hidden_state, outputs[0].context_hidden_state)
        _close(outputs[1].predictor_output.last_hidden_state, outputs[0].predictor_output.last_hidden_state)

    @pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
    def test_on_a_cpu_few_tokens_go_through_plain_products_which_agree_with_the_fused_kernel(
        self, make_model, pixel_values, masks, monkeypatch, autocast
    ):
        """Loss and gradient; bf16 rounds each product, so the tolerance is relative to the gradient's norm."""
        model = make_model(SparseJEPAForPreTraining, use_grouping=False).train()
        assert model.config._attn_implementation == "sdpa"
        fused_calls, fused = [], F.scaled_dot_product_attention
        monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: fused_calls.append(1) or fused(*a, **k))
        results = []
        for limit, expected_calls in ((modeling_sparsejepa._PLAIN_CPU_TOKENS, False), (63, True), (0, True)):
            monkeypatch.setattr(modeling_sparsejepa, "_PLAIN_CPU_TOKENS", limit)
            fused_calls.clear()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = model(pixel_values, **masks).loss
            assert bool(fused_calls) == expected_calls
            gradients = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
            results.append((loss.detach(), torch.cat([gradient.flatten() for gradient in gradients])))
        for plain, *others in zip(*results, strict=True):
            for other in others:
                assert (plain - other).norm() <= (0.03 if autocast else 1e-5) * plain.norm()

    @pytest.mark.parametrize(("limit", "fused"), [(128, False), (0, True)], ids=["few tokens", "many"])
    def test_compiled_for_a_cpu_few_tokens_go_through_plain_products_too(self, make_model, monkeypatch, limit, fused):
        monkeypatch.setattr(modeling_sparsejepa, "_PLAIN_CPU_TOKENS", limit)
        attention, code = make_model(SparseJEPAModel).target_encoder.layers[0].attention, []
        tokens = torch.randn(2, 64, attention.q_proj.in_features, generator=torch.Generator().manual_seed(0))
        torch._dynamo.reset()
        traced = torch.compile(attention, fullgraph=True, backend=lambda graph, _: code.append(graph.code) or graph)
        _close(traced(tokens)[0], attention(tokens)[0])
        assert len(code) == 1 and ("scaled_dot_product_attention" in code[0]) is fused

    @pytest.mark.slow
    def test_compiled_as_one_graph_the_losses_are_equal(self, make_model, pixel_values, masks):
        model = make_model(SparseJEPAForPreTraining, kl_weight=0.1, sparsity_mode="penalty", sparsity_weight=0.01)
        model.train()
        noise = _noise(model.config, masks["target_mask"])
        expected = model(pixel_values, **masks, latent_noise=noise)
        compiled = torch.compile(model, fullgraph=True)
        output = compiled(pixel_values, **masks, latent_noise=noise)
        for name in ("loss", "prediction_loss", "kl_loss", "sparsity_loss", "last_hidden_state"):
            _close(output[name], expected[name], 1e-4)


MODEL_CLASSES = [
    SparseJEPAModel,
    SparseJEPAForPreTraining,
    SparseJEPAVisionModel,
    SparseJEPAForImageClassification,
]


class TestRecordedStates:
    @pytest.mark.parametrize("model_class", MODEL_CLASSES)
    def test_they_are_the_target_encoders_only(self, make_model, pixel_values, masks, model_class):
        """L + 1 states over all 64 patches and L attention maps; not the context encoder's, not the predictor's."""
        model = make_model(model_class)
        model.set_attn_implementation("eager")
        predicts = model_class in (SparseJEPAModel, SparseJEPAForPreTraining)
        inputs = {"pixel_values": pixel_values, **(masks if predicts else {})}
        output = model(**inputs, output_hidden_states=True, output_attentions=True)
        base = getattr(model, "sparsejepa", model)
        encoder = getattr(base, "sparsejepa", base).target_encoder
        tokens = encoder.embeddings(pixel_values)
        assert len(output.hidden_states) == 3 and len(output.attentions) == 2
        _close(output.hidden_states[0], tokens)
        for layer, state in zip(encoder.layers, output.hidden_states[1:], strict=True):
            tokens = layer(tokens)
            _close(state, tokens)
        if "last_hidden_state" in output:
            _close(encoder.layernorm(output.hidden_states[-1]), output.last_hidden_state)
        for weights in output.attentions:
            assert weights.shape == (2, 4, 64, 64)
            _close(weights.sum(-1), torch.ones(2, 4, 64))

    @pytest.mark.parametrize("model_class", MODEL_CLASSES)
    def test_they_are_there_only_when_asked_for_and_do_not_pile_up(self, make_model, pixel_values, model_class):
        model = make_model(model_class)
        inputs = {"return_loss": False} if model_class is SparseJEPAForPreTraining else {}
        assert model(pixel_values, **inputs).hidden_states is None
        for _ in range(2):
            assert len(model(pixel_values, output_hidden_states=True, **inputs).hidden_states) == 3
        assert model(pixel_values, **inputs).hidden_states is None

    def test_the_inner_model_may_be_called_first(self, make_model, pixel_values):
        """Hooks of the inner and the outer model must not both record."""
        model = make_model(SparseJEPAForImageClassification)
        assert len(model.sparsejepa(pixel_values, output_hidden_states=True).hidden_states) == 3
        assert len(model(pixel_values, output_hidden_states=True).hidden_states) == 3
        assert len(model.sparsejepa(pixel_values, output_hidden_states=True).hidden_states) == 3


class TestOutputs:
    def test_a_tuple_begins_with_features_or_with_the_loss(self, make_model, pixel_values, masks):
        """Pipelines take the first element as features, the Trainer takes it as the loss."""
        for model_class in (SparseJEPAModel, SparseJEPAVisionModel):
            model = make_model(model_class)
            output = model(pixel_values, return_dict=False)
            assert isinstance(output, tuple)
            assert torch.equal(output[0], model(pixel_values).last_hidden_state)
            assert torch.equal(output[1], output[0].mean(1))
        model = make_model(SparseJEPAForPreTraining)
        output = model(pixel_values, **masks, return_dict=False)
        assert isinstance(output, tuple)
        assert torch.equal(output[0], model(pixel_values, **masks).loss)

        def flat(value) -> bool:
            return isinstance(value, Tensor) or (isinstance(value, tuple) and all(map(flat, value)))

        assert flat(output), "a nested output stayed a ModelOutput"

    def test_features_are_the_same_with_and_without_masks(self, make_model, pixel_values, masks):
        model = make_model(SparseJEPAModel)
        alone, with_masks = model(pixel_values), model(pixel_values, **masks)
        assert torch.equal(alone.last_hidden_state, with_masks.last_hidden_state)
        assert alone.context_hidden_state is None and alone.predictor_output is None
        assert torch.equal(alone.pooler_output, alone.last_hidden_state.mean(1))

    def test_skipping_the_predictor_leaves_the_encodings(self, make_model, pixel_values, masks):
        model = make_model(SparseJEPAModel)
        full = model(pixel_values, **masks)
        skipped = model(pixel_values, **masks, skip_predictor=True)
        assert skipped.predictor_output is None
        assert torch.equal(skipped.context_hidden_state, full.context_hidden_state)
        assert torch.equal(skipped.target_hidden_state, full.target_hidden_state)
        context_only = model(pixel_values, context_mask=masks["context_mask"], skip_predictor=True)
        assert torch.equal(context_only.context_hidden_state, full.context_hidden_state)

    def test_the_classifiers_loss_is_cross_entropy_of_a_linear_map_of_the_pooled_features(
        self, make_model, pixel_values
    ):
        """The configuration's own `loss_type` must not choose the classification loss."""
        model = make_model(SparseJEPAForImageClassification, num_labels=5, loss_type="mse")
        labels = torch.tensor([4, 1])
        output = model(pixel_values, labels=labels)
        _close(output.logits, model.classifier(model.sparsejepa(pixel_values).pooler_output))
        _close(output.loss, F.cross_entropy(output.logits, labels))
        assert model(pixel_values).loss is None
        output.loss.backward()
        assert model.sparsejepa.target_encoder.layers[0].mlp.fc1.weight.grad.count_nonzero() > 0


class TestImageSizes:
    @pytest.mark.parametrize("model_class", MODEL_CLASSES)
    def test_another_size_is_refused_unless_asked_for(self, make_model, make_images, model_class):
        model = make_model(model_class)
        inputs = {"return_loss": False} if model_class is SparseJEPAForPreTraining else {}
        with pytest.raises(ValueError, match="48x40 pixels, but the model expects 32x32.*interpolate_pos_encoding"):
            model(make_images(size=(48, 40)), **inputs)
        with pytest.raises(ValueError, match="46x40 pixels, which patches of 4x4 do not divide"):
            model(make_images(size=(46, 40)), interpolate_pos_encoding=True, **inputs)
        with pytest.raises(ValueError, match=r"shape \(2, 1, 32, 32\); expected \(batch, 3"):
            model(make_images(channels=1), **inputs)
        with pytest.raises(ValueError, match=r"shape \(3, 32, 32\)"):
            model(make_images()[0], **inputs)

    def test_a_larger_image_gets_the_positions_of_its_grid(self, make_model, make_images):
        model = make_model(SparseJEPAVisionModel)
        images = make_images(size=(48, 40))
        got = model(images, interpolate_pos_encoding=True).last_hidden_state
        encoder = model.target_encoder
        tokens = encoder.embeddings.patch_embeddings(images)
        tokens = tokens + sincos_position_embeddings(32, (12, 10), (8, 8))
        for layer in encoder.layers:
            tokens = _reference_layer(layer, tokens, num_heads=4)
        _close(got, encoder.layernorm(tokens))

    @pytest.mark.parametrize("model_class", MODEL_CLASSES)
    def test_interpolation_at_the_trained_size_changes_nothing(self, make_model, pixel_values, masks, model_class):
        model = make_model(model_class)
        predicts = model_class in (SparseJEPAModel, SparseJEPAForPreTraining)
        inputs = {"pixel_values": pixel_values, **(masks if predicts else {})}
        plain, interpolated = model(**inputs), model(**inputs, interpolate_pos_encoding=True)
        for name in ("last_hidden_state", "logits", "loss"):
            if plain.get(name) is not None:
                assert torch.equal(plain[name], interpolated[name])

    def test_the_predictor_too_uses_the_positions_of_a_larger_grid(self, make_model, make_images, make_masks):
        """Pre-training on 48x40 pixels: predictions equal those of a predictor given that grid's positions."""
        model = make_model(SparseJEPAModel)
        images, masks = make_images(size=(48, 40)), make_masks(grid_size=(12, 10))
        assert masks["target_mask"].max() >= 64
        output = model(images, **masks, interpolate_pos_encoding=True)
        predictor = model.predictor
        predictor.position_embeddings = sincos_position_embeddings(24, (12, 10), (8, 8))
        expected = predictor(output.context_hidden_state, masks["context_mask"], masks["target_mask"])
        _close(output.predictor_output.last_hidden_state, expected.last_hidden_state)

    def test_non_square_images_and_patches_work_throughout(self, make_model, make_images, make_masks):
        model = make_model(SparseJEPAForPreTraining, image_size=[16, 40], patch_size=[4, 5])
        assert model.config.grid_size == (4, 8)
        output = model(make_images(size=(16, 40)), **make_masks(grid_size=(4, 8)))
        assert output.last_hidden_state.shape[1] == 32 and output.loss.isfinite()
        with pytest.raises(ValueError, match="40x16 pixels, but the model expects 16x40"):
            model(make_images(size=(40, 16)), return_loss=False)


class TestMaskSentences:
    def test_a_loss_without_masks_is_refused_with_what_to_do(self, make_model, pixel_values, masks):
        model = make_model(SparseJEPAForPreTraining)
        for given_masks in ({}, {"context_mask": masks["context_mask"]}, {"target_mask": masks["target_mask"]}):
            with pytest.raises(
                ValueError, match="needs context_mask, target_mask and the predictor.*MultiBlockMaskSampler"
            ):
                model(pixel_values, **given_masks)
        assert model(pixel_values, return_loss=False).loss is None

    def test_one_mask_without_the_other_is_refused_by_name(self, make_model, pixel_values, masks):
        model = make_model(SparseJEPAModel)
        with pytest.raises(ValueError, match="context_mask is given but target_mask is not"):
            model(pixel_values, context_mask=masks["context_mask"])
        with pytest.raises(ValueError, match="target_mask is given but context_mask is not"):
            model(pixel_values, target_mask=masks["target_mask"])

    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("context_mask", lambda mask: mask[0]),
            ("context_mask", lambda mask: mask[:1]),
            ("context_mask", lambda mask: mask.float()),
            ("target_mask", lambda mask: mask[:, 0]),
            ("target_mask", lambda mask: mask[:1]),
            ("target_mask", lambda mask: mask.double()),
        ],
    )
    def test_a_mask_of_another_shape_or_type_is_refused_by_name(self, make_model, pixel_values, masks, name, change):
        changed = change(masks[name])
        with pytest.raises(ValueError) as refusal:
            make_model(SparseJEPAModel)(pixel_values, **{**masks, name: changed})
        for sentence in (name, str(tuple(changed.shape)), str(changed.dtype), "MultiBlockMaskSampler"):
            assert sentence in str(refusal.value)


@pytest.fixture(scope="module")
def saved(make_model, tmp_path_factory):
    """A pre-training model whose encoders differ, and the folder that it was saved to."""
    model = make_model(SparseJEPAForPreTraining, kl_weight=0.1, sparsity_weight=0.2, num_labels=7)
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    return model, folder


class TestCheckpoints:
    @pytest.mark.parametrize(
        ("auto_class", "model_class"),
        [
            (AutoModel, SparseJEPAVisionModel),
            (AutoModelForPreTraining, SparseJEPAForPreTraining),
            (SparseJEPAModel, SparseJEPAModel),
            (AutoModelForImageClassification, SparseJEPAForImageClassification),
        ],
    )
    def test_every_class_loads_one_checkpoint_to_equal_features(self, saved, pixel_values, auto_class, model_class):
        model, folder = saved
        loaded, info = auto_class.from_pretrained(folder, output_loading_info=True)
        assert type(loaded) is model_class and not loaded.training
        assert not info["unexpected_keys"] and not info["mismatched_keys"]
        fresh = {"classifier.weight", "classifier.bias"} if "Classification" in model_class.__name__ else set()
        assert set(info["missing_keys"]) == fresh
        inner = loaded.sparsejepa if fresh else loaded
        inputs = {"return_loss": False} if model_class is SparseJEPAForPreTraining else {}
        expected = model(pixel_values, return_loss=False)
        assert torch.equal(inner(pixel_values, **inputs).last_hidden_state, expected.last_hidden_state)

    def test_the_loss_comes_back_bit_equal(self, saved, pixel_values, masks):
        model, folder = saved
        loaded = AutoModelForPreTraining.from_pretrained(folder)
        here, there = model(pixel_values, **masks), loaded(pixel_values, **masks)
        for name in ("loss", "prediction_loss", "kl_loss", "sparsity_loss"):
            assert torch.equal(here[name], there[name])
        state, loaded_state = model.state_dict(), loaded.state_dict()
        assert state.keys() == loaded_state.keys()
        assert all(torch.equal(value, loaded_state[name]) for name, value in state.items())

    def test_the_base_models_checkpoint_loads_with_a_loss(self, saved, pixel_values, masks, tmp_path):
        """From its file as from their own: the base prefix comes and goes."""
        model, folder = saved
        SparseJEPAModel.from_pretrained(folder).save_pretrained(tmp_path)
        loaded, info = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert torch.equal(loaded(pixel_values, **masks).loss, model(pixel_values, **masks).loss)

    def test_a_trained_classifier_comes_back_whole(self, saved, pixel_values, tmp_path):
        model = AutoModelForImageClassification.from_pretrained(saved[1])
        model.save_pretrained(tmp_path)
        loaded, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert torch.equal(loaded(pixel_values).logits, model(pixel_values).logits)
        assert loaded(pixel_values).logits.shape == (2, 7)

    def test_a_vision_model_is_one_encoder_and_trainable(self, saved, tmp_path):
        model, folder = saved
        vision = SparseJEPAVisionModel.from_pretrained(folder)
        inner = model.sparsejepa
        encoders = sum(p.numel() for e in (inner.context_encoder, inner.target_encoder) for p in e.parameters())
        assert 2 * sum(p.numel() for p in vision.parameters()) == encoders
        assert all(p.requires_grad for p in vision.parameters())
        vision.save_pretrained(tmp_path)
        _, info = SparseJEPAVisionModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]

    def test_the_encoders_of_an_older_ijepa_checkpoint_load(self, make_model, pixel_values, tmp_path):
        """Its linear map went by the name of a grouping."""
        model = make_model(SparseJEPAForPreTraining, use_grouping=False)
        renamed = {k.replace("predictor.head.", "predictor.grouping."): v for k, v in model.state_dict().items()}
        model.save_pretrained(tmp_path, state_dict=renamed)
        expected = model(pixel_values, return_loss=False).last_hidden_state
        for auto_class in (AutoModel, SparseJEPAVisionModel):
            assert torch.equal(auto_class.from_pretrained(tmp_path)(pixel_values).last_hidden_state, expected)

    def test_shards_hold_the_same_model(self, saved, pixel_values, masks, tmp_path):
        model, _ = saved
        model.save_pretrained(tmp_path, max_shard_size="60KB")
        assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
        loaded, info = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
        assert torch.equal(loaded(pixel_values, **masks).loss, model(pixel_values, **masks).loss)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_saved_and_loaded_as_such(self, saved, pixel_values, masks, tmp_path, dtype):
        model = copy.deepcopy(saved[0]).to(dtype)
        model.save_pretrained(tmp_path)
        loaded = AutoModelForPreTraining.from_pretrained(tmp_path, dtype="auto")
        for name, parameter in loaded.named_parameters():
            assert parameter.dtype == dtype and torch.equal(parameter, model.get_parameter(name))
        in_float = AutoModelForPreTraining.from_pretrained(tmp_path, dtype=torch.float32)
        expected = saved[0](pixel_values, **masks)
        for other in (loaded, in_float):
            output = other(pixel_values.to(next(other.parameters()).dtype), **masks)
            torch.testing.assert_close(
                output.last_hidden_state.float(), expected.last_hidden_state, rtol=0.1, atol=0.15
            )

    def test_positions_are_built_anew_in_full_precision(self, saved):
        """They are not in the file; a model put together on the meta device has to fill them in."""
        loaded = AutoModelForPreTraining.from_pretrained(saved[1]).sparsejepa
        for encoder in (loaded.context_encoder, loaded.target_encoder):
            assert torch.equal(encoder.embeddings.position_embeddings, sincos_position_embeddings(32, (8, 8)))
        assert torch.equal(loaded.predictor.position_embeddings, sincos_position_embeddings(24, (8, 8)))

    def test_a_checkpoint_serves_another_image_size(self, saved, make_images):
        """Nothing in the file depends on the grid; the positions are then those of a model built for it."""
        loaded, info = SparseJEPAVisionModel.from_pretrained(saved[1], image_size=48, output_loading_info=True)
        assert loaded.config.grid_size == (12, 12)
        assert not info["missing_keys"] and not info["mismatched_keys"]
        assert loaded(make_images(size=(48, 48))).last_hidden_state.shape[1] == 144

    def test_the_configuration_says_which_class_loads_it(self, saved):
        config = json.loads((saved[1] / "config.json").read_text())
        assert config["model_type"] == "sparsejepa"
        assert config["architectures"] == ["SparseJEPAForPreTraining"]
        assert config["auto_map"] == AUTO_MAP

    def test_a_forgotten_weight_is_told(self, saved, tmp_path):
        """Only what a class has no use for may be missing or left over in silence."""
        model = copy.deepcopy(saved[0])
        state = model.state_dict()
        state["sparsejepa.target_encoder.layers.9.mlp.fc1.weight"] = state.pop(
            "sparsejepa.target_encoder.layers.1.mlp.fc1.weight"
        )
        model.save_pretrained(tmp_path, state_dict=state)
        _, info = SparseJEPAVisionModel.from_pretrained(tmp_path, output_loading_info=True)
        assert set(info["missing_keys"]) == {"target_encoder.layers.1.mlp.fc1.weight"}
        assert any("layers.9.mlp.fc1.weight" in name for name in info["unexpected_keys"])


class TestIncompleteCheckpoints:
    """One encoder is an average of the other, so neither may start at random where the other does not."""

    @staticmethod
    def _load(folder, **options):
        return SparseJEPAForPreTraining.from_pretrained(folder, output_loading_info=True, **options)

    @pytest.mark.parametrize("model_class", [SparseJEPAVisionModel, SparseJEPAForImageClassification])
    def test_a_missing_context_encoder_is_a_copy_of_the_target_encoder(self, saved, tmp_path, model_class):
        model_class.from_pretrained(saved[1]).save_pretrained(tmp_path)
        loaded, info = self._load(tmp_path)
        wanted = saved[0].sparsejepa.target_encoder.state_dict()
        for encoder in (loaded.sparsejepa.context_encoder, loaded.sparsejepa.target_encoder):
            assert all(torch.equal(value, wanted[name]) for name, value in encoder.state_dict().items())
        assert not any("encoder." in key for key in info["missing_keys"])
        assert any("predictor." in key for key in info["missing_keys"])

    def test_a_missing_target_encoder_is_a_copy_of_the_context_encoder(self, saved, tmp_path):
        state = {k: v for k, v in saved[0].state_dict().items() if "target_encoder" not in k}
        saved[0].save_pretrained(tmp_path, state_dict=state)
        loaded, info = self._load(tmp_path)
        wanted = saved[0].sparsejepa.context_encoder.state_dict()
        assert all(torch.equal(v, wanted[k]) for k, v in loaded.sparsejepa.target_encoder.state_dict().items())
        assert not info["missing_keys"]

    def test_a_layer_of_another_size_is_drawn_once(self, saved):
        loaded, info = self._load(saved[1], num_channels=1, ignore_mismatched_sizes=True)
        inner = loaded.sparsejepa
        first, second = (
            e.embeddings.patch_embeddings.projection.weight for e in (inner.context_encoder, inner.target_encoder)
        )
        assert torch.equal(first, second) and first.std() > 0
        assert len(info["mismatched_keys"]) == 2
        # What fits is the checkpoint's, for each encoder its own.
        for name in ("context_encoder", "target_encoder"):
            key = f"sparsejepa.{name}.layers.0.mlp.fc1.weight"
            assert torch.equal(loaded.state_dict()[key], saved[0].state_dict()[key])


class TestTraining:
    """Frozen for pre-training, trainable for everything else."""

    def test_a_head_of_one_s_own_trains_the_encoder(self, saved, pixel_values):
        model = AutoModel.from_pretrained(saved[1])
        head = torch.nn.Linear(model.config.hidden_size, 3)
        torch.nn.functional.cross_entropy(head(model(pixel_values).pooler_output), torch.tensor([0, 1])).backward()
        assert all(
            p.grad is not None and p.grad.abs().sum() > 0
            for n, p in model.named_parameters()
            if "k_proj.bias" not in n
        )

    @pytest.mark.parametrize("load", [True, False])
    def test_pre_training_freezes_the_target_encoder(self, saved, load):
        model = (
            SparseJEPAForPreTraining.from_pretrained(saved[1]) if load else SparseJEPAForPreTraining(saved[0].config)
        )
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        assert frozen == {name for name, _ in model.named_parameters() if "target_encoder" in name}
        assert not model.train().sparsejepa.target_encoder.training

    def test_what_belongs_to_text_may_be_none_only(self, saved, pixel_values):
        model = AutoModel.from_pretrained(saved[1])
        nothing = dict.fromkeys(("input_ids", "inputs_embeds", "attention_mask", "output_attentions"))
        expected = model(pixel_values).last_hidden_state
        assert torch.equal(model(pixel_values=pixel_values, **nothing).last_hidden_state, expected)
        with pytest.raises(ValueError, match="attention_mask is given, but this model sees images"):
            model(pixel_values, attention_mask=torch.ones(2, 64))

    def test_a_hook_on_the_patch_projection_fires(self, saved, pixel_values):
        model = AutoModel.from_pretrained(saved[1])
        seen = []
        model.target_encoder.embeddings.patch_embeddings.projection.register_forward_hook(lambda *args: seen.append(1))
        model(pixel_values)
        assert seen == [1]


class TestBackbone:
    def test_maps_are_the_layers_through_the_norm(self, saved, pixel_values):
        model = AutoModel.from_pretrained(saved[1])
        backbone = SparseJEPABackbone.from_pretrained(saved[1], out_indices=[0, 2])
        hidden_states = model(pixel_values, output_hidden_states=True).hidden_states
        output = backbone(pixel_values)
        assert backbone.channels == [32, 32] and output.hidden_states is None
        for index, feature_map in zip((0, 2), output.feature_maps, strict=True):
            tokens = model.target_encoder.layernorm(hidden_states[index])
            assert torch.equal(feature_map.flatten(2).transpose(1, 2), tokens)
        assert torch.equal(output.feature_maps[1].flatten(2).transpose(1, 2), model(pixel_values).last_hidden_state)

    def test_images_of_another_size_give_a_grid_of_their_own(self, saved, make_images):
        maps = SparseJEPABackbone.from_pretrained(saved[1])(make_images(size=(48, 32))).feature_maps
        assert [tuple(m.shape[1:]) for m in maps] == [(32, 12, 8)]


class TestPipelines:
    @pytest.fixture
    def folder(self, saved, tmp_path):
        """A checkpoint with its image processor beside it, as it is published."""
        saved[0].save_pretrained(tmp_path)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
        return tmp_path

    @pytest.fixture
    def image(self) -> Image.Image:
        return Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))

    def test_the_image_processor_is_found(self, folder, image):
        processor = AutoImageProcessor.from_pretrained(folder)
        expected = ViTImageProcessor(size={"height": 32, "width": 32})(image, return_tensors="pt").pixel_values
        got = processor(image, return_tensors="pt").pixel_values
        assert got.shape == (1, 3, 32, 32)
        _close(got, expected, 1e-5)

    def test_feature_extraction_gives_the_pooled_features(self, saved, folder, image):
        processor = ViTImageProcessor(size={"height": 32, "width": 32})
        extractor = pipeline("image-feature-extraction", model=str(folder), image_processor=processor, pool=True)
        expected = saved[0](processor(image, return_tensors="pt").pixel_values, return_loss=False)
        _close(torch.tensor(extractor(image)), expected.pooler_output, 1e-5)

    def test_feature_extraction_without_pooling_gives_the_last_hidden_state(self, saved, folder, image):
        extractor = pipeline("image-feature-extraction", model=str(folder), device="cpu")
        pixels = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt").pixel_values
        expected = saved[0](pixels, return_loss=False).last_hidden_state
        _close(torch.tensor(extractor(image)), expected, 1e-5)


def test_contents_enter_at_the_scale_that_the_configuration_says_and_all_else_is_as_before(make_small_config):
    weights = []
    for scale in (1.0, 2.5):
        torch.manual_seed(0)
        model = SparseJEPAForPreTraining(make_small_config(patch_projection_scale=scale))
        weights.append(dict(model.named_parameters()))
    for name, weight in weights[0].items():
        factor = 2.5 if name.endswith("patch_embeddings.projection.weight") else 1.0
        assert torch.allclose(weights[1][name], factor * weight), name
