# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What an Inference Endpoint finds beside a checkpoint."""

import shutil
from pathlib import Path


# What the code of a checkpoint needs, with the floors of this package. The container has the rest.
REQUIREMENTS = ("torch>=2.11", "transformers>=5.17", "pillow>=11.0")


def write_handler(folder: str | Path) -> Path:
    """Writes `handler.py` and `requirements.txt` beside a checkpoint, for Hugging Face Inference Endpoints.

    Args:
        folder: of a checkpoint with its image processor.

    Returns:
        The path of the handler.

    Raises:
        FileNotFoundError: the folder holds no checkpoint, or no image processor.
    """
    folder = Path(folder)
    for name in ("config.json", "preprocessor_config.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"The folder {str(folder)!r} has no {name}; expected the folder of a run.")
    (folder / "requirements.txt").write_text("\n".join(REQUIREMENTS) + "\n", encoding="utf-8")
    return Path(shutil.copyfile(Path(__file__).with_name("handler.py"), folder / "handler.py"))
