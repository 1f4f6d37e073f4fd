"""The command `selattn`: explain a prompt, run notebooks, build the book, reproduce the paper on another model."""

import gc
import os
import signal
import sys
from collections.abc import Sequence
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer

from .publishing.options import ReproduceOptions

app = typer.Typer(help=__doc__, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
Notebooks = Annotated[list[Path], typer.Argument(metavar="NOTEBOOK")]
Workers = Annotated[str | None, typer.Option(help="processes to compute with, or the address of a dask scheduler")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: 0 on success; 1, with one line on standard error, on failure. Wrong options exit with 2."""
    arguments = repeated(list(sys.argv[1:] if arguments is None else arguments), "--words")
    for at in [i for i, text in enumerate(arguments) if text == "-p"][::-1]:  # typer repeats no option of two values
        arguments[at + 1 : at + 3] = ["=".join(arguments[at + 1 : at + 3])]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was begun is cleared away
    gc.set_threshold(100_000, 50, 50)  # imports and pages are millions of objects that stay: looked through less often
    try:
        typer.main.get_command(app)(arguments, "selattn")
    except SystemExit as end:
        if end.code:
            raise
    except (OSError, MemoryError, ValueError) as error:
        print(f"selattn: {error}", file=sys.stderr)
        return 1
    return 0


def repeated(arguments: list[str], option: str) -> list[str]:
    """`--words cat dog` as `--words cat --words dog`, for typer, whose options take one value each."""
    spelled: list[str] = []
    inside = False
    for text in arguments:
        if inside and not text.startswith("-"):
            spelled += [option] * (spelled[-1] != option) + [text]
        else:
            spelled.append(text)
        inside = text == option or (inside and not text.startswith("-"))
    return spelled


# What takes seconds to import is imported by the command that needs it.


@app.command(name="run")
def run_notebooks(
    notebooks: Notebooks,
    out: Annotated[Path, typer.Option(help="folder of the executed notebooks")],
    parameter: Annotated[list[str], typer.Option("-p", metavar="NAME VALUE", help="of a notebook")] = [],  # noqa: B006
    again: Annotated[bool, typer.Option("--again", help="execute even those that are current")] = False,
    workers: Workers = None,
) -> None:
    """Execute notebooks that are not current."""
    from .publishing.notebooks import run
    from .studies.parameters import read_literal

    spread(workers)
    if unpaired := [text for text in parameter if "=" not in text]:
        raise typer.BadParameter(f"-p {unpaired[0]}: expected a name and a value")
    pairs = [text.partition("=") for text in parameter]
    run(notebooks, out, {name: read_literal(value) for name, _, value in pairs}, again=again)


@app.command(name="stabilise")
def stabilise_notebooks(
    notebooks: Notebooks, out: Annotated[Path | None, typer.Option(help="folder to write to; default: in place")] = None
) -> None:
    """Drop clocks and random ids from notebooks.

    A notebook whose outputs are the same as before is left as it is.
    """
    from .publishing.notebooks import stabilise

    stabilise(notebooks, out)


@app.command()
def book(
    notebooks: Annotated[Path, typer.Option(help="folder of executed notebooks")],
    out: Annotated[Path, typer.Option(help="the book goes to OUT/_build/html")] = Path("book"),
    one_page: Annotated[bool, typer.Option("--print", help="one page, for paper: OUT/_build/singlehtml")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="warnings are errors")] = False,
) -> None:
    """Build the book from executed notebooks."""
    from .publishing.build import build_book

    print(build_book(Path.cwd(), notebooks, out, "singlehtml" if one_page else "html", strict).resolve())


@app.command()
def explain(
    prompt: Annotated[str, typer.Argument(help="what to draw, in quotes")],
    words: Annotated[list[str], typer.Option(metavar="WORD ...", help="words of the prompt, as they stand in it")],
    out: Annotated[Path, typer.Option(help="folder of the results: new, empty, or of an earlier run")],
    model: Annotated[str, typer.Option(help="a name, a hub id, or a local folder")] = "emoji-sd",
    heads: Annotated[str, typer.Option(help="how many of the most relevant heads to average, or all")] = "30",
    concept: Annotated[str, typer.Option(help="whose heads; default: that of the first word")] = "",
    seeds: Annotated[int, typer.Option(help="how many pictures, of seeds 0, 1 ...")] = 1,
    steps: Annotated[int, typer.Option(help="denoising steps")] = 50,
    guidance: Annotated[float | None, typer.Option(help="guidance scale; default: the model's own")] = None,
    threshold: Annotated[float, typer.Option(help="the mask is what lies above it")] = 0.4,
    hrv: Annotated[str, typer.Option(help="head relevance: an .npz file or a folder of published vectors")] = "",
) -> None:
    """From a prompt to its picture, and where its words went in it.

    Writes the picture, overlays, maps and masks as PNG files, and index.html, a page to explore them in any browser.
    """
    from .publishing.explain import explain

    words = [word for text in words for word in text.split(",")]
    options: dict[str, Any] = {
        "model": model,
        "heads": heads,
        "concept": concept,
        "seeds": seeds,
        "steps": steps,
        "hrv": hrv,
    }
    print(explain(prompt, words, out, guidance=guidance, threshold=threshold, **options).resolve())


def reproduce(**options: Any) -> None:
    """The paper's study on another model."""
    from .publishing.reproduce import Reproduction

    spread(options["workers"])
    Reproduction(**options).run(Path.cwd())


def signature_of(options: type[ReproduceOptions]) -> Signature:
    """A function's signature with an option for each field: its name, type, default and description."""
    parameters = []
    for name, field in options.model_fields.items():
        flag = name.replace("_", "-")
        flags = [f"--{flag}/--no-{flag}" if field.default else f"--{flag}"] if field.annotation is bool else []
        option = typer.Option(*flags, help=field.description, show_default=field.default not in ("", None, False))
        default = Parameter.empty if field.is_required() else field.default
        annotation = Annotated[field.annotation, option]  # type: ignore[name-defined]
        parameters.append(Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation))
    return Signature(parameters)


reproduce.__signature__ = signature_of(ReproduceOptions)  # type: ignore[attr-defined]
app.command()(reproduce)


def spread(workers: str | None) -> None:
    """Have studies computed by workers, here and in the kernels of notebooks."""
    if workers:
        from .studies.runner import workers_wanted

        os.environ["SELATTN_WORKERS"] = str(workers_wanted(workers))
