"""`emoji-control` by name, whole or in part, wherever `emoji-sd` goes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from selattn_lib.concepts import load_concepts
from selattn_lib.emoji.control import DELTA, PLANTED, planted_heads
from selattn_lib.emoji.segmenter import CONCEPTS
from selattn_lib.explorers.workbench import Workbench
from selattn_lib.maps.relevance import load_hrv
from selattn_lib.models.families import cross_attention_heads
from selattn_lib.models.pipelines import (
    at_dose,
    dose_of,
    in_embedded_world,
    load_pipeline,
    model_source,
    network_layout,
)
from selattn_lib.publishing import notebooks
from selattn_lib.studies.base import concepts_of, guidance_of
from selattn_lib.studies.checks import check_selection
from selattn_lib.studies.experiment import run_benchmarks
from selattn_lib.studies.generated import DiagnosisStudy, Study
from selattn_lib.studies.relevance import RelevanceStudy, relevance_for

ROOT, HALF = Path(__file__).parents[2], "emoji-control@0.5"


def test_what_ships_is_small_and_safe() -> None:
    assert DELTA.stat().st_size < 4e6
    assert {path.suffix for path in PLANTED.iterdir()} == {".safetensors", ".json", ".npz"}
    assert {tensor.dtype for tensor in load_file(DELTA).values()} == {torch.float16}


def test_the_planted_heads_are_four_a_concept_on_the_two_finest_grids() -> None:
    planted, layers = planted_heads(), cross_attention_heads(network_layout("emoji-control"))
    strides = {layer.first + h: layer.stride for layer in layers for h in range(layer.n_heads)}
    assert list(planted) == CONCEPTS and set(planted) <= set(load_hrv("emoji-control").scores["concept"].values)
    assert all(sorted(strides[head] for head in heads) == [1, 1, 2, 2] for heads in planted.values())
    assert len({head for heads in planted.values() for head in heads}) == 64
    rows = json.loads((PLANTED / "planted.json").read_text()).values()
    assert all(row["names"] == [layers.names[head] for head in row["heads"]] for row in rows)


def test_a_dose_is_a_place_on_the_line_between_the_two_models() -> None:
    natural, half, whole = (
        load_pipeline(name, device="cpu").unet.state_dict() for name in ("emoji-sd", HALF, "emoji-control")
    )
    changed = {name for name, tensor in whole.items() if not torch.equal(tensor, natural[name])}
    assert changed == set(load_file(DELTA))
    for name in changed:
        torch.testing.assert_close(half[name], (natural[name] + whole[name]) / 2)
    assert all(torch.equal(half[name], natural[name]) for name in set(whole) - changed)


def test_doses_in_names() -> None:
    for dose in (0, 0.25, 1):
        assert dose_of(at_dose(dose)) == dose
    assert [at_dose(dose) for dose in (0, 1)] == ["emoji-sd", "emoji-control"]
    assert not any(map(in_embedded_world, ("sd14", "owner/emoji-control", "emoji-sd@0.5", "")))
    for wrong in ("2", "-1", "half", "1.5", "nan", "0.", "1e0"):
        with pytest.raises(ValueError, match=f"'emoji-control@{wrong}': expected a dose from 0 to 1 after the @, such"):
            model_source(f"emoji-control@{wrong}")


def test_a_study_of_the_control_is_one_of_the_embedded_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELATTN_RUNS", str(tmp_path))
    study = Study(model=HALF, words=["bear"], seeds=1, steps=1)
    assert study.guidance == guidance_of(HALF) == 3 and study.segmenter == "emoji-sd"
    assert RelevanceStudy(model=HALF).prompts() == RelevanceStudy().prompts()
    assert DiagnosisStudy(model="emoji-control").looked_for == DiagnosisStudy().looked_for
    assert concepts_of("emoji-control") == load_concepts("emoji-sd")
    assert check_selection(30, 0.4, HALF) == (30, [0.4])
    benchmarks = run_benchmarks(study, scenes=1)
    assert benchmarks["known truth"].model == benchmarks["generated"].model == HALF
    natural = run_benchmarks(Study(words=["bear"], seeds=1, steps=1), scenes=1)
    for name, maps in benchmarks.items():
        assert np.abs(maps.dataset["maps_16x16"].values - natural[name].dataset["maps_16x16"].values).max() > 0.01


def test_a_study_knows_what_was_planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [Study(model=name).folder for name in ("emoji-sd", HALF, "emoji-control")]
    assert len(set(folders)) == 3
    other = tmp_path / "delta.safetensors"
    other.write_bytes(DELTA.read_bytes() + b" ")
    monkeypatch.setattr("selattn_lib.studies.base.DELTA", other)
    again = [Study(model=name).folder for name in ("emoji-sd", HALF, "emoji-control")]
    assert again[0] == folders[0] and again[1] != folders[1] and again[2] != folders[2]


def test_its_head_relevance_ships() -> None:
    assert relevance_for("emoji-control", "emoji-control").scores.sizes["head"] == 128
    assert not np.array_equal(load_hrv("emoji-control").scores, load_hrv("emoji-sd").scores)
    with pytest.raises(FileNotFoundError, match=HALF):
        load_hrv(HALF)
    assert Workbench("emoji-control").relevance.scores.equals(load_hrv("emoji-control").scores)
    assert Workbench(HALF).relevance is None


def test_other_planted_heads_make_the_chapters_that_speak_of_them_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chapters = [next((ROOT / "notebooks").glob(f"{number}_*.ipynb")) for number in ("02", "14")]
    before = [notebooks.fingerprint(chapter, {}) for chapter in chapters]
    monkeypatch.setattr(notebooks, "digest_of_control", lambda library: "another")
    after = [notebooks.fingerprint(chapter, {}) for chapter in chapters]
    assert before[0] == after[0] and before[1] != after[1]
