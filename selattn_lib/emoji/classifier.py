"""The reader: a small ResNet that names the objects in a picture. It judges what `emoji-sd` draws, and has only ever
seen composed scenes."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm
from transformers import ResNetConfig, ResNetForImageClassification

from .scenes import compose, drawings
from .segmenter import jitter, seen_scenes
from .training import Checkpoint, Muon, as_tensor, set_rate, split_parameters

Key = tuple[str, str]  # (concept, word): the two meanings of an ambiguous word are two things to see


def new_classifier() -> ResNetForImageClassification:
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=32,
            hidden_sizes=[48, 80, 128, 176],
            depths=[1, 1, 1, 1],
            layer_type="basic",
            problem_type="multi_label_classification",
            id2label={i: ", ".join(key) for i, key in enumerate(drawings())},
            label2id={", ".join(key): i for i, key in enumerate(drawings())},
        )
    )


def present(scenes: Sequence, keys: list[Key]) -> torch.Tensor:
    """(scene, key) 1.0 where the scene shows the key's object."""
    out = torch.zeros(len(scenes), len(keys))
    for row, scene in zip(out, scenes, strict=True):
        row[[keys.index(key) for key in zip(scene.concepts, scene.words, strict=True)]] = 1
    return out


def train_classifier(
    work: Path, weights: Path, steps: int = 4000, batch: int = 32, count: int = 8000, seed: int = 4
) -> ResNetForImageClassification:
    """Half of each batch are the segmenter's scenes, half fresh ones of any words, so that none is rare."""
    torch.manual_seed(seed)
    keys = list(drawings())
    model = new_classifier().train()
    matrices, others = split_parameters(model)
    muon, adam = Muon(matrices, lr=1e-3), torch.optim.AdamW(others, lr=1e-3, weight_decay=0.01)
    checkpoint = Checkpoint(work / "classifier.pt", model=model, muon=muon, adam=adam)
    start = checkpoint.load()
    images, found = seen_scenes(work, weights, count, seed)
    labels = present(found, keys)
    bar = tqdm(range(start, steps), initial=start, total=steps, desc="classifier", mininterval=5)
    for step in bar:
        rng = np.random.default_rng([seed, 1, step])
        rows = rng.integers(len(images), size=batch // 2)
        fresh = []
        for _ in range(batch - batch // 2):
            chosen = [keys[i] for i in rng.choice(len(keys), size=rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1]))]
            fresh.append(compose(rng, chosen))
        x = as_tensor(np.concatenate([images[rows], np.stack([s.image for s in fresh])]))
        y = torch.cat([labels[rows], present(fresh, keys)])
        if rng.random() < 0.5:
            x = x.flip(3)
        with torch.autocast("cpu", torch.bfloat16):
            guess = model(jitter(x, rng)).logits.float()
        loss = F.binary_cross_entropy_with_logits(guess, y, reduction="none").sum(1).mean()
        loss.backward()
        set_rate((muon, adam), 1e-3 * min((step + 1) / 50, 1, (steps - step) / (0.5 * steps)))
        for optimiser in (muon, adam):
            optimiser.step()
            optimiser.zero_grad()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        checkpoint.save(step + 1, force=step + 1 == steps)
    model.eval().half().save_pretrained(weights / "classifier")
    return model.float()


class Classifier:
    """The shipped reader. `keys` are the (concept, word) it knows."""

    def __init__(self) -> None:
        folder = str(files("selattn_lib.emoji") / "weights" / "classifier")
        self.model = ResNetForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
        self.keys = [tuple(label.split(", ")) for _, label in sorted(self.model.config.id2label.items())]

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image]) -> np.ndarray:
        """(image, key) the probability that the image shows each object."""
        x = as_tensor(np.stack([np.asarray(image.convert("RGB")) for image in images]))
        return torch.cat([self.model(part).logits.sigmoid() for part in x.split(50)]).numpy()
