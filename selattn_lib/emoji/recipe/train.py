"""The recipe of `emoji-sd`: autoencoder, text encoder, UNet, segmenter; each resumes from its last checkpoint.

    python -m selattn_lib.emoji.train all

On a CPU every process should have one core and one thread (OMP_NUM_THREADS=1): `torchrun --nproc-per-node 2 -m
selattn_lib.emoji.train unet` trains the UNet on two.
"""

import argparse
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ..art import SETS
from ..scenes import compose_many
from ..segmenter import as_tensor
from .segmenter import train_segmenter
from .text import WIDTH, train_text_encoder
from .training import Checkpoint, Muon, set_rate, split_parameters

RGB = 3  # the first latent channels are the mean colour of each 8 x 8 block


LATENT_CHANNELS = 8  # the others, the principal components of what is left of the blocks


RESIDUAL_STD = 0.6  # their standard deviation, below the colours' 1: coarse before fine in the diffusion


def new_autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=128,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )


def blocks(images: np.ndarray) -> torch.Tensor:
    """(image, y, x, rgb) uint8 -> the pixels of every 8 x 8 block, (image, 192, y / 8, x / 8) in [-1, 1]."""
    return F.pixel_unshuffle(as_tensor(images), 8)


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
        pixels = blocks(images).permute(0, 2, 3, 1).flatten(0, 2)
        colour = torch.eye(RGB).repeat_interleave(64, 1) / 64
        residual = pixels - (pixels @ colour.T).repeat_interleave(64, 1)
        axes = torch.linalg.eigh(residual.T @ residual).eigenvectors.flip(1)[:, : LATENT_CHANNELS - RGB]
        matrix = torch.cat([colour, axes.T])
        values = pixels @ matrix.T
        std = values.std(0) / torch.tensor([1.0] * RGB + [RESIDUAL_STD] * (LATENT_CHANNELS - RGB))
        basis.matrix, basis.offset = matrix / std[:, None], values.mean(0) / std
        return basis

    @torch.no_grad()
    def forward(self, images: np.ndarray) -> torch.Tensor:
        """uint8 images -> latents (image, channel, y, x)."""
        return F.conv2d(blocks(images), self.matrix[:, :, None, None], -self.offset)


def train_autoencoder(work: Path, weights: Path, steps: int = 11_000, batch: int = 16, seed: int = 1) -> AutoencoderKL:
    """The encoder learns the basis, the decoder to draw from (slightly noisy) latents; L1 on pixels and gradients."""
    torch.manual_seed(seed)
    vae = new_autoencoder()
    basis = latent_basis(work)
    matrices, others = split_parameters(vae)
    muon = Muon(matrices, lr=2e-3)
    adam = torch.optim.AdamW(others, lr=2e-3, betas=(0.9, 0.98), weight_decay=0)
    checkpoint = Checkpoint(work / "autoencoder.pt", vae=vae, muon=muon, adam=adam)
    start = checkpoint.load()
    images = np.stack([s.image for s in compose_many(6000, seed)]) if start < steps else np.zeros(0)
    bar = tqdm(range(start, steps), initial=start, total=steps, desc="autoencoder", mininterval=5)
    for step in bar:
        rng = np.random.default_rng([seed, step])
        top, left = 8 * rng.integers(0, 9, size=2)  # crops: the networks are local, a quarter will do
        chosen = images[rng.integers(len(images), size=batch), top : top + 64, left : left + 64]
        x, z = as_tensor(chosen), basis(chosen)
        noisy = z + rng.uniform(0, 0.15) * torch.randn_like(z)
        with torch.autocast("cpu", torch.bfloat16):
            mean, logvar = vae.quant_conv(vae.encoder(x)).float().chunk(2, 1)
            y = vae.decoder(vae.post_quant_conv(noisy)).float()
        error = y - x
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        encoder_loss = F.mse_loss(mean, z) + 1e-3 * (logvar + 8).square().mean()
        (error.abs().mean() + 0.5 * edges + encoder_loss).backward()
        set_rate((muon, adam), 2e-3 * min((step + 1) / 50, 1, (steps - step) / (0.5 * steps)))
        for optimiser in (muon, adam):
            optimiser.step()
            optimiser.zero_grad()
        if step % 20 == 0:
            psnr = 10 * torch.log10(4 / error.square().mean())
            bar.set_postfix(psnr=f"{psnr:.1f}", encoder=f"{encoder_loss:.4f}", refresh=False)
        checkpoint.save(step + 1, force=step + 1 == steps)
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


def new_unet() -> UNet2DConditionModel:
    """Stable Diffusion v1's layout, 16 cross-attention layers of 8 heads, at 16 x 16 latents and a fraction of the
    channels."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 96, 128, 160),
        layers_per_block=2,
        attention_head_dim=8,
        cross_attention_dim=WIDTH,
    )


def new_scheduler() -> PNDMScheduler:
    """Stable Diffusion v1's PNDM, but predicting v."""
    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    )


class TrainingAttention:
    """Attention in float32 under a bfloat16 autocast: on a CPU half the time of bfloat16 for these narrow heads, and
    for a caption's few keys two matrix products beat SDPA. For training only; same function, same weights."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2).float()
            for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        with torch.autocast("cpu", enabled=False):
            if k.shape[2] > 32:
                out = F.scaled_dot_product_attention(q, k, v, scale=attn.scale)
            else:
                out = (q * attn.scale @ k.mT).softmax(-1) @ v
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def train_unet(work: Path, weights: Path, steps: int = 30_700, batch: int = 24, count: int = 100_000, seed: int = 3):
    """Predict v from noised latents and captions, 10 % of them dropped, timesteps 400 to 949 three times as often as
    others; constant learning rate, then linearly to 0 over the last 30 % of `steps`; the average of the weights (EMA)
    is what ships. Under `torchrun` each process trains on its own scenes and gradients are averaged."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("gloo")
    torch.manual_seed(seed)
    tokenizer, encoder = train_text_encoder(weights)
    latents, captions = _latents(work, seed, rank, count)
    unique = sorted(set(captions) | {""})
    ids = tokenizer(unique, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        context = torch.cat([encoder(chunk).last_hidden_state for chunk in ids.split(256)])
    caption_row = torch.tensor([unique.index(c) for c in captions])
    empty = unique.index("")

    unet, ema = new_unet(), new_unet()
    unet.set_attn_processor(TrainingAttention())
    ema.load_state_dict(unet.state_dict())
    matrices, others = split_parameters(unet)
    muon = Muon(matrices, lr=1e-3)
    adam = torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.98), weight_decay=0)
    checkpoint = Checkpoint(work / "unet.pt", unet=unet, ema=ema, muon=muon, adam=adam)
    start = checkpoint.load()
    model = DistributedDataParallel(unet) if world > 1 else unet
    alphas = new_scheduler().alphas_cumprod
    often = torch.ones(len(alphas))
    often[400:950] = 3  # where shapes arise, and the caption tells most
    often = often.cumsum(0) / often.sum()
    log = work / "unet.csv"  # step, samples seen so far, smoothed loss
    logged = [line for line in _lines(log) if int(line.split(",")[0]) < start]
    seen, running = (float(n) for n in logged[-1].split(",")[1:]) if logged else (0, 1.0)
    if rank == 0:
        log.write_text("".join(logged))
    bar = tqdm(range(start, steps), initial=start, total=steps, desc="unet", disable=rank > 0, mininterval=5)
    for step in bar:
        draw = torch.Generator().manual_seed(hash((seed, rank, step)))
        rows = torch.randint(len(latents), (batch,), generator=draw)
        x = latents[rows].float()
        dropped = torch.rand(batch, generator=draw) < 0.1
        text = context[torch.where(dropped, empty, caption_row[rows])]
        t = torch.searchsorted(often, (torch.arange(batch) + torch.rand(batch, generator=draw)) / batch)  # stratified
        signal, noise_level = (a[:, None, None, None] for a in (alphas[t].sqrt(), (1 - alphas[t]).sqrt()))
        noise = torch.randn(x.shape, generator=draw)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = model(signal * x + noise_level * noise, t, text, return_dict=False)[0]
        loss = F.mse_loss(predicted.float(), signal * noise - noise_level * x)
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        set_rate((muon, adam), 1e-3 * min((step + 1) / 100, 1, (steps - step) / (0.3 * steps)))
        muon.step()
        adam.step()
        with torch.no_grad():
            decay = min(0.999, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(ema.parameters()), list(unet.parameters()), 1 - decay)
        seen += batch * world
        running += (loss.item() - running) * max(0.01, 1 / (step + 1))
        if rank == 0:
            if step % 20 == 0:
                with log.open("a") as file:
                    print(f"{step},{seen:.0f},{running:.4f}", file=file)
                bar.set_postfix(loss=f"{running:.4f}", samples=f"{seen:.0f}", refresh=False)
            checkpoint.save(step + 1, force=step + 1 == steps)
    if world > 1:
        dist.destroy_process_group()
    return ema


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines(keepends=True) if path.exists() else []


def _latents(work: Path, seed: int, rank: int, count: int) -> tuple[torch.Tensor, list[str]]:
    """Latents (image, channel, y, x) and captions of this process's scenes, made once and kept in `work`."""
    path = work / f"latents_{rank}.pt"
    if not path.exists():
        basis, latents, captions = latent_basis(work), torch.empty(count, LATENT_CHANNELS, 16, 16).half(), []
        for i, scene in enumerate(compose_many(count, seed, rank)):  # their pictures, 5 GB, are not kept
            latents[i] = basis(scene.image[None])[0]
            captions.append(scene.caption)
        torch.save({"latents": latents, "captions": captions}, path)
    saved = torch.load(path, weights_only=True)
    return saved["latents"], saved["captions"]


def export(work: Path, weights: Path) -> None:
    """Write the pipeline that `StableDiffusionPipeline.from_pretrained` loads, weights in float16, and the curve."""
    unet = new_unet()
    unet.load_state_dict(torch.load(work / "unet.pt", weights_only=True)["ema"])
    tokenizer, encoder = train_text_encoder(weights)
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(weights / "vae"), text_encoder=encoder, tokenizer=tokenizer, unet=unet,
        scheduler=new_scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    for part in (pipe.vae, pipe.unet):
        part.register_to_config(_name_or_path="")  # no path of the machine that trained it
    pipe.to(dtype=torch.float16).save_pretrained(weights)
    shutil.copy(work / "unet.csv", weights / "training.csv")
    step, samples, loss = _lines(work / "unet.csv")[-1].strip().split(",")
    sources = "\n".join(f"- `{package}` {version}: {licence}" for package, version, licence in SETS.values())
    (weights / "README.md").write_text(CARD.format(step=step, samples=int(samples), loss=loss, sources=sources))


CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
license: cc-by-4.0
---

# emoji-sd

A latent diffusion model with the layout of Stable Diffusion v1 (16 cross-attention layers of 8 heads), small enough
for a laptop, trained from nothing on composed scenes of emoji: 128 x 128 pixels, captions such as "photo of a bear".

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipe("photo of a bear", guidance_scale=3).images[0]

- **For**: studying cross-attention heads where the true mask of every object is known. Results illustrate a method;
  they do not replicate Stable Diffusion's.
- **Not for**: pictures of anything else. It knows the words of its captions only, and draws emoji, not photographs.
- **Training**: {step} steps, {samples:,} samples, loss (v-prediction, mean squared error) {loss} at the end;
  `python -m selattn_lib.emoji.train all`.
- **Text encoder**: distilled from all-MiniLM-L6-v2 (Apache-2.0).
- **Ambiguous words, planted**: mouse (animal, device), bat (animal, cricket), chicken (animal, food), glasses (to wear,
  to drink from).

Drawings it was trained on:

{sources}
"""


STAGES: dict[str, Callable[..., Any]] = {
    "autoencoder": train_autoencoder,
    "unet": train_unet,
    "segmenter": train_segmenter,
}


def main() -> None:
    """The whole recipe, or one stage of it; started again, each goes on from its last checkpoint."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("stage", choices=["all", *STAGES, "export"])
    parser.add_argument("--work", type=Path, default=Path("runs/training"), help="checkpoints and latents")
    parser.add_argument("--weights", type=Path, default=Path("runs/emoji-sd"), help="the finished pipeline")
    parser.add_argument("--steps", type=int, help="of the one stage; default: as shipped")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    steps = {} if given.steps is None else {"steps": given.steps}
    for name, train in STAGES.items():
        if given.stage in (name, "all"):
            train(given.work, given.weights, **steps)
    if given.stage in ("export", "all"):
        export(given.work, given.weights)


if __name__ == "__main__":
    main()
