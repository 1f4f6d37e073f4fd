"""Tables of scores: what stands in which cell, and whose number it is."""

import re

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from selattn_lib.evaluation.baselines import centred_disc
from selattn_lib.evaluation.statistics import mean_interval, paired_difference, share_interval
from selattn_lib.evaluation.tables import Table, benchmark_table, chance_table, comparison_table, unbroken
from selattn_lib.maps.head_maps import HeadMaps


def test_comparison_table_is_paired_and_by_group():
    rng = np.random.default_rng(0)
    base, groups = rng.random(20), np.repeat(list("abcde"), 4)
    better = base + 0.1 + rng.normal(0, 0.01, 20)
    coords = {"set": ["all", "better", "same"], "subject": ("image", groups)}
    scores = xr.DataArray(np.stack([base, better, base], 1), coords, ("image", "set"))
    table = comparison_table(scores, against="all")
    assert table.loc["all"].tolist() == [str(mean_interval(base, groups)), "", "", ""]
    better_by = table.loc["better", "less all [95 %]"]
    assert better_by.startswith("+0.")
    p = table.loc["better", "p (≥\N{NO-BREAK SPACE}0.062)"]  # of five groups
    assert f"{better_by}, p = {p} (the lowest possible)" == str(paired_difference(better, base, groups))
    assert table.loc["better", "ahead"] == "5 of 5" and table.shape[1] == 4, "what fits a phone"
    assert table.loc["same"].tolist()[1:] == ["no difference", "", "0 of 5"]
    assert comparison_table(scores, against="all", score="precision").columns[0] == "precision [95 %]"


def test_a_score_that_is_hit_or_miss_has_the_interval_of_a_share():
    coords = {"set": ["all", "top"], "subject": ("image", np.repeat(list("abcdef"), 2))}
    hits = np.ones((12, 2))
    hits[0, 1] = 0
    table = comparison_table(xr.DataArray(hits, coords, ("image", "set")), against="all", score="pointing game")
    said = table["pointing game [95 %]"]
    assert said["all"] == str(share_interval(hits[:, 0], coords["subject"][1])) != "1.000 (all alike)"
    assert said["top"] == str(share_interval(hits[:, 1], coords["subject"][1])) and "1.0" not in said["top"]


@pytest.fixture
def benchmark(maps) -> tuple[xr.DataArray, HeadMaps]:
    """IoUs of two methods at two thresholds, one of them not the paper's, and the study they come from."""
    subjects = np.repeat(["bear", "cat", "cow"], 4)
    truth = np.stack([centred_disc(20, 30, 6)] * 12)
    dataset = maps.dataset.isel(image=[0] * 12).assign(truth=(("image", "y", "x"), truth))
    attrs = {"model": "emoji-sd", "concept": "Animals", "height": 20, "width": 30}
    study = HeadMaps(dataset.assign_coords(subject=("image", subjects)).assign_attrs(attrs))
    values = np.repeat(np.random.default_rng(0).random((3, 2)), 4, axis=0)
    coords = {"set": ["top 30 heads", "heads of my own"], "threshold": [0.3, 0.35]}
    return xr.DataArray(np.stack([values, values / 2], 1), coords, ("image", "set", "threshold")), study


def test_benchmark_table_has_intervals_by_subject_and_baselines(benchmark):
    scores, study = benchmark
    table = benchmark_table(scores, study)
    ours, theirs = table.columns
    assert (ours, theirs) == ("mean IoU [95 %]", "mean IoU in the paper")
    for name, threshold in [("top 30 heads", 0.3), ("heads of my own", 0.35)]:
        interval = mean_interval(scores.sel(set=name, threshold=threshold), study.subjects)
        assert table.loc[(f"{threshold}", name), ours] == str(interval)
    assert table.loc[("any", "centred disc, radius 6"), ours] == "1.000 (all alike)"
    share = study.truth(0).mean()
    assert table.loc[("any", "full frame")].tolist() == [f"{share:.3f} (all alike)", ""]
    assert "<table" in table._repr_html_()


def test_benchmark_table_prints_the_papers_numbers_only_where_it_has_some(benchmark):
    scores, study = benchmark
    paper = benchmark_table(scores, study)["mean IoU in the paper"]
    assert paper["0.3", "top 30 heads"] == "0.7698"
    assert set(paper.drop(("0.3", "top 30 heads"))) == {""}, "another threshold, other heads, baselines"
    without = [
        benchmark_table(scores, study, paper=False),
        benchmark_table(scores, HeadMaps(study.dataset.assign_attrs(concept="Colors"))),
        benchmark_table(scores.sel(set=["heads of my own"]), study),
    ]
    assert not any("paper" in column for table in without for column in table.columns)


def test_chance_table_says_where_a_score_stands_among_draws():
    scored = {("generated", 0.3): np.array([0.5, 0.7]), ("generated", 0.4): np.array([0.2, 0.2])}
    drawn = {case: np.linspace(0.5, 0.7, 5) for case in scored}
    table = chance_table(scored, drawn, ["benchmark", "threshold"], score="top 30 heads")
    assert table.index.names == ["benchmark", "threshold"] and table.columns[0] == "top 30 heads"
    assert table.loc[("generated", 0.3)].tolist() == ["0.600", "0.600 [0.505, 0.695]", "40", "0.667"]
    assert table.loc[("generated", 0.4)].tolist() == ["0.200", "0.600 [0.505, 0.695]", "0", "1.000"]


def test_a_table_has_a_caption_one_row_of_heads_without_an_empty_one_and_no_number_apart_from_its_interval():
    long = "mean of" + " many" * 20
    index = pd.MultiIndex.from_tuples([("0.3", "all heads"), ("0.3", long)], names=["threshold", "heads"])
    frame = pd.DataFrame({"mean IoU [95 %]": ["0.780 [0.728, 0.824]", "-0.100 [-0.200, -0.010]"], "n": [3, 4]}, index)
    html = Table(frame, "Table 2.1. All & some.")._repr_html_()
    head, body = html.split("</thead>")
    assert re.findall("<th>(.*?)</th>", head) == ["threshold", "heads", "mean IoU [95 %]", "n"]
    assert "<caption>Table 2.1. All &amp; some.</caption>" in head and head.count("<tr") == 1
    assert [re.findall("<t[hd]>(.*?)</t[hd]>", row) for row in body.split("<tr>")[1:]] == [
        ["0.3", "all heads", "0.780\N{NO-BREAK SPACE}[0.728,\N{NO-BREAK SPACE}0.824]", "3"],
        ["0.3", long, "-0.100\N{NO-BREAK SPACE}[-0.200,\N{NO-BREAK SPACE}-0.010]", "4"],
    ]
    assert unbroken("9 (Food and Beverages)") == "9 (Food and Beverages)"
    assert "0.780 [0.728, 0.824]" in repr(Table(frame, "Table 2.1."))
