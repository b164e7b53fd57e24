# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Frozen features: one vector per image from a vision model, and the raw-pixel baseline."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from .metrics import non_finite_rows


# Side that larger images are brought to before their raw pixels serve as features.
MAX_PIXEL_SIDE = 32
_POOLINGS = ("mean", "cls")
_PIXEL_CHUNK = 512


def default_batch_size(device: torch.device) -> int:
    """Images of a forward pass on `device` where the caller does not say how many.

    Few on a CPU: the activations of larger batches are mapped anew in each layer, and clearing the pages takes up to
    a third of the time (measured on ViT-Tiny and a smaller one at 32 pixels, in fp32; in bf16 less).
    """
    return 64 if device.type == "cpu" else 512


def extract_features(
    model: nn.Module,
    pixel_values: Tensor | Dataset,
    *,
    batch_size: int | None = None,
    preprocess: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | str | None = None,
    pooling: str = "mean",
) -> Tensor:
    """Run a frozen vision model over images and pool its tokens into one vector per image.

    The model runs in eval and inference mode. On return, and on error, the training flag of every submodule, the
    model's device and torch's global random state (CPU, and CUDA on the device used) are as they were.

    Args:
        model: any module called as ``model(pixel_values=x)`` whose output has ``last_hidden_state`` of shape
            ``(B, tokens, D)``.
        pixel_values: uint8 images ``(N, 3, S, S)`` in 0 .. 255, or a map-style dataset of
            ``{"pixel_values": uint8 (3, S, S)}``. Other keys of an item are ignored. The order is kept.
        batch_size: images per forward pass; by default 512, on a CPU 64.
        preprocess: maps a uint8 batch ``(B, 3, S, S)``, already on the device, to the model's floating-point input.
            By default pixels are divided by 255, without normalisation.
        device: where to run; by default where the model's first parameter is.
        pooling: ``"mean"`` averages all tokens, as I-JEPA's evaluation does (Assran et al., arXiv 2301.08243), a
            class token included where the model has one; ``"cls"`` takes token 0 and fits only models that have a
            class token.

    Returns:
        ``(N, D)`` float32 features on the CPU.

    Raises:
        TypeError: the images are not uint8, or the model's output has no ``last_hidden_state``.
        ValueError: a shape, ``batch_size`` or ``pooling`` is invalid, there are no images, or a feature is NaN or
            infinite.
    """
    _check_arguments(pixel_values, batch_size, pooling)
    parameter = next(model.parameters(), None)
    home = torch.device("cpu") if parameter is None else parameter.device
    dtype = torch.float32 if parameter is None else parameter.dtype
    target = home if device is None else torch.device(device)

    # The caller's buffer is allocated outside inference mode, so that it can later take part in autograd.
    features: Tensor | None = None
    start = 0
    with frozen_module(model, home, target), preserved_rng(target):
        for images in _batches(pixel_values, batch_size or default_batch_size(target)):
            with torch.inference_mode():
                pooled = _pooled_batch(model, images.to(target), preprocess, dtype, pooling)
            if features is None:
                features = torch.empty(len(pixel_values), pooled.shape[1], dtype=torch.float32)
            features[start : start + len(pooled)] = pooled
            start += len(pooled)
    assert features is not None
    _check_finite(features)
    return features


def pixel_features(pixel_values: Tensor) -> Tensor:
    """Flatten images into raw-pixel features, the baseline a learned representation has to beat.

    Args:
        pixel_values: uint8 images ``(N, 3, S, S)`` in 0 .. 255.

    Returns:
        ``(N, 3 * S * S)`` float32 features in [0, 1], on the images' device.

    Raises:
        TypeError: the images are not uint8.
        ValueError: the shape is not ``(N, 3, S, S)``.
    """
    check_images(pixel_values)
    return pixel_values.flatten(1).float() / 255


def small_pixel_features(pixel_values: Tensor) -> Tensor:
    """[`pixel_features`] of images that are brought to 32 x 32 first, by the mean over areas, where they are larger.

    Args:
        pixel_values: uint8 images ``(N, 3, S, S)`` in 0 .. 255.

    Returns:
        ``(N, 3 * min(S, 32)**2)`` float32 features in [0, 1], in steps of 1/255, on the images' device.

    Raises:
        TypeError: the images are not uint8.
        ValueError: the shape is not ``(N, 3, S, S)``.
    """
    check_images(pixel_values)
    if pixel_values.shape[-1] <= MAX_PIXEL_SIDE:
        return pixel_features(pixel_values)
    size = (MAX_PIXEL_SIDE, MAX_PIXEL_SIDE)
    chunks = (
        F.interpolate(chunk.float(), size=size, mode="area").round().byte()
        for chunk in pixel_values.split(_PIXEL_CHUNK)
    )
    return pixel_features(torch.cat(list(chunks)))


def pool_tokens(tokens: Tensor, pooling: str, num_prefix_tokens: int = 0) -> Tensor:
    """Pools the tokens ``(B, T, D)`` of each image into one float32 vector.

    Args:
        tokens: ``(B, T, D)`` floating point, class and register tokens first.
        pooling: ``"mean"`` of the patch tokens; ``"mean+max"``, their mean and their maximum, one after the other;
            ``"cls"``, token 0.
        num_prefix_tokens: how many tokens stand before the patches, below T.

    Returns:
        ``(B, D)``, or ``(B, 2 * D)`` for ``"mean+max"``.

    Raises:
        ValueError: ``pooling`` is none of these.
    """
    if pooling == "cls":
        return tokens[:, 0].float()
    patches = tokens[:, num_prefix_tokens:].float()
    if pooling == "mean":
        return patches.mean(dim=1)
    if pooling == "mean+max":
        return torch.cat([patches.mean(dim=1), patches.amax(dim=1)], dim=1)
    raise ValueError(f"pooling is {pooling!r}, but 'mean', 'mean+max' or 'cls' is expected. Pass one of them.")


def _check_arguments(pixel_values: Tensor | Dataset, batch_size: int | None, pooling: str) -> None:
    if pooling not in _POOLINGS:
        raise ValueError(f"pooling is {pooling!r}, but one of {_POOLINGS} is expected. Pass one of them.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, but at least 1 is expected. Pass a positive batch_size.")
    if isinstance(pixel_values, Tensor):
        check_images(pixel_values)
    elif not hasattr(pixel_values, "__len__"):
        raise TypeError(
            f"pixel_values is a {type(pixel_values).__name__} without a length, but a uint8 tensor or a map-style "
            "dataset is expected. Collect an iterable dataset into a tensor first."
        )
    if len(pixel_values) == 0:
        raise ValueError("pixel_values holds no image, but at least one is expected. Check how the split was made.")


def check_images(images: Tensor) -> None:
    """Raise unless ``images`` are square uint8 RGB ``(N, 3, S, S)``.

    Raises:
        TypeError: the images are not uint8.
        ValueError: the shape is another.
    """
    if images.dtype != torch.uint8:
        raise TypeError(
            f"pixel_values has dtype {images.dtype}, but torch.uint8 in 0 .. 255 is expected. "
            "Pass the stored images and put the normalisation into preprocess."
        )
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise ValueError(
            f"pixel_values has shape {tuple(images.shape)}, but (N, 3, S, S) is expected. "
            "Stack square RGB images with the channels first."
        )


def _batches(pixel_values: Tensor | Dataset, batch_size: int) -> Iterator[Tensor]:
    if isinstance(pixel_values, Tensor):
        yield from pixel_values.split(batch_size)
        return
    # A DataLoader would draw its base seed from the global random state, so items are stacked here.
    for start in range(0, len(pixel_values), batch_size):
        stop = min(start + batch_size, len(pixel_values))
        images = torch.stack([pixel_values[index]["pixel_values"] for index in range(start, stop)])
        check_images(images)
        yield images


def _pooled_batch(
    model: nn.Module,
    images: Tensor,
    preprocess: Callable[[Tensor], Tensor] | None,
    dtype: torch.dtype,
    pooling: str,
) -> Tensor:
    inputs = images.float() / 255 if preprocess is None else preprocess(images)
    tokens = getattr(model(pixel_values=inputs.to(dtype)), "last_hidden_state", None)
    if tokens is None:
        raise TypeError(
            f"The output of {type(model).__name__} has no last_hidden_state, but (B, tokens, D) hidden states are "
            "expected under that name. Pass the encoder rather than a model with a task head."
        )
    if tokens.ndim != 3 or tokens.shape[0] != images.shape[0]:
        raise ValueError(
            f"last_hidden_state has shape {tuple(tokens.shape)} for {images.shape[0]} images, but (B, tokens, D) is "
            "expected. Wrap models with another layout so that they return one token per row."
        )
    return tokens[:, 0].float() if pooling == "cls" else tokens.float().mean(dim=1)


def _check_finite(features: Tensor) -> None:
    bad = non_finite_rows(features)
    if bad:
        raise ValueError(
            f"The model gave NaN or infinite features for {len(bad)} of {len(features)} images (the first is image "
            f"{bad[0]}), but finite features are expected. Check the model's weights, its dtype and preprocess."
        )


@contextmanager
def frozen_module(model: nn.Module, home: torch.device, target: torch.device) -> Iterator[None]:
    """Evaluation mode on ``target``; afterwards ``model`` is on ``home``, each submodule's training flag as before."""
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
    """Afterwards torch's global random state, on the CPU and on ``device``, is as before."""
    if device.type != "cuda":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[torch.cuda.current_device() if device.index is None else device.index])
