"""Studies of pictures that the model draws: the benchmark, ambiguous words, windows of steps, weakened heads."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import torch
import xarray as xr
from pydantic import Field, field_validator, model_validator

from ..attention.capture import capture
from ..attention.scaling import scaled_heads
from ..concepts import benchmark_words, check_concept
from ..models.heads import cross_attention_heads
from ..models.pipelines import EMBEDDED, pick_device, unet_layout
from ..models.segmenters import check_segmenter, load_segmenter
from .base import _Maps, concepts_of, halved
from .parameters import read_literal


class _Generated(_Maps):
    """Units are images drawn by the model, with masks by a segmenter: the model's own by default, or Grounded-SAM.

    A segmenter that detects first adds `{mask}_box` (image, side: left, top, right, bottom) in pixels, `{mask}_score`
    and `{mask}_detections` (image), see `selattn_lib.segment.Detection`.
    """

    uses_segmenter: ClassVar[bool] = True

    seeds: int = Field(default=10, ge=1)
    steps: int = Field(default=50, ge=1, le=1000)
    guidance: float = Field(default=7.5, ge=1, description="None: the model's own")
    segmenter: str = ""

    def phrases(self, unit: dict[str, Any]) -> dict[str, str]:
        """variable of the results -> what the segmenter is to look for."""
        raise NotImplementedError

    def compute(self, units: Sequence[int]) -> xr.Dataset:
        every = self.units()
        chosen = [every[i] for i in units]
        with capture(self.pipe, words=[[u["subject"]] for u in chosen]) as maps:
            images = generate(
                self.pipe, [u["prompt"] for u in chosen], [u["seed"] for u in chosen],
                steps=self.steps, guidance=self.guidance,
            )  # fmt: skip
        found = halved(maps.head_maps().dataset)
        found["image_rgb"] = (("image", "y", "x", "rgb"), np.stack([np.asarray(i) for i in images]))
        for name in self.phrases(chosen[0]):
            wanted = [self.phrases(u)[name] for u in chosen]
            masks, boxes, scores, detections = zip(*self.segmenter_model.detect(images, wanted), strict=True)
            found[f"{name}_box"] = (("image", "side"), np.stack(boxes))
            found[f"{name}_score"] = ("image", np.array(scores, np.float32))
            found[f"{name}_detections"] = ("image", np.array(detections, np.uint16))
            found[name] = (("image", "y", "x"), np.stack(masks))
        return found

    def results(self, stored: xr.Dataset) -> xr.Dataset:
        """Adds the coordinate `{mask}_outcome` (image) of each mask: "found", "several found" (the highest score
        counts), "empty mask" or "not found", the last two with a mask of nothing."""
        stored = super().results(stored)
        for name in self.phrases(self.units()[0]):
            number = stored.get(f"{name}_detections", xr.ones_like(stored["seed"])).values
            empty = np.array([not stored[name][i].values.any() for i in range(self.size)])
            outcome = np.select([number == 0, empty, number > 1], ["not found", "empty mask", "several found"], "found")
            stored = stored.assign_coords({f"{name}_outcome": ("image", outcome)})
        return stored

    @model_validator(mode="before")
    @classmethod
    def _fill_segmenter(cls, fields: dict[str, Any]) -> dict[str, Any]:
        default = EMBEDDED if fields.get("model", EMBEDDED) == EMBEDDED else "grounded-sam"
        return {**fields, "segmenter": check_segmenter(fields.get("segmenter") or default)}

    @cached_property
    def segmenter_model(self) -> Any:
        return load_segmenter(self.segmenter, device=pick_device())


class _Benchmark(_Maps):
    """The words of one concept: the paper's ten animals for *Animals*, the first ten of its list otherwise."""

    concept: str = "Animals"
    words: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _fill_words(cls, fields: dict[str, Any]) -> dict[str, Any]:
        concept, concepts = fields.get("concept", "Animals"), concepts_of(fields.get("model", EMBEDDED))
        check_concept(concept, concepts)
        words = read_literal(fields.get("words")) or benchmark_words(concept, concepts)
        return {**fields, "words": (words,) if isinstance(words, str) else tuple(words)}

    def results(self, stored: xr.Dataset) -> xr.Dataset:
        """Head maps (see `Capture.dataset`), `image_rgb` (image, y, x, rgb) uint8 and `truth` (image, y, x) bool,
        with the coordinates `prompt`, `subject` and `seed` (image)."""
        return super().results(stored).assign_attrs(concept=self.concept)


class Study(_Generated, _Benchmark):
    """The paper's benchmark (section 3.1): `words` in `template`, `seeds` images each, masks by a segmenter.

    Seeds are 0, 1 ... seeds - 1, the same for each word. Raises ValueError on anything out of range.
    """

    template: str = "photo of a {word}"

    @model_validator(mode="after")
    def _check_template(self) -> Self:
        if "{word}" not in self.template:
            raise ValueError(f"template {self.template!r}: expected a prompt with {{word}} in it")
        return self

    def units(self) -> list[dict[str, Any]]:
        return [
            {"prompt": self.template.format(word=word), "subject": word, "seed": seed}
            for word in self.words
            for seed in range(self.seeds)
        ]

    def phrases(self, unit: dict[str, Any]) -> dict[str, str]:
        return {"truth": unit["subject"]}


class WeakenedStudy(Study):
    """The benchmark of a `Study`, drawn while the heads numbered `weakened` are multiplied by `scale`."""

    weakened: tuple[int, ...] = ()
    scale: float = Field(default=0.0, allow_inf_nan=False)

    @field_validator("weakened", mode="before")
    @classmethod
    def _as_numbers(cls, heads: Any) -> tuple[int, ...]:
        return tuple(sorted(int(head) for head in heads))

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        n_heads = len(cross_attention_heads(unet_layout(self.model)))
        if wrong := [head for head in self.weakened if not 0 <= head < n_heads]:
            raise ValueError(f"heads {wrong} do not exist: expected numbers from 0 to {n_heads - 1}")
        return self

    def compute(self, units: Sequence[int]) -> xr.Dataset:
        with scaled_heads(self.pipe, self.weakened, self.scale):
            return super().compute(units)


class WindowStudy(Study):
    """The benchmark of a `Study` with maps of each stretch of the denoising, first to last, instead of their mean.

    The calls of the network are split into `windows` of equal length, up to one call. Maps have the dimension `window`
    after `word`; the coordinates `from_timestep` and `to_timestep` (window) say which calls it averages.
    """

    windows: int = Field(default=5, ge=1)

    def compute(self, units: Sequence[int]) -> xr.Dataset:
        every = self.units()
        chosen = [every[i] for i in units]
        with capture(self.pipe, words=[[u["subject"]] for u in chosen], per_timestep=True) as maps:
            images = generate(
                self.pipe, [u["prompt"] for u in chosen], [u["seed"] for u in chosen],
                steps=self.steps, guidance=self.guidance,
            )  # fmt: skip
        each = maps.head_maps().dataset
        if self.windows > each.sizes["call"]:
            raise ValueError(f"windows={self.windows}: expected at most {each.sizes['call']}, the calls of the network")
        parts = np.array_split(np.arange(each.sizes["call"]), self.windows)
        means = [each.isel(call=part).mean("call", keep_attrs=True) for part in parts]
        found = halved(xr.concat(means, "window")).transpose("image", "word", "window", ...)
        ends = np.array([each["timestep"].values[[part[0], part[-1]]] for part in parts])
        found = found.assign_coords(from_timestep=("window", ends[:, 0]), to_timestep=("window", ends[:, 1]))
        found["image_rgb"] = (("image", "y", "x", "rgb"), np.stack([np.asarray(i) for i in images]))
        detections = self.segmenter_model.detect(images, [u["subject"] for u in chosen])
        found["truth"] = (("image", "y", "x"), np.stack([detection.mask for detection in detections]))
        return found


class DiagnosisStudy(_Generated):
    """One prompt with an ambiguous `word`, `seeds` images, and a mask of each of the word's `meanings`.

    The results hold head maps of the word, `image_rgb`, and `truth_{meaning}` (image, y, x) bool for each.
    """

    prompt: str = "A mouse and other office objects are on the desk"
    word: str = "mouse"
    meanings: tuple[str, ...] = ("Animals", "Electronics")

    @model_validator(mode="after")
    def _check_meanings(self) -> Self:
        for meaning in self.meanings:
            check_concept(meaning, concepts_of(self.model))
        if self.word.lower() not in self.prompt.lower():
            raise ValueError(f"word {self.word!r} is not in the prompt {self.prompt!r}: expected one of its words")
        return self

    def units(self) -> list[dict[str, Any]]:
        return [{"prompt": self.prompt, "subject": self.word, "seed": seed} for seed in range(self.seeds)]

    def phrases(self, unit: dict[str, Any]) -> dict[str, str]:
        return {f"truth_{meaning}": meaning for meaning in self.meanings}


def generate(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Iterable[int],
    *,
    steps: int,
    guidance: float,
    output_type: str = "pil",
) -> Any:
    """Images (or latents) of one batch of prompts, each from its own seed; noise is drawn on the CPU."""
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    return pipe(
        list(prompts),
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=generators,
        output_type=output_type,
    ).images
