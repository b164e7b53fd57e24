# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Input: masks, augmentation, decoding and all of them together, beside the usual pipeline image by image.

The usual pipeline is torchvision's transforms of PIL images in a DataLoader with a mask collator. Ours is what the
Trainer does: its DataLoader of uint8 images, then masks and augmentation of the whole batch on the device. Both get
the same images; both shuffle, crop, flip, jitter, normalise and sample masks with as many blocks. Decoding into
memory, which is done once, is timed apart. Workers are started before the clock.
"""

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from sparsejepa_hf import MultiBlockMaskSampler, SparseJEPAConfig, SparseJEPAForPreTraining
from sparsejepa_hf.counter_rng import stream_keys
from sparsejepa_hf.data import BatchAugmentation, build_image_dataset, load_image_dataset
from sparsejepa_hf.records import NONE, table
from sparsejepa_hf.training import SparseJEPATrainer, SparseJEPATrainingArguments

from .alternatives.pil_pipeline import MultiBlockMaskCollator, PILImages, build_transform
from .harness.records import format_table, origin_line, parser, start, write
from .harness.timing import interleaved, seconds_of, speedup, summary


MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
COLLATOR, SAMPLER = "collator, image by image", "ours, whole batch"
TORCHVISION, BATCHED = "torchvision, image by image", "ours, batched"
PIL_MEMORY, PIL_FOLDER = "PIL pipeline, in memory", "PIL pipeline, folder"
MEMORY, ROWS, FOLDER = "ours, in memory", "ours, rows of `datasets`", "ours, folder"
# What each is compared with: the same images, both in memory or both on disk.
BESIDE = {SAMPLER: COLLATOR, BATCHED: TORCHVISION, MEMORY: PIL_MEMORY, ROWS: PIL_FOLDER, FOLDER: PIL_FOLDER}
WORKERS = 2
# Which of the counter's random streams is drawn from makes no difference to the time.
_STREAM = 0
# Masks and augmentation are repeated for this long in each round.
_MIN_SECONDS = 0.02
_TINY_MODEL: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "intermediate_size": 48,
    "predictor_hidden_size": 24,
    "predictor_num_hidden_layers": 1,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """Images of one size, cropped and jittered as their recipe does, and the model whose step stands beside them.

    Attributes:
        image_size, patch_size: in pixels.
        batch, images: images in a batch, and in all.
        crop, jitter: of the augmentation.
        suffix: of the files.
        preset, step_batch: of the step.
        sizes: what differs from the preset.
    """

    image_size: int
    patch_size: int
    batch: int
    images: int
    crop: str
    jitter: float
    suffix: str
    preset: str
    step_batch: int
    sizes: dict[str, Any] = dataclasses.field(default_factory=dict)


_FULL = (
    Case(32, 4, 256, 4096, "pad", 0.1, "png", "vit-tiny", step_batch=256),
    Case(224, 16, 32, 512, "resized", 0.0, "jpg", "vit-small", step_batch=32),
)
_SHORT = tuple(
    dataclasses.replace(case, images=images, step_batch=batch)
    for case, images, batch in zip(_FULL, (1024, 64), (64, 4), strict=True)
)
_SMOKE = (
    Case(16, 2, 4, 8, "pad", 0.1, "png", "vit-tiny", 4, _TINY_MODEL),
    Case(32, 4, 2, 4, "resized", 0.0, "jpg", "vit-tiny", 2, _TINY_MODEL),
)
CASES = {"full": _FULL, "short": _SHORT, "smoke": _SMOKE}
REPEATS = {"full": 5, "short": 2, "smoke": 1}


# ---- what is measured ----


def generated_images(count: int, size: int, seed: int) -> list[Image.Image]:
    """RGB images of smooth colours under faint noise, which compress about as photographs do."""
    generator = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
        noisy = smooth + generator.normal(0.0, 6.0, (size, size, 3)).astype(np.float32)
        images.append(Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8)))
    return images


def collator_beside(sampler: MultiBlockMaskSampler) -> MultiBlockMaskCollator:
    """With as many blocks. They are square: 3 x 3 of 8 x 8 is our 9 patches, 5 x 5 of 14 x 14 is next to our 27."""
    side = round(sampler.num_target_patches**0.5)
    return MultiBlockMaskCollator(sampler.grid_size, sampler.num_target_blocks, side)


def measure_masks(grid: int, batch: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Masks alone, for each number of threads."""
    sampler = MultiBlockMaskSampler((grid, grid), seed=options.seed)
    calls = {
        COLLATOR: partial(collator_beside(sampler).sample, batch),
        SAMPLER: partial(sampler, batch, 0, device=options.device),
    }
    tokens = {}
    for name, call in calls.items():
        context_mask, target_mask = call()
        tokens[name] = {"context_tokens": context_mask.shape[-1], "target_tokens": target_mask.shape[-1]}
    rows = []
    for threads in sorted({1, options.threads}):
        seconds = _timed(calls, threads, options, _MIN_SECONDS)
        facts = {"grid": grid, "batch": batch, "threads": threads}
        rows += [row | tokens[row["candidate"]] for row in _rows(seconds, batch, facts)]
    return rows


def measure_augmentation(case: Case, images: list[Image.Image], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Crop, flip, jitter and normalisation alone, of one batch that lies ready: PIL images, or one uint8 tensor."""
    images = images[: case.batch]
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]).contiguous()
    keys = stream_keys(options.seed, 0, torch.arange(case.batch, device=options.device), _STREAM)
    augment, transform = pipelines(case)
    calls = {
        TORCHVISION: lambda: torch.stack([transform(image) for image in images]).to(options.device),
        BATCHED: lambda: augment(pixels.to(options.device), keys),
    }
    rows = []
    for threads in sorted({1, options.threads}):
        facts = {"image_size": case.image_size, "crop": case.crop, "jitter": case.jitter}
        facts |= {"batch": case.batch, "threads": threads}
        rows += _rows(_timed(calls, threads, options, _MIN_SECONDS), case.batch, facts)
    return rows


def pipelines(case: Case) -> tuple[BatchAugmentation, Callable[[Image.Image], Tensor]]:
    """Our augmentation of a batch, and torchvision's of an image, with the same options."""
    options: Any = {"crop": case.crop, "color_jitter": case.jitter}
    return BatchAugmentation(case.image_size, MEAN, STD, **options), build_transform(
        case.image_size, MEAN, STD, **options
    )


class Sources:
    """The images of a case, wherever a user may have them.

    Args:
        case: the images' size, number and batch.
        images: PIL images in memory.
        folder: an empty folder for files.
        options: of the command line.
    """

    def __init__(self, case: Case, images: list[Image.Image], folder: Path, options: argparse.Namespace) -> None:
        self.case, self.options, self._folder = case, options, folder
        labels, paths = [index % 2 for index in range(len(images))], []
        for index, image in enumerate(images):
            paths.append(folder / "images" / ("even", "odd")[index % 2] / f"{index:06}.{case.suffix}")
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            image.save(paths[-1])
        self.file_bytes = statistics.mean(path.stat().st_size for path in paths)
        self._augment, transform = pipelines(case)
        self.pil: dict[str, Dataset] = {
            PIL_MEMORY: PILImages(images, labels, transform),
            PIL_FOLDER: ImageFolder(str(folder / "images"), transform),
        }
        # Bytes of files as rows of Parquet, loaded as those from the Hub are: mapped from the disk.
        rows = [{"bytes": path.read_bytes(), "path": None} for path in paths]
        features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
        parquet = datasets.Dataset.from_dict({"image": rows, "label": labels}, features=features)
        parquet.cast_column("image", datasets.Image()).to_parquet(folder / "train.parquet")
        in_rows = load_image_dataset(folder / "train.parquet", cache_dir=folder / "cache")
        in_folder = load_image_dataset(folder / "images", cache_dir=folder / "cache")
        self.ours = {ROWS: build_image_dataset(in_rows, case.image_size, cache=False)}
        self.ours[FOLDER] = build_image_dataset(in_folder, case.image_size, cache=False)

        def decode() -> None:
            self.ours[MEMORY] = build_image_dataset(in_folder, case.image_size, cache=True)

        self.caching_s = seconds_of(decode)
        side = case.image_size // case.patch_size
        self._sampler = MultiBlockMaskSampler((side, side), seed=options.seed)

    def passes(self, workers: int) -> dict[str, Callable[[], int]]:
        """A pass over each source, in shuffled whole batches. Each returns the number of images that it saw."""
        calls = {}
        for name, dataset in self.pil.items():
            loader: Iterable[Any] = DataLoader(
                dataset,
                self.case.batch,
                shuffle=True,
                drop_last=True,
                collate_fn=collator_beside(self._sampler),
                num_workers=workers,
                pin_memory=self.options.device != "cpu",
                persistent_workers=workers > 0,
            )
            calls[name] = partial(self._pil_pass, loader)
        config = SparseJEPAConfig(
            **_TINY_MODEL, image_size=self.case.image_size, patch_size=self.case.patch_size, use_grouping=False
        )
        arguments = SparseJEPATrainingArguments(
            output_dir=str(self._folder / "run"),
            per_device_train_batch_size=self.case.batch,
            dataloader_num_workers=workers,
            dataloader_persistent_workers=workers > 0,
            dataloader_pin_memory=self.options.device != "cpu",
            use_cpu=self.options.device == "cpu",
            seed=self.options.seed,
            report_to="none",
        )
        for name in (MEMORY, ROWS, FOLDER):
            model = SparseJEPAForPreTraining(config)
            trainer = SparseJEPATrainer(model, arguments, train_dataset=self.ours[name])
            calls[name] = partial(self._our_pass, trainer.get_train_dataloader())
        return calls

    def _pil_pass(self, loader: Iterable[Any]) -> int:
        seen = 0
        for (pixels, _), context_mask, target_mask in loader:
            for tensor in (pixels, context_mask, target_mask):
                tensor.to(self.options.device, non_blocking=True)
            seen += len(pixels)
        return seen

    def _our_pass(self, loader: Iterable[dict[str, Tensor]]) -> int:
        seen = 0
        for step, batch in enumerate(loader):
            pixels = batch["pixel_values"]
            slots = torch.arange(len(pixels), device=pixels.device)
            self._augment(pixels, stream_keys(self.options.seed, step, slots, _STREAM))
            self._sampler.sample_slots(slots, step)
            seen += len(pixels)
        return seen


def measure_pipeline(sources: Sources) -> list[dict[str, Any]]:
    """Decoding, augmentation and masks through each pipeline: with one thread, with all, and with workers too."""
    options, case = sources.options, sources.case
    rows: list[dict[str, Any]] = []
    settings = [(0, threads) for threads in sorted({1, options.threads})]
    for workers, threads in [*settings, (WORKERS, options.threads)]:
        facts = {
            "image_size": case.image_size,
            "crop": case.crop,
            "jitter": case.jitter,
            "file": case.suffix,
            "file_bytes": sources.file_bytes,
            "batch": case.batch,
            "workers": workers,
            "threads": threads,
        }
        seconds = _timed(sources.passes(workers), threads, options)
        found = _rows(seconds, case.images // case.batch * case.batch, facts)
        compare_with_the_fastest(found, rows)
        rows += found
    return rows


def compare_with_the_fastest(rows: list[dict[str, Any]], before: list[dict[str, Any]]) -> None:
    """Lowers speedups to those against PIL's fastest rate so far, since a second thread can slow its pipeline down."""
    for row in rows:
        if row["speedup"] is not None:
            beside = [r["images_per_s"] for r in before + rows if r["candidate"] == BESIDE[row["candidate"]]]
            row["speedup"] = min(row["speedup"], row["images_per_s"] / max(beside))


def measure_step(sources: Sources) -> list[dict[str, Any]]:
    """Input of a batch, without workers, beside forward and backward pass on such a batch."""
    options, case = sources.options, sources.case
    sizes = {**case.sizes, "image_size": case.image_size, "patch_size": case.patch_size}
    config = SparseJEPAConfig.from_preset(case.preset, **sizes)
    model = SparseJEPAForPreTraining(config).to(options.device).train()
    images = torch.randn(case.step_batch, 3, *config.image_sides).to(options.device)
    masks = MultiBlockMaskSampler(config.grid_size, seed=options.seed)(case.step_batch, 0, device=options.device)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(images, *masks).loss.backward()

    seconds = _timed({"step": step, **sources.passes(0)}, options.threads, options)
    steps = seconds.pop("step")
    # A pass is over all whole batches; a step is on one batch of another size.
    batches = case.images // case.batch * case.batch / case.step_batch
    rows = []
    for name, found in seconds.items():
        inputs = [s / batches for s in found]
        shares = [i / (i + s) for i, s in zip(inputs, steps, strict=True)]
        rows.append(
            {
                "candidate": name,
                "width": config.hidden_size,
                "layers": config.num_hidden_layers,
                "image_size": case.image_size,
                "batch": case.step_batch,
                "threads": options.threads,
                "input_s": statistics.median(inputs),
                "step_s": statistics.median(steps),
                "share": statistics.median(shares),
                "n": len(shares),
            }
        )
    return rows


def _timed(
    calls: dict[str, Callable[[], Any]], threads: int, options: argparse.Namespace, min_seconds: float = 0.0
) -> dict[str, list[float]]:
    # Short calls are affordable in more rounds.
    more = 4 if min_seconds and options.effort != "smoke" else 1
    torch.set_num_threads(threads)
    try:
        return interleaved(calls, repeats=more * options.repeats, min_seconds=min_seconds)
    finally:
        torch.set_num_threads(options.threads)


def _rows(seconds: dict[str, list[float]], images: int, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a candidate, with images a second and how many times as fast it is as what it is compared with."""
    return [
        {
            "candidate": name,
            **facts,
            "images": images,
            "images_per_s": images / statistics.median(found),
            "speedup": speedup(seconds[BESIDE[name]], found) if name in BESIDE else None,
            **summary(found),
        }
        for name, found in seconds.items()
    ]


def main(argv: list[str] | None = None) -> None:
    """Measures and writes the record."""
    options = parser(__doc__).parse_args(argv)
    options.repeats = options.repeats or REPEATS[options.effort]
    origin = start(options)
    datasets.disable_progress_bars()
    measured: dict[str, list[Any]] = {"masks": [], "augmentation": [], "caching": [], "pipeline": [], "step": []}
    smoke = options.effort == "smoke"
    for grid in (8,) if smoke else (8, 14):
        for batch in (4,) if smoke else (64, 256, 1024):
            measured["masks"] += measure_masks(grid, batch, options)
    for case in CASES[options.effort]:
        images = generated_images(case.images, case.image_size, options.seed)
        measured["augmentation"] += measure_augmentation(case, images, options)
        with tempfile.TemporaryDirectory() as folder:
            sources = Sources(case, images, Path(folder), options)
            measured["pipeline"] += measure_pipeline(sources)
            facts = {"image_size": case.image_size, "images": len(images), "seconds": sources.caching_s}
            measured["caching"].append(facts)
            measured["step"] += measure_step(sources)
    write("input", options, origin, measured)


# ---- the record as Markdown ----

_MASKS = [("grid", "{grid} × {grid}"), ("batch", "{batch:,}"), ("masks", "{candidate}")]
_MASKS += [("context", "{context_tokens}"), ("a target", "{target_tokens}")]
_AUGMENTATION = [("pixels", "{image_size}"), ("crop", "{crop}"), ("jitter", "{jitter}"), ("batch", "{batch:,}")]
_AUGMENTATION += [("augmentation", "{candidate}")]
_PIPELINE = [("pixels, of files too", "{image_size}"), ("crop, jitter", "{crop}, {jitter}")]
_PIPELINE += [("files", "{file}, {kib:.1f} KiB"), ("batch", "{batch:,}"), ("input", "{candidate}")]
_STEP = [("model", "width {width} × {layers} layers"), ("pixels", "{image_size}"), ("batch", "{batch:,}")]
_STEP += [("input", "{candidate}"), ("input, ms a batch", "{input_ms:,.1f}"), ("step, ms", "{step_ms:,.0f}")]
_STEP += [("input's share in series", "{percent:.2f} %")]


def render(record: dict[str, Any]) -> str:
    """The record's tables and its origin, in Markdown."""
    pipeline = [row | {"kib": row["file_bytes"] / 1024} for row in record["pipeline"]]
    steps = [
        row | {"input_ms": 1e3 * row["input_s"], "step_ms": 1e3 * row["step_s"], "percent": 100 * row["share"]}
        for row in record["step"]
    ]
    once = "; ".join(
        f"{row['image_size']} pixels: {row['seconds']:.1f} s for {row['images']:,} images" for row in record["caching"]
    )
    parts = [
        "**Masks**, images a second (times the collator's); context and a target in patches",
        _rate_table(_MASKS, record["masks"]),
        "**Augmentation and normalisation**, images a second (times torchvision's)",
        _rate_table(_AUGMENTATION, record["augmentation"]),
        "**Decoding, augmentation and masks**, images a second (times the PIL pipeline's from memory or folder, at "
        "its fastest of this column and those before it)",
        _rate_table(_PIPELINE, pipeline),
        f"Decoding into memory, once: {once}.",
        f"**Beside the step** (forward and backward, {_threads(steps[0])}), without workers, so that one waits for "
        "the other",
        format_table(_STEP, steps),
        f"Images: generated. Medians of at least {record['options']['repeats']} rounds. {origin_line(record)}",
    ]
    return "\n\n".join(parts)


def _threads(row: dict[str, Any]) -> str:
    return "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"


def _rate_table(columns: list[tuple[str, str]], rows: list[dict[str, Any]]) -> str:
    """A line for each combination of `columns`, and a column of rates for each number of workers and threads."""
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    settings: dict[str, None] = {}
    for row in rows:
        setting = f"{row['workers'] or 'no'} workers, {_threads(row)}" if "workers" in row else _threads(row)
        settings[setting] = None
        ratio = "" if row["speedup"] is None else f" ({row['speedup']:.1f}×)"
        line = tuple(text.format_map(row) for _, text in columns)
        lines.setdefault(line, {})[setting] = f"{row['images_per_s']:,.0f}{ratio}"
    header = [*(name for name, _ in columns), *settings]
    return table(header, [[*line, *(cells.get(s, NONE) for s in settings)] for line, cells in lines.items()])


if __name__ == "__main__":
    main()
