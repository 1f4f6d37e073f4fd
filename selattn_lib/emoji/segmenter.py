"""The embedded segmenter: a small U-Net over concepts, trained on composed scenes seen through the autoencoder."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DModel
from tqdm import tqdm

from .art import glyphs
from .scenes import Scene, compose_many
from .training import Checkpoint, Muon, as_tensor, set_rate, split_parameters

CLASSES = ["background", *glyphs()]


def new_segmenter() -> UNet2DModel:
    """A U-Net on 2 x 2 pixels at a time; it has no use for a timestep, which is always 0."""
    return UNet2DModel(
        sample_size=64,
        in_channels=4 * 3,
        out_channels=4 * len(CLASSES),
        block_out_channels=(24, 48, 72, 112),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=16,
        norm_num_groups=8,
    )


def logits(model: UNet2DModel, x: torch.Tensor) -> torch.Tensor:
    """Images (image, rgb, y, x) in [-1, 1] -> (image, class, y, x)."""
    return F.pixel_shuffle(model(F.pixel_unshuffle(x, 2), 0).sample, 2)


def class_map(scene: Scene) -> np.ndarray:
    """(y, x) the class of what is seen at each pixel."""
    out = np.zeros(scene.masks.shape[1:], np.int64)
    for concept, mask in zip(scene.concepts, scene.masks, strict=True):
        out[mask] = CLASSES.index(concept)
    return out


@torch.no_grad()
def through(vae: AutoencoderKL, images: np.ndarray, noise: float = 0, seed: int = 0) -> np.ndarray:
    """Images (image, y, x, rgb) uint8 encoded and decoded again; of every second one the latents are disturbed by
    normal noise of standard deviation `noise`."""
    draw, out = torch.Generator().manual_seed(seed), []
    for chunk in tqdm(np.array_split(images, -(-len(images) // 16)), desc="through the autoencoder", mininterval=5):
        latents = vae.encode(as_tensor(chunk)).latent_dist.mode()
        latents[::2] += noise * torch.randn(latents[::2].shape, generator=draw)
        seen = vae.decode(latents).sample
        out.append(((seen.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(out)


def seen_scenes(work: Path, weights: Path, count: int, seed: int) -> tuple[np.ndarray, list[Scene]]:
    """Pictures (image, y, x, rgb) uint8 of `count` scenes, three quarters of them through the autoencoder, kept in
    `work`; and the scenes."""
    found, path = compose_many(count, seed), work / f"seen_scenes_{seed}.npy"
    if path.exists():
        return np.load(path), found
    images = np.stack([s.image for s in found])
    vae = AutoencoderKL.from_pretrained(weights / "vae", torch_dtype=torch.float32)
    images[: 3 * count // 4] = through(vae, images[: 3 * count // 4], noise=0.2)
    np.save(path, images)
    return images, found


def jitter(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Now and then blurred, always a little recoloured and noisy."""
    if rng.random() < 0.3:
        soft = F.interpolate(x, scale_factor=float(rng.uniform(0.5, 0.9)), mode="bilinear")
        x = F.interpolate(soft, size=x.shape[-2:], mode="bilinear")
    gain, shift = (torch.from_numpy(rng.normal(m, 0.1, (len(x), 3, 1, 1))).float() for m in (1, 0))
    return x * gain + shift + 0.02 * torch.randn_like(x)


def train_segmenter(
    work: Path, weights: Path, steps: int = 4150, batch: int = 8, count: int = 8000, seed: int = 4
) -> UNet2DModel:
    """Cross-entropy on scenes, most of them through the autoencoder, blurred and recoloured at random."""
    torch.manual_seed(seed)
    model = new_segmenter().train()
    matrices, others = split_parameters(model)
    muon, adam = Muon(matrices, lr=1e-3), torch.optim.AdamW(others, lr=1e-3, weight_decay=0.01)
    checkpoint = Checkpoint(work / "segmenter.pt", model=model, muon=muon, adam=adam)
    start = checkpoint.load()
    images, found = seen_scenes(work, weights, count, seed)
    labels = np.stack([class_map(s) for s in found]).astype(np.uint8)
    bar = tqdm(range(start, steps), initial=start, total=steps, desc="segmenter", mininterval=5)
    for step in bar:
        rng = np.random.default_rng([seed, step])
        rows = rng.integers(len(images), size=batch)
        x, y = as_tensor(images[rows]), torch.from_numpy(labels[rows].astype(np.int64))
        if rng.random() < 0.5:
            x, y = x.flip(3), y.flip(2)
        with torch.autocast("cpu", torch.bfloat16):
            guess = logits(model, jitter(x, rng)).float()
        loss = F.cross_entropy(guess, y)
        loss.backward()
        set_rate((muon, adam), 1e-3 * min((step + 1) / 50, 1, (steps - step) / (0.5 * steps)))
        for optimiser in (muon, adam):
            optimiser.step()
            optimiser.zero_grad()
        if step % 20 == 0:
            bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
        checkpoint.save(step + 1, force=step + 1 == steps)
    model.eval().half().save_pretrained(weights / "segmenter")
    return model.float()
