"""What the repository says about itself: line ends, the tree in CONTRIBUTING, paths in prose, versions."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROSE = [*ROOT.glob("*.md"), *(ROOT / "book").glob("*.md"), ROOT / ".github" / "PULL_REQUEST_TEMPLATE.md"]
MADE = ("runs/", "book/_build")  # not there before something has run


def git(*arguments: str) -> bytes:
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a clone, or no git")
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout


def tracked() -> list[str]:
    return git("ls-files", "-z").decode().strip("\0").split("\0")


def test_a_checkout_with_the_line_ends_of_windows_has_the_same_bytes() -> None:
    archive = "archive", "--worktree-attributes", "HEAD", ".ci", "book", "notebooks"
    assert git("-c", "core.autocrlf=true", "-c", "core.eol=crlf", *archive) == git(*archive)


def listed_folders() -> set[str]:
    """The folders in the tree of CONTRIBUTING.md, as paths; two spaces are one level."""
    tree = re.search(r"```text\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    assert tree
    folders: list[str] = []
    path: list[str] = []
    for indent, name in re.findall(r"^( *)([\w.]+)/ ", tree[1], re.MULTILINE):
        path[len(indent) // 2 :] = [name]
        folders.append("/".join(path))
    return set(folders)


def test_the_tree_in_contributing_has_a_line_for_each_folder() -> None:
    parents = {str(parent) for name in tracked() for parent in Path(name).parents} - {"."}
    inside = ("book/_static/vendor/", "selattn_lib/emoji/weights/", "tests/book/axe")  # other people's trees
    assert listed_folders() == {folder for folder in parents if not folder.startswith(inside)}


@pytest.mark.parametrize("page", PROSE, ids=lambda path: path.name)
def test_paths_that_prose_names_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    names = re.findall(r"(?<![\w/.-])(?:book|notebooks|selattn_lib|tests)/[\w./-]*[\w/]", text)
    missing = [name for name in names if not name.startswith(MADE) and not (ROOT / name).exists()]
    assert not [name for name in missing if "NN_" not in name]


def test_the_hooks_use_the_pinned_ruff() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    versions = {repo["repo"].rsplit("/", 1)[-1]: repo["rev"] for repo in hooks["repos"]}
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ruff=={versions['ruff-pre-commit'].removeprefix('v')}" in pins


def test_the_environment_of_conda_names_no_path() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert all(isinstance(package, str) for package in environment["dependencies"]), "a pip section: see the comment"
