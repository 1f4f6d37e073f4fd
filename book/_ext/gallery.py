"""Sphinx extension of this book: figures that can be linked to by their number, and a page that shows them all.

A caption that begins "Figure 7.2." makes the figure above it the label `figure-7-2`: {ref}`figure-7-2` is a link to it.
The directive `{gallery}` shows a small picture of every figure of every chapter, drawn from the notebooks' outputs.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
from docutils import nodes
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective
from thumbnails import thumbnail

NUMBER = re.compile(r"Figure (\d+)\.(\d+)\. ")


def label(number: str) -> str:
    return f"figure-{number.replace('.', '-')}"


def number_figures(app, doctree):
    """Make each numbered figure, or its caption where no cell stands before it, the target of a label."""
    for caption in doctree.findall(nodes.emphasis):
        paragraph, found = caption.parent, NUMBER.match(f"{caption.astext()} ")
        if found and isinstance(paragraph, nodes.paragraph) and paragraph[0] is caption:
            before = paragraph.parent.index(paragraph) - 1
            cell = paragraph.parent[before] if before >= 0 else paragraph
            target = cell if "cell" in cell.get("classes", []) else paragraph
            number = f"{found[1]}.{found[2]}"
            target["ids"].append(label(number))
            domain = app.env.get_domain("std")
            domain.note_hyperlink_target(label(number), app.env.docname, label(number), f"Figure {number}")


def finding(caption: str) -> str:
    """What a caption says first, up to a full stop, colon or semicolon, without markup."""
    text = " ".join(re.sub(r"{\w+}|[*`]", "", caption).split())
    said = NUMBER.sub("", text)
    first = re.match(r"(.{20,}?)[.:;](?=\s|$)", said)
    return first[1] if first else said


def figures_of(notebook: Path) -> Iterator[tuple[str, str, str]]:
    """(number, finding, address of a small picture) of every figure of an executed notebook, in order."""
    cells = nbformat.read(notebook, as_version=4).cells
    for cell, after in zip(cells, cells[1:], strict=False):
        found = NUMBER.match(after.source.lstrip("*"))
        if cell.cell_type == "code" and after.cell_type == "markdown" and found:
            caption = after.source.split("\n\n")[0]
            try:
                yield f"{found[1]}.{found[2]}", finding(caption), thumbnail(cell.outputs)
            except (ValueError, KeyError, TypeError) as error:
                raise ExtensionError(f"{notebook.name}, Figure {found[1]}.{found[2]}: {error}") from error


def title_of(notebook: Path) -> str:
    cells = nbformat.read(notebook, as_version=4).cells
    return next(re.findall(r"^# (.+)$", cell.source, re.MULTILINE)[0] for cell in cells if cell.source[:2] == "# ")


class Gallery(SphinxDirective):
    """A section for each chapter that has figures, with a list of links."""

    def run(self) -> list[nodes.Node]:
        sections = []
        for notebook in sorted(Path(self.env.srcdir, "notebooks").glob("*.ipynb")):
            self.env.note_dependency(str(notebook))
            shown = nodes.bullet_list(classes=["gallery"])
            for number, said, picture in figures_of(notebook):
                image = nodes.raw("", f'<img src="{picture}" alt="" class="dark-light">', format="html")
                link = nodes.reference("", "", image, nodes.strong("", f"Figure {number}. "), internal=True)
                link += nodes.inline("", said)
                link["figure"] = label(number)
                shown += nodes.list_item("", nodes.paragraph("", "", link))
            if len(shown):
                heading = nodes.title("", title_of(notebook))
                sections.append(nodes.section("", heading, shown, ids=[f"figures-{notebook.stem[:2]}"]))
        return sections


def link_figures(app, doctree, docname):
    """Give the gallery's links their addresses, which are known when all pages have been read."""
    labels = app.env.get_domain("std").anonlabels
    for link in doctree.findall(nodes.reference):
        if "figure" in link:
            page, target = labels[link["figure"]]
            link["refuri"] = f"{app.builder.get_relative_uri(docname, page)}#{target}"


def setup(app):
    app.add_directive("gallery", Gallery)
    app.connect("doctree-read", number_figures)
    app.connect("doctree-resolved", link_figures)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
