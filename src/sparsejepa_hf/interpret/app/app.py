# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Starts the page as a Space of the Hub does: `python app.py` in a folder that need not be part of the package.

The checkpoint is the folder `checkpoint` beside this file, or what the variable SPARSEJEPA_CHECKPOINT names: a folder
or a model on the Hub. SPARSEJEPA_DATASET and SPARSEJEPA_SPLIT name other images to index than the built-in scenes.
"""

import os
import sys
from pathlib import Path

from sparsejepa_hf.interpret.app import main


def start() -> None:
    """Reads the variables and serves the page."""
    beside = Path(__file__).resolve().parent / "checkpoint"
    checkpoint = os.environ.get("SPARSEJEPA_CHECKPOINT") or (str(beside) if beside.is_dir() else "")
    if not checkpoint:
        sys.exit(
            "No checkpoint is given. Set the variable SPARSEJEPA_CHECKPOINT to a folder or to a model on the Hub, or "
            "put a checkpoint into the folder `checkpoint` beside app.py."
        )
    options = [checkpoint]
    for flag in ("dataset", "split"):
        if value := os.environ.get(f"SPARSEJEPA_{flag.upper()}"):
            options += [f"--{flag}", value]
    main(options)


if __name__ == "__main__":
    start()
