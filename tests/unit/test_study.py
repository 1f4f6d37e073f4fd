"""Studies: validation in sentences, resuming, and the same bits whatever the order of work."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import cpu_offload_with_hook
from tiny_families import build_sdxl

from selattn_lib.maps.relevance import load_hrv
from selattn_lib.models.pipelines import load_pipeline
from selattn_lib.models.segmenters import Detection, Detector, nothing_in
from selattn_lib.studies.base import check_selection
from selattn_lib.studies.generated import DiagnosisStudy, Study
from selattn_lib.studies.noised import KnownTruthStudy
from selattn_lib.studies.relevance import RelevanceStudy, relevance_for


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELATTN_RUNS", str(tmp_path))
    return tmp_path


def small(**fields) -> Study:
    return Study(**{"words": ["bear", "cat"], "seeds": 2, "steps": 2, "batch": 2, **fields})


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"model": "nosuch"}, "no model 'nosuch'"),
        ({"concept": "Nosuch"}, "no concept 'Nosuch'"),
        ({"seeds": 0}, "seeds=0"),
        ({"steps": 0}, "steps=0"),
        ({"guidance": 0.5}, "guidance=0.5"),
        ({"template": "photo"}, "{word}"),
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


@pytest.mark.parametrize("heads, thresholds", [(0, [0.5]), (129, [0.5]), (True, [0.5]), (30, [1.5]), (30, [])])
def test_a_bad_selection_is_refused(heads: int, thresholds: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        check_selection(heads, thresholds, "emoji-sd")


def test_heads_are_counted_on_the_model(runs: Path) -> None:
    build_sdxl().save_pretrained(runs / "sdxl")
    assert check_selection([1300, 20], "[0.5]", str(runs / "sdxl")) == ([1300, 20], [0.5])
    with pytest.raises(ValueError, match="heads=1301: expected whole numbers from 1 to 1300, the heads of .*sdxl"):
        check_selection(1301, [0.5], str(runs / "sdxl"))


def test_the_paper_benchmark_is_the_default() -> None:
    study = Study()
    assert study.size == 100 and study.words[0] == "bear" and study.words[-1] == "zebra"
    assert study.units()[11] == {"prompt": "photo of a bird", "subject": "bird", "seed": 1}


def test_every_field_that_decides_bits_decides_the_folder() -> None:
    folders = {small().folder, small(steps=3).folder, small(batch=1).folder, small(words=["bear"]).folder}
    assert len(folders) == 4 and small().folder == small().folder


def test_an_interrupted_study_ends_as_an_unbroken_one(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = small().run()
    assert dict(whole.sizes)["image"] == 4 and whole.truth.dtype == bool and whole.image_rgb.dtype == np.uint8
    assert whole["maps_16x16"].dtype == np.float16 and len(whole["head_16x16"]) == 40

    monkeypatch.setenv("SELATTN_RUNS", str(runs / "again"))
    stopped = small()
    compute, batches = Study.compute, []

    def failing(self: Study, units: range):
        batches.append(list(units))
        if len(batches) == 2:
            raise KeyboardInterrupt
        return compute(self, units)

    monkeypatch.setattr(Study, "compute", failing)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    resumed = small().run()
    assert batches == [[0, 1], [2, 3], [2, 3]]
    assert resumed.identical(whole)
    small().run()
    assert len(batches) == 3, "a complete study computes nothing"


def test_known_truth_needs_no_sampling_and_knows_its_masks() -> None:
    found = KnownTruthStudy(scenes=4, batch=2, timesteps=(100, 500)).run()
    assert found.subject.values.tolist() == ["bear", "bird", "cat", "cow"]
    assert 0.05 < found.truth.values.mean() < 0.7
    assert 0 < float(found["maps_16x16"].max()) <= 1


def test_diagnosis_has_a_mask_for_each_meaning() -> None:
    found = DiagnosisStudy(seeds=2, steps=2, batch=2).run()
    assert {"truth_Animals", "truth_Electronics"} <= set(found.data_vars)
    with pytest.raises(ValueError, match="rat"):
        DiagnosisStudy(word="rat")


def test_relevance_does_not_depend_on_the_batch_and_splits_in_halves() -> None:
    study = RelevanceStudy(images=4, steps=2, batch=2)
    relevance = study.run()
    assert relevance.scores.sizes["head"] == 128
    voted = relevance.scores.sum("head").values
    np.testing.assert_allclose(voted[voted > 0], 128)
    votes = study.counts()
    assert votes.sizes["image"] == 4
    assert (votes.sum("concept") == votes.sum("concept").max()).all(), "one vote a call and head"
    assert len(set(study.prompts())) == 4


class Fake(Detector):
    """Says in turn: one, several, an empty mask, nothing."""

    def detect(self, images: list, phrases: list[str]) -> list[Detection]:
        shape, box = (images[0].height, images[0].width), np.array([1, 2, 3, 4], np.float32)
        full, empty = np.ones(shape, bool), np.zeros(shape, bool)
        said = [Detection(full, box, 0.9, 1), Detection(full, box, 0.8, 3), Detection(empty, box, 0.7, 1)]
        return [*said, nothing_in(images[3])][: len(images)]


def test_every_outcome_of_the_segmenter_shows_in_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selattn_lib.studies.base.load_segmenter", lambda name, device: Fake())
    found = small(batch=4, steps=1, segmenter="sam3").run()
    assert found["truth_outcome"].values.tolist() == ["found", "several found", "empty mask", "not found"]
    assert found["truth_detections"].values.tolist() == [1, 3, 1, 0]
    np.testing.assert_array_equal(found["truth_box"][:, 0], [1, 1, 1, np.nan])
    np.testing.assert_allclose(found["truth_score"], [0.9, 0.8, 0.7, np.nan])
    assert found.truth.any(("y", "x")).values.tolist() == [True, True, False, False]


def test_prompts_of_ones_own(runs: Path) -> None:
    (runs / "mine.txt").write_text("a cat asleep\n\n  two dogs at sea  \n")
    study = RelevanceStudy(images=6, classes=["tench", "quilt"], texts=str(runs / "mine.txt"))
    every = {"a photo of a tench.", "a photo of a quilt.", "a cat asleep", "two dogs at sea"}
    assert study.texts == ("a cat asleep", "two dogs at sea")
    assert set(study.prompts()[:4]) == every and study.prompts()[4:] == study.prompts()[:2]
    assert study.folder != RelevanceStudy(images=6).folder, "what is in the file decides the folder"
    (runs / "same.txt").write_text("a cat asleep\ntwo dogs at sea")
    assert study == RelevanceStudy(images=6, classes=["tench", "quilt"], texts=runs / "same.txt")
    paper = RelevanceStudy(images=1000, classes="imagenet").prompts()
    assert len(paper) == 1000 and {"a photo of a zebra.", "a photo of a great white shark."} <= set(paper)
    assert RelevanceStudy(model="sd14", images=2100).prompts() == [*paper, *paper, *paper[:100]]
    assert RelevanceStudy(model="sd14", images=2, texts=["a cat asleep"]).prompts() == ["a cat asleep"] * 2
    with pytest.raises(ValueError, match="texts='nosuch.txt': no file 'nosuch.txt': expected imagenet"):
        RelevanceStudy(texts="nosuch.txt")
    (runs / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="has no lines"):
        RelevanceStudy(classes=str(runs / "empty.txt"))


def test_head_relevance_of_another_model_is_refused(runs: Path) -> None:
    names = [f"down, layer: {layer}, head: {head}" for layer in range(13) for head in range(100)]
    np.save(runs / "hrv.npy", np.ones((34, 1300), np.float32))
    np.save(runs / "names.npy", np.array(names))
    assert load_hrv(runs).scores.shape == (34, 1300)
    for model in ("sd14", "emoji-sd"):
        with pytest.raises(ValueError, match=f"is about 1300 heads, .*; {model} has 128, .*: expected head relevance"):
            relevance_for(model, str(runs))
    assert relevance_for("sd14", "emoji-sd").scores.sizes["head"] == 128


def test_the_type_of_numbers_is_part_of_a_study_and_the_device_of_its_results() -> None:
    exact, coarse = (small(words=["bear"], seeds=1, steps=1, dtype=dtype) for dtype in ("fp32", "bf16"))
    assert exact.folder == small(words=["bear"], seeds=1, steps=1).folder != coarse.folder
    maps = [study.run()["maps_16x16"].values.astype(float) for study in (exact, coarse)]
    assert np.isfinite(maps[1]).all() and 0 < np.abs(maps[0] - maps[1]).max() < 0.2
    assert coarse.run()["device"].values.tolist() == ["cpu"]
    known = KnownTruthStudy(dtype="bf16", scenes=2, batch=2, timesteps=(100,)).run()
    assert np.isfinite(known["maps_16x16"].values.astype(float)).all()
    with pytest.raises(ValueError, match="dtype='fp8': .*'fp32', 'fp16' or 'bf16'"):
        small(dtype="fp8")


def test_words_may_come_as_papermill_hands_them_over() -> None:
    assert small(words="['bear', 'cat']").words == ("bear", "cat") and small(words="bear").words == ("bear",)
    assert len(small(words="[]").words) == 10


def test_parts_that_are_moved_in_when_called_give_the_same_bits(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `offload`, where accelerate wraps what is called; here from the CPU to the CPU."""
    studies = [small(seeds=1, steps=1), RelevanceStudy(images=2, steps=1, batch=2)]
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
