"""A page that holds explorers and nothing else, with the scripts of the book: quick to make, for browser tests."""

import json
import shutil
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets
from ipywidgets.embed import embed_data
from playwright.sync_api import Locator

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
