# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Which checkpoint to resume from, and which stand in a new run's way."""

import json
from pathlib import Path

from transformers import TrainingArguments
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


def refuse_other_checkpoints(arguments: TrainingArguments) -> None:
    """Refuses to begin a run beside another's checkpoints: a later resume would take the newest, whoever wrote it.

    Raises:
        ValueError: `output_dir` holds checkpoints, and the run is not to go on from them.
    """
    found = sorted(Path(arguments.output_dir).glob("checkpoint-*"))
    if found and not arguments.resume_from_checkpoint and arguments.process_index == 0:
        raise ValueError(
            f"output_dir {arguments.output_dir!r} holds checkpoints of an earlier run, such as {found[-1].name}. Go "
            "on with that run by --resume_from_checkpoint true, choose another output_dir, or delete them."
        )


def _is_complete(folder: Path) -> bool:
    try:
        json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model_fsdp*"))
