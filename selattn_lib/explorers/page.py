"""An explorer as one HTML file that needs nothing beside it: no kernel, no network, no server, no other script.

The view is an ES module already; what ipywidgets' controls do in the book, `js/page.js` does with the browser's own.
"""

import base64
import html
import json
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets

from .view import JS, ExplorerView, script

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{notes}
<div class="selattn-explorer"><div class="selattn-controls"></div><div class="selattn-here"></div></div>
<noscript>{still}</noscript>
</main>
<script type="application/json">{state}</script>
<script type="module">{script}</script>
</body>
</html>
"""


def page_of(explorer: Any, title: str, notes: Sequence[str] = ()) -> str:
    """The text of an HTML file that shows an explorer below a title and paragraphs, as it is now set."""
    view: ExplorerView = explorer.view
    traits = {name: getattr(view, name) for name in ExplorerView.class_own_traits(sync=True)}
    state = {name: value for name, value in traits.items() if not isinstance(value, bytes)}
    data = {name: base64.b64encode(value).decode() for name, value in traits.items() if isinstance(value, bytes)}
    controls = [_control(name, control) for name, control in explorer.controls.items()]
    content = json.dumps({"state": state, "bytes": data, "controls": controls}).replace("<", "\\u003c")
    return PAGE.format(
        title=html.escape(title),
        notes="".join(f"<p>{html.escape(note)}</p>\n" for note in notes),
        style="\n".join((JS / name).read_text(encoding="utf-8") for name in ("explorer.css", "page.css")),
        still=explorer.static_html().data,
        state=content,
        script=f"{script()}\n{(JS / 'page.js').read_text(encoding='utf-8')}",
    )


def _control(name: str, control: Any) -> dict[str, Any]:
    """What the browser's own control needs to stand for one of ipywidgets."""
    if isinstance(control, widgets.Dropdown):
        options = [option if isinstance(option, str) else option[0] for option in control.options]
        return {"name": name, "label": control.description, "options": options}
    return {"name": name, "label": control.description, "low": control.min, "high": control.max, "step": control.step}
