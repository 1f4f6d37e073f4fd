"""How good `emoji-sd` is, judged by networks that have only seen composed scenes.

`python -m selattn_lib.emoji.quality` draws some 1,200 images and writes `weights/quality.json`, which the book shows.
"""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler
from PIL import Image
from scipy import ndimage

from ..metrics import iou, mean_iou
from ..models import EMBEDDED, load_pipeline, model_source
from ..segment import load_segmenter
from ..study import GUIDANCE, DiagnosisStudy, Study, generate
from .classifier import Classifier, Key
from .scenes import AMBIGUOUS, BENCHMARK, HELD_OUT, Scene, compose, drawings
from .segmenter import through

WEIGHTS = Path(model_source(EMBEDDED))
SHOWN = 0.5  # the probability from which the classifier says that something is in the picture
PAIRS = ("photo of a {word} and a house", "photo of a {word} and a guitar", "photo of a {word} and a car",
         "photo of a {word} and a tree", "photo of a {word} and an apple")  # fmt: skip
PLAIN = ("blue", "green", "yellow", "purple")  # backgrounds that background subtraction can tell from an animal


def held_out(count: int, objects: int = 1) -> tuple[list[Image.Image], list[Scene]]:
    """`count` scenes of so many objects that no training has seen: their pictures through the autoencoder, and they."""
    vae = AutoencoderKL.from_pretrained(WEIGHTS / "vae", torch_dtype=torch.float32)
    every = (compose(np.random.default_rng([HELD_OUT, 7, i])) for i in range(20 * count))
    scenes = [s for _, s in zip(range(20 * count), every, strict=False) if len(s.masks) == objects][:count]
    return [Image.fromarray(p) for p in through(vae, np.stack([s.image for s in scenes]))], scenes


def segmenter_iou(count: int = 100) -> tuple[float, float, float]:
    """Mean IoU of the segmenter and its 95 % interval, on held-out scenes of one object."""
    pictures, scenes = held_out(count)
    masks = load_segmenter(EMBEDDED)(pictures, [s.concepts[0] for s in scenes])
    return mean_iou([iou(mask, s.masks[0]) for mask, s in zip(masks, scenes, strict=True)])


def classifier_accuracy(count: int = 300) -> dict[str, float]:
    """Share of held-out scenes that the classifier reads right: the likeliest object of those with one, both objects
    of those with two."""
    classify = Classifier()
    pictures, scenes = held_out(count)
    best = classify(pictures).argmax(1)
    one = [classify.keys[i] == (s.concepts[0], s.words[0]) for i, s in zip(best, scenes, strict=True)]
    pictures, scenes = held_out(count // 2, objects=2)
    seen = classify(pictures) >= SHOWN
    two = [
        all(row[classify.keys.index(key)] for key in zip(s.concepts, s.words, strict=True))
        for row, s in zip(seen, scenes, strict=True)
    ]
    return {"one object": float(np.mean(one)), "two objects": float(np.mean(two))}


def read_as(images: Sequence[Image.Image], words: Sequence[str], classify: Classifier) -> np.ndarray:
    """(image) whether the likeliest object is the word's, in any of its meanings."""
    best = classify(images).argmax(1)
    return np.array([classify.keys[i][1] == word for i, word in zip(best, words, strict=True)])


def shows(images: Sequence[Image.Image], wanted: Sequence[Sequence[Key]], classify: Classifier) -> np.ndarray:
    """(image) whether every object wanted of an image is in it."""
    seen = classify(images) >= SHOWN
    return np.array([all(row[classify.keys.index(k)] for k in keys) for row, keys in zip(seen, wanted, strict=True)])


def without_background(picture: np.ndarray) -> np.ndarray:
    """Mask (y, x) of what differs from a plain background, whose colour changes linearly from top to bottom and is read
    off the picture's rim. No network: it checks the segmenter by another route."""
    height, width = picture.shape[:2]
    rim = np.ones((height, width), bool)
    rim[3:-3, 3:-3] = False
    y, colours = np.nonzero(rim)[0], picture[rim].astype(float)
    keep = np.ones(len(y), bool)
    for _ in range(4):  # an object may touch the rim: leave out what does not fit
        fit = np.polynomial.polynomial.polyfit(y[keep], colours[keep], 1)
        off = np.abs(colours - np.polynomial.polynomial.polyval(y, fit).T).max(1)
        keep = off <= max(12, np.median(off))
    plain = np.polynomial.polynomial.polyval(np.arange(height), fit).T[:, None]
    differs = ndimage.binary_opening(np.abs(picture - plain).max(2) > 30)
    parts, count = ndimage.label(differs)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    large = 1 + np.flatnonzero(sizes >= 0.1 * sizes.max(initial=1))
    return ndimage.binary_fill_holes(np.isin(parts, large))


def pictures_of(study: Study | DiagnosisStudy) -> tuple[list[Image.Image], Any]:
    """The images of a study, and its results."""
    results = study.run()
    return [Image.fromarray(p) for p in results.image_rgb.values], results


def ten_images(pipe: Any, steps: int, seeds: Sequence[int]) -> tuple[list[Image.Image], float]:
    """One image of every benchmark animal for each seed, and the seconds that ten images took."""
    start, images = time.perf_counter(), []
    for seed in seeds:
        images += generate(
            pipe, [f"photo of a {word}" for word in BENCHMARK], [seed] * 10, steps=steps, guidance=GUIDANCE[EMBEDDED]
        )
    return images, (time.perf_counter() - start) / len(seeds)


def speed(classify: Classifier, seeds: int = 3) -> dict[str, dict[str, float]]:
    """Seconds for ten images and the share of them read right, with the paper's scheduler and steps, and with the fast
    setting: DPM-Solver++ in 15 steps."""
    found = {}
    for name, steps in (("PNDM, 50 steps", 50), ("DPM-Solver++, 15 steps", 15)):
        pipe = load_pipeline(EMBEDDED)
        if steps == 15:
            pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
        images, seconds = ten_images(pipe, steps, range(seeds))
        right = read_as(images, BENCHMARK * seeds, classify).mean()
        found[name] = {"seconds": round(seconds, 1), "right": float(right), "threads": torch.get_num_threads()}
    return found


def measure(seeds: int = 20, word_seeds: int = 5, steps: int = 50) -> dict[str, Any]:
    """Everything that the book says of the model's quality, under the names it uses: `seeds` images of every animal and
    ambiguous prompt, `word_seeds` of every word."""
    classify = Classifier()
    images, results = pictures_of(Study(seeds=seeds, steps=steps))
    right = read_as(images, results.subject.values, classify)
    animals = {word: float(right[results.subject.values == word].mean()) for word in BENCHMARK}
    words = {}
    concepts = sorted({concept for concept, _ in drawings()})
    for concept in concepts:
        named = tuple(word for c, word in drawings() if c == concept)
        template = "photo of a {word} face" if concept == "Facial Expressions" else "photo of a {word}"
        images, results = pictures_of(
            Study(concept=concept, words=named, seeds=word_seeds, steps=steps, template=template)
        )
        right = read_as(images, results.subject.values, classify)
        words[concept] = {word: float(right[results.subject.values == word].mean()) for word in named}
    pairs = {}
    for template in PAIRS:
        images, results = pictures_of(Study(template=template, seeds=2, steps=steps))
        other = next(key for key in drawings() if key[1] == template.split()[-1])
        wanted = [[("Animals", word), other] for word in results.subject.values]
        pairs[template] = float(shows(images, wanted, classify).mean())
    both = {}
    for word, planted in AMBIGUOUS.items():
        study = DiagnosisStudy(prompt=planted.caption, word=word, meanings=planted.concepts, seeds=seeds, steps=steps)
        images, _ = pictures_of(study)
        meanings = [(concept, word) for concept in planted.concepts]
        both[word] = float(shows(images, [meanings] * len(images), classify).mean())
    found = []
    for colour in PLAIN:
        results = Study(template=f"photo of a {{word}} on a {colour} background", seeds=1, steps=steps).run()
        pairs_of_masks = zip(results.truth.values, results.image_rgb.values, strict=True)
        found += [iou(truth, without_background(picture)) for truth, picture in pairs_of_masks]
    return {
        "settings": {"seeds": seeds, "word_seeds": word_seeds, "steps": steps},
        "classifier on held-out scenes": classifier_accuracy(),
        "segmenter on held-out scenes": segmenter_iou(),
        "segmenter against background subtraction": [float(i) for i in found],
        "animals": animals,
        "words": words,
        "pairs": pairs,
        "both meanings": both,
        "ten images": speed(classify),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("seeds", 20), ("word-seeds", 5), ("steps", 50)):
        parser.add_argument(f"--{name}", type=int, default=default)
    (WEIGHTS / "quality.json").write_text(json.dumps(measure(**vars(parser.parse_args())), indent=1) + "\n")
