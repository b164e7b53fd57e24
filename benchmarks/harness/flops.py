# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Operations of a training step: counted from the configuration, and by torch's counter while it runs.

Matrix products alone count, 2·m·n·k for (m, k) by (k, n). A trained product costs twice as much again in the backward
pass (its input's gradient and its weight's), but the patch projection only once: pixels get no gradient.
"""

from collections.abc import Callable
from typing import Any

from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sparsejepa_hf import SparseJEPAConfig


def _linear(tokens: int, inputs: int, outputs: int) -> int:
    return 2 * tokens * inputs * outputs


def _attention(queries: int, keys: int, width: int) -> int:
    """QKᵀ and its product with V, over all heads."""
    return 2 * 2 * queries * keys * width


def _patch_embedding(config: SparseJEPAConfig) -> int:
    (rows, columns), (height, width) = config.grid_size, config.patch_sides
    return _linear(rows * columns, config.num_channels * height * width, config.hidden_size)


def _encoder_layers(config: SparseJEPAConfig, tokens: int) -> int:
    width = config.hidden_size
    projections = 4 * _linear(tokens, width, width) + 2 * _linear(tokens, width, config.intermediate_size)
    return config.num_hidden_layers * (projections + _attention(tokens, tokens, width))


def _predictor_layer(config: SparseJEPAConfig, context: int, blocks: int, target: int, is_last: bool) -> int:
    width, inner = config.predictor_hidden_size, config.predictor_intermediate_size
    queries = blocks * target
    every = context + queries
    used = queries if is_last else every
    projections = 2 * _linear(every, width, width) + 2 * _linear(used, width, width) + 2 * _linear(used, width, inner)
    attention = blocks * _attention(target, context + target, width)
    return projections + attention + (0 if is_last else _attention(context, context, width))


def _predictor(config: SparseJEPAConfig, context: int, blocks: int, target: int) -> int:
    layers = range(1, config.predictor_num_hidden_layers + 1)
    embed = _linear(context, config.hidden_size, config.predictor_hidden_size)
    return embed + sum(_predictor_layer(config, context, blocks, target, index == len(layers)) for index in layers)


def _grouping(config: SparseJEPAConfig, tokens: int) -> int:
    """From the latents to the embedding."""
    groups, size, hidden = config.num_groups, config.group_size, config.generator_hidden_size
    latents = (2 if config.variational else 1) * _linear(tokens, config.predictor_hidden_size, config.num_latents)
    generators = groups * (_linear(tokens, size, hidden) + _linear(tokens, hidden, config.hidden_size // groups))
    return latents + _linear(tokens, config.num_latents, groups * size) + generators


def step_flops(config: SparseJEPAConfig, context: int, blocks: int, target: int) -> dict[str, int]:
    """Operations of one image in a training step, by part.

    Args:
        config: a model with the transformer predictor and the latents behind it.
        context: patches of the context.
        blocks: target blocks.
        target: patches of a block.

    Returns:
        `target_encoder` (forward only), `context_encoder`, `predictor` and `head` (the grouping, or the linear map of
        I-JEPA), forward and backward, and their sum `total`.

    Raises:
        ValueError: for a configuration of another kind.
    """
    if config.predictor_type != "transformer" or config.latent_position != "predictor":
        raise ValueError(
            f"predictor_type is {config.predictor_type!r} and latent_position {config.latent_position!r}; operations "
            "are counted for 'transformer' and 'predictor'."
        )
    patches, targets = config.grid_size[0] * config.grid_size[1], blocks * target
    embedding, linear_head = (
        _patch_embedding(config),
        _linear(targets, config.predictor_hidden_size, config.hidden_size),
    )
    head = _grouping(config, targets) if config.use_grouping else linear_head
    if config.use_grouping and config.latent_residual:
        head += linear_head
    parts = {
        "target_encoder": embedding + _encoder_layers(config, patches),
        "context_encoder": 2 * embedding + 3 * _encoder_layers(config, context),
        "predictor": 3 * _predictor(config, context, blocks, target),
        "head": 3 * head,
    }
    return parts | {"total": sum(parts.values())}


def counted_flops(call: Callable[[], Any]) -> int:
    """Operations of `call` by torch's counter, attention as plain products: fused kernels count otherwise, or not."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()
