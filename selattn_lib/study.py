"""Studies: everything that decides some numbers, as one validated object that computes, keeps and resumes them.

A study's hash names its folder under `runs/` (or `$SELATTN_RUNS`). Its units are computed in fixed batches, each
written and then marked done, so a run that was stopped goes on where it was, and every random choice derives from
the study's fields and the unit alone.
"""

import ast
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import xarray as xr
import zarr
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from tqdm import tqdm

from .capture import capture
from .concepts import benchmark_words, check_concept, load_concepts
from .models import EMBEDDED, load_pipeline, model_source
from .relevance import HeadRelevance, load_hrv, score_heads
from .segment import load_segmenter

GUIDANCE = {EMBEDDED: 3.0}  # where the paper's 7.5 oversaturates the pictures
PARTS = ("text_encoder", "unet", "vae")  # of a model, whose weights decide a study
FORMAT = 1  # of the stores; changes when old ones must not be read


def runs_folder() -> Path:
    """Where studies are kept: `$SELATTN_RUNS`, or `runs` in the current folder."""
    return Path(os.environ.get("SELATTN_RUNS", "runs"))


def check_selection(heads: Any, thresholds: Any, n_heads: int = 128) -> tuple[Any, list[float]]:
    """(heads, thresholds) as they will be used; papermill's `-p thresholds "[0.3]"` arrives as text, which is read.

    Raises ValueError unless `heads`, one number or a list of them, are whole numbers from 1 to `n_heads`, and every
    threshold lies strictly between 0 and 1.
    """
    heads, thresholds = _literal(heads), _literal(thresholds)
    for count in heads if isinstance(heads, list) and heads else [heads]:
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= n_heads:
            raise ValueError(f"heads={heads!r}: expected whole numbers from 1 to {n_heads}, the heads of the model")
    values = thresholds if isinstance(thresholds, list | tuple) else [thresholds]
    if not values or not all(isinstance(t, int | float) and 0 < t < 1 for t in values):
        raise ValueError(f"thresholds={thresholds!r}: expected numbers between 0 and 1, such as [0.3, 0.4, 0.5]")
    return heads, list(values)


def _literal(value: Any) -> Any:
    """A Python literal for the text of one, anything else as it is."""
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        return value


def concepts_of(model: str) -> dict[str, list[str]]:
    """The concept table that goes with a model: the embedded world's own, or the paper's."""
    return load_concepts(EMBEDDED if model == EMBEDDED else "paper")


class Stored(BaseModel):
    """What the kinds of studies share: validation that speaks in sentences, the folder, and the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    judged: ClassVar[bool] = False  # whether a segmenter takes part

    model: str = EMBEDDED
    revision: str = ""
    batch: int = Field(default=10, ge=1, description="units computed together; part of the study, as it decides bits")

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            found = [(".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, ")) for e in error.errors()]
            lines = [f"{name}={fields.get(name)!r}: {text}" if name in fields else text for name, text in found]
            raise ValueError("; ".join(lines)) from None

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, fields: dict[str, Any]) -> dict[str, Any]:
        model = str(fields.get("model", EMBEDDED))
        source = model_source(model)
        if not fields.get("revision") and Path(source).is_dir():  # local weights may change under one name
            digest = hashlib.sha256()
            for path in sorted(Path(source).glob("*/*.safetensors")):
                if path.parent.name in PARTS or (cls.judged and path.parent.name == "segmenter"):
                    digest.update(path.read_bytes())
            fields = {**fields, "revision": digest.hexdigest()[:12]}
        if "guidance" in cls.model_fields and fields.get("guidance") is None:
            fields = {**fields, "guidance": GUIDANCE.get(model, 7.5)}
        return fields

    @property
    def folder(self) -> Path:
        """`runs/<kind>-<hash>`."""
        content = json.dumps([FORMAT, self.model_dump(mode="json")], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:12]
        return runs_folder().absolute() / f"{type(self).__name__.removesuffix('Study').lower() or 'study'}-{digest}"

    @cached_property
    def pipe(self) -> Any:
        return load_pipeline(self.model)

    @property
    def size(self) -> int:
        """Number of units."""
        raise NotImplementedError

    def compute(self, units: Sequence[int]) -> xr.Dataset:
        """These units' variables, each with `image` as its first dimension."""
        raise NotImplementedError

    def results(self, stored: xr.Dataset) -> Any:
        """What `run` returns, made from all that is stored."""
        return stored

    def run(self) -> Any:
        """Compute what is not stored yet, with a progress bar, and return the results."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "study.json").write_text(self.model_dump_json(indent=1))
        store = zarr.open_group(self.folder / "data.zarr", mode="a")
        done = store.require_array("done", shape=(self.size,), chunks=(1,), dtype="uint8", dimension_names=["image"])
        batches = [range(i, min(i + self.batch, self.size)) for i in range(0, self.size, self.batch)]
        missing = [units for units in batches if not np.all(done[units.start : units.stop])]
        if missing:
            with tqdm(total=self.size, initial=self.size - sum(map(len, missing)), desc=self.label) as bar:
                for units in missing:
                    self._keep(store, units, self.compute(units))
                    done[units.start : units.stop] = 1
                    bar.update(len(units))
        return self.results(self._open(store))

    @property
    def label(self) -> str:
        return f"{type(self).__name__} on {self.model}"

    def _keep(self, store: zarr.Group, units: range, found: xr.Dataset) -> None:
        """Write some units: pictures as PNG, everything else as one zarr chunk an image."""
        for name, values in found.data_vars.items():
            if name == "image_rgb":
                (self.folder / "images").mkdir(exist_ok=True)
                for unit, picture in zip(units, values.values, strict=True):
                    Image.fromarray(picture).save(self._picture(unit))
                continue
            shape = values.shape[1:]
            array = store.require_array(
                str(name), shape=(self.size, *shape), chunks=(1, *shape), dtype=values.dtype,
                dimension_names=[str(d) for d in values.dims],
            )  # fmt: skip
            array[units.start : units.stop] = values.values
        fixed = {str(k): [list(c.dims), c.values.tolist()] for k, c in found.coords.items() if "image" not in c.dims}
        store.attrs.update({"coords": fixed, "attrs": dict(found.attrs)})

    def _open(self, store: zarr.Group) -> xr.Dataset:
        stored = xr.open_zarr(store.store, consolidated=False).load().drop_vars("done")
        if (self.folder / "images").exists():
            pictures = np.stack([np.asarray(Image.open(self._picture(i))) for i in range(self.size)])
            stored["image_rgb"] = (("image", "y", "x", "rgb"), pictures)
        fixed: Any = store.attrs["coords"]
        stored = stored.assign_coords({name: (dims, values) for name, (dims, values) in fixed.items()})
        return stored.assign_attrs(store.attrs["attrs"])  # type: ignore[arg-type]

    def _picture(self, unit: int) -> Path:
        return self.folder / "images" / f"{unit:05d}.png"


class _Maps(Stored):
    """Units are images, each with the head maps of one word and where it comes from."""

    def units(self) -> list[dict[str, Any]]:
        """`prompt`, `subject` (the word) and `seed` of every unit, in order."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        return len(self.units())

    def results(self, stored: xr.Dataset) -> xr.Dataset:
        units = self.units()
        stored = stored.assign_coords({key: ("image", [unit[key] for unit in units]) for key in units[0]})
        return stored.assign_attrs(model=self.model)


class _Generated(_Maps):
    """Units are images drawn by the model, with masks by a segmenter: the model's own by default."""

    judged: ClassVar[bool] = True

    seeds: int = Field(default=10, ge=1)
    steps: int = Field(default=50, ge=1, le=1000)
    guidance: float = Field(default=7.5, ge=1, description="None: the model's own")
    segmenter: str = ""

    def phrases(self, unit: dict[str, Any]) -> dict[str, str]:
        """variable of the results -> what the segmenter is to look for."""
        raise NotImplementedError

    def compute(self, units: Sequence[int]) -> xr.Dataset:
        chosen = [self.units()[i] for i in units]
        with capture(self.pipe, words=[[u["subject"]] for u in chosen]) as maps:
            images = generate(
                self.pipe, [u["prompt"] for u in chosen], [u["seed"] for u in chosen],
                steps=self.steps, guidance=self.guidance,
            )  # fmt: skip
        found = halved(maps.dataset())
        found["image_rgb"] = (("image", "y", "x", "rgb"), np.stack([np.asarray(i) for i in images]))
        for name in self.phrases(chosen[0]):
            masks = self.judge(images, [self.phrases(u)[name] for u in chosen])
            found[name] = (("image", "y", "x"), np.stack(masks))
        return found

    @cached_property
    def judge(self) -> Any:
        default = EMBEDDED if self.model == EMBEDDED else "grounded-sam"
        return load_segmenter(self.segmenter or default, device=str(self.pipe.device))


class _Benchmark(_Maps):
    """The words of one concept: the paper's ten animals for *Animals*, the first ten of its list otherwise."""

    concept: str = "Animals"
    words: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _fill_words(cls, fields: dict[str, Any]) -> dict[str, Any]:
        concept, concepts = fields.get("concept", "Animals"), concepts_of(fields.get("model", EMBEDDED))
        check_concept(concept, concepts)
        return {**fields, "words": tuple(fields.get("words") or benchmark_words(concept, concepts))}

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


class KnownTruthStudy(_Benchmark):
    """Heads judged on composed scenes with exact masks, without sampling: each scene is noised to `timesteps`, the
    UNet sees it once at each with its caption, and the maps of the word are averaged. For the embedded world."""

    scenes: int = Field(default=100, ge=1)
    timesteps: tuple[int, ...] = (100, 300, 500, 700)
    seed: int = 0

    def units(self) -> list[dict[str, Any]]:
        chosen = [self.words[i % len(self.words)] for i in range(self.scenes)]
        return [{"prompt": f"photo of a {w}", "subject": w, "seed": i} for i, w in enumerate(chosen)]

    @torch.no_grad()
    def compute(self, units: Sequence[int]) -> xr.Dataset:
        from .emoji.scenes import HELD_OUT, compose

        pipe, chosen, times = self.pipe, [self.units()[i] for i in units], torch.tensor(self.timesteps)
        scenes = [
            compose(np.random.default_rng([HELD_OUT, self.seed, i]), [(self.concept, u["subject"])], u["prompt"])
            for i, u in zip(units, chosen, strict=True)
        ]
        pictures = np.stack([scene.image for scene in scenes])
        clean = pipe.vae.encode(pipe.image_processor.preprocess(pictures.astype(np.float32) / 255)).latent_dist.mode()
        clean = (clean * pipe.vae.config.scaling_factor).repeat_interleave(len(times), 0)
        draws = [torch.Generator().manual_seed(int(i)) for i in units]
        noise = torch.cat([torch.randn((len(times), *clean.shape[1:]), generator=g) for g in draws])
        noised = pipe.scheduler.add_noise(clean, noise, times.repeat(len(units)))
        with capture(pipe, words=[[u["subject"]] for u in chosen]) as maps:
            text, _ = pipe.encode_prompt([u["prompt"] for u in chosen], "cpu", len(times), False)
            pipe.unet(noised, times.repeat(len(units)), text)
        found = halved(maps.dataset().coarsen(image=len(times)).mean())
        found["image_rgb"] = (("image", "y", "x", "rgb"), pictures)
        found["truth"] = (("image", "y", "x"), np.stack([scene.masks[0] for scene in scenes]))
        return found


class RelevanceStudy(Stored):
    """Head relevance vectors (Eq. 3) of `concepts`, counted while `images` varied prompts are generated."""

    images: int = Field(default=120, ge=2)
    steps: int = Field(default=50, ge=1, le=1000)
    guidance: float = Field(default=7.5, ge=1, description="None: the model's own")
    seed: int = 0
    start_token: bool = False

    @property
    def size(self) -> int:
        return self.images

    def prompts(self) -> list[str]:
        """ "a photo of a {word}", over all words of the concepts in a seeded order, as often as it takes."""
        words = sorted({w.lower() for ws in concepts_of(self.model).values() for w in ws})
        order = np.random.default_rng(self.seed).permutation(len(words))
        return [f"a photo of a {words[order[i % len(words)]]}" for i in range(self.images)]

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
        self.run()
        return self._open(zarr.open_group(self.folder / "data.zarr", mode="r"))["counts"].astype(int)


def relevance_for(model: str, hrv: str = "", **fields: Any) -> HeadRelevance:
    """The head relevance to use with a model: read from `hrv` if given, else measured by a `RelevanceStudy`."""
    return load_hrv(hrv) if hrv else RelevanceStudy(model=model, **fields).run()


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


def halved(maps: xr.Dataset) -> xr.Dataset:
    """Head maps in float16, as they are stored."""
    return maps.map(lambda values: values.astype(np.float16) if values.dtype == np.float32 else values)
