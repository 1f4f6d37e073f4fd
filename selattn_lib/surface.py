"""Scores over every number of heads and every threshold, scores that need no threshold, and maps of parts of the
denoising."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from pydantic import Field

from .capture import capture
from .controls import _rows, _shaped, folds, set_heatmaps
from .metrics import _group_sums
from .study import Study, generate, halved

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))
SCORES = ("average precision", "best IoU", "pointing game")


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


def cross_fitted(surface: xr.DataArray, groups: Any) -> tuple[xr.DataArray, list[dict[str, Any]]]:
    """Scores (image) of the best cell of `surface` (image, ...), chosen on one half of the images and scored on the
    other, and the reverse; and the two choices, dimension -> label. Halves share no group."""
    halves, scores, choices = folds(groups), [], []
    for learnt, scored in (halves, halves[::-1]):
        mean = surface.isel(image=learnt).mean("image")
        places = np.unravel_index(mean.values.argmax(), mean.shape)
        best: dict[Any, Any] = {str(dim): int(place) for dim, place in zip(mean.dims, places, strict=True)}
        choices.append({dim: mean[dim].values[place].item() for dim, place in best.items()})
        scores.append(surface.isel({"image": scored, **best}, drop=True))
    return xr.concat(scores, "image").isel(image=np.argsort(np.concatenate(halves[::-1]))), choices


def threshold_free(results: xr.Dataset, sets: xr.DataArray, *, word: int | str = 0) -> xr.DataArray:
    """Scores (image, ..., score) in [0, 1] of the map of every set of `sets` (..., head), that no threshold decides.

    "average precision": of the ranking of pixels by the map, the mean precision over steps of recall. "best IoU": at
    whatever threshold is the best for this very map. "pointing game": 1 if the map's highest pixel is in the truth.
    Not a number where the truth is empty.
    """
    flat, rows = _rows(results, sets), []
    for image in range(results.sizes["image"]):
        truth = results["truth"].isel(image=image).values.astype(bool).ravel()
        blocks = set_heatmaps(results, flat, image=image, word=word)
        rows.append([_threshold_free(heat, truth) for block in blocks for heat in block.numpy()])
    return _shaped(np.array(rows), results, sets, "score", list(SCORES)).rename("score")


def _threshold_free(heat: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    if not truth.any():
        return np.nan, np.nan, np.nan
    order = np.argsort(-heat, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(heat[order])), len(heat) - 1)  # pixels of one value are taken together
    taken, hit = ends + 1, np.cumsum(truth[order])[ends]
    precision, recall = hit / taken, hit / hit[-1]
    best = hit / (taken + hit[-1] - hit)
    return float(np.sum(np.diff(recall, prepend=0) * precision)), float(best.max()), float(truth[order[0]])


class WindowStudy(Study):
    """The benchmark of a `Study` with maps of each stretch of the denoising, first to last, instead of their mean.

    The calls of the network are split into `windows` of equal length, up to one call. Maps have the dimension `window`
    after `word`; the coordinates `from_timestep` and `to_timestep` (window) say which calls it averages.
    """

    windows: int = Field(default=5, ge=1)

    def compute(self, units: Sequence[int]) -> xr.Dataset:
        every = self.units()
        chosen = [every[i] for i in units]
        with capture(self.pipe, words=[[u["subject"]] for u in chosen], per_timestep=True) as maps:
            images = generate(
                self.pipe, [u["prompt"] for u in chosen], [u["seed"] for u in chosen],
                steps=self.steps, guidance=self.guidance,
            )  # fmt: skip
        each = maps.dataset()
        if self.windows > each.sizes["call"]:
            raise ValueError(f"windows={self.windows}: expected at most {each.sizes['call']}, the calls of the network")
        parts = np.array_split(np.arange(each.sizes["call"]), self.windows)
        means = [each.isel(call=part).mean("call", keep_attrs=True) for part in parts]
        found = halved(xr.concat(means, "window")).transpose("image", "word", "window", ...)
        ends = np.array([each["timestep"].values[[part[0], part[-1]]] for part in parts])
        found = found.assign_coords(from_timestep=("window", ends[:, 0]), to_timestep=("window", ends[:, 1]))
        found["image_rgb"] = (("image", "y", "x", "rgb"), np.stack([np.asarray(i) for i in images]))
        found["truth"] = (("image", "y", "x"), np.stack(self.judge(images, [u["subject"] for u in chosen])))
        return found
