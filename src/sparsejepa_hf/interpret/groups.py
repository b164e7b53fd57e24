# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""The groups of a checkpoint: which latents hold which group, how much it matters, and where a group is active."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import entr
from torch import Tensor, nn

from ..modeling_sparsejepa import SparseJEPAForPreTraining, SparseJEPAGrouping, SparseJEPAModel
from .measures import NotMeasurable


_NUM_PRIOR_TOKENS = 512


@dataclass(frozen=True)
class GroupStructure:
    """Latents and groups of one checkpoint. A latent holds a group if its column of W is not exactly zero.

    Attributes:
        column_norms: ‖W⁽ᵍ⁾_{·,j}‖₂, float64 (G, K).
        importance: how far a group's output moves when the latent is held at its mean (G, K); see
            [`group_structure`]. A small column can matter, and a large one need not, by what the generator makes of
            it.
    """

    column_norms: np.ndarray
    importance: np.ndarray

    @property
    def held(self) -> np.ndarray:
        """Whether latent j holds group g: bool (G, K)."""
        return self.column_norms > 0

    @property
    def zero_columns(self) -> float:
        """Share of the columns of W that are exactly zero."""
        return float(1 - self.held.mean())

    @property
    def groups_per_latent(self) -> np.ndarray:
        """ℓ0 of each latent over groups: int64 (K,)."""
        return self.held.sum(axis=0)

    @property
    def latents_per_group(self) -> np.ndarray:
        """int64 (G,)."""
        return self.held.sum(axis=1)

    @property
    def selectivity(self) -> np.ndarray:
        """1 − H/log G of each latent, H the entropy of its importance over groups: (K,).

        1 for a latent that matters to one group alone, 0 for one that matters to all alike; NaN for a dead latent,
        and for all with a single group.
        """
        total = self.importance.sum(axis=0)
        with np.errstate(invalid="ignore", divide="ignore"):
            return 1 - entr(self.importance / total).sum(axis=0) / np.log(len(self.importance))

    @property
    def dead_latents(self) -> np.ndarray:
        """Indices of the latents that hold no group."""
        return np.flatnonzero(self.groups_per_latent == 0)

    @property
    def dead_groups(self) -> np.ndarray:
        """Indices of the groups that no latent holds."""
        return np.flatnonzero(self.latents_per_group == 0)

    @property
    def assignment(self) -> np.ndarray:
        """The group each latent matters most to, −1 for a dead latent: int64 (K,)."""
        return np.where(self.groups_per_latent > 0, self.importance.argmax(axis=0), -1)


def find_model(model: nn.Module | None) -> SparseJEPAModel:
    """The model with both encoders and predictor in `model`.

    Raises:
        NotMeasurable: `model` is not of this family, holds the target encoder alone, or is None, as for raw pixels.
    """
    if model is None:
        raise NotMeasurable("Raw pixels have no groups; give the folder that pre-training saved.")
    inner = model.sparsejepa if isinstance(model, SparseJEPAForPreTraining) else model
    if not isinstance(inner, SparseJEPAModel):
        raise NotMeasurable(
            f"The model given is a {type(model).__name__}, which has no predictor and so no groups; expected a "
            "SparseJEPAForPreTraining or SparseJEPAModel. Give the folder that pre-training saved."
        )
    return inner


def find_grouping(model: nn.Module | None) -> SparseJEPAGrouping:
    """The grouping of a SparseJEPA model.

    Raises:
        NotMeasurable: there is none, or it holds a NaN or an infinite number.
    """
    grouping = find_model(model).predictor.grouping
    if grouping is None:
        raise NotMeasurable(
            "This checkpoint is an I-JEPA (use_grouping=False), so it has no groups; give one that was pre-trained "
            "with use_grouping=True."
        )
    bad = [name for name, weight in grouping.named_parameters() if not weight.isfinite().all()]
    if bad:
        raise NotMeasurable(
            f"The grouping's {bad[0]} holds a NaN or an infinite number; expected finite weights. The run that saved "
            "this checkpoint diverged; give an earlier one."
        )
    return grouping


@torch.no_grad()
def group_structure(model: nn.Module, latents: Tensor | np.ndarray | None = None) -> GroupStructure:
    """Reads the groups off a checkpoint.

    The importance of latent j for group g is the root mean square over tokens of
    ‖f_g(W⁽ᵍ⁾z) − f_g(W⁽ᵍ⁾z′)‖₂, where z′ has latent j at its mean. It is exact, not a linearisation.

    Args:
        model: a SparseJEPA.
        latents: tokens (n, K) to take the mean over, such as the latents of images; drawn from the prior N(0, I)
            with a fixed seed if not given.

    Raises:
        NotMeasurable: the model has no grouping, or it is not finite.
        ValueError: `latents` has another width.
    """
    grouping = find_grouping(model)
    weight = grouping.group_weight.detach().float()
    groups, size, count = weight.shape
    if latents is None:
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(_NUM_PRIOR_TOKENS, count, generator=generator)
    tokens = torch.as_tensor(latents).to(weight)
    if tokens.ndim != 2 or tokens.shape[1] != count or not len(tokens):
        raise ValueError(f"latents has the shape {tuple(tokens.shape)}; expected (tokens, {count}).")
    inputs = torch.einsum("gpk,nk->gnp", weight, tokens)
    dtype = grouping.generator_in_weight.dtype
    outputs = grouping.generate(inputs.to(dtype)).float()
    deviation = tokens - tokens.mean(dim=0)
    importance = torch.zeros(groups, count, device=weight.device)
    for latent in range(count):
        without = inputs - deviation[:, latent, None] * weight[:, None, :, latent]
        change = outputs - grouping.generate(without.to(dtype)).float()
        importance[:, latent] = change.square().sum(dim=2).mean(dim=1).sqrt()
    norms = torch.linalg.vector_norm(weight.double(), dim=1)
    # Rounding must not give a zero column any importance.
    importance = torch.where(norms > 0, importance, 0)
    return GroupStructure(norms.cpu().numpy(), importance.double().cpu().numpy())


@torch.no_grad()
def group_activations(
    model: nn.Module,
    pixel_values: Tensor,
    output_size: tuple[int, int] | None = None,
    interpolate_pos_encoding: bool = False,
) -> Tensor:
    """Maps a_g(patch) = ‖W⁽ᵍ⁾z‖₂ of every group, z being the patch's latents without noise.

    Args:
        model: a SparseJEPA; its training flag does not matter.
        pixel_values (B, C, H, W): normalised images.
        output_size: (height, width) in pixels to enlarge the maps to, bilinearly; one value per patch if None.
        interpolate_pos_encoding: accept images of another size.

    Returns:
        float32 (B, G, H/P, W/P), or (B, G, *output_size).

    Raises:
        NotMeasurable: the model has no grouping, or it is not finite.
        ValueError: the images do not fit the model.
    """
    find_grouping(model)
    inner = find_model(model)
    patch = inner.config.patch_sides
    grid = (pixel_values.shape[2] // patch[0], pixel_values.shape[3] // patch[1])
    _, inputs = inner.encode_latents(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding)
    maps = torch.linalg.vector_norm(inputs.float(), dim=-1).transpose(1, 2).unflatten(2, grid)
    if output_size is None:
        return maps
    return F.interpolate(maps, size=output_size, mode="bilinear", align_corners=False)
