# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""torch.compile and torch.export: one graph that computes the same, at sizes it was not traced with too."""

import pytest
import torch
from torch.export import Dim

from sparsejepa_hf import (
    SparseJEPABackbone,
    SparseJEPAForImageClassification,
    SparseJEPAForPreTraining,
    SparseJEPAVisionModel,
)


CLASSES = (SparseJEPAVisionModel, SparseJEPAForImageClassification, SparseJEPABackbone)


def _tensor(output) -> torch.Tensor:
    """The first output; of a backbone, its first map."""
    first = output[0] if isinstance(output, tuple) else next(iter(output.values()))
    return first[0] if isinstance(first, tuple) else first


def _close(actual, expected) -> None:
    torch.testing.assert_close(_tensor(actual), _tensor(expected), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model_class", CLASSES)
def test_one_graph_without_breaks(make_model, pixel_values, model_class):
    model = make_model(model_class)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        _close(compiled(pixel_values), model(pixel_values))


def test_training_is_one_graph_too(make_model, make_images):
    model = make_model(SparseJEPAForImageClassification, num_labels=3).train()
    batch = {"pixel_values": make_images(), "labels": torch.tensor([0, 2])}
    expected = torch.autograd.grad(model(**batch).loss, model.parameters())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(**batch).loss, model.parameters())
    for gradient, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_compiled_to_machine_code(make_model, pixel_values):
    model = make_model(SparseJEPAVisionModel)
    with torch.no_grad():
        _close(torch.compile(model, fullgraph=True)(pixel_values), model(pixel_values))


@pytest.mark.parametrize("model_class", CLASSES)
def test_an_exported_program_takes_any_batch(make_model, make_images, model_class, tmp_path):
    model = make_model(model_class)
    shapes = {"pixel_values": {0: Dim.DYNAMIC}}
    program = torch.export.export(model, (), {"pixel_values": make_images(2)}, dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for batch in (1, 5):
        images = make_images(batch, seed=batch)
        with torch.no_grad():
            _close(loaded(pixel_values=images), model(images))


@pytest.mark.parametrize("model_class", CLASSES)
def test_an_exported_program_takes_any_size(make_model, make_images, model_class):
    model = make_model(model_class)
    # A backbone always interpolates.
    options = {} if model_class is SparseJEPABackbone else {"interpolate_pos_encoding": True}
    shapes = {"pixel_values": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}, **dict.fromkeys(options)}
    example = {"pixel_values": make_images(2, (36, 40)), **options}
    program = torch.export.export(model, (), example, dynamic_shapes=shapes).module()
    # The trained size too, and more patches than plain products are used for.
    for batch, size in ((1, (32, 32)), (2, (24, 44)), (3, (64, 64))):
        images = make_images(batch, size)
        with torch.no_grad():
            _close(program(pixel_values=images, **options), model(images, **options))


def test_the_exported_loss_is_the_loss(make_model, pixel_values, masks):
    model = make_model(SparseJEPAForPreTraining, sparsity_weight=1e-2, kl_weight=0.1)
    program = torch.export.export(model, (), {"pixel_values": pixel_values, **masks}).module()
    with torch.no_grad():
        _close(program(pixel_values=pixel_values, **masks), model(pixel_values, **masks))
