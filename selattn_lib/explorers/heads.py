"""The explorer of every head's own map."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from IPython.display import HTML

from ..evaluation.scores import attention_ratio
from ..maps.head_maps import HeadMaps
from ..maps.relevance import HeadRelevance
from .base import OneMapExplorer, Setting

CONSENSUS = "agreement with all heads"  # as it is named in a head explorer's menu
ATTENTION = "attention on "  # how a head explorer's menu names a ranking by what is seen


class HeadExplorer(OneMapExplorer):
    """Every head's own map on the grid of heads; pick heads by clicking, by rank, layer or resolution, and see the
    average map of exactly those, and what each head is most relevant to.

    In a live kernel `heads` (head numbers) can be read and set, `ranking` (a concept, "agreement with all heads", or
    "attention on {name}"), `word`, `image`, `k` and `threshold` as well; `selection` is all of them, `heat`, `mask` and
    `iou` what they give.

    Parameters
    ----------
    maps, rankings, heads, k, threshold
        As for `AggregationExplorer`. Where the maps have true masks, the ranking may also be by how much of each head's
        attention falls on one of them: see `selattn_lib.evaluation.scores.attention_ratio`.
    concept : str, optional
        Whose ranking to start with.

    Examples
    --------
    >>> maps = HeadMaps.from_grids([([0, 1], np.random.default_rng(0).random((1, 1, 2, 4, 4)))], ["bear"], (32, 32))
    >>> explorer = HeadExplorer(maps.with_pictures(np.zeros((1, 32, 32, 3), np.uint8)), {"Animals": [1, 0]}, k=1)
    >>> explorer.heads = [0, 1]
    >>> explorer.heat.shape
    (32, 32)
    """

    kind = "heads"
    ranking = Setting("concept_0")

    def __init__(
        self,
        maps: HeadMaps | Sequence[HeadMaps],
        rankings: HeadRelevance | Mapping[str, Any],
        *,
        concept: str | None = None,
        heads: Any = None,
        k: int = 30,
        threshold: float = 0.4,
    ) -> None:
        super().__init__(maps, rankings, heads, k, threshold)
        first = next(iter(self.rankings)) if concept is None else concept
        regions = dict.fromkeys(name for item in self.items for name in item.truths)
        more = [CONSENSUS, *(ATTENTION + name for name in regions)]
        self.controls["concept_0"] = self.concept_menu(first, "Rank by", more)
        self.link_controls()
        for name in ("k", "concept_0"):
            self.controls[name].observe(self._rank_again, "value")

    def _rank_again(self, change: Any) -> None:
        self.view.picked = None

    @property
    def selection(self) -> dict[str, Any]:
        return super().selection | {"ranking": self.ranking}

    @property
    def heads(self) -> np.ndarray:
        """Numbers of the picked heads; of the k first in the ranking, if none were picked by hand."""
        return self.order[: self.k] if self.view.picked is None else np.array(self.view.picked, dtype=int)

    @heads.setter
    def heads(self, numbers: Sequence[int]) -> None:
        picked, n_heads = sorted({int(number) for number in numbers}), self.n_heads
        if wrong := [number for number in picked if not 0 <= number < n_heads]:
            raise ValueError(f"heads {wrong} do not exist: the maps have heads 0 to {n_heads - 1}")
        self.view.picked = picked

    @property
    def order(self) -> np.ndarray:
        """(head) head numbers in the order of the chosen ranking, the first the most relevant."""
        if self.ranking == CONSENSUS:
            return self.consensus
        if not self.ranking.startswith(ATTENTION):
            return self.rankings[self.ranking]
        truth = self.item.truths.get(self.ranking.removeprefix(ATTENTION))
        if truth is None:
            return np.arange(self.n_heads)
        ratios = [attention_ratio(self.heat_of([head]).values, truth) for head in range(self.n_heads)]
        return np.argsort(-np.array(ratios), kind="stable")

    def static_html(self) -> HTML:
        return self.strip({f"{len(self.heads)} heads by {self.ranking}": self.heads, "all heads (DAAM)": "all"})
