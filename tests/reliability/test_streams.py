# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Streams: whatever processes and workers share a source, every image comes once before any comes again."""

import io
import itertools
import tarfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader

from sparsejepa_hf.data import StreamingImageDataset, collate_images, load_image_dataset


# Images of the files one to five: no two files are of one size, and one is tiny.
COUNTS = (7, 1, 12, 4, 9)


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (level % 256, level // 256, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


def level(pixels: torch.Tensor) -> int:
    return int(pixels[0, 0, 0]) + 256 * int(pixels[1, 0, 0])


def write(kind: str, folder: Path, files: int) -> int:
    """Writes images 0, 1, 2, ... into so many files, and says how many there are."""
    folder.mkdir()
    first = 0
    for number, count in enumerate(COUNTS[:files]):
        levels = range(first, first + count)
        first += count
        if kind == "parquet":
            rows = Dataset.from_dict({"image": [{"bytes": png(i), "path": None} for i in levels]})
            table = rows.cast_column("image", datasets.Image()).data.table
            pq.write_table(table, folder / f"train-{number:05}.parquet", row_group_size=5)
        elif kind == "tar":
            with tarfile.open(folder / f"train-{number:05}.tar", "w") as archive:
                for i in levels:
                    entry = tarfile.TarInfo(f"{i:05}.{('png', 'jpg', 'webp')[i % 3]}")
                    content = png(i)
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
        else:
            (folder / f"class{number}").mkdir()
            for i in levels:
                (folder / f"class{number}" / f"{i}.png").write_bytes(png(i))
    return first


@pytest.fixture
def as_worker(monkeypatch):
    """Makes this process look like one of `num_workers` workers, or like none, to whoever asks."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)

    def set_worker(num_workers: int, worker: int) -> None:
        info = SimpleNamespace(num_workers=num_workers, id=worker) if num_workers else None
        monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: info)

    return set_worker


def shares(source, as_worker, ranks: int, workers: int, images: int | None, **options) -> list[list[int]]:
    """What each reader sees first: so many images, or all of its part."""
    parts = []
    for rank, worker in itertools.product(range(ranks), range(max(workers, 1))):
        as_worker(workers, worker)
        stream = StreamingImageDataset(source, 4, rank=rank, world_size=ranks, **options)
        parts.append([level(example["pixel_values"]) for example in itertools.islice(stream, images)])
    return parts


# Numbers of files; and of processes, with workers each.
SOME = ((3,), [(1, 2), (2, 0), (2, 2), (3, 2)])
ALL = ((1, 2, 3, 4, 5), list(itertools.product((1, 2, 3, 4), (0, 1, 2))))


@pytest.mark.parametrize("kind", ["parquet", "tar", "folder"])
@pytest.mark.parametrize(("numbers", "launches"), [SOME, pytest.param(*ALL, marks=pytest.mark.slow)])
def test_every_image_comes_once_before_any_comes_again(tmp_path, as_worker, kind, numbers, launches, record_fault):
    tried = 0
    for files in numbers:
        total = write(kind, tmp_path / str(files), files)
        source = load_image_dataset(tmp_path / str(files), streaming=True, cache_dir=tmp_path / "cache")
        for ranks, workers in launches:
            buffer = 6 if ranks == 3 else 0
            readers = ranks * max(workers, 1)
            once = shares(source, as_worker, ranks, workers, None, shuffle_buffer_size=buffer)
            assert sorted(itertools.chain(*once)) == list(range(total))
            # Readers take turns: after so many images each, three epochs are over but for less than a turn.
            images = 3 * total // readers
            endless = shares(source, as_worker, ranks, workers, images, shuffle_buffer_size=buffer, repeat=True)
            times = Counter(itertools.chain(*endless))
            assert set(times.values()) <= {2, 3} and len(times) == total
            assert sum(times.values()) == images * readers > 3 * total - readers
            tried += 1
    record_fault("data", f"{kind} shards that do not divide among processes and workers", injected=tried, held=tried)


def test_many_shards_are_shared_whole(as_worker):
    rows = Dataset.from_dict({"image": [{"bytes": png(i), "path": None} for i in range(200)]})
    source = rows.cast_column("image", datasets.Image()).to_iterable_dataset(num_shards=100)
    for ranks, workers in ((1, 2), (2, 1), (3, 2), (3, 4)):
        parts = shares(source, as_worker, ranks, workers, None, shuffle_buffer_size=0)
        assert sorted(itertools.chain(*parts)) == list(range(200))
        assert max(map(len, parts)) - min(map(len, parts)) <= 2 * workers


def test_an_order_is_repeated_and_resumed_by_skipping(tmp_path, as_worker):
    write("tar", tmp_path / "set", 3)
    source = load_image_dataset(tmp_path / "set", streaming=True, cache_dir=tmp_path / "cache")
    options = {"shuffle_buffer_size": 8, "seed": 3, "repeat": True}
    long = shares(source, as_worker, 2, 2, 50, **options)
    short = shares(source, as_worker, 2, 2, 23, **options)
    assert [part[:23] for part in long] == short and len({tuple(part) for part in long}) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_real_workers_and_a_run_that_is_resumed(tmp_path, workers, monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)
    total = write("parquet", tmp_path / "set", 3)
    source = load_image_dataset(tmp_path / "set", streaming=True, cache_dir=tmp_path / "cache")

    def batches(count):
        stream = StreamingImageDataset(source, 4, shuffle_buffer_size=6, repeat=True)
        loader = DataLoader(stream, 2, num_workers=workers, collate_fn=collate_images)
        taken = itertools.islice(loader, count)
        return [[level(image) for image in batch["pixel_values"]] for batch in taken]

    first = batches(total)
    assert batches(total)[4:] == first[4:]
    # `total` batches of two are two epochs, but for what other workers have yet to deliver.
    times = Counter(itertools.chain(*first))
    assert len(times) == total and sum(abs(count - 2) for count in times.values()) <= 4 * max(workers, 1)
