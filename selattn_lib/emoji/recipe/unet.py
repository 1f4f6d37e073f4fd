"""The UNet of `emoji-sd`: Stable Diffusion v1's layout, trained on the latents of composed scenes."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import PNDMScheduler, UNet2DConditionModel
from torch.nn.parallel import DistributedDataParallel

from ..scenes import SIZE
from ..segmenter import as_tensor
from .autoencoder import LATENT_CHANNELS, latent_basis
from .composing import Scenes, captioned
from .examples import Examples
from .text import WIDTH, train_text_encoder
from .training import DEVICE, RANK, WORLD, Schedule, Training, autocast, begin


def new_unet() -> UNet2DConditionModel:
    """Stable Diffusion v1's layout, 16 cross-attention layers of 8 heads, at 16 x 16 latents and a fraction of the
    channels."""
    return UNet2DConditionModel(
        sample_size=SIZE // 8,
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
    for a caption's few keys two matrix products beat SDPA. For training on a CPU only; same function, same weights."""

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


def timestep_shares(alphas: torch.Tensor) -> torch.Tensor:
    """(timestep) the share of training up to each: timesteps 400 to 949, where shapes arise and the caption tells most,
    come three times as often as others."""
    often = torch.ones_like(alphas)
    often[400:950] = 3
    return often.cumsum(0) / often.sum()


def noised(x: torch.Tensor, alpha: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents noised to the cumulative `alpha` (image), and the v that is to be predicted from them."""
    signal, noise_level = (a[:, None, None, None] for a in (alpha.sqrt(), (1 - alpha).sqrt()))
    return signal * x + noise_level * noise, signal * noise - noise_level * x


def train_unet(
    work: Path,
    weights: Path,
    start: Path | None = None,
    steps: int = 30_700,
    batch: int = 24,
    seconds: float = math.inf,
    count: int = 100_000,
    seed: int = 3,
) -> UNet2DConditionModel:
    """Predict v from noised latents and captions, 10 % of them dropped, timesteps 400 to 949 three times as often as
    others; constant learning rate, then linearly to 0 over the last 30 %; the average of the weights (EMA) is what
    ships. Under `torchrun` each process trains on its own scenes and gradients are averaged."""
    if WORLD > 1:
        dist.init_process_group("gloo")
    torch.manual_seed(seed)
    tokenizer, encoder = train_text_encoder(weights)
    encoder, basis = encoder.to(DEVICE), latent_basis(work).to(DEVICE)

    @torch.no_grad()
    def context(captions: list[str]) -> torch.Tensor:
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        return encoder(ids.to(DEVICE)).last_hidden_state.half()

    def prepare(scenes: dict[str, Any]) -> dict[str, torch.Tensor]:
        latents = basis(as_tensor(scenes["images"].to(DEVICE))).half()
        return {"latents": latents, "context": context(scenes["captions"])}

    examples = Examples(Scenes(count, (seed, RANK), captioned), prepare, work / f"latents_{RANK}.pt")
    empty = context([""])

    unet, ema = new_unet(), new_unet()
    begin(unet, start, "unet")
    ema.load_state_dict(unet.state_dict())
    if DEVICE.type == "cpu":
        unet.set_attn_processor(TrainingAttention())
    else:
        for network in (unet, ema):
            network.to(memory_format=torch.channels_last)
    schedule = Schedule(steps, peak=1e-3, warmup=100, decay=0.3, seconds=seconds)
    training = Training(work / "unet.pt", schedule, unet, key="unet", ema=ema, clip=1.0, betas=(0.9, 0.98))
    log = LossLog(work / "unet.csv", training.start)
    model = DistributedDataParallel(unet) if WORLD > 1 else unet
    if DEVICE.type == "cuda":
        model = torch.compile(model)
    alphas = new_scheduler().alphas_cumprod.to(DEVICE)
    often = timestep_shares(alphas)

    def step(number: int) -> tuple[torch.Tensor, dict[str, Any]]:
        draw = torch.Generator(DEVICE).manual_seed(hash((seed, RANK, number)))
        uniform = partial(torch.rand, batch, generator=draw, device=DEVICE)
        scenes = examples.draw(uniform())
        x = scenes["latents"].float()
        text = torch.where(uniform()[:, None, None] < 0.1, empty, scenes["context"]).float()
        t = torch.searchsorted(often, (torch.arange(batch, device=DEVICE) + uniform()) / batch)  # stratified
        noisy, v = noised(x, alphas[t], torch.randn(x.shape, generator=draw, device=DEVICE))
        with autocast():
            predicted = model(noisy, t, text, return_dict=False)[0]
        loss = F.mse_loss(predicted.float(), v)
        log.add(number, batch * WORLD, loss.detach())
        return loss, {"loss": log.loss, "samples": log.samples, "scenes": examples.made}

    training.run(step)
    if WORLD > 1:
        dist.destroy_process_group()
    return ema


class LossLog:
    """A table of step, samples seen so far and smoothed loss, a line every 20 steps; goes on from step `start`."""

    def __init__(self, path: Path, start: int) -> None:
        before = path.read_text().splitlines(keepends=True) if path.exists() else []
        before = [line for line in before if int(line.split(",")[0]) < start]
        self.path, self.samples = path, 0.0
        self.loss: float | torch.Tensor = 1.0
        if before:
            self.samples, self.loss = map(float, before[-1].split(",")[1:])
        if RANK == 0:
            path.write_text("".join(before))

    def add(self, step: int, samples: int, loss: float | torch.Tensor) -> None:
        """Take in the loss of one step."""
        self.samples += samples
        self.loss = self.loss + (loss - self.loss) * max(0.01, 1 / (step + 1))
        if RANK == 0 and step % 20 == 0:
            with self.path.open("a") as file:
                print(f"{step},{self.samples:.0f},{float(self.loss):.4f}", file=file)
