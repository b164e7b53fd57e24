# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Linear probes of a whole grid of learning rates, weight decays and feature kinds, trained in one pass by SGD."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from ._checks import check_known_classes, check_open_fraction, check_positive, check_sets, checked_grid
from .linear_probe import accuracy, balanced_accuracy, class_accuracies, class_targets, top_k_accuracy
from .splits import join_validation


# DINOv2's thirteen and five larger ones: for 192 standardised features of CIFAR-100, 20 epochs and batches of 256 the
# best are 0.5 to 2, and 0.1 costs almost one point.
DEFAULT_LEARNING_RATES = (
    *(1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
    *(0.2, 0.5, 1.0, 2.0, 5.0),
)
DEFAULT_WEIGHT_DECAYS = (0.0, 1e-4, 1e-3)
_CHUNK_ROWS = 8192
# Logits computed at once: 1 MB stays in a core's second-level cache; an accelerator wants large products instead.
_SLAB_ENTRIES = {"cpu": 2**18}
_SLAB_ENTRIES_ELSEWHERE = 2**26


@dataclass(frozen=True)
class GridCell:
    """One head of the grid.

    Attributes:
        kind: the features it reads.
        learning_rate: at the start.
        weight_decay: of the weights, not of the bias.
        validation_accuracy: on the validation split, in [0, 1]; None where the head diverged to NaN or infinity.
    """

    kind: str
    learning_rate: float
    weight_decay: float
    validation_accuracy: float | None

    @property
    def failed(self) -> bool:
        """Whether the head diverged."""
        return self.validation_accuracy is None

    def to_dict(self) -> dict[str, Any]:
        """The attributes and ``failed``, ready for JSON."""
        return {**asdict(self), "failed": self.failed}


@dataclass(frozen=True, eq=False)
class GridProbeResult:
    """What :func:`linear_probe_grid` found.

    Attributes:
        chosen: the cell with the best validation accuracy, refitted for the test.
        test_accuracy: its top-1 accuracy on the test set, in [0, 1].
        test_top5_accuracy: share of test samples whose label is among its five best-scored classes (all of them
            where there are fewer), in [0, 1].
        test_balanced_accuracy: mean of ``test_class_accuracies``.
        test_class_accuracies: of every class in the test set, by name or else by number, the share of its samples
            that is predicted correctly.
        test_predictions: ``(m,)`` int64, the predicted labels of the test set.
        best_per_kind: the best cell of every feature kind that has one which did not diverge.
        grid: all cells, by kind, learning rate and weight decay.
        at_grid_edge: for ``"learning_rate"`` and ``"weight_decay"``, whether the choice is the smallest (except a
            weight decay of 0) or largest of several; a wider grid may then give a better probe.
        flops: floating-point operations of the matrix products, a multiplication and an addition counting as two.
        seconds: elapsed, of all runs that a checkpoint joins.
        cpu_seconds: of this process, likewise.
    """

    chosen: GridCell
    test_accuracy: float
    test_top5_accuracy: float
    test_balanced_accuracy: float
    test_class_accuracies: dict[str, float]
    test_predictions: Tensor
    best_per_kind: dict[str, GridCell]
    grid: tuple[GridCell, ...]
    at_grid_edge: dict[str, bool]
    flops: int
    seconds: float
    cpu_seconds: float

    @property
    def validation_accuracy(self) -> float:
        """Accuracy of the chosen cell on the validation split, in [0, 1], before the refit."""
        assert self.chosen.validation_accuracy is not None
        return self.chosen.validation_accuracy

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold of the result: everything but the predictions."""
        return {
            "chosen": self.chosen.to_dict(),
            "validation_accuracy": self.validation_accuracy,
            "test_accuracy": self.test_accuracy,
            "test_top5_accuracy": self.test_top5_accuracy,
            "test_balanced_accuracy": self.test_balanced_accuracy,
            "test_class_accuracies": dict(self.test_class_accuracies),
            "best_per_kind": {kind: cell.to_dict() for kind, cell in self.best_per_kind.items()},
            "grid": [cell.to_dict() for cell in self.grid],
            "at_grid_edge": dict(self.at_grid_edge),
            "flops": self.flops,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
        }


def linear_probe_grid(
    train: Mapping[str, Tensor],
    train_labels: Tensor,
    test: Mapping[str, Tensor],
    test_labels: Tensor,
    *,
    learning_rates: Sequence[float] = DEFAULT_LEARNING_RATES,
    weight_decays: Sequence[float] = DEFAULT_WEIGHT_DECAYS,
    epochs: int = 20,
    batch_size: int = 256,
    optimizer: str = "sgd",
    momentum: float = 0.9,
    seed: int = 0,
    validation: tuple[Mapping[str, Tensor], Tensor] | None = None,
    validation_fraction: float = 0.1,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    allow_unseen_classes: bool = False,
    device: torch.device | str | None = None,
    progress: bool = True,
    checkpoint: Path | str | None = None,
) -> GridProbeResult:
    r"""Train a linear classifier per learning rate, weight decay and feature kind; choose one, refit it, test it once.

    The protocol is that of DINOv2 (Oquab et al., arXiv 2304.07193, appendix B.3), except that the choice is made on
    a validation split of the train set and never on the test set. Every cell minimises the mean cross-entropy of a
    linear map of standardised features by SGD with Nesterov's momentum, from zero weights, with a cosine from its
    learning rate to 0 over all steps. Weight decay is added to the gradient, as in ``torch.optim.SGD``, and spares
    the bias. Of equally accurate cells the strongest weight decay, then the smallest learning rate, then the first
    kind is taken.

    All cells see the same batches. Those of one kind are one linear map to H * C outputs; its gradient, softmax
    less one-hot labels, is written out and applied in place, in slabs of heads that fit in the cache. A head that
    diverges touches no other. Features are gathered and standardised batch by batch, in float32, so that
    memory-mapped features are never copied as a whole. The last batch of an epoch is smaller where the number of
    samples is no multiple of ``batch_size``.

    Args:
        train: of every feature kind ``(n, D)`` floating point, D its own. All kinds on one device.
        train_labels: ``(n,)`` integers >= 0, of at least two classes; numbers may be left out.
        test: of the same kinds ``(m, D)``.
        test_labels: ``(m,)`` integers >= 0.
        learning_rates: each > 0 and finite.
        weight_decays: each >= 0 and finite.
        epochs: passes over the train set, >= 1.
        batch_size: samples per step, >= 1. Learning rates are not scaled by it.
        optimizer: ``"sgd"`` is the only one.
        momentum: of Nesterov, in [0, 1); 0 is plain SGD.
        seed: of the split and of the batches; the global random state is neither read nor changed.
        validation: features per kind ``(v, D)`` and labels ``(v,)`` of a validation set of its own, to choose on and
            then to refit on together with the train set; without one, a part of the train set is split off.
        validation_fraction: share of each class to split off, in (0, 1).
        num_classes: refuse labels that are not below it; by default the length of ``class_names``, if given.
        class_names: by label, for ``test_class_accuracies``.
        allow_unseen_classes: count test samples of classes that the train set lacks as errors, rather than refuse.
        device: where to compute; by default where the features are.
        progress: whether to show a progress bar.
        checkpoint: file (safetensors) to write after every epoch of the grid and to resume from where it exists; the
            result is then bit for bit that of a run in one go on the same machine with as many threads. It stays
            after the end; a later call with the same arguments only refits.

    Raises:
        TypeError: features are not floating point or labels are not integers.
        ValueError: a shape, kind or range is not as stated, a feature is NaN or infinite, the train set has fewer
            than two classes or is too small to split, the test or validation set has a class that the train set
            lacks, ``checkpoint`` belongs to another call, or every cell diverged.
    """
    num_classes = len(class_names) if num_classes is None and class_names is not None else num_classes
    _check_kinds(train, train_labels, test, test_labels, validation, num_classes)
    _check_class_names(class_names, num_classes)
    cells = list(
        itertools.product(
            checked_grid(learning_rates, "learning_rates"),
            checked_grid(weight_decays, "weight_decays", allow_zero=True),
        )
    )
    check_open_fraction(validation_fraction, "validation_fraction")
    recipe = _Recipe(epochs, batch_size, momentum, seed)
    recipe.check(optimizer)

    features, held_out_labels = train, None
    if validation is not None:
        features = {kind: torch.cat([matrix, validation[0][kind].to(matrix)]) for kind, matrix in train.items()}
        held_out_labels = validation[1]
    labels, held_out = join_validation(train_labels.long(), held_out_labels, validation_fraction, seed)
    classes, targets = class_targets(labels, held_out)
    test_labels = test_labels.to(classes)
    if not allow_unseen_classes:
        advice = "Draw it from all classes, or pass allow_unseen_classes=True to count those test samples as errors."
        check_known_classes(test_labels, classes, "test_labels", advice)

    clock = _Clock()
    device = next(iter(train.values())).device if device is None else torch.device(device)
    problem = _Problem(features, targets.to(device), held_out.cpu(), len(classes), recipe)
    with torch.no_grad(), tqdm(desc="Linear probe grid", unit="step", disable=not progress) as bar:
        store = None if checkpoint is None else _Checkpoint(Path(checkpoint), problem.fingerprint(cells), clock)
        grid = problem.fit_grid(cells, bar, store)
        chosen = _choose(grid)
        scores = problem.refit(chosen, test[chosen.kind], bar).to(classes.device)
    predictions = classes[scores.argmax(dim=1)]
    return GridProbeResult(
        chosen=chosen,
        test_accuracy=accuracy(predictions, test_labels),
        test_top5_accuracy=top_k_accuracy(scores, classes, test_labels, 5),
        test_balanced_accuracy=balanced_accuracy(predictions, test_labels),
        test_class_accuracies={
            str(label) if class_names is None else class_names[label]: share
            for label, share in class_accuracies(predictions, test_labels).items()
        },
        test_predictions=predictions,
        best_per_kind=_best_per_kind(grid),
        grid=grid,
        at_grid_edge=_at_grid_edge(chosen, cells),
        flops=problem.flops(len(cells), chosen),
        seconds=clock.seconds(),
        cpu_seconds=clock.cpu_seconds(),
    )


@dataclass(frozen=True)
class _Recipe:
    epochs: int
    batch_size: int
    momentum: float
    seed: int

    def check(self, optimizer: str) -> None:
        check_positive(self.epochs, "epochs")
        check_positive(self.batch_size, "batch_size")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum is {self.momentum}, but a value in [0, 1) is expected. Pass 0.9.")
        if optimizer != "sgd":
            raise ValueError(f"optimizer is {optimizer!r}, but 'sgd' is expected, the only one. Leave it out.")

    def steps(self, num_samples: int) -> int:
        """Steps of one epoch."""
        return math.ceil(num_samples / self.batch_size)

    def batches(self, rows: Tensor, epoch: int) -> Iterator[tuple[Tensor, float]]:
        """Every batch's rows in one epoch, and the factor of the learning rate at its step."""
        steps = self.steps(len(rows))
        # An epoch's order depends on its number alone: a resumed run needs no generator's state.
        seeds = torch.randint(2**62, (self.epochs,), generator=torch.Generator().manual_seed(self.seed))
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(int(seeds[epoch])))
        for index, batch in enumerate(rows[order].split(self.batch_size)):
            done = (epoch * steps + index) / (self.epochs * steps)
            yield batch, (1 + math.cos(math.pi * done)) / 2


class _Problem:
    """Features of all kinds with their targets; rows are numbered over train and validation samples together."""

    def __init__(
        self,
        features: Mapping[str, Tensor],
        targets: Tensor,
        held_out: Tensor,
        num_classes: int,
        recipe: _Recipe,
    ) -> None:
        self.features, self.targets, self.num_classes, self.recipe = features, targets, num_classes, recipe
        self.held_out = held_out
        self.fitted_rows = (~held_out).nonzero().flatten()

    def fit_grid(
        self, cells: Sequence[tuple[float, float]], bar: tqdm, store: _Checkpoint | None
    ) -> tuple[GridCell, ...]:
        """Train every cell of every kind on the fitted rows and measure it on the others."""
        kinds = {kind: self._heads(kind, self.fitted_rows, cells) for kind in self.features}
        start = 0 if store is None else store.load(kinds)
        steps = self.recipe.steps(len(self.fitted_rows))
        bar.total = self.recipe.epochs * (steps + self.recipe.steps(len(self.held_out)))
        bar.update(start * steps)
        self._train(kinds, self.fitted_rows, bar, start, store)
        rows = self.held_out.nonzero().flatten()
        accuracies = [share for kind, heads in kinds.items() for share in self._accuracies(kind, heads, rows)]
        settings = ((kind, rate, decay) for kind in kinds for rate, decay in cells)
        return tuple(GridCell(*setting, share) for setting, share in zip(settings, accuracies, strict=True))

    def refit(self, cell: GridCell, test_features: Tensor, bar: tqdm) -> Tensor:
        """Train one cell on all rows; its scores ``(m, C)`` of the test features."""
        rows = torch.arange(len(self.held_out))
        heads = self._heads(cell.kind, rows, [(cell.learning_rate, cell.weight_decay)])
        self._train({cell.kind: heads}, rows, bar, 0, None)
        batches = torch.arange(len(test_features)).split(self.recipe.batch_size)
        scores = torch.cat([heads.inputs(test_features, batch) @ heads.weight.T for batch in batches])
        if not bool(torch.isfinite(scores).all()):
            raise ValueError(
                f"The chosen learning rate {cell.learning_rate:g} diverged when it was refitted on train and "
                "validation samples, but finite scores are expected. Leave it out of learning_rates."
            )
        return scores

    def flops(self, num_cells: int, chosen: GridCell) -> int:
        """Of the training's matrix products: two per weight and sample forwards, as many for the gradient."""
        entries = {kind: self.num_classes * (matrix.shape[1] + 1) for kind, matrix in self.features.items()}
        grid = num_cells * len(self.fitted_rows) * sum(entries.values())
        return 4 * self.recipe.epochs * (grid + len(self.held_out) * entries[chosen.kind])

    def fingerprint(self, cells: Sequence[tuple[float, float]]) -> str:
        """Digest of everything that the grid's state depends on."""
        settings = [
            asdict(self.recipe),
            list(cells),
            {k: [list(v.shape), str(v.dtype)] for k, v in self.features.items()},
        ]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for tensor in (self.targets, self.held_out, *self.features.values()):
            for chunk in tensor.detach().split(_CHUNK_ROWS):
                digest.update(chunk.cpu().contiguous().view(torch.uint8).flatten().numpy())
        return digest.hexdigest()

    def _heads(self, kind: str, rows: Tensor, cells: Sequence[tuple[float, float]]) -> _Heads:
        return _Heads(self.features[kind], rows, cells, self.num_classes, self.recipe.batch_size, self.targets.device)

    def _train(
        self, kinds: Mapping[str, _Heads], rows: Tensor, bar: tqdm, start: int, store: _Checkpoint | None
    ) -> None:
        for epoch in range(start, self.recipe.epochs):
            for batch, factor in self.recipe.batches(rows, epoch):
                targets = self.targets[batch.to(self.targets.device)]
                for kind, heads in kinds.items():
                    heads.step(heads.inputs(self.features[kind], batch), targets, factor, self.recipe.momentum)
                bar.update()
            if store is not None:
                store.save(kinds, epoch + 1)

    def _accuracies(self, kind: str, heads: _Heads, rows: Tensor) -> list[float | None]:
        hits, finite = 0, True
        for batch in rows.split(self.recipe.batch_size):
            inputs, targets = heads.inputs(self.features[kind], batch), self.targets[batch.to(self.targets.device)]
            batch_hits, batch_finite = heads.hits(inputs, targets)
            hits, finite = hits + batch_hits, batch_finite & finite
        shares = (hits.double() / len(rows)).tolist()
        return [share if ok else None for share, ok in zip(shares, finite.tolist(), strict=True)]


class _Heads:
    """All cells' linear maps of one feature kind: one ``(H * C, D + 1)`` matrix, the bias last, and its velocity."""

    def __init__(
        self,
        features: Tensor,
        rows: Tensor,
        cells: Sequence[tuple[float, float]],
        num_classes: int,
        batch_size: int,
        device: torch.device,
    ) -> None:
        width = features.shape[1] + 1
        self.mean, self.scale = (moment.to(device) for moment in _row_moments(features, rows))
        self.num_classes = num_classes
        self.weight = torch.zeros(len(cells) * num_classes, width, device=device)
        self.velocity = torch.zeros_like(self.weight)
        rates, decays = torch.tensor(cells, dtype=torch.float32, device=device).T
        self.rates = rates[:, None, None]
        self.decays = decays[:, None, None].repeat(1, 1, width)
        self.decays[..., -1] = 0

        entries = _SLAB_ENTRIES.get(device.type, _SLAB_ENTRIES_ELSEWHERE)
        slab = min(len(cells), max(1, entries // (batch_size * num_classes)))
        self.slabs = [slice(start, min(start + slab, len(cells))) for start in range(0, len(cells), slab)]
        # Allocated once: megabytes asked for at every step would be mapped and cleared by the system every time.
        self._logits = torch.empty(batch_size * slab * num_classes, device=device)
        self._residual = torch.empty_like(self._logits)
        self._gradient = torch.empty(slab * num_classes, width, device=device)
        self._inputs = torch.ones(batch_size, width, device=device)

    def inputs(self, features: Tensor, rows: Tensor) -> Tensor:
        """Standardised rows and a one for the bias, ``(b, D + 1)``; overwritten by the next call."""
        inputs = self._inputs[: len(rows)]
        gathered = features.detach().index_select(0, rows.to(features.device)).to(self.mean)
        inputs[:, :-1] = gathered.sub_(self.mean).div_(self.scale)
        return inputs

    def step(self, inputs: Tensor, targets: Tensor, factor: float, momentum: float) -> None:
        """One step of every head on one batch, at ``factor`` times its learning rate."""
        for heads in self.slabs:
            self._step(heads, inputs, targets, factor, momentum)

    def hits(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Of every head, the number of samples predicted correctly, and whether all its scores are finite."""
        pairs = []
        for heads in self.slabs:
            scores = self._scores(heads, inputs).view(len(inputs), -1, self.num_classes)
            correct = (scores.argmax(dim=2) == targets[:, None]).sum(dim=0)
            pairs.append((correct, torch.isfinite(scores).all(dim=2).all(dim=0)))
        hits, finite = zip(*pairs, strict=True)
        return torch.cat(hits), torch.cat(finite)

    def _rows(self, heads: slice) -> slice:
        return slice(heads.start * self.num_classes, heads.stop * self.num_classes)

    def _scores(self, heads: slice, inputs: Tensor) -> Tensor:
        weight = self.weight[self._rows(heads)]
        logits = self._logits[: len(inputs) * len(weight)].view(len(inputs), len(weight))
        return torch.mm(inputs, weight.T, out=logits)

    def _step(self, heads: slice, inputs: Tensor, targets: Tensor, factor: float, momentum: float) -> None:
        size, classes = len(inputs), self.num_classes
        logits = self._scores(heads, inputs)
        residual = self._residual[: logits.numel()].view_as(logits)
        torch.softmax(logits.view(-1, classes), dim=1, out=residual.view(-1, classes))
        per_head = residual.view(size, -1, classes)
        index = targets[:, None, None].expand(-1, per_head.shape[1], 1)
        per_head.scatter_add_(2, index, residual.new_full((1, 1, 1), -1.0).expand_as(index))

        weight, velocity = self.weight[self._rows(heads)], self.velocity[self._rows(heads)]
        gradient = self._gradient[: len(weight)]
        torch.addmm(gradient, residual.T, inputs, beta=0, alpha=1 / size, out=gradient)
        shape = (-1, classes, weight.shape[1])
        gradient.view(shape).addcmul_(weight.view(shape), self.decays[heads])
        velocity.mul_(momentum).add_(gradient)
        gradient.add_(velocity, alpha=momentum)
        weight.view(shape).addcmul_(gradient.view(shape), self.rates[heads], value=-factor)


class _Clock:
    """Elapsed and processor time since it was made, and before in another process."""

    def __init__(self) -> None:
        self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def cpu_seconds(self) -> float:
        return time.process_time() - self._cpu_start

    def add(self, seconds: float, cpu_seconds: float) -> None:
        self._start -= seconds
        self._cpu_start -= cpu_seconds


class _Checkpoint:
    """One safetensors file with the heads' tensors and, as JSON in its metadata, what they belong to."""

    def __init__(self, path: Path, fingerprint: str, clock: _Clock) -> None:
        self.path, self.fingerprint, self.clock = path, fingerprint, clock

    def load(self, kinds: Mapping[str, _Heads]) -> int:
        """Restore the heads, if there is a file; the number of epochs that they have seen."""
        if not self.path.exists():
            return 0
        try:
            with safe_open(self.path, "pt") as file:
                state = json.loads((file.metadata() or {}).get("linear_probe_grid", "{}"))
                self._check(state.get("fingerprint"))
                for kind, heads in kinds.items():
                    heads.weight.copy_(file.get_tensor(f"{kind}.weight"))
                    heads.velocity.copy_(file.get_tensor(f"{kind}.velocity"))
        except SafetensorError as error:
            raise ValueError(
                f"{self.path} cannot be read ({error}), but a checkpoint of linear_probe_grid is expected. "
                "Delete it or pass another path."
            ) from error
        self.clock.add(state["seconds"], state["cpu_seconds"])
        return state["epochs"]

    def save(self, kinds: Mapping[str, _Heads], epochs: int) -> None:
        """Replace the file by the heads' state after ``epochs`` epochs."""
        state = {
            "fingerprint": self.fingerprint,
            "epochs": epochs,
            "seconds": self.clock.seconds(),
            "cpu_seconds": self.clock.cpu_seconds(),
        }
        tensors = {f"{kind}.weight": heads.weight for kind, heads in kinds.items()}
        tensors |= {f"{kind}.velocity": heads.velocity for kind, heads in kinds.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(self.path.name + ".partial")
        save_file(tensors, partial, metadata={"linear_probe_grid": json.dumps(state)})
        # A crash while writing leaves the last whole checkpoint.
        os.replace(partial, self.path)

    def _check(self, fingerprint: str | None) -> None:
        if fingerprint != self.fingerprint:
            raise ValueError(
                f"{self.path} was written with other features, labels or settings, but a checkpoint of this call is "
                "expected. Delete it or pass another path."
            )


def _row_moments(features: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (divisor n) of the columns over some rows, 1 for columns constant up to rounding."""
    chunks = rows.to(features.device).split(_CHUNK_ROWS)
    mean = sum(features[chunk].double().sum(dim=0) for chunk in chunks) / len(rows)
    squares, largest = torch.zeros_like(mean), torch.zeros_like(mean)
    for chunk in chunks:
        block = features[chunk].double()
        squares += (block - mean).square().sum(dim=0)
        largest = torch.maximum(largest, block.abs().amax(dim=0))
    std = (squares / len(rows)).sqrt()
    constant = std <= 10 * torch.finfo(torch.float32).eps * largest
    return mean.float(), torch.where(constant, torch.ones_like(std), std).float()


def _rank(cell: GridCell) -> tuple[float, float, float]:
    share = -math.inf if cell.validation_accuracy is None else cell.validation_accuracy
    return share, cell.weight_decay, -cell.learning_rate


def _choose(grid: Sequence[GridCell]) -> GridCell:
    chosen = max(grid, key=_rank)
    if chosen.failed:
        raise ValueError(
            f"All {len(grid)} cells of the grid diverged to NaN or infinity, but at least one is expected to stay "
            "finite. Pass smaller learning_rates."
        )
    return chosen


def _best_per_kind(grid: Sequence[GridCell]) -> dict[str, GridCell]:
    by_kind: dict[str, list[GridCell]] = {}
    for cell in grid:
        if not cell.failed:
            by_kind.setdefault(cell.kind, []).append(cell)
    return {kind: max(cells, key=_rank) for kind, cells in by_kind.items()}


def _at_grid_edge(chosen: GridCell, cells: Sequence[tuple[float, float]]) -> dict[str, bool]:
    (lowest_rate, lowest_decay), (highest_rate, highest_decay) = cells[0], cells[-1]
    at_rate = chosen.learning_rate in (lowest_rate, highest_rate)
    at_decay = chosen.weight_decay == highest_decay or chosen.weight_decay == lowest_decay != 0
    return {
        "learning_rate": lowest_rate < highest_rate and at_rate,
        "weight_decay": lowest_decay < highest_decay and at_decay,
    }


def _check_kinds(
    train: Mapping[str, Tensor],
    train_labels: Tensor,
    test: Mapping[str, Tensor],
    test_labels: Tensor,
    validation: tuple[Mapping[str, Tensor], Tensor] | None,
    num_classes: int | None,
) -> None:
    sets = {"train": (train, train_labels), "test": (test, test_labels)}
    if validation is not None:
        sets["validation"] = validation
    if len(train) == 0:
        raise ValueError("train holds no feature kind, but at least one is expected. Pass {name: features}.")
    for name, (features, _) in sets.items():
        if set(features) != set(train):
            raise ValueError(
                f"{name} holds the feature kinds {sorted(features)}, but those of train, {sorted(train)}, are "
                "expected. Extract the same kinds for all sets."
            )
    for kind in train:
        check_sets({name: (features[kind], labels) for name, (features, labels) in sets.items()}, num_classes)


def _check_class_names(class_names: Sequence[str] | None, num_classes: int | None) -> None:
    if class_names is not None and len(class_names) != num_classes:
        raise ValueError(
            f"class_names holds {len(class_names)} names, but num_classes = {num_classes} are expected. "
            "Name every class once."
        )
