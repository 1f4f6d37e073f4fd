"""The gallery and the cards of shared links: what the book's extensions make of notebooks."""

import base64
import importlib
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

import nbformat
import numpy as np
import pytest
from docutils import nodes
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PLOTLY = "application/vnd.plotly.v1+json"


@pytest.fixture(scope="module")
def load() -> Iterator[Callable[[str], ModuleType]]:
    """Imports an extension of the book."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "book" / "_ext"))
        yield importlib.import_module


@pytest.fixture(scope="module")
def gallery(load: Callable[[str], ModuleType]) -> ModuleType:
    return load("gallery")


def outputs(figure: dict) -> list[nbformat.NotebookNode]:
    return [new_output("display_data", {PLOTLY: {"layout": {}, **figure}})]


def picture(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/webp;base64,"))))


def in_base64(colour: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_numbered_figure_has_a_small_picture_and_a_line(gallery: ModuleType, path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    captions = [found[1] for cell in cells if (found := re.match(r"\*Figure (\d+\.\d+)\. ", cell.source))]
    shown = list(gallery.figures_of(path))
    assert [number for number, _, _ in shown] == captions
    assert all(len(line) >= 20 and "*" not in line for _, line, _ in shown)
    assert all(len(address) < 30_000 for _, _, address in shown)
    assert not any("?" in line for _, line, _ in shown), "what is seen, not a question"


def test_the_line_of_a_figure_is_what_its_caption_says_first(gallery: ModuleType) -> None:
    said = gallery.finding("*Figure 7.1. Selecting `k` heads loses at\nevery {math}`k`: HRV stays below. More.*")
    assert said == "Selecting k heads loses at every k"
    assert gallery.finding("*Figure 0.1. Left: a picture of a bear. Right: none.*") == "Left: a picture of a bear"


def test_a_caption_without_a_figure_is_an_error_with_its_number(gallery: ModuleType, tmp_path: Path) -> None:
    cells = [new_code_cell("1"), new_markdown_cell("*Figure 3.1. Nothing at all to be seen.*")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "03_a.ipynb")
    with pytest.raises(Exception, match=r"03_a.ipynb, Figure 3.1: no figure"):
        list(gallery.figures_of(tmp_path / "03_a.ipynb"))


def test_pictures_stand_in_the_rows_of_the_figure(gallery: ModuleType) -> None:
    corners = {"red": (0, 1), "lime": (1, 1), "blue": (0, 0), "white": (1, 0)}
    images = [{"source": in_base64(colour), "x": x, "y": y} for colour, (x, y) in reversed(corners.items())]
    small = picture(gallery.thumbnail(outputs({"data": [], "layout": {"images": images}}))).convert("RGB")
    width = small.size[0]  # four in a row: all of them
    seen = [small.getpixel((width * (2 * i + 1) // 8, 20)) for i in range(4)]
    assert [[channel > 128 for channel in pixel] for pixel in seen] == [
        [True, False, False], [False, True, False], [False, False, True], [True, True, True],
    ]  # fmt: skip


def test_a_heat_map_has_its_colours_the_first_row_below_unless_reversed(gallery: ModuleType) -> None:
    z = np.array([[0.0, 0.0], [1.0, 1.0]])
    typed = {"dtype": "f8", "bdata": base64.b64encode(z.tobytes()).decode(), "shape": "2, 2"}
    for values in (z.tolist(), typed):
        heat = {"type": "heatmap", "z": values, "colorscale": [[0, "#000000"], [1, "#ffffff"]]}
        for layout, top in (({}, 255), ({"yaxis": {"autorange": "reversed"}}, 0)):
            small = picture(gallery.thumbnail(outputs({"data": [heat], "layout": layout}))).convert("L")
            assert abs(small.getpixel((10, 5)) - top) < 8


def test_lines_dots_and_intervals_are_drawn_where_they_are(gallery: ModuleType) -> None:
    line = {"type": "scatter", "mode": "lines", "x": [1, 10, 100], "y": [0, 1, 2], "line": {"color": "#123456"}}
    dots = {"type": "scatter", "mode": "markers", "x": [10], "y": [2], "marker": {"color": "#654321"}}
    dots["error_x"] = {"array": [90], "arrayminus": [9]}
    hidden = {**line, "visible": False, "line": {"color": "#abcdef"}}
    svg = unquote(gallery.thumbnail(outputs({"data": [line, hidden], "layout": {"xaxis": {"type": "log"}}})))
    assert "abcdef" not in svg
    points = re.findall(r'polyline points="([^"]+)"', svg)[0].split()
    assert points == ["8.0,142.0", "120.0,75.0", "232.0,8.0"]
    svg = unquote(gallery.thumbnail(outputs({"data": [dots]})))
    assert re.search(r'M8\.0 142\.0H232\.0" stroke="#654321"', svg)


def test_a_card_has_the_first_whole_paragraph_cut_between_words(load: Callable[[str], ModuleType]) -> None:
    social = load("social")
    document = nodes.section("", nodes.paragraph("", "Too short."), nodes.paragraph("", "word " * 60))
    assert social.description(document) == "word " * 39 + "..."
