"""Which meaning a map leans to, how much attention a word gets, and detectors' curves."""

import numpy as np
import pytest
import xarray as xr
from scipy.stats import mannwhitneyu

from selattn_lib.evaluation.scores import attention_mass, lean, map_correlation
from selattn_lib.evaluation.statistics import area_under_roc, roc
from selattn_lib.maps.head_sets import chosen_heads


@pytest.fixture
def results() -> xr.Dataset:
    """Head 0 looks at the left square, head 1 at the right one; the second image lacks the right one."""
    masks = np.zeros((2, 2, 16, 16), bool)  # (image, meaning, y, x)
    masks[:, 0, 4:12, :6] = True
    masks[0, 1, 4:12, 10:] = True
    heads = np.stack([[masks[0, 0] * 0.8 + 0.1, masks[0, 1] * 0.4 + 0.1]] * 2)[:, None].astype(np.float32)
    return xr.Dataset(
        {
            "maps_16x16": (("image", "word", "head_16x16", "y_16x16", "x_16x16"), heads),
            "truth_left": (("image", "y", "x"), masks[:, 0]),
            "truth_right": (("image", "y", "x"), masks[:, 1]),
        },
        {"head_16x16": [0, 1], "word": ["w"]},
        attrs={"height": 16, "width": 16},
    )


def test_maps_lean_to_what_their_heads_look_at(results):
    sets = chosen_heads({"left": [0], "right": [1], "all": "all"}, 2)
    found = lean(results, sets, ["left", "right"])
    assert np.isnan(found[1]).all()
    assert found[0].sel(set="left") == pytest.approx(np.log(1 / 1e-6))
    assert found[0].sel(set="right") == pytest.approx(-np.log(1 / 1e-6))
    assert found[0].sel(set="all") == pytest.approx(np.log(2))  # 0.5 + 0.1 over 0.25 + 0.1, less the lowest, 0.1
    assert lean(results, sets, ["right", "left"])[0].sel(set="all") == pytest.approx(-np.log(2))


def test_pixels_of_both_meanings_count_for_neither(results):
    results["truth_right"][0] |= results["truth_left"][0]
    assert np.isnan(lean(results, chosen_heads({"left": [0]}, 2), ["left", "right"])).all()


def test_attention_mass_is_the_weighted_mean_of_the_maps(results):
    share = 48 / 256
    found = attention_mass(results, xr.DataArray([[1.0, 0], [1, 3]], {"set": ["one", "two"]}, ("set", "head")))
    one, two = 0.1 + 0.8 * share, 0.1 + 0.4 * share
    np.testing.assert_allclose(found, [[one, (one + 3 * two) / 4]] * 2, rtol=1e-6)


def test_correlation_of_two_maps(results):
    sets = chosen_heads({"left": [0], "right": [1]}, 2)
    left, right = (results[f"truth_{side}"].values[0].ravel() for side in ("left", "right"))
    np.testing.assert_allclose(map_correlation(results, sets), [np.corrcoef(left, right)[0, 1]] * 2, rtol=1e-5)
    same = chosen_heads({"one": [0], "again": [0]}, 2)
    np.testing.assert_allclose(map_correlation(results, same), 1)
    flat = results.map(np.zeros_like)
    assert map_correlation(flat, sets).values.tolist() == [0, 0]


def test_roc_of_every_threshold():
    scores, labels = np.array([0.9, 0.8, 0.8, 0.3, 0.1]), np.array([True, False, True, True, False])
    false, true = roc(scores, labels)
    for s in np.unique(scores):
        point = [(scores[~labels] >= s).mean(), (scores[labels] >= s).mean()]
        assert np.isclose(np.stack([false, true], 1), point).all(axis=1).any()
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1) and len(false) == 5


def test_area_is_that_under_the_curve_and_mann_whitneys():
    rng = np.random.default_rng(0)
    labels = rng.random(60) < 0.4
    scores = np.round(labels * 0.7 + rng.normal(0, 1, 60), 1)  # with ties
    area = area_under_roc(scores, labels)
    u = mannwhitneyu(scores[labels], scores[~labels]).statistic
    assert area.mean == pytest.approx(u / (labels.sum() * (~labels).sum()))
    false, true = roc(scores, labels)
    assert area.mean == pytest.approx(np.trapezoid(true, false))
    assert 0.05 < area.mean - area.low < 0.25 and area == area_under_roc(scores, labels)


def test_only_pairs_of_one_stratum_count():
    """Within each word the detector is right; between the words it is not."""
    scores = np.array([1, 2, 11, 12, 5], float)
    labels = np.array([False, True, False, True, True])
    words = np.array(["a", "a", "b", "b", "c"])
    assert area_under_roc(scores, labels, words).mean == 1 > area_under_roc(scores, labels).mean
    assert np.isnan(area_under_roc(scores[:2], labels[:2], ["a", "b"])).all()
    assert np.isnan(roc(scores, np.ones(5, bool))[0]).all()
    with pytest.raises(ValueError, match="one each"):
        roc(scores, labels.astype(float))
