"""The widget that the browser draws."""

from pathlib import Path
from typing import Any

import anywidget
import traitlets

from ..figures.theme import COLOURS, method_colour
from ..maps.overlay import DASH, OUTLINE_DARKNESS, OUTLINE_WIDTHS, OVERLAY_OPACITY, PERIOD, colour_map

JS = Path(__file__).with_name("js")
SCRIPTS = (
    "core",
    "parts",
    "aggregation",
    "heads",
    "diagnosis",
    "share",
    "view",
)  # joined in this order to one ES module
THRESHOLDS = (5, 95)  # the slider's ends, in hundredths, which are its steps
METHODS = {  # of choosing heads: the order in which one takes them, and what the k first are called
    "top k": ("ranking", "Top {k} heads for {concept}"),
    "bottom k": ("reversed", "Bottom {k} heads for {concept}"),
    "consensus k": ("consensus", "The {k} heads that agree most"),
    "finest grid": ("finest", "The {k} heads of the finest grid"),
    "random k": ("random", "{k} random heads"),
    "all heads": ("all", "All {k} heads"),
}
CONSTANTS = {  # what Python and the browser's scripts share
    "methods": [
        {"name": name, "order": order, "title": title, "colour": method_colour(name)}
        for name, (order, title) in METHODS.items()
    ],
    "thresholds": list(THRESHOLDS),
    "concept_colours": COLOURS[:3],
    "shared_colour": COLOURS[3],
    "opacity": OVERLAY_OPACITY,
    "outline_widths": list(OUTLINE_WIDTHS),
    "outline_darkness": OUTLINE_DARKNESS,
    "dash": [DASH, PERIOD],
}


def script() -> str:
    """The ES module that runs in the browser."""
    return "\n".join((JS / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)


class ExplorerView(anywidget.AnyWidget):
    """What the browser draws. Made by the explorers; its traits are the view's whole input."""

    _esm = script()
    _css = (JS / "explorer.css").read_text(encoding="utf-8")

    kind = traitlets.Unicode().tag(sync=True)
    constants = traitlets.Dict(CONSTANTS).tag(sync=True)
    palette = traitlets.Bytes(colour_map().tobytes()).tag(sync=True)  # 256 RGB colours
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
    consensus: Any = traitlets.List().tag(sync=True)  # of each word, all heads, those that agree most first
    grid: Any = traitlets.List().tag(sync=True)  # rows of the head grid
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
