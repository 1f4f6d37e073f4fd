"""Tables of scores: what stands in which cell, and whose number it is."""

import numpy as np
import pytest
import xarray as xr

from selattn_lib.evaluation.baselines import centred_disc
from selattn_lib.evaluation.statistics import bootstrap_mean, paired_difference
from selattn_lib.evaluation.tables import benchmark_table, comparison_table, iou_table
from selattn_lib.maps.head_maps import HeadMaps


def test_comparison_table_is_paired_and_by_group():
    rng = np.random.default_rng(0)
    base, groups = rng.random(20), np.repeat(list("abcd"), 5)
    better = base + 0.1 + rng.normal(0, 0.01, 20)
    table = comparison_table({"all": base, "better": better}, groups, against="all")
    assert table.loc["all"].tolist() == [str(bootstrap_mean(base, groups)), "", "", ""]
    assert table.loc["better", "less all [95 %], p"] == str(paired_difference(better, base, groups))
    assert (
        table.loc["better", "less all [95 %], p"].startswith("+0.") and table.loc["better", "prompts ahead"] == "4 of 4"
    )
    assert table.columns[1] == "less all [95 %], p" and float(table.loc["better", "d"]) > 5
    same = comparison_table({"all": base, "same": base}, groups, against="all", score="precision")
    assert same.columns[0] == "precision [95 %]" and same.loc["same", "d"] == ""


def test_iou_table_keeps_our_numbers_and_the_papers_apart():
    table = iou_table(
        {"all heads (DAAM)": [(0.5, 0.4, 0.6)] * 2, "top 20": [(0.55, 0.45, 0.65)] * 2},
        [0.3, 0.5],
        model="emoji-sd",
        n_images=40,
        baselines={"centred disc": (0.3, 0.2, 0.4), "full frame": (0.2, 0.1, 0.3)},
        paper={"all heads (DAAM)": [0.7490, 0.6261]},
    )
    ours, theirs = table.columns
    assert "emoji-sd" in ours and "40 images" in ours
    assert "paper" in theirs and "SD v1.4" in theirs
    assert table.loc[("0.3", "all heads (DAAM)")].tolist() == ["0.500 [0.400, 0.600]", "0.7490"]
    assert table.loc[("0.5", "top 20"), theirs] == ""
    assert table.loc[("any", "full frame"), ours] == "0.200 [0.100, 0.300]"
    assert "<table" in table._repr_html_()
    with pytest.raises(ValueError, match="2 rows for the 1 thresholds"):
        iou_table({"a": [(0, 0, 0)] * 2}, [0.3], model="m", n_images=1, baselines={})


@pytest.fixture
def benchmark(maps) -> tuple[dict[str, xr.DataArray], HeadMaps]:
    """IoUs of two methods at two thresholds, one of them not the paper's, and the study they come from."""
    subjects = np.repeat(["bear", "cat", "cow"], 4)
    truth = np.stack([centred_disc(20, 30, 6)] * 12)
    dataset = maps.dataset.isel(image=[0] * 12).assign(truth=(("image", "y", "x"), truth))
    attrs = {"model": "emoji-sd", "concept": "Animals", "height": 20, "width": 30}
    study = HeadMaps(dataset.assign_coords(subject=("image", subjects)).assign_attrs(attrs))
    values = np.repeat(np.random.default_rng(0).random((3, 2)), 4, axis=0)
    first = xr.DataArray(values, dims=("image", "threshold"), coords={"threshold": [0.3, 0.35]})
    return {"top 30 heads": first, "heads of my own": first / 2}, study


def test_benchmark_table_has_intervals_by_subject_and_baselines(benchmark):
    ious, study = benchmark
    table = benchmark_table(ious, study)
    measured, _ = table.columns
    assert measured == "mean IoU [95 %], measured: emoji-sd, 12 images"
    for name, threshold in [("top 30 heads", 0.3), ("heads of my own", 0.35)]:
        interval = bootstrap_mean(ious[name].sel(threshold=threshold), study.subjects)
        assert table.loc[(f"{threshold}", name), measured] == str(interval)
    assert table.loc[("any", "centred disc, radius 6"), measured] == "1.000 [1.000, 1.000]"
    share = study.truth(0).mean()
    assert table.loc[("any", "full frame")].tolist() == [f"{share:.3f} [{share:.3f}, {share:.3f}]", ""]


def test_benchmark_table_prints_the_papers_numbers_only_where_it_has_some(benchmark):
    ious, study = benchmark
    paper = benchmark_table(ious, study)["mean IoU in the paper: SD v1.4, 100 images"]
    assert paper["0.3", "top 30 heads"] == "0.7698"
    assert set(paper.drop(("0.3", "top 30 heads"))) == {""}, "another threshold, other heads, baselines"
    without = [
        benchmark_table(ious, study, paper=False),
        benchmark_table(ious, HeadMaps(study.dataset.assign_attrs(concept="Colors"))),
        benchmark_table({"heads of my own": ious["heads of my own"]}, study),
    ]
    assert not any("paper" in column for table in without for column in table.columns)
