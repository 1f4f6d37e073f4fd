"""What capture asks a kind of model, and what several kinds answer alike."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from inspect import signature
from operator import itemgetter
from typing import Any, ClassVar

import torch
from diffusers.models.attention_processor import Attention

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
    """A stretch of the text that the layers see: who made it, its length (None: all that is left), the argument of the
    pipeline that it comes from, whether it is read before the encoder's last layer, and the ids that the encoder reads
    for a prompt where these are not just the prompt's own: cleaned, or within instructions or the turns of a chat."""

    tokenizer: Any
    encoder: Any
    length: int | None
    argument: str = "prompt"
    early: bool = False
    framed: Callable[[str], list[int]] | None = None


@dataclass
class Call:
    """One call of the network. `counts` is False for a call that only perturbs another one's guidance."""

    sample: torch.Tensor
    texts: Sequence[torch.Tensor]  # as the network is given them
    timestep: Any  # number, or tensor of one or of (row), 0 to 1000
    counts: bool = True
    join: Callable[[Any], torch.Tensor] = itemgetter(0)  # of `texts` into one

    @cached_property
    def text(self) -> torch.Tensor:
        """(row, token, channel); what is padding is 0."""
        return self.join(self.texts)


@dataclass(frozen=True)
class Sizes:
    """How many tokens of text, and how many pixels (of all frames), a layer sees in a call."""

    tokens: int
    pixels: int


@dataclass(frozen=True)
class Model:
    """A model that people use: its pipeline in diffusers, and how its network differs from the defaults of its class
    (None: not known without its files), as the `config.json` of a checkpoint on the hub is said to have it."""

    pipeline: str
    config: dict[str, Any] | None = field(default_factory=dict)
    checkpoint: str = ""


class Family:
    """What capture has to know about a kind of model."""

    models: ClassVar[dict[str, "Model"]]  # by the names that people know
    captured: ClassVar[str]  # what of a model is captured, in a few words
    part: ClassVar[str] = "transformer"  # the pipeline's attribute that holds the network
    network: ClassVar[type]
    attention: ClassVar[tuple[Any, ...]] = (Attention,)  # of the layers
    blocks: ClassVar[tuple[str, ...]]  # in the order in which heads are numbered
    unscored: ClassVar[str] = ""  # why heads cannot vote for words; empty: they can
    carried: ClassVar[bool] = False  # whether words must go along through the blocks to be voted for
    rows: ClassVar[int] = 2  # of a call that a picture takes, under guidance as the pipeline has it by default
    batched: ClassVar[bool] = True  # whether the pipeline draws several pictures at a time under guidance
    masked: ClassVar[bool] = False  # whether the layers heed a mask
    video: ClassVar[bool] = False  # whether it draws clips

    def find(self, network: Any) -> Iterator[TextAttention]:
        """The layers, in the network's order within each block."""
        raise NotImplementedError

    def problem(self, layer: TextAttention) -> str | None:
        """Why this layer cannot be captured, or None."""
        attention: Any = layer.attention
        if not isinstance(attention, self.attention):
            expected = " or ".join(kind.__name__ for kind in self.attention)
            return f"is a {type(attention).__name__}, not a diffusers {expected}"
        ours = isinstance(attention, Attention)
        if ours and attention.inner_kv_dim != attention.inner_dim:
            return "shares key heads among query heads"
        if ours and not attention.scale_qk:
            return "does not scale its queries"
        unfused = ours and not type(attention.processor).__name__.startswith("Fused")  # where the flag stays
        if attention.fused_projections and not unfused:
            return "has fused projections (undo with unfuse_qkv_projections())"
        return None

    def texts(self, pipe: Any) -> list[Text]:
        """The stretches of the text, first to last; words are looked for in each."""
        raise NotImplementedError

    def encode(self, pipe: Any, prompts: list[str], n_tokens: int) -> torch.Tensor | None:
        """Have the pipeline encode prompts, `n_tokens` of each, as its own call does: (prompt, token, channel).

        None where it has no way of its own beyond padding.
        """
        return None

    def call(self, arguments: dict[str, Any]) -> Call:
        """Sort the arguments of the network's `forward`, by name."""
        raise NotImplementedError

    def latent(self, call: Call, arguments: dict[str, Any]) -> tuple[int, int]:
        """(height, width) of the latents in such a call; asked for once a generation."""
        height, width = call.sample.shape[-2:]
        return height, width

    def scale(self, pipe: Any) -> int:
        """How many pixels of a picture a side of a latent stands for."""
        return pipe.vae_scale_factor_spatial if self.video else pipe.vae_scale_factor

    def frames(self, pipe: Any, sample: torch.Tensor, n_pictures: int | None) -> tuple[int, ...]:
        """How many pictures of a clip each frame of its maps covers, in order; () of what is no clip.

        `n_pictures` is how many the pipeline was asked for, where that is known.
        """
        return (1, *[pipe.vae_scale_factor_temporal] * (sample.shape[2] - 1)) if self.video else ()

    def watched(self, attention: Any) -> tuple[str, ...]:
        """The submodules of a layer whose outputs `query_key` needs."""
        outputs = (("norm_q", "to_q"), ("norm_k", "to_k"))
        return tuple(projection if getattr(attention, norm) is None else norm for norm, projection in outputs)

    def query_key(self, attention: Any, seen: Outputs, sizes: Sizes, options: dict[str, Any]) -> QueryKey:
        """Queries (row, head, pixel, channel) and keys (row, head, token, channel) as the softmax gets them.

        The first `sizes.tokens` keys are the text's; where image and text share one softmax, the image's follow.
        `seen` holds the outputs of the watched submodules, `options` the keyword arguments of the layer, their
        tensors for the same rows.
        """
        raise NotImplementedError

    def mask(self, attention: Any, sizes: Sizes, options: dict[str, Any]) -> torch.Tensor | None:
        """The layer's mask, (row, key), (row, pixel, key) or (row, head, pixel, key), keys as in `query_key`."""
        return options.get("attention_mask")

    def projections(self, attention: Any) -> tuple[str, ...]:
        """The submodules of a layer whose outputs `value` needs."""
        return ("add_v_proj", "to_v") if getattr(attention, "added_kv_proj_dim", None) is not None else ("to_v",)

    def value(self, attention: Any, seen: Outputs, sizes: Sizes) -> torch.Tensor:
        """The values (row, head, token, channel), in the keys' order."""
        return torch.cat([split_heads(seen[name], attention.heads) for name in self.projections(attention)], dim=2)

    def used(self, attention: Any, output: torch.Tensor, sizes: Sizes) -> torch.Tensor:
        """(row, pixel, head * channel) that the heads put out, of what goes into the layer's output projection or,
        where there is none, of what the layer puts out."""
        return output if getattr(attention, "to_out", None) is not None else output[:, sizes.tokens :]

    def project(self, network: Any, text: torch.Tensor) -> torch.Tensor:
        """The text as the layers are given it, (row, token, channel), where heads can vote.

        `forward` rather than a call, here and in `keys`: hooks of our own, and of others, are for the model's use.
        """
        return text

    def example(self, network: Any, rows: int, zeros: Callable[..., torch.Tensor]) -> dict[str, Any]:
        """Arguments of zeros for a call of the network at its usual size, where heads can vote; `zeros(*shape)`."""
        raise NotImplementedError

    def keys(self, attention: Any, text: torch.Tensor) -> torch.Tensor:
        """The keys (token, head * channel) that a layer makes of its text (token, channel), where the text is the same
        in every block."""
        return attention.to_k.forward(text)

    def words(
        self, attention: Any, text: torch.Tensor, places: torch.Tensor, options: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values (row, head, token, channel) that a layer makes of words (row, token, channel), where
        they are carried; `places` (row, token) are their positions in a text, `options` the arguments of the block."""
        return self.unturned(attention, text)

    def unturned(self, attention: Any, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`words`, without positions."""
        joint = getattr(attention, "added_kv_proj_dim", None) is not None
        names = ("add_q_proj", "add_k_proj", "add_v_proj") if joint else ("to_q", "to_k", "to_v")
        query, key, value = (split_heads(getattr(attention, name).forward(text), attention.heads) for name in names)
        norms = (attention.norm_added_q, attention.norm_added_k) if joint else (attention.norm_q, attention.norm_k)
        query, key = (x if norm is None else norm.forward(x) for x, norm in zip((query, key), norms, strict=True))
        return query, key, value

    def put_out(self, attention: Any, attended: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """What a layer makes of words (row, token, channel), given what its heads do (row, token, head * channel)."""
        joint = getattr(attention, "added_kv_proj_dim", None) is not None
        return attention.to_add_out.forward(attended) if joint and not attention.context_pre_only else attended


def split_heads(projected: torch.Tensor, n_heads: int) -> torch.Tensor:
    """(row, position, head * channel), or (row, position, head, channel) -> (row, head, position, channel)."""
    by_head = projected if projected.ndim == 4 else projected.unflatten(-1, (n_heads, -1))
    return by_head.transpose(1, 2)


def own_encoding(pipe: Any, prompts: list[str], n_tokens: int, **settings: Any) -> torch.Tensor:
    """What a pipeline's `encode_prompt` makes of prompts, without those of guidance."""
    accepted = signature(pipe.encode_prompt).parameters
    asked = {"do_classifier_free_guidance": False, "max_sequence_length": n_tokens, **settings}
    encoded = pipe.encode_prompt(prompts, **{name: value for name, value in asked.items() if name in accepted})
    return encoded if torch.is_tensor(encoded) else encoded[0]
