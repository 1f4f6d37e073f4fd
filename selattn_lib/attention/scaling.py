"""A causal check of head relevance: weaken some heads while a model draws, and see what becomes of the concept.

What a layer adds to the picture is a sum over its heads, each through its own columns of the output projection: scaling
a head's part of that projection's input scales the head, exactly, and touches no other. The HRV paper's ordered
weakening (arXiv 2412.02237) scales less, the attention that some heads pay to the words of the prompt: that is to scale
the words' values, which the attention weights.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import get_ident
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from ..maps.head_sets import whole_numbers
from ..models.families import FAMILIES, CrossAttention, cross_attention_heads, find_family
from ..models.tokens import Prompt
from .trace import Generation, Trace

TOKENS = ("all", "words")  # whose attention is scaled


@contextmanager
def scaled_heads(
    pipe: DiffusionPipeline, heads: Sequence[int] | np.ndarray, scale: float, *, tokens: str = "all"
) -> Iterator[None]:
    """Multiply what some heads do by a number in whatever the pipeline generates inside the `with` block.

    A layer adds sum_h W_h A_h V_h to the picture, W_h the output projection's columns of head h. With `tokens` "all"
    the terms of `heads` become scale * W_h A_h V_h, in both halves of a batch under guidance: it is the model that is
    weakened. With "words", the HRV paper's ordered weakening (whose scale is -2), the columns of A_h that belong to the
    prompt's own tokens are multiplied, after the softmax and in the prompt's rows alone; start and end tokens, padding
    and negative prompts keep theirs. Nothing stays behind in the pipeline; may be nested with `capture` and itself.

    Parameters
    ----------
    pipe : diffusers.DiffusionPipeline
        Of a model with cross-attention: a UNet's, PixArt, SANA or Hunyuan-DiT, see `supported_models`.
    heads : sequence of int
        Head numbers, as in `cross_attention_heads`.
    scale : float
        0 switches the heads off, 1 leaves the image as it is, bit for bit.
    tokens : str
        "all": their whole output. "words": their attention to the words of the prompt.

    Yields
    ------
    None

    Raises
    ------
    ValueError
        If a head does not exist, if `scale` is no finite number, if the model is of another kind, and on any other
        `tokens`; with "words", while pictures are made, if it is not clear whose rows are the prompt's: see `capture`.

    Examples
    --------
    >>> from selattn_lib import load_pipeline
    >>> pipe = load_pipeline("emoji-sd", device="cpu")
    >>> with scaled_heads(pipe, [3, 14, 15], 0.0):
    ...     picture = pipe("photo of a bear", num_inference_steps=2).images[0]
    """
    listed, (family, network) = cross_attention_heads(pipe), find_family(pipe)
    if not isinstance(family, CrossAttention):
        known = ", ".join(name for other in FAMILIES if isinstance(other, CrossAttention) for name in other.models)
        raise ValueError(
            f"The heads of {type(pipe).__name__} cannot be scaled: what they take from text and from image is one sum. "
            f"Expected a model with cross-attention: {known}."
        )
    numbers = whole_numbers(heads, "heads")
    if wrong := [int(number) for number in numbers if not 0 <= number < len(listed)]:
        raise ValueError(f"heads {wrong} do not exist: expected numbers from 0 to {len(listed) - 1}")
    if not np.isfinite(scale):
        raise ValueError(f"scale={scale!r}: expected a number, 0 to switch the heads off")
    if tokens not in TOKENS:
        raise ValueError(f"tokens={tokens!r}: expected {' or '.join(TOKENS)}")
    if tokens == "words":
        with ScaledWords(pipe, numbers, scale).attached():
            yield
        return
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


class ScaledWords(Trace):
    """Scales the attention that some heads pay to the words of the prompt: the values of its tokens."""

    def __init__(self, pipe: Any, heads: np.ndarray, scale: float) -> None:
        super().__init__(pipe)
        self._scale = scale
        chosen = np.isin(np.arange(len(self.heads)), heads)
        self._chosen = {
            number: torch.from_numpy(chosen[layer.first : layer.first + layer.n_heads])
            for number, layer in enumerate(self.heads)
            if chosen[layer.first : layer.first + layer.n_heads].any()
        }
        self.layers = list(self._chosen)

    def start(self, generation: Generation) -> None:
        self.reword(generation)

    def reword(self, generation: Generation) -> None:
        words = torch.stack([words_in(prompt, generation.n_tokens) for prompt in generation.prompts])
        self._factors = {  # (image, token, head, 1)
            number: torch.where(words[:, :, None] & chosen, self._scale, 1.0).to(generation.device)[..., None]
            for number, chosen in self._chosen.items()
        }

    def attend(self, number: int, *called_with: Any) -> None:
        """Nothing: attention itself stays as it is, what it weights is scaled."""

    @contextmanager
    def attached(self) -> Iterator["ScaledWords"]:
        with super().attached(), ExitStack() as stack:
            for number in self.layers:
                projection = self.modules[number].to_v
                stack.callback(projection.register_forward_hook(partial(self._scaled, number)).remove)
            yield self

    def _scaled(self, number: int, projection: Any, args: tuple, values: torch.Tensor) -> torch.Tensor:
        if self._reading is None or get_ident() != self._thread:
            return values
        if not self._reading.sure:
            raise ValueError(
                "A negative prompt says what the prompt says, so which of the rows that the network is shown are the "
                "prompt's is not clear: give another negative prompt."
            )
        scaled = values.unflatten(-1, (len(self._chosen[number]), -1)).clone()  # (row, token, head, channel)
        scaled[self._reading.rows] *= self._factors[number].to(values.dtype)
        return scaled.flatten(-2)


def words_in(prompt: Prompt | None, n_tokens: int) -> torch.Tensor:
    """(token) bool, the tokens that are a prompt's own: no start, no end, no padding and no instructions."""
    if prompt is None:
        raise ValueError("the words of embeddings made elsewhere are not known: have the pipeline encode its prompts")
    places = torch.zeros(n_tokens, dtype=torch.bool)
    for tokens in prompt:
        special, own = set(tokens.tokenizer.all_special_ids), tokens.own or [True] * len(tokens.ids)
        places[[tokens.first + at for at, i in enumerate(tokens.ids) if own[at] and i not in special]] = True
    return places
