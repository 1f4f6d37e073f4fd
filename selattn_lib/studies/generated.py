"""Studies of pictures that the model draws: the benchmark, ambiguous words, windows of steps, weakened heads."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
import xarray as xr
from pydantic import AfterValidator, Field, field_validator, model_validator
from tqdm import tqdm

from ..attention.capture import capture
from ..attention.scaling import scaled_heads
from ..concepts import check_concept
from ..maps.head_sets import whole_numbers
from ..models.families import cross_attention_heads, find_family
from ..models.pipelines import EMBEDDED, in_embedded_world, model_source, network_layout, pick_device
from ..models.segmenters import MEANINGS, Segmenter, check_instances, check_segmenter, load_segmenter, looked_for
from .base import ConceptStudy, HeadMapStudy, check_template, pixels_variable, stored_precision
from .digests import folder_digest
from .parameters import read_list

MOST_SEEDS = 100_000  # pictures of one prompt
MOST_BOXES = 100  # of one picture that are kept, which says nothing of those that the mask is of


class GeneratedStudy(HeadMapStudy):
    """Units are images drawn by the model, with masks by a segmenter: the embedded one for the embedded model, else
    Grounded-SAM, unless `segmenter` names another (see `load_segmenter`).

    The results hold head maps of a word, `image_rgb`, and for each mask `{mask}` (image, y, x) bool, `{mask}_box`
    (image, side: left, top, right, bottom) in pixels, `{mask}_score` and `{mask}_detections` (image), and where a
    segmenter detects boxes `{mask}_boxes` (image, detection, side) and `{mask}_scores` (image, detection), not a number
    where there are no more: see `selattn_lib.models.segmenters.Detection`. The coordinate `{mask}_outcome` puts these
    into words.
    """

    seeds: int = Field(default=10, ge=1, le=MOST_SEEDS)
    steps: int = Field(default=50, ge=1, le=1000)
    guidance: float = Field(default=7.5, ge=1, allow_inf_nan=False, description="None: the model's own")
    segmenter: str = ""
    instances: str = "all"

    per_timestep: ClassVar[bool] = False  # whether maps are captured call by call

    @model_validator(mode="before")
    @classmethod
    def _fill_segmenter(cls, fields: dict[str, Any]) -> dict[str, Any]:
        default = EMBEDDED if in_embedded_world(fields.get("model", EMBEDDED)) else "grounded-sam"
        segmenter = check_segmenter(fields.get("segmenter") or default)
        check_instances(fields.get("instances", "all"), segmenter)
        return {**fields, "segmenter": segmenter}

    def decisive(self) -> dict[str, Any]:
        embedded = self.segmenter == EMBEDDED
        folder = f"{model_source(EMBEDDED)}/segmenter" if embedded else self.segmenter
        weights = folder_digest(Path(folder)) if Path(folder).is_dir() else ""
        settings = {**super().decisive(), "segmenter_weights": weights}
        return {name: value for name, value in settings.items() if not (embedded and name == "instances")}

    @cached_property
    def segmenter_model(self) -> Segmenter:
        """The segmenter, loaded."""
        return load_segmenter(self.segmenter, device=pick_device(), instances=self.instances)

    def phrases(self, unit: dict[str, Any]) -> dict[str, str]:
        """variable of the results -> what the segmenter is to look for."""
        raise NotImplementedError

    def check_phrases(self) -> Self:
        """The study itself; ValueError on what its segmenter does not know, better said before anything is drawn."""
        if self.segmenter == EMBEDDED:  # which knows some words only
            for phrase in dict.fromkeys(phrase for unit in self.units() for phrase in self.phrases(unit).values()):
                looked_for(phrase)
        return self

    def load_or_compute(self, workers: Any = None, bar: tqdm | None = None) -> xr.Dataset:
        self.check_phrases()
        return super().load_or_compute(workers, bar)

    def compute(self, units: Sequence[int]) -> xr.Dataset:
        every = self.units()
        chosen = [every[number] for number in units]
        words = [[unit["subject"]] for unit in chosen]
        with capture(self.pipe, words=words, per_timestep=self.per_timestep) as maps:
            prompts, seeds = [unit["prompt"] for unit in chosen], [unit["seed"] for unit in chosen]
            images = generate(self.pipe, prompts, seeds, steps=self.steps, guidance=self.guidance)
        results = stored_precision(self.summarise(maps.head_maps().dataset))
        results["image_rgb"] = pixels_variable(images)
        for name in self.phrases(chosen[0]):
            phrases = [self.phrases(unit)[name] for unit in chosen]
            found = self.segmenter_model.detect(images, phrases)
            results[name] = ("image", "y", "x"), np.stack([one.mask for one in found])
            results[f"{name}_box"] = ("image", "side"), np.stack([one.box for one in found])
            results[f"{name}_score"] = "image", np.array([one.score for one in found], np.float32)
            results[f"{name}_detections"] = "image", np.array([one.detections for one in found], np.uint16)
            if self.segmenter != EMBEDDED:
                results[f"{name}_boxes"] = ("image", "detection", "side"), np.stack([padded(o.boxes) for o in found])
                results[f"{name}_scores"] = ("image", "detection"), np.stack([padded(one.scores) for one in found])
        return results

    def summarise(self, maps: xr.Dataset) -> xr.Dataset:
        """What is kept of the captured maps."""
        return maps


def padded(values: np.ndarray) -> np.ndarray:
    """(`MOST_BOXES`, ...) the values of the boxes of the highest scores, then what is not a number."""
    kept = values[:MOST_BOXES]
    return np.concatenate([kept, np.full((MOST_BOXES - len(kept), *values.shape[1:]), np.nan, np.float32)])


class Study(GeneratedStudy, ConceptStudy):
    """The paper's benchmark (section 3.1): the words of a concept, some images each, with masks by a segmenter.

    Parameters
    ----------
    model, revision, dtype : str
        As for `load_pipeline`.
    batch : int
        Images drawn together, 1 or more. It is part of the study, since it decides last bits.
    concept : str
        One of `concepts`.
    concepts : path or mapping
        A YAML file of concepts, or such a table; by default the model's own (`concepts_of`).
    words : sequence of str
        What to draw; by default the paper's ten animals for *Animals*, else the concept's first ten words.
    seeds : int
        Images of each word, 1 to 100,000, of seeds 0, 1 ... seeds - 1.
    steps, guidance
        Of the sampling: 1 to 1000, and 1 or more; by default 50, and the guidance of the paper, 7.5, for
        Stable Diffusion, 3 for the embedded model, their pipelines' own for others.
    segmenter : str
        As for `load_segmenter`; by default the embedded one for the embedded model, else Grounded-SAM.
    instances : str
        "all" or "best", as for `load_segmenter`: what of the word a true mask is of.
    template : str
        The prompt, with ``{word}`` in it.

    Raises
    ------
    ValueError
        On anything out of range, naming the field and what was expected.

    Examples
    --------
    >>> study = Study(words=["bear", "cat"], seeds=3)
    >>> study.size
    6
    >>> study.units()[4]
    {'prompt': 'photo of a cat', 'subject': 'cat', 'seed': 1}
    """

    template: Annotated[str, AfterValidator(check_template)] = "photo of a {word}"

    def units(self) -> list[dict[str, Any]]:
        return [
            {"prompt": self.template.format(word=word), "subject": word, "seed": seed}
            for word in self.words
            for seed in range(self.seeds)
        ]

    def phrases(self, unit: dict[str, Any]) -> dict[str, str]:
        return {"truth": unit["subject"]}


class WeakenedStudy(Study):
    """The benchmark of a `Study`, drawn while some heads are weakened.

    Parameters
    ----------
    weakened : sequence of int
        Head numbers, 0 to H - 1.
    scale : float
        What their outputs are multiplied by.
    tokens : str
        "all" or "words", as for `scaled_heads`: their whole output, or their attention to the words of the prompt.
    **settings
        Those of `Study`.

    Examples
    --------
    >>> WeakenedStudy(weakened=[7, 3], scale=0.5, seeds=1).weakened
    (3, 7)
    """

    weakened: tuple[int, ...] = ()
    scale: float = Field(default=0.0, allow_inf_nan=False)
    tokens: Literal["all", "words"] = "all"

    @field_validator("weakened", mode="before")
    @classmethod
    def _as_numbers(cls, heads: Any) -> tuple[int, ...]:
        return tuple(sorted(whole_numbers(heads, "weakened").tolist()))

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        n_heads = len(cross_attention_heads(network_layout(self.model)))
        if wrong := [head for head in self.weakened if not 0 <= head < n_heads]:
            raise ValueError(f"heads {wrong} do not exist: expected numbers from 0 to {n_heads - 1}")
        return self

    def decisive(self) -> dict[str, Any]:
        settings = super().decisive()
        return {name: value for name, value in settings.items() if (name, value) != ("tokens", "all")}  # as of old

    def compute(self, units: Sequence[int]) -> xr.Dataset:
        with scaled_heads(self.pipe, self.weakened, self.scale, tokens=self.tokens):
            return super().compute(units)


class WindowStudy(Study):
    """The benchmark of a `Study` with maps of each stretch of the denoising, first to last, instead of their mean.

    Maps have the dimension `window` after `word`; the coordinates `from_timestep` and `to_timestep` (window) say which
    calls of the network a window averages.

    Parameters
    ----------
    windows : int
        Stretches of equal length, up to one call; 1 or more, and at most the number of calls.
    **settings
        Those of `Study`.

    Examples
    --------
    >>> WindowStudy(windows=3, seeds=1).size
    10
    """

    windows: int = Field(default=5, ge=1)

    per_timestep: ClassVar[bool] = True

    def summarise(self, maps: xr.Dataset) -> xr.Dataset:
        """(image, word, window, ...) the mean over each window's calls."""
        calls = maps.sizes["call"]
        if self.windows > calls:
            raise ValueError(f"windows={self.windows}: expected at most {calls}, the calls of the network")
        windows = np.array_split(np.arange(calls), self.windows)
        means = [maps.isel(call=window).mean("call", keep_attrs=True) for window in windows]
        timesteps = maps["timestep"].values
        first, last = ([timesteps[window[end]] for window in windows] for end in (0, -1))
        ends = {"from_timestep": ("window", first), "to_timestep": ("window", last)}
        return xr.concat(means, "window").transpose("image", "word", "window", ...).assign_coords(ends)


class DiagnosisStudy(GeneratedStudy):
    """One prompt with an ambiguous word, drawn from some seeds, and a mask of each of the word's meanings.

    The results hold head maps of the word, and `truth_{meaning}` (image, y, x) bool for each meaning.

    Parameters
    ----------
    prompt, word : str
        The word is one of the prompt's.
    meanings : sequence of str
        Two or more of `concepts`.
    looked_for : sequence of str
        What the segmenter looks for, a phrase for each meaning; by default the object itself on the embedded model,
        "mouse (Animals)", elsewhere "mouse animal" and "computer mouse" for the mouse, and else the word and its
        meaning, "bat sports equipment".
    concepts : path or mapping
        A YAML file of concepts, or such a table; by default the model's own (`concepts_of`).
    seeds : int
        Number of images, 1 to 100,000.
    **settings
        model, revision, dtype, batch, steps, guidance, segmenter and instances, as of `Study`.

    Examples
    --------
    >>> DiagnosisStudy(seeds=2).size
    2
    """

    decides_nothing: ClassVar[set[str]] = {"concepts"}  # the names of the meanings do

    prompt: str = "A mouse and other office objects are on the desk"
    word: str = "mouse"
    meanings: tuple[str, ...] = ("Animals", "Electronics")
    looked_for: tuple[str, ...] = ()
    concepts: dict[str, tuple[str, ...]] = Field(default={}, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _fill_phrases(cls, fields: dict[str, Any]) -> dict[str, Any]:
        word, meanings, looked_for = (
            fields.get(name, cls.model_fields[name].default) for name in ("word", "meanings", "looked_for")
        )
        meanings, looked_for = read_list("meanings", meanings), read_list("looked_for", looked_for)
        default = EMBEDDED if in_embedded_world(fields.get("model", EMBEDDED)) else ""
        usual = [phrase_for(word, meaning, fields.get("segmenter") or default) for meaning in meanings]
        return {**fields, "meanings": meanings, "looked_for": looked_for or usual}

    @model_validator(mode="after")
    def _check_meanings(self) -> Self:
        for meaning in self.meanings:
            check_concept(meaning, self.concepts)
        if self.word.lower() not in self.prompt.lower():
            raise ValueError(f"word {self.word!r} is not in the prompt {self.prompt!r}: expected one of its words")
        if len(self.looked_for) != len(self.meanings):
            raise ValueError(f"looked_for {list(self.looked_for)}: expected a phrase for each of {list(self.meanings)}")
        return self

    def units(self) -> list[dict[str, Any]]:
        return [{"prompt": self.prompt, "subject": self.word, "seed": seed} for seed in range(self.seeds)]

    def phrases(self, unit: dict[str, Any]) -> dict[str, str]:
        return {f"truth_{meaning}": phrase for meaning, phrase in zip(self.meanings, self.looked_for, strict=True)}


def phrase_for(word: str, meaning: str, segmenter: str) -> str:
    """What a segmenter looks for as one meaning, a concept, of a word."""
    if segmenter == EMBEDDED:
        return f"{word.lower()} ({meaning})" if f"{word.lower()} ({meaning})" in MEANINGS else meaning
    mice = {"Animals": "mouse animal", "Electronics": "computer mouse"}
    return mice[meaning] if word.lower() == "mouse" and meaning in mice else f"{word} {meaning}".lower()


def generate(
    pipe: Any, prompts: Sequence[str], seeds: Iterable[int], *, steps: int, guidance: float, output_type: str = "pil"
) -> Any:
    """Images (or latents) of one batch of prompts, each from its own seed; noise is drawn on the CPU.

    Parameters
    ----------
    pipe : DiffusionPipeline
        A text-to-image pipeline.
    prompts : sequence of str
        One a picture.
    seeds : iterable of int
        One a picture: what is drawn does not depend on the others' seeds.
    steps, guidance, output_type
        As for the pipeline's call.

    Returns
    -------
    list of PIL.Image.Image, or tensor (image, channel, y, x)

    Examples
    --------
    >>> from selattn_lib.models.pipelines import load_pipeline
    >>> [picture] = generate(load_pipeline("emoji-sd"), ["photo of a bear"], [0], steps=2, guidance=3)
    >>> picture.size
    (128, 128)
    """
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    settings = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": output_type}
    if len(generators) > 1 and guidance > 1 and not find_family(pipe)[0].batched:
        raise ValueError(f"{type(pipe).__name__} draws one picture at a time under guidance: expected a batch of 1")
    return pipe(list(prompts), generator=generators, **settings).images
