"""The explorer of one word's map by chosen heads."""

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as widgets
import numpy as np
from IPython.display import HTML

from ..maps.consensus import finest_heads
from ..maps.head_maps import HeadMaps
from ..maps.relevance import HeadRelevance
from .base import OneMapExplorer, Setting
from .view import METHODS


class AggregationExplorer(OneMapExplorer):
    """One word in one picture: the map of k chosen heads beside that of all heads, with IoU for both (Eq. 2, 4, 5).

    The browser holds half-precision maps, with a scale for each map: exact for studies, which store such, and else off
    by at most 1 / 2048 of a value. What it prints are the library's own numbers on these maps.

    In a live kernel `word`, `image` (number), `k`, `threshold`, `concept` and `method` can be read and set; `selection`
    is all of them, `heads` (head numbers), `heat` (y, x), `mask` (y, x) and `iou` what they give.

    Parameters
    ----------
    maps : HeadMaps, or several
        With pictures and, where known, true masks, as a study gives them (for maps of your own, see
        `HeadMaps.with_pictures`), equally many pictures of each word.
    rankings : HeadRelevance, or mapping
        Concept -> all heads, the most relevant first.
    concept, method : str, optional
        What to start with: one of the concepts, and "top k", "bottom k", "consensus k" (see `consensus`; it is of all
        pictures of the word), "finest grid" (see `finest_heads`), "random k" or "all heads".
    heads : sequence of str, optional
        The heads' names, taken from a `HeadRelevance`.
    k, threshold : int, float
        From 1 to the number of heads, and 0.05 to 0.95.

    Raises
    ------
    ValueError
        Where sizes do not fit together, or a setting is none of the choices.

    Examples
    --------
    >>> maps = HeadMaps.from_grids([([0, 1], np.random.default_rng(0).random((1, 1, 2, 4, 4)))], ["bear"], (32, 32))
    >>> maps = maps.with_pictures(np.zeros((1, 32, 32, 3), np.uint8))
    >>> AggregationExplorer(maps, {"Animals": [1, 0]}, k=1).heads
    array([1])
    """

    kind = "aggregation"
    concept = Setting("concept_0")
    method = Setting("method")

    def __init__(
        self,
        maps: HeadMaps | Sequence[HeadMaps],
        rankings: HeadRelevance | Mapping[str, Any],
        *,
        concept: str | None = None,
        method: str = "top k",
        heads: Any = None,
        k: int = 30,
        threshold: float = 0.4,
    ) -> None:
        super().__init__(maps, rankings, heads, k, threshold)
        if method not in METHODS:
            raise ValueError(f"method={method!r} is none of {list(METHODS)}")
        first = next(iter(self.rankings)) if concept is None else concept
        self.controls["concept_0"] = self.concept_menu(first, "Concept")
        self.controls["method"] = widgets.Dropdown(options=list(METHODS), value=method, description="Method")
        self.link_controls()

    @property
    def selection(self) -> dict[str, Any]:
        return super().selection | {"concept": self.concept, "method": self.method}

    @property
    def heads(self) -> np.ndarray:
        """Numbers of the chosen heads."""
        order, ranking = METHODS[self.method][0], self.rankings[self.concept]
        if order == "all":
            return ranking
        if order == "finest":
            return finest_heads(self.item.maps)
        orders = {"ranking": ranking, "reversed": ranking[::-1], "random": np.array(self.view.random_order)}
        orders["consensus"] = self.consensus
        return orders[order][: self.k]

    def static_html(self) -> HTML:
        title = METHODS[self.method][1].format(k=len(self.heads), concept=self.concept)
        return self.strip({title: self.heads, "all heads (DAAM)": "all"})
