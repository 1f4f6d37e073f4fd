"""Scores of maps against true masks: intersection over union (Eq. 5), scores without a threshold, attention on a mask.

Every function takes any sets of heads: "all", head numbers, a mapping of names to either, or weights (..., head), such
as `first_heads` and `random_orders` make them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch.nn.functional import adaptive_avg_pool2d

from ..maps.consensus import finest_grid
from ..maps.head_maps import HeadMaps
from .statistics import mean_interval

THRESHOLDS = (0.3, 0.4, 0.5)  # the paper's
GRID = tuple(round(0.05 * i, 2) for i in range(1, 20))  # thresholds of a surface
SCORES = ("average precision", "best IoU", "pointing game")
Score = Callable[[torch.Tensor, np.ndarray], np.ndarray]
FLOOR = 1e-6  # of a mean attention, in maps that go from 0 to 1


def iou(mask: Any, truth: Any) -> Any:
    """Intersection over union of masks (Eq. 5).

    Parameters
    ----------
    mask, truth : array (..., y, x) bool
        Of the same height and width.

    Returns
    -------
    float, or array (...)
        In [0, 1]. Two empty masks agree: their IoU is 1.

    Raises
    ------
    ValueError
        If the sizes differ or a mask is not boolean.

    Examples
    --------
    >>> iou(np.array([[True, True, False]]), np.array([[False, True, False]]))
    0.5
    """
    mask, truth = np.asarray(mask), np.asarray(truth)
    if mask.dtype != bool or truth.dtype != bool:
        raise ValueError(f"masks of {mask.dtype} and {truth.dtype}: expected booleans; threshold heat maps first")
    if mask.shape[-2:] != truth.shape[-2:]:
        raise ValueError(f"a mask of {mask.shape[-2:]} pixels and one of {truth.shape[-2:]}: expected one size")
    both, either = _count(mask & truth), _count(mask | truth)
    result = np.where(either > 0, both / np.maximum(either, 1), 1.0)
    return result if result.ndim else float(result)


def ious(
    maps: HeadMaps,
    heads: Any = "all",
    thresholds: Sequence[float] = THRESHOLDS,
    *,
    word: int | str = 0,
    truth: str = "truth",
    normalise: str = "minmax",
) -> xr.DataArray:
    """IoU of heat maps, cut strictly above thresholds, with the true masks (Eq. 5).

    Parameters
    ----------
    maps : HeadMaps
        With true masks (image, y, x).
    heads : "all", sequence of int, mapping, or xarray.DataArray (..., head)
        Any sets of heads, see `selattn_lib.maps.head_sets.head_weights`.
    thresholds : sequence of float
        In (0, 1).
    word : int or str
        As for `HeadMaps.heatmap`.
    truth : str
        The name of the true masks.
    normalise : str
        "minmax", "max" or "per-head", as for `HeadMaps.heatmap`: what a threshold is a share of.

    Returns
    -------
    xarray.DataArray (image, ..., threshold)
        In [0, 1], with the maps' coordinates along `image`; the dimensions between are those of the sets.

    Raises
    ------
    ValueError
        If there is no such truth, or on sets that do not fit the maps.

    Examples
    --------
    >>> square = np.zeros((1, 8, 8), bool)
    >>> square[0, 2:6, 2:6] = True
    >>> maps = HeadMaps.from_grids([([0], square[:, None, None])], ["bear"], (8, 8))
    >>> maps = maps.with_pictures(np.zeros((1, 8, 8, 3), np.uint8), truth=square)
    >>> ious(maps, {"first": [0]}, [0.5]).values.tolist()
    [[[1.0]]]
    """

    def score(heats: torch.Tensor, mask: np.ndarray) -> np.ndarray:
        inside = torch.from_numpy(mask.astype(np.float32)).flatten()
        heats, above, area, both = heats.flatten(1), torch.empty_like(heats.flatten(1)), [], []
        for threshold in thresholds:
            torch.gt(heats, threshold, out=above)  # as numbers: several times faster than booleans
            area.append(above.sum(dim=1))
            both.append(above @ inside)
        overlap = torch.stack(both, dim=1)
        either = torch.stack(area, dim=1) + inside.sum() - overlap
        return torch.where(either > 0, overlap / either.clamp(min=1), 1.0).numpy()

    options = {"word": word, "normalise": normalise}
    return _each_image(maps, heads, score, "threshold", thresholds, truth, **options).rename("iou")


def single_ious(maps: HeadMaps, thresholds: Sequence[float] = THRESHOLDS, *, normalise: str = "minmax") -> xr.DataArray:
    """IoU of each head's own map.

    Parameters
    ----------
    maps : HeadMaps
        With true masks.
    thresholds : sequence of float
        In (0, 1).
    normalise : str
        As for `ious`.

    Returns
    -------
    xarray.DataArray (image, single, threshold)
        In [0, 1]; `single` numbers the heads.

    Examples
    --------
    >>> square = np.zeros((1, 8, 8), bool)
    >>> square[0, 2:6, 2:6] = True
    >>> maps = HeadMaps.from_grids([([0], square[:, None, None])], ["bear"], (8, 8))
    >>> single_ious(maps.with_pictures(np.zeros((1, 8, 8, 3), np.uint8), truth=square), [0.5]).values.tolist()
    [[[1.0]]]
    """
    singles = np.eye(maps.n_heads, dtype=np.float32)
    return ious(
        maps, xr.DataArray(singles, {"single": maps.heads}, ("single", "head")), thresholds, normalise=normalise
    )


def threshold_free(
    maps: HeadMaps, heads: Any = "all", *, word: int | str = 0, truth: str = "truth", normalise: str = "minmax"
) -> xr.DataArray:
    """Scores of heat maps that no threshold decides.

    Parameters
    ----------
    maps, heads, word, truth, normalise
        As for `ious`.

    Returns
    -------
    xarray.DataArray (image, ..., score)
        In [0, 1]; NaN where the truth is empty. "average precision": of the ranking of pixels by the map.
        "best IoU": at whatever threshold is the best for this very map. "pointing game": 1 if the map's highest pixel
        is in the truth.

    Examples
    --------
    >>> maps = HeadMaps.from_grids([([0], np.eye(2)[None, None, None])], ["bear"], (2, 2))
    >>> maps = maps.with_pictures(np.zeros((1, 2, 2, 3), np.uint8), truth=np.eye(2, dtype=bool)[None])
    >>> threshold_free(maps).values.tolist()
    [[1.0, 1.0, 1.0]]
    """

    def score(heats: torch.Tensor, mask: np.ndarray) -> np.ndarray:
        return np.array([_threshold_free(heat, mask.ravel()) for heat in heats.flatten(1).numpy()])

    options = {"word": word, "normalise": normalise}
    return _each_image(maps, heads, score, "score", SCORES, truth, **options).rename("score")


def otsu_ious(maps: HeadMaps, heads: Any = "all", *, word: int | str = 0, truth: str = "truth") -> xr.DataArray:
    """IoU of heat maps, each cut at the threshold that Otsu's method chooses for it, without a true mask.

    Otsu's threshold parts the pixels into two classes whose means lie farthest apart,
    argmax_t w_0(t) w_1(t) (m_0(t) - m_1(t))^2, over 256 levels.

    Parameters
    ----------
    maps, heads, word, truth
        As for `ious`.

    Returns
    -------
    xarray.DataArray (image, ...)
        In [0, 1].

    Examples
    --------
    >>> square = np.zeros((1, 8, 8), bool)
    >>> square[0, 2:6, 2:6] = True
    >>> maps = HeadMaps.from_grids([([0], square[:, None, None])], ["bear"], (8, 8))
    >>> otsu_ious(maps.with_pictures(np.zeros((1, 8, 8, 3), np.uint8), truth=square)).values.tolist()
    [1.0]
    """

    def score(heats: torch.Tensor, mask: np.ndarray) -> np.ndarray:
        return iou((heats > otsu(heats)[:, None, None]).numpy(), np.broadcast_to(mask, heats.shape))[:, None]

    return _each_image(maps, heads, score, "threshold", ["Otsu"], truth, word=word).isel(threshold=0, drop=True)


def otsu(heats: torch.Tensor) -> torch.Tensor:
    """(set) Otsu's threshold of each of some maps (set, y, x) in [0, 1]: see `otsu_ious`."""
    levels = (heats.flatten(1) * 255).round().long()
    counts = torch.zeros(len(heats), 256).scatter_add_(1, levels, torch.ones(levels.shape))
    below, total = counts.cumsum(1), (counts * torch.arange(256)).cumsum(1)
    above = below[:, -1:] - below
    gap = total / below.clamp_min(1) - (total[:, -1:] - total) / above.clamp_min(1)
    return ((below * above * gap**2).argmax(1) + 0.5) / 255


def head_precisions(maps: HeadMaps, *, word: int | str = 0, truth: str = "truth") -> xr.DataArray:
    """Average precision of each head's own map on the finest grid, where a pixel counts as true by the share of it that
    the true mask covers: as good for ranking heads as the picture's pixels, and a hundred times as fast.

    Parameters
    ----------
    maps, word, truth
        As for `ious`.

    Returns
    -------
    xarray.DataArray (image, head)
        In [0, 1]; NaN where the truth is empty.

    Examples
    --------
    >>> maps = HeadMaps.from_grids([([0], np.eye(2)[None, None, None])], ["bear"], (2, 2))
    >>> maps = maps.with_pictures(np.zeros((1, 2, 2, 3), np.uint8), truth=np.eye(2, dtype=bool)[None])
    >>> head_precisions(maps).values.tolist()
    [[1.0]]
    """
    finest = finest_grid(maps)
    single, rows = np.eye(maps.n_heads, dtype=np.float32), []
    for image in range(maps.n_images):
        heats = torch.cat(list(maps.heatmaps(single, image=image, word=word, size=finest))).flatten(1)
        mask = torch.from_numpy(maps.truth(image, truth).astype(np.float32))
        shares = adaptive_avg_pool2d(mask[None], finest).flatten()[heats.argsort(dim=1, descending=True, stable=True)]
        precision = shares.cumsum(1) / torch.arange(1, shares.shape[1] + 1)
        rows.append(((precision * shares).sum(1) / shares.sum(1)).numpy())
    return xr.DataArray(np.stack(rows), {**maps.image_coords, "head": maps.heads}, ("image", "head"))


def every_score(
    maps: HeadMaps, heads: Any, thresholds: Sequence[float] = THRESHOLDS, *, word: int | str = 0, truth: str = "truth"
) -> xr.DataArray:
    """`threshold_free`, `ious` and `otsu_ious` side by side.

    Parameters
    ----------
    maps, heads, thresholds, word, truth
        As for `ious`.

    Returns
    -------
    xarray.DataArray (image, ..., score)
        In [0, 1]: "average precision", "best IoU", "pointing game", "IoU at 0.3" ..., "IoU at Otsu's".

    Examples
    --------
    >>> maps = HeadMaps.from_grids([([0], np.eye(2)[None, None, None])], ["bear"], (2, 2))
    >>> maps = maps.with_pictures(np.zeros((1, 2, 2, 3), np.uint8), truth=np.eye(2, dtype=bool)[None])
    >>> every_score(maps, "all", [0.5]).values.tolist()
    [[1.0, 1.0, 1.0, 1.0, 1.0]]
    """
    of_maps: dict[str, Any] = {"word": word, "truth": truth}
    cut = ious(maps, heads, thresholds, **of_maps).rename(threshold="score")
    free, otsus = threshold_free(maps, heads, **of_maps), otsu_ious(maps, heads, **of_maps)
    cut = cut.assign_coords(score=[f"IoU at {threshold:g}" for threshold in thresholds])
    return xr.concat([free, cut, otsus.expand_dims(score=["IoU at Otsu's"], axis=-1)], "score")


def _threshold_free(heat: np.ndarray, truth: np.ndarray) -> tuple[float, float, float]:
    if not truth.any():
        return np.nan, np.nan, np.nan
    order = np.argsort(-heat, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(heat[order])), len(heat) - 1)  # pixels of one value are taken together
    hit = np.cumsum(truth[order])[ends]
    best = hit / (ends + 1 + hit[-1] - hit)
    precision = float(
        (np.diff(hit, prepend=0) * hit / (ends + 1)).sum() / hit[-1]
    )  # scikit-learn's, at a third of the time
    return precision, float(best.max()), float(truth[order[0]])


def attention_ratio(heat: Any, mask: np.ndarray, against: np.ndarray | None = None, *, floor: float = 0.0) -> Any:
    """How much more attention falls on a mask than elsewhere: the mean of a map there over its mean in `against`.

    Parameters
    ----------
    heat : array (..., y, x)
        Maps in [0, 1].
    mask : array (y, x) bool
        Where to look.
    against : array (y, x) bool, optional
        Where to compare with; the whole picture by default.
    floor : float
        Means below it count as it, so that a ratio is neither 0 nor infinite.

    Returns
    -------
    float, or array (...)
        1 for a map that prefers neither, or where a mask is empty.

    Examples
    --------
    >>> attention_ratio(np.array([[1.0, 0.5], [0.5, 0.0]]), np.array([[True, False], [False, False]]))
    2.0
    """
    heat = np.asarray(heat)
    against = np.ones(mask.shape, bool) if against is None else against
    ratio = np.ones(heat.shape[:-2])
    if mask.any() and against.any():
        on, off = (np.maximum(heat[..., where].mean(axis=-1), floor) for where in (mask, against))
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(on == off, 1.0, on / off)
    return ratio if heat.ndim > 2 else float(ratio)


def attention_on(
    maps: HeadMaps, heads: Mapping[str, Any], masks: Mapping[str, Any], *, min_area: float = 0.01, **options: Any
) -> xr.DataArray:
    """The mean `attention_ratio` of each set of heads on each mask, with its interval.

    Parameters
    ----------
    maps : HeadMaps
        Of the pictures that the masks are of.
    heads : mapping
        Name -> heads, as for `ious`; by several rankings (ranking, head), the interval holds their noise.
    masks : mapping
        Name -> true masks (image, y, x) bool. Images whose mask is smaller than `min_area` of the picture are left out.
    **options
        word and normalise, as for `HeadMaps.heatmap`.

    Returns
    -------
    xarray.DataArray (heads, mask, statistic)
        mean, low, high (95 %) and images; NaN where there is no image.

    Examples
    --------
    >>> square = np.zeros((1, 8, 8), bool)
    >>> square[0, 2:6, 2:6] = True
    >>> maps = HeadMaps.from_grids([([0], square[:, None, None])], ["bear"], (8, 8))
    >>> float(attention_on(maps, {"all heads": "all"}, {"bear": square}).sel(statistic="mean").squeeze())
    4.0
    """
    weights = maps.weights(heads)
    sets = weights.values.reshape(-1, weights.sizes["head"])  # (set and ranking, head)
    table = np.full((len(heads), len(masks), 4), np.nan)
    for column, mask in enumerate(map(np.asarray, masks.values())):
        chosen = np.flatnonzero(mask.mean(axis=(1, 2)) >= min_area)
        if len(chosen):
            heats = (torch.cat(list(maps.heatmaps(sets, image=int(image), **options))) for image in chosen)
            ratios = np.array([attention_ratio(heat.numpy(), mask[i]) for heat, i in zip(heats, chosen, strict=True)])
            by_set = np.split(ratios, len(heads), axis=1)  # each (image, ranking)
            table[:, column] = [[*mean_interval(of_set), len(chosen)] for of_set in by_set]
    coords = {"heads": list(heads), "mask": list(masks), "statistic": ["mean", "low", "high", "images"]}
    return xr.DataArray(table, coords, dims=("heads", "mask", "statistic"))


def log_attention_ratio(
    maps: HeadMaps, heads: Mapping[str, Any], meanings: Sequence[str], *, min_area: float = 0.01, **options: Any
) -> xr.DataArray:
    """Which of two meanings the map of each set of heads prefers.

    Parameters
    ----------
    maps : HeadMaps
        Of a `DiagnosisStudy`: with the true masks ``truth_{meaning}``.
    heads : mapping
        Name -> heads, as for `ious`.
    meanings : (str, str)
        Of the word.
    min_area : float
        In [0, 1]: images where either meaning's mask, less the other's, covers less of the picture do not count.
    **options
        word and normalise, as for `HeadMaps.heatmap`.

    Returns
    -------
    xarray.DataArray (image, set), or (image, set, ranking)
        The logarithm of `attention_ratio` of the first meaning's mask against the second's: above 0 where the map is
        stronger on the first. Pixels of both masks count for neither, means below 1e-6 count as 1e-6. Not a number
        where an image does not count.

    Examples
    --------
    >>> square = np.zeros((1, 8, 8), bool)
    >>> square[0, 2:6, 2:6] = True
    >>> maps = HeadMaps.from_grids([([0], square[:, None, None])], ["bear"], (8, 8))
    >>> maps = maps.with_pictures(np.zeros((1, 8, 8, 3), np.uint8), truth_Animals=square, truth_Tools=~square)
    >>> bool(log_attention_ratio(maps, {"all heads": "all"}, ["Animals", "Tools"]) > 0)
    True
    """
    weights = maps.weights(heads)
    sets = weights.values.reshape(-1, weights.sizes["head"])
    logs = np.full((maps.n_images, len(sets)), np.nan)
    for image in range(maps.n_images):
        one, other = (maps.truth(image, meaning) for meaning in meanings)
        first, second = one & ~other, other & ~one
        if min(first.mean(), second.mean()) >= min_area:
            heats = torch.cat(list(maps.heatmaps(sets, image=image, **options))).numpy()
            logs[image] = np.log(attention_ratio(heats, first, second, floor=FLOOR))
    dims, values = ("image", *weights.dims[:-1]), logs.reshape(-1, *weights.shape[:-1])
    return xr.DataArray(values, {"set": weights["set"].values}, dims, name="log attention ratio")


def mean_attention(maps: HeadMaps, heads: Mapping[str, Any]) -> xr.DataArray:
    """How much attention the heads of each set give to the word, over all pixels.

    Parameters
    ----------
    maps : HeadMaps
        Of some pictures.
    heads : mapping
        Name -> heads, as for `ious`.

    Returns
    -------
    xarray.DataArray (image, set), or (image, set, ranking)
        The mean of their native maps, in [0, 1].

    Examples
    --------
    >>> square = np.zeros((1, 8, 8), bool)
    >>> square[0, 2:6, 2:6] = True
    >>> maps = HeadMaps.from_grids([([0], square[:, None, None])], ["bear"], (8, 8))
    >>> mean_attention(maps, {"all heads": "all"}).values.tolist()
    [[0.25]]
    """
    weights = maps.weights(heads)
    shares = torch.from_numpy(weights.values).double()
    shares = shares / shares.sum(dim=-1, keepdim=True)
    means = torch.zeros((maps.n_images, maps.n_heads), dtype=torch.float64)
    for image in range(maps.n_images):
        for heads_of_grid, values in maps.native(image):
            means[image, np.searchsorted(maps.heads, heads_of_grid)] = values.double().mean(dim=(1, 2))
    attention = torch.einsum("ih,...h->i...", means, shares).numpy()
    dims = ("image", *weights.dims[:-1])
    return xr.DataArray(attention, {"set": weights["set"].values}, dims, name="attention")


def map_correlation(maps: HeadMaps, heads: Mapping[str, Any]) -> xr.DataArray:
    """How alike the maps of two sets of heads are.

    Parameters
    ----------
    maps : HeadMaps
        Of some pictures.
    heads : mapping
        Two names -> heads, as for `ious`.

    Returns
    -------
    xarray.DataArray (image), or (image, ranking)
        Pearson's correlation over pixels, in [-1, 1]; 0 if one map is constant.

    Examples
    --------
    >>> square = np.zeros((1, 8, 8), bool)
    >>> square[0, 2:6, 2:6] = True
    >>> maps = HeadMaps.from_grids([([0], square[:, None, None])], ["bear"], (8, 8))
    >>> map_correlation(maps, {"one": [0], "the same": [0]}).round(3).values.tolist()
    [1.0]
    """
    weights, correlations = maps.weights(heads), []
    sets = weights.values.reshape(-1, weights.sizes["head"])
    for image in range(maps.n_images):
        heats = torch.cat(list(maps.heatmaps(sets, image=image))).flatten(1).double()
        away = heats - heats.mean(1, keepdim=True)
        one, other = (away / away.norm(dim=1, keepdim=True).clamp_min(1e-12)).chunk(2)
        correlations.append((one * other).sum(1).numpy().reshape(weights.shape[1:-1]))
    return xr.DataArray(np.stack(correlations), dims=("image", *weights.dims[1:-1]), name="correlation")


def presence(maps: HeadMaps) -> xr.Dataset:
    """How much of its word is in each picture of a study, by the study's segmenter.

    Parameters
    ----------
    maps : HeadMaps
        Of a study whose pictures a segmenter has seen.

    Returns
    -------
    xarray.Dataset
        ``area`` (image): the share of the picture that the word's mask covers. ``score`` (image), in [0, 1]: the
        score of the detection, 0 if there is none.

    Examples
    --------
    >>> square = np.zeros((1, 8, 8), bool)
    >>> square[0, 2:6, 2:6] = True
    >>> maps = HeadMaps.from_grids([([0], square[:, None, None])], ["bear"], (8, 8))
    >>> dataset = maps.with_pictures(np.zeros((1, 8, 8, 3), np.uint8), truth=square).dataset
    >>> presence(HeadMaps(dataset.assign(truth_score=("image", [0.9])).assign_coords(subject=("image", ["bear"]))))
    <xarray.Dataset>...
    """
    area = np.array([maps.truth(image).mean() for image in range(maps.n_images)])
    score = np.nan_to_num(maps.dataset["truth_score"].values)
    subject = {"subject": ("image", maps.subjects)}
    return xr.Dataset({"area": ("image", area), "score": ("image", score)}, subject)


def _count(masks: np.ndarray) -> np.ndarray:
    """(...) pixels of masks (..., y, x); one by one, since `count_nonzero` with an axis is slow."""
    single = masks.reshape(-1, *masks.shape[-2:])
    return np.array([np.count_nonzero(mask) for mask in single], dtype=int).reshape(masks.shape[:-2])


def _each_image(
    maps: HeadMaps, heads: Any, score: Score, dim: str, labels: Sequence[Any], truth: str, **options: Any
) -> xr.DataArray:
    """(image, ..., dim) from `score`, which gives (set, label) of heat maps (set, y, x) and a mask (y, x); options of
    `HeadMaps.heatmaps`."""
    weights = maps.weights(heads)
    rows = weights.values.reshape(-1, weights.sizes["head"])
    scores = []
    for image in range(maps.n_images):
        mask = maps.truth(image, truth)
        scores.append(np.concatenate([score(block, mask) for block in maps.heatmaps(rows, image=image, **options)]))
    of_sets = {name: coord for name, coord in weights.coords.items() if "head" not in coord.dims}
    coords: dict[Any, Any] = {**maps.image_coords, **of_sets, dim: list(labels)}
    values = np.stack(scores).reshape(maps.n_images, *weights.shape[:-1], len(labels))
    return xr.DataArray(values, coords, ("image", *weights.dims[:-1], dim))
