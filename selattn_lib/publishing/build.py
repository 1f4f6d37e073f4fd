"""Building the book with Jupyter Book."""

import shutil
import subprocess
import sys
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
    with Jupyter Book's code if it fails.
    """
    if not any(notebooks.glob("*.ipynb")):
        raise FileNotFoundError(f"no notebook in {notebooks}; make some with: selattn run --out {notebooks} ...")
    source = out / "_build" / "source"
    stage(root, notebooks, source)
    jupyter_book = Path(sys.executable).with_name("jupyter-book")
    if not jupyter_book.exists():
        raise FileNotFoundError(f"{jupyter_book} does not exist; it comes with: pip install -e '.[book]'")
    command = [str(jupyter_book), "build", str(source), "--path-output", str(out), "--builder", builder]
    print("building the book", file=sys.stderr, flush=True)
    command += ["--all"] * fresh + (["-W", "-n", "--keep-going"] if strict else ["-q"])
    status = subprocess.run(command).returncode
    if status:
        raise SystemExit(status)
    return out / "_build" / builder / "index.html"
