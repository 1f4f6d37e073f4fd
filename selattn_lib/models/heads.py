"""The heads of a model that attend to the text, and the one order in which everything here numbers them.

Needs no diffusers, which takes seconds to import: saved maps are read, scored and shown without it.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

BLOCKS = ("down", "mid", "up", "cross", "joint", "double", "single")  # in the order in which heads are numbered
HEAD_NAME = re.compile(rf"({'|'.join(BLOCKS)}), layer: (\d+), head: (\d+)")


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


def head_table(heads: Any) -> pd.DataFrame:
    """Where heads are, as a table.

    Parameters
    ----------
    heads : sequence of str, or Heads
        Names such as "down, layer: 0, head: 3".

    Returns
    -------
    pandas.DataFrame
        One row a head: block, layer, head, name, and `row`, the number of the layer among all.

    Raises
    ------
    ValueError
        On a name of another form.

    Examples
    --------
    >>> head_table(["down, layer: 0, head: 3"])["head"].tolist()
    [3]
    """
    names = [str(name) for name in getattr(heads, "names", heads)]
    matches = [HEAD_NAME.fullmatch(name) for name in names]
    if wrong := [name for name, match in zip(names, matches, strict=True) if match is None]:
        raise ValueError(f"{wrong[0]!r} is no head's name; names such as 'down, layer: 0, head: 3' are expected.")
    table = pd.DataFrame([match.groups() for match in matches if match], columns=["block", "layer", "head"])
    table[["layer", "head"]] = table[["layer", "head"]].astype(int)
    table["name"] = names
    table["row"] = table.groupby(["block", "layer"], sort=False).ngroup()
    return table
