"""Building the book with Jupyter Book."""

import shutil
import sys
import warnings
from pathlib import Path


def stage(root: Path, notebooks: Path, source: Path) -> None:
    """Put what the book is made of side by side in `source`; times of files are kept for Sphinx's sake."""
    shutil.rmtree(source, ignore_errors=True)
    for name in ("_config.yml", "_toc.yml", "CHANGELOG.md"):
        source.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, source)
    shutil.copytree(root / "book", source / "book", ignore=shutil.ignore_patterns("_build", "__pycache__"))
    (source / "notebooks").mkdir()
    for notebook in sorted(notebooks.glob("*.ipynb")):
        shutil.copy2(notebook, source / "notebooks")


def build_book(
    root: Path, notebooks: Path, out: Path, builder: str = "html", strict: bool = False, fresh: bool = True
) -> Path:
    """Build the book of repository `root` from executed notebooks into `out`/_build; returns its index.html.

    `builder`: "html", or "singlehtml" for one page, to be printed. `strict`: warnings are errors. `fresh`: all
    pages are read anew; if not, those that an earlier call for the same `out` has read are taken. Raises SystemExit
    if it fails, after Jupyter Book has said why.
    """
    if not any(notebooks.glob("*.ipynb")):
        raise FileNotFoundError(f"no notebook in {notebooks}; make some with: selattn run --out {notebooks} ...")
    source = out / "_build" / "source"
    stage(root, notebooks, source)
    try:
        from jupyter_book.cli.main import main as jupyter_book
    except ImportError:
        raise FileNotFoundError("jupyter-book is not installed; it comes with: pip install -e '.[book]'") from None
    command = ["build", str(source), "--path-output", str(out), "--builder", builder]
    print("building the book", file=sys.stderr, flush=True)
    command += ["--all"] * fresh + (["-W", "-n", "--keep-going"] if strict else ["-q"])
    with warnings.catch_warnings():  # an extension looks at every object there is, PyTorch's deprecated ones among them
        warnings.simplefilter("ignore", FutureWarning)
        try:
            jupyter_book(command, standalone_mode=False)
        except RuntimeError as error:
            raise SystemExit(1) from error
    return out / "_build" / builder / "index.html"
