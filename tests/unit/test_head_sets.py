"""Sets of heads as weights: the first k of rankings, random ones, and ones matched to a set."""

import numpy as np
import pytest
import xarray as xr

from selattn_lib.maps.head_sets import first_heads, head_weights, matched_heads, random_orders


def test_first_heads_of_every_k():
    order = np.random.default_rng(1).permutation(9)
    sets = first_heads(order, [1, 4, 9])
    assert [set(np.flatnonzero(row)) for row in sets.values] == [set(order[:k].tolist()) for k in (1, 4, 9)]
    assert sets.dims == ("k", "head") and sets["k"].values.tolist() == [1, 4, 9]
    with pytest.raises(ValueError, match="k=10: expected whole numbers from 1 to 9"):
        first_heads(order, [3, 10])
    with pytest.raises(ValueError, match="hold each head from 0 to 1 once"):
        first_heads([7, 2], [1])


def test_first_heads_of_many_orders():
    orders = random_orders(9, draws=5)
    sets = first_heads(orders, [2, 3])
    assert sets.dims == ("draw", "k", "head")
    for draw in range(5):
        np.testing.assert_array_equal(sets[draw], first_heads(orders.values[draw], [2, 3]))


@pytest.mark.parametrize("heads", [[9], [], [0.5], "some", [1, 1]])
def test_heads_that_are_none(heads):
    with pytest.raises(ValueError, match="heads.*(expected|more than once)"):
        head_weights({"mine": heads}, range(9))


def test_weights_of_heads_that_are_held():
    assert head_weights([3, 7], [3, 5, 7]).values.tolist() == [1, 0, 1]
    assert head_weights("all", [3, 5, 7]).values.tolist() == [1, 1, 1]
    sets = head_weights({"first": [3], "all": "all"}, [3, 5, 7])
    assert sets.dims == ("set", "head") and sets["set"].values.tolist() == ["first", "all"]
    assert sets.values.tolist() == [[1, 0, 0], [1, 1, 1]]
    by_ranking = xr.DataArray([[1, 0, 0], [0, 1, 0]], dims=("ranking", "head"))
    sets = head_weights({"first": by_ranking, "all": "all"}, [3, 5, 7])
    assert sets.dims == ("set", "ranking", "head")
    assert sets.values.tolist() == [[[1, 0, 0], [0, 1, 0]], [[1, 1, 1], [1, 1, 1]]]
    given = xr.DataArray([[0.5, 0, 2]], {"kind": ["a"]}, ("kind", "head"))
    assert head_weights(given, [3, 5, 7]).equals(given.astype(np.float32))
    with pytest.raises(ValueError, match="the last to be head, of 3 heads"):
        head_weights(given.transpose("head", "kind"), [3, 5, 7])


def test_random_orders_hold_each_head_once_and_are_the_same_again():
    orders = random_orders(9, draws=5, seed=1)
    assert (np.sort(orders, axis=1) == np.arange(9)).all()
    assert len({tuple(order) for order in orders.values}) == 5
    np.testing.assert_array_equal(orders[:3], random_orders(9, draws=3, seed=1))


def test_matched_heads_have_as_many_in_each_stratum(maps):
    grids = maps.grid_of_head
    assert grids.tolist() == ["8x16", "4x8", "2x4"] * 3
    drawn = matched_heads([0, 3, 1], grids, draws=60)
    for grid, expected in (("8x16", 2), ("4x8", 1), ("2x4", 0)):
        assert (drawn.values[:, grids == grid].sum(axis=1) == expected).all()
    assert len({tuple(row) for row in drawn.values}) == 9, "3 choices of two of three, times 3 of one of three"
