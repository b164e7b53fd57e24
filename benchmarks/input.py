# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Input: masks, augmentation, decoding and all of them together, beside the usual pipeline image by image.

The usual pipeline is torchvision's transforms of PIL images in a DataLoader, with a mask collator. Ours is what the
Trainer does: its own DataLoader of uint8 images, then masks and augmentation of the whole batch on the device. Both
get the same images; both shuffle, crop, flip, jitter, normalise and sample masks with as many blocks. Decoding into
memory, once, is timed apart. Workers are started before the clock.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sparsejepa_hf.configuration_sparsejepa import SparseJEPAConfig
from sparsejepa_hf.counter_rng import stream_keys
from sparsejepa_hf.data import (
    BatchAugmentation,
    ImageDataset,
    build_image_dataset,
    load_image_dataset,
    resize_to_square,
    to_rgb,
)
from sparsejepa_hf.masking import MultiBlockMaskSampler
from sparsejepa_hf.modeling_sparsejepa import SparseJEPAForPreTraining
from sparsejepa_hf.records import NONE, table
from sparsejepa_hf.training import SparseJEPATrainer, SparseJEPATrainingArguments
from sparsejepa_hf.training.base_trainer import AUGMENTATION_STREAM

from .alternatives.mask_collator import MultiBlockMaskCollator
from .alternatives.pil_pipeline import PILImages, build_loader, build_transform, folder_images
from .harness.records import origin_line, parser, start, write
from .harness.timing import interleaved, speedup, summary


MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
COLLATOR, SAMPLER = "collator, image by image", "ours, whole batch"
TORCHVISION, BATCHED = "torchvision, image by image", "ours, batched"
PIL_MEMORY, PIL_FOLDER = "PIL pipeline, in memory", "PIL pipeline, folder"
MEMORY, ROWS, FOLDER = "ours, in memory", "ours, rows of `datasets`", "ours, folder"
# What each is held against: the same images, both in memory or both on disk.
BESIDE = {SAMPLER: COLLATOR, BATCHED: TORCHVISION, MEMORY: PIL_MEMORY, ROWS: PIL_FOLDER, FOLDER: PIL_FOLDER}
# What a round of masks or of augmentation takes at least.
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
    """Images of one size: how many, in what batches, cropped how and written as what; the `jitter` of their recipe;
    and the step that stands beside them: `step_batch` images through `step_model`, a preset and what differs."""

    image_size: int
    patch_size: int
    batch: int
    images: int
    crop: str
    suffix: str
    jitter: float
    step_batch: int
    step_model: dict[str, Any]

    @property
    def grid_size(self) -> tuple[int, int]:
        side = self.image_size // self.patch_size
        return side, side


@dataclasses.dataclass(frozen=True)
class Effort:
    """What an effort measures."""

    cases: tuple[Case, Case]
    grids: tuple[int, ...]
    mask_batches: tuple[int, ...]
    repeats: int


_TINY, _SMALL = {"name": "vit-tiny"}, {"name": "vit-small"}
_SMOKE = {"name": "vit-tiny", **_TINY_MODEL}
EFFORTS = {
    "full": Effort(
        (
            Case(32, 4, 256, 4096, "pad", "png", jitter=0.1, step_batch=256, step_model=_TINY),
            Case(224, 16, 32, 512, "resized", "jpg", jitter=0.0, step_batch=32, step_model=_SMALL),
        ),
        grids=(8, 14),
        mask_batches=(64, 256, 1024),
        repeats=5,
    ),
    "short": Effort(
        (
            Case(32, 4, 256, 1024, "pad", "png", jitter=0.1, step_batch=64, step_model=_TINY),
            Case(224, 16, 32, 64, "resized", "jpg", jitter=0.0, step_batch=4, step_model=_SMALL),
        ),
        grids=(8, 14),
        mask_batches=(64, 256, 1024),
        repeats=2,
    ),
    "smoke": Effort(
        (
            Case(16, 2, 4, 8, "pad", "png", jitter=0.1, step_batch=4, step_model=_SMOKE),
            Case(32, 4, 2, 4, "resized", "jpg", jitter=0.0, step_batch=2, step_model=_SMOKE),
        ),
        grids=(8,),
        mask_batches=(4,),
        repeats=1,
    ),
}


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


def real_images(path: str, count: int, size: int, seed: int) -> list[Image.Image]:
    """`count` images of a data set, each as a square of `size` pixels.

    Raises:
        ValueError: if there are fewer.
    """
    dataset = load_image_dataset(path, max_examples=count, seed=seed)
    if len(dataset) < count:
        raise ValueError(
            f"{path!r} has {len(dataset)} images; expected at least {count} at this effort. Give a larger data set or "
            "a smaller --effort."
        )
    rows = (row["image"] for row in dataset)
    return [Image.fromarray(resize_to_square(to_rgb(image), size).transpose(1, 2, 0)) for image in rows]


def write_folder(images: Iterable[Image.Image], folder: Path, suffix: str) -> list[Path]:
    """Writes images as files into two classes in turn; returns their paths, in order."""
    paths = []
    for index, image in enumerate(images):
        path = folder / ("even", "odd")[index % 2] / f"{index:06}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        paths.append(path)
    return paths


def mask_makers(grid: int, seed: int, device: str) -> dict[str, Callable[[int], tuple[Tensor, Tensor]]]:
    """Samplers of (context_mask, target_mask) for a batch size: the collator and ours, with as many blocks of about
    the same size."""
    sampler = MultiBlockMaskSampler((grid, grid), seed=seed)
    return {COLLATOR: _collator(sampler).sample, SAMPLER: lambda batch: sampler(batch, 0, device=device)}


def _collator(sampler: MultiBlockMaskSampler) -> MultiBlockMaskCollator:
    area = sampler.num_target_patches / sampler.num_patches
    # Square blocks: 3 x 3 of 8 x 8 is our 9 patches, 5 x 5 of 14 x 14 is next to our 27.
    return MultiBlockMaskCollator(sampler.grid_size, sampler.num_target_blocks, (area, area), (1.0, 1.0))


def measure_masks(effort: Effort, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Masks alone."""
    rows = []
    for grid in effort.grids:
        makers = mask_makers(grid, options.seed, options.device)
        for batch in effort.mask_batches:
            tokens = {name: _tokens(*make(batch)) for name, make in makers.items()}
            calls = {name: lambda make=make, batch=batch: make(batch) for name, make in makers.items()}
            for threads in _thread_counts(options):
                seconds = _timed(calls, threads, options, _MIN_SECONDS)
                facts = {"grid": grid, "batch": batch, "threads": threads}
                rows += [row | tokens[row["candidate"]] for row in _rows(seconds, batch, facts)]
    return rows


def _tokens(context_mask: Tensor, target_mask: Tensor) -> dict[str, int]:
    return {"context_tokens": context_mask.shape[-1], "target_tokens": target_mask.shape[-1]}


def measure_augmentation(case: Case, images: list[Image.Image], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Crop, flip, jitter and normalisation alone, of one batch that lies ready: PIL images, or one uint8 tensor."""
    images = images[: case.batch]
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    pixels = pixels.contiguous()
    keys = stream_keys(options.seed, 0, torch.arange(case.batch, device=options.device), AUGMENTATION_STREAM)
    augment, transform = _augmentation(case, options), _transform(case, options)
    calls = {
        TORCHVISION: lambda: torch.stack([transform(image) for image in images]).to(options.device),
        BATCHED: lambda: augment(pixels.to(options.device), keys),
    }
    rows = []
    for threads in _thread_counts(options):
        facts = {"image_size": case.image_size, "crop": case.crop, "jitter": _jitter(case, options)}
        facts |= {"batch": case.batch, "threads": threads}
        rows += _rows(_timed(calls, threads, options, _MIN_SECONDS), case.batch, facts)
    return rows


def _augmentation(case: Case, options: argparse.Namespace) -> BatchAugmentation:
    return BatchAugmentation(case.image_size, MEAN, STD, crop=case.crop, color_jitter=_jitter(case, options))


def _transform(case: Case, options: argparse.Namespace) -> Callable[[Image.Image], Tensor]:
    return build_transform(case.image_size, MEAN, STD, crop=case.crop, color_jitter=_jitter(case, options))


def _jitter(case: Case, options: argparse.Namespace) -> float:
    return case.jitter if options.color_jitter is None else options.color_jitter


class Sources:
    """The images of a case, wherever a user may have them, and a pass over each through its pipeline.

    Args:
        case: the images' size, number and batch.
        images: PIL images in memory.
        folder: an empty folder for files.
        options: of the command line.
    """

    def __init__(self, case: Case, images: list[Image.Image], folder: Path, options: argparse.Namespace) -> None:
        self.case, self.options, self._output_dir = case, options, folder / "run"
        files = folder / "images"
        paths = write_folder(images, files, case.suffix)
        self.file_bytes = statistics.mean(path.stat().st_size for path in paths)
        transform = _transform(case, options)
        labels = [index % 2 for index in range(len(images))]
        self.pil = {
            PIL_MEMORY: PILImages(images, labels, transform),
            PIL_FOLDER: folder_images(files, transform),
        }
        in_folder = load_image_dataset(files, cache_dir=folder / "cache")
        begin = time.perf_counter()
        in_memory = build_image_dataset(in_folder, case.image_size, cache=True)
        self.caching_s = time.perf_counter() - begin
        self.ours: dict[str, ImageDataset] = {
            MEMORY: in_memory,
            ROWS: build_image_dataset(_rows_of(paths, labels, folder), case.image_size, cache=False),
            FOLDER: build_image_dataset(in_folder, case.image_size, cache=False),
        }
        self._augment = _augmentation(case, options)
        self._sampler = MultiBlockMaskSampler(case.grid_size, seed=options.seed)

    def passes(self, workers: int) -> dict[str, Callable[[], int]]:
        """A pass over each source, in shuffled whole batches; each returns the number of images it saw."""
        collate = _collator(self._sampler)
        pinned = self.options.device != "cpu"
        loaders = {
            name: build_loader(found, self.case.batch, collate, workers, pinned) for name, found in self.pil.items()
        }
        calls = {name: lambda loader=loader: self._pil_pass(loader) for name, loader in loaders.items()}
        for name, dataset in self.ours.items():
            loader = self._trainer_loader(dataset, workers)
            calls[name] = lambda loader=loader: self._our_pass(loader)
        return calls

    def _trainer_loader(self, dataset: ImageDataset, workers: int) -> Iterable[dict[str, Tensor]]:
        config = SparseJEPAConfig(
            **_TINY_MODEL, image_size=self.case.image_size, patch_size=self.case.patch_size, use_grouping=False
        )
        arguments = SparseJEPATrainingArguments(
            output_dir=str(self._output_dir),
            per_device_train_batch_size=self.case.batch,
            dataloader_num_workers=workers,
            dataloader_persistent_workers=workers > 0,
            dataloader_pin_memory=self.options.device != "cpu",
            use_cpu=self.options.device == "cpu",
            seed=self.options.seed,
            report_to="none",
        )
        trainer = SparseJEPATrainer(SparseJEPAForPreTraining(config), arguments, train_dataset=dataset)
        return trainer.get_train_dataloader()

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
            self._augment(pixels, stream_keys(self.options.seed, step, slots, AUGMENTATION_STREAM))
            self._sampler.sample_slots(slots, step)
            seen += len(pixels)
        return seen


def _rows_of(paths: list[Path], labels: list[int], folder: Path) -> datasets.Dataset:
    """Files' bytes as rows of a Parquet file in `folder`, loaded as one from the Hub is: mapped from the disk."""
    images = [{"bytes": path.read_bytes(), "path": None} for path in paths]
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    rows = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    rows.cast_column("image", datasets.Image()).to_parquet(folder / "train.parquet")
    return load_image_dataset(folder / "train.parquet", cache_dir=folder / "cache")


def measure_pipeline(sources: Sources) -> list[dict[str, Any]]:
    """Decoding, augmentation and masks, through each pipeline: a core alone, then all."""
    options, case = sources.options, sources.case
    rows = []
    for workers, threads in _settings(options):
        seconds = _timed(sources.passes(workers), threads, options)
        facts = {
            "image_size": case.image_size,
            "crop": case.crop,
            "jitter": _jitter(case, options),
            "file": case.suffix,
            "file_bytes": sources.file_bytes,
            "batch": case.batch,
            "workers": workers,
            "threads": threads,
        }
        found = _rows(seconds, case.images // case.batch * case.batch, facts)
        _hold_against_the_best(found, rows)
        rows += found
    return rows


def _hold_against_the_best(rows: list[dict[str, Any]], before: list[dict[str, Any]]) -> None:
    """PIL's pipeline is slowed down by a second thread: its fastest rate counts, `before` with fewer ones included."""
    for row in rows:
        if row["speedup"] is not None:
            rates = [
                other["images_per_s"] for other in before + rows if other["candidate"] == BESIDE[row["candidate"]]
            ]
            row["speedup"] = min(row["speedup"], row["images_per_s"] / max(rates))


def measure_step(sources: Sources) -> list[dict[str, Any]]:
    """Input of a batch, without workers, beside a step (forward and backward) on such a batch."""
    options, case = sources.options, sources.case
    batches = case.images // case.batch
    sizes = {"image_size": case.image_size, "patch_size": case.patch_size}
    config = SparseJEPAConfig.from_preset(**case.step_model, **sizes)
    step = _step(config, case.step_batch, options)
    seconds = _timed({"step": step, **sources.passes(0)}, options.threads, options)
    steps = [s / case.step_batch for s in seconds.pop("step")]
    rows = []
    for name, found in seconds.items():
        inputs = [s / (batches * case.batch) for s in found]
        shares = [i / (i + s) for i, s in zip(inputs, steps, strict=True)]
        rows.append(
            {
                "candidate": name,
                "width": config.hidden_size,
                "layers": config.num_hidden_layers,
                "image_size": case.image_size,
                "batch": case.step_batch,
                "threads": options.threads,
                "input_s": statistics.median(inputs) * case.step_batch,
                "step_s": statistics.median(steps) * case.step_batch,
                "share": statistics.median(shares),
                "n": len(shares),
            }
        )
    return rows


def _step(config: SparseJEPAConfig, batch: int, options: argparse.Namespace) -> Callable[[], None]:
    model = SparseJEPAForPreTraining(config).to(options.device).train()
    context_mask, target_mask = MultiBlockMaskSampler(config.grid_size, seed=options.seed)(batch, 0)
    views = {
        "pixel_values": torch.randn(batch, 3, *config.image_sides),
        "context_mask": context_mask,
        "target_mask": target_mask,
    }
    views = {name: tensor.to(options.device) for name, tensor in views.items()}

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(**views).loss.backward()

    return step


# ---- how ----


def _thread_counts(options: argparse.Namespace) -> list[int]:
    return sorted({1, options.threads})


def _settings(options: argparse.Namespace) -> list[tuple[int, int]]:
    """(workers, threads): a core alone, all threads, all threads and workers."""
    found = [(0, threads) for threads in _thread_counts(options)]
    return found + ([(options.workers, options.threads)] if options.workers else [])


def _timed(
    calls: dict[str, Callable[[], Any]], threads: int, options: argparse.Namespace, min_seconds: float = 0.0
) -> dict[str, list[float]]:
    # Short calls come in more rounds, too.
    more = 4 if min_seconds and options.effort != "smoke" else 1
    torch.set_num_threads(threads)
    try:
        return interleaved(calls, repeats=more * options.repeats, device=options.device, min_seconds=min_seconds)
    finally:
        torch.set_num_threads(options.threads)


def _rows(seconds: dict[str, list[float]], images: int, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a candidate, with images a second and how many times as fast it is as what it is held against."""
    rows = []
    for name, found in seconds.items():
        base = BESIDE.get(name)
        rows.append(
            {
                "candidate": name,
                **facts,
                "images": images,
                "images_per_s": images / statistics.median(found),
                "speedup": None if base is None else speedup(seconds[base], found),
                **summary(found),
            }
        )
    return rows


def main(argv: list[str] | None = None) -> None:
    """Measures and writes the record."""
    flags = parser(__doc__)
    flags.add_argument("--dataset", default=None, help="real images: folder, file or name; default: generated ones")
    flags.add_argument("--workers", type=int, default=2, help="DataLoader workers, where there are any")
    flags.add_argument("--color_jitter", type=float, default=None, help="strength; default: that of the size's recipe")
    options = flags.parse_args(argv)
    if options.workers < 0:
        flags.error(f"--workers is {options.workers}; expected 0 (none) or more.")
    effort = EFFORTS[options.effort]
    options.repeats = effort.repeats if options.repeats is None else options.repeats
    origin = start(options)
    datasets.disable_progress_bars()
    measured: dict[str, Any] = {"masks": measure_masks(effort, options)}
    measured |= {"augmentation": [], "caching": [], "pipeline": [], "step": []}
    for case in effort.cases:
        images = _images(case, options)
        measured["augmentation"] += measure_augmentation(case, images, options)
        with tempfile.TemporaryDirectory() as folder:
            sources = Sources(case, images, Path(folder), options)
            measured["pipeline"] += measure_pipeline(sources)
            measured["caching"].append(
                {"image_size": case.image_size, "images": len(images), "seconds": sources.caching_s}
            )
            measured["step"] += measure_step(sources)
    write("input", options, origin, measured)


def _images(case: Case, options: argparse.Namespace) -> list[Image.Image]:
    if options.dataset is None:
        return generated_images(case.images, case.image_size, options.seed)
    return real_images(options.dataset, case.images, case.image_size, options.seed)


# ---- the record as Markdown ----


def render(record: dict[str, Any]) -> str:
    """The record's tables and its origin, in Markdown."""
    parts = [_render_masks(record["masks"]), _render_augmentation(record["augmentation"])]
    parts += [_render_pipeline(record["pipeline"], record["caching"]), _render_step(record["step"])]
    source, repeats = record["options"]["dataset"] or "generated", record["options"]["repeats"]
    last = f"Images: {source}. Medians of at least {repeats} rounds. {origin_line(record)}"
    return "\n\n".join([*parts, last])


def _rate(row: dict[str, Any]) -> str:
    ratio = "" if row["speedup"] is None else f" ({row['speedup']:.1f}×)"
    return f"{row['images_per_s']:,.0f}{ratio}"


def _pivot(
    rows: list[dict[str, Any]], keys: tuple[str, ...], columns: tuple[str, ...]
) -> tuple[list[tuple], dict[tuple, list[str]]]:
    """The values of `columns` in order of appearance, and for each line, named by `keys`, a cell for each of them."""
    found = list(dict.fromkeys(tuple(row[name] for name in columns) for row in rows))
    lines: dict[tuple, dict[tuple, str]] = {}
    for row in rows:
        line = lines.setdefault(tuple(row[name] for name in keys), {})
        line[tuple(row[name] for name in columns)] = _rate(row)
    return found, {line: [cells.get(column, NONE) for column in found] for line, cells in lines.items()}


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _render_masks(rows: list[dict[str, Any]]) -> str:
    keys = ("grid", "batch", "candidate", "context_tokens", "target_tokens")
    columns, lines = _pivot(rows, keys, ("threads",))
    header = ["grid", "batch", "masks", "context", "a target", *(_threads(threads) for (threads,) in columns)]
    body = [
        [f"{grid} × {grid}", f"{batch:,}", name, str(context), str(target), *cells]
        for (grid, batch, name, context, target), cells in lines.items()
    ]
    title = "**Masks**, images a second (times the collator's); context and a target in patches"
    return f"{title}\n\n{table(header, body)}"


def _render_augmentation(rows: list[dict[str, Any]]) -> str:
    columns, lines = _pivot(rows, ("image_size", "crop", "jitter", "batch", "candidate"), ("threads",))
    header = ["pixels", "crop", "jitter", "batch", "augmentation", *(_threads(threads) for (threads,) in columns)]
    body = [
        [str(size), crop, str(jitter), f"{batch:,}", name, *cells]
        for (size, crop, jitter, batch, name), cells in lines.items()
    ]
    title = "**Augmentation and normalisation**, images a second (times torchvision's)"
    return f"{title}\n\n{table(header, body)}"


def _render_pipeline(rows: list[dict[str, Any]], caching: list[dict[str, Any]]) -> str:
    keys = ("image_size", "crop", "jitter", "file", "file_bytes", "batch", "candidate")
    columns, lines = _pivot(rows, keys, ("workers", "threads"))
    header = ["pixels, of files too", "crop, jitter", "files", "batch", "input"]
    header += [f"{'no' if not workers else workers} workers, {_threads(threads)}" for workers, threads in columns]
    body = [
        [str(size), f"{crop}, {jitter}", f"{file}, {file_bytes / 1024:.1f} KiB", f"{batch:,}", name, *cells]
        for (size, crop, jitter, file, file_bytes, batch, name), cells in lines.items()
    ]
    once = "; ".join(
        f"{row['image_size']} pixels: {row['seconds']:.1f} s for {row['images']:,} images" for row in caching
    )
    title = (
        "**Decoding, augmentation and masks**, images a second (times the PIL pipeline's from memory or folder, at "
        "its fastest of this column and those before it)"
    )
    return f"{title}\n\n{table(header, body)}\n\nDecoding into memory, once: {once}."


def _render_step(rows: list[dict[str, Any]]) -> str:
    header = ["model", "pixels", "batch", "input", "input, ms a batch", "step, ms", "input's share in series"]
    body = [
        [
            f"width {row['width']} × {row['layers']} layers",
            str(row["image_size"]),
            f"{row['batch']:,}",
            row["candidate"],
            f"{1000 * row['input_s']:,.1f}",
            f"{1000 * row['step_s']:,.0f}",
            f"{100 * row['share']:.2f} %",
        ]
        for row in rows
    ]
    title = (
        f"**Beside the step** (forward and backward, {_threads(rows[0]['threads'])}), without workers, so that one "
        "waits for the other"
    )
    return f"{title}\n\n{table(header, body)}"


if __name__ == "__main__":
    main()
