# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The models that this repository carries: complete folders that load, with numbers that were measured."""

import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining

from examples.reproduce.publish import measured
from sparsejepa_hf import SparseJEPAModel
from sparsejepa_hf.interpret import group_structure


ROOT = Path(__file__).parents[1]
FOLDERS = sorted(path.parent for path in (ROOT / "model_cards").glob("*/config.json"))


def code_of(folder: Path) -> set[str]:
    """The files of code that a folder's configurations name."""
    named = [json.loads((folder / name).read_text()) for name in ("config.json", "preprocessor_config.json")]
    return {f"{value.split('.')[0]}.py" for content in named for value in content.get("auto_map", {}).values()}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_model_folder_is_complete_and_carries_nothing_else(folder):
    code = {path.name for path in folder.glob("*.py")}
    assert code >= code_of(folder)
    expected = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "trainer_state.json"}
    assert {path.name for path in folder.iterdir()} == expected | code
    assert (folder / "model.safetensors").stat().st_size <= 12 * 2**20
    for name in code:
        assert (folder / name).is_symlink()
        assert (folder / name).read_bytes() == (ROOT / "src" / "sparsejepa_hf" / name).read_bytes()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_its_card_is_what_the_hub_takes_and_its_code_runs_as_printed(folder, tmp_path, monkeypatch):
    path = folder / "README.md"
    card = ModelCard.load(path)
    assert card.data.license == "apache-2.0" and card.data.pipeline_tag == "image-feature-extraction"
    assert card.data.datasets == (None if "scenes" in folder.name else ["uoft-cs/cifar100"])
    name, results = model_index_to_eval_results(metadata_load(path)["model-index"])
    assert name == folder.name and {result.dataset_split for result in results} == {"test"}
    data = card.text.split("| data |")[1].split("|")[0].strip()
    assert data in ("uoft-cs/cifar100", "textured-scenes (built in)")
    (tmp_path / folder.name).symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    for code in re.findall(r"^```python\n(.*?)^```$", card.text, re.M | re.S):
        exec(compile(code, str(path), "exec"), {})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_it_loads_whole_and_gives_finite_features(folder):
    _, info = AutoModelForPreTraining.from_pretrained(folder, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    model, processor = AutoModel.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = model(**processor(images, return_tensors="pt")).pooler_output
    assert features.shape == (2, model.config.hidden_size) and features.isfinite().all() and features.std() > 0.01


@pytest.mark.parametrize("name", ["sparsejepa-vit-micro-cifar100", "sparsejepa-vit-micro-scenes"])
def test_w_is_sparse_and_as_its_log_says(name):
    folder = ROOT / "model_cards" / name
    structure = group_structure(SparseJEPAModel.from_pretrained(folder))
    history = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    last = [entry for entry in history if "zero_columns" in entry][-1]
    # A few steps came after the last entry.
    assert structure.zero_columns == pytest.approx(last["zero_columns"], abs=0.01)
    assert len(structure.dead_latents) == pytest.approx(last["dead_latents"], abs=1)
    assert 0.4 <= structure.zero_columns <= 0.9 and not len(structure.dead_groups)


@pytest.mark.parametrize(
    ("name", "method"), [("sparsejepa-vit-micro-cifar100", "SparseJEPA"), ("ijepa-vit-micro-cifar100", "I-JEPA")]
)
def test_the_card_s_accuracies_are_those_of_the_results_file(name, method):
    text = (ROOT / "model_cards" / name / "README.md").read_text(encoding="utf-8")
    for row, found in measured(str(ROOT / "results" / "paper_table_cpu.json"), method, seed=0).items():
        assert f"| {row} | {found['knn_accuracy']:.1%} | {found['linear_accuracy']:.1%} |" in text
    with pytest.raises(ValueError, match="measured .* of seed 7"):
        measured(str(ROOT / "results" / "paper_table_cpu.json"), method, seed=7)


def test_the_accuracies_on_the_scenes_are_those_of_the_results_file():
    text = (ROOT / "model_cards" / "sparsejepa-vit-micro-scenes" / "README.md").read_text(encoding="utf-8")
    runs = json.loads((ROOT / "results" / "demo_scenes_cpu.json").read_text(encoding="utf-8"))["runs"]
    (run,) = [run for run in runs if run["seed"] == 0]
    for row, found in run["comparison"].items():
        assert f"| {row} | {found['knn_accuracy']:.1%} | {found['linear_accuracy']:.1%} |" in text
    assert run["provenance"]["commit"] in text
