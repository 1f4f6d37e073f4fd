"""What scores are compared with: masks that know nothing, and choices made on other images."""

import numpy as np
import pytest
import xarray as xr

from selattn_lib.evaluation.baselines import best_disc, centred_disc, cross_fitted, folds, full_frame, oracle_ious
from selattn_lib.evaluation.scores import iou, single_ious
from selattn_lib.maps.head_maps import HeadMaps


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
    dataset = xr.Dataset(
        {
            "maps_16x16": (("image", "word", "head_16x16", "y_16x16", "x_16x16"), heads),
            "truth": (("image", "y", "x"), truth),
        },
        {"head_16x16": [0, 1], "subject": ("image", ["ant", "ant", "bee", "bee"]), "word": ["w"]},
        attrs={"height": 16, "width": 16},
    )
    study = HeadMaps(dataset)
    single = single_ious(study, [0.5])
    assert single.sel(threshold=0.5).values.tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    wrong_way = oracle_ious(study, single, [1, 2])
    assert wrong_way.dims == ("image", "k", "threshold")
    assert wrong_way.sel(k=1).values.ravel().tolist() == [0, 0, 0, 0]
    uneven = oracle_ious(
        study, single, [1], groups=[0, 0, 0, 1]
    )  # three images choose head 0, the fourth chooses head 1
    assert uneven.values.ravel().tolist() == [0, 0, 1, 0]


def test_a_choice_is_scored_on_images_that_did_not_make_it():
    """Cell a is the best in the groups p and r, b in q and s: each half chooses the other's worse one."""
    values = xr.DataArray([[1.0, 0], [0, 1], [1, 0], [0, 1]], {"cell": ["a", "b"]}, ("image", "cell"))
    scores, choices = cross_fitted(values, ["p", "q", "r", "s"])
    assert scores.values.tolist() == [0, 0, 0, 0] and choices == [{"cell": "a"}, {"cell": "b"}]
    scores, choices = cross_fitted(values, ["p", "p", "q", "q"])
    assert scores.values.tolist() == [1, 0, 1, 0] and choices == [{"cell": "a"}] * 2
