# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Do groups follow objects? Their maps against instance masks, beside maps that know nothing of groups."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import entr
from scipy.stats import skew
from sklearn.decomposition import PCA

from .measures import MORE, Measure, NotMeasurable, Null, Section, for_each_group
from .patches import PatchRecord, above_place


# Maps and masks are compared on at most this many points a side: more cost time and tell no more, since a map has one
# value for each patch.
_MAX_SIDE = 64
_CHUNK = 256
_NUM_SHUFFLES = 50
_NUM_RESAMPLES = 1000
_PCA_TOKENS = 20_000
# A map of patches cannot show objects of less than this share of a patch.
_MIN_PATCH_SHARE = 0.5

_IOU = "best IoU of an object with a group map"
_ARI = "foreground ARI of the winning group"
_OBJECT_NMI = "NMI of the winning group with the object"
_FOREGROUND_NMI = "NMI of the winning group with foreground"


@dataclass(frozen=True)
class ObjectPixels:
    """The objects of n masks, and the pixels of each, one object after the other.

    Attributes:
        masks: which object each pixel shows, 0 for none, uint8 (n, P).
        images: which image each of the O objects is in, int64 (O,).
        areas: pixels of each object, int64 (O,).
        pixels: place of every object's pixels among the P of its image, int64 (sum of areas,).
    """

    masks: np.ndarray
    images: np.ndarray
    areas: np.ndarray
    pixels: np.ndarray


def object_pixels(masks: np.ndarray, min_area: float = 1) -> ObjectPixels:
    """Finds the objects of masks (n, S, S) that show at least `min_area` pixels; the masks keep all of them."""
    flat = masks.reshape(len(masks), -1)
    image, pixel = np.nonzero(flat)
    keys = image * 256 + flat[image, pixel]
    _, place, counts = np.unique(keys, return_inverse=True, return_counts=True)
    is_large = counts[place] >= min_area
    order = np.argsort(keys[is_large], kind="stable")
    _, first, areas = np.unique(keys[is_large], return_index=True, return_counts=True)
    return ObjectPixels(flat, image[is_large][first], areas, pixel[is_large][order])


def enlarge(maps: np.ndarray, side: int) -> np.ndarray:
    """Maps (n, G, rows, columns), enlarged bilinearly: float32 (n, side·side, G)."""
    parts = [
        F.interpolate(torch.from_numpy(maps[start : start + _CHUNK]), (side, side), mode="bilinear")
        .flatten(2)
        .transpose(1, 2)
        .numpy()
        for start in range(0, len(maps), _CHUNK)
    ]
    return np.concatenate(parts)


def pixel_ranks(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Rank of each pixel within its image and map, 0 for the highest: uint16 (n, P, G) of values (n, P, G).

    Equal values, as of a constant map, are ranked at random, since any fixed order would favour a place.
    """
    pixels = np.random.default_rng(seed).permutation(values.shape[1])
    ranks = np.empty(values.shape, dtype=np.uint16)
    places = np.arange(len(pixels), dtype=np.uint16)[None, :, None]
    for start in range(0, len(values), _CHUNK):
        part = slice(start, start + _CHUNK)
        order = pixels[np.argsort(-values[part][:, pixels], axis=1, kind="stable")]
        np.put_along_axis(ranks[part], order, places, axis=1)
    return ranks


def area_matched_iou(ranks: np.ndarray, objects: ObjectPixels, order: np.ndarray | None = None) -> np.ndarray:
    """IoU of every object with every map, each map cut to as many pixels as the object has: float64 (O, G).

    A map's A highest pixels in the image are compared with the object's A pixels. So no map gains from its scale, its
    offset or a threshold chosen for it, and a large segment has no advantage.

    Args:
        ranks: of [`pixel_ranks`], (n, P, G).
        objects: of n images.
        order: compares the masks of image i with the maps of image `order[i]`; with its own if None.
    """
    images = objects.images if order is None else order[objects.images]
    found = ranks[np.repeat(images, objects.areas), objects.pixels] < np.repeat(objects.areas, objects.areas)[:, None]
    starts = np.cumsum(objects.areas) - objects.areas
    overlap = np.add.reduceat(found, starts, axis=0, dtype=np.int64)
    return overlap / (2 * objects.areas[:, None] - overlap)


def contingency(segments: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Pixels of each image by segment and object: int64 (n, segments, objects) of two arrays (n, P) of numbers."""
    shape = (len(segments), int(segments.max()) + 1, int(masks.max()) + 1)
    keys = (np.arange(shape[0])[:, None] * shape[1] + segments) * shape[2] + masks
    return np.bincount(keys.ravel(), minlength=int(np.prod(shape))).reshape(shape)


def adjusted_rand_index(table: np.ndarray) -> np.ndarray:
    """ARI of each contingency table (..., a, b), as `sklearn.metrics.adjusted_rand_score`, for many tables at once."""
    table = table.astype(np.float64)
    pixels, squares = table.sum(axis=(-2, -1)), np.square(table).sum(axis=(-2, -1))
    rows, columns = (np.square(table.sum(axis=axis)).sum(axis=-1) for axis in (-1, -2))
    together, row_only, column_only = squares - pixels, rows - squares, columns - squares
    apart = pixels**2 - rows - columns + squares
    scale = (together + row_only) * (row_only + apart) + (together + column_only) * (column_only + apart)
    agreement = 2 * (together * apart - row_only * column_only)
    return np.where(row_only + column_only == 0, 1.0, agreement / np.where(scale == 0, 1, scale))


def normalized_mutual_information(table: np.ndarray) -> np.ndarray:
    """NMI of each contingency table (..., a, b), as `sklearn.metrics.normalized_mutual_info_score`."""
    joint = table / table.sum(axis=(-2, -1), keepdims=True)
    rows, columns = (entr(joint.sum(axis=axis)).sum(axis=-1) for axis in (-1, -2))
    information = rows + columns - entr(joint).sum(axis=(-2, -1))
    mean = (rows + columns) / 2
    return np.where(mean == 0, 1.0, np.clip(information / np.where(mean == 0, 1, mean), 0, 1))


def contrast_maps(maps: np.ndarray) -> np.ndarray:
    """Maps (n, G, rows, columns) above their place, then each with variance 1 over all.

    The place would decide nearly everywhere which group wins. Scales differ too; the group that wins a patch is the
    one that is highest by its own standard.
    """
    contrast = above_place(maps)
    return contrast / contrast.std(axis=(0, 2, 3), keepdims=True)


def live_maps(maps: np.ndarray) -> np.ndarray:
    """Indices of the groups whose maps (n, G, rows, columns) differ between images, unlike those of a dead group."""
    spread = above_place(maps).std(axis=(0, 2, 3))
    # Rounding makes even equal maps differ.
    return np.flatnonzero(spread > 1e-5 * np.abs(maps).mean(axis=(0, 2, 3)))


def pca_maps(features: np.ndarray, count: int, grid: tuple[int, int], seed: int = 0) -> np.ndarray:
    """The leading principal components of patch features (n, N, D) as maps: float32 (n, count, rows, columns).

    They are those of features above their place, or the first components would show the place.
    A component has no sign of its own. It is turned so that its longer tail is up, since most objects are smaller than
    what is around them.
    """
    tokens = above_place(features).reshape(-1, features.shape[2])
    chosen = np.random.default_rng(seed).permutation(len(tokens))[:_PCA_TOKENS]
    pca = PCA(min(count, *tokens[chosen].shape), random_state=seed).fit(tokens[chosen])
    values = pca.transform(tokens)
    values = values * np.where(skew(values[chosen], axis=0) < 0, -1, 1)
    return values.reshape(len(features), *grid, -1).transpose(0, 3, 1, 2).astype(np.float32)


@dataclass(frozen=True)
class _Scores:
    """What one set of maps reaches on one set of masks: IoU by object, a contingency table by image."""

    iou: np.ndarray
    tables: np.ndarray

    def parts(self, objects: ObjectPixels) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Sums and counts by image of the measures that are means over objects or images."""
        count = len(self.tables)
        num_objects = (self.tables[:, :, 1:].sum(axis=1) > 0).sum(axis=1)
        best: np.ndarray = np.bincount(objects.images, self.iou.max(axis=1), count)
        numbers: np.ndarray = np.bincount(objects.images, minlength=count)
        parts = {_IOU: (best, numbers)}
        several, some = num_objects >= 2, num_objects >= 1
        if several.any():
            ari = np.zeros(count)
            ari[several] = adjusted_rand_index(self.tables[several][:, :, 1:])
            parts[_ARI] = (ari, several)
        nmi = np.zeros(count)
        nmi[some] = normalized_mutual_information(self.tables[some])
        return {**parts, _OBJECT_NMI: (nmi, some)}

    def foreground(self) -> np.ndarray:
        """Pixels by image, group, and background or foreground: (n, G, 2)."""
        return np.stack([self.tables[:, :, 0], self.tables[:, :, 1:].sum(axis=2)], axis=2)

    def values(self, objects: ObjectPixels) -> dict[str, float]:
        values = {name: float(sums.sum() / counts.sum()) for name, (sums, counts) in self.parts(objects).items()}
        return {**values, _FOREGROUND_NMI: float(normalized_mutual_information(self.foreground().sum(axis=0)))}

    def intervals(self, objects: ObjectPixels, rng: np.random.Generator) -> dict[str, tuple[float, float]]:
        """95 % bootstrap intervals over images."""
        count = len(self.tables)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=_NUM_RESAMPLES).astype(np.float64)
        draws = {}
        for name, (sums, counts) in self.parts(objects).items():
            total = weights @ counts
            draws[name] = (weights @ sums)[total > 0] / total[total > 0]
        foreground = self.foreground()
        pooled = weights @ foreground.reshape(count, -1)
        draws[_FOREGROUND_NMI] = normalized_mutual_information(pooled.reshape(-1, *foreground.shape[1:]))
        return {name: (float(np.quantile(d, 0.025)), float(np.quantile(d, 0.975))) for name, d in draws.items()}


class _Maps:
    """Maps ready to be compared with any masks."""

    def __init__(self, maps: np.ndarray, side: int, seed: int) -> None:
        values = enlarge(contrast_maps(maps), side)
        self.ranks = pixel_ranks(values, seed)
        self.winner = values.argmax(axis=2).astype(np.uint16)

    def score(self, objects: ObjectPixels, order: np.ndarray | None = None) -> _Scores:
        winner = self.winner if order is None else self.winner[order]
        return _Scores(area_matched_iou(self.ranks, objects, order), contingency(winner, objects.masks))


def objects_section(
    record: PatchRecord,
    *,
    untrained: PatchRecord | None = None,
    baseline: PatchRecord | None = None,
    seed: int = 0,
) -> Section:
    """Group maps against instance masks: best IoU, foreground ARI, NMI of the winning group.

    All maps are taken less what place alone explains and on one scale (see [`contrast_maps`]), then enlarged.

    - Best IoU: for each object, that of the group whose map fits it best, each map cut to the object's area (see
      [`area_matched_iou`]); the mean over objects of at least half a patch.
    - Each pixel is won by the group whose map is highest there. Foreground ARI compares these segments with the
      objects on foreground pixels, in images of two objects or more; the mean over images.
    - NMI with the object compares the same segments with objects and background in each image; the mean over images.
      NMI with foreground is over all pixels of all images.

    Nulls: masks given to other images, which keep where objects tend to be; the untrained model; and as many
    principal components of patch features as there are groups.

    Args:
        record: of a SparseJEPA, on a data set with masks.
        untrained: of the same architecture untrained, on the same data set.
        baseline: whose patch features give the principal components, such as an I-JEPA's, on the same data set; the
            target encoder of `record` if None.
        seed: of shuffles and resampling.

    Raises:
        NotMeasurable: no groups, no masks, no objects, a single image, no group map that varies, or records of
            different images.
    """
    _, maps = record.require_groups()
    masks = record.require_masks()
    for other in (untrained, baseline):
        require_same_images(record, other)
    if len(record) < 2:
        raise NotMeasurable(
            "There is 1 image, so masks cannot be exchanged between images, and nothing says what chance gives; give "
            "at least 2."
        )
    groups = live_maps(maps)
    if not len(groups):
        raise NotMeasurable(
            "The map of every group is the same for all images, as with a W of zeros, so no group can follow an "
            "object; give a checkpoint whose W has columns that are not zero."
        )
    # On a square lattice, as which maps are compared too, whatever the shape of the images.
    side = min(max(masks.shape[1:]), _MAX_SIDE)
    rows, columns = (((np.arange(side) + 0.5) * length / side).astype(np.int64) for length in masks.shape[1:])
    patch_area = side**2 / (record.grid[0] * record.grid[1])
    objects = object_pixels(masks[:, rows][:, :, columns], _MIN_PATCH_SHARE * patch_area)
    if not len(objects.areas):
        raise NotMeasurable(
            f"The masks show no object of at least half a patch ({_MIN_PATCH_SHARE * patch_area:.0f} pixels), so maps "
            "cannot be compared with objects; give images with larger objects."
        )
    rng = np.random.default_rng(seed)
    found = _Maps(maps[:, groups], side, seed)
    scores = found.score(objects)
    values, intervals = scores.values(objects), scores.intervals(objects, rng)
    nulls: dict[str, list[dict[str, float]]] = {
        "shuffled masks": [
            found.score(objects, rng.permutation(len(record))).values(objects) for _ in range(_NUM_SHUFFLES)
        ]
    }
    source = record if baseline is None else baseline
    owner = "its" if baseline is None else "the baseline's"
    rivals = {f"principal components of {owner} features": pca_maps(source.features, len(groups), source.grid, seed)}
    if untrained is not None:
        rivals = {"the untrained model": untrained.require_groups()[1], **rivals}
    for name, rival in rivals.items():
        alive = live_maps(rival)
        if len(alive):
            nulls[name] = [_Maps(rival[:, alive], side, seed).score(objects).values(objects)]
    measures = tuple(
        Measure(
            key,
            value,
            tuple(Null(null, tuple(draw[key] for draw in draws)) for null, draws in nulls.items()),
            intervals[key],
        )
        for key, value in values.items()
    )
    foreground = scores.foreground().sum(axis=0)
    # A group that wins no pixel has no segment.
    foreground = np.pad(foreground, ((0, len(groups) - len(foreground)), (0, 0)))
    won = foreground.sum(axis=1)
    details = {
        "num_images": len(record),
        "num_objects": len(objects.areas),
        "num_small_objects_left_out": int((scores.tables[:, :, 1:].sum(axis=1) > 0).sum() - len(objects.areas)),
        "groups": groups.tolist(),
        "by_group": {"Overlap with objects (IoU)": for_each_group(groups, scores.iou.mean(axis=0), maps.shape[1])},
        "best_for_share_of_objects": (
            np.bincount(scores.iou.argmax(axis=1), minlength=len(groups)) / len(objects.areas)
        ).tolist(),
        "share_of_pixels_won": (won / won.sum()).tolist(),
        "foreground_share_where_it_wins": [
            float(share) if pixels else None
            for share, pixels in zip(foreground[:, 1] / np.maximum(won, 1), won, strict=True)
        ],
        "foreground_share": float((objects.masks > 0).mean()),
    }
    return Section("objects", "Do groups follow objects?", measures, _finding(measures), details)


def require_same_images(record: PatchRecord, other: PatchRecord | None) -> None:
    """Refuses two records unless they are of the same images in the same order; None passes.

    Raises:
        NotMeasurable: they are of different images, or of the same in different sizes.
    """
    if other is not None and not np.array_equal(record.pixel_values, other.pixel_values):
        shapes = [each.pixel_values.shape for each in (record, other)]
        sizes = [f"{count} of {height} x {width} pixels" for count, _, height, width in shapes]
        raise NotMeasurable(
            f"Two records are of different images ({sizes[0]}, {sizes[1]}); expected the same images in the same "
            "order and size. Give checkpoints of the same image size, and run both over the same data set."
        )


def _finding(measures: tuple[Measure, ...]) -> str:
    better = [measure for measure in measures if measure.verdict == MORE]
    beats_shuffles = [measure for measure in measures if measure.exceeds(measure.nulls[0])]
    if len(better) == len(measures):
        opening = "Groups follow objects: every measure is higher than in every comparison."
    elif better:
        opening = (
            f"Groups follow objects by {len(better)} of {len(measures)} measures. By the others they do so no "
            "better than maps that know nothing about groups."
        )
    elif beats_shuffles:
        rivals = sorted({null.name for m in beats_shuffles for null in m.nulls if not m.exceeds(null)})
        opening = (
            "Group maps depend on where the objects are, but follow them no better than "
            f"{' or '.join(rivals)}. Grouping has added nothing here."
        )
    else:
        opening = "Group maps follow objects no better than chance."
    return opening
