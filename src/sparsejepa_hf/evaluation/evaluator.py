# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Frozen features of one encoder, probed on one task; what is finished is kept as a file."""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.utils import logging

from ..data.dataset import undecoded
from ..data.images import UndecodableImageError, to_rgb
from ..data.row_files import encoded_bytes, row_opener
from ..records import provenance
from .encoders import PIXELS, VisionEncoder
from .features import FeatureSet, extract_feature_set
from .knn import DEFAULT_KS, DEFAULT_TEMPERATURES, knn_grid
from .metrics import alpha_req, feature_sparsity, rankme
from .probes import (
    DEFAULT_WEIGHT_DECAYS,
    LinearProbeResult,
    count_probe,
    duplicate_rows,
    image_hashes,
    linear_probe,
    low_shot_probe,
)
from .tasks import Task, load_task


logger = logging.get_logger(__name__)

# Each weight decay starts from the one before, so few iterations are enough.
_MAX_ITERATIONS = 100
_LOW_SHOT_SUBSETS = 3
# Part of every evaluation's key: raise it when a probe's figures change.
_FORMAT = 4
# Features and labels of train, features and labels of test.
_Sets = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class ProbeSettings:
    """How every encoder is probed; the same for all encoders.

    Attributes:
        feature_kinds: tried by the linear probe, which chooses on the validation part; kNN and low-shot probes take
            the first. Raw pixels have a kind of their own.
        low_shot: shares of the labels, each in (0, 1); for classes only, not for counts.
        exclude_duplicates: leave out test images whose pixels also occur in train.
        max_train_examples: a random subset of the training set; None for all.
        seed: of splits and subsets; the same for all encoders, so that differences are paired.
        mixed_precision: of the forward pass: `"no"`, `"bf16"` or `"fp16"`.
        device: of encoder and kNN; None for the CPU.
    """

    feature_kinds: tuple[str, ...] = ("last/mean", "last4/mean")
    low_shot: tuple[float, ...] = (0.01, 0.1)
    exclude_duplicates: bool = True
    max_train_examples: int | None = None
    seed: int = 0
    mixed_precision: str = "no"
    device: str | None = None

    def __post_init__(self) -> None:
        if not self.feature_kinds:
            raise ValueError("feature_kinds is empty; expected at least one, such as 'last/mean'.")
        if not all(0 < fraction < 1 for fraction in self.low_shot):
            raise ValueError(f"low_shot is {self.low_shot}; expected shares above 0 and below 1.")


def add_probe_flags(parser: argparse.ArgumentParser, default: ProbeSettings) -> None:
    """Adds a flag for each field of [`ProbeSettings`] to a parser."""
    add = parser.add_argument
    add("--feature_kinds", nargs="+", default=default.feature_kinds, help="LAYERS/POOLING; chosen on validation")
    add("--low_shot", type=float, nargs="+", default=default.low_shot, help="shares of the labels to try; 0: none")
    add("--probe_train_examples", type=int, help="probe on a random subset of this size")
    add("--probe_seed", type=int, default=default.seed, help="of the probes' splits and subsets")
    add("--keep_duplicates", action="store_true", help="keep test images that also occur in train")
    add("--probe_precision", choices=("no", "bf16", "fp16"), default="no", help="of the encoder")
    add("--probe_device", help="of encoder and kNN, such as cuda; default: the CPU")


def probe_settings(flags: argparse.Namespace) -> ProbeSettings:
    """The settings of the flags of [`add_probe_flags`], once they are parsed."""
    return ProbeSettings(
        feature_kinds=tuple(flags.feature_kinds),
        low_shot=tuple(share for share in flags.low_shot if share),
        exclude_duplicates=not flags.keep_duplicates,
        max_train_examples=flags.probe_train_examples,
        seed=flags.probe_seed,
        mixed_precision=flags.probe_precision,
        device=flags.probe_device,
    )


class Evaluator:
    """Probes encoders on tasks.

    Args:
        folder: keeps features and finished evaluations; an interrupted table goes on from there.
        settings: of all evaluations.
        progress: show progress bars.
        accelerator: extracts features on all its processes; the main one alone probes.
    """

    def __init__(
        self,
        folder: str | Path,
        settings: ProbeSettings,
        progress: bool = True,
        accelerator: Accelerator | None = None,
    ):
        self.folder, self.settings, self._progress = Path(folder), settings, progress
        self._accelerator = accelerator
        # Not on an instance method: the cache must not outlive the object.
        self._load = lru_cache(maxsize=4)(self._load_split)
        self._duplicates = lru_cache(maxsize=None)(self._find_duplicates)

    def evaluate(self, make_encoder: Callable[[], VisionEncoder], task: Task) -> dict[str, Any]:
        """One encoder's figures on one task, or `{"failed": why}`; `{}` in all processes but the main one."""
        try:
            encoder = make_encoder()
            # In the order of the settings: the first kind is what kNN and low-shot probes take.
            kinds = (PIXELS,) if PIXELS in encoder.kinds else self.settings.feature_kinds
            train, test = (self._features(encoder, task, split, kinds) for split in ("train", "test"))
            if self._accelerator is not None and not self._accelerator.is_main_process:
                return {}
            path = self.folder / "evaluations" / f"{self._key(train, test, task)}.json"
            if path.is_file():
                return json.loads(path.read_text(encoding="utf-8"))
            figures = self._probe(train, test, task, kinds) | {"encoder": encoder.fingerprint}
        except Exception as error:
            # Whatever it is, the other evaluations go on; the record and the table say why this one is missing.
            logger.warning(f"{task.name} could not be evaluated: {error}", exc_info=logger.isEnabledFor(10))
            return {"failed": f"{type(error).__name__}: {error}"}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(figures), encoding="utf-8")
        partial.replace(path)
        return figures

    def describe(self, task: Task) -> dict[str, Any]:
        """What a results file says of a data set."""
        about = {"kind": task.kind, "stands_for": task.stands_for, "caveat": task.caveat}
        try:
            sizes = [len(self._load(task, split)) for split in ("train", "test")]
            excluded = len(self._duplicates(task)) if self.settings.exclude_duplicates else 0
        except Exception as error:
            return {**about, "num_train": 0, "num_test": 0, "failed": f"{type(error).__name__}: {error}"}
        return {**about, "num_train": sizes[0], "num_test": sizes[1], "num_excluded": excluded}

    def _load_split(self, task: Task, split: Literal["train", "test"]) -> datasets.Dataset:
        limit = self.settings.max_train_examples if split == "train" else None
        return load_task(task, split, max_examples=limit, seed=self.settings.seed)

    def _find_duplicates(self, task: Task) -> Tensor:
        """Rows of the test split whose exact pixels also occur in train."""
        # All of train, whatever part of it the probe sees: pre-training may have seen the rest.
        train, test = load_task(task, "train"), self._load(task, "test")
        path = self.folder / "duplicates" / f"{train._fingerprint}-{test._fingerprint}.json"
        if path.is_file():
            return torch.tensor(json.loads(path.read_text(encoding="utf-8")), dtype=torch.int64)
        rows = duplicate_rows(_pixel_hashes(train), _pixel_hashes(test))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows.tolist()), encoding="utf-8")
        return rows

    def _features(self, encoder: VisionEncoder, task: Task, split: str, kinds: tuple[str, ...]) -> FeatureSet:
        features = extract_feature_set(
            encoder,
            self._load(task, split),
            kinds=kinds,
            mixed_precision=self.settings.mixed_precision,
            accelerator=self._accelerator,
            cache_dir=self.folder / "features",
            progress=self._progress,
        )
        features.require_labels()
        return features

    def _key(self, train: FeatureSet, test: FeatureSet, task: Task) -> str:
        grids = [DEFAULT_KS, DEFAULT_TEMPERATURES, DEFAULT_WEIGHT_DECAYS, _MAX_ITERATIONS]
        described = [_FORMAT, grids, train.key, test.key, task.kind, asdict(self.settings)]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]

    def _probe(self, train: FeatureSet, test: FeatureSet, task: Task, kinds: tuple[str, ...]) -> dict[str, Any]:
        start = time.perf_counter()
        kept = torch.ones(len(test), dtype=torch.bool)
        if self.settings.exclude_duplicates:
            kept = ~torch.isin(test.rows, self._duplicates(task))
        labels = train.require_labels(), test.require_labels()[kept]
        sets = {kind: (train[kind], labels[0], test[kind][kept], labels[1]) for kind in kinds}
        figures = self._count(sets) if task.kind == "count" else self._classify(sets)
        figures |= self._knn(sets[kinds[0]])
        if task.kind != "count":
            figures |= self._low_shot(sets[kinds[0]])
        features = sets[kinds[0]][2]
        return figures | {
            "rankme": float(rankme(features)),
            "alpha_req": alpha_req(features).alpha if len(features) > 1 else None,
            "hoyer": feature_sparsity(features).hoyer,
            "num_train": len(labels[0]),
            "num_test": len(labels[1]),
            "seconds": time.perf_counter() - start,
            "provenance": provenance(),
        }

    def _classify(self, sets: dict[str, _Sets]) -> dict[str, Any]:
        seed = self.settings.seed
        probes = {kind: linear_probe(*data, seed=seed, max_iter=_MAX_ITERATIONS) for kind, data in sets.items()}
        best = max(probes, key=lambda kind: probes[kind].validation_accuracy)
        of_kinds = {f"accuracy_{kind}": probe.test_accuracy for kind, probe in probes.items()}
        return _figures(best, probes[best]) | of_kinds

    def _count(self, sets: dict[str, _Sets]) -> dict[str, Any]:
        probes = {kind: count_probe(*data, seed=self.settings.seed) for kind, data in sets.items()}
        best = max(probes, key=lambda kind: probes[kind].classification.validation_accuracy)
        return _figures(best, probes[best].classification) | {
            "rounded_accuracy": probes[best].rounded_accuracy,
            "r2": probes[best].regression.test_r2,
            "mae": probes[best].regression.test_mae,
        }

    def _knn(self, data: _Sets) -> dict[str, Any]:
        train, labels, test, test_labels = data
        knn = knn_grid(train.to(self.settings.device), labels, test, test_labels, seed=self.settings.seed)
        chosen = {"k": knn.k, "temperature": knn.temperature, "validation_accuracy": knn.validation_accuracy}
        return {"knn_accuracy": knn.test_accuracy, "knn_chosen": chosen}

    def _low_shot(self, data: _Sets) -> dict[str, Any]:
        """Few labels; a fraction that leaves too few of a class to choose on is left out, saying so."""
        figures: dict[str, Any] = {}
        seeds = range(self.settings.seed, self.settings.seed + _LOW_SHOT_SUBSETS)
        for fraction in self.settings.low_shot:
            try:
                result = low_shot_probe(*data, max_iter=_MAX_ITERATIONS, fraction=fraction, seeds=seeds)
                figures |= {f"low_shot_{fraction:g}": result.mean, f"low_shot_{fraction:g}_std": result.std}
            except ValueError as error:
                figures[f"low_shot_{fraction:g}_failed"] = str(error)
        return figures


def _figures(kind: str, probe: LinearProbeResult) -> dict[str, Any]:
    """What is written down of the linear probe that was chosen among the kinds of features."""
    return {
        "chosen": {"kind": kind, "weight_decay": probe.weight_decay},
        "accuracy": probe.test_accuracy,
        "top5_accuracy": probe.test_top5_accuracy,
        "balanced_accuracy": probe.test_balanced_accuracy,
        "validation_accuracy": probe.validation_accuracy,
        "at_grid_edge": probe.at_grid_edge,
    }


def _pixel_hashes(dataset: datasets.Dataset) -> list[bytes]:
    """A digest of every image's pixels, or of its file where it has other channels; those that cannot be read equal
    none."""
    digests, images = [], undecoded(dataset)
    opener = row_opener(images.features["image"])
    for row, image in enumerate(images["image"]):
        try:
            digests += image_hashes(np.asarray(to_rgb(image or {}, open_file=opener))[None])
        except UndecodableImageError:
            content = encoded_bytes(image, opener) or f"{id(dataset)} {row}".encode()
            digests.append(hashlib.blake2b(content, digest_size=32).digest())
    return digests
