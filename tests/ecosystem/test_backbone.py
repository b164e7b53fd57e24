# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""transformers' own detection and segmentation heads on the encoder: they train it, and come back from a folder."""

import pytest
import torch
from transformers import (
    AutoBackbone,
    DetrConfig,
    DetrForObjectDetection,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from sparsejepa_hf import SparseJEPABackbone, SparseJEPAConfig, SparseJEPAVisionModel


@pytest.fixture
def images(make_images):
    return make_images(2, (48, 64))


@pytest.fixture
def make_backbone_config(pretrained):
    return lambda **choice: SparseJEPAConfig.from_pretrained(pretrained, **choice)


def _segmenter(make_config):
    config = UperNetConfig(
        backbone_config=make_config(out_indices=[0, 1, 2]),
        hidden_size=16,
        pool_scales=[1, 2],
        use_auxiliary_head=False,
        num_labels=3,
    )
    return UperNetForSemanticSegmentation(config), {"labels": torch.arange(2 * 48 * 64).view(2, 48, 64) % 3}


def _detector(make_config):
    config = DetrConfig(
        backbone_config=make_config(out_features=["stage2"]),
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=5,
        num_labels=3,
    )
    box = {"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.4]])}
    return DetrForObjectDetection(config), {"labels": [box, box]}


def _instance_segmenter(make_config):
    config = Mask2FormerConfig(
        backbone_config=make_config(out_indices=[0, 1, 2]),
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        dim_feedforward=32,
        num_queries=5,
        num_labels=3,
        feature_strides=[4, 4, 4],
    )
    masks = (torch.arange(2 * 48 * 64).view(2, 48, 64) % 5 == 0).float()
    labels = {"mask_labels": [masks, masks], "class_labels": [torch.tensor([0, 2])] * 2}
    return Mask2FormerForUniversalSegmentation(config), labels


def _backbone_of(model) -> SparseJEPABackbone:
    (backbone,) = (module for module in model.modules() if isinstance(module, SparseJEPABackbone))
    return backbone


def test_the_auto_class_builds_the_maps_asked_for(make_backbone_config, pretrained, images, first_output):
    for choice in ({"out_features": ["stem", "stage2"]}, {"out_indices": [0, 2]}):
        backbone = AutoBackbone.from_config(make_backbone_config(**choice))
        assert isinstance(backbone, SparseJEPABackbone) and backbone.channels == [64, 64]
        assert [tuple(found.shape) for found in first_output(backbone, images)] == [(2, 64, 12, 16)] * 2
    # Of pre-trained weights: the last map is the model's features.
    backbone = SparseJEPABackbone.from_pretrained(pretrained)
    features = first_output(SparseJEPAVisionModel.from_pretrained(pretrained), images, interpolate_pos_encoding=True)
    (found,) = first_output(backbone, images)
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), features)


@pytest.mark.parametrize("make_head", [_segmenter, _detector, _instance_segmenter])
def test_a_head_trains_pre_trained_weights_and_comes_back(
    make_backbone_config, pretrained, images, first_output, tmp_path, make_head
):
    torch.manual_seed(0)
    model, labels = make_head(make_backbone_config)
    backbone = _backbone_of(model)
    backbone.load_state_dict(SparseJEPABackbone.from_pretrained(pretrained).state_dict())
    before = {name: parameter.clone() for name, parameter in backbone.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    model(images, **labels).loss.backward()
    optimizer.step()
    for name, parameter in backbone.named_parameters():
        # A key's bias moves all scores of a query alike, so attention does not see it.
        if not name.endswith("k_proj.bias"):
            assert not torch.equal(parameter, before[name]), name
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    output = "class_queries_logits" if make_head is _instance_segmenter else "logits"
    with torch.no_grad():
        assert torch.equal(again(images)[output], model.eval()(images)[output])
