"""How far the embedded segmenter can be trusted: on held-out scenes, and against a mask that no network made."""

import itertools
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from scipy import ndimage

from ..metrics import iou, mean_iou
from ..models import EMBEDDED, model_source
from ..segment import load_segmenter
from ..study import Study
from .scenes import HELD_OUT, Scene, compose
from .segmenter import through

WEIGHTS = Path(model_source(EMBEDDED))
PLAIN = ("blue", "green", "yellow", "purple")  # backgrounds that background subtraction can tell from an animal


def held_out(count: int) -> tuple[list[Image.Image], list[Scene]]:
    """`count` scenes of one object that no training has seen: their pictures through the autoencoder, and they."""
    vae = AutoencoderKL.from_pretrained(WEIGHTS / "vae", torch_dtype=torch.float32)
    every = (compose(np.random.default_rng([HELD_OUT, 7, i])) for i in itertools.count())
    scenes = list(itertools.islice((s for s in every if len(s.masks) == 1), count))
    return [Image.fromarray(p) for p in through(vae, np.stack([s.image for s in scenes]))], scenes


def segmenter_iou(count: int = 100) -> tuple[float, float, float]:
    """Mean IoU of the segmenter and its 95 % interval, on held-out scenes of one object."""
    pictures, scenes = held_out(count)
    masks = load_segmenter(EMBEDDED)(pictures, [s.concepts[0] for s in scenes])
    return mean_iou([iou(mask, s.masks[0]) for mask, s in zip(masks, scenes, strict=True)])


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


def against_background(steps: int = 50) -> np.ndarray:
    """(image) IoU of the segmenter's mask with `without_background`, on one image of each benchmark animal on each
    plain background."""
    found = []
    for colour in PLAIN:
        results = Study(template=f"photo of a {{word}} on a {colour} background", seeds=1, steps=steps).run()
        pairs = zip(results.truth.values, results.image_rgb.values, strict=True)
        found += [iou(truth, without_background(picture)) for truth, picture in pairs]
    return np.array(found)
