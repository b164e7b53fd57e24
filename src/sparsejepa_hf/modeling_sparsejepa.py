# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""PyTorch SparseJEPA (arXiv 2504.16140): I-JEPA with a sparse grouping of the predictor's latents.

The encoder has the shape of transformers' I-JEPA ViT (pre-norm, no CLS token), with token dropping added: patches
outside the context are dropped before the first layer, after their position has been added.
"""

import errno
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from huggingface_hub import ModelCard
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import SAFE_WEIGHTS_NAME, ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_sparsejepa import AUTO_MAP, SparseJEPAConfig


logger = logging.get_logger(__name__)

_INDEX_TYPES = (torch.int64, torch.int32)
# On a CPU and up to this many tokens, plain products take about as long as PyTorch's fused attention in fp32,
# depending on the CPU. In bf16's backward pass they take a tenth of its time.
_PLAIN_CPU_TOKENS = 128
# What adapters and pipelines pass to every model, also to one of images.
_NOT_FOR_IMAGES = ("attention_mask", "input_ids", "inputs_embeds")
# More than the configuration and the code take beside the weights.
_CODE_BYTES = 1_000_000


@dataclass
class SparseJEPAPredictorOutput(ModelOutput):
    """What the predictor and the grouping make of a context.

    Latents belong to target patches, (B, M, Nt, ...), or with `latent_position="encoder"` to context patches,
    (B, Nc, ...).

    Attributes:
        last_hidden_state (B, M, Nt, D): predicted embeddings ŝ of the target patches.
        latent_mean (..., K): μ; None without grouping.
        latent_log_variance (..., K): log σ²; None unless variational.
        group_activations (..., G, p): the groups' inputs u_g = W⁽ᵍ⁾z, if `output_group_activations=True`.
    """

    last_hidden_state: Tensor | None = None
    latent_mean: Tensor | None = None
    latent_log_variance: Tensor | None = None
    group_activations: Tensor | None = None


@dataclass
class SparseJEPAModelOutput(ModelOutput):
    """Outputs of [`SparseJEPAModel`].

    Attributes:
        last_hidden_state (B, N, D): features of the target encoder over the whole image.
        pooler_output (B, D): their mean over patches.
        hidden_states: tuple of (B, N, D), the target encoder's embedding output and the output of each layer, if
            `output_hidden_states=True`.
        attentions: tuple of (B, heads, N, N), the target encoder's, if `output_attentions=True` (eager attention).
        context_hidden_state (B, Nc, D): the context encoder's output, if `context_mask` is given.
        target_hidden_state (B, M, Nt, D): normalised targets s, without gradient, if `target_mask` is given.
        predictor_output: [`SparseJEPAPredictorOutput`], if both masks are given.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    context_hidden_state: Tensor | None = None
    target_hidden_state: Tensor | None = None
    predictor_output: SparseJEPAPredictorOutput | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(v.to_tuple() if isinstance(v, ModelOutput) else v for v in ModelOutput.to_tuple(self))


@dataclass
class SparseJEPAForPreTrainingOutput(ModelOutput):
    """Outputs of [`SparseJEPAForPreTraining`].

    Attributes:
        loss (): L = L_pred + β·KL, plus λ·Ω in penalty mode.
        prediction_loss (): L_pred(ŝ, s), a mean over all elements.
        kl_loss (): KL(q(z|x)‖N(0, I)), summed over latents, averaged over tokens, before β; zero unless variational.
        sparsity_loss (): Ω(W), before λ; zero without grouping.
        last_hidden_state, pooler_output, hidden_states, attentions, target_hidden_state, predictor_output: as in
            [`SparseJEPAModelOutput`].
    """

    loss: Tensor | None = None
    prediction_loss: Tensor | None = None
    kl_loss: Tensor | None = None
    sparsity_loss: Tensor | None = None
    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    target_hidden_state: Tensor | None = None
    predictor_output: SparseJEPAPredictorOutput | None = None

    to_tuple = SparseJEPAModelOutput.to_tuple


def group_lasso(group_weight: Tensor) -> Tensor:
    """Ω(W) = Σ_g Σ_j ‖W⁽ᵍ⁾_{·,j}‖₂ of W (G, p, K) (oi-VAE, arXiv 1802.06765); zero columns get a zero gradient."""
    return torch.linalg.vector_norm(group_weight.float(), dim=1).sum()


def kl_divergence(latent_mean: Tensor, latent_log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²)‖N(0, I)) = ½ Σ_j (μ_j² + σ_j² − 1 − log σ_j²): summed over the last dimension, mean of the rest."""
    mean, log_variance = latent_mean.float(), latent_log_variance.float()
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=-1).mean()


def sincos_position_embeddings(
    hidden_size: int,
    grid_size: tuple[int, int],
    trained_grid_size: tuple[int, int] | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Fixed 2-D sin-cos positions (N, hidden_size) of a row-major grid without a CLS token, as in MAE and I-JEPA.

    The first half of the channels encodes the column, the second the row; each half is [sin, cos] of the coordinate
    times 10000^(−i/(D/4)). On another grid than the trained one, the same functions are evaluated at the patch
    centres' places in the trained grid, so nothing is interpolated.
    """
    rows, columns = grid_size
    trained_rows, trained_columns = trained_grid_size or grid_size
    quarter = hidden_size // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64, device=device) / quarter)

    def encode(length: int, trained_length: int) -> Tensor:
        centres = torch.arange(length, dtype=torch.float64, device=device) + 0.5
        angles = (centres * trained_length / length - 0.5)[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=1)

    row_code = encode(rows, trained_rows)[:, None].expand(rows, columns, -1)
    column_code = encode(columns, trained_columns)[None].expand(rows, columns, -1)
    return torch.cat([column_code, row_code], dim=2).reshape(rows * columns, hidden_size).float()


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens (B, N, D) at patch indices (B, ...) -> (B, ..., D)."""
    flat = index.flatten(1)
    return tokens.gather(1, flat[..., None].expand(-1, -1, tokens.shape[-1])).unflatten(1, index.shape[1:])


def _cast_once(states: Tensor) -> Tensor:
    """Casts to autocast's type, where autocast is on: else each of several projections would cast and keep a copy."""
    device_type = states.device.type
    # Tensors without values know no autocast.
    if states.dtype is torch.float32 and device_type != "meta" and torch.is_autocast_enabled(device_type):
        return states.to(torch.get_autocast_dtype(device_type))
    return states


def _of_rows(layer: nn.Module, states: Tensor) -> Tensor:
    """A linear layer of (..., D), row by row: bitsandbytes' int8 kernel takes no more than three dimensions."""
    return layer(states.flatten(0, -2)).unflatten(0, states.shape[:-1])


def _for_attention(options: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a call without those that an image model can only take as None.

    Raises:
        ValueError: one of them is given.
    """
    for name in _NOT_FOR_IMAGES:
        if options.get(name) is not None:
            raise ValueError(
                f"{name} is given, but this model sees images: all patches of all of them. Expected pixel_values "
                "alone; pass None, or leave it out."
            )
    return {name: value for name, value in options.items() if name not in _NOT_FOR_IMAGES}


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """softmax(QKᵀ·scaling)V; (B, heads, L, d) in, (B, L, heads, d) out. In any type, softmax sums in float32."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = F.softmax(weights, dim=-1)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class SparseJEPAAttention(nn.Module):
    """Multi-head attention on transformers' attention interface."""

    is_causal = False

    def __init__(self, config: SparseJEPAConfig, hidden_size: int, num_attention_heads: int):
        super().__init__()
        self.config = config
        self.head_dim = hidden_size // num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        # The attention interface's grouped-query and flex paths look these up.
        self.num_key_value_groups = 1
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(hidden_size, hidden_size)

    def _heads(self, states: Tensor) -> Tensor:
        """(B, L, heads·d) -> (B, heads, L, d)."""
        return states.unflatten(2, (-1, self.head_dim)).transpose(1, 2)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Attention of (B, heads, Lq, d) over (B, heads, Lk, d) -> (B, Lq, heads·d), and its weights if any."""
        implementation = self.config._attn_implementation
        interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        # An exported program may serve other sizes and devices than the ones it was traced with.
        on_cpu = key.device.type == "cpu" and not torch.compiler.is_exporting()
        if implementation == "sdpa" and on_cpu and key.shape[2] <= _PLAIN_CPU_TOKENS:
            interface = eager_attention_forward
        dropout = self.attention_dropout if self.training else 0.0
        output, weights = interface(self, query, key, value, None, dropout=dropout, scaling=self.scaling, **kwargs)
        weights = None if implementation == "sdpa" else weights
        return output.flatten(2), weights

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """(B, L, D) -> the same, and the attention weights (B, heads, L, L) if the implementation returns them."""
        hidden_states = _cast_once(hidden_states)
        projections = (self.q_proj, self.k_proj, self.v_proj)
        output, weights = self.attend(
            *(self._heads(projection(hidden_states)) for projection in projections), **kwargs
        )
        return self.o_proj(output), weights


class SparseJEPABlockAttention(SparseJEPAAttention):
    """Attention over [context, block 1 … block M]: the context sees itself, a block sees the context and itself.

    Equal to one pass per block in which the context does not look at the block, and needs no mask, so every attention
    back end serves. (I-JEPA's own predictor lets each pass's copy of the context look at that pass's block.)
    """

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, num_context: int, num_blocks: int, blocks_only: bool = False, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """(B, Nc + M·Nt, D_p) -> the same, or with `blocks_only` the blocks' part (B, M·Nt, D_p)."""

        def split_blocks(states: Tensor) -> Tensor:
            """(B, heads, M·Nt, d) -> (B·M, heads, Nt, d)."""
            return states.unflatten(2, (num_blocks, -1)).transpose(1, 2).flatten(0, 1)

        def join_context(states: Tensor) -> Tensor:
            """(B, heads, Nc + M·Nt, d) -> (B·M, heads, Nc + Nt, d)."""
            context = states[:, None, :, :num_context].expand(-1, num_blocks, -1, -1, -1).flatten(0, 1)
            return torch.cat([context, split_blocks(states[:, :, num_context:])], dim=2)

        hidden_states = _cast_once(hidden_states)
        key, value = (self._heads(projection(hidden_states)) for projection in (self.k_proj, self.v_proj))
        first = num_context if blocks_only else 0
        query = self._heads(self.q_proj(hidden_states[:, first:]))
        block_query = split_blocks(query[:, :, num_context - first :])
        blocks, weights = self.attend(block_query, join_context(key), join_context(value), **kwargs)
        output = blocks.reshape(hidden_states.shape[0], -1, blocks.shape[-1])
        if not blocks_only:
            context, _ = self.attend(*(states[:, :, :num_context] for states in (query, key, value)), **kwargs)
            output = torch.cat([context, output], dim=1)
        return self.o_proj(output), weights


class SparseJEPAMLP(nn.Module):
    """Two linear maps with an activation between."""

    def __init__(self, config: SparseJEPAConfig, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, hidden_size)
        self.activation_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class SparseJEPALayer(GradientCheckpointingLayer):
    """x + Attention(LN(x)), then x + MLP(LN(x)); keyword arguments go to the attention."""

    def __init__(
        self,
        config: SparseJEPAConfig,
        hidden_size: int,
        num_attention_heads: int,
        intermediate_size: int,
        attention_class: type[SparseJEPAAttention] = SparseJEPAAttention,
    ):
        super().__init__()
        self.attention = attention_class(config, hidden_size, num_attention_heads)
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = SparseJEPAMLP(config, hidden_size, intermediate_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path_rate = 0.0

    def _drop_path(self, states: Tensor) -> Tensor:
        """Stochastic depth: whole residual branches of a sample are left out, the others scaled up."""
        if not (self.training and self.drop_path_rate):
            return states
        keep = 1 - self.drop_path_rate
        return states * (torch.rand(len(states), 1, 1, device=states.device) < keep).to(states.dtype) / keep

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        attention_output, _ = self.attention(self.layernorm_before(hidden_states), **kwargs)
        num_tokens = attention_output.shape[1]
        if num_tokens < hidden_states.shape[1]:
            # The attention returned the last tokens alone.
            hidden_states = hidden_states[:, -num_tokens:]
        hidden_states = hidden_states + self._drop_path(self.dropout(attention_output))
        return hidden_states + self._drop_path(self.dropout(self.mlp(self.layernorm_after(hidden_states))))


class SparseJEPAPatchEmbeddings(nn.Module):
    """(B, C, H, W) -> (B, N, D), patches in row-major order."""

    def __init__(self, config: SparseJEPAConfig):
        super().__init__()
        self.projection = nn.Conv2d(config.num_channels, config.hidden_size, config.patch_sides, config.patch_sides)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.projection(pixel_values.to(self.dtype)).flatten(2).transpose(1, 2)

    @property
    def dtype(self) -> torch.dtype:
        """The type that is computed in, told by the bias: quantisation leaves biases as they are."""
        return cast(Tensor, self.projection.bias).dtype


class SparseJEPAEmbeddings(nn.Module):
    """Patch content plus fixed sin-cos positions; patches outside `context_mask` are dropped here."""

    position_embeddings: Tensor

    def __init__(self, config: SparseJEPAConfig):
        super().__init__()
        self.config = config
        self.patch_embeddings = SparseJEPAPatchEmbeddings(config)
        positions = sincos_position_embeddings(config.hidden_size, config.grid_size)
        self.register_buffer("position_embeddings", positions, persistent=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, pixel_values: Tensor, context_mask: Tensor | None = None, interpolate_pos_encoding: bool = False
    ) -> Tensor:
        """(B, C, H, W) -> (B, N, D), or (B, Nc, D) with `context_mask` (B, Nc)."""
        config, positions = self.config, self.position_embeddings
        if pixel_values.ndim != 4 or pixel_values.shape[1] != config.num_channels:
            raise ValueError(
                f"pixel_values has the shape {tuple(pixel_values.shape)}; expected "
                f"(batch, {config.num_channels}, height, width)."
            )
        (height, width), patch = pixel_values.shape[-2:], config.patch_sides
        if interpolate_pos_encoding:
            if height % patch[0] or width % patch[1]:
                raise ValueError(
                    f"The images are {height}x{width} pixels, which patches of {patch[0]}x{patch[1]} do not divide. "
                    "Resize them to a multiple of the patch size."
                )
            # Also at the trained size, where they are the same: a branch would tie an exported program to a size.
            grid = (height // patch[0], width // patch[1])
            positions = sincos_position_embeddings(config.hidden_size, grid, config.grid_size, positions.device)
        elif (height, width) != config.image_sides:
            raise ValueError(
                f"The images are {height}x{width} pixels, but the model expects "
                f"{config.image_sides[0]}x{config.image_sides[1]}. Resize them, or pass "
                "interpolate_pos_encoding=True."
            )
        embeddings = self.patch_embeddings(pixel_values)
        # Positions in the weights' precision keep the residual stream there too, also under autocast.
        embeddings = embeddings + positions.to(self.patch_embeddings.dtype)
        if context_mask is not None:
            embeddings = gather_tokens(embeddings, context_mask)
        return self.dropout(embeddings)


class SparseJEPAEncoder(nn.Module):
    """The ViT that serves as context encoder and as target encoder."""

    def __init__(self, config: SparseJEPAConfig):
        super().__init__()
        self.embeddings = SparseJEPAEmbeddings(config)
        sizes = (config.hidden_size, config.num_attention_heads, config.intermediate_size)
        self.layers = nn.ModuleList([SparseJEPALayer(config, *sizes) for _ in range(config.num_hidden_layers)])
        for index, layer in enumerate(self.layers, start=1):
            layer.drop_path_rate = config.drop_path_rate * index / len(self.layers)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        pixel_values: Tensor,
        context_mask: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        mean_of_layers: int = 0,
        **kwargs: Any,
    ) -> Any:
        """(B, C, H, W) -> (B, N, D), or (B, Nc, D) with `context_mask` (B, Nc); with `mean_of_layers` also the mean of
        that many last layers' normalised outputs."""
        hidden_states = self.embeddings(pixel_values, context_mask, interpolate_pos_encoding)
        states = []
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
            states.append(hidden_states)
        output = self.layernorm(hidden_states)
        if mean_of_layers:
            normed = [F.layer_norm(s.float(), s.shape[-1:]) for s in states[-mean_of_layers:]]
            return output, torch.stack(normed).mean(0)
        return output


class SparseJEPATransformerPredictor(nn.Module):
    """I-JEPA's narrow ViT over context tokens and mask tokens; all blocks in one pass, isolated from one another."""

    def __init__(self, config: SparseJEPAConfig):
        super().__init__()
        width = config.predictor_hidden_size
        self.embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 1, width))
        sizes = (width, config.predictor_num_attention_heads, cast(int, config.predictor_intermediate_size))
        self.layers = nn.ModuleList(
            [
                SparseJEPALayer(config, *sizes, SparseJEPABlockAttention)
                for _ in range(config.predictor_num_hidden_layers)
            ]
        )
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        context_mask: Tensor,
        target_mask: Tensor,
        position_embeddings: Tensor,
        **kwargs: Any,
    ) -> Tensor:
        """h (B, Nc, D), `context_mask` (B, Nc), `target_mask` (B, M, Nt), positions (N, D_p) -> (B, M, Nt, D_p)."""
        num_context, num_blocks = context_mask.shape[1], target_mask.shape[1]
        context = self.embed(hidden_states)
        positions = position_embeddings.to(self.mask_token.dtype)
        context = context + positions[context_mask]
        blocks = self.mask_token + positions[target_mask]
        tokens = torch.cat([context, blocks.flatten(1, 2)], dim=1)
        for index, layer in enumerate(self.layers, start=1):
            # Nothing looks at the context behind the last layer.
            last = index == len(self.layers)
            tokens = layer(tokens, num_context=num_context, num_blocks=num_blocks, blocks_only=last, **kwargs)
        return self.layernorm(tokens).unflatten(1, target_mask.shape[1:])


class SparseJEPAMLPPredictor(nn.Module):
    """The paper's component list: pooled context + the target's position embedding -> shallow MLP."""

    def __init__(self, config: SparseJEPAConfig):
        super().__init__()
        width = config.predictor_hidden_size
        self.embed = nn.Linear(config.hidden_size, width)
        self.norms = nn.ModuleList(
            [nn.LayerNorm(width, eps=config.layer_norm_eps) for _ in range(config.predictor_num_hidden_layers)]
        )
        self.layers = nn.ModuleList(
            [
                SparseJEPAMLP(config, width, cast(int, config.predictor_intermediate_size))
                for _ in range(config.predictor_num_hidden_layers)
            ]
        )
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,
        context_mask: Tensor,
        target_mask: Tensor,
        position_embeddings: Tensor,
        **kwargs: Any,
    ) -> Tensor:
        """Shapes as in [`SparseJEPATransformerPredictor`]; `context_mask` does not matter here."""
        pooled = self.embed(hidden_states.mean(dim=1))
        tokens = pooled[:, None] + position_embeddings.to(self.layernorm.weight.dtype)[target_mask.flatten(1)]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            tokens = tokens + layer(norm(tokens))
        return self.layernorm(tokens).unflatten(1, target_mask.shape[1:])


class SparseJEPAGrouping(nn.Module):
    """Latents -> groups -> embedding: μ, log σ², u_g = W⁽ᵍ⁾z, ŝ_g = f_g(u_g), ŝ = [ŝ_1 … ŝ_G].

    `group_weight` is W (G, p, K); each generator f_g is a two-layer MLP p -> generator_hidden_size -> D/G of its own,
    and all run in one batched product.
    """

    def __init__(self, config: SparseJEPAConfig):
        super().__init__()
        groups, latents, size = config.num_groups, config.num_latents, config.group_size
        hidden, slice_size = config.generator_hidden_size, config.hidden_size // config.num_groups
        behind_predictor = config.latent_position == "predictor"
        width = config.predictor_hidden_size if behind_predictor else config.hidden_size
        self.latent_mean = nn.Linear(width, latents)
        self.latent_log_variance = nn.Linear(width, latents) if config.variational else None
        self.group_weight = nn.Parameter(torch.empty(groups, size, latents))
        self.generator_in_weight = nn.Parameter(torch.empty(groups, size, hidden))
        self.generator_in_bias = nn.Parameter(torch.empty(groups, 1, hidden))
        self.generator_out_weight = nn.Parameter(torch.empty(groups, hidden, slice_size))
        self.generator_out_bias = nn.Parameter(torch.empty(groups, 1, slice_size))
        self.activation_fn = ACT2FN[config.hidden_act]

    def forward(
        self, hidden_states: Tensor, latent_noise: Tensor | None = None, output_group_activations: bool = False
    ) -> SparseJEPAPredictorOutput:
        """(..., D_p), or (..., D) in front of the predictor -> predictor output with (..., D); `latent_noise` (..., K)
        is ε, drawn here if not given."""
        mean = latents = _of_rows(self.latent_mean, hidden_states)
        log_variance = None
        if self.latent_log_variance is not None:
            log_variance = _of_rows(self.latent_log_variance, hidden_states)
        if log_variance is not None and self.training:
            if latent_noise is not None and latent_noise.shape != mean.shape:
                raise ValueError(
                    f"latent_noise has the shape {tuple(latent_noise.shape)}; expected that of the latents, "
                    f"{tuple(mean.shape)}."
                )
            noise = torch.randn_like(mean) if latent_noise is None else latent_noise.to(mean.dtype)
            latents = mean + noise * (0.5 * log_variance).exp()
        groups, size, count = self.group_weight.shape
        inputs = F.linear(latents.flatten(0, -2), self.group_weight.view(groups * size, count))
        inputs = inputs.view(-1, groups, size).transpose(0, 1)  # (G, tokens, p)
        prediction = self.generate(inputs).transpose(0, 1).reshape(*mean.shape[:-1], -1)
        activations = inputs.transpose(0, 1).unflatten(0, mean.shape[:-1]) if output_group_activations else None
        return SparseJEPAPredictorOutput(prediction, mean, log_variance, activations)

    def generate(self, inputs: Tensor) -> Tensor:
        """ŝ_g = f_g(u_g) of all groups: u (G, tokens, p) -> (G, tokens, D/G)."""
        hidden = self.activation_fn(torch.baddbmm(self.generator_in_bias, inputs, self.generator_in_weight))
        return torch.baddbmm(self.generator_out_bias, hidden, self.generator_out_weight)


class SparseJEPALinearHead(nn.Module):
    """A linear map from D_p to D."""

    def __init__(self, config: SparseJEPAConfig):
        super().__init__()
        self.projection = nn.Linear(config.predictor_hidden_size, config.hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return _of_rows(self.projection, hidden_states)


class SparseJEPAPredictor(nn.Module):
    """Predictor trunk with the grouping behind it or before it (SparseJEPA), or with a linear map alone (I-JEPA).

    Attributes:
        trunk: [`SparseJEPATransformerPredictor`] or [`SparseJEPAMLPPredictor`].
        grouping: [`SparseJEPAGrouping`], or None for I-JEPA.
        head: [`SparseJEPALinearHead`] where a linear map follows the trunk: for I-JEPA, for groups in front of the
            trunk, and for a path around the groups behind it; else None.
    """

    position_embeddings: Tensor

    def __init__(self, config: SparseJEPAConfig):
        super().__init__()
        trunk = SparseJEPATransformerPredictor if config.predictor_type == "transformer" else SparseJEPAMLPPredictor
        self.config = config
        self.trunk = trunk(config)
        positions = sincos_position_embeddings(config.predictor_hidden_size, config.grid_size)
        self.register_buffer("position_embeddings", positions, persistent=False)
        self.grouping = SparseJEPAGrouping(config) if config.use_grouping else None
        self.groups_first = config.latent_position == "encoder"
        has_head = not config.use_grouping or self.groups_first or config.latent_residual
        self.head = SparseJEPALinearHead(config) if has_head else None

    def forward(
        self,
        hidden_states: Tensor,
        context_mask: Tensor,
        target_mask: Tensor,
        *,
        grid_size: tuple[int, int] | None = None,
        latent_noise: Tensor | None = None,
        output_group_activations: bool = False,
        **kwargs: Any,
    ) -> SparseJEPAPredictorOutput:
        """h (B, Nc, D), `context_mask` (B, Nc), `target_mask` (B, M, Nt) -> ŝ (B, M, Nt, D) and the latents."""
        config, positions, head = self.config, self.position_embeddings, cast(SparseJEPALinearHead, self.head)
        if grid_size is not None and grid_size != config.grid_size:
            positions = sincos_position_embeddings(
                config.predictor_hidden_size, grid_size, config.grid_size, positions.device
            )
        options = {"latent_noise": latent_noise, "output_group_activations": output_group_activations}
        if self.grouping is None:
            hidden_states = self.trunk(hidden_states, context_mask, target_mask, positions, **kwargs)
            return SparseJEPAPredictorOutput(head(hidden_states))
        if self.groups_first:
            output = self.grouping(hidden_states, **options)
            if config.latent_residual:
                output.last_hidden_state = output.last_hidden_state + hidden_states
            hidden_states = self.trunk(output.last_hidden_state, context_mask, target_mask, positions, **kwargs)
            output.last_hidden_state = head(hidden_states)
            return output
        hidden_states = self.trunk(hidden_states, context_mask, target_mask, positions, **kwargs)
        output = self.grouping(hidden_states, **options)
        if config.latent_residual:
            output.last_hidden_state = output.last_hidden_state + head(hidden_states)
        return output


class SparseJEPAPreTrainedModel(PreTrainedModel):
    """Weight initialisation, and how the family loads and saves."""

    config_class = SparseJEPAConfig
    base_model_prefix = "sparsejepa"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["SparseJEPAEmbeddings", "SparseJEPALayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": OutputRecorder(SparseJEPALayer, index=0, layer_name="target_encoder"),
        "attentions": OutputRecorder(SparseJEPAAttention, index=1, layer_name="target_encoder"),
    }
    # What the Hub is told of a model whose card does not say it.
    _pipeline_tag = "image-feature-extraction"

    def __init__(self, config: SparseJEPAConfig, *args: Any, **kwargs: Any):
        # Weights that are loaded are no larger than their file, but positions are made.
        is_meta = torch.get_default_device().type == "meta"
        config.require_memory(0 if is_meta else torch.get_default_dtype().itemsize)
        super().__init__(config, *args, **kwargs)
        # Not on the class: transformers adds a user's tags to the same list.
        self.model_tags = ["sparsejepa", "jepa", "vision"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear) and self.config.initializer_range is not None:
            init.trunc_normal_(module.weight, mean=0.0, std=self.config.initializer_range)
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            # Xavier-uniform. The convolution is the patch projection, told by its type and not by its parent, since
            # transformers passes over custom modules that own no parameters. It is a linear map of the flattened
            # patch, at Xavier's scale whatever initializer_range says: content must enter at the positions' scale, or
            # JEPA learns to predict positions instead of images.
            fan_out, fan_in = module.weight.flatten(1).shape
            bound = (6.0 / (fan_out + fan_in)) ** 0.5
            init.uniform_(module.weight, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
        elif isinstance(module, (SparseJEPAEmbeddings, SparseJEPAPredictor)):
            width = module.position_embeddings.shape[1]
            init.copy_(module.position_embeddings, sincos_position_embeddings(width, self.config.grid_size))
        elif isinstance(module, SparseJEPATransformerPredictor):
            init.trunc_normal_(module.mask_token, mean=0.0, std=0.02)
        elif isinstance(module, SparseJEPAGrouping):
            # Every latent begins in one group, about K/G latents per group, and joins others where the loss asks for
            # it. From a dense start the group lasso drops latents from all groups at once; the rest stay in every one.
            groups, _, latents = module.group_weight.shape
            home = torch.arange(latents, device=module.group_weight.device) % groups
            own = F.one_hot(home, groups).T[:, None]
            # So that u_g has the scale of z.
            scale = own * own.sum(dim=2, keepdim=True).clamp_min(1) ** -0.5
            init.normal_(module.group_weight, mean=0.0, std=1.0)
            init.copy_(module.group_weight, module.group_weight * scale)
            for weight in (module.generator_in_weight, module.generator_out_weight):
                init.normal_(weight, mean=0.0, std=(2.0 / (weight.shape[1] + weight.shape[2])) ** 0.5)
            init.zeros_(module.generator_in_bias)
            init.zeros_(module.generator_out_bias)
            if module.latent_log_variance is not None:
                # Starts with σ = e⁻¹: noise below the signal, and a KL that is finite and has somewhere to go.
                init.zeros_(module.latent_log_variance.weight)
                init.constant_(module.latent_log_variance.bias, -2.0)
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.LayerNorm)) and module.bias is not None:
            init.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.target_encoder.embeddings.patch_embeddings

    def _adjust_missing_and_unexpected_keys(self, loading_info: Any) -> None:
        self._complete_encoders(loading_info)
        super()._adjust_missing_and_unexpected_keys(loading_info)

    @torch.no_grad()
    def _complete_encoders(self, loading_info: Any) -> None:
        """Copies what one encoder lacks in the checkpoint from the other, and what both lack from the context's.

        The target encoder is an average of the context encoder, so a side that stayed random would make the other's
        weights worthless.
        """
        parameters = dict(self.named_parameters())
        absent = loading_info.missing_keys | {key for key, *_ in loading_info.mismatched_keys}
        completed = set()
        for key in absent & parameters.keys():
            is_target = "target_encoder." in key
            sides = ("target_encoder.", "context_encoder.")
            twin = key.replace(*(sides if is_target else sides[::-1]))
            if twin == key or twin not in parameters or (twin in absent and not is_target):
                continue
            if parameters[twin].is_meta or parameters[key].is_meta:
                continue
            parameters[key].copy_(parameters[twin])
            if twin not in absent:
                completed.add(key)
        if completed:
            loading_info.missing_keys -= completed
            logger.warning(
                f"The checkpoint lacks {len(completed)} weights of one encoder; they start as a copy of the other's."
            )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, but weights come from safetensors alone: a pickle can run code.

        Raises:
            OSError: there are no such weights, or their file is damaged.
            ValueError: `use_safetensors=False` asks for a pickle, or the weights are of other shapes.
        """
        if kwargs.setdefault("use_safetensors", True) is False:
            raise ValueError(
                "use_safetensors is False, which asks for pickled weights; expected True. Have their owner save them "
                "by save_pretrained, which writes safetensors."
            )
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except SafetensorError as error:
            raise OSError(
                f"The weights of {str(pretrained_model_name_or_path)!r} cannot be read ({error}); expected whole "
                "safetensors files. Nothing was loaded. Copy or save them again; from the Hub, load with "
                "force_download=True."
            ) from error
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
            raise RuntimeError(
                f"The weights of {str(pretrained_model_name_or_path)!r} do not fit the configuration: their "
                "shapes differ, as the log lists. Load with the configuration that they were saved with; "
                "ignore_mismatched_sizes=True draws those that do not fit at random."
            ) from error
        except OSError as error:
            if f"named {SAFE_WEIGHTS_NAME}" not in str(error):
                raise
            raise OSError(
                f"{str(pretrained_model_name_or_path)!r} has no {SAFE_WEIGHTS_NAME}; expected what save_pretrained "
                "writes. Pickled weights, such as pytorch_model.bin, are not read, since a pickle can run code. Have "
                "their owner save them by save_pretrained, or name another revision or subfolder."
            ) from error

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; the checkpoint also carries its code, under every class that can load it.

        Raises:
            OSError: the disk has no room for the model; nothing is written then.
        """
        self.config.auto_map = dict(AUTO_MAP)
        if not os.path.isfile(save_directory):
            os.makedirs(save_directory, exist_ok=True)
            # Asked before the first file: an older configuration would be emptied before the weights find no room.
            wanted, free = self.get_memory_footprint() + _CODE_BYTES, shutil.disk_usage(save_directory).free
            if free < wanted:
                raise OSError(
                    errno.ENOSPC,
                    f"The disk of {str(save_directory)!r} has {free / 1e6:.1f} MB free; expected at least "
                    f"{wanted / 1e6:.1f} MB, for this model. Nothing was written. Make room, or save elsewhere.",
                )
        return super().save_pretrained(save_directory, *args, **kwargs)

    def _upload_modified_files(self, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
        # Called by every way to push, once all files are in `working_dir`. The card that transformers makes names no
        # task, and without one `pipeline(model=repo_id)` refuses.
        card = ModelCard.load(os.path.join(working_dir, "README.md"))
        card.data.pipeline_tag = card.data.pipeline_tag or self._pipeline_tag
        card.save(os.path.join(working_dir, "README.md"))
        return super()._upload_modified_files(working_dir, *args, **kwargs)


class SparseJEPAModel(SparseJEPAPreTrainedModel):
    """Context encoder, target encoder, predictor and grouping.

    Called with pixels alone it returns features of the target encoder; with `context_mask` and `target_mask` also the
    targets, without gradient, and the predictor's output. The target encoder starts as a copy of the context encoder.
    For features, and for fine-tuning, take [`SparseJEPAVisionModel`], which is what AutoModel loads: here a gradient
    reaches one of the two encoders at a time.
    """

    _auto_class = "AutoModel"

    def __init__(self, config: SparseJEPAConfig):
        super().__init__(config)
        self.context_encoder = SparseJEPAEncoder(config)
        self.target_encoder = SparseJEPAEncoder(config)
        self.predictor = SparseJEPAPredictor(config)
        self.post_init()
        with torch.no_grad():
            self.context_encoder.embeddings.patch_embeddings.projection.weight.mul_(
                config.patch_scale * config.patch_projection_scale
            )
            for layer in self.context_encoder.layers:
                layer.attention.o_proj.weight.mul_(config.residual_scale)
                layer.mlp.fc2.weight.mul_(config.residual_scale)
        self.reset_target_encoder()

    @torch.no_grad()
    def reset_target_encoder(self) -> None:
        """Makes the target encoder an exact copy of the context encoder."""
        for target, source in zip(self.target_encoder.parameters(), self.context_encoder.parameters(), strict=True):
            target.copy_(source)

    @can_return_tuple
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: Tensor,
        context_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        skip_predictor: bool = False,
        interpolate_pos_encoding: bool = False,
        latent_noise: Tensor | None = None,
        output_group_activations: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SparseJEPAModelOutput:
        """Runs the encoders and, with both masks, the predictor.

        Args:
            pixel_values (B, C, H, W): normalised images.
            context_mask (B, Nc): int64 indices of the patches that the context encoder sees.
            target_mask (B, M, Nt): int64 indices of M target blocks of Nt patches.
            skip_predictor: return encodings only.
            interpolate_pos_encoding: accept images of another size, with sin-cos positions for their grid.
            latent_noise (B, M, Nt, K): ε of the latents in training, (B, Nc, K) with `latent_position="encoder"`;
                drawn if not given.
            output_group_activations: also return u (B, M, Nt, G, p).

        Raises:
            ValueError: if the masks' shapes do not fit, or only one is given and the predictor is not skipped.
        """
        if not skip_predictor and (context_mask is None) != (target_mask is None):
            given, missing = ("context_mask", "target_mask")[:: 1 if target_mask is None else -1]
            raise ValueError(
                f"{given} is given but {missing} is not; the predictor needs both. Pass both, or skip_predictor=True."
            )
        for name, mask, ndim, shape in (
            ("context_mask", context_mask, 2, "(batch, context patches)"),
            ("target_mask", target_mask, 3, "(batch, blocks, patches of a block)"),
        ):
            if mask is None:
                continue
            if mask.ndim != ndim or mask.shape[0] != pixel_values.shape[0] or mask.dtype not in _INDEX_TYPES:
                raise ValueError(
                    f"{name} has the shape {tuple(mask.shape)} and type {mask.dtype} for a batch of "
                    f"{pixel_values.shape[0]}; expected integer patch indices of shape {shape}, as "
                    "MultiBlockMaskSampler returns them."
                )
        options = _for_attention(kwargs)
        targets, context, prediction = None, None, None
        with torch.set_grad_enabled(torch.is_grad_enabled() and target_mask is None):
            several = self.config.target_layers if target_mask is not None and self.config.target_layers > 1 else 0
            hidden_states = self.target_encoder(
                pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, mean_of_layers=several, **options
            )
            sources = hidden_states
            if several:
                hidden_states, sources = hidden_states
            if target_mask is not None:
                targets = gather_tokens(sources, target_mask).float()
                if self.config.target_normalization == "batch_norm":
                    flat = sources.float().flatten(0, 1)
                    deviation = flat.var(0, correction=0).add(self.config.layer_norm_eps).sqrt()
                    targets = (targets - flat.mean(0)) / deviation
                if self.config.target_normalization == "position_norm":
                    centred = sources.float() - sources.float().mean(0)
                    deviation = centred.flatten(0, 1).var(0, correction=0).add(self.config.layer_norm_eps).sqrt()
                    targets = gather_tokens(centred / deviation, target_mask)
                if self.config.target_normalization == "layer_norm":
                    targets = F.layer_norm(targets, targets.shape[-1:], eps=self.config.layer_norm_eps)
        if context_mask is not None:
            context = self.context_encoder(pixel_values, context_mask, interpolate_pos_encoding, **options)
            if target_mask is not None and not skip_predictor:
                patch = self.config.patch_sides
                prediction = self.predictor(
                    context,
                    context_mask,
                    target_mask,
                    grid_size=(pixel_values.shape[2] // patch[0], pixel_values.shape[3] // patch[1]),
                    latent_noise=latent_noise,
                    output_group_activations=output_group_activations,
                    **options,
                )
        return SparseJEPAModelOutput(
            last_hidden_state=hidden_states,
            pooler_output=hidden_states.mean(dim=1),
            context_hidden_state=context,
            target_hidden_state=targets,
            predictor_output=prediction,
        )

    def encode_latents(self, pixel_values: Tensor, interpolate_pos_encoding: bool = False) -> tuple[Tensor, Tensor]:
        """Latents μ (B, N, K) and the groups' inputs u (B, N, G, p), u_g = W⁽ᵍ⁾μ, of every patch, without noise.

        Behind the predictor a patch's latents are a prediction, so each quadrant of the image is predicted from the
        other three, as a target block from its context. (In an odd grid the lower and right quadrants are larger.) In
        front of the predictor, the latents are read off the target encoder's output.

        Raises:
            ValueError: if the model has no grouping, or its grid is a single row or column.
        """
        predictor, num_latents = self.predictor, self.config.num_latents
        if predictor.grouping is None:
            raise ValueError(
                "This model has use_grouping=False (I-JEPA), so it has no latents; load a SparseJEPA model."
            )
        if predictor.groups_first:
            hidden_states = self.target_encoder(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
            noise = hidden_states.new_zeros(*hidden_states.shape[:-1], num_latents)
            output = predictor.grouping(hidden_states, noise, output_group_activations=True)
            return output.latent_mean, output.group_activations
        patch = self.config.patch_sides
        rows, columns = pixel_values.shape[2] // patch[0], pixel_values.shape[3] // patch[1]
        if min(rows, columns) < 2:
            raise ValueError(
                f"The grid has {rows}x{columns} patches; expected at least 2x2, to predict parts of the image."
            )
        index = torch.arange(rows * columns, device=pixel_values.device).view(rows, columns)
        quadrants = [
            quadrant.flatten()
            for half in index.tensor_split([rows // 2], dim=0)
            for quadrant in half.tensor_split([columns // 2], dim=1)
        ]
        means, activations = [], []
        for place, quadrant in enumerate(quadrants):
            others = torch.cat(quadrants[:place] + quadrants[place + 1 :]).sort().values
            context_mask = others.expand(len(pixel_values), -1)
            target_mask = quadrant.expand(len(pixel_values), 1, -1)
            hidden_states = self.context_encoder(pixel_values, context_mask, interpolate_pos_encoding)
            output = predictor(
                hidden_states,
                context_mask,
                target_mask,
                grid_size=(rows, columns),
                latent_noise=hidden_states.new_zeros(*target_mask.shape, num_latents),
                output_group_activations=True,
            )
            means.append(output.latent_mean.squeeze(1))
            activations.append(output.group_activations.squeeze(1))
        order = torch.cat(quadrants).argsort()
        return torch.cat(means, dim=1)[:, order], torch.cat(activations, dim=1)[:, order]


class SparseJEPAForPreTraining(SparseJEPAPreTrainedModel):
    """[`SparseJEPAModel`] with the loss L = L_pred(ŝ, s) + β·KL + λ·Ω(W) and its parts.

    The target encoder is frozen here: it follows the context encoder as a moving average, which the Trainer computes,
    and stays in evaluation mode, so that targets carry no dropout noise.
    """

    # The loss is a mean over the batch, so the Trainer must divide it by the accumulation steps itself.
    accepts_loss_kwargs = False

    _auto_class = "AutoModelForPreTraining"

    def __init__(self, config: SparseJEPAConfig):
        super().__init__(config)
        self.sparsejepa = SparseJEPAModel(config)
        self.post_init()
        self.freeze_target_encoder()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. Loading makes every parameter trainable; the target encoder is frozen again here."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.freeze_target_encoder()
        return loaded

    def freeze_target_encoder(self) -> None:
        """Takes the target encoder out of training by gradients."""
        self.sparsejepa.target_encoder.requires_grad_(False)

    def train(self, mode: bool = True) -> "SparseJEPAForPreTraining":
        """As in torch, but the target encoder stays in evaluation mode."""
        super().train(mode)
        self.sparsejepa.target_encoder.eval()
        return self

    @property
    def group_weight(self) -> nn.Parameter | None:
        """W (G, p, K), or None without grouping (I-JEPA)."""
        grouping = self.sparsejepa.predictor.grouping
        return None if grouping is None else grouping.group_weight

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        context_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        kl_weight: float | Tensor | None = None,
        sparsity_weight: float | Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        latent_noise: Tensor | None = None,
        output_group_activations: bool = False,
        return_loss: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SparseJEPAForPreTrainingOutput:
        """Computes the loss; shapes as in [`SparseJEPAModel.forward`].

        Args:
            kl_weight: β of this call, in place of the configuration's (warm-up).
            sparsity_weight: λ of this call; used in the loss in penalty mode only.
            return_loss: `False` leaves the loss out and allows calls without masks.

        Raises:
            ValueError: if a loss is wanted without masks.
        """
        if return_loss and (context_mask is None or target_mask is None or kwargs.get("skip_predictor")):
            raise ValueError(
                "The pre-training loss needs context_mask, target_mask and the predictor. Draw masks with "
                "MultiBlockMaskSampler(config.grid_size)(batch_size, step), or pass return_loss=False for features."
            )
        outputs = self.sparsejepa(
            pixel_values,
            context_mask,
            target_mask,
            interpolate_pos_encoding=interpolate_pos_encoding,
            latent_noise=latent_noise,
            output_group_activations=output_group_activations,
            **kwargs,
        )
        config, predicted = self.config, outputs.predictor_output
        loss = prediction_loss = kl_loss = sparsity_loss = None
        if return_loss:
            distance = F.smooth_l1_loss if config.loss_type == "smooth_l1" else F.mse_loss
            loss = prediction_loss = distance(predicted.last_hidden_state.float(), outputs.target_hidden_state)
            kl_loss = sparsity_loss = prediction_loss.new_zeros(())
            if predicted.latent_log_variance is not None:
                kl_loss = kl_divergence(predicted.latent_mean, predicted.latent_log_variance)
                loss = loss + (config.kl_weight if kl_weight is None else kl_weight) * kl_loss
            if self.group_weight is not None:
                penalised = config.sparsity_mode == "penalty"
                with torch.set_grad_enabled(torch.is_grad_enabled() and penalised):
                    sparsity_loss = group_lasso(self.group_weight)
                if penalised:
                    weight = config.sparsity_weight if sparsity_weight is None else sparsity_weight
                    loss = loss + weight * sparsity_loss
        return SparseJEPAForPreTrainingOutput(
            loss=loss,
            prediction_loss=prediction_loss,
            kl_loss=kl_loss,
            sparsity_loss=sparsity_loss,
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=outputs.pooler_output,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            target_hidden_state=outputs.target_hidden_state,
            predictor_output=predicted,
        )


class SparseJEPAVisionModel(SparseJEPAPreTrainedModel):
    """The target encoder alone, from any checkpoint of the family; what AutoModel loads. Every weight is trainable."""

    _keys_to_ignore_on_load_unexpected = [r"(^|\.)context_encoder\.", r"(^|\.)predictor\.", r"^classifier\."]

    _auto_class = "AutoModel"

    def __init__(self, config: SparseJEPAConfig):
        super().__init__(config)
        self.target_encoder = SparseJEPAEncoder(config)
        self.post_init()

    @can_return_tuple
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: Tensor, interpolate_pos_encoding: bool = False, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """(B, C, H, W) -> `last_hidden_state` (B, N, D) and its mean `pooler_output` (B, D)."""
        hidden_states = self.target_encoder(
            pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **_for_attention(kwargs)
        )
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=hidden_states.mean(dim=1))


class SparseJEPABackbone(BackboneMixin, SparseJEPAPreTrainedModel):
    """The target encoder as a backbone: maps of its layers, for transformers' detection and segmentation heads.

    The configuration's `out_features` or `out_indices` choose the layers. Images of any size that the patches divide
    are taken, with sin-cos positions for their grid.
    """

    _keys_to_ignore_on_load_unexpected = SparseJEPAVisionModel._keys_to_ignore_on_load_unexpected

    _auto_class = "AutoBackbone"

    def __init__(self, config: SparseJEPAConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * len(config.stage_names)
        self.sparsejepa = SparseJEPAVisionModel(config)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """(B, C, H, W) -> `feature_maps`, one (B, D, rows, columns) a layer asked for, through the final norm."""
        outputs = self.sparsejepa(pixel_values, **{**kwargs, "interpolate_pos_encoding": True})
        rows = pixel_values.shape[2] // self.config.patch_sides[0]
        norm = self.sparsejepa.target_encoder.layernorm
        maps = tuple(
            norm(states).unflatten(1, (rows, -1)).permute(0, 3, 1, 2).contiguous()
            for stage, states in zip(self.stage_names, outputs.hidden_states, strict=True)
            if stage in self.out_features
        )
        return BackboneOutput(feature_maps=maps, hidden_states=outputs.hidden_states, attentions=outputs.attentions)


class SparseJEPAForImageClassification(SparseJEPAPreTrainedModel):
    """The target encoder with a linear classifier on its mean-pooled features."""

    # The loss is a mean over the batch, so the Trainer must divide it by the accumulation steps itself.
    accepts_loss_kwargs = False

    _keys_to_ignore_on_load_unexpected = SparseJEPAVisionModel._keys_to_ignore_on_load_unexpected[:2]

    _auto_class = "AutoModelForImageClassification"
    _pipeline_tag = "image-classification"

    def __init__(self, config: SparseJEPAConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.sparsejepa = SparseJEPAVisionModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """(B, C, H, W) -> `logits` (B, num_labels), and `loss` if `labels` (B,) are given."""
        outputs = self.sparsejepa(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = [
    "SparseJEPABackbone",
    "SparseJEPAForImageClassification",
    "SparseJEPAForPreTraining",
    "SparseJEPAForPreTrainingOutput",
    "SparseJEPAModel",
    "SparseJEPAModelOutput",
    "SparseJEPAPreTrainedModel",
    "SparseJEPAPredictorOutput",
    "SparseJEPAVisionModel",
    "group_lasso",
    "kl_divergence",
    "sincos_position_embeddings",
]
