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
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.utils import ModelOutput, logging

from ..data import collate_images
from ..evaluation import extract_features, feature_std, knn_accuracy, rankme
from ..modeling_sparsejepa import SparseJEPAGrouping
from .arguments import SparseJEPATrainingArguments as Arguments
from .callbacks import LossWeights, TrainingCallback, unwrap
from .ema import full_tensor
from .processes import whole_encoder
from .proximal import AVERAGE_GRADIENT, kkt_residual


logger = logging.get_logger(__name__)

COLLAPSE_ADVICE = (
    "The features no longer depend on the images. Try a faster target encoder (lower ema_momentum, such as 0.99 for a "
    "short run), a smaller learning_rate, longer kl_warmup_steps and sparsity_warmup_steps, or smaller kl_weight and "
    "sparsity_weight. If it is so from the first log on, look at the images: they may be all alike."
)
DIVERGENCE_ADVICE = (
    "A prediction of zero costs less than 1. Start again with a smaller learning_rate or weight_decay, a longer "
    "warmup_steps, or max_grad_norm=1.0."
)
EMPTY_GROUPS_ADVICE = (
    "So no group can tell images apart. Start again with a smaller sparsity_weight, below the gradient's norm, or a "
    "longer sparsity_warmup_steps."
)
POSTERIOR_COLLAPSE_ADVICE = (
    "So the latents are noise and tell nothing of the image. Start again with a smaller kl_weight, or a longer "
    "kl_warmup_steps."
)
# Fewer images have a low rank whatever they look like.
_MIN_IMAGES = 16
# Share of the latents. Healthy runs keep most of them, and runs with ten times the λ of theirs a third.
_MIN_LIVING = 0.1
# Nats a latent. It begins with 0.57; healthy runs have about 1 and more.
_MIN_KL = 0.01
# Of targets whose variance is 1. Healthy runs stay below 1.
_MAX_PREDICTION_LOSS = 10.0
# A regulariser's part of the loss, in prediction losses. Healthy runs stay below 2.
_MAX_SHARE = 10.0
# Images decoded at a time.
_CHUNK = 512


class LossParts(TrainingCallback):
    """Means of the loss parts. They are summed on the device; nothing is synchronised until they are read."""

    PARTS = ("prediction_loss", "kl_loss", "sparsity_loss")

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._last: Tensor | None = None
        self._count = 0

    def on_train_begin(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # What a batch that was too large left behind.
        self._sums, self._last, self._count = None, None, 0

    def on_outputs(self, outputs: ModelOutput) -> None:
        parts = torch.stack([outputs[name].detach().float() for name in self.PARTS])
        self._sums = parts if self._sums is None else self._sums + parts
        self._last = parts if self._last is None else torch.where(self._last.isfinite().all(), parts, self._last)
        self._count += 1

    def last(self) -> dict[str, Tensor]:
        """Each part of the last batch of this process, or of the first one where a part was not finite; on the
        device."""
        return {} if self._last is None else dict(zip(self.PARTS, self._last, strict=True))

    def metrics(self, average: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The mean of each part since the last call."""
        if self._sums is None:
            return {}
        means = average(self._sums / self._count).tolist()
        self._sums, self._count = None, 0
        return dict(zip(self.PARTS, means, strict=True))


class FeatureMonitor(TrainingCallback):
    """Spread and rank of the target encoder's features of the most recent images.

    Args:
        num_samples: RankMe is computed on the last batches that hold this many images, on each process.
    """

    def __init__(self, num_samples: int) -> None:
        self._num_samples = num_samples
        self._pooled: deque[Tensor] = deque()
        self._targets: deque[Tensor] = deque()
        self._spread: Tensor | None = None

    def on_train_begin(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._pooled.clear()
        self._targets.clear()
        self._spread = None

    @property
    def num_images(self) -> int:
        """How many images the rank is computed on, on each process."""
        return sum(map(len, self._pooled))

    def on_outputs(self, outputs: ModelOutput) -> None:
        _append(self._pooled, outputs.pooler_output.detach().to(torch.float32, copy=True), self._num_samples)
        targets = _normalised(outputs.last_hidden_state)
        if len(targets) > 1:
            # The batch is not kept, since it may be large.
            self._spread = feature_std(targets.flatten(1))
            self._targets.clear()
        else:
            self._spread = None
            _append(self._targets, targets, _MIN_IMAGES)

    def metrics(self, average: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """`target_std`: standard deviation over images of each patch's normalised target, averaged over patches and
        dimensions: 0 if all images look alike to the encoder, at most 1. The images are those of the last batch, or,
        where a batch is one image, the last 16. `rankme`: effective rank of the pooled features."""
        spread = self._spread
        if spread is None:
            if len(self._targets) < 2:
                return {}
            spread = feature_std(torch.cat(list(self._targets)).flatten(1))
        std, rank = average(torch.stack([spread, rankme(torch.cat(list(self._pooled)))])).tolist()
        return {"target_std": std, "rankme": rank}


def _append(window: deque[Tensor], batch: Tensor, num_images: int) -> None:
    """Keeps the fewest last batches that hold `num_images`, or all while there are fewer."""
    window.append(batch)
    while sum(map(len, window)) - len(window[0]) >= num_images:
        window.popleft()


def _normalised(hidden_states: Tensor) -> Tensor:
    """The targets (B, N, D) that the hidden states make, in memory of their own."""
    return F.layer_norm(hidden_states.detach().float(), hidden_states.shape[-1:])


class CollapseGuard(TrainerCallback):
    """Warns, or stops the run, when what is logged shows that features, groups or latents carry nothing of the image.

    λ and β are judged once their warm-ups are over.

    Args:
        args: the floors of spread and rank, and what to do.
        features: where the logged spread and rank come from.
        loss_weights: λ and β of the step, and the model's configuration.
    """

    def __init__(self, args: Arguments, features: FeatureMonitor, loss_weights: LossWeights) -> None:
        self._args = args
        self._features = features
        self._loss_weights = loss_weights
        self._raised: set[str] = set()

    def on_train_begin(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._raised = set()

    def on_log(
        self, args: Arguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **kwargs: Any
    ) -> None:
        if "prediction_loss" not in logs:
            # What is measured between training steps.
            return
        alarms = self._features_alarm(logs) | self._divergence_alarm(logs)
        # After a collapse the prediction loss is less than any regulariser; in a divergence everything is large.
        alarms |= {} if alarms else self._regulariser_alarms(logs)
        alarms |= self._groups_alarm(logs) | self._latents_alarm(logs)
        stops = bool(alarms) and self._args.collapse_action == "stop"
        ending = "The run stops here." if stops else "The run goes on."
        for name, text in alarms.items():
            if name not in self._raised and state.is_world_process_zero:
                logger.warning(f"{name} at step {state.global_step}: {text} {ending}")
        self._raised = set(alarms)
        if stops:
            control.should_training_stop = True

    def _features_alarm(self, logs: dict[str, float]) -> dict[str, str]:
        # Read here, since the trials of a search set them anew.
        floors = {"target_std": self._args.collapse_min_std, "rankme": self._args.collapse_min_rank}
        if self._features.num_images < _MIN_IMAGES:
            floors.pop("rankme")
        low = [name for name, floor in floors.items() if name in logs and logs[name] < floor]
        found = ", ".join(f"{name} is {logs[name]:.4g}, its floor {floors[name]:g}" for name in low)
        return {"Collapse": f"{found}. {COLLAPSE_ADVICE}"} if low else {}

    def _divergence_alarm(self, logs: dict[str, float]) -> dict[str, str]:
        loss, normalises = logs["prediction_loss"], self._loss_weights.config.target_normalization == "layer_norm"
        if not normalises or loss <= _MAX_PREDICTION_LOSS:
            return {}
        return {"Divergence": f"the prediction loss is {loss:.3g}. {DIVERGENCE_ADVICE}"}

    def _regulariser_alarms(self, logs: dict[str, float]) -> dict[str, str]:
        weights, alarms = self._loss_weights, {}
        penalises = weights.config.sparsity_mode == "penalty"
        for option, part, applies in (
            ("kl_weight", "kl_loss", weights.has_full_kl),
            ("sparsity_weight", "sparsity_loss", weights.has_full_sparsity and penalises),
        ):
            share, prediction = getattr(weights, option) * logs[part], logs["prediction_loss"]
            if applies and share > _MAX_SHARE * prediction:
                alarms[f"Too large a {option}"] = (
                    f"it is {getattr(weights, option):g}, which makes {share:.3g} of the loss, and prediction "
                    f"{prediction:.3g}. Hardly anything but the regulariser is learned. Start again with {option} "
                    f"below {prediction / logs[part]:.1g}."
                )
        return alarms

    def _groups_alarm(self, logs: dict[str, float]) -> dict[str, str]:
        weights, count = self._loss_weights, self._loss_weights.config.num_latents
        dead, gradient = logs.get("dead_latents", 0.0), logs.get("group_gradient_norm")
        if not weights.has_full_sparsity or count - dead >= _MIN_LIVING * count:
            return {}
        scale = "" if gradient is None else f", and the norm of W's gradient in the median column {gradient:.2g}"
        found = (
            f"{dead:g} of {count} latents belong to no group. sparsity_weight is {weights.sparsity_weight:g}{scale}"
        )
        return {"Empty groups": f"{found}. {EMPTY_GROUPS_ADVICE}"}

    def _latents_alarm(self, logs: dict[str, float]) -> dict[str, str]:
        weights, count = self._loss_weights, self._loss_weights.config.num_latents
        if not weights.has_full_kl or logs["kl_loss"] >= _MIN_KL * count:
            return {}
        found = f"the KL is {logs['kl_loss'] / count:.2g} nats a latent, its floor {_MIN_KL}"
        advice = POSTERIOR_COLLAPSE_ADVICE
        return {"Posterior collapse": f"{found}. kl_weight is {weights.kl_weight:g}. {advice}"}


class GroupMonitor(TrainingCallback):
    """How sparse W is, and how near its optimum; nothing without grouping.

    Args:
        loss_weights: λ of the step.
    """

    def __init__(self, loss_weights: LossWeights) -> None:
        self._loss_weights = loss_weights

    def on_train_begin(
        self,
        args: Arguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module,
        optimizer: Optimizer,
        **kwargs: Any,
    ) -> None:
        self._model, self._optimizer = unwrap(model), optimizer
        # The parameter, or the shard, that the optimizer steps.
        self._weight = self._model.group_weight

    def metrics(self, average: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """[`group_weight_statistics`], [`generator_norm`] and, in proximal mode, [`optimality_statistics`]."""
        grouping = self._model.sparsejepa.predictor.grouping
        if grouping is None:
            return {}
        assert isinstance(grouping, SparseJEPAGrouping) and self._weight is not None
        weight = full_tensor(self._weight)
        generators = (full_tensor(grouping.generator_in_weight), full_tensor(grouping.generator_out_weight))
        metrics = {**group_weight_statistics(weight), "generator_norm": generator_norm(*generators)}
        gradient = self._optimizer.state.get(self._weight, {}).get(AVERAGE_GRADIENT)
        if gradient is not None:
            metrics |= optimality_statistics(weight, full_tensor(gradient), self._loss_weights.sparsity_weight)
        return metrics


def group_weight_statistics(group_weight: Tensor) -> dict[str, float]:
    """How sparse W (G, p, K) is. A latent lives if it belongs to a group: if one of its columns is not zero.

    `zero_columns`: share of the G·K columns that are exactly zero. `groups_per_living_latent`: groups that a living
    latent belongs to, on average. `selectivity`: 1 − H/log G, with H the entropy of a living latent's column norms
    over the groups, on average: 0 if it is in all groups alike, 1 if it is in one. `dead_latents`: how many latents
    belong to no group. `dead_groups`: how many groups hold no latent. `mean_column_norm`: over all columns.
    """
    norms = torch.linalg.vector_norm(group_weight.detach().float(), dim=1)
    held = norms > 0
    living = held.any(dim=0)
    num_living = living.sum().clamp_min(1)
    shares = norms / norms.sum(dim=0).clamp_min(torch.finfo(norms.dtype).tiny)
    entropy = torch.special.entr(shares).sum(dim=0) / math.log(max(2, len(norms)))
    values = {
        "zero_columns": (~held).float().mean(),
        "groups_per_living_latent": held.sum() / num_living,
        "selectivity": ((1.0 - entropy) * living).sum() / num_living,
        "dead_latents": (~living).float().sum(),
        "dead_groups": (~held.any(dim=1)).float().sum(),
        "mean_column_norm": norms.mean(),
    }
    # Read at once: each reading would wait for the device.
    return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))


def generator_norm(*weights: Tensor) -> float:
    """Norm of all weights of the generators f_g. If it grows while W shrinks, f_g undoes the lasso."""
    return float(torch.stack(torch._foreach_norm([w.detach().float() for w in weights])).norm())


def optimality_statistics(group_weight: Tensor, average_gradient: Tensor, sparsity_weight: float) -> dict[str, float]:
    """How near W is to the group lasso's optimum, by the running average of its gradient.

    `group_gradient_norm`: the median column's ‖ḡ‖₂, the scale that λ is on. `kkt_residual_zero`,
    `kkt_residual_nonzero`: mean [`kkt_residual`] of the columns that are zero, that are not; 0 where there are none.
    """
    residual = kkt_residual(group_weight.detach(), average_gradient, sparsity_weight)
    zero = torch.linalg.vector_norm(group_weight.detach(), dim=1) == 0
    values = {
        "group_gradient_norm": torch.linalg.vector_norm(average_gradient, dim=1).median(),
        "kkt_residual_zero": (residual * zero).sum() / zero.sum().clamp_min(1),
        "kkt_residual_nonzero": (residual * ~zero).sum() / (~zero).sum().clamp_min(1),
    }
    return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))


class Throughput(TrainingCallback):
    """Images a second of training, over all processes.

    The time from the end of a step to the end of an evaluation, a save or a kNN measurement does not count. So this
    callback must come before the one that measures.
    """

    def __init__(self) -> None:
        self._images, self._num_processes = 0, 1
        self._since = self._last_step = time.perf_counter()

    def on_train_begin(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._images, self._num_processes = 0, args.world_size
        self._since = self._last_step = time.perf_counter()

    def on_outputs(self, outputs: ModelOutput) -> None:
        self._images += len(outputs.pooler_output) * self._num_processes

    def on_step_end(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._last_step = time.perf_counter()

    def on_log(
        self, args: Arguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **kwargs: Any
    ) -> None:
        if "loss" not in logs:
            self._leave_out()

    def on_evaluate(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._leave_out()

    def on_save(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._leave_out()

    def _leave_out(self) -> None:
        """Takes the time since the last step out of what is counted."""
        now = time.perf_counter()
        # A log may have begun a new count since that step.
        self._since += now - max(self._last_step, self._since)
        self._last_step = now

    def metrics(self, average: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """`images_per_second` since the last call."""
        now = time.perf_counter()
        rate = self._images / max(now - self._since, 1e-9)
        self._images, self._since = 0, now
        return {"images_per_second": rate}


class KNNMonitor(TrainerCallback):
    """Weighted kNN accuracy of the target encoder's features on a labelled held-out set: every `knn_steps`, if that is
    above 0, and when it is asked for.

    Args:
        bank: data set whose labelled images vote; at most `knn_max_examples` of them are used.
        heldout: data set whose images are classified.
        preprocess: uint8 batch -> the model's input.
        log: where the result goes, `Trainer.log`.
    """

    def __init__(
        self,
        bank: Dataset,
        heldout: Dataset,
        preprocess: Callable[[Tensor], Tensor],
        log: Callable[[dict[str, float]], None],
    ) -> None:
        self._datasets = bank, heldout
        self._preprocess, self._log = preprocess, log
        self._sets: list[tuple[Tensor, Tensor]] = []
        # Of the run under way: the step at which it was last measured, and the result.
        self._last: tuple[int, float] | None = None

    def on_train_begin(
        self, args: Arguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        self._last = (-1, math.nan)
        if args.knn_steps and state.global_step == 0:
            self._log({"knn_accuracy": self.accuracy(args, state, model)})

    def on_step_end(
        self, args: Arguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        if args.knn_steps and (state.global_step % args.knn_steps == 0 or state.global_step >= state.max_steps):
            should_log = control.should_log
            self._log({"knn_accuracy": self.accuracy(args, state, model)})
            # Logging the accuracy clears it, but the losses of this step are still to be logged.
            control.should_log = should_log

    def on_train_end(self, args: Arguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # The best checkpoint may be loaded by now.
        self._last = None

    def accuracy(self, args: Arguments, state: TrainerState, model: nn.Module) -> float:
        """Top-1 in [0, 1] of `model` as it stands, the same in all processes; measured once a step of a run."""
        if self._last is not None and self._last[0] == state.global_step:
            return self._last[1]
        # Processes that disagreed by a rounding could choose different checkpoints.
        accuracy = float(broadcast_object_list([self._measure(args, model)])[0])
        if self._last is not None:
            self._last = (state.global_step, accuracy)
        return accuracy

    def _measure(self, args: Arguments, model: nn.Module) -> float:
        if not self._sets:
            self._sets = [labelled_images(dataset, args.knn_max_examples) for dataset in self._datasets]
        encoder, (bank_labels, labels) = whole_encoder(unwrap(model)), (labels for _, labels in self._sets)
        bank, heldout = (extract_features(encoder, images, preprocess=self._preprocess) for images, _ in self._sets)
        k = min(args.knn_k, len(bank))
        # kNN is computed where the bank lies.
        bank = bank.to(comparison_device(args.device))
        with full_float32():
            return knn_accuracy(bank, bank_labels, heldout, labels, k=k)


def comparison_device(device: torch.device) -> torch.device:
    """Where features are compared: on the training device if it is CUDA's; others may lack float64 or eigenvectors."""
    return device if device.type == "cuda" else torch.device("cpu")


@contextmanager
def full_float32() -> Iterator[None]:
    """Matrix products of float32 keep its precision here, also on a GPU where training rounds them to TF32."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if before == "tf32":
        matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        # Set only where it was changed: once set, this option no longer follows the global one.
        if before == "tf32":
            matmul.fp32_precision = before


def labelled_images(dataset: Dataset, limit: int) -> tuple[Tensor, Tensor]:
    """At most `limit` images (n, 3, S, S) uint8 and labels (n,), evenly spaced over the data set.

    Raises:
        ValueError: if examples have no `labels`.
    """
    count = min(limit, len(dataset))  # type: ignore[arg-type]
    # float32 would round the last index beyond the end of a data set of 2**24 examples or more.
    indices = torch.linspace(0, len(dataset) - 1, count, dtype=torch.float64).round().long()  # type: ignore[arg-type]
    chunks = [_labelled_chunk(dataset, chunk.tolist()) for chunk in indices.split(_CHUNK)]
    images, labels = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    if not len(images):
        raise ValueError("The data set has no labelled image for kNN: all its labels are -1.")
    return images, labels


def _labelled_chunk(dataset: Dataset, indices: list[int]) -> tuple[Tensor, Tensor]:
    examples = dataset.__getitems__(indices) if hasattr(dataset, "__getitems__") else [dataset[i] for i in indices]
    batch = collate_images(examples)
    if "labels" not in batch:
        raise ValueError(f"kNN needs examples with 'pixel_values' and 'labels'; the data set has {sorted(batch)}.")
    # A label of -1 means that the data set has none for this image.
    is_labelled = batch["labels"] >= 0
    return batch["pixel_values"][is_labelled], batch["labels"][is_labelled]
