# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Torch data sets of uint8 images of one shape, with damaged images skipped, counted and reported."""

import itertools
import math
import operator
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import datasets
import fsspec.asyn  # type: ignore[import-untyped]
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm
from transformers.utils import logging

from .images import PixelFormat, UndecodableImageError, warn_of_dark_images
from .loading import refuse_transform
from .row_files import encoded_bytes, row_opener


logger = logging.get_logger(__name__)

CACHE_LIMIT_BYTES = 2 * 1024**3
# From so many shards a reader on, a stream is shared by shards: parts then differ by a sixteenth at most.
_SHARDS_A_READER = 16
_ROWS_AT_ONCE = 16
_CHUNK = 256
# Images whose values are looked at before the others are.
_LOOKED_AT = 8
_MIN_SEEN = 100
_SHOWN_FAILURES = 3
_MAX_WORKERS = 255
_MISSING_LABEL = -1
_NO_LABEL = object()

Example = dict[str, Any]


class TooManyBadImagesError(ValueError):
    """More images than allowed could not be decoded."""


class ImageBatch(Sequence[Example]):
    """B examples that lie in one tensor: [`collate_images`] takes it whole, any other collator sees examples.

    Args:
        pixel_values: uint8 (B, C, H, W).
        labels: int64 (B,), or None without labels.
    """

    def __init__(self, pixel_values: Tensor, labels: Tensor | None) -> None:
        self.pixel_values = pixel_values
        self.labels = labels

    def __len__(self) -> int:
        return len(self.pixel_values)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return ImageBatch(self.pixel_values[index], None if self.labels is None else self.labels[index])
        # Past the end, the tensor's IndexError ends an iteration.
        example: Example = {"pixel_values": self.pixel_values[index]}
        if self.labels is not None:
            example["labels"] = int(self.labels[index])
        return example


class ImageDataset(torch.utils.data.Dataset):
    """Images of a `datasets.Dataset` as uint8 tensors, decoded once into memory or each time they are asked for.

    Cached, undecodable images are dropped for good and the length shrinks by them. Otherwise an undecodable image
    is replaced by the next decodable one in index order (after the last comes the first), the same one each time.
    Either way one warning is given, and an error once too many are bad. Every process holds its own cache.

    Args:
        dataset: with a column `image` and optionally `label` (see [`load_image_dataset`]).
        image_size: pixels: the side of a square, or height and width. Of other images the centre of that aspect ratio
            is taken and resized.
        cache: True, False, or `"auto"`: cache if all pixels take at most 2 GiB.
        max_bad_fraction: the most undecodable images allowed, as a fraction of those seen; checked from 100 images
            on, and at the end of the caching pass.
        num_threads: threads of the caching pass; up to 4 by the number of cores if None.
        num_channels: C: 1 grey, 3 RGB, 4 RGBA; of any other number images are arrays of as many channels (see
            [`read_pixels`]).
        value_range: lowest and highest value of the images, which become 0 and 255; None: those of their type.

    Attributes:
        pixel_values: uint8 (N, C, height, width) when cached, else None.
        labels: int64 (N,) when the data set has labels and is cached, else None. A missing label is -1.
        source_indices: int64 (N,) when cached, else None: the row of `dataset` each image came from.

    Raises:
        ValueError: the data set is empty or has no column `image`.
        TooManyBadImagesError: more than `max_bad_fraction` of the images are undecodable.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        image_size: int | Sequence[int],
        *,
        cache: bool | Literal["auto"] = "auto",
        max_bad_fraction: float = 0.01,
        num_threads: int | None = None,
        num_channels: int = 3,
        value_range: Sequence[float] | None = None,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("The data set given is empty; expected at least one image.")
        self._source = undecoded(dataset)
        opener = row_opener(self._source.features["image"])
        self.pixel_format = PixelFormat(image_size, num_channels, value_range, opener)
        self._tally = _Tally(max_bad_fraction)
        self.has_labels = "label" in self._source.column_names
        self.pixel_values: Tensor | None = None
        self.labels: Tensor | None = None
        self.source_indices: Tensor | None = None
        if cache not in (True, False, "auto"):
            raise ValueError(f"cache is {cache!r}; expected True, False or 'auto'.")
        if cache == "auto":
            cache = len(dataset) * math.prod(self.pixel_format.shape) <= CACHE_LIMIT_BYTES
        if cache:
            self._fill_cache(num_threads or min(4, os.cpu_count() or 1))
        a_few = self._source[:: max(1, len(dataset) // _LOOKED_AT)]["image"]
        warn_of_dark_images(a_few, self.pixel_format)

    def __len__(self) -> int:
        return len(self._source) if self.pixel_values is None else len(self.pixel_values)

    @property
    def num_bad(self) -> int:
        """How often an undecodable image was met in this process and its DataLoader workers."""
        return self._tally.bad

    def encoded(self, index: int) -> bytes:
        """An image as it is stored, neither decoded nor counted; empty where there is none."""
        return encoded_bytes(self._source[index]["image"], self.pixel_format.open_file) or b""

    def __getitem__(self, index: int) -> Example:
        """One example: `pixel_values`, uint8 (C, height, width), and `labels`, int, if there are labels."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> ImageBatch:
        """The examples at `indices`, in that order, in one tensor."""
        count = len(self)
        for index in indices:
            if not -count <= index < count:
                raise IndexError(f"The index given is {index}; expected at least {-count} and below {count}.")
        indices = [int(index) % count for index in indices]
        if self.pixel_values is not None:
            return ImageBatch(self.pixel_values[indices], None if self.labels is None else self.labels[indices])
        rows = self._source[indices]
        pixels = np.empty((len(indices), *self.pixel_format.shape), dtype=np.uint8)
        labels = rows["label"] if self.has_labels else [None] * len(indices)
        for place, (index, image) in enumerate(zip(indices, rows["image"], strict=True)):
            # The image itself or, where it cannot be decoded, the next one that can be.
            for offset in range(1, count + 1):
                decoded = self.pixel_format.try_read(image)
                if not isinstance(decoded, UndecodableImageError):
                    self._tally.count(1, [])
                    pixels[place] = decoded
                    break
                self._tally.count(1, [((index + offset - 1) % count, decoded)])
                row = self._source[(index + offset) % count]
                image, labels[place] = row["image"], row.get("label")
            else:
                raise TooManyBadImagesError(self._tally.summary())
        return ImageBatch(torch.from_numpy(pixels), _label_tensor(labels) if self.has_labels else None)

    def _fill_cache(self, num_threads: int) -> None:
        count = len(self._source)
        pixels = np.empty((count, *self.pixel_format.shape), dtype=np.uint8)
        good = np.ones(count, dtype=bool)
        labels = np.empty(count, dtype=np.int64)
        arrow = self._source.with_format("arrow")

        def decode_chunk(start: int) -> list[tuple[int, UndecodableImageError]]:
            table = arrow[start : min(start + _CHUNK, count)]
            failures = []
            for row, image in enumerate(table.column("image").to_pylist(), start):
                decoded = self.pixel_format.try_read(image)
                if isinstance(decoded, UndecodableImageError):
                    failures.append((row, decoded))
                else:
                    pixels[row] = decoded
            if self.has_labels:
                labels[start : start + len(table)] = _label_tensor(table.column("label").to_pylist())
            return failures

        starts = range(0, count, _CHUNK)
        with ThreadPoolExecutor(num_threads) as pool, tqdm(total=count, unit="image", desc="Decoding images") as bar:
            try:
                for start, failures in zip(starts, pool.map(decode_chunk, starts), strict=True):
                    done = min(_CHUNK, count - start)
                    good[[row for row, _ in failures]] = False
                    self._tally.count(done, failures)
                    bar.update(done)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        self._tally.check(min_seen=0)
        if self._tally.bad > 1:
            self._tally.warn(f"{self._tally.bad} of {count} images could not be decoded and were left out.")
        self.source_indices = torch.from_numpy(np.flatnonzero(good))
        self.pixel_values = torch.from_numpy(pixels if good.all() else pixels[good])
        self.labels = torch.from_numpy(labels[good]) if self.has_labels else None


class StreamingImageDataset(torch.utils.data.IterableDataset):
    """Images of a `datasets.IterableDataset` as uint8 tensors, in bounded memory, read once or without end.

    Undecodable images are skipped, with one warning, and an error once too many are bad. Several processes: under
    Accelerate and the Trainer leave `rank` and `world_size` alone, since they hand out the batches read by the main
    process; in a loop of your own, give them, and each process reads its own part.

    Processes and their DataLoader workers are readers that share the images. A source of at least 16 shards a reader
    is shared by shards, which are its files, or the row groups of local Parquet files; parts then differ by about a
    shard. A source of fewer is shared image by image: each reader reads all of it and decodes its part, so that
    readers take each image once before they take any again, and differ by one image at most.

    Args:
        dataset: with a column `image` and optionally `label` (see [`load_image_dataset`]).
        image_size: pixels: the side of a square, or height and width, as for [`ImageDataset`].
        shuffle_buffer_size: examples held (undecoded) to draw from at random; 0 keeps the order of the source.
        seed: seed of the shuffling; the order changes with `set_epoch`.
        max_bad_fraction: the most undecodable images allowed, as a fraction of those seen; checked from 100 on.
        repeat: begin again at the end, shuffled anew, without end. A run of `max_steps` that is resumed then finds
            its place by skipping what it has read.
        rank: number of this process, below `world_size`.
        world_size: number of processes that share the source.
        num_channels: as for [`ImageDataset`].
        value_range: as for [`ImageDataset`].

    Raises:
        ValueError: the data set has no column `image`.
        TooManyBadImagesError: while reading, as soon as too many images are undecodable.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        image_size: int | Sequence[int],
        *,
        shuffle_buffer_size: int = 1000,
        seed: int = 0,
        max_bad_fraction: float = 0.01,
        repeat: bool = False,
        rank: int = 0,
        world_size: int = 1,
        num_channels: int = 3,
        value_range: Sequence[float] | None = None,
    ) -> None:
        self.repeat = repeat
        self._tally = _Tally(max_bad_fraction)
        self.rank, self.world_size = rank, world_size
        dataset = undecoded(dataset)
        opener = row_opener(dataset.features["image"])
        self.pixel_format = PixelFormat(image_size, num_channels, value_range, opener)
        self.has_labels = "label" in dataset.column_names
        if shuffle_buffer_size > 0:
            dataset = dataset.shuffle(seed=seed, buffer_size=shuffle_buffer_size)
        if world_size > 1 and dataset.num_shards >= _SHARDS_A_READER * world_size:
            # The shards are shared here, and each part among its workers below.
            if dataset.num_shards % world_size:
                dataset = dataset.shard(world_size, rank, contiguous=False)
            else:
                dataset = split_dataset_by_node(dataset, rank=rank, world_size=world_size)
            self.rank, self.world_size = 0, 1
        self._source = dataset

    @property
    def num_bad(self) -> int:
        """How often an undecodable image was met in this process and its DataLoader workers."""
        return self._tally.bad

    @property
    def shard_names(self) -> list[str]:
        """The names of the source's files, without their folders, in order; empty where it has none."""
        # `datasets` has no public name for them.
        inner: Any = getattr(self._source, "_ex_iterable", None)
        while hasattr(inner, "ex_iterable"):
            inner = inner.ex_iterable
        files = getattr(inner, "kwargs", {}).get("files", [])
        return sorted(str(file).rpartition("/")[2] for file in files if isinstance(file, str))

    @property
    def num_shards(self) -> int:
        """How many parts the source has that can be read apart."""
        return self._source.num_shards

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that the shuffling depends on; call before the loader is iterated."""
        self._source.set_epoch(epoch)

    def __iter__(self) -> Iterator[Example]:
        worker = torch.utils.data.get_worker_info()
        num_workers, worker_id = (1, 0) if worker is None else (worker.num_workers, worker.id)
        readers, reader = self.world_size * num_workers, self.rank * num_workers + worker_id
        by_image = readers > 1 and self._source.num_shards < _SHARDS_A_READER * readers
        if by_image:
            self._begin_to_share(readers, reader)
        # Counted on from epoch to epoch, so that no reader gets ahead of another.
        turns = itertools.count()
        for epoch in itertools.count():
            if self.repeat:
                self._source.set_epoch(epoch)
            is_empty = True
            # `datasets` splits its shards among the DataLoader's workers by itself.
            for position, row in enumerate(self._all_rows() if by_image else self._source):
                is_empty = False
                if by_image and next(turns) % readers != reader:
                    continue
                decoded = self.pixel_format.try_read(row["image"])
                if isinstance(decoded, UndecodableImageError):
                    self._tally.count(1, [(position, decoded)])
                    continue
                self._tally.count(1, [])
                example: Example = {"pixel_values": torch.from_numpy(decoded)}
                if self.has_labels:
                    label = row.get("label")
                    example["labels"] = _MISSING_LABEL if label is None else int(label)
                yield example
            # Nor would there be an end where all images are undecodable.
            if is_empty or not self.repeat or self._tally.bad == self._tally.seen > 0:
                return

    def _all_rows(self) -> Iterator[Any]:
        """Every row of an epoch, in one order for all readers: by batches, `datasets` does not look at workers."""
        for batch in self._source.iter(_ROWS_AT_ONCE):
            for place in range(len(batch["image"])):
                yield {column: values[place] for column, values in batch.items()}

    def _begin_to_share(self, readers: int, reader: int) -> None:
        # A lock of the process that forked this one would never be given free.
        fsspec.asyn.reset_lock()
        if reader == 0:
            logger.warning(
                f"The stream has {self._source.num_shards} shards for {readers} readers (processes times workers), so "
                f"it is shared image by image: each reads all of it and decodes one image in {readers}. With "
                f"{_SHARDS_A_READER * readers} shards or more (files, or row groups of local Parquet files), each "
                "would read its own."
            )


def build_image_dataset(
    dataset: datasets.Dataset | datasets.IterableDataset,
    image_size: int | Sequence[int],
    *,
    num_channels: int = 3,
    value_range: Sequence[float] | None = None,
    cache: bool | Literal["auto"] = "auto",
    max_bad_fraction: float = 0.01,
    num_threads: int | None = None,
    shuffle_buffer_size: int = 1000,
    seed: int = 0,
    repeat: bool = False,
) -> ImageDataset | StreamingImageDataset:
    """[`StreamingImageDataset`] for an `IterableDataset`, else [`ImageDataset`]; arguments as there.

    `cache` and `num_threads` are for the latter alone, `shuffle_buffer_size`, `seed` and `repeat` for the former.
    """
    if isinstance(dataset, datasets.IterableDataset):
        return StreamingImageDataset(
            dataset,
            image_size,
            shuffle_buffer_size=shuffle_buffer_size,
            seed=seed,
            max_bad_fraction=max_bad_fraction,
            repeat=repeat,
            num_channels=num_channels,
            value_range=value_range,
        )
    return ImageDataset(
        dataset,
        image_size,
        cache=cache,
        max_bad_fraction=max_bad_fraction,
        num_threads=num_threads,
        num_channels=num_channels,
        value_range=value_range,
    )


class ResidentImages(torch.utils.data.Dataset):
    """Cached images that lie on a device: an example is a place, and a batch of images is gathered there.

    A loader then moves eight bytes an image, where it would stack and copy its pixels.

    Args:
        dataset: a cached [`ImageDataset`] and no subclass, which could change an image when it is asked for.
        device: where the images are to lie, all of them.

    Raises:
        ValueError: the data set is not held in memory.
    """

    def __init__(self, dataset: torch.utils.data.Dataset, device: torch.device | str) -> None:
        if type(dataset) is not ImageDataset or dataset.pixel_values is None:
            raise ValueError(
                f"A {type(dataset).__name__} without a cache of its images is given, but only cached ones can lie on "
                "the device. Build it with build_image_dataset(..., cache=True), or set data_on_device to false."
            )
        self._pixel_values = dataset.pixel_values.to(device)

    def __len__(self) -> int:
        return len(self._pixel_values)

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"places": index}

    @property
    def device(self) -> torch.device:
        """Where the images lie."""
        return self._pixel_values.device

    def gather(self, places: Tensor) -> Tensor:
        """Images, uint8 (B, C, H, W), at `places`, int64 (B,), of the device."""
        return self._pixel_values.index_select(0, places)


def collate_images(examples: ImageBatch | Sequence[Any]) -> dict[str, Tensor]:
    """A batch of B examples: `pixel_values` (B, C, H, W) and, if they have labels, `labels`, int64 (B,).

    Args:
        examples: [`ImageBatch`], or B examples. Each is a mapping with `pixel_values` and perhaps `labels` or `label`,
            as `datasets` gives; a tuple (image, label), as torchvision's data sets give; or an image alone. An image
            is a tensor, an array, nested lists, all (C, H, W), or a PIL image of mode L, RGB or RGBA. Whole numbers
            are pixels from 0 to 255, which the Trainers augment and normalise; floats are the model's input.

    Returns:
        whole numbers as uint8, double precision as float32, other floats as they are.

    Raises:
        ValueError: an image or a label is not one of these, or they do not fit each other.
    """
    if isinstance(examples, ImageBatch):
        batch = {"pixel_values": examples.pixel_values}
        return batch if examples.labels is None else {**batch, "labels": examples.labels}
    images, labels = zip(*(_image_and_label(example) for example in examples), strict=True)
    batch = {"pixel_values": _stack_images(images)}
    absent = sum(label is _NO_LABEL for label in labels)
    if absent and absent < len(labels):
        raise ValueError(
            f"{absent} of the {len(labels)} examples of a batch have no label; expected all of them to have one, or "
            f"none. Give those the label {_MISSING_LABEL}, or take them out."
        )
    return batch if absent else {**batch, "labels": torch.tensor([_class_number(label) for label in labels])}


def collate_pixels(examples: ImageBatch | Sequence[Any]) -> dict[str, Tensor]:
    """As [`collate_images`], without labels, whatever they are: pre-training does not look at them.

    Examples of [`ResidentImages`] become `places`, int64 (B,).
    """
    if isinstance(examples, ImageBatch):
        return {"pixel_values": examples.pixel_values}
    if isinstance(examples[0], dict) and "places" in examples[0]:
        return {"places": torch.tensor([example["places"] for example in examples])}
    return {"pixel_values": _stack_images([_image_and_label(example)[0] for example in examples])}


def _image_and_label(example: Any) -> tuple[Any, Any]:
    if isinstance(example, Mapping):
        if "pixel_values" not in example:
            raise ValueError(
                f"An example has {sorted(example)}; expected 'pixel_values'. Let with_transform or map make them, or "
                "use build_image_dataset(load_image_dataset(dataset), config.image_size)."
            )
        return example["pixel_values"], example.get("labels", example.get("label", _NO_LABEL))
    if isinstance(example, tuple) and example:
        return example[0], example[1] if len(example) > 1 else _NO_LABEL
    return example, _NO_LABEL


def _stack_images(images: Sequence[Any]) -> Tensor:
    pixels = [_as_tensor(image) for image in images]
    kinds = sorted({f"{str(image.dtype).removeprefix('torch.')} {tuple(image.shape)}" for image in pixels})
    if len(kinds) > 1:
        raise ValueError(
            f"The images of a batch are of different kinds: {', '.join(kinds[:4])}. Resize them to one size and "
            "convert them to one type, channels first."
        )
    shape = tuple(pixels[0].shape)
    # Few channels in the last place, and not in the first.
    is_channels_last = len(shape) == 3 and shape[2] <= 4 < min(shape[:2])
    if len(shape) != 3 or is_channels_last:
        raise ValueError(
            f"An image has the shape {shape}; expected (channels, height, width)"
            f"{', and the channels seem to come last' if is_channels_last else ''}. Reshape it in the data set."
        )
    batch = torch.stack(pixels)
    if batch.dtype == torch.uint8 or batch.is_floating_point():
        return batch.float() if batch.dtype == torch.float64 else batch
    wide = batch.long()
    if batch.dtype == torch.bool or batch.is_complex() or wide.min() < 0 or wide.max() > 255:
        raise ValueError(
            f"The images are of type {str(batch.dtype).removeprefix('torch.')} and no pixels from 0 to 255; expected "
            "those, or normalised floats. Scale them in the data set."
        )
    return wide.to(torch.uint8)


def _as_tensor(image: Any) -> Tensor:
    if isinstance(image, Tensor):
        return image
    if isinstance(image, Image.Image):
        if image.mode not in ("L", "RGB", "RGBA"):
            raise ValueError(f"A PIL image has the mode {image.mode}; expected RGB, RGBA or L. Call to_rgb on it.")
        image = np.atleast_3d(np.asarray(image)).transpose(2, 0, 1)
    try:
        # A writable copy of what torch does not take as it is, such as a flipped view.
        return torch.from_numpy(np.require(image, requirements=["C", "W"]))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"An image is a {type(image).__name__} that makes no tensor ({error}); expected a tensor, an array, "
            "nested lists of numbers (channels, height, width), or a PIL image."
        ) from error


def _class_number(label: Any) -> int:
    try:
        return operator.index(label)
    except TypeError as error:
        raise ValueError(
            f"A label is {label!r}; expected the number of a class ({_MISSING_LABEL} stands for none). Turn labels "
            "into numbers in the data set."
        ) from error


class _Tally:
    """Counts images seen and undecodable over a process and its DataLoader workers; keeps the first failures."""

    def __init__(self, max_bad_fraction: float) -> None:
        if not 0 <= max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction is {max_bad_fraction}; expected a number from 0 to 1.")
        self.max_bad_fraction = max_bad_fraction
        self.failures: list[str] = []
        # Shared with workers. Each writes a row of its own, since additions to one number could be lost.
        self._counts = torch.zeros(_MAX_WORKERS + 1, 2, dtype=torch.int64).share_memory_()

    @property
    def seen(self) -> int:
        return int(self._counts.numpy()[:, 0].sum())

    @property
    def bad(self) -> int:
        return int(self._counts.numpy()[:, 1].sum())

    def count(self, seen: int, failures: Sequence[tuple[int, UndecodableImageError]]) -> None:
        """Counts `seen` images, of which `failures`, (index, error), are bad; raises as soon as too many are."""
        worker = torch.utils.data.get_worker_info()
        before = self.bad if failures else 0
        own = self._counts.numpy()[0 if worker is None else 1 + worker.id % _MAX_WORKERS]
        own += (seen, len(failures))
        room = _SHOWN_FAILURES - len(self.failures)
        self.failures += [f"image {index}: {error}" for index, error in failures][:room]
        if failures and not before:
            self.warn(f"Undecodable images are skipped; the first is {self.failures[0]}")
        elif failures and len(str(before + len(failures))) > len(str(before)):
            self.warn(f"{self.bad} of {self.seen} images could not be decoded and were skipped so far.")
        # To add up for each image would take longer than a small one.
        if failures or own[0] % _MIN_SEEN < seen:
            self.check(_MIN_SEEN)

    @staticmethod
    def warn(message: str) -> None:
        warnings.warn(message, stacklevel=4)

    def check(self, min_seen: int) -> None:
        """Raises a `TooManyBadImagesError` if, of at least `min_seen` images, too many are bad."""
        bad, seen = self.bad, self.seen
        if bad and seen >= min_seen and bad > self.max_bad_fraction * seen:
            raise TooManyBadImagesError(self.summary())

    def summary(self) -> str:
        first = f" The first: {' '.join(self.failures)}" if self.failures else ""
        return (
            f"{self.bad} of the {self.seen} images seen ({self.bad / self.seen:.1%}) could not be decoded; expected "
            f"at most {self.max_bad_fraction:.1%} (max_bad_fraction). Mend the data set or allow more.{first}"
        )


def undecoded(dataset: Any) -> Any:
    """A `datasets` set whose column `image` gives encoded bytes; without that column, a `ValueError`."""
    if "image" not in (dataset.column_names or []):
        raise ValueError(
            f"The data set given has the columns {dataset.column_names}; expected one named 'image'. Load it with "
            "load_image_dataset."
        )
    refuse_transform(dataset)
    # Decoding inside `datasets` would stop at the first damaged image.
    rule = getattr(dataset.features["image"], "id", None)
    return dataset.with_format(None).cast_column("image", datasets.Image(decode=False, id=rule))


def _label_tensor(labels: Sequence[int | None]) -> Tensor:
    return torch.tensor([_MISSING_LABEL if label is None else int(label) for label in labels], dtype=torch.int64)
