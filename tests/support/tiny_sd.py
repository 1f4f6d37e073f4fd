"""A Stable Diffusion pipeline of the true v1 layout, 16 layers x 8 heads, tiny and with random weights."""

from string import ascii_lowercase

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WORDS = "a photo of bear cat dog and on the desk mouse blue lamp oak tree".split()


def build_pipeline() -> StableDiffusionPipeline:
    torch.manual_seed(0)
    tokenizer = word_tokenizer(WORDS)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=20,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32, 32, 32),
        norm_num_groups=8,
        attention_head_dim=8,  # as in SD v1, the number of heads
        cross_attention_dim=32,
    )
    with torch.no_grad():  # untrained attention is all but uniform: sharpen it, to have something to measure
        for name, weight in unet.named_parameters():
            if "attn2.to_q" in name or "attn2.to_k" in name:
                weight.mul_(4)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
    )
    scheduler = PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
    )
    pipe = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def count_hooks(pipe: StableDiffusionPipeline) -> int:
    """Number of forward hooks and pre-hooks anywhere in the pipeline."""
    models = (pipe.unet, pipe.text_encoder, pipe.vae)
    modules = [module for model in models for module in model.modules()]
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def word_tokenizer(words: list[str], length: int = 20, characters: str = ascii_lowercase) -> CLIPTokenizer:
    """One token for each word; other words of these characters fall into several. At most `length` in a prompt."""
    letters = list(characters)
    pieces = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    merges = []
    for word in words:
        symbols = [*word[:-1], word[-1] + "</w>"]
        left = symbols[0]
        for right in symbols[1:]:
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
            if left not in pieces:
                pieces.append(left)
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)
    assert all(len(tokenizer(word, add_special_tokens=False).input_ids) == 1 for word in words)
    return tokenizer


def generate(pipe, prompt="photo of a bear", seed=0, steps=2, **settings):
    """Run the pipeline, each image from its own seed; latents, or what `output_type` says."""
    batch = 1 if isinstance(prompt, str) else len(prompt)
    batch *= settings.get("num_images_per_prompt", 1)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(batch)]
    settings = {"height": 64, "width": 64, "output_type": "latent", **settings}
    return pipe(prompt=prompt, generator=generators, num_inference_steps=steps, **settings).images
