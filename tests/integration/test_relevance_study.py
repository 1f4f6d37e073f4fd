"""The study of head relevance."""

from pathlib import Path

import numpy as np
import pytest
from tiny_study import save_tiny_model

from selattn_lib.maps.relevance import load_hrv
from selattn_lib.studies.relevance import RelevanceStudy, relevance_for


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELATTN_RUNS", str(tmp_path / "runs"))
    return tmp_path


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


def test_what_the_shipped_relevance_was_counted_by_is_not_counted_again(runs: Path) -> None:
    shipped, study = load_hrv("emoji-sd"), RelevanceStudy()
    assert relevance_for("emoji-sd", batch=1).votes.equals(shipped.votes) and not (runs / "runs").exists()
    assert shipped.votes is not None and shipped.votes.sizes["image"] == study.images
    first = study.compute([0])["counts"].isel(image=0).values
    assert np.mean(first == shipped.votes[0].values) > 0.99, "but for the last bits of another batch or processor"
    for other in ({"images": 81}, {"seed": 1}, {"start_token": True}, {"concepts": {"Animals": ["bear"]}}):
        assert not RelevanceStudy(**other).is_shipped, other
    assert not RelevanceStudy(model="emoji-control@0.5").is_shipped


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


def test_the_name_of_saved_relevance_may_be_a_number(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """papermill hands `-p hrv 2024` over as a number."""
    monkeypatch.chdir(runs)
    names = load_hrv("emoji-sd").scores["head"].values
    Path("2024").mkdir()
    np.save("2024/hrv.npy", np.ones((34, 128), np.float32))
    np.save("2024/names.npy", names)
    assert relevance_for("emoji-sd", 2024).scores.shape == (34, 128)  # type: ignore[arg-type]


def test_head_relevance_of_another_model_is_refused(runs: Path) -> None:
    names = [f"down, layer: {layer}, head: {head}" for layer in range(13) for head in range(100)]
    np.save(runs / "hrv.npy", np.ones((34, 1300), np.float32))
    np.save(runs / "names.npy", np.array(names))
    assert load_hrv(runs).scores.shape == (34, 1300)
    for model in ("sd14", "emoji-sd"):
        with pytest.raises(ValueError, match=f"is about 1300 heads, .*; {model} has 128, .*: expected head relevance"):
            relevance_for(model, str(runs))
    assert relevance_for("sd14", "emoji-sd").scores.sizes["head"] == 128


def test_concepts_come_from_a_file_whose_content_decides_the_folder(runs: Path) -> None:
    model = str(save_tiny_model(runs / "model"))
    (runs / "mine.yaml").write_text("Pets: [dog, cat]\nWild: [bear]\n")
    settings = {"model": model, "images": 2, "steps": 1, "texts": ["photo of a bear"]}
    study = RelevanceStudy(**settings, concepts=runs / "mine.yaml")
    assert study == RelevanceStudy(**settings, concepts={"Pets": ["dog", "cat"], "Wild": ["bear"]})
    assert study.folder == RelevanceStudy(**study.model_dump()).folder != RelevanceStudy(**settings).folder
    assert relevance_for(**settings, concepts=str(runs / "mine.yaml")).scores["concept"].values.tolist() == [
        "Pets",
        "Wild",
    ]
    (runs / "mine.yaml").write_text("Wild: [bear]\nPets: [dog, cat]\n")
    assert RelevanceStudy(**settings, concepts=runs / "mine.yaml").folder != study.folder, "their order draws the words"
    with pytest.raises(ValueError, match="no concepts 'nosuch.yaml': expected .* the path of a YAML file"):
        RelevanceStudy(concepts="nosuch.yaml")
