"""Sphinx extension of this book: what a link to a page shows where it is shared: title, description and picture.

Pictures of such cards need a whole address: the environment variable BOOK_URL says where the book is published.
"""

import os
import re
from html import escape, unescape
from urllib.parse import urljoin

from docutils import nodes

PICTURE = "_static/figure_one.png"
ALT = "Two generated pictures with a mouse and a computer mouse, and maps of the word mouse by three sets of heads"


def description(doctree: nodes.document) -> str:
    """The first paragraph of a page with a sentence in it, cut at 200 characters."""
    texts = (" ".join(paragraph.astext().split()) for paragraph in doctree.findall(nodes.paragraph))
    text = next((text for text in texts if len(text) > 60), "")
    return text if len(text) <= 200 else f"{text[:197].rsplit(' ', 1)[0]} ..."


def add_card(app, pagename, templatename, context, doctree):
    if doctree is None:
        return
    root, address = os.environ.get("BOOK_URL", ""), f"{pagename}.html"
    picture = urljoin(f"{root.rstrip('/')}/", PICTURE) if root else context["pathto"](PICTURE, resource=True)
    card = {
        "name=description": description(doctree),
        "property=og:type": "article",
        "property=og:site_name": app.config.html_title or app.config.project,
        "property=og:title": unescape(re.sub("<.*?>", "", context["title"])),
        "property=og:description": description(doctree),
        "property=og:image": picture,
        "property=og:image:alt": ALT,
        "name=twitter:card": "summary_large_image",
    }
    if root:
        card["property=og:url"] = urljoin(f"{root.rstrip('/')}/", address)
    lines = []
    for key, value in card.items():
        kind, name = key.split("=")
        lines.append(f'<meta {kind}="{name}" content="{escape(value)}">')
    context["metatags"] = "\n".join([context.get("metatags", ""), *lines])


def setup(app):
    app.connect("html-page-context", add_card)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
