"""Which heads to compare the most relevant ones with, and the scores of many sets of heads at once.

A *set* is a row of weights, one a head: ones and zeros select heads (Eq. 4), other numbers weight them. Sets come as
arrays (..., head), any number of dimensions, and so do their scores.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from scipy.stats import rankdata

from .aggregate import _bicubic, _image_size, _native, _normalise
from .metrics import Difference, mean_iou, paired_difference
from .relevance import HeadRelevance

BLOCK_PIXELS = 2**19  # upsampled pixels held at a time: 2 MB in float32, which a processor's cache holds


def chosen_heads(sets: Mapping[str, Any], n_heads: int = 128) -> xr.DataArray:
    """(set, head) ones and zeros from names and head numbers, or "all"; ValueError on a number that is no head's."""
    weights = np.zeros((len(sets), n_heads), np.float32)
    for row, (name, heads) in zip(weights, sets.items(), strict=True):
        numbers = np.arange(n_heads) if isinstance(heads, str) and heads == "all" else np.asarray(heads)
        if not (numbers.size and np.issubdtype(numbers.dtype, np.integer) and np.isin(numbers, range(n_heads)).all()):
            raise ValueError(f"{name!r}: {heads!r}: expected 'all' or head numbers from 0 to {n_heads - 1}")
        row[numbers] = 1
    return xr.DataArray(weights, {"set": list(sets)}, ("set", "head"))


def first_heads(orders: Any, ks: Sequence[int]) -> xr.DataArray:
    """(..., k, head) ones at the first k heads of each of `orders` (..., head), for every k of `ks`.

    Raises ValueError unless each k is from 1 to the number of heads.
    """
    orders = orders if isinstance(orders, xr.DataArray) else xr.DataArray(np.asarray(orders), dims="head")
    n_heads = orders.sizes["head"]
    if wrong := [k for k in ks if not 1 <= k <= n_heads]:
        raise ValueError(f"k={wrong[0]}: expected whole numbers from 1 to {n_heads}")
    place = orders.copy(data=np.argsort(orders.values, axis=orders.get_axis_num("head")))  # of each head in its order
    sizes = xr.DataArray(list(ks), {"k": list(ks)}, "k")
    return (place < sizes).astype(np.float32).transpose(*orders.dims[:-1], "k", "head")


def random_orders(n_heads: int = 128, *, draws: int = 200, seed: int = 0) -> xr.DataArray:
    """(draw, head) head numbers in random order; draw i depends on (seed, i) alone."""
    orders = [np.random.default_rng([seed, i]).permutation(n_heads) for i in range(draws)]
    return xr.DataArray(np.stack(orders), dims=("draw", "head"))


def matched_heads(heads: Sequence[int] | np.ndarray, strata: Any, *, draws: int = 200, seed: int = 0) -> xr.DataArray:
    """(draw, head) ones at random heads, as many in each stratum as `heads` has there.

    `strata` (head) says what a head is alike by: its layer, or the size of its maps. If heads of a stratum could be
    exchanged, `heads` would be one of these draws. Draw i depends on (seed, i) alone.
    """
    strata = np.asarray(strata)
    sets = np.zeros((draws, len(strata)), np.float32)
    for i, row in enumerate(sets):
        rng = np.random.default_rng([seed, i])
        for stratum in np.unique(strata):
            members = np.flatnonzero(strata == stratum)
            row[rng.choice(members, np.isin(members, heads).sum(), replace=False)] = 1
    return xr.DataArray(sets, dims=("draw", "head"))


def grids(results: xr.Dataset) -> np.ndarray:
    """(head) the size of each head's maps, such as "16x16"."""
    sizes = [str(name).removeprefix("maps_") for name in results.data_vars if str(name).startswith("maps_")]
    numbers = [results[f"head_{size}"].values for size in sizes]
    return np.repeat(sizes, [len(own) for own in numbers])[np.argsort(np.concatenate(numbers))]


def set_ious(
    results: xr.Dataset,
    sets: xr.DataArray,
    thresholds: Sequence[float] = (0.3, 0.4, 0.5),
    *,
    word: int | str = 0,
) -> xr.DataArray:
    """IoU (image, ..., threshold) of the map of every set of `sets` (..., head) with each image's truth (Eq. 5).

    `results` is a head-maps dataset with `truth` (image, y, x). As `study_ious`, up to rounding, for sets by the
    thousand. Raises ValueError unless there is a weight for each head, none negative, some positive in every set.
    """
    flat = _rows(results, sets)
    found = []
    for image in range(results.sizes["image"]):
        truth = torch.from_numpy(results["truth"].isel(image=image).values.astype(np.float32)).flatten()
        scores = []
        for heats in set_heatmaps(results, flat, image=image, word=word):
            mask, area, both = torch.empty_like(heats), [], []
            for threshold in thresholds:
                torch.gt(heats, threshold, out=mask)  # as numbers: several times faster than booleans
                area.append(mask.sum(dim=1))
                both.append(mask @ truth)
            overlap = torch.stack(both, dim=1)
            either = torch.stack(area, dim=1) + truth.sum() - overlap
            scores.append(torch.where(either > 0, overlap / either.clamp(min=1), 1.0))
        found.append(torch.cat(scores).numpy())
    return _shaped(np.stack(found), results, sets, "threshold", list(thresholds))


def set_heatmaps(maps: xr.Dataset, weights: torch.Tensor, *, image: int = 0, word: int | str = 0) -> Iterator[Any]:
    """Yield the heat maps, in [0, 1], of weights (set, head) as tensors (some sets, pixel), in order."""
    height, width = _image_size(maps)
    native = _native(maps, image, word)
    down = torch.cat([_bicubic(values.shape[1], height) for _, values in native], dim=1)  # (height, all rows)
    for block in weights.split(max(1, BLOCK_PIXELS // (height * width))):
        across = [
            torch.einsum("sh,hyx->syx", block[:, own.tolist()], values) @ _bicubic(values.shape[2], width).T
            for own, values in native
        ]
        yield _normalise(down @ torch.cat(across, dim=1)).flatten(1)


def single_ious(results: xr.Dataset, thresholds: Sequence[float] = (0.3, 0.4, 0.5)) -> xr.DataArray:
    """IoU (image, single, threshold) of each head's own map, `single` numbering the heads."""
    each = np.eye(len(grids(results)), dtype=np.float32)
    return set_ious(results, xr.DataArray(each, {"single": np.arange(len(each))}, ("single", "head")), thresholds)


def folds(groups: Any) -> list[np.ndarray]:
    """Two halves of the images, as indices, that share no group: the 1st, 3rd ... group, and the others.

    Raises ValueError if there is only one group.
    """
    _, first, number = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    if len(first) < 2:
        raise ValueError("There is one group of images only; to fit on some and score on others takes two.")
    number = rankdata(first, method="ordinal")[number] - 1  # in the order of their appearance
    return [np.flatnonzero(number % 2 == half) for half in (0, 1)]


def oracle_ious(results: xr.Dataset, own: xr.DataArray, ks: Sequence[int], *, groups: Any = None) -> xr.DataArray:
    """IoU (image, k, threshold) of the best k heads: heads ranked by their own IoU on one half of the images, scored on
    the other half, and the reverse. It has seen true masks, which head relevance has not: a ceiling to aim for.

    `own` is `single_ious` of the same `results`; each of its thresholds has a ranking of its own. Halves share no
    group (default: the coordinate `subject`).
    """
    halves, parts = folds(results["subject"].values if groups is None else groups), []
    for learnt, scored in (halves, halves[::-1]):
        mean = own.isel(image=learnt).mean("image").transpose("threshold", "single")
        orders = mean.copy(data=np.argsort(-mean.values, axis=1, kind="stable")).rename(single="head").drop_vars("head")
        sets = first_heads(orders, ks)
        half = results.isel(image=scored)
        each = [set_ious(half, sets.sel(threshold=t, drop=True), [t]) for t in own["threshold"].values]
        parts.append(xr.concat(each, "threshold"))
    joined = xr.concat(parts, "image").isel(image=np.argsort(np.concatenate(halves[::-1])))
    return joined.transpose("image", "k", "threshold")


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


def relevance_orders(
    counts: xr.DataArray, concept: str, sizes: Sequence[int], *, draws: int = 20, seed: int = 0
) -> xr.DataArray:
    """(size, draw, head) rankings of the heads for a concept, each counted on n random images of `counts`
    (image, concept, head), for each n of `sizes`."""
    orders = [
        [
            HeadRelevance.from_counts(
                counts[np.random.default_rng([seed, size, draw]).permutation(counts.sizes["image"])[:size]]
            ).ranking(concept)
            for draw in range(draws)
        ]
        for size in sizes
    ]
    return xr.DataArray(np.array(orders), {"size": list(sizes)}, ("size", "draw", "head"))


def concentration(relevance: HeadRelevance, k: int = 30) -> xr.DataArray:
    """(concept) how peaked each head relevance vector is: the share of its votes that its top k heads have, k / H if
    all heads are alike."""
    scores = np.sort(relevance.scores.transpose("concept", "head").values, axis=1)
    return relevance.scores["concept"].copy(data=scores[:, -k:].sum(axis=1) / scores.sum(axis=1)).rename("share")


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


def comparison_table(ious: Mapping[str, Any], groups: Any, *, against: str, score: str = "mean IoU") -> pd.DataFrame:
    """One row a method: its mean with the 95 % interval, and the paired difference to the method `against` with
    interval, p, Cohen's d and the number of groups (prompts) in which it is ahead.

    `ious` maps a method to (image) values of `score`. Intervals and tests draw whole groups. All cells are text.
    """
    base, groups = np.asarray(ious[against], dtype=float), np.asarray(groups)
    rows = []
    for name, values in ious.items():
        values = np.asarray(values, dtype=float)
        mean = mean_iou(values, groups)
        row = [f"{mean.mean:.3f}", f"[{mean.low:.3f}, {mean.high:.3f}]"]
        if name != against:
            d = paired_difference(values, base, groups)
            means = pd.Series(values - base).groupby(groups).mean()
            row += [f"{d.mean:+.3f}", f"[{d.low:+.3f}, {d.high:+.3f}]", f"{d.p:.3f}"]
            size = effect_size(values, base, groups)
            row += ["" if np.isnan(size) else f"{size:+.2f}", f"{(means > 0).sum()} of {len(means)}"]
        rows.append(row + [""] * (7 - len(row)))
    columns = [score, "95 % interval", f"less {against}", "95 % interval", "p", "d", "prompts ahead"]
    return pd.DataFrame(rows, index=pd.Index(list(ious), name="heads"), columns=columns)


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


def _rows(results: xr.Dataset, sets: xr.DataArray) -> torch.Tensor:
    """(set, head) weights of `sets` (..., head), float32."""
    n_heads = len(grids(results))
    if sets.dims[-1] != "head" or sets.sizes["head"] != n_heads:
        raise ValueError(f"sets has dimensions {dict(sets.sizes)}: expected the last to be head, of {n_heads} heads")
    flat = sets.values.reshape(-1, n_heads).astype(np.float32)
    if not (np.isfinite(flat).all() and (flat >= 0).all() and flat.any(axis=1).all()):
        raise ValueError("sets: expected weights of 0 or more, and some head above 0 in every set")
    return torch.from_numpy(flat)


def _shaped(values: np.ndarray, results: xr.Dataset, sets: xr.DataArray, last: str, labels: list) -> xr.DataArray:
    """(image, ..., last) from values (image, set, last)."""
    dims = ("image", *sets.dims[:-1], last)
    kept: dict[Any, Any] = {name: c for name, c in results.coords.items() if c.dims == ("image",)}
    kept |= {name: c for name, c in sets.coords.items() if "head" not in c.dims}
    shape = (len(values), *sets.shape[:-1], len(labels))
    return xr.DataArray(values.reshape(shape), {**kept, last: labels}, dims, name="iou")
