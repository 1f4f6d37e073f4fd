"""What the book says of `emoji-sd`, measured: sizes, training curve, word nearness, the segmenter's IoU; and its
first figure."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from safetensors import safe_open

from ..aggregate import heatmap
from ..concepts import load_concepts
from ..figures import overlay
from ..metrics import iou, mean_iou
from ..models import EMBEDDED, model_source
from ..segment import load_segmenter
from ..study import RelevanceStudy, Study
from .scenes import HELD_OUT, compose
from .segmenter import through

WEIGHTS = Path(model_source(EMBEDDED))


def sizes() -> dict[str, tuple[int, float]]:
    """part -> (parameters, megabytes on disk)."""
    found = {}
    for path in sorted(WEIGHTS.glob("*/*.safetensors")):
        with safe_open(path, "pt") as file:
            parameters = sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118
        found[path.parent.name] = (parameters, path.stat().st_size / 1e6)
    return found


def training_curve() -> tuple[np.ndarray, np.ndarray]:
    """(samples seen, smoothed loss) as logged in training."""
    table = np.loadtxt(WEIGHTS / "training.csv", delimiter=",")
    return table[:, 1], table[:, 2]


def word_nearness(pipe: Any) -> tuple[float, float, float]:
    """Cosine similarity of concept words in the text encoder's space, centred: the mean over pairs within a concept and
    across concepts, and the share of words whose nearest other word is of their own concept."""
    concepts = [(c, w) for c, words in load_concepts(EMBEDDED).items() for w in words]
    vectors = []
    for _, word in concepts:
        ids = pipe.tokenizer(word, return_tensors="pt").input_ids
        with torch.no_grad():
            vectors.append(pipe.text_encoder(ids)[0][0, 1:-1].mean(0))
    v = torch.stack(vectors)
    v = F.normalize(v - v.mean(0), dim=-1)
    similar = (v @ v.T).numpy()
    names = np.array([c for c, _ in concepts])
    same, other = names[:, None] == names, ~np.eye(len(names), dtype=bool)
    nearest = np.where(other, similar, -2).argmax(1)
    return float(similar[same & other].mean()), float(similar[~same].mean()), float((names[nearest] == names).mean())


def segmenter_iou(count: int = 100) -> tuple[float, float, float, int]:
    """Mean IoU, its 95 % interval, and the number of held-out single-object scenes, passed through the autoencoder."""
    vae = AutoencoderKL.from_pretrained(WEIGHTS / "vae", dtype=torch.float32)
    scenes = [compose(np.random.default_rng([HELD_OUT, 7, i])) for i in range(2 * count)]
    scenes = [s for s in scenes if len(s.masks) == 1][:count]
    seen = [Image.fromarray(picture) for picture in through(vae, np.stack([s.image for s in scenes]))]
    masks = load_segmenter(EMBEDDED)(seen, [s.concepts[0] for s in scenes])
    ious = [iou(mask, s.masks[0]) for mask, s in zip(masks, scenes, strict=True)]
    return *mean_iou(ious), len(ious)


def figure_one(path: str | Path) -> None:
    """Draw the intro's figure: seed 0 of the benchmark's first four words, each as picture, DAAM and top 30 heads."""
    study = Study()
    results, order = study.run(), RelevanceStudy().run()
    panels = []
    for word in range(4):
        image = word * study.seeds
        picture, truth = results.image_rgb.values[image], results.truth.values[image]
        panels.append(overlay(picture, None))
        for heads in ("all", order.top("Animals", 30)):
            heat = heatmap(results, heads, image=image).values
            panels.append(overlay(picture, heat, threshold=0.4, truth=truth))
    gap = np.full((panels[0].shape[0], 8, 3), 255, np.uint8)
    rows = [np.hstack([p for panel in panels[i : i + 6] for p in (panel, gap)][:-1]) for i in (0, 6)]
    Image.fromarray(np.vstack([rows[0], np.full((8, *rows[0].shape[1:]), 255, np.uint8), rows[1]])).save(path)


if __name__ == "__main__":  # what ships beside the notebooks: the head relevance and the first page's figure
    RelevanceStudy().run().save(WEIGHTS.parent / "hrv.npz")
    figure_one(sys.argv[1])
