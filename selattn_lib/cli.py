"""The command `selattn`: run notebooks, stabilise them, build the book, reproduce the paper on another model."""

import argparse
import ast
import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any


def parse_value(text: str) -> Any:
    """A parameter as typed: a Python literal (30, 0.4, [1, 2], True), else the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def parser() -> argparse.ArgumentParser:
    """The arguments of `selattn`."""
    top = argparse.ArgumentParser(prog="selattn", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    one = commands.add_parser("run", help="execute notebooks that are not current")
    one.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    one.add_argument("--out", type=Path, required=True, help="folder of the executed notebooks")
    one.add_argument("-p", dest="parameters", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    one.add_argument("--workers", help="processes to compute studies with, or the address of a dask scheduler")

    two = commands.add_parser("stabilise", help="drop clocks, progress bars and random ids from notebooks")
    two.add_argument("notebooks", nargs="+", type=Path, metavar="NOTEBOOK")
    two.add_argument("--out", type=Path, help="folder to write to; default: in place")

    three = commands.add_parser("book", help="build the book from executed notebooks")
    three.add_argument("--notebooks", type=Path, required=True, help="folder of executed notebooks")
    three.add_argument("--out", type=Path, default=Path("book"), help="the book goes to OUT/_build/html")
    three.add_argument("--print", action="store_true", help="all on one page, for paper: OUT/_build/singlehtml")
    three.add_argument("--strict", action="store_true", help="warnings are errors")

    four = commands.add_parser("reproduce", help="the paper's experiments on another model, with a book of their own")
    four.add_argument("--model", required=True, help="sd14, sd15, sd21, sdxl, a hub id, or a local folder")
    four.add_argument("--out", type=Path, help="folder of the notebooks and the book; default: runs/reproduce-MODEL")
    four.add_argument("--device", help="cuda, mps or cpu; default: the best there is")
    four.add_argument("--dtype", default="", choices=["fp32", "fp16", "bf16"], help="default: the device's own")
    four.add_argument("--batch", type=int, default=10, help="images drawn together; default: %(default)s")
    four.add_argument("--offload", action="store_true", help="keep in main memory what the card is not at")
    four.add_argument(
        "--words", type=int, choices=range(1, 11), default=10, metavar="N", help="of the ten animals; default: all"
    )
    four.add_argument("--seeds", type=int, default=10, help="images of each prompt; default: %(default)s, the paper's")
    four.add_argument("--steps", type=int, default=50, help="denoising steps; default: %(default)s, the paper's")
    four.add_argument("--hrv", default="", help="head relevance to use: an .npz file or a folder of published ones")
    four.add_argument("--hrv-images", type=int, default=2100, help="to count it on otherwise; default: %(default)s")
    four.add_argument("--segmenter", default="", help="grounded-sam, sam3 or a local folder; default: the model's own")
    four.add_argument("--workers", help="processes to compute with, or the address of a dask scheduler")
    four.add_argument("--dry-run", action="store_true", help="print what would be done, and stop")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: 0 on success; 1, with one line on standard error, on failure."""
    given = parser().parse_args(arguments)  # before the imports, which take seconds
    from .publishing import build, notebooks

    try:
        if getattr(given, "workers", None):
            from .studies.runner import workers_wanted

            os.environ["SELATTN_WORKERS"] = str(workers_wanted(given.workers))  # seen by the notebooks' kernels
        if given.command == "run":
            parameters = {name: parse_value(value) for name, value in given.parameters}
            notebooks.run(given.notebooks, given.out, parameters)
        elif given.command == "stabilise":
            notebooks.stabilise(given.notebooks, given.out)
        elif given.command == "book":
            builder = "singlehtml" if given.print else "html"
            print(build.build_book(Path.cwd(), given.notebooks, given.out, builder, given.strict).resolve())
        else:
            from .publishing.reproduce import Reproduction

            settings = {field.name: getattr(given, field.name) for field in fields(Reproduction)}
            Reproduction(**settings).run(Path.cwd(), dry=given.dry_run)
    except (notebooks.NotebookFailed, OSError, MemoryError, ValueError) as error:
        print(f"selattn: {error}", file=sys.stderr)
        return 1
    return 0
