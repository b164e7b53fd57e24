# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Features of whole data sets: extracted in constant memory, over several processes, cached and read off the disk."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import pickle
import shutil
import tempfile
import uuid
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets import ClassLabel, Value
from torch import Tensor
from tqdm.auto import tqdm

from ..data import ImageDataset, StreamingImageDataset, TooManyBadImagesError, UndecodableImageError
from ..data.dataset import decode_to_square, undecoded
from .encoders import VisionEncoder
from .features import check_images, default_batch_size, frozen_module
from .metrics import non_finite_rows


if TYPE_CHECKING:
    from accelerate import Accelerator

# Goes into every key: raise it when the same inputs give other features or another file.
FEATURE_FORMAT = 1
_TABLE, _META = "features.arrow", "features.json"
_ROW, _LABEL = "row", "label"
_AUTOCAST = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_MIN_SEEN = 100
_SHOWN_FAILURES = 3
# Identities already worked out in this process, by `datasets`' own fingerprint, which holds within one process.
_IDENTITIES: dict[tuple[str, str | None], str] = {}

AnyImages = datasets.Dataset | datasets.IterableDataset | torch.utils.data.Dataset


class FeatureSet(Mapping[str, Tensor]):
    """Features and labels of n images, in the order of their data set; a mapping from feature kind to features.

    Attributes:
        features: float32 (n, D) by kind. Read off the disk where they came from there: pages are loaded when they are
            touched, and writing to them changes this process's copy alone.
        labels: int64 or float32 (n,), or None.
        rows: int64 (n,), the row of the data set that each image came from.
        dropped: rows of the data set whose image could not be decoded, ascending.
        label_names: class names, where the labels are classes that have some.
        key: of the cache entry; names encoder, images, labels, kinds and precision. Empty where it was not worked out.
        metadata: JSON-ready, what the features were made of.
    """

    def __init__(
        self,
        features: Mapping[str, Tensor],
        labels: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        dropped: Sequence[int] = (),
        label_names: Sequence[str] | None = None,
        key: str = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        lengths = {name: len(values) for name, values in features.items()}
        lengths |= {} if labels is None else {"labels": len(labels)}
        if not features or len(set(lengths.values())) > 1:
            raise ValueError(
                f"The features have the lengths {lengths}; expected at least one kind, all of one length."
            )
        self.features = dict(features)
        self.labels = labels
        self._length = next(iter(lengths.values()))
        self.rows = torch.arange(self._length) if rows is None else rows
        self.dropped = tuple(dropped)
        self.label_names = None if label_names is None else list(label_names)
        self.key = key
        self.metadata = dict(metadata or {})

    def __len__(self) -> int:
        """n, the number of images."""
        return self._length

    def __iter__(self) -> Iterator[str]:
        return iter(self.features)

    def __getitem__(self, kind: str) -> Tensor:
        """Features of a kind.

        Raises:
            KeyError: it was not extracted; the message lists the kinds there are.
        """
        if kind not in self.features:
            raise KeyError(f"{kind!r} is not among the features extracted: {', '.join(map(repr, self.features))}.")
        return self.features[kind]

    def __repr__(self) -> str:
        kinds = ", ".join(f"{kind}: {values.shape[1]}" for kind, values in self.features.items())
        labels = "no labels" if self.labels is None else f"{self.labels.dtype} labels"
        return f"FeatureSet({len(self)} images, {{{kinds}}}, {labels})"

    # Mapping compares items, and tensors have no single truth value.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def require_labels(self) -> Tensor:
        """The labels.

        Raises:
            ValueError: there are none.
        """
        if self.labels is None:
            raise ValueError(
                "The features have no labels, but this evaluation needs them. Name the column with label_column when "
                "loading the images or extracting the features."
            )
        return self.labels

    @classmethod
    def load(cls, folder: str | Path) -> FeatureSet:
        """Reads what [`extract_feature_set`] left in a folder, without copying the features into memory.

        Raises:
            FileNotFoundError: the folder holds no complete feature set.
        """
        folder = Path(folder)
        if not (folder / _META).is_file():
            raise FileNotFoundError(f"{str(folder)!r} holds no complete feature set: {_META} is missing.")
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        path = folder / _TABLE
        if not path.is_file() or path.stat().st_size != meta["num_bytes"]:
            raise FileNotFoundError(f"{str(path)!r} does not have its {meta['num_bytes']} bytes. Delete the folder.")
        columns = _map_columns(path)
        return cls(
            {kind: columns[kind] for kind in meta["kinds"]},
            columns.get(_LABEL),
            rows=columns[_ROW],
            dropped=meta["dropped"],
            label_names=meta["label_names"],
            key=meta["key"],
            metadata=meta["metadata"],
        )


def extract_feature_set(
    encoder: VisionEncoder,
    dataset: AnyImages,
    *,
    kinds: str | Sequence[str] = ("last/mean",),
    batch_size: int | None = None,
    mixed_precision: str = "no",
    accelerator: Accelerator | None = None,
    cache_dir: str | Path | None = None,
    label_column: str | None = None,
    max_bad_fraction: float = 0.01,
    num_threads: int | None = None,
    progress: bool = True,
) -> FeatureSet:
    """Extracts features of a data set in one pass, batch by batch onto the disk, and keeps them for the next time.

    Memory does not grow with the data set: a few batches of pixels are held, and features go to the disk, from where
    the result is read as it is needed. Rows keep the data set's order. A cache entry is complete or not there; on a
    hit no image is decoded and the encoder does not run. Its key is a hash of [`VisionEncoder.fingerprint`], of the
    images' encoded bytes (of pixels, for data sets of tensors) and labels, the image size, the kinds and the
    precision; so it holds on every machine, and changes with each of these. Working it out reads the encoded images
    once before they are decoded, and once in a process for each data set; a stream is read twice, so without
    `cache_dir` it gets no key and is read once.

    With an `accelerator`, process r of W takes the batches r, r + W, ...; as batches are those of a single process,
    features do not depend on W. All processes need to see `cache_dir`; without one, they must share a machine.

    Args:
        encoder: of [`load_encoder`]; for the time of the call it is moved to the accelerator's device.
        dataset: a `datasets.Dataset` or `IterableDataset` with the column `image` (see [`data.load_image_dataset`]),
            whose images are resized to the encoder's size; an [`ImageDataset`], which stands for the data set it was
            made from; or any map-style data set of `{"pixel_values": uint8 (3, S, S)}`, with or without `labels`, S
            being the encoder's size.
        kinds: of [`VisionEncoder.kinds`], all from the same pass.
        batch_size: images of a forward pass; by default 512, on a CPU 64.
        mixed_precision: `"no"`, `"bf16"` or `"fp16"`: autocast of the forward pass. Pooling is in float32.
        accelerator: for several processes and its device.
        cache_dir: where entries are kept, each in a folder named by its key; None keeps nothing.
        label_column: the column of labels: classes, integers, booleans or floats. By default `label`, where there is
            one.
        max_bad_fraction: the most undecodable images allowed, as a fraction of all. They are dropped from the result,
            counted in a warning and listed in `dropped`.
        num_threads: threads that decode ahead of the encoder; up to 4 by the number of cores if None.
        progress: whether the main process shows a bar.

    Returns:
        The features, the same in every process.

    Raises:
        TypeError: a data set or a label of another type.
        ValueError: an empty data set, unknown kinds, labels that are missing or beyond their classes, features that
            are NaN or infinite, or an argument out of its range.
        TooManyBadImagesError: more than `max_bad_fraction` of the images cannot be decoded.
    """
    _check_arguments(batch_size, mixed_precision, max_bad_fraction)
    processes = _Processes(accelerator)
    job = _Job(
        encoder=encoder,
        source=_open_source(dataset, label_column, encoder.image_size),
        kinds=encoder.check_kinds(kinds),
        batch_size=batch_size or default_batch_size(processes.device or encoder.device),
        mixed_precision=mixed_precision,
        max_bad_fraction=max_bad_fraction,
        num_threads=num_threads or min(4, os.cpu_count() or 1),
        progress=progress,
        processes=processes,
    )
    with tempfile.TemporaryDirectory() as temporary:
        # Without a cache the features stay readable after the folder is gone: the file is mapped by then.
        root = job.processes.from_main(lambda: str(Path(temporary if cache_dir is None else cache_dir).absolute()))
        key = job.processes.from_main(lambda: job.key() if cache_dir is not None or job.source.is_reread else "")
        folder = Path(root) / (key or "features")
        if not job.processes.from_main(lambda: _is_complete(folder)):
            _extract(job, folder, key)
        result = FeatureSet.load(folder)
        job.processes.wait()
    return result


def _check_arguments(batch_size: int | None, mixed_precision: str, max_bad_fraction: float) -> None:
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1.")
    if mixed_precision not in _AUTOCAST:
        raise ValueError(f"mixed_precision is {mixed_precision!r}; expected one of {', '.join(map(repr, _AUTOCAST))}.")
    if not 0 <= max_bad_fraction <= 1:
        raise ValueError(f"max_bad_fraction is {max_bad_fraction}; expected a number from 0 to 1.")


# ---- what images come from ----


@dataclass
class _Raw:
    """A batch as it was read: encoded images or uint8 pixels, the rows they came from, and labels if there are any."""

    rows: np.ndarray
    images: list[Any] | Tensor
    labels: np.ndarray | None


@dataclass
class _Decoded:
    """A batch without its undecodable images: uint8 `pixels` (b, 3, S, S) or None if none is left."""

    place: int
    seen: int
    rows: np.ndarray
    pixels: Tensor | None
    labels: np.ndarray | None
    failures: list[tuple[int, str]] = field(default_factory=list)


class _Source:
    """Batches of a data set, in its order; `length` is None if it is not known beforehand."""

    length: int | None = None
    label_names: list[str] | None = None
    # None, or what `_IDENTITIES` may remember it by.
    memo: tuple[str, str | None] | None = None
    # Whether reading it twice is worth a key.
    is_reread = True

    def batches(self, batch_size: int) -> Iterator[_Raw]:
        raise NotImplementedError


class _TableSource(_Source):
    """A `datasets.Dataset` or `IterableDataset` of undecoded images."""

    def __init__(self, dataset: datasets.Dataset | datasets.IterableDataset, label_column: str | None) -> None:
        columns = list(dataset.column_names or [])
        if label_column is not None and label_column not in columns:
            raise ValueError(f"label_column is {label_column!r}, which is not a column. The columns are {columns}.")
        self._label = label_column or (_LABEL if _LABEL in columns else None)
        keep = ["image"] if self._label is None else ["image", self._label]
        original = dataset
        dataset = undecoded(dataset).select_columns(keep)
        self._dataset = dataset
        feature = None if dataset.features is None or self._label is None else dataset.features[self._label]
        self._label_type = _label_type(feature, self._label)
        self.label_names = feature.names if isinstance(feature, ClassLabel) else None
        if isinstance(dataset, datasets.Dataset):
            self.length = len(dataset)
            self.memo = (original._fingerprint, self._label)
        else:
            self.is_reread = False

    def batches(self, batch_size: int) -> Iterator[_Raw]:
        start = 0
        for batch in self._dataset.iter(batch_size):
            rows = np.arange(start, start + len(batch["image"]))
            labels = None if self._label is None else self._labels(batch[self._label], rows)
            yield _Raw(rows, batch["image"], labels)
            start += len(rows)

    def _labels(self, values: list[Any], rows: np.ndarray) -> np.ndarray:
        return _checked_labels(values, rows, self._label_type, self.label_names)


class _PixelSource(_Source):
    """A map-style torch data set of uint8 tensors."""

    def __init__(self, dataset: torch.utils.data.Dataset, label_column: str | None, image_size: int) -> None:
        if label_column not in (None, _LABEL, "labels"):
            raise ValueError(
                f"label_column is {label_column!r}, but a {type(dataset).__name__} has 'labels' alone. Give the "
                "datasets.Dataset that it was made from."
            )
        self._dataset, self._image_size = dataset, image_size
        self.length = len(dataset)

    def batches(self, batch_size: int) -> Iterator[_Raw]:
        for start in range(0, self.length, batch_size):
            places = range(start, min(start + batch_size, self.length))
            batched = getattr(self._dataset, "__getitems__", None)
            examples = batched(list(places)) if batched else [self._dataset[place] for place in places]
            rows = np.arange(start, start + len(examples))
            images = torch.stack([example["pixel_values"] for example in examples])
            self._check(images)
            values = [example["labels"] for example in examples] if "labels" in examples[0] else None
            labels = None
            if values is not None:
                values = torch.as_tensor(values)
                kind = np.float32 if values.is_floating_point() else np.int64
                labels = _checked_labels(values.tolist(), rows, kind, None)
            yield _Raw(rows, images, labels)

    def _check(self, images: Tensor) -> None:
        check_images(images)
        if images.shape[-1] != self._image_size:
            raise ValueError(
                f"The data set holds images of {images.shape[-1]} pixels a side, but the encoder takes "
                f"{self._image_size}. Give the datasets.Dataset of the original images, which are resized here, or "
                f"decode them with image_size={self._image_size}."
            )


def _open_source(dataset: Any, label_column: str | None, image_size: int) -> _Source:
    if isinstance(dataset, ImageDataset):
        # Its own items are of its size, have integers for labels, and may stand in for an undecodable image.
        dataset = dataset._source
    if isinstance(dataset, (datasets.Dataset, datasets.IterableDataset)):
        source: _Source = _TableSource(dataset, label_column)
    elif isinstance(dataset, StreamingImageDataset) or not hasattr(dataset, "__getitem__"):
        raise TypeError(
            f"The data set given is a {type(dataset).__name__}; expected a Dataset or IterableDataset of `datasets`, "
            "or a map-style data set of uint8 images. Of a stream, give the IterableDataset itself."
        )
    elif isinstance(dataset, Mapping):
        raise TypeError(
            f"The data set given is a {type(dataset).__name__} of {', '.join(map(repr, dataset))}; expected one split."
        )
    else:
        source = _PixelSource(dataset, label_column, image_size)
    if source.length == 0:
        raise ValueError("The data set given is empty; expected at least one image. Check how the split was made.")
    return source


def _label_type(feature: Any, column: str | None) -> type | None:
    """int64 or float32; None if it is to be told by the values."""
    if feature is None:
        return None
    dtype = feature.dtype if isinstance(feature, (ClassLabel, Value)) else ""
    if dtype.startswith(("int", "uint", "bool")):
        return np.int64
    if dtype.startswith(("float", "double")):
        return np.float32
    raise TypeError(
        f"The label column {column!r} is of type {dtype or type(feature).__name__}; expected ClassLabels, integers, "
        "booleans or floats. Turn strings into classes with class_encode_column, or name another with label_column."
    )


def _checked_labels(values: list[Any], rows: np.ndarray, kind: type | None, names: Sequence[str] | None) -> np.ndarray:
    missing = [row for row, value in zip(rows.tolist(), values, strict=True) if value is None]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(rows)} rows from row {rows[0]} on have no label (the first is row "
            f"{missing[0]}); expected labels for all or none. Filter these rows out, or remove the column."
        )
    if kind is None:
        kind = np.float32 if any(isinstance(value, float) for value in values) else np.int64
    labels = np.asarray(values, dtype=kind)
    wrong = ~np.isfinite(labels) if kind is np.float32 else np.zeros(len(labels), dtype=bool)
    if names is not None:
        wrong = (labels < 0) | (labels >= len(names))
    if wrong.any():
        first = int(wrong.argmax())
        expected = "finite numbers" if names is None else f"0 to {len(names) - 1}, one for each class name"
        raise ValueError(
            f"The label of row {rows[first]} is {labels[first]}; expected {expected}. Filter such rows out, or remove "
            "the column if the images have no labels."
        )
    return labels


class _Identity:
    """Hash of images and labels, whatever the batches they come in.

    It is over encoded bytes, which are read faster than decoded: the same pixels in another format count as others.
    """

    def __init__(self) -> None:
        self._images, self._labels = hashlib.sha256(), hashlib.sha256()

    def update(self, batch: _Raw) -> None:
        if isinstance(batch.images, Tensor):
            self._images.update(str(tuple(batch.images.shape[1:])).encode())
            self._images.update(batch.images.contiguous().numpy())
        else:
            contents = [_content(image) for image in batch.images]
            sized = ((len(content).to_bytes(8, "little"), content) for content in contents)
            self._images.update(b"".join(chain.from_iterable(sized)))
        if batch.labels is not None:
            self._labels.update(batch.labels)

    def hexdigest(self, label_names: Sequence[str] | None) -> str:
        parts = [self._images.hexdigest(), self._labels.hexdigest(), label_names]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _content(image: Mapping[str, Any] | None) -> bytes:
    if image is None:
        return b""
    if image.get("bytes") is not None:
        return image["bytes"]
    path = image.get("path") or ""
    try:
        return Path(path).read_bytes()
    except OSError:
        # Missing, or an address inside an archive.
        return path.encode()


# ---- one extraction ----


class _Processes:
    """What the processes of an accelerator tell one another; a single process without one."""

    def __init__(self, accelerator: Accelerator | None) -> None:
        self._accelerator = accelerator
        self.rank = 0 if accelerator is None else accelerator.process_index
        self.count = 1 if accelerator is None else accelerator.num_processes
        self.device = None if accelerator is None else accelerator.device

    def from_main(self, compute: Any) -> Any:
        """`compute()` of the main process, in all of them; so is an error."""
        outcome = [self._attempt(compute) if self.rank == 0 else None]
        if self.count > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(outcome)
        return self._result(outcome[0])

    def from_all(self, compute: Any) -> list[Any]:
        """`compute()` of each process, in all of them; the first error, if there is one, instead."""
        outcomes = [self._attempt(compute)]
        if self.count > 1:
            from accelerate.utils import gather_object

            outcomes = gather_object(outcomes)
        return [self._result(outcome) for outcome in outcomes]

    def wait(self) -> None:
        if self.count > 1:
            self._accelerator.wait_for_everyone()

    def _attempt(self, compute: Any) -> tuple[Any, Exception | None]:
        try:
            return compute(), None
        except Exception as error:
            # Alone, raising would do; others must not be left waiting for this process.
            if self.count == 1:
                raise
            return None, _as_sendable(error)

    @staticmethod
    def _result(outcome: tuple[Any, Exception | None]) -> Any:
        value, error = outcome
        if error is not None:
            raise error
        return value


def _as_sendable(error: Exception) -> Exception:
    """The error, or its text where it would not survive the way to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


@dataclass
class _Job:
    """An extraction and everything that it needs."""

    encoder: VisionEncoder
    source: _Source
    kinds: tuple[str, ...]
    batch_size: int
    mixed_precision: str
    max_bad_fraction: float
    num_threads: int
    progress: bool
    processes: _Processes

    @cached_property
    def fingerprint(self) -> str:
        return self.encoder.fingerprint

    def key(self) -> str:
        parts = {
            "format": FEATURE_FORMAT,
            "encoder": self.fingerprint,
            "images": self._identity(),
            "image_size": self.encoder.image_size,
            "kinds": sorted(self.kinds),
            "mixed_precision": self.mixed_precision,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _identity(self) -> str:
        memo = self.source.memo
        if memo is not None and memo in _IDENTITIES:
            return _IDENTITIES[memo]
        identity = _Identity()
        for batch in self.source.batches(self.batch_size):
            identity.update(batch)
        digest = identity.hexdigest(self.source.label_names)
        if memo is not None:
            _IDENTITIES[memo] = digest
        return digest

    @property
    def device(self) -> torch.device:
        return self.processes.device or self.encoder.device

    def autocast(self) -> AbstractContextManager[Any]:
        dtype = _AUTOCAST[self.mixed_precision]
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def placed_encoder(self) -> AbstractContextManager[Any]:
        module = self.encoder.module
        return nullcontext() if module is None else frozen_module(module, self.encoder.device, self.device)


@dataclass
class _Part:
    """What one process has written: the batches' places and numbers of rows, and the images that it met."""

    batches: list[tuple[int, int]] = field(default_factory=list)
    seen: int = 0
    bad_rows: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    # Bytes of a row by column; empty if nothing was written.
    dtypes: dict[str, tuple[str, int]] = field(default_factory=dict)


class _PartWriter:
    """Appends batches to one plain file a column."""

    def __init__(self, folder: Path, part: _Part) -> None:
        self._folder, self._part = folder, part
        self._files: list[Any] = []

    def write(self, place: int, columns: Mapping[str, np.ndarray]) -> None:
        types = {n: (v.dtype.str, v.shape[1] if v.ndim == 2 else 0) for n, v in columns.items()}
        if self._files and types != self._part.dtypes:
            raise ValueError(
                f"A batch has columns of the types {types}, earlier ones {self._part.dtypes}; expected one type a "
                "column. Give the labels one type, integers or floats."
            )
        if not self._files:
            self._part.dtypes = types
            self._folder.mkdir()
            self._files = [open(self._folder / str(index), "wb") for index in range(len(columns))]
        for file, values in zip(self._files, columns.values(), strict=True):
            file.write(np.ascontiguousarray(values))
        self._part.batches.append((place, len(columns[_ROW])))

    def close(self) -> None:
        for file in self._files:
            file.close()


def _extract(job: _Job, folder: Path, key: str) -> None:
    """Leaves a complete feature set in `folder`, all processes together."""
    processes = job.processes
    work = Path(processes.from_main(lambda: str(_make_work_folder(folder))))
    try:
        parts = processes.from_all(lambda: _extract_part(job, work / f"part-{processes.rank}"))
        processes.from_main(lambda: _finish(job, work, folder, key, parts))
    finally:
        if processes.rank == 0:
            shutil.rmtree(work, ignore_errors=True)


def _make_work_folder(folder: Path) -> Path:
    # Beside its destination, so that renaming is one step.
    work = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    work.mkdir(parents=True)
    return work


def _extract_part(job: _Job, folder: Path) -> _Part:
    part = _Part()
    writer = _PartWriter(folder, part)
    is_main = job.processes.rank == 0
    with (
        job.placed_encoder(),
        tqdm(
            total=job.source.length, unit="image", desc="Extracting features", disable=not (job.progress and is_main)
        ) as bar,
    ):
        try:
            for batch in _decoded_batches(job):
                _count(part, batch, job)
                if batch.pixels is not None:
                    writer.write(batch.place, _columns(job, batch))
                bar.update(batch.seen * job.processes.count)
        finally:
            writer.close()
    return part


def _columns(job: _Job, batch: _Decoded) -> dict[str, np.ndarray]:
    with job.autocast():
        features = job.encoder.features(batch.pixels, job.kinds)
    columns: dict[str, np.ndarray] = {_ROW: batch.rows.astype(np.int64)}
    if batch.labels is not None:
        columns[_LABEL] = batch.labels
    for kind, values in features.items():
        bad = non_finite_rows(values)
        if bad:
            raise ValueError(
                f"The features {kind!r} of {job.encoder.name} are NaN or infinite in {len(bad)} of the {len(values)} "
                f"images from row {batch.rows[0]} on (the first is row {batch.rows[bad[0]]}). Check the weights, and "
                "mixed_precision if it is 'fp16'."
            )
        columns[kind] = values.cpu().numpy()
    return columns


def _decoded_batches(job: _Job) -> Iterator[_Decoded]:
    """This process's batches, decoded by threads a few batches ahead."""
    size, rank, count = job.encoder.image_size, job.processes.rank, job.processes.count
    pending: deque[Future[_Decoded]] = deque()
    with ThreadPoolExecutor(job.num_threads) as pool:
        try:
            for place, raw in enumerate(job.source.batches(job.batch_size)):
                if place % count != rank:
                    continue
                pending.append(pool.submit(_decode_batch, place, raw, size))
                if len(pending) > job.num_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _decode_batch(place: int, raw: _Raw, size: int) -> _Decoded:
    if isinstance(raw.images, Tensor):
        return _Decoded(place, len(raw.rows), raw.rows, raw.images, raw.labels)
    decoded = [decode_to_square(image, size) for image in raw.images]
    good = np.array([not isinstance(image, UndecodableImageError) for image in decoded])
    failures = [(int(raw.rows[i]), str(decoded[i])) for i in np.flatnonzero(~good)]
    pixels = torch.from_numpy(np.stack([decoded[i] for i in np.flatnonzero(good)])) if good.any() else None
    labels = None if raw.labels is None else raw.labels[good]
    return _Decoded(place, len(good), raw.rows[good], pixels, labels, failures)


def _count(part: _Part, batch: _Decoded, job: _Job) -> None:
    """Stops as soon as too many images are bad for certain; of a stream, once they are among those seen."""
    part.seen += batch.seen
    part.bad_rows += [row for row, _ in batch.failures]
    part.failures = (part.failures + [f"row {row}: {text}" for row, text in batch.failures])[:_SHOWN_FAILURES]
    total = job.source.length or (part.seen if part.seen >= _MIN_SEEN else None)
    if total is not None and len(part.bad_rows) > job.max_bad_fraction * total:
        raise TooManyBadImagesError(_bad_summary(len(part.bad_rows), part.seen, part.failures, job.max_bad_fraction))


def _bad_summary(bad: int, seen: int, failures: Sequence[str], allowed: float) -> str:
    return (
        f"{bad} of the {seen} images seen could not be decoded; expected at most {allowed:.1%} (max_bad_fraction). "
        "Mend the data set or allow more. The first: " + " ".join(failures)
    )


# ---- from parts to one file ----


def _finish(job: _Job, work: Path, folder: Path, key: str, parts: Sequence[_Part]) -> None:
    """Checks the parts, makes one table of them and puts it in its place."""
    seen, bad = sum(part.seen for part in parts), sorted(row for part in parts for row in part.bad_rows)
    failures = [text for part in parts for text in part.failures][:_SHOWN_FAILURES]
    if seen == 0:
        raise ValueError("The data set given is empty; expected at least one image.")
    if len(bad) > job.max_bad_fraction * seen or len(bad) == seen:
        raise TooManyBadImagesError(_bad_summary(len(bad), seen, failures, job.max_bad_fraction))
    if bad:
        warnings.warn(
            f"{len(bad)} of {seen} images could not be decoded and were left out. The first: {' '.join(failures)}",
            stacklevel=2,
        )
    columns = next(part.dtypes for part in parts if part.dtypes)
    _write_table(work, parts, columns)
    meta = {
        "key": key,
        "kinds": list(job.kinds),
        "dropped": bad,
        "label_names": job.source.label_names,
        "num_bytes": (work / _TABLE).stat().st_size,
        "metadata": {
            "format": FEATURE_FORMAT,
            "encoder": job.encoder.name,
            "fingerprint": job.fingerprint,
            "image_size": job.encoder.image_size,
            "mixed_precision": job.mixed_precision,
            "num_images": seen - len(bad),
            "dimensions": {kind: columns[kind][1] for kind in job.kinds},
        },
    }
    (work / _META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    _put(work, folder)


def _write_table(work: Path, parts: Sequence[_Part], columns: Mapping[str, tuple[str, int]]) -> None:
    """`features.arrow` in Arrow's stream format, as `datasets` writes it, in a single record batch.

    One batch keeps each column in one piece, so that it can be read as one tensor without copying. Its columns are
    mapped from the parts' files, so no column is ever in memory.
    """
    arrays = []
    for index, (dtype, width) in enumerate(columns.values()):
        path = _joined(work, index, parts, np.dtype(dtype).itemsize * max(1, width))
        values = pa.array(np.memmap(path, dtype=dtype, mode="r"))
        arrays.append(pa.FixedSizeListArray.from_arrays(values, width) if width else values)
    batch = pa.record_batch(arrays, names=list(columns))
    options = pa.ipc.IpcWriteOptions(allow_64bit=True)
    with pa.OSFile(str(work / _TABLE), "wb") as file, pa.ipc.new_stream(file, batch.schema, options=options) as stream:
        stream.write_batch(batch)
    for rank in range(len(parts)):
        shutil.rmtree(work / f"part-{rank}", ignore_errors=True)


def _joined(work: Path, index: int, parts: Sequence[_Part], row_bytes: int) -> Path:
    """File of a column with the batches of all parts in the data set's order."""
    written = [rank for rank, part in enumerate(parts) if part.batches]
    if len(written) == 1:
        return work / f"part-{written[0]}" / str(index)
    order = sorted((place, rows, rank) for rank in written for place, rows in parts[rank].batches)
    path = work / f"part-{written[0]}" / f"joined-{index}"
    files = {rank: open(work / f"part-{rank}" / str(index), "rb") for rank in written}
    try:
        with open(path, "wb") as joined:
            for _, rows, rank in order:
                joined.write(files[rank].read(rows * row_bytes))
    finally:
        for file in files.values():
            file.close()
    return path


def _put(work: Path, folder: Path) -> None:
    """Renames, which is atomic. Whoever came first with the same key has the same features."""
    if folder.exists() and not _is_complete(folder):
        shutil.rmtree(folder)
    try:
        work.rename(folder)
    except OSError:
        if not _is_complete(folder):
            raise


def _is_complete(folder: Path) -> bool:
    try:
        FeatureSet.load(folder)
    except FileNotFoundError:
        return False
    return True


def _map_columns(path: Path) -> dict[str, Tensor]:
    """Columns of a table of one record batch as tensors on a private mapping of the file."""
    with open(path, "rb") as file:
        # Private: writing to a tensor must neither reach the file nor, as with a read-only mapping, kill the process.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    whole = pa.py_buffer(mapped)
    batch = pa.ipc.open_stream(whole).read_next_batch()
    columns = {}
    for name, array in zip(batch.schema.names, batch.columns, strict=True):
        is_list = pa.types.is_fixed_size_list(array.type)
        values = array.values if is_list else array
        dtype = {pa.float32(): torch.float32, pa.int64(): torch.int64}[values.type]
        offset = values.buffers()[1].address - whole.address
        tensor = torch.frombuffer(mapped, dtype=dtype, count=len(values), offset=offset)
        columns[name] = tensor.view(len(array), -1) if is_list else tensor
    return columns
