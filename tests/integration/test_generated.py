"""Studies of pictures that the model draws: validation in sentences, resuming, outcomes, windows, weakened heads."""

import json
import pickle
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from accelerate import cpu_offload_with_hook
from tiny_study import save_tiny_model, tiny_settings, tiny_study

from selattn_lib.maps.head_maps import HeadMaps
from selattn_lib.models.pipelines import load_pipeline
from selattn_lib.models.segmenters import Detection, load_segmenter, nothing_in
from selattn_lib.studies import base
from selattn_lib.studies.base import runs_folder
from selattn_lib.studies.generated import DiagnosisStudy, Study, WeakenedStudy, WindowStudy
from selattn_lib.studies.relevance import RelevanceStudy


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


load_once, load_segmenter_once = lru_cache(load_pipeline), lru_cache(load_segmenter)


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selattn_lib.studies.base.load_pipeline", load_once)
    monkeypatch.setattr("selattn_lib.studies.generated.load_segmenter", load_segmenter_once)


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELATTN_RUNS", str(tmp_path / "runs"))
    return tmp_path


TEMPLATES = ["photo", "a {word} in a {place}", "{", "{word:>9}", "{0} {word}", "{word.real}"]


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"model": "nosuch"}, "no model 'nosuch'"),
        ({"concept": "Nosuch"}, "no concept 'Nosuch'"),
        ({"seeds": 0}, "seeds=0"),
        ({"seeds": 10**8}, "seeds=100000000"),
        ({"steps": 0}, "steps=0"),
        ({"guidance": 0.5}, "guidance=0.5"),
        *(({"template": text}, "expected a prompt with {word} in it, and no other braces") for text in TEMPLATES),
        ({"guidance": float("inf")}, "guidance=inf"),
        ({"concept": ["Animals"]}, "no concept ['Animals']"),
        ({"words": 5}, "words=5"),
        ({"colour": "red"}, "colour"),
        ({"segmenter": "nosuch"}, "no segmenter 'nosuch'"),
        ({"revision": "abc"}, "revision 'abc'"),
        ({"model": "../../elsewhere"}, "no model '../../elsewhere'"),
    ],
)
def test_a_bad_field_is_named_in_one_sentence(fields: dict, said: str) -> None:
    with pytest.raises(ValueError) as error:
        Study(**fields)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_the_paper_benchmark_is_the_default() -> None:
    study = Study()
    assert study.size == 100 and study.words[0] == "bear" and study.words[-1] == "zebra"
    assert study.units()[11] == {"prompt": "photo of a bird", "subject": "bird", "seed": 1}


def test_every_field_that_decides_bits_decides_the_folder(model: Path) -> None:
    changes: list[dict[str, Any]] = [{}, {"steps": 3}, {"batch": 1}, {"words": ["bear"]}]
    assert len({tiny_study(model, **change).folder for change in changes}) == 4
    assert tiny_study(model).folder == tiny_study(model).folder


def test_an_interrupted_study_ends_as_an_unbroken_one(model: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tiny_study(model).run()
    assert whole.n_images == 4 and whole.truths["truth"].dtype == bool and whole.pictures.dtype == np.uint8
    assert whole.dataset["maps_16x16"].dtype == np.float16 and len(whole.grids[16, 16]) == 40

    monkeypatch.setenv("SELATTN_RUNS", str(runs / "again"))
    stopped = tiny_study(model)
    compute, batches = Study.compute, []

    def failing(self: Study, units: Sequence[int]) -> xr.Dataset:
        batches.append(list(units))
        if len(batches) == 2:
            raise KeyboardInterrupt
        return compute(self, units)

    monkeypatch.setattr(Study, "compute", failing)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    resumed = tiny_study(model).run()
    assert batches == [[0, 1], [2, 3], [2, 3]]
    assert resumed.dataset.identical(whole.dataset)
    tiny_study(model).run()
    assert len(batches) == 3, "a complete study computes nothing"


def test_what_is_sent_to_a_worker_gives_the_same_bits(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study travels as its kind and fields, and is built where it arrives."""
    jobs = []
    monkeypatch.setattr(base.runner, "run", lambda job, workers, bar: jobs.append(job) or job.compute([0, 1]))
    study = tiny_study(model, seeds=1)
    here = study.load_or_compute()
    sent = pickle.dumps(jobs[0].remote)
    assert len(sent) < 20_000, "without the model"
    there = pickle.loads(sent)([0, 1])
    assert there.drop_vars("device").identical(here.drop_vars("device"))


def test_no_memory_on_the_device_is_a_lack_of_memory(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compute, full = Study.compute, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    def crowded(self: Study, units: Sequence[int]) -> xr.Dataset:
        if len(units) > 1:
            raise full
        return compute(self, units)

    monkeypatch.setattr(Study, "compute", crowded)
    results = tiny_study(model, seeds=1).run().dataset
    assert results["batch"].values.tolist() == [1, 1]
    for full in (RuntimeError("could not create a primitive"), MemoryError("array")):  # type: ignore[assignment]
        results = tiny_study(model, seeds=1, guidance=2 + len(str(full))).run().dataset
        assert results["batch"].values.tolist() == [1, 1]
    full = RuntimeError("broken")  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="^broken$"):
        tiny_study(model).run()


def test_diagnosis_has_a_mask_for_each_meaning(model: Path) -> None:
    settings = {"model": str(model), "segmenter": "emoji-sd", "seeds": 2, "steps": 1, "batch": 2}
    results = DiagnosisStudy(**settings).run()
    assert set(results.truths) == {"Animals", "Electronics"}
    assert results.dataset["truth_Animals_outcome"].shape == (2,)
    with pytest.raises(ValueError, match="rat"):
        DiagnosisStudy(word="rat")
    with pytest.raises(ValueError, match="looked_for .'mouse'.: expected a phrase for each of .'Animals', 'Elec"):
        DiagnosisStudy(looked_for="mouse")
    with pytest.raises(ValueError, match="no concept 'Animals': expected one of Pets"):
        DiagnosisStudy(concepts={"Pets": ["dog"]})


@pytest.mark.parametrize(
    "settings, phrases",
    [
        ({}, ["mouse (Animals)", "mouse (Electronics)"]),
        ({"meanings": ["Animals", "Vehicles"]}, ["mouse (Animals)", "Vehicles"]),
        ({"segmenter": "sam3"}, ["mouse animal", "computer mouse"]),
        ({"segmenter": "sam3", "prompt": "a bat", "word": "bat"}, ["bat animals", "bat electronics"]),
        ({"segmenter": "sam3", "looked_for": "rodent, pointing device"}, ["rodent", "pointing device"]),
    ],
)
def test_each_meaning_of_the_word_is_looked_for_by_a_phrase_of_its_own(settings: dict, phrases: list[str]) -> None:
    study = DiagnosisStudy(**settings)
    assert list(study.phrases({}).values()) == phrases


def test_a_word_that_the_segmenter_does_not_know_is_said_before_drawing(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selattn_lib.studies.generated.generate", lambda *_, **__: pytest.fail("drawn"))
    with pytest.raises(ValueError, match="the embedded segmenter knows no 'lamp post': expected one of"):
        tiny_study(model, words=["bear", "lamp post"]).run()


class Fake:
    """Says in turn: one, several, an empty mask, nothing."""

    def detect(self, images: list, phrases: list[str]) -> list[Detection]:
        shape, box = (images[0].height, images[0].width), np.array([1, 2, 3, 4], np.float32)
        full, empty = np.ones(shape, bool), np.zeros(shape, bool)
        several = np.tile(box, (3, 1)), np.float32([0.8, 0.6, 0.4])
        said = [Detection(full, box, 0.9, 1), Detection(full, box, 0.8, 3, *several), Detection(empty, box, 0.7, 1)]
        return [*said, nothing_in(images[3])][: len(images)]


@pytest.mark.parametrize("kind, settings", [(Study, {}), (WindowStudy, {"windows": 2}), (WeakenedStudy, {})])
def test_every_outcome_of_the_segmenter_shows_in_the_results(
    model: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Study], settings: dict[str, Any]
) -> None:
    monkeypatch.setattr("selattn_lib.studies.generated.load_segmenter", lambda *_, **__: Fake())
    results = kind(**tiny_settings(model, batch=4, steps=2, segmenter="sam3"), **settings).run().dataset
    assert results["truth_outcome"].values.tolist() == ["found", "several found", "empty mask", "not found"]
    assert results["truth_detections"].values.tolist() == [1, 3, 1, 0]
    np.testing.assert_array_equal(results["truth_box"][:, 0], [1, 1, 1, np.nan])
    np.testing.assert_allclose(results["truth_score"], [0.9, 0.8, 0.7, np.nan])
    assert results.truth.any(("y", "x")).values.tolist() == [True, True, False, False]
    assert results["truth_boxes"].shape == (4, 100, 4) and results["truth_boxes"][1, 2].values.tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(results["truth_scores"][1, :4], np.float32([0.8, 0.6, 0.4, np.nan]))
    assert list(HeadMaps(results).truths) == ["truth"]


def test_what_a_mask_is_of_decides_the_folder_where_a_segmenter_can_tell() -> None:
    every, best = (Study(model="sd14", instances=instances, revision="r") for instances in ("all", "best"))
    assert every.decisive()["instances"] == "all" and every.folder != best.folder
    fields = "batch concept dtype guidance model revision seeds segmenter segmenter_weights steps template words"
    assert sorted(Study().decisive()) == fields.split(), "studies of the embedded segmenter stay where they were"
    with pytest.raises(ValueError, match="instances='best' with the segmenter emoji-sd: expected all"):
        Study(instances="best")


def test_windows_average_to_the_study_without(model: Path) -> None:
    settings = tiny_settings(model, words=["bear"], steps=3)
    whole, parts = Study(**settings).run(), WindowStudy(**settings, windows=2).run()
    assert parts.dataset["maps_16x16"].dims[:3] == ("image", "word", "window") and parts.dataset.sizes["window"] == 2
    first, last = parts.dataset["from_timestep"], parts.dataset["to_timestep"]
    assert first[0] > last[0] > last[1]
    np.testing.assert_array_equal(parts.pictures, whole.pictures)
    for name in whole.dataset.data_vars:
        if not str(name).startswith("maps"):
            np.testing.assert_array_equal(parts.dataset[name], whole.dataset[name])
    for name in ("maps_16x16", "maps_2x2"):  # 4 calls (PNDM's 3 + 1) in two windows
        np.testing.assert_allclose(parts.dataset[name].astype(float).mean("window"), whole.dataset[name], atol=1e-3)
    with pytest.raises(ValueError, match="windows=9: expected at most 4"):
        WindowStudy(**settings, windows=9).run()


def test_weakened_heads_change_the_pictures(model: Path) -> None:
    settings = tiny_settings(model, words=["bear"], seeds=1)
    plain, same = Study(**settings).run(), WeakenedStudy(**settings, weakened=[0, 1], scale=1).run()
    np.testing.assert_array_equal(plain.pictures, same.pictures)
    off = WeakenedStudy(**settings, weakened=np.arange(64))
    assert (off.run().pictures != plain.pictures).any()
    assert off.folder == WeakenedStudy(**settings, weakened=list(range(64))[::-1]).folder
    words = WeakenedStudy(**settings, weakened=np.arange(64), scale=-2, tokens="words")
    assert (words.run().pictures != off.run().pictures).any() and words.decisive()["tokens"] == "words"
    assert "tokens" not in off.decisive(), "studies of before stay where they were"
    with pytest.raises(ValueError, match="weakened|heads \\[128\\] do not exist"):
        WeakenedStudy(**settings, weakened=[128])


def test_concepts_of_ones_own(runs: Path) -> None:
    (runs / "mine.yaml").write_text("Pets: [Dog, Cat]\n")
    study = Study(concept="Pets", concepts=str(runs / "mine.yaml"))
    assert study.words == ("dog", "cat")
    before = study.folder
    (runs / "mine.yaml").write_text("Pets: [Dog, Cat]\nWild: [Bear]\n")
    assert Study(concept="Pets", concepts=runs / "mine.yaml").folder == before, "another concept decides nothing here"
    (runs / "mine.yaml").write_text("Pets: [Dog, Mouse]\n")
    assert Study(concept="Pets", concepts=runs / "mine.yaml").folder != before
    with pytest.raises(ValueError, match="no concept 'Animals': expected one of Pets"):
        Study(concepts=runs / "mine.yaml")
    (runs / "mine.yaml").write_text("Pets: Dog\n")
    with pytest.raises(ValueError, match="list of words"):
        Study(concept="Pets", concepts=runs / "mine.yaml")


def test_the_type_of_numbers_is_part_of_a_study_and_the_device_of_its_results(model: Path) -> None:
    exact, coarse = (tiny_study(model, words=["bear"], seeds=1, dtype=dtype) for dtype in ("fp32", "bf16"))
    assert exact.folder == tiny_study(model, words=["bear"], seeds=1).folder != coarse.folder
    maps = [study.run().dataset["maps_16x16"].values.astype(float) for study in (exact, coarse)]
    assert np.isfinite(maps[1]).all() and 0 < np.abs(maps[0] - maps[1]).max() < 0.2
    assert coarse.run().dataset["device"].values.tolist() == ["cpu"]
    with pytest.raises(ValueError, match="dtype='fp8': .*'fp32', 'fp16' or 'bf16'"):
        tiny_study(model, dtype="fp8")


def test_an_empty_variable_names_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELATTN_RUNS", "")
    assert runs_folder() == Path("runs")


def test_a_model_of_damaged_files_is_said_to_be(model: Path, runs: Path) -> None:
    model = Path(shutil.copytree(model, runs / "damaged"))
    index = json.loads((model / "model_index.json").read_text())
    for content in ("{", "[]", json.dumps({**index, "unet": None})):
        (model / "model_index.json").write_text(content)
        with pytest.raises((OSError, ValueError), match="a whole copy of the model|no unet and no transformer"):
            tiny_study(model).pipe  # noqa: B018


def test_words_may_come_as_papermill_hands_them_over() -> None:
    assert Study(words="['bear', 'cat']").words == ("bear", "cat") and Study(words="bear").words == ("bear",)
    assert len(Study(words="[]").words) == 10


def test_studies_on_one_model_load_it_once_and_another_model_takes_its_place(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[tuple[str, torch.dtype]] = []

    def load(name: str, *, dtype: torch.dtype, **_: Any) -> object:
        assert not base.LOADED, "the memory of the one before is given back first"
        loaded.append((name, dtype))
        return object()

    monkeypatch.setattr(base, "LOADED", {})
    monkeypatch.setattr(base, "load_pipeline", load)
    first = tiny_study(model).pipe
    assert tiny_study(model, seeds=1, steps=3).pipe is first
    assert Study().pipe is Study(words=["cat"]).pipe is not first
    assert Study(dtype="bf16").pipe is not tiny_study(model).pipe is not first
    half, whole = torch.bfloat16, torch.float32
    assert loaded == [(str(model), whole), ("emoji-sd", whole), ("emoji-sd", half), (str(model), whole)]


def test_parts_that_are_moved_in_when_called_give_the_same_bits(
    model: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `offload`, where accelerate wraps what is called; here from the CPU to the CPU."""
    few: dict[str, Any] = {"model": str(model), "images": 2, "steps": 1, "batch": 2, "texts": ["photo of a cat"]}
    studies = [tiny_study(model, seeds=1), RelevanceStudy(**few, concepts={"Pets": ["dog"], "Wild": ["bear"]})]
    whole = [study.load_or_compute().load() for study in studies]

    def load(name: str, *, offload: bool, **settings: Any) -> Any:
        assert offload
        pipe = load_pipeline(name, **settings)
        for part in (pipe.text_encoder, pipe.unet, pipe.vae):
            cpu_offload_with_hook(part, "cpu")
        return pipe

    monkeypatch.setenv("SELATTN_RUNS", str(runs / "again"))
    monkeypatch.setenv("SELATTN_OFFLOAD", "1")
    monkeypatch.setattr("selattn_lib.studies.base.load_pipeline", load)
    for study, expected in zip(studies, whole, strict=True):
        assert type(study)(**study.model_dump()).load_or_compute().identical(expected)
