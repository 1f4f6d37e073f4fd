"""The committed notebooks, and papermill on them. (That they give the same outputs again is nbval's part.)"""

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SEGMENTATION = ROOT / "notebooks" / "02_segmentation.ipynb"


def papermill(out: Path, *parameters: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("papermill"), SEGMENTATION, out, "--cwd", ROOT / "notebooks"]
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


def test_other_parameters_give_other_numbers(tmp_path: Path) -> None:
    out = tmp_path / "out.ipynb"
    done = papermill(out, "-p", "model", "emoji-sd", "-p", "heads", "20", "-p", "seeds", "2")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "20 images" in printed(out) and "20 images" not in printed(SEGMENTATION)


@pytest.mark.parametrize(
    "name, value",
    [("model", "nosuch"), ("heads", "0"), ("heads", "500"), ("concept", "Nosuch"), ("thresholds", "[1.5]")],
)
def test_a_bad_parameter_stops_the_first_cells_with_one_sentence(tmp_path: Path, name: str, value: str) -> None:
    out = tmp_path / "out.ipynb"
    assert papermill(out, "-p", name, value).returncode != 0
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
