"""Sphinx extension of this book: contents on a page have whole titles, the sidebar the short ones of `_toc.yml`."""

from sphinx import addnodes


def whole_titles(app, doctree, docname):
    """Leave out the short titles before the contents become links; the sidebar is made of what the pages had before."""
    for toctree in doctree.findall(addnodes.toctree):
        toctree["entries"] = [(None, page) for _, page in toctree["entries"]]


def setup(app):
    app.connect("doctree-resolved", whole_titles)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
