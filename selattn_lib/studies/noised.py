"""Studies without sampling: pictures with known masks are noised, and the network sees each once a timestep."""

import hashlib
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
import xarray as xr
from diffusers import AutoPipelineForImage2Image, DDPMScheduler, StableDiffusionPipeline
from PIL import Image
from pydantic import AfterValidator, Field, model_validator

from ..attention.capture import capture
from ..concepts import did_you_mean
from ..emoji.art import glyphs
from ..emoji.scenes import AMBIGUOUS, HELD_OUT, compose
from .annotations import centred_square, open_picture, read_masks
from .base import ConceptStudy, HeadMapStudy, check_template, pixels_variable, stored_precision
from .digests import file_digest, files_digest

TIMESTEPS = (100, 300, 500, 700)


class NoisedStudy(HeadMapStudy):
    """Units are pictures with known masks: each is noised to `timesteps`, the network sees it once at each with its
    caption, and the maps of the word are averaged.

    The results hold head maps of the word, `image_rgb` and `truth` (image, y, x) bool.
    """

    timesteps: tuple[Annotated[int, Field(ge=0, le=1000)], ...] = Field(default=TIMESTEPS, min_length=1)
    seed: int = 0

    def examples(self, units: Sequence[int]) -> list[tuple[Image.Image, np.ndarray]]:
        """(picture, mask (y, x) bool, or masks (mask, y, x) by the names of `masks`) of some units, all of one size."""
        raise NotImplementedError

    @property
    def masks(self) -> list[str]:
        """Names of the true masks of a picture, where it has several."""
        return []

    def noise_seed(self, unit: int) -> int:
        """What a unit's noise is drawn by."""
        return unit

    @torch.no_grad()
    def compute(self, units: Sequence[int]) -> xr.Dataset:
        every = self.units()
        chosen = [every[number] for number in units]
        pictures, masks = zip(*self.examples(units), strict=True)
        prompts, seeds = [unit["prompt"] for unit in chosen], [self.noise_seed(number) for number in units]
        look = _look_directly if isinstance(self.pipe, StableDiffusionPipeline) else _look_by_pipeline
        with capture(self.pipe, words=[[unit["subject"]] for unit in chosen]) as maps:
            look(self.pipe, pictures, prompts, self.timesteps, seeds)
        dataset = maps.head_maps().dataset.drop_vars("own_words")
        if look is _look_by_pipeline:  # timestep by timestep, and in each all pictures
            order = np.arange(dataset.sizes["image"]).reshape(len(self.timesteps), -1).T.ravel()
            dataset = dataset.isel(image=order)
        results = stored_precision(dataset.coarsen(image=len(self.timesteps)).mean())
        results["image_rgb"] = pixels_variable(pictures)
        truths = np.stack(masks)
        if not self.masks:
            results["truth"] = ("image", "y", "x"), truths
        for number, name in enumerate(self.masks):
            results[f"truth_{name}"] = ("image", "y", "x"), truths[:, number]
        return results


def _look_directly(
    pipe: Any, pictures: Sequence[Image.Image], prompts: list[str], timesteps: Sequence[int], seeds: Sequence[int]
) -> None:
    """Let a Stable Diffusion 1.x or 2.x see each picture at each timestep, all in one call of its UNet."""
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)  # the model's betas, whatever it samples by
    device, last = pipe._execution_device, scheduler.config.num_train_timesteps - 1
    times = torch.tensor(timesteps).clamp(max=last)
    pixels = np.stack([np.asarray(picture) for picture in pictures]).astype(np.float32) / 255
    pixels = pipe.image_processor.preprocess(pixels).to(device, pipe.vae.dtype)
    clean = pipe.vae.encode(pixels).latent_dist.mode()
    clean = (clean * pipe.vae.config.scaling_factor).repeat_interleave(len(times), 0)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = torch.cat([torch.randn((len(times), *clean.shape[1:]), generator=own) for own in generators])
    rows = times.repeat(len(pictures))
    noised = scheduler.add_noise(clean, noise.to(clean.device, clean.dtype), rows)
    text, _ = pipe.encode_prompt(prompts, device, len(times), False)
    pipe.unet(noised, rows.to(device), text)


def _look_by_pipeline(
    pipe: Any, pictures: Sequence[Image.Image], prompts: list[str], timesteps: Sequence[int], seeds: Sequence[int]
) -> None:
    """Let any model that diffusers has an image-to-image pipeline of see all pictures, once for each timestep.

    Timesteps, out of 1000, are rounded to one of 50 steps of the model's scheduler.
    """
    pipe = AutoPipelineForImage2Image.from_pipe(pipe)
    pipe.set_progress_bar_config(disable=True)
    for number, timestep in enumerate(timesteps):
        generators = [torch.Generator().manual_seed(_mix(seed, number)) for seed in seeds]
        settings: dict[str, Any] = {"strength": timestep / 1000, "num_inference_steps": 50, "guidance_scale": 1.0}
        settings |= {"output_type": "latent", "callback_on_step_end": _stop, "generator": generators}
        pipe(prompts, image=list(pictures), **settings)


def _stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """Let the first call of the network be the last."""
    pipe._interrupt = True
    return {}


def _mix(*numbers: int) -> int:
    """One seed out of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


def drawn_as(word: str, concept: str) -> tuple[str, str]:
    """(concept, word) under which the embedded world draws a word: this concept's, or else the first that has it;
    ValueError if it has no drawing."""
    for name in (concept, *glyphs()):
        if word in glyphs().get(name, {}):
            return name, word
    known = [known for words in glyphs().values() for known in words]
    raise ValueError(f"no drawing of {word!r}: expected an object of the embedded world{did_you_mean(word, known)}")


class KnownTruthStudy(NoisedStudy, ConceptStudy):
    """Composed scenes with exact masks, without sampling; for the embedded world.

    Each scene is noised to some timesteps, the network sees it once at each with its caption, and the maps of the word
    are averaged. The results hold head maps, `image_rgb` and `truth` (image, y, x) bool.

    Parameters
    ----------
    scenes : int
        How many, 1 or more; they take turns with the words.
    timesteps : sequence of int
        Out of 1000.
    seed : int
        Of the scenes.
    **settings
        model, revision, dtype, batch, concept, concepts and words, as of `Study`.

    Examples
    --------
    >>> KnownTruthStudy(words=["bear", "cat"], scenes=3).units()[2]
    {'prompt': 'photo of a bear', 'subject': 'bear', 'seed': 2}
    """

    scenes: int = Field(default=100, ge=1)

    def units(self) -> list[dict[str, Any]]:
        words = [self.words[number % len(self.words)] for number in range(self.scenes)]
        return [{"prompt": f"photo of a {word}", "subject": word, "seed": n} for n, word in enumerate(words)]

    def examples(self, units: Sequence[int]) -> list[tuple[Image.Image, np.ndarray]]:
        every, scenes = self.units(), []
        for number in units:
            draws = np.random.default_rng([HELD_OUT, self.seed, number])
            scenes.append(compose(draws, [drawn_as(every[number]["subject"], self.concept)], every[number]["prompt"]))
        return [(Image.fromarray(scene.image), scene.masks[0]) for scene in scenes]


class KnownMeaningsStudy(NoisedStudy):
    """Composed scenes that show both meanings of an ambiguous word, with exact masks, without sampling; for the
    embedded world. Like `KnownTruthStudy`, but the results hold `truth_{meaning}` (image, y, x) bool.

    Parameters
    ----------
    word : str
        "mouse", "bat", "chicken" or "glasses".
    scenes : int
        How many, 1 or more.
    timesteps, seed, **settings
        As for `KnownTruthStudy`.

    Examples
    --------
    >>> KnownMeaningsStudy(scenes=2).masks
    ['Animals', 'Electronics']
    """

    word: Literal["mouse", "bat", "chicken", "glasses"] = "mouse"
    scenes: int = Field(default=20, ge=1)

    def units(self) -> list[dict[str, Any]]:
        caption = AMBIGUOUS[self.word].caption
        return [{"prompt": caption, "subject": self.word, "seed": number} for number in range(self.scenes)]

    @property
    def masks(self) -> list[str]:
        return list(AMBIGUOUS[self.word].concepts)

    def examples(self, units: Sequence[int]) -> list[tuple[Image.Image, np.ndarray]]:
        planted, examples = AMBIGUOUS[self.word], []
        for number in units:
            draws = np.random.default_rng([HELD_OUT, self.seed, number])
            companion = planted.companions[draws.integers(len(planted.companions))]
            cast = [*((meaning, self.word) for meaning in planted.concepts), companion]
            order = draws.permutation(len(cast))
            scene = compose(draws, [cast[i] for i in order], planted.caption)
            examples.append((Image.fromarray(scene.image), scene.masks[np.argsort(order)[:2]]))
        return examples


class MaskedPicture(NamedTuple):
    """A picture's file, a word, the word's mask (y, x) bool in the centred square, and the whole picture's (y, x)."""

    path: Path
    word: str
    mask: np.ndarray
    shape: tuple[int, ...]


class MaskedStudy(NoisedStudy):
    """Pictures of one's own with masks, without sampling; for any model that diffusers has an image-to-image pipeline
    of.

    Each picture is noised to some timesteps, the network sees it once at each with its caption, and the maps of the
    word are averaged. The results hold head maps, `image_rgb` and `truth` (image, y, x) bool, and the name of the
    `picture` (image) as a coordinate.

    Parameters
    ----------
    source, pictures : path
        As for `read_masks`; the centred square of each picture counts, turned as its EXIF data say, since that is how
        annotation tools show it.
    words : sequence of str
        By default all that occur.
    per_word : int
        The first so many pictures of each word count, 1 or more.
    min_area, max_area : float
        In [0, 1]: a picture counts if the word covers such a share of it.
    template : str
        The caption, with ``{word}`` in it.
    pixels : int
        A side of the pictures as the model sees them, a multiple of 8; 0 for the model's own.
    timesteps : sequence of int
        From 20 to 1000, out of 1000; beyond Stable Diffusion 1.x and 2.x they are rounded to multiples of some 20.
    seed : int
        Of the noise.
    **settings
        model, revision, dtype and batch, as of `Study`.

    Raises
    ------
    ValueError
        If no picture counts, on a picture that has not its masks' size, on what `read_masks` does not read, and on
        anything out of range.

    Examples
    --------
    >>> MaskedStudy(source="nosuch.json")
    Traceback (most recent call last):
    ValueError: 'nosuch.json': expected a COCO file (.json), or a folder with SegmentationClass in it
    """

    decides_nothing: ClassVar[set[str]] = {"source", "pictures"}  # what is in them does

    timesteps: tuple[Annotated[int, Field(ge=20, le=1000)], ...] = Field(default=TIMESTEPS, min_length=1)
    source: str
    pictures: str = ""
    words: tuple[str, ...] = ()
    per_word: int = Field(default=10, ge=1)
    min_area: float = Field(default=0.05, ge=0, le=1)
    max_area: float = Field(default=0.8, ge=0, le=1)
    template: Annotated[str, AfterValidator(check_template)] = "photo of a {word}"
    pixels: int = Field(default=0, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _as_text(cls, fields: dict[str, Any]) -> dict[str, Any]:
        return {name: str(value) if name in ("source", "pictures") else value for name, value in fields.items()}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pixels % 8:
            raise ValueError(f"pixels={self.pixels}: expected a multiple of 8")
        if not self.masked_pictures:
            raise ValueError(
                f"source {self.source!r} has no picture in which {', '.join(self.words) or 'anything'} covers "
                f"{self.min_area} to {self.max_area} of it"
            )
        return self

    @property
    def masked_pictures(self) -> tuple[MaskedPicture, ...]:
        """What counts, in the order of the units."""
        source = Path(self.source)
        files = [source] if source.is_file() else [*source.glob("SegmentationClass/*"), *source.glob("*.txt")]
        digest = files_digest(files, source)
        return _choose(self.source, self.pictures, digest, self.words, self.per_word, self.min_area, self.max_area)

    def decisive(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for path, word, mask, shape in self.masked_pictures:
            digest.update(f"{path.name} {file_digest(path)} {word} {shape} ".encode() + mask.tobytes())
        return {**super().decisive(), "content": digest.hexdigest()}

    def units(self) -> list[dict[str, Any]]:
        return [
            {"prompt": self.template.format(word=word), "subject": word, "seed": number, "picture": path.name}
            for number, (path, word, *_) in enumerate(self.masked_pictures)
        ]

    @cached_property
    def side(self) -> int:
        """Pixels a side of the pictures as the model sees them."""
        network = getattr(self.pipe, "unet", None) or self.pipe.transformer
        return self.pixels or network.config.sample_size * self.pipe.vae_scale_factor

    def noise_seed(self, unit: int) -> int:
        return _mix(self.seed, unit)

    def examples(self, units: Sequence[int]) -> list[tuple[Image.Image, np.ndarray]]:
        size, examples, chosen = (self.side, self.side), [], self.masked_pictures
        for path, _, mask, shape in (chosen[number] for number in units):
            picture = centred_square(open_picture(path, shape))
            resized = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)
            examples.append((picture.resize(size, Image.Resampling.BICUBIC), np.asarray(resized)))
        return examples


@lru_cache(maxsize=2)
def _choose(
    source: str, pictures: str, digest: str, words: tuple[str, ...], per_word: int, min_area: float, max_area: float
) -> tuple[MaskedPicture, ...]:
    """The first `per_word` pictures of each word, anew when the `digest` of the source's files changes."""
    chosen: list[MaskedPicture] = []
    times = dict.fromkeys(words, 0)
    for path, masks in read_masks(source, pictures):
        for word, mask in masks.items():
            if (words and word not in times) or times.get(word, 0) >= per_word:
                continue
            square = np.asarray(centred_square(Image.fromarray(mask)))
            if min_area <= square.mean() <= max_area:
                times[word] = times.get(word, 0) + 1
                open_picture(path, mask.shape)
                chosen.append(MaskedPicture(path, word, square, mask.shape))
        if words and min(times.values()) >= per_word:
            break
    return tuple(chosen)
