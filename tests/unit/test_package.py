"""The package as a whole: its public names, and what importing it costs."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import selattn_lib as sa

LIBRARY = Path(sa.__file__).parent
HEAVY = {"torch", "diffusers", "transformers", "xarray", "nbformat", "plotly", "scipy", "sklearn", "papermill"}


def stub_names() -> list[str]:
    """The names that `__init__.pyi` lists."""
    tree = ast.parse((LIBRARY / "__init__.pyi").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return [alias.asname or alias.name for node in imports for alias in node.names]


@pytest.mark.parametrize("name", stub_names())
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(sa, name) is not None and name in dir(sa)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nosuch"):
        sa.nosuch  # noqa: B018


def test_importing_is_quick_and_quiet() -> None:
    """What takes seconds to import is imported when it is used."""
    script = (
        "import json, sys\nimport selattn_lib as sa\nfrom selattn_lib import cli\ncli.main(['--help'])\n"
        f"heavy = {HEAVY} & set(sys.modules)\n"
        "sa.load_pipeline('emoji-sd', device='cpu')\n"
        "print(json.dumps([sorted(heavy), type(sa.capture).__name__, sa.studies.__name__]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert json.loads(done.stdout.splitlines()[-1]) == [[], "function", "selattn_lib.studies"]


def imported(path: Path) -> list[tuple[str, list[str], bool]]:
    """(module, names, whether within a function) of each import of a file that runs: not those for type checkers."""
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inner = {id(node) for function in functions for node in ast.walk(function)}
    checks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    skipped = {id(node) for check in checks for node in ast.walk(check)}
    imports: list[tuple[str, list[str], bool]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in skipped:
            module = "." * node.level + (node.module or "")
            imports.append((module, [alias.name for alias in node.names], id(node) in inner))
        elif isinstance(node, ast.Import) and id(node) not in skipped:
            imports += [(alias.name, [], id(node) in inner) for alias in node.names]
    return imports


MODULES = sorted(path.relative_to(LIBRARY).as_posix() for path in LIBRARY.rglob("*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_no_private_name_crosses_a_modules_border_and_no_import_hides_in_a_function(module: str) -> None:
    for source, names, within in imported(LIBRARY / module):
        own = source.startswith((".", "selattn_lib"))
        assert not own or not [name for name in names if name.startswith("_")], f"from {source} import {names}"
        assert not (own and within) or module == "cli.py", f"{source} is imported within a function"


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.glob("test_*.py")), ids=lambda path: path.stem)
def test_a_unit_test_loads_no_browser(path: Path) -> None:
    support = {file.stem: file for file in (path.parents[1] / "support").glob("*.py")}
    waiting, seen = [path], set()
    while waiting:
        file = waiting.pop()
        modules = {source.partition(".")[0] for source, _, within in imported(file) if not within} - seen
        assert "playwright" not in modules, file
        seen |= modules
        waiting += [support[module] for module in modules & set(support)]


def test_what_all_tests_share_loads_no_model_library() -> None:
    for path in (Path(__file__).parents[1] / "conftest.py", LIBRARY.parent / "conftest.py"):
        modules = {source.partition(".")[0] for source, _, within in imported(path) if not within}
        assert not modules & {"torch", "diffusers", "transformers", "selattn_lib", "tiny_sd"}, path
