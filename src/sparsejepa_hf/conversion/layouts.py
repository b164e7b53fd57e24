# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What the weights of one ViT are called elsewhere: one table for both directions, and the checks of what is read."""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor

from ..modeling_sparsejepa import SparseJEPAPreTrainedModel, sincos_position_embeddings


_Model = TypeVar("_Model", bound=SparseJEPAPreTrainedModel)
_POSITIONS = "embeddings.position_embeddings"
# From our names, which are transformers' for I-JEPA too, to those of each layout. Where several of our weights get one
# name, they are joined along their first dimension, in the order of the model.
_LAYOUTS: dict[str, tuple[tuple[str, str], ...]] = {
    "transformers": (),
    # Files of I-JEPA keep the names that it had in earlier versions of transformers.
    "transformers files": (
        (r"^layers\.", "encoder.layer."),
        (r"attention\.([qkv])_proj", r"attention.attention.\1_proj"),
        (r"q_proj", "query"),
        (r"k_proj", "key"),
        (r"v_proj", "value"),
        (r"attention\.o_proj", "attention.output.dense"),
        (r"mlp\.fc1", "intermediate.dense"),
        (r"mlp\.fc2", "output.dense"),
    ),
    # Also those of I-JEPA's original code.
    "timm": (
        (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        (r"^embeddings\.position_embeddings", "pos_embed"),
        (r"^layers\.", "blocks."),
        (r"layernorm_before", "norm1"),
        (r"layernorm_after", "norm2"),
        (r"attention\.[qkv]_proj", "attn.qkv"),
        (r"attention\.o_proj", "attn.proj"),
        (r"^layernorm", "norm"),
        (r"^classifier", "head"),
    ),
}


def clean_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Takes off what torch.compile, DDP and transformers' base models put in front: `_orig_mod.`, `module.`, `ijepa.`.

    Raises:
        ValueError: two names become the same.
    """
    cleaned = {re.sub(r"(^|\.)(?:_orig_mod\.|module\.)+", r"\1", name).removeprefix("ijepa."): name for name in state}
    if len(cleaned) < len(state):
        twice = sorted(set(state) - set(cleaned.values()))
        raise ValueError(
            f"The weights given hold some tensors twice, once behind a prefix, such as {twice[0]!r}; expected each "
            "once. Take one set out."
        )
    return {short: state[name] for short, name in cleaned.items()}


def encoder_weights(model: SparseJEPAPreTrainedModel, encoder: str) -> dict[str, Tensor]:
    """One encoder's weights by their own names, its position table (1, N, D), and those of a classifier.

    The tensors share memory with the model, but for the position table, which is computed. Empty if the model has no
    such encoder.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in clean_names(model.state_dict()).items():
        inner = name.removeprefix("sparsejepa.")
        if inner.startswith(f"{encoder}_encoder."):
            weights[inner.removeprefix(f"{encoder}_encoder.")] = tensor
        elif inner.startswith("classifier."):
            weights[inner] = tensor
    if all(name.startswith("classifier.") for name in weights):
        return {}
    positions = sincos_position_embeddings(model.config.hidden_size, model.config.grid_size)
    return {_POSITIONS: positions[None].to(model.dtype), **weights}


def to_layout(weights: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Copies on the CPU of [`encoder_weights`], under the names of a layout."""
    return {
        name: torch.cat([weights[part].detach().cpu() for part in parts])
        for name, parts in _names(weights, layout).items()
    }


@torch.no_grad()
def from_layout(
    model: _Model, states: Mapping[str, Mapping[str, Tensor]], layout: str, allow: Sequence[str] = ()
) -> _Model:
    """Puts weights under the names of a layout into a new model's encoders and classifier.

    Args:
        model: of this family.
        states: cleaned state dicts, by encoder: `"context"` and `"target"`, of which the model may lack one.
        layout: which names they have, `"transformers"` or `"timm"`.
        allow: patterns, as of file names, of weights that may be unknown, missing or of another shape.

    Returns:
        the model, in evaluation mode and in the type of the weights.

    Raises:
        ValueError: a weight that `allow` does not name is unknown, missing or of another shape, or the positions are
            not sin-cos.
    """
    for encoder, state in states.items():
        own = encoder_weights(model, encoder)
        if not own:
            continue
        if layout == "transformers" and any(name.startswith("encoder.layer.") for name in state):
            layout = "transformers files"
        names = _names(own, layout)
        shapes = {name: torch.cat([own[part].to("meta") for part in parts]).shape for name, parts in names.items()}
        differing = {name for name in names if name in state and state[name].shape != shapes[name]}
        _refuse_differences(
            {
                "unknown": state.keys() - names.keys(),
                "missing": names.keys() - state.keys(),
                "of another shape": {
                    f"{name} {tuple(state[name].shape)}, not {tuple(shapes[name])}" for name in differing
                },
            },
            allow,
        )
        for name in (names.keys() & state.keys()) - differing:
            if names[name] == [_POSITIONS]:
                _refuse_other_positions(name, state[name], own[_POSITIONS], model.config.grid_size)
                continue
            for part, tensor in zip(names[name], state[name].chunk(len(names[name])), strict=True):
                own[part].copy_(tensor)
    dtype = next(tensor.dtype for state in states.values() for tensor in state.values() if tensor.is_floating_point())
    return model.to(dtype=dtype).eval()


def _names(weights: Mapping[str, Tensor], layout: str) -> dict[str, list[str]]:
    """Our names by the layout's, in the model's order."""
    names: dict[str, list[str]] = {}
    for ours in weights:
        theirs = ours
        for pattern, replacement in _LAYOUTS[layout]:
            theirs = re.sub(pattern, replacement, theirs)
        names.setdefault(theirs, []).append(ours)
    return names


def _refuse_differences(differences: Mapping[str, set[str]], allow: Sequence[str]) -> None:
    refused = {
        kind: sorted(name for name in names if not any(fnmatchcase(name.split(" ")[0], pattern) for pattern in allow))
        for kind, names in differences.items()
    }
    lists = [f"{kind}: {', '.join(names)}" for kind, names in refused.items() if names]
    if lists:
        raise ValueError(
            f"The weights given are not those of a plain pre-norm ViT without a class token; {'; '.join(lists)}. "
            "Expected each weight once. If the model may differ by these, name them in allow=(...), also by patterns "
            "such as 'head.*': what is unknown is then left out, and what is missing or of another shape keeps the "
            "values of a new model."
        )


def _refuse_other_positions(name: str, table: Tensor, expected: Tensor, grid_size: tuple[int, int]) -> None:
    distance = (table.float() - expected.float()).abs().max().item()
    # Programs differ in the precision of the angles; a table in half precision is rounded too.
    if not distance <= max(1e-4, torch.finfo(table.dtype).eps):
        raise ValueError(
            f"{name} is up to {distance:.2g} away from the sin-cos positions of a grid of {grid_size[0]}x"
            f"{grid_size[1]} patches, so its positions were learned, or belong to another grid. This family computes "
            "its positions; convert a model with sin-cos positions, such as one of I-JEPA or MAE."
        )
