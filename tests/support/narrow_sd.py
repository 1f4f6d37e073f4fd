"""A Stable Diffusion v1, at full size or as narrow as it can be, and a Grounded-SAM, to run the paper's study on."""

import string
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tiny_sam import tiny_grounded_sam
from tiny_sd import WORDS, word_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel

UNET = {"sample_size": 64, "cross_attention_dim": 768}  # the other defaults of diffusers are Stable Diffusion v1's
NARROW_UNET = {
    "sample_size": 16,
    "cross_attention_dim": 32,
    "block_out_channels": (16, 32, 32, 32),
    "norm_num_groups": 8,
}
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}  # ViT-L/14
NARROW_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 512}
NARROW_VAE = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "sample_size": 128}


def save_models(folder: Path, *, narrow: bool) -> list[str]:
    """Save a Stable Diffusion v1, at full size or as narrow as it can be, and a Grounded-SAM in `folder`, and return
    the arguments of `selattn` that run the paper's study on them, with 2 words x 1 seed x 2 steps."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer(WORDS, length=77, characters=string.ascii_lowercase + string.digits + string.punctuation)
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = CLIPTextConfig(vocab_size=len(tokenizer), **(NARROW_TEXT if narrow else TEXT), **ends)
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            **(NARROW_VAE if narrow else VAE),
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(**(NARROW_UNET if narrow else UNET)),
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder / "model")
    tiny_grounded_sam(folder / "grounded_sam")
    models = ["--model", str(folder / "model"), "--segmenter", str(folder / "grounded_sam")]
    size = ["--words", "2", "--seeds", "1", "--steps", "2", "--hrv-images", "2", "--batch", "1"]
    return ["reproduce", *models, *size, "--device", "cpu", "--out", str(folder / "reproduced")]
