"""Models that draw clips: every head has a map (frame, y, x).

A frame of the maps is a latent frame, or several that the network patches together, and each covers some of the clip's
pictures: the autoencoder makes one picture of the first latent, and four of every other.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttention
from diffusers.pipelines.wan.pipeline_wan import prompt_clean

from .base import Call, Model, Outputs, QueryKey, Sizes, Text, TextAttention, split_heads
from .cross import CrossAttention
from .joint import JointAttention


class Wan(CrossAttention):
    """Wan 2.1, and the model of Wan 2.2 that has one network: normalised queries and keys. The text is UMT5's tokens,
    with zeros in place of padding; the negative prompt comes in calls of its own, which do not count."""

    models = {
        "Wan 2.1 14B": Model("WanPipeline"),
        "Wan 2.1 1.3B": Model("WanPipeline", {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}),
        "Wan 2.2 5B": Model("WanPipeline", {"num_attention_heads": 24, "num_layers": 30, "in_channels": 48}),
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

    def frames(self, pipe: Any, sample: torch.Tensor, n_pictures: int | None) -> tuple[int, ...]:
        return 1, *[pipe.vae_scale_factor_temporal] * (sample.shape[2] - 1)

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
        "CogVideoX 5B": Model("CogVideoXPipeline", {"num_attention_heads": 48, "num_layers": 42}),
        "CogVideoX 1.5 5B": Model(
            "CogVideoXPipeline", {"num_attention_heads": 48, "num_layers": 42, "patch_size_t": 2, "patch_bias": False}
        ),
    }
    captured = "the clip's rows and the text's columns of the joint softmax, frame by frame"
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
