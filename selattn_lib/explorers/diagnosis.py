"""The explorer of an ambiguous word."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from IPython.display import HTML

from .base import _Explorer


class DiagnosisExplorer(_Explorer):
    """One ambiguous word, two or three concepts: where the heads of each concept see the word, how their masks overlap
    and where the one map is stronger than the other, beside all heads.

    Arguments as for `AggregationExplorer`; `results` may be those of several words. `concepts` are those it starts
    with, or a mapping of each word to those to start with. True masks `truth_{name}`, such as a `DiagnosisStudy` has,
    are outlined, and each map's IoU with each printed.

    In a live kernel `word`, `image`, `k`, `threshold` and `concepts` can be read; `heads`, `heat` and `mask` are
    dictionaries, concept -> what is now shown.
    """

    kind = "diagnosis"

    def __init__(
        self,
        results: Any,
        rankings: Any,
        *,
        concepts: Sequence[str] | Mapping[str, Sequence[str]] = ("Animals", "Electronics"),
        heads: Any = None,
        k: int = 30,
        threshold: float = 0.4,
    ) -> None:
        super().__init__(results, rankings, heads, k, threshold)
        words = self.view.words
        by_word = concepts if isinstance(concepts, Mapping) else dict.fromkeys(words, concepts)
        if missing := [word for word in words if word not in by_word]:
            raise ValueError(f"concepts names none for {missing}; two or three for each word are needed.")
        lists = [list(by_word[word]) for word in words]
        if len({len(each) for each in lists}) != 1 or not 2 <= len(lists[0]) <= 3:
            raise ValueError(f"concepts={concepts!r} must be two or three concepts, as many for each word.")
        names = list(self.rankings)
        for i, concept in enumerate(lists[0]):
            self.controls[f"concept_{i}"] = self._concept_menu(concept, f"Concept {i + 1}")
        if unknown := {concept for each in lists for concept in each} - set(names):
            raise ValueError(f"The concepts {sorted(unknown)} have no ranking here; there are {names}")
        self.view.n_concepts = len(lists[0])
        self.view.meanings = [[names.index(concept) for concept in each] for each in lists]
        self._link()

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
        return {concept: self._heat(heads) for concept, heads in self.heads.items()}

    @property
    def mask(self) -> dict[str, xr.DataArray]:
        """Concept -> boolean (y, x): where its map is above the threshold."""
        return {concept: heat > self.threshold for concept, heat in self.heat.items()}

    def static_html(self) -> HTML:
        sets: dict[str, Any] = {f"top {self.k} heads for {concept}": heads for concept, heads in self.heads.items()}
        return self._static_html({**sets, "all heads (DAAM)": "all"})
