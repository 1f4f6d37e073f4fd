"""Sets of heads as weights, which maps and scores take by the thousand.

A *set* is a row of weights, one a head: ones and zeros select heads (Eq. 4), other numbers weight them. Sets come as
arrays (..., head), any number of dimensions, and so do their scores.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

HeadSelection = str | Sequence[int] | np.ndarray  # "all", or head numbers


def whole_numbers(numbers: Any, name: str) -> np.ndarray:
    """A sequence of whole numbers as an array; ValueError on anything else, such as a mask, which would be 0 and 1."""
    if isinstance(numbers, Iterable) and not isinstance(numbers, str):
        array = np.asarray(list(numbers))
        if not array.size or (array.ndim == 1 and np.issubdtype(array.dtype, np.integer)):
            return array.astype(int)
    raise ValueError(f"{name}={numbers!r}: expected a list of whole numbers, such as [3, 14]")


def head_numbers(heads: HeadSelection, held: Sequence[int] | np.ndarray) -> np.ndarray:
    """The numbers that `heads` names: "all" of those `held` (ascending), or some of them.

    Raises ValueError on anything else, on numbers that are not held, and on numbers given twice.
    """
    held = np.asarray(held)
    if isinstance(heads, str):
        if heads != "all":
            raise ValueError(f"heads={heads!r}: expected 'all' or head numbers")
        return held
    numbers = np.asarray(heads)
    if numbers.ndim != 1 or not len(numbers) or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(f"heads={heads!r}: expected 'all' or a non-empty list of head numbers")
    if len(wrong := numbers[~np.isin(numbers, held)]):
        if held[-1] == len(held) - 1:
            raise ValueError(f"heads {wrong.tolist()} do not exist: expected numbers from 0 to {held[-1]}")
        raise ValueError(f"heads {wrong.tolist()} are not in these maps, which hold only {held.tolist()}")
    if len(np.unique(numbers)) != len(numbers):
        raise ValueError("heads names some head more than once: use weights for a weighted mean")
    return numbers


def head_weights(heads: Any, held: Sequence[int] | np.ndarray) -> xr.DataArray:
    """Any choice of heads as weights.

    Parameters
    ----------
    heads : "all", sequence of int, mapping, or xarray.DataArray (..., head)
        One set, as for `head_numbers`; weights of 0 or more; or named sets, as a mapping of each name to one or the
        other, whose dimensions are then broadcast.
    held : sequence of int
        The head numbers that the last dimension stands for, ascending.

    Returns
    -------
    xarray.DataArray (head), (set, ..., head) or (..., head)
        float32, some weight above 0 in every set.

    Raises
    ------
    ValueError
        If a set is empty, negative, or names a head that is not held.

    Examples
    --------
    >>> head_weights({"first": [0], "all": "all"}, range(3)).values.tolist()
    [[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
    """
    if isinstance(heads, xr.DataArray):
        if heads.dims[-1] != "head" or heads.sizes["head"] != len(held):
            raise ValueError(
                f"weights of dimensions {dict(heads.sizes)}: expected the last to be head, of {len(held)} heads"
            )
        values = heads.values
        if not (np.isfinite(values).all() and (values >= 0).all() and (values > 0).any(axis=-1).all()):
            raise ValueError("weights: expected numbers of 0 or more, and some head above 0 in every set")
        return heads.astype(np.float32)
    if isinstance(heads, Mapping):
        rows = xr.broadcast(*(head_weights(selection, held) for selection in heads.values()))
        return xr.concat(rows, xr.Variable("set", list(heads))).transpose("set", ..., "head")
    weights = np.isin(np.asarray(held), head_numbers(heads, held))
    return xr.DataArray(weights.astype(np.float32), dims="head")


def first_heads(orders: Any, ks: Sequence[int]) -> xr.DataArray:
    """The first k heads of rankings, for every k: a curve over k is the scores of these.

    Parameters
    ----------
    orders : array or xarray.DataArray (..., head)
        Rankings: head numbers 0 to H - 1, the first the most relevant.
    ks : sequence of int
        From 1 to H.

    Returns
    -------
    xarray.DataArray (..., k, head)
        Ones and zeros; the coordinate `k` holds `ks`.

    Raises
    ------
    ValueError
        If some k is out of range, or an order does not hold each head once.

    Examples
    --------
    >>> first_heads([2, 0, 1], [1, 2]).values.tolist()
    [[0.0, 0.0, 1.0], [1.0, 0.0, 1.0]]
    """
    orders = orders if isinstance(orders, xr.DataArray) else xr.DataArray(np.asarray(orders), dims="head")
    orders, n_heads = orders.transpose(..., "head"), orders.sizes["head"]
    if wrong := [k for k in ks if not 1 <= k <= n_heads]:
        raise ValueError(f"k={wrong[0]}: expected whole numbers from 1 to {n_heads}")
    if (np.sort(orders.values, axis=-1) != np.arange(n_heads)).any():
        raise ValueError(f"orders: expected rankings that hold each head from 0 to {n_heads - 1} once")
    rank = orders.copy(data=np.argsort(orders.values, axis=-1))
    sizes = xr.DataArray(list(ks), {"k": list(ks)}, "k")
    return (rank < sizes).astype(np.float32).transpose(..., "k", "head")


def random_orders(n_heads: int, *, draws: int = 200, seed: int = 0) -> xr.DataArray:
    """Rankings of the heads at random, as `first_heads` takes them.

    Parameters
    ----------
    n_heads, draws : int
        How many heads, and how many rankings.
    seed : int
        Draw i depends on (seed, i) alone.

    Returns
    -------
    xarray.DataArray (draw, head)
        Head numbers.

    Examples
    --------
    >>> random_orders(4, draws=2).values.tolist()
    [[2, 0, 1, 3], [3, 0, 2, 1]]
    """
    orders = [np.random.default_rng([seed, i]).permutation(n_heads) for i in range(draws)]
    return xr.DataArray(np.stack(orders), dims=("draw", "head"))


def matched_heads(heads: Sequence[int] | np.ndarray, strata: Any, *, draws: int = 200, seed: int = 0) -> xr.DataArray:
    """Random heads, as many in each stratum as a given set has there.

    If the heads of a stratum could be exchanged, `heads` would be one of these draws.

    Parameters
    ----------
    heads : sequence of int
        Head numbers.
    strata : array (head)
        What a head is alike by: its layer, or the grid of its maps (`HeadMaps.grid_of_head`).
    draws, seed : int
        Draw i depends on (seed, i) alone.

    Returns
    -------
    xarray.DataArray (draw, head)
        Ones and zeros.

    Examples
    --------
    >>> matched_heads([0, 3], ["64x64", "64x64", "8x8", "8x8"], draws=50).values[:, :2].sum(axis=1).max()
    np.float32(1.0)
    """
    strata = np.asarray(strata)
    sets = np.zeros((draws, len(strata)), np.float32)
    for i, row in enumerate(sets):
        rng = np.random.default_rng([seed, i])
        for stratum in np.unique(strata):
            members = np.flatnonzero(strata == stratum)
            row[rng.choice(members, np.isin(members, heads).sum(), replace=False)] = 1
    return xr.DataArray(sets, dims=("draw", "head"))
