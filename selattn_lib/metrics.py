"""Intersection over union (Eq. 5), its curve over the number of heads, dumb baselines, and intervals.

Intervals and tests treat images that share a group (a prompt, a seed) as one draw, since they are alike.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from .aggregate import heatmap, iter_cumulative


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


def iou(mask: Any, truth: Any) -> Any:
    """Intersection over union of boolean masks (..., y, x): a float, or an array over the leading dimensions.

    Two empty masks agree: their IoU is 1. Raises ValueError if the sizes differ or a mask is not boolean.
    """
    mask, truth = np.asarray(mask), np.asarray(truth)
    if mask.dtype != bool or truth.dtype != bool:
        raise ValueError(f"Masks are boolean, not {mask.dtype} and {truth.dtype}: threshold heat maps first.")
    if mask.shape[-2:] != truth.shape[-2:]:
        raise ValueError(f"A mask of {mask.shape[-2:]} pixels was compared with one of {truth.shape[-2:]}.")
    both, either = _count(mask & truth), _count(mask | truth)
    result = np.where(either > 0, both / np.maximum(either, 1), 1.0)
    return result if result.ndim else float(result)


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


def mean_iou(ious: Any, groups: Any = None, *, seed: int = 0, draws: int = 2000) -> Interval:
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


def study_ious(
    results: xr.Dataset,
    heads: str | Sequence[int] | np.ndarray = "all",
    thresholds: Sequence[float] = (0.3, 0.4, 0.5),
    *,
    word: int | str = 0,
) -> xr.DataArray:
    """IoU (image, threshold) of each heat map, strictly above each threshold, with the image's truth (Eq. 5).

    `results` is a head-maps dataset with `truth` (image, y, x); `heads` is as in `heatmap`.
    """
    rows = []
    for image in range(results.sizes["image"]):
        heat = heatmap(results, heads, image=image, word=word)
        rows.append(_threshold_ious(heat.values[None], _truth(results, image), thresholds))
    return _per_image(np.stack(rows)[:, 0], results, {"threshold": list(thresholds)})


def study_iou_curves(
    results: xr.Dataset,
    order: Sequence[int] | np.ndarray,
    thresholds: Sequence[float] = (0.3, 0.4, 0.5),
    *,
    word: int | str = 0,
) -> xr.DataArray:
    """IoU (image, k, threshold) of the first k heads of `order`, for every k = 1 ... len(order)."""
    rows = []
    for image in range(results.sizes["image"]):
        truth = _truth(results, image)
        blocks = iter_cumulative(results, order, image=image, word=word)
        rows.append(np.concatenate([_threshold_ious(block.numpy(), truth, thresholds) for block in blocks]))
    coords = {"k": np.arange(1, len(order) + 1), "threshold": list(thresholds)}
    return _per_image(np.stack(rows), results, coords)


def band(curves: xr.DataArray, *, seed: int = 0, draws: int = 1000) -> np.ndarray:
    """(k, 3): mean over images of curves (image, k) with the ends of a 95 % bootstrap interval, by `subject`."""
    groups = curves["subject"].values if "subject" in curves.coords else None
    return np.array([mean_iou(curves.sel(k=k), groups, seed=seed, draws=draws) for k in curves["k"].values])


def attention_on(
    results: xr.Dataset, sets: Mapping[str, Any], masks: Mapping[str, np.ndarray], *, least: float = 0.01
) -> xr.DataArray:
    """How much of the heat map (min-max normalised) of each set of heads falls on each mask: the map's mean on the
    mask over its mean in the picture, 1 for a map that knows nothing.

    `sets` maps a name to heads as for `heatmap`, `masks` a name to (image, y, x) bool. Images whose mask is smaller
    than `least` of the picture are left out. Returns (heads, mask, statistic): mean, low, high (95 %) and images.
    """
    shape = (len(sets), len(masks), 4)
    table = np.full(shape, np.nan)
    for i, heads in enumerate(sets.values()):
        for j, mask in enumerate(masks.values()):
            chosen = np.flatnonzero(mask.mean(axis=(1, 2)) >= least)
            if len(chosen):
                heats = (heatmap(results, heads, image=int(n)).values for n in chosen)
                shares = [
                    heat[mask[n]].mean() / heat.mean() if heat.any() else 1.0
                    for n, heat in zip(chosen, heats, strict=True)
                ]
                table[i, j] = *mean_iou(shares), len(chosen)
    coords = {"heads": list(sets), "mask": list(masks), "statistic": ["mean", "low", "high", "images"]}
    return xr.DataArray(table, coords, dims=("heads", "mask", "statistic"))


def _truth(results: xr.Dataset, image: int) -> np.ndarray:
    return results["truth"].isel(image=image).values.astype(bool)


def _threshold_ious(heats: np.ndarray, truth: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """(k, threshold) from maps (k, y, x) and a mask (y, x)."""
    return np.array([[iou(heat > threshold, truth) for threshold in thresholds] for heat in heats])


def _per_image(values: np.ndarray, results: xr.Dataset, coords: dict[str, Any]) -> xr.DataArray:
    kept = {name: coord for name, coord in results.coords.items() if coord.dims == ("image",)}
    return xr.DataArray(values, dims=("image", *coords), coords={**kept, **coords}, name="iou")


def _distance(height: int, width: int) -> np.ndarray:
    """(y, x) distance of each pixel's centre from the image's centre, in pixels."""
    y, x = np.ogrid[:height, :width]
    return np.hypot(y - (height - 1) / 2, x - (width - 1) / 2)


def _count(masks: np.ndarray) -> np.ndarray:
    """(...) pixels of masks (..., y, x); one by one, since `count_nonzero` with an axis is slow."""
    single = masks.reshape(-1, *masks.shape[-2:])
    return np.array([np.count_nonzero(mask) for mask in single], dtype=int).reshape(masks.shape[:-2])


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
