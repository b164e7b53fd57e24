# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The README shows what the results files say, and its code runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import summary
from benchmarks.harness import records
from sparsejepa_hf.experiments import paper_table, read_record, sparsity_sweep
from sparsejepa_hf.records import render_into


ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BENCHMARKS_README = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
RESULTS = sorted((ROOT / "results").glob("*.json"))
WRITTEN_BY_RUNS = {"pretraining_options.yaml", "finetuning_options.yaml"}


def rendered(path: Path) -> str:
    record = json.loads(path.read_text(encoding="utf-8"))
    if "benchmark" in record:
        return records.render(record)
    record = read_record(path)
    return (sparsity_sweep if "axes" in record else paper_table).render(record)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_table_is_the_rendering_of_the_results_file(path):
    """Rendering again changes nothing, in the README (the benchmarks', for theirs) and beside the results."""
    readme = BENCHMARKS_README if path.stem.startswith("benchmark_") else README
    assert render_into(readme, path.name, rendered(path)) == readme
    assert path.with_suffix(".md").read_text(encoding="utf-8") == rendered(path) + "\n"


def test_the_summary_of_the_benchmarks_is_the_rendering_of_their_records():
    assert render_into(README, "benchmarks", summary.render(summary.read(ROOT / "results"))) == README


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_say_where_they_come_from(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    runs = [run for run in record.get("runs", ()) if "provenance" in run]
    assert runs or "benchmark" in record
    for origin in (record, *(run["provenance"] for run in runs)):
        assert re.fullmatch(r"[0-9a-f]{40}", origin["commit"]), "code with uncommitted changes"
        assert {"torch", "transformers"} <= set(origin["versions"])
    assert all("seed" in run["options"] for run in runs or [record])


def test_there_are_results():
    assert RESULTS


def test_every_file_that_the_readme_names_exists():
    names = set(re.findall(r"`([\w-]+\.yaml)`", README)) | set(re.findall(r"configs/([\w-]+\.yaml)", README))
    scripts = set(re.findall(r"examples/(\w+\.py)", README)) | set(re.findall(r"`(\w+\.py)`", README))
    benchmarks = set(re.findall(r"python -m benchmarks\.(\w+)", README + BENCHMARKS_README))
    assert all((ROOT / "benchmarks" / f"{name}.py").is_file() for name in benchmarks)
    pictures = set(re.findall(r"\]\((results/\w+\.png)\)", README))
    assert names and scripts and pictures
    for name in names - WRITTEN_BY_RUNS:
        assert (ROOT / "examples" / "configs" / name).is_file(), name
    found = {path.name for folder in ("examples", "src") for path in (ROOT / folder).rglob("*.py")} | {"setup.py"}
    assert scripts <= found
    assert all((ROOT / picture).is_file() for picture in pictures)


def test_its_code_runs(image_folder, tmp_path):
    """The blocks for training and for evaluation, word by word, one after the other in a fresh interpreter."""
    image_folder("images")
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    code = "".join(next(b for b in blocks if word in b) for word in ("SparseJEPATrainer", "linear_probe_grid"))
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=600, capture_output=True, text=True
    ).stdout
    assert (tmp_path / "runs" / "mine" / "model.safetensors").is_file()
    assert "balanced_accuracy" in printed
