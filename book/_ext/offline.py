"""Sphinx extension of this book: assets from the environment, no script twice on a page, and a page for printing."""

import re
import shutil
import sysconfig
from pathlib import Path


def add_anywidget(app, exception):
    """Copy anywidget's AMD module from the environment, so that it matches the anywidget of the notebooks."""
    if exception is None and app.builder.format == "html":
        module = Path(sysconfig.get_path("data"), "share/jupyter/nbextensions/anywidget/index.js")
        shutil.copyfile(module, Path(app.outdir, "_static/vendor/anywidget.js"))


FRONT_DOOR = """<!doctype html>
<title>{title}</title>
<link rel="icon" href="data:,">
<meta http-equiv="Refresh" content="0; url={page}.html">
"""


def add_front_door(app, exception):
    """index.html leads to the first page. Its icon is empty: without one, browsers ask for a favicon.ico that is not
    there, and one of its own would be broken off on the way."""
    if exception is None and app.builder.name == "html":
        text = FRONT_DOOR.format(title=app.config.html_title or app.config.project, page=app.config.root_doc)
        Path(app.outdir, "index.html").write_text(text)


def drop_duplicate_scripts(app, pagename, templatename, context, doctree):
    """thebe's and togglebutton's scripts are registered twice; a second `const` of a name is an error."""
    # inline scripts have the file name None or "", of which Sphinx sees two different ones
    scripts = context["script_files"][::-1]
    once = {(script.filename or "", script.attributes.get("body")): script for script in scripts}
    context["script_files"] = list(once.values())[::-1]


def escape_json(app, pagename, templatename, context, doctree):
    """In embedded JSON every "<" is escaped: names in it, of whatever case, end no script and begin none."""
    for script in context["script_files"]:
        if str(script.attributes.get("type")).endswith("json"):
            script.attributes["body"] = script.attributes["body"].replace("<", "\\u003c")
    embedded = r'(?<=<script type="application/vnd.jupyter.widget-view\+json">).*?(?=</script>)'
    body = context.get("body", "")
    context["body"] = re.sub(embedded, lambda json: json[0].replace("<", "\\u003c"), body, flags=re.DOTALL)


def name_what_is_there(app, pagename, templatename, context, doctree):
    """For screen readers: no header without a name, no label that differs from the text, no list of what is no item."""
    body = re.sub(r"<th([^>]*)>\s*</th>", r"<td\1></td>", context.get("body", ""))
    body = body.replace('<summary aria-label="Toggle hidden content">', "<summary>")
    context["body"] = body.replace('role="list" class="citation-list"', 'class="citation-list"')


def prepare_print(app, pagename, templatename, context, doctree):
    """The whole book on one page has plotly's figures, and a still picture in the place of each explorer."""
    if app.builder.name == "singlehtml":
        app.add_js_file("vendor/plotly-cartesian.min.js", priority=300)
        app.add_js_file("figures.js", priority=301)
        view = r'<script type="application/vnd.jupyter.widget-view\+json">.*?</script>'
        body = re.sub(view, "", context["body"], flags=re.DOTALL)
        context["body"] = re.sub("<noscript>(<div.*?)</noscript>", r"\1", body, flags=re.DOTALL)


def move_print(app, exception):
    """The one page refers to its files, and to an index for searching, from the folder above its first chapter, and to
    its own parts without a file's name."""
    if exception is None and app.builder.name == "singlehtml":
        page = Path(app.outdir, f"{app.config.root_doc}.html")
        page.write_text(page.read_text().replace(f'href="{app.config.root_doc}.html#', 'href="#'))
        page.replace(Path(app.outdir, "index.html"))
        Path(app.outdir, "searchindex.js").touch()


def setup(app):
    app.connect("html-page-context", escape_json)
    app.connect("html-page-context", name_what_is_there)
    app.connect("html-page-context", prepare_print)
    app.connect("build-finished", add_anywidget)
    app.connect("build-finished", add_front_door, priority=400)  # before a plainer one is written
    app.connect("build-finished", move_print)
    app.connect("html-page-context", drop_duplicate_scripts, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
