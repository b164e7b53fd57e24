# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What a run watches: loss parts, the spread and rank of the features, the sparsity of W, throughput, kNN."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.utils import logging

from ..evaluation import extract_features, feature_std, knn_accuracy, rankme
from ..modeling_sparsejepa import SparseJEPAForPreTrainingOutput
from .arguments import SparseJEPATrainingArguments
from .callbacks import unwrap
from .proximal import kkt_residual


logger = logging.get_logger(__name__)

COLLAPSE_ADVICE = (
    "The features no longer depend on the images. Try a faster target encoder (lower ema_momentum, such as 0.99 for a "
    "short run), a smaller learning_rate, longer kl_warmup_steps and sparsity_warmup_steps, or smaller kl_weight and "
    "sparsity_weight."
)


_MIN_IMAGES_FOR_RANK = 16
# Images decoded at a time.
_CHUNK = 512


class NonFiniteLossError(FloatingPointError):
    """The training loss became NaN or infinite."""


class LossMeter:
    """Sums of loss parts on the device; nothing is synchronised until they are read."""

    PARTS = ("prediction_loss", "kl_loss", "sparsity_loss")

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._count = 0

    def add(self, outputs: SparseJEPAForPreTrainingOutput) -> None:
        parts = torch.stack([outputs[name].detach().float() for name in self.PARTS])
        self._sums = parts if self._sums is None else self._sums + parts
        self._count += 1

    def take_means(self, average: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means since the last call; `average` reduces a tensor over processes."""
        if self._sums is None:
            return {}
        means = average(self._sums / self._count).tolist()
        self._sums, self._count = None, 0
        return dict(zip(self.PARTS, means, strict=True))


class FeatureWindow:
    """The target encoder's pooled features of the most recent images, for RankMe and the collapse check."""

    def __init__(self, num_samples: int) -> None:
        self._num_samples = num_samples
        self._pooled: deque[Tensor] = deque()
        self._held = 0
        self._spread: Tensor | None = None

    def add(self, outputs: SparseJEPAForPreTrainingOutput) -> None:
        # Nothing is kept of the outputs themselves: a CUDA graph writes the next step's into the same memory.
        self._spread = _target_std(outputs.last_hidden_state) if len(outputs.last_hidden_state) > 1 else None
        self._pooled.append(outputs.pooler_output.detach().to(torch.float32, copy=True))
        self._held += len(self._pooled[-1])
        while self._held - len(self._pooled[0]) >= self._num_samples:
            self._held -= len(self._pooled.popleft())

    @property
    def num_images(self) -> int:
        """How many images the window holds on this process."""
        return self._held

    def statistics(self, average: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """`target_std`: standard deviation over the last batch's images of each patch's normalised target, averaged
        over patches and dimensions: 0 if all images look alike to the encoder, at most 1. `rankme`: effective rank of
        the window's pooled features."""
        if self._spread is None:
            return {}
        values = torch.stack([self._spread, rankme(torch.cat(list(self._pooled)))])
        std, rank = average(values).tolist()
        return {"target_std": std, "rankme": rank}


def _target_std(hidden_states: Tensor) -> Tensor:
    """Mean over patches and dimensions of the targets' standard deviation over images, of (B >= 2, N, D): ()."""
    targets = F.layer_norm(hidden_states.detach().float(), hidden_states.shape[-1:])
    return feature_std(targets.flatten(1))


def group_weight_statistics(group_weight: Tensor) -> dict[str, float]:
    """How sparse W (G, p, K) is. A latent lives if it belongs to a group: if one of its columns is not zero.

    `zero_columns`: share of the G·K columns that are exactly zero. `groups_per_living_latent`: groups that a living
    latent belongs to, on average. `selectivity`: 1 − H/log G, with H the entropy of a living latent's column norms
    over the groups, on average: 0 if it is in all groups alike, 1 if it is in one. `dead_latents`, `dead_groups`: how
    many belong to none, hold none. `mean_column_norm`: over all columns.
    """
    norms = torch.linalg.vector_norm(group_weight.detach().float(), dim=1)
    held = norms > 0
    living = held.any(dim=0)
    num_living = living.sum().clamp_min(1)
    shares = norms / norms.sum(dim=0).clamp_min(torch.finfo(norms.dtype).tiny)
    entropy = torch.special.entr(shares).sum(dim=0) / math.log(max(2, len(norms)))
    values = torch.stack(
        [
            (~held).float().mean(),
            held.sum() / num_living,
            ((1.0 - entropy) * living).sum() / num_living,
            (~living).float().sum(),
            (~held.any(dim=1)).float().sum(),
            norms.mean(),
        ]
    ).tolist()
    names = ("zero_columns", "groups_per_living_latent", "selectivity", "dead_latents", "dead_groups")
    return dict(zip((*names, "mean_column_norm"), values, strict=True))


def generator_statistics(*weights: Tensor) -> dict[str, float]:
    """`generator_norm`: of all weights of the generators f_g. If it grows while W shrinks, f_g undoes the lasso."""
    return {"generator_norm": float(torch.stack(torch._foreach_norm([w.detach().float() for w in weights])).norm())}


def optimality_statistics(group_weight: Tensor, average_gradient: Tensor, sparsity_weight: float) -> dict[str, float]:
    """How near W is to the group lasso's optimum, by the running average of its gradient.

    `group_gradient_norm`: the median column's ‖ḡ‖₂, the scale that λ is on. `kkt_residual_zero`,
    `kkt_residual_nonzero`: mean [`kkt_residual`] of the columns that are zero, that are not; 0 where there are none.
    """
    residual = kkt_residual(group_weight.detach(), average_gradient, sparsity_weight)
    zero = torch.linalg.vector_norm(group_weight.detach(), dim=1) == 0
    values = [torch.linalg.vector_norm(average_gradient, dim=1).median()]
    values += [(residual * kind).sum() / kind.sum().clamp_min(1) for kind in (zero, ~zero)]
    names = ("group_gradient_norm", "kkt_residual_zero", "kkt_residual_nonzero")
    return dict(zip(names, torch.stack(values).tolist(), strict=True))


class Throughput:
    """Images a second of training, over all processes; time spent in monitors does not count."""

    def __init__(self) -> None:
        self._images = 0
        self._since = time.perf_counter()
        self._paused_at: float | None = None

    def add(self, images: int) -> None:
        self._images += images

    def pause(self) -> None:
        self._paused_at = time.perf_counter()

    def resume(self) -> None:
        if self._paused_at is not None:
            self._since += time.perf_counter() - self._paused_at
            self._paused_at = None

    def take(self) -> dict[str, float]:
        now = time.perf_counter()
        rate = self._images / max(now - self._since, 1e-9)
        self._images, self._since = 0, now
        return {"images_per_second": rate}


class CollapseGuard:
    """Warns, or stops the run, when the features' spread or rank falls under its floor."""

    def __init__(self, args: SparseJEPATrainingArguments) -> None:
        self._floors = {"target_std": args.collapse_min_std, "rankme": args.collapse_min_rank}
        self._stop = args.collapse_action == "stop"
        self._warned = False

    def check(self, statistics: dict[str, float], step: int, num_images: int | None = None) -> bool:
        """True if the run should stop. `num_images`: how many the statistics come from, if known."""
        floors = dict(self._floors)
        if num_images is not None and num_images < _MIN_IMAGES_FOR_RANK:
            # The rank of so few images is low whatever they look like.
            del floors["rankme"]
        low = [name for name, floor in floors.items() if statistics.get(name, floor) < floor]
        if not low:
            self._warned = False
            return False
        if not self._warned:
            found = ", ".join(f"{name} is {statistics[name]:.4g}, its floor {self._floors[name]:g}" for name in low)
            ending = "The run stops here." if self._stop else "The run goes on."
            logger.warning(f"Collapse at step {step}: {found}. {COLLAPSE_ADVICE} {ending}")
            self._warned = True
        return self._stop


class KNNMonitor(TrainerCallback):
    """Weighted kNN accuracy of the target encoder's features on a labelled held-out set, every `knn_steps`.

    Args:
        bank: data set whose labelled images vote; at most `knn_max_examples` of them are used.
        heldout: data set whose images are classified.
        preprocess: uint8 batch -> the model's input.
        log: where the result goes, `Trainer.log`.
        throughput: paused meanwhile.
    """

    def __init__(
        self,
        bank: Dataset,
        heldout: Dataset,
        preprocess: Callable[[Tensor], Tensor],
        log: Callable[[dict[str, float]], None],
        throughput: Throughput,
    ) -> None:
        self._bank, self._heldout = bank, heldout
        self._preprocess, self._log, self._throughput = preprocess, log, throughput

    def on_train_begin(
        self,
        args: SparseJEPATrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        **kwargs: Any,
    ) -> None:
        self._bank_images, self._bank_labels = labelled_images(self._bank, args.knn_max_examples)
        self._images, self._labels = labelled_images(self._heldout, args.knn_max_examples)
        if state.global_step == 0:
            self._measure(args, model)

    def on_step_end(
        self,
        args: SparseJEPATrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        **kwargs: Any,
    ) -> None:
        if state.global_step % args.knn_steps == 0 or state.global_step >= state.max_steps:
            should_log = control.should_log
            self._measure(args, model)
            # Logging the accuracy clears the wish; the step's own losses are still to be logged.
            control.should_log = should_log

    def _measure(self, args: SparseJEPATrainingArguments, model: nn.Module) -> None:
        self._throughput.pause()
        encoder = unwrap(model).sparsejepa
        bank, heldout = (
            extract_features(encoder, images, preprocess=self._preprocess)
            for images in (self._bank_images, self._images)
        )
        k = min(args.knn_k, len(bank))
        # It is computed where the bank lies.
        bank = bank.to(comparison_device(args.device))
        with full_float32():
            accuracy = knn_accuracy(bank, self._bank_labels, heldout, self._labels, k=k)
        self._log({"knn_accuracy": accuracy})
        self._throughput.resume()


def comparison_device(device: torch.device) -> torch.device:
    """Where features are compared: on the training device if it is CUDA's; others may lack float64 or eigenvectors."""
    return device if device.type == "cuda" else torch.device("cpu")


@contextmanager
def full_float32() -> Iterator[None]:
    """Products in float32 keep its precision here, also on a GPU where training rounds them to TF32."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if before == "tf32":
        matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        # Set only where it was changed: a value of its own no longer follows the global one.
        if before == "tf32":
            matmul.fp32_precision = before


def labelled_images(dataset: Dataset, limit: int) -> tuple[Tensor, Tensor]:
    """At most `limit` images (n, 3, S, S) uint8 and labels (n,), evenly spaced over the data set.

    Raises:
        ValueError: if examples have no `labels`.
    """
    count = min(limit, len(dataset))
    # float32 would round the last index beyond the end of a data set of 2**24 examples or more.
    indices = torch.linspace(0, len(dataset) - 1, count, dtype=torch.float64).round().long()
    chunks = [_labelled_chunk(dataset, chunk.tolist()) for chunk in indices.split(_CHUNK)]
    images, labels = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    if not len(images):
        raise ValueError("The kNN monitor's data set has no labelled image: all its labels are -1.")
    return images, labels


def _labelled_chunk(dataset: Dataset, indices: list[int]) -> tuple[Tensor, Tensor]:
    examples = dataset.__getitems__(indices) if hasattr(dataset, "__getitems__") else [dataset[i] for i in indices]
    if not examples or "labels" not in examples[0]:
        keys = sorted(examples[0]) if examples else "no examples"
        raise ValueError(f"The kNN monitor needs examples with 'pixel_values' and 'labels'; the data set has {keys}.")
    images = torch.stack([torch.as_tensor(example["pixel_values"]) for example in examples])
    labels = torch.tensor([int(example["labels"]) for example in examples])
    # A label of -1 means that the data set has none for this image.
    return images[labels >= 0], labels[labels >= 0]
