# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Runs as the processes they are."""

import sys
from pathlib import Path

import pytest
import yaml

from sparsejepa_hf.experiments import IJEPA, IJEPA_OPTIONS, SPARSEJEPA, Run, Runs


PRETRAIN = Path(__file__).parents[2] / "examples" / "pretrain.py"


@pytest.fixture
def recipe(tmp_path):
    model = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model |= {"predictor_hidden_size": 16, "predictor_num_hidden_layers": 1, "predictor_num_attention_heads": 2}
    options = {"image_size": 16, "sparsity_weight": 0.1, "kl_weight": 1e-3, "max_train_examples": 32, "max_steps": 2}
    options |= {"per_device_train_batch_size": 8, "logging_steps": 1, "save_strategy": "no", "report_to": "none"}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(model | options | {"use_cpu": True}))
    return path


def test_a_launcher_that_is_not_there_fails_the_run_with_its_name(recipe, tmp_path):
    (failed,) = Runs(recipe, ["no-such-launcher"], tmp_path / "runs").make([Run(SPARSEJEPA, 3, {})])
    assert "no-such-launcher" in str(failed)


@pytest.mark.slow
def test_a_pair_of_runs_at_a_time(recipe, tmp_path):
    runs = Runs(recipe, [sys.executable, str(PRETRAIN)], tmp_path / "runs", jobs=2, threads=1)
    ijepa, sparse = runs.make([Run(IJEPA, 1, IJEPA_OPTIONS), Run(SPARSEJEPA, 1, {})])
    assert (ijepa.checkpoint / "model.safetensors").exists()
    assert "zero_columns" in sparse.last and "zero_columns" not in ijepa.last
    assert sparse.options["seed"] == 1 and sparse.provenance["machine"]["torch_threads"] == 1
