"""The kinds of model whose attention can be captured, one class a family.

A family says where the layers that attend from image to text are, how queries and keys come out of such a layer,
which arguments of a call hold what, and where the tokens of the text are. To support another one, write a subclass
of `Family`, add it to `FAMILIES`, and add a tiny model of it to `tests/support/tiny_families.py`, whose
tests it must pass.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention

Outputs = dict[str, torch.Tensor]  # of the submodules of a layer, by name
QueryKey = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class TextAttention:
    """One layer that attends from image to text: its block, its name in the network, the module itself, and how
    many latents a side one pixel of its queries stands for."""

    block: str
    name: str
    attention: Any
    stride: int


@dataclass(frozen=True)
class Text:
    """A stretch of the text that the layers see: who made it, its length (None: all that is left), and the argument of
    the pipeline that it comes from, and whether it is read before the encoder's last layer."""

    tokenizer: Any
    encoder: Any
    length: int | None
    argument: str = "prompt"
    early: bool = False


@dataclass(frozen=True)
class Call:
    """One call of the network. `counts` is False for a call that only perturbs another one's guidance."""

    sample: torch.Tensor
    text: torch.Tensor  # (row, token, channel)
    timestep: Any  # number, or tensor of one or of (row), 0 to 1000
    counts: bool = True


class Family:
    """What capture has to know about a kind of model."""

    part: ClassVar[str]  # the pipeline's attribute that holds the network
    network: ClassVar[type]
    blocks: ClassVar[tuple[str, ...]]  # in the order in which heads are numbered

    def find(self, network: Any) -> Iterator[TextAttention]:
        """The layers, in the network's order within each block."""
        raise NotImplementedError

    def problem(self, layer: TextAttention) -> str | None:
        """Why this layer cannot be captured, or None."""
        raise NotImplementedError

    def texts(self, pipe: Any) -> list[Text]:
        """The stretches of the text, first to last; words are looked for in each."""
        raise NotImplementedError

    def call(self, arguments: dict[str, Any]) -> Call:
        """Sort the arguments of the network's `forward`, by name."""
        raise NotImplementedError

    def latent(self, call: Call, arguments: dict[str, Any]) -> tuple[int, int]:
        """(height, width) of the latents in such a call; asked for once a generation."""
        height, width = call.sample.shape[-2:]
        return height, width

    def watched(self, attention: Any) -> tuple[str, ...]:
        """The submodules of a layer whose outputs `query_key` needs."""
        raise NotImplementedError

    def values(self, attention: Any) -> tuple[str, ...]:
        """The submodules of a layer that make the values (row, token or pixel, head * channel), in the keys' order."""
        return ("add_v_proj", "to_v") if attention.added_kv_proj_dim is not None else ("to_v",)

    def query_key(self, attention: Any, seen: Outputs, tokens: int, options: dict[str, Any]) -> QueryKey:
        """Queries (row, head, pixel, channel) and keys (row, head, token, channel) as the softmax gets them.

        The first `tokens` keys are the text's; where image and text share one softmax, the image's follow. `seen`
        holds the outputs of the watched submodules, `options` the keyword arguments of the layer.
        """
        raise NotImplementedError


class UNet(Family):
    """Stable Diffusion 1.x, 2.x and XL: cross-attention in down, mid and up blocks.

    In XL both text encoders see the same positions, so that the first one's tokens locate the words (the second's
    in the refiner, which has no first).
    """

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
        if not isinstance(attention, Attention):
            return f"is a {type(attention).__name__}, not a diffusers Attention"
        if layer.block not in self.blocks:
            return "is in none of the down, mid and up blocks"
        if attention.added_kv_proj_dim is not None:
            return "has added key and value projections"
        if attention.norm_cross is not None or attention.norm_q is not None or attention.norm_k is not None:
            return "normalises its queries, its keys or the text"
        return _shape_problem(attention)

    def texts(self, pipe: Any) -> list[Text]:
        for suffix in ("", "_2"):
            if tokenizer := getattr(pipe, f"tokenizer{suffix}", None):
                encoder = getattr(pipe, f"text_encoder{suffix}", None)
                early = getattr(pipe, "text_encoder_2", None) is not None
                return [Text(tokenizer, encoder, tokenizer.model_max_length, f"prompt{suffix}", early)]
        return []

    def call(self, arguments: dict[str, Any]) -> Call:
        return Call(arguments["sample"], arguments["encoder_hidden_states"], arguments["timestep"])

    def watched(self, attention: Any) -> tuple[str, ...]:
        return "to_q", "to_k"

    def query_key(self, attention: Any, seen: Outputs, tokens: int, options: dict[str, Any]) -> QueryKey:
        return split_heads(seen["to_q"], attention.heads), split_heads(seen["to_k"], attention.heads)


class StableDiffusion3(Family):
    """Stable Diffusion 3 and 3.5: one softmax over image and text in each "joint" block.

    The text is CLIP's tokens (both CLIP encoders on the same positions), then T5's: a word has its columns in both
    stretches. The second, image-only attention of some blocks of 3.5 does not see the text and is left out. The
    calls of skip-layer guidance do not count.
    """

    part, network = "transformer", SD3Transformer2DModel
    blocks = ("joint",)

    def find(self, network: Any) -> Iterator[TextAttention]:
        for i, block in enumerate(network.transformer_blocks):
            yield TextAttention("joint", f"transformer_blocks.{i}.attn", block.attn, network.config.patch_size)

    def problem(self, layer: TextAttention) -> str | None:
        if not isinstance(layer.attention, Attention):
            return f"is a {type(layer.attention).__name__}, not a diffusers Attention"
        return _shape_problem(layer.attention)

    def texts(self, pipe: Any) -> list[Text]:
        return [
            Text(pipe.tokenizer, pipe.text_encoder, pipe.tokenizer_max_length, early=True),
            Text(pipe.tokenizer_3, pipe.text_encoder_3, None, "prompt_3"),
        ]

    def call(self, arguments: dict[str, Any]) -> Call:
        counts = arguments.get("skip_layers") is None
        return Call(arguments["hidden_states"], arguments["encoder_hidden_states"], arguments["timestep"], counts)

    def watched(self, attention: Any) -> tuple[str, ...]:
        outputs = (("norm_q", "to_q"), ("norm_k", "to_k"), ("norm_added_k", "add_k_proj"))
        return tuple(projection if getattr(attention, norm) is None else norm for norm, projection in outputs)

    def query_key(self, attention: Any, seen: Outputs, tokens: int, options: dict[str, Any]) -> QueryKey:
        outputs = (seen[name] for name in self.watched(attention))
        query, image_key, text_key = (x if x.ndim == 4 else split_heads(x, attention.heads) for x in outputs)
        return query, torch.cat([text_key, image_key], dim=2)


class Flux(Family):
    """FLUX.1: one softmax over text and image, with rotary positions, in "double" and in "single" blocks.

    The text is T5's tokens; CLIP gives only a pooled vector. True guidance, where asked for, calls the network
    again with the negative prompt; those calls do not count.
    """

    part, network = "transformer", FluxTransformer2DModel
    blocks = ("double", "single")

    def find(self, network: Any) -> Iterator[TextAttention]:
        for i, block in enumerate(network.transformer_blocks):
            yield TextAttention("double", f"transformer_blocks.{i}.attn", block.attn, 2)
        for i, block in enumerate(network.single_transformer_blocks):
            yield TextAttention("single", f"single_transformer_blocks.{i}.attn", block.attn, 2)

    def problem(self, layer: TextAttention) -> str | None:
        if not isinstance(layer.attention, FluxAttention):
            return f"is a {type(layer.attention).__name__}, not a diffusers FluxAttention"
        return _fused_problem(layer.attention)

    def texts(self, pipe: Any) -> list[Text]:
        return [Text(pipe.tokenizer_2, pipe.text_encoder_2, None, "prompt_2")]

    def call(self, arguments: dict[str, Any]) -> Call:
        return Call(arguments["hidden_states"], arguments["encoder_hidden_states"], arguments["timestep"] * 1000)

    def latent(self, call: Call, arguments: dict[str, Any]) -> tuple[int, int]:
        row, column = arguments["img_ids"].reshape(-1, 3)[-1, 1:].tolist()  # of the last patch, 2 x 2 latents
        return 2 * int(row) + 2, 2 * int(column) + 2

    def watched(self, attention: Any) -> tuple[str, ...]:
        joint = attention.added_kv_proj_dim is not None
        return ("norm_q", "norm_k", "norm_added_k") if joint else ("norm_q", "norm_k")

    def query_key(self, attention: Any, seen: Outputs, tokens: int, options: dict[str, Any]) -> QueryKey:
        query, key = seen["norm_q"], seen["norm_k"]  # (row, position, head, channel)
        if "norm_added_k" in seen:
            key = torch.cat([seen["norm_added_k"], key], dim=1)
        else:  # the single blocks get text and image as one sequence
            query = query[:, tokens:]
        cos, sin = options["image_rotary_emb"]
        query = apply_rotary_emb(query, (cos[tokens:], sin[tokens:]), sequence_dim=1)
        return query.transpose(1, 2), apply_rotary_emb(key, (cos, sin), sequence_dim=1).transpose(1, 2)


FAMILIES: tuple[Family, ...] = (UNet(), StableDiffusion3(), Flux())


def find_family(pipe_or_network: Any) -> tuple[Family, Any]:
    """(family, network) of a pipeline, or of its UNet or transformer; ValueError if it is of no family known."""
    for family in FAMILIES:
        network = getattr(pipe_or_network, family.part, None) or pipe_or_network
        if isinstance(network, family.network):
            return family, network
    known = ", ".join(family.network.__name__ for family in FAMILIES)
    parts = [type(getattr(pipe_or_network, part, None)).__name__ for part in ("unet", "transformer")]
    has = ", ".join(name for name in parts if name != "NoneType") or "none"
    raise ValueError(
        f"{type(pipe_or_network).__name__} has no UNet or transformer of a known kind (it has: {has}); the pipeline of "
        f"a {known} is needed, or the network itself, not compiled."
    )


def split_heads(projected: torch.Tensor, n_heads: int) -> torch.Tensor:
    """(row, position, head * channel) -> (row, head, position, channel)."""
    return projected.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def _shape_problem(attention: Attention) -> str | None:
    if attention.inner_kv_dim != attention.inner_dim:
        return "shares key heads among query heads"
    if not attention.scale_qk:
        return "does not scale its queries"
    return _fused_problem(attention)


def _fused_problem(attention: Any) -> str | None:
    return "has fused projections (undo with unfuse_qkv_projections())" if attention.fused_projections else None
