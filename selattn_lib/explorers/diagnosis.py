"""The explorer of an ambiguous word."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from IPython.display import HTML

from ..maps.head_maps import HeadMaps
from ..maps.relevance import HeadRelevance
from .base import Explorer
from .view import METHODS


class DiagnosisExplorer(Explorer):
    """One ambiguous word, two or three concepts: where the heads of each concept see the word, how their masks overlap
    and where the one map is stronger than the other, beside all heads.

    In a live kernel `word`, `image`, `k`, `threshold` and `concepts` can be read; `heads`, `heat` and `mask` are
    dictionaries, concept -> what is now shown.

    Parameters
    ----------
    maps, rankings, heads, k, threshold
        As for `AggregationExplorer`. True masks, such as a `DiagnosisStudy` has, are outlined, and each map's IoU with
        each printed.
    concepts : sequence of str, or mapping
        Two or three to start with, or word -> those to start with.

    Raises
    ------
    ValueError
        Unless there are two or three concepts for each word.

    Examples
    --------
    >>> maps = HeadMaps.from_grids([([0, 1], np.random.default_rng(0).random((1, 1, 2, 4, 4)))], ["mouse"], (32, 32))
    >>> maps = maps.with_pictures(np.zeros((1, 32, 32, 3), np.uint8))
    >>> DiagnosisExplorer(maps, {"Animals": [1, 0], "Electronics": [0, 1]}, k=1).heads
    {'Animals': array([1]), 'Electronics': array([0])}
    """

    kind = "diagnosis"

    def __init__(
        self,
        maps: HeadMaps | Sequence[HeadMaps],
        rankings: HeadRelevance | Mapping[str, Any],
        *,
        concepts: Sequence[str] | Mapping[str, Sequence[str]] = ("Animals", "Electronics"),
        heads: Any = None,
        k: int = 30,
        threshold: float = 0.4,
    ) -> None:
        super().__init__(maps, rankings, heads, k, threshold)
        words = self.view.words
        by_word = concepts if isinstance(concepts, Mapping) else dict.fromkeys(words, concepts)
        if missing := [word for word in words if word not in by_word]:
            raise ValueError(f"concepts names none for {missing}: expected two or three for each word")
        meanings = [list(by_word[word]) for word in words]
        if len({len(names) for names in meanings}) != 1 or not 2 <= len(meanings[0]) <= 3:
            raise ValueError(f"concepts={concepts!r}: expected two or three concepts, as many for each word")
        known = list(self.rankings)
        for i, concept in enumerate(meanings[0]):
            self.controls[f"concept_{i}"] = self.concept_menu(concept, f"Concept {i + 1}")
        if unknown := {concept for names in meanings for concept in names} - set(known):
            raise ValueError(f"the concepts {sorted(unknown)} have no ranking here: there are {known}")
        self.view.n_concepts = len(meanings[0])
        self.view.meanings = [[known.index(concept) for concept in names] for names in meanings]
        self.link_controls()

    @property
    def selection(self) -> dict[str, Any]:
        return super().selection | {"concepts": self.concepts}

    @property
    def concepts(self) -> list[str]:
        """The concepts now compared."""
        return [self.controls[f"concept_{i}"].value for i in range(self.view.n_concepts)]

    @property
    def heads(self) -> dict[str, np.ndarray]:
        """Concept -> numbers of its k most relevant heads."""
        return {concept: self.rankings[concept][: self.k] for concept in self.concepts}

    @property
    def heat(self) -> dict[str, xr.DataArray]:
        """Concept -> map (y, x) in [0, 1] of its heads."""
        return {concept: self.heat_of(heads) for concept, heads in self.heads.items()}

    @property
    def mask(self) -> dict[str, xr.DataArray]:
        """Concept -> boolean (y, x): where its map is above the threshold."""
        return {concept: heat > self.threshold for concept, heat in self.heat.items()}

    def static_html(self) -> HTML:
        title = METHODS["top k"][1]
        sets = {title.format(k=self.k, concept=concept): heads for concept, heads in self.heads.items()}
        return self.strip({**sets, "all heads (DAAM)": "all"})
