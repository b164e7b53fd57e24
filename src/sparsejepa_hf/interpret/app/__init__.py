# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""A page to try: upload an image, see the map of every group, switch groups on and off, find the nearest images.

    python -m sparsejepa_hf.interpret.app CHECKPOINT --dataset synthetic-scenes

The folder is also a Space of the Hub; its README says how. It needs the extra `app` (Gradio).
"""

import argparse
import sys
from collections.abc import Sequence

from datasets.exceptions import DatasetsError
from safetensors import SafetensorError
from transformers.hf_argparser import string_to_bool

from ...data import load_image_dataset
from ...evaluation import load_encoder
from .explorer import GroupExplorer, Reading, UnusableUploadError, read_upload


__all__ = ["GroupExplorer", "Reading", "UnusableUploadError", "main", "read_upload"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Loads the checkpoint, indexes the images, and serves the page until it is interrupted.

    Args:
        arguments: `CHECKPOINT [--flag value …]`, by default the command line's.

    Raises:
        SystemExit: with a sentence, where there is no such checkpoint, it has no groups, the images cannot be loaded,
            or Gradio is not installed.
    """
    own = _parse(arguments)
    try:
        from .page import launch
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        sys.exit('The page needs Gradio, which is not installed. Install it: pip install "sparsejepa_hf[app]"')
    try:
        encoder = load_encoder(own.checkpoint)
        images = load_image_dataset(
            own.dataset, own.split, label_column=own.label_column, max_examples=own.max_examples, seed=own.seed
        )
        explorer = GroupExplorer(encoder, images)
        launch(explorer, server_name=own.server_name, server_port=own.server_port, share=own.share)
    except (OSError, ValueError, DatasetsError, SafetensorError) as error:
        sys.exit(f"The page cannot be shown. {error}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sparsejepa_hf.interpret.app",
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", help="folder or Hub name of a SparseJEPA")
    parser.add_argument("--dataset", default="synthetic-scenes", help="images to index: a folder, a file, a Hub name")
    parser.add_argument("--split", default="test", help="of the data set")
    parser.add_argument("--label_column", help="of the data set; default: found by its name")
    parser.add_argument("--max_examples", type=int, default=2000, help="index so many images, chosen at random")
    parser.add_argument("--seed", type=int, default=0, help="of that choice")
    parser.add_argument("--server_name", help="address to listen at; default: this machine alone")
    parser.add_argument("--server_port", type=int, help="default: the first free one from 7860 on")
    parser.add_argument("--share", type=string_to_bool, default=False, help="true: a public link by Gradio's service")
    return parser.parse_args(arguments)
