"""The finished pipeline: a folder that diffusers loads, with its card."""

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from ..art import SETS
from .text import train_text_encoder
from .unet import new_scheduler, new_unet


def export(work: Path, weights: Path) -> None:
    """Write the pipeline that `StableDiffusionPipeline.from_pretrained` loads, weights in float16, and the curve."""
    unet = new_unet()
    unet.load_state_dict(torch.load(work / "unet.pt", map_location="cpu", weights_only=True)["ema"])
    tokenizer, encoder = train_text_encoder(weights)
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(weights / "vae"), text_encoder=encoder, tokenizer=tokenizer, unet=unet,
        scheduler=new_scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    for part in (pipe.vae, pipe.unet):
        part.register_to_config(_name_or_path="")  # no path of the machine that trained it
    pipe.to(dtype=torch.float16).save_pretrained(weights)
    shutil.copy(work / "unet.csv", weights / "training.csv")
    step, samples, loss = (work / "unet.csv").read_text().split()[-1].split(",")
    sources = "\n".join(f"- `{package}` {version}: {licence}" for package, version, licence in SETS.values())
    (weights / "README.md").write_text(CARD.format(step=step, samples=int(samples), loss=loss, sources=sources))


CARD = """---
library_name: diffusers
pipeline_tag: text-to-image
license: cc-by-4.0
---

# emoji-sd

A latent diffusion model with the layout of Stable Diffusion v1 (16 cross-attention layers of 8 heads), small enough
for a laptop, trained from nothing on composed scenes of emoji: 256 x 256 pixels, captions such as "photo of a bear".

    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipe("photo of a bear", guidance_scale=3).images[0]

- **For**: studying cross-attention heads where the true mask of every object is known. Results illustrate a method;
  they do not replicate Stable Diffusion's.
- **Not for**: pictures of anything else. It knows the words of its captions only, and draws emoji, not photographs.
- **Training**: {step} steps, {samples:,} samples, loss (v-prediction, mean squared error) {loss} at the end;
  `python -m selattn_lib.emoji.recipe.train all`.
- **Text encoder**: distilled from all-MiniLM-L6-v2 (Apache-2.0).
- **Ambiguous words, planted**: mouse (animal, device), bat (animal, cricket), chicken (animal, food), glasses (to wear,
  to drink from).

Drawings it was trained on:

{sources}
"""
