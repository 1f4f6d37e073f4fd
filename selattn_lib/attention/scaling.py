"""A causal check of head relevance: weaken some heads while a model draws, and see what becomes of the concept.

In the manner of the HRV paper's ordered weakening (arXiv 2412.02237). What a layer adds to the picture is a sum over
its heads, each through its own columns of the output projection: scaling a head's part of that projection's input
scales the head, exactly, and touches no other.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from ..models.families import UNet, find_family
from ..models.heads import cross_attention_heads


@contextmanager
def scaled_heads(pipe: Any, heads: Sequence[int] | np.ndarray, scale: float) -> Iterator[None]:
    """Multiply the output of these heads by `scale` in whatever the pipeline generates inside the `with` block.

    0 switches them off, 1 leaves the image as it is, bit for bit. Both halves of a batch under guidance are scaled: it
    is the model that is weakened. Nothing stays behind in the pipeline; may be nested with `capture` and with itself.

    Raises ValueError on head numbers that do not exist, on a scale that is no number, and on models that are not of
    Stable Diffusion 1.x, 2.x or XL.
    """
    listed, (family, network) = cross_attention_heads(pipe), find_family(pipe)
    if not isinstance(family, UNet):
        raise ValueError(
            f"The heads of {type(pipe).__name__} cannot be scaled: expected Stable Diffusion 1.x, 2.x, XL."
        )
    numbers = np.asarray(heads, dtype=int)
    if wrong := [int(number) for number in numbers if not 0 <= number < len(listed)]:
        raise ValueError(f"heads {wrong} do not exist: expected numbers from 0 to {len(listed) - 1}")
    if not np.isfinite(scale):
        raise ValueError(f"scale={scale!r}: expected a number, 0 to switch the heads off")
    with ExitStack() as stack:
        for layer in listed:
            own = numbers[(numbers >= layer.first) & (numbers < layer.first + layer.n_heads)] - layer.first
            if len(own):
                factors = torch.ones(layer.n_heads)
                factors[own] = scale
                projection = network.get_submodule(layer.name).to_out[0]
                stack.callback(projection.register_forward_pre_hook(_scaled_by(factors)).remove)
        yield


def _scaled_by(factors: torch.Tensor) -> Any:
    def scale(projection: Any, args: tuple) -> tuple:
        (values,) = args  # (row, pixel, head * channel)
        by_head = values.unflatten(-1, (len(factors), -1))
        return ((by_head * factors.to(values)[:, None]).flatten(-2),)

    return scale
