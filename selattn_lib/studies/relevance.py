"""The study of head relevance, and the relevance to use with a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from pydantic import Field, field_validator, model_validator

from ..attention.scoring import score_heads
from ..concepts import read_lines
from ..maps.relevance import HeadRelevance, load_hrv
from ..models.heads import cross_attention_heads
from ..models.pipelines import EMBEDDED, unet_layout
from .base import StudyBase, concepts_of
from .generated import generate


class RelevanceStudy(StudyBase):
    """Head relevance vectors (Eq. 3) of `concepts`, counted while `images` varied prompts are generated.

    The prompts are `classes`, to be put as "a photo of a {class}.", and `texts`, to be used as they are. Each is a
    list, or the path of a text file with one a line; "imagenet" names the 1,000 classes of ILSVRC 2012. The HRV paper's
    2,100 images are those and 1,100 texts. If neither is given, they are "imagenet", but for the embedded model "a
    photo of a {word}" over its concepts' words. They come in a seeded order, again and again if there are fewer than
    `images`.
    """

    images: int = Field(default=80, ge=2)
    steps: int = Field(default=50, ge=1, le=1000)
    guidance: float = Field(default=7.5, ge=1, description="None: the model's own")
    seed: int = 0
    start_token: bool = False
    classes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _fill_classes(cls, fields: dict[str, Any]) -> dict[str, Any]:
        given = fields.get("model", EMBEDDED) == EMBEDDED or fields.get("classes") or fields.get("texts")
        return fields if given else {**fields, "classes": "imagenet"}

    @field_validator("classes", "texts", mode="before")
    @classmethod
    def _read_lines(cls, given: Any) -> Any:
        return read_lines(given) if isinstance(given, str | Path) and given else given or ()

    @property
    def size(self) -> int:
        return self.images

    def prompts(self) -> list[str]:
        """The prompt of every image."""
        words = sorted({w.lower() for ws in concepts_of(self.model).values() for w in ws})
        every = [f"a photo of a {name}." for name in self.classes] + list(self.texts)
        every = every or [f"a photo of a {word}" for word in words]
        order = np.random.default_rng(self.seed).permutation(len(every))
        return [every[order[i % len(every)]] for i in range(self.images)]

    def compute(self, units: Sequence[int]) -> xr.Dataset:
        prompts = self.prompts()
        with score_heads(self.pipe, concepts_of(self.model), seed=self.seed, units=units,
                         start_token=self.start_token) as votes:  # fmt: skip
            generate(self.pipe, [prompts[i] for i in units], list(units), steps=self.steps, guidance=self.guidance,
                     output_type="latent")  # fmt: skip
        counts = votes.counts().drop_vars("image").astype("uint16")
        return counts.to_dataset(name="counts")

    def results(self, stored: xr.Dataset) -> HeadRelevance:
        return HeadRelevance.from_counts(stored["counts"].astype(int))

    def counts(self) -> xr.DataArray:
        """Votes (image, concept, head) of every image, for split halves; runs what is missing."""
        return self.load_or_compute()["counts"].astype(int)


def relevance_for(model: str, hrv: str = "", **fields: Any) -> HeadRelevance:
    """The head relevance to use with a model: read from `hrv` if given, else measured by a `RelevanceStudy`.

    Raises ValueError if what is read is not about the model's heads.
    """
    if not hrv:
        return RelevanceStudy(model=model, **fields).run()
    relevance, heads = load_hrv(hrv), cross_attention_heads(unet_layout(model)).names
    if (found := relevance.scores["head"].values.tolist()) != heads:
        raise ValueError(
            f"hrv={hrv!r} is about {len(found)} heads, {found[0]!r} to {found[-1]!r}; {model} has {len(heads)}, "
            f"{heads[0]!r} to {heads[-1]!r}: expected head relevance of a model of the same layout"
        )
    return relevance
