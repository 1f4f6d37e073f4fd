"""Rules that choose heads, and what finds planted ones."""

import numpy as np
import pytest
import torch
import xarray as xr

import selattn_lib as sa
from selattn_lib.evaluation import RULES, answers, compare_rules, concept_gains, found, head_attention, rule_sets
from selattn_lib.evaluation.scores import every_score, head_precisions, otsu, otsu_ious, threshold_free
from selattn_lib.evaluation.selection import consensus_gain
from selattn_lib.evaluation.statistics import Interval
from selattn_lib.maps.consensus import consensus, finest_heads, head_features
from selattn_lib.maps.head_maps import HeadMaps

GOOD, BAD, FLAT = range(4), range(4, 7), range(7, 9)  # heads: see `maps`


@pytest.fixture
def maps() -> HeadMaps:
    """Nine heads, six pictures of three words: four heads see the object, one of them on the coarse grid; three see a
    corner of the picture, each another; two attend everywhere alike."""
    rng = np.random.default_rng(0)
    truth = np.zeros((6, 32, 32), bool)
    for mask in truth:
        y, x = rng.integers(4, 20, 2)
        mask[y : y + 8, x : x + 8] = True
    fine = truth.reshape(6, 8, 4, 8, 4).mean((2, 4))
    coarse = truth.reshape(6, 4, 8, 4, 8).mean((2, 4))
    corners = np.zeros((3, 8, 8))
    corners[0, :2, :2] = corners[1, :2, -2:] = corners[2, -2:, :2] = 1
    seen = np.stack([fine] * 3 + [np.broadcast_to(corner, fine.shape) for corner in corners], 1)
    seen = np.concatenate([seen + 0.02 * rng.random(seen.shape), np.ones((6, 1, 8, 8))], 1)
    rough = np.stack([coarse, np.ones_like(coarse)], 1)
    grids = [([0, 1, 2, 4, 5, 6, 7], seen[:, None]), ([3, 8], rough[:, None])]
    made = HeadMaps.from_grids(grids, ["subject"], (32, 32))
    made = made.with_pictures(np.zeros((6, 32, 32, 3), np.uint8), truth=truth)
    return HeadMaps(made.dataset.assign_coords(subject=("image", list("aabbcc"))))


def test_consensus_is_the_correlation_with_the_mean_map_of_all_heads(maps: HeadMaps) -> None:
    features = head_features(maps)
    mean = maps.heatmap(image=2, size=(8, 8)).values.ravel()
    for head in (0, 3, 5):
        own = maps.heatmap(heads=[head], image=2, size=(8, 8)).values.ravel()
        value = features.sel(head=head, feature="consensus").values[2]
        assert value == pytest.approx(np.corrcoef(own, mean)[0, 1], abs=1e-4)
    assert (features.sel(head=[7, 8]).values == 0).all(), "a constant map agrees with nothing, and has no contrast"
    native = maps.dataset["maps_4x4"].values[1, 0, 0]
    contrast = features.sel(head=3, feature="contrast").values[1]
    assert contrast == pytest.approx(native.std() / native.mean(), rel=1e-4)


def test_consensus_finds_the_heads_that_see_the_object(maps: HeadMaps) -> None:
    assert set(consensus(maps, 4)) == set(GOOD) == set(sa.consensus(maps.select(image=[1]), k=4))
    assert maps.heatmap(heads=sa.consensus(maps, k=2)).shape == (32, 32)
    some = HeadMaps(maps.dataset.isel(head_8x8=[1, 3, 4]))  # numbers of heads, not places
    assert set(consensus(some, 2)) == {1, 3}
    for k in (0, 10):
        with pytest.raises(ValueError, match=f"k={k}: expected a number of heads from 1 to 9"):
            consensus(maps, k)


def test_the_finest_heads_are_those_with_the_most_pixels(maps: HeadMaps) -> None:
    assert finest_heads(maps).tolist() == [0, 1, 2, 4, 5, 6, 7]


def test_each_rule_chooses_what_it_says(maps: HeadMaps) -> None:
    relevance = np.array([0, 0.1, 0.2, 5, 4, 3, 2, 1, 0.5])
    sets = rule_sets(maps, relevance, 4, draws=2)
    chosen = {str(name): set(np.flatnonzero(sets.sel(set=name)).tolist()) for name in sets["set"].values}
    assert chosen["all heads"] == set(range(9)) and chosen["oracle"] == chosen["consensus"] == set(GOOD)
    assert chosen["HRV"] == {3, 4, 5, 6} and chosen["finest grid"] == {0, 1, 2, 4, 5, 6, 7}
    assert chosen["HRV in the finest grid"] == {4, 5, 6}, "half of the finest grid's seven heads"
    assert 3 in chosen["consensus x HRV"] and 0 not in chosen["consensus x HRV"]
    assert not chosen["consensus as weights"] & set(FLAT) and len(chosen["random 0"]) == 4
    agree = head_features(maps).sel(feature="consensus").mean("image").values.clip(0)
    np.testing.assert_allclose(sets.sel(set="consensus as weights"), agree, rtol=1e-6)


def test_the_scores_of_rules_are_of_words_that_they_have_not_seen(maps: HeadMaps) -> None:
    scores = compare_rules(maps, np.arange(9), 3, thresholds=[0.4], draws=3)
    assert scores.dims == ("image", "set", "score") and scores["set"].values.tolist() == list(RULES)
    learnt, scored = [2, 3], [0, 1, 4, 5]  # words b; a and c
    for images, others in ((learnt, scored), (scored, learnt)):
        sets = rule_sets(maps.select(image=others), np.arange(9), 3, draws=3)
        expected = every_score(maps.select(image=images), sets, [0.4])
        for rule in ("consensus", "oracle", "HRV"):
            np.testing.assert_array_equal(scores.isel(image=images).sel(set=rule), expected.sel(set=rule))
        random = expected.sel(set=[f"random {i}" for i in range(3)]).mean("set")
        np.testing.assert_allclose(scores.isel(image=images).sel(set="random"), random)
    gains = concept_gains({"one": scores, "other": scores}).sel(score="average precision")
    assert gains.sel(set="all heads").values.tolist() == [0, 0] and float(gains.sel(set="oracle").mean()) > 0
    assert answers.best_rule(gains)[0] not in ("oracle", "random", "all heads")
    said = answers.rules({"a model, drawn": gains, "a model, known": gains})
    best, gain = answers.best_rule(gains)
    assert said.startswith(f"Of the rules that need no masks, *{best}* gains most in 2 of 2 cases: {gain} in average")
    assert f"over all heads on a model, drawn (a clear gain in {2 * (gain.low > 0)} of 2)" in said
    assert ("*Consensus*" in said) == (best != "consensus")
    unclear = xr.zeros_like(gains.isel(concept=[0] * 4)) + xr.DataArray([0.1, 0.2, -0.1, 0.3], dims="concept")
    assert "(a clear gain in 1 of 2)" in answers.rules({"drawn": unclear + 1, "known": unclear})


def test_what_consensus_gains_by_few_pictures_is_scored_on_the_other_words(maps: HeadMaps) -> None:
    gains = consensus_gain(maps, [1, 2, 3], 1)
    assert gains["n"].values.tolist() == [1, 2, 3] and np.isnan(gains[2]), "the smaller half has two pictures"
    for n in (1, 2):
        lead = []
        for images, others in (([0, 1, 4, 5], [2, 3]), ([2, 3], [0, 1, 4, 5])):
            sets = {"all": "all", "one": consensus(maps.select(image=others[:n]), 1)}
            precision = threshold_free(maps.select(image=images), sets).sel(score="average precision")
            lead += (precision.sel(set="one") - precision.sel(set="all")).values.tolist()
        assert float(gains.sel(n=n)) == pytest.approx(np.mean(lead))


def test_otsus_threshold_parts_two_classes_wherever_they_lie(maps: HeadMaps) -> None:
    heats = torch.zeros(3, 10, 10)
    for heat, (low, high) in zip(heats, [(0, 1), (0.1, 0.3), (0.6, 0.9)], strict=True):
        heat[:] = low
        heat[:3] = high
    for threshold, (low, high) in zip(otsu(heats).tolist(), [(0, 1), (0.1, 0.3), (0.6, 0.9)], strict=True):
        assert low < threshold < high
    scores = every_score(maps, {"good": [0], "all": "all"}, [0.5])
    assert scores["score"].values.tolist()[-2:] == ["IoU at 0.5", "IoU at Otsu's"]
    np.testing.assert_array_equal(scores.sel(score="IoU at Otsu's"), otsu_ious(maps, {"good": [0], "all": "all"}))
    best, cut = (scores.sel(set="good", score=s) for s in ("best IoU", "IoU at Otsu's"))
    assert (cut <= best + 1e-6).all() and float(cut.mean()) > 0.8 * float(best.mean())


def test_the_precision_of_heads_on_the_finest_grid_ranks_them_as_that_of_pixels_does(maps: HeadMaps) -> None:
    coarse = head_precisions(maps).mean("image").values
    singles = xr.DataArray(np.eye(9, dtype=np.float32), dims=("set", "head"))
    pixels = threshold_free(maps, singles).sel(score="average precision").mean("image").values
    assert set(np.argsort(-coarse)[:4]) == set(np.argsort(-pixels)[:4]) == set(GOOD)
    assert coarse[list(GOOD)].min() > 2 * coarse[list(BAD)].max()


def test_attention_inside_and_outside_is_weighted_by_the_area_that_the_mask_covers(maps: HeadMaps) -> None:
    looks = head_attention(maps)
    native, inside = maps.dataset["maps_4x4"].values[:, 0, 0], []
    share = maps.truths["truth"].values.reshape(6, 4, 8, 4, 8).mean((2, 4))
    inside = (native * share).sum() / share.sum()
    assert float(looks.sel(head=3, place="inside")) == pytest.approx(inside, rel=1e-5)
    assert float(looks.sel(head=3, place="picture")) == pytest.approx(native.mean(), rel=1e-5)
    assert (looks.sel(place="inside")[:4] > 3 * looks.sel(place="outside")[:4]).all()


def test_found_is_the_share_of_planted_heads_among_the_first_of_a_ranking() -> None:
    scores = xr.DataArray([[9, 8, 1, 0, 2], [0, 1, 2, 3, 4]], {"concept": ["a", "b"]}, ("concept", "head"))
    planted = {"b": [4, 0], "a": [0, 1]}
    assert found(scores, planted).values.tolist() == [[0.5], [1.0]]
    assert found(scores, planted, [1, 5])["concept"].values.tolist() == ["b", "a"]
    assert found(scores, planted, [1, 5]).values.tolist() == [[0.5, 1.0], [0.5, 1.0]]


def test_selecting_pays_from_the_dose_from_which_on_every_interval_is_above_0() -> None:
    up, none, down = Interval(0.1, 0.05, 0.15), Interval(0.1, -0.05, 0.2), Interval(-0.1, -0.2, -0.05)
    assert answers.pays_from({0: none, 0.5: up, 1: up}) == "a clear gain from a dose of 0.5 on"
    assert answers.pays_from({0: up, 0.5: none, 1: up}) == "a clear gain from a dose of 1 on"
    assert answers.pays_from({0: up, 1: none}) == "a clear gain at none of the doses"
    assert answers.pays_from({0: down, 1: down}) == "a clear loss at every dose"
    shares = Interval(0.9, 0.8, 1.0)
    gains = {"planted": {0: none, 1: up}, "first 30": {0: none, 1: none}}
    said = answers.planted_heads_answer(shares, gains, few=4, n_heads=128)
    assert said.startswith("head relevance finds them: a share of 0.900 [0.800, 1.000] of the 4 heads planted for a")
    assert (
        "all heads is, with planted 0.100 [0.050, 0.150], a clear gain from a dose of 1 on; with first 30 0.100 [-0"
        in said
    )
    assert said.endswith("a clear gain at none of the doses.")
    assert "does not find" in answers.planted_heads_answer(none, gains, few=4, n_heads=128)


def test_a_model_is_placed_at_the_dose_whose_vectors_are_as_concentrated() -> None:
    shares = {dose: Interval(mean, mean - 0.03, mean + 0.03) for dose, mean in {0: 0.69, 0.5: 0.81, 1: 0.9}.items()}
    gains = {0: Interval(-0.13, -0.18, -0.09), 0.5: Interval(0.02, -0.01, 0.05), 1: Interval(0.1, 0.05, 0.15)}
    low, middle = (answers.expected_gain(Interval(m, m - 0.06, m + 0.06), shares, gains, 0.0225) for m in (0.64, 0.8))
    assert "nearest to that of a dose of 0, 0.690 [0.660, 0.720]. There, selecting them gains -0.130 [" in low
    assert low.endswith("+0.022, lies above that interval: concentration alone does not predict it.")
    assert "a dose of 0.5, " in middle and middle.endswith("lies within that interval.")
