"""Plotly figures in the book: a myst-nb renderer for their default mime type. Raw HTML in Markdown outputs is text.

A figure becomes a `<div class="plotly-figure">` that holds its JSON; the book's `figures.js` draws it.
"""

import json

from docutils import nodes

MIME = "application/vnd.plotly.v1+json"


class PlotlyRenderer:
    """Entry point of the group `myst_nb.mime_renderers`."""

    mime_priority_overrides = [("html", MIME, 1), ("singlehtml", MIME, 1)]

    @staticmethod
    def handle_mime(renderer, data, inline: bool) -> list[nodes.Element] | None:
        """The figure as raw HTML; None for any other mime type. Loads plotly.js on this page only."""
        if data.mime_type == "text/markdown":  # of a program, which may repeat a stranger's names
            data.content = data.string.replace("<", "&lt;")
        if data.mime_type != MIME:
            return None
        # before require.js, beside which plotly.js would register as a module and define no global
        renderer.add_js_file("plotly", "vendor/plotly-cartesian.min.js", {"priority": 300})
        renderer.add_js_file("plotly_figures", "figures.js", {"priority": 301})
        figure = {key: data.content[key] for key in ("data", "layout")}
        text = json.dumps(figure, separators=(",", ":")).replace("<", "\\u003c")
        html = (
            '<div class="plotly-figure"><noscript>A figure stands here that needs scripts.</noscript>'
            f'<script type="{MIME}">{text}</script></div>'
        )
        return [nodes.raw(text=html, format="html")]
