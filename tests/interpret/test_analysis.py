# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""All questions at once: each is answered or says why not, whatever the checkpoint and the data lack."""

import json

import pytest
import torch
from transformers import ViTImageProcessor

from sparsejepa_hf import SparseJEPAForPreTraining
from sparsejepa_hf.data import build_scenes
from sparsejepa_hf.evaluation import load_encoder
from sparsejepa_hf.interpret import explain
from sparsejepa_hf.interpret.report import write_report


KEYS = ["objects", "classes", "factors", "information", "stability", "ablation"]


@pytest.fixture(scope="module")
def scenes():
    return build_scenes(80, seed=3)


@pytest.fixture(scope="module")
def save(make_model, tmp_path_factory):
    """Saves a tiny model, changed by a function, and loads it as an encoder."""

    def build(change=None, seed=0, **overrides):
        model = make_model(SparseJEPAForPreTraining, seed=seed, **overrides)
        if change is not None:
            with torch.no_grad():
                change(model.sparsejepa.predictor.grouping)
        folder = tmp_path_factory.mktemp("checkpoint")
        model.save_pretrained(folder)
        ViTImageProcessor(image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(folder)
        return load_encoder(folder)

    return build


def ask(*arguments, **options):
    explanation = explain(*arguments, progress=False, **options)
    assert [section.key for section in explanation.sections] == KEYS
    json.dumps(explanation.to_dict(), allow_nan=False)
    return explanation, {section.key: section for section in explanation.sections}


def test_with_masks_factors_labels_and_a_second_seed_all_is_measured(save, scenes):
    explanation, sections = ask(
        save(), scenes, untrained=save(seed=5), baseline=save(use_grouping=False), siblings=[save(seed=9)]
    )
    assert all(section.is_measured and section.measures for section in sections.values())
    assert {null.name for null in sections["objects"].measures[0].nulls} >= {"shuffled masks"}
    assert any("untrained" in null.name for null in sections["objects"].measures[0].nulls)
    assert len(explanation.record) == 80 and explanation.structure is not None


def test_an_i_jepa_has_no_groups_and_the_page_still_appears(save, scenes, tmp_path):
    explanation, sections = ask(save(use_grouping=False), scenes)
    assert explanation.structure is None
    assert all(not section.is_measured and "I-JEPA" in section.finding for section in sections.values())
    page = write_report(tmp_path / "page.html", explanation).read_text(encoding="utf-8")
    assert all(section.title in page for section in sections.values())


def test_without_labels_and_masks_the_rest_is_measured(save, scenes):
    _, sections = ask(save(), scenes.select_columns(["image"]))
    assert [key for key in KEYS if sections[key].is_measured] == ["information", "ablation"]
    assert "no labels" in sections["classes"].finding and "no column `mask`" in sections["objects"].finding
    assert "seed" in sections["stability"].finding and "no labels" in sections["ablation"].finding


@pytest.mark.parametrize("count", [1, 2])
def test_few_images_are_said_to_be_few(save, scenes, count, tmp_path):
    explanation, sections = ask(save(), scenes.select(range(count)))
    assert not sections["information"].is_measured and "image" in sections["information"].finding
    assert write_report(tmp_path / "page.html", explanation).stat().st_size > 1000


def test_one_class_tells_nothing(save, scenes):
    one = scenes.remove_columns("label").add_column("label", [0] * 80)
    _, sections = ask(save(), one)
    assert not sections["classes"].is_measured and "same value of 'label'" in sections["classes"].finding


def test_w_of_zeros_a_dense_w_and_latents_in_the_encoder(save, scenes, tmp_path):
    explanation, sections = ask(save(lambda grouping: grouping.group_weight.zero_()), scenes)
    assert explanation.structure.zero_columns == 1
    # What is left is what latents and features tell without any group.
    assert [key for key in KEYS if sections[key].is_measured] == ["factors", "information"]
    assert "W of zeros" in sections["objects"].finding and "W is zero" in sections["ablation"].finding
    write_report(tmp_path / "zeros.html", explanation)
    dense = save(lambda grouping: grouping.group_weight.normal_(generator=torch.Generator().manual_seed(0)))
    for encoder in (dense, save(latent_position="encoder")):
        explanation, sections = ask(encoder, scenes)
        assert all(section.is_measured for key, section in sections.items() if key != "stability")
        write_report(tmp_path / "page.html", explanation)


def test_larger_images_on_a_finer_grid(save, tmp_path):
    explanation, sections = ask(save(image_size=64), build_scenes(60, image_size=64, seed=1))
    assert explanation.record.maps.shape[2:] == (16, 16) and sections["objects"].is_measured
    write_report(tmp_path / "page.html", explanation)


def test_a_w_that_is_no_number_leaves_the_rest_of_the_page(save, scenes, tmp_path):
    explanation, sections = ask(save(lambda grouping: grouping.group_weight.fill_(torch.nan)), scenes)
    assert all("NaN" in section.finding and not section.is_measured for section in sections.values())
    write_report(tmp_path / "page.html", explanation)
