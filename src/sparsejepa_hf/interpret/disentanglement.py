# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Do codes, such as the activations of groups, follow known factors one by one, and what do they say about classes?

MIG, SAP, DCI and modularity are a few lines each on scikit-learn and SciPy. Two libraries were looked at. `disent`
wants PyTorch Lightning, Python 3.11 and a data set class of its own. `latte-metrics` (an alpha of 2023) has no DCI,
takes one kind of factor at a time, wants at least as many codes as factors, and in part ties factor i to code i.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr, xlogy
from scipy.stats import chi2, norm, rankdata
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.metrics import r2_score
from sklearn.metrics.cluster import expected_mutual_information

from .information import is_constant
from .measures import Measure, NotMeasurable, Null, Section, for_each_group
from .patches import PatchRecord


Array = NDArray[np.float64]

# Fewer images leave too few in a bin.
MIN_IMAGES = 50
_MIN_CLASS_SIZE = 5
# Values of a code are put into so many bins of equal counts, and those of a continuous factor into half as many.
_CODE_BINS = 20
_FACTOR_BINS = 10
# Whole numbers of more values than this are taken as continuous.
_MAX_CLASSES = 32
# Small forests, as the nulls need one for each factor and draw; each tree sees half of the images.
_FOREST = {"n_estimators": 8, "max_depth": 6, "max_samples": 0.5}
# Level of the G-test for whether a code says anything about a factor.
_LEVEL = 0.01
# Gaps below, of at most 1, are near nothing, however sure they are.
_LITTLE = 0.1
# What `scene_factors` leaves out: what is no factor, or follows from the others.
_NO_FACTORS = ("image", "mask", "label", "objects")
_NO_FIELDS = ("visible_pixels",)


@dataclass(frozen=True)
class Disentanglement:
    """Scores of codes against known factors; every one is near 0 for noise and 1 for a perfect code.

    Attributes:
        mig: mutual information gap (Chen et al. 2018): of each factor, the gap between the two codes that tell most of
            it, over the factor's entropy; mean over factors.
        sap: separated attribute predictability (Kumar et al. 2018): of each factor, the gap between the two codes that
            predict it best; mean over factors. R² for a continuous factor; for a discrete one, balanced accuracy on
            held-out images of a class for each bin of the code, rescaled so that chance is 0.
        modularity: (Ridgeway & Mozer 2018): 1 for a code that tells of one factor alone, 0 for one that tells of all
            alike; mean over the codes that tell of any, 0 if none does. Mutual information counts beyond its mean by
            chance, and where a G-test with Bonferroni's correction finds it at the level 0.01; otherwise codes of
            noise, whose scraps of information differ at random, would look modular. Codes that all tell of the same
            factor score 1 as well.
        disentanglement: DCI (Eastwood & Williams 2018) by importances of a random forest: whether a code matters to
            one factor; mean over codes, weighted by how much they matter.
        completeness: DCI: whether one code matters to a factor; mean over factors.
        informativeness: DCI: how well the forest predicts factors on held-out images from all codes, R² or rescaled
            balanced accuracy, at least 0; mean over factors. The paper reports the error instead.
    """

    mig: float
    sap: float
    modularity: float
    disentanglement: float
    completeness: float
    informativeness: float


def scene_factors(dataset: datasets.Dataset) -> dict[str, np.ndarray]:
    """Known factors of each image: of its object with the most visible pixels, and of the scene.

    Args:
        dataset: with a column `objects`, a list of mappings with `visible_pixels`; numbers and strings in them and in
            other columns, such as `count`, are factors. A column of mappings, such as `background`, gives one for each
            of its fields. Left out are `label`, which shape and colour make up, `visible_pixels`, and what is missing
            in an image or does not vary.

    Returns:
        Name -> (n,), strings for discrete factors and numbers for others.

    Raises:
        NotMeasurable: there is no column `objects`, or an image has no object.
    """
    if "objects" not in dataset.column_names:
        raise NotMeasurable(
            f"The data set has the columns {', '.join(dataset.column_names)}, and no `objects`, so its factors are "
            "not known; give one such as synthetic-scenes."
        )
    scenes = dataset["objects"][:]
    # Older versions of `datasets` give a mapping of lists.
    scenes = [
        [dict(zip(scene, row, strict=True)) for row in zip(*scene.values(), strict=True)]
        if isinstance(scene, Mapping)
        else scene
        for scene in scenes
    ]
    empty = sum(not objects for objects in scenes)
    if empty or not scenes:
        raise NotMeasurable(f"{empty} of {len(scenes)} images have no object; expected one at least in each.")
    largest = [max(objects, key=lambda thing: thing.get("visible_pixels", 0)) for objects in scenes]
    columns: dict[str, list[Any]] = {
        name: [thing[name] for thing in largest] for name in largest[0] if name not in _NO_FIELDS
    }
    for name in dataset.column_names:
        if name not in _NO_FACTORS:
            values = dataset[name][:]
            if isinstance(values[0], Mapping):
                columns.update({f"{name}_{field}": [value[field] for value in values] for field in values[0]})
            else:
                columns[name] = values
    factors = {}
    for name, values in columns.items():
        is_known = all(isinstance(value, (str, int, float)) and value == value for value in values)  # No NaN.
        if is_known and len(set(values)) > 1:
            factors[name] = np.asarray(values)
    return factors


def mutual_information_matrix(codes: ArrayLike, factors: Mapping[str, ArrayLike]) -> Array:
    """Mutual information of every code with every factor in nats: (c, f).

    Codes are put into 20 bins of equal counts and continuous factors into 10, so a monotone map of a code changes
    nothing. The plug-in estimate is too high by about (bins − 1)(classes − 1)/2n.

    Raises:
        ValueError: as [`disentanglement`].
    """
    codes, known = _checked(codes, factors)
    return _information(_bins_of(codes), known)


def disentanglement(codes: ArrayLike, factors: Mapping[str, ArrayLike], *, seed: int = 0) -> Disentanglement:
    """MIG, SAP, modularity and DCI of codes against known factors.

    Strings, booleans and whole numbers of up to 32 values are discrete factors; all else is continuous, and put into
    ten bins of equal counts where classes are needed. Factors that depend on each other lower modularity and
    disentanglement.

    Args:
        codes: (n, c), c at least 2.
        factors: name -> (n,), at least 2 of them.
        seed: of the forest, and of which half of the images is held out.

    Raises:
        NotMeasurable: there are fewer than 50 images, 2 codes or 2 factors, or a factor is constant.
        ValueError: a value is NaN or infinite, a code is constant, or the lengths do not fit.
    """
    codes, known = _checked(codes, factors)
    _require_enough(codes, known)
    return _scores(codes, known, seed)[0]


def group_class_information(
    mean_activations: ArrayLike, labels: ArrayLike, *, num_draws: int = 100, seed: int = 0
) -> tuple[Array, Array]:
    """What each group's activation says about an image's class, as a share of the label's entropy.

    Activations are put into 20 bins of equal counts. Shuffled labels have mutual information with them as well, by
    chance; its exact expectation (as in scikit-learn's adjusted mutual information) is subtracted, so a group that
    tells nothing scatters about 0.

    Args:
        mean_activations: (n, G), of each image.
        labels: (n,), the class.
        num_draws: shuffled labels.
        seed: of the shuffling.

    Returns:
        The shares (G,), at most 1, and those with shuffled labels (num_draws, G). Times the label's entropy in nats,
        they are mutual information in nats.

    Raises:
        NotMeasurable: there are fewer than 50 images, or one class.
        ValueError: a value is NaN or infinite, a group's activation is constant, or the lengths do not fit.
    """
    codes, known = _checked(mean_activations, {"label": np.asarray(labels).astype(str)}, are_codes="activations")
    _require_enough(codes, known, codes_wanted=1, factors_wanted=1)
    classes = known["label"].classes
    bins = _bins_of(codes)
    entropy = float(entr(np.bincount(classes) / len(classes)).sum())
    chance = _expected(bins, classes)
    rng = np.random.default_rng(seed)
    draws = np.stack([_information_with(bins, rng.permutation(classes)) for _ in range(num_draws)])
    return (_information_with(bins, classes) - chance) / entropy, (draws - chance) / entropy


@dataclass(frozen=True)
class ClassScores:
    """How far the mean activation of each group in each class lies from what shuffled labels give.

    Attributes:
        z: in standard deviations under shuffled labels, (G, C).
        labels: the C classes of at least five images, int64 (C,).
        threshold: shuffled labels bring any |z| of a group beyond it in about 5 % of cases (Bonferroni's bound).
    """

    z: Array
    labels: NDArray[np.int64]
    threshold: float


def class_scores(mean_activations: ArrayLike, labels: NDArray[np.int64]) -> ClassScores:
    """Compares each group's mean activation in each class with that under shuffled labels.

    The mean over the m images of a class, drawn without replacement from all n, has the standard deviation
    σ·√((n − m) / (m·(n − 1))), σ being that over all images; z is in units of it. Classes of fewer than five images
    are left out: a mean of so few is not nearly normal.

    Args:
        mean_activations: (n, G), of each image.
        labels: (n,), negative where there is none.

    Raises:
        NotMeasurable: fewer than two classes, or none of five images.
    """
    activity = np.asarray(mean_activations, np.float64)[labels >= 0]
    classes, inverse, sizes = np.unique(labels[labels >= 0], return_inverse=True, return_counts=True)
    large = sizes >= _MIN_CLASS_SIZE
    if len(classes) < 2:
        raise NotMeasurable(
            f"The {len(labels)} images are of one class at most; expected at least two, to compare them. "
            "Give more images."
        )
    if not large.any():
        raise NotMeasurable(
            f"No class has {_MIN_CLASS_SIZE} images, which a mean needs to be compared with others. Give more images."
        )
    means = np.stack([np.bincount(inverse, column) for column in activity.T], axis=1) / sizes[:, None]
    n = len(activity)
    spread = np.sqrt((n - sizes) / (sizes * (n - 1)))[:, None] * activity.std(axis=0)
    z = np.zeros_like(means)
    np.divide(means - activity.mean(axis=0), spread, out=z, where=(spread > 0) & ~is_constant(activity))
    return ClassScores(z[large].T, classes[large], float(norm.isf(0.025 / large.sum())))


def disentanglement_section(record: PatchRecord, *, num_draws: int = 20, seed: int = 0) -> Section:
    """Do the groups, or single latents, follow the known factors of scenes one by one?

    The codes are the groups' activations and the latents, as means over the patches of an image. Of six scores one
    beats chance by chance more often than one alone would. So the finding first asks whether the codes tell of any
    factor, by the G-test behind modularity and by informativeness, and only then how they part them.

    Args:
        record: of a SparseJEPA on a data set with `objects`.
        num_draws: shufflings of the images, for the null; half as many for latents, whose forests are larger.
        seed: of the shuffling and of the forests.

    Raises:
        NotMeasurable: there are no groups or no factors, or fewer than 50 images.
    """
    latents, maps = record.require_groups()
    factors = scene_factors(record.table)
    measures, sentences = [], []
    details: dict[str, Any] = {"factors": list(factors), "num_images": len(record), "seed": seed}
    not_measured: list[str] = []
    for key, what, values in (
        ("groups", "group activations", maps.mean(axis=(2, 3), dtype=np.float64)),
        ("latents", "latents", latents.mean(axis=1, dtype=np.float64)),
    ):
        draws = num_draws if key == "groups" else (num_draws + 1) // 2
        used = np.flatnonzero(~is_constant(values))
        try:
            codes, known = _checked(values[:, used], factors)
            _require_enough(codes, known)
        except NotMeasurable as reason:
            not_measured.append(f"For {what}: {reason}")
            continue
        scores, information = _scores(codes, known, seed)
        rng = np.random.default_rng(seed)
        shuffled = [_scores(codes[rng.permutation(len(codes))], known, seed)[0] for _ in range(draws)]
        own = [
            Measure(
                f"{_NAMES[name]} of {what}",
                value,
                (Null("shuffled images", tuple(getattr(draw, name) for draw in shuffled)),),
            )
            for name, value in vars(scores).items()
        ]
        measures += own
        details[key] = {
            "used": used.tolist(),
            "information_nats": information.tolist(),
            "best_code_of_factor": dict(zip(known, used[information.argmax(axis=0)].tolist(), strict=True)),
        }
        sentences.append(_sentence(what, scores, own))
    if not measures:
        raise NotMeasurable(" ".join(not_measured))
    details["not_measured"] = not_measured
    return Section(
        key="factors",
        title="Does a group stand for one factor?",
        measures=tuple(measures),
        finding=" ".join(sentences + not_measured),
        details=details,
    )


def class_section(record: PatchRecord, *, num_draws: int = 100, seed: int = 0) -> Section:
    """What do the groups' mean activations say about an image's class?

    Args:
        record: of a SparseJEPA on a data set with labels.
        num_draws: shuffled labels.
        seed: of the shuffling.

    Raises:
        NotMeasurable: there are no groups or labels, fewer than 50 images, one class, or no group that varies.
    """
    _, maps = record.require_groups()
    labels = record.require_labels()
    values = maps.mean(axis=(2, 3), dtype=np.float64)
    used = np.flatnonzero(~is_constant(values))
    if not len(used):
        raise NotMeasurable("No group's activation varies over images, so none can say anything about classes.")
    shares, draws = group_class_information(values[:, used], labels, num_draws=num_draws, seed=seed)
    frequency = np.unique(labels, return_counts=True)[1] / len(labels)
    entropy = float(entr(frequency).sum())
    best = Null("shuffled labels", tuple(map(float, draws.max(axis=1))))
    measures = (
        Measure("class information of the best group", float(shares.max()), (best,)),
        Measure(
            "class information of a group, on average",
            float(shares.mean()),
            (Null("shuffled labels", tuple(map(float, draws.mean(axis=1)))),),
        ),
    )
    # Against the most that any group tells by chance, so that many groups do not make one of them significant.
    above = int((shares > best.high).sum())
    known, chance = f"{100 * shares.max():.1f} % of what there is to know", f"{100 * best.high:.1f} %"
    finding = (
        f"Group {used[int(shares.argmax())]} says most about the class: {known}. With shuffled labels the best group "
        f"says up to {chance}. {above} of {len(used)} groups say more than chance."
        if above
        else f"No group says more about the class than chance would: at most {known}, and with shuffled labels up to "
        f"{chance}. This is no better than chance."
    )
    return Section(
        key="classes",
        title="Do groups follow classes?",
        measures=measures,
        finding=finding,
        details={
            "groups": used.tolist(),
            "by_group": {"Share of class information": for_each_group(used, shares, maps.shape[1])},
            "label_entropy_nats": entropy,
            "num_classes": len(frequency),
            "num_images": len(labels),
            "seed": seed,
        },
    )


_NAMES = {
    "mig": "MIG",
    "sap": "SAP",
    "modularity": "modularity",
    "disentanglement": "DCI disentanglement",
    "completeness": "DCI completeness",
    "informativeness": "DCI informativeness",
}


def _sentence(what: str, scores: Disentanglement, measures: list[Measure]) -> str:
    beats = {name: measure.exceeds(measure.nulls[0]) for name, measure in zip(vars(scores), measures, strict=True)}
    beaten = [_NAMES[name] for name, is_beaten in beats.items() if is_beaten]
    if not (scores.modularity > 0 and beats["informativeness"]):
        verdict = "This is no better than chance"
    elif len(beaten) == len(measures):
        verdict = "Every score is better than chance"
    else:
        verdict = f"These scores alone are better than chance: {', '.join(beaten)}"
    if "no better" not in verdict and max(scores.mig, scores.sap) < _LITTLE:
        verdict += ". MIG and SAP are near 0, so no factor has a code of its own"
    return (
        f"From the {what}, the known factors are predicted with a score of {scores.informativeness:.2f}, where 0 is "
        f"chance and 1 is perfect. {verdict}."
    )


@dataclass(frozen=True)
class _Factor:
    """A factor's values: `classes` (n,) from 0 on, and `values` as numbers where it is continuous."""

    classes: NDArray[np.int64]
    values: Array | None


def _checked(
    codes: ArrayLike, factors: Mapping[str, ArrayLike], are_codes: str = "codes"
) -> tuple[Array, dict[str, _Factor]]:
    codes = np.asarray(codes, np.float64)
    if codes.ndim != 2:
        raise ValueError(f"The {are_codes} have the shape {codes.shape}; expected (n, c).")
    if not np.isfinite(codes).all():
        raise ValueError(f"The {are_codes} have NaN or infinite values; expected finite ones.")
    constant = np.flatnonzero(is_constant(codes))
    if len(constant) and len(codes) > 1:
        raise ValueError(f"Of the {are_codes}, column {constant[0]} is constant; leave it out.")
    known = {}
    for name, given in factors.items():
        values = np.asarray(given)
        if values.shape != (len(codes),):
            raise ValueError(f"The factor {name!r} has the shape {values.shape}; expected ({len(codes)},).")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"The factor {name!r} has NaN or infinite values; expected finite ones.")
        distinct, classes = np.unique(values, return_inverse=True)
        if len(distinct) < 2:
            raise NotMeasurable(
                f"All {len(codes)} images have the same value of {name!r}; expected two different ones at least."
            )
        if values.dtype.kind in "USb" or (values.dtype.kind in "iu" and len(distinct) <= _MAX_CLASSES):
            known[name] = _Factor(classes, None)
        elif values.dtype.kind in "iuf":
            known[name] = _Factor(_bins(values, _FACTOR_BINS), values.astype(np.float64))
        else:
            raise ValueError(f"The factor {name!r} has the dtype {values.dtype}; expected strings or numbers.")
    return codes, known


def _require_enough(
    codes: Array, known: Mapping[str, _Factor], codes_wanted: int = 2, factors_wanted: int = 2
) -> None:
    if len(codes) < MIN_IMAGES or codes.shape[1] < codes_wanted or len(known) < factors_wanted:
        raise NotMeasurable(
            f"Images: {len(codes)}, codes that vary: {codes.shape[1]}, known factors: {len(known)}; expected at least "
            f"{MIN_IMAGES}, {codes_wanted} and {factors_wanted}."
        )


def _bins(values: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Bins of equal counts, numbered from 0 without gaps; equal values share a bin, few values keep one each."""
    distinct, numbers = np.unique(values, return_inverse=True)
    if len(distinct) <= count:
        return numbers
    place = (rankdata(values) - 0.5) / len(values)
    return np.unique(np.minimum((count * place).astype(np.int64), count - 1), return_inverse=True)[1]


def _bins_of(codes: Array) -> NDArray[np.int64]:
    return np.stack([_bins(column, _CODE_BINS) for column in codes.T], axis=1)


def _tables(bins: NDArray[np.int64], classes: NDArray[np.int64]) -> Array:
    """Counts of every code's bins and the classes: (c, bins, classes)."""
    codes, rows, columns = bins.shape[1], int(bins.max()) + 1, int(classes.max()) + 1
    index = (np.arange(codes) * rows + bins) * columns + classes[:, None]
    return (
        np.bincount(index.ravel(), minlength=codes * rows * columns).reshape(codes, rows, columns).astype(np.float64)
    )


def _information_with(bins: NDArray[np.int64], classes: NDArray[np.int64]) -> Array:
    """Plug-in mutual information of each code with the classes in nats: (c,)."""
    joint = _tables(bins, classes) / len(classes)
    independent = joint.sum(axis=2, keepdims=True) * joint.sum(axis=1, keepdims=True)
    # Clipped, for rounding alone puts it below 0.
    return np.maximum((xlogy(joint, joint) - xlogy(joint, np.where(joint > 0, independent, 1))).sum(axis=(1, 2)), 0)


def _information(bins: NDArray[np.int64], known: Mapping[str, _Factor]) -> Array:
    return np.stack([_information_with(bins, factor.classes) for factor in known.values()], axis=1)


def _expected(bins: NDArray[np.int64], classes: NDArray[np.int64]) -> Array:
    """The exact mean of [`_information_with`] over all orders of the classes: (c,)."""
    found: dict[bytes, float] = {}  # Bins of equal counts are mostly the same for every code.
    means = []
    for table in _tables(bins, classes):
        table = table[table.sum(axis=1) > 0]
        key = np.sort(table.sum(axis=1)).tobytes()
        if key not in found:
            found[key] = float(expected_mutual_information(table.astype(np.int64), len(classes)))
        means.append(found[key])
    return np.asarray(means)


def _gap(scores: Array) -> Array:
    """Best minus second best code of each factor: (f,), from (c, f)."""
    ordered = np.sort(scores, axis=0)
    return ordered[-1] - ordered[-2]


def _scores(codes: Array, known: Mapping[str, _Factor], seed: int) -> tuple[Disentanglement, Array]:
    """All scores, and the mutual information (c, f)."""
    bins = _bins_of(codes)
    information = _information(bins, known)
    entropies = np.array([entr(np.bincount(f.classes) / len(codes)).sum() for f in known.values()])
    held_out = np.random.default_rng(seed).permutation(len(codes)) < len(codes) // 2
    importances, informativeness = _forest_importances(codes, known, held_out, seed)
    of_codes, of_factors = _specialisation(importances, axis=1), _specialisation(importances, axis=0)
    weights = importances.sum(axis=1)
    scores = Disentanglement(
        mig=float((_gap(information) / entropies).mean()),
        sap=float(_gap(_predictability(codes, bins, known, held_out)).mean()),
        modularity=_modularity(_beyond_noise(information, bins, known)),
        disentanglement=float(of_codes @ weights / weights.sum()) if weights.sum() > 0 else 0.0,
        completeness=float(of_factors.mean()),
        informativeness=informativeness,
    )
    return scores, information


def _modularity(information: Array) -> float:
    """Ridgeway & Mozer's 1 − Σ_f (m_if − t_if)²/(θ_i²(F − 1)), where t_i keeps the largest alone, θ_i; mean over codes
    that tell something."""
    information = information[information.max(axis=1) > 0]
    if not len(information):
        return 0.0
    largest = information.max(axis=1)
    others = (information**2).sum(axis=1) - largest**2
    return float((1 - others / (largest**2 * (information.shape[1] - 1))).mean())


def _beyond_noise(information: Array, bins: NDArray[np.int64], known: Mapping[str, _Factor]) -> Array:
    """Mutual information (c, f) beyond its mean by chance, 0 where it may be chance."""
    beyond = np.zeros_like(information)
    rows = np.array([len(np.unique(column)) for column in bins.T])
    for place, factor in enumerate(known.values()):
        freedom = (rows - 1) * factor.classes.max()
        chance = _expected(bins, factor.classes)
        # Bartlett's correction: with few images in a bin the statistic is larger than chi-squared, so it is scaled to
        # the mean that it has by chance.
        statistic = freedom * information[:, place] / chance
        is_found = chi2.sf(statistic, freedom) < _LEVEL / information.size
        beyond[:, place] = np.where(is_found, information[:, place] - chance, 0)
    return np.maximum(beyond, 0)


def _predictability(
    codes: Array, bins: NDArray[np.int64], known: Mapping[str, _Factor], held_out: NDArray[np.bool_]
) -> Array:
    """SAP's score of every code alone for every factor: (c, f)."""
    columns = []
    for factor in known.values():
        if factor.values is not None:
            centred = factor.values - factor.values.mean()
            deviation = codes - codes.mean(axis=0)
            columns.append((centred @ deviation) ** 2 / ((centred @ centred) * (deviation**2).sum(axis=0)))
            continue
        counts = _tables(bins[~held_out], factor.classes[~held_out])
        # Of the class most frequent in the bin, relative to its frequency: the threshold for balanced accuracy.
        guess = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).argmax(axis=2)
        truth = factor.classes[held_out]
        columns.append(
            np.array(
                [
                    _beyond_chance(truth, guess[code][np.minimum(bins[held_out, code], guess.shape[1] - 1)])
                    for code in range(codes.shape[1])
                ]
            )
        )
    return np.stack(columns, axis=1)


def _beyond_chance(truth: NDArray[np.int64], guess: NDArray[np.int64]) -> float:
    """Balanced accuracy, rescaled so that chance is 0 and perfect is 1; at least 0."""
    hits = np.bincount(truth, weights=truth == guess)
    present = np.bincount(truth)
    rates = hits[present > 0] / present[present > 0]
    if len(rates) < 2:
        return 0.0
    return max(0.0, float((rates.mean() - 1 / len(rates)) / (1 - 1 / len(rates))))


def _forest_importances(
    codes: Array, known: Mapping[str, _Factor], held_out: NDArray[np.bool_], seed: int
) -> tuple[Array, float]:
    """Importances (c, f), columns summing to 1 or all 0, and the mean score on held-out images."""
    columns, scores = [], []
    for factor in known.values():
        # All codes at every split: with a few of them at a time, codes of noise get a share.
        options = {**_FOREST, "max_features": None, "random_state": seed}
        if factor.values is None:
            forest = RandomForestClassifier(class_weight="balanced", **options)
            forest.fit(codes[~held_out], factor.classes[~held_out])
            score = _beyond_chance(factor.classes[held_out], forest.predict(codes[held_out]))
        else:
            forest = RandomForestRegressor(**options).fit(codes[~held_out], factor.values[~held_out])
            score = max(0.0, r2_score(factor.values[held_out], forest.predict(codes[held_out])))
        columns.append(forest.feature_importances_)
        scores.append(score)
    return np.stack(columns, axis=1), float(np.mean(scores))


def _specialisation(importances: Array, axis: int) -> Array:
    """1 − entropy of the shares along `axis`, over its largest; 0 where there is no importance."""
    total = importances.sum(axis=axis, keepdims=True)
    shares = np.divide(importances, total, out=np.zeros_like(importances), where=total > 0)
    values = 1 - entr(shares).sum(axis=axis) / np.log(importances.shape[axis])
    return np.where(total.squeeze(axis) > 0, values, 0.0)
