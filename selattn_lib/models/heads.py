"""The heads of a model that attend to the text, and the one order in which everything here numbers them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from .families import find_family


@dataclass(frozen=True)
class Layer:
    """One layer that attends to the text; `first` is the global number of its head 0, `stride` the number of
    latents a side that one pixel of its maps stands for."""

    name: str
    block: str
    index: int
    n_heads: int
    first: int
    stride: int

    def grid(self, latent: Sequence[int]) -> tuple[int, int]:
        """(height, width) of its maps for a latent of (height, width), rounded up."""
        height, width = (-(-side // self.stride) for side in latent)
        return height, width


@dataclass(frozen=True)
class Heads:
    """All heads of one model that attend to the text, by block and layer: down blocks, mid block, up blocks in a
    UNet, "joint" blocks in SD3, "double" then "single" blocks in FLUX.

    `len(heads)` is the number H of heads (128 for SD v1, 1,300 for SDXL); iterating gives the layers.
    """

    layers: tuple[Layer, ...]

    def __len__(self) -> int:
        return sum(layer.n_heads for layer in self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    @property
    def names(self) -> list[str]:
        """One name per head, such as ``down, layer: 0, head: 3``."""
        places = zip(self.block, self.layer, self.head, strict=True)
        return [f"{block}, layer: {layer}, head: {head}" for block, layer, head in places]

    @property
    def block(self) -> np.ndarray:
        """(head) "down", "mid" or "up"; "joint" in SD3; "double" or "single" in FLUX."""
        return np.array([layer.block for layer in self.layers for _ in range(layer.n_heads)])

    @property
    def layer(self) -> np.ndarray:
        """(head) number of the head's layer within its block."""
        return np.array([layer.index for layer in self.layers for _ in range(layer.n_heads)])

    @property
    def head(self) -> np.ndarray:
        """(head) number of the head within its layer."""
        return np.array([head for layer in self.layers for head in range(layer.n_heads)])

    def coords(self) -> dict[str, Any]:
        """Coordinates for an xarray object with a dimension `head`."""
        along = {"block": self.block, "layer": self.layer, "head_in_layer": self.head}
        return {"head": self.names, **{name: ("head", values) for name, values in along.items()}}


def cross_attention_heads(pipe_or_network: Any) -> Heads:
    """List the heads that attend to the text.

    Parameters
    ----------
    pipe_or_network : DiffusionPipeline, or its UNet or transformer
        Of a family in `selattn_lib.models.families`.

    Returns
    -------
    Heads
        In the one order in which everything here numbers them.

    Raises
    ------
    ValueError
        If the model is of no such family, if it is compiled, if it has no such layer, or if any of those layers
        computes its attention in a way that capture does not reproduce (all such layers are listed).

    Examples
    --------
    >>> from selattn_lib.models.pipelines import network_layout
    >>> len(cross_attention_heads(network_layout("sd14")))
    128
    """
    family, network = find_family(pipe_or_network)
    attentions = list(family.find(network))
    problems = [f"{layer.name}: {problem}" for layer in attentions if (problem := family.problem(layer))]
    problems += [
        f"{name or type(network).__name__}: is compiled, which leaves out what listens to it"
        for name, module in network.named_modules()
        if module._compiled_call_impl is not None
    ]
    if problems:
        raise ValueError(
            "These cross-attention layers cannot be captured; load the model without what is named here:\n  "
            + "\n  ".join(problems)
        )
    if not attentions:
        raise ValueError(f"{type(network).__name__} has no cross-attention; a text-to-image network is needed.")
    by_block = [[layer for layer in attentions if layer.block == block] for block in family.blocks]
    listed = [(i, layer) for members in by_block for i, layer in enumerate(members)]
    firsts = accumulate((layer.attention.heads for _, layer in listed), initial=0)
    layers = (
        Layer(layer.name, layer.block, i, layer.attention.heads, first, layer.stride)
        for (i, layer), first in zip(listed, firsts, strict=False)
    )
    return Heads(tuple(layers))
