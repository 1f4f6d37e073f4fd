"""Tiny pipelines with random weights, of the true classes and layouts of every family of models."""

from functools import cache
from string import ascii_letters, ascii_lowercase
from types import SimpleNamespace

import diffusers
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    PRXPipeline,
    PRXPixelPipeline,
    PRXTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanPipeline,
    WanTransformer3DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import format_text_input
from diffusers.pipelines.kolors import tokenizer as kolors_tokenizer
from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
from diffusers.pipelines.prx import pipeline_prx, pipeline_prx_pixel
from tiny_sd import WORDS, build_pipeline, word_tokenizer
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5GemmaConfig,
    T5GemmaEncoderModel,
    T5GemmaModuleConfig,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

from selattn_lib.models.families import REFUSED, find_family

# The tiny model of each line of `supported_models()`, by its builder here.
TINY = {
    "Stable Diffusion 1.x": "sd1",
    "Stable Diffusion 2.x": "sd2",
    "Stable Diffusion XL": "sdxl",
    "Kolors": "kolors",
    "PixArt-alpha": "pixart",
    "PixArt-Sigma": "pixart_sigma",
    "SANA": "sana",
    "Hunyuan-DiT": "hunyuan",
    "Stable Diffusion 3": "sd3",
    "Stable Diffusion 3.5 large": "sd35",
    "FLUX.1": "flux",
    "Chroma": "chroma",
    "FLUX.2 dev": "flux2",
    "FLUX.2 klein": "klein",
    "Qwen-Image": "qwen",
    "Z-Image": "zimage",
    "PRX": "prx",
    "PRX pixel": "prx_pixel",
    "Wan 2.1 14B": "wan",
    "Wan 2.1 1.3B": "wan",
    "Wan 2.2 5B": "wan",
    "CogVideoX 2B": "cogvideo",
    "CogVideoX 5B": "cogvideo_turned",
    "CogVideoX 1.5 5B": "cogvideo15",
    "HunyuanVideo 1.5": "hunyuan_video",
}
CLIP_TOKENS = 20
SHARPER = ("to_q", "to_k", "add_k_proj", "norm_q", "norm_k", "norm_added_k", "txt_kv_proj", "img_qkv_proj")
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)


@cache
def build(name):
    """The pipeline of a builder's name, the same one each time."""
    return globals()[f"build_{name}"]()


def processors_of_models() -> dict[str, set[str]]:
    """Model, or the class of a network that is refused -> the kinds of attention processors of all its layers."""
    networks = {model: find_family(build(name))[1] for model, name in TINY.items()}
    with torch.device("meta"):
        networks |= {name: getattr(diffusers, name)() for name in REFUSED if hasattr(diffusers, name)}
    return {
        model: {type(module.processor).__name__ for module in network.modules() if hasattr(module, "processor")}
        for model, network in networks.items()
    }


def build_sd1() -> StableDiffusionPipeline:
    return build_pipeline()


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


def build_pixart() -> PixArtAlphaPipeline:
    return _pixart(PixArtAlphaPipeline)


def build_pixart_sigma() -> PixArtSigmaPipeline:
    return _pixart(PixArtSigmaPipeline)


def _pixart(kind):
    torch.manual_seed(0)
    return _ready(
        kind(
            tokenizer=_t5_tokenizer(),
            text_encoder=_t5(40),
            vae=_vae(4),
            transformer=PixArtTransformer2DModel(
                sample_size=8,
                num_layers=3,
                num_attention_heads=2,
                attention_head_dim=8,
                cross_attention_dim=16,
                caption_channels=40,
            ),
            scheduler=DDIMScheduler(clip_sample=False),
        )
    )


def build_sana(levels: int = 4) -> SanaPipeline:
    """Of so many levels is the autoencoder."""
    torch.manual_seed(0)
    tokenizer = _gemma_tokenizer()
    return _ready(
        SanaPipeline(
            tokenizer=tokenizer,
            text_encoder=Gemma2Model(
                Gemma2Config(
                    vocab_size=len(tokenizer),
                    hidden_size=24,
                    intermediate_size=32,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    num_key_value_heads=1,
                    head_dim=8,
                )
            ),
            vae=AutoencoderDC(
                latent_channels=4,
                attention_head_dim=2,
                encoder_block_types=("ResBlock",) * levels,
                decoder_block_types=("ResBlock",) * levels,
                encoder_block_out_channels=(8,) * levels,
                decoder_block_out_channels=(8,) * levels,
                encoder_layers_per_block=(1,) * levels,
                decoder_layers_per_block=(1,) * levels,
                encoder_qkv_multiscales=((),) * levels,
                decoder_qkv_multiscales=((),) * levels,
                decoder_norm_types="rms_norm",
                decoder_act_fns="silu",
                upsample_block_type="interpolate",
                downsample_block_type="stride_conv",
            ),
            transformer=SanaTransformer2DModel(
                in_channels=4,
                out_channels=4,
                num_attention_heads=2,
                attention_head_dim=8,
                num_layers=3,
                num_cross_attention_heads=2,
                cross_attention_head_dim=8,
                cross_attention_dim=16,
                caption_channels=24,
                sample_size=8,
                qk_norm="rms_norm_across_heads",
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        )
    )


def build_hunyuan() -> HunyuanDiTPipeline:
    torch.manual_seed(0)
    tokenizer = BertTokenizer(vocab=_numbered(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *_bert_letters()]))
    return _ready(
        HunyuanDiTPipeline(
            vae=_vae(4),
            text_encoder=BertModel(
                BertConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=16,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    intermediate_size=32,
                )
            ),
            tokenizer=tokenizer,
            text_encoder_2=_t5(40),
            tokenizer_2=_t5_tokenizer(),
            transformer=HunyuanDiT2DModel(
                num_attention_heads=2,
                attention_head_dim=8,
                in_channels=4,
                patch_size=2,
                sample_size=8,
                hidden_size=16,
                num_layers=4,
                cross_attention_dim=16,
                cross_attention_dim_t5=40,
                pooled_projection_dim=16,
                activation_fn="gelu-approximate",
            ),
            scheduler=DDIMScheduler(clip_sample=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    )


def build_chroma() -> ChromaPipeline:
    torch.manual_seed(0)
    return _ready(
        ChromaPipeline(
            transformer=ChromaTransformer2DModel(
                in_channels=16,
                num_layers=2,
                num_single_layers=3,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=40,
                axes_dims_rope=(4, 6, 6),
                approximator_num_channels=16,
                approximator_hidden_dim=16,
                approximator_layers=1,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=_vae(4),
            text_encoder=_t5(40),
            tokenizer=_t5_tokenizer(),
        )
    )


def build_klein() -> Flux2KleinPipeline:
    torch.manual_seed(0)
    return _ready(
        Flux2KleinPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=AutoencoderKLFlux2(**VAE, latent_channels=4),
            text_encoder=_qwen3(28),
            tokenizer=_qwen_tokenizer(),
            transformer=_flux2(),
        )
    )


def _flux2() -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 16,
        axes_dims_rope=(4, 4, 4, 4),
    )


def build_flux2() -> Flux2Pipeline:
    """The text encoder reads pictures, too."""
    torch.manual_seed(0)
    tokenizer = _qwen_tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "head_dim": 8}
    text = {**small, "model_type": "mistral", "vocab_size": len(tokenizer), "num_hidden_layers": 31}
    vision = {**small, "model_type": "pixtral", "num_hidden_layers": 1}
    template = (
        "{% for message in messages %}[{{ message.role }}]{% for part in message.content %}{{ part.text }}"
        "{% endfor %}[/{{ message.role }}]{% endfor %}"
    )
    return _ready(
        Flux2Pipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            vae=AutoencoderKLFlux2(**VAE, latent_channels=4),
            text_encoder=Mistral3ForConditionalGeneration(
                Mistral3Config(
                    text_config={**text, "num_key_value_heads": 1},
                    vision_config=vision,
                    image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
                )
            ),
            tokenizer=Processor(tokenizer, template),
            transformer=_flux2(),
        )
    )


class Processor:
    """What the pipeline asks of transformers' processor of pictures and text, which needs torchvision."""

    def __init__(self, tokenizer: Qwen2Tokenizer, template: str) -> None:
        self.tokenizer, tokenizer.chat_template = tokenizer, template

    def apply_chat_template(self, chats: list, **settings):
        return self.tokenizer.apply_chat_template(chats, **settings)


def build_kolors() -> KolorsPipeline:
    torch.manual_seed(0)
    kolors_tokenizer.SPTokenizer = WordPieces  # in place of sentencepiece's
    tokenizer = kolors_tokenizer.ChatGLMTokenizer("")
    glm = {"hidden_size": 32, "ffn_hidden_size": 32, "kv_channels": 16, "num_attention_heads": 2, "num_layers": 2}
    config = ChatGLMConfig(padded_vocab_size=tokenizer.vocab_size, original_rope=True, **glm)
    text_encoder = ChatGLMModel(config, empty_init=False)
    with torch.no_grad():
        for name, weight in text_encoder.named_parameters():
            if "norm" in name:  # which are left empty
                weight.fill_(1)
    return _ready(
        KolorsPipeline(
            vae=_vae(4),
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=UNet2DConditionModel(
                sample_size=8,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                block_out_channels=(10, 20, 40),
                norm_num_groups=5,
                transformer_layers_per_block=(1, 1, 2),
                attention_head_dim=(5, 10, 20),
                use_linear_projection=True,
                cross_attention_dim=24,
                encoder_hid_dim=32,
                encoder_hid_dim_type="text_proj",
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=6 * 8 + 32,
            ),
            scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        )
    )


class WordPieces:
    """What ChatGLM's tokenizer asks of sentencepiece: one token for each word, letters for others."""

    special_tokens = {"[gMASK]": 0, "sop": 1}
    index_special_tokens = {0: "[gMASK]", 1: "sop"}
    pad_id, bos_id, eos_id = 2, 3, 4

    def __init__(self, path: str) -> None:
        self.pieces = ["[gMASK]", "sop", "<unk>", "<s>", "</s>", *(f"\u2581{word}" for word in WORDS)]
        self.pieces += [*ascii_letters, "\u2581", ".", ",", "-"]
        self.n_words = len(self.pieces)

    def tokenize(self, text: str, encode_special_tokens: bool = False) -> list[str]:
        words = [f"\u2581{word}" for word in text.split()]
        return [piece for word in words for piece in ([word] if word in self.pieces else list(word))]

    def convert_token_to_id(self, token: str) -> int:
        return self.pieces.index(token) if token in self.pieces else 2

    def convert_id_to_token(self, number: int) -> str:
        return self.pieces[number]

    def decode_tokens(self, tokens: list[str]) -> str:
        return "".join(tokens).replace("\u2581", " ").strip()


def build_prx() -> PRXPipeline:
    torch.manual_seed(0)
    pipeline_prx.ftfy = pipeline_prx_pixel.ftfy = SimpleNamespace(fix_text=str)  # which need not be installed
    tokenizer = _gemma_tokenizer()
    tokenizer.model_max_length = 20
    encoder = T5GemmaModuleConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    return _ready(
        PRXPipeline(
            transformer=_prx(in_channels=4, context_in_dim=24, patch_size=2),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            text_encoder=T5GemmaEncoderModel(T5GemmaConfig(encoder=encoder, decoder=encoder, is_encoder_decoder=False)),
            tokenizer=tokenizer,
            vae=_vae(4),
        )
    )


def build_prx_pixel() -> PRXPixelPipeline:
    torch.manual_seed(0)
    pipeline_prx.ftfy = pipeline_prx_pixel.ftfy = SimpleNamespace(fix_text=str)
    return _ready(
        PRXPixelPipeline(
            transformer=_prx(
                in_channels=3, context_in_dim=16, patch_size=16, bottleneck_size=16, resolution_embeds=True
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            text_encoder=_qwen3(2, Qwen3Model),
            tokenizer=_qwen_tokenizer(),
            prompt_max_tokens=20,
        )
    )


def _prx(**settings) -> PRXTransformer2DModel:
    return PRXTransformer2DModel(hidden_size=32, num_heads=2, depth=3, axes_dim=[8, 8], **settings)


def build_qwen() -> QwenImagePipeline:
    torch.manual_seed(0)
    tokenizer = _qwen_tokenizer()
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2], "rope_type": "default"},
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    pipe = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=AutoencoderKLQwenImage(
            base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], latents_mean=[0.0] * 4, latents_std=[1.0] * 4
        ),
        text_encoder=Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)),
        tokenizer=tokenizer,
        transformer=QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=3,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 6, 6),
        ),
    )
    # Up to the prompt, as many tokens as this tokenizer makes of it.
    before = pipe.prompt_template_encode.partition("{}")[0]
    pipe.prompt_template_encode_start_idx = len(tokenizer(before).input_ids)
    return _ready(pipe)


def build_zimage() -> ZImagePipeline:
    torch.manual_seed(0)
    pipe = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_vae(4),
        text_encoder=_qwen3(3),
        tokenizer=_qwen_tokenizer(),
        transformer=ZImageTransformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=3,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[4, 6, 6],
            axes_lens=[256, 32, 32],
        ),
    )
    with torch.no_grad():  # which are left empty
        for token in (pipe.transformer.x_pad_token, pipe.transformer.cap_pad_token):
            token.normal_()
    return _ready(pipe)


def build_wan() -> WanPipeline:
    torch.manual_seed(0)
    return _ready(
        WanPipeline(
            tokenizer=_t5_tokenizer(),
            text_encoder=UMT5EncoderModel(
                UMT5Config(vocab_size=len(_t5_tokenizer()), d_model=40, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
            ),
            vae=AutoencoderKLWan(
                base_dim=8,
                z_dim=4,
                dim_mult=[1, 1, 1, 1],
                num_res_blocks=1,
                latents_mean=[0.0] * 4,
                latents_std=[1.0] * 4,
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            transformer=WanTransformer3DModel(
                num_attention_heads=2,
                attention_head_dim=12,
                in_channels=4,
                out_channels=4,
                text_dim=40,
                freq_dim=16,
                ffn_dim=32,
                num_layers=3,
                rope_max_seq_len=32,
            ),
        )
    )


def build_hunyuan_video() -> HunyuanVideo15Pipeline:
    torch.manual_seed(0)
    tokenizer, glyphs = _qwen_tokenizer(), ByT5Tokenizer(extra_ids=0)
    pipe = HunyuanVideo15Pipeline(
        text_encoder=Qwen2_5_VLTextModel(
            Qwen2_5_VLTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=40,
                intermediate_size=32,
                num_hidden_layers=3,
                num_attention_heads=2,
                num_key_value_heads=1,
                rope_scaling={"type": "mrope", "mrope_section": [2, 4, 4], "rope_type": "default"},
            )
        ),
        tokenizer=tokenizer,
        transformer=HunyuanVideo15Transformer3DModel(
            in_channels=9,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=3,
            num_refiner_layers=1,
            text_embed_dim=40,
            text_embed_2_dim=24,
            image_embed_dim=8,
            rope_axes_dim=(4, 6, 6),
        ),
        vae=AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder_2=T5EncoderModel(
            T5Config(vocab_size=len(glyphs), d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        ),
        tokenizer_2=glyphs,
        guider=ClassifierFreeGuidance(guidance_scale=3.0),
    )
    pipe.system_message = "a bear on the"
    [chat] = format_text_input(["bear"], pipe.system_message)
    before = tokenizer.apply_chat_template(chat, tokenize=False).partition("user\nbear")[0] + "user\n"
    pipe.prompt_template_encode_start_idx = len(tokenizer(before).input_ids)
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length, pipe.vision_num_semantic_tokens = 30, 14, 3
    return _ready(pipe)


def build_cogvideo() -> CogVideoXPipeline:
    return _cogvideo()


def build_cogvideo_turned() -> CogVideoXPipeline:
    """Rotary positions, as CogVideoX 5B has."""
    return _cogvideo(use_rotary_positional_embeddings=True)


def build_cogvideo15() -> CogVideoXPipeline:
    """Rotary positions, and two latent frames patched together."""
    return _cogvideo(use_rotary_positional_embeddings=True, patch_size_t=2, patch_bias=False)


def _cogvideo(**settings) -> CogVideoXPipeline:
    torch.manual_seed(0)
    return _ready(
        CogVideoXPipeline(
            tokenizer=_t5_tokenizer(),
            text_encoder=_t5(40),
            vae=AutoencoderKLCogVideoX(
                down_block_types=("CogVideoXDownBlock3D",) * 4,
                up_block_types=("CogVideoXUpBlock3D",) * 4,
                block_out_channels=(8, 8, 8, 8),
                latent_channels=4,
                layers_per_block=1,
                norm_num_groups=2,
            ),
            transformer=CogVideoXTransformer3DModel(
                num_attention_heads=2,
                attention_head_dim=16,
                in_channels=4,
                out_channels=4,
                time_embed_dim=8,
                text_embed_dim=40,
                num_layers=3,
                sample_width=12,
                sample_height=8,
                sample_frames=9,
                max_text_seq_length=12,
                **settings,
            ),
            scheduler=CogVideoXDDIMScheduler(),
        )
    )


def _ready(pipe):
    """For use, with attention that is sharp enough to have something to measure."""
    with torch.no_grad():
        for name, weight in getattr(pipe, "unet", getattr(pipe, "transformer", None)).named_parameters():
            if f".{name}".split(".")[-2] in SHARPER:
                weight.mul_(1 + 3 * torch.rand_like(weight) if weight.ndim == 1 else 4)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 8, 8, 8),
    "norm_num_groups": 4,
}


def _vae(channels: int) -> AutoencoderKL:
    return AutoencoderKL(**VAE, latent_channels=channels, shift_factor=0.1)


def _clip_tokenizer():
    return word_tokenizer(WORDS, characters=ascii_lowercase + "-'")


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
    letters = [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ\u2581,.\"-#'"]
    taken = {word for word, _ in words}
    vocabulary = special + words + [(letter, score) for letter, score in letters if letter not in taken]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


def _t5(width: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=len(_t5_tokenizer()), d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )


def _numbered(pieces: list[str]) -> dict[str, int]:
    return {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}


def _bert_letters() -> list[str]:
    return [start + letter for letter in ascii_letters.lower() + ".,-#" for start in ("", "##")]


def _merged(words: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """What byte pair encoding makes of words, letter by letter: the pieces and the merges."""
    pieces, merges = [], {}
    for word in words:
        for end in range(1, len(word)):
            merges[word[:end], word[end]] = None
            pieces.append(word[: end + 1])
    return pieces, list(merges)


def _qwen_tokenizer(*special: str) -> Qwen2Tokenizer:
    """One token for each word, with a space before it or without."""
    pieces, merges = _merged([start + word for word in WORDS for start in ("\u0120", "")])
    tokenizer = Qwen2Tokenizer(
        vocab=_numbered(["<|endoftext|>", *bytes_to_unicode().values(), *pieces]),
        merges=merges,
        additional_special_tokens=["<|im_start|>", "<|im_end|>", *special],
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def _gemma_tokenizer() -> GemmaTokenizer:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    pieces, merges = _merged([f"\u2581{word}" for word in WORDS])
    letters = [*ascii_letters, *"\u2581.,:;-+'\"()\n0123456789#`"]
    return GemmaTokenizer(vocab=_numbered([*special, *letters, *pieces]), merges=merges)


def _qwen3(layers: int, kind: type = Qwen3ForCausalLM):
    return kind(
        Qwen3Config(
            vocab_size=len(_qwen_tokenizer()),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    )
