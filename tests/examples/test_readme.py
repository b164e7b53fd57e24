# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The README shows what the results files say, and its code runs."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def compare_sparsity():
    spec = importlib.util.spec_from_file_location("compare_sparsity", ROOT / "examples" / "compare_sparsity.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_the_rendering_of_the_results_file(compare_sparsity):
    """Rendering again changes nothing, in the README and beside the results."""
    path = ROOT / "results" / "cifar100_cpu.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    table = compare_sparsity.render_table(record)
    assert compare_sparsity.render_into(README, path, table) == README
    assert path.with_suffix(".md").read_text(encoding="utf-8") == table + "\n"


def test_results_say_where_they_come_from():
    for path in (ROOT / "results").glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        assert re.fullmatch(r"[0-9a-f]{40}", record["commit"]), f"{path.name}: code with uncommitted changes"
        assert {"torch", "transformers"} <= set(record["versions"])
        assert all("seed" in run["options"] for run in record["runs"])


def test_missing_marks_are_refused(compare_sparsity):
    with pytest.raises(ValueError, match=r"no marks <!-- results/x\.json -->"):
        compare_sparsity.render_into("# A page\n", Path("x.json"), "| |")


def test_every_file_that_the_readme_names_exists():
    names = re.findall(r"`([\w-]+\.yaml)`", README) + re.findall(r"examples/configs/([\w-]+\.yaml)", README)
    assert names
    for name in set(names):
        assert (ROOT / "examples" / "configs" / name).is_file() or name == "pretraining_options.yaml", name


def test_the_training_code_runs(tmp_path):
    """The block under "In code", word by word, in a fresh interpreter."""
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    code = next(block for block in blocks if "SparseJEPATrainer" in block)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=600)
    assert (tmp_path / "runs" / "mine" / "model.safetensors").is_file()
