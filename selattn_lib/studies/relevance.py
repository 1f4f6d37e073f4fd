"""The study of head relevance, and the relevance to use with a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from pydantic import Field, field_validator, model_validator
from tqdm import tqdm

from ..attention.scoring import score_heads
from ..concepts import read_lines
from ..maps.relevance import SHIPPED, HeadRelevance, load_hrv
from ..models.families import cross_attention_heads
from ..models.pipelines import EMBEDDED, in_embedded_world, network_layout
from .base import StudyBase
from .generated import generate
from .results import head_relevance


class RelevanceStudy(StudyBase):
    """Head relevance vectors (Eq. 3), counted while varied prompts are drawn; `run` returns a `HeadRelevance`.

    Parameters
    ----------
    images : int
        How many, 2 or more.
    concepts : path or mapping
        A YAML file of concepts, or such a table; by default the model's own (`concepts_of`).
    classes, texts : sequence of str, or path
        The prompts: classes are put as "a photo of a {class}.", texts are used as they are. Each is a list, or the path
        of a text file with one a line; "imagenet" names the 1,000 classes of ILSVRC 2012. The HRV paper's 2,100 images
        are those, 363 of them under other names, and 1,100 texts. If neither is given, they are "imagenet", but for the
        embedded model "a photo of a {word}" over its concepts' words. They come in a seeded order, again and again if
        there are fewer than `images`, so that of 2,100 without texts, classes stand in for 1,100.
    seed : int
        Of that order, and of the words drawn for each concept.
    start_token : bool
        Leave the start token inside the softmax, where the model puts one before a word (see `score_heads`), as the
        published implementation and `selattn reproduce` do; the shipped head relevance of the embedded model was
        counted without.
    **settings
        model, revision, dtype, batch, steps and guidance, as of `Study`.

    Examples
    --------
    >>> study = RelevanceStudy(images=2, texts=["a cat asleep"])
    >>> study.prompts()
    ['a cat asleep', 'a cat asleep']
    """

    images: int = Field(default=80, ge=2)
    steps: int = Field(default=50, ge=1, le=1000)
    guidance: float = Field(default=7.5, ge=1, allow_inf_nan=False, description="None: the model's own")
    seed: int = 0
    start_token: bool = False
    classes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    concepts: dict[str, tuple[str, ...]] = Field(default={}, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _fill_classes(cls, fields: dict[str, Any]) -> dict[str, Any]:
        given = in_embedded_world(fields.get("model", EMBEDDED)) or fields.get("classes") or fields.get("texts")
        return fields if given else {**fields, "classes": "imagenet"}

    @field_validator("classes", "texts", mode="before")
    @classmethod
    def _read_lines(cls, given: Any) -> Any:
        return read_lines(given) if isinstance(given, str | Path) and given else given or ()

    def decisive(self) -> dict[str, Any]:
        # The order of the concepts decides which words are drawn.
        return {**super().decisive(), "concepts": list(self.concepts.items())}

    @property
    def size(self) -> int:
        return self.images

    def prompts(self) -> list[str]:
        """The prompt of every image."""
        words = sorted({word.lower() for words in self.concepts.values() for word in words})
        prompts = [f"a photo of a {name}." for name in self.classes] + list(self.texts)
        prompts = prompts or [f"a photo of a {word}" for word in words]
        order = np.random.default_rng(self.seed).permutation(len(prompts))
        return [prompts[order[i % len(prompts)]] for i in range(self.images)]

    def compute(self, units: Sequence[int]) -> xr.Dataset:
        every = self.prompts()
        prompts = [every[number] for number in units]
        concepts = {concept: list(words) for concept, words in self.concepts.items()}
        start_token = None if self.start_token else False
        with score_heads(self.pipe, concepts, seed=self.seed, units=units, start_token=start_token) as votes:
            generate(self.pipe, prompts, units, steps=self.steps, guidance=self.guidance, output_type="latent")
        return votes.counts().drop_vars("image").astype("uint16").to_dataset(name="counts")

    def run(self, workers: Any = None, bar: tqdm | None = None) -> HeadRelevance:
        return head_relevance(self.load_or_compute(workers, bar))

    @property
    def is_shipped(self) -> bool:
        """Whether its result comes with the library: an embedded model's, counted with the defaults of a study."""
        if self.model not in SHIPPED:
            return False
        return self == RelevanceStudy(model=self.model, batch=self.batch, dtype=self.dtype)

    def counts(self) -> xr.DataArray:
        """Votes (image, concept, head) of every image, for split halves; runs what is missing."""
        return self.load_or_compute()["counts"].astype(int)


def relevance_for(model: str, hrv: str | Path = "", **settings: Any) -> HeadRelevance:
    """The head relevance to use with a model.

    Parameters
    ----------
    model : str
        As for `load_pipeline`.
    hrv : path
        What to read (see `load_hrv`). If empty, it is measured, unless what is asked for is what comes with the model.
    **settings
        Those of the `RelevanceStudy` that measures it.

    Returns
    -------
    HeadRelevance
        Scores (concept, head) over the model's heads.

    Raises
    ------
    ValueError
        If what is read is not about the model's heads.

    Examples
    --------
    >>> relevance_for("emoji-sd").scores.dims
    ('concept', 'head')
    """
    if not hrv:
        study = RelevanceStudy(model=model, **settings)
        return load_hrv(model) if study.is_shipped else study.run()
    relevance, heads = load_hrv(str(hrv)), cross_attention_heads(network_layout(model)).names
    if (names := relevance.scores["head"].values.tolist()) != heads:
        raise ValueError(
            f"hrv={str(hrv)!r} is about {len(names)} heads, {names[0]!r} to {names[-1]!r}; {model} has {len(heads)}, "
            f"{heads[0]!r} to {heads[-1]!r}: expected head relevance of a model of the same layout"
        )
    return relevance
