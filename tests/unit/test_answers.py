"""The sentences of the chapters say what their numbers say."""

import re

import numpy as np
import pytest
import xarray as xr

from selattn_lib.evaluation import answers
from selattn_lib.evaluation.statistics import (
    Difference,
    Interval,
    effect_size,
    mean_interval,
    paired_difference,
    plateau,
)

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
    assert first == "threshold 0.3: top less all = +0.100 [+0.100, +0.100], p = 0.031 (the lowest possible)"
    assert second == "threshold 0.4: top less all = no difference"


def of_sets() -> xr.DataArray:
    """Scores (image, set, threshold): the first set is ahead at 0.3, and the same as the other at 0.4."""
    scores = xr.concat([of_words(0.7), of_words(0.6)], "set").assign_coords(set=["top", "all"])
    return xr.concat([scores, scores * 0 + 0.5], "threshold").assign_coords(threshold=[0.3, 0.4])


def brief(answer: str) -> bool:
    """Two sentences at most, of 45 words at most, a number and its interval being one."""
    sentences = re.sub(r"\[[^]]*\]", "", answer.removesuffix(".")).split(". ")
    return len(sentences) <= 2 and max(len(sentence.split()) for sentence in sentences) <= 45


def test_the_verdict_of_two_benchmarks():
    scores = of_sets()
    lead = answers.leads({"generated": scores, "known truth": scores}, "top", "all", 0.3)
    assert lead["generated"] == paired_difference(of_words(0.7), of_words(0.6), scores.subject)
    said = answers.verdict({"generated": lead["generated"], "known truth": EVEN}, "top 30", "all heads", "IoU at 0.3")
    assert said == (
        "top 30 draw better maps than all heads: +0.100 [+0.100, +0.100] in IoU at 0.3 (generated). On known truth: "
        "not clearly better or worse, +0.010 [-0.020, +0.040]."
    )
    assert brief(said)
    said = answers.verdict({"known truth": BEHIND, "generated": BEHIND}, "top 30", "all heads", "IoU at 0.3")
    assert said.startswith("top 30 draw worse maps than all heads: -0.050") and said.endswith(
        ": worse, -0.050 [-0.070, -0.030]."
    )
    same = answers.leads({"generated": scores, "known truth": scores}, "top", "all", 0.4)
    assert answers.verdict(same, "top", "all", "IoU") == (
        "top and all score the same in IoU (generated). On known truth: no difference."
    )


def test_few_words_are_too_few_to_tell():
    few = Difference(0.1, 0.05, 0.15, 2 / 2**4, 4)
    said = answers.verdict({"generated": few, "known truth": few}, "top", "all", "IoU")
    assert said == (
        "there are too few words to tell whether top draw better maps than all: +0.100 in IoU (generated). On known "
        "truth: too few words to tell, +0.100."
    )


def test_the_noise_of_the_ranking_can_undo_a_verdict():
    by_rankings = of_sets() + xr.DataArray([0, 0.3, -0.3, 0.2], dims="ranking") * xr.DataArray(
        [1, 0], {"set": ["top", "all"]}, ("set",)
    )
    lead = answers.leads({"generated": by_rankings}, "top", "all", 0.3)
    assert "neither clearly better nor clearly worse" in answers.verdict(lead, "top", "all", "IoU")


def test_the_best_number_of_heads():
    curves = xr.DataArray([[[0.2], [0.5], [0.4]], [[0.4], [0.5], [0.4]]], dims=("image", "k", "threshold"))
    curves = curves.assign_coords(k=[1, 2, 3], threshold=[0.4])
    assert answers.best_numbers(curves) == "threshold 0.4: best k = 2 (IoU 0.500), all 3 heads 0.400"
    scores = xr.concat([of_words(0.3), of_words(0.5), of_words(0.6)], "set").assign_coords(
        set=["top 1", "top 2", "all"]
    )
    said = answers.numbers_of_heads(scores.expand_dims(threshold=[0.4]), curves, ["top 1", "top 2"], "all")
    assert said == (
        "top 2, the best of 2 numbers tried, draw worse maps than all: -0.100 [-0.100, -0.100] in IoU at 0.4. Of every "
        "number of heads, 2 of 3 score highest: 0.500, where all score 0.400."
    )
    assert brief(said)


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


@pytest.mark.parametrize(("mean", "word"), [(0.6, "no better"), (0.9, "better"), (0.2, "worse")])
def test_heads_of_a_concept_against_random_ones(mean, word):
    top, random = {"generated": of_words(mean)}, {"generated": draws(0.5, 0.55, 0.65, 0.7)}
    said = answers.against_random(top, random, {"generated": 18, "known truth": 20}, concepts=21)
    assert said == (
        f"draw {word} maps than random heads: IoU {mean:.3f}, of random ones 0.600 [0.504, 0.696] (95 % of draws, "
        "generated). For these words, the heads of 17 (generated) and 19 (known truth) of 20 other concepts score "
        "higher."
    )
    assert brief(said)


def test_effects_leave_out_what_does_not_vary():
    scores = xr.concat([of_words(0.7), of_words(0.5, 0.8, 0.6), of_words(0.7)], "set").transpose("image", "set")
    said = answers.effects(scores.assign_coords(set=["all", "top", "same"]), "all")
    assert said == f"Cohen's d: top {effect_size(of_words(0.5, 0.8, 0.6), of_words(0.7), scores.subject):+.2f}"


def test_for_how_many_concepts_selection_helps():
    gains = {"Animals": AHEAD, "Plants": BEHIND, "Tools": EVEN, "Toys": BEHIND, "Food": EVEN}
    said = answers.beyond({"known truth": gains, "generated": gains}, heads=30)
    assert said == (
        "On known truth, a concept's own top 30 heads draw better maps than all heads for 1 (Animals) of 5 concepts, "
        "worse ones for 2 (Plants, Toys). On generated: better for 1 (Animals), worse for 2 (Plants, Toys)."
    )
    assert brief(said)
    gains["Clothing"] = Difference(0.1, 0.05, 0.15, 2 / 2**5, 5)
    said = answers.beyond({"known truth": gains}, heads=30)
    mean = mean_interval([gain.mean for gain in gains.values()])
    few = "with too few words to tell for 1 (Clothing)"
    assert said.endswith(f"worse ones for 2 (Plants, Toys), {few}; mean gain in IoU {mean}.")
    assert answers.listed([]) == "none"


def test_maps_of_two_meanings():
    logs = np.array([[0.5, -0.5, 0.1], [0.4, 0.2, 0.1], [-0.3, -0.5, 0.1], [-0.4, 0.2, 0.1]])
    assert answers.own_meanings(np.concatenate([logs, logs])) == (
        "in the 8 pictures with both meanings the two maps are in order in 75% [41%, 93%], p = 0.289, and each falls "
        "on its own meaning in 25% [7%, 59%]"
    )
    assert answers.own_meanings(logs) == "4 with both meanings are too few pictures to tell"
    assert answers.own_meanings(logs[:0]).startswith("no picture shows both meanings")


@pytest.mark.parametrize(
    ("right", "said"),
    [(20, "tell the two meanings of a word apart"), (10, "do not clearly tell"), (1, "mix up the two meanings")],
)
def test_whether_two_meanings_are_told_apart(right, said):
    logs = np.array([[0.2, 0.1]] * right + [[0.1, 0.2]] * (20 - right))
    sentence = answers.told_apart(logs)
    assert f"The heads of the two concepts {said}" in sentence and brief(sentence)
    assert f"lean the right way round in {right * 5}% [" in sentence
    assert answers.told_apart(logs[:5]).startswith("5 pictures with both meanings: too few to tell")
    assert answers.told_apart(logs[:0]).startswith("No pictures with both meanings")


@pytest.mark.parametrize("low, verdict", [(0.55, "finds them"), (0.45, "is not clearly better than chance")])
def test_the_best_detector(low, verdict):
    areas = {"attention": Interval(0.4, 0.2, 0.6), "two places": Interval(0.7, low, 0.9)}
    assert answers.detector(areas).startswith(
        f"The best of 2 detectors of misread prompts, two places, {verdict}: area under the ROC curve "
        f"0.700 [{low:.3f}, 0.900], by chance 0.5."
    )


def test_no_detector_can_be_scored_on_pictures_of_one_kind():
    assert answers.detector({"attention": Interval(np.nan, np.nan, np.nan)}).startswith(
        "No word has pictures that were"
    )
    assert "two places" in answers.detector({"a": Interval(*[np.nan] * 3), "two places": Interval(0.6, 0.55, 0.7)})


def test_how_many_generations():
    sizes = {"size": [2, 10, 40]}
    scores = xr.DataArray([[0.6, 0.7], [0.6, 0.6], [0.6, 0.62]], sizes, ("size", "draw"))
    shared = xr.DataArray([[0.6, 0.7], [0.8, 0.8], [0.9, 1.0]], sizes, ("size", "draw"))
    said = answers.generations(shared, {"generated": scores, "known truth": scores / 2}, heads=30)
    assert said == (
        "Two vectors counted on 40 images each share 95% [90%, 100%] of their top 30 heads (95 % of splits), on 2 "
        "images each 65%. The heads that 2 images name draw maps with a mean IoU of 0.650 ± 0.050, those that 40 name "
        "0.610 ± 0.010 (generated)."
    )
    assert brief(said)


@pytest.mark.parametrize(
    ("most", "found"),
    [(0.5, "less of it is left"), (0.9, "more of it is left"), (0.8, "neither clearly more nor clearly")],
)
def test_what_is_left_of_a_concept(most, found):
    def present(*score: float) -> xr.Dataset:
        return xr.Dataset({"area": of_words(0.3), "score": of_words(*score)})

    presence = {
        (concept, *order): present(*([most] if order[0].startswith("most") else [0.9, 0.7]))
        for concept in ("Animals", "Vehicles")
        for order in (("none", 0), ("most relevant first", 50), ("least relevant first", 50))
    }
    presence["Animals", "least relevant first", 50] = present(*([0.9, 0.7] if most == 0.8 else [0.7]))
    said = answers.weakened(presence, "Animals", "Vehicles", heads=50)
    assert said.startswith("With the 50 heads most relevant to Animals off, ") and found in said and brief(said)
    assert said.endswith(f"Without the same heads, the score of Vehicles goes from 0.800 to {most:.3f}.")
    few = {key: of.isel(image=slice(4)) for key, of in presence.items()}
    assert answers.weakened(few, "Animals", "Vehicles", heads=50).startswith("There are too few words to tell")
    assert answers.left(presence, ["Animals", "Vehicles"], heads=50).splitlines()[3] == (
        f"score of Vehicles: 0.800 with all heads on, {most:.3f} without the 50 most relevant, 0.800 without the 50 "
        "least relevant"
    )


def test_halves_say_how_many_heads_they_share():
    assert answers.halves((0.58, 0.6), heads=30) == (
        "two halves of the images share 60% of the top 30 heads (rank correlation 0.58)"
    )
