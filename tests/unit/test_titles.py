"""Titles of chapters: each is a finding on a model that it names, and what its numbers say."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
CHAPTERS = {path.stem: nbformat.read(path, as_version=4).cells for path in sorted(NOTEBOOKS.glob("[01][0-9]_*.ipynb"))}
TITLES = {name: cells[0].source.partition("\n")[0].removeprefix("# ") for name, cells in CHAPTERS.items()}
CONCEPTS = ("Animals", "Plants", "Fruits and Vegetables", "Vehicles", "Buildings", "Electronics")
AT = "mean IoU [95 %]; 0.4"
# Chapter, words of its title, on which side its interval may lie, the number that says so, what it is compared with
FOUND = [
    ("02_segmentation", "all heads draw a better map", "below", "12_ceiling; less all heads; top 30", "0"),
    ("03_most_vs_least", "not clearly beat", "unclear", f"03_most_vs_least; {AT}; top 30 heads", "; bottom 30 heads"),
    ("04_mouse_diagnosis", "do not pick out", "below", "04_mouse_diagnosis; on Animals; top 30 Animals",
     "; top 30 Electronics"),
    *[("05_ablation", "20 to 40 heads draw a worse map", "below", f"05_ablation; {AT}; top {k} heads",
       "; all heads (DAAM)") for k in (20, 30, 40)],
    ("07_controls", "no better than random", "unclear", "07_controls; generated; 0.4; random heads", "; top 30"),
    ("08_surface", "lose without a threshold", "below", "08_surface; less all heads; top 30", "0"),
    *[("09_beyond_animals", "for no concept tried", "below unclear", f"09_beyond_animals; gain; {concept}", "0")
      for concept in CONCEPTS],
    ("10_diagnosis_measured", "do not tell", "unclear", "10_diagnosis_measured; all words [95 %]; attention ratio",
     "0.5"),
    ("11_weakening", "lose more without the 50 least relevant heads", "above",
     "11_weakening; most less least relevant; score; 50; Animals", "0"),
    ("12_ceiling", "do not beat", "below unclear", "12_ceiling; less all heads; oracle, 30", "0"),
    ("14_planted_heads", "finds", "above", "14_planted_heads; precision among the first 4; HRV, as in the text",
     "; chance"),
    ("15_which_heads", "better maps than all heads", "above", "15_which_heads; average precision; finest grid",
     "; all heads"),
]  # fmt: skip


@pytest.fixture(scope="module")
def claims() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "book" / "_ext"))
        yield importlib.import_module("claims")


@pytest.mark.parametrize(("chapter", "words", "sides", "number", "against"), FOUND)
def test_a_title_is_what_an_interval_says(
    claims: ModuleType, chapter: str, words: str, sides: str, number: str, against: str
) -> None:
    assert words in TITLES[chapter]
    if against.startswith(";"):  # the same, but for the last part
        against = number.rpartition(";")[0] + against
    shown, limit, side = claims.verdict(NOTEBOOKS, number, against)
    assert side in sides.split(), f"{shown}, {limit}"


def answer(chapter: str) -> str:
    [cell] = [cell for cell in CHAPTERS[chapter] if "answer" in cell.metadata.get("tags", [])]
    return str(cell.outputs[0].data["text/markdown"])


def test_titles_of_shares_are_what_the_shares_say(claims: ModuleType) -> None:
    tables = importlib.import_module("measured").tables(NOTEBOOKS / "01_head_relevance.ipynb")
    concepts = next(rows for heads, rows in tables if heads[-1] == "heads")
    assert "Each concept wins a few heads" in TITLES["01_head_relevance"]
    assert len(concepts) == 21 and all(0 < int(row[-1]) < 20 for row in concepts)
    shared = re.search(r"share (\d+)% of the top", answer("01_head_relevance"))
    assert "a recount agrees" in TITLES["01_head_relevance"] and shared and int(shared[1]) >= 90
    words = re.search(r"its words in \d\.\d+ \[(\d\.\d+),", answer("06_emoji_sd"))
    assert "nearly every word" in TITLES["06_emoji_sd"] and words and float(words[1]) > 0.95
    assert "a few dozen images are enough" in TITLES["13_generations"]
    shared_of_40 = claims.look_up(NOTEBOOKS, "13_generations; top 30 shared; 40")
    assert int(shared_of_40.removesuffix("%")) >= 90


def test_every_chapter_s_title_is_compared_with_its_numbers() -> None:
    shares = {"01_head_relevance", "06_emoji_sd", "13_generations"}
    assert {chapter for chapter, *_ in FOUND} | shares == {*CHAPTERS} - {"00_quick_tour"}


@pytest.mark.parametrize("chapter", [*CHAPTERS][1:])
def test_a_title_is_short_and_names_the_model_and_the_question_comes_first(chapter: str) -> None:
    assert len(TITLES[chapter]) <= 70 and re.search(r"\bemoji-(sd|control)\b", TITLES[chapter])
    assert not re.search(r"\d\.\d|\?", TITLES[chapter])
    question = CHAPTERS[chapter][0].source.split("\n\n")[1]
    assert re.match(r"[A-Z][^.:?]+\?(\s|$)", question)


def test_the_sidebar_has_a_few_words_for_each_chapter() -> None:
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = {entry["file"]: entry.get("title", "") for part in toc["parts"] for entry in part["chapters"]}
    for chapter in [*CHAPTERS][1:]:
        assert 0 < len(listed[f"notebooks/{chapter}"]) <= 30
