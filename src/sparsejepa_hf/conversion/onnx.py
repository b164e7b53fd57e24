# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Features or logits as an ONNX graph."""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ..modeling_sparsejepa import (
    SparseJEPABackbone,
    SparseJEPAForImageClassification,
    SparseJEPAForPreTraining,
    SparseJEPAPreTrainedModel,
)
from .models import load_source


class _NamedOutputs(nn.Module):
    """A model's outputs of these names, from images alone."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], any_size: bool):
        super().__init__()
        self.model, self.names, self.any_size = model, names, any_size

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        output = self.model(pixel_values, interpolate_pos_encoding=self.any_size)
        return tuple(output[name] for name in self.names)


def export_onnx(
    source: str | Path | SparseJEPAPreTrainedModel,
    path: str | Path,
    *,
    any_size: bool = False,
    revision: str = "main",
) -> Path:
    """Writes what a model makes of images as an ONNX graph.

    The graph takes `pixel_values` (batch, C, height, width), prepared as the checkpoint's image processor does, and
    returns `logits` (batch, labels) of a classifier, else `last_hidden_state` (batch, N, D) and `pooler_output`
    (batch, D) of the target encoder. The batch size is free. Weights and numbers have the model's type.

    Args:
        source: a model, or a checkpoint's folder or id on the Hub.
        path: file to write; its folder exists.
        any_size: height and width are free too: any multiple of the patch's sides. The graph then computes positions
            for each call, as with `interpolate_pos_encoding=True`.
        revision: of a checkpoint on the Hub.

    Returns:
        `path`.

    Raises:
        ValueError: the model given is none of this family, or its weights are quantised or have adapters.
        ImportError: onnxscript is not installed.
    """
    model = load_source(source, "target", revision)
    if isinstance(model, (SparseJEPABackbone, SparseJEPAForPreTraining)):
        # The part that answers to images alone.
        model = model.sparsejepa
    is_classifier = isinstance(model, SparseJEPAForImageClassification)
    names = ("logits",) if is_classifier else ("last_hidden_state", "pooler_output")
    sides = model.config.image_sides
    axes = {0: "batch", 2: "height", 3: "width"} if any_size else {0: "batch"}
    # Sizes that a free axis may not be fixed at: one image, or the trained size.
    patch = model.config.patch_sides
    example = [length + step for length, step in zip(sides, patch, strict=True)] if any_size else sides
    images = torch.zeros(2, model.config.num_channels, *example, dtype=model.dtype, device=model.device)
    was_training = model.training
    try:
        program = torch.onnx.export(
            _NamedOutputs(model, names, any_size).eval(),
            (images,),
            dynamo=True,
            verbose=False,
            input_names=["pixel_values"],
            output_names=list(names),
            dynamic_shapes={"pixel_values": axes},
        )
    finally:
        model.train(was_training)
    cast(torch.onnx.ONNXProgram, program).save(str(path))
    return Path(path)


__all__ = ["export_onnx"]
