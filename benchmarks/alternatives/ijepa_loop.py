# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A straightforward I-JEPA training loop, as commonly written: timm's blocks, the predictor's context
repeated for each target block, the average of the weights in a loop over tensors, AdamW as it comes.

Written from the paper (arXiv 2301.08243). It uses the same positions, masks, token counts and sizes as ours.
"""

import copy
from functools import partial

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from sparsejepa_hf import SparseJEPAConfig, SparseJEPAForPreTraining
from sparsejepa_hf.modeling_sparsejepa import sincos_position_embeddings


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens (B, N, D) at indices (B, n) -> (B, n, D)."""
    return tokens.gather(1, index[..., None].expand(*index.shape, tokens.shape[-1]))


@torch.no_grad()
def average_in_a_loop(target_encoder: nn.Module, encoder: nn.Module, momentum: float) -> None:
    """θ̄ ← m θ̄ + (1−m) θ, one tensor after another."""
    for average, parameter in zip(target_encoder.parameters(), encoder.parameters(), strict=True):
        average.lerp_(parameter, 1.0 - momentum)


class LoopEncoder(nn.Module):
    """A ViT of timm's blocks without a class token; (B, C, H, W) -> (B, N, D), or the tokens at `context_mask`."""

    def __init__(self, config: SparseJEPAConfig):
        super().__init__()
        width, patch = config.hidden_size, config.patch_sides
        self.patch_embed = nn.Conv2d(config.num_channels, width, patch, patch)
        self.register_buffer("positions", sincos_position_embeddings(width, config.grid_size)[None])
        ratio = config.intermediate_size / width
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        norm = partial(nn.LayerNorm, eps=config.layer_norm_eps)
        self.blocks = nn.ModuleList(
            [
                Block(width, config.num_attention_heads, ratio, qkv_bias=config.qkv_bias, norm_layer=norm)
                for _ in range(config.num_hidden_layers)
            ]
        )

    def forward(self, pixel_values: Tensor, context_mask: Tensor | None = None) -> Tensor:
        tokens = self.patch_embed(pixel_values).flatten(2).transpose(1, 2) + self.positions
        if context_mask is not None:
            tokens = take(tokens, context_mask)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)


class LoopPredictor(nn.Module):
    """The narrow ViT over the context and one target block: (B, Nc, D), (B, Nc), (B, Nt) -> (B, Nt, D)."""

    def __init__(self, config: SparseJEPAConfig):
        super().__init__()
        width = config.predictor_hidden_size
        self.embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", sincos_position_embeddings(width, config.grid_size)[None])
        ratio, heads = config.predictor_intermediate_size / width, config.predictor_num_attention_heads
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        norm = partial(nn.LayerNorm, eps=config.layer_norm_eps)
        self.blocks = nn.ModuleList(
            [
                Block(width, heads, ratio, qkv_bias=config.qkv_bias, norm_layer=norm)
                for _ in range(config.predictor_num_hidden_layers)
            ]
        )
        self.head = nn.Linear(width, config.hidden_size)

    def forward(self, context: Tensor, context_mask: Tensor, target: Tensor) -> Tensor:
        positions = self.positions.repeat(len(context), 1, 1)
        tokens = self.embed(context) + take(positions, context_mask)
        queries = self.mask_token + take(positions, target)
        tokens = torch.cat([tokens, queries], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens[:, context.shape[1] :]))


class Loop:
    """One optimizer step for each call, whatever the modules: a subclass has `encoder`, `predictor`, `target_encoder`,
    `optimizer`, `device`, `autocast`, `momentum` and `loss`."""

    def __call__(self, pixel_values: Tensor, context_mask: Tensor, target_mask: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = self.loss(pixel_values, context_mask, target_mask)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.update_target()
        return loss.detach()

    def update_target(self) -> None:
        """θ̄ ← m θ̄ + (1−m) θ."""
        average_in_a_loop(self.target_encoder, self.encoder, self.momentum)


class StraightforwardLoop(Loop):
    """One optimizer step of I-JEPA for each call.

    Args:
        config: sizes; the grouping is not used.
        device: where it runs.
        autocast: run the forward pass in bf16.
        momentum: of the target encoder.
    """

    def __init__(
        self,
        config: SparseJEPAConfig,
        device: torch.device | str = "cpu",
        autocast: bool = False,
        momentum: float = 0.996,
    ):
        self.encoder = LoopEncoder(config).to(device)
        self.predictor = LoopPredictor(config).to(device)
        self.target_encoder = copy.deepcopy(self.encoder)
        self.device, self.autocast, self.momentum = torch.device(device), autocast, momentum
        parameters = [*self.encoder.parameters(), *self.predictor.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)

    def unfuse_attention(self) -> None:
        """Switches timm's fused attention off, as TIMM_FUSED_ATTN=0 does for a whole process."""
        for block in [*self.encoder.blocks, *self.predictor.blocks, *self.target_encoder.blocks]:
            block.attn.fused_attn = False

    def load(self, model: SparseJEPAForPreTraining) -> None:
        """Takes the weights of one of our models without grouping, so that both compute from the same numbers."""
        ours = model.sparsejepa
        _copy_encoder(ours.context_encoder, self.encoder)
        _copy_encoder(ours.target_encoder, self.target_encoder)
        trunk = ours.predictor.trunk
        self.predictor.embed.load_state_dict(trunk.embed.state_dict())
        self.predictor.head.load_state_dict(ours.predictor.head.projection.state_dict())
        self.predictor.norm.load_state_dict(trunk.layernorm.state_dict())
        self.predictor.mask_token.data.copy_(trunk.mask_token.data[0])
        copy_layers(trunk.layers, self.predictor.blocks)

    def loss(self, pixel_values: Tensor, context_mask: Tensor, target_mask: Tensor) -> Tensor:
        """Smooth-L1 between prediction and normalised target, a mean over the blocks."""
        with torch.no_grad():
            targets = self.target_encoder(pixel_values)
            targets = F.layer_norm(targets.float(), (targets.shape[-1],))
        context = self.encoder(pixel_values, context_mask)
        # Each block has a copy of the context of its own; as commonly written, the copies lie along the batch.
        blocks = target_mask.shape[1]
        predicted = self.predictor(
            context.repeat_interleave(blocks, dim=0),
            context_mask.repeat_interleave(blocks, dim=0),
            target_mask.flatten(0, 1),
        )
        wanted = take(targets, target_mask.flatten(1)).view(-1, target_mask.shape[2], targets.shape[-1])
        return F.smooth_l1_loss(predicted.float(), wanted)


def _copy_encoder(ours: nn.Module, theirs: LoopEncoder) -> None:
    theirs.patch_embed.load_state_dict(ours.embeddings.patch_embeddings.projection.state_dict())
    theirs.norm.load_state_dict(ours.layernorm.state_dict())
    copy_layers(ours.layers, theirs.blocks)


@torch.no_grad()
def copy_layers(ours: nn.ModuleList, theirs: nn.ModuleList) -> None:
    """Copies the weights of our layers into timm's blocks of the same sizes."""
    for layer, block in zip(ours, theirs, strict=True):
        attention = layer.attention
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        block.attn.qkv.weight.copy_(torch.cat([projection.weight for projection in projections]))
        if block.attn.qkv.bias is not None:
            block.attn.qkv.bias.copy_(torch.cat([projection.bias for projection in projections]))
        for name, module in (("norm1", "layernorm_before"), ("norm2", "layernorm_after")):
            getattr(block, name).load_state_dict(getattr(layer, module).state_dict())
        block.attn.proj.load_state_dict(attention.o_proj.state_dict())
        block.mlp.fc1.load_state_dict(layer.mlp.fc1.state_dict())
        block.mlp.fc2.load_state_dict(layer.mlp.fc2.state_dict())
