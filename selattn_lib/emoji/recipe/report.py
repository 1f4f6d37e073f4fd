"""What the book says of `emoji-sd`: sizes, training curve, nearness of words; and the first figure."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from PIL import Image
from safetensors import safe_open

from ...concepts import load_concepts
from ...maps.overlay import overlay
from ...maps.relevance import SHIPPED, load_hrv
from ...models.pipelines import CONTROL, EMBEDDED, model_source
from ...studies.generated import DiagnosisStudy
from ...studies.relevance import RelevanceStudy
from ..control import planted_heads

WEIGHTS = Path(model_source(EMBEDDED))


def sizes() -> dict[str, tuple[int, float]]:
    """part -> (parameters, megabytes on disk)."""
    of_part = {}
    for path in sorted(WEIGHTS.glob("*/*.safetensors")):
        with safe_open(path, "pt") as file:
            parameters = sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118
        of_part[path.parent.name] = (parameters, path.stat().st_size / 1e6)
    return of_part


def training_curve() -> tuple[np.ndarray, np.ndarray]:
    """(samples seen, smoothed loss) as logged in training."""
    table = np.loadtxt(WEIGHTS / "training.csv", delimiter=",")
    return table[:, 1], table[:, 2]


def concept_similarity(pipe: Any) -> tuple[xr.DataArray, float]:
    """How near words are in the text encoder's space, by the cosine of their embeddings less the mean over all words.

    Returns the mean over pairs of different words, (concept, other_concept), and the share of words whose nearest
    other word is of their own concept.
    """
    concepts = load_concepts(EMBEDDED)
    vectors = []
    for word in (word for words in concepts.values() for word in words):
        ids = pipe.tokenizer(word, return_tensors="pt").input_ids
        with torch.no_grad():
            vectors.append(pipe.text_encoder(ids)[0][0, 1:-1].mean(0))
    v = torch.stack(vectors)
    v = F.normalize(v - v.mean(0), dim=-1)
    similar = (v @ v.T).numpy()
    np.fill_diagonal(similar, np.nan)
    number = np.repeat(np.arange(len(concepts)), [len(words) for words in concepts.values()])
    nearest = np.nanargmax(similar, axis=1)
    blocks = [[np.nanmean(similar[np.ix_(number == i, number == j)]) for j in set(number)] for i in set(number)]
    names = list(concepts)
    matrix = xr.DataArray(blocks, {"concept": names, "other_concept": names}, ("concept", "other_concept"))
    return matrix, float((number[nearest] == number).mean())


def figure_one(path: str | Path) -> None:
    """Draw the intro's figure: two mice by `emoji-sd`, and below by `emoji-control`; each as a picture and as maps of
    "mouse" by all heads, and by the heads most relevant to *Animals* and to *Electronics*, as many as were planted. Of
    the first seeds it is the one whose smaller mouse is the largest."""
    rows, few = [], len(planted_heads()["Animals"])
    for model in (EMBEDDED, CONTROL):
        study, relevance = DiagnosisStudy(model=model, seeds=8, steps=20), load_hrv(model)
        maps = study.run()
        image = int(np.min([maps.truths[m].values.mean((1, 2)) for m in study.meanings], axis=0).argmax())
        picture, heats = maps.pictures[image], [maps.heatmap(image=image).values]
        heats += [maps.heatmap(heads=relevance.top(m, few), image=image).values for m in study.meanings]
        panels = [overlay(picture, None), *(overlay(picture, heat, threshold=0.4) for heat in heats)]
        gap = np.full((panels[0].shape[0], 8, 3), 255, np.uint8)
        rows.append(np.hstack([part for panel in panels for part in (panel, gap)][:-1]))
    Image.fromarray(np.vstack([rows[0], np.full((8, *rows[0].shape[1:]), 255, np.uint8), rows[1]])).save(path)


if __name__ == "__main__":  # what ships beside the notebooks: the head relevance and the first page's figure
    for model, path in SHIPPED.items():
        RelevanceStudy(model=model).run().save(path)
    figure_one(sys.argv[1])
