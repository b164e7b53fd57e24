# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The side of this family: checkpoints to convert are opened, and models are built for what is converted."""

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from ..configuration_sparsejepa import SparseJEPAConfig
from ..evaluation.encoders import find_processor, pixel_statistics_of
from ..modeling_sparsejepa import (
    SparseJEPAForImageClassification,
    SparseJEPAForPreTraining,
    SparseJEPAModel,
    SparseJEPAPreTrainedModel,
    SparseJEPAVisionModel,
)
from .layouts import encoder_weights, from_layout


logger = logging.get_logger(__name__)

# Attention heads of the ViTs of I-JEPA's code and of timm, by their width; shapes do not tell them.
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}

_NO_CONTEXT = "has no such encoder; expected SparseJEPAForPreTraining or SparseJEPAModel, or encoder='target'."


def load_source(
    source: str | Path | SparseJEPAPreTrainedModel, encoder: str, revision: str
) -> SparseJEPAPreTrainedModel:
    """The model given, or a checkpoint of this family as the smallest class that has the encoder.

    Raises:
        ValueError: the model lacks the encoder or some of its weights, or they are quantised or have adapters.
        OSError: there is no such checkpoint.
    """
    if encoder not in ("target", "context"):
        raise ValueError(f"encoder is {encoder!r}; expected 'target' or 'context'.")
    if isinstance(source, nn.Module):
        model, missing = source, []
    else:
        config = SparseJEPAConfig.from_pretrained(source, revision=revision)
        saved_by = (config.architectures or [""])[0]
        if encoder == "context" and saved_by not in (SparseJEPAForPreTraining.__name__, SparseJEPAModel.__name__):
            raise ValueError(f"The checkpoint {str(source)!r} was saved by {saved_by}, so it {_NO_CONTEXT}")
        is_classifier = saved_by == SparseJEPAForImageClassification.__name__
        model_class = SparseJEPAForImageClassification if is_classifier else SparseJEPAVisionModel
        model_class = SparseJEPAModel if encoder == "context" else model_class
        model, info = model_class.from_pretrained(source, revision=revision, output_loading_info=True)
        missing = sorted(name for name in info["missing_keys"] if not name.startswith("predictor."))
    if missing:
        raise ValueError(f"The checkpoint {str(source)!r} lacks {', '.join(missing)}; expected complete weights.")
    weights = encoder_weights(model, encoder)
    if not weights:
        raise ValueError(f"The model given, {type(model).__name__}, {_NO_CONTEXT}")
    with torch.device("meta"):
        plain = set(encoder_weights(SparseJEPAVisionModel(model.config), "target"))
    if any(name.startswith("classifier.") for name in weights):
        plain |= {"classifier.weight", "classifier.bias"}
    odd = weights.keys() ^ plain
    odd |= {name for name in weights if type(weights[name]) is not Tensor or not weights[name].is_floating_point()}
    if odd:
        raise ValueError(
            f"The encoder of the model given, {type(model).__name__}, is not plain: {', '.join(sorted(odd)[:4])} and "
            f"so on ({len(odd)} in all). Expected one floating-point tensor for each weight; merge adapters first, "
            "and load without quantisation."
        )
    return model


def build_model(
    model_class: type[SparseJEPAPreTrainedModel] | None,
    fields: dict[str, Any],
    states: Mapping[str, dict[str, Tensor]],
    layout: str,
    allow: Sequence[str],
    overrides: Mapping[str, Any],
) -> Any:
    """A model of this family with weights of a layout, see [`layouts.from_layout`].

    Args:
        model_class: by default a classifier where the weights have a head that is not to be left out, else the
            encoder alone.
        fields: configuration that the weights need.
        states: cleaned state dicts by encoder.
        layout: of their names.
        allow: weights that may differ.
        overrides: configuration that the user asks for.
    """
    state = states["target"]
    head = "head.weight" if layout == "timm" else "classifier.weight"
    # A head on a class token means nothing to the mean over patches.
    has_head = (head in state and "cls_token" not in state) and not any(fnmatchcase(head, name) for name in allow)
    model_class = model_class or (SparseJEPAForImageClassification if has_head else SparseJEPAVisionModel)
    if model_class in (SparseJEPAForImageClassification, SparseJEPAVisionModel):
        fields = {"use_grouping": False} | fields
    config = SparseJEPAConfig(**{**fields, **overrides})
    return from_layout(model_class(config), states, layout, allow)


def fields_from_shapes(state: dict[str, Tensor], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Configuration of an encoder by the shapes of its weights under timm's names.

    The row of a class token is taken off the position table in `state`. Layer norms have the epsilon 1e-6 and the
    activation is GELU, as in I-JEPA's code and timm, unless `overrides` say otherwise.

    Raises:
        ValueError: shapes do not tell the sizes, and `overrides` do not either.
    """
    projection = state.get("patch_embed.proj.weight")
    if projection is None or projection.ndim != 4:
        found = "is missing" if projection is None else f"has the shape {tuple(projection.shape)}"
        raise ValueError(
            f"patch_embed.proj.weight {found}; expected (width, channels, height, width) among weights named as in "
            f"timm or I-JEPA's code, not {', '.join(sorted(state)[:3])} and so on."
        )
    width, channels, *patch = projection.shape
    fields: dict[str, Any] = {"hidden_size": width, "num_channels": channels, "patch_size": patch}
    blocks = [int(name.split(".")[1]) for name in state if name.startswith("blocks.")]
    fields["num_hidden_layers"] = 1 + max(blocks, default=0)
    hidden = state.get("blocks.0.mlp.fc1.weight")
    fields["intermediate_size"] = 4 * width if hidden is None else hidden.shape[0]
    fields["qkv_bias"] = "blocks.0.attn.qkv.bias" in state
    if "head.weight" in state:
        fields["num_labels"] = state["head.weight"].shape[0]
    if "num_attention_heads" not in overrides:
        if width not in _HEADS:
            raise ValueError(
                f"The encoder is {width} wide, and weights do not tell its attention heads; pass num_attention_heads."
            )
        fields["num_attention_heads"] = _HEADS[width]
    return fields | _image_size(state, patch, overrides)


def _image_size(state: dict[str, Tensor], patch: list[int], overrides: Mapping[str, Any]) -> dict[str, Any]:
    rows = state["pos_embed"].shape[-2] if "pos_embed" in state else 0
    if "cls_token" in state and math.isqrt(rows) ** 2 != rows:
        rows -= 1
        state["pos_embed"] = state["pos_embed"][:, 1:]
    side = math.isqrt(rows)
    if "image_size" in overrides:
        return {}
    if not rows or side**2 != rows:
        raise ValueError(
            f"The position table has {rows} rows, which is no square grid; pass image_size=[height, width]."
        )
    return {"image_size": side * patch[0] if patch[0] == patch[1] else [side * length for length in patch]}


def refuse_own_folder(source: Any, folder: str | Path) -> None:
    """Raises a ValueError where an export would overwrite what it is made of."""
    if isinstance(source, (str, Path)) and Path(source).is_dir() and Path(folder).resolve() == Path(source).resolve():
        raise ValueError(f"{str(folder)!r} is the checkpoint itself, which would be overwritten; name another folder.")


def pixel_statistics(source: Any, num_channels: int, revision: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, of pixels from 0 to 1, by the checkpoint's image processor; 0.5
    without one.

    Raises:
        ValueError: the image processor is for another number of channels.
    """
    processor = None if isinstance(source, nn.Module) else find_processor(str(source), revision=revision)
    if processor is None:
        logger.warning(
            "The model given does not say how images are normalised; mean and standard deviation are taken as 0.5. "
            "Save its image processor beside it, or change the exported one."
        )
        return [0.5] * num_channels, [0.5] * num_channels
    mean, std = pixel_statistics_of(processor, num_channels)
    if not len(mean) == len(std) == num_channels:
        raise ValueError(
            f"The image processor has the mean {mean} and the standard deviation {std}; expected {num_channels} "
            "numbers each, one for each channel of the model. Mend the checkpoint's preprocessor_config.json."
        )
    return mean, std
