"""The sentences of the chapters say what their numbers say."""

import numpy as np
import pytest
import xarray as xr

from selattn_lib.evaluation import answers
from selattn_lib.evaluation.statistics import Difference, Interval, paired_difference, plateau

WORDS = ["bear", "bird", "cat", "cow", "dog", "sheep"]
AHEAD = Difference(0.05, 0.03, 0.07, 0.002)
EVEN = Difference(0.01, -0.02, 0.04, 0.4)
BEHIND = Difference(-0.05, -0.07, -0.03, 0.002)


def of_words(*means: float) -> xr.DataArray:
    """Scores (image) of two images of each word, a little around a mean of each half of the words."""
    values = np.repeat(np.resize(means, len(WORDS)), 2) + np.tile([-0.01, 0.01], len(WORDS))
    return xr.DataArray(values, {"subject": ("image", np.repeat(WORDS, 2))}, ("image",))


def draws(*values: float) -> xr.DataArray:
    return xr.DataArray(list(values), dims="draw")


def test_differences_at_each_threshold():
    first, second = answers.differences(of_sets(), "top", "all").splitlines()
    # six words, all with the same sign: two of 2 ** 6 flips are as far from 0
    assert first == "threshold 0.3: top less all = +0.100 [+0.100, +0.100], p = 0.031 (the lowest)"
    assert second == "threshold 0.4: top less all = no difference"


def of_sets() -> xr.DataArray:
    """Scores (image, set, threshold): the first set is ahead at 0.3, and the same as the other at 0.4."""
    scores = xr.concat([of_words(0.7), of_words(0.6)], "set").assign_coords(set=["top", "all"])
    return xr.concat([scores, scores * 0 + 0.5], "threshold").assign_coords(threshold=[0.3, 0.4])


def test_the_verdict_of_each_benchmark():
    ahead, noisy = of_sets(), np.tile([0.2, -0.2], 6)
    behind = xr.concat([1 - ahead.sel(threshold=0.3, drop=True)] * 2, "threshold").assign_coords(threshold=[0.3, 0.4])
    unclear = ahead + xr.DataArray(noisy[:, None] * [1, 0], {"set": ["top", "all"]}, ("image", "set"))
    few = ahead.isel(image=slice(4))
    scores = {"generated": ahead, "known truth": behind, "own pictures": unclear, "few": few}
    assert answers.verdict(scores, "top", "all") == (
        "On the generated benchmark, top are ahead of all at threshold 0.3 and score the same as all at threshold 0.4. "
        "On the known truth benchmark, top are behind all at thresholds 0.3 and 0.4. On the own pictures benchmark, "
        "top are ahead of all at threshold 0.3 and score the same as all at threshold 0.4. On the few benchmark, top "
        "have too few words to be compared with all at threshold 0.3 and score the same as all at threshold 0.4."
    )


def test_the_noise_of_the_ranking_can_undo_a_verdict():
    by_rankings = of_sets() + xr.DataArray([0, 0.3, -0.3, 0.2], dims="ranking") * xr.DataArray(
        [1, 0], {"set": ["top", "all"]}, ("set",)
    )
    assert answers.verdict({"generated": by_rankings}, "top", "all") == (
        "On the generated benchmark, top show no clear difference to all at thresholds 0.3 and 0.4."
    )


def test_the_best_number_of_heads():
    curves = xr.DataArray([[[0.2], [0.5], [0.4]], [[0.4], [0.5], [0.4]]], dims=("image", "k", "threshold"))
    curves = curves.assign_coords(k=[1, 2, 3], threshold=[0.4])
    assert answers.best_numbers(curves) == "threshold 0.4: best k = 2 (IoU 0.500), all 3 heads 0.400"
    both = xr.concat([curves, 1 - curves], "threshold").assign_coords(threshold=[0.4, 0.5])
    assert answers.best_k(both) == (
        "of 3 heads, the mean IoU is highest with 2 at threshold 0.4 (0.500) and 1 at threshold 0.5 (0.700)"
    )


def test_the_optimum_and_its_plateau():
    mean = xr.DataArray(
        [[0.1, 0.2, 0.1], [0.5, 0.6, 0.5], [0.5, 0.59, 0.2]],
        {"k": [1, 2, 3], "threshold": [0.3, 0.4, 0.5]},
        ("k", "threshold"),
    )
    surface = of_words(0.0) + mean
    flat = mean >= 0.5
    assert answers.optimum(surface, flat) == (
        "highest at k = 2, threshold 0.4 (mean IoU 0.600); at this threshold k from 2 to 3, and at this k thresholds "
        "from 0.3 to 0.5, are not clearly below it"
    )
    assert bool(plateau(surface, surface.subject).sel(k=2, threshold=0.4))


def test_heads_of_a_concept_against_random_ones():
    sentence = answers.concept_heads(
        of_words(0.6), of_words(0.7), draws(0.5, 0.55, 0.65, 0.7), draws(0.4, 0.5, 0.5), heads=30
    )
    assert sentence == (
        "the top 30 trails all heads (-0.100 [-0.100, -0.100], p = 0.031 (the lowest)). Among 4 draws of 30 "
        "random heads it is at percentile 50 (p = 0.600); against random heads of the same layers it is +0.133 (p = "
        "0.250)."
    )


def test_the_ceiling():
    sentence = answers.ceiling(of_words(0.8), of_words(0.7), of_words(0.8), (0.03, 0.736), heads=30)
    assert sentence == (
        "the oracle of 30 heads beats all heads (+0.100 [+0.100, +0.100], p = 0.031 (the lowest)), and it and "
        "the top 30 score the same. The rank correlation of relevance and the score of a head's own map is +0.03 (p = "
        "0.736)."
    )


def test_the_surface():
    mean = xr.DataArray([[0.1, 0.2], [0.5, 0.6], [0.5, 0.5]], {"k": [1, 2, 3]}, ("k", "threshold"))
    precision = xr.concat([of_words(0.9), of_words(0.8), of_words(0.9)], "set")
    precision["set"] = ["all heads", "top 30", "weighted"]
    names = {"top": "top 30", "every": "all heads", "weighted": "weighted"}
    assert answers.surface_answer(of_words(0.0) + mean, EVEN, precision, **names) == (
        "the mean IoU is highest at k = 2 of 3; with k and threshold chosen on other words, there is no clear "
        "difference between the chosen k and all heads (+0.010 [-0.020, +0.040], p = 0.400). By average precision, the "
        "top 30 trails all heads (-0.100 [-0.100, -0.100], p = 0.031 (the lowest)) and weighting beats the "
        "top 30 (+0.100 [+0.100, +0.100], p = 0.031 (the lowest))."
    )


def test_for_which_concepts_selection_helps():
    gains = {"Animals": AHEAD, "Plants": BEHIND, "Tools": EVEN, "Toys": BEHIND}
    places = {"Animals": 1, "Plants": 3, "Tools": 1, "Toys": 21}
    assert answers.beyond(gains, places, (0.37, 0.0002), heads=30) == (
        "of 4 concepts, the own top 30 heads beat all heads for 1 (Animals) and trail them for 2 (Plants, Toys). The "
        "best heads for a concept's words are its own for 2 (Animals, Tools). The rank correlation of the gain and the "
        "concentration of the vector is not known: 4 concepts are too few."
    )
    gains["Food"] = Difference(0.1, 0.05, 0.15, 2 / 2**5, 5)
    sentence = answers.beyond(gains, places | {"Food": 2}, (0.37, 0.0002), heads=30)
    assert "(Plants, Toys), with too few words to tell for 1 (Food)." in sentence
    assert sentence.endswith("concentration of the vector is +0.37 (p < 0.001).")
    assert answers.listed([]) == "0"


def test_maps_of_two_meanings():
    logs = np.array([[0.5, -0.5, 0.1], [0.4, 0.2, 0.1], [-0.3, -0.5, 0.1], [-0.4, 0.2, 0.1]])
    assert answers.own_meanings(np.concatenate([logs, logs])) == (
        "in the 8 pictures with both meanings the two maps are in order in 75% [41%, 93%], p = 0.289, and each falls "
        "on its own meaning in 25% [7%, 59%]"
    )
    assert answers.own_meanings(logs) == "4 with both meanings are too few pictures to tell"
    assert answers.own_meanings(logs[:0]).startswith("no picture shows both meanings")


@pytest.mark.parametrize(
    "low, verdict", [(0.55, "tells misread prompts apart"), (0.45, "is not clearly better than chance")]
)
def test_the_best_detector(low, verdict):
    areas = {"attention": Interval(0.4, 0.2, 0.6), "two places": Interval(0.7, low, 0.9)}
    assert answers.detector(areas).startswith(
        f"The best of 2 detectors, two places, {verdict}: area under the ROC curve 0.700 [{low:.3f}, 0.900]."
    )


def test_no_detector_can_be_scored_on_pictures_of_one_kind():
    assert answers.detector({"attention": Interval(np.nan, np.nan, np.nan)}).startswith(
        "No word has pictures that were"
    )
    assert "two places" in answers.detector({"a": Interval(*[np.nan] * 3), "two places": Interval(0.6, 0.55, 0.7)})


def test_how_many_generations():
    sizes = {"size": [2, 10, 40]}
    scores = xr.DataArray([[0.6, 0.7], [0.6, 0.6], [0.6, 0.62]], sizes, ("size", "draw"))
    correlation, shared = (xr.DataArray(v, sizes, ("size",)) for v in ([0.7, 0.9, 0.98], [0.69, 0.8, 0.93]))
    assert answers.generations(correlation, shared, {"generated": scores, "known truth": scores / 2}, heads=30) == (
        "Over all concepts, two vectors of 2 generations each share 69% of their top 30 heads (rank correlation 0.70), "
        "and two vectors of 40 generations each share 93% of their top 30 heads (rank correlation 0.98). On the "
        "generated benchmark the mean IoU of the top 30 heads is 0.650 ± 0.050 where 2 generations name them and 0.610 "
        "± 0.010 where 40 generations name them. On the known truth benchmark the mean IoU of the top 30 heads is "
        "0.325 ± 0.025 where 2 generations name them and 0.305 ± 0.005 where 40 generations name them."
    )


def test_what_is_left_of_a_concept():
    def present(area: float, score: float) -> xr.Dataset:
        return xr.Dataset({"area": of_words(area), "score": of_words(score)})

    presence = {
        ("Animals", "none", 0): present(0.3, 1.0),
        ("Animals", "most relevant first", 50): present(0.1, 0.5),
        ("Animals", "least relevant first", 50): present(0.2, 0.5),
        ("Vehicles", "none", 0): present(0.25, 0.9),
        ("Vehicles", "most relevant first", 50): present(0.2, 0.8),
    }
    area, score = answers.weakened(presence, "Animals", "Vehicles", heads=50).split(" With ")
    assert area == (
        "With 50 heads off, the area of Animals is 0.100 if they are the most relevant to it and 0.200 if the least, "
        "0.300 with all heads on: most less least relevant is -0.100 [-0.100, -0.100], p = 0.031 (the lowest). "
        "Without the heads of Animals, the area of Vehicles in their pictures goes from 0.250 to 0.200."
    )
    assert score.endswith("the score of Vehicles in their pictures goes from 0.900 to 0.800.")
    assert paired_difference(of_words(0.1), of_words(0.2), of_words(0.1).subject).p == pytest.approx(2 / 2**6)


def test_the_heads_of_a_meaning_fall_on_it_most_or_not():
    coords = {"heads": ["all", "A", "T"], "mask": ["Animals", "Tools"], "statistic": ["mean", "low", "high", "images"]}
    means = np.array([[1.5, np.nan], [2.0, np.nan], [1.2, np.nan]])[..., None] + [0, -0.1, 0.1, 8]
    means[..., 3] = 8, np.nan
    ratios = xr.DataArray(means, coords, ("heads", "mask", "statistic"))
    sentence = answers.own_meaning(ratios, {"Animals": "A", "Tools": "T"})
    assert sentence.startswith("on Animals, the heads for it score highest: A 2.000 [1.900, 2.100], all 1.500")
    assert sentence.endswith("; Tools is in no picture, too few to tell")
    assert "on Animals, the heads for it do not score highest: T 1.200" in answers.own_meaning(ratios, {"Animals": "T"})


def test_halves_say_how_many_heads_they_share():
    assert answers.halves((0.58, 0.6), heads=30) == (
        "two halves of the images share 60% of the top 30 heads (rank correlation 0.58)"
    )
