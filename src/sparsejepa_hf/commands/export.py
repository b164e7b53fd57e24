# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Write a SparseJEPA checkpoint for other tools.

sparsejepa export runs/images out/ --to encoder    # the target encoder as a plain I-JEPA of transformers
sparsejepa export runs/images out/ --to timm       # the target encoder as a ViT of timm
sparsejepa export runs/images out.onnx --to onnx   # features, for any size of batch
sparsejepa export runs/images out/ --to endpoint   # the checkpoint with a handler for Inference Endpoints
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..configuration_sparsejepa import SparseJEPAConfig
from ..training import read_config


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes one export, and says where it is."""
    own = parse(arguments)
    output = Path(own.output)
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise FileExistsError(f"{output} exists already; choose another place, or delete it.")
    config = read_config(own.checkpoint)
    # Each needs libraries that the others do not.
    if own.to == "encoder":
        from ..conversion import export_encoder

        export_encoder(own.checkpoint, output)
    elif own.to == "timm":
        from ..conversion import to_timm

        to_timm(own.checkpoint, output)
    elif own.to == "onnx":
        from ..conversion import export_onnx

        output.parent.mkdir(parents=True, exist_ok=True)
        export_onnx(own.checkpoint, output)
    else:
        _write_endpoint(own.checkpoint, config, output)
    print(f"Written: {output}")


def _write_endpoint(checkpoint: str, config: SparseJEPAConfig, folder: Path) -> None:
    from transformers import AutoImageProcessor

    from .. import modeling_sparsejepa
    from ..publishing import write_handler

    model_class = getattr(modeling_sparsejepa, (config.architectures or ["SparseJEPAModel"])[0])
    # Both first: a checkpoint without a processor leaves no half of an export.
    model, processor = model_class.from_pretrained(checkpoint), AutoImageProcessor.from_pretrained(checkpoint)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_handler(folder)
    if (card := Path(checkpoint) / "README.md").is_file():
        shutil.copy(card, folder)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The checkpoint, and what to write where."""
    parser = argparse.ArgumentParser(
        "sparsejepa export",
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", help="folder or Hub name of a SparseJEPA")
    add("output", help="folder or file to write; it must not exist yet")
    add("--to", required=True, choices=("encoder", "timm", "onnx", "endpoint"), help="what to write")
    return parser.parse_args(arguments)
