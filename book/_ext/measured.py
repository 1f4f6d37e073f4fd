"""Sphinx extension of this book: numbers in prose, read from the tables of executed chapters when the book is built.

    {measured}`02_segmentation; mean IoU; 0.4; top 30 heads`

is what stands in a notebook's first table that has such a row, in the column whose head begins with a part, the first
that does, and the row that holds all the others; spanned cells are part of each of their rows. So a page and a chapter
never differ.
"""

from collections.abc import Iterator
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup, Tag
from docutils import nodes


def rows_of(part: Tag | None) -> list[list[str]]:
    """The cells of a table's head or body as text, those that span several rows repeated in each."""
    rows: list[list[str]] = []
    waiting: dict[int, tuple[int, str]] = {}  # column -> (rows still to come, text)
    for line in part("tr") if part else ():
        cells, row = iter(line(["th", "td"])), []
        while waiting.get(len(row), (0, ""))[0] or (cell := next(cells, None)):
            if waiting.get(len(row), (0, ""))[0]:
                left, text = waiting[len(row)]
                left -= 1
            else:
                left, text = int(cell.get("rowspan", 1)) - 1, " ".join(cell.get_text().split())
            waiting[len(row)] = left, text
            row.append(text)
        rows.append(row)
    return rows


def tables(notebook: Path) -> Iterator[tuple[list[str], list[list[str]]]]:
    """(head of each column, rows) of every table that an executed notebook shows, in order."""
    for cell in nbformat.read(notebook, as_version=4).cells:
        for output in cell.get("outputs", []):
            for table in BeautifulSoup(output.get("data", {}).get("text/html", ""), "html.parser")("table"):
                heads = rows_of(table.thead)
                yield [" ".join(filter(None, column)) for column in zip(*heads, strict=True)], rows_of(table.tbody)


def look_up(notebooks: Path, text: str) -> str:
    """The cell that `notebook; column; row; ...` names; LookupError if there is none."""
    name, *parts = (part.strip() for part in text.split(";"))
    for heads, rows in tables(notebooks / f"{name}.ipynb"):
        for column in parts:
            columns = [number for number, head in enumerate(heads) if head.startswith(column)]
            for row in rows:
                if columns and {*parts} - {column} <= {*row}:
                    return row[columns[0]]
    raise LookupError(f"no table of {name} has a column and a row with {parts}")


def measured(name, rawtext, text, lineno, inliner, options=None, content=None):
    """The role. Its notebooks are those of the book, unless the book's configuration says `measured_from`."""
    env = inliner.document.settings.env
    try:
        return [nodes.Text(look_up(Path(env.srcdir, env.config.measured_from), text))], []
    except (LookupError, OSError, ValueError) as error:
        message = inliner.reporter.error(f"{rawtext}: {error}", line=lineno)
        return [inliner.problematic(rawtext, rawtext, message)], [message]


def setup(app):
    app.add_config_value("measured_from", "notebooks", "env")
    app.add_role("measured", measured)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
