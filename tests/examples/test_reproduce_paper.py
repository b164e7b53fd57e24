# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The old name of the table's command says what its flags are called now."""

import runpy
from pathlib import Path

import pytest


translate = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "reproduce_paper.py"))["translate"]


def test_old_flags_become_the_new_ones_and_others_stay():
    old = ["recipe.yaml", "--benchmarks", "mine=images", "--probe", "logistic", "--low_shot", "--seeds", "0", "1"]
    assert translate(old) == ["recipe.yaml", "--tasks", "mine=images", "--low_shot", "--seeds", "0", "1"]


def test_the_probe_that_is_gone_is_refused():
    with pytest.raises(SystemExit, match="--probe is gone"):
        translate(["recipe.yaml", "--probe", "grid"])
