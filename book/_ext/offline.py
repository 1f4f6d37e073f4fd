"""Sphinx extension of this book: assets from the environment, and no script twice on a page."""

import shutil
import sysconfig
from pathlib import Path


def add_anywidget(app, exception):
    """Copy anywidget's AMD module from the environment, so that it matches the anywidget of the notebooks."""
    if exception is None and app.builder.format == "html":
        module = Path(sysconfig.get_path("data"), "share/jupyter/nbextensions/anywidget/index.js")
        shutil.copyfile(module, Path(app.outdir, "_static/vendor/anywidget.js"))


def drop_duplicate_scripts(app, pagename, templatename, context, doctree):
    """thebe's and togglebutton's scripts are registered twice; a second `const` of a name is an error."""
    # inline scripts have the file name None or "", of which Sphinx sees two different ones
    scripts = context["script_files"][::-1]
    once = {(script.filename or "", script.attributes.get("body")): script for script in scripts}
    context["script_files"] = list(once.values())[::-1]


def setup(app):
    app.connect("build-finished", add_anywidget)
    app.connect("html-page-context", drop_duplicate_scripts, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
