"""The explorer of one word's map by chosen heads."""

from typing import Any

import ipywidgets as widgets
import numpy as np
from IPython.display import HTML

from .base import _OneMap, _Setting

METHODS = ("top k", "bottom k", "random k", "all heads")  # in the order of `core.js`


class AggregationExplorer(_OneMap):
    """One word in one picture: the map of k chosen heads beside that of all heads, with IoU for both (Eq. 2, 4, 5).

    `results` is a head-maps dataset with the pictures `image_rgb` (image, y, x, rgb) uint8 and, where known, the true
    masks `truth` (image, y, x) bool, as a study gives it (for maps of your own, see `with_pictures`), or several of
    them; there must be equally many pictures of each word. `rankings` is a `HeadRelevance`, or a mapping of a concept
    to its heads, most relevant first; `heads` the heads' names (taken from a `HeadRelevance`). `k` heads and
    `threshold` in 0.05 to 0.95 are what it starts with.

    The browser holds half-precision maps, with a scale for each map: exact for studies, which store such, and else off
    by at most 1 / 2048 of a value. What it prints are the library's own numbers on these maps.

    In a live kernel `word`, `image` (number), `k`, `threshold`, `concept` and `method` (of `METHODS`) can be read and
    set; `selection` is all of them, `heads` (head numbers), `heat` (y, x), `mask` (y, x) and `iou` what they give.
    Raises ValueError where sizes do not fit together.
    """

    kind = "aggregation"
    concept = _Setting("concept_0")
    method = _Setting("method")

    def __init__(
        self,
        results: Any,
        rankings: Any,
        *,
        concept: str | None = None,
        method: str = METHODS[0],
        heads: Any = None,
        k: int = 30,
        threshold: float = 0.4,
    ) -> None:
        super().__init__(results, rankings, heads, k, threshold)
        if method not in METHODS:
            raise ValueError(f"method={method!r} is none of {METHODS}.")
        first = next(iter(self.rankings)) if concept is None else concept
        self.controls["concept_0"] = self._concept_menu(first, "Concept")
        self.controls["method"] = widgets.Dropdown(options=METHODS, value=method, description="Method")
        self._link()

    @property
    def selection(self) -> dict[str, Any]:
        return super().selection | {"concept": self.concept, "method": self.method}

    @property
    def heads(self) -> np.ndarray:
        """Numbers of the chosen heads."""
        order = self.rankings[self.concept]
        orders = {"bottom k": order[::-1], "random k": np.array(self.view.random_order)}
        return order if self.method == "all heads" else orders.get(self.method, order)[: self.k]

    def static_html(self) -> HTML:
        which = {"all heads": "all heads", "random k": f"{self.k} random heads"}
        name = which.get(self.method, f"{self.method.split()[0]} {self.k} heads for {self.concept}")
        return self._static_html({name: self.heads, "all heads (DAAM)": "all"})
