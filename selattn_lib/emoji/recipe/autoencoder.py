"""The autoencoder of `emoji-sd`, and the fixed linear map that its latents are taught to be."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn

from ..scenes import SIZE, compose_many
from ..segmenter import as_tensor
from .training import DEVICE, Schedule, Training, autocast, begin

RGB = 3  # the first latent channels are the mean colour of each 8 x 8 block


LATENT_CHANNELS = 8  # the others, the principal components of what is left of the blocks


CROP = 64  # pixels: the networks are local, a small part of a picture will do


RESIDUAL_STD = 0.6  # their standard deviation, below the colours' 1: coarse before fine in the diffusion


def new_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


class LatentBasis(nn.Module):
    """What the latents mean: a fixed linear map of each 8 x 8 block of pixels, normalised channel by channel. The
    autoencoder is taught to go there and back; the UNet can be trained on it from the first minute."""

    matrix: torch.Tensor
    offset: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.zeros(LATENT_CHANNELS, 3 * 64))
        self.register_buffer("offset", torch.zeros(LATENT_CHANNELS))

    @classmethod
    def fit(cls, images: np.ndarray) -> "LatentBasis":
        """Mean colours first, then the principal components of the residual, from a sample of images."""
        basis = cls()
        pixels = F.pixel_unshuffle(as_tensor(images), 8).permute(0, 2, 3, 1).flatten(0, 2)
        colour = torch.eye(RGB).repeat_interleave(64, 1) / 64
        residual = pixels - (pixels @ colour.T).repeat_interleave(64, 1)
        axes = torch.linalg.eigh(residual.T @ residual).eigenvectors.flip(1)[:, : LATENT_CHANNELS - RGB]
        matrix = torch.cat([colour, axes.T])
        values = pixels @ matrix.T
        std = values.std(0) / torch.tensor([1.0] * RGB + [RESIDUAL_STD] * (LATENT_CHANNELS - RGB))
        basis.matrix, basis.offset = matrix / std[:, None], values.mean(0) / std
        return basis

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (image, rgb, y, x) in [-1, 1] -> latents (image, channel, y / 8, x / 8)."""
        return F.conv2d(F.pixel_unshuffle(images, 8), self.matrix[:, :, None, None], -self.offset)


def train_autoencoder(
    work: Path,
    weights: Path,
    start: Path | None = None,
    steps: int = 11_000,
    batch: int = 16,
    seconds: float = math.inf,
    count: int = 6000,
    seed: int = 1,
) -> AutoencoderKL:
    """The encoder learns the basis, the decoder to draw from (slightly noisy) latents; L1 on pixels and gradients."""
    torch.manual_seed(seed)
    vae = new_autoencoder()
    begin(vae, start, "vae")
    basis = latent_basis(work).to(DEVICE)
    schedule = Schedule(steps, peak=2e-3, warmup=50, decay=0.5, seconds=seconds)
    training = Training(work / "autoencoder.pt", schedule, vae, key="vae", betas=(0.9, 0.98))
    images = np.stack([s.image for s in compose_many(count, seed)]) if training.start < steps else np.zeros(0)

    def step(number: int) -> tuple[torch.Tensor, dict[str, Any]]:
        rng = np.random.default_rng([seed, number])
        top, left = 8 * rng.integers(0, (SIZE - CROP) // 8 + 1, size=2)
        crops = images[rng.integers(len(images), size=batch), top : top + CROP, left : left + CROP]
        x = as_tensor(crops).to(DEVICE)
        z = basis(x)
        noisy = z + rng.uniform(0, 0.15) * torch.randn_like(z)
        with autocast():
            mean, logvar = vae.quant_conv(vae.encoder(x)).float().chunk(2, 1)
            y = vae.decoder(vae.post_quant_conv(noisy)).float()
        error = y - x
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        encoder_loss = F.mse_loss(mean, z) + 1e-3 * (logvar + 8).square().mean()
        loss = error.abs().mean() + 0.5 * edges + encoder_loss
        psnr = 10 * torch.log10(4 / error.detach().square().mean())
        return loss, {"psnr": psnr, "encoder": encoder_loss.detach()}

    training.run(step)
    vae.eval().save_pretrained(weights / "vae")
    return vae


def latent_basis(work: Path) -> LatentBasis:
    """The basis, fitted once on 2,000 scenes and kept in `work`."""
    basis, path = LatentBasis(), work / "basis.pt"
    if path.exists():
        basis.load_state_dict(torch.load(path, weights_only=True))
    else:
        basis = LatentBasis.fit(np.stack([s.image for s in compose_many(2000, 0)]))
        torch.save(basis.state_dict(), path)
    return basis
