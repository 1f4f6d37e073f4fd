"""Numbers on prose pages: each is read from a chapter, included from a file that a command wrote, or given."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).parents[2]
# The pages, and the numbers that stand there by hand: settings, sizes of models, what papers state. None is a result.
GIVEN = {
    "README.md": "128 3 30 7.5",
    "book/claims.md": "0.4 128 16 30 95",
    "book/gallery.md": "",
    "book/glossary.md": "",
    "book/intro.md": "0 0.4 1 16 128 30 95",
    "book/method.md": "0 0.2.0 1 100 120 128 34",
    "book/performance.md": "0 1 1.5 1e-5 2.2 3 3.5 4 5 8 16 20 24 77 120 128 512 34 4,608"
    " 1.6 27",  # what words cost: test_words_cost.py
    "book/published.md": "128 2,100 24 30 34 64 8",
    "book/recipes.md": "1,300 128 20 30 304 34",
    "book/references.md": "0 0.002 0.05 1,024 2 20 50 95",
    "book/rerun.md": "0 1 2 5 7 8 11 12 13 1,000 1,100 1,300 10 100 113 128 15 2,100 2,213 3 34 363 50 7.5",
    "book/scale.md": "10 100 20 34 34,000 60",
}
GENERATED = ["models_table", "performance_summary", "performance_table", "performance_gpu_table", "published_numbers"]
GENERATED += ["scale_plan", "scale_table", "slider_times"]


@pytest.fixture(scope="module")
def extension() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measured", ROOT / "book/_ext/measured.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLE = """<table><thead><tr><th></th><th></th><th>mean IoU</th><th>p</th></tr>
<tr><th>threshold</th><th>heads</th><th></th><th></th></tr></thead>
<tbody><tr><th rowspan="2">0.3</th><th>all heads</th><td>0.7 [0.6, 0.8]</td><td></td></tr>
<tr><th>top 30</th><td>0.5</td><td>0.002</td></tr>
<tr><th>0.4</th><th>all heads</th><td>0.9</td><td></td></tr></tbody></table>"""


def test_a_number_is_found_by_its_column_and_what_its_row_holds(extension: ModuleType, tmp_path: Path) -> None:
    output = new_output("display_data", {"text/html": TABLE})
    nbformat.write(new_notebook(cells=[new_code_cell(outputs=[output])]), tmp_path / "02_a.ipynb")
    assert extension.look_up(tmp_path, "02_a; mean IoU; 0.3; all heads") == "0.7 [0.6, 0.8]"
    assert extension.look_up(tmp_path, "02_a; p; top 30") == "0.002"
    assert extension.look_up(tmp_path, "02_a; mean; 0.4") == "0.9"
    assert extension.look_up(tmp_path, "02_a; top 30; p") == "0.002", "whichever is the column"
    for missing in ("02_a; mean; 0.4; top 30", "02_a; IoU; 0.3"):
        with pytest.raises(LookupError, match="no table of 02_a has"):
            extension.look_up(tmp_path, missing)


def test_what_pages_read_from_the_chapters_is_there(extension: ModuleType) -> None:
    pages = [(ROOT / page).read_text(encoding="utf-8") for page in GIVEN]
    asked = re.findall(r"{measured}`([^`]+)`", "".join(pages))
    found = {text: extension.look_up(ROOT / "notebooks", text) for text in asked}
    assert len(found) > 4 and all(re.search(r"\d", number) for number in found.values())


NAMED = r"(?:Stable Diffusion|SD|SAM|FLUX|Apache|Python|XL|ILSVRC|arXiv|Table|Figure)[ .-](?:v?\d[\w.]*(?:, )?)+"
LEFT_OUT = r"""```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)|https?://\S+|"[^"\n]*"|\{[^}]*\}"""


def numbers(text: str) -> set[str]:
    """Numbers in a page's prose: not in code, formulas, links, quoted words and names such as Stable Diffusion v1.4."""
    prose = re.sub(NAMED, "", re.sub(LEFT_OUT, "", text, flags=re.DOTALL))
    return set(re.findall(r"(?<![\w.])\d(?:[\d.,]*\d)?(?:e-?\d+)?", prose))


@pytest.mark.parametrize("page", GIVEN)
def test_a_number_is_given_or_comes_from_a_cell_or_a_command(page: str) -> None:
    """A result on a page is read from a chapter by {measured}, or included from a file that a command wrote."""
    found, given = numbers((ROOT / page).read_text(encoding="utf-8")), set(GIVEN[page].split())
    assert sorted(found - given) == [], "measured? then it comes from a cell; else list it in GIVEN"
    assert sorted(given - found) == [], "not on the page any more"


def test_every_page_of_prose_is_looked_at_and_what_commands_wrote_is_included() -> None:
    """The reference is made from docstrings."""
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "book").glob("*.md")}
    generated = {f"book/{name}.md" for name in GENERATED}
    assert pages == {*GIVEN, "book/api.md", *generated} - {"README.md"}
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in GIVEN)
    assert set(re.findall(r"```{include} (\w+\.md)\n", text)) == {f"{name}.md" for name in GENERATED}


def test_numbers_in_prose_are_seen_and_others_are_not() -> None:
    text = "Of 1,024 heads 0.609 [0.571, 0.644] in 5 s, **1.84 times**, 11 %, v1.4 `0.3` $0.5$ {measured}`02; 0.4`."
    assert numbers(text) == {"1,024", "0.609", "0.571", "0.644", "5", "1.84", "11"}
    assert numbers('Stable Diffusion v1.4, FLUX.1, "128 of 512" [here](a_9.md)\n```\n7\n```\n') == set()
