"""A causal check of head relevance: weaken some heads while a model draws, and see what becomes of the concept.

In the manner of the HRV paper's ordered weakening (arXiv 2412.02237). What a layer adds to the picture is a sum over
its heads, each through its own columns of the output projection: scaling a head's part of that projection's input
scales the head, exactly, and touches no other.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Self

import numpy as np
import torch
import xarray as xr
from pydantic import Field, field_validator, model_validator

from .families import UNet, find_family
from .heads import cross_attention_heads
from .models import unet_layout
from .study import Study


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


class WeakenedStudy(Study):
    """The benchmark of a `Study`, drawn while the heads numbered `weakened` are multiplied by `scale`."""

    weakened: tuple[int, ...] = ()
    scale: float = Field(default=0.0, allow_inf_nan=False)

    @field_validator("weakened", mode="before")
    @classmethod
    def _as_numbers(cls, heads: Any) -> tuple[int, ...]:
        return tuple(sorted(int(head) for head in heads))

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        n_heads = len(cross_attention_heads(unet_layout(self.model)))
        if wrong := [head for head in self.weakened if not 0 <= head < n_heads]:
            raise ValueError(f"heads {wrong} do not exist: expected numbers from 0 to {n_heads - 1}")
        return self

    def compute(self, units: Sequence[int]) -> xr.Dataset:
        with scaled_heads(self.pipe, self.weakened, self.scale):
            return super().compute(units)


def presence(results: xr.Dataset, concept: str) -> xr.Dataset:
    """How much of a concept is in each picture of a study of its words, by the study's segmenter.

    `area` (image): the share of the picture that the word's mask covers. `score` (image), in [0, 1]: of a segmenter
    that detects first, the detection's score, 0 if there is none; of the embedded one, the share of the concept in all
    that it takes for an object.
    """
    area = results["truth"].values.mean(axis=(1, 2))
    if "truth_score" in results:
        score = np.nan_to_num(results["truth_score"].values)
    else:
        from .emoji.segmenter import CONCEPTS, KEYS, Reading, load_weights

        if concept not in CONCEPTS:
            raise ValueError(f"no concept {concept!r}: expected one of {', '.join(CONCEPTS)}")
        areas = Reading(load_weights(), results["image_rgb"].values).areas()
        score = areas[:, [of == concept for of, _ in KEYS]].sum(1) / areas.sum(1)
    return xr.Dataset({"area": ("image", area), "score": ("image", score)}).assign_coords(subject=results["subject"])
