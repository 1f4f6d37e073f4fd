"""The committed notebooks, and papermill on them, with small parameters and one store of studies for all.

That they print again what they printed is nbval's part: of the quick tour in `make test`, of all in `make replay`.
"""

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import papermill
import pytest
from click.testing import CliRunner
from papermill.cli import papermill as papermill_command

from selattn_lib.publishing.notebooks import fingerprint, is_current

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SEGMENTATION = ROOT / "notebooks" / "02_segmentation.ipynb"
FEW = str(ROOT / "tests" / "support" / "few_concepts.yaml")
RELEVANCE = {"hrv_images": 2, "hrv_steps": 1}  # counted once for all chapters
DRAWN = {"steps": 1, "hrv_images": 2, "seeds": 1}
QUICK = {**DRAWN, "scenes": 4, "words": ["bear", "cat", "dog", "cow"]}
SMALL = {  # parameters, and what the chapter then prints
    "01_head_relevance": (RELEVANCE, "concepts x 128 heads"),
    "02_segmentation": (QUICK, "generated: 4 images of 4 words"),
    "03_most_vs_least": (QUICK, "generated: 4 images"),
    "04_mouse_diagnosis": (DRAWN, '1 images of "A mouse'),
    "05_ablation": (QUICK, "generated: 4 images"),
    "06_emoji_sd": (
        {
            **DRAWN,
            "word_seeds": 1,
            "word_step": 40,
            "fast_seeds": 1,
            "fast_steps": 1,
            "diagnosis_seeds": 1,
            "scenes": 16,
        },
        "of 10 pictures",
    ),
    "07_controls": ({**QUICK, "draws": 5}, "generated: 4 images"),
    "08_surface": ({**QUICK, "steps": 2, "windows": 2}, "generated: 4 images"),
    "09_beyond_animals": (
        {**DRAWN, **RELEVANCE, "concepts": ["Animals", "Plants"], "scenes": 4, "words_each": 3, "draws": 5},
        "Plants",
    ),
    "10_diagnosis_measured": ({**DRAWN, "seeds": 2}, "4 words x 2 seeds = 8 images"),
    "11_weakening": (
        {**DRAWN, **RELEVANCE, "heads": [10], "concept": "Plants", "concepts": FEW},
        "12 images, 6 conditions",
    ),
    "12_ceiling": ({**QUICK, "draws": 5}, "generated: 4 images"),
    "13_generations": (QUICK, "generated: 4 images"),
    "14_planted_heads": (
        {
            **RELEVANCE,
            "doses": [0, 1],
            "scenes": 1,
            "mice": 2,
            "mouse_seeds": 1,
            "word_seeds": 1,
            "word_step": 166,
            "steps": 1,
        },
        "2 doses, 16 concepts",
    ),
    "15_which_heads": (
        {**RELEVANCE, "concepts": ["Animals", "Tools"], "scenes": 4, "words_each": 2, "steps": 1, "draws": 2},
        "emoji-control, generated: 4 pictures, 2 concepts",
    ),
}


@pytest.fixture(scope="module", autouse=True)
def studies(tmp_path_factory: pytest.TempPathFactory, one_kernel: None) -> Iterator[Path]:
    """The folder of the studies, which chapters share where their parameters are the same; at first it is empty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT / "notebooks")
        patch.setenv("SELATTN_RUNS", str(tmp_path_factory.mktemp("studies")))
        yield Path(os.environ["SELATTN_RUNS"])


@cache
def committed(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def execute(notebook: Path, out: Path, parameters: dict[str, Any]) -> None:
    papermill.execute_notebook(
        notebook,
        out,
        parameters,
        kernel_name="python3",
        progress_bar=False,
        request_save_on_cell_execute=False,  # large outputs take longer to write than to make
    )


def printed(notebook: Path) -> str:
    nb = nbformat.read(notebook, as_version=4)
    outputs = [output for cell in nb.cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


def test_the_quick_tour_and_the_papers_chapters_are_there() -> None:
    assert [path.name[:2] for path in NOTEBOOKS][:6] == ["00", "01", "02", "03", "04", "05"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_executed_without_error_and_stable(path: Path) -> None:
    nb = committed(path)
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert "papermill" not in nb.metadata
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    assert is_current(path, fingerprint(path, {})), "stale: run `make notebooks`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_has_a_caption(path: Path) -> None:
    cells = committed(path).cells
    captions = [re.match(r"\*Figure (\d+\.\d+)\. ", cell.source) for cell in cells]
    for cell, caption in zip(cells, captions[1:], strict=False):
        figure = "figures.contact_sheet(" in cell.source
        figure |= any("application/vnd.plotly.v1+json" in output.get("data", {}) for output in cell.get("outputs", []))
        assert figure == bool(caption), cell.source
    numbers = [caption[1] for caption in captions if caption]
    assert numbers == [f"{int(path.stem[:2])}.{i + 1}" for i in range(len(numbers))]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_captions_are_short_and_tables_are_numbered_in_order(path: Path) -> None:
    cells = committed(path).cells
    captions = [cell.source.partition("\n\n")[0] for cell in cells if cell.source.startswith("*Figure")]
    assert [caption for caption in captions if len(caption.splitlines()) > 3] == []
    assert max(len(line) for caption in captions for line in caption.splitlines()) <= 124
    numbers = re.findall(r"Table (\d+\.\d+)\. ", "".join(cell.source for cell in cells if cell.cell_type == "code"))
    assert [*dict.fromkeys(numbers)] == [f"{int(path.stem[:2])}.{i + 1}" for i in range(len({*numbers}))]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_text_reads_alike_in_jupyterlab_and_in_the_book(path: Path) -> None:
    """No roles and directives, which JupyterLab shows as they are; code is folded in both."""
    cells = committed(path).cells
    assert [
        cell.source for cell in cells if cell.cell_type == "markdown" and re.search(r"\{\w+\}[`\n]", cell.source)
    ] == []
    for cell in cells:
        folded = {"hide-input", "hide-cell"} & {*cell.metadata.get("tags", [])}
        assert bool(folded) == bool(cell.metadata.get("jupyter", {}).get("source_hidden")), cell.source
    for file in re.findall(r"\]\(([\w./]+)\)", "".join(cell.source for cell in cells if cell.cell_type == "markdown")):
        assert (path.parent / file).is_file(), file


@pytest.mark.parametrize("path", NOTEBOOKS[1:], ids=lambda path: path.stem)
def test_a_chapter_folds_its_settings_and_ends_with_an_answer_and_what_to_take_away(path: Path) -> None:
    cells = committed(path).cells
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    assert texts[0].startswith("# ")
    start = next(i for i, cell in enumerate(cells) if cell.source.startswith('<details class="settings">'))
    end = next(i for i, cell in enumerate(cells) if cell.source.startswith("</details>\n\n"))
    [first] = [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    assert start < first < end
    [answer] = [cell for cell in cells if "answer" in cell.metadata.get("tags", [])]
    assert "**Answer.**" in answer.source
    assert texts[-1].startswith("**To take away.** ") and "explorer" in texts[-1]


def test_every_chapter_but_the_tour_which_is_run_as_it_is_is_run_here() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["00_quick_tour", *SMALL]


@pytest.mark.parametrize("name", SMALL)
def test_a_chapter_runs_with_small_parameters(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    parameters, expected = SMALL[name]
    out, notebook = tmp_path / "out.ipynb", ROOT / "notebooks" / f"{name}.ipynb"
    execute(notebook, out, parameters)
    assert "unknown parameter" not in caplog.text
    assert expected in printed(out)


def test_papermills_command_gives_other_numbers_with_other_parameters(tmp_path: Path) -> None:
    out = tmp_path / "out.ipynb"
    quick = [text for name, value in QUICK.items() for text in ("-p", name, str(value))]
    done = CliRunner().invoke(papermill_command, [str(SEGMENTATION), str(out), *quick, "-p", "heads", "20"])
    assert done.exit_code == 0, done.output[-2000:]
    assert "generated: 4 images" in printed(out) and "generated: 4 images" not in printed(SEGMENTATION)
    assert "top 20" in printed(out) and "top 20" not in printed(SEGMENTATION)


@pytest.mark.parametrize(
    "name, value",
    [("model", "nosuch"), ("heads", 0), ("heads", 500), ("concept", "Nosuch"), ("thresholds", [1.5])],
)
def test_a_bad_parameter_stops_the_first_cells_with_one_sentence(tmp_path: Path, name: str, value: Any) -> None:
    out = tmp_path / "out.ipynb"
    with pytest.raises(papermill.PapermillExecutionError):
        execute(SEGMENTATION, out, {name: value})
    nb = nbformat.read(out, as_version=4)
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    errors = [
        (index, output) for index, cell in enumerate(code) for output in cell.outputs if output.output_type == "error"
    ]
    [(index, error)] = errors
    assert index <= 5  # parameters, injected parameters, imports, validation
    assert str(value).strip("[]") in error.evalue
    assert "\n" not in error.evalue.strip()
    assert 20 < len(error.evalue) < 400
