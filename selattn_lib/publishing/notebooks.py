"""Notebooks and book: run notebooks with papermill, stabilise them, build the book with Jupyter Book."""

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

LIBRARY = Path(__file__).parent


WIDGET_STATE = "application/vnd.jupyter.widget-state+json"


WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


WIDGET_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")


class NotebookFailed(Exception):
    """A cell of a notebook raised; the message is one line: notebook, cell, error."""


def fingerprint(notebook: Path, parameters: Mapping[str, Any]) -> str:
    """Hash of what decides a notebook's outputs: its cells, the parameters, the library and its weights."""
    cells = [(cell.cell_type, cell.source) for cell in nbformat.read(notebook, as_version=4).cells]
    digest = hashlib.sha256(json.dumps([cells, dict(parameters)], sort_keys=True, default=str).encode())
    for path in sorted(p for p in LIBRARY.rglob("*") if p.is_file() and "__pycache__" not in p.parts):
        digest.update(path.relative_to(LIBRARY).as_posix().encode())
        digest.update(hashlib.file_digest(path.open("rb"), "sha256").digest())
    return digest.hexdigest()


def is_current(executed: Path, wanted: str) -> bool:
    """Whether `executed` exists and was made by the sources of fingerprint `wanted`."""
    return executed.exists() and read_fingerprint(executed) == wanted


def read_fingerprint(executed: Path) -> str | None:
    return nbformat.read(executed, as_version=4).metadata.get("selattn", {}).get("fingerprint")


def run_notebook(notebook: Path, out: Path, parameters: Mapping[str, Any]) -> bool:
    """Execute `notebook` into `out`, unless `out` is current, or `notebook` itself was executed with these sources and
    is copied; returns whether anything was run.

    `out` is replaced only after every cell has succeeded. Raises NotebookFailed otherwise.
    """
    import papermill

    wanted = fingerprint(notebook, parameters)
    if is_current(out, wanted):
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    if is_current(notebook, wanted):
        shutil.copyfile(notebook, out)
        return False
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        draft = Path(folder, out.name)
        try:
            papermill.execute_notebook(
                notebook,
                draft,
                dict(parameters),
                kernel_name="python3",
                progress_bar=False,
                stderr_file=sys.stderr,  # the progress bars of the studies
            )
        except papermill.PapermillExecutionError as error:
            what = " ".join(f"{error.ename}: {error.evalue}".split())
            raise NotebookFailed(f"{notebook.name}: cell [{error.exec_count}] failed: {what}") from error
        nb = stabilised(nbformat.read(draft, as_version=4))
        nb.metadata["selattn"] = {"fingerprint": wanted}
        nbformat.write(nb, draft)
        os.replace(draft, out)
    return True


def stabilised(nb: NotebookNode) -> NotebookNode:
    """The notebook without what differs between runs: clocks, durations, progress bars, random ids.

    Cell ids and every output of the cells stay; widget ids are renumbered in the order of their appearance.
    """
    kept = [name for name in ("kernelspec", "selattn", "widgets") if name in nb.metadata]
    nb.metadata = NotebookNode({name: nb.metadata[name] for name in kept})
    nb.metadata["language_info"] = NotebookNode(name="python", pygments_lexer="ipython3")
    for cell in nb.cells:
        cell.metadata = NotebookNode(
            {k: v for k, v in cell.metadata.items() if k not in ("papermill", "execution", "ExecuteTime")}
        )
        if cell.cell_type == "code":
            cell.outputs = list(merged_streams(cell.outputs))
    names = {old: f"{number:032x}" for number, old in enumerate(widget_order(nb), start=1)}
    text = WIDGET_ID.sub(lambda found: names.get(found[0], found[0]), nbformat.writes(nb))
    return nbformat.reads(text, as_version=4)


def merged_streams(outputs: Sequence[NotebookNode]) -> Iterator[NotebookNode]:
    """Standard output as one piece however it was chunked; standard error (progress bars) dropped."""
    pending = None
    for output in outputs:
        if output.output_type == "stream" and output.name == "stderr":
            continue
        if pending is not None and output.output_type == "stream":
            pending.text += output.text
            continue
        if pending is not None:
            yield pending
        pending = output if output.output_type == "stream" else None
        if pending is None:
            yield output
    if pending is not None:
        yield pending


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
    """Write each notebook stabilised into folder `out` (None: in place)."""
    for notebook in notebooks:
        nb = stabilised(nbformat.read(notebook, as_version=4))
        target = out / notebook.name if out else notebook
        draft = target.with_suffix(".draft")
        nbformat.write(nb, draft)
        os.replace(draft, target)
        log(f"{target}: stabilised")


def run(notebooks: Sequence[Path], out: Path, parameters: Mapping[str, Any]) -> None:
    """`run_notebook` for each, in order, with those of the parameters that it has; stops at the first that fails.

    Raises FileNotFoundError if there is no such notebook, ValueError if a parameter is none of any notebook's, both
    before anything is run.
    """
    known = [parameters_of(notebook) for notebook in notebooks]
    if unknown := set(parameters) - set().union(*known):
        names = ", ".join(sorted(set().union(*known)))
        raise ValueError(f"no parameter {', '.join(sorted(unknown))} in these notebooks: expected some of {names}")
    for number, (notebook, has) in enumerate(zip(notebooks, known, strict=True), start=1):
        log(f"[{number}/{len(notebooks)}] {notebook.name}")
        start = time.monotonic()
        given = {name: value for name, value in parameters.items() if name in has}
        ran = run_notebook(notebook, out / notebook.name, given)
        log(f"      run in {time.monotonic() - start:.0f} s" if ran else "      is current, not run again")


def parameters_of(notebook: Path) -> set[str]:
    """Names of the parameters of a notebook; FileNotFoundError if it does not exist."""
    import papermill

    if not notebook.exists():
        raise FileNotFoundError(f"{notebook} does not exist; give a notebook's path, seen from {Path.cwd()}")
    return set(papermill.inspect_notebook(notebook))


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
