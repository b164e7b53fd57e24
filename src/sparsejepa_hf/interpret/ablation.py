# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""What does a group cause? What prediction and a probe lose when it is removed."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..evaluation import VisionEncoder, linear_probe, validation_mask
from ..evaluation.features import default_batch_size, frozen_module
from ..masking import MultiBlockMaskSampler
from ..modeling_sparsejepa import SparseJEPAModel
from .groups import GroupStructure, find_grouping, find_model, group_structure
from .measures import MORE, Measure, NotMeasurable, Null, Section, for_each_group
from .patches import PatchRecord


_MAX_IMAGES = 512
_MAX_TOKENS = 4096
_NUM_RESAMPLES = 1000
# Draws of random columns; each costs a pass of the predictor where groups sit in front of it.
_NUM_DRAWS = {"predictor": 20, "encoder": 5}
_NUM_ORDERS = 200
_WEIGHT_DECAYS = (1e-1, 1e-2, 1e-3, 1e-4)

_TITLE = "What does a group cause?"
_ERROR = "rise of the prediction error without a group"
_DROP = "loss of probe accuracy without a group"
_KEPT = "probe accuracy with the most selective groups alone"


class PredictionErrors:
    """L_pred of a checkpoint on fixed images and masks, for any W in the place of its own.

    Encodings and, behind the predictor, its trunk's output do not depend on W: they are computed once. The model is
    called with another W and never changed. No noise is drawn.

    Args:
        model: a SparseJEPA.
        pixel_values: normalised images (n, C, H, W).
        seed: of the masks.
    """

    def __init__(self, model: nn.Module, pixel_values: Tensor, seed: int = 0) -> None:
        self.model: SparseJEPAModel = find_model(model)
        self.grouping = find_grouping(model)
        config = self.model.config
        device = self.model.device
        context_mask, target_mask = MultiBlockMaskSampler(config.grid_size, seed=seed)(len(pixel_values), step=0)
        self._batches: list[dict[str, Tensor]] = []
        starts = range(0, len(pixel_values), default_batch_size(device))
        with frozen_module(self.model, device, device), torch.inference_mode():
            for start in starts:
                part = slice(start, start + default_batch_size(device))
                context, target = context_mask[part].to(device), target_mask[part].to(device)
                images = pixel_values[part].to(device=device, dtype=self.model.dtype)
                encoded = self.model(images, context, target, skip_predictor=True)
                batch = {"context": context, "target": target, "wanted": encoded.target_hidden_state}
                batch["hidden"] = encoded.context_hidden_state
                predictor = self.model.predictor
                if not predictor.groups_first:
                    positions = predictor.position_embeddings
                    batch["hidden"] = predictor.trunk(batch["hidden"], context, target, positions)
                self._batches.append(batch)

    def __call__(self, group_weight: Tensor) -> np.ndarray:
        """L_pred of every image and slice of the embedding with W (G, p, K): float64 (n, G).

        Slice g is what group g generates, or, with `latent_position="encoder"`, nothing but the g-th of G slices. The
        mean over slices is the image's L_pred.
        """
        device = self.model.device
        with frozen_module(self.model, device, device), torch.inference_mode():
            return np.concatenate([self._errors(batch, group_weight) for batch in self._batches])

    def _errors(self, batch: dict[str, Tensor], group_weight: Tensor) -> np.ndarray:
        predictor, config = self.model.predictor, self.model.config
        if predictor.groups_first:
            arguments = (batch["hidden"], batch["context"], batch["target"])
            output = functional_call(predictor, {"grouping.group_weight": group_weight}, arguments)
            predicted = output.last_hidden_state
        else:
            output = functional_call(self.grouping, {"group_weight": group_weight}, (batch["hidden"],))
            predicted = output.last_hidden_state
            if predictor.head is not None:
                predicted = predicted + predictor.head(batch["hidden"])
        distance = F.smooth_l1_loss if config.loss_type == "smooth_l1" else F.mse_loss
        errors = distance(predicted.float(), batch["wanted"], reduction="none").unflatten(-1, (config.num_groups, -1))
        return errors.double().mean(dim=(1, 2, 4)).cpu().numpy()


def without_columns(group_weight: Tensor, removed: np.ndarray) -> Tensor:
    """A copy of W (G, p, K) with zero columns where `removed`, bool (G, K), is True."""
    return group_weight.detach().masked_fill(torch.from_numpy(removed).to(group_weight.device)[:, None], 0)


def group_columns(held: np.ndarray, group: int) -> np.ndarray:
    """The columns of one group that are not zero, bool (G, K) of `held`, bool (G, K)."""
    columns = np.zeros_like(held)
    columns[group] = held[group]
    return columns


def random_columns(held: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """As many of the columns that are not zero, of any group: bool (G, K)."""
    columns = np.zeros(held.size, dtype=bool)
    columns[rng.choice(np.flatnonzero(held), count, replace=False)] = True
    return columns.reshape(held.shape)


def pooled_inputs(group_weight: np.ndarray, latents: np.ndarray) -> np.ndarray:
    """Mean and standard deviation over patches of every group's input: float32 (n, G, 2·p).

    Args:
        group_weight: W (G, p, K).
        latents: μ (n, N, K).
    """
    inputs = np.tensordot(latents, group_weight, axes=([2], [2]))
    return np.concatenate([inputs.mean(axis=1), inputs.std(axis=1)], axis=2).astype(np.float32)


@dataclass(frozen=True)
class GroupProbe:
    """A linear probe of groups' pooled inputs, on test images; its scores are sums over groups.

    Attributes:
        features: standardised by the train set, (n, G, f). A removed group is held at its train mean, 0.
        coefficients: (G, f, classes).
        bias: (classes,).
        classes: the labels that the scores stand for.
        labels: of the test images, (n,).
    """

    features: np.ndarray
    coefficients: np.ndarray
    bias: np.ndarray
    classes: np.ndarray
    labels: np.ndarray

    def scores(self, kept: np.ndarray | None = None) -> np.ndarray:
        """What every group adds to the score of each class, (n, G, classes); of features `kept`, bool (G, f)."""
        coefficients = self.coefficients if kept is None else self.coefficients * kept[:, :, None]
        return np.einsum("ngf,gfc->ngc", self.features, coefficients, optimize=True)

    def is_right(self, total: np.ndarray) -> np.ndarray:
        """Whether summed scores (n, ..., classes) name the right class: bool (n, ...)."""
        labels = self.labels.reshape(-1, *[1] * (total.ndim - 2))
        return self.classes[(total + self.bias).argmax(axis=-1)] == labels


def fit_group_probe(
    train_inputs: np.ndarray,
    train_labels: np.ndarray,
    test_inputs: np.ndarray,
    test_labels: np.ndarray,
    *,
    seed: int = 0,
) -> GroupProbe:
    """Fits [`evaluation.linear_probe`] once to pooled inputs (n, G, f) of all groups."""
    result = linear_probe(
        torch.from_numpy(train_inputs.reshape(len(train_inputs), -1)),
        torch.from_numpy(train_labels),
        torch.from_numpy(test_inputs.reshape(len(test_inputs), -1)),
        torch.from_numpy(test_labels),
        weight_decays=_WEIGHT_DECAYS,
        seed=seed,
        allow_unseen_classes=True,
    )
    scaler, regression = result.model[0], result.model[-1]
    weight, bias = regression.coef_, regression.intercept_
    if len(weight) == 1:
        # Two classes share one row: the score of the second less that of the first.
        weight, bias = np.concatenate([0 * weight, weight]), np.array([0, bias[0]])
    features = scaler.transform(test_inputs.reshape(len(test_inputs), -1)).reshape(test_inputs.shape)
    coefficients = weight.T.reshape(*test_inputs.shape[1:], -1)
    return GroupProbe(features, coefficients, bias, regression.classes_, test_labels)


def group_selectivity(structure: GroupStructure) -> np.ndarray:
    """Mean selectivity of each group's latents, weighted by their importance for it: (G,); NaN for a dead group."""
    selectivity = np.nan_to_num(structure.selectivity)
    total = structure.importance.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return structure.importance @ selectivity / total


def ablation_section(
    encoder: VisionEncoder, record: PatchRecord, *, probe_record: PatchRecord | None = None, seed: int = 0
) -> Section:
    """Removes each group, W⁽ᵍ⁾ = 0, and says what prediction and a linear probe lose.

    - Prediction error: L_pred on up to 512 images and one draw of masks, relative to the whole model's; mean over
      groups that hold latents. Null: as many columns of W removed at random, from all groups.
    - Probe: logistic regression on mean and standard deviation over patches of all groups' inputs W⁽ᵍ⁾μ, fitted once.
      A removed group is held at its mean. Null: as many of the probe's features removed at random, from all groups.
    - The same probe with the k most selective groups alone (see [`group_selectivity`]), mean over k from 1 to all but
      one. Null: groups in random order.

    Intervals are bootstrapped over images; the probe is not fitted again.

    Args:
        encoder: a SparseJEPA.
        record: of it. Without `probe_record`, the probe is fitted on half of these images and tested on the others.
        probe_record: of the same checkpoint on images with labels, to fit the probe on.
        seed: of masks, splits and draws.

    Raises:
        NotMeasurable: no groups, or none that holds a latent.
    """
    latents, _ = record.require_groups()
    weight = find_grouping(encoder.module).group_weight.detach()
    rng = np.random.default_rng(seed)
    tokens = latents.reshape(-1, latents.shape[2])
    structure = group_structure(find_model(encoder.module), tokens[rng.permutation(len(tokens))[:_MAX_TOKENS]])
    groups = np.flatnonzero(structure.latents_per_group)
    if not len(groups):
        raise NotMeasurable(
            "Every column of W is zero, so no group holds a latent and nothing can be removed; give a checkpoint "
            "whose W has columns that are not zero."
        )
    error, about_error = _prediction_error(encoder, record, weight, structure, groups, rng, seed)
    measures, details = [error], {"groups": groups.tolist(), "prediction_error": about_error}
    scores = {"Rise of the prediction error without it": about_error["rise_by_group"]}
    try:
        probe = _probe(record, probe_record, weight.float().cpu().numpy(), seed)
    except NotMeasurable as reason:
        missing = f" Probe accuracy could not be measured. {reason}"
    else:
        missing = ""
        more, details["probe"] = _probe_losses(probe, record.label_names, structure, groups, rng)
        measures += more
        scores["Probe accuracy lost without it"] = [-change for change in details["probe"]["change_by_group"]]
    details["by_group"] = {name: for_each_group(groups, values, len(weight)) for name, values in scores.items()}
    return Section("ablation", _TITLE, tuple(measures), _finding(measures, groups) + missing, details)


def _prediction_error(
    encoder: VisionEncoder,
    record: PatchRecord,
    weight: Tensor,
    structure: GroupStructure,
    groups: np.ndarray,
    rng: np.random.Generator,
    seed: int,
) -> tuple[Measure, dict[str, Any]]:
    chosen = np.sort(rng.permutation(len(record))[:_MAX_IMAGES])
    model, held = find_model(encoder.module), structure.held
    errors = PredictionErrors(model, encoder.preprocess(torch.from_numpy(record.pixel_values[chosen])), seed)
    full = errors(weight)
    without = np.stack([errors(without_columns(weight, group_columns(held, group))) for group in groups])
    sizes = structure.latents_per_group[groups]
    position = model.config.latent_position
    draws = []
    for _ in range(_NUM_DRAWS[position]):
        # Groups of one size share a draw.
        removed = {int(size): without_columns(weight, random_columns(held, size, rng)) for size in np.unique(sizes)}
        rises = {size: errors(drawn).mean() / full.mean() - 1 for size, drawn in removed.items()}
        draws.append(float(np.mean([rises[int(size)] for size in sizes])))
    rise = without.mean(axis=(1, 2)) / full.mean() - 1
    counts = rng.multinomial(len(chosen), np.full(len(chosen), 1 / len(chosen)), size=_NUM_RESAMPLES)
    # (resamples, groups): sums of errors over resampled images.
    resampled = (counts @ without.mean(axis=2).T) / (counts @ full.mean(axis=1))[:, None] - 1
    low, high = np.quantile(resampled.mean(axis=1), [0.025, 0.975])
    measure = Measure(_ERROR, float(rise.mean()), (Null("random columns", tuple(draws)),), (float(low), float(high)))
    by_slice = without.mean(axis=1) / full.mean(axis=0) - 1
    own = by_slice[np.arange(len(groups)), groups]
    others = (by_slice.sum(axis=1) - own) / max(full.shape[1] - 1, 1)
    behind = position == "predictor"
    return measure, {
        "num_images": len(chosen),
        "full": float(full.mean()),
        "rise_by_group": rise.tolist(),
        "interval_by_group": np.quantile(resampled, [0.025, 0.975], axis=0).T.tolist(),
        # Only behind the predictor does a group generate a slice of the embedding.
        "rise_in_own_slice": own.tolist() if behind else None,
        "mean_rise_in_other_slices": others.tolist() if behind else None,
    }


def _probe(record: PatchRecord, probe_record: PatchRecord | None, weight: np.ndarray, seed: int) -> GroupProbe:
    labels, (latents, _) = record.require_labels(), record.require_groups()
    inputs = pooled_inputs(weight, latents)
    if probe_record is None:
        sizes = np.unique(labels, return_counts=True)[1]
        if len(sizes) > 1 and sizes.max() == 1:
            raise NotMeasurable("Every class has a single image, so none is left to test on; give more of each class.")
        is_test = validation_mask(torch.from_numpy(labels), 0.5, seed).numpy() if len(sizes) > 1 else labels < 0
        train_inputs, train_labels = inputs[~is_test], labels[~is_test]
        inputs, labels = inputs[is_test], labels[is_test]
    else:
        train_labels = probe_record.require_labels()
        train_inputs = pooled_inputs(weight, probe_record.require_groups()[0])
    if len(np.unique(train_labels)) < 2:
        raise NotMeasurable("All images have one label, so there is nothing to tell apart; give two classes or more.")
    if len(train_labels) < weight.shape[2]:
        raise NotMeasurable(
            f"There are {len(train_labels)} images to fit a probe on and {weight.shape[2]} latents; expected at least "
            "as many images as latents."
        )
    try:
        return fit_group_probe(train_inputs, train_labels, inputs, labels, seed=seed)
    except ValueError as reason:
        raise NotMeasurable(f"A probe cannot be fitted to these images: {reason}") from reason


def _probe_losses(
    probe: GroupProbe,
    label_names: tuple[str, ...],
    structure: GroupStructure,
    groups: np.ndarray,
    rng: np.random.Generator,
) -> tuple[list[Measure], dict[str, Any]]:
    scores = probe.scores()
    total = scores.sum(axis=1)
    right, count = probe.is_right(total), len(total)
    without = probe.is_right(total[:, None] - scores[:, groups])
    change = without.astype(np.float64) - right[:, None]
    counts = rng.multinomial(count, np.full(count, 1 / count), size=_NUM_RESAMPLES) / count

    def interval(by_image: np.ndarray) -> tuple[float, float]:
        low, high = np.quantile(counts @ by_image, [0.025, 0.975])
        return float(low), float(high)

    size, drawn = probe.features.shape[2], []
    for _ in range(_NUM_DRAWS["predictor"]):
        losses = []
        for _ in groups:
            kept = np.ones(probe.features.shape[1:], dtype=bool)
            place = rng.choice(len(groups) * size, size, replace=False)
            kept[groups[place // size], place % size] = False
            losses.append(right.mean() - probe.is_right(probe.scores(kept).sum(axis=1)).mean())
        drawn.append(float(np.mean(losses)))
    null = Null("random features of the probe", tuple(drawn))
    measures = [Measure(_DROP, float(-change.mean()), (null,), interval(-change.mean(axis=1)))]
    names, by_class = [], []
    for label in np.unique(probe.labels):
        names.append(label_names[label] if label < len(label_names) else str(label))
        by_class.append(change[probe.labels == label].mean(axis=0).tolist())
    details: dict[str, Any] = {
        "num_test_images": count,
        "accuracy": float(right.mean()),
        "chance": float(np.unique(probe.labels, return_counts=True)[1].max() / count),
        "change_by_group": change.mean(axis=0).tolist(),
        "interval_by_group": [list(interval(each)) for each in change.T],
        "classes": names,
        "change_by_class_and_group": by_class,
    }
    if len(groups) > 1:
        selectivity = group_selectivity(structure)[groups]
        order = groups[np.argsort(-selectivity, kind="stable")]

        def kept_alone(order: np.ndarray) -> np.ndarray:
            """Whether each image is classified rightly with the first k groups alone: (n, len(order))."""
            return probe.is_right(np.cumsum(scores[:, order], axis=1))

        curve = kept_alone(order)
        chance = np.stack([kept_alone(rng.permutation(groups)).mean(axis=0) for _ in range(_NUM_ORDERS)])
        null = Null("groups in random order", tuple(chance[:, :-1].mean(axis=1).tolist()))
        part = curve[:, :-1].mean(axis=1)
        measures.append(Measure(_KEPT, float(part.mean()), (null,), interval(part)))
        details["kept"] = {
            "order": order.tolist(),
            "selectivity": np.sort(selectivity)[::-1].tolist(),
            "accuracy": curve.mean(axis=0).tolist(),
            "random_mean": chance.mean(axis=0).tolist(),
            "random_low": np.quantile(chance, 0.025, axis=0).tolist(),
            "random_high": np.quantile(chance, 0.975, axis=0).tolist(),
        }
    return measures, details


def _finding(measures: Sequence[Measure], groups: np.ndarray) -> str:
    costs = {
        _ERROR: "Removing a group raises the prediction error {} than removing as many random columns of W",
        _DROP: "Removing it from a probe's input costs accuracy {} than removing as many random features",
        _KEPT: "The most selective groups alone tell classes apart {} than groups in random order",
    }
    words = {_ERROR: ("more", "no more"), _DROP: ("more", "no more"), _KEPT: ("better", "no better")}
    parts = []
    for measure in measures:
        better, not_better = words[measure.name]
        word = better if measure.verdict == MORE else not_better
        parts.append(f"{costs[measure.name].format(word)}.")
    if len(groups) == 1:
        parts.append("Only one group holds latents.")
    return " ".join(parts)
