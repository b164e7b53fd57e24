# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Are the same groups found over seeds? Groups of several runs, matched, beside groups that training did not make."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from ..evaluation import VisionEncoder
from ..evaluation.features import default_batch_size, frozen_module, preserved_rng
from ..modeling_sparsejepa import SparseJEPAForPreTraining
from .groups import find_grouping, find_model
from .measures import Measure, NotMeasurable, Null, Section
from .objects import live_maps, require_same_images
from .patches import PatchRecord, above_place


_MAX_IMAGES = 500
_NUM_DRAWS = 50
_NUM_RESAMPLES = 200
# Images are resampled by blocks of equal size: moments of all single images would take (2·K)² numbers each.
_NUM_BLOCKS = 100
_NUM_UNTRAINED = 3

_TITLE = "Are they the same groups over seeds?"
_MAPS = "correlation of matched group maps"
_UNTRAINED = "untrained models"
_INPUTS = "CKA of matched groups' inputs W⁽ᵍ⁾μ"


@dataclass(frozen=True)
class GroupCodes:
    """What the live groups of one checkpoint make of n images of N patches, less the mean over images at each place.

    A group that only shows where a patch lies would look the same in every run.

    Attributes:
        weight: W of the live groups, (G, p, K).
        latents: μ, (n, N, K).
        maps: ‖W⁽ᵍ⁾μ‖₂, of μ with its mean, (n, N, G).
        groups: which groups of the checkpoint these are, int64 (G,).
    """

    weight: np.ndarray
    latents: np.ndarray
    maps: np.ndarray
    groups: np.ndarray


def group_codes(weight: np.ndarray, latents: np.ndarray) -> GroupCodes:
    """Codes of W (G, p, K) and latents (n, N, K), for those groups whose maps differ between images."""
    maps = np.linalg.norm(np.tensordot(latents, weight, axes=([2], [2])), axis=3)
    groups = live_maps(maps.transpose(0, 2, 1)[..., None])
    maps = maps[..., groups]
    return GroupCodes(weight[groups], above_place(latents), above_place(maps), groups)


def random_grouping(weight: np.ndarray, latents: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another W of the same sizes: its latents dealt to the groups anew, in random directions.

    What a latent brings to the groups, ‖W⁽ᵍ⁾_{·,j}‖ times the RMS of μ_j, goes as a whole to another latent that is
    not dead. So the sizes and overlaps of groups and the balance within them stay; which latents belong
    together changes.

    Args:
        weight: W (G, p, K).
        latents: μ (n, N, K), for their scales.
        rng: of the draw.
    """
    norms = np.linalg.norm(weight, axis=1)
    scale = np.sqrt(np.square(latents).mean(axis=(0, 1)))
    alive = np.flatnonzero((norms > 0).any(axis=0) & (scale > 0))
    brought = (norms * scale)[:, rng.permutation(alive)]
    directions = rng.standard_normal((*weight.shape[:2], len(alive)))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    drawn = np.zeros_like(weight)
    drawn[:, :, alive] = directions * (brought / scale[alive])[:, None]
    return drawn


def block_moments(first: np.ndarray, second: np.ndarray, num_blocks: int = 1) -> np.ndarray:
    """Σ [x, y][x, y]ᵀ of centred variables x (n, N, a) and y (n, N, b), by block of images: (blocks, a + b, a + b)."""
    both = np.concatenate([first, second], axis=2)
    tokens = [both[block].reshape(-1, both.shape[2]) for block in np.array_split(np.arange(len(both)), num_blocks)]
    return np.stack([part.T @ part for part in tokens]).astype(np.float64)


def map_correlation(moments: np.ndarray, split: int) -> np.ndarray:
    """Pearson correlation of each of `split` maps with each of the others, (a, b), from moments (a + b, a + b)."""
    spread = np.sqrt(np.diag(moments))
    return (moments / np.outer(spread, spread))[:split, split:]


def input_similarity(first: np.ndarray, second: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Linear CKA (Kornblith et al., arXiv 1905.00414) of the inputs W⁽ᵍ⁾μ of each pair of groups of two checkpoints.

    Columns of W cannot be compared, since latents have another basis in every run. CKA does not change when either
    group's input is rotated.

    Args:
        first: W (a, p, K) of one checkpoint.
        second: W (b, q, L) of another.
        moments: of both checkpoints' latents, (K + L, K + L).

    Returns:
        (a, b), from 0 to 1.
    """
    split = first.shape[2]

    def strength(left: np.ndarray, right: np.ndarray, part: np.ndarray) -> np.ndarray:
        """‖W⁽ᵍ⁾ C V⁽ʰ⁾ᵀ‖² in the Frobenius norm, of every g and h."""
        product = np.tensordot(np.tensordot(left, part, axes=1), right, axes=([2], [2]))
        return np.square(product).sum(axis=(1, 3))

    cross = strength(first, second, moments[:split, split:])
    own = np.sqrt(np.diag(strength(first, first, moments[:split, :split])))
    others = np.sqrt(np.diag(strength(second, second, moments[split:, split:])))
    return cross / np.outer(own, others)


def match(similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The one-to-one matching (rows, columns) of largest total similarity, of min(a, b) pairs."""
    return linear_sum_assignment(similarity, maximize=True)


def matched_similarity(similarity: np.ndarray) -> float:
    """Mean similarity of matched pairs."""
    return float(similarity[match(similarity)].mean())


def stability_section(encoders: Sequence[VisionEncoder], records: Sequence[PatchRecord], *, seed: int = 0) -> Section:
    """Groups of every pair of checkpoints, matched one to one by the Hungarian method; means over groups and pairs.

    Two similarities: the correlation of two groups' maps over all patches of all images, and CKA of their inputs (see
    [`input_similarity`]). Both are taken less what place alone explains. Groups are matched by each similarity anew,
    for the checkpoints and for every null. The bootstrap interval resamples images and keeps the matching.

    Nulls: the second checkpoint's images permuted; both checkpoints' latents dealt to groups at random (see
    [`random_grouping`]), which says how alike any two maps of the same image are; and three untrained models.

    Args:
        encoders: checkpoints of one recipe that differ in their seeds.
        records: of the same images, one for each checkpoint.
        seed: of everything drawn; up to 500 images are taken.

    Raises:
        NotMeasurable: fewer than two checkpoints, the same one twice, no groups, no group whose map differs between
            images, or records of different images.
    """
    for record in records:
        record.require_groups()
    if len(records) < 2:
        raise NotMeasurable(
            "There is one checkpoint, so nothing can be said about other seeds; give another one of the same recipe "
            "that was pre-trained with another seed."
        )
    for record in records[1:]:
        require_same_images(records[0], record)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(records[0]))[:_MAX_IMAGES])
    if len(chosen) < 2:
        raise NotMeasurable("There is 1 image, so maps cannot be correlated over images; give at least 2.")
    weights = [_group_weight(encoder.module) for encoder in encoders]
    latents = [record.require_groups()[0][chosen] for record in records]
    codes = [group_codes(weight, own) for weight, own in zip(weights, latents, strict=True)]
    for place, code in enumerate(codes):
        if not len(code.groups):
            raise NotMeasurable(
                f"Checkpoint {place + 1} of {len(codes)} has no group whose map differs between images, as with a W "
                "of zeros; give one whose W has columns that are not zero."
            )
    pairs = list(combinations(range(len(codes)), 2))
    for one, other in pairs:
        if np.array_equal(latents[one], latents[other]):
            raise NotMeasurable(
                f"Checkpoints {one + 1} and {other + 1} are the same; expected runs that differ in their seeds."
            )

    draws: dict[str, dict[str, list[float]]] = {}

    def note(null: str, values: Sequence[dict[str, float]]) -> None:
        for key in (_MAPS, _INPUTS):
            mean = float(np.mean([value[key] for value in values]))
            draws.setdefault(null, {}).setdefault(key, []).append(mean)

    for _ in range(_NUM_DRAWS):
        order = rng.permutation(len(chosen))
        note("other images", [_matched(codes[one], _permuted(codes[other], order)) for one, other in pairs])
        dealt = [group_codes(random_grouping(w, own, rng), own) for w, own in zip(weights, latents, strict=True)]
        note("random groupings", [_matched(dealt[one], dealt[other]) for one, other in pairs])
    fresh = [_untrained_codes(encoders[0], records[0].pixel_values[chosen], place) for place in range(_NUM_UNTRAINED)]
    for start, another in combinations(fresh, 2):
        note(_UNTRAINED, [_matched(start, another)])

    blocks = min(_NUM_BLOCKS, len(chosen))
    counts = rng.multinomial(blocks, np.full(blocks, 1 / blocks), size=_NUM_RESAMPLES).astype(np.float64)
    values: dict[str, list[float]] = {_MAPS: [], _INPUTS: []}
    resampled: dict[str, list[list[float]]] = {_MAPS: [], _INPUTS: []}
    details: list[dict[str, Any]] = []
    for one, other in pairs:
        first, second = codes[one], codes[other]
        about: dict[str, Any] = {"checkpoints": [one, other]}
        for key, name in ((_MAPS, "maps"), (_INPUTS, "inputs")):
            moments = _moments(key, first, second, blocks)
            found = _similarity(key, first, second, moments.sum(axis=0))
            pairing = match(found)
            values[key].append(float(found[pairing].mean()))
            resampled[key].append(
                [
                    float(_similarity(key, first, second, np.tensordot(count, moments, axes=1))[pairing].mean())
                    for count in counts
                ]
            )
            about[name] = {
                "groups": [first.groups[pairing[0]].tolist(), second.groups[pairing[1]].tolist()],
                "similarity": found[pairing].tolist(),
                "matrix": found.tolist(),
            }
        details.append(about)
    measures = []
    for key in (_MAPS, _INPUTS):
        low, high = np.quantile(np.mean(resampled[key], axis=0), [0.025, 0.975])
        nulls = tuple(Null(name, tuple(drawn[key])) for name, drawn in draws.items())
        measures.append(Measure(key, float(np.mean(values[key])), nulls, (float(low), float(high))))
    return Section(
        "stability",
        _TITLE,
        tuple(measures),
        _finding(measures, len(codes)),
        {"num_images": len(chosen), "num_checkpoints": len(codes), "pairs": details},
    )


def _moments(key: str, first: GroupCodes, second: GroupCodes, num_blocks: int = 1) -> np.ndarray:
    if key == _MAPS:
        return block_moments(first.maps, second.maps, num_blocks)
    return block_moments(first.latents, second.latents, num_blocks)


def _similarity(key: str, first: GroupCodes, second: GroupCodes, moments: np.ndarray) -> np.ndarray:
    if key == _MAPS:
        return map_correlation(moments, len(first.groups))
    return input_similarity(first.weight, second.weight, moments)


def _matched(first: GroupCodes, second: GroupCodes) -> dict[str, float]:
    """Both similarities, each matched for itself."""
    return {
        key: matched_similarity(_similarity(key, first, second, _moments(key, first, second)[0]))
        for key in (_MAPS, _INPUTS)
    }


def _permuted(codes: GroupCodes, order: np.ndarray) -> GroupCodes:
    return replace(codes, latents=codes.latents[order], maps=codes.maps[order])


@torch.inference_mode()
def _untrained_codes(encoder: VisionEncoder, pixel_values: np.ndarray, seed: int) -> GroupCodes:
    """Codes of a fresh model with the checkpoint's configuration: those that pre-training with `seed` starts from."""
    config = copy.deepcopy(find_model(encoder.module).config)
    device = encoder.device
    parts = []
    with preserved_rng(device):
        torch.manual_seed(seed)
        model = SparseJEPAForPreTraining(config).sparsejepa
        with frozen_module(model, device, device):
            model.to(device)
            for batch in torch.from_numpy(pixel_values).split(default_batch_size(device)):
                parts.append(model.encode_latents(encoder.preprocess(batch.to(device)))[0].float().cpu())
    return group_codes(_group_weight(model), torch.cat(parts).numpy())


def _group_weight(model: torch.nn.Module | None) -> np.ndarray:
    return find_grouping(model).group_weight.detach().float().cpu().numpy()


def _finding(measures: Sequence[Measure], num_checkpoints: int) -> str:
    runs = f"The {num_checkpoints} runs"
    rivals = sorted({null.name for measure in measures for null in measure.nulls if not measure.exceeds(null)})
    if not rivals:
        opening = f"{runs} find the same groups more than chance would."
    elif rivals == [_UNTRAINED]:
        opening = (
            f"{runs} find groups that are more alike than random groupings of their latents. But groups of "
            "untrained models are as alike, so training need not have made them so."
        )
    else:
        opening = (
            f"{runs} do not find the same groups: by one similarity or both, matched groups are no more alike than "
            f"those of {' or '.join(rivals)}."
        )
    return opening
