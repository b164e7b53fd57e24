# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Streams: whatever processes and workers share a source, every image comes once before any comes again."""

import gc
import io
import itertools
import os
import sys
import tarfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch.utils.data import DataLoader

from sparsejepa_hf.data import StreamingImageDataset, build_image_dataset, collate_images, load_image_dataset


# Images of the soak; the long form streams 200,000.
MANY = int(os.environ.get("SPARSEJEPA_STREAM_IMAGES", "20000"))
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


def test_archives_that_mix_formats_lose_no_image(tmp_path, record_fault):
    total = write("tar", tmp_path / "set", 5)
    for streaming in (False, True):
        source = load_image_dataset(tmp_path / "set", streaming=streaming, cache_dir=tmp_path / "cache")
        images = build_image_dataset(source, 4, shuffle_buffer_size=0)
        assert [level(example["pixel_values"]) for example in images] == list(range(total))
    record_fault("data", "WebDataset archives of three image formats", injected=total, held=total)


_opened: list[str] | None = None


def _watch(event: str, arguments: tuple) -> None:
    if _opened is not None and event in ("open", "socket.connect", "os.open"):
        _opened.append(f"{event} {arguments}")


def test_rows_neither_open_other_files_nor_fetch(tmp_path, monkeypatch, record_fault):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    (tmp_path / "own").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "1.png").write_bytes(png(1))
    os.mkfifo(tmp_path / "own" / "pipe")
    outside = f"{tmp_path}/outside/1.png"
    named = [
        outside,
        f"{tmp_path}/own/../outside/1.png",
        f"file://{outside}",
        f"local://{outside}",
        f"zip://1.png::{outside}",
        f"simplecache::file://{outside}",
        f"reference::{outside}",
        "/dev/zero",
        f"{tmp_path}/own/pipe",
        f"zip://1.png::{tmp_path}/own/pipe",
        "http://127.0.0.1:9/outside/1.png",
        "https://127.0.0.1:9/outside/1.png",
        "hf://datasets/someone/outside/1.png",
        "ftp://127.0.0.1:9/outside/1.png",
    ]
    rows = [{"bytes": None, "path": path} for path in named] + [{"bytes": png(9), "path": outside}]
    pq.write_table(pa.table({"image": rows}), tmp_path / "own" / "train.parquet")
    sys.addaudithook(_watch)
    for streaming in (False, True):
        source = load_image_dataset(tmp_path / "own", streaming=streaming, cache_dir=tmp_path / "cache")
        monkeypatch.setitem(globals(), "_opened", [])
        with pytest.warns(UserWarning, match="Undecodable images are skipped"):
            images = build_image_dataset(source, 4, max_bad_fraction=1.0, shuffle_buffer_size=0)
            assert [level(example["pixel_values"]) for example in images] == [9]
        opened, _ = _opened, monkeypatch.setitem(globals(), "_opened", None)
        assert opened and not [
            event for event in opened if "outside" in event or "connect" in event or "/dev/zero" in event
        ]
        assert images.num_bad == len(named)
    record_fault("data", "rows that name files, pipes and addresses", injected=len(named), held=len(named))


def write_many(kind: str, folder: Path, count: int) -> int:
    """Noise, of 7 kB an image, numbered from 0; returns the bytes on disk."""
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 48, 48, 3), dtype=np.uint8)
    contents = []
    for pixels in noise:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG", compress_level=0)
        contents.append(buffer.getvalue())
    for number, first in enumerate(range(0, count, 5000)):
        levels = range(first, min(first + 5000, count))
        path = folder / f"train-{number:05}.{kind}"
        if kind == "parquet":
            rows = [{"bytes": contents[i % 64], "path": None} for i in levels]
            table = pa.table({"image": rows, "label": list(levels)})
            pq.write_table(table, path, row_group_size=500, use_dictionary=False, compression="none")
            continue
        with tarfile.open(path, "w") as archive:
            for i in levels:
                for suffix, content in (("png", contents[i % 64]), ("cls", str(i).encode())):
                    entry = tarfile.TarInfo(f"{i:06}.{suffix}")
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_many_images_stream_in_constant_memory(tmp_path, kind, record_fault):
    size = write_many(kind, tmp_path / "set", MANY)
    source = load_image_dataset(tmp_path / "set", streaming=True, cache_dir=tmp_path / "cache")
    stream = StreamingImageDataset(source, 32, shuffle_buffer_size=1000)
    seen, memory, process = np.zeros(MANY, dtype=np.int64), [], psutil.Process()
    for number, example in enumerate(stream):
        seen[example["labels"]] += 1
        if number % (MANY // 20) == 0:
            gc.collect()
            memory.append(process.memory_info().rss / 2**20)
    assert (seen == 1).all()
    # The buffer fills at first; after that nothing may grow with what has been read.
    growth = max(memory[10:]) - max(memory[4:10])
    assert growth < 0.3 * size / 2**20 and growth < 64
    figures = {"rss_growth_mb": round(growth, 1), "rss_mb": round(max(memory)), "read_mb": round(size / 2**20)}
    record_fault("soak", f"{MANY:,} images streamed from {kind} files", injected=MANY, held=MANY, **figures)
