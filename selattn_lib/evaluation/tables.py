"""Tables of scores, with the paper's beside them. All cells are text."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..maps.head_maps import HeadMaps
from .baselines import best_disc, centred_disc, full_frame
from .scores import iou
from .statistics import Interval, format_p, mean_interval, paired_difference, percentile, share_interval, spread

#: Mean IoU at thresholds 0.3, 0.4 and 0.5: the paper's Tables 1 to 3, Stable Diffusion v1.4, *Animals*, 100 images.
PAPER = {
    "all heads (DAAM)": {0.3: 0.7490, 0.4: 0.7540, 0.5: 0.6261},
    "top 20 heads": {0.3: 0.7436, 0.4: 0.7001, 0.5: 0.5386},
    "top 30 heads": {0.3: 0.7698, 0.4: 0.7765, 0.5: 0.6785},
    "top 40 heads": {0.3: 0.7669, 0.4: 0.7412, 0.5: 0.6315},
    "bottom 30 heads": {0.3: 0.6654, 0.4: 0.6172, 0.5: 0.4649},
}

#: Of the published vectors of Stable Diffusion v1.4: the share of a concept's votes in its first 30 heads, over the 16
#: concepts of objects. `python tests/benchmarks/published.py FOLDER` counts it.
SD14_VOTES = Interval(0.643, 0.582, 0.704)
#: Of the same: the share of the first 30 heads that two concepts have in common.
SD14_SHARED = 0.225


@dataclass(frozen=True)
class Table:
    """A table as chapters show it: a caption, one row of heads, and no number apart from its interval.

    Parameters
    ----------
    frame : pandas.DataFrame
        Of texts or numbers. The levels of its index become the first columns.
    caption : str
        Its number, what is in it, in which unit, and on which model it was measured.

    Examples
    --------
    >>> Table(pd.DataFrame({"mean IoU": ["0.780 [0.728, 0.824]"]}, pd.Index(["all"], name="heads")), "Table 1.1. IoU.")
    Table 1.1. IoU.
    heads              mean IoU
    all    0.780 [0.728, 0.824]
    """

    frame: pd.DataFrame
    caption: str

    def __post_init__(self) -> None:
        names = [name or "" for name in self.frame.index.names]
        flat = self.frame.rename_axis(index=names).reset_index().map(str).set_index(names[0])
        object.__setattr__(self, "frame", flat.rename_axis(index=None, columns=names[0]))

    def __repr__(self) -> str:
        return f"{self.caption}\n{self.frame.to_string()}"

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None):
            table = self.frame.map(unbroken).to_html(border=0)
        return table.replace("<thead>", f"<caption>{escape(self.caption)}</caption>\n  <thead>", 1)


def unbroken(text: str) -> str:
    """A number and its interval with no-break spaces between them; any other text as it is."""
    whole = re.match(r"[-+]?[\d.]+(, too few| (\[|±|\(no interval|\(all alike|\(the lowest))", text)
    return text.replace(" ", "\N{NO-BREAK SPACE}") if whole else text


def benchmark_table(scores: xr.DataArray, maps: HeadMaps, *, paper: bool = True) -> pd.DataFrame:
    """Mean IoU of sets of heads at each threshold, two baselines that see no picture, and the paper's numbers.

    Parameters
    ----------
    scores : xarray.DataArray (image, set, threshold), or (image, set, ranking, threshold)
        As `ious` gives them of named sets of heads, some of them by several rankings: see `mean_interval`.
    maps : HeadMaps
        What they were measured on. Intervals are over its subjects; baselines are the best centred disc and the full
        frame, on the same masks.
    paper : bool
        Whether the paper's numbers may stand beside: they do for *Animals*, at the paper's thresholds, for sets that
        are named as in `PAPER`.

    Returns
    -------
    pandas.DataFrame
        A row for each (threshold, set) and each baseline; cells such as "0.651 [0.623, 0.680]", and "0.7698".

    Examples
    --------
    >>> squares = np.zeros((2, 8, 8), bool)
    >>> squares[:, 2:6, 2:6] = True
    >>> maps = HeadMaps.from_grids([([0], squares[:, None, None])], ["bear"], (8, 8))
    >>> maps = maps.with_pictures(np.zeros((2, 8, 8, 3), np.uint8), truth=squares)
    >>> maps = HeadMaps(maps.dataset.assign_coords(subject=("image", ["bear", "cat"])))
    >>> from selattn_lib.evaluation.scores import ious
    >>> benchmark_table(ious(maps, {"all heads": "all"}, [0.4]), maps).index.tolist()
    [('0.4', 'all heads'), ('any', 'centred disc, radius 2'), ('any', 'full frame')]
    """
    groups, truth = maps.subjects, maps.truths["truth"].values.astype(bool)
    published = PAPER if paper and maps.dataset.attrs.get("concept") == "Animals" else {}
    rows: dict[tuple[str, str], list[str]] = {}
    for threshold in scores["threshold"].values.tolist():
        for name in scores["set"].values.tolist():
            mean = mean_interval(scores.sel(threshold=threshold, set=name), groups)
            theirs = published.get(name, {}).get(threshold)
            rows[f"{threshold:g}", name] = [str(mean), "" if theirs is None else f"{theirs:.4f}"]
    (radius, _), (height, width) = best_disc(truth), truth.shape[1:]
    disc = f"centred disc, radius {radius}"
    masks = {disc: centred_disc(height, width, radius), "full frame": full_frame(height, width)}
    for name, mask in masks.items():
        rows["any", name] = [str(mean_interval(iou(mask, truth), groups)), ""]
    index = pd.MultiIndex.from_tuples(rows, names=["threshold", "heads"])
    columns = ["mean IoU [95 %]", "mean IoU in the paper"]
    table = pd.DataFrame(list(rows.values()), index=index, columns=columns)
    return table if table[columns[1]].any() else table[columns[:1]]


def comparison_table(scores: xr.DataArray, *, against: str, score: str = "mean IoU") -> pd.DataFrame:
    """The mean of each set of heads, and its paired difference to one of them.

    Parameters
    ----------
    scores : xarray.DataArray (image, set), or (image, set, ranking)
        With the coordinate ``subject`` along the images, over which intervals and tests are.
    against : str
        The set that the others are compared with.
    score : str
        What the scores are, for the heading.

    Returns
    -------
    pandas.DataFrame
        A row a set: the mean, of scores that are all 0 or 1 with the interval of a share; the difference; its p, under
        a head that says how low it can be; and in how many prompts the set is ahead.

    Examples
    --------
    >>> coords = {"set": ["all", "top"], "subject": ("image", list("abcde"))}
    >>> scores = xr.DataArray([[0.5, 0.6], [0.6, 0.66], [0.7, 0.7], [0.6, 0.8], [0.5, 0.55]], coords, ("image", "set"))
    >>> print(*comparison_table(scores, against="all").loc["top"], sep="; ")
    0.662 [0.543, 0.781]; +0.082 [-0.011, +0.175]; 0.125; 4 of 5
    """
    groups, base = scores["subject"].values, scores.sel(set=against)
    rows = []
    for name in scores["set"].values.tolist():
        values = scores.sel(set=name)
        interval = share_interval if np.isin(values, (0, 1)).all() else mean_interval
        row = [str(interval(values, groups)), "", "", ""]
        if name != against:
            lead = (values - base).values.reshape(len(values), -1)[:, 0]
            ahead = pd.Series(lead).groupby(groups).mean() > 0
            difference = paired_difference(values, base, groups)
            p = "" if difference.none else format_p(difference.p).removeprefix("p = ")
            row[1:] = difference.parts[0], p, f"{ahead.sum()} of {len(ahead)}"
        rows.append(row)
    lowest = 2 / 2 ** len(np.unique(groups))
    p_head = f"p (≥\N{NO-BREAK SPACE}{lowest:.3f})" if lowest >= 0.001 else "p"
    columns = [f"{score} [95 %]", f"less {against} [95 %]", p_head, "ahead"]
    return pd.DataFrame(rows, index=pd.Index(scores["set"].values, name="heads"), columns=columns)


def chance_table(
    scored: Mapping[tuple[Any, ...], Any], drawn: Mapping[tuple[Any, ...], Any], names: Sequence[str], *, score: str
) -> pd.DataFrame:
    """Where the scores of chosen heads stand among those of random ones.

    Parameters
    ----------
    scored, drawn : mapping
        Case, a tuple -> scores (image), and mean scores (draw) of random heads.
    names : sequence of str
        What the parts of a case are, for the heading.
    score : str
        What the scores are, for the heading.

    Returns
    -------
    pandas.DataFrame
        A row a case: the mean score; the draws' mean with 95 % of them; the percentile, 50 in the middle; and p, the
        share of draws that reach the score, itself included.

    Examples
    --------
    >>> scored, drawn = ({("generated",): np.array(values)} for values in ([0.7, 0.8], [0.5, 0.6]))
    >>> chance_table(scored, drawn, ["benchmark"], score="mean IoU")["mean IoU"].tolist()
    ['0.750']
    """
    rows = []
    for case, scores in scored.items():
        place, p = percentile(float(scores.mean()), drawn[case])
        p_text = format_p(p).removeprefix("p = ")
        rows.append([f"{float(scores.mean()):.3f}", str(spread(drawn[case])), f"{place:.0f}", p_text])
    index = pd.MultiIndex.from_tuples(list(scored), names=names)
    return pd.DataFrame(rows, index=index, columns=[score, "random heads (95 % of draws)", "percentile", "p"])
