"""Models whose heads attend to the text alone: cross-attention, with a softmax over words."""

from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import HunyuanDiT2DModel, PixArtTransformer2DModel, SanaTransformer2DModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.utils import is_bs4_available, is_ftfy_available

from .base import Call, Family, Model, Outputs, QueryKey, Sizes, Text, TextAttention, own_encoding, split_heads

N_TOKENS = 300  # that the longer text encoders read
XL = {  # the numbers of Stable Diffusion XL's blocks, layers and heads
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
}


class CrossAttention(Family):
    """Cross-attention in a module "attn2" of every block of a transformer."""

    captured = "cross-attention of every block"
    blocks: ClassVar[tuple[str, ...]] = ("cross",)
    masked = True

    def find(self, network: Any) -> Iterator[TextAttention]:
        for i, block in enumerate(network.transformer_blocks):
            yield TextAttention("cross", f"transformer_blocks.{i}.attn2", block.attn2, network.config.patch_size)

    def encode(self, pipe: Any, prompts: list[str], n_tokens: int) -> torch.Tensor | None:
        return own_encoding(pipe, prompts, n_tokens)

    def call(self, arguments: dict[str, Any]) -> Call:
        return Call(arguments["hidden_states"], [arguments["encoder_hidden_states"]], arguments["timestep"])

    def query_key(self, attention: Any, seen: Outputs, sizes: Sizes, options: dict[str, Any]) -> QueryKey:
        query, key = (split_heads(seen[name], attention.heads) for name in self.watched(attention))
        return query, key

    def example(self, network: Any, rows: int, zeros: Callable[..., torch.Tensor]) -> dict[str, Any]:
        config = network.config
        return {
            "hidden_states": zeros(rows, config.in_channels, config.sample_size, config.sample_size),
            "encoder_hidden_states": zeros(rows, N_TOKENS, config.caption_channels or config.cross_attention_dim),
            "timestep": zeros(rows),
        }


class UNet(CrossAttention):
    """Stable Diffusion 1.x, 2.x and XL, and Kolors: cross-attention in down, mid and up blocks.

    In XL both text encoders see the same positions, so that the first one's tokens locate the words (the second's
    in the refiner, which has no first).
    """

    models = {
        "Stable Diffusion 1.x": Model("StableDiffusionPipeline"),
        "Stable Diffusion 2.x": Model(
            "StableDiffusionPipeline",
            {"attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
            "stabilityai/stable-diffusion-2-1",
        ),
        "Stable Diffusion XL": Model("StableDiffusionXLPipeline", XL, "stabilityai/stable-diffusion-xl-base-1.0"),
        "Kolors": Model(
            "KolorsPipeline",
            {**XL, "encoder_hid_dim": 4096, "encoder_hid_dim_type": "text_proj"},
            "Kwai-Kolors/Kolors-diffusers",
        ),
    }
    captured = "cross-attention in down, mid and up blocks"
    part, network = "unet", UNet2DConditionModel
    blocks = ("down", "mid", "up")

    def find(self, network: Any) -> Iterator[TextAttention]:
        deepest = len(network.down_blocks) - 1
        for name, module in network.named_modules():
            if module.is_cross_attention if isinstance(module, Attention) else name.endswith("attn2"):
                block, _, rest = name.partition("_block")
                number = int(rest.split(".")[1]) if block in ("down", "up") else 0
                level = {"down": number, "up": deepest - number}.get(block, deepest)
                yield TextAttention(block, name, module, 2**level)

    def problem(self, layer: TextAttention) -> str | None:
        attention = layer.attention
        if isinstance(attention, Attention):
            if layer.block not in self.blocks:
                return "is in none of the down, mid and up blocks"
            if attention.added_kv_proj_dim is not None:
                return "has added key and value projections"
            if attention.norm_cross is not None or attention.norm_q is not None or attention.norm_k is not None:
                return "normalises its queries, its keys or the text"
        return super().problem(layer)

    def texts(self, pipe: Any) -> list[Text]:
        if _is_kolors(pipe):
            framed = lambda prompt: pipe.tokenizer(prompt).input_ids  # noqa: E731
            return [Text(pipe.tokenizer, pipe.text_encoder, None, framed=framed)]
        for suffix in ("", "_2"):
            if tokenizer := getattr(pipe, f"tokenizer{suffix}", None):
                encoder = getattr(pipe, f"text_encoder{suffix}", None)
                early = getattr(pipe, "text_encoder_2", None) is not None
                return [Text(tokenizer, encoder, tokenizer.model_max_length, f"prompt{suffix}", early)]
        return []

    def encode(self, pipe: Any, prompts: list[str], n_tokens: int) -> torch.Tensor | None:
        return own_encoding(pipe, prompts, n_tokens) if _is_kolors(pipe) else None

    def call(self, arguments: dict[str, Any]) -> Call:
        return Call(arguments["sample"], [arguments["encoder_hidden_states"]], arguments["timestep"])

    def watched(self, attention: Any) -> tuple[str, ...]:
        return "to_q", "to_k"

    def example(self, network: Any, rows: int, zeros: Callable[..., torch.Tensor]) -> dict[str, Any]:
        config, more = network.config, {}
        if config.addition_embed_type == "text_time":  # Stable Diffusion XL
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            more = {"text_embeds": zeros(rows, pooled), "time_ids": zeros(rows, 6)}
        projected = config.encoder_hid_dim_type == "text_proj"
        return {
            "sample": zeros(rows, config.in_channels, config.sample_size, config.sample_size),
            "encoder_hidden_states": zeros(
                rows, 77, config.encoder_hid_dim if projected else config.cross_attention_dim
            ),
            "timestep": 500,
            "added_cond_kwargs": more,
        }

    def project(self, network: Any, text: torch.Tensor) -> torch.Tensor:
        projects = network.config.encoder_hid_dim_type == "text_proj"
        return network.encoder_hid_proj.forward(text) if projects else text


class PixArt(CrossAttention):
    """PixArt-alpha and PixArt-Sigma: the text is T5's tokens, its padding masked."""

    models = {"PixArt-alpha": Model("PixArtAlphaPipeline"), "PixArt-Sigma": Model("PixArtSigmaPipeline")}
    network = PixArtTransformer2DModel

    def texts(self, pipe: Any) -> list[Text]:
        cleaned = is_bs4_available() and is_ftfy_available()

        def framed(prompt: str) -> list[int]:
            return pipe.tokenizer(pipe._text_preprocessing(prompt, clean_caption=cleaned)[0]).input_ids

        return [Text(pipe.tokenizer, pipe.text_encoder, None, framed=framed)]

    def example(self, network: Any, rows: int, zeros: Callable[..., torch.Tensor]) -> dict[str, Any]:
        more = (
            {"resolution": zeros(rows, 2), "aspect_ratio": zeros(rows, 1)} if network.use_additional_conditions else {}
        )
        return {**super().example(network, rows, zeros), "added_cond_kwargs": more}

    def project(self, network: Any, text: torch.Tensor) -> torch.Tensor:
        return text if network.caption_projection is None else network.caption_projection.forward(text)


class Sana(CrossAttention):
    """SANA: the attention from image to text is a softmax, its padding masked; the image's own is linear, and of no
    concern here. The text is Gemma's tokens, the end of what it reads after a long instruction."""

    models = {"SANA": Model("SanaPipeline")}
    network = SanaTransformer2DModel

    def texts(self, pipe: Any) -> list[Text]:
        instruction = "\n".join(_instruction(pipe))

        def framed(prompt: str) -> list[int]:
            return pipe.tokenizer(instruction + pipe._text_preprocessing(prompt)[0]).input_ids

        return [Text(pipe.tokenizer, pipe.text_encoder, None, framed=framed)]

    def encode(self, pipe: Any, prompts: list[str], n_tokens: int) -> torch.Tensor | None:
        return own_encoding(pipe, prompts, n_tokens, complex_human_instruction=_instruction(pipe))

    def project(self, network: Any, text: torch.Tensor) -> torch.Tensor:
        return network.caption_norm.forward(network.caption_projection.forward(text))

    def keys(self, attention: Any, text: torch.Tensor) -> torch.Tensor:
        keys = attention.to_k.forward(text)
        return keys if attention.norm_k is None else attention.norm_k.forward(keys)


class HunyuanDiT(CrossAttention):
    """Hunyuan-DiT: queries and keys are normalised, queries have rotary positions. The text is BERT's tokens, then
    T5's; in place of padding there is a learned embedding."""

    models = {
        "Hunyuan-DiT": Model(
            "HunyuanDiTPipeline",
            {"num_layers": 40, "patch_size": 2, "in_channels": 4, "sample_size": 128, "hidden_size": 1408},
            "Tencent-Hunyuan/HunyuanDiT-v1.2-Diffusers",
        )
    }
    network = HunyuanDiT2DModel

    def find(self, network: Any) -> Iterator[TextAttention]:
        for i, block in enumerate(network.blocks):
            yield TextAttention("cross", f"blocks.{i}.attn2", block.attn2, network.config.patch_size)

    def texts(self, pipe: Any) -> list[Text]:
        return [
            Text(pipe.tokenizer, pipe.text_encoder, pipe.transformer.config.text_len),
            Text(pipe.tokenizer_2, pipe.text_encoder_2, pipe.transformer.config.text_len_t5),
        ]

    def encode(self, pipe: Any, prompts: list[str], n_tokens: int) -> torch.Tensor | None:
        lengths = pipe.transformer.config.text_len, pipe.transformer.config.text_len_t5
        return _one_after_another([own_encoding(pipe, prompts, n, text_encoder_index=i) for i, n in enumerate(lengths)])

    def call(self, arguments: dict[str, Any]) -> Call:
        texts = [arguments["encoder_hidden_states"], arguments["encoder_hidden_states_t5"]]
        return Call(arguments["hidden_states"], texts, arguments["timestep"], join=_one_after_another)

    def query_key(self, attention: Any, seen: Outputs, sizes: Sizes, options: dict[str, Any]) -> QueryKey:
        outputs = (seen[name] for name in self.watched(attention))
        query, key = (x if x.ndim == 4 else split_heads(x, attention.heads) for x in outputs)
        return apply_rotary_emb(query, options["image_rotary_emb"]), key

    def example(self, network: Any, rows: int, zeros: Callable[..., torch.Tensor]) -> dict[str, Any]:
        config = network.config
        side = config.sample_size // config.patch_size
        return {
            "hidden_states": zeros(rows, config.in_channels, config.sample_size, config.sample_size),
            "timestep": zeros(rows),
            "encoder_hidden_states": zeros(rows, config.text_len, config.cross_attention_dim),
            "text_embedding_mask": zeros(rows, config.text_len),
            "encoder_hidden_states_t5": zeros(rows, config.text_len_t5, config.cross_attention_dim_t5),
            "text_embedding_mask_t5": zeros(rows, config.text_len_t5),
            "image_meta_size": zeros(rows, 6),
            "style": zeros(rows).long(),
            "image_rotary_emb": (zeros(side * side, network.inner_dim // network.num_heads),) * 2,
        }

    def project(self, network: Any, text: torch.Tensor) -> torch.Tensor:
        first, width, width_t5 = (
            network.config.text_len,
            network.config.cross_attention_dim,
            network.config.cross_attention_dim_t5,
        )
        t5 = network.text_embedder.forward(text[:, first:, :width_t5])
        return torch.cat([text[:, :first, :width], t5], dim=1)

    def keys(self, attention: Any, text: torch.Tensor) -> torch.Tensor:
        keys = attention.to_k.forward(text).unflatten(-1, (attention.heads, -1))
        return (keys if attention.norm_k is None else attention.norm_k.forward(keys)).flatten(-2)


def _one_after_another(texts: Any) -> torch.Tensor:
    """(row, token, channel) of several texts (row, token, channel), those with fewer channels padded."""
    width = max(text.shape[-1] for text in texts)
    return torch.cat([F.pad(text, (0, width - text.shape[-1])) for text in texts], dim=1)


def _is_kolors(pipe: Any) -> bool:
    """Whether the text encoder is a language model, not CLIP."""
    return type(pipe).__name__.startswith("Kolors")


def _instruction(pipe: Any) -> list[str]:
    """What SANA's text encoder reads before the prompt unless one says otherwise."""
    return signature(pipe.__call__).parameters["complex_human_instruction"].default
