# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Write the features of images, one row an image, as a parquet file.

    sparsejepa embed runs/images --dataset /data/images --output features.parquet
    sparsejepa embed facebook/ijepa_vith14_1k --dataset uoft-cs/cifar10 --split test --output features/

The columns: `row`, the image's place in the data set; `path`, where images are files; `label`, where there are labels;
and one list of float32 for each feature kind. Images that cannot be decoded are left out, counted and named.
"""

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from ..data import load_image_dataset
from ..data.dataset import undecoded
from ..evaluation import FeatureSet, extract_feature_set, load_encoder


# Rows of a group of the file: what a reader holds at a time.
_ROWS = 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Extracts features and writes them; ends with an error if there is no image that can be decoded."""
    own = parse(arguments)
    output = Path(own.output)
    if output.suffix != ".parquet":
        output = output / f"{own.split.partition('[')[0]}.parquet"
    if output.exists() and not own.overwrite:
        raise FileExistsError(f"The file {output} exists; choose another --output, or pass --overwrite.")
    # Before the work, not after it.
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"No folder {output.parent} can be made for --output ({error}); choose another place."
        ) from error
    encoder = load_encoder(
        own.checkpoint,
        encoder=own.encoder,
        image_size=own.image_size,
        num_channels=own.num_channels,
        value_range=own.value_range,
        trust_remote_code=own.trust_remote_code,
        device=own.device or ("cuda" if torch.cuda.is_available() else "cpu"),
    )
    kinds = encoder.check_kinds(own.feature_kinds or encoder.kinds[:1])
    dataset = undecoded(
        load_image_dataset(
            own.dataset,
            own.split,
            image_column=own.image_column,
            label_column=own.label_column,
        )
    )
    with warnings.catch_warnings():
        # All of them are named below.
        warnings.filterwarnings("ignore", message=".*could not be decoded and were left out")
        features = extract_feature_set(
            encoder,
            dataset.select_columns("image"),
            kinds=kinds,
            batch_size=own.batch_size,
            mixed_precision=own.precision,
            max_bad_fraction=1.0,
        )
    write_parquet(features, dataset, output)
    left_out = np.setdiff1d(np.arange(len(dataset)), features.rows.numpy()).tolist()
    for row in left_out:
        path = (dataset[row]["image"] or {}).get("path")
        print(f"Not decodable: {path or f'the image of row {row}'}", file=sys.stderr)
    count = f", {len(left_out):,} could not be decoded and were left out" if left_out else ""
    print(f"Features of {len(features):,} of {len(dataset):,} images of {own.split}{count}: {output}")


def write_parquet(features: FeatureSet, dataset: datasets.Dataset, path: Path) -> None:
    """Writes features beside the images' paths and labels; a thousand rows are in memory at a time.

    The file is complete or absent.

    Args:
        features: of the images of `dataset`.
        dataset: with the column `image`, not decoded, and perhaps `label`.
        path: of the parquet file.
    """
    columns = {"row": datasets.Value("int64"), "path": datasets.Value("string")}
    columns |= {"label": dataset.features["label"]} if "label" in dataset.features else {}
    columns |= {kind: features.table.features[kind] for kind in features}
    schema = datasets.Features(columns).arrow_schema
    partial = path.with_name(f".{path.name}.partial")
    try:
        with pq.ParquetWriter(partial, schema) as writer:
            for batch in _batches(features, dataset):
                writer.write_table(pa.table([batch[name] for name in schema.names], schema=schema))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _batches(features: FeatureSet, dataset: datasets.Dataset) -> Iterator[dict[str, Any]]:
    for start in range(0, len(features), _ROWS):
        found = features.table.with_format("arrow")[start : start + _ROWS]
        images = dataset.with_format("arrow")[found["row"].to_numpy()]
        columns = {"path": pc.struct_field(images["image"], "path")}
        yield {**columns, **{name: table[name] for table in (images, found) for name in table.column_names}}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The checkpoint, the images, and what to write where."""
    parser = argparse.ArgumentParser(
        "sparsejepa embed",
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", help="folder, Hub name, timm/NAME or pixels")
    add("--dataset", required=True, help="a folder of images, files, a Hub name, or a built-in data set")
    add("--output", required=True, help="file to write (.parquet), or a folder for SPLIT.parquet")
    add("--overwrite", action="store_true", help="replace the file if there is one")
    add("--split", default="train", help="also a part, train[:1000]; a folder without splits is all train")
    add("--image_column", help="found if not given")
    add("--label_column", help="found if not given")
    add("--feature_kinds", nargs="+", help="LAYERS/POOLING, such as last/mean or groups/mean; default: last/mean")
    add("--encoder", choices=("target", "context"), default="target", help="of this package's models")
    add("--image_size", type=int, nargs="+", help="pixels: the side, or height and width; default: the checkpoint's")
    add("--num_channels", type=int, default=3, help="of pixels; a checkpoint says its own")
    add("--value_range", type=float, nargs=2, help="values that are black and white; default: as in training")
    add("--batch_size", type=int, help="images of a forward pass; default: 512, on a CPU 64")
    add("--precision", choices=("no", "bf16", "fp16"), default="no", help="of the encoder")
    add("--device", help="default: the GPU if there is one, else the CPU")
    add("--trust_remote_code", action="store_true", help="run code that the checkpoint brings along")
    return parser.parse_args(arguments)
