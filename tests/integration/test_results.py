"""A finished study's results, out of its folder alone."""

import json
import shutil
from pathlib import Path

import pytest
from tiny_study import save_tiny_model, tiny_study
from voc import voc

import selattn_lib as sa
from selattn_lib.studies.noised import MaskedStudy
from selattn_lib.studies.relevance import RelevanceStudy


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELATTN_RUNS", str(tmp_path / "runs"))
    return save_tiny_model(tmp_path / "model")


def test_results_load_without_the_model_and_the_pictures(model: Path, tmp_path: Path) -> None:
    (tmp_path / "voc").mkdir()
    few = {"model": str(model), "images": 2, "steps": 1, "texts": ["photo of a cat"]}
    relevance = RelevanceStudy(**few, concepts={"Pets": ["dog"], "Wild": ["bear"]})
    pictures = MaskedStudy(model=str(model), source=voc(tmp_path / "voc", 2), template="photo of a {word}")
    studies = [tiny_study(model, seeds=1), pictures]
    results, votes = [study.run().dataset.load() for study in studies], relevance.run()
    folders = [shutil.move(study.folder, tmp_path / f"moved {i}") for i, study in enumerate([*studies, relevance])]
    shutil.rmtree(model)
    shutil.rmtree(tmp_path / "voc")
    for folder, expected in zip(folders, results, strict=False):
        loaded = sa.load(folder)
        assert isinstance(loaded, sa.HeadMaps) and loaded.dataset.identical(expected)
    loaded = sa.load(str(folders[2]))
    assert isinstance(loaded, sa.HeadRelevance) and loaded.scores.identical(votes.scores)


def test_nothing_is_written_to_a_folder_to_read_only(model: Path) -> None:
    study = tiny_study(model, seeds=1)
    study.run()
    before = {path: path.stat().st_mtime_ns for path in [study.folder, *study.folder.rglob("*")]}
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    sa.load(study.folder)
    assert {path: path.stat().st_mtime_ns for path in [study.folder, *study.folder.rglob("*")]} == before
    for path in before:
        path.chmod(0o755)


def test_what_is_no_finished_study_is_refused_in_one_sentence(model: Path, tmp_path: Path) -> None:
    study = tiny_study(model, seeds=1)
    with pytest.raises(FileNotFoundError, match="no study in .*: expected a folder with study.json in it"):
        sa.load(tmp_path)
    study.run()
    (study.folder / "images" / "00001.png").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="lacks 1 of 2 images"):
        sa.load(study.folder)
    description = json.loads((study.folder / "study.json").read_text())
    (study.folder / "study.json").write_text(json.dumps({**description, "format": 2}))
    with pytest.raises(ValueError, match="is of format 2: expected 3"):
        sa.load(study.folder)
    for content in (
        "{",
        "[]",
        "{}",
        json.dumps({**description, "size": "many"}),
        json.dumps({**description, "size": 1}),
    ):
        (study.folder / "study.json").write_text(content)
        with pytest.raises(OSError, match="is damaged .*: delete it, and run the study again"):
            sa.load(study.folder)
