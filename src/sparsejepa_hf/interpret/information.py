# Copyright 2026 The sparsejepa_hf authors. Licensed under the Apache License, Version 2.0.
"""Total correlation, and how much of it a grouping gathers inside its groups, against random groupings.

The total correlation TC(X) = KL(p(x) || Π p(x_i)), also called multiinformation, is in nats. For any partition of the
variables into groups, TC(X) = TC(G) + Σ_g TC(X_i : i in g): what is redundant lies between groups or within them.

The nearest-neighbour estimator is written here on SciPy's k-d tree. The package `infomeasure` was looked at: its KSG
estimator is for two variables, loops over points in Python, and counts a neighbour at exactly the distance that the
formula leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree
from scipy.special import digamma, ndtri
from scipy.stats import rankdata
from sklearn.covariance import ledoit_wolf

from .groups import GroupStructure
from .measures import Measure, NotMeasurable, Null, Section
from .patches import PatchRecord


Array = NDArray[np.float64]

ESTIMATORS = ("gaussian", "copula")
# Images are resampled in at most so many bundles: their moments fit into memory, and an interval needs no more.
_MAX_BUNDLES = 500
# KSG's error grows fast with the number of variables.
_MAX_KSG_VARIABLES = 10
# What a column's standard deviation must exceed, relative to its largest value: below is rounding noise.
_CONSTANT = 1e-7
# An eigenvalue of correlations below is rounding noise: 32-bit numbers leave 1e-14.
_SINGULAR = 1e-10
# Share of a variable's variance that is noise where groupings are compared.
_MIN_NOISE = 0.01
# Fewer images say nothing of how groups' activations depend on each other.
_MIN_IMAGES = 20


def normal_scores(data: ArrayLike) -> Array:
    """Each column's values replaced by the standard normal quantiles of their ranks; ties share one.

    The total correlation does not change when each variable is mapped monotonically, and the Gaussian form of these
    scores is the estimator of Ince et al. (2017), "A statistical framework for neuroimaging data analysis based on
    mutual information estimated via a Gaussian copula".

    Args:
        data: (n, d).

    Returns:
        (n, d).
    """
    data = _table(data)
    return ndtri(rankdata(data, axis=0) / (len(data) + 1))


def shrunk_correlation(data: ArrayLike, estimator: str = "gaussian") -> Array:
    """Correlations of the columns, shrunk towards none at all as Ledoit & Wolf (2004) do.

    The columns are standardised first, so that the estimate does not depend on their units.

    Args:
        data: (n, d), one row per observation.
        estimator: `"gaussian"` for Pearson's correlation, `"copula"` for that of the [`normal_scores`].

    Returns:
        (d, d), positive definite, with ones on the diagonal.

    Raises:
        ValueError: there are not more rows than columns, a value is NaN or infinite, a column is constant, or the
            estimator is unknown.
    """
    return _standardised_correlation(_scores(_table(data), estimator))[0]


def total_correlation(data: ArrayLike, estimator: str = "gaussian") -> float:
    """Total correlation of the columns in nats, >= 0: ½(Σ log Σ_ii − log det Σ) of the [`shrunk_correlation`] Σ.

    `"gaussian"` is exact for Gaussian variables. `"copula"` is exact for variables that are Gaussian after a monotone
    map of each. For all others both see only part of the dependence. With n independent rows both are too high by
    about d(d − 1)/4n where nothing depends, less what the shrinkage takes away.

    Args:
        data: (n, d).
        estimator: `"gaussian"` or `"copula"`.

    Raises:
        ValueError: as [`shrunk_correlation`], or a column is a sum of others: the total correlation is infinite.
    """
    scores = _scores(_table(data), estimator)
    rank, d = _rank(scores), scores.shape[1]
    if rank < d:
        raise ValueError(
            f"The {d} columns span only {rank} dimensions, so their total correlation is infinite; leave out columns "
            "that are sums of others."
        )
    return max(0.0, -0.5 * _log_det(_standardised_correlation(scores)[0]))


def total_correlation_ksg(data: ArrayLike, num_neighbors: int = 4) -> float:
    """Total correlation of a few columns in nats from distances to nearest neighbours, for any kind of dependence.

    The estimator I⁽¹⁾ for m variables of Kraskov, Stögbauer & Grassberger (2004), eq. 23:
    ψ(k) + (m − 1)ψ(n) − ⟨Σ_i ψ(n_i + 1)⟩, where n_i counts the points that are strictly nearer in variable i than the
    k-th neighbour is in the maximum norm. It scatters about 0 for independent variables and may be negative; strong
    dependence in many variables comes out too low. Rows must be independent of each other.

    Args:
        data: (n, d), d from 2 to 10.
        num_neighbors: k, at least 1 and less than n.

    Raises:
        ValueError: the number of columns or k is out of its range, values are NaN, or rows coincide.
    """
    data = _table(data)
    n, d = data.shape
    if not 2 <= d <= _MAX_KSG_VARIABLES:
        raise ValueError(
            f"{d} columns are given; nearest neighbours say something for 2 to {_MAX_KSG_VARIABLES} of them. "
            "Use the Gaussian copula for more."
        )
    if not 1 <= num_neighbors < n:
        raise ValueError(f"num_neighbors is {num_neighbors}; expected from 1 to {n - 1} for {n} rows.")
    data = _standardise(data)
    distance = cKDTree(data).query(data, k=num_neighbors + 1, p=np.inf)[0][:, -1]
    if (distance == 0).any():
        raise ValueError(
            f"{int((distance == 0).sum())} of {n} rows coincide with at least {num_neighbors} others; the estimator "
            "is for continuous values. Add a little noise, or use the Gaussian copula."
        )
    # Strictly nearer; the factor keeps rounding from counting the k-th neighbour itself.
    radius = distance * (1 - 1e-10)
    total = digamma(num_neighbors) + (d - 1) * digamma(n)
    for column in data.T:
        ordered = np.sort(column)
        inside = np.searchsorted(ordered, column + radius, "right") - np.searchsorted(ordered, column - radius, "left")
        total -= digamma(inside).mean()  # The point itself is inside: it is the 1 in n_i + 1.
    return float(total)


@dataclass(frozen=True)
class Decomposition:
    """TC(X) = TC(G) + Σ_g TC(X_i : i in g) of Gaussian variables with one common covariance, in nats.

    Attributes:
        total: TC(X).
        between: TC(G), of the groups as wholes.
        within: of the variables of each group, in the order of `np.unique(assignment)`; 0 for a single variable.
    """

    total: float
    between: float
    within: tuple[float, ...]

    @property
    def within_share(self) -> float:
        """Σ_g TC(within g) / TC(X), from 0 to 1; 0 where TC(X) is 0."""
        return sum(self.within) / self.total if self.total > 0 else 0.0


def decompose(covariance: ArrayLike, assignment: ArrayLike) -> Decomposition:
    """Splits the total correlation of Gaussian variables into that between groups and that within them.

    Each of the three is computed from log-determinants of its own, so that their identity can be tested.

    Args:
        covariance: (d, d), positive definite.
        assignment: (d,), the group of each variable.

    Raises:
        ValueError: the shapes do not fit, or the covariance is not positive definite.
    """
    covariance, assignment = np.asarray(covariance, np.float64), np.asarray(assignment)
    if covariance.ndim != 2 or covariance.shape != (len(assignment),) * 2:
        raise ValueError(
            f"The covariance has the shape {covariance.shape} and the assignment {assignment.shape}; expected (d, d) "
            "and (d,)."
        )
    log_variance, log_det = np.log(np.diag(covariance)), _log_det(covariance)
    within, log_blocks = [], 0.0
    for group in np.unique(assignment):
        members = np.flatnonzero(assignment == group)
        log_block = _log_det(covariance[np.ix_(members, members)])
        within.append(0.5 * float(log_variance[members].sum() - log_block))
        log_blocks += log_block
    return Decomposition(
        total=0.5 * float(log_variance.sum() - log_det),
        between=0.5 * float(log_blocks - log_det),
        within=tuple(within),
    )


@dataclass(frozen=True)
class GroupingRedundancy:
    """How much of the redundancy of variables a grouping has inside its groups.

    Attributes:
        decomposition: of the estimate.
        share: Σ_g TC(within g) / TC(X), from 0 to 1.
        share_interval: 95 %, from resampled images.
        total_interval: of TC(X), 95 %, in nats.
        random_shares: of random groupings of the same sizes.
        searched_share: of a grouping of the same sizes that was sought for a high share: what is there to be had. The
            search climbs to a local optimum, so the best grouping may have more.
        noise: share of each variable's variance that is noise in what was measured, from 0 to 1: the shrinkage.
        rank: dimensions that the variables span. With fewer than there are variables, TC(X) is infinite, and what
            `decomposition` holds is what the noise leaves of it.
        bias: TC(X) in nats that the estimator finds where nothing depends: the columns shuffled apart.
        num_images: images.
        num_tokens: patches of each image that were used.
        group_sizes: variables in each group.
    """

    decomposition: Decomposition
    share: float
    share_interval: tuple[float, float]
    total_interval: tuple[float, float]
    random_shares: tuple[float, ...]
    searched_share: float
    noise: float
    rank: int
    bias: float
    num_images: int
    num_tokens: int
    group_sizes: tuple[int, ...]

    @property
    def percentile(self) -> float:
        """Percentage of random groupings with a share below the grouping's; ties count half."""
        shares = np.asarray(self.random_shares)
        return float(100 * ((shares < self.share).mean() + 0.5 * (shares == self.share).mean()))

    @property
    def p_value(self) -> float:
        """Of the permutation test that a random grouping of the same sizes has at least this share."""
        return float((1 + (np.asarray(self.random_shares) >= self.share).sum()) / (1 + len(self.random_shares)))

    @property
    def gathered(self) -> float:
        """Where the share lies from the random groupings' mean, 0, to the searched grouping, 1."""
        mean = float(np.mean(self.random_shares))
        room = self.searched_share - mean
        return (self.share - mean) / room if room > 0 else 0.0


def grouping_redundancy(
    data: ArrayLike,
    assignment: ArrayLike,
    *,
    estimator: str = "gaussian",
    num_draws: int = 200,
    num_bootstrap: int = 100,
    max_tokens: int = 16,
    min_noise: float = _MIN_NOISE,
    seed: int = 0,
) -> GroupingRedundancy:
    """Whether a grouping puts variables that depend on each other into one group, more than chance would.

    A share alone means nothing: fewer and larger groups hold more of any redundancy. So the same variables are also
    grouped at random, with the same sizes, and the learned grouping is one draw among these.

    Two models are compared fairly where variables, sizes and null are made in one way. SparseJEPA's latents have no
    counterpart in I-JEPA. Principal components do not give one: they are uncorrelated by construction, whatever the
    model. Both models do have the features of the encoder, and in both group g predicts the g-th slice of D/G of
    them: only in SparseJEPA does that slice come from a group. So compare the slices of the features of both
    ([`feature_slices`]). For I-JEPA the slices mean nothing, and its share has to fall among the random ones.

    Variables that are sums of others make TC(X) infinite: latents span no more than the predictor's width, features
    after a LayerNorm one dimension less than there are. So each variable is seen through noise. Shrinking correlations
    by s does just that: it gives those of √(1 − s)·x plus independent noise of variance s. The noise is that of Ledoit
    and Wolf, or `min_noise` if this is more, which is the same for every model that is compared.

    Patches of an image depend on each other, so intervals come from resampled images. They are "basic" bootstrap
    intervals, which take out the bias that resampling adds. The shrinkage is found once and kept.

    Args:
        data: (n_images, n_tokens, d): a variable's value at each patch. (n_images, d) is one token an image.
        assignment: (d,), the group of each variable.
        estimator: `"gaussian"` or `"copula"`; the ranks of the copula are taken once, of all images.
        num_draws: random groupings.
        num_bootstrap: resamplings of the images.
        max_tokens: patches used of each image, drawn at random for each; enough, as patches of an image are alike.
        min_noise: least share of each variable's variance that is noise, above 0 and below 1.
        seed: of the patches, the random groupings and the resampling.

    Raises:
        NotMeasurable: there are not more images than variables, one group has them all, each has a group alone, or
            the variables share nothing.
        ValueError: a value is NaN or infinite, a variable is constant, the shapes do not fit, or an argument is out of
            its range.
    """
    data, assignment = np.asarray(data), np.asarray(assignment)
    if data.ndim == 2:
        data = data[:, None]
    if data.ndim != 3 or assignment.shape != data.shape[2:]:
        raise ValueError(
            f"The data have the shape {data.shape} and the assignment {assignment.shape}; expected "
            "(n_images, n_tokens, d) and (d,)."
        )
    if min(num_draws, num_bootstrap, max_tokens) < 1:
        raise ValueError(
            f"num_draws, num_bootstrap and max_tokens are {num_draws}, {num_bootstrap} and {max_tokens}; expected at "
            "least 1 each."
        )
    if not 0 < min_noise < 1:
        raise ValueError(f"min_noise is {min_noise}; expected above 0 and below 1.")
    images, tokens, d = data.shape
    sizes = np.unique(assignment, return_counts=True)[1]
    if images <= d:
        raise NotMeasurable(
            f"Images: {images}, too few for the total correlation of {d} variables; give more than {d} images."
        )
    if len(sizes) == 1 or sizes.max() == 1:
        raise NotMeasurable(
            f"The {d} variables are all in one group, or each in a group of its own. Every grouping of these sizes "
            "has the same redundancy inside, so nothing can be compared with chance."
        )
    rng = np.random.default_rng(seed)
    data = _draw_tokens(data, max_tokens, rng).astype(np.float64)
    tokens = data.shape[1]
    scores = _scores(_table(data.reshape(-1, d)), estimator)
    correlation, shrinkage = _standardised_correlation(scores, min_noise)
    decomposition = decompose(correlation, assignment)
    bias = _total_correlation_apart(scores.reshape(images, tokens, d), shrinkage, rng)
    if decomposition.total <= max(bias, 1e-9):
        raise NotMeasurable(
            f"The {d} variables share {decomposition.total:.3g} nats, no more than the {bias:.3g} that the estimator "
            "finds where nothing depends; there is no redundancy to gather."
        )
    random_shares = _within_shares(correlation, [rng.permutation(assignment) for _ in range(num_draws)])
    searched = searched_grouping(correlation, assignment)
    resampled = _resampled_correlations(scores.reshape(images, tokens, d), shrinkage, num_bootstrap, rng)
    totals = -0.5 * np.linalg.slogdet(resampled)[1]
    shares = np.array([_within_shares(draw, [assignment])[0] for draw in resampled])
    return GroupingRedundancy(
        decomposition=decomposition,
        share=decomposition.within_share,
        share_interval=_basic_interval(decomposition.within_share, shares, 0.0, 1.0),
        total_interval=_basic_interval(decomposition.total, totals, 0.0, np.inf),
        random_shares=tuple(map(float, random_shares)),
        searched_share=float(_within_shares(correlation, [searched])[0]),
        noise=shrinkage,
        rank=_rank(scores),
        bias=bias,
        num_images=images,
        num_tokens=tokens,
        group_sizes=tuple(map(int, sizes)),
    )


def feature_slices(num_features: int, num_groups: int) -> NDArray[np.int64]:
    """The group that predicts each feature: (D,), slices of D/G features in order.

    Raises:
        ValueError: D is no multiple of G.
    """
    if num_groups < 1 or num_features % num_groups:
        raise ValueError(
            f"{num_features} features do not divide into {num_groups} groups; expected a multiple of the groups."
        )
    return np.repeat(np.arange(num_groups), num_features // num_groups)


def searched_grouping(correlation: ArrayLike, assignment: ArrayLike) -> NDArray[np.int64]:
    """A grouping of the same sizes that puts strong correlations into groups.

    From `assignment` on, the two variables are swapped whose swap raises the sum of squared correlations within groups
    most, until none does: a local optimum.

    Args:
        correlation: (d, d).
        assignment: (d,).

    Returns:
        (d,), groups numbered from 0 in the order of `np.unique(assignment)`.
    """
    strength = np.asarray(correlation, np.float64) ** 2
    np.fill_diagonal(strength, 0)
    groups = np.unique(assignment, return_inverse=True)[1]
    everyone = np.arange(len(groups))
    while True:
        ties = strength @ np.eye(groups.max() + 1)[groups]  # (d, G): how strongly a variable is tied to a group
        gain = ties[:, groups] - ties[everyone, groups][:, None]
        gain = gain + gain.T - 2 * strength
        gain[groups[:, None] == groups] = 0
        first, second = np.unravel_index(gain.argmax(), gain.shape)
        if gain[first, second] <= 1e-9:
            return groups
        groups[[first, second]] = groups[[second, first]]


def is_constant(data: np.ndarray) -> NDArray[np.bool_]:
    """Which columns of (n, d) vary by no more than rounding: (d,)."""
    return data.std(axis=0) <= _CONSTANT * np.abs(data).max(axis=0, initial=0)


def information_section(
    record: PatchRecord,
    structure: GroupStructure | None,
    *,
    baseline: PatchRecord | None = None,
    num_draws: int = 200,
    num_bootstrap: int = 100,
    seed: int = 0,
) -> Section:
    """Is multiinformation gathered inside the learned groups, more than in groups drawn at random?

    Measured on the latents by both estimators, on the slices of the encoder's features and of the baseline's, and, as
    a total, on the groups' mean activations. A latent of several groups counts for the one it matters most to.

    Args:
        record: of a SparseJEPA.
        structure: its groups.
        baseline: of an I-JEPA on the same images, if there is one.
        num_draws: random groupings.
        num_bootstrap: resamplings of the images.
        seed: of everything random.

    Raises:
        NotMeasurable: there are no groups, too few images, or nothing that varies.
        ValueError: the baseline saw other images.
    """
    latents, maps = record.require_groups()
    if structure is None:
        raise ValueError("The record has groups, but structure is None; give the record's group_structure.")
    if baseline is not None and len(baseline) != len(record):
        raise ValueError(f"The baseline saw {len(baseline)} images and the model {len(record)}; expected the same.")
    measures: list[Measure] = []
    sentences: list[str] = []
    not_measured: list[str] = []
    deficient: list[str] = []
    details: dict[str, Any] = {"seed": seed, "num_draws": num_draws, "num_bootstrap": num_bootstrap}

    def compare(values: np.ndarray, groups: np.ndarray, what: str, key: str, estimator: str = "gaussian") -> None:
        is_used = (groups >= 0) & ~is_constant(values.reshape(-1, values.shape[-1]))
        details[f"{key}_left_out"] = int((~is_used).sum())
        try:
            if is_used.sum() < 2:
                raise NotMeasurable(
                    f"{int(is_used.sum())} of {len(groups)} variables are in a group and vary; expected at least 2."
                )
            result = grouping_redundancy(
                values[..., is_used],
                groups[is_used],
                estimator=estimator,
                num_draws=num_draws,
                num_bootstrap=num_bootstrap,
                seed=seed,
            )
        except NotMeasurable as reason:
            if (sentence := f"For {what}: {reason}") not in not_measured:
                not_measured.append(sentence)
            return
        if estimator == "gaussian" and result.rank < is_used.sum():
            deficient.append(f"{result.rank} by the {int(is_used.sum())} variables of {what}")
        measures.append(_share_measure(result, what, estimator))
        details[f"{key}_{estimator}"] = _summary(result)
        if estimator == "gaussian":
            sentences.append(_share_sentence(result, what, measures[-1]))

    for estimator in ESTIMATORS:
        compare(latents, structure.assignment, "the latents' groups", "latents", estimator)
    slices = feature_slices(record.features.shape[-1], len(structure.importance))
    compare(record.features, slices, "the slices of this encoder's features", "features")
    if baseline is not None and baseline.features.shape[-1] != record.features.shape[-1]:
        not_measured.append(
            f"The baseline has {baseline.features.shape[-1]} features and the model {record.features.shape[-1]}; "
            "expected the same, to cut both into the same slices."
        )
    elif baseline is not None:
        compare(baseline.features, slices, "the slices of the baseline's features", "baseline_features")
    if deficient:
        sentences.append(
            f"Some variables are sums of others (dimensions spanned: {'; '.join(deficient)}), which makes their total "
            f"correlation infinite. So noise of {100 * _MIN_NOISE:.0f} % of the variance was added first."
        )
    try:
        together, sentence = _activation_measures(maps.mean(axis=(2, 3), dtype=np.float64), seed)
    except NotMeasurable as reason:
        not_measured.append(f"For the groups' activations: {reason}")
    else:
        measures += together
        sentences.append(sentence)
    if not measures:
        raise NotMeasurable(" ".join(not_measured))
    details["not_measured"] = not_measured
    return Section(
        key="information",
        title="Do groups gather what is redundant?",
        measures=tuple(measures),
        finding=" ".join(dict.fromkeys(sentences + not_measured)),
        details=details,
    )


def _share_measure(result: GroupingRedundancy, what: str, estimator: str) -> Measure:
    return Measure(
        name=f"share of the redundancy inside {what} ({'Gaussian' if estimator == 'gaussian' else 'Gaussian copula'})",
        value=result.share,
        nulls=(Null("random groupings of the same sizes", result.random_shares),),
        interval=result.share_interval,
    )


def _share_sentence(result: GroupingRedundancy, what: str, measure: Measure) -> str:
    null = measure.nulls[0]
    if measure.exceeds(null):
        verdict = "more than chance"
    elif result.share_interval[1] < null.low:
        verdict = "less than chance. Members of a group share less with each other than members drawn at random do"
    else:
        verdict = "no better than chance"
    return (
        f"{100 * result.share:.1f} % of the redundancy lies inside {what}: {verdict}. Random groupings of the same "
        f"sizes hold {100 * null.low:.1f} to {100 * null.high:.1f} %."
    )


def _summary(result: GroupingRedundancy) -> dict[str, Any]:
    return {
        "total_correlation_nats": result.decomposition.total,
        "total_correlation_interval": list(result.total_interval),
        "between_groups_nats": result.decomposition.between,
        "within_groups_nats": list(result.decomposition.within),
        "bias_where_independent_nats": result.bias,
        "noise": result.noise,
        "rank": result.rank,
        "share": result.share,
        "share_interval": list(result.share_interval),
        "random_share_mean": float(np.mean(result.random_shares)),
        "searched_share": result.searched_share,
        "gathered": result.gathered,
        "percentile": result.percentile,
        "p_value": result.p_value,
        "num_images": result.num_images,
        "num_tokens": result.num_tokens,
        "group_sizes": list(result.group_sizes),
    }


def _activation_measures(means: Array, seed: int, num_draws: int = 20) -> tuple[list[Measure], str]:
    """How much the groups' mean activations (n, G) share: one independent row for each image."""
    means = means[:, ~is_constant(means)]
    images, groups = means.shape
    if groups < 2 or images <= max(groups, _MIN_IMAGES):
        raise NotMeasurable(
            f"Images: {images}, groups that vary: {groups}; expected at least 2 groups, and more than "
            f"{max(groups, _MIN_IMAGES)} images."
        )
    if _rank(normal_scores(means)) < groups:
        raise NotMeasurable(f"Some of the {groups} groups have the same activations, so what they share is infinite.")
    estimators: dict[str, Callable[[Array], float]] = {
        "Gaussian copula": lambda data: total_correlation(data, "copula")
    }
    # Nearest neighbours see every kind of dependence, but need few variables, and rows that differ.
    if groups <= _MAX_KSG_VARIABLES and len(np.unique(means, axis=0)) == images:
        estimators["nearest neighbours"] = total_correlation_ksg
    measures = []
    for name, estimate in estimators.items():
        rng = np.random.default_rng(seed)
        null = Null("shuffled images", tuple(estimate(rng.permuted(means, axis=0)) for _ in range(num_draws)))
        what = f"total correlation of the groups' mean activations ({name})"
        measures.append(Measure(what, estimate(means), (null,), unit="nats"))
    found = " and ".join(
        f"{measure.value:.2f} nats by {name}" for name, measure in zip(estimators, measures, strict=True)
    )
    is_shared = any(measure.exceeds(measure.nulls[0]) for measure in measures)
    return measures, (
        f"Over images, the mean activations of {groups} groups share {found}, against at most "
        f"{max(measure.nulls[0].high for measure in measures):.2f} where images are shuffled: "
        f"{'groups are not independent of each other' if is_shared else 'no better than chance'}."
    )


def _table(data: ArrayLike) -> Array:
    """A checked (n, d) array of more rows than columns."""
    data = np.asarray(data, np.float64)
    if data.ndim != 2 or data.shape[1] < 1:
        raise ValueError(f"The data have the shape {data.shape}; expected (n, d).")
    if len(data) <= data.shape[1]:
        raise ValueError(f"{len(data)} rows are too few for {data.shape[1]} columns; give more rows than columns.")
    if not np.isfinite(data).all():
        raise ValueError(f"{int((~np.isfinite(data)).sum())} values are NaN or infinite; expected finite ones.")
    constant = np.flatnonzero(is_constant(data))
    if len(constant):
        raise ValueError(
            f"{len(constant)} columns are constant, the first is number {constant[0]}; leave them out: they share "
            "nothing with others."
        )
    return data


def _scores(data: Array, estimator: str) -> Array:
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator is {estimator!r}; expected one of: {', '.join(map(repr, ESTIMATORS))}.")
    return normal_scores(data) if estimator == "copula" else data


def _standardise(data: Array) -> Array:
    centred = data - data.mean(axis=0)
    return centred / centred.std(axis=0)


def _standardised_correlation(scores: Array, least: float = 0.0) -> tuple[Array, float]:
    """The shrunk correlation (d, d), and how far it is shrunk, from `least` to 1."""
    scores = _standardise(scores)
    correlation, shrinkage = ledoit_wolf(scores, assume_centered=True)
    if shrinkage < least:
        shrinkage = least
        correlation = (1 - least) * (scores.T @ scores) / len(scores) + least * np.eye(scores.shape[1])
    return correlation, float(shrinkage)


def _rank(scores: Array) -> int:
    """Dimensions that the columns span, up to the rounding of 32-bit numbers."""
    scores = _standardise(scores)
    return int((np.linalg.eigvalsh(scores.T @ scores / len(scores)) > _SINGULAR).sum())


def _log_det(covariance: Array) -> float:
    sign, value = np.linalg.slogdet(covariance)
    if sign <= 0 or not np.isfinite(value):
        raise ValueError(
            "The covariance is not positive definite: a variable is a sum of others. Leave one of them out."
        )
    return float(value)


def _within_shares(correlation: Array, assignments: Sequence[NDArray]) -> Array:
    """Σ_g TC(within g) / TC(X) of each assignment: (len(assignments),); all have the same sizes."""
    labels, sizes = np.unique(assignments[0], return_counts=True)
    # Sorted by group, so that equal sizes are consecutive and go through one batched log-determinant.
    order = np.argsort(np.asarray(assignments), axis=1, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    log_blocks = np.zeros(len(assignments))
    for size in np.unique(sizes):
        places = starts[sizes == size][:, None] + np.arange(size)
        members = order[:, places]  # (draws, groups of this size, size)
        log_blocks += np.linalg.slogdet(correlation[members[..., :, None], members[..., None, :]])[1].sum(axis=1)
    log_variance = np.log(np.diag(correlation)).sum()
    return (log_variance - log_blocks) / (log_variance - np.linalg.slogdet(correlation)[1])


def _draw_tokens(data: np.ndarray, max_tokens: int, rng: np.random.Generator) -> np.ndarray:
    images, tokens, _ = data.shape
    if tokens <= max_tokens:
        return data
    chosen = rng.random((images, tokens)).argpartition(max_tokens, axis=1)[:, :max_tokens]
    return np.take_along_axis(data, chosen[..., None], axis=1)


def _resampled_correlations(scores: Array, shrinkage: float, num_draws: int, rng: np.random.Generator) -> Array:
    """Correlations (num_draws, d, d) of resampled images, shrunk as the estimate was; scores (n, tokens, d)."""
    images, tokens, d = scores.shape
    bundles = np.array_split(rng.permutation(images), min(images, _MAX_BUNDLES))
    flat = _standardise(scores.reshape(-1, d)).reshape(images, tokens, d)
    sums, squares, counts = [], [], []
    for bundle in bundles:
        rows = flat[bundle].reshape(-1, d)
        sums.append(rows.sum(axis=0))
        squares.append((rows.T @ rows).ravel())
        counts.append(len(rows))
    weights = rng.multinomial(len(bundles), np.full(len(bundles), 1 / len(bundles)), size=num_draws).astype(np.float64)
    total = (weights @ np.asarray(counts, np.float64))[:, None]
    mean = weights @ np.asarray(sums) / total
    covariance = (weights @ np.asarray(squares) / total).reshape(num_draws, d, d) - mean[:, :, None] * mean[:, None]
    deviation = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    correlation = covariance / (deviation[:, :, None] * deviation[:, None])
    return (1 - shrinkage) * correlation + shrinkage * np.eye(d)


def _total_correlation_apart(scores: Array, shrinkage: float, rng: np.random.Generator) -> float:
    """Total correlation found where every column has images and patches in an order of its own.

    An image's patches stay together in a column: they are alike, and there is less in them than in as many images. The
    shrinkage is that of the estimate. One of its own would be near 1 here, and hide the bias.
    """
    images, tokens, d = scores.shape
    apart = np.empty((images * tokens, d))
    for column in range(d):
        apart[:, column] = rng.permuted(scores[rng.permutation(images), :, column], axis=1).ravel()
    apart = _standardise(apart)
    return -0.5 * _log_det((1 - shrinkage) * (apart.T @ apart) / len(apart) + shrinkage * np.eye(d))


def _basic_interval(value: float, draws: Array, low: float, high: float) -> tuple[float, float]:
    """The 95 % "basic" bootstrap interval, kept in the range of what is measured."""
    below, above = np.percentile(draws, [2.5, 97.5])
    return float(np.clip(2 * value - above, low, high)), float(np.clip(2 * value - below, low, high))
