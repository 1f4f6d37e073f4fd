"""Sets of heads: their scores against one at a time, and what is random, matched, learnt and counted about them."""

import numpy as np
import pytest
import xarray as xr
from scipy.stats import spearmanr

from selattn_lib.evaluation.baselines import centred_disc, folds, oracle_ious
from selattn_lib.evaluation.scores import iou, set_ious, single_ious, study_iou_curves
from selattn_lib.evaluation.statistics import (
    Difference,
    agreement,
    direction,
    effect_size,
    percentile,
    rank_correlation,
    statement,
)
from selattn_lib.evaluation.tables import comparison_table
from selattn_lib.maps.head_maps import heatmap
from selattn_lib.maps.head_sets import chosen_heads, first_heads, grids, matched_heads, random_orders, relevance_orders
from selattn_lib.maps.relevance import HeadRelevance, concentration

PIXEL = 2 / (64 * 128)  # rounding may move a pixel or two across a threshold


@pytest.fixture
def results(maps):
    truth = np.stack([centred_disc(64, 128, 30), np.zeros((64, 128), bool)])
    return maps.assign(truth=(("image", "y", "x"), truth)).assign_coords(subject=("image", ["bear", "cat"]))


def test_scores_of_sets_are_those_of_one_map_at_a_time(results):
    rng = np.random.default_rng(0)
    weights = rng.random((2, 3, 9)) * (rng.random((2, 3, 9)) < 0.6) + 0.01
    sets = xr.DataArray(weights, {"kind": ["a", "b"]}, ("kind", "draw", "head"))
    found = set_ious(results, sets, [0.2, 0.5], word="cat")
    assert found.dims == ("image", "kind", "draw", "threshold")
    assert found["subject"].values.tolist() == ["bear", "cat"] and found["kind"].values.tolist() == ["a", "b"]
    for image, kind, draw in np.ndindex(2, 2, 3):
        heat = heatmap(results, range(9), image=image, word="cat", weights=weights[kind, draw])
        for t in (0.2, 0.5):
            expected = iou(heat.values > t, results.truth.values[image])
            assert float(found.sel(threshold=t)[image, kind, draw]) == pytest.approx(expected, abs=PIXEL)


def test_every_k_of_an_order(results):
    order = np.random.default_rng(1).permutation(9)
    sets = first_heads(order, [1, 4, 9])
    assert [set(np.flatnonzero(row)) for row in sets.values] == [set(order[:k].tolist()) for k in (1, 4, 9)]
    curves = study_iou_curves(results, order, [0.3])
    np.testing.assert_allclose(set_ious(results, sets, [0.3]), curves.sel(k=[1, 4, 9]), atol=PIXEL)
    with pytest.raises(ValueError, match="k=10: expected whole numbers from 1 to 9"):
        first_heads(order, [3, 10])


def test_two_empty_masks_agree(results):
    assert set_ious(results, chosen_heads({"all": "all"}, 9), [1.0]).values.ravel().tolist() == [0, 1]


@pytest.mark.parametrize("weights", [np.ones((2, 8)), -np.ones((1, 9)), np.zeros((1, 9)), np.full((1, 9), np.nan)])
def test_sets_that_make_no_sense(results, weights):
    with pytest.raises(ValueError, match="expected"):
        set_ious(results, xr.DataArray(weights, dims=("set", "head")))


@pytest.mark.parametrize("heads", [[9], [], [0.5], "some"])
def test_heads_that_are_none(heads):
    with pytest.raises(ValueError, match="'mine'.*expected 'all' or head numbers from 0 to 8"):
        chosen_heads({"mine": heads}, 9)


def test_random_orders_hold_each_head_once_and_are_the_same_again():
    orders = random_orders(9, draws=5, seed=1)
    assert (np.sort(orders, axis=1) == np.arange(9)).all()
    assert len({tuple(order) for order in orders.values}) == 5
    np.testing.assert_array_equal(orders[:3], random_orders(9, draws=3, seed=1))


def test_matched_heads_have_as_many_in_each_stratum(results):
    assert grids(results).tolist() == ["8x16", "4x8", "2x4"] * 3
    drawn = matched_heads([0, 3, 1], grids(results), draws=60)
    for grid, expected in (("8x16", 2), ("4x8", 1), ("2x4", 0)):
        assert (drawn.values[:, grids(results) == grid].sum(axis=1) == expected).all()
    assert len({tuple(row) for row in drawn.values}) == 9, "3 choices of two of three, times 3 of one of three"


def test_folds_share_no_group():
    first, second = folds(["cow", "cow", "ant", "cat", "ant", "dog"])
    assert first.tolist() == [0, 1, 3] and second.tolist() == [2, 4, 5]
    with pytest.raises(ValueError, match="one group"):
        folds(["cow", "cow"])


def test_the_oracle_learns_on_one_half_and_is_scored_on_the_other():
    """Head 0 is right in the first animal, head 1 in the second: whoever is learnt on one is wrong on the other."""
    truth = np.zeros((4, 16, 16), bool)
    truth[:, 4:12, 4:12] = True
    right, wrong = truth.astype(np.float32), np.roll(truth, 8, axis=2).astype(np.float32)
    heads = np.stack([[right[i], wrong[i]] if i < 2 else [wrong[i], right[i]] for i in range(4)])[:, None]
    study = xr.Dataset(
        {
            "maps_16x16": (("image", "word", "head_16x16", "y_16x16", "x_16x16"), heads),
            "truth": (("image", "y", "x"), truth),
        },
        {"head_16x16": [0, 1], "subject": ("image", ["ant", "ant", "bee", "bee"]), "word": ["w"]},
        attrs={"height": 16, "width": 16},
    )
    own = single_ious(study, [0.5])
    assert own.sel(threshold=0.5).values.tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    wrong_way = oracle_ious(study, own, [1, 2])
    assert wrong_way.dims == ("image", "k", "threshold")
    assert wrong_way.sel(k=1).values.ravel().tolist() == [0, 0, 0, 0]
    uneven = oracle_ious(study, own, [1], groups=[0, 0, 0, 1])  # three images choose head 0, the fourth chooses head 1
    assert uneven.values.ravel().tolist() == [0, 0, 1, 0]


def test_agreement_is_scipys_and_grows_with_the_number_of_images():
    rng = np.random.default_rng(0)
    strength = rng.random((3, 40))
    counts = xr.DataArray(
        rng.poisson(3 * strength, (24, 3, 40)), {"concept": ["a", "b", "c"]}, ("image", "concept", "head")
    )
    found = agreement(counts, [1, 12], top=10, draws=4, seed=5)
    assert found.dims == ("size", "draw", "concept", "statistic")
    drawn = np.random.default_rng([5, 12, 2]).permutation(24)
    one, two = (counts.values[part].sum(axis=0) for part in (drawn[:12], drawn[12:]))
    tops = [HeadRelevance(xr.DataArray(each, {"concept": ["a", "b", "c"]}, ("concept", "head"))) for each in (one, two)]
    for i, concept in enumerate("abc"):
        own = found.sel(size=12, concept=concept)[2]
        assert own.sel(statistic="correlation") == pytest.approx(spearmanr(one[i], two[i]).statistic)
        assert own.sel(statistic="shared") == len(set(tops[0].top(concept, 10)) & set(tops[1].top(concept, 10))) / 10
    assert (found.sel(size=12) > found.sel(size=1)).mean() > 0.8
    counts[:, 1] = 0
    assert np.isnan(agreement(counts, [3], draws=1).sel(concept="b")).all()
    with pytest.raises(ValueError, match="from 1 to 12"):
        agreement(counts, [13])


def test_rankings_counted_on_some_images():
    counts = xr.DataArray(
        np.random.default_rng(0).poisson(2, (6, 2, 5)), {"concept": ["a", "b"]}, ("image", "concept", "head")
    )
    orders = relevance_orders(counts, "b", [2, 6], draws=3)
    assert orders.dims == ("size", "draw", "head") and (np.sort(orders) == np.arange(5)).all()
    for order in orders.sel(size=6).values:
        assert order.tolist() == HeadRelevance.from_counts(counts).ranking("b").tolist()


def test_concentration_is_the_share_of_the_top_heads():
    scores = xr.DataArray([[1.0, 1, 1, 1], [0, 3, 1, 0]], {"concept": ["flat", "peaked"]}, ("concept", "head"))
    assert concentration(HeadRelevance(scores), 1).values.tolist() == [0.25, 0.75]


def test_percentile_counts_the_value_itself():
    assert percentile(3, [1, 2, 3, 4]) == (50, 3 / 5)
    assert percentile(9, np.arange(8)) == (100, 1 / 9)


def test_effect_size_is_of_the_groups_means():
    a, groups = np.array([1.0, 3, 4, 6]), np.array(["x", "x", "y", "y"])
    assert effect_size(a, np.zeros(4), groups) == pytest.approx(3.5 / np.std([2, 5], ddof=1))
    assert effect_size(a, np.zeros(4)) == pytest.approx(a.mean() / a.std(ddof=1))
    assert np.isnan(effect_size(a, a))


def test_comparison_table_is_paired_and_by_group():
    rng = np.random.default_rng(0)
    base, groups = rng.random(20), np.repeat(list("abcd"), 5)
    table = comparison_table({"all": base, "better": base + 0.1 + rng.normal(0, 0.01, 20)}, groups, against="all")
    assert table.loc["all"].tolist()[2:] == [""] * 5
    assert table.loc["better", "less all"].startswith("+0.") and table.loc["better", "prompts ahead"] == "4 of 4"
    assert table.columns[2] == "less all" and float(table.loc["better", "d"]) > 5
    same = comparison_table({"all": base, "same": base}, groups, against="all", score="precision")
    assert same.columns[0] == "precision" and same.loc["same", "d"] == ""


def test_rank_correlation_is_spearmans_with_a_permutation_test():
    rng = np.random.default_rng(0)
    x, y = rng.random(9), rng.integers(0, 4, 9)
    assert rank_correlation(x, y)[0] == pytest.approx(spearmanr(x, y).statistic)
    rho, p = rank_correlation(np.arange(5), np.arange(5), draws=20000)
    assert rho == pytest.approx(1) and p == pytest.approx(2 / 120, abs=0.003)


def test_a_statement_follows_the_interval():
    assert statement("A", "B", Difference(0.05, 0.031, 0.069, 0.003)) == (
        "A beats B (+0.050 [+0.031, +0.069], p = 0.003)"
    )
    assert statement("A", "B", Difference(-0.05, -0.069, -0.031, 0.003)).startswith("A trails B (-0.050")
    assert statement("A", "B", Difference(0.01, -0.01, 0.03, 0.4)).startswith("A cannot be told from B")
    few_groups = Difference(0.02, 0.01, 0.03, 0.13)
    assert statement("A", "B", few_groups).startswith("A cannot be told from B") and direction(few_groups) == 0
