# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Frozen features of one encoder, probed on one task; what is finished is kept as a file."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.utils import logging

from ..data.images import UndecodableImageError, to_rgb
from ..records import provenance
from .encoders import PIXELS, VisionEncoder
from .features import FeatureSet, extract_feature_set
from .knn import DEFAULT_KS, DEFAULT_TEMPERATURES, knn_grid
from .linear_probe import linear_probe, low_shot_probe
from .metrics import alpha_req, feature_sparsity
from .probe_grid import DEFAULT_LEARNING_RATES, DEFAULT_WEIGHT_DECAYS, linear_probe_grid
from .rankme import rankme
from .regression_probe import count_probe
from .splits import duplicate_rows, image_hashes
from .tasks import Task, load_task


logger = logging.get_logger(__name__)

# Each weight decay starts from the one before, so few iterations do.
_WEIGHT_DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_MAX_ITERATIONS = 100
_LOW_SHOT_SUBSETS = 3
# Part of every evaluation's key: raise it when a probe changes what it gives.
_FORMAT = 2


@dataclass(frozen=True)
class ProbeSettings:
    """How every encoder is probed; the same for all encoders.

    Counts are probed by logistic regression (and ridge regression) whatever `probe` says, and so are raw pixels, whose
    thousands of dimensions a grid of SGD would take hours for. Low-shot probes are for classes only.

    Attributes:
        feature_kinds: tried by the linear probe, which chooses on the validation part; kNN, logistic regression and
            low-shot probes take the first.
        probe: `"grid"` (SGD over learning rates, weight decays and kinds) or `"logistic"` (L-BFGS over weight decays
            and kinds).
        epochs: of the grid.
        low_shot: shares of the labels, each in (0, 1).
        knn: whether to measure kNN.
        validation_fraction: share of the training set that hyper-parameters are chosen on.
        exclude_duplicates: leave out test images whose pixels also occur in train.
        max_train_examples: a random subset of the training set; None for all.
        seed: of splits, subsets and batches; the same for all encoders, so that differences are paired.
        mixed_precision: of the forward pass: `"no"`, `"bf16"` or `"fp16"`.
        device: of encoder and probes; None for the CPU.
    """

    feature_kinds: tuple[str, ...] = ("last/mean", "last4/mean")
    probe: str = "grid"
    epochs: int = 20
    low_shot: tuple[float, ...] = (0.01, 0.1)
    knn: bool = True
    validation_fraction: float = 0.1
    exclude_duplicates: bool = True
    max_train_examples: int | None = None
    seed: int = 0
    mixed_precision: str = "no"
    device: str | None = None

    def __post_init__(self) -> None:
        if self.probe not in ("grid", "logistic"):
            raise ValueError(f"probe is {self.probe!r}; expected 'grid' or 'logistic'.")
        if not self.feature_kinds:
            raise ValueError("feature_kinds is empty; expected at least one, such as 'last/mean'.")
        if not all(0 < fraction < 1 for fraction in self.low_shot):
            raise ValueError(f"low_shot is {self.low_shot}; expected shares above 0 and below 1.")


class Evaluator:
    """Probes encoders on data sets.

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
            train, test = (self._features(encoder, task, split) for split in ("train", "test"))
            if self._accelerator is not None and not self._accelerator.is_main_process:
                return {}
            path = self.folder / "evaluations" / f"{self._key(train, test, task)}.json"
            if path.is_file():
                return json.loads(path.read_text(encoding="utf-8"))
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".safetensors")
            figures = self._probe(train, test, task, encoder, unfinished)
        except Exception as error:
            # Whatever it is, the other evaluations go on; the record and the table say why this one is missing.
            logger.warning(f"{task.name} could not be evaluated: {error}", exc_info=logger.isEnabledFor(10))
            return {"failed": f"{type(error).__name__}: {error}"}
        partial = path.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(figures), encoding="utf-8")
        partial.replace(path)
        unfinished.unlink(missing_ok=True)
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

    def _load_split(self, task: Task, split: str) -> datasets.Dataset:
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

    def _features(self, encoder: VisionEncoder, task: Task, split: str) -> FeatureSet:
        settings = self.settings
        features = extract_feature_set(
            encoder,
            self._load(task, split),
            kinds=(PIXELS,) if PIXELS in encoder.kinds else settings.feature_kinds,
            mixed_precision=settings.mixed_precision,
            accelerator=self._accelerator,
            cache_dir=self.folder / "features",
            progress=self._progress,
        )
        features.require_labels()
        return features

    def _key(self, train: FeatureSet, test: FeatureSet, task: Task) -> str:
        grids = [DEFAULT_LEARNING_RATES, DEFAULT_WEIGHT_DECAYS, DEFAULT_KS, DEFAULT_TEMPERATURES, _WEIGHT_DECAYS]
        described = [_FORMAT, grids, train.key, test.key, task.kind, asdict(self.settings)]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:32]

    def _probe(
        self, train: FeatureSet, test: FeatureSet, task: Task, encoder: VisionEncoder, unfinished: Path
    ) -> dict[str, Any]:
        start = time.perf_counter()
        if self.settings.exclude_duplicates:
            kept = ~torch.isin(test.rows, self._duplicates(task))
        else:
            kept = torch.ones(len(test), dtype=torch.bool)
        device = self.settings.device
        # In the order of the settings: the first kind is what kNN and the other single-kind probes take.
        kinds = (PIXELS,) if PIXELS in encoder.kinds else self.settings.feature_kinds
        data = _Data(
            train={kind: train[kind].to(device) for kind in kinds},
            train_labels=train.require_labels().to(device),
            test={kind: test[kind][kept].to(device) for kind in kinds},
            test_labels=test.require_labels()[kept].to(device),
            unfinished=unfinished,
        )
        measure = self._count if task.kind == "count" else self._classify
        figures = measure(data) | _diagnostics(data.test[data.first])
        figures |= {"num_train": len(data.train_labels), "num_test": len(data.test_labels)}
        figures |= {"seconds": time.perf_counter() - start, "provenance": provenance(), "encoder": encoder.fingerprint}
        return figures

    def _classify(self, data: "_Data") -> dict[str, Any]:
        settings = self.settings
        logistic = {kind: self._logistic(data, kind) for kind in self._logistic_kinds(data)}
        figures: dict[str, Any] = {"logistic_accuracy": logistic[data.first].test_accuracy}
        if settings.probe == "grid" and data.first != PIXELS:
            probe = linear_probe_grid(
                data.train,
                data.train_labels,
                data.test,
                data.test_labels,
                epochs=settings.epochs,
                seed=settings.seed,
                validation_fraction=settings.validation_fraction,
                progress=self._progress,
                checkpoint=data.unfinished,
            )
            figures["chosen"] = probe.chosen.to_dict()
        else:
            best = max(logistic, key=lambda kind: logistic[kind].validation_accuracy)
            probe = logistic[best]
            figures["chosen"] = {"kind": best, "weight_decay": probe.weight_decay}
        figures |= {
            "accuracy": probe.test_accuracy,
            "top5_accuracy": probe.test_top5_accuracy,
            "balanced_accuracy": probe.test_balanced_accuracy,
            "validation_accuracy": probe.validation_accuracy,
            "at_grid_edge": probe.at_grid_edge,
        }
        if settings.knn:
            figures |= self._knn(data)
        return {**figures, **self._low_shot(data)}

    def _knn(self, data: "_Data") -> dict[str, Any]:
        fraction = self.settings.validation_fraction
        # Small sets have fewer neighbours than the largest k of the grid.
        most = max(1, int((1 - fraction) * len(data.train_labels)) - len(data.train_labels.unique()))
        ks = [k for k in DEFAULT_KS if k <= most]
        knn = knn_grid(*data.of(data.first), ks=ks, seed=self.settings.seed, validation_fraction=fraction)
        return {"knn_accuracy": knn.test_accuracy, "knn_chosen": knn.to_dict()["chosen"]}

    def _logistic_kinds(self, data: "_Data") -> Sequence[str]:
        return [data.first] if self.settings.probe == "grid" else list(data.train)

    def _logistic(self, data: "_Data", kind: str) -> Any:
        return linear_probe(*data.of(kind), max_iter=_MAX_ITERATIONS, **self._choice(_WEIGHT_DECAYS))

    def _choice(self, weight_decays: Sequence[float]) -> dict[str, Any]:
        """What is chosen from, on which part of train."""
        settings = self.settings
        return {
            "weight_decays": weight_decays,
            "seed": settings.seed,
            "validation_fraction": settings.validation_fraction,
        }

    def _low_shot(self, data: "_Data") -> dict[str, Any]:
        """Few labels; a fraction that leaves too few of a class to choose on is left out, saying so."""
        figures: dict[str, Any] = {}
        settings = self.settings
        seeds = tuple(range(settings.seed, settings.seed + _LOW_SHOT_SUBSETS))
        for fraction in settings.low_shot:
            try:
                result = low_shot_probe(
                    *data.of(data.first),
                    fractions=(fraction,),
                    seeds=seeds,
                    weight_decays=_WEIGHT_DECAYS,
                    validation_fraction=settings.validation_fraction,
                    max_iter=_MAX_ITERATIONS,
                )
                (entry,) = result.to_dict()["fractions"]
                figures |= {f"low_shot_{fraction:g}": entry["mean"], f"low_shot_{fraction:g}_std": entry["std"]}
            except ValueError as error:
                figures[f"low_shot_{fraction:g}_failed"] = str(error)
        return figures

    def _count(self, data: "_Data") -> dict[str, Any]:
        settings = self.settings
        probes = {
            kind: count_probe(
                *data.of(kind),
                seed=settings.seed,
                validation_fraction=settings.validation_fraction,
                classification_weight_decays=_WEIGHT_DECAYS,
            )
            for kind in data.train
        }
        best = max(probes, key=lambda kind: probes[kind].classification.validation_accuracy)
        classification, regression = probes[best].classification, probes[best].regression
        figures: dict[str, Any] = {
            "chosen": {"kind": best, "weight_decay": classification.weight_decay},
            "logistic_accuracy": probes[data.first].classification.test_accuracy,
            "accuracy": classification.test_accuracy,
            "balanced_accuracy": classification.test_balanced_accuracy,
            "validation_accuracy": classification.validation_accuracy,
            "rounded_accuracy": probes[best].rounded_accuracy,
            "r2": regression.test.r2,
            "mae": regression.test.mae,
        }
        if settings.knn:
            figures |= self._knn(data)
        return figures


def _diagnostics(features: Tensor) -> dict[str, Any]:
    """What features (n, D) show without labels."""
    return {
        "rankme": float(rankme(features)),
        "alpha_req": alpha_req(features).alpha if len(features) > 1 else None,
        "hoyer": feature_sparsity(features).hoyer,
    }


def _pixel_hashes(dataset: datasets.Dataset) -> list[bytes]:
    """A digest of every image's pixels; images that cannot be decoded equal none."""
    digests = []
    for row, image in enumerate(dataset.cast_column("image", datasets.Image(decode=False))["image"]):
        try:
            digests += image_hashes(np.asarray(to_rgb(image))[None])
        except UndecodableImageError:
            digests.append(f"{id(dataset)} {row}".encode())
    return digests


@dataclass(frozen=True)
class _Data:
    """Features by kind, and labels, of both splits; and the file that an interrupted grid goes on from."""

    train: dict[str, Tensor]
    train_labels: Tensor
    test: dict[str, Tensor]
    test_labels: Tensor
    unfinished: Path

    @property
    def first(self) -> str:
        return next(iter(self.train))

    def of(self, kind: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.train[kind], self.train_labels, self.test[kind], self.test_labels
