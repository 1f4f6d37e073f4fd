"""Sphinx extension of this book: the answer that a chapter computes at its end stands at its beginning, too.

It is what the cell with the tag "answer" shows; it comes before the line that folds the settings away.
"""

from docutils import nodes


def answer_first(app, doctree):
    """Put a copy of the answer where the settings are, if the page has both."""
    cells = [node for node in doctree.findall(nodes.container) if "tag_answer" in node["classes"]]
    folds = [node for node in doctree.findall(nodes.raw) if '<details class="settings">' in node.astext()]
    shown = [node for cell in cells for node in cell.findall(nodes.container) if "cell_output" in node["classes"]]
    if shown and folds:
        copies = [child.deepcopy() for output in shown for child in output.children]
        place = folds[0].parent
        place.insert(place.index(folds[0]), nodes.container("", *copies, classes=["answer-first"]))


def setup(app):
    app.connect("doctree-read", answer_first)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
