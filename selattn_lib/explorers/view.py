"""The widget that the browser draws."""

from pathlib import Path
from typing import Any

import anywidget
import traitlets

BROWSER = Path(__file__).with_name("js")


SCRIPTS = ("core", "parts", "aggregation", "heads", "diagnosis", "view")  # joined in this order to one ES module


def script() -> str:
    """The ES module that runs in the browser."""
    return "\n".join((BROWSER / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)


class ExplorerView(anywidget.AnyWidget):
    """What the browser draws. Made by the explorers below; its traits are the view's whole input."""

    _esm = script()
    _css = (BROWSER / "explorer.css").read_text(encoding="utf-8")

    kind = traitlets.Unicode().tag(sync=True)
    height = traitlets.Int().tag(sync=True)
    width = traitlets.Int().tag(sync=True)
    words: Any = traitlets.List().tag(sync=True)
    labels: Any = traitlets.List().tag(sync=True)  # of the images of each word
    items: Any = traitlets.List().tag(sync=True)  # word after word, its images: {picture, shift, mask, regions}
    pictures: Any = traitlets.List().tag(sync=True)  # data URIs
    truth = traitlets.Bytes().tag(sync=True)  # (mask, y * x / 8), one bit a pixel, from an item's `mask` on
    maps = traitlets.Bytes().tag(sync=True)  # see `pack_maps`
    grids: Any = traitlets.List().tag(sync=True)
    concepts: Any = traitlets.List().tag(sync=True)  # in the menus' order; a notebook's file does not keep a dict's
    rankings = traitlets.Dict().tag(sync=True)  # concept -> heads, most relevant first
    scores = traitlets.Dict().tag(sync=True)  # concept -> relevance (head); empty where only rankings are known
    random_order: Any = traitlets.List().tag(sync=True)
    grid: Any = traitlets.List().tag(sync=True)  # rows of the head grid
    palette = traitlets.Bytes().tag(sync=True)  # 256 RGB colours
    n_concepts = traitlets.Int(1).tag(sync=True)
    meanings: Any = traitlets.List().tag(sync=True)  # of each word, the numbers of its concepts

    word = traitlets.Int(0).tag(sync=True)
    image = traitlets.Int(0).tag(sync=True)
    k = traitlets.Int(1).tag(sync=True)
    threshold = traitlets.Float(0.4).tag(sync=True)
    method = traitlets.Int(0).tag(sync=True)
    concept_0 = traitlets.Int(0).tag(sync=True)
    concept_1 = traitlets.Int(0).tag(sync=True)
    concept_2 = traitlets.Int(0).tag(sync=True)
    picked: Any = traitlets.List(default_value=None, allow_none=True).tag(sync=True)  # heads clicked; None: ranked
