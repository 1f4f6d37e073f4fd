"""The UNet of `emoji-sd`: Stable Diffusion v1's layout, trained on the latents of composed scenes."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from diffusers import PNDMScheduler, UNet2DConditionModel
from torch.nn.parallel import DistributedDataParallel

from ..scenes import compose_many
from .autoencoder import LATENT_CHANNELS, latent_basis
from .text import WIDTH, train_text_encoder
from .training import RANK, WORLD, Schedule, Training, autocast


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


def train_unet(
    work: Path, weights: Path, steps: int = 30_700, batch: int = 24, count: int = 100_000, seed: int = 3
) -> UNet2DConditionModel:
    """Predict v from noised latents and captions, 10 % of them dropped, timesteps 400 to 949 three times as often as
    others; constant learning rate, then linearly to 0 over the last 30 % of `steps`; the average of the weights (EMA)
    is what ships. Under `torchrun` each process trains on its own scenes and gradients are averaged."""
    if WORLD > 1:
        dist.init_process_group("gloo")
    torch.manual_seed(seed)
    tokenizer, encoder = train_text_encoder(weights)
    latents, captions = _latents(work, seed, RANK, count)
    unique = sorted(set(captions) | {""})
    ids = tokenizer(unique, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        context = torch.cat([encoder(chunk).last_hidden_state for chunk in ids.split(256)])
    caption_row = torch.tensor([unique.index(caption) for caption in captions])
    empty = unique.index("")

    unet, ema = new_unet(), new_unet()
    unet.set_attn_processor(TrainingAttention())
    ema.load_state_dict(unet.state_dict())
    schedule = Schedule(steps, peak=1e-3, warmup=100, decay=0.3)
    training = Training(work / "unet.pt", schedule, unet, key="unet", ema=ema, clip=1.0, betas=(0.9, 0.98))
    log = LossLog(work / "unet.csv", training.start)
    model = DistributedDataParallel(unet) if WORLD > 1 else unet
    alphas = new_scheduler().alphas_cumprod
    often = torch.ones(len(alphas))
    often[400:950] = 3  # where shapes arise, and the caption tells most
    often = often.cumsum(0) / often.sum()

    def step(number: int) -> tuple[torch.Tensor, dict[str, float]]:
        draw = torch.Generator().manual_seed(hash((seed, RANK, number)))
        rows = torch.randint(len(latents), (batch,), generator=draw)
        x = latents[rows].float()
        dropped = torch.rand(batch, generator=draw) < 0.1
        text = context[torch.where(dropped, empty, caption_row[rows])]
        t = torch.searchsorted(often, (torch.arange(batch) + torch.rand(batch, generator=draw)) / batch)  # stratified
        signal, noise_level = (a[:, None, None, None] for a in (alphas[t].sqrt(), (1 - alphas[t]).sqrt()))
        noise = torch.randn(x.shape, generator=draw)
        with autocast():
            predicted = model(signal * x + noise_level * noise, t, text, return_dict=False)[0]
        loss = F.mse_loss(predicted.float(), signal * noise - noise_level * x)
        log.add(number, batch * WORLD, loss.item())
        return loss, {"loss": log.loss, "samples": log.samples}

    training.run(step)
    if WORLD > 1:
        dist.destroy_process_group()
    return ema


class LossLog:
    """A table of step, samples seen so far and smoothed loss, a line every 20 steps; goes on from step `start`."""

    def __init__(self, path: Path, start: int) -> None:
        before = path.read_text().splitlines(keepends=True) if path.exists() else []
        before = [line for line in before if int(line.split(",")[0]) < start]
        self.path, self.samples, self.loss = path, 0.0, 1.0
        if before:
            self.samples, self.loss = map(float, before[-1].split(",")[1:])
        if RANK == 0:
            path.write_text("".join(before))

    def add(self, step: int, samples: int, loss: float) -> None:
        """Take in the loss of one step."""
        self.samples += samples
        self.loss += (loss - self.loss) * max(0.01, 1 / (step + 1))
        if RANK == 0 and step % 20 == 0:
            with self.path.open("a") as file:
                print(f"{step},{self.samples:.0f},{self.loss:.4f}", file=file)


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
