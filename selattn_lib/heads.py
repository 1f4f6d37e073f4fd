"""The cross-attention heads of a UNet, and the one order in which everything here numbers them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from diffusers.models.attention_processor import Attention

PLACES = ("down", "mid", "up")


@dataclass(frozen=True)
class Layer:
    """One cross-attention layer; `first` is the global number of its head 0."""

    name: str
    place: str
    index: int
    n_heads: int
    first: int


@dataclass(frozen=True)
class Heads:
    """All cross-attention heads of one model, in order: down blocks, mid block, up blocks.

    `len(heads)` is the number H of heads (128 for SD v1); iterating gives the layers.
    """

    layers: tuple[Layer, ...]

    def __len__(self) -> int:
        return sum(layer.n_heads for layer in self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    @property
    def names(self) -> list[str]:
        """One name per head, such as "down, layer: 0, head: 3"."""
        return [
            f"{layer.place}, layer: {layer.index}, head: {head}"
            for layer in self.layers
            for head in range(layer.n_heads)
        ]

    @property
    def place(self) -> np.ndarray:
        """(head) "down", "mid" or "up"."""
        return np.array([layer.place for layer in self.layers for _ in range(layer.n_heads)])

    @property
    def layer(self) -> np.ndarray:
        """(head) number of the head's layer within its place."""
        return np.array([layer.index for layer in self.layers for _ in range(layer.n_heads)])

    @property
    def head(self) -> np.ndarray:
        """(head) number of the head within its layer."""
        return np.array([head for layer in self.layers for head in range(layer.n_heads)])

    def coords(self) -> dict[str, Any]:
        """Coordinates for an xarray object with a dimension `head`."""
        return {
            "head": self.names,
            "place": ("head", self.place),
            "layer": ("head", self.layer),
            "head_in_layer": ("head", self.head),
        }


def cross_attention_heads(pipe_or_unet: Any) -> Heads:
    """List the cross-attention heads of a diffusers pipeline or of its UNet.

    Raises ValueError if there is no UNet, if it has no cross-attention layer, or if any of those layers
    computes its attention in a way that capture does not reproduce (all such layers are listed).
    """
    unet = find_unet(pipe_or_unet)
    found: dict[str, list[tuple[str, int]]] = {place: [] for place in PLACES}
    problems = []
    for name, module in unet.named_modules():
        if not _is_cross_attention(name, module):
            continue
        if problem := _problem(name, module):
            problems.append(f"{name}: {problem}")
        else:
            found[_place(name)].append((name, module.heads))
    if problems:
        raise ValueError(
            "These cross-attention layers cannot be captured; load the model without what is named here:\n  "
            + "\n  ".join(problems)
        )
    listed = [(place, i, *layer) for place in PLACES for i, layer in enumerate(found[place])]
    if not listed:
        raise ValueError(f"{type(unet).__name__} has no cross-attention; a text-to-image UNet is needed.")
    firsts = accumulate((n_heads for *_, n_heads in listed), initial=0)
    return Heads(
        tuple(
            Layer(name, place, i, n_heads, first)
            for (place, i, name, n_heads), first in zip(listed, firsts, strict=False)
        )
    )


def find_unet(pipe_or_unet: Any) -> Any:
    """Return the UNet of a pipeline, or the argument itself if it is one; ValueError if there is none."""
    unet = getattr(pipe_or_unet, "unet", None) or pipe_or_unet
    if not hasattr(unet, "down_blocks") or not hasattr(unet, "up_blocks"):
        raise ValueError(
            f"{type(pipe_or_unet).__name__} has no UNet; a Stable Diffusion pipeline or its `unet` is needed."
        )
    return unet


def _is_cross_attention(name: str, module: Any) -> bool:
    if isinstance(module, Attention):
        return module.is_cross_attention
    return name.endswith("attn2")


def _place(name: str) -> str:
    return name.partition("_block")[0]


def _problem(name: str, module: Any) -> str | None:
    if not isinstance(module, Attention):
        return f"is a {type(module).__name__}, not a diffusers Attention"
    if _place(name) not in PLACES:
        return "is in none of the down, mid and up blocks"
    if module.fused_projections:
        return "has fused projections (undo with unet.unfuse_qkv_projections())"
    if module.added_kv_proj_dim is not None:
        return "has added key and value projections"
    if module.norm_cross is not None or module.norm_q is not None or module.norm_k is not None:
        return "normalises its queries, its keys or the text"
    if module.inner_kv_dim != module.inner_dim:
        return "shares key heads among query heads"
    return None
