"""Heads chosen by their maps alone, without masks, concepts or a word list."""

import numpy as np
import torch
import xarray as xr

from .head_maps import HeadMaps


def finest_grid(maps: HeadMaps) -> tuple[int, int]:
    """(y, x) the size of the native maps that have the most pixels."""
    return max(maps.grids, key=lambda grid: grid[0] * grid[1])


def head_features(maps: HeadMaps, word: int | str = 0) -> xr.DataArray:
    """What maps say of their heads without a mask, for each picture.

    Parameters
    ----------
    maps : HeadMaps
        Of a word in some pictures.
    word : int or str
        As for `HeadMaps.heatmap`.

    Returns
    -------
    xarray.DataArray (image, head, feature)
        "consensus": Pearson's correlation over pixels, on the finest grid, of a head's map with the mean map of all
        heads (Eq. 2), in [-1, 1]; "contrast": the standard deviation of its map over the map's mean. 0 where a map is
        constant.

    Examples
    --------
    >>> squares = np.zeros((1, 1, 2, 8, 8))
    >>> squares[..., 2:6, 2:6] = [[[1.0]], [[0.1]]]
    >>> features = head_features(HeadMaps.from_grids([([0, 1], squares + 0.1)], ["bear"], (8, 8)))
    >>> features.sel(feature="consensus").values.round(3).tolist()
    [[1.0, 1.0]]
    """
    finest = finest_grid(maps)
    sets = np.concatenate([np.ones((1, maps.n_heads)), np.eye(maps.n_heads)]).astype(np.float32)
    values = np.zeros((maps.n_images, maps.n_heads, 2))
    for image in range(maps.n_images):
        drawn = torch.cat(list(maps.heatmaps(sets, image=image, word=word, size=finest))).flatten(1).double()
        away = drawn - drawn.mean(1, keepdim=True)
        norm = away.norm(dim=1)
        values[image, :, 0] = (away[1:] @ away[0]) / (norm[1:] * norm[0]).clamp_min(1e-12)
        for heads, native in maps.native(image, word):
            spread, mean = native.std((1, 2), correction=0), native.mean((1, 2))
            values[image, np.searchsorted(maps.heads, heads), 1] = (spread / mean.abs().clamp_min(1e-12)).numpy()
    coords = {**maps.image_coords, "head": maps.heads, "feature": ["consensus", "contrast"]}
    return xr.DataArray(values, coords, ("image", "head", "feature"))


def by_agreement(agreement: np.ndarray | xr.DataArray) -> np.ndarray:
    """Positions of heads, those first that agree most, by their `agreement` (head); equal ones in their order."""
    return np.argsort(-np.asarray(agreement).round(9), kind="stable")


def consensus(maps: HeadMaps, k: int = 40, *, word: int | str = 0) -> np.ndarray:
    """The k heads whose maps agree most with the mean map of all heads.

    For head h, c_h is the mean over pictures of the correlation, over pixels, of its map with the mean of all maps;
    the k heads of the largest c_h are taken. It needs no masks and no concepts.

    Parameters
    ----------
    maps : HeadMaps
        Of a word in one picture or several: the more, the surer.
    k : int
        How many heads, from 1 to the number of heads.
    word : int or str
        As for `HeadMaps.heatmap`.

    Returns
    -------
    array (k)
        Head numbers, the one that agrees most first, as `HeadMaps.heatmap` takes them.

    Raises
    ------
    ValueError
        On any other k.

    Examples
    --------
    >>> squares = np.zeros((1, 1, 3, 8, 8))
    >>> squares[:, :, :2, 2:6, 2:6] = 1
    >>> squares[:, :, 2, 0] = 1
    >>> consensus(HeadMaps.from_grids([([0, 1, 2], squares)], ["bear"], (8, 8)), k=2).tolist()
    [0, 1]
    """
    if not 1 <= k <= maps.n_heads:
        raise ValueError(f"k={k}: expected a number of heads from 1 to {maps.n_heads}")
    return maps.heads[by_agreement(head_features(maps, word).sel(feature="consensus").mean("image"))[:k]]


def finest_heads(maps: HeadMaps) -> np.ndarray:
    """The heads whose maps have the most pixels: `maps.heatmap("bear", heads=finest_heads(maps))`.

    Of the rules that need neither masks nor head relevance, this one drew the best maps on `emoji-sd` (chapter 15).

    Parameters
    ----------
    maps : HeadMaps
        As a study gives them, or `capture(...).head_maps()`.

    Returns
    -------
    array (head)
        Their numbers, ascending.

    Examples
    --------
    >>> coarse, fine = ([0], np.ones((1, 1, 1, 2, 2))), ([1], np.ones((1, 1, 1, 8, 8)))
    >>> finest_heads(HeadMaps.from_grids([coarse, fine], ["bear"], (8, 8))).tolist()
    [1]
    """
    return maps.grids[finest_grid(maps)]
