"""Intervals and tests, from scipy and scikit-learn; what is ours is that images of one group count as one draw.

Images that share a group (a prompt, a word) are alike, so a group counts as one draw: in intervals, and in tests.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from scipy.stats import norm, permutation_test, rankdata, spearmanr, t
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import roc_curve

GREATER: dict[str, Any] = {"vectorized": True, "alternative": "greater"}  # of permutation tests


class Interval(NamedTuple):
    """A mean and its 95 % interval, printed as `0.780 [0.728, 0.824]`.

    Parameters
    ----------
    mean, low, high : float
        The mean and the ends, which are not numbers where there is no interval: with one group only. Where all groups
        are alike, the ends are the mean, and the text says so.

    Examples
    --------
    >>> print(Interval(0.78, 0.728, 0.824), "and", Interval(0.78, np.nan, np.nan))
    0.780 [0.728, 0.824] and 0.780 (no interval)
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.mean):
            return "no value"
        if np.isnan(self.low):
            return f"{self.mean:.3f} (no interval)"
        return f"{self.mean:.3f} " + (
            f"[{self.low:.3f}, {self.high:.3f}]" if self.high - self.low > 1e-9 else "(all alike)"
        )


class Difference(NamedTuple):
    """A mean paired difference, its 95 % interval, and the two-sided p of a sign-flip test.

    It is printed as `+0.050 [+0.031, +0.069], p = 0.003`.

    Parameters
    ----------
    mean, low, high : float
        The mean difference and the ends of its interval, as of an `Interval`.
    p : float
        In (0, 1].
    groups : int, optional
        Over how many groups; with G of them p cannot be below 2 / 2^G, and where it is this, the text says so.

    Examples
    --------
    >>> print(Difference(0.05, 0.031, 0.069, 0.003))
    +0.050 [+0.031, +0.069], p = 0.003
    >>> print(Difference(0.05, 0.031, 0.069, 2 / 2**10, 10))
    +0.050 [+0.031, +0.069], p = 0.002 (the lowest possible)
    """

    mean: float
    low: float
    high: float
    p: float
    groups: int | None = None

    @property
    def none(self) -> bool:
        """Whether the scores are the same in every group, as those of a set of heads and of itself."""
        return all(abs(value) < 1e-9 for value in self[:3])

    @property
    def too_few(self) -> bool:
        """Whether the groups are so few that p cannot be below 0.05, whatever the scores: five or fewer."""
        return self.groups is not None and 2 / 2**self.groups >= 0.05

    @property
    def parts(self) -> tuple[str, str]:
        """The difference and its p, for two columns: "+0.050 [+0.031, +0.069]" and "p = 0.003"; of fewer than five
        groups the difference alone, since their interval says nothing."""
        if self.none:
            return "no difference", ""
        if self.groups is not None and self.groups < 5:
            return f"{self.mean:+.3f}, too few to tell", ""
        if np.isnan(self.low):
            return f"{self.mean:+.3f} (no interval)", ""
        lowest = self.groups is not None and 0.001 <= self.p <= 2 / 2**self.groups
        p = format_p(self.p) + (" (the lowest possible)" if lowest else "")
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]", p

    def __str__(self) -> str:
        return ", ".join(filter(None, self.parts))


def format_p(p: float) -> str:
    """`p = 0.002`, or `p < 0.001`: never 0.000, which no test with finitely many draws can show.

    Parameters
    ----------
    p : float
        In (0, 1].

    Returns
    -------
    str

    Examples
    --------
    >>> format_p(2 / 1024), format_p(1 / 9999)
    ('p = 0.002', 'p < 0.001')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def mean_interval(values: Any, groups: Any = None) -> Interval:
    """Mean of scores with a 95 % t interval over groups.

    Images of one group are alike, so that a group's sum counts as one draw (the cluster-robust error of a ratio, for
    groups of any sizes). With S_g the sum of the n_g values of group g, N = sum_g n_g, and G groups::

        m = sum_g S_g / N,  SE^2 = G / (G - 1) sum_g (S_g - m n_g)^2 / N^2 + V,  interval = m -+ t(0.975, G - 1) SE.

    V is the noise of the ranking of the heads, if it is known: the variance of m over rankings of the same heads that
    were counted on images drawn anew (`HeadRelevance.orders`).

    Parameters
    ----------
    values : array (image), or (image, ranking)
        Finite numbers, such as IoUs. Of several rankings the first is the one that counts, the others give V.
    groups : array (image), optional
        What images are alike by, such as their prompt; each image by itself by default.

    Returns
    -------
    Interval
        (mean, low, high). With one group only there is no interval: both ends are NaN.

    Raises
    ------
    ValueError
        If there is not one finite number, and one group, for each image.

    Examples
    --------
    >>> print(mean_interval([0.5, 0.6, 0.7, 0.8], ["bear", "bear", "cat", "dog"]))
    0.650 [0.314, 0.986]
    """
    values = _checked_values(values)
    sums, sizes = _group_sums(values, groups)
    means = sums.sum(axis=0) / len(values)
    half = float(_half_widths(sums[:, :1], sizes, means[1:].std(ddof=1) if len(means) > 2 else 0.0)[0])
    return Interval(float(means[0]), float(means[0]) - half, float(means[0]) + half)


def share_interval(right: Any, groups: Any = None) -> Interval:
    """The share of true values with its 95 % Wilson interval, which stays in [0, 1].

    Of values that are alike by groups, and of shares, it is Wilson's interval of as many independent draws as would
    have the same standard error: n' = p (1 - p) / (SE^2 + V), with SE as of `mean_interval`, V the variance of p over
    the other rankings, and the quantile of t with G - 1 degrees of freedom for that of the normal distribution. Where
    all groups are alike, each is one draw.

    Parameters
    ----------
    right : array (n), or (n, ranking)
        Booleans, or shares in [0, 1], such as one of each concept. Of several rankings of the heads the first counts,
        the others give V.
    groups : array (n), optional
        What values are alike by, such as a picture's word; each by itself by default.

    Returns
    -------
    Interval
        (mean, low, high). With one group, or one share, there is no interval: both ends are NaN.

    Examples
    --------
    >>> print(share_interval([True, True, True, False]), "and", share_interval([1, 1, 1, 0.5, 1]))
    0.750 [0.301, 0.954] and 0.900 [0.441, 0.990]
    """
    values = np.asarray(right, dtype=float)
    values = values[:, None] if values.ndim == 1 else values
    means, (sums, sizes) = values.mean(axis=0), _group_sums(values[:, :1], groups)
    p, n, quantile = float(means[0]), len(sizes), norm.ppf(0.975)
    variance = p * (1 - p) / n
    if groups is not None or not np.isin(values[:, 0], (0, 1)).all():
        if n == 1:
            return Interval(p, np.nan, np.nan)
        quantile = t.ppf(0.975, n - 1)
        variance = float(_half_widths(sums, sizes)[0] / quantile) ** 2
    variance += means[1:].var(ddof=1) if len(means) > 2 else 0.0
    known = variance > 1e-12 and 0 < p < 1
    z2 = quantile**2 * variance / (p * (1 - p)) if known else norm.ppf(0.975) ** 2 / n
    middle, half = p + z2 / 2, np.sqrt(z2 * (p * (1 - p) + z2 / 4))
    return Interval(p, max(0.0, float((middle - half) / (1 + z2))), min(1.0, float((middle + half) / (1 + z2))))


def paired_difference(a: Any, b: Any, groups: Any = None, *, seed: int = 0, flips: int = 2**14) -> Difference:
    """Mean of a - b over the same images, with its 95 % interval (`mean_interval`) and a two-sided p.

    The test turns the sign of all differences of a group together: p is the share of the sign patterns whose mean is
    at least as far from 0 as the observed one::

        p = #{s in {-1, 1}^G : |sum_g s_g D_g| >= |sum_g D_g|} / 2^G,  D_g the sum of the differences of group g,

    over all patterns where there are at most `flips` of them, so that p is exact; else over `flips` random ones, the
    observed one counted in. With G groups p cannot be below 2 / 2^G. A ranking's noise is in the interval, not in p.

    Parameters
    ----------
    a, b : array (image), or (image, ranking)
        Finite scores of the same images, as for `mean_interval`.
    groups : array (image), optional
        What images are alike by, such as their prompt.
    seed : int
        Of random sign patterns.
    flips : int
        How many sign patterns are looked at, at the most.

    Returns
    -------
    Difference
        (mean, low, high, p, groups).

    Raises
    ------
    ValueError
        If there is not one finite number, and one group, for each image.

    Examples
    --------
    >>> base = np.linspace(0.5, 0.7, 10)
    >>> paired_difference(base + 0.05, base).p  # ten equal signs: 2 of 1024 patterns
    0.001953125
    """
    values = _checked_values(a) - _checked_values(b)
    interval, (sums, _) = mean_interval(values, groups), _group_sums(values[:, :1], groups)
    if len(sums) == 1:
        return Difference(*interval, 1.0, 1)

    def distance(sums: np.ndarray, axis: int) -> np.ndarray:
        return np.abs(sums.sum(axis=axis)).round(12)  # patterns of one mean are equal, whatever the order of the sum

    rng = np.random.default_rng([seed, 1])
    test = permutation_test((sums[:, 0],), distance, permutation_type="samples", n_resamples=flips, rng=rng, **GREATER)
    return Difference(*interval, float(test.pvalue), len(sums))


def effect_size(a: Any, b: Any, groups: Any = None) -> float:
    """Cohen's d on the means of groups, d = mean(D) / std(D), with D the mean difference a - b of each group.

    Means of groups vary less than single images, so that this d is larger than that of images.

    Parameters
    ----------
    a, b : array (image)
        Finite scores of the same images.
    groups : array (image), optional
        What images are alike by; each image by itself by default.

    Returns
    -------
    float
        0.2 is called small, 0.5 medium, 0.8 large. NaN if all groups differ by the same.

    Examples
    --------
    >>> effect_size([1.0, 3.0], [0.0, 0.0]).__round__(3)
    1.414
    """
    sums, sizes = _group_sums((_checked_values(a) - _checked_values(b))[:, :1], groups)
    means = sums[:, 0] / sizes
    spread = means.std(ddof=1) if len(means) > 1 else 0
    return float(means.mean() / spread) if spread > 0 else float("nan")


def direction(difference: Difference) -> int:
    """1 or -1 where both the 95 % interval leaves out 0 and p is below 0.05, else 0.

    Parameters
    ----------
    difference : Difference
        As `paired_difference` gives it.

    Returns
    -------
    int

    Examples
    --------
    >>> direction(Difference(-0.05, -0.07, -0.03, 0.002))
    -1
    """
    return int(np.sign(difference.mean)) if difference.low * difference.high > 0 and difference.p < 0.05 else 0


def statement(first: str, second: str, difference: Difference) -> str:
    """What a paired difference says: that one beats the other, trails it, that nothing clear is seen, or cannot be.

    Parameters
    ----------
    first, second : str
        What is compared.
    difference : Difference
        Of the first less the second.

    Returns
    -------
    str

    Examples
    --------
    >>> statement("A", "B", Difference(0.05, 0.031, 0.069, 0.003))
    'A beats B (+0.050 [+0.031, +0.069], p = 0.003)'
    >>> statement("A", "B", Difference(0.05, 0.031, 0.069, 0.25, 3))
    'there are too few words to compare A with B (+0.050, too few to tell)'
    """
    if difference.none:
        return f"{first} and {second} score the same"
    if difference.too_few:
        return f"there are too few words to compare {first} with {second} ({difference})"
    if sign := direction(difference):
        return f"{first} {'beats' if sign > 0 else 'trails'} {second} ({difference})"
    return f"there is no clear difference between {first} and {second} ({difference})"


def rank_correlation(first: Any, second: Any, *, seed: int = 0, draws: int = 9999) -> tuple[float, float]:
    """Spearman's rank correlation of two lists of the same things, and the two-sided p of a permutation test.

    Parameters
    ----------
    first, second : array (thing)
        Numbers.
    seed, draws : int
        The p is exact where there are at most `draws` orders (up to 7 things), else of `draws` random orders.

    Returns
    -------
    (float, float)
        rho in [-1, 1], and p. Both are NaN where one list is constant.

    Examples
    --------
    >>> rho, p = rank_correlation([1, 2, 3, 4, 5], [1, 2, 4, 8, 16])
    >>> print(f"{rho:.1f}", format_p(p))  # 2 of 120 orders
    1.0 p = 0.017
    """
    one, other = (rankdata(values) - (len(np.asarray(values)) + 1) / 2 for values in (first, second))
    if not (one.any() and other.any()):
        return float("nan"), float("nan")

    def strength(ranks: np.ndarray, axis: int) -> np.ndarray:
        return np.abs(np.moveaxis(ranks, axis, -1) @ other).round(9)

    rng = np.random.default_rng(seed)
    test = permutation_test((one,), strength, permutation_type="pairings", n_resamples=draws, rng=rng, **GREATER)
    return float(spearmanr(one, other).statistic), float(test.pvalue)


def format_correlation(rho: float, p: float) -> str:
    """A rank correlation with its p, in words where there is none.

    Parameters
    ----------
    rho, p : float
        As `rank_correlation` gives them.

    Returns
    -------
    str

    Examples
    --------
    >>> format_correlation(0.37, 0.497), format_correlation(np.nan, np.nan)
    ('+0.37 (p = 0.497)', 'none (all values of one list are equal)')
    """
    return "none (all values of one list are equal)" if np.isnan(rho) else f"{rho:+.2f} ({format_p(p)})"


def percentile(value: float, draws: Any) -> tuple[float, float]:
    """Where a value stands among random draws.

    Parameters
    ----------
    value : float
        A score.
    draws : array
        The same score of random choices.

    Returns
    -------
    (float, float)
        The percentile, in [0, 100], and a one-sided p: the share of draws, `value` included, that reach it.

    Examples
    --------
    >>> percentile(3, [1, 2, 3, 4])
    (50.0, 0.6)
    """
    draws = np.asarray(draws).ravel()
    return 100 * float((draws < value).mean()), float((1 + (draws >= value).sum()) / (1 + len(draws)))


def spread(draws: Any) -> Interval:
    """The mean of random draws, and what 95 % of them lie in.

    Parameters
    ----------
    draws : array
        Numbers, of any shape.

    Returns
    -------
    Interval

    Examples
    --------
    >>> print(spread(range(101)))
    50.000 [2.500, 97.500]
    """
    draws = np.asarray(draws, dtype=float)
    return Interval(float(draws.mean()), *np.quantile(draws, [0.025, 0.975]).tolist())


def band(curves: xr.DataArray, redrawn: xr.DataArray | None = None) -> np.ndarray:
    """The mean of curves, with its 95 % interval at each k.

    Parameters
    ----------
    curves : xarray.DataArray (image, k)
        Scores; the coordinate ``subject``, where there is one, says which images are alike.
    redrawn : xarray.DataArray (image, ranking, k), optional
        Scores at some k, from the lowest to the highest, of rankings that were counted on images drawn anew: the
        spread of their means, interpolated between these k, is the noise of the ranking that `mean_interval` takes.

    Returns
    -------
    array (k, 3)
        Mean, low, high.

    Examples
    --------
    >>> band(xr.DataArray([[0.5, 0.5], [0.5, 0.5]], {"k": [1, 2]}, ("image", "k"))).tolist()
    [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    """
    groups = curves["subject"].values if "subject" in curves.coords else None
    values = curves.transpose("image", "k").values
    sums, sizes = _group_sums(values, groups)
    noise: Any = 0.0
    if redrawn is not None and redrawn.sizes["ranking"] > 2:
        means = redrawn.mean("image").transpose("k", "ranking")
        noise = np.interp(curves["k"], means["k"], means.values[:, 1:].std(axis=1, ddof=1))
    half = _half_widths(sums, sizes, noise)
    mean = values.mean(axis=0)
    return np.stack([mean, mean - half, mean + half], axis=1)


def plateau(surface: xr.DataArray, groups: Any, redrawn: xr.DataArray | None = None) -> xr.DataArray:
    """Where the mean of a surface is not clearly below its highest.

    Parameters
    ----------
    surface : xarray.DataArray (image, ...)
        Scores.
    groups : array (image)
        What images are alike by.
    redrawn : xarray.DataArray (image, ranking, k, ...), optional
        Scores at some k, as for `band`, where the surface's first dimension after the image is k.

    Returns
    -------
    xarray.DataArray (...) bool
        True where the 95 % interval of the paired difference to the highest mean reaches 0 or more, as it does
        everywhere with one group.

    Examples
    --------
    >>> surface = xr.DataArray([[0.5, 0.9], [0.6, 0.8], [0.5, 0.9], [0.5, 0.8]], dims=("image", "k"))
    >>> plateau(surface, range(4)).values.tolist()
    [False, True]
    """
    values = surface.transpose("image", ...).values.astype(float)
    cells = values.reshape(len(values), -1)
    highest = cells.mean(axis=0).argmax()
    differences, noise = cells - cells[:, [highest]], np.zeros(cells.shape[1])
    if redrawn is not None and redrawn.sizes["ranking"] > 2:
        means = redrawn.mean("image").isel(ranking=slice(1, None)).interp(k=surface["k"])
        of_cells = means.transpose("ranking", *surface.dims[1:]).values.reshape(means.sizes["ranking"], -1)
        noise = (of_cells - of_cells[:, [highest]]).std(axis=0, ddof=1)
    low = differences.mean(axis=0) + _half_widths(*_group_sums(differences, groups), noise) < -1e-12
    return surface.isel(image=0, drop=True).copy(data=~low.reshape(values.shape[1:])).rename("plateau")


def rank_agreement(first: Any, second: Any, top: int = 30) -> tuple[float, float]:
    """Spearman's rank correlation of two vectors (head), and the share of the `top` heads that they have in common.

    Parameters
    ----------
    first, second : array (head)
        Head relevance, or votes.
    top : int
        How many heads.

    Returns
    -------
    (float, float)
        NaN where one vector is constant, as one without votes is.

    Examples
    --------
    >>> np.round(rank_agreement([4, 3, 2, 1], [3, 4, 2, 0], top=1), 3).tolist()
    [0.8, 0.0]
    """
    first, second = np.asarray(first), np.asarray(second)
    if not (np.ptp(first) and np.ptp(second)):
        return float("nan"), float("nan")
    one, other = (np.argsort(-values, kind="stable")[:top] for values in (first, second))
    return float(spearmanr(first, second).statistic), len(np.intersect1d(one, other)) / top


def agreement(
    counts: xr.DataArray, sizes: Sequence[int], *, top: int = 30, draws: int = 20, seed: int = 0
) -> xr.DataArray:
    """How well two head relevance vectors agree that are counted on different generations, n each.

    Parameters
    ----------
    counts : xarray.DataArray (image, concept, head)
        Votes, 0 or more.
    sizes : sequence of int
        For each n, 2 n images are drawn and dealt to two sides.
    top, draws, seed : int
        As for `rank_agreement`; how often images are drawn, and by which seed.

    Returns
    -------
    xarray.DataArray (size, draw, concept, statistic)
        "correlation" and "shared", as of `rank_agreement`; by chance, top / H heads are shared.

    Raises
    ------
    ValueError
        If there are fewer than 2 n images.

    Examples
    --------
    >>> counts = xr.DataArray([[[3, 1, 0]]] * 4, {"concept": ["Animals"]}, ("image", "concept", "head"))
    >>> agreement(counts, [2], top=1, draws=1).values.round(3).tolist()
    [[[[1.0, 1.0]]]]
    """
    votes = counts.transpose("image", "concept", "head").values.astype(float)
    if wrong := [size for size in sizes if not 1 <= size <= len(votes) // 2]:
        raise ValueError(f"sizes={wrong}: expected numbers from 1 to {len(votes) // 2}, half the images")
    table = np.empty((len(sizes), draws, votes.shape[1], 2))
    for i, draw in np.ndindex(table.shape[:2]):
        drawn = np.random.default_rng([seed, sizes[i], draw]).permutation(len(votes))[: 2 * sizes[i]]
        one, other = (votes[images].sum(axis=0) for images in np.split(drawn, 2))
        table[i, draw] = [rank_agreement(*rows, top) for rows in zip(one, other, strict=True)]
    coords = {"size": list(sizes), "concept": counts["concept"].values, "statistic": ["correlation", "shared"]}
    return xr.DataArray(table, coords, ("size", "draw", "concept", "statistic"))


def roc(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """The ROC curve of the detector "score at least s", for every s from high to low.

    Parameters
    ----------
    scores, labels : array (n)
        Numbers, and booleans.

    Returns
    -------
    (array (threshold), array (threshold))
        False and true positive rates in [0, 1]; NaN if `labels` has none of its kind.

    Raises
    ------
    ValueError
        If there is not one number and one boolean each.

    Examples
    --------
    >>> [rates.tolist() for rates in roc([0.9, 0.2], np.array([True, False]))]
    [[0.0, 0.0, 1.0], [0.0, 1.0, 1.0]]
    """
    scores, labels = _checked_labels(scores, labels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    return false, true


def area_under_roc(scores: Any, labels: Any, strata: Any = None, *, seed: int = 0, draws: int = 2000) -> Interval:
    """Area under the ROC curve with a 95 % percentile bootstrap interval, for want of a formula with strata.

    The area is how often a positive scores above a negative, 0.5 by chance: counted pair by pair, since scikit-learn's
    knows no strata.

    Parameters
    ----------
    scores, labels : array (n)
        Numbers, and booleans. Scores (n, ranking) are of several rankings of the heads, as for `mean_interval`: then a
        draw is of images and of a ranking.
    strata : array (n), optional
        Such as words: only pairs of one stratum count, and draws are made within each. Strata that have only one label
        count for nothing.
    seed, draws : int
        Of the bootstrap.

    Returns
    -------
    Interval
        NaN if no stratum has both labels.

    Raises
    ------
    ValueError
        If there is not one number and one boolean each.

    Examples
    --------
    >>> area_under_roc([0.9, 0.8, 0.3, 0.1], np.array([True, False, True, False])).mean
    0.75
    """
    columns = np.atleast_2d(np.asarray(scores, dtype=float).T)  # (ranking, n)
    labels = [_checked_labels(column, labels)[1] for column in columns][0]
    strata = np.zeros(len(labels)) if strata is None else np.asarray(strata)
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    members = [numbers for numbers in members if 0 < labels[numbers].sum() < len(numbers)]
    if not members:
        return Interval(np.nan, np.nan, np.nan)
    pairs = (labels[:, None] & ~labels & (strata[:, None] == strata)).astype(float)
    right = [pairs * ((column[:, None] > column) + (column[:, None] == column) / 2) for column in columns]
    rng = np.random.default_rng(seed)
    drawn = [np.concatenate([rng.choice(numbers, len(numbers)) for numbers in members]) for _ in range(draws)]
    times = np.stack([np.bincount(numbers, minlength=len(labels)) for numbers in drawn])  # (draw, n)
    areas = []
    with np.errstate(invalid="ignore"):  # a draw without a pair says nothing
        for number, of_ranking in enumerate(right[1:] or right):  # each has its share of the draws
            some = times[number :: max(1, len(right) - 1)]
            areas.append((some @ of_ranking * some).sum(axis=1) / (some @ pairs * some).sum(axis=1))
    low, high = np.nanquantile(np.concatenate(areas), [0.025, 0.975]).tolist()
    return Interval(float(right[0].sum() / pairs.sum()), low, high)


def _checked_values(scores: Any) -> np.ndarray:
    """(image, ranking) numbers, of one ranking if there is only `image`."""
    values = np.asarray(scores, dtype=float)
    if values.ndim not in (1, 2) or not values.size or not np.isfinite(values).all():
        raise ValueError(f"scores of shape {values.shape}: expected one finite number an image, not {values!r}")
    return values[:, None] if values.ndim == 1 else values


def _checked_labels(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores, dtype=float), np.asarray(labels)
    if scores.shape != labels.shape or scores.ndim != 1 or labels.dtype != bool or not np.isfinite(scores).all():
        raise ValueError(f"shapes {scores.shape} and {labels.shape}: expected numbers and booleans, one each")
    return scores, labels


def _group_sums(values: np.ndarray, groups: Any) -> tuple[np.ndarray, np.ndarray]:
    """(group, cell) sums of values (image, cell), and numbers of images (group)."""
    groups = np.arange(len(values)) if groups is None else np.asarray(groups)
    if groups.shape != (len(values),):
        raise ValueError(f"groups has shape {groups.shape} for {len(values)} images: expected one an image")
    names, group = np.unique(groups, return_inverse=True)
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, group, values)
    return sums, np.bincount(group)


def _half_widths(sums: np.ndarray, sizes: np.ndarray, noise: Any = 0.0) -> np.ndarray:
    """(cell) half the width of the t interval of the mean, from the `sums` (group, cell) and `sizes` of groups and the
    standard deviation that the ranking's `noise` gives the mean; NaN with one group."""
    n_groups, n_images = len(sizes), sizes.sum()
    if n_groups == 1:
        return np.full(sums.shape[1], np.nan)
    residuals = sums - sums.sum(axis=0) / n_images * sizes[:, None]
    variance = n_groups / (n_groups - 1) * (residuals**2).sum(axis=0) / n_images**2
    return t.ppf(0.975, n_groups - 1) * np.sqrt(variance + noise**2)
