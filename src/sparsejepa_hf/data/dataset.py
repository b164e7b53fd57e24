# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Torch data sets of square uint8 images, with damaged images skipped, counted and reported."""

import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from torch import Tensor
from tqdm.auto import tqdm

from .images import UndecodableImageError, resize_to_square, to_rgb


CACHE_LIMIT_BYTES = 2 * 1024**3
_CHUNK = 256
_MIN_SEEN = 100
_SHOWN_FAILURES = 3
_MISSING_LABEL = -1

Example = dict[str, Any]


class TooManyBadImagesError(ValueError):
    """More images than allowed could not be decoded."""


class ImageDataset(torch.utils.data.Dataset):
    """Images of a `datasets.Dataset` as uint8 tensors, decoded once into memory or each time they are asked for.

    Cached, undecodable images are dropped for good and the length shrinks by them. Otherwise an undecodable image
    is replaced by the next decodable one in index order (after the last comes the first), the same one each time.
    Either way one warning is given, and an error once too many are bad. Every process holds its own cache.

    Args:
        dataset: with a column `image` and optionally `label` (see [`load_image_dataset`]).
        image_size: side of the square images, in pixels (see [`resize_to_square`]).
        cache: True, False, or `"auto"`: cache if all pixels take at most 2 GiB.
        max_bad_fraction: the most undecodable images allowed, as a fraction of those seen; checked from 100 images
            on, and at the end of the caching pass.
        num_threads: threads of the caching pass; up to 4 by the number of cores if None.

    Attributes:
        pixel_values: uint8 (N, 3, image_size, image_size) when cached, else None.
        labels: int64 (N,) when the data set has labels and is cached, else None. A missing label is -1.
        source_indices: int64 (N,) when cached, else None: the row of `dataset` each image came from.

    Raises:
        ValueError: the data set is empty or has no column `image`.
        TooManyBadImagesError: more than `max_bad_fraction` of the images are undecodable.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        image_size: int,
        *,
        cache: bool | Literal["auto"] = "auto",
        max_bad_fraction: float = 0.01,
        num_threads: int | None = None,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("The data set given is empty; expected at least one image.")
        self.image_size = image_size
        self._source = undecoded(dataset)
        self._tally = _Tally(max_bad_fraction)
        self.has_labels = "label" in self._source.column_names
        self.pixel_values: Tensor | None = None
        self.labels: Tensor | None = None
        self.source_indices: Tensor | None = None
        if _wants_cache(cache, len(dataset) * 3 * image_size**2):
            self._fill_cache(num_threads or min(4, os.cpu_count() or 1))

    def __len__(self) -> int:
        return len(self._source) if self.pixel_values is None else len(self.pixel_values)

    @property
    def num_bad(self) -> int:
        """How often an undecodable image was met in this process."""
        return self._tally.bad

    def __getitem__(self, index: int) -> Example:
        """One example: `pixel_values`, uint8 (3, image_size, image_size), and `labels`, int, if there are labels."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """The examples at `indices`, in that order."""
        indices = [self._checked(index) for index in indices]
        if self.pixel_values is not None:
            labels = None if self.labels is None else self.labels[indices].tolist()
            return _examples(self.pixel_values[indices], labels)
        rows = self._source[indices]
        # One array for all: small arrays of their own cost 5 % of the time of a 32-pixel image.
        pixels = np.empty((len(indices), 3, self.image_size, self.image_size), dtype=np.uint8)
        labels = []
        given_labels = rows["label"] if self.has_labels else [None] * len(indices)
        for place, row in enumerate(zip(indices, rows["image"], given_labels, strict=True)):
            pixels[place], label = self._decode_or_next(*row)
            labels.append(label)
        return _examples(torch.from_numpy(pixels), labels if self.has_labels else None)

    def _checked(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"The index given is {index}; expected at least {-len(self)} and below {len(self)}.")
        return int(index) % len(self)

    def _decode_or_next(self, index: int, image: Any, label: int | None) -> tuple[np.ndarray, int]:
        for offset in range(1, len(self) + 1):
            decoded = decode_to_square(image, self.image_size)
            self._tally.count(decoded, (index + offset - 1) % len(self))
            self._tally.check(_MIN_SEEN)
            if not isinstance(decoded, UndecodableImageError):
                return decoded, _int_label(label)
            row = self._source[(index + offset) % len(self)]
            image, label = row["image"], row.get("label")
        raise TooManyBadImagesError(self._tally.summary())

    def _fill_cache(self, num_threads: int) -> None:
        count, size = len(self._source), self.image_size
        pixels = np.empty((count, 3, size, size), dtype=np.uint8)
        good = np.ones(count, dtype=bool)
        labels = np.empty(count, dtype=np.int64)
        arrow = self._source.with_format("arrow")

        def decode_chunk(start: int) -> list[tuple[int, UndecodableImageError]]:
            table = arrow[start : min(start + _CHUNK, count)]
            failures = []
            for row, image in enumerate(table.column("image").to_pylist(), start):
                decoded = decode_to_square(image, size)
                if isinstance(decoded, UndecodableImageError):
                    failures.append((row, decoded))
                else:
                    pixels[row] = decoded
            if self.has_labels:
                labels[start : start + len(table)] = [_int_label(x) for x in table.column("label").to_pylist()]
            return failures

        starts = range(0, count, _CHUNK)
        with ThreadPoolExecutor(num_threads) as pool, tqdm(total=count, unit="image", desc="Decoding images") as bar:
            try:
                for start, failures in zip(starts, pool.map(decode_chunk, starts), strict=True):
                    done = min(_CHUNK, count - start)
                    good[[row for row, _ in failures]] = False
                    self._tally.count_many(done, failures)
                    self._tally.check(_MIN_SEEN)
                    bar.update(done)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        self._tally.check(0)
        if self._tally.bad > 1:
            self._tally._warn(f"{self._tally.bad} of {count} images could not be decoded and were left out.")
        self.source_indices = torch.from_numpy(np.flatnonzero(good))
        self.pixel_values = torch.from_numpy(pixels if good.all() else pixels[good])
        self.labels = torch.from_numpy(labels[good]) if self.has_labels else None


class StreamingImageDataset(torch.utils.data.IterableDataset):
    """Images of a `datasets.IterableDataset` as uint8 tensors, in bounded memory, read once or without end.

    Undecodable images are skipped, with one warning, and an error once too many are bad. Several DataLoader workers
    share the shards of the source, which are its files, or the row groups of local Parquet files: more workers than
    shards stay idle. Several processes: under Accelerate and the Trainer leave `rank` and `world_size` alone, since
    they hand out the batches read by the main process; in a loop of your own, give them, and each process reads its
    own part. Parts may differ by a shard: with `repeat` no process ends before the others.

    Args:
        dataset: with a column `image` and optionally `label` (see [`load_image_dataset`]).
        image_size: side of the square images, in pixels.
        shuffle_buffer_size: examples held (undecoded) to draw from at random; 0 keeps the order of the source.
        seed: seed of the shuffling; the order changes with `set_epoch`.
        max_bad_fraction: the most undecodable images allowed, as a fraction of those seen; checked from 100 on.
        repeat: begin again at the end, shuffled anew, without end. A run of `max_steps` that is resumed then finds
            its place by skipping what it has read.
        rank: number of this process, below `world_size`.
        world_size: number of processes that share the source.

    Raises:
        ValueError: the data set has no column `image`.
        TooManyBadImagesError: while reading, as soon as too many images are undecodable.
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        image_size: int,
        *,
        shuffle_buffer_size: int = 1000,
        seed: int = 0,
        max_bad_fraction: float = 0.01,
        repeat: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.image_size = image_size
        self.repeat = repeat
        self._tally = _Tally(max_bad_fraction)
        dataset = undecoded(dataset)
        self.has_labels = "label" in dataset.column_names
        if shuffle_buffer_size > 0:
            dataset = dataset.shuffle(seed=seed, buffer_size=shuffle_buffer_size)
        if world_size > 1:
            dataset = split_dataset_by_node(dataset, rank=rank, world_size=world_size)
        self._source = dataset

    @property
    def num_bad(self) -> int:
        """How often an undecodable image was met in this process."""
        return self._tally.bad

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch that the shuffling depends on; call before the loader is iterated."""
        self._source.set_epoch(epoch)

    def __iter__(self) -> Iterator[Example]:
        if not self.repeat:
            yield from self._one_pass()
            return
        for epoch in itertools.count():
            self._source.set_epoch(epoch)
            is_empty = True
            for example in self._one_pass():
                is_empty = False
                yield example
            if is_empty:
                return

    def _one_pass(self) -> Iterator[Example]:
        # `datasets` splits its shards among the DataLoader's workers by itself.
        for position, row in enumerate(self._source):
            decoded = decode_to_square(row["image"], self.image_size)
            self._tally.count(decoded, position)
            self._tally.check(_MIN_SEEN)
            if not isinstance(decoded, UndecodableImageError):
                yield _example(decoded, row.get("label"), self.has_labels)


def build_image_dataset(
    dataset: datasets.Dataset | datasets.IterableDataset,
    image_size: int,
    *,
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
        )
    return ImageDataset(dataset, image_size, cache=cache, max_bad_fraction=max_bad_fraction, num_threads=num_threads)


class ResidentImages(torch.utils.data.Dataset):
    """Cached images that lie on a device: an example is a place, and a batch of images is gathered there.

    A loader then moves eight bytes an image, where it would stack and copy its pixels.

    Args:
        dataset: a cached [`ImageDataset`]; another's examples may be made on the way, and would not be here.
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

    def gather(self, places: Tensor) -> Tensor:
        """Images, uint8 (B, 3, S, S), at `places`, int64 (B,), of the device."""
        return self._pixel_values.index_select(0, places)


def collate_images(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Stacks B examples into `pixel_values`, uint8 (B, 3, S, S), and, if they have labels, `labels`, int64 (B,)."""
    batch = {"pixel_values": torch.stack([example["pixel_values"] for example in examples])}
    if "labels" in examples[0]:
        batch["labels"] = torch.tensor([example["labels"] for example in examples], dtype=torch.int64)
    return batch


class _Tally:
    """Counts images seen and images undecodable, and keeps the first failures."""

    def __init__(self, max_bad_fraction: float) -> None:
        if not 0 <= max_bad_fraction <= 1:
            raise ValueError(f"max_bad_fraction is {max_bad_fraction}; expected a number from 0 to 1.")
        self.max_bad_fraction = max_bad_fraction
        self.seen = 0
        self.bad = 0
        self.failures: list[str] = []

    def count(self, decoded: np.ndarray | UndecodableImageError, index: int) -> None:
        self.count_many(1, [(index, decoded)] if isinstance(decoded, UndecodableImageError) else [])

    def count_many(self, seen: int, failures: Sequence[tuple[int, UndecodableImageError]]) -> None:
        before = self.bad
        self.seen += seen
        self.bad += len(failures)
        self.failures += [f"image {index}: {error}" for index, error in failures][
            : _SHOWN_FAILURES - len(self.failures)
        ]
        if failures and not before:
            self._warn(f"Undecodable images are skipped; the first is {self.failures[0]}")
        elif len(str(self.bad)) > len(str(before)):
            self._warn(f"{self.bad} of {self.seen} images could not be decoded and were skipped so far.")

    @staticmethod
    def _warn(message: str) -> None:
        warnings.warn(message, stacklevel=4)

    def check(self, min_seen: int) -> None:
        if self.bad and self.seen >= min_seen and self.bad > self.max_bad_fraction * self.seen:
            raise TooManyBadImagesError(self.summary())

    def summary(self) -> str:
        return (
            f"{self.bad} of the {self.seen} images seen ({self.bad / self.seen:.1%}) could not be decoded; expected "
            f"at most {self.max_bad_fraction:.1%} (max_bad_fraction). Mend the data set or allow more. The first: "
            + " ".join(self.failures)
        )


def undecoded(dataset: Any) -> Any:
    """A `datasets` set whose column `image` gives encoded bytes; without that column, a `ValueError`."""
    if "image" not in (dataset.column_names or []):
        raise ValueError(
            f"The data set given has the columns {dataset.column_names}; expected one named 'image'. Load it with "
            "load_image_dataset."
        )
    # Decoding inside `datasets` would stop at the first damaged image.
    return dataset.with_format(None).cast_column("image", datasets.Image(decode=False))


def _wants_cache(cache: bool | str, num_bytes: int) -> bool:
    if cache not in (True, False, "auto"):
        raise ValueError(f"cache is {cache!r}; expected True, False or 'auto'.")
    return num_bytes <= CACHE_LIMIT_BYTES if cache == "auto" else bool(cache)


def decode_to_square(image: Any, size: int) -> np.ndarray | UndecodableImageError:
    """Pixels uint8 (3, size, size) of an image, or, as a value, why it cannot be decoded."""
    if image is None:
        return UndecodableImageError("The image is missing (null).")
    try:
        return resize_to_square(to_rgb(image), size)
    except UndecodableImageError as error:
        return error


def _int_label(label: int | None) -> int:
    return _MISSING_LABEL if label is None else int(label)


def _examples(pixels: Tensor, labels: Sequence[int] | None) -> list[Example]:
    """Example by example what lies in one tensor (N, 3, S, S), without a copy."""
    if labels is None:
        return [{"pixel_values": image} for image in pixels.unbind(0)]
    return [{"pixel_values": image, "labels": label} for image, label in zip(pixels.unbind(0), labels, strict=True)]


def _example(pixels: np.ndarray, label: int | None, has_label: bool) -> Example:
    example: Example = {"pixel_values": torch.from_numpy(pixels)}
    if has_label:
        example["labels"] = _int_label(label)
    return example
