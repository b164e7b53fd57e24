# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Every table in a page is the rendering of a results file: rendering it again changes nothing."""

import json
import re
from pathlib import Path

import pytest

from benchmarks import summary
from benchmarks.harness import records
from examples.reproduce import demo, hypotheses, interpret, paper_table, search, sweep
from sparsejepa_hf.records import render_into


ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARKS = [(page, mark) for page in PAGES for mark in re.findall(r"<!-- results/(\S+) -->", page.read_text("utf-8"))]
RESULTS = sorted((ROOT / "results").glob("*.json"))


def rendered(mark: str) -> str:
    """The text that belongs under a mark."""
    if mark == "benchmarks":
        return summary.render(summary.read(ROOT / "results"))
    name, sharp, part = mark.partition("#")
    record = json.loads((ROOT / "results" / name).read_text(encoding="utf-8"))
    if "benchmark" in record:
        return records.render(record)
    kinds = {"axes": sweep, "explanations": interpret, "rounds": search, "hypotheses": hypotheses}
    default = paper_table if "evaluations" in record else demo
    module = next((module for key, module in kinds.items() if key in record), default)
    return module.RENDERINGS[sharp + part](record)


@pytest.mark.parametrize(("page", "mark"), MARKS, ids=lambda value: getattr(value, "name", value))
def test_a_table_in_a_page_is_the_rendering_of_its_results_file(page, mark):
    text = page.read_text(encoding="utf-8")
    assert render_into(text, mark, rendered(mark)) == text


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_results_file_has_its_rendering_beside_it_and_a_place_in_a_page(path):
    assert path.with_suffix(".md").read_text(encoding="utf-8") == rendered(path.name) + "\n"
    assert path.name in {mark for _, mark in MARKS}


def test_there_are_results():
    assert RESULTS
