"""Sentences that chapters compute from their numbers, so that they stay true on another model or concept.

Scores are over images and carry the coordinate `subject`, by which intervals and tests draw them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr
from scipy.stats import binomtest

from .statistics import (
    Difference,
    Interval,
    bootstrap_mean,
    direction,
    format_p,
    paired_difference,
    percentile,
    statement,
)


def differences(scores: xr.DataArray, first: str, second: str) -> str:
    """A line a threshold: how far one set of heads is ahead of another, from scores (image, set, threshold)."""
    lines = []
    for threshold in scores["threshold"].values:
        one, other = (scores.sel(set=name, threshold=threshold) for name in (first, second))
        lines.append(f"threshold {threshold}: {first} less {second} = {paired_difference(one, other, scores.subject)}")
    return "\n".join(lines)


def best_numbers(curves: xr.DataArray) -> str:
    """A line a threshold: the number of heads with the highest mean, from scores (image, k, threshold)."""
    lines = []
    for threshold in curves["threshold"].values:
        mean = curves.sel(threshold=threshold).mean("image")
        best = f"best k = {int(mean.idxmax('k'))} (IoU {float(mean.max()):.3f})"
        lines.append(f"threshold {threshold}: {best}, all {mean.sizes['k']} heads {float(mean[-1]):.3f}")
    return "\n".join(lines)


def optimum(surface: xr.DataArray, plateau: xr.DataArray) -> str:
    """Where the mean of scores (image, k, threshold) is highest, and how far its `plateau` (k, threshold) goes."""
    mean = surface.mean("image")
    cell = mean.argmax(["k", "threshold"])  # type: ignore[call-overload]
    k, threshold = int(mean.k[cell["k"]]), float(mean.threshold[cell["threshold"]])
    ks = plateau.k[plateau.sel(threshold=threshold)].values
    thresholds = plateau.threshold[plateau.sel(k=k)].values
    return (
        f"highest at k = {k}, threshold {threshold} (mean IoU {float(mean.max()):.3f}); at this threshold k from "
        f"{ks.min()} to {ks.max()} cannot be told from it, and at this k thresholds from {thresholds.min()} to "
        f"{thresholds.max()}"
    )


def concept_heads(
    top: xr.DataArray, every: xr.DataArray, random: xr.DataArray, same_layers: xr.DataArray, *, heads: int
) -> str:
    """Whether a concept's top heads are more than random ones: `top` and `every` are scores (image) of these and of all
    heads, the others mean scores (draw) of as many random heads, and of random heads of the same layers."""
    place, p = percentile(float(top.mean()), random)
    _, p_layers = percentile(float(top.mean()), same_layers)
    return (
        f"{statement(f'the top {heads}', 'all heads', paired_difference(top, every, top.subject))}. "
        f"Among {random.sizes['draw']} draws of {heads} random heads it is at percentile {place:.0f} ({format_p(p)}); "
        f"against random heads of the same layers it is {float(top.mean() - same_layers.mean()):+.3f} "
        f"({format_p(p_layers)})."
    )


def ceiling(
    oracle: xr.DataArray, every: xr.DataArray, top: xr.DataArray, correlation: tuple[float, float], *, heads: int
) -> str:
    """How much there is to gain: scores (image) of the oracle's heads, of all heads and of a concept's top heads, and
    the rank `correlation`, over heads, of relevance and a head's own score, with its p."""
    gain, lead = (paired_difference(oracle, other, every.subject) for other in (every, top))
    rho, p = correlation
    return (
        f"{statement(f'the oracle of {heads} heads', 'all heads', gain)}, and "
        f"{statement('it', f'the top {heads}', lead)}. Relevance and the score of a head's own map have a rank "
        f"correlation of {rho:+.2f} ({format_p(p)})."
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
    rho, p = correlation
    return (
        f"of {len(gains)} concepts, the own top {heads} heads beat all heads for {listed(better)} and trail them for "
        f"{listed(worse)}. The best heads for a concept's words are its own for {listed(first)}. The gain and the "
        f"concentration of the vector have a rank correlation of {rho:+.2f} ({format_p(p)})."
    )


def share(right: int, total: int) -> tuple[str, float]:
    """A share with its 95 % Wilson interval, "30% [21%, 42%]", and the p of a binomial test against one half."""
    test = binomtest(right, total)
    low, high = test.proportion_ci(method="wilson")
    return f"{right / total:.0%} [{low:.0%}, {high:.0%}]", float(test.pvalue)


def own_meanings(log_ratios: np.ndarray) -> str:
    """Whether the maps of two concepts' heads fall on their own meanings, from log attention ratios (image, set): in
    how many pictures the first leans more to the first meaning than the second does, and each to its own."""
    if not len(log_ratios):
        return "no picture shows both meanings: nothing can be said of the maps"
    first, second = log_ratios[:, 0], log_ratios[:, 1]
    ordered, p = share(int((first > second).sum()), len(first))
    right, _ = share(int(((first > 0) & (second < 0)).sum()), len(first))
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
        if not np.isfinite(of_set[name][0]):
            sentences.append(f"{meaning} is in no picture")
            continue
        means = {s: Interval(*values[:3]) for s, values in of_set.items()}
        others = ", ".join(f"{s} {interval}" for s, interval in means.items() if s != name)
        lead = "lead" if name == max(means, key=lambda s: means[s].mean) else "do not lead"
        sentences.append(f"on {meaning}, the heads for it {lead}: {name} {means[name]}, {others}")
    return "; ".join(sentences)


def detector(areas: Mapping[str, Interval]) -> str:
    """Whether the best of some detectors tells, from the areas under their ROC curves."""
    best = max(areas, key=lambda name: areas[name].mean)
    tells = "tells misread prompts apart" if areas[best].low > 0.5 else "cannot be told from chance"
    return (
        f"The best of {len(areas)} detectors, {best}, {tells}: area under the ROC curve {areas[best]}. It is the best "
        "on the pictures that it is scored on, so its lead is a little optimistic."
    )


def generations(
    correlation: xr.DataArray, shared: xr.DataArray, scores: Mapping[str, xr.DataArray], *, heads: int
) -> str:
    """How many generations a head relevance vector needs, from what two of n generations agree on, (size), and from the
    mean IoU (size, draw), on each benchmark, of the top heads that n generations name."""
    few, many = int(shared["size"][0]), int(shared["size"][-1])
    agreements = [
        f"two vectors of {n} generations each share {float(shared.sel(size=n)):.0%} of their top {heads} heads (rank "
        f"correlation {float(correlation.sel(size=n)):.2f})"
        for n in (few, many)
    ]
    sentences = [f"Over all concepts, {agreements[0]}, and {agreements[1]}."]
    for name, ious in scores.items():
        ends = [f"{float(ious.sel(size=n).mean()):.3f} ± {float(ious.sel(size=n).std()):.3f}" for n in (few, many)]
        sentences.append(
            f"On the {name} benchmark the mean IoU of the top {heads} heads is {ends[0]} where {few} generations name "
            f"them and {ends[1]} where {many} do."
        )
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
    """From which dose on, of those looked at, the 95 % interval of a gain lies above 0: "from a dose of 0.5 on"."""
    doses = sorted(gains)
    paying = [dose for i, dose in enumerate(doses) if all(gains[d].low > 0 for d in doses[i:])]
    return f"from a dose of {paying[0]:g} on" if paying else "at none of the doses"


def planted_heads_answer(
    shares: Interval, gains: Mapping[str, Mapping[float, Interval]], order: Interval, *, few: int, n_heads: int
) -> str:
    """Whether head relevance finds planted heads, and what selecting pays: the share of them that are among its first
    `few` of `n_heads`; for each set of heads, its gain in average precision over all heads at each dose; and the share
    of scenes with two meanings of a word in which the maps of the meanings' planted heads are in order."""
    verb = "finds" if shares.low > few / n_heads else "does not find"
    paid = [f"{name} gain {of[max(of)]}, surely {pays_from(of)}" for name, of in gains.items()]
    return (
        f"Head relevance {verb} them: of the {few} heads planted for a concept, a share of {shares} are among its "
        f"first {few}, where chance gives {few / n_heads:.3f}. In average precision over all heads, {'; '.join(paid)}. "
        f"The maps of the heads planted for two meanings of a word are in order in a share of {order} of the scenes."
    )


def best_rule(gains: xr.DataArray, labelled: Sequence[str] = ("oracle",)) -> tuple[str, Interval]:
    """The rule (set) of the highest mean of gains (concept, set), those aside that need masks, and its interval over
    concepts. It is the best on the pictures that it is scored on, so its lead is a little optimistic."""
    name = str(gains.drop_sel(set=list(labelled)).mean("concept").idxmax("set").values)
    return name, bootstrap_mean(gains.sel(set=name))
