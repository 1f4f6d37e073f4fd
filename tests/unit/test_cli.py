"""Running, stabilising and staging notebooks, on notebooks of a few cells."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from selattn_lib import cli, notebooks

WIDGETS = """
import ipywidgets as widgets
slider, box = widgets.IntSlider(30, 1, 128), widgets.IntText()
widgets.jslink((slider, "value"), (box, "value"))
widgets.HBox([slider, box])
"""


def write_notebook(path: Path, *sources: str) -> Path:
    cells = [new_markdown_cell("# Title", id="title")]
    cells += [new_code_cell(source.strip(), id=f"cell-{i}") for i, source in enumerate(sources)]
    cells[1].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def test_a_current_notebook_is_not_run_again(tmp_path: Path) -> None:
    count = tmp_path / "count"
    source = f"open({str(count)!r}, 'a').write('x'); print(heads)"
    notebook = write_notebook(tmp_path / "in" / "a.ipynb", "heads = 30", source)
    out = tmp_path / "out"
    for arguments in ([], [], ["-p", "heads", "20"], ["-p", "heads", "20"]):
        assert cli.main(["run", str(notebook), "--out", str(out), *arguments]) == 0
    assert count.read_text() == "xx"
    assert "20" in nbformat.read(out / "a.ipynb", as_version=4).cells[-1].outputs[0].text

    write_notebook(notebook, "heads = 31", source)
    assert cli.main(["run", str(notebook), "--out", str(out)]) == 0
    assert count.read_text() == "xxx"


def test_a_notebook_that_was_executed_with_these_sources_is_copied(tmp_path: Path) -> None:
    count = tmp_path / "count"
    notebook = write_notebook(tmp_path / "in" / "a.ipynb", f"open({str(count)!r}, 'a').write('x'); print('done')")
    assert cli.main(["run", str(notebook), "--out", str(tmp_path / "first")]) == 0
    executed = tmp_path / "first" / "a.ipynb"
    assert cli.main(["stabilise", str(executed), "--out", str(notebook.parent)]) == 0
    assert cli.main(["run", str(notebook), "--out", str(tmp_path / "second")]) == 0
    assert count.read_text() == "x"
    assert (tmp_path / "second" / "a.ipynb").read_bytes() == notebook.read_bytes()

    nb = nbformat.read(notebook, as_version=4)
    nb.cells[-1].source += "  # changed"
    nbformat.write(nb, notebook)
    assert cli.main(["run", str(notebook), "--out", str(tmp_path / "second")]) == 0
    assert count.read_text() == "xx"


def test_a_failed_run_leaves_the_good_notebook_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check = "if not heads > 0:\n    raise ValueError(f'heads is {heads}; it must be 1 or more')"
    notebook = write_notebook(tmp_path / "in" / "a.ipynb", "heads = 30", check)
    out = tmp_path / "out"
    assert cli.main(["run", str(notebook), "--out", str(out)]) == 0
    good = (out / "a.ipynb").read_bytes()
    capsys.readouterr()

    assert cli.main(["run", str(notebook), "--out", str(out), "-p", "heads", "0"]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == "selattn: a.ipynb: cell [3] failed: ValueError: heads is 0; it must be 1 or more"
    assert (out / "a.ipynb").read_bytes() == good
    assert [path.name for path in out.iterdir()] == ["a.ipynb"]


def test_a_parameter_that_no_notebook_has_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    touched = tmp_path / "touched"
    one = write_notebook(tmp_path / "in" / "a.ipynb", "heads = 30", f"open({str(touched)!r}, 'a').write('a')")
    two = write_notebook(tmp_path / "in" / "b.ipynb", "seeds = 1", f"open({str(touched)!r}, 'a').write('b')")
    arguments = ["run", str(one), str(two), "--out", str(tmp_path / "out"), "-p", "heads", "20"]
    assert cli.main([*arguments, "-p", "seed", "2"]) == 1
    assert "no parameter seed in these notebooks: expected some of heads, seeds" in capsys.readouterr().err
    assert cli.main([*arguments, "--workers", "many"]) == 1
    assert "workers='many': expected" in capsys.readouterr().err
    assert not touched.exists()
    assert cli.main(arguments) == 0  # each notebook gets the parameters that it has
    assert touched.read_text() == "ab"


def test_workers_reach_the_notebooks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELATTN_WORKERS", "0")  # put back at the end
    show = "import os; print(os.environ['SELATTN_WORKERS'])"
    notebook = write_notebook(tmp_path / "in" / "a.ipynb", "heads = 30", show)
    assert cli.main(["run", str(notebook), "--out", str(tmp_path), "--workers", "tcp://node:8786"]) == 0
    assert nbformat.read(tmp_path / "a.ipynb", as_version=4).cells[-1].outputs[0].text == "tcp://node:8786\n"


def test_two_runs_give_one_and_the_same_notebook(tmp_path: Path) -> None:
    talk = "import sys, time\nfor i in range(3):\n    print(i, flush=True)\n    time.sleep(.05)\n"
    talk += "    print('10%', file=sys.stderr, flush=True)"
    notebook = write_notebook(tmp_path / "in" / "a.ipynb", "heads = 30", talk, WIDGETS)
    texts = []
    for name in ("first", "second"):
        notebooks.run_notebook(notebook, tmp_path / name / "a.ipynb", {})
        texts.append((tmp_path / name / "a.ipynb").read_text())
    assert texts[0] == texts[1]

    nb = nbformat.reads(texts[0], as_version=4)
    assert [cell.id for cell in nb.cells] == ["title", "cell-0", "cell-1", "cell-2"]
    assert [(o.name, o.text) for o in nb.cells[2].outputs] == [("stdout", "0\n1\n2\n")]
    state = nb.metadata.widgets[notebooks.WIDGET_STATE].state
    assert sorted(state) == [f"{i:032x}" for i in range(1, len(state) + 1)]
    assert "LinkModel" in {model.model_name for model in state.values()}
    references = set(re.findall(r"IPY_MODEL_(\w+)", json.dumps(state)))
    assert references and references <= set(state)
    assert nb.cells[3].outputs[0].data[notebooks.WIDGET_VIEW]["model_id"] == f"{1:032x}"


def test_stabilising_keeps_outputs_and_the_mark_of_their_sources(tmp_path: Path) -> None:
    path = write_notebook(tmp_path / "a.ipynb", "1")
    nb = nbformat.read(path, as_version=4)
    nb.cells[1].outputs = [new_output("execute_result", {"text/plain": "1"}, execution_count=1)]
    nb.cells[1].metadata["papermill"] = {"duration": 1.5}
    nb.metadata["selattn"] = {"fingerprint": "abc"}
    nb.metadata["papermill"] = {"start_time": "now"}
    nbformat.write(nb, path)
    assert cli.main(["stabilise", str(path)]) == 0
    nb = nbformat.read(path, as_version=4)
    assert set(nb.metadata) == {"kernelspec", "language_info", "selattn"}
    assert nb.cells[1].metadata == {"tags": ["parameters"]}
    assert nb.cells[1].outputs[0].data == {"text/plain": "1"}


@pytest.mark.parametrize(
    "text, value",
    [("20", 20), ("0.4", 0.4), ("[0.3, 0.4]", [0.3, 0.4]), ("True", True), ("sd14", "sd14"), ("a b", "a b")],
)
def test_parameters_are_read_as_python_values(text: str, value: object) -> None:
    assert cli.parse_value(text) == value


def test_a_missing_notebook_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "no.ipynb"
    assert cli.main(["run", str(missing), "--out", str(tmp_path)]) == 1
    assert f"{missing} does not exist" in capsys.readouterr().err
    assert cli.main(["book", "--notebooks", str(tmp_path)]) == 1
    assert "no notebook in" in capsys.readouterr().err
