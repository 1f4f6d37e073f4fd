"""Models that draw clips: every head has a map (frame, y, x).

A frame of the maps is a latent frame, or several that the network patches together, and each covers some of the clip's
pictures: the autoencoder makes one picture of the first latent, and four of every other.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import CogVideoXTransformer3DModel, HunyuanVideo15Transformer3DModel, WanTransformer3DModel
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_wan import WanAttention
from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import format_text_input
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch.nn.utils.rnn import pad_sequence

from .base import Call, Model, Outputs, QueryKey, Sizes, Text, TextAttention, own_encoding, split_heads
from .cross import CrossAttention
from .joint import JointAttention

WAN_2_1, WAN_2_2 = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
COGVIDEOX, COGVIDEOX_1_5 = "THUDM/CogVideoX-5b", "THUDM/CogVideoX1.5-5B"
CLIPS = "words would have to pass through the blocks beside a clip's, for which it has no class here yet"
BY_FRAME = "the clip's rows and the text's columns of the joint softmax, frame by frame"


class Wan(CrossAttention):
    """Wan 2.1, and the model of Wan 2.2 that has one network: normalised queries and keys. The text is UMT5's tokens,
    with zeros in place of padding; the negative prompt comes in calls of its own, which do not count."""

    models = {
        "Wan 2.1 14B": Model("WanPipeline"),
        "Wan 2.1 1.3B": Model("WanPipeline", {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}, WAN_2_1),
        "Wan 2.2 5B": Model("WanPipeline", {"num_attention_heads": 24, "num_layers": 30, "in_channels": 48}, WAN_2_2),
    }
    captured = "cross-attention of every block, frame by frame"
    network = WanTransformer3DModel
    attention = (WanAttention,)
    video = True

    def find(self, network: Any) -> Iterator[TextAttention]:
        for i, block in enumerate(network.blocks):
            yield TextAttention("cross", f"blocks.{i}.attn2", block.attn2, network.config.patch_size[1])

    def problem(self, layer: TextAttention) -> str | None:
        if layer.attention.add_k_proj is not None:
            return "attends to a picture beside the text"
        return super().problem(layer)

    def texts(self, pipe: Any) -> list[Text]:
        if getattr(pipe, "transformer_2", None) is not None:
            raise ValueError(
                f"This {type(pipe).__name__} draws with two networks in turn, whose heads are not the same: maps of "
                "one would leave out a part of the steps. Expected one network, as Wan 2.1 and Wan 2.2 5B have, or a "
                "pipeline of one of the two: WanPipeline(**{**pipe.components, 'transformer_2': None})."
            )

        def framed(prompt: str) -> list[int]:
            return pipe.tokenizer(prompt_clean(prompt)).input_ids

        return [Text(pipe.tokenizer, pipe.text_encoder, None, framed=framed)]

    def project(self, network: Any, text: torch.Tensor) -> torch.Tensor:
        return network.condition_embedder.text_embedder.forward(text)

    def keys(self, attention: Any, text: torch.Tensor) -> torch.Tensor:
        return attention.norm_k.forward(attention.to_k.forward(text))

    def example(self, network: Any, rows: int, zeros: Callable[..., torch.Tensor]) -> dict[str, Any]:
        config = network.config
        return {
            "hidden_states": zeros(rows, config.in_channels, 21, 60, 104),  # 81 pictures of 480 x 832
            "encoder_hidden_states": zeros(rows, 512, config.text_dim),
            "timestep": zeros(rows),
        }


class CogVideoX(JointAttention):
    """CogVideoX and CogVideoX 1.5, which patches two latent frames together. The text is T5's tokens, padding
    included."""

    models = {
        "CogVideoX 2B": Model("CogVideoXPipeline"),
        "CogVideoX 5B": Model("CogVideoXPipeline", {"num_attention_heads": 48, "num_layers": 42}, COGVIDEOX),
        "CogVideoX 1.5 5B": Model(
            "CogVideoXPipeline",
            {"num_attention_heads": 48, "num_layers": 42, "patch_size_t": 2, "patch_bias": False},
            COGVIDEOX_1_5,
        ),
    }
    captured, unscored = BY_FRAME, CLIPS
    network = CogVideoXTransformer3DModel
    video = True

    def find(self, network: Any) -> Iterator[TextAttention]:
        for i, block in enumerate(network.transformer_blocks):
            yield TextAttention("joint", f"transformer_blocks.{i}.attn1", block.attn1, network.config.patch_size)

    def texts(self, pipe: Any) -> list[Text]:
        return [Text(pipe.tokenizer, pipe.text_encoder, None)]

    def call(self, arguments: dict[str, Any]) -> Call:
        return Call(arguments["hidden_states"], [arguments["encoder_hidden_states"]], arguments["timestep"])

    def frames(self, pipe: Any, sample: torch.Tensor, n_pictures: int | None) -> tuple[int, ...]:
        config, factor, latents = pipe.transformer.config, pipe.vae_scale_factor_temporal, sample.shape[1]
        patched = config.patch_size_t or 1
        kept = ((n_pictures or config.sample_frames) - 1) // factor + 1
        dropped = latents - kept if 0 <= latents - kept < patched else 0  # at the start, before they are decoded
        first = 1 if (latents - dropped) % 2 else factor  # an even number of latents is decoded in pairs
        covers = [0] * dropped + [first] + [factor] * (latents - dropped - 1)
        return tuple(sum(covers[at : at + patched]) for at in range(0, latents, patched))

    def query_key(self, attention: Any, seen: Outputs, sizes: Sizes, options: dict[str, Any]) -> QueryKey:
        outputs = (seen[name] for name in self.watched(attention))  # turned to their positions in place, by now
        query, key = (x if x.ndim == 4 else split_heads(x, attention.heads) for x in outputs)
        return query[:, :, sizes.tokens :], key

    def used(self, attention: Any, output: torch.Tensor, sizes: Sizes) -> torch.Tensor:
        return output[:, sizes.tokens :]


class HunyuanVideo15(JointAttention):
    """HunyuanVideo 1.5: rotary positions of the clip. The text is Qwen2.5-VL's from the prompt's first token on; what
    is padding, in place of ByT5's and a picture's tokens too, comes last and is masked."""

    models = {"HunyuanVideo 1.5": Model("HunyuanVideo15Pipeline")}
    captured, unscored = BY_FRAME, CLIPS
    network = HunyuanVideo15Transformer3DModel
    masked = video = True

    def texts(self, pipe: Any) -> list[Text]:
        def framed(prompt: str) -> list[int]:
            [chat] = format_text_input([prompt], pipe.system_message)
            text = pipe.tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
            return pipe.tokenizer(text).input_ids

        return [Text(pipe.tokenizer, pipe.text_encoder, None, framed=framed)]

    def encode(self, pipe: Any, prompts: list[str], n_tokens: int) -> torch.Tensor | None:
        return own_encoding(pipe, prompts, n_tokens, batch_size=len(prompts))

    def call(self, arguments: dict[str, Any]) -> Call:
        names = [f"encoder_{kind}{which}" for which in ("_2", "") for kind in ("hidden_states", "attention_mask")]
        seen = [arguments[name] for name in (*names, "image_embeds")]
        return Call(arguments["hidden_states"], seen, arguments["timestep"], join=_padding_last)

    def watched(self, attention: Any) -> tuple[str, ...]:
        return "norm_q", "norm_k", "norm_added_k"

    def query_key(self, attention: Any, seen: Outputs, sizes: Sizes, options: dict[str, Any]) -> QueryKey:
        query, key, text_key = (seen[name] for name in self.watched(attention))  # (row, position, head, channel)
        query, key = (apply_rotary_emb(x, options["image_rotary_emb"], sequence_dim=1) for x in (query, key))
        return query.transpose(1, 2), torch.cat([text_key, key], dim=1).transpose(1, 2)

    def mask(self, attention: Any, sizes: Sizes, options: dict[str, Any]) -> torch.Tensor | None:
        return F.pad(options["attention_mask"].bool(), (0, sizes.pixels), value=True)


def _padding_last(texts: Any) -> torch.Tensor:
    """(row, token, channel) Qwen's tokens where HunyuanVideo has them: first, before all that is padding."""
    quoted, quoted_mask, text, mask, picture = texts
    if quoted_mask.any() or picture.any():
        raise ValueError(
            "HunyuanVideo 1.5 with a picture, or with quotes in a prompt, which it reads a second time, cannot be "
            "captured: call it with prompts alone, without quotes."
        )
    rows = pad_sequence([x[kept] for x, kept in zip(text, mask.bool(), strict=True)], batch_first=True)
    return F.pad(rows, (0, 0, 0, quoted.shape[1] + text.shape[1] + picture.shape[1] - rows.shape[1]))
