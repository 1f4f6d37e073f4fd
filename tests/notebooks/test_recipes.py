"""The recipes' code, run as it stands but for fewer steps, and a tiny SDXL in the place of the large one."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image
from tiny_families import build_sdxl
from voc import voc

from selattn_lib.concepts import load_concepts
from selattn_lib.models.families import cross_attention_heads

PAGE = (Path(__file__).parents[2] / "book" / "recipes.md").read_text(encoding="utf-8")
CODE = dict(re.findall(r"^## (.+?)\n.*?^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SELATTN_RUNS", str(tmp_path / "runs"))
    return tmp_path


def run(title: str, **replaced: str) -> dict[str, Any]:
    """The names that a recipe's lines have made."""
    names: dict[str, Any] = {}
    code = CODE[title].replace("num_inference_steps=50", "num_inference_steps=2")
    for old, new in {'"num_inference_steps": 50': '"num_inference_steps": 2', **replaced}.items():
        code = code.replace(old, new)
    exec(code, names)
    return names


def kinds(folder: Path) -> set[str]:
    return {path.stem.rsplit("-", 1)[-1] for path in folder.glob("*.png")}


def test_there_are_six_of_at_most_15_lines_that_fit_the_page() -> None:
    assert len(CODE) == 6 and PAGE.count("```python\n") == 6
    assert all(len(code.splitlines()) <= 15 for code in CODE.values())
    assert all(len(line) <= 79 for code in CODE.values() for line in code.splitlines())


def test_masks_for_two_words(folder: Path) -> None:
    names = run("Masks for two words")
    assert {word: mask.dtype for word, mask in names["masks"].items()} == {"bear": bool, "guitar": bool}
    heat = names["maps"].heatmap("guitar", names["heads"]["guitar"])
    np.testing.assert_array_equal(names["masks"]["guitar"], heat > 0.4)
    assert kinds(folder / "two-words") == {"overlay", "map", "mask"}
    assert isinstance(heat, xr.DataArray) and heat.dims == ("y", "x"), "what xarray plots by matplotlib"


def test_compare_two_prompts(capsys: pytest.CaptureFixture[str]) -> None:
    difference = run("Compare two prompts")["difference"]
    assert 0 < np.abs(difference).max() <= 1
    assert 0 <= float(capsys.readouterr().out.split()[-1]) <= 1


def test_your_own_images_and_masks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "my-images").mkdir()
    voc(folder / "my-images")
    scores = run("Your own images and masks")["scores"]
    assert scores.sizes == {"threshold": 3, "set": 2, "image": 4}
    assert "top 30" in capsys.readouterr().out and kinds(folder / "my-maps") == {"overlay", "map", "mask"}


def test_sdxl_with_published_vectors(folder: Path) -> None:
    """The model is a tiny one of SDXL's layout, in a folder that is named in its place."""
    pipe = build_sdxl()
    pipe.save_pretrained(folder / "tiny")
    heads = cross_attention_heads(pipe).names
    votes = np.random.default_rng(0).random((len(load_concepts("paper")), len(heads)))
    (folder / "hrv-sdxl").mkdir()
    np.save(folder / "hrv-sdxl" / "scores.npy", votes / votes.sum(axis=1, keepdims=True) * len(heads))
    np.save(folder / "hrv-sdxl" / "heads.npy", np.array(heads))
    names = run("SDXL with published vectors", **{'"sdxl"': '"tiny"'})
    assert (len(heads), len(names["best"])) == (1300, 304)
    assert len(list((folder / "sdxl-cat").glob("*-overlay.png"))) == 2


def test_a_batch_of_prompts_to_a_table_of_ious(folder: Path) -> None:
    run("A batch of prompts to a table of IoUs")
    table = pd.read_csv(folder / "ious.csv")
    assert table["prompt"].nunique() == table["heads"].nunique() == 2 and len(table) == 4
    assert table["iou"].between(0, 1).all()


def test_a_head_s_map_over_time_as_a_gif(folder: Path) -> None:
    names = run("A head's map over time, as a GIF")
    with Image.open(folder / "bear.gif") as film:
        assert film.n_frames == len(names["frames"]) == 3  # PNDM calls the network once more than it has steps
    assert names["maps"].heads.tolist() == [126]
