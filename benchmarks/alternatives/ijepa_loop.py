# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A straightforward I-JEPA training loop, as commonly written.

It has timm's blocks, the predictor's context repeated for each target block, the average of the weights in a loop over
tensors, and AdamW with its defaults. Written from the paper (arXiv 2301.08243); positions, masks, token counts and
sizes are the same as ours.
"""

import copy
from functools import partial

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from sparsejepa_hf import SparseJEPAConfig
from sparsejepa_hf.modeling_sparsejepa import sincos_position_embeddings


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens (B, N, D) at indices (B, n) -> (B, n, D)."""
    return tokens.gather(1, index[..., None].expand(*index.shape, tokens.shape[-1]))


class LoopTransformer(nn.Module):
    """Positions, timm's blocks and a final norm, which the encoder and the predictor share."""

    def __init__(self, config: SparseJEPAConfig, width: int, depth: int, heads: int, inner: int):
        super().__init__()
        self.register_buffer("positions", sincos_position_embeddings(width, config.grid_size)[None])
        norm = partial(nn.LayerNorm, eps=config.layer_norm_eps)
        self.blocks = nn.ModuleList(
            Block(width, heads, inner / width, qkv_bias=config.qkv_bias, norm_layer=norm) for _ in range(depth)
        )
        self.norm = norm(width)

    def run_blocks(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


class LoopEncoder(LoopTransformer):
    """A ViT without a class token: (B, C, H, W) -> (B, N, D), or the tokens at `context_mask`."""

    def __init__(self, config: SparseJEPAConfig):
        width, depth, heads = config.hidden_size, config.num_hidden_layers, config.num_attention_heads
        super().__init__(config, width, depth, heads, config.intermediate_size)
        self.patch_embed = nn.Conv2d(config.num_channels, width, config.patch_sides, config.patch_sides)

    def forward(self, pixel_values: Tensor, context_mask: Tensor | None = None) -> Tensor:
        tokens = self.patch_embed(pixel_values).flatten(2).transpose(1, 2) + self.positions
        if context_mask is not None:
            tokens = take(tokens, context_mask)
        return self.norm(self.run_blocks(tokens))


class LoopPredictor(LoopTransformer):
    """The narrow ViT over the context and one target block: (B, Nc, D), (B, Nc), (B, Nt) -> (B, Nt, D)."""

    def __init__(self, config: SparseJEPAConfig):
        width, depth = config.predictor_hidden_size, config.predictor_num_hidden_layers
        heads, inner = config.predictor_num_attention_heads, config.predictor_intermediate_size
        super().__init__(config, width, depth, heads, inner)
        self.embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.head = nn.Linear(width, config.hidden_size)

    def forward(self, context: Tensor, context_mask: Tensor, target: Tensor) -> Tensor:
        positions = self.positions.repeat(len(context), 1, 1)
        tokens = self.embed(context) + take(positions, context_mask)
        queries = self.mask_token + take(positions, target)
        tokens = self.run_blocks(torch.cat([tokens, queries], dim=1))
        return self.head(self.norm(tokens[:, context.shape[1] :]))


class Loop:
    """Each call is one optimizer step of I-JEPA with the modules given. A subclass has `loss`.

    Args:
        encoder: what is trained and averaged.
        predictor: from the context and the masks to the targets.
        device: where it runs.
        autocast: run the forward pass in bf16.
        momentum: of the target encoder.
    """

    def __init__(
        self, encoder: nn.Module, predictor: nn.Module, device: torch.device | str, autocast: bool, momentum: float
    ):
        self.encoder, self.predictor = encoder.to(device), predictor.to(device)
        self.target_encoder = copy.deepcopy(self.encoder)
        self.device, self.autocast, self.momentum = torch.device(device), autocast, momentum
        parameters = [p for p in (*encoder.parameters(), *predictor.parameters()) if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)

    def __call__(self, pixel_values: Tensor, context_mask: Tensor, target_mask: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = self.loss(pixel_values, context_mask, target_mask)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.update_target()
        return loss.detach()

    def loss(self, pixel_values: Tensor, context_mask: Tensor, target_mask: Tensor) -> Tensor:
        """Smooth-L1 between prediction and normalised target, a mean over the blocks."""
        raise NotImplementedError

    @torch.no_grad()
    def update_target(self) -> None:
        """θ̄ ← m θ̄ + (1−m) θ, one tensor after another."""
        for average, parameter in zip(self.target_encoder.parameters(), self.encoder.parameters(), strict=True):
            average.lerp_(parameter, 1.0 - self.momentum)


class StraightforwardLoop(Loop):
    """The loop of this module's head, in the sizes of `config`; other arguments as of [`Loop`]."""

    def __init__(
        self,
        config: SparseJEPAConfig,
        device: torch.device | str = "cpu",
        autocast: bool = False,
        momentum: float = 0.996,
    ):
        super().__init__(LoopEncoder(config), LoopPredictor(config), device, autocast, momentum)

    def unfuse_attention(self) -> None:
        """Switches timm's fused attention off, as TIMM_FUSED_ATTN=0 does for a whole process."""
        for block in [*self.encoder.blocks, *self.predictor.blocks, *self.target_encoder.blocks]:
            block.attn.fused_attn = False

    def loss(self, pixel_values: Tensor, context_mask: Tensor, target_mask: Tensor) -> Tensor:
        with torch.no_grad():
            targets = self.target_encoder(pixel_values)
            targets = F.layer_norm(targets.float(), (targets.shape[-1],))
        context = self.encoder(pixel_values, context_mask)
        # Each block has its own copy of the context; as commonly written, the copies lie along the batch.
        blocks = target_mask.shape[1]
        predicted = self.predictor(
            context.repeat_interleave(blocks, dim=0),
            context_mask.repeat_interleave(blocks, dim=0),
            target_mask.flatten(0, 1),
        )
        wanted = take(targets, target_mask.flatten(1)).view(-1, target_mask.shape[2], targets.shape[-1])
        return F.smooth_l1_loss(predicted.float(), wanted)


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
