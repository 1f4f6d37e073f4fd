"""What a score is to be compared with: masks that know nothing of the picture, and choices made on other pictures."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import rankdata

from ..maps.head_maps import HeadMaps
from ..maps.head_sets import first_heads
from .scores import ious


def centred_disc(height: int, width: int, radius: float) -> np.ndarray:
    """Boolean mask (y, x): the pixels whose centre is at most `radius` pixels from the image's centre."""
    return _distance(height, width) <= radius


def best_disc(truths: Any) -> tuple[int, float]:
    """The whole radius, in pixels, of the centred disc with the highest mean IoU with masks (image, y, x).

    Returns (radius, mean IoU): a baseline that knows nothing but how large and how central objects are.
    """
    truths = np.asarray(truths)
    if truths.dtype != bool or truths.ndim != 3 or not len(truths):
        raise ValueError(f"truths must be boolean (image, y, x), not {truths.dtype} of shape {truths.shape}.")
    ring = np.ceil(_distance(*truths.shape[1:])).astype(int)  # the smallest radius that takes in each pixel
    area = np.cumsum(np.bincount(ring.ravel()))
    both = np.array([np.cumsum(np.bincount(ring[truth], minlength=len(area))) for truth in truths])
    either = area + truths.sum(axis=(1, 2))[:, None] - both
    mean = np.where(either > 0, both / np.maximum(either, 1), 1.0).mean(axis=0)
    radius = int(mean.argmax())
    return radius, float(mean[radius])


def full_frame(height: int, width: int) -> np.ndarray:
    """Boolean mask (y, x) of the whole image, the other baseline."""
    return np.ones((height, width), dtype=bool)


def _distance(height: int, width: int) -> np.ndarray:
    """(y, x) distance of each pixel's centre from the image's centre, in pixels."""
    y, x = np.ogrid[:height, :width]
    return np.hypot(y - (height - 1) / 2, x - (width - 1) / 2)


def folds(groups: Any) -> list[np.ndarray]:
    """Two halves of the images, as indices, that share no group: the 1st, 3rd ... group, and the others.

    Raises ValueError if there is only one group.
    """
    _, first, number = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
    if len(first) < 2:
        raise ValueError("There is one group of images only; to fit on some and score on others takes two.")
    number = rankdata(first, method="ordinal")[number] - 1  # in the order of their appearance
    return [np.flatnonzero(number % 2 == half) for half in (0, 1)]


def oracle_ious(maps: HeadMaps, single: xr.DataArray, ks: Sequence[int], *, groups: Any = None) -> xr.DataArray:
    """IoU (image, k, threshold) of the best k heads: heads ranked by their own IoU on one half of the images, scored on
    the other half, and the reverse. It has seen true masks, which head relevance has not: a ceiling to aim for.

    `single` is `single_ious` of the same `maps`; each of its thresholds has a ranking of its own. Halves share no
    group (default: the coordinate `subject`).
    """

    def score(learnt: np.ndarray, scored: np.ndarray) -> xr.DataArray:
        mean = single.isel(image=learnt).mean("image").transpose("threshold", "single")
        orders = mean.copy(data=np.argsort(-mean.values, axis=1, kind="stable")).rename(single="head").drop_vars("head")
        sets, half = first_heads(orders, ks), maps.select(image=scored)
        thresholds = [ious(half, sets.sel(threshold=t, drop=True), [t]) for t in single["threshold"].values]
        return xr.concat(thresholds, "threshold")

    scores = _cross_fit(maps.subjects if groups is None else groups, score)
    return scores.transpose("image", "k", "threshold")


def cross_fitted(surface: xr.DataArray, groups: Any) -> tuple[xr.DataArray, list[dict[str, Any]]]:
    """Scores (image) of the best cell of `surface` (image, ...), chosen on one half of the images and scored on the
    other, and the reverse; and the two choices, dimension -> label. Halves share no group."""
    choices = []

    def score(learnt: np.ndarray, scored: np.ndarray) -> xr.DataArray:
        mean = surface.isel(image=learnt).mean("image")
        best = {dim: int(index) for dim, index in mean.argmax(list(mean.dims)).items()}  # type: ignore[union-attr]
        choices.append({str(dim): mean[dim].values[index].item() for dim, index in best.items()})
        return surface.isel({"image": scored, **best}, drop=True)

    return _cross_fit(groups, score), choices


def _cross_fit(groups: Any, score: Callable[[np.ndarray, np.ndarray], xr.DataArray]) -> xr.DataArray:
    """Scores (image, ...) of all images, each half by `score(the other half, this half)`."""
    halves = folds(groups)
    scores = xr.concat([score(*halves), score(*halves[::-1])], "image")
    return scores.isel(image=np.argsort(np.concatenate(halves[::-1])))
