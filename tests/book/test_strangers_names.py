"""A stranger's names of concepts, words, labels and pictures, in a built book: shown as they are, never run."""

import json
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from chromium import address, watched_page
from ipywidgets.embed import embed_data
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from playwright.sync_api import Browser
from synthetic import names_of, rankings, synthetic
from test_book import ROOT

from selattn_lib.evaluation.answers import listed
from selattn_lib.explorers.aggregation import AggregationExplorer
from selattn_lib.figures.pictures import contact_sheet
from selattn_lib.maps.head_maps import HeadMaps
from selattn_lib.publishing.build import build_book
from selattn_lib.publishing.notebooks import WIDGET_STATE, WIDGET_VIEW

NAMES = [
    f"</{end}><{start} src=x onerror=window.ran=1>"
    for end, start in [("SCRIPT", "img"), ("sCript", "IMG"), ("p", "img")]
] + ["<!--<script>", "<script>window.ran=1</script>", "</noscript><img src=x onerror=window.ran=1>"]


def hostile_notebook(path: Path) -> None:
    """What a chapter displays: an explorer, a figure, a table, pictures and an answer, all with such names."""
    grids = [("down", 16), ("up", 8)]
    maps = synthetic(grids, 64, NAMES[:2], 1).dataset.rename(truth_round="truth").drop_vars("truth_square")
    maps = maps.assign_coords(seed=("image", [NAMES[3]]))
    explorer = AggregationExplorer(HeadMaps(maps), rankings(16, NAMES), heads=names_of(grids), k=4)
    embedded = embed_data(views=[explorer], drop_defaults=False)
    figure = go.Figure(go.Bar(x=NAMES, y=np.arange(len(NAMES)), name=NAMES[0]), {"title": NAMES[0]})
    shown = [
        {WIDGET_VIEW: embedded["view_specs"][0] | {"version_major": 2, "version_minor": 0}},
        {"text/html": f"<noscript>{explorer.static_html().data}</noscript>"},
        {"application/vnd.plotly.v1+json": json.loads(figure.to_json())},
        {"text/html": pd.DataFrame({NAMES[1]: np.ones(len(NAMES))}, pd.Index(NAMES, name=NAMES[0])).to_html()},
        {"text/html": contact_sheet(np.zeros((1, 8, 8, 3), np.uint8), [NAMES[0]]).data},
        {"text/markdown": f"**Answer.** {listed(NAMES)}, p < 0.001"},
    ]
    outputs = [new_output("display_data", data) for data in shown]
    cells = [new_markdown_cell("# Title"), new_code_cell("show()", outputs=outputs)]
    metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "widgets": {WIDGET_STATE: embedded["manager_state"]},
    }
    path.parent.mkdir()
    nbformat.write(new_notebook(cells=cells, metadata=metadata), path)


def test_a_strangers_names_are_shown_and_not_run(browser: Browser, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for folder in ("_ext", "_static"):
        shutil.copytree(ROOT / "book" / folder, root / "book" / folder)
    shutil.copy(ROOT / "book" / "references.bib", root / "book")
    shutil.copy(ROOT / "_config.yml", root)
    (root / "CHANGELOG.md").write_text("# Changes\n")
    (root / "_toc.yml").write_text("format: jb-book\nroot: notebooks/names\n")
    hostile_notebook(root / "notebooks" / "names.ipynb")
    folder = build_book(root, root / "notebooks", tmp_path).parent
    with address(folder, "file") as site, browser.new_context() as context, watched_page(context, site) as page:
        page.goto(f"{site}notebooks/names.html")
        page.wait_for_function("document.querySelectorAll('.selattn-view[data-draw-ms]').length == 1", timeout=60_000)
        page.wait_for_selector(".plotly-figure .main-svg", state="attached")
        assert page.evaluate("window.ran") is None
        said = page.locator(".cell_output").get_by_text("Answer.").locator("..").inner_text().replace("–", "--")
        assert said == f"Answer. {listed(NAMES)}, p < 0.001"
        options = page.get_by_label("Concept", exact=True).locator("option").all_inner_texts()
        assert [option.replace("\xa0", " ") for option in options] == NAMES
