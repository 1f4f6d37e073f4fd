"""Training of the embedded segmenter: a small SegFormer on composed scenes, seen through the autoencoder."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from tqdm import tqdm
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from .art import glyphs
from .scenes import Scene, compose_many
from .training import Checkpoint, Muon, as_tensor, set_rate, split_parameters

CLASSES = ["background", *glyphs()]


def new_segmenter() -> SegformerForSemanticSegmentation:
    """SegFormer's smallest, a little narrower: logits at a quarter of the image's size."""
    return SegformerForSemanticSegmentation(
        SegformerConfig(
            hidden_sizes=[32, 64, 128, 192],
            depths=[2, 2, 2, 2],
            decoder_hidden_size=128,
            id2label=dict(enumerate(CLASSES)),
            label2id={name: i for i, name in enumerate(CLASSES)},
        )
    )


def class_map(scene: Scene) -> np.ndarray:
    """(y, x) the class of what is seen at each pixel."""
    out = np.zeros(scene.masks.shape[1:], np.int64)
    for concept, mask in zip(scene.concepts, scene.masks, strict=True):
        out[mask] = CLASSES.index(concept)
    return out


@torch.no_grad()
def through(vae: AutoencoderKL, images: np.ndarray) -> np.ndarray:
    """Images (image, y, x, rgb) uint8 encoded and decoded again."""
    out = []
    for chunk in tqdm(np.array_split(images, -(-len(images) // 16)), desc="through the autoencoder"):
        seen = vae.decode(vae.encode(as_tensor(chunk)).latent_dist.mode()).sample
        out.append(((seen.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(out)


def train_segmenter(
    work: Path, weights: Path, steps: int = 850, batch: int = 16, count: int = 4000, seed: int = 4
) -> SegformerForSemanticSegmentation:
    """Cross-entropy on scenes, three quarters of them through the autoencoder, blurred and recoloured at random."""
    torch.manual_seed(seed)
    model = new_segmenter().train()
    matrices, others = split_parameters(model)
    muon, adam = Muon(matrices, lr=1e-3), torch.optim.AdamW(others, lr=1e-3, weight_decay=0.01)
    checkpoint = Checkpoint(work / "segmenter.pt", model=model, muon=muon, adam=adam)
    start = checkpoint.load()
    path = work / "segmenter_scenes.npz"
    if start < steps and not path.exists():
        vae = AutoencoderKL.from_pretrained(weights / "vae")
        found = compose_many(count, seed)
        images = np.stack([s.image for s in found])
        images[: 3 * count // 4] = through(vae, images[: 3 * count // 4])
        np.savez(path, images=images, labels=np.stack([class_map(s) for s in found]).astype(np.uint8))
    data = np.load(path)
    images, labels = data["images"], data["labels"]
    bar = tqdm(range(start, steps), initial=start, total=steps, desc="segmenter", mininterval=5)
    for step in bar:
        rng = np.random.default_rng([seed, step])
        rows = rng.integers(len(images), size=batch)
        x, y = as_tensor(images[rows]), torch.from_numpy(labels[rows].astype(np.int64))
        if rng.random() < 0.5:
            x, y = x.flip(3), y.flip(2)
        if rng.random() < 0.4:
            soft = F.interpolate(x, scale_factor=float(rng.uniform(0.4, 0.9)), mode="bilinear")
            x = F.interpolate(soft, size=x.shape[-2:], mode="bilinear")
        gain, shift = (torch.from_numpy(rng.normal(m, 0.1, (batch, 3, 1, 1))).float() for m in (1, 0))
        x = x * gain + shift + 0.02 * torch.randn_like(x)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x).logits.float()
        loss = F.cross_entropy(F.interpolate(logits, size=x.shape[-2:], mode="bilinear"), y)
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
