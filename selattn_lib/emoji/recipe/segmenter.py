"""Training the segmenter, on composed scenes seen through the autoencoder; never on what the model draws."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DModel

from ..scenes import SIZE, Scene, compose
from ..segmenter import CELL, CLASSES, as_tensor, logits, new_segmenter
from .composing import Scenes
from .examples import Examples
from .training import DEVICE, Schedule, Training, autocast, begin


def labels(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """(y, x) bool, the outline of all objects; (y / CELL, x / CELL) the number of the class that covers most of each
    cell, -1 where objects cover less than a quarter of it."""
    cells = scene.masks.reshape(len(scene.masks), SIZE // CELL, CELL, SIZE // CELL, CELL).mean((2, 4))
    numbers = np.array([CLASSES.index(key) for key in zip(scene.concepts, scene.words, strict=True)])
    return np.any(scene.masks, axis=0), np.where(cells.sum(0) < 0.25, -1, numbers[cells.argmax(0)])


def labelled(scene: Scene) -> dict[str, Any]:
    """What the segmenter learns from of a scene."""
    outline, names = labels(scene)
    return {"images": scene.image, "outlines": outline, "names": names.astype(np.int16)}


def varied(rng: np.random.Generator) -> Scene:
    """Every fourth scene is of one to three objects of any kind, so that no word is rare."""
    if rng.random() < 0.75:
        return compose(rng)
    number = rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1])
    return compose(rng, [CLASSES[i] for i in rng.choice(len(CLASSES), size=number)])


@torch.no_grad()
def autoencode(vae: AutoencoderKL, images: torch.Tensor, noise: float = 0) -> torch.Tensor:
    """Images (image, y, x, rgb) uint8 encoded and decoded again; of every second one the latents are disturbed by
    normal noise of standard deviation `noise`."""
    latents = vae.encode(as_tensor(images.to(vae.device))).latent_dist.mode()
    latents[::2] += noise * torch.randn_like(latents[::2])
    pixels = vae.decode(latents).sample
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)


def seen_scenes(work: Path, weights: Path, count: int, seed: int) -> Examples:
    """Pictures of `count` scenes, most of them through the autoencoder, and the two `labels` of each."""
    vae = AutoencoderKL.from_pretrained(weights / "vae", torch_dtype=torch.float32).to(DEVICE)

    def prepare(scenes: dict[str, Any]) -> dict[str, torch.Tensor]:
        images = scenes["images"].to(DEVICE)
        through = 5 * len(images) // 8
        for chunk in images[:through].split(16):
            chunk.copy_(autoencode(vae, chunk, noise=0.2))
        return {"images": images, "outlines": scenes["outlines"].to(DEVICE), "names": scenes["names"].to(DEVICE)}

    return Examples(Scenes(count, (seed,), labelled, varied), prepare, work / f"seen_scenes_{seed}_{count}.pt")


def jitter(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Now and then blurred, always a little recoloured and noisy."""
    if rng.random() < 0.15:
        soft = F.interpolate(x, scale_factor=float(rng.uniform(0.5, 0.9)), mode="bilinear")
        x = F.interpolate(soft, size=x.shape[-2:], mode="bilinear")
    gain, shift = (torch.from_numpy(rng.normal(m, 0.1, (len(x), 3, 1, 1))).to(x) for m in (1, 0))
    return x * gain + shift + 0.02 * torch.randn_like(x)


def train_segmenter(
    work: Path,
    weights: Path,
    start: Path | None = None,
    steps: int = 22_000,
    batch: int = 16,
    seconds: float = math.inf,
    count: int = 48_000,
    seed: int = 5,
) -> UNet2DModel:
    """Cross-entropy and soft IoU of outlines, cross-entropy of names, on `varied` scenes, most of them through the
    autoencoder, all blurred and recoloured at random."""
    torch.manual_seed(seed)
    model = new_segmenter().train()
    begin(model, start, "segmenter")
    schedule = Schedule(steps, peak=1e-3, warmup=50, decay=0.5, seconds=seconds)
    training = Training(work / "segmenter.pt", schedule, model, weight_decay=0.01)
    examples = seen_scenes(work, weights, count, seed)

    def step(number: int) -> tuple[torch.Tensor, dict[str, Any]]:
        rng = np.random.default_rng([seed, 1, number])
        scenes = examples.draw(torch.from_numpy(rng.random(batch)).to(DEVICE))
        x, outline, names = as_tensor(scenes["images"]), scenes["outlines"], scenes["names"].long()
        with autocast():
            drawn, named = (part.float() for part in logits(model, jitter(x, rng)))
        inside = names >= 0
        share = inside / inside.sum((1, 2), keepdim=True).clamp(min=1)  # every picture counts the same, large or small
        name_loss = (F.cross_entropy(named, names.clamp(min=0), reduction="none") * share).sum() / batch
        outline_loss = F.binary_cross_entropy_with_logits(drawn, outline.float())
        inked = drawn.sigmoid()
        overlap = (inked * outline).sum((1, 2))
        soft_iou = (overlap / (inked.sum((1, 2)) + outline.sum((1, 2)) - overlap)).mean()
        loss = outline_loss + 0.3 * (1 - soft_iou) + 0.3 * name_loss
        return loss, {"iou": soft_iou.detach(), "name": name_loss.detach()}

    training.run(step)
    model.eval().half().save_pretrained(weights / "segmenter")
    return model.float()
