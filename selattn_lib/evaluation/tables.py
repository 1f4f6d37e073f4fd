"""Tables of scores, with the paper's beside them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from ..maps.head_maps import HeadMaps
from .baselines import best_disc, centred_disc, full_frame
from .scores import iou
from .statistics import Interval, bootstrap_mean, effect_size, paired_difference


def comparison_table(ious: Mapping[str, Any], groups: Any, *, against: str, score: str = "mean IoU") -> pd.DataFrame:
    """One row a method: its mean with the 95 % interval, and the paired difference to the method `against` with
    interval, p, Cohen's d and the number of groups (prompts) in which it is ahead.

    `ious` maps a method to (image) values of `score`. Intervals and tests draw whole groups. All cells are text.
    """
    base, groups = np.asarray(ious[against], dtype=float), np.asarray(groups)
    rows = []
    for name, values in ious.items():
        values = np.asarray(values, dtype=float)
        row = [str(bootstrap_mean(values, groups))]
        if name != against:
            size = effect_size(values, base, groups)
            means = pd.Series(values - base).groupby(groups).mean()
            row += [str(paired_difference(values, base, groups)), "" if np.isnan(size) else f"{size:+.2f}"]
            row += [f"{(means > 0).sum()} of {len(means)}"]
        rows.append(row + [""] * (4 - len(row)))
    columns = [f"{score} [95 %]", f"less {against} [95 %], p", "d", "prompts ahead"]
    return pd.DataFrame(rows, index=pd.Index(list(ious), name="heads"), columns=columns)


def iou_table(
    measured: Mapping[str, Any],
    thresholds: Sequence[float],
    *,
    model: str,
    n_images: int,
    baselines: Mapping[str, Any],
    paper: Mapping[str, Sequence[float]] | None = None,
) -> pd.DataFrame:
    """Mean IoU, one row a (threshold, method), measured and the paper's in separate columns.

    `measured` maps a method to (threshold, 3) means with the ends of their intervals; `baselines` maps a
    baseline, "centred disc" or "full frame", to its (mean, low, high), which has no threshold; `paper` maps a
    method to the paper's mean at each threshold. All cells are text: "0.651 [0.623, 0.680]", "" if none.
    """
    for name, values in {**measured, **(paper or {})}.items():
        if len(values) != len(thresholds):
            raise ValueError(f"{name!r} has {len(values)} rows for the {len(thresholds)} thresholds {thresholds}")
    rows: dict[tuple[str, str], list[str]] = {}
    for i, threshold in enumerate(thresholds):
        for name, values in measured.items():
            published = paper[name][i] if paper and name in paper else np.nan
            rows[f"{threshold:g}", name] = [
                str(Interval(*values[i])),
                "" if np.isnan(published) else f"{published:.4f}",
            ]
    for name, values in baselines.items():
        rows["any", name] = [str(Interval(*values)), ""]
    columns = [f"mean IoU [95 %], measured: {model}, {n_images} images", "mean IoU in the paper: SD v1.4, 100 images"]
    index = pd.MultiIndex.from_tuples(rows, names=["threshold", "heads"])
    return pd.DataFrame(list(rows.values()), index=index, columns=columns).iloc[:, : 2 if paper else 1]


# Mean IoU at thresholds 0.3, 0.4 and 0.5: the paper's Tables 1 to 3, Stable Diffusion v1.4, *Animals*, 100 images.
PAPER = {
    "all heads (DAAM)": {0.3: 0.7490, 0.4: 0.7540, 0.5: 0.6261},
    "top 20 heads": {0.3: 0.7436, 0.4: 0.7001, 0.5: 0.5386},
    "top 30 heads": {0.3: 0.7698, 0.4: 0.7765, 0.5: 0.6785},
    "top 40 heads": {0.3: 0.7669, 0.4: 0.7412, 0.5: 0.6315},
    "bottom 30 heads": {0.3: 0.6654, 0.4: 0.6172, 0.5: 0.4649},
}


def benchmark_table(ious: Mapping[str, xr.DataArray], maps: HeadMaps, *, paper: bool = True) -> pd.DataFrame:
    """`iou_table` of a study: `ious` maps a method to its IoU (image, threshold), `maps` is what it was measured on.

    Intervals draw whole subjects. Baselines: the best centred disc and the full frame on the same masks. The paper's
    numbers stand beside where it has some: for *Animals*, its thresholds and methods named as in `PAPER`, and unless
    `paper` is False.
    """
    groups, truth = maps.subjects, maps.truths["truth"].values.astype(bool)
    thresholds = [float(t) for t in next(iter(ious.values()))["threshold"].values]
    measured = {
        name: [bootstrap_mean(scores.sel(threshold=t), groups) for t in thresholds] for name, scores in ious.items()
    }
    radius, _ = best_disc(truth)
    height, width = truth.shape[1:]
    masks = {
        f"centred disc, radius {radius}": centred_disc(height, width, radius),
        "full frame": full_frame(height, width),
    }
    baselines = {name: bootstrap_mean(iou(mask, truth), groups) for name, mask in masks.items()}
    published = {
        name: [PAPER[name].get(t, float("nan")) for t in thresholds]
        for name in measured
        if paper and name in PAPER and maps.dataset.attrs.get("concept") == "Animals"
    }
    return iou_table(
        measured, thresholds, model=maps.model, n_images=maps.n_images, baselines=baselines, paper=published
    )
