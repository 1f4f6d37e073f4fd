"""Training the segmenter, on composed scenes seen through the autoencoder; never on what the model draws."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DModel
from tqdm import tqdm

from ..scenes import SIZE, Scene, compose, compose_many
from ..segmenter import CELL, CLASSES, as_tensor, logits, new_segmenter
from .training import Schedule, Training, autocast


def labels(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """(y, x) bool, the outline of all objects; (y / 4, x / 4) the number of the class that covers most of each cell, -1
    where objects cover less than a quarter of it."""
    cells = scene.masks.reshape(len(scene.masks), 128 // CELL, CELL, 128 // CELL, CELL).mean((2, 4))
    numbers = np.array([CLASSES.index(key) for key in zip(scene.concepts, scene.words, strict=True)])
    return np.any(scene.masks, axis=0), np.where(cells.sum(0) < 0.25, -1, numbers[cells.argmax(0)])


@torch.no_grad()
def autoencode(vae: AutoencoderKL, images: np.ndarray, noise: float = 0, seed: int = 0) -> np.ndarray:
    """Images (image, y, x, rgb) uint8 encoded and decoded again; of every second one the latents are disturbed by
    normal noise of standard deviation `noise`."""
    draw, out = torch.Generator().manual_seed(seed), []
    for chunk in tqdm(np.array_split(images, -(-len(images) // 16)), desc="through the autoencoder", mininterval=5):
        latents = vae.encode(as_tensor(chunk)).latent_dist.mode()
        latents[::2] += noise * torch.randn(latents[::2].shape, generator=draw)
        pixels = vae.decode(latents).sample
        out.append(((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(out)


def seen_scenes(work: Path, weights: Path, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures (image, y, x, rgb) uint8 of `count` scenes, three quarters of them through the autoencoder, and the two
    `labels` of each scene; made once and kept in `work`."""
    path = work / f"seen_scenes_{seed}_{count}.npz"
    if path.exists():
        with np.load(path) as arrays:
            return arrays["images"], arrays["outlines"], arrays["names"]
    images, marks = np.empty((count, SIZE, SIZE, 3), np.uint8), []
    for i, scene in enumerate(compose_many(count, seed)):  # nothing else of the scenes, some GB, is kept
        images[i] = scene.image
        marks.append(labels(scene))
    outlines, names = map(np.stack, zip(*marks, strict=True))
    vae = AutoencoderKL.from_pretrained(weights / "vae", torch_dtype=torch.float32)
    images[: 3 * count // 4] = autoencode(vae, images[: 3 * count // 4], noise=0.2)
    np.savez(path, images=images, outlines=outlines, names=names)
    return images, outlines, names


def fresh_scenes(rng: np.random.Generator, count: int) -> list[Scene]:
    """Scenes of one to three objects of any kind, so that no word is rare."""
    numbers = rng.choice([1, 2, 3], size=count, p=[0.6, 0.3, 0.1])
    return [compose(rng, [CLASSES[i] for i in rng.choice(len(CLASSES), size=number)]) for number in numbers]


def jitter(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Now and then blurred, always a little recoloured and noisy."""
    if rng.random() < 0.15:
        soft = F.interpolate(x, scale_factor=float(rng.uniform(0.5, 0.9)), mode="bilinear")
        x = F.interpolate(soft, size=x.shape[-2:], mode="bilinear")
    gain, shift = (torch.from_numpy(rng.normal(m, 0.1, (len(x), 3, 1, 1))).float() for m in (1, 0))
    return x * gain + shift + 0.02 * torch.randn_like(x)


def train_segmenter(
    work: Path, weights: Path, steps: int = 22_000, batch: int = 16, count: int = 48_000, seed: int = 5
) -> UNet2DModel:
    """Cross-entropy and soft IoU of outlines, cross-entropy of names; three quarters of each batch are scenes kept in
    `work`, most of them through the autoencoder, the others fresh ones; all blurred and recoloured at random."""
    torch.manual_seed(seed)
    model = new_segmenter().train()
    schedule = Schedule(steps, peak=1e-3, warmup=50, decay=0.5)
    training = Training(work / "segmenter.pt", schedule, model, weight_decay=0.01)
    stored = seen_scenes(work, weights, count, seed)

    def step(number: int) -> tuple[torch.Tensor, dict[str, float]]:
        rng = np.random.default_rng([seed, 1, number])
        rows = rng.integers(len(stored[0]), size=3 * batch // 4)
        fresh = [(scene.image, *labels(scene)) for scene in fresh_scenes(rng, batch - len(rows))]
        parts = zip(stored, zip(*fresh, strict=True), strict=True)
        images, *marks = (np.concatenate([old[rows], np.stack(new)]) for old, new in parts)
        x = as_tensor(images)
        outline, names = map(torch.from_numpy, marks)
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
        return loss, {"iou": soft_iou.item(), "name": name_loss.item()}

    training.run(step)
    model.eval().half().save_pretrained(weights / "segmenter")
    return model.float()
