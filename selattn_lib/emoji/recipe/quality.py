"""How good `emoji-sd` is by its segmenter, which has only seen composed scenes, and how good the segmenter is."""

import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler
from scipy import ndimage
from tqdm import tqdm

from ...evaluation.scores import iou
from ...evaluation.statistics import Interval, mean_interval
from ...evaluation.statistics import share_interval as share
from ...evaluation.tables import comparison_table
from ...models.pipelines import CONTROL, EMBEDDED, load_pipeline, model_source
from ...studies.base import guidance_of
from ...studies.generated import generate
from ..control import DELTA, PLANTED, add_control
from ..scenes import BENCHMARK, HELD_OUT, Scene, compose
from ..segmenter import CLASSES, Prediction, load_weights
from .segmenter import autoencode

WEIGHTS = Path(model_source(EMBEDDED))


PLAIN = ("blue", "green", "yellow", "purple")  # backgrounds that background subtraction can tell from an animal


def held_out(count: int, objects: int = 1) -> tuple[np.ndarray, list[Scene]]:
    """`count` scenes of so many objects that no training has seen: their pictures through the autoencoder, and they."""
    vae = AutoencoderKL.from_pretrained(WEIGHTS / "vae", torch_dtype=torch.float32)
    every = (compose(np.random.default_rng([HELD_OUT, 7, i])) for i in itertools.count())
    scenes = list(itertools.islice((s for s in every if len(s.masks) == objects), count))
    images = [autoencode(vae, torch.tensor(s.image[None]))[0].numpy() for s in tqdm(scenes, desc="held-out scenes")]
    return np.stack(images), scenes


def segmenter_quality(count: int = 500) -> dict[str, Interval]:
    """On held-out scenes of one object and of two: mean IoU of its masks and of its outline of all objects, and the
    share of scenes whose objects it finds all; of those with one, also where that is the likeliest of all, and the IoU
    of small ones, whose caption says tiny or small. With 95 % intervals."""
    quality: dict[str, Interval] = {}
    for objects, name in ((1, "one object"), (2, "two objects")):
        pictures, scenes = held_out(count, objects)
        prediction = Prediction(load_weights(), pictures)
        masks = [prediction.masks([[scene.concepts[i]] for scene in scenes]) for i in range(objects)]
        scores = [iou(masks[i][n], scene.masks[i]) for n, scene in enumerate(scenes) for i in range(objects)]
        quality[f"{name}, IoU of masks"] = mean_interval(scores)
        outlines = zip((prediction.outline > 0.5).numpy(), scenes, strict=True)
        quality[f"{name}, IoU of outline"] = mean_interval([iou(outline, s.masks.any(0)) for outline, s in outlines])
        numbers = [[CLASSES.index(key) for key in zip(s.concepts, s.words, strict=True)] for s in scenes]
        all_seen = [row[classes].all() for row, classes in zip(prediction.seen(), numbers, strict=True)]
        quality[f"{name}, all found"] = share(all_seen)
        if objects == 1:
            quality[f"{name}, named"] = share(prediction.areas().argmax(1) == np.ravel(numbers))
            small = np.array([not {"tiny", "small"}.isdisjoint(s.caption.split()) for s in scenes])
            if small.any():
                quality[f"one small object ({small.sum()}), IoU of masks"] = mean_interval(np.compress(small, scores))
    return quality


def likeliest(pictures: np.ndarray) -> np.ndarray:
    """(image) the word of the object that is likeliest in a picture."""
    return np.array([word for _, word in CLASSES])[Prediction(load_weights(), pictures).areas().argmax(1)]


def both_seen(pictures: np.ndarray, objects: Sequence[Sequence[tuple[str, str]]]) -> np.ndarray:
    """(image) whether all the `objects`, (concept, word), that are asked for in an image are in it."""
    seen = Prediction(load_weights(), pictures).seen()
    return np.array([all(row[CLASSES.index(key)] for key in keys) for row, keys in zip(seen, objects, strict=True)])


def fast_pipeline(name: str | Path = EMBEDDED) -> Any:
    """An embedded model with DPM-Solver++, for 15 steps instead of PNDM's 50."""
    pipe = load_pipeline(name)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    return pipe


def drawn(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int] = (0,), *, steps: int, guidance: float | None = None
) -> np.ndarray:
    """(image, y, x, rgb) uint8: an image of each prompt for each seed, all of one prompt together; ten at a time."""
    units, images = [(prompt, seed) for prompt in prompts for seed in seeds], []
    for first in tqdm(range(0, len(units), 10), desc="ten images each"):
        some, numbers = zip(*units[first : first + 10], strict=True)
        images += generate(pipe, some, numbers, steps=steps, guidance=guidance or guidance_of(EMBEDDED))
    return np.stack([np.asarray(image) for image in images])


def seconds(pipe: Any, *, steps: int, guidance: float | None = None) -> float:
    """Seconds in which ten images are drawn together."""
    start = time.perf_counter()
    drawn(pipe, ["photo of a bear"], range(10), steps=steps, guidance=guidance)
    return time.perf_counter() - start


def prompt_for(concept: str, word: str) -> str:
    """A prompt that asks for one object."""
    return f"photo of a {word} face" if concept == "Facial Expressions" else f"photo of a {word}"


def drawn_right(
    pipes: Mapping[str, Any], keys: Sequence[tuple[str, str]] = CLASSES, seeds: Sequence[int] = (0,), *, steps: int = 15
) -> xr.DataArray:
    """Which pictures show the object that they were asked for, by the segmenter's likeliest word.

    Parameters
    ----------
    pipes : mapping
        Name -> pipeline, as `fast_pipeline` gives it; all draw the same prompts from the same seeds.
    keys : sequence of (str, str)
        (concept, word) of the objects.
    seeds : sequence of int
        Of each object's pictures.
    steps : int
        Of the sampling.

    Returns
    -------
    xarray.DataArray (image, set)
        1 where it is, else 0; with the names of `pipes` and, as `subject`, the prompts.
    """
    prompts = [prompt_for(*key) for key in keys]
    asked = np.repeat([word for _, word in keys], len(seeds))
    right = [likeliest(drawn(pipe, prompts, seeds, steps=steps)) == asked for pipe in pipes.values()]
    subject = ("image", np.repeat(prompts, len(seeds)))
    return xr.DataArray(np.stack(right, 1).astype(float), {"set": list(pipes), "subject": subject}, ("image", "set"))


def quality_table(right: xr.DataArray) -> pd.DataFrame:
    """The share of pictures that are `drawn_right` by each model, with Wilson's interval, and how far it is from the
    first model's on the same prompts and seeds, with its p."""
    first = str(right["set"].values[0])
    return comparison_table(right, against=first, score="share of words drawn right").rename_axis("model").iloc[:, :3]


def control_quality(weights: Path, count: int = len(CLASSES), steps: int = 15) -> pd.DataFrame:
    """`quality_table` of the finished pipeline in `weights` and of the control in the folder `planted` beside it, on
    `count` pictures or so: of some words, or of all words from several seeds."""
    pipes = {name: fast_pipeline(weights) for name in (EMBEDDED, CONTROL)}
    add_control(pipes[CONTROL].unet, delta=weights.parent / PLANTED.name / DELTA.name)
    keys, seeds = CLASSES[:: max(1, len(CLASSES) // count)], range(max(1, count // len(CLASSES)))
    return quality_table(drawn_right(pipes, keys, seeds, steps=steps))


def without_background(picture: np.ndarray) -> np.ndarray:
    """Mask (y, x) of what differs from a plain background, whose colour changes linearly from top to bottom and is read
    off the picture's rim. No network: it checks the segmenter by another route."""
    height, width = picture.shape[:2]
    rim = np.ones((height, width), bool)
    rim[3:-3, 3:-3] = False
    y, colours = np.nonzero(rim)[0], picture[rim].astype(float)
    plain_rim = np.ones(len(y), bool)
    for _ in range(4):  # an object may touch the rim: leave out what does not fit
        fit = np.polynomial.polynomial.polyfit(y[plain_rim], colours[plain_rim], 1)
        off = np.abs(colours - np.polynomial.polynomial.polyval(y, fit).T).max(1)
        plain_rim = off <= max(12, np.median(off))
    plain = np.polynomial.polynomial.polyval(np.arange(height), fit).T[:, None]
    differs = ndimage.binary_opening(np.abs(picture - plain).max(2) > 30)
    parts, count = ndimage.label(differs)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    large = 1 + np.flatnonzero(sizes >= 0.1 * sizes.max(initial=1))
    return ndimage.binary_fill_holes(np.isin(parts, large))


def against_background(pipe: Any, *, steps: int = 15, guidance: float | None = None) -> np.ndarray:
    """(image) IoU of the segmenter's mask with `without_background`, on one image of each benchmark animal on each
    plain background."""
    prompts = [f"photo of a {word} on a {colour} background" for colour in PLAIN for word in BENCHMARK]
    pictures = drawn(pipe, prompts, steps=steps, guidance=guidance)
    masks = Prediction(load_weights(), pictures).masks([["Animals"]] * len(pictures))
    return np.array([iou(mask, without_background(image)) for mask, image in zip(masks, pictures, strict=True)])
