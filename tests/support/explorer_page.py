"""A page that holds explorers and nothing else, with the scripts of the book: quick to make, for browser tests."""

import json
import shutil
import sysconfig
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import xarray as xr
from ipywidgets.embed import embed_data
from playwright.sync_api import Locator

from selattn_lib.explorers.items import with_pictures

STATIC = Path(__file__).parents[2] / "book" / "_static"
PAGE = """<!DOCTYPE html>
<html lang="en" data-theme="light"><head><meta charset="utf-8"><title>Explorers</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>
body {{ max-width: 860px; margin: 0 auto; padding: 10px 15px; font-family: system-ui, sans-serif; }}
html {{ background: #fff; color: #222832; --pst-color-text-base: #222832; --pst-color-border: #d1d5da;
  --pst-color-surface: #f3f4f5; --pst-color-background: #fff; }}
html[data-theme="dark"] {{ background: #14181e; color: #ced6dd; --pst-color-text-base: #ced6dd; color-scheme: dark;
  --pst-color-border: #48566b; --pst-color-surface: #222832; --pst-color-background: #14181e; }}
</style>
<link rel="stylesheet" href="_static/book.css">
<script src="_static/vendor/require.js"></script>
<script src="_static/widgets.js"></script>
<script src="_static/vendor/@jupyter-widgets/html-manager/dist/embed-amd.js"></script>
<script type="application/vnd.jupyter.widget-state+json">{state}</script>
</head><body class="bd-article">{views}</body></html>
"""


def write_page(folder: Path, explorers: Sequence[ipywidgets.Widget]) -> Path:
    """Write `folder`/index.html with the explorers one below the other, and what it loads."""
    (folder / "_static" / "vendor").mkdir(parents=True, exist_ok=True)
    for name in ("widgets.js", "book.css", "vendor/require.js"):
        shutil.copy(STATIC / name, folder / "_static" / name)
    shutil.copytree(STATIC / "vendor" / "@jupyter-widgets", folder / "_static/vendor/@jupyter-widgets",
                    dirs_exist_ok=True)  # fmt: skip
    anywidget = Path(sysconfig.get_path("data"), "share/jupyter/nbextensions/anywidget/index.js")
    shutil.copy(anywidget, folder / "_static/vendor/anywidget.js")
    embedded = embed_data(views=list(explorers), drop_defaults=False)
    views = "".join(f"<div>{_script('view', spec)}</div>" for spec in embedded["view_specs"])
    state = json.dumps(embedded["manager_state"]).replace("<", "\\u003c")
    page = folder / "index.html"
    page.write_text(PAGE.format(state=state, views=views), encoding="utf-8")
    return page


def settled(box: Locator) -> None:
    """Wait until what a change of a setting draws is drawn, and its numbers are there."""
    box.page.wait_for_timeout(60)  # until the change has come to the view
    box.locator(".selattn-view[aria-busy=false]").wait_for(timeout=60_000)


def _script(kind: str, content: Any) -> str:
    text = json.dumps(content).replace("<", "\\u003c")
    return f'<script type="application/vnd.jupyter.widget-{kind}+json">{text}</script>'


def synthetic(grids: Sequence[tuple[str, int]], size: int, words: Sequence[str], images: int) -> xr.Dataset:
    """Head maps of blobs, with pictures and the masks `truth_round` and `truth_square`, and 8 heads a layer; `grids`
    are the layers' places and the side of their maps. The attribute `heads` holds the heads' names."""
    rng = np.random.default_rng(0)
    layers = Counter[str]()
    numbers: dict[int, list[int]] = {}
    names: list[str] = []
    for place, side in grids:
        numbers.setdefault(side, []).extend(range(len(names), len(names) + 8))
        names += [f"{place}, layer: {layers[place]}, head: {head}" for head in range(8)]
        layers[place] += 1
    data, coords = {}, {"word": list(words)}
    for side, own in numbers.items():
        y, x = (np.mgrid[:side, :side] + 0.5) / side
        shape = (images, len(words), len(own), 1, 1)
        cy, cx, radius = (rng.uniform(low, high, shape) for low, high in ((0.2, 0.8), (0.2, 0.8), (0.1, 0.3)))
        values = 0.03 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / radius**2) + 0.002 * rng.random((side, side))
        dims = ("image", "word", f"head_{side}x{side}", f"y_{side}x{side}", f"x_{side}x{side}")
        data[f"maps_{side}x{side}"] = (dims, values.astype(np.float16))
        coords[f"head_{side}x{side}"] = own
    maps = xr.Dataset(data, coords, attrs={"height": size, "width": size, "heads": names})
    y, x = np.mgrid[:size, :size] / size
    pictures = [np.stack([200 * x, 200 * y, 90 + 80 * (x + i) % 90], -1).astype(np.uint8) for i in range(images)]
    disc = [np.hypot(y - 0.4, x - 0.3 - 0.2 * i) < 0.25 for i in range(images)]
    square = [(abs(y - 0.6) < 0.2) & (abs(x - 0.6) < 0.2)] * images
    return with_pictures(maps, pictures, truth_round=disc, truth_square=square)


def rankings(n_heads: int, concepts: Sequence[str] = ("Animals", "Electronics", "Plants")) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    return {concept: rng.permutation(n_heads) for concept in concepts}
