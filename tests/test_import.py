# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Importing the package loads neither torch nor transformers, and the Auto classes know the family in every order.

What is loaded is a matter of a fresh process, so nearly every test here starts one.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import ViTImageProcessorPil

import sparsejepa_hf
from sparsejepa_hf import SparseJEPAForPreTraining


CODE_FILES = {"configuration_sparsejepa.py", "modeling_sparsejepa.py"}

# What every order of imports has to lead to; `folder` is a checkpoint.
CHECK = """
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining
)
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
import sparsejepa_hf
from sparsejepa_hf import modeling_sparsejepa

config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
assert type(config) is sparsejepa_hf.SparseJEPAConfig
for auto_class, name in (
    (AutoModel, "SparseJEPAModel"),
    (AutoModelForPreTraining, "SparseJEPAForPreTraining"),
    (AutoModelForImageClassification, "SparseJEPAForImageClassification"),
):
    model = auto_class.from_pretrained(folder, trust_remote_code=False)
    assert type(model) is getattr(modeling_sparsejepa, name) is getattr(sparsejepa_hf, name), (name, type(model))
    assert type(model)._auto_class == auto_class.__name__
assert config._auto_class == "AutoConfig"
assert sorted(IMAGE_PROCESSOR_MAPPING[type(config)]) == ["pil", "torchvision"]
assert type(AutoImageProcessor.from_pretrained(folder, backend="pil")).__name__ == "ViTImageProcessorPil"
"""

NO_HOOK_LEFT = """
assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("sparsejepa_hf")]
"""

ORDERS = {
    "the package, then an Auto class": "import sparsejepa_hf\nfrom transformers import AutoModel",
    "Auto classes, then the package": "from transformers import AutoModel, AutoImageProcessor\nimport sparsejepa_hf",
    "the configuration's Auto class": "import sparsejepa_hf\nfrom transformers import AutoConfig",
    "the image processor's Auto class": "import sparsejepa_hf\nfrom transformers import AutoImageProcessor",
    "the model file": "import sparsejepa_hf.modeling_sparsejepa",
    "the configuration file": "import sparsejepa_hf.configuration_sparsejepa",
    "training": "import sparsejepa_hf.training",
    "everything public": "from sparsejepa_hf import *",
    "twice": "import importlib, sparsejepa_hf\nimportlib.reload(sparsejepa_hf)",
    # modeling_layers imports AutoModel, amid its own import.
    "modeling_layers": "import sparsejepa_hf\nimport transformers.modeling_layers",
    "modeling_utils": "import sparsejepa_hf\nimport transformers.modeling_utils",
}


@pytest.fixture(scope="module")
def checkpoint(make_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    make_model(SparseJEPAForPreTraining, num_labels=3).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def _run(code: str, folder: Path | str = "") -> str:
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


class TestWhatIsLoaded:
    def test_importing_the_package_loads_none_of_the_libraries(self):
        loaded = set(json.loads(_run("import json, sparsejepa_hf\nprint(json.dumps(list(sys.modules)))")))
        assert "sparsejepa_hf" in loaded
        assert not {name.partition(".")[0] for name in loaded} & {"torch", "transformers", "datasets", "numpy"}

    def test_with_transformers_loaded_too_the_rest_still_is_not(self):
        code = "import json, transformers, sparsejepa_hf, transformers.utils\nprint(json.dumps(list(sys.modules)))"
        loaded = set(json.loads(_run(code)))
        assert not loaded & {"torch", "transformers.modeling_utils", "sparsejepa_hf.modeling_sparsejepa"}

    def test_an_auto_class_loads_no_more_than_it_registers(self, checkpoint):
        """Loading a model asks for no image library of the package's, no data sets and no probes."""
        code = "import json, sparsejepa_hf\nfrom transformers import AutoModel\nAutoModel.from_pretrained(folder)"
        loaded = set(json.loads(_run(f"{code}\nprint(json.dumps(list(sys.modules)))", checkpoint)))
        ours = {name for name in loaded if name.startswith("sparsejepa_hf.")}
        assert ours == {f"sparsejepa_hf.{n}_sparsejepa" for n in ("configuration", "modeling")} | {
            "sparsejepa_hf.registration"
        }
        # scikit-learn is left out here: some versions of transformers load it themselves.
        assert not loaded & {"datasets", "evaluate", "matplotlib", "timm"}

    def test_torch_and_transformers_load_when_a_name_asks_for_them(self):
        code = "import sparsejepa_hf\nassert 'torch' not in sys.modules\nsparsejepa_hf.SparseJEPAModel"
        _run(f"{code}\nassert 'transformers.modeling_utils' in sys.modules")


class TestOrders:
    @pytest.mark.parametrize("order", ORDERS)
    def test_the_auto_classes_know_the_family(self, checkpoint, order):
        _run(ORDERS[order] + CHECK + NO_HOOK_LEFT, checkpoint)

    def test_a_pipeline_alone(self, checkpoint):
        code = """
import sparsejepa_hf
from transformers import pipeline
from PIL import Image
pipe = pipeline("image-feature-extraction", model=folder)
assert type(pipe.model).__name__ == "SparseJEPAModel", type(pipe.model)
assert len(pipe(Image.new("RGB", (40, 40)))[0]) == 64
"""
        _run(code + CHECK + NO_HOOK_LEFT, checkpoint)

    def test_threads(self, checkpoint):
        """Six ways in at the same time, each with what it wants; the order of events differs from run to run."""
        code = """
import threading
import torch, sparsejepa_hf  # torch itself does not like to be imported by several threads
import transformers
ways = [
    "from transformers import AutoModel; AutoModel.from_pretrained(folder)",
    "from transformers import AutoConfig; AutoConfig.from_pretrained(folder)",
    "from sparsejepa_hf import SparseJEPAModel; SparseJEPAModel.from_pretrained(folder)",
    "import sparsejepa_hf; assert sparsejepa_hf.SparseJEPAConfig().model_type == 'sparsejepa'",
    "from transformers import AutoModelForPreTraining as A; A.from_pretrained(folder)",
    "from sparsejepa_hf import SparseJEPAForImageClassification, PRESETS",
]
failed, barrier = [], threading.Barrier(len(ways))

def run(way):
    barrier.wait()
    try:
        exec(way, {"folder": folder})
    except BaseException as error:
        failed.append((way, repr(error)))

threads = [threading.Thread(target=run, args=(way,)) for way in ways]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not failed, failed
"""
        _run(code + CHECK + NO_HOOK_LEFT, checkpoint)


class TestSavedCode:
    def test_a_model_from_the_file_itself_carries_its_code(self, tmp_path):
        """No Auto class is imported by name here."""
        code = """
from sparsejepa_hf.configuration_sparsejepa import SparseJEPAConfig
from sparsejepa_hf.modeling_sparsejepa import SparseJEPAModel
SparseJEPAModel(SparseJEPAConfig(num_hidden_layers=1, predictor_num_hidden_layers=1)).save_pretrained(folder)
"""
        _run(code, tmp_path)
        assert CODE_FILES <= {path.name for path in tmp_path.iterdir()}
        assert "AutoModel" in json.loads((tmp_path / "config.json").read_text())["auto_map"]

    def test_a_configuration_alone_carries_its_code(self, tmp_path):
        code = "from sparsejepa_hf.configuration_sparsejepa import SparseJEPAConfig as C\nC().save_pretrained(folder)"
        _run(code, tmp_path)
        assert (tmp_path / "configuration_sparsejepa.py").is_file()
        auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
        assert auto_map == {"AutoConfig": "configuration_sparsejepa.SparseJEPAConfig"}


class TestTheHook:
    def test_looking_for_a_module_loads_nothing_and_finds_the_same(self):
        code = """
import importlib.util
name = "transformers.models.auto.configuration_auto"
before = importlib.util.find_spec(name)
parents = {"transformers.models", "transformers.models.auto"}
import sparsejepa_hf
after = importlib.util.find_spec(name)
assert before.origin == after.origin and before.cached == after.cached and name not in sys.modules
assert after.loader.get_source(name) == before.loader.get_source(name)
assert after.loader.path == before.loader.path
assert importlib.util.find_spec(name + "_of_no_such_name") is None
"""
        _run(code)

    def test_a_loaded_module_is_as_without_the_hook(self):
        """Its loader, its source, its reload; and classes pickle as before."""
        code = """
import importlib, importlib.machinery, inspect, pickle
import sparsejepa_hf
from transformers import AutoModel
from transformers.models.auto import auto_factory, modeling_auto
for module in (modeling_auto, sparsejepa_hf.modeling_sparsejepa):
    assert type(module.__loader__) is type(module.__spec__.loader) is type(auto_factory.__loader__)
    assert inspect.getsource(module).startswith("# Copyright")
assert pickle.loads(pickle.dumps(AutoModel)) is AutoModel
copy = pickle.loads(pickle.dumps(modeling_auto.MODEL_MAPPING))
assert copy[sparsejepa_hf.SparseJEPAConfig] is sparsejepa_hf.SparseJEPAModel
assert importlib.reload(modeling_auto) is modeling_auto
"""
        _run(code)

    def test_other_hooks_see_the_modules_too(self):
        """One that was there before, and one that came later; each is asked once for each module."""
        code = """
asked = {"before": [], "later": []}

class Other:
    def __init__(self, name):
        self.name = name
    def find_spec(self, name, path=None, target=None):
        asked[self.name].append(name)

sys.meta_path.insert(0, Other("before"))
import sparsejepa_hf
sys.meta_path.insert(0, Other("later"))
from transformers import AutoModel
from sparsejepa_hf import SparseJEPAConfig
assert SparseJEPAConfig in AutoModel._model_mapping
for hook in asked.values():
    for name in ("transformers.models.auto.modeling_auto", "sparsejepa_hf.modeling_sparsejepa"):
        assert hook.count(name) == 1, (name, hook.count(name))
"""
        _run(code)

    def test_after_a_failed_import_the_next_one_registers(self):
        code = """
import importlib.abc
import sparsejepa_hf

class Failing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "transformers.modeling_outputs":
            raise ImportError("not now")

failing = Failing()
sys.meta_path.insert(0, failing)
try:
    from transformers import AutoModel
except ImportError as error:
    assert "not now" in str(error), error
else:
    raise AssertionError("nothing failed")
sys.meta_path.remove(failing)
from transformers import AutoModel
from sparsejepa_hf import SparseJEPAConfig
assert SparseJEPAConfig in AutoModel._model_mapping
"""
        _run(code)


class TestPublicNames:
    def test_what_type_checkers_see_is_what_there_is(self):
        """The names under TYPE_CHECKING, in `__all__` and in `dir()`, each from the module it is said to be in."""
        tree = ast.parse(Path(sparsejepa_hf.__file__).read_text())
        guarded = next(node for node in tree.body if isinstance(node, ast.If) and node.test.id == "TYPE_CHECKING")
        seen = {alias.name: imported.module for imported in guarded.body for alias in imported.names}
        assert set(seen) == set(sparsejepa_hf.__all__) == set(sparsejepa_hf._HOMES)
        assert seen == sparsejepa_hf._HOMES
        assert set(sparsejepa_hf.__all__) <= set(dir(sparsejepa_hf))
        for name in sparsejepa_hf.__all__:
            assert getattr(sparsejepa_hf, name) is not None

    def test_other_names_are_refused(self):
        with pytest.raises(AttributeError, match="no attribute 'SparseJEPA'"):
            _ = sparsejepa_hf.SparseJEPA
        assert sparsejepa_hf.__version__ == "0.1.0"
