"""What README.md and book/rerun.md tell people to type: every command, option, parameter and name is there."""

import argparse
import ast
import inspect
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import selattn_lib as sa
from selattn_lib import cli
from selattn_lib.emoji.recipe import train
from selattn_lib.models.pipelines import DTYPES, HUB
from selattn_lib.publishing.notebooks import parameters_of as read_parameters
from selattn_lib.publishing.options import ReproduceOptions
from selattn_lib.studies.base import StudyBase

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "book/rerun.md", "book/scale.md", "book/published.md")]
TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}
RERUN = TEXT[ROOT / "book/rerun.md"]
parameters_of = cache(read_parameters)  # of a notebook
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def blocks(language: str) -> list[str]:
    return [code for text in TEXT.values() for code in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


def commands(program: str) -> list[list[str]]:
    """Arguments of every line of the pages' shell blocks that starts `program`, comments left out."""
    code = "".join(blocks("bash")).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in code.splitlines()]
    found = [
        line[line.index(name) + 1 :] for line in lines for name in (program, f".venv/bin/{program}") if name in line
    ]
    return [[word for word in line if word != "&"] for line in found]


def given_parameters(arguments: list[str]) -> dict[str, str]:
    places = [place for place, word in enumerate(arguments) if word == "-p"]
    return {arguments[place + 1]: arguments[place + 2] for place in places}


def table(first: str) -> Iterator[list[str]]:
    """The rows of the table of rerun.md whose head begins with `first`, each as its cells."""
    text = re.search(rf"^\| {re.escape(first)} \|.*?(?=\n\n)", RERUN, re.DOTALL | re.MULTILINE)
    assert text, first
    for line in text[0].splitlines()[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("arguments", commands("selattn"), ids=" ".join)
def test_commands_of_selattn_are_understood(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """They run with what they would start put aside; names of parameters are held against the notebooks."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("SELATTN_WORKERS", raising=False)
    started: list[Any] = []

    def run(notebooks: list[Path], out: Path, parameters: dict[str, Any], **_: Any) -> None:
        assert set(parameters) <= set.union(*map(parameters_of, notebooks))
        started.append(notebooks)

    class Reproduction(ReproduceOptions):
        def run(self, root: Path) -> None:
            started.append(root)

    monkeypatch.setattr("selattn_lib.publishing.notebooks.run", run)
    monkeypatch.setattr("selattn_lib.publishing.reproduce.Reproduction", Reproduction)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert cli.main(arguments) == 0 and len(started) == 1


@pytest.mark.parametrize("arguments", commands("papermill"), ids=" ".join)
def test_commands_of_papermill_name_a_notebook_and_its_parameters(arguments: list[str]) -> None:
    assert set(given_parameters(arguments)) <= parameters_of(ROOT / arguments[0])
    assert arguments[1].endswith(".ipynb") and given_parameters(arguments)


def test_the_recipe_s_commands_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in commands("python") if line[:1] == ["-m"]]
    lines += [line[line.index("-m") :] for line in commands("torchrun")]
    known = [line[2:] for line in lines if line[1] == "selattn_lib.emoji.recipe.train"]
    assert len(known) == 3

    class Parsed(Exception):
        pass

    parse = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *given: Any) -> None:
        parse(self, *given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    for line in known:
        monkeypatch.setattr(sys, "argv", ["train", *line])
        with pytest.raises(Parsed):
            train.main()


def test_scripts_that_are_named_are_there() -> None:
    scripts = [line[0] for line in commands("python") if not line[0].startswith("-")]
    assert len(scripts) >= 2 and all((ROOT / script).is_file() for script in scripts)


def test_targets_of_make_are_there() -> None:
    wanted = {name for text in TEXT.values() for name in re.findall(r"\bmake ([a-z]+)\b(?=[` ]|$)", text, re.MULTILINE)}
    makefile = (ROOT / "Makefile").read_text()
    wanted &= set(re.findall(r"`make ([a-z]+)", " ".join(TEXT.values()))) | {"book"}
    assert {"book", "lab", "check", "test", "replay", "print", "notebooks", "rehearsal"} <= wanted
    assert [name for name in sorted(wanted) if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []


def test_the_oldest_python_is_the_packages() -> None:
    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    said = {version for text in TEXT.values() for version in re.findall(r"Python (\d\.\d+) or later", text)}
    assert said == {oldest}


def test_the_table_of_parameters_has_what_most_notebooks_have_and_nothing_that_none_has() -> None:
    known = set.union(*map(parameters_of, NOTEBOOKS))
    listed = {name for row in table("Parameter") for name in re.findall(r"`(\w+)`", row[0])}
    assert listed <= known
    shared = {name for name in known if sum(name in parameters_of(path) for path in NOTEBOOKS) > len(NOTEBOOKS) / 2}
    assert shared <= listed, "what most chapters have belongs into the table"
    assert "concept_file" in known


def test_options_of_reproduce_are_all_in_the_table_with_their_defaults() -> None:
    rows = list(table("Option"))
    fields = ReproduceOptions.model_fields
    names = [
        (name.strip("`- ").removeprefix("no-").replace("-", "_"), row[2]) for row in rows for name in row[0].split(",")
    ]
    said = dict(names)
    assert set(said) == set(fields) - {"dry_run"}
    assert said["words"] == "10, 10, 50: the paper's" and said["hrv_images"].startswith("2,100")
    assert [fields[name].default for name in ("words", "seeds", "steps")] == [10, 10, 50]
    assert fields["hrv_images"].default == 2100 and fields["batch"].default == int(said["batch"])
    models = set(re.findall(r"`(\w+)`", next(row[1] for row in rows if "--model" in row[0])))
    assert models == set(HUB)
    assert set(re.findall(r"`(\w+)`", next(row[1] for row in rows if "--dtype" in row[0]))) == set(DTYPES)


def calls(code: str) -> Iterator[tuple[str, ast.Call]]:
    """(name, call) of every `sa.name(...)` in a piece of Python."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and (name := re.fullmatch(r"sa\.(\w+)", ast.unparse(node.func))):
            yield name[1], node


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_use_names_and_arguments_that_are_there(code: str) -> None:
    for name, call in calls(code):
        function = getattr(sa, name)
        is_study = inspect.isclass(function) and issubclass(function, StudyBase)
        known = set(function.model_fields) if is_study else set(inspect.signature(function).parameters)
        assert {keyword.arg for keyword in call.keywords} <= known, name
    for used in re.findall(r"\.run\((\w+)=", code):
        assert used in inspect.signature(StudyBase.run).parameters


def test_the_faster_scheduler_draws() -> None:
    code = next(code for code in blocks("python") if "DPMSolverMultistepScheduler" in code)
    names: dict[str, Any] = {"pipe": sa.load_pipeline("emoji-sd", device="cpu")}
    exec(code.replace("num_inference_steps=15", "num_inference_steps=2"), names)
    assert type(names["pipe"].scheduler).__name__ == "DPMSolverMultistepScheduler"
    assert "num_inference_steps=15" in code, "the page says 15"


def test_a_table_of_concepts_as_shown_is_read(tmp_path: Path) -> None:
    [text] = blocks("yaml")
    (tmp_path / "mine.yaml").write_text(text)
    assert sa.load_concepts(tmp_path / "mine.yaml").keys() == yaml.safe_load(text).keys()
    [arguments] = [line for line in commands("papermill") if "mine.yaml" in line]
    assert given_parameters(arguments)["concept"] in yaml.safe_load(text)


def test_what_a_segmenter_found_is_said_in_the_words_of_the_results() -> None:
    said = [row[0].strip("`") for row in table("`truth_outcome`")]
    source = inspect.getsource(sys.modules["selattn_lib.studies.results"])
    assert len(said) == 4 and all(f'"{outcome}"' in source for outcome in said)


def test_variables_of_the_environment_are_read_somewhere() -> None:
    named = {name for text in TEXT.values() for name in re.findall(r"\bSELATTN_[A-Z]+\b", text)}
    library = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "selattn_lib").rglob("*.py"))
    assert len(named) >= 3 and all(name in library for name in named)


def test_extras_that_are_named_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {name for text in TEXT.values() for name in re.findall(r"(?:selattn_lib|\.)\[(\w+)\]", text)}
    assert named and named <= set(extras)


def test_relevance_of_a_model_whose_vectors_are_elsewhere() -> None:
    readme = TEXT[ROOT / "README.md"]
    assert "`sa.load_hrv(FOLDER)`" in readme and '`sa.RelevanceStudy(model="sd14").run()`' in readme
    with pytest.raises(FileNotFoundError, match="No head relevance at sd14"):
        sa.load_hrv("sd14")
    assert inspect.signature(sa.RelevanceStudy.run).return_annotation in (sa.HeadRelevance, "HeadRelevance")


def test_the_readme_counts_the_folders_of_the_library() -> None:
    folders = {path.parent.name for path in (ROOT / "selattn_lib").glob("*/__init__.py")} - {"data", "emoji"}
    assert len(folders) == 8 and "eight folders from `models` to `publishing`" in TEXT[ROOT / "README.md"]
