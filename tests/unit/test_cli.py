"""Running, stabilising and staging notebooks, on notebooks of a few cells."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from nbclient.exceptions import DeadKernelError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from papermill.engines import NBClientEngine, papermill_engines

from selattn_lib import cli
from selattn_lib.publishing import notebooks
from selattn_lib.publishing.options import ReproduceOptions
from selattn_lib.studies import digests
from selattn_lib.studies.parameters import read_literal

pytestmark = pytest.mark.usefixtures("one_kernel")
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

    nb = nbformat.read(notebook, as_version=4)
    nb.cells[:1] = [new_markdown_cell("# Another title", id="title"), new_markdown_cell("and more", id="more")]
    nbformat.write(nb, notebook)
    assert cli.main(["run", str(notebook), "--out", str(out), "-p", "heads", "20"]) == 0
    assert count.read_text() == "xx", "prose decides no output"
    told = nbformat.read(out / "a.ipynb", as_version=4).cells
    assert [cell.source.partition("\n")[0] for cell in told] == [
        "# Another title", "and more", "heads = 30", "# Parameters", source
    ]  # fmt: skip
    assert "20" in told[-1].outputs[0].text

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
    assert sorted(path.name for path in out.iterdir()) == ["a.ipynb", "fingerprints.json"]


@pytest.mark.parametrize("damaged", [b"", b"{", b"[1]", b"null", b"\xff"])
def test_damaged_fingerprints_say_nothing_of_any_notebook(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "fingerprints.json").write_bytes(damaged)
    assert notebooks.read_marks(tmp_path) == {}
    notebooks.write_mark(tmp_path / "a.ipynb", "mark")
    assert notebooks.read_marks(tmp_path) == {"a.ipynb": "mark"}


def test_a_copy_broken_off_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a full disk, say: what stood there stays; and a torn output of older versions is not current."""
    notebook = write_notebook(tmp_path / "in" / "a.ipynb", "heads = 30")
    notebooks.write_mark(notebook, notebooks.fingerprint(notebook, {}))
    run, out = ["run", str(notebook), "--out", str(tmp_path / "out")], tmp_path / "out" / "a.ipynb"
    assert cli.main(run) == 0
    out.write_bytes(notebook.read_bytes()[:50])
    assert cli.main(run) == 0
    assert out.read_bytes() == notebook.read_bytes()
    out.unlink()

    def torn(path: Path, content: bytes) -> None:
        path.open("wb").write(content[:50])
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", torn)
        assert cli.main(run) == 1
    assert not out.exists() and cli.main(run) == 0


@pytest.mark.parametrize("content", ["{", "[]", '{"cells": [5], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'])
def test_what_is_no_notebook_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    (tmp_path / "a.ipynb").write_text(content)
    for command in (["run"], ["stabilise"]):
        assert cli.main([*command, str(tmp_path / "a.ipynb"), "--out", str(tmp_path / "out")]) == 1
        [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("selattn:")]
        assert f"{tmp_path / 'a.ipynb'} is no notebook, or is broken off" in line


def test_two_notebooks_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = [str(write_notebook(tmp_path / name / "a.ipynb", "heads = 30")) for name in ("one", "two")]
    for command in ("run", "stabilise"):
        assert cli.main([command, *both, "--out", str(tmp_path / "out")]) == 1
        assert "several notebooks are named a.ipynb: expected one of each name" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dead_kernel_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def die(*_: object, **__: object) -> None:
        raise DeadKernelError("Kernel died")

    monkeypatch.setattr("papermill.execute_notebook", die)
    notebook = write_notebook(tmp_path / "in" / "a.ipynb", "heads = 30")
    assert cli.main(["run", str(notebook), "--out", str(tmp_path / "out")]) == 1
    assert "a.ipynb: its kernel died, most often for want of memory" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


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
    notebooks.write_mark(path, "abc")
    nb.metadata["papermill"] = {"start_time": "now"}
    nbformat.write(nb, path)
    assert cli.main(["stabilise", str(path)]) == 0
    nb = nbformat.read(path, as_version=4)
    assert set(nb.metadata) == {"kernelspec", "language_info"}
    assert notebooks.read_marks(tmp_path) == {"a.ipynb": "abc"}
    assert nb.cells[1].metadata == {"tags": ["parameters"]}
    assert nb.cells[1].outputs[0].data == {"text/plain": "1"}


def test_a_notebook_is_left_as_it_is_where_no_output_changed(tmp_path: Path) -> None:
    work = "import time; start = time.time(); time.sleep(heads / 1000); print(f'{time.time() - start:.6f} s')"
    notebook = write_notebook(tmp_path / "notebooks" / "a.ipynb", "heads = 30", work, WIDGETS)
    run = ["run", str(notebook), "--out", str(tmp_path / "runs"), "--again"]
    refresh = ["stabilise", str(tmp_path / "runs" / "a.ipynb"), "--out", str(notebook.parent)]
    assert cli.main(run) == cli.main(refresh) == 0
    text = notebook.read_text().replace("\n", "\r\n")  # Windows' line ends
    notebook.write_bytes(text.encode())
    stamp, before = notebook.stat().st_mtime_ns, nbformat.read(tmp_path / "runs" / "a.ipynb", as_version=4)
    assert cli.main(run) == cli.main(refresh) == 0
    assert nbformat.read(tmp_path / "runs" / "a.ipynb", as_version=4) != before, "it took as long to the microsecond"
    assert notebook.read_bytes() == text.encode() and notebook.stat().st_mtime_ns == stamp

    write_notebook(notebook, "heads = 30", work.replace("start:", "start + 1:").replace("} s", "} s more"), WIDGETS)
    assert cli.main(run) == cli.main(refresh) == 0
    assert " s more" in notebook.read_text()


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the library, whose files decide fingerprints."""
    shutil.copytree(notebooks.LIBRARY, tmp_path / "library", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(notebooks, "LIBRARY", tmp_path / "library")
    return tmp_path / "library"


@pytest.mark.parametrize(
    "changed, stale",
    [
        ("emoji/weights/unet/diffusion_pytorch_model.safetensors", True),
        ("emoji/weights/scheduler/scheduler_config.json", True),
        ("emoji/hrv.npz", True),
        ("data/concepts_emoji_sd.yaml", True),
        ("emoji/recipe/train.py", False),  # a docstring of the training recipe
        ("maps/aggregation.py", False),  # what a change of code does is found by replaying the notebooks
        ("explorers/js/explorer.css", False),
        ("emoji/weights/README.md", False),
    ],
)
def test_a_notebook_is_stale_when_its_model_changes_and_not_when_a_docstring_does(
    tmp_path: Path, library: Path, changed: str, stale: bool
) -> None:
    notebook = write_notebook(tmp_path / "a.ipynb", "heads = 30")
    mark = notebooks.fingerprint(notebook, {})
    notebooks.write_mark(notebook, mark)
    assert notebooks.is_current(notebook, notebooks.fingerprint(notebook, {}))
    path = library / changed
    path.write_bytes(path.read_bytes() + (b"\n" if path.suffix in digests.TEXT else b" "))
    notebooks.digest_of_model.cache_clear()
    assert notebooks.is_current(notebook, notebooks.fingerprint(notebook, {})) != stale


def test_a_notebook_is_stale_when_its_cells_parameters_or_the_format_of_stores_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = write_notebook(tmp_path / "a.ipynb", "heads = 30")
    marks = {notebooks.fingerprint(notebook, {}), notebooks.fingerprint(notebook, {"heads": 20})}
    marks |= {notebooks.fingerprint(write_notebook(tmp_path / "a.ipynb", "heads = 31"), {})}
    monkeypatch.setattr(notebooks, "FORMAT", -1)
    assert len(marks | {notebooks.fingerprint(notebook, {})}) == 4


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_checkout_with_windows_line_ends_is_as_current_as_any(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind, name in (("tokenizer", "tokenizer.json"), ("vae", "diffusion_pytorch_model.safetensors")):
        shutil.copytree(library / "emoji" / "weights" / kind, tmp_path / "origin" / "lib" / "emoji" / "weights" / kind)
        assert (tmp_path / "origin" / "lib" / "emoji" / "weights" / kind / name).exists()
    shutil.copytree(library / "data", tmp_path / "origin" / "lib" / "data")
    write_notebook(tmp_path / "origin" / "a.ipynb", "heads = 30", "print(heads)")

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments], check=True, cwd=tmp_path)

    git("init", "-q", "origin")
    git("-C", "origin", "add", ".")
    git("-C", "origin", "commit", "-q", "-m", "first")
    marks = set()
    for checkout in ("true", "false"):
        git("clone", "-q", "-c", f"core.autocrlf={checkout}", "origin", checkout)
        assert (b"\r\n" in (tmp_path / checkout / "a.ipynb").read_bytes()) == (checkout == "true")
        monkeypatch.setattr(notebooks, "LIBRARY", tmp_path / checkout / "lib")
        marks.add(notebooks.fingerprint(tmp_path / checkout / "a.ipynb", {}))
    assert len(marks) == 1


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["run", "a.ipynb"], "'--out'"),
        (["run", "a.ipynb", "--out", "x", "-p", "heads"], "expected a name and a value"),
        (["reproduce"], "'--model'"),
        (["reproduce", "--model", "sd14", "--dtype", "fp8"], "'--dtype'"),
        (["reproduce", "--model", "sd14", "--nosuch"], "--nosuch"),
        ([], "Missing command"),
    ],
)
def test_wrong_options_exit_with_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2 and said in capsys.readouterr().err


def test_help_lists_an_option_for_each_field_of_reproduces_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["reproduce", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for name, field in ReproduceOptions.model_fields.items():
        assert f"--{name.replace('_', '-')} " in said and field.description in said


@pytest.mark.parametrize(
    "text, value",
    [("20", 20), ("0.4", 0.4), ("[0.3, 0.4]", [0.3, 0.4]), ("True", True), ("sd14", "sd14"), ("a b", "a b")],
)
def test_parameters_are_read_as_python_values(text: str, value: object) -> None:
    assert read_literal(text) == value


def test_a_missing_notebook_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "no.ipynb"
    assert cli.main(["run", str(missing), "--out", str(tmp_path)]) == 1
    assert f"{missing} does not exist" in capsys.readouterr().err
    assert cli.main(["book", "--notebooks", str(tmp_path)]) == 1
    assert "no notebook in" in capsys.readouterr().err


def test_a_kernel_that_another_environment_left_behind_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor one that the user's settings prefer: notebooks run in the Python that runs them."""
    stale = {"argv": ["/usr/bin/false", "-f", "{connection_file}"], "display_name": "old", "language": "python"}
    (folder := tmp_path / "kernels" / "python3").mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(stale))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    assert KernelSpecManager().get_kernel_spec("python3").argv[0] == "/usr/bin/false"
    one = papermill_engines.get_engine(None)
    papermill_engines.register(None, NBClientEngine)
    try:
        notebook = write_notebook(tmp_path / "in" / "a.ipynb", "heads = 30", "import sys; print(sys.executable)")
        assert cli.main(["run", str(notebook), "--out", str(tmp_path)]) == 0
    finally:
        papermill_engines.register(None, one)
    assert nbformat.read(tmp_path / "a.ipynb", as_version=4).cells[-1].outputs[0].text == f"{sys.executable}\n"
