"""Ambiguous words, measured: where each meaning's heads look, and whether they tell which meaning was drawn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy.stats import rankdata

from .aggregate import _native
from .controls import _rows, set_heatmaps
from .metrics import Interval


def lean(results: xr.Dataset, sets: xr.DataArray, meanings: Sequence[str], *, least: float = 0.01) -> xr.DataArray:
    """(image, set) towards which of two meanings the map of each set leans: the logarithm of its mean on the first
    meaning's mask over its mean on the second's. 0 for a map that prefers neither.

    `results` is a `DiagnosisStudy`'s, `sets` (set, head) as for `controls.set_ious`. Pixels of both masks count for
    neither. Not a number where a mask covers less than `least` of the picture.
    """
    flat = _rows(results, sets)
    found = np.full((results.sizes["image"], len(flat)), np.nan)
    masks = [results[f"truth_{meaning}"].values.astype(bool) for meaning in meanings]
    first, second = masks[0] & ~masks[1], masks[1] & ~masks[0]
    for image in np.flatnonzero([min(a.mean(), b.mean()) >= least for a, b in zip(first, second, strict=True)]):
        heats = torch.cat(list(set_heatmaps(results, flat, image=int(image)))).numpy()
        means = [heats[:, mask[image].ravel()].mean(axis=1) for mask in (first, second)]
        found[image] = np.log(np.maximum(means[0], 1e-6) / np.maximum(means[1], 1e-6))
    return xr.DataArray(found, {"set": sets["set"].values}, ("image", "set"), name="lean")


def attention_mass(results: xr.Dataset, sets: xr.DataArray) -> xr.DataArray:
    """(image, set) mean attention, in [0, 1], that the heads of each set give to the word: their maps' means over all
    pixels, weighted as `sets` (set, head)."""
    shares = _rows(results, sets).double()
    shares = shares / shares.sum(dim=1, keepdim=True)
    found = []
    for image in range(results.sizes["image"]):
        parts = [shares[:, own.tolist()] @ maps.double().mean(dim=(1, 2)) for own, maps in _native(results, image, 0)]
        found.append(torch.stack(parts).sum(dim=0).numpy())
    return xr.DataArray(np.stack(found), {"set": sets["set"].values}, ("image", "set"), name="attention")


def map_correlation(results: xr.Dataset, sets: xr.DataArray) -> xr.DataArray:
    """(image) correlation, over pixels, of the maps of the two sets of `sets` (set, head); 0 if one is constant."""
    flat, found = _rows(results, sets), []
    for image in range(results.sizes["image"]):
        one, other = torch.cat(list(set_heatmaps(results, flat, image=image))).numpy()
        flat_map = one.std() == 0 or other.std() == 0
        found.append(0.0 if flat_map else float(np.corrcoef(one, other)[0, 1]))
    return xr.DataArray(np.array(found), dims="image", name="correlation")


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
