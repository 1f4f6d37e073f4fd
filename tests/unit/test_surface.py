"""Surfaces: the plateau, what is chosen on other images, scores without a threshold, and windows of timesteps."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from selattn_lib.evaluation.baselines import centred_disc, cross_fitted
from selattn_lib.evaluation.scores import iou, threshold_free
from selattn_lib.evaluation.statistics import paired_difference, plateau
from selattn_lib.maps.head_maps import heatmap
from selattn_lib.maps.head_sets import chosen_heads
from selattn_lib.studies.generated import Study, WindowStudy


@pytest.fixture
def surface() -> xr.DataArray:
    rng = np.random.default_rng(0)
    mean = np.array([[0.3, 0.5, 0.4], [0.35, 0.7, 0.69], [0.2, 0.3, 0.1]])
    values = mean + rng.normal(0, 0.05, (24, 1, 1)) + rng.normal(0, 0.04, (24, 3, 3))
    return xr.DataArray(values, {"k": [10, 20, 30], "threshold": [0.1, 0.2, 0.3]}, ("image", "k", "threshold"))


def test_the_plateau_is_what_a_paired_difference_cannot_tell_from_the_highest(surface):
    groups = np.repeat(np.arange(12), 2)
    flat = plateau(surface, groups)
    assert flat.dims == ("k", "threshold")
    best = surface.stack(cell=("k", "threshold"))
    highest = best[:, int(best.mean("image").argmax())]
    for k in (10, 20, 30):
        for t in (0.1, 0.2, 0.3):
            expected = paired_difference(surface.sel(k=k, threshold=t), highest, groups).high >= 0
            assert bool(flat.sel(k=k, threshold=t)) == expected
    assert flat.values.tolist() == [[False] * 3, [False, True, True], [False] * 3]


def test_a_choice_is_scored_on_images_that_did_not_make_it():
    """Cell a is the best in the groups p and r, b in q and s: each half chooses the other's worse one."""
    values = xr.DataArray([[1.0, 0], [0, 1], [1, 0], [0, 1]], {"cell": ["a", "b"]}, ("image", "cell"))
    scores, choices = cross_fitted(values, ["p", "q", "r", "s"])
    assert scores.values.tolist() == [0, 0, 0, 0] and choices == [{"cell": "a"}, {"cell": "b"}]
    scores, choices = cross_fitted(values, ["p", "p", "q", "q"])
    assert scores.values.tolist() == [1, 0, 1, 0] and choices == [{"cell": "a"}] * 2


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
    results = maps.assign(truth=(("image", "y", "x"), truth))
    sets = chosen_heads({"all": "all", "one": [8], "two": [0, 3]}, 9)
    found = threshold_free(results, sets)
    assert found.dims == ("image", "set", "score") and np.isnan(found[1]).all()
    for name, heads in (("all", "all"), ("one", [8]), ("two", [0, 3])):
        heat = heatmap(results, heads).values
        np.testing.assert_allclose(found[0].sel(set=name), brute_force(heat, truth[0]), atol=2e-3)


def test_a_constant_map_knows_as_much_as_chance(maps):
    flat = maps.map(np.zeros_like).assign(truth=(("image", "y", "x"), np.stack([centred_disc(64, 128, 20)] * 2)))
    found = threshold_free(flat, chosen_heads({"all": "all"}, 9))[0, 0]
    share = flat.truth.values[0].mean()
    assert found.values.tolist() == pytest.approx([share, share, 0])


def test_windows_average_to_the_study_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELATTN_RUNS", str(tmp_path))
    settings: dict = {"words": ["bear"], "seeds": 2, "steps": 3, "batch": 2}
    whole, parts = Study(**settings).run(), WindowStudy(**settings, windows=2).run()
    assert parts["maps_16x16"].dims[:3] == ("image", "word", "window") and parts.sizes["window"] == 2
    assert parts["from_timestep"][0] > parts["to_timestep"][0] > parts["to_timestep"][1]
    np.testing.assert_array_equal(parts.image_rgb, whole.image_rgb)
    np.testing.assert_array_equal(parts.truth, whole.truth)
    for name in ("maps_16x16", "maps_2x2"):  # 4 calls (PNDM's 3 + 1) in two windows
        np.testing.assert_allclose(parts[name].astype(float).mean("window"), whole[name], atol=1e-3)
    with pytest.raises(ValueError, match="windows=9: expected at most 4"):
        WindowStudy(**settings, windows=9).run()
