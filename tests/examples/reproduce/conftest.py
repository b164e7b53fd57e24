# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A script that stands in for a pre-training run."""

import sys

import pytest


# Writes what a run writes, at once: its options, one checkpoint's worth of logs, its results. Seed 13 fails, and
# seed 75 is asked to end once.
FAKE = """
import json, pathlib
from sparsejepa_hf.training.options import OPTION_TYPES, parse_options, write_options
options = parse_options(OPTION_TYPES)
options[1].resolve_statistics(options[0].build_config().num_channels)
folder = pathlib.Path(options[2].output_dir)
with (folder / "starts").open("a") as starts:
    starts.write(f"{options[2].resume_from_checkpoint} ")
write_options(str(folder), *options)
if options[2].seed == 13:
    raise RuntimeError("thirteen is unlucky")
if options[2].seed == 75 and not (folder / "checkpoint-1").exists():
    (folder / "checkpoint-1").mkdir()
    (folder / "checkpoint-1" / "trainer_state.json").write_text("{}")
    (folder / "checkpoint-1" / "model.safetensors").touch()
    raise SystemExit(75)
epochs = options[2].num_train_epochs
state = {"epoch": epochs, "num_train_epochs": epochs, "max_steps": 4}
state["log_history"] = [{"rankme": 1.0}, {"loss": 0.5, "rankme": options[2].seed, "images_per_second": 64.0}]
(folder / "trainer_state.json").write_text(json.dumps(state))
results = {"provenance": {}, "train_metrics": {"train_runtime": 1.5}, "num_train_examples": 32}
(folder / "pretraining_results.json").write_text(json.dumps(results))
"""


@pytest.fixture
def fake_command(tmp_path, runs_in_process) -> list[str]:
    """Starts a run that trains nothing."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    return [sys.executable, str(script)]
