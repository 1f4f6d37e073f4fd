"""Tiny pipelines with random weights, of the true classes and layouts of SD 2, SDXL, SD3, SD3.5 and FLUX.1."""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tiny_sd import WORDS, word_tokenizer
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

CLIP_TOKENS = 20
SHARPER = ("to_q", "to_k", "add_k_proj", "norm_q", "norm_k", "norm_added_k")


def build_sd2() -> StableDiffusionPipeline:
    """5, 10, 20, 20 heads by level, linear projections."""
    torch.manual_seed(0)
    return _ready(
        StableDiffusionPipeline(
            vae=_vae(4),
            text_encoder=_clip(CLIPTextModel, 16),
            tokenizer=_clip_tokenizer(),
            unet=UNet2DConditionModel(
                sample_size=8,
                block_out_channels=(20, 40, 80, 80),
                norm_num_groups=5,
                attention_head_dim=(5, 10, 20, 20),
                use_linear_projection=True,
                upcast_attention=True,
                cross_attention_dim=16,
            ),
            scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def build_sdxl() -> StableDiffusionXLPipeline:
    """Two text encoders, and SDXL's own numbers of blocks, layers and heads."""
    torch.manual_seed(0)
    return _ready(
        StableDiffusionXLPipeline(
            vae=_vae(4),
            text_encoder=_clip(CLIPTextModel, 16),
            text_encoder_2=_clip(CLIPTextModelWithProjection, 24),
            tokenizer=_clip_tokenizer(),
            tokenizer_2=_clip_tokenizer(),
            unet=UNet2DConditionModel(
                sample_size=8,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                block_out_channels=(10, 20, 40),
                norm_num_groups=5,
                transformer_layers_per_block=(1, 2, 10),
                attention_head_dim=(5, 10, 20),
                use_linear_projection=True,
                cross_attention_dim=16 + 24,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 24,
            ),
            scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
            add_watermarker=False,
        )
    )


def build_sd3() -> StableDiffusion3Pipeline:
    return _sd3()


def build_sd35() -> StableDiffusion3Pipeline:
    """Normalised queries and keys, and a second attention on the image alone in some blocks, as SD3.5 medium has."""
    return _sd3(qk_norm="rms_norm", dual_attention_layers=(0, 1))


def _sd3(**settings) -> StableDiffusion3Pipeline:
    torch.manual_seed(0)
    return _ready(
        StableDiffusion3Pipeline(
            transformer=SD3Transformer2DModel(
                sample_size=8,
                in_channels=4,
                out_channels=4,
                num_layers=3,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=40,
                caption_projection_dim=16,
                pooled_projection_dim=32,
                pos_embed_max_size=16,
                **settings,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=_vae(4),
            text_encoder=_clip(CLIPTextModelWithProjection, 16),
            tokenizer=_clip_tokenizer(),
            text_encoder_2=_clip(CLIPTextModelWithProjection, 16),
            tokenizer_2=_clip_tokenizer(),
            text_encoder_3=_t5(40),
            tokenizer_3=_t5_tokenizer(),
        )
    )


def build_flux() -> FluxPipeline:
    torch.manual_seed(0)
    return _ready(
        FluxPipeline(
            transformer=FluxTransformer2DModel(
                in_channels=16,
                num_layers=2,
                num_single_layers=3,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=40,
                pooled_projection_dim=16,
                guidance_embeds=True,
                axes_dims_rope=(4, 6, 6),
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=_vae(4),
            text_encoder=_clip(CLIPTextModel, 16),
            tokenizer=_clip_tokenizer(),
            text_encoder_2=_t5(40),
            tokenizer_2=_t5_tokenizer(),
        )
    )


def _ready(pipe):
    """For use, with attention that is sharp enough to have something to measure."""
    with torch.no_grad():
        for name, weight in getattr(pipe, "unet", getattr(pipe, "transformer", None)).named_parameters():
            if name.split(".")[-2] in SHARPER:
                weight.mul_(1 + 3 * torch.rand_like(weight) if weight.ndim == 1 else 4)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _vae(channels: int) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=channels,
        shift_factor=0.1,
    )


def _clip_tokenizer():
    return word_tokenizer(WORDS)


def _clip(kind: type, width: int):
    tokenizer = _clip_tokenizer()
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=32,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CLIP_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _t5_tokenizer() -> T5Tokenizer:
    """One token for each word; other words fall into letters."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = [(f"\u2581{word}", -1.0) for word in WORDS]
    letters = [(letter, -5.0) for letter in 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ\u2581,."-#']
    taken = {word for word, _ in words}
    vocabulary = special + words + [(letter, score) for letter, score in letters if letter not in taken]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


def _t5(width: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=len(_t5_tokenizer()), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
