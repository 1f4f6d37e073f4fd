"""Scores of maps against true masks: each against counting by hand."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from selattn_lib.evaluation.baselines import centred_disc
from selattn_lib.evaluation.scores import (
    attention_on,
    attention_ratio,
    iou,
    ious,
    log_attention_ratio,
    map_correlation,
    mean_attention,
    presence,
    single_ious,
    threshold_free,
)
from selattn_lib.maps.aggregation import NORMALISATIONS
from selattn_lib.maps.head_maps import HeadMaps
from selattn_lib.maps.head_sets import first_heads

PIXEL = 2 / (64 * 128)  # rounding may move a pixel or two across a threshold
pairs = arrays(bool, st.tuples(st.just(2), st.integers(1, 6), st.integers(1, 6)))


@given(pairs)
def test_iou_equals_counting_pixels(pair):
    a, b = pair
    inside = {(y, x) for y, x in np.argwhere(a).tolist()}
    other = {(y, x) for y, x in np.argwhere(b).tolist()}
    expected = len(inside & other) / len(inside | other) if inside | other else 1.0
    assert iou(a, b) == iou(b, a) == pytest.approx(expected)
    assert isinstance(iou(a, b), float)
    assert iou(a, a) == 1


def test_iou_over_leading_dimensions():
    truth = np.array([[True, False]])
    masks = np.array([[[True, False]], [[True, True]], [[False, False]]])
    assert iou(masks, truth).tolist() == [1, 0.5, 0]
    assert iou(masks[:, None], truth).tolist() == [[1], [0.5], [0]]
    assert iou(xr.DataArray(masks), truth).tolist() == [1, 0.5, 0]


def test_iou_refuses_heat_maps_and_other_sizes():
    with pytest.raises(ValueError, match="threshold heat maps first"):
        iou(np.zeros((2, 2)), np.zeros((2, 2), bool))
    with pytest.raises(ValueError, match=r"\(2, 2\) pixels and one of \(3, 3\)"):
        iou(np.zeros((2, 2), bool), np.zeros((3, 3), bool))


@pytest.fixture
def results(maps):
    """The nine heads with a disc as the first picture's truth, and an empty truth in the second."""
    truth = np.stack([centred_disc(64, 128, 30), np.zeros((64, 128), bool)])
    dataset = maps.dataset.assign(truth=(("image", "y", "x"), truth))
    return HeadMaps(dataset.assign_coords(subject=("image", ["bear", "cat"]), prompt=("image", ["a", "b"])))


def test_ious_are_strictly_above_the_threshold(results):
    scores = ious(results, [4, 8, 0], (0.0, 0.3, 1.0), word="cat")
    assert scores.dims == ("image", "threshold")
    assert scores["prompt"].values.tolist() == ["a", "b"]
    heat = results.heatmap("cat", [4, 8, 0])
    for threshold in (0.0, 0.3, 1.0):
        expected = iou(heat > threshold, results.truth(0))
        assert scores.sel(threshold=threshold)[0] == pytest.approx(expected)
    # Nothing is above 1, and nothing is in the second truth: two empty masks agree.
    assert scores.sel(threshold=1.0).values.tolist() == [0, 1]


@pytest.mark.parametrize("normalise", NORMALISATIONS)
def test_masks_are_cut_from_maps_that_are_normalised_as_is_asked(results, normalise):
    sets, thresholds = {"some": [4, 8, 0], "one": [2]}, (0.3, 0.5, 0.7)
    scores = ious(results, sets, thresholds, normalise=normalise)
    free = threshold_free(results, sets, normalise=normalise)
    singles = single_ious(results, [0.5], normalise=normalise)
    for name, heads in sets.items():
        heat = results.heatmap(0, heads, normalise=normalise).values
        for threshold in thresholds:
            expected = iou(heat > threshold, results.truth(0))
            assert float(scores.sel(set=name, threshold=threshold)[0]) == pytest.approx(expected, abs=PIXEL)
        pointed = results.truth(0).ravel()[heat.argmax()]
        assert float(free.sel(set=name, score="pointing game")[0]) == pointed
    assert float(singles[0, 2, 0]) == pytest.approx(float(scores.sel(set="one", threshold=0.5)[0]), abs=PIXEL)
    with pytest.raises(ValueError, match="normalise='sum': expected one of minmax, max, per-head"):
        ious(results, normalise="sum")


def test_scores_of_sets_are_those_of_one_map_at_a_time(results):
    rng = np.random.default_rng(0)
    weights = rng.random((2, 3, 9)) * (rng.random((2, 3, 9)) < 0.6) + 0.01
    sets = xr.DataArray(weights, {"kind": ["a", "b"]}, ("kind", "draw", "head"))
    scores = ious(results, sets, [0.2, 0.5], word="cat")
    assert scores.dims == ("image", "kind", "draw", "threshold")
    assert scores["subject"].values.tolist() == ["bear", "cat"] and scores["kind"].values.tolist() == ["a", "b"]
    for image, kind, draw in np.ndindex(2, 2, 3):
        heat = results.heatmap("cat", range(9), image=image, weights=weights[kind, draw])
        for t in (0.2, 0.5):
            expected = iou(heat.values > t, results.truth(image))
            assert float(scores.sel(threshold=t)[image, kind, draw]) == pytest.approx(expected, abs=PIXEL)


def test_a_curve_is_the_scores_of_the_first_k(results):
    order = np.random.default_rng(1).permutation(9)
    curves = ious(results, first_heads(order, range(1, 10)), (0.3, 0.5))
    assert curves.dims == ("image", "k", "threshold") and curves.shape == (2, 9, 2)
    for k in (1, 4, 9):
        np.testing.assert_allclose(curves.sel(k=k), ious(results, order[:k], (0.3, 0.5)), atol=PIXEL)


def test_named_sets_and_one_set(results):
    scores = ious(results, {"all": "all", "mine": [2, 5]}, [0.3])
    assert scores.dims == ("image", "set", "threshold") and scores["set"].values.tolist() == ["all", "mine"]
    np.testing.assert_allclose(scores.sel(set="mine"), ious(results, [2, 5], [0.3]), atol=PIXEL)
    np.testing.assert_allclose(scores.sel(set="all"), ious(results, thresholds=[0.3]), atol=PIXEL)


def test_two_empty_masks_agree(results):
    assert ious(results, {"all": "all"}, [1.0]).values.ravel().tolist() == [0, 1]


def test_the_truth_has_a_name(results):
    other = HeadMaps(results.dataset.rename(truth="truth_bear"))
    assert ious(other, truth="bear").equals(ious(results))
    with pytest.raises(ValueError, match="no true masks 'truth'"):
        ious(other)


@pytest.mark.parametrize("weights", [np.ones((2, 8)), -np.ones((1, 9)), np.zeros((1, 9)), np.full((1, 9), np.nan)])
def test_sets_that_make_no_sense(results, weights):
    with pytest.raises(ValueError, match="expected"):
        ious(results, xr.DataArray(weights, dims=("set", "head")))


def test_single_heads_are_scored_by_their_own_map(results):
    scores = single_ious(results, [0.3])
    assert scores.dims == ("image", "single", "threshold") and scores["single"].values.tolist() == list(range(9))
    for head in (0, 5):
        np.testing.assert_allclose(scores.sel(single=head), ious(results, [head], [0.3]), atol=PIXEL)


def brute_force(heat: np.ndarray, truth: np.ndarray) -> list[float]:
    """Average precision as the area under steps, and the best IoU, by trying each value as a threshold."""
    area, recall, best = 0.0, 0.0, 0.0
    for value in np.unique(heat)[::-1]:
        mask = heat >= value
        reached = (mask & truth).sum() / truth.sum()
        area += (reached - recall) * (mask & truth).sum() / mask.sum()
        recall, best = reached, max(best, float(iou(mask, truth)))
    return [area, best, float(truth.ravel()[heat.argmax()])]


def test_scores_without_a_threshold_against_brute_force(maps):
    truth = np.stack([np.roll(centred_disc(64, 128, 20), 30, axis=1), np.zeros((64, 128), bool)])
    results = HeadMaps(maps.dataset.assign(truth=(("image", "y", "x"), truth)))
    sets = {"all": "all", "one": [8], "two": [0, 3]}
    scores = threshold_free(results, sets)
    assert scores.dims == ("image", "set", "score") and np.isnan(scores[1]).all()
    for name, heads in sets.items():
        heat = results.heatmap(heads=heads).values
        np.testing.assert_allclose(scores[0].sel(set=name), brute_force(heat, truth[0]), atol=2e-3)


def test_a_constant_map_knows_as_much_as_chance(maps):
    truth = np.stack([centred_disc(64, 128, 20)] * 2)
    flat = HeadMaps(
        maps.dataset.map(np.zeros_like).assign(truth=(("image", "y", "x"), truth)).assign_attrs(maps.dataset.attrs)
    )
    scores = threshold_free(flat, {"all": "all"})[0, 0]
    share = truth[0].mean()
    assert scores.values.tolist() == pytest.approx([share, share, 0])


def test_a_constant_map_is_not_stretched_from_rounding(maps):
    flat = HeadMaps(maps.dataset.map(lambda values: np.full_like(values, 0.37)).assign_attrs(maps.dataset.attrs))
    assert float(flat.heatmap().max()) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_maps_that_are_no_numbers_are_not_scored(maps, bad):
    truth = np.zeros((2, 64, 128), bool)
    spoilt = maps.dataset.map(lambda values: np.where(np.arange(values.shape[-1]) == 1, bad, values), keep_attrs=True)
    spoilt = HeadMaps(spoilt.assign(truth=(("image", "y", "x"), truth)))
    for score in (ious, threshold_free, single_ious):
        with pytest.raises(ValueError, match="NaN or infinite: expected numbers"):
            score(spoilt)
    with pytest.raises(ValueError, match="NaN or infinite: expected numbers"):
        spoilt.heatmap(heads="all")


def test_attention_ratio_is_a_mean_over_a_mean():
    rng = np.random.default_rng(0)
    heat, mask, other = rng.random((2, 8, 8)), rng.random((8, 8)) < 0.3, rng.random((8, 8)) < 0.5
    ratios = [one[mask].mean() / one[other].mean() for one in heat]
    assert attention_ratio(heat, mask, other) == pytest.approx(ratios)
    assert attention_ratio(heat[0], mask) == pytest.approx(heat[0][mask].mean() / heat[0].mean())
    assert isinstance(attention_ratio(heat[0], mask), float)
    assert attention_ratio(np.zeros((8, 8)), mask) == 1, "a map without attention prefers nothing"
    assert attention_ratio(heat, mask & False).tolist() == [1, 1] and attention_ratio(heat[0], mask, mask & False) == 1


def test_attention_on_a_mask():
    rng = np.random.default_rng(0)
    object_mask = np.zeros((4, 64, 64), bool)
    object_mask[:3, 8:24, 8:40] = True  # an eighth of the picture
    object_mask[3, :4, :5] = True  # less than a hundredth of it
    heads = np.stack([object_mask, rng.random((4, 64, 64))], axis=1).astype(np.float32)
    dataset = xr.Dataset(
        {"maps_64x64": (("image", "word", "head_64x64", "y_64x64", "x_64x64"), heads[:, None])},
        {"word": ["bear"], "head_64x64": [0, 1]},
        attrs={"height": 64, "width": 64},
    )
    masks = {"object": object_mask, "rest": ~object_mask, "nothing": object_mask & False}
    ratios = attention_on(HeadMaps(dataset), {"on it": [0], "anywhere": [1]}, masks)
    assert ratios.sel(heads="on it", mask="object").values.tolist() == pytest.approx([8, 8, 8, 3])
    assert ratios.sel(heads="on it", mask="rest").values.tolist() == pytest.approx([0, 0, 0, 4])
    anywhere = ratios.sel(heads="anywhere", mask=["object", "rest"])
    np.testing.assert_allclose(anywhere.sel(statistic=["mean", "low", "high"]), 1, atol=0.1)
    assert np.isnan(ratios.sel(mask="nothing")).all()
    everything = attention_on(HeadMaps(dataset), {"on it": [0]}, masks, min_area=0.001).sel(
        heads="on it", mask="object"
    )
    assert everything.sel(statistic="images") == 4
    assert everything.sel(statistic="mean") == pytest.approx((3 * 8 + 64 * 64 / 20) / 4)
    rankings = xr.DataArray([[1, 0], [1, 0], [0, 1]], dims=("ranking", "head"))  # the last takes the other head
    mean, low, high, _ = attention_on(HeadMaps(dataset), {"on it": rankings, "all": "all"}, masks)[0, 0].values
    assert mean == pytest.approx(8) and low < 6 < 10 < high


@pytest.fixture
def meanings() -> HeadMaps:
    """Head 0 looks at the left square, head 1 at the right one; the second image lacks the right one."""
    masks = np.zeros((2, 2, 16, 16), bool)  # (image, meaning, y, x)
    masks[:, 0, 4:12, :6] = True
    masks[0, 1, 4:12, 10:] = True
    heads = np.stack([[masks[0, 0] * 0.8 + 0.1, masks[0, 1] * 0.4 + 0.1]] * 2)[:, None].astype(np.float32)
    dataset = xr.Dataset(
        {
            "maps_16x16": (("image", "word", "head_16x16", "y_16x16", "x_16x16"), heads),
            "truth_left": (("image", "y", "x"), masks[:, 0]),
            "truth_right": (("image", "y", "x"), masks[:, 1]),
        },
        {"head_16x16": [0, 1], "word": ["w"]},
        attrs={"height": 16, "width": 16},
    )
    return HeadMaps(dataset)


def test_maps_lean_to_what_their_heads_look_at(meanings):
    sets = {"left": [0], "right": [1], "all": "all"}
    logs = log_attention_ratio(meanings, sets, ["left", "right"])
    assert np.isnan(logs[1]).all()
    assert logs[0].sel(set="left") == pytest.approx(np.log(1 / 1e-6))
    assert logs[0].sel(set="right") == pytest.approx(-np.log(1 / 1e-6))
    assert logs[0].sel(set="all") == pytest.approx(np.log(2))  # 0.5 + 0.1 over 0.25 + 0.1, less the lowest, 0.1
    assert log_attention_ratio(meanings, sets, ["right", "left"])[0].sel(set="all") == pytest.approx(-np.log(2))


def test_pixels_of_both_meanings_count_for_neither(meanings):
    meanings.dataset["truth_right"][0] |= meanings.dataset["truth_left"][0]
    assert np.isnan(log_attention_ratio(meanings, {"left": [0]}, ["left", "right"])).all()


def test_small_meanings_do_not_count(meanings):
    """The left square covers 48 of 256 pixels."""
    for min_area, counts in ((0.18, True), (0.19, False)):
        logs = log_attention_ratio(meanings, {"left": [0]}, ["left", "right"], min_area=min_area)
        assert np.isfinite(logs[0]).all() == counts


def test_mean_attention_is_the_weighted_mean_of_the_maps(meanings):
    share = 48 / 256
    attention = mean_attention(meanings, xr.DataArray([[1.0, 0], [1, 3]], {"set": ["one", "two"]}, ("set", "head")))
    one, two = 0.1 + 0.8 * share, 0.1 + 0.4 * share
    np.testing.assert_allclose(attention, [[one, (one + 3 * two) / 4]] * 2, rtol=1e-6)


def test_correlation_of_two_maps(meanings):
    sets = {"left": [0], "right": [1]}
    left, right = (meanings.truth(0, side).ravel() for side in ("left", "right"))
    np.testing.assert_allclose(map_correlation(meanings, sets), [np.corrcoef(left, right)[0, 1]] * 2, rtol=1e-5)
    np.testing.assert_allclose(map_correlation(meanings, {"one": [0], "again": [0]}), 1)
    flat = HeadMaps(meanings.dataset.map(np.zeros_like).assign_attrs(meanings.dataset.attrs))
    assert map_correlation(flat, sets).values.tolist() == [0, 0]


def test_presence_is_area_and_score(results):
    dataset = results.dataset.assign(truth_score=("image", [0.75, np.nan]))
    present = presence(HeadMaps(dataset))
    assert present["area"].values.tolist() == [centred_disc(64, 128, 30).mean(), 0]
    assert present["score"].values.tolist() == [0.75, 0] and present["subject"].values.tolist() == ["bear", "cat"]
