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
    format_correlation,
    format_p,
    mean_interval,
    paired_difference,
    percentile,
    share_interval,
    statement,
)


def differences(scores: xr.DataArray, first: str, second: str) -> str:
    """A line a threshold: how far one set of heads is ahead of another, from scores (image, set, threshold)."""
    lines = []
    for threshold in scores["threshold"].values:
        one, other = (scores.sel(set=name, threshold=threshold) for name in (first, second))
        lines.append(f"threshold {threshold}: {first} less {second} = {paired_difference(one, other, scores.subject)}")
    return "\n".join(lines)


def verdict(scores: Mapping[str, xr.DataArray], first: str, second: str) -> str:
    """At which thresholds one set of heads is ahead of another, from benchmark -> scores (image, set, threshold)."""
    sentences = []
    for name, of_sets in scores.items():
        found: dict[str, list[str]] = {}
        for threshold in of_sets["threshold"].values:
            one, other = (of_sets.sel(set=s, threshold=threshold) for s in (first, second))
            what = _verdict(paired_difference(one, other, of_sets.subject), second)
            found.setdefault(what, []).append(f"{threshold:g}")
        parts = [f"{what} at {'thresholds' if len(at) > 1 else 'threshold'} {_and(at)}" for what, at in found.items()]
        sentences.append(f"On the {name} benchmark, {first} {_and(parts)}.")
    return " ".join(sentences)


def _verdict(difference: Difference, other: str) -> str:
    if difference.none:
        return f"score the same as {other}"
    if difference.too_few:
        return f"have too few words to be compared with {other}"
    return f"{('show no clear difference to', 'are ahead of', 'are behind')[direction(difference)]} {other}"


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


def best_k(curves: xr.DataArray) -> str:
    """With how many heads the mean is highest at each threshold, from scores (image, k, threshold)."""
    mean = curves.mean("image")
    best = [
        f"{int(of_one.idxmax('k'))} at threshold {float(of_one.threshold):g} ({float(of_one.max()):.3f})"
        for of_one in mean.transpose("threshold", "k")
    ]
    return f"of {mean.sizes['k']} heads, the mean IoU is highest with {_and(best)}"


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


def concept_heads(
    top: xr.DataArray, every: xr.DataArray, random: xr.DataArray, same_layers: xr.DataArray, *, heads: int
) -> str:
    """Whether a concept's top heads are more than random ones: `top` and `every` are scores (image) of these and of all
    heads, the others mean scores (draw) of as many random heads, and of random heads of the same layers."""
    lead = paired_difference(top, every, top.subject)
    mean = float(every.mean()) + lead.mean
    place, p = percentile(mean, random)
    _, p_layers = percentile(mean, same_layers)
    return (
        f"{statement(f'the top {heads}', 'all heads', lead)}. "
        f"Among {random.sizes['draw']} draws of {heads} random heads it is at percentile {place:.0f} ({format_p(p)}); "
        f"against random heads of the same layers it is {mean - float(same_layers.mean()):+.3f} "
        f"({format_p(p_layers)})."
    )


def ceiling(
    oracle: xr.DataArray, every: xr.DataArray, top: xr.DataArray, correlation: tuple[float, float], *, heads: int
) -> str:
    """How much there is to gain: scores (image) of the oracle's heads, of all heads and of a concept's top heads, and
    the rank `correlation`, over heads, of relevance and a head's own score, with its p."""
    gain, lead = (paired_difference(oracle, other, every.subject) for other in (every, top))
    return (
        f"{statement(f'the oracle of {heads} heads', 'all heads', gain)}, and "
        f"{statement('it', f'the top {heads}', lead)}. The rank correlation of relevance and the score of a head's own "
        f"map is {format_correlation(*correlation)}."
    )


def surface_answer(
    surface: xr.DataArray, chosen: Difference, precision: xr.DataArray, *, top: str, every: str, weighted: str
) -> str:
    """What the choice of k and of the threshold gives, and what selecting and weighting do without a threshold.

    `surface` (image, k, threshold) is of IoUs, `chosen` the lead over all heads of what is chosen on other words,
    `precision` (image, set) of average precisions, in which the sets have the names given.
    """
    k = int(surface.mean("image").max("threshold").idxmax("k"))
    of_set = {name: precision.sel(set=name) for name in (top, every, weighted)}
    selected = statement(f"the {top}", every, paired_difference(of_set[top], of_set[every], precision.subject))
    weighing = statement("weighting", f"the {top}", paired_difference(of_set[weighted], of_set[top], precision.subject))
    return (
        f"the mean IoU is highest at k = {k} of {surface.sizes['k']}; with k and threshold chosen on other words, "
        f"{statement('the chosen k', every, chosen)}. By average precision, {selected} and {weighing}."
    )


def listed(names: Sequence[str]) -> str:
    """How many, and which: "2 (Animals, Plants)"; "0" for none."""
    return f"{len(names)} ({', '.join(names)})" if names else "0"


def beyond(
    gains: Mapping[str, Difference], places: Mapping[str, int], correlation: tuple[float, float], *, heads: int
) -> str:
    """For how many concepts selection helps: `gains` of each concept's top heads over all heads, the `places` of its
    heads among those of all concepts, and the rank `correlation` of gain and concentration with its p."""
    better, worse = ([name for name, gain in gains.items() if direction(gain) == sign] for sign in (1, -1))
    first = [name for name, place in places.items() if place == 1]
    few = [name for name, gain in gains.items() if gain.too_few]
    unknown = f", with too few words to tell for {listed(few)}" if few else ""
    alike = format_correlation(*correlation) if len(gains) > 4 else f"not known: {len(gains)} concepts are too few"
    return (
        f"of {len(gains)} concepts, the own top {heads} heads beat all heads for {listed(better)} and trail them for "
        f"{listed(worse)}{unknown}. The best heads for a concept's words are its own for {listed(first)}. The rank "
        f"correlation of the gain and the concentration of the vector is {alike}."
    )


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


def own_meaning(ratios: xr.DataArray, own: Mapping[str, str]) -> str:
    """Whether each meaning's heads fall on it more than other sets do, from `attention_on`; `own`, meaning -> the set
    of its heads."""
    sentences = []
    for meaning, name in own.items():
        of_set = {str(s): ratios.sel(heads=s, mask=meaning).values for s in ratios["heads"].values}
        if (images := int(np.nan_to_num(of_set[name][3]))) < 6:
            sentences.append(f"{meaning} is in {images or 'no'} picture{'s' * (images > 1)}, too few to tell")
            continue
        means = {s: Interval(*values[:3]) for s, values in of_set.items()}
        others = ", ".join(f"{s} {interval}" for s, interval in means.items() if s != name)
        highest = "score highest" if name == max(means, key=lambda s: means[s].mean) else "do not score highest"
        sentences.append(f"on {meaning}, the heads for it {highest}: {name} {means[name]}, {others}")
    return "; ".join(sentences)


def detector(areas: Mapping[str, Interval]) -> str:
    """Whether the best of some detectors tells, from the areas under their ROC curves."""
    best = max(areas, key=lambda name: np.nan_to_num(areas[name].mean))
    if np.isnan(areas[best].mean):
        return "No word has pictures that were read right and others that were not: no detector can be scored."
    tells = "tells misread prompts apart" if areas[best].low > 0.5 else "is not clearly better than chance"
    return (
        f"The best of {len(areas)} detectors, {best}, {tells}: area under the ROC curve {areas[best]}. It is the best "
        "on the pictures that it is scored on, so its lead is a little optimistic."
    )


def generations(
    correlation: xr.DataArray, shared: xr.DataArray, scores: Mapping[str, xr.DataArray], *, heads: int
) -> str:
    """How many generations a head relevance vector needs, from what two of n generations agree on, (size), and from the
    mean IoU (size, draw), on each benchmark, of the top heads that n generations name."""
    sizes = sorted({int(shared["size"][0]), int(shared["size"][-1])})
    agreements = [
        f"two vectors of {n} generations each share {float(shared.sel(size=n)):.0%} of their top {heads} heads (rank "
        f"correlation {float(correlation.sel(size=n)):.2f})"
        for n in sizes
    ]
    sentences = [f"Over all concepts, {', and '.join(agreements)}."]
    for name, ious in scores.items():
        means, deviations = ious.mean("draw"), ious.std("draw")
        ends = [
            f"{float(means.sel(size=n)):.3f} ± {float(deviations.sel(size=n)):.3f} where {n} generations name them"
            for n in sizes
        ]
        sentences.append(f"On the {name} benchmark the mean IoU of the top {heads} heads is {_and(ends)}.")
    return " ".join(sentences)


def weakened(presence: Mapping[tuple[str, str, int], xr.Dataset], concept: str, other: str, *, heads: int) -> str:
    """What is left of a concept, and of another, when so many of its heads are off, from the `presence` in the pictures
    of (concept, order of the heads, number of heads off)."""
    sentences = []
    orders = (("none", 0), ("most relevant first", heads), ("least relevant first", heads))
    for measure in ("area", "score"):
        on, most, least = (presence[concept, *order][measure] for order in orders)
        before, after = (float(presence[other, *order][measure].mean()) for order in orders[:2])
        sentences.append(
            f"With {heads} heads off, the {measure} of {concept} is {float(most.mean()):.3f} if they are the most "
            f"relevant to it and {float(least.mean()):.3f} if the least, {float(on.mean()):.3f} with all heads on: "
            f"most less least relevant is {paired_difference(most, least, on.subject)}. Without the heads of "
            f"{concept}, the {measure} of {other} in their pictures goes from {before:.3f} to {after:.3f}."
        )
    return " ".join(sentences)


def pays_from(gains: Mapping[float, Interval]) -> str:
    """From which dose on, of those looked at, the 95 % interval of a gain is above 0: "clear from a dose of 0.5 on"."""
    doses = sorted(gains)
    paying = [dose for i, dose in enumerate(doses) if all(gains[d].low > 0 for d in doses[i:])]
    return f"clear from a dose of {paying[0]:g} on" if paying else "clear at none of the doses"


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
