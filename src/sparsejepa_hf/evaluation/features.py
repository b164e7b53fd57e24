# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Frozen features: one vector per image, of a few images in memory or of a whole data set through a cache on disk."""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..data import TooManyBadImagesError
from ..data.dataset import undecoded
from ..data.images import PixelFormat
from ..data.row_files import encoded_bytes, row_opener
from .metrics import non_finite_rows


if TYPE_CHECKING:
    from accelerate import Accelerator

    from .encoders import VisionEncoder

# Side that larger images are brought to before their raw pixels serve as features.
MAX_PIXEL_SIDE = 32
_PIXEL_CHUNK = 512
# Goes into every key: raise it when the same inputs give other features or other files.
_FORMAT = 2
# Images of one file of the cache. The same whatever the number of processes, which take the files in turn.
_IMAGES_PER_FILE = 4096
_ROW, _LABEL = "row", "label"
_AUTOCAST = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# Digests of data sets by `datasets`' own fingerprint, which holds within one process.
_DIGESTS: dict[str, str] = {}


# ---- images in memory ----


def extract_features(
    model: nn.Module,
    pixel_values: Tensor | torch.utils.data.Dataset,
    *,
    batch_size: int | None = None,
    preprocess: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Runs a frozen vision model over images in memory and averages the tokens of each image.

    The model runs where it is, in evaluation and inference mode. On return, and on error, the training flag of every
    submodule and torch's global random state (of the CPU, and of the GPU if the model is on one) are as they were.

    Args:
        model: any module called as `model(pixel_values=x)` whose output has `last_hidden_state` (B, T, D).
        pixel_values: uint8 images (N, C, H, W), or a map-style data set of `{"pixel_values": uint8 (C, H, W)}`. Other
            keys of an item are ignored.
        batch_size: images of a forward pass; by default 512, on a CPU 64.
        preprocess: maps a uint8 batch (B, C, H, W), already on the device, to the model's floating-point input. By
            default pixels are divided by 255, without normalisation.

    Returns:
        float32 (N, D) on the CPU, in the order of the images: the mean over all T tokens, as in I-JEPA's evaluation
        (Assran et al., arXiv 2301.08243). A class token, if the model has one, counts as a token.

    Raises:
        TypeError: the images are not uint8, or the model's output has no `last_hidden_state`.
        ValueError: a shape or `batch_size` is invalid, there are no images, or a feature is NaN or infinite.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1.")
    if not hasattr(pixel_values, "__len__"):
        raise TypeError(
            f"pixel_values is a {type(pixel_values).__name__} without a length; expected a uint8 tensor or a "
            "map-style data set."
        )
    if len(pixel_values) == 0:
        raise ValueError("pixel_values holds no image; expected at least one. Check how the split was made.")
    parameter = next(model.parameters(), torch.empty(0))
    device, step = parameter.device, batch_size or default_batch_size(parameter.device)
    features = []
    with frozen_module(model, device, device), preserved_rng(device):
        for start in range(0, len(pixel_values), step):
            if isinstance(pixel_values, Tensor):
                images = pixel_values[start : start + step]
            else:
                # A DataLoader would draw its base seed from the global random state.
                stop = min(start + step, len(pixel_values))
                images = torch.stack([pixel_values[place]["pixel_values"] for place in range(start, stop)])
            check_images(images)
            images = images.to(device)
            with torch.inference_mode():
                inputs = images.float() / 255 if preprocess is None else preprocess(images)
                tokens = getattr(model(pixel_values=inputs.to(parameter.dtype)), "last_hidden_state", None)
                if tokens is None:
                    raise TypeError(
                        f"The output of {type(model).__name__} has no last_hidden_state; expected (B, T, D) under "
                        "that name. Pass the encoder rather than a model with a task head."
                    )
                if tokens.ndim != 3 or len(tokens) != len(images):
                    raise ValueError(
                        f"last_hidden_state has the shape {tuple(tokens.shape)} for {len(images)} images; expected "
                        "(B, T, D)."
                    )
                features.append(tokens.float().mean(dim=1).cpu())
    # Concatenated outside inference mode, so that the features can take part in autograd.
    result = torch.cat(features)
    if bad := non_finite_rows(result):
        raise ValueError(
            f"The model gave NaN or infinite features for {len(bad)} of {len(result)} images (the first is image "
            f"{bad[0]}). Check the model's weights, its dtype and preprocess."
        )
    return result


def pixel_features(pixel_values: Tensor) -> Tensor:
    """Flattens images into raw-pixel features, the baseline that a learned representation has to beat.

    Args:
        pixel_values: uint8 images (N, C, H, W).

    Returns:
        float32 (N, C * H * W) in [0, 1], on the images' device.

    Raises:
        TypeError: the images are not uint8.
        ValueError: the shape is not (N, C, H, W).
    """
    check_images(pixel_values)
    return pixel_values.flatten(1).float() / 255


def small_pixel_features(pixel_values: Tensor) -> Tensor:
    """[`pixel_features`] of images that are first reduced, by the mean over areas, to at most 32 pixels a side.

    Args:
        pixel_values: uint8 images (N, C, H, W).

    Returns:
        float32 (N, C * min(H, 32) * min(W, 32)) in [0, 1], in steps of 1/255, on the images' device.

    Raises:
        TypeError: the images are not uint8.
        ValueError: the shape is not (N, C, H, W).
    """
    check_images(pixel_values)
    height, width = pixel_values.shape[2:]
    if max(height, width) <= MAX_PIXEL_SIDE:
        return pixel_features(pixel_values)
    size = (min(height, MAX_PIXEL_SIDE), min(width, MAX_PIXEL_SIDE))
    chunks = pixel_values.split(_PIXEL_CHUNK)
    return pixel_features(torch.cat([F.interpolate(c.float(), size=size, mode="area").round().byte() for c in chunks]))


def pool_tokens(tokens: Tensor, pooling: str, num_prefix_tokens: int = 0) -> Tensor:
    """Pools the tokens of each image into one float32 vector.

    Args:
        tokens: (B, T, D) floating point, class and register tokens first.
        pooling: `"mean"` of the patch tokens; `"mean+max"`, their mean and their maximum, one after the other;
            `"cls"`, token 0.
        num_prefix_tokens: how many tokens stand before the patches, below T.

    Returns:
        (B, D), or (B, 2 * D) for `"mean+max"`.

    Raises:
        ValueError: `pooling` is none of these.
    """
    if pooling == "cls":
        return tokens[:, 0].float()
    patches = tokens[:, num_prefix_tokens:].float()
    if pooling == "mean":
        return patches.mean(dim=1)
    if pooling == "mean+max":
        return torch.cat([patches.mean(dim=1), patches.amax(dim=1)], dim=1)
    raise ValueError(f"pooling is {pooling!r}; expected 'mean', 'mean+max' or 'cls'.")


def check_images(images: Tensor) -> None:
    """Raises unless `images` are uint8 (N, C, H, W).

    Raises:
        TypeError: the images are not uint8.
        ValueError: the shape is another.
    """
    if images.dtype != torch.uint8:
        raise TypeError(
            f"The images have dtype {images.dtype}; expected torch.uint8 in 0 .. 255. Pass the stored images, and put "
            "the normalisation into preprocess."
        )
    if images.ndim != 4:
        raise ValueError(f"The images have the shape {tuple(images.shape)}; expected (N, C, H, W), channels first.")


# ---- a data set, through the cache ----


class FeatureSet(Mapping[str, Tensor]):
    """Features of n images in the order of their data set: a mapping from feature kind to float32 (n, D).

    A kind is read from the disk when it is first asked for, so memory holds only the kinds in use.

    Attributes:
        table: the `datasets.Dataset` that the features are read from, with the columns `row`, one per feature kind
            and, if the images have labels, `label`.
        key: names the encoder's weights, the images, their labels, the kinds and the precision.
    """

    def __init__(self, table: datasets.Dataset, key: str = "") -> None:
        self.table, self.key = table, key
        self._tensors: dict[str, Tensor] = {}

    def __len__(self) -> int:
        """n, the number of images."""
        return len(self.table)

    def __iter__(self) -> Iterator[str]:
        return (name for name in self.table.column_names if name not in (_ROW, _LABEL))

    def __getitem__(self, kind: str) -> Tensor:
        """float32 (n, D); a KeyError for a kind that was not extracted."""
        if kind not in list(self):
            raise KeyError(f"{kind!r} is not among the features extracted: {', '.join(map(repr, self))}.")
        return self._column(kind)

    def __repr__(self) -> str:
        return f"FeatureSet({len(self)} images, {', '.join(self)}{'' if self.labels is None else ', labels'})"

    # Mapping compares items, and tensors have no single truth value.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def rows(self) -> Tensor:
        """int64 (n,): the row of the data set that each image came from; undecodable images are missing."""
        return self._column(_ROW)

    @property
    def labels(self) -> Tensor | None:
        """(n,): int64 classes or counts, or float32; None if the images have no labels."""
        return self._column(_LABEL) if _LABEL in self.table.column_names else None

    def require_labels(self) -> Tensor:
        """The labels.

        Raises:
            ValueError: there are none.
        """
        if self.labels is None:
            raise ValueError(
                "The features have no labels, but this evaluation needs them. Name the column with label_column when "
                "loading the images."
            )
        return self.labels

    def _column(self, name: str) -> Tensor:
        if name not in self._tensors:
            chunks = self.table.data.column(name).chunks
            lists = pa.types.is_fixed_size_list(chunks[0].type)
            # Concatenating copies, so that writing to the tensor cannot reach the cache.
            values = np.concatenate([(chunk.flatten() if lists else chunk).to_numpy() for chunk in chunks])
            self._tensors[name] = torch.from_numpy(values).view(len(self), -1) if lists else torch.from_numpy(values)
        return self._tensors[name]


def extract_feature_set(
    encoder: VisionEncoder,
    dataset: datasets.Dataset,
    *,
    kinds: str | Sequence[str] = ("last/mean",),
    batch_size: int | None = None,
    mixed_precision: str = "no",
    accelerator: Accelerator | None = None,
    cache_dir: str | Path | None = None,
    max_bad_fraction: float = 0.01,
    progress: bool = True,
) -> FeatureSet:
    """Extracts features of a data set in one pass and keeps them for the next time.

    Memory does not grow with the data set: `Dataset.map` holds one batch of pixels, and features go to Arrow files of
    4,096 images each in `cache_dir/KEY`. A file is complete or absent; those that are there are never made again, so
    an interrupted extraction goes on where it stopped. The key is a hash of [`VisionEncoder.fingerprint`], of the
    encoded images and their labels, of the kinds and of the precision. It does not depend on paths, so the same
    images elsewhere find the same features, and one changed weight or pixel does not. Images are resized to the
    encoder's size as in pre-training.

    With an `accelerator`, its processes take the files in turn, with the batches of a single process, so the features
    do not depend on their number. All processes need to see `cache_dir`.

    Args:
        encoder: of [`load_encoder`]; it is moved to the accelerator's device for the time of the call.
        dataset: with the column `image` and, optionally, `label`: classes, integers, booleans or floats (see
            [`load_image_dataset`]).
        kinds: of [`VisionEncoder.kinds`], all from the same pass.
        batch_size: images of a forward pass; by default 512, on a CPU 64.
        mixed_precision: `"no"`, `"bf16"` or `"fp16"`: autocast of the forward pass. Pooling is in float32.
        accelerator: gives the device, and the processes that share the work.
        cache_dir: where features are kept; None keeps nothing.
        max_bad_fraction: the most undecodable images allowed, as a fraction of all. They are left out of the result
            and counted in a warning.
        progress: whether the main process shows a bar.

    Returns:
        The features, the same in every process.

    Raises:
        TypeError: the data set or its labels are of another type.
        ValueError: an empty data set, unknown kinds, labels that are missing or out of range, features that are NaN
            or infinite, several processes without `cache_dir`, or another argument out of its range.
        TooManyBadImagesError: more than `max_bad_fraction` of the images cannot be decoded.
        RuntimeError: another process failed.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected at least 1.")
    if mixed_precision not in _AUTOCAST:
        raise ValueError(f"mixed_precision is {mixed_precision!r}; expected one of {', '.join(map(repr, _AUTOCAST))}.")
    if not 0 <= max_bad_fraction <= 1:
        raise ValueError(f"max_bad_fraction is {max_bad_fraction}; expected a number from 0 to 1.")
    kinds, pixel_format = encoder.check_kinds(kinds), encoder.pixel_format
    rank, count = (0, 1) if accelerator is None else (accelerator.process_index, accelerator.num_processes)
    if count > 1 and cache_dir is None:
        raise ValueError("Several processes extract features, but cache_dir is None; expected a folder that all see.")
    labels = _checked_labels(dataset)
    images = undecoded(dataset).select_columns(["image"])
    pixel_format = replace(pixel_format, open_file=row_opener(images.features["image"]))
    settings = [_FORMAT, encoder.fingerprint, _digest(dataset._fingerprint, images, labels), sorted(kinds)]
    key = hashlib.sha256(repr([*settings, mixed_precision]).encode()).hexdigest()
    device = encoder.device if accelerator is None else accelerator.device
    bad: list[int] = []

    def encode(batch: Mapping[str, list[Any]], places: list[int], start: int) -> pa.Table:
        rows = start + np.array(places)
        # Black images stand in for those that cannot be decoded, until their rows are dropped.
        pixels, good = np.zeros((len(rows), *pixel_format.shape), dtype=np.uint8), np.zeros(len(rows), dtype=bool)
        for place, decoded in enumerate(pool.map(pixel_format.try_read, batch["image"])):
            if isinstance(decoded, np.ndarray):
                pixels[place], good[place] = decoded, True
        if not good.all():
            bad.extend(rows[~good].tolist())
            _check_bad(bad, images, max_bad_fraction, pixel_format)
        with torch.autocast(device.type, _AUTOCAST[mixed_precision], enabled=mixed_precision != "no"):
            features = encoder.features(torch.from_numpy(pixels), kinds)
        columns = {_ROW: pa.array(rows[good])} | ({} if labels is None else {_LABEL: pa.array(labels[rows[good]])})
        for kind, tensor in features.items():
            values = tensor.cpu().numpy()[good]
            if wrong := non_finite_rows(torch.from_numpy(values)):
                raise ValueError(
                    f"The features {kind!r} of {encoder.name} are NaN or infinite in {len(wrong)} of {len(values)} "
                    f"images (the first is row {rows[good][wrong[0]]}). Check the weights, and mixed_precision if it "
                    "is 'fp16'."
                )
            columns[kind] = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
        bar.update(len(rows))
        return pa.table(columns)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary if cache_dir is None else cache_dir).absolute() / key
        starts = range(0, len(images), _IMAGES_PER_FILE)
        files = {start: folder / f"{start:09d}.arrow" for start in starts}
        todo = [start for start in starts[rank::count] if not files[start].is_file()]
        total = sum(min(_IMAGES_PER_FILE, len(images) - start) for start in todo)
        error = None
        try:
            with (
                nullcontext() if encoder.module is None else frozen_module(encoder.module, encoder.device, device),
                ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool,
                _no_bars_of_datasets(),
                tqdm(total=total, unit="image", desc="Extracting features", disable=rank > 0 or not progress) as bar,
            ):
                for start in todo:
                    part = images.select(range(start, min(start + _IMAGES_PER_FILE, len(images))))
                    part.map(
                        encode,
                        with_indices=True,
                        batched=True,
                        batch_size=batch_size or default_batch_size(device),
                        fn_kwargs={"start": start},
                        remove_columns=["image"],
                        cache_file_name=str(files[start]),
                        new_fingerprint=f"{key[:32]}{start:09d}",
                    )
        except Exception as raised:
            # The other processes must hear of it, or they would wait for this one.
            error = raised
        _raise_in_all(error, count)
        table = datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files.values()])
    result = FeatureSet(table, key)
    missing = np.setdiff1d(np.arange(len(images)), result.rows.numpy() if len(table) else []).tolist()
    text = _check_bad(missing, images, max_bad_fraction, pixel_format)
    if text and rank == 0:
        warnings.warn(text, stacklevel=2)
    return result


def default_batch_size(device: torch.device) -> int:
    """Images of a forward pass on `device` if the caller does not say how many.

    Few on a CPU: the activations of larger batches are mapped anew in each layer, and clearing the pages takes up to
    a third of the time (measured on ViT-Tiny and a smaller one at 32 pixels, in fp32; in bf16 less).
    """
    return 64 if device.type == "cpu" else 512


def _checked_labels(dataset: datasets.Dataset) -> np.ndarray | None:
    """int64 or float32 (n,), or None; raises for a data set or labels that features cannot be extracted with."""
    if not isinstance(dataset, datasets.Dataset):
        raise TypeError(
            f"The data set given is a {type(dataset).__name__}; expected one split as a datasets.Dataset, as "
            "load_image_dataset returns it without streaming."
        )
    if len(dataset) == 0:
        raise ValueError("The data set given is empty; expected at least one image. Check how the split was made.")
    if _LABEL not in dataset.column_names:
        return None
    feature = dataset.features[_LABEL]
    dtype = getattr(feature, "dtype", "") if isinstance(feature, (datasets.ClassLabel, datasets.Value)) else ""
    if not dtype.startswith(("int", "uint", "bool", "float")):
        raise TypeError(
            f"The labels are of type {dtype or type(feature).__name__}; expected ClassLabels, integers, booleans or "
            "floats. Turn strings into classes with class_encode_column."
        )
    column = dataset.with_format("arrow").select_columns([_LABEL])[:].column(_LABEL)
    missing = np.flatnonzero(column.is_null().to_numpy())
    if len(missing):
        raise ValueError(
            f"{len(missing)} of the {len(column)} images have no label (the first is row {missing[0]}); expected "
            "labels for all or none. Filter these rows out, or remove the column."
        )
    labels = column.to_numpy().astype(np.float32 if dtype.startswith("float") else np.int64)
    wrong, expected = ~np.isfinite(labels), "a finite number"
    if isinstance(feature, datasets.ClassLabel):
        wrong, expected = (labels < 0) | (labels >= feature.num_classes), f"0 to {feature.num_classes - 1}"
    if wrong.any():
        raise ValueError(
            f"The label of row {wrong.argmax()} is {labels[wrong.argmax()]}; expected {expected}. Filter such rows "
            "out, or remove the column if the images have no labels."
        )
    return labels


def _digest(fingerprint: str, images: datasets.Dataset, labels: np.ndarray | None) -> str:
    """SHA-256 of the encoded images and their labels; an image file is known by what it holds, not by its path."""
    if fingerprint not in _DIGESTS:
        digest = hashlib.sha256(b"" if labels is None else labels.tobytes())
        opener = row_opener(images.features["image"])
        for image in (image for batch in images.iter(256) for image in batch["image"]):
            content = encoded_bytes(image, opener)
            if content is None:
                # What cannot be read stands for itself.
                content = str((image or {}).get("path")).encode()
            digest.update(len(content).to_bytes(8, "little") + content)
        _DIGESTS[fingerprint] = digest.hexdigest()
    return _DIGESTS[fingerprint]


def _check_bad(
    rows: Sequence[int], images: datasets.Dataset, max_bad_fraction: float, pixel_format: PixelFormat
) -> str:
    """A sentence on the undecodable images `rows`, empty if there are none; raises if they are too many."""
    if not rows:
        return ""
    first = "; ".join(f"row {row}: {pixel_format.try_read(images[row]['image'])}" for row in rows[:3])
    if len(rows) > max_bad_fraction * len(images) or len(rows) == len(images):
        raise TooManyBadImagesError(
            f"At least {len(rows)} of the {len(images)} images could not be decoded; expected at most "
            f"{max_bad_fraction:.1%} (max_bad_fraction). Mend the data set or allow more. The first: {first}"
        )
    return f"{len(rows)} of {len(images)} images could not be decoded and were left out. The first: {first}"


def _raise_in_all(error: Exception | None, num_processes: int) -> None:
    """Waits for all processes, and raises in all of them if one has failed."""
    errors = [error and f"{type(error).__name__}: {error}"]
    if num_processes > 1:
        from accelerate.utils import gather_object

        errors = gather_object(errors)
    if error is not None:
        raise error
    if any(errors):
        raise RuntimeError(f"Another process could not extract its features ({next(filter(None, errors))}).")


@contextmanager
def _no_bars_of_datasets() -> Iterator[None]:
    """One bar for all files instead of one of `map` for each."""
    were_shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_shown:
            datasets.enable_progress_bars()


@contextmanager
def frozen_module(model: nn.Module, home: torch.device, target: torch.device) -> Iterator[None]:
    """Evaluation mode on `target`; afterwards `model` is on `home`, each submodule's training flag as before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        if target != home:
            model.to(target)
        yield
    finally:
        if target != home:
            model.to(home)
        # Set per module: model.train(mode) would overwrite submodules that were frozen on purpose.
        for module, training in modes:
            module.training = training


def preserved_rng(device: torch.device) -> AbstractContextManager[None]:
    """Afterwards torch's global random state, on the CPU and on `device`, is as before."""
    if device.type != "cuda":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[torch.cuda.current_device() if device.index is None else device.index])
