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
    """A disc in the middle of the picture, a baseline that knows nothing.

    Parameters
    ----------
    height, width : int
        Of the picture in pixels.
    radius : float
        In pixels, 0 or more.

    Returns
    -------
    array (y, x) bool
        The pixels whose centre is at most `radius` pixels from the picture's centre.

    Examples
    --------
    >>> centred_disc(3, 3, 1).astype(int).tolist()
    [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    """
    return _distance(height, width) <= radius


def best_disc(truths: Any) -> tuple[int, float]:
    """The centred disc that fits true masks best: a baseline that knows only how large and how central objects are.

    Parameters
    ----------
    truths : array (image, y, x) bool
        True masks.

    Returns
    -------
    (int, float)
        The whole radius with the highest mean IoU, in pixels, and this IoU.

    Raises
    ------
    ValueError
        If the masks are not boolean, or there is none.

    Examples
    --------
    >>> best_disc(centred_disc(9, 9, 3)[None])
    (3, 1.0)
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
    """The whole picture as a mask (y, x) bool, the other baseline.

    Parameters
    ----------
    height, width : int
        In pixels.

    Returns
    -------
    array (y, x) bool
        True everywhere.

    Examples
    --------
    >>> full_frame(1, 2).tolist()
    [[True, True]]
    """
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
    """IoU of the k heads whose own maps fit true masks best, which head relevance has not seen.

    Heads are ranked by their own IoU on one half of the images and scored on the other half, and the reverse.

    Parameters
    ----------
    maps : HeadMaps
        With true masks.
    single : xarray.DataArray (image, single, threshold)
        `single_ious` of the same maps; each threshold has a ranking of its own.
    ks : sequence of int
        Numbers of heads.
    groups : array (image), optional
        Halves share no group; the coordinate ``subject`` by default.

    Returns
    -------
    xarray.DataArray (image, k, threshold)
        In [0, 1].

    Raises
    ------
    ValueError
        If there is one group only.

    Examples
    --------
    >>> squares = np.zeros((2, 8, 8), bool)
    >>> squares[:, 2:6, 2:6] = True
    >>> maps = HeadMaps.from_grids([([0], squares[:, None, None])], ["bear"], (8, 8))
    >>> maps = maps.with_pictures(np.zeros((2, 8, 8, 3), np.uint8), truth=squares)
    >>> from selattn_lib.evaluation.scores import single_ious
    >>> oracle_ious(maps, single_ious(maps, [0.5]), [1], groups=["bear", "cat"]).values.ravel().tolist()
    [1.0, 1.0]
    """

    def score(learnt: np.ndarray, scored: np.ndarray) -> xr.DataArray:
        mean = single.isel(image=learnt).mean("image").transpose("threshold", "single")
        orders = mean.copy(data=np.argsort(-mean.values, axis=1, kind="stable")).rename(single="head").drop_vars("head")
        sets, half = first_heads(orders, ks), maps.select(image=scored)
        thresholds = [ious(half, sets.sel(threshold=t, drop=True), [t]) for t in single["threshold"].values]
        return xr.concat(thresholds, "threshold")

    scores = cross_fit(maps.subjects if groups is None else groups, score)
    return scores.transpose("image", "k", "threshold")


def cross_fitted(surface: xr.DataArray, groups: Any) -> tuple[xr.DataArray, list[dict[str, Any]]]:
    """Scores of the best cell of a surface, chosen on one half of the images and scored on the other, and the reverse.

    Parameters
    ----------
    surface : xarray.DataArray (image, ...)
        Scores.
    groups : array (image)
        Halves share no group.

    Returns
    -------
    (xarray.DataArray (image), list of dict)
        The scores, and the two choices: dimension -> label.

    Raises
    ------
    ValueError
        If there is one group only.

    Examples
    --------
    >>> surface = xr.DataArray([[0.9, 0.1], [0.2, 0.8]], {"k": [10, 20]}, ("image", "k"))
    >>> scores, choices = cross_fitted(surface, ["bear", "cat"])
    >>> scores.values.tolist(), choices
    ([0.2, 0.1], [{'k': 10}, {'k': 20}])
    """
    choices = []

    def score(learnt: np.ndarray, scored: np.ndarray) -> xr.DataArray:
        mean = surface.isel(image=learnt).mean("image")
        best = {dim: int(index) for dim, index in mean.argmax(list(mean.dims)).items()}  # type: ignore[union-attr]
        choices.append({str(dim): mean[dim].values[index].item() for dim, index in best.items()})
        return surface.isel({"image": scored, **best}, drop=True)

    return cross_fit(groups, score), choices


def cross_fit(groups: Any, score: Callable[[np.ndarray, np.ndarray], xr.DataArray]) -> xr.DataArray:
    """Scores (image, ...) of all images, each half by `score(the other half, this half)`: see `folds`."""
    halves = folds(groups)
    scores = xr.concat([score(*halves), score(*halves[::-1])], "image")
    return scores.isel(image=np.argsort(np.concatenate(halves[::-1])))
