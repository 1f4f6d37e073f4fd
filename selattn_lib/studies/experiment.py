"""What a chapter scores: the pictures with true masks, the relevance of the heads, and how many heads are chosen."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from ..maps.head_maps import HeadMaps
from ..maps.relevance import HeadRelevance
from ..models.pipelines import in_embedded_world
from .checks import check_selection
from .generated import Study
from .noised import KnownTruthStudy, MaskedStudy
from .relevance import relevance_for


@dataclass(frozen=True)
class Experiment:
    """The results that a chapter compares sets of heads on, as `experiment` makes them.

    Parameters
    ----------
    benchmarks : dict of str to HeadMaps
        As from `run_benchmarks`.
    relevance : HeadRelevance
        Which heads the concepts have.
    concept : str
        Whose words the pictures are of.
    heads : int or list of int
        How many are chosen.
    thresholds : list of float
        In (0, 1).

    Examples
    --------
    >>> from selattn_lib.maps.relevance import load_hrv
    >>> chapter = Experiment({}, load_hrv("emoji-sd"), "Animals", 30, [0.3, 0.4, 0.5])
    >>> len(chapter.top), chapter.middle
    (30, 0.4)
    """

    benchmarks: dict[str, HeadMaps]
    relevance: HeadRelevance
    concept: str
    heads: Any
    thresholds: list[float]

    def __str__(self) -> str:
        lines = [
            f"{name}: {maps.n_images} images of {len(np.unique(maps.subjects))} words on {maps.model}"
            for name, maps in self.benchmarks.items()
        ]
        ties = [
            self.relevance.tie(self.concept, k, end) for k in np.atleast_1d(self.heads) for end in ("top", "bottom")
        ]
        return "\n".join([*lines, self.relevance.noise, *filter(None, ties)])

    @property
    def generated(self) -> HeadMaps:
        """The images that the model drew, with a segmenter's masks."""
        return self.benchmarks["generated"]

    @property
    def known_truth(self) -> HeadMaps | None:
        """Composed scenes with exact masks; None on a model that has no such world."""
        return self.benchmarks.get("known truth")

    @property
    def ranking(self) -> np.ndarray:
        """(head) head numbers, the most relevant to the concept first."""
        return self.relevance.ranking(self.concept)

    @property
    def top(self) -> np.ndarray:
        """The `heads` most relevant heads; `str` says where a tie decides."""
        return self.ranking[: self.heads]

    @property
    def bottom(self) -> np.ndarray:
        """The `heads` least relevant heads; `str` says where a tie decides."""
        return self.ranking[-self.heads :]

    @property
    def orders(self) -> xr.DataArray:
        """(ranking, head) the ranking, and those of resampled images: see `HeadRelevance.orders`."""
        return self.relevance.orders(self.concept)

    @property
    def top_sets(self) -> xr.DataArray:
        """(ranking, head) weights of the `heads` most relevant heads by each of the `orders`, for intervals."""
        return self.relevance.top_sets(self.concept, self.heads)

    @property
    def bottom_sets(self) -> xr.DataArray:
        """(ranking, head) weights of the `heads` least relevant heads by each of the `orders`, for intervals."""
        return self.relevance.bottom_sets(self.concept, self.heads)

    @property
    def middle(self) -> float:
        """The threshold in the middle, for figures."""
        return sorted(self.thresholds)[len(self.thresholds) // 2]

    def examples(self, words: int = 4, each: int = 1, *, start: int = 0) -> np.ndarray:
        """The numbers of the first `each` generated images of `words` words, from word number `start`."""
        subjects = self.generated.subjects
        images = [np.flatnonzero(subjects == word)[:each] for word in [*dict.fromkeys(subjects)][start:][:words]]
        return np.concatenate(images)


def run_benchmarks(study: Study, *, scenes: int = 100, masks: str = "", pictures: str = "") -> dict[str, HeadMaps]:
    """Run a study and its like without sampling, and load the results.

    Parameters
    ----------
    study : Study
        The images to generate.
    scenes : int
        How many scenes to compose, on the embedded model.
    masks, pictures : str
        A COCO file or a VOC folder of one's own, and the folder of its pictures, as for `MaskedStudy`; "": none.

    Returns
    -------
    dict of str to HeadMaps
        "generated"; "known truth" on the embedded model; "own pictures" if there are masks.

    Raises
    ------
    ValueError
        On masks that are not there, before anything is run.

    Examples
    --------
    >>> benchmarks = run_benchmarks(Study(words=["bear"], seeds=1, steps=2), scenes=1)
    >>> benchmarks["known truth"].n_images
    1
    """
    return _loaded(_benchmark_studies(study, scenes, masks, pictures))


def _benchmark_studies(study: Study, scenes: int, masks: str, pictures: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"model": study.model, "dtype": study.dtype, "batch": study.batch}
    studies: dict[str, Any] = {"generated": study}
    if in_embedded_world(study.model):
        scene: dict[str, Any] = {"concept": study.concept, "concepts": study.concepts, "scenes": scenes}
        studies["known truth"] = KnownTruthStudy(**scene, **settings)
    if masks:
        studies["own pictures"] = MaskedStudy(source=masks, pictures=pictures, words=study.words, **settings)
    return studies


def _loaded(studies: Mapping[str, Any]) -> dict[str, HeadMaps]:
    return {name: HeadMaps(study.run().dataset.load()) for name, study in studies.items()}


def experiment(
    study: Study,
    heads: Any,
    thresholds: Any,
    *,
    several: bool = False,
    hrv: str = "",
    images: int = 80,
    scenes: int = 100,
    masks: str = "",
    pictures: str = "",
) -> Experiment:
    """Run what a chapter needs: its benchmarks and the relevance of the heads.

    Parameters
    ----------
    study : Study
        The images to generate; its model, steps, data type and batch are those of all that is run.
    heads, thresholds, several
        As for `check_selection`.
    hrv, images
        Saved head relevance to use, or the number of images to measure it on: as for `relevance_for`.
    scenes, masks, pictures
        As for `run_benchmarks`.

    Returns
    -------
    Experiment
        With all that it needs loaded.

    Raises
    ------
    ValueError
        On a selection that does not fit the model, and on masks that are not there, before anything is run.

    Examples
    --------
    >>> study = Study(words=["bear"], seeds=1, steps=2)
    >>> chapter = experiment(study, 30, [0.4], hrv="emoji-sd", scenes=1)
    >>> len(chapter.top), sorted(chapter.benchmarks)
    (30, ['generated', 'known truth'])
    """
    heads, thresholds = check_selection(heads, thresholds, study.model, several=several)
    studies = _benchmark_studies(study, scenes, masks, pictures)
    settings = {"concepts": study.concepts, "steps": study.steps, "dtype": study.dtype, "batch": study.batch}
    relevance = relevance_for(study.model, hrv, images=images, **settings)
    return Experiment(_loaded(studies), relevance, study.concept, heads, thresholds)
