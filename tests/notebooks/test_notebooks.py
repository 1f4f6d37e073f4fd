"""The committed notebooks, and papermill on them.

That the chapters of the paper give the same outputs again is nbval's part; `make replay` has it look at all of them.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from selattn_lib.publishing.notebooks import fingerprint, is_current

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SEGMENTATION = ROOT / "notebooks" / "02_segmentation.ipynb"
QUICK = {"steps": 5, "hrv_images": 4}
SMALL = {  # parameters, and what the chapter then prints
    "06_emoji_sd": ({"seeds": 1, "word_step": 20, "fast_seeds": 1, "diagnosis_seeds": 2, "steps": 5}, "of 10 pictures"),
    "07_controls": ({**QUICK, "seeds": 1, "draws": 5}, "generated: 10 images"),
    "08_surface": ({**QUICK, "seeds": 1, "windows": 2}, "generated: 10 images"),
    "09_beyond_animals": ({**QUICK, "concepts": ["Animals", "Plants"], "scenes": 6, "hrv_steps": 5}, "Plants"),
    "10_diagnosis_measured": ({**QUICK, "seeds": 2}, "4 words x 2 seeds = 8 images"),
    "11_weakening": ({**QUICK, "heads": [10], "hrv_steps": 5}, "60 images, 6 conditions"),
}


def papermill(notebook: Path, out: Path, *parameters: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("papermill"), notebook, out, "--cwd", ROOT / "notebooks"]
    return subprocess.run([*command, *parameters], cwd=ROOT, capture_output=True, text=True)


def printed(notebook: Path) -> str:
    nb = nbformat.read(notebook, as_version=4)
    outputs = [output for cell in nb.cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


def test_the_five_chapters_are_there() -> None:
    assert [path.name[:2] for path in NOTEBOOKS][:5] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_is_executed_without_error_and_stable(path: Path) -> None:
    nb = nbformat.read(path, as_version=4)
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert "papermill" not in nb.metadata
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    assert is_current(path, fingerprint(path, {})), "cells or library have changed: run `make notebooks`"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_has_a_caption(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    captions = [re.match(r"\*Figure (\d+\.\d+)\. ", cell.source) for cell in cells]
    for cell, caption in zip(cells, captions[1:], strict=False):
        figure = "figures.contact_sheet(" in cell.source
        figure |= any("application/vnd.plotly.v1+json" in output.get("data", {}) for output in cell.get("outputs", []))
        assert figure == bool(caption), cell.source
    numbers = [caption[1] for caption in captions if caption]
    assert numbers == [f"{int(path.stem[:2])}.{i + 1}" for i in range(len(numbers))]


def test_other_parameters_give_other_numbers(tmp_path: Path) -> None:
    out = tmp_path / "out.ipynb"
    done = papermill(SEGMENTATION, out, "-p", "model", "emoji-sd", "-p", "heads", "20", "-p", "seeds", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "20 images" in printed(out) and "20 images" not in printed(SEGMENTATION)


@pytest.mark.parametrize("name", SMALL)
def test_the_chapters_beyond_the_papers_run_with_small_parameters(tmp_path: Path, name: str) -> None:
    parameters, expected = SMALL[name]
    out, notebook = tmp_path / "out.ipynb", ROOT / "notebooks" / f"{name}.ipynb"
    done = papermill(notebook, out, "-y", json.dumps(parameters))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "unknown parameter" not in done.stderr
    assert expected in printed(out)


@pytest.mark.parametrize(
    "name, value",
    [("model", "nosuch"), ("heads", "0"), ("heads", "500"), ("concept", "Nosuch"), ("thresholds", "[1.5]")],
)
def test_a_bad_parameter_stops_the_first_cells_with_one_sentence(tmp_path: Path, name: str, value: str) -> None:
    out = tmp_path / "out.ipynb"
    assert papermill(SEGMENTATION, out, "-p", name, value).returncode != 0
    nb = nbformat.read(out, as_version=4)
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    errors = [
        (index, output) for index, cell in enumerate(code) for output in cell.outputs if output.output_type == "error"
    ]
    [(index, error)] = errors
    assert index <= 5  # parameters, injected parameters, imports, validation
    assert value.strip("[]") in error.evalue
    assert "\n" not in error.evalue.strip()
    assert 20 < len(error.evalue) < 400
