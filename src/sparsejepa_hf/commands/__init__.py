# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The command `sparsejepa`: its first word names a module of this package, which is imported only then."""

import difflib
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from .. import __version__


COMMANDS = {
    "pretrain": "train an encoder on any images, without labels",
    "finetune": "train an image classifier from a checkpoint, and test it",
    "probe": "measure the frozen features of any checkpoint: linear probe, kNN, few labels",
    "explain": "write a page about the groups of a checkpoint",
    "embed": "write the features of images as a parquet file",
    "export": "write a checkpoint for other tools: plain I-JEPA, timm, ONNX, an endpoint",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `COMMAND [options]`, by default the command line's."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        lines = [f"  {command:<10}{about}" for command, about in COMMANDS.items()]
        print("\n".join(["usage: sparsejepa COMMAND ...", "", *lines, "", "sparsejepa COMMAND --help lists options."]))
    elif name == "--version":
        print(f"sparsejepa_hf {__version__}")
    elif name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean {close[0]!r}?" if close else f"Expected one of {', '.join(COMMANDS)}."
        raise SystemExit(f"sparsejepa has no command {name!r}. {hint}")
    else:
        _show_information()
        try:
            importlib.import_module(f".{name}", __name__).main(rest)
        except (ArithmeticError, ImportError, OSError, ValueError) as error:
            if not _is_said_here(error):
                raise
            raise SystemExit(f"sparsejepa {name}: {error}") from error


def _show_information() -> None:
    """Shows what the package logs as information, such as how many images it found; once, of several processes."""
    logging.basicConfig(format="%(message)s")
    if os.environ.get("RANK", "0") == "0":
        logging.getLogger(__name__.partition(".")[0]).setLevel(logging.INFO)


def _is_said_here(error: Exception) -> bool:
    """Whether this package raised it: then its sentence says all, and what others raise needs its traceback."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals["__name__"].startswith(f"{__name__.partition('.')[0]}.")
