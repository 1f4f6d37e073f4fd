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
    scores = xr.concat([of_words(0.7), of_words(0.6)], "set").assign_coords(set=["top", "all"])
    scores = xr.concat([scores, scores * 0 + 0.5], "threshold").assign_coords(threshold=[0.3, 0.4])
    first, second = answers.differences(scores, "top", "all").splitlines()
    # six words, all with the same sign: two of 2 ** 6 flips are as far from 0
    assert first == "threshold 0.3: top less all = +0.100 [+0.100, +0.100], p = 0.031"
    assert second == "threshold 0.4: top less all = +0.000 [+0.000, +0.000], p = 1.000"


def test_the_best_number_of_heads():
    curves = xr.DataArray([[[0.2], [0.5], [0.4]], [[0.4], [0.5], [0.4]]], dims=("image", "k", "threshold"))
    curves = curves.assign_coords(k=[1, 2, 3], threshold=[0.4])
    assert answers.best_numbers(curves) == "threshold 0.4: best k = 2 (IoU 0.500), all 3 heads 0.400"


def test_the_optimum_and_its_plateau():
    mean = xr.DataArray(
        [[0.1, 0.2, 0.1], [0.5, 0.6, 0.5], [0.5, 0.59, 0.2]],
        {"k": [1, 2, 3], "threshold": [0.3, 0.4, 0.5]},
        ("k", "threshold"),
    )
    surface = of_words(0.0) + mean
    flat = mean >= 0.5
    assert answers.optimum(surface, flat) == (
        "highest at k = 2, threshold 0.4 (mean IoU 0.600); at this threshold k from 2 to 3 cannot be told from it, and "
        "at this k thresholds from 0.3 to 0.5"
    )
    assert bool(plateau(surface, surface.subject).sel(k=2, threshold=0.4))


def test_heads_of_a_concept_against_random_ones():
    sentence = answers.concept_heads(
        of_words(0.6), of_words(0.7), draws(0.5, 0.55, 0.65, 0.7), draws(0.4, 0.5, 0.5), heads=30
    )
    assert sentence == (
        "the top 30 trails all heads (-0.100 [-0.100, -0.100], p = 0.031). Among 4 draws of 30 random heads it is at "
        "percentile 50 (p = 0.600); against random heads of the same layers it is +0.133 (p = 0.250)."
    )


def test_the_ceiling():
    sentence = answers.ceiling(of_words(0.8), of_words(0.7), of_words(0.8), (0.03, 0.736), heads=30)
    assert sentence == (
        "the oracle of 30 heads beats all heads (+0.100 [+0.100, +0.100], p = 0.031), and it cannot be told from the "
        "top 30 (+0.000 [+0.000, +0.000], p = 1.000). Relevance and the score of a head's own map have a rank "
        "correlation of +0.03 (p = 0.736)."
    )


def test_the_surface():
    mean = xr.DataArray([[0.1, 0.2], [0.5, 0.6], [0.5, 0.5]], {"k": [1, 2, 3]}, ("k", "threshold"))
    precision = xr.concat([of_words(0.9), of_words(0.8), of_words(0.9)], "set")
    precision["set"] = ["all heads", "top 30", "weighted"]
    names = {"top": "top 30", "every": "all heads", "weighted": "weighted"}
    assert answers.surface_answer(of_words(0.0) + mean, EVEN, precision, **names) == (
        "the mean IoU is highest at k = 2 of 3; with k and threshold chosen on other words, the chosen k cannot be "
        "told from all heads (+0.010 [-0.020, +0.040], p = 0.400). By average precision, the top 30 trails all heads "
        "(-0.100 [-0.100, -0.100], p = 0.031) and weighting beats the top 30 (+0.100 [+0.100, +0.100], p = 0.031)."
    )


def test_for_which_concepts_selection_helps():
    gains = {"Animals": AHEAD, "Plants": BEHIND, "Tools": EVEN, "Toys": BEHIND}
    places = {"Animals": 1, "Plants": 3, "Tools": 1, "Toys": 21}
    assert answers.beyond(gains, places, (0.37, 0.0002), heads=30) == (
        "of 4 concepts, the own top 30 heads beat all heads for 1 (Animals) and trail them for 2 (Plants, Toys). The "
        "best heads for a concept's words are its own for 2 (Animals, Tools). The gain and the concentration of the "
        "vector have a rank correlation of +0.37 (p < 0.001)."
    )
    assert answers.listed([]) == "0"


def test_maps_of_two_meanings():
    logs = np.array([[0.5, -0.5, 0.1], [0.4, 0.2, 0.1], [-0.3, -0.5, 0.1], [-0.4, 0.2, 0.1]])
    assert answers.own_meanings(logs) == (
        "in the 4 pictures with both meanings the two maps are in order in 75% [30%, 95%], p = 0.625, and each falls "
        "on its own meaning in 25% [5%, 70%]"
    )
    assert answers.own_meanings(logs[:0]).startswith("no picture shows both meanings")


@pytest.mark.parametrize("low, verdict", [(0.55, "tells misread prompts apart"), (0.45, "cannot be told from chance")])
def test_the_best_detector(low, verdict):
    areas = {"attention": Interval(0.4, 0.2, 0.6), "two places": Interval(0.7, low, 0.9)}
    assert answers.detector(areas).startswith(
        f"The best of 2 detectors, two places, {verdict}: area under the ROC curve 0.700 [{low:.3f}, 0.900]."
    )


def test_how_many_generations():
    sizes = {"size": [2, 10, 40]}
    scores = xr.DataArray([[0.6, 0.7], [0.6, 0.6], [0.6, 0.62]], sizes, ("size", "draw"))
    correlation, shared = (xr.DataArray(v, sizes, ("size",)) for v in ([0.7, 0.9, 0.98], [0.69, 0.8, 0.93]))
    assert answers.generations(correlation, shared, {"generated": scores, "known truth": scores / 2}, heads=30) == (
        "Over all concepts, two vectors of 2 generations each share 69% of their top 30 heads (rank correlation 0.70), "
        "and two vectors of 40 generations each share 93% of their top 30 heads (rank correlation 0.98). On the "
        "generated benchmark the mean IoU of the top 30 heads is 0.650 ± 0.050 where 2 generations name them and 0.610 "
        "± 0.010 where 40 do. On the known truth benchmark the mean IoU of the top 30 heads is 0.325 ± 0.025 where 2 "
        "generations name them and 0.305 ± 0.005 where 40 do."
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
        "0.300 with all heads on: most less least relevant is -0.100 [-0.100, -0.100], p = 0.031. Without the heads of "
        "Animals, the area of Vehicles in their pictures goes from 0.250 to 0.200."
    )
    assert score.endswith("the score of Vehicles in their pictures goes from 0.900 to 0.800.")
    assert paired_difference(of_words(0.1), of_words(0.2), of_words(0.1).subject).p == pytest.approx(2 / 2**6)


def test_the_heads_of_a_meaning_fall_on_it_most_or_not():
    coords = {"heads": ["all", "A", "T"], "mask": ["Animals", "Tools"], "statistic": ["mean", "low", "high", "images"]}
    means = np.array([[1.5, np.nan], [2.0, np.nan], [1.2, np.nan]])[..., None] + [0, -0.1, 0.1, 8]
    ratios = xr.DataArray(means, coords, ("heads", "mask", "statistic"))
    sentence = answers.own_meaning(ratios, {"Animals": "A", "Tools": "T"})
    assert sentence.startswith("on Animals, the heads for it lead: A 2.000 [1.900, 2.100], all 1.500")
    assert sentence.endswith("; Tools is in no picture")
    assert "on Animals, the heads for it do not lead: T 1.200" in answers.own_meaning(ratios, {"Animals": "T"})
