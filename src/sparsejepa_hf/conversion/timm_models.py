# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""ViTs of timm in both directions; `timm` is imported when it is needed, since that takes seconds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from ..evaluation.features import frozen_module
from ..modeling_sparsejepa import SparseJEPAPreTrainedModel
from .layouts import clean_names, encoder_weights, to_layout
from .models import build_model, fields_from_shapes, load_source, pixel_statistics, refuse_own_folder


# transformers' names of activations by timm's.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}
_EPSILON = 1e-6


def from_timm(
    source: str | Mapping[str, Tensor] | nn.Module,
    *,
    model_class: type[SparseJEPAPreTrainedModel] | None = None,
    allow: Sequence[str] = (),
    **overrides: Any,
) -> Any:
    """A model of this family with the weights of a ViT of timm that has sin-cos positions and no class token.

    A model, by name or in memory, is run beside the converted one, and another result is refused. Of a state dict the
    names and shapes are checked.

    Args:
        source: a name of timm, such as `vit_huge_patch14_gap_224.in1k_ijepa`, with timm's weights; a
            `VisionTransformer`; or a state dict of one.
        model_class: of this family; by default [`SparseJEPAForImageClassification`] for weights with a head, else
            [`SparseJEPAVisionModel`]. A class with two encoders gets the same one twice.
        allow: weights, by name or pattern, that may be left out, missing or of another shape, such as `("cls_token",)`
            of a masked autoencoder. The result then computes something else than the source, and is not compared.
        **overrides: configuration; for a state dict also what it does not tell: `num_attention_heads`,
            `layer_norm_eps`, `hidden_act`. Encoders alone get `use_grouping=False` unless it is given.

    Returns:
        the model in evaluation mode on the CPU, in the type of the weights.

    Raises:
        ValueError: it is no such ViT; weights that `allow` does not name are unknown, missing or of another shape; or
            positions were learned.
    """
    module = None
    if isinstance(source, Mapping):
        state = clean_names(source)
    else:
        module = _load_timm(source)
        state, overrides = clean_names(module.state_dict()), {**_fields_of(module), **overrides}
    fields = fields_from_shapes(state, overrides)
    model = build_model(model_class, fields, {"context": state, "target": state}, "timm", allow, overrides)
    if module is not None and not allow:
        _refuse_other_results(module, model)
    return model


def to_timm(
    source: str | Path | SparseJEPAPreTrainedModel,
    folder: str | Path | None = None,
    *,
    encoder: str = "target",
    revision: str = "main",
) -> nn.Module:
    """One encoder, or a classifier, as a `VisionTransformer` of timm without class token and with mean pooling.

    Its state dict has the names of I-JEPA's original code.

    Args:
        source: a model of this family, or the folder or Hub name of its checkpoint.
        folder: where to save it too, for `timm.create_model("local-dir:FOLDER", pretrained=True)`.
        encoder: `"target"` or `"context"`.
        revision: of a checkpoint on the Hub.

    Returns:
        the model in evaluation mode on the CPU, in the type of the weights.

    Raises:
        ValueError: the model lacks the encoder; timm lacks its activation; or a folder is given and the epsilon of its
            norms is not 1e-6, the only one that timm can save.
        OSError: there is no such checkpoint.
    """
    import timm
    from timm.models import save_for_hf

    if folder is not None:
        refuse_own_folder(source, folder)
    model = load_source(source, encoder, revision)
    config, state = model.config, to_layout(encoder_weights(model, encoder), "timm")
    names = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    if config.hidden_act not in names:
        raise ValueError(f"hidden_act is {config.hidden_act!r}; timm has {', '.join(names)}.")
    if folder is not None and config.layer_norm_eps != _EPSILON:
        raise ValueError(
            f"layer_norm_eps is {config.layer_norm_eps}, and timm can only save {_EPSILON}. Leave folder out, or "
            "export it as I-JEPA with export_encoder."
        )
    arguments = {
        "img_size": list(config.image_sides),
        "patch_size": list(config.patch_sides),
        "in_chans": config.num_channels,
        "num_classes": config.num_labels if "head.weight" in state else 0,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        # timm multiplies and rounds down.
        "mlp_ratio": (config.intermediate_size + 0.5) / config.hidden_size,
        "qkv_bias": config.qkv_bias,
        "act_layer": names[config.hidden_act],
        "global_pool": "avg",
        "class_token": False,
        "fc_norm": False,
    }
    described: dict[str, Any] = {
        "num_classes": arguments["num_classes"],
        "input_size": (config.num_channels, *config.image_sides),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    labels = {"label_names": list(config.id2label.values())} if "head.weight" in state else {}
    described |= labels
    if folder is not None:
        described["mean"], described["std"] = pixel_statistics(source, config.num_channels, revision)
    # Any name of this architecture would do.
    converted = timm.create_model("vit_tiny_patch16_224", pretrained_cfg=described, **arguments)
    for module in converted.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = config.layer_norm_eps
    converted.to(model.dtype).eval().load_state_dict(state)
    if folder is not None:
        save_for_hf(converted, str(folder), model_config=labels, model_args=arguments, safe_serialization=True)
    return converted


def _load_timm(source: str | nn.Module) -> nn.Module:
    import timm
    from timm.models.vision_transformer import VisionTransformer

    module = timm.create_model(source, pretrained=True) if isinstance(source, str) else source
    if not isinstance(module, VisionTransformer):
        raise ValueError(f"A {type(module).__name__} is given; expected a VisionTransformer of timm.")
    return module


def _fields_of(module: Any) -> dict[str, Any]:
    """What a VisionTransformer knows beside the shapes of its weights."""
    block = module.blocks[0]
    if not hasattr(block, "attn") or not hasattr(block, "mlp"):
        raise ValueError(f"The blocks are of the kind {type(block).__name__}; expected timm's Block.")
    points = torch.linspace(-3, 3, 61)
    names = (name for name in _ACTIVATIONS.values() if torch.allclose(ACT2FN[name](points), block.mlp.act(points)))
    fields = {
        "num_attention_heads": block.attn.num_heads,
        "layer_norm_eps": block.norm1.eps,
        "hidden_act": next(names, "gelu"),
        "image_size": list(module.patch_embed.img_size),
    }
    classes = getattr(module, "pretrained_cfg", {}).get("label_names")
    # timm may also name some classes only, by number.
    if isinstance(classes, (list, tuple)) and len(classes) == module.num_classes:
        fields["id2label"] = dict(enumerate(classes))
        fields["label2id"] = {name: number for number, name in enumerate(classes)}
    return fields


@torch.no_grad()
def _refuse_other_results(module: Any, model: Any) -> None:
    """Names and shapes do not tell the pooling or the order of the norms, so both are run on an image."""
    device = next(module.parameters()).device
    shape = (1, model.config.num_channels, *model.config.image_sides)
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    with frozen_module(module, device, device):
        if hasattr(model, "classifier"):
            expected, result = module(image.to(device)), model(image).logits
        else:
            expected = module.forward_features(image.to(device))
            result = getattr(model, "sparsejepa", model)(image).last_hidden_state
    expected, scale = expected.cpu().float(), expected.abs().max().item()
    distance = (result.float() - expected).abs().max().item()
    if not distance <= torch.finfo(model.dtype).eps ** 0.5 * scale:
        raise ValueError(
            f"The converted model's output differs by {distance:.2g} from that of the {type(module).__name__} given, "
            f"whose largest is {scale:.2g}. Expected pre-norm blocks of one kind, and mean pooling before a head. "
            "Leave a head of another pooling out with allow=('head.*',)."
        )
