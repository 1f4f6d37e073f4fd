"""The package as a whole: its public names, and what importing it costs."""

import ast
import gc
import importlib
import inspect
import tokenize
from pathlib import Path
from typing import Any

import pytest

import selattn_lib as sa

LIBRARY = Path(sa.__file__).parent


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


@pytest.mark.parametrize("collects", [True, False])
def test_a_name_that_is_looked_up_leaves_the_collector_of_garbage_as_it_was(collects: bool) -> None:
    try:
        (gc.enable if collects else gc.disable)()
        assert sa.capture is not None
        with pytest.raises(AttributeError):
            sa.nosuch  # noqa: B018
        assert gc.isenabled() == collects
    finally:
        gc.enable()


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


@pytest.mark.parametrize("layer", ["unit", "integration"])
def test_only_the_books_tests_load_a_browser(layer: str) -> None:
    tests = Path(__file__).parents[1]
    support = {file.stem: file for file in (tests / "support").glob("*.py")}
    waiting, seen = [*(tests / layer).glob("test_*.py")], set()
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


def public() -> dict[str, Any]:
    """Name -> what the stub and the folders' own lists make public."""
    objects = {name: getattr(sa, name) for name in stub_names()}
    for folder in sorted(path.parent.name for path in LIBRARY.glob("*/__init__.py")):
        module = importlib.import_module(f"selattn_lib.{folder}")
        objects |= {name: getattr(module, name) for name in getattr(module, "__all__", ())}
    return {name: each for name, each in objects.items() if callable(each)}


@pytest.mark.parametrize("name", sorted(public()))
def test_a_public_docstring_says_what_goes_in_what_comes_out_and_shows_it(name: str) -> None:
    sections = ("Parameters", "Examples") if isinstance(public()[name], type) else ("Parameters", "Returns", "Examples")
    if not inspect.signature(public()[name]).parameters:
        sections = sections[1:]
    text = (inspect.getdoc(public()[name]) or "").replace("Yields\n------", "Returns\n-------")
    assert [section for section in sections if f"{section}\n---" not in text] == []


def test_the_library_stays_small() -> None:
    """At most 7,800 lines of code outside the embedded world, docstrings, comments and empty lines aside: 5,500 before
    thirteen families of transformers, clips, words in joint attention, results as files, rules that choose heads, the
    checks of parameters, heads, words and weights, and answers in plain sentences were added."""
    lines = 0
    for path in (LIBRARY / module for module in MODULES if not module.startswith("emoji/")):
        tree = ast.parse(path.read_text())
        bodies = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
        documented = [node for node in bodies if ast.get_docstring(node) is not None]
        docs = {line for node in documented for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)}
        tokens = tokenize.generate_tokens(path.open().readline)
        skipped = (
            tokenize.COMMENT,
            tokenize.NL,
            tokenize.NEWLINE,
            tokenize.INDENT,
            tokenize.DEDENT,
            tokenize.ENDMARKER,
        )
        code = (range(t.start[0], t.end[0] + 1) for t in tokens if t.type not in skipped)
        lines += len({line for span in code for line in span} - docs)
    assert lines <= 7_800, lines
