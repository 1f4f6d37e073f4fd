"""A chapter's parameters become benchmarks, relevance and heads, checked before anything is run."""

import json

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from selattn_lib.maps.head_maps import HeadMaps
from selattn_lib.maps.relevance import HeadRelevance
from selattn_lib.studies import experiment as room
from selattn_lib.studies.generated import Study
from selattn_lib.studies.noised import KnownTruthStudy, MaskedStudy
from selattn_lib.studies.relevance import RelevanceStudy

RUN = []  # the studies that were run


@pytest.fixture(autouse=True)
def no_model(monkeypatch, tmp_path):
    """Studies that know their units and hold nothing but zeros."""
    RUN.clear()

    def maps_of(study):
        RUN.append(study)
        units = study.units()
        data = {
            "maps_2x2": (("image", "word", "head_2x2", "y_2x2", "x_2x2"), np.zeros((len(units), 1, 3, 2, 2))),
            "truth": (("image", "y", "x"), np.zeros((len(units), 4, 4), bool)),
        }
        coords = {key: ("image", [unit[key] for unit in units]) for key in ("subject", "seed")}
        coords |= {"word": ["subject"], "head_2x2": [0, 1, 2]}
        return HeadMaps(xr.Dataset(data, coords, {"height": 4, "width": 4, "model": study.model}))

    def votes_of(study):
        RUN.append(study)
        names = [f"up, layer: 0, head: {head}" for head in range(3)]
        coords = {"concept": ["Animals"], "head": names}
        votes = xr.DataArray([[[1, 2, 0]], [[0, 1, 2]]], coords, ("image", "concept", "head"))
        return HeadRelevance.from_counts(votes)

    for kind in (Study, KnownTruthStudy, MaskedStudy):
        monkeypatch.setattr(kind, "run", maps_of)
    monkeypatch.setattr(RelevanceStudy, "run", votes_of)


def test_the_benchmarks_the_relevance_and_the_heads_of_a_chapter():
    study = Study(words=["bear", "cat", "dog"], seeds=3, steps=7, batch=5)
    experiment = room.experiment(study, "2", "[0.3, 0.5, 0.4]", images=4)
    assert [type(run) for run in RUN] == [RelevanceStudy, Study, KnownTruthStudy]
    assert (RUN[0].images, RUN[0].steps, RUN[0].batch, RUN[2].batch) == (4, 7, 5, 5)
    assert experiment.heads == 2 and experiment.middle == 0.4
    assert experiment.ranking.tolist() == [1, 2, 0]
    assert experiment.top.tolist() == [1, 2] and experiment.bottom.tolist() == [2, 0]
    lines = str(experiment).splitlines()
    assert lines == [
        "generated: 9 images of 3 words on emoji-sd",
        "known truth: 100 images of 10 words on emoji-sd",
        "intervals hold the noise of the ranking, which was counted on 2 images",
    ]
    assert experiment.top_sets[0].values.tolist() == [0, 1, 1]
    assert experiment.bottom_sets[0].values.tolist() == [1, 0, 1]
    assert {tuple(order) for order in experiment.orders.values.tolist()} == {(1, 2, 0), (1, 0, 2), (2, 1, 0)}


def test_a_tie_at_the_edge_is_printed_once_and_not_warned_of(recwarn):
    votes = xr.DataArray([[5, 5, 1]], {"concept": ["Animals"]}, ("concept", "head"))
    experiment = room.Experiment({}, HeadRelevance.from_counts(votes), "Animals", [1, 2], [0.4])
    noise, *ties = str(experiment).splitlines()
    assert "leave out the noise" in noise and not recwarn.list
    assert [tie[:16] for tie in ties] == ["Animals, top 1: ", "Animals, bottom "]


def test_examples_are_the_first_images_of_some_words():
    words = ["bear", "bird", "cat", "cow", "dog"]
    experiment = room.experiment(Study(words=words, seeds=3), 2, [0.4])
    assert experiment.examples(words=2).tolist() == [0, 3]
    assert experiment.examples(words=2, each=2).tolist() == [0, 1, 3, 4]
    assert experiment.examples(words=2, start=-3).tolist() == [6, 9]
    assert experiment.examples(words=4, start=-6).tolist() == [0, 3, 6, 9]  # fewer than six words


def test_own_pictures_are_one_more_benchmark(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    square = {"segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]], "image_id": 1, "category_id": 1, "id": 1}
    source = tmp_path / "own.json"
    image = {"id": 1, "file_name": "one.png", "height": 8, "width": 8}
    categories = [{"id": 1, "name": "bear"}]
    source.write_text(json.dumps({"images": [image], "annotations": [square], "categories": categories}))
    benchmarks = room.run_benchmarks(Study(seeds=1), scenes=20, masks=str(source))
    assert list(benchmarks) == ["generated", "known truth", "own pictures"]
    assert benchmarks["known truth"].n_images == 20 and benchmarks["own pictures"].subjects.tolist() == ["bear"]


@pytest.mark.parametrize("heads, thresholds", [(0, [0.4]), (500, [0.4]), (2, [1.5])])
def test_a_bad_selection_stops_before_anything_is_run(heads, thresholds):
    with pytest.raises(ValueError, match="expected"):
        room.experiment(Study(), heads, thresholds)
    assert not RUN


def test_masks_that_are_not_there_stop_before_anything_is_run(tmp_path):
    with pytest.raises(ValueError):
        room.experiment(Study(), 2, [0.4], masks=str(tmp_path / "none.json"))
    assert not RUN
