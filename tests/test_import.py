# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The Auto classes know the family once the package is imported, and importing it loads no more than that needs."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoImageProcessor, AutoModel

import sparsejepa_hf
from sparsejepa_hf import (
    SparseJEPAConfig,
    SparseJEPAForPreTraining,
    SparseJEPAImageProcessor,
    SparseJEPAVisionModel,
)


# `folder` is a checkpoint.
CHECK = """
from transformers import (
    AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining
)
import sparsejepa_hf

config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
assert type(config) is sparsejepa_hf.SparseJEPAConfig
for auto_class, name in (
    (AutoBackbone, "SparseJEPABackbone"),
    (AutoModel, "SparseJEPAVisionModel"),
    (AutoModelForPreTraining, "SparseJEPAForPreTraining"),
    (AutoModelForImageClassification, "SparseJEPAForImageClassification"),
):
    # AutoBackbone asks the Hub for a repository of the folder's name, whatever the family.
    loader = sparsejepa_hf.SparseJEPABackbone if auto_class is AutoBackbone else auto_class
    model = loader.from_pretrained(folder, trust_remote_code=False)
    assert type(model) is getattr(sparsejepa_hf, name), (name, type(model))
    assert type(auto_class.from_config(config)) is type(model)
    assert type(model)._auto_class == auto_class.__name__
"""


@pytest.fixture(scope="module")
def checkpoint(make_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_model(SparseJEPAForPreTraining, num_labels=3).save_pretrained(folder)
    SparseJEPAImageProcessor(size=24).save_pretrained(folder)
    return folder


def _run(code: str, folder: Path) -> str:
    """What a fresh process prints that runs `code`, where `folder` is defined and `sys` imported."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nfolder = sys.argv[1]\n{code}", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_the_package_alone_loads_no_model_and_an_auto_class_no_more_than_the_model(checkpoint):
    """The model file brings transformers' modeling_utils, which costs as much time as the Auto classes."""
    code = """
import json, sparsejepa_hf
print(json.dumps(list(sys.modules)))
from transformers import AutoModel
AutoModel.from_pretrained(folder)
print(json.dumps(list(sys.modules)))
"""
    alone, with_a_model = (set(json.loads(line)) for line in _run(code + CHECK, checkpoint).splitlines())
    ours = {"sparsejepa_hf", "sparsejepa_hf.configuration_sparsejepa"}
    assert {name for name in alone if name.startswith("sparsejepa_hf")} == ours
    assert not alone & {"transformers.modeling_utils", "transformers.activations", "datasets"}
    assert not alone & {"transformers.image_processing_base", "torchvision"}
    ours.add("sparsejepa_hf.modeling_sparsejepa")
    assert {name for name in with_a_model if name.startswith("sparsejepa_hf")} == ours
    # scikit-learn is left out: some versions of transformers load it themselves.
    assert not with_a_model & {"datasets", "evaluate", "matplotlib", "timm"}


@pytest.mark.parametrize("before", ["", "from transformers import AutoImageProcessor, AutoModel, pipeline"])
def test_auto_classes_know_the_family_whether_loaded_before_or_after(checkpoint, before):
    processor = """
from transformers import AutoImageProcessor

processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
assert type(processor) is sparsejepa_hf.SparseJEPAImageProcessor
"""
    _run(before + CHECK + processor, checkpoint)


def test_importing_the_package_again_changes_nothing(checkpoint):
    importlib.reload(sparsejepa_hf)
    assert type(AutoModel.from_pretrained(checkpoint)) is SparseJEPAVisionModel is sparsejepa_hf.SparseJEPAVisionModel
    assert AutoModel._model_mapping[SparseJEPAConfig] is SparseJEPAVisionModel


@pytest.mark.parametrize("named", [True, False])
def test_an_image_processor_is_found_whether_or_not_its_file_names_a_class(checkpoint, tmp_path, named):
    for name in ("config.json", "preprocessor_config.json"):
        content = json.loads((checkpoint / name).read_text())
        if not named:
            content = {key: content[key] for key in content.keys() - {"image_processor_type", "auto_map"}}
        (tmp_path / name).write_text(json.dumps(content))
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(processor) is SparseJEPAImageProcessor and processor.size["shortest_edge"] == 24


def test_a_configuration_alone_carries_its_code(tmp_path):
    SparseJEPAConfig().save_pretrained(tmp_path)
    assert (tmp_path / "configuration_sparsejepa.py").is_file()
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map == {"AutoConfig": "configuration_sparsejepa.SparseJEPAConfig"}


class TestPublicNames:
    def test_what_type_checkers_see_is_what_there_is(self):
        """The names under TYPE_CHECKING are those imported later, each from the module it is said to be in."""
        tree = ast.parse(Path(sparsejepa_hf.__file__).read_text())
        guarded = next(node for node in tree.body if isinstance(node, ast.If) and node.test.id == "TYPE_CHECKING")
        assert {a.name: node.module for node in guarded.body for a in node.names} == sparsejepa_hf._HOMES
        assert set(sparsejepa_hf._HOMES) | {"PRESETS", "SparseJEPAConfig"} == set(sparsejepa_hf.__all__)
        assert set(sparsejepa_hf.__all__) <= set(dir(sparsejepa_hf))
        for name in sparsejepa_hf.__all__:
            assert getattr(sparsejepa_hf, name) is not None

    def test_other_names_are_refused(self):
        with pytest.raises(AttributeError, match="no attribute 'SparseJEPA'"):
            _ = sparsejepa_hf.SparseJEPA

    def test_the_version_is_a_version(self):
        assert re.fullmatch(r"\d+\.\d+\.\d+", sparsejepa_hf.__version__)
