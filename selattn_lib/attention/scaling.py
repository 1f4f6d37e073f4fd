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
from diffusers import DiffusionPipeline

from ..models.families import UNet, find_family
from ..models.heads import cross_attention_heads


@contextmanager
def scaled_heads(pipe: DiffusionPipeline, heads: Sequence[int] | np.ndarray, scale: float) -> Iterator[None]:
    """Multiply the output of some heads by a number in whatever the pipeline generates inside the `with` block.

    A layer adds sum_h W_h A_h V_h to the picture, W_h the output projection's columns of head h; the terms of `heads`
    become scale * W_h A_h V_h, in both halves of a batch under guidance: it is the model that is weakened. Nothing
    stays behind in the pipeline; may be nested with `capture` and with itself.

    Parameters
    ----------
    pipe : diffusers.DiffusionPipeline
        Of Stable Diffusion 1.x, 2.x or XL.
    heads : sequence of int
        Head numbers, as in `cross_attention_heads`.
    scale : float
        0 switches the heads off, 1 leaves the image as it is, bit for bit.

    Yields
    ------
    None

    Raises
    ------
    ValueError
        If a head does not exist, if `scale` is no finite number, or if the model is of another kind.

    Examples
    --------
    >>> from selattn_lib import load_pipeline
    >>> pipe = load_pipeline("emoji-sd", device="cpu")
    >>> with scaled_heads(pipe, [3, 14, 15], 0.0):
    ...     picture = pipe("photo of a bear", num_inference_steps=2).images[0]
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
            in_layer = numbers[(numbers >= layer.first) & (numbers < layer.first + layer.n_heads)] - layer.first
            if len(in_layer):
                factors = torch.ones(layer.n_heads)
                factors[in_layer] = scale
                projection = network.get_submodule(layer.name).to_out[0]
                stack.callback(projection.register_forward_pre_hook(_scaled_by(factors)).remove)
        yield


def _scaled_by(factors: torch.Tensor) -> Any:
    def scale(projection: Any, args: tuple) -> tuple:
        (values,) = args  # (row, pixel, head * channel)
        by_head = values.unflatten(-1, (len(factors), -1))
        return ((by_head * factors.to(values)[:, None]).flatten(-2),)

    return scale
