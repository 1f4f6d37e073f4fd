"""Sentences that chapters compute from their numbers, so that they stay true on another model or concept.

Scores are over images and carry the coordinate `subject`, over which intervals and tests are; where they have a
dimension `ranking`, too, intervals hold the noise of the ranking (`mean_interval`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from scipy.stats import binomtest

from .statistics import (
    Difference,
    Interval,
    direction,
    effect_size,
    format_p,
    mean_interval,
    paired_difference,
    share_interval,
    spread,
)


def differences(scores: xr.DataArray, first: str, second: str) -> str:
    """A line a threshold: how far one set of heads is ahead of another, from scores (image, set, threshold)."""
    lines = []
    for threshold in scores["threshold"].values:
        one, other = (scores.sel(set=name, threshold=threshold) for name in (first, second))
        lines.append(f"threshold {threshold}: {first} less {second} = {paired_difference(one, other, scores.subject)}")
    return "\n".join(lines)


PLAIN = {1: "better", -1: "worse", 0: "not clearly better or worse"}  # direction -> word


def leads(scores: Mapping[str, xr.DataArray], first: str, second: str, threshold: float) -> dict[str, Difference]:
    """Benchmark -> how far one set of heads is ahead of another, from its scores (image, set, threshold)."""
    found = {}
    for name, of in scores.items():
        one, other = (of.sel(set=s, threshold=threshold) for s in (first, second))
        found[name] = paired_difference(one, other, of.subject)
    return found


def comparison(first: str, second: str, lead: Difference) -> str:
    """Which of two sets of heads draws better maps, in plain words, and the mean difference of a score."""
    if lead.none:
        return f"{first} and {second} score the same"
    if lead.too_few:
        return f"there are too few words to tell whether {first} draw better maps than {second}: {_size(lead)}"
    maps = {1: "better maps than", -1: "worse maps than", 0: "neither clearly better nor clearly worse maps than"}
    return f"{first} draw {maps[direction(lead)]} {second}: {lead.parts[0]}"


def _size(lead: Difference) -> str:
    """The difference with its interval; of words that are too few, without."""
    return f"{lead.mean:+.3f}" if lead.too_few and not lead.none else lead.parts[0]


def verdict(lead: Mapping[str, Difference], first: str, second: str, score: str) -> str:
    """Which of two sets of heads draws better maps: in full on the first benchmark, in a word on the others."""
    (main, of_main), *others = lead.items()
    sentences = [f"{comparison(first, second, of_main)} in {score} ({main})."]
    for name, of in others:
        word = "" if of.none else "too few words to tell, " if of.too_few else f"{PLAIN[direction(of)]}, "
        sentences.append(f"On {name}: {word}{_size(of)}.")
    return " ".join(sentences)


def _and(names: Sequence[str]) -> str:
    """A list in words: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def best_numbers(curves: xr.DataArray) -> str:
    """A line a threshold: the number of heads with the highest mean, from scores (image, k, threshold)."""
    lines = []
    for threshold in curves["threshold"].values:
        mean = curves.sel(threshold=threshold).mean("image")
        best = f"best k = {int(mean.idxmax('k'))} (IoU {float(mean.max()):.3f})"
        lines.append(f"threshold {threshold}: {best}, all {mean.sizes['k']} heads {float(mean[-1]):.3f}")
    return "\n".join(lines)


def numbers_of_heads(scores: xr.DataArray, curves: xr.DataArray, tops: Sequence[str], second: str) -> str:
    """Whether the best of some numbers of heads beats `second`, from scores (image, set, threshold), and which of all
    numbers scores highest, from scores (image, k, threshold); both at the middle threshold."""
    middle = sorted(scores["threshold"].values.tolist())[scores.sizes["threshold"] // 2]
    at_middle = scores.sel(threshold=middle)
    first_ranking = at_middle.isel(ranking=0, missing_dims="ignore").mean("image")
    best = max(tops, key=lambda name: float(first_ranking.sel(set=name)))
    lead = paired_difference(at_middle.sel(set=best), at_middle.sel(set=second), scores.subject)
    mean = curves.sel(threshold=middle).mean("image")
    return (
        f"{comparison(f'{best}, the best of {len(tops)} numbers tried,', second, lead)} in IoU at {middle:g}. Of every "
        f"number of heads, {int(mean.idxmax('k'))} of {mean.sizes['k']} score highest: {float(mean.max()):.3f}, where "
        f"all score {float(mean[-1]):.3f}."
    )


def optimum(surface: xr.DataArray, plateau: xr.DataArray) -> str:
    """Where the mean of scores (image, k, threshold) is highest, and how far its `plateau` (k, threshold) goes."""
    mean = surface.mean("image")
    cell = mean.argmax(["k", "threshold"])  # type: ignore[call-overload]
    k, threshold = int(mean.k[cell["k"]]), float(mean.threshold[cell["threshold"]])
    ks = plateau.k[plateau.sel(threshold=threshold)].values
    thresholds = plateau.threshold[plateau.sel(k=k)].values
    return (
        f"highest at k = {k}, threshold {threshold} (mean IoU {float(mean.max()):.3f}); at this threshold k from "
        f"{ks.min()} to {ks.max()}, and at this k thresholds from {thresholds.min()} to {thresholds.max()}, are not "
        "clearly below it"
    )


def against_random(
    top: Mapping[str, xr.DataArray], random: Mapping[str, xr.DataArray], places: Mapping[str, int], *, concepts: int
) -> str:
    """Whether a concept's top heads draw better maps than random ones: on each benchmark scores (image) of these, mean
    scores (draw) of as many random heads, and the place of the concept's heads among those of all `concepts`."""
    main = next(iter(top))
    score, chance = float(top[main].mean()), spread(random[main])
    word = "better maps" if score > chance.high else "worse maps" if score < chance.low else "no better maps"
    ahead = _and([f"{place - 1} ({name})" for name, place in places.items()])
    return (
        f"draw {word} than random heads: IoU {score:.3f}, of random ones {chance} (95 % of draws, {main}). For these "
        f"words, the heads of {ahead} of {concepts - 1} other concepts score higher."
    )


def effects(scores: xr.DataArray, against: str) -> str:
    """Cohen's d of each set's lead over one of them, on the means of words, from scores (image, set), or (image, set,
    ranking); sets that differ by the same everywhere have none."""
    base = scores.sel(set=against)
    sizes = {s: effect_size(scores.sel(set=s), base, scores.subject) for s in scores["set"].values.tolist()}
    return "Cohen's d: " + ("; ".join(f"{s} {d:+.2f}" for s, d in sizes.items() if d == d) or "none")


def listed(names: Sequence[str]) -> str:
    """How many, and which: "2 (Animals, Plants)"; "none"."""
    return f"{len(names)} ({', '.join(names)})" if names else "none"


def beyond(gains: Mapping[str, Mapping[str, Difference]], *, heads: int) -> str:
    """For how many concepts selection helps, from benchmark -> concept -> gain of its top heads over all heads, and the
    mean gain on the first benchmark, with an interval over concepts where there are six or more."""
    sentences: list[str] = []
    for name, of in gains.items():
        better, worse = ([concept for concept, gain in of.items() if direction(gain) == sign] for sign in (1, -1))
        few = [concept for concept, gain in of.items() if gain.too_few]
        unknown = f", with too few words to tell for {listed(few)}" if few else ""
        if sentences:
            sentences.append(f"On {name}: better for {listed(better)}, worse for {listed(worse)}{unknown}.")
            continue
        mean = f"; mean gain in IoU {mean_interval([gain.mean for gain in of.values()])}" if len(of) > 5 else ""
        sentences.append(
            f"On {name}, a concept's own top {heads} heads draw better maps than all heads for {listed(better)} of "
            f"{len(of)} concepts, worse ones for {listed(worse)}{unknown}{mean}."
        )
    return " ".join(sentences)


def share(right: Any) -> tuple[str, float]:
    """A share with its `share_interval`, "30% [21%, 42%]", and the p of a binomial test against one half."""
    interval, first = share_interval(right), np.atleast_2d(np.asarray(right, dtype=bool).T)[0]
    text = f"{interval.mean:.0%} [{interval.low:.0%}, {interval.high:.0%}]"
    return text, float(binomtest(int(first.sum()), len(first)).pvalue)


def halves(agreement: tuple[float, float], *, heads: int) -> str:
    """Whether two halves of the images rank the heads alike, from `rank_agreement`."""
    rho, shared = agreement
    return f"two halves of the images share {shared:.0%} of the top {heads} heads (rank correlation {rho:.2f})"


def own_meanings(log_ratios: np.ndarray) -> str:
    """Whether the maps of two concepts' heads fall on their own meanings, from log attention ratios (image, set), or
    (image, set, ranking): in how many pictures the first leans more to the first meaning than the second does, and each
    to its own."""
    if not len(log_ratios):
        return "no picture shows both meanings: nothing can be said of the maps"
    first, second = log_ratios[:, 0], log_ratios[:, 1]
    if len(first) < 6:  # 2 / 2^5 > 0.05
        return f"{len(first)} with both meanings {'is' if len(first) == 1 else 'are'} too few pictures to tell"
    ordered, p = share(first > second)
    right, _ = share((first > 0) & (second < 0))
    return (
        f"in the {len(first)} pictures with both meanings the two maps are in order in {ordered}, {format_p(p)}, and "
        f"each falls on its own meaning in {right}"
    )


def told_apart(log_ratios: np.ndarray) -> str:
    """Whether the maps of two concepts' heads tell two meanings of a word apart, from log ratios as for `own_meanings`:
    in how many pictures they lean the right way round, of two random maps one half."""
    if len(log_ratios) < 6:
        return f"{len(log_ratios) or 'No'} pictures with both meanings: too few to tell whether their maps differ."
    ordered = log_ratios[:, 0] > log_ratios[:, 1]
    interval, (text, _) = share_interval(ordered), share(ordered)
    meanings = "the two meanings of a word"
    apart = f"tell {meanings} apart" if interval.low > 0.5 else f"do not clearly tell {meanings} apart"
    apart = f"mix up {meanings}" if interval.high < 0.5 else apart
    return (
        f"The heads of the two concepts {apart}: their maps lean the right way round in {text} of {len(ordered)} "
        "pictures with both meanings, by chance in 50%."
    )


def detector(areas: Mapping[str, Interval]) -> str:
    """Whether the best of some detectors tells, from the areas under their ROC curves."""
    best = max(areas, key=lambda name: np.nan_to_num(areas[name].mean))
    if np.isnan(areas[best].mean):
        return "No word has pictures that were read right and others that were not: no detector can be scored."
    tells = "finds them" if areas[best].low > 0.5 else "is not clearly better than chance"
    area = f"area under the ROC curve {areas[best]}, by chance 0.5"
    return f"The best of {len(areas)} detectors of misread prompts, {best}, {tells}: {area}."


def generations(shared: xr.DataArray, scores: Mapping[str, xr.DataArray], *, heads: int) -> str:
    """How many generations a head relevance vector needs, from the share (size, draw) of top heads that two of n
    generations have in common, and from the mean IoU (size, draw), on each benchmark, of the heads that n name."""
    few, many = int(shared["size"][0]), int(shared["size"][-1])
    (name, ious), common = next(iter(scores.items())), spread(shared.sel(size=many))
    of_many = f"{common.mean:.0%} [{common.low:.0%}, {common.high:.0%}]"
    drawn = {n: f"{float(ious.sel(size=n).mean()):.3f} ± {float(ious.sel(size=n).std()):.3f}" for n in (few, many)}
    return (
        f"Two vectors counted on {many} images each share {of_many} of their top {heads} heads (95 % of splits), on "
        f"{few} images each {float(shared.sel(size=few).mean()):.0%}. The heads that {few} images name draw maps with "
        f"a mean IoU of {drawn[few]}, those that {many} name {drawn[many]} ({name})."
    )


def left(presence: Mapping[tuple[str, str, int], xr.Dataset], concepts: Sequence[str], *, heads: int) -> str:
    """A line for each measure and concept: its mean with all heads on, and with so many off, from the `presence` in the
    pictures of (concept, order of the heads, number of heads off)."""
    orders = (("none", 0), ("most relevant first", heads), ("least relevant first", heads))
    lines = []
    for measure in ("area", "score"):
        for concept in concepts:
            on, most, least = (float(presence[concept, *order][measure].mean()) for order in orders)
            lines.append(f"{measure} of {concept}: {on:.3f} with all heads on, {most:.3f} without the {heads} most")
            lines[-1] += f" relevant, {least:.3f} without the {heads} least relevant"
    return "\n".join(lines)


def weakened(presence: Mapping[tuple[str, str, int], xr.Dataset], concept: str, other: str, *, heads: int) -> str:
    """Whether a concept goes with its heads, by the segmenter's score, and what becomes of another; as for `left`."""
    orders = (("most relevant first", heads), ("least relevant first", heads))
    most, least = (presence[concept, *order]["score"] for order in orders)
    lead = paired_difference(most, least, most.subject)
    on, off = (float(presence[other, *order]["score"].mean()) for order in (("none", 0), orders[0]))
    than = f"with the {heads} least relevant off: {_size(lead)} in the segmenter's score"
    if lead.too_few:
        found = f"There are too few words to tell whether more of {concept} is left than {than}"
    else:
        how = {1: "more", -1: "less", 0: "neither clearly more nor clearly less"}[direction(lead)]
        found = f"With the {heads} heads most relevant to {concept} off, {how} of it is left than {than}"
    return f"{found}. Without the same heads, the score of {other} goes from {on:.3f} to {off:.3f}."


def pays_from(gains: Mapping[float, Interval]) -> str:
    """Where, of the doses looked at, the 95 % interval of a gain is above 0: "a clear gain from a dose of 0.5 on"."""
    doses = sorted(gains)
    paying = [dose for i, dose in enumerate(doses) if all(gains[d].low > 0 for d in doses[i:])]
    if paying:
        return f"a clear gain from a dose of {paying[0]:g} on"
    losing = all(gain.high < 0 for gain in gains.values())
    return "a clear loss at every dose" if losing else "a clear gain at none of the doses"


def planted_heads_answer(
    shares: Interval, gains: Mapping[str, Mapping[float, Interval]], *, few: int, n_heads: int
) -> str:
    """Whether head relevance finds planted heads, and what selecting pays: the share of them that are among its first
    `few` of `n_heads`; and for each set of heads, its gain in average precision over all heads at each dose."""
    verb = "finds" if shares.low > few / n_heads else "does not find"
    paid = [f"{name} {of[max(of)]}, {pays_from(of)}" for name, of in gains.items()]
    return (
        f"head relevance {verb} them: a share of {shares} of the {few} heads planted for a concept are among its first "
        f"{few} (by chance {few / n_heads:.3f}). The gain in average precision over all heads is, with "
        f"{'; with '.join(paid)}."
    )


def expected_gain(
    share: Interval, shares: Mapping[float, Interval], gains: Mapping[float, Interval], reported: float
) -> str:
    """What the concentration of a model's vectors predicts of its gain by selection: the `share` of votes in its first
    heads, the same `shares` and the `gains` at each dose, and the gain that is `reported` for it."""
    dose = min(shares, key=lambda d: abs(shares[d].mean - share.mean))
    gain = gains[dose]
    compared = "within" if gain.low <= reported <= gain.high else "above" if reported > gain.high else "below"
    return (
        f"The first heads of the published vectors hold a share of {share} of the votes, nearest to that of a dose of "
        f"{dose:g}, {shares[dose]}. There, selecting them gains {gain} in IoU over all heads. The paper's gain, "
        f"{reported:+.3f}, lies {compared} that interval"
        f"{'' if compared == 'within' else ': concentration alone does not predict it'}."
    )


def best_rule(gains: xr.DataArray, labelled: Sequence[str] = ("oracle",)) -> tuple[str, Interval]:
    """The rule (set) of the highest mean of gains (concept, set), those aside that need masks, and its interval over
    concepts. It is the best on the pictures that it is scored on, so its lead is a little optimistic."""
    name = str(gains.drop_sel(set=list(labelled)).mean("concept").idxmax("set").values)
    return name, mean_interval(gains.sel(set=name))


def rules(gains: Mapping[str, xr.DataArray]) -> str:
    """Which rule gains most without masks, over the cases (model and kind of picture) of gains (concept, set) in
    average precision over all heads, and what consensus gains: in the first case, and in how many it is clear."""
    names = [best_rule(of_case)[0] for of_case in gains.values()]
    common, first = max(dict.fromkeys(names), key=names.count), next(iter(gains))

    def gained(rule: str) -> str:
        of_rule = [mean_interval(of_case.sel(set=rule)) for of_case in gains.values()]
        clear = sum(interval.low > 0 for interval in of_rule)
        return f"{of_rule[0]} in average precision over all heads on {first} (a clear gain in {clear} of {len(names)})"

    said = f"Of the rules that need no masks, *{common}* gains most in {names.count(common)} of {len(names)} cases: "
    other = f" *Consensus*, which need not know the grids, gains {gained('consensus')}." * (common != "consensus")
    return f"{said}{gained(common)}.{other}"
