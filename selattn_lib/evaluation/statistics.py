"""Intervals and tests.

Images that share a group (a prompt, a seed) count as one draw, since they are alike.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import rankdata


class Interval(NamedTuple):
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """A mean paired difference, its 95 % bootstrap interval, and the two-sided p of a sign-flip test."""

    mean: float
    low: float
    high: float
    p: float


def bootstrap_mean(ious: Any, groups: Any = None, *, seed: int = 0, draws: int = 2000) -> Interval:
    """Mean of IoUs (image) with a 95 % percentile bootstrap interval.

    With `groups` (image), such as prompts, whole groups are drawn instead of single images.
    """
    values = _values(ious)
    means = _bootstrap(values, groups, seed, draws)
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    return Interval(float(values.mean()), low, high)


def paired_difference(a: Any, b: Any, groups: Any = None, *, seed: int = 0, draws: int = 2000) -> Difference:
    """Mean of a - b over the same images (image), with a 95 % bootstrap interval and a two-sided p.

    The test flips the sign of all differences of a group together, at random: p is the share of flips (the
    observed one included) whose mean is at least as far from 0. With G groups p cannot be below 2 / 2**G.
    """
    values = _values(a) - _values(b)
    means = _bootstrap(values, groups, seed, draws)
    sums, _ = _group_sums(values, groups)
    signs = np.random.default_rng([seed, 1]).choice([-1.0, 1.0], size=(draws, len(sums)))
    observed = abs(sums.sum())
    extreme = (np.abs(signs @ sums) >= observed - 1e-12 * max(1.0, observed)).sum()
    p = (1 + extreme) / (1 + draws)
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    return Difference(float(values.mean()), low, high, float(p))


def band(curves: xr.DataArray, *, seed: int = 0, draws: int = 1000) -> np.ndarray:
    """(k, 3): mean over images of curves (image, k) with the ends of a 95 % bootstrap interval, by `subject`."""
    groups = curves["subject"].values if "subject" in curves.coords else None
    return np.array([bootstrap_mean(curves.sel(k=k), groups, seed=seed, draws=draws) for k in curves["k"].values])


def _values(ious: Any) -> np.ndarray:
    values = np.asarray(ious, dtype=float)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"One finite number an image is needed, not shape {values.shape}: {values!r}")
    return values


def _group_sums(values: np.ndarray, groups: Any) -> tuple[np.ndarray, np.ndarray]:
    """(group) sums of values, and numbers of images."""
    groups = np.arange(len(values)) if groups is None else np.asarray(groups)
    if groups.shape != values.shape:
        raise ValueError(f"groups has shape {groups.shape} for {len(values)} images; one an image is needed.")
    _, group = np.unique(groups, return_inverse=True)
    return np.bincount(group, weights=values), np.bincount(group)


def _bootstrap(values: np.ndarray, groups: Any, seed: int, draws: int) -> np.ndarray:
    """(draw) mean of values over groups drawn with replacement."""
    sums, sizes = _group_sums(values, groups)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    return sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)


def agreement(
    counts: xr.DataArray, sizes: Sequence[int], *, top: int = 30, draws: int = 20, seed: int = 0
) -> xr.DataArray:
    """How well two head relevance vectors agree that are counted on different generations, n each.

    `counts` are votes (image, concept, head); for each n of `sizes`, 2 n images are drawn and dealt to two sides.
    Returns (size, draw, concept, statistic): "correlation", Spearman's between the two rankings, and "shared", the
    share of the `top` heads of one that are among those of the other; top / H by chance. Concepts without a vote on one
    side are not a number. Raises ValueError if there are fewer than 2 n images.
    """
    votes, found = counts.transpose("image", "concept", "head").values.astype(float), []
    for size in sizes:
        if not 1 <= size <= len(votes) // 2:
            raise ValueError(f"sizes={list(sizes)!r}: expected numbers from 1 to {len(votes) // 2}, half the images")
        for draw in range(draws):
            drawn = np.random.default_rng([seed, size, draw]).permutation(len(votes))[: 2 * size]
            sides = [votes[part].sum(axis=0) for part in (drawn[:size], drawn[size:])]
            ranks = [rankdata(-side, axis=1) for side in sides]
            leading = [np.argsort(np.argsort(-side, axis=1, kind="stable"), axis=1) < top for side in sides]
            centred = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
            spread = np.sqrt(np.prod([(c**2).sum(axis=1) for c in centred], axis=0))
            with np.errstate(invalid="ignore"):
                correlation = np.prod(centred, axis=0).sum(axis=1) / spread
            shared = np.where(np.isnan(correlation), np.nan, np.prod(leading, axis=0).sum(axis=1) / top)
            found.append(np.stack([correlation, shared], axis=-1))
    table = np.stack(found).reshape(len(sizes), draws, counts.sizes["concept"], 2)
    coords = {"size": list(sizes), "concept": counts["concept"].values, "statistic": ["correlation", "shared"]}
    return xr.DataArray(table, coords, ("size", "draw", "concept", "statistic"))


def percentile(value: float, draws: Any) -> tuple[float, float]:
    """(percentile of `value` among the draws, one-sided p: the share of draws, `value` included, that reach it)."""
    draws = np.asarray(draws).ravel()
    return 100 * float((draws < value).mean()), float((1 + (draws >= value).sum()) / (1 + len(draws)))


def rank_correlation(first: Any, second: Any, *, seed: int = 0, draws: int = 9999) -> tuple[float, float]:
    """(Spearman's rank correlation, two-sided p of a permutation test) of two lists of the same things."""
    ranks = [rankdata(values) - (len(np.asarray(values)) + 1) / 2 for values in (first, second)]
    scale = np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum())
    rng, observed = np.random.default_rng(seed), ranks[0] @ ranks[1] / scale
    drawn = rng.permuted(np.tile(ranks[0], (draws, 1)), axis=1) @ ranks[1] / scale
    return float(observed), float((1 + (np.abs(drawn) >= abs(observed) - 1e-12).sum()) / (1 + draws))


def effect_size(a: Any, b: Any, groups: Any = None) -> float:
    """Cohen's d of paired values: the mean over groups of the mean difference a - b, over its standard deviation.

    0.2 is called small, 0.5 medium, 0.8 large. Not a number if all groups differ by the same.
    """
    differences = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    by_group = pd.Series(differences).groupby(np.arange(len(differences)) if groups is None else np.asarray(groups))
    means = by_group.mean()
    return float(means.mean() / means.std(ddof=1)) if means.std(ddof=1) > 0 else float("nan")


def direction(difference: Difference) -> int:
    """1 or -1 where both the 95 % interval leaves out 0 and p is below 0.05, else 0. (With few groups the interval
    alone is too narrow.)"""
    mean, low, high, p = difference
    return int(np.sign(mean)) if low * high > 0 and p < 0.05 else 0


def statement(first: str, second: str, difference: Difference) -> str:
    """What a paired difference says: "A beats B (+0.050 [+0.031, +0.069], p = 0.003)", or that A trails B, or cannot be
    told from it."""
    verb = ("cannot be told from", "beats", "trails")[direction(difference)]
    mean, low, high, p = difference
    return f"{first} {verb} {second} ({mean:+.3f} [{low:+.3f}, {high:+.3f}], p = {p:.3f})"


def plateau(surface: xr.DataArray, groups: Any, *, seed: int = 0, draws: int = 1000) -> xr.DataArray:
    """Where the mean of `surface` (image, ...) cannot be told from its highest: booleans (...).

    True where the 95 % bootstrap interval of the paired difference to the highest mean, drawing whole groups, reaches
    0 or more.
    """
    values = surface.transpose("image", ...).values.astype(float)
    flat = values.reshape(len(values), -1)
    differences = flat - flat[:, [flat.mean(axis=0).argmax()]]
    sums = np.stack([_group_sums(column, groups)[0] for column in differences.T], axis=1)  # (group, cell)
    _, sizes = _group_sums(flat[:, 0], groups)
    drawn = np.random.default_rng(seed).integers(len(sizes), size=(draws, len(sizes)))
    times = np.stack([np.bincount(draw, minlength=len(sizes)) for draw in drawn])  # (draw, group)
    high = np.quantile(times @ sums / (times @ sizes)[:, None], 0.975, axis=0)
    return surface.isel(image=0, drop=True).copy(data=(high >= -1e-12).reshape(values.shape[1:])).rename("plateau")


def roc(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """(false positive rate, true positive rate) of the detector "score at least s", for every s from high to low.

    A rate is not a number if `labels` (n) has none of its kind.
    """
    scores, labels = _checked(scores, labels)
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    true, false = np.cumsum(labels[order])[ends], np.cumsum(~labels[order])[ends]
    with np.errstate(invalid="ignore"):
        return np.append(0, false) / false[-1], np.append(0, true) / true[-1]


def area_under_roc(scores: Any, labels: Any, strata: Any = None, *, seed: int = 0, draws: int = 2000) -> Interval:
    """Area under the ROC curve with a 95 % bootstrap interval: how often a positive scores above a negative, 0.5 by
    chance. With `strata` (n), such as words, only pairs of one stratum count, and draws are made within each; strata
    that have only one label count for nothing. Not a number if all have only one.
    """
    scores, labels = _checked(scores, labels)
    strata = np.zeros(len(scores)) if strata is None else np.asarray(strata)
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    members = [own for own in members if 0 < labels[own].sum() < len(own)]
    if not members:
        return Interval(np.nan, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    areas: list[float] = []
    while len(areas) < draws:
        drawn = [rng.choice(own, len(own)) for own in members]
        if any(0 < labels[own].sum() < len(own) for own in drawn):
            areas.append(_pairs_right(scores, labels, drawn))
    low, high = np.quantile(areas, [0.025, 0.975]).tolist()
    return Interval(_pairs_right(scores, labels, members), low, high)


def _pairs_right(scores: np.ndarray, labels: np.ndarray, members: list[np.ndarray]) -> float:
    right = pairs = 0.0
    for own in members:
        positive = labels[own].sum()
        right += rankdata(scores[own])[labels[own]].sum() - positive * (positive + 1) / 2
        pairs += positive * (len(own) - positive)
    return float(right / pairs)


def _checked(scores: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(scores, dtype=float), np.asarray(labels)
    if scores.shape != labels.shape or scores.ndim != 1 or labels.dtype != bool or not np.isfinite(scores).all():
        raise ValueError(f"Expected numbers and booleans, one each, not of shapes {scores.shape} and {labels.shape}.")
    return scores, labels
