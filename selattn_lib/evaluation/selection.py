"""Which heads should one average: rules that choose them, and measures that should find those that were planted."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch.nn.functional import adaptive_avg_pool2d

from ..maps.consensus import consensus, finest_heads, head_features
from ..maps.head_maps import HeadMaps
from ..maps.head_sets import random_orders
from .baselines import cross_fit, folds
from .scores import THRESHOLDS, every_score, head_precisions, threshold_free

#: Rules that choose heads, as `rule_sets` follows them and `compare_rules` scores them.
RULES = (
    "all heads", "HRV", "finest grid", "HRV in the finest grid", "consensus", "consensus as weights",
    "consensus x HRV", "contrast", "random", "oracle",
)  # fmt: skip


def rule_sets(maps: HeadMaps, relevance: Any, k: int, *, draws: int = 5, seed: int = 0) -> xr.DataArray:
    """The heads that each of `RULES` chooses by some pictures.

    Parameters
    ----------
    maps : HeadMaps
        With true masks, which "oracle" alone looks at.
    relevance : array (head)
        Head relevance for the pictures' concept.
    k : int
        How many heads are chosen; all of the finest grid and, as weights, all heads are the exceptions, and where the
        finest grid is to be narrowed, half of it is taken if that is fewer.
    draws, seed : int
        Of random heads, each a set of its own: "random 0", "random 1" ...

    Returns
    -------
    xarray.DataArray (set, head)
        Weights, as scores take them. "consensus" and "contrast" are `head_features`, mean over the pictures; the
        weights of "consensus as weights" are the positive part of the former.

    Examples
    --------
    >>> squares = np.zeros((1, 1, 2, 8, 8))
    >>> squares[:, :, :, 2:6, 2:6] = [[[1.0]], [[-1.0]]]
    >>> maps = HeadMaps.from_grids([([0, 1], squares + 1.5)], ["bear"], (8, 8))
    >>> maps = maps.with_pictures(np.zeros((1, 8, 8, 3), np.uint8), truth=squares[:, 0, 0] > 0)
    >>> rule_sets(maps, [0.5, 1.5], 1).sel(set=["HRV", "oracle"]).values.tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    features = head_features(maps).mean("image")
    relevance, agree = np.asarray(relevance, dtype=float), features.sel(feature="consensus").values.clip(0)
    fine = np.isin(maps.heads, finest_heads(maps))
    best = head_precisions(maps).mean("image").values
    few = min(k, max(1, int(fine.sum()) // 2))
    sets = {
        "all heads": np.ones(maps.n_heads),
        "HRV": _largest(relevance, k),
        "finest grid": fine,
        "HRV in the finest grid": _largest(np.where(fine, relevance, -1), few),
        "consensus": _largest(agree, k),
        "consensus as weights": agree,
        "consensus x HRV": _largest(agree * relevance, k),
        "contrast": _largest(features.sel(feature="contrast").values, k),
        "oracle": _largest(best, k),
    }
    orders = random_orders(maps.n_heads, draws=draws, seed=seed).values
    sets |= {f"random {i}": np.isin(np.arange(maps.n_heads), order[:k]) for i, order in enumerate(orders)}
    return xr.DataArray(np.stack(list(sets.values())).astype(np.float32), {"set": list(sets)}, ("set", "head"))


def _largest(values: np.ndarray, k: int) -> np.ndarray:
    """(head) 1 for the k largest, else 0."""
    return np.argsort(np.argsort(-values, kind="stable")) < k


def compare_rules(
    maps: HeadMaps,
    relevance: Any,
    k: int = 40,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    draws: int = 5,
    seed: int = 0,
) -> xr.DataArray:
    """Scores of the heads that each of `RULES` chooses: by one half of the words, for the other, and the reverse.

    Parameters
    ----------
    maps : HeadMaps
        With true masks, of two words or more.
    relevance, k, draws, seed
        As for `rule_sets`.
    thresholds : sequence of float
        As for `every_score`.

    Returns
    -------
    xarray.DataArray (image, set, score)
        The set "random" is the mean over the draws; scores are those of `every_score`.

    Raises
    ------
    ValueError
        If there is one word only.

    Examples
    --------
    >>> squares = np.zeros((2, 8, 8), bool)
    >>> squares[:, 2:6, 2:6] = True
    >>> grids = [([0, 1], np.stack([squares, ~squares / 9], 1)[:, None])]
    >>> maps = HeadMaps.from_grids(grids, ["subject"], (8, 8))
    >>> maps = maps.with_pictures(np.zeros((2, 8, 8, 3), np.uint8), truth=squares)
    >>> maps = HeadMaps(maps.dataset.assign_coords(subject=("image", ["bear", "cat"])))
    >>> compare_rules(maps, [0, 1], 1).sel(set="oracle", score="average precision").values.tolist()
    [1.0, 1.0]
    """

    def score(learnt: np.ndarray, scored: np.ndarray) -> xr.DataArray:
        sets = rule_sets(maps.select(image=learnt), relevance, k, draws=draws, seed=seed)
        scores = every_score(maps.select(image=scored), sets, thresholds)
        random = scores.sel(set=scores["set"].str.startswith("random")).mean("set")
        return xr.concat([scores, random.expand_dims(set=["random"])], "set").sel(set=list(RULES))

    return cross_fit(maps.subjects, score).transpose("image", "set", "score")


def consensus_gain(maps: HeadMaps, ns: Sequence[int], k: int = 40) -> xr.DataArray:
    """What `consensus` heads that are chosen by few pictures gain over all heads.

    Parameters
    ----------
    maps : HeadMaps
        With true masks, of two words or more.
    ns : sequence of int
        How many pictures the heads are chosen by: the first of one half of the words, for the maps of the other half.
    k : int
        How many heads.

    Returns
    -------
    xarray.DataArray (n)
        The mean difference of their average precisions; NaN where one half of the words has fewer pictures.

    Examples
    --------
    >>> squares = np.zeros((2, 8, 8), bool)
    >>> squares[:, 2:6, 2:6] = True
    >>> maps = HeadMaps.from_grids([([0], squares[:, None, None])], ["subject"], (8, 8))
    >>> maps = maps.with_pictures(np.zeros((2, 8, 8, 3), np.uint8), truth=squares)
    >>> maps = HeadMaps(maps.dataset.assign_coords(subject=("image", ["bear", "cat"])))
    >>> consensus_gain(maps, [1, 2], 1).values.tolist()
    [0.0, nan]
    """

    known = [n for n in ns if n <= min(map(len, folds(maps.subjects)))]

    def score(learnt: np.ndarray, scored: np.ndarray) -> xr.DataArray:
        sets = {0: "all"} | {n: consensus(maps.select(image=learnt[:n]), k) for n in known}
        return threshold_free(maps.select(image=scored), sets).sel(score="average precision")

    precision = cross_fit(maps.subjects, score)
    gains = (precision - precision.sel(set=0)).mean("image")
    return gains.rename(set="n").reindex(n=list(ns))


def found(scores: xr.DataArray, planted: Mapping[str, Sequence[int]], ns: Sequence[int] = ()) -> xr.DataArray:
    """How many of the heads planted for each concept are among the first of its ranking.

    Parameters
    ----------
    scores : xarray.DataArray (concept, head)
        The higher, the earlier in the ranking.
    planted : mapping
        concept -> head numbers.
    ns : sequence of int
        How many of a ranking to look at; by default as many as are planted.

    Returns
    -------
    xarray.DataArray (concept, n)
        Their share of all that are planted for the concept, in [0, 1]; with the default n it is the precision. By
        chance it is n / H.

    Examples
    --------
    >>> scores = xr.DataArray([[3, 2, 1, 0]], {"concept": ["Animals"]}, ("concept", "head"))
    >>> found(scores, {"Animals": [0, 3]}, [2, 4]).values.tolist()
    [[0.5, 1.0]]
    """
    counts = list(ns) or [max(map(len, planted.values()))]
    order = {c: np.argsort(-scores.sel(concept=c).values, kind="stable") for c in planted}
    shares = [[np.isin(heads, order[c][:n]).mean() for n in counts] for c, heads in planted.items()]
    return xr.DataArray(shares, {"concept": list(planted), "n": counts}, ("concept", "n"))


def concept_means(scores: Mapping[str, xr.DataArray]) -> xr.DataArray:
    """Mean scores concept by concept: what intervals over concepts are made of.

    Parameters
    ----------
    scores : mapping
        concept -> scores (image, set, ...) of its pictures.

    Returns
    -------
    xarray.DataArray (concept, set, ...)
        Pictures with nothing to find do not count, nor does a concept that has no others.

    Examples
    --------
    >>> scores = xr.DataArray([[0.5, 0.7], [np.nan, np.nan]], {"set": ["all heads", "HRV"]}, ("image", "set"))
    >>> concept_means({"Animals": scores, "Tools": scores[1:]}).values.tolist()
    [[0.5, 0.7]]
    """
    means = [each.mean("image") for each in scores.values()]
    return xr.concat(means, xr.Variable("concept", list(scores))).dropna("concept")


def concept_gains(scores: Mapping[str, xr.DataArray], against: str = "all heads") -> xr.DataArray:
    """How far sets of heads are ahead of one of them, concept by concept.

    Parameters
    ----------
    scores : mapping
        As for `concept_means`.
    against : str
        The set that the others are compared with.

    Returns
    -------
    xarray.DataArray (concept, set, ...)
        Differences of the concepts' means.

    Examples
    --------
    >>> scores = xr.DataArray([[0.5, 0.7]], {"set": ["all heads", "HRV"]}, ("image", "set"))
    >>> concept_gains({"Animals": scores}).sel(set="HRV").round(3).values.tolist()
    [0.2]
    """
    means = concept_means(scores)
    return means - means.sel(set=against)


def head_attention(maps: HeadMaps, *, word: int | str = 0, truth: str = "truth") -> xr.DataArray:
    """How much attention each head gives to the word, where its object is and where it is not.

    Parameters
    ----------
    maps, word, truth
        As for `ious`.

    Returns
    -------
    xarray.DataArray (head, place)
        "inside" and "outside" the true mask, and in the whole "picture": means over pictures, on each head's own grid,
        of which a pixel counts by the share that the mask covers.

    Examples
    --------
    >>> maps = HeadMaps.from_grids([([0], np.eye(2)[None, None, None])], ["bear"], (2, 2))
    >>> maps = maps.with_pictures(np.zeros((1, 2, 2, 3), np.uint8), truth=np.eye(2, dtype=bool)[None])
    >>> head_attention(maps).values.tolist()
    [[1.0, 0.0, 0.5]]
    """
    sums, areas = np.zeros((2, maps.n_heads, 3))
    for image in range(maps.n_images):
        mask = torch.from_numpy(maps.truth(image, truth).astype(np.float32))[None]
        for heads, native in maps.native(image, word):
            inside = adaptive_avg_pool2d(mask, (native.shape[1], native.shape[2]))
            places = torch.stack([inside, 1 - inside, torch.ones_like(inside)], -1)
            sums[np.searchsorted(maps.heads, heads)] += torch.einsum("hyx,ayxp->hp", native, places).numpy()
            areas[np.searchsorted(maps.heads, heads)] += places.sum((0, 1, 2)).numpy()
    places_named = ["inside", "outside", "picture"]
    return xr.DataArray(sums / areas, {"head": maps.heads, "place": places_named}, ("head", "place"))
