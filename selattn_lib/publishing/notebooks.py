"""Notebooks and book: run notebooks with papermill, stabilise them, build the book with Jupyter Book."""

import hashlib
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from ..studies.digests import FORMAT, files_digest

LIBRARY = Path(__file__).parents[1]
DECISIVE = ("data/*", "emoji/weights*/**/*", "emoji/art.zip", "emoji/glyphs.yaml", "emoji/hrv.npz")  # of LIBRARY
MARKS = "fingerprints.json"  # beside notebooks: what each was executed with
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
DURATION = re.compile(r"\b\d+(\.\d+)? ?(s|ms|seconds|minutes|min)\b")


class NotebookFailed(ChildProcessError):
    """A cell of a notebook raised; the message is one line: notebook, cell, error."""


def read(path: Path) -> NotebookNode:
    """A notebook; ValueError, with the file's name, if it is none."""
    try:
        nb = nbformat.read(path, as_version=4)
        nbformat.validate(nb, relax_add_props=True)
        return nb
    except (ValueError, KeyError, TypeError, AttributeError, nbformat.ValidationError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise ValueError(f"{path} is no notebook, or is broken off ({reason}): put it back, or delete it") from error


def replace(path: Path, nb: NotebookNode | bytes) -> None:
    """Write a notebook aside and then into its place, so that it is whole whenever it is there."""
    draft = path.with_suffix(".draft")
    draft.write_bytes(nb if isinstance(nb, bytes) else f"{nbformat.writes(nb)}\n".encode())
    os.replace(draft, path)


def fingerprint(notebook: Path, parameters: Mapping[str, Any]) -> str:
    """Hash of what decides a notebook's outputs: its code, the parameters, the embedded model and the concepts, and the
    format of stored studies. What a change of the library does to outputs is found by replaying them."""
    code = [cell.source for cell in read(notebook).cells if cell.cell_type == "code"]
    decisive = [code, dict(parameters), FORMAT, digest_of_model(LIBRARY)]
    if any("planted_heads" in source or "emoji-control" in source for source in code):
        decisive.append(digest_of_control(LIBRARY))
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()


@cache
def digest_of_model(library: Path) -> str:
    """Hash of the files of the library that decide what the embedded model draws, whatever line ends text has."""
    paths = {path for pattern in DECISIVE for path in library.glob(pattern) if path.suffix not in (".md", ".py")}
    return files_digest((path for path in paths if path.is_file()), library)


def digest_of_control(library: Path) -> str:
    """Hash of what makes `emoji-control` of the embedded model, which matters to chapters that speak of it."""
    return files_digest((library / "emoji" / "planted").iterdir(), library)


def is_current(executed: Path, mark: str) -> bool:
    """Whether `executed` is a notebook that was made by the sources of the fingerprint `mark`."""
    try:
        return read_marks(executed.parent).get(executed.name) == mark and bool(read(executed))
    except (FileNotFoundError, ValueError):
        return False


def read_marks(folder: Path) -> dict[str, str]:
    """Name of each executed notebook in a folder -> fingerprint of its sources.

    They stand in a file of their own, so that a notebook whose outputs stay the same stays the same file.
    """
    path = folder / MARKS
    try:
        return dict(json.loads(path.read_text())) if path.exists() else {}
    except (ValueError, TypeError):  # damaged: nothing is known of any
        return {}


def write_mark(executed: Path, mark: str | None) -> None:
    """Note what a notebook was executed with; None: nothing is known of it any more."""
    marks = {**read_marks(executed.parent), executed.name: mark}
    lines = json.dumps({name: value for name, value in sorted(marks.items()) if value}, indent=1)
    replace(executed.parent / MARKS, f"{lines}\n".encode())


def take_prose(executed: Path, notebook: Path) -> None:
    """Give an executed notebook the prose of the notebook that it was made from, whose code is the same."""
    done, nb = read(executed), read(notebook)
    of_code = [cell for cell in done.cells if cell.cell_type == "code"]
    injected = [cell for cell in of_code if "injected-parameters" in cell.metadata.get("tags", [])]
    outputs, cells = iter(cell for cell in of_code if cell not in injected), []
    for cell in nb.cells:
        cells.append(next(outputs) if cell.cell_type == "code" else cell)
        cells += injected if "parameters" in cell.metadata.get("tags", []) else []
    if cells != done.cells:
        done.cells = cells
        replace(executed, done)


def run_notebook(notebook: Path, out: Path, parameters: Mapping[str, Any], *, again: bool = False) -> bool:
    """Execute `notebook` into `out`, unless `out` is current, or `notebook` itself was executed with these sources and
    is copied; returns whether anything was run. `again`: execute it in any case.

    `out` is replaced only after every cell has succeeded. Raises NotebookFailed otherwise.
    """
    import papermill
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    class ThisPython(AsyncKernelManager):
        """Starts the Python that runs, whatever kernel is installed under the notebook's name."""

        kernel_spec = KernelSpec(**get_kernel_dict())

    from nbclient.exceptions import DeadKernelError

    mark = fingerprint(notebook, parameters)
    if is_current(out, mark) and not again:
        take_prose(out, notebook)
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    if is_current(notebook, mark) and not again:
        replace(out, notebook.read_bytes())
        write_mark(out, mark)
        return False
    try:
        nb = papermill.execute_notebook(
            notebook, None, dict(parameters), kernel_name="python3", progress_bar=False,
            kernel_manager_class=ThisPython, stderr_file=sys.stderr,  # the progress bars of the studies
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        reason = " ".join(f"{error.ename}: {error.evalue}".split())
        raise NotebookFailed(f"{notebook.name}: cell [{error.exec_count}] failed: {reason}") from error
    except DeadKernelError as error:
        raise NotebookFailed(f"{notebook.name}: its kernel died, most often for want of memory") from error
    replace(out, stabilised(nb))
    write_mark(out, mark)
    return True


def stabilised(nb: NotebookNode) -> NotebookNode:
    """The notebook without what differs between runs: clocks, durations, progress bars, random ids.

    Cell ids and every output of the cells stay; widget ids are renumbered in the order of their appearance.
    """
    nb.metadata = NotebookNode({name: nb.metadata[name] for name in ("kernelspec", "widgets") if name in nb.metadata})
    nb.metadata["language_info"] = NotebookNode(name="python", pygments_lexer="ipython3")
    for cell in nb.cells:
        for name in ("papermill", "execution", "ExecuteTime"):
            cell.metadata.pop(name, None)
        if cell.cell_type == "code":
            cell.outputs = list(merged_streams(cell.outputs))
    names = {old: f"{number:032x}" for number, old in enumerate(widget_order(nb), start=1)}
    text = WIDGET_ID.sub(lambda match: names.get(match[0], match[0]), nbformat.writes(nb))
    return nbformat.reads(text, as_version=4)


def merged_streams(outputs: Sequence[NotebookNode]) -> Iterator[NotebookNode]:
    """Standard output as one piece however it was chunked; standard error (progress bars) dropped."""
    kept = [output for output in outputs if output.output_type != "stream" or output.name != "stderr"]
    for is_stream, group in groupby(kept, lambda output: output.output_type == "stream"):
        if not is_stream:
            yield from group
            continue
        first, *others = group
        first.text += "".join(output.text for output in others)
        yield first


def widget_order(nb: NotebookNode) -> list[str]:
    """Widget ids: the displayed ones in page order, each followed by those it refers to, then the rest.

    The rest (links between widgets, say) is ordered by content, so that the order does not depend on the ids.
    """
    state = nb.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    texts = {name: json.dumps(model, sort_keys=True) for name, model in state.items()}
    order: dict[str, int] = {}

    def visit(name: str) -> None:
        if name in texts and name not in order:
            order[name] = len(order)
            for other in WIDGET_ID.findall(texts[name]):
                visit(other)

    for cell in nb.cells:
        for output in cell.get("outputs", []):
            visit(output.get("data", {}).get(WIDGET_VIEW, {}).get("model_id", ""))
    while rest := [name for name in texts if name not in order]:
        visit(min(rest, key=lambda name: WIDGET_ID.sub(lambda m: f"{order.get(m[0], -1)}", texts[name])))
    return list(order)


def stabilise(notebooks: Sequence[Path], out: Path | None) -> None:
    """Write each notebook stabilised into folder `out` (None: in place), with what it was executed with.

    A notebook that is there already, with the same cells and, durations aside, the same outputs, is left as it is.
    """
    check_names(notebooks)
    for notebook in notebooks:
        nb = stabilised(read(notebook))
        target = out / notebook.name if out else notebook
        if target.exists() and without_durations(read(target)) == without_durations(nb):
            log(f"{target}: as before")
        else:
            replace(target, nb)
            log(f"{target}: stabilised")
        write_mark(target, read_marks(notebook.parent).get(notebook.name))


def without_durations(nb: NotebookNode) -> str:
    """A notebook as text, each duration in an output as one and the same."""
    nb = nbformat.from_dict(nb)
    for output in (output for cell in nb.cells for output in cell.get("outputs", [])):
        for holder, key in ((output, "text"), (output.get("data", {}), "text/plain")):
            if key in holder:
                holder[key] = DURATION.sub("DURATION", holder[key])
    return nbformat.writes(nb)


def run(notebooks: Sequence[Path], out: Path, parameters: Mapping[str, Any], *, again: bool = False) -> None:
    """`run_notebook` for each, in order, with those of the parameters that it has; stops at the first that fails.

    Raises FileNotFoundError if there is no such notebook, ValueError if a parameter is none of any notebook's, both
    before anything is run.
    """
    check_names(notebooks)
    known = [parameters_of(notebook) for notebook in notebooks]
    if unknown := set(parameters) - set().union(*known):
        names = ", ".join(sorted(set().union(*known)))
        raise ValueError(f"no parameter {', '.join(sorted(unknown))} in these notebooks: expected some of {names}")
    for number, (notebook, names_here) in enumerate(zip(notebooks, known, strict=True), start=1):
        log(f"[{number}/{len(notebooks)}] {notebook.name}")
        start = time.monotonic()
        given = {name: value for name, value in parameters.items() if name in names_here}
        ran = run_notebook(notebook, out / notebook.name, given, again=again)
        log(f"      run in {time.monotonic() - start:.0f} s" if ran else "      is current, not run again")


def check_names(notebooks: Sequence[Path]) -> None:
    """ValueError if two notebooks have one name, since one would take the other's place."""
    if twice := [name for name, times in Counter(path.name for path in notebooks).items() if times > 1]:
        raise ValueError(f"several notebooks are named {', '.join(twice)}: expected one of each name for one folder")


def parameters_of(notebook: Path) -> set[str]:
    """Names of the parameters of a notebook; FileNotFoundError if it does not exist."""
    import papermill

    if not notebook.exists():
        raise FileNotFoundError(f"{notebook} does not exist; give a notebook's path, seen from {Path.cwd()}")
    read(notebook)
    return set(papermill.inspect_notebook(notebook))


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
