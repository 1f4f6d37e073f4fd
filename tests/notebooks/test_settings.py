"""Every list parameter of every notebook as papermill hands it over: read, or refused before anything is computed."""

from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import pytest

from selattn_lib.publishing.notebooks import parameters_of
from selattn_lib.studies.base import StudyBase
from selattn_lib.studies.checks import CHECKED

NOTEBOOKS = {path.stem[:2]: path for path in (Path(__file__).parents[2] / "notebooks").glob("*.ipynb")}


class Computed(Exception):
    """A study was asked for its results."""


@cache
def code_cells(notebook: str) -> list[Any]:
    return [cell for cell in nbformat.read(NOTEBOOKS[notebook], as_version=4).cells if cell.cell_type == "code"]


def settle(notebook: str, monkeypatch: pytest.MonkeyPatch, **parameters: Any) -> None:
    """Run a notebook's cells with these parameters up to where the first result is asked for."""

    def compute(study: StudyBase, *args: Any) -> None:
        raise Computed

    monkeypatch.setattr(StudyBase, "load_or_compute", compute)
    cells = code_cells(notebook)
    [first] = [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    names: dict[str, Any] = {}
    exec(cells[first].source, names)
    assert parameters.keys() <= names.keys()
    names |= parameters
    for cell in cells[first + 1 :]:
        exec(cell.source, names)


ONE_NUMBER = ("00", "01", "02", "03", "04", "07", "08", "09", "10", "12", "13")
WORDS = ("02", "03", "05", "07", "08", "11", "12", "13")  # those that take words of a concept of objects
CASE = "[['mouse', 'A mouse on the desk', 'Animals', 'Electronics']]"
RIGHT = [
    *((notebook, {"heads": "20"}) for notebook in ONE_NUMBER[1:]),
    *((notebook, {"thresholds": "0.3, 0.5"}) for notebook in ("02", "03", "05", "07", "12")),
    *((notebook, {"threshold": "0.5"}) for notebook in ("04", "08", "09", "10", "13")),
    *((notebook, {"words": "bear, cat"}) for notebook in WORDS),
    ("01", {"concept": "Color", "other": "Size"}),
    *((notebook, {"heads": heads}) for notebook in ("05", "11") for heads in (30, "20, 30", "[20, 30]")),
    *((notebook, {"concepts": "['Animals', 'Plants']"}) for notebook in ("04", "09")),
    ("01", {"examples": "['bear', 'cat']"}),
    ("10", {"cases": CASE}),
]
WRONG = [
    *((notebook, {"heads": "[20, 30]"}, "heads=.* one number") for notebook in ONE_NUMBER),
    *((notebook, {"heads": "few"}, "heads='few'") for notebook in (*ONE_NUMBER, "05", "11")),
    *((notebook, {"thresholds": "[3, 5]"}, "between 0 and 1") for notebook in ("02", "03", "05", "07", "12")),
    *((notebook, {"threshold": "[0.3, 0.4]"}, "thresholds=") for notebook in ("04", "08", "09", "10", "13")),
    *((notebook, {"words": 7}, "words=7") for notebook in WORDS),
    *((notebook, {"words": "bear, unicorn"}, "knows no 'unicorn'") for notebook in WORDS),
    *(
        (notebook, {"concept": "Color"}, "concept 'Color' is of no objects.*: expected one of Animals")
        for notebook in WORDS
    ),
    *(
        (notebook, {"concept": "animal"}, "no concept 'animal': .*did you mean 'Animals'")
        for notebook in ("00", "01", *WORDS)
    ),
    *((notebook, {"concepts": ["Animals", "Size"]}, "concept 'Size' is of no objects") for notebook in ("09", "15")),
    *(
        (notebook, {"segmenter": "sam4"}, "no segmenter 'sam4': .*did you mean 'sam3'")
        for notebook in ("04", "09", "10", *WORDS)
    ),
    *((notebook, {"dtype": "half"}, "dtype='half'") for notebook in ("09", "10", *WORDS)),
    *((notebook, {"batch": 0}, "batch=0: expected a whole number") for notebook in ("01", "04", "09", "10", *WORDS)),
    *((notebook, {"model": "emoji"}, "no model 'emoji'.*did you mean 'emoji-sd'") for notebook in ONE_NUMBER),
    *(
        (notebook, {"hrv": "nosuch"}, "No head relevance at nosuch")
        for notebook in ("01", "04", "09", "10", "15", *WORDS)
    ),
    *((notebook, {"scenes": "few"}, "scenes='few': expected a whole number") for notebook in ("06", "09", "14", "15")),
    *((notebook, {"concepts": "Animals"}, "concepts='Animals': expected 2 or more") for notebook in ("04", "09")),
    *((notebook, {"concepts": "Animals, Nosuch"}, "no concept 'Nosuch'") for notebook in ("04", "09")),
    ("01", {"examples": 7}, "examples=7"),
    ("10", {"cases": "mouse, bat"}, "cases='mouse, bat': expected lists of 4"),
    ("10", {"cases": CASE[:-1] + ", ['bat', 'a bat', 'Animals', 'Nosuch']]"}, "no concept 'Nosuch'"),
]


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_a_chapter_checks_all_its_parameters_before_it_does_anything_else(notebook: str) -> None:
    assert parameters_of(NOTEBOOKS[notebook]) <= CHECKED
    first = next(cell.source for cell in code_cells(notebook)[1:] if "sa." in cell.source)
    lines = [line for line in first.splitlines() if not line.startswith(("import ", "from ")) and line]
    assert lines[0].startswith("sa.check_parameters(globals()")


@pytest.mark.parametrize("notebook, parameters", RIGHT)
def test_every_list_of_every_notebook_is_read(notebook, parameters, monkeypatch) -> None:
    with pytest.raises(Computed):
        settle(notebook, monkeypatch, **parameters)


@pytest.mark.parametrize("notebook, parameters, said", WRONG)
def test_every_list_of_every_notebook_is_refused_before_anything_is_computed(
    notebook, parameters, said, monkeypatch
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
        settle(notebook, monkeypatch, **parameters)
    assert "\n" not in str(error.value)
