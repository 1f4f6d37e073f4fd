"""A whole run of `selattn reproduce` on a narrow model: what it leaves, and that notebooks find their studies."""

import re
from pathlib import Path

import nbformat
import pytest
import yaml

from selattn_lib import cli
from selattn_lib.publishing.reproduce import CHAPTERS

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def repository(surroundings: Path) -> Path:
    """This one, but for pages of the book that no run changes: of those, the first and another chapter are left."""
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    left = [Path(contents["root"]).name, *CHAPTERS, "06_emoji_sd"]
    for part in contents["parts"]:
        part["chapters"] = [chapter for chapter in part["chapters"] if Path(chapter["file"]).name in left]
    contents["parts"] = [part for part in contents["parts"] if part["chapters"]]
    folder = surroundings / "repository"
    folder.mkdir()
    for name in ("book", "notebooks", "_config.yml", "CHANGELOG.md"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "_toc.yml").write_text(yaml.safe_dump(contents, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def reproduced(one_kernel: None, repository: Path, surroundings: Path, arguments: list[str]) -> Path:
    """The folder of a whole run on a narrow model."""
    before = [path.read_bytes() for path in NOTEBOOKS]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(repository)
        assert cli.main(arguments) == 0
    assert [path.read_bytes() for path in NOTEBOOKS] == before, "the committed notebooks are left alone"
    return surroundings / "reproduced"


def texts(notebook: Path) -> str:
    nb = nbformat.read(notebook, as_version=4)
    outputs = [output for cell in nb.cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text") or str(output.get("data", {}).get("text/plain")) for output in outputs)


def test_all_chapters_are_run_and_draw_nothing_themselves(reproduced: Path, surroundings: Path) -> None:
    assert [path.stem for path in sorted((reproduced / "notebooks").glob("*.ipynb"))] == list(CHAPTERS)
    assert "generated: 2 images of 2 words" in texts(reproduced / "notebooks" / "02_segmentation.ipynb")
    for chapter in CHAPTERS[1:3]:
        said = texts(reproduced / "notebooks" / f"{chapter}.ipynb")
        assert "left out on" in said and "only emoji-sd has scenes with exact masks" in said
    studies = [path.name.split("-")[0] for path in (surroundings / "runs").iterdir()]
    assert sorted(studies) == ["diagnosis", "relevance", "study"], "those that were planned, and no other"


def test_the_book_of_the_run_says_which_model_it_is_about(reproduced: Path, surroundings: Path) -> None:
    html = reproduced / "_build" / "html"
    model = str(surroundings / "model")
    first = (html / "book" / "reproduced.html").read_text()
    assert model in first and "What the segmenter found" in first
    cells = [cell for cell in ("cpu", "truth", "truth_Animals", "truth_Electronics") if f"<p>{cell}</p>" in first]
    assert len(cells) == 4, "one row a mask and outcome"
    for chapter in CHAPTERS:
        page = (html / "notebooks" / f"{chapter}.html").read_text()
        answered = "Yours to give" in page or "<strong>Answer.</strong>" in page  # by a reader, or computed
        assert f"Run on {model}" in page and answered and "On this edition" not in page
        assert re.search(rf"<h1>[^<]*, on {re.escape(model)}", page), "not the title of what emoji-sd shows"
    for page in ("book/intro", "notebooks/06_emoji_sd"):
        assert f"Run on {model}" not in (html / f"{page}.html").read_text()


def test_a_second_run_computes_nothing(
    reproduced: Path, arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selattn_lib.studies.base.LOADED", {})
    monkeypatch.setattr("selattn_lib.studies.base.load_pipeline", None)
    monkeypatch.setattr("selattn_lib.publishing.reproduce.build_book", lambda site, notebooks, out: out)
    assert cli.main(arguments) == 0
    said = capsys.readouterr()
    assert said.err.count("is current, not run again") == len(CHAPTERS)
    assert "5, each of 2 steps; 5 are there already" in " ".join(said.out.split())
