"""The page of claims: each is what its interval says, by the numbers of the committed chapters."""

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "book" / "claims.md").read_text(encoding="utf-8")
CLAIMS = dict(re.findall(r"```{claim} (.+)\n((?::\w+: .+\n)+)```", PAGE))


@pytest.fixture(scope="module")
def extension() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "book" / "_ext"))
        yield importlib.import_module("claims")


@pytest.mark.parametrize("sentence", CLAIMS)
def test_a_claim_is_what_its_interval_says(extension: ModuleType, sentence: str) -> None:
    options = dict(re.findall(r":(\w+): (.+)", CLAIMS[sentence]))
    assert options.keys() <= {"number", "what", "expected", "against"}
    number, limit, found = extension.verdict(ROOT / "notebooks", options["number"], options.get("against", "0"))
    assert found == options["expected"], f"{number}, {limit}"


def test_every_claim_of_the_page_is_looked_at() -> None:
    assert len(CLAIMS) == PAGE.count("```{claim}") > 10


@pytest.mark.parametrize(
    ("number", "against", "side"),
    [
        ("+0.1 [-0.1, +0.3], p = 0.2", "0", "unclear"),
        ("0.1 [0.05, 0.3]", "0", "above"),
        ("41% [25%, 59%]", "20", "above"),
        ("-0.1 [-0.3, -0.05]", "0", "below"),
        ("0.1 [0.05, 0.3]", "0.31", "below"),
        ("0.1 [0.05, 0.3]", "01_a; limit", "unclear"),
    ],
)
def test_a_verdict_says_on_which_side_the_interval_is(
    extension: ModuleType, tmp_path: Path, number: str, against: str, side: str
) -> None:
    write_table(tmp_path, number)
    limit = "0.2" if ";" in against else against
    assert extension.verdict(tmp_path, "01_a; number", against) == (number, limit, side)


def test_a_number_without_an_interval_is_no_claim(extension: ModuleType, tmp_path: Path) -> None:
    write_table(tmp_path, "1.000 (no interval)")
    with pytest.raises(ValueError, match="no interval"):
        extension.verdict(tmp_path, "01_a; number")
    with pytest.raises(LookupError, match="no table of 01_a"):
        extension.verdict(tmp_path, "01_a; numeral")


def write_table(folder: Path, number: str) -> None:
    head, body = "<th>number</th><th>limit</th>", f"<td>{number}</td><td>0.2 [0.1, 0.3]</td>"
    table = f"<table><thead><tr>{head}</tr></thead><tbody><tr>{body}</tr></tbody></table>"
    output = new_output("display_data", {"text/html": table})
    nbformat.write(new_notebook(cells=[new_code_cell(outputs=[output])]), folder / "01_a.ipynb")
