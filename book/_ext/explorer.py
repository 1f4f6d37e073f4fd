"""Sphinx extension of this book: the explorer of an executed notebook on a page of prose. Nothing is executed.

    ```{explorer} 00_quick_tour
    ```

shows the first explorer among the outputs that notebooks/00_quick_tour.ipynb shows, as it is when the book is built.
"""

import json
from pathlib import Path

import nbformat
from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.util.docutils import SphinxDirective

from selattn_lib.publishing.notebooks import WIDGET_STATE, WIDGET_VIEW


class Explorer(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        notebook = Path(self.env.srcdir, self.config.measured_from, f"{self.arguments[0]}.ipynb")
        self.env.note_dependency(str(notebook))
        nb = nbformat.read(notebook, as_version=4)
        shown = [cell for cell in nb.cells if "remove-output" not in cell.metadata.get("tags", [])]
        outputs = [output.get("data", {}) for cell in shown for output in cell.get("outputs", [])]
        view = next((data[WIDGET_VIEW] for data in outputs if WIDGET_VIEW in data), None)
        still = next((html for data in outputs if "<noscript>" in (html := data.get("text/html", ""))), "")
        if view is None:
            raise self.error(f"{notebook.name} shows no explorer")
        script = f'<script type="{WIDGET_VIEW}">{json.dumps(view)}</script>'
        if self.env.app.builder.name != "singlehtml":  # for printing, which has the still picture alone
            state = json.dumps(nb.metadata.widgets[WIDGET_STATE])
            self.add_script("state", None, {"type": WIDGET_STATE, "body": state})
            for path, options in self.config.nb_ipywidgets_js.items():
                self.add_script(path, path, options)
        return [nodes.raw("", f'<div class="cell_output explorer">{script}{still}</div>', format="html")]

    def add_script(self, key: str, path: str | None, options: dict) -> None:
        """On this page only, as myst-nb does on the pages of notebooks."""
        NbMetadataCollector.add_js_file(self.env, self.env.docname, f"explorer_{key}", path, options)


def setup(app):
    app.add_directive("explorer", Explorer)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
