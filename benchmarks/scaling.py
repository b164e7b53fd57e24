# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Time and memory of a step against batch, patches, groups, latents, processes; of reading, against rows.

Each series varies one number and holds the others. An exponent is the slope of a straight line, by least squares,
through the logarithms; with it stand its standard error and the range that it was fitted on.
"""

import argparse
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from datasets import load_dataset
from PIL import Image
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from sparsejepa_hf import SparseJEPAConfig
from sparsejepa_hf.data import build_image_dataset, load_image_dataset
from sparsejepa_hf.masking import MultiBlockMaskSampler
from sparsejepa_hf.modeling_sparsejepa import SparseJEPAForPreTraining
from sparsejepa_hf.records import table
from sparsejepa_hf.training.options import DataArguments

from .harness.bare_step import BareStep
from .harness.memory import peak_resident_bytes, peak_tensor_bytes, reset_peak_resident, resident_bytes
from .harness.records import ROOT, origin_line, parser, start, write
from .harness.timing import interleaved, summary


PATCH = 4
# Row group by row group, as `load_image_dataset` streams local files, and file by file, as `datasets` alone does.
STREAMED, STREAMED_FILES, IN_MEMORY = "streamed", "streamed, a file at a time", "in memory"
_VIT_TINY: dict[str, Any] = {}
_SMALL: dict[str, Any] = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 384,
    "predictor_hidden_size": 48,
    "predictor_num_hidden_layers": 2,
    "predictor_num_attention_heads": 3,
}
_MINIMAL = {**_SMALL, "hidden_size": 48, "num_hidden_layers": 1, "intermediate_size": 96}
# What all series but one hold; the groups divide the width of each model.
_BATCH, _IMAGE = 64, 32
_WARM_ROWS = 100
_NAMES = {"batch": "batch", "patches": "patches", "num_groups": "groups G", "num_latents": "latents K"}


def plan(effort: str) -> dict[str, Any]:
    """Model, batch and the values of each series."""
    if effort == "smoke":
        sizes = {"batch": [4, 8], "image_size": [16, 24]}
        return {"model": _MINIMAL, "name": "width 48 x 1", "held_batch": 4, "series": sizes, "repeats": 1} | {
            "rows": [100, 200],
            "steps": 1,
        }
    sizes = {
        "batch": [32, 64, 128, 256],
        "image_size": [16, 24, 32, 48, 64],
        "num_groups": [1, 2, 4, 8, 16, 48],
        "num_latents": [16, 32, 64, 128, 256, 512],
    }
    if effort == "short":
        sizes |= {"image_size": [16, 32, 64], "num_groups": [1, 4, 16, 48], "num_latents": [16, 64, 256]}
        sizes |= {"batch": [32, 64, 128]}
        held = {"name": "width 96 x 3", "held_batch": 32, "repeats": 3, "rows": [1000, 8000], "steps": 5}
        return {"model": _SMALL, "series": sizes, **held}
    sizes["batch"].append(512)
    held = {"name": "ViT-Tiny", "held_batch": _BATCH, "repeats": 5, "rows": [4000, 16000, 64000, 256_000], "steps": 6}
    return {"model": _VIT_TINY, "series": sizes, **held}


# ---- a step ----


def make_step(
    model: dict[str, Any],
    batch: int,
    device: str,
    seed: int,
    wrapper: Callable[[SparseJEPAForPreTraining], Callable[..., Any]] | None = None,
    **varied: Any,
) -> Callable[[], Tensor]:
    """A bare step of ViT-Tiny changed by `model` and `varied`, on random images and masks of its grid; the forward
    pass goes through `wrapper(model)`, if one is given."""
    options = {"image_size": _IMAGE, "patch_size": PATCH, "sparsity_weight": 1e-3, "kl_weight": 1e-5}
    config = SparseJEPAConfig.from_preset("vit-tiny", **{**options, **model, **varied})
    torch.manual_seed(seed)
    step = BareStep(SparseJEPAForPreTraining(config).to(device))
    if wrapper is not None:
        step.wrap(wrapper)
    images = torch.randn(batch, 3, *config.image_sides).to(device)
    masks = MultiBlockMaskSampler(config.grid_size, seed=seed)(batch, 0, device=device)
    return partial(step, images, *masks)


def measure_series(name: str, values: Sequence[int], planned: dict[str, Any], options: argparse.Namespace) -> dict:
    """Time and peak memory of a step at each value of one number, interleaved, with fitted exponents."""
    steps = {}
    for value in values:
        batch = value if name == "batch" else planned["held_batch"]
        varied = {} if name == "batch" else {name: value}
        steps[value] = make_step(planned["model"], batch, options.device, options.seed, **varied)
    repeats = options.repeats or planned["repeats"]
    seconds = interleaved({str(v): step for v, step in steps.items()}, repeats=repeats, device=options.device)
    # Images of S pixels have (S / 4)² patches, and it is these that cost.
    shown = "patches" if name == "image_size" else name
    points = [
        {
            "value": (value // PATCH) ** 2 if name == "image_size" else value,
            **summary(seconds[str(value)]),
            "peak_bytes": peak_tensor_bytes(step, options.device),
        }
        for value, step in steps.items()
    ]
    x = [point["value"] for point in points]
    return {
        "varied": shown,
        "points": points,
        "time_exponent": fit_exponent(x, [point["median_s"] for point in points]),
        "memory_exponent": fit_exponent(x, [point["peak_bytes"] for point in points]),
    }


def fit_exponent(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """Least-squares slope of log y against log x.

    Returns:
        `exponent`, its `standard_error` (NaN from two points), and the range, `from` and `to`, of x.

    Raises:
        ValueError: for fewer than two different x, or numbers that are not positive.
    """
    if len(x) != len(y) or len(set(x)) < 2 or min(*x, *y) <= 0:
        raise ValueError(f"x is {list(x)}, y {list(y)}; expected two or more different positive x, a positive y each.")
    a, b = np.log(np.asarray(x, dtype=float)), np.log(np.asarray(y, dtype=float))
    centred = a - a.mean()
    spread = float(centred @ centred)
    slope = float(centred @ b) / spread
    residuals = b - b.mean() - slope * centred
    free = len(x) - 2
    error = math.sqrt(float(residuals @ residuals) / free / spread) if free > 0 else None
    return {"exponent": slope, "standard_error": error, "from": min(x), "to": max(x)}


# ---- processes ----


def measure_processes(planned: dict[str, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Images a second of one and two processes: the same batch in all (strong), or for each (weak)."""
    if torch.device(options.device).type != "cpu":
        return []
    batch, rows = planned["held_batch"], []
    layouts = [(2, "weak", batch)]
    if options.effort != "smoke":
        layouts = [(1, "one process", batch), (2, "strong", batch // 2), (2, "weak", batch)]
    threads = max(1, options.threads // 2)
    for processes, kind, each in layouts:
        rows.append(_start_processes(processes, kind, each, threads, planned, options))
    if options.effort != "smoke" and threads < options.threads:
        rows.insert(1, _start_processes(1, "one process", batch, options.threads, planned, options))
    return rows


def _start_processes(
    processes: int, kind: str, batch: int, threads: int, planned: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    task = {"model": planned["model"], "batch": batch, "steps": planned["steps"], "seed": options.seed}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["-m", "benchmarks.scaling", "--worker", json.dumps({**task, "threads": threads})]
    seconds = json.loads(_run(command, {"OMP_NUM_THREADS": str(threads)}).strip().splitlines()[-1])
    timed = summary(seconds)
    rate = processes * batch / timed["median_s"]
    return {
        "kind": kind,
        "processes": processes,
        "threads_each": threads,
        "batch_each": batch,
        "images_per_second": rate,
        **timed,
    }


def _run(command: list[str], environment: dict[str, str]) -> str:
    """Output of a command in the root of the checkout."""
    paths = [str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        lines = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise RuntimeError(f"{' '.join(command[:6])} … ended with status {done.returncode}:\n{lines}")
    return done.stdout


def _train_in_processes(task: dict[str, Any]) -> None:
    """Steps of one process of several; the first prints their seconds as JSON."""
    torch.set_num_threads(task["threads"])
    torch.distributed.init_process_group("gloo")
    # Every process owns a copy of the model; gradients are averaged while they are computed.
    step = make_step(task["model"], task["batch"], "cpu", task["seed"], DistributedDataParallel)
    for _ in range(2):
        step()
    seconds = []
    for _ in range(task["steps"]):
        torch.distributed.barrier()
        begin = time.perf_counter()
        step()
        torch.distributed.barrier()
        seconds.append(time.perf_counter() - begin)
    if torch.distributed.get_rank() == 0:
        print(json.dumps(seconds), flush=True)
    torch.distributed.destroy_process_group()


# ---- data sets ----


def write_rows(path: Path, rows: int, seed: int, size: int = 32) -> None:
    """Parquet with `rows` random PNG images of `size` pixels, in row groups of 1,000."""
    # Here alone: no other benchmark writes files of rows.
    import pyarrow
    import pyarrow.parquet

    generator = np.random.default_rng(seed)
    schema = pyarrow.schema({"image": pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})})
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for begin in range(0, rows, 1000):
            images = generator.integers(0, 256, (min(1000, rows - begin), size, size, 3), dtype=np.uint8)
            encoded = [{"image": {"bytes": _png(image), "path": None}} for image in images]
            writer.write_table(pyarrow.Table.from_pylist(encoded, schema=schema))


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def measure_data(planned: dict[str, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds and growth of a process that reads a data set of one file once, by the number of rows."""
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        tasks, warm = [], Path(folder) / "warm" / "train.parquet"
        warm.parent.mkdir()
        write_rows(warm, _WARM_ROWS, options.seed)
        for rows in planned["rows"]:
            path = Path(folder) / f"{rows}" / "train.parquet"
            path.parent.mkdir()
            write_rows(path, rows, options.seed)
            task = {"path": str(path.parent), "rows": rows, "warm_path": str(warm.parent), "warm_rows": _WARM_ROWS}
            tasks += [{"kind": kind, **task} for kind in (STREAMED, STREAMED_FILES, IN_MEMORY)]
        if options.effort == "smoke":
            return [_read(task) for task in tasks]
        for task in tasks:
            # A process of its own for each: what an earlier one freed would hide growth.
            command = [sys.executable, "-m", "benchmarks.scaling", "--reader", json.dumps(task)]
            environment = {"HF_DATASETS_CACHE": str(Path(folder) / "cache"), "HF_HUB_OFFLINE": "1"}
            measured.append(json.loads(_run(command, environment).strip().splitlines()[-1]))
    return measured


def _read(task: dict[str, Any]) -> dict[str, Any]:
    """Reads every row once in batches; how long it took, and how much the process grew meanwhile."""
    streamed = task["kind"] != IN_MEMORY
    resident: list[int] = []

    def read(path: str, rows: int) -> int:
        source: Any = path
        if task["kind"] == STREAMED_FILES:
            source = load_dataset("parquet", data_files=f"{path}/*.parquet", split="train", streaming=True)
        loaded = load_image_dataset(source, "train", streaming=streamed)
        # As much is held for shuffling as in a run of examples/pretrain.py.
        held = DataArguments.shuffle_buffer
        images = build_image_dataset(loaded, 32, cache=not streamed, num_threads=1, shuffle_buffer_size=held)
        seen = 0
        for batch in torch.utils.data.DataLoader(images, batch_size=64):
            seen += len(batch["pixel_values"])
            if len(resident) < 4 * seen // rows:
                resident.append(resident_bytes())
        return seen

    # What is imported and set up on first use is no part of the data.
    read(task["warm_path"], task["warm_rows"])
    resident.clear()
    reset_peak_resident()
    before, begin = peak_resident_bytes(), time.perf_counter()
    rows = read(task["path"], task["rows"])
    return {
        "kind": task["kind"],
        "rows": rows,
        "seconds": time.perf_counter() - begin,
        "grown_bytes": peak_resident_bytes() - before,
        "grown_at_quarters": [found - before for found in resident],
        "file_bytes": sum(file.stat().st_size for file in Path(task["path"]).glob("*.parquet")),
        "pixel_bytes": rows * 3 * 32 * 32,
    }


# ---- the record ----


def main(argv: list[str] | None = None) -> None:
    """Measures and writes the record."""
    flags = parser(__doc__)
    flags.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    flags.add_argument("--reader", type=json.loads, help=argparse.SUPPRESS)
    options = flags.parse_args(argv)
    if options.worker is not None:
        _train_in_processes(options.worker)
        return
    if options.reader is not None:
        print(json.dumps(_read(options.reader)))
        return
    del options.worker, options.reader
    origin, planned = start(options), plan(options.effort)
    measured = {
        "model": planned["name"],
        "held_batch": planned["held_batch"],
        "image_size": _IMAGE,
        "series": [measure_series(name, values, planned, options) for name, values in planned["series"].items()],
        "processes": measure_processes(planned, options),
        "data": measure_data(planned, options),
    }
    write("scaling", options, origin, measured)


def render(record: dict[str, Any]) -> str:
    """One table a series, the exponents, processes and data sets."""
    rounds = record["series"][0]["points"][0]["n"]
    held = f"{record['model']}, held: batch {record['held_batch']}, {record['image_size']} pixels, median of {rounds}"
    blocks = [f"A step of {held}; its time, and the most bytes of tensors alive at a time beyond those before it"]
    header = ["varied", "value: ms, MiB"]
    blocks.append(table(header, [_series_row(series) for series in record["series"]]))
    header = ["varied", "range", "time ~ value^", "memory ~ value^"]
    blocks.append(table(header, [_exponent_row(series) for series in record["series"]]))
    if record["processes"]:
        header = ["processes (gloo)", "threads each", "batch each", "step, ms", "images/s"]
        blocks.append(table(header, [_process_row(row) for row in record["processes"]]))
    header = ["data set of one file", "rows", "file, MiB", "pixels, MiB", "seconds", "process grew by at most, MiB"]
    header += ["after each quarter of the rows, MiB"]
    blocks.append(table(header, [_data_row(row) for row in record["data"]]))
    header = ["data set of one file", "rows", "time ~ rows^", "growth ~ rows^"]
    blocks.append(table(header, _data_exponents(record["data"])))
    blocks.append(origin_line(record))
    return "\n\n".join(blocks)


def _series_row(series: dict[str, Any]) -> list[str]:
    cells = [f"{p['value']}: {1e3 * p['median_s']:.1f}, {p['peak_bytes'] / 2**20:.0f}" for p in series["points"]]
    return [_NAMES[series["varied"]], "; ".join(cells)]


def _exponent_row(series: dict[str, Any]) -> list[str]:
    time_, memory = series["time_exponent"], series["memory_exponent"]
    return [_NAMES[series["varied"]], f"{time_['from']} to {time_['to']}", _exponent(time_), _exponent(memory)]


def _exponent(fitted: dict[str, Any]) -> str:
    error = fitted["standard_error"]
    return f"{fitted['exponent']:.2f}" + ("" if error is None else f" ± {error:.2f}")


def _process_row(row: dict[str, Any]) -> list[str]:
    kind = row["kind"] if row["processes"] == 1 else f"{row['processes']}, {row['kind']}"
    return [
        kind,
        str(row["threads_each"]),
        str(row["batch_each"]),
        f"{1e3 * row['median_s']:.1f}",
        f"{row['images_per_second']:.1f}",
    ]


def _data_row(row: dict[str, Any]) -> list[str]:
    file, pixels, grown, *quarters = (
        f"{size / 2**20:.1f}"
        for size in (row["file_bytes"], row["pixel_bytes"], row["grown_bytes"], *row["grown_at_quarters"])
    )
    return [row["kind"], str(row["rows"]), file, pixels, f"{row['seconds']:.1f}", grown, ", ".join(quarters)]


def _data_exponents(rows: list[dict[str, Any]]) -> list[list[str]]:
    found = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        own = [row for row in rows if row["kind"] == kind]
        # A process may not have grown at all.
        grown = [max(row["grown_bytes"], 1) for row in own]
        x = [row["rows"] for row in own]
        fits = (fit_exponent(x, y) for y in ([row["seconds"] for row in own], grown))
        found.append([kind, f"{min(x)} to {max(x)}", *map(_exponent, fits)])
    return found


if __name__ == "__main__":
    main()
