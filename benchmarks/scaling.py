# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Time and memory of a step against batch, patches, groups, latents, processes; of reading, against rows.

Each series varies one number and holds the others. An exponent is the slope of a straight line, by least squares,
through the logarithms. Beside it stand its standard error and the range that it was fitted on.
"""

import argparse
import io
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
import torch.distributed
from datasets import load_dataset
from PIL import Image
from scipy.stats import linregress
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from sparsejepa_hf import MultiBlockMaskSampler, SparseJEPAConfig, SparseJEPAForPreTraining
from sparsejepa_hf.data import build_image_dataset, load_image_dataset

from .harness.bare_step import BareStep
from .harness.records import format_table, origin_line, parser, start, write
from .harness.resources import in_fresh_process, peak_tensor_bytes, reset_peak_resident, resident_bytes
from .harness.timing import interleaved, summary


PATCH, _IMAGE = 4, 32
# Row group by row group, as `load_image_dataset` streams local files; file by file, as `datasets` alone does.
STREAMED, STREAMED_FILES, IN_MEMORY = "streamed", "streamed, a file at a time", "in memory"
# As many rows are held for shuffling as in a run of examples/pretrain.py.
_SHUFFLE_BUFFER, _WARM_ROWS = 10_000, 100
_MICRO: dict[str, Any] = {"name": "vit-micro"}
# By effort: the model, its name, the batch that all series but one hold, the values of each series, timed rounds of a
# series, rows of a data set, and timed steps of processes.
PLANS: dict[str, dict[str, Any]] = {
    "full": {
        "model": {"name": "vit-tiny"},
        "name": "ViT-Tiny",
        "held_batch": 64,
        "series": {
            "batch": [32, 64, 128, 256, 512],
            "image_size": [16, 24, 32, 48, 64],
            "num_groups": [1, 2, 4, 8, 16, 48],
            "num_latents": [16, 32, 64, 128, 256, 512],
        },
        "repeats": 5,
        "rows": [4000, 16_000, 64_000, 256_000],
        "steps": 6,
    },
    "short": {
        "model": _MICRO,
        "name": "width 96 x 3",
        "held_batch": 32,
        "series": {
            "batch": [32, 64, 128],
            "image_size": [16, 32, 64],
            "num_groups": [1, 4, 16, 48],
            "num_latents": [16, 64, 256],
        },
        "repeats": 3,
        "rows": [1000, 8000],
        "steps": 5,
    },
    "smoke": {
        "model": {**_MICRO, "hidden_size": 48, "num_hidden_layers": 1, "intermediate_size": 96},
        "name": "width 48 x 1",
        "held_batch": 4,
        "series": {"batch": [4, 8], "image_size": [16, 24]},
        "repeats": 1,
        "rows": [100, 200],
        "steps": 1,
    },
}


# ---- a step ----


def make_config(model: dict[str, Any]) -> SparseJEPAConfig:
    """`model` is the `name` of a preset and what differs from it."""
    options = {"image_size": _IMAGE, "patch_size": PATCH, "sparsity_weight": 1e-3, "kl_weight": 1e-5}
    return SparseJEPAConfig.from_preset(**{**options, **model})


def make_step(
    model: dict[str, Any],
    batch: int,
    device: str,
    seed: int,
    wrap: Callable[[SparseJEPAForPreTraining], Callable[..., Any]] | None = None,
) -> Callable[[], Tensor]:
    """A bare step of a model as of [`make_config`], on random images and masks of its grid."""
    config = make_config(model)
    torch.manual_seed(seed)
    step = BareStep(SparseJEPAForPreTraining(config).to(device))
    if wrap is not None:
        step.wrap(wrap)
    images = torch.randn(batch, 3, *config.image_sides).to(device)
    masks = MultiBlockMaskSampler(config.grid_size, seed=seed)(batch, 0, device=device)
    return partial(step, images, *masks)


def measure_series(name: str, values: Sequence[int], planned: dict[str, Any], options: argparse.Namespace) -> dict:
    """Time and peak memory of a step at each value of one number, interleaved, with fitted exponents."""
    steps = {}
    for value in values:
        batch = value if name == "batch" else planned["held_batch"]
        model = planned["model"] | ({} if name == "batch" else {name: value})
        # Images of S pixels have (S / 4)² patches, and it is these that cost.
        shown = (value // PATCH) ** 2 if name == "image_size" else value
        steps[shown] = make_step(model, batch, options.device, options.seed)
    seconds = interleaved(steps, repeats=options.repeats or planned["repeats"])
    points = [
        {"value": value, **summary(seconds[value]), "peak_bytes": peak_tensor_bytes(step, options.device)}
        for value, step in steps.items()
    ]
    return {
        "varied": "patches" if name == "image_size" else name,
        "points": points,
        "time_exponent": fit_exponent(list(steps), [point["median_s"] for point in points]),
        "memory_exponent": fit_exponent(list(steps), [point["peak_bytes"] for point in points]),
    }


def fit_exponent(x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """Least-squares slope of log y against log x.

    Returns:
        `exponent`, its `standard_error` (None from two points), and the range, `from` and `to`, of x.
    """
    line = linregress(np.log(x), np.log(y))
    error = float(line.stderr) if len(x) > 2 else None
    return {"exponent": float(line.slope), "standard_error": error, "from": min(x), "to": max(x)}


# ---- processes ----


def measure_processes(planned: dict[str, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Images a second of one and two processes: the same batch in all (strong), or for each (weak)."""
    if torch.device(options.device).type != "cpu":
        return []
    batch, half = planned["held_batch"], max(1, options.threads // 2)
    layouts = [(2, "weak", batch, half)]
    if options.effort != "smoke":
        one = [(1, "one process", batch, threads) for threads in sorted({half, options.threads})]
        layouts = [*one, (2, "strong", batch // 2, half), *layouts]
    rows = []
    for processes, kind, each, threads in layouts:
        with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(processes) as pool:
            task = (processes, f"file://{folder}/meeting", each, threads, planned, options.seed)
            seconds = pool.starmap(_train, [(rank, *task) for rank in range(processes)], chunksize=1)[0]
        timed = summary(seconds)
        facts = {"kind": kind, "processes": processes, "threads_each": threads, "batch_each": each}
        rows.append(facts | {"images_per_second": processes * each / timed["median_s"], **timed})
    return rows


def _train(
    rank: int, processes: int, meeting: str, batch: int, threads: int, planned: dict[str, Any], seed: int
) -> list[float]:
    """Seconds of steps of this process, one of several that average their gradients."""
    torch.set_num_threads(threads)
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    step = make_step(planned["model"], batch, "cpu", seed, DistributedDataParallel)
    for _ in range(2):
        step()
    seconds = []
    for _ in range(planned["steps"]):
        torch.distributed.barrier()
        begin = time.perf_counter()
        step()
        torch.distributed.barrier()
        seconds.append(time.perf_counter() - begin)
    torch.distributed.destroy_process_group()
    return seconds


# ---- data sets ----


def write_rows(folder: Path, rows: int, seed: int, size: int = 32) -> None:
    """Parquet in `folder` with `rows` random PNG images of `size` pixels, in row groups of 1,000."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    schema = pyarrow.schema({"image": pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})})
    with pyarrow.parquet.ParquetWriter(folder / "train.parquet", schema) as writer:
        for begin in range(0, rows, 1000):
            group = []
            for pixels in generator.integers(0, 256, (min(1000, rows - begin), size, size, 3), dtype=np.uint8):
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
                group.append({"image": {"bytes": buffer.getvalue(), "path": None}})
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))


def measure_data(planned: dict[str, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds and growth of a process that reads a data set of one file once, by the number of rows."""
    kinds = (STREAMED, STREAMED_FILES, IN_MEMORY)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "warm", _WARM_ROWS, options.seed)
        for rows in planned["rows"]:
            write_rows(folder / str(rows), rows, options.seed)
        tasks = [(kind, folder / str(rows), rows, folder / "warm") for rows in planned["rows"] for kind in kinds]
        if options.effort == "smoke":
            return [_read(*task) for task in tasks]
        return [in_fresh_process(_read, *task) for task in tasks]


def _read(kind: str, folder: Path, rows: int, warm: Path) -> dict[str, Any]:
    """Reads every row once in batches: how long that takes, and how much the process grows."""
    resident: list[int] = []

    def read(path: Path, count: int) -> int:
        source: Any = str(path)
        if kind == STREAMED_FILES:
            source = load_dataset("parquet", data_files=f"{path}/*.parquet", split="train", streaming=True)
        streamed = kind != IN_MEMORY
        loaded = load_image_dataset(source, "train", streaming=streamed, cache_dir=str(folder.parent / "cache"))
        images = build_image_dataset(
            loaded, _IMAGE, cache=not streamed, num_threads=1, shuffle_buffer_size=_SHUFFLE_BUFFER
        )
        seen = 0
        for batch in torch.utils.data.DataLoader(images, batch_size=64):
            seen += len(batch["pixel_values"])
            if len(resident) < 4 * seen // count:
                resident.append(resident_bytes())
        return seen

    # What is imported and set up on first use is no part of the data.
    read(warm, _WARM_ROWS)
    resident.clear()
    reset_peak_resident()
    before, begin = resident_bytes(), time.perf_counter()
    seen = read(folder, rows)
    return {
        "kind": kind,
        "rows": seen,
        "seconds": time.perf_counter() - begin,
        "grown_bytes": resident_bytes(peak=True) - before,
        "grown_at_quarters": [found - before for found in resident],
        "file_bytes": (folder / "train.parquet").stat().st_size,
        "pixel_bytes": seen * 3 * _IMAGE**2,
    }


# ---- the record ----


def main(argv: list[str] | None = None) -> None:
    """Measures and writes the record."""
    options = parser(__doc__).parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    origin, planned = start(options), PLANS[options.effort]
    measured = {
        "model": planned["name"],
        "held_batch": planned["held_batch"],
        "image_size": _IMAGE,
        "series": [measure_series(name, values, planned, options) for name, values in planned["series"].items()],
        "processes": measure_processes(planned, options),
        "data": measure_data(planned, options),
    }
    write("scaling", options, origin, measured)


_TITLES = {"batch": "batch", "patches": "patches", "num_groups": "groups G", "num_latents": "latents K"}
_EXPONENTS = [("varied", "{title}"), ("range", "{from} to {to}")]
_EXPONENTS += [("time ~ value^", "{time}"), ("memory ~ value^", "{memory}")]
_PROCESSES = [("processes (gloo)", "{title}"), ("threads each", "{threads_each}"), ("batch each", "{batch_each}")]
_PROCESSES += [("step, ms", "{ms:.1f}"), ("images/s", "{images_per_second:.1f}")]
_DATA = [("data set of one file", "{kind}"), ("rows", "{rows}"), ("file, MiB", "{file_bytes:.1f}")]
_DATA += [("pixels, MiB", "{pixel_bytes:.1f}"), ("seconds", "{seconds:.1f}")]
_DATA += [("process grew by at most, MiB", "{grown_bytes:.1f}")]
_DATA += [("after each quarter of the rows, MiB", "{quarters}")]
_DATA_EXPONENTS = [("data set of one file", "{title}"), ("rows", "{from} to {to}")]
_DATA_EXPONENTS += [("time ~ rows^", "{time}"), ("growth ~ rows^", "{memory}")]


def render(record: dict[str, Any]) -> str:
    """One table a series, the exponents, processes and data sets."""
    rounds = record["series"][0]["points"][0]["n"]
    held = f"{record['model']}, held: batch {record['held_batch']}, {record['image_size']} pixels, median of {rounds}"
    series = []
    for found in record["series"]:
        cells = [f"{p['value']}: {1e3 * p['median_s']:.1f}, {p['peak_bytes'] / 2**20:.0f}" for p in found["points"]]
        row = {"title": _TITLES[found["varied"]], "cells": "; ".join(cells)}
        series.append(row | _exponents(found["time_exponent"], found["memory_exponent"]))
    processes = [
        row | {"title": f"{row['processes']}, {row['kind']}" if row["processes"] > 1 else row["kind"]}
        for row in record["processes"]
    ]
    data = []
    for row in record["data"]:
        sizes = {name: row[name] / 2**20 for name in ("file_bytes", "pixel_bytes", "grown_bytes")}
        quarters = ", ".join(f"{size / 2**20:.1f}" for size in row["grown_at_quarters"])
        data.append(row | sizes | {"quarters": quarters})
    exponents = []
    for kind in dict.fromkeys(row["kind"] for row in record["data"]):
        own = [row for row in record["data"] if row["kind"] == kind]
        x = [row["rows"] for row in own]
        # A process may not have grown at all.
        grown = [max(row["grown_bytes"], 1) for row in own]
        fits = fit_exponent(x, [row["seconds"] for row in own]), fit_exponent(x, grown)
        exponents.append({"title": kind} | _exponents(*fits))
    blocks = [f"A step of {held}; its time, and the most bytes of tensors alive at a time beyond those before it"]
    blocks.append(format_table([("varied", "{title}"), ("value: ms, MiB", "{cells}")], series))
    blocks.append(format_table(_EXPONENTS, series))
    if processes:
        blocks.append(format_table(_PROCESSES, [row | {"ms": 1e3 * row["median_s"]} for row in processes]))
    blocks += [format_table(_DATA, data), format_table(_DATA_EXPONENTS, exponents), origin_line(record)]
    return "\n\n".join(blocks)


def _exponents(time_: dict[str, Any], memory: dict[str, Any]) -> dict[str, Any]:
    """Both exponents as text, and the range that they were fitted on."""
    texts = [
        f"{fit['exponent']:.2f}" + ("" if fit["standard_error"] is None else f" ± {fit['standard_error']:.2f}")
        for fit in (time_, memory)
    ]
    return {"from": time_["from"], "to": time_["to"], "time": texts[0], "memory": texts[1]}


if __name__ == "__main__":
    main()
