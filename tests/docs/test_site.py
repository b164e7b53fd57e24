# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What the pages name exists, and results say where they come from."""

import json
import re
from pathlib import Path

import pytest

import sparsejepa_hf


ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
_FOLDERS = "src|tests|examples|benchmarks|docs|results|model_cards|tools"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page):
    text = TEXTS[page.name]
    named = re.findall(rf"`((?:{_FOLDERS})/[\w/.*-]+)`", text)
    linked = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if ":" not in link]
    for name in named:
        assert list(ROOT.glob(name.rstrip("/"))), f"{page.name} names {name}"
    for name in filter(None, linked):
        # The badge's address is GitHub's.
        if "/actions/workflows/" in name:
            name = f".github/workflows/{name.removesuffix('/badge.svg').rsplit('/', 1)[-1]}"
            assert (ROOT / name).is_file(), f"{page.name} links to {name}"
        else:
            assert (page.parent / name).exists(), f"{page.name} links to {name}"


def test_every_recipe_that_the_pages_name_exists_and_every_recipe_is_named():
    named = set(re.findall(r"([\w-]+\.yaml)", " ".join(TEXTS.values())))
    recipes = {path.name for path in (ROOT / "examples" / "configs").glob("*.yaml")}
    # In the table of recipes, or by their files.
    in_table = {f"{name}.yaml" for name in re.findall(r"^\| `([\w-]+)` \|", TEXTS["training.md"], re.M)}
    assert recipes <= named | in_table
    written_by_runs = {"pretraining_options.yaml", "finetuning_options.yaml"}
    others = {"mkdocs.yml", ".pre-commit-config.yaml", "pre-commit-config.yaml"}
    launchers = {path.name for path in (ROOT / "examples" / "accelerate_configs").glob("*.yaml")}
    plans = {path.name for path in (ROOT / "examples" / "reproduce").glob("*.yaml")}
    assert plans <= named and named - recipes <= written_by_runs | others | launchers | plans


def test_the_front_page_and_the_benchmarks_have_a_place_for_their_tables():
    assert "<!-- results/paper_table_cpu.json#short -->" in TEXTS["README.md"]
    assert "<!-- results/benchmarks -->" in TEXTS["benchmarks.md"]


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.json")), ids=lambda path: path.stem)
def test_results_say_where_they_come_from(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    parts = (record, *record.get("rounds", ()))
    runs = [run for part in parts for run in part.get("runs", ()) if "provenance" in run]
    explained = record.get("explanations", [])
    assert runs or explained or "benchmark" in record
    for origin in (record, *(run["provenance"] for run in runs)):
        assert re.fullmatch(r"[0-9a-f]{40}", origin["commit"]), "code with uncommitted changes"
        assert {"torch", "transformers"} <= set(origin["versions"])
    # Weights that were explained are named by their digest.
    assert all(re.fullmatch(r"[0-9a-f]{64}", explanation["fingerprint"]) for explanation in explained)
    # What is calculated draws nothing at random.
    assert "assumed" in record or all("seed" in run.get("options", run) for run in runs or [record])


def test_the_latest_changes_are_those_of_this_version():
    changes = re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert changes[0] == sparsejepa_hf.__version__
