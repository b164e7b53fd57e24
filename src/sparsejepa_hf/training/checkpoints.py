# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Which checkpoint to resume from."""

import json
from pathlib import Path

from transformers.utils import logging


logger = logging.get_logger(__name__)


def last_complete_checkpoint(output_dir: str) -> str:
    """The newest `checkpoint-N` folder that was written to its end: its trainer state, written last, can be read.

    Raises:
        ValueError: if there is none.
    """
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    for folder in sorted(folders, key=lambda path: int(path.name.split("-")[-1]), reverse=True):
        if _is_complete(folder):
            return str(folder)
        logger.warning(f"{folder} was not written to its end and is passed over.")
    raise ValueError(
        f"There is no complete checkpoint in {output_dir}; expected a folder checkpoint-N. Start without "
        "resume_from_checkpoint, or name a checkpoint."
    )


def _is_complete(folder: Path) -> bool:
    try:
        json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model_fsdp*"))
