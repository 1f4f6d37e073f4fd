import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from selattn_lib.evaluation.baselines import best_disc, centred_disc, full_frame
from selattn_lib.evaluation.scores import attention_on, iou, study_iou_curves, study_ious
from selattn_lib.evaluation.statistics import band, bootstrap_mean, paired_difference
from selattn_lib.maps.head_maps import heatmap

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
    with pytest.raises(ValueError, match=r"\(2, 2\) pixels"):
        iou(np.zeros((2, 2), bool), np.zeros((3, 3), bool))


def test_centred_disc():
    disc = centred_disc(5, 5, 1)
    assert np.argwhere(disc).tolist() == [[1, 2], [2, 1], [2, 2], [2, 3], [3, 2]]
    assert centred_disc(4, 4, 0.8).sum() == 4
    assert np.array_equal(centred_disc(6, 9, 4), centred_disc(6, 9, 4)[::-1, ::-1])


def test_best_disc_equals_trying_every_radius():
    rng = np.random.default_rng(0)
    truths = np.stack([np.roll(centred_disc(20, 30, r), rng.integers(-4, 5, 2), (0, 1)) for r in (5, 7, 8)])
    tried = [iou(truths, centred_disc(20, 30, r)).mean() for r in range(20)]
    radius, score = best_disc(truths)
    assert radius == int(np.argmax(tried)) and score == pytest.approx(max(tried))
    with pytest.raises(ValueError, match="image, y, x"):
        best_disc(truths[0])


def test_full_frame_scores_the_truths_share_of_the_image():
    truth = centred_disc(10, 10, 3)
    assert iou(full_frame(10, 10), truth) == pytest.approx(truth.mean())


def test_bootstrap_interval_of_single_images():
    values = np.random.default_rng(0).normal(0.7, 0.1, 400)
    mean, low, high = bootstrap_mean(values)
    assert mean == pytest.approx(values.mean())
    half_width = 1.96 * values.std() / 20
    assert low == pytest.approx(mean - half_width, abs=2e-3)
    assert high == pytest.approx(mean + half_width, abs=2e-3)
    assert bootstrap_mean(values) == bootstrap_mean(values) != bootstrap_mean(values, seed=1)


def test_groups_widen_the_interval():
    rng = np.random.default_rng(0)
    groups = np.repeat([f"photo of a {i}" for i in range(10)], 10)
    values = np.repeat(rng.normal(0.7, 0.1, 10), 10) + rng.normal(0, 0.01, 100)
    alone, together = bootstrap_mean(values), bootstrap_mean(values, groups)
    assert together.mean == alone.mean
    assert together.high - together.low > 2 * (alone.high - alone.low)
    constant = bootstrap_mean([0.5] * 6, [1, 1, 1, 2, 2, 3])
    assert constant == pytest.approx((0.5, 0.5, 0.5))


def test_paired_difference():
    rng = np.random.default_rng(0)
    b = rng.random(40)
    better = paired_difference(b + 0.05 + rng.normal(0, 0.01, 40), b)
    assert better.low < 0.05 < better.high and better.low > 0.04 and better.p < 0.01
    alike = paired_difference(b + rng.normal(0, 0.1, 40), b)
    assert alike.low < 0 < alike.high and alike.p > 0.05
    assert paired_difference(b, b).p == 1


def test_few_groups_cannot_be_very_significant():
    b = np.random.default_rng(0).random(30)
    difference = paired_difference(b + 0.05, b, np.repeat([1, 2, 3], 10))
    assert difference.p == pytest.approx(2 / 2**3, abs=0.03)


def test_p_is_uniform_where_nothing_differs():
    rng = np.random.default_rng(0)
    ps = [paired_difference(rng.normal(0, 1, 20), np.zeros(20), draws=200).p for _ in range(200)]
    assert 0.02 < np.mean(np.array(ps) < 0.1) < 0.2


def test_values_that_make_no_sense():
    with pytest.raises(ValueError, match="One finite number an image"):
        bootstrap_mean([0.1, np.nan])
    with pytest.raises(ValueError, match="groups has shape"):
        bootstrap_mean([0.1, 0.2], ["a"])


@pytest.fixture
def results(maps):
    truth = np.stack([centred_disc(64, 128, 30), np.zeros((64, 128), bool)])
    return maps.assign(truth=(("image", "y", "x"), truth)).assign_coords(prompt=("image", ["a", "b"]))


def test_study_ious_are_strictly_above_the_threshold(results):
    scores = study_ious(results, [4, 8, 0], (0.0, 0.3, 1.0), word="cat")
    assert scores.dims == ("image", "threshold")
    assert scores["prompt"].values.tolist() == ["a", "b"]
    heat = heatmap(results, [4, 8, 0], word="cat")
    for threshold in (0.0, 0.3, 1.0):
        expected = iou(heat > threshold, results["truth"][0])
        assert scores.sel(threshold=threshold)[0] == pytest.approx(expected)
    # Nothing is above 1, and nothing is in the second truth: two empty masks agree.
    assert scores.sel(threshold=1.0).values.tolist() == [0, 1]


def test_curves_equal_scoring_each_k(results):
    order = np.random.default_rng(1).permutation(9)
    curves = study_iou_curves(results, order, (0.3, 0.5))
    assert curves.dims == ("image", "k", "threshold") and curves.shape == (2, 9, 2)
    for k in (1, 4, 9):
        np.testing.assert_allclose(curves.sel(k=k), study_ious(results, order[:k], (0.3, 0.5)), atol=2 / (64 * 128))


def test_a_band_is_the_mean_and_its_interval_at_each_k():
    rng = np.random.default_rng(0)
    subjects = np.repeat(["bear", "cat", "cow", "dog"], 5)
    values = np.repeat(rng.random((4, 3)), 5, axis=0) + rng.normal(0, 0.01, (20, 3))
    curves = xr.DataArray(values, dims=("image", "k"), coords={"k": [1, 2, 3], "subject": ("image", subjects)})
    drawn = band(curves)
    np.testing.assert_allclose(drawn, [bootstrap_mean(values[:, k], subjects, draws=1000) for k in range(3)])
    alone = band(curves.drop_vars("subject"))
    np.testing.assert_allclose(alone[:, 0], values.mean(axis=0))
    assert (np.diff(drawn[:, 1:]) > 1.5 * np.diff(alone[:, 1:])).all(), "images of one subject are alike"


def test_attention_on_a_mask():
    rng = np.random.default_rng(0)
    object_mask = np.zeros((4, 64, 64), bool)
    object_mask[:3, 8:24, 8:40] = True  # an eighth of the picture
    object_mask[3, :4, :5] = True  # less than a hundredth of it
    heads = np.stack([object_mask, rng.random((4, 64, 64))], axis=1).astype(np.float32)
    native = xr.Dataset(
        {"maps_64x64": (("image", "word", "head_64x64", "y_64x64", "x_64x64"), heads[:, None])},
        {"word": ["bear"], "head_64x64": [0, 1]},
        attrs={"height": 64, "width": 64},
    )
    masks = {"object": object_mask, "rest": ~object_mask, "nothing": object_mask & False}
    found = attention_on(native, {"on it": [0], "anywhere": [1]}, masks)
    assert found.sel(heads="on it", mask="object").values.tolist() == pytest.approx([8, 8, 8, 3])
    assert found.sel(heads="on it", mask="rest").values.tolist() == pytest.approx([0, 0, 0, 4])
    anywhere = found.sel(heads="anywhere", mask=["object", "rest"])
    np.testing.assert_allclose(anywhere.sel(statistic=["mean", "low", "high"]), 1, atol=0.05)
    assert np.isnan(found.sel(mask="nothing")).all()
    everything = attention_on(native, {"on it": [0]}, masks, least=0.001).sel(heads="on it", mask="object")
    assert everything.sel(statistic="images") == 4
    assert everything.sel(statistic="mean") == pytest.approx((3 * 8 + 64 * 64 / 20) / 4)
