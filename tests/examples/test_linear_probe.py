# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""`linear_probe.py`, as a user calls it."""

import json
import runpy
import sys
from pathlib import Path

import pytest


SCRIPT = Path(__file__).parents[2] / "examples" / "linear_probe.py"


def test_one_checkpoint_is_probed_and_a_missing_data_set_is_an_error_at_the_end(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tasks = [f"mine={images}", "gone=nowhere"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "pixels", "--tasks", *tasks, "--low_shot", "0.5"])
    with pytest.raises(SystemExit, match="Not probed: gone"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr().out
    assert "linear" in printed and "RankMe" in printed
    results = json.loads((tmp_path / "runs" / "linear_probe" / "linear_probe.json").read_text())["results"]
    assert results["mine"]["accuracy"] == 1 and "failed" in results["gone"]
