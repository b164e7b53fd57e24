# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The scripts of `examples/` are the package's commands, for launchers that take a file."""

import importlib
import runpy
from pathlib import Path

import pytest


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("script", "command"),
    [("pretrain", "pretrain"), ("finetune", "finetune"), ("linear_probe", "probe"), ("explain_groups", "explain")],
)
def test_a_script_is_a_command(script, command):
    module = importlib.import_module(f"sparsejepa_hf.commands.{command}")
    assert runpy.run_path(str(EXAMPLES / f"{script}.py"))["main"] is module.main
