# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A checkpoint carries its code: it loads where this package is not installed, given `trust_remote_code=True`."""

import ast
import json
import sys

import pytest
import torch

from sparsejepa_hf import (
    SparseJEPABackbone,
    SparseJEPAForImageClassification,
    SparseJEPAForPreTraining,
    SparseJEPAModel,
    SparseJEPAVisionModel,
)
from sparsejepa_hf.configuration_sparsejepa import AUTO_MAP


CODE_FILES = {"configuration_sparsejepa.py", "modeling_sparsejepa.py"}
AUTO_CLASSES = {
    "AutoBackbone",
    "AutoConfig",
    "AutoModel",
    "AutoModelForPreTraining",
    "AutoModelForImageClassification",
}
EVERY_CLASS = (
    SparseJEPABackbone,
    SparseJEPAForImageClassification,
    SparseJEPAForPreTraining,
    SparseJEPAModel,
    SparseJEPAVisionModel,
)

# Runs in a process of its own. An editable installation could put the package on any path: None in sys.modules
# makes every import of it fail, wherever it lies.
STRANGER = """
import json, sys
sys.modules["sparsejepa_hf"] = None
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

folder, work = sys.argv[1:]
inputs = torch.load(f"{work}/inputs.pt")
pixels, masks = inputs["pixel_values"], {name: inputs[name] for name in ("context_mask", "target_mask")}
report, tensors = {}, {}

for name in ("AutoConfig", "AutoModel", "AutoModelForPreTraining"):
    try:
        getattr(transformers, name).from_pretrained(folder, trust_remote_code=False)
        report[f"{name} without trust"] = "loaded"
    except ValueError as refusal:
        report[f"{name} without trust"] = str(refusal)

config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
report["grid_size"] = list(config.grid_size)
try:
    AutoConfig.from_pretrained(folder, trust_remote_code=True, num_groups=5)
    report["bad override"] = "accepted"
except ValueError as refusal:
    report["bad override"] = str(refusal)

with torch.no_grad():
    base, info = AutoModel.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    report["base loading"] = sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"]]))
    tensors["features"] = base(pixels).last_hidden_state
    pretraining = AutoModelForPreTraining.from_pretrained(folder, trust_remote_code=True)
    tensors["loss"] = pretraining(pixels, **masks).loss
    report["target trainable"] = any(p.requires_grad for p in pretraining.sparsejepa.target_encoder.parameters())
    classifier, info = AutoModelForImageClassification.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    )
    report["classifier missing"] = sorted(info["missing_keys"])
    report["classifier unexpected"] = sorted(info["unexpected_keys"])
    tensors["pooled"] = classifier.sparsejepa(pixels).pooler_output
    pretraining.save_pretrained(f"{work}/again")
    base.save_pretrained(f"{work}/again_base")
    classifier.save_pretrained(f"{work}/again_classifier")
    tensors["logits"] = classifier(pixels).logits
    again = AutoModelForPreTraining.from_pretrained(f"{work}/again", trust_remote_code=True)
    tensors["loss again"] = again(pixels, **masks).loss
report["modules"] = sorted({type(model).__module__.split(".")[0] for model in (base, pretraining, classifier, again)})
report["package imported"] = sys.modules.get("sparsejepa_hf") is not None
torch.save(tensors, f"{work}/tensors.pt")
with open(f"{work}/report.json", "w") as file:
    json.dump(report, file)
"""


@pytest.fixture(scope="module")
def stranger(make_model, make_images, make_masks, run_stranger, tmp_path_factory):
    """(model, inputs, its folder, the working folder, report, tensors) of one process without the package."""
    model = make_model(SparseJEPAForPreTraining, kl_weight=0.1, num_labels=3)
    folder, work = tmp_path_factory.mktemp("published"), tmp_path_factory.mktemp("stranger")
    model.save_pretrained(folder)
    inputs = {"pixel_values": make_images(), **make_masks()}
    torch.save(inputs, work / "inputs.pt")
    run_stranger(STRANGER, folder, work, work=work)
    report, tensors = json.loads((work / "report.json").read_text()), torch.load(work / "tensors.pt")
    return model, inputs, folder, work, report, tensors


class TestWithoutThePackage:
    def test_it_was_the_checkpoints_own_code(self, stranger):
        report = stranger[4]
        assert report["modules"] == ["transformers_modules"] and not report["package imported"]

    def test_nothing_loads_without_trust(self, stranger):
        report = stranger[4]
        for name in ("AutoConfig", "AutoModel", "AutoModelForPreTraining"):
            assert "trust_remote_code=True" in report[f"{name} without trust"]

    def test_features_and_loss_are_bit_equal(self, stranger):
        model, inputs, _, _, report, tensors = stranger
        expected = model(**inputs)
        assert torch.equal(tensors["features"], expected.last_hidden_state)
        assert torch.equal(tensors["loss"], expected.loss)
        assert torch.equal(tensors["pooled"], expected.pooler_output)
        assert report["base loading"] == [] and report["classifier unexpected"] == []
        assert report["classifier missing"] == ["classifier.bias", "classifier.weight"]

    def test_the_code_behaves_as_in_the_package(self, stranger):
        """The configuration's checks and the frozen target encoder come along."""
        report = stranger[4]
        assert report["grid_size"] == [8, 8]
        assert "num_groups is 5" in report["bad override"]
        assert report["target trainable"] is False

    @pytest.mark.parametrize("name", ["again", "again_base", "again_classifier"])
    def test_saving_again_keeps_the_code_and_its_map(self, stranger, name):
        _, _, folder, work, _, _ = stranger
        again = work / name
        assert CODE_FILES <= {path.name for path in again.iterdir()}
        for file in CODE_FILES:
            assert (again / file).read_text() == (folder / file).read_text()
        config = json.loads((again / "config.json").read_text())
        assert config["auto_map"] == json.loads((folder / "config.json").read_text())["auto_map"]

    def test_what_was_saved_again_loads_again(self, stranger):
        """There, and here with the package's own classes."""
        model, inputs, _, work, _, tensors = stranger
        assert torch.equal(tensors["loss again"], tensors["loss"])
        here = SparseJEPAForPreTraining.from_pretrained(work / "again")
        assert torch.equal(here(**inputs).loss, model(**inputs).loss)
        classifier = SparseJEPAForImageClassification.from_pretrained(work / "again_classifier")
        assert torch.equal(classifier(inputs["pixel_values"]).logits, tensors["logits"])


class TestPublishedFiles:
    def test_the_map_names_every_auto_class_and_files_that_are_there(self, stranger):
        folder = stranger[2]
        auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
        assert set(auto_map) == AUTO_CLASSES
        for reference in auto_map.values():
            module, name = reference.split(".")
            tree = ast.parse((folder / f"{module}.py").read_text())
            assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}

    def test_the_code_imports_only_its_siblings_and_what_transformers_needs(self, stranger):
        """Files are flattened on the Hub: no sub-packages, no absolute import of the package itself."""
        folder = stranger[2]
        for file in CODE_FILES:
            for node in ast.walk(ast.parse((folder / file).read_text())):
                if isinstance(node, ast.ImportFrom) and node.level:
                    assert node.level == 1 and f"{node.module}.py" in CODE_FILES
                elif isinstance(node, (ast.Import, ast.ImportFrom)):
                    names = [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
                    roots = {name.split(".")[0] for name in names}
                    assert (
                        roots <= {"torch", "transformers", "huggingface_hub", "safetensors"} | sys.stdlib_module_names
                    )

    @pytest.mark.parametrize("model_class", EVERY_CLASS)
    def test_every_class_publishes_the_same_map(self, make_model, tmp_path, model_class):
        """A classifier's folder serves AutoModel too."""
        make_model(model_class).save_pretrained(tmp_path)
        assert CODE_FILES <= {path.name for path in tmp_path.iterdir()}
        assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
