"""Which tokens an embedding was made from: compared with all that the text encoders have put out.

Of every hidden state only some random sums of its channels are kept. Equal embeddings have equal sums, and different
ones do not.
"""

from collections import deque
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch

from ..models.families import Text
from ..models.tokens import Prompt, Tokens, content, own_tokens

SUMS = 16  # random sums of channels by which embeddings are compared: what is kept of them
TOLERANCE = 0.01  # of a token's length: float16 rounds to 0.001, two words differ by 0.3 and more
WEIGHTS = 0.2  # the least weight of a word in a weighted prompt
RUNS = 64  # of the text encoders, the last that are remembered


@dataclass(frozen=True)
class Run:
    """What a text encoder read (row, token) and put out, as sums (state, row, token, sum) of each hidden state."""

    text: Text
    ids: list[list[int]]
    width: int  # channels
    sums: torch.Tensor

    @property
    def tokenizer(self) -> Any:
        return self.text.tokenizer

    @cached_property
    def states(self) -> np.ndarray:
        return self.sums.cpu().numpy()

    @cached_property
    def lengths(self) -> np.ndarray:
        """(state, row, token)."""
        return np.linalg.norm(self.states, axis=-1)

    @cached_property
    def empty(self) -> list[int]:
        """What the encoder reads around an empty prompt."""
        return self.text.framed("") if self.text.framed else []

    def own(self, row: int) -> list[bool] | None:
        """Which tokens of a row are the prompt's own; None: all."""
        if self.text.framed is None:
            return None
        return own_tokens(self.ids[row], self.empty, self.tokenizer.pad_token_id)


class Embeddings:
    """What text encoders have made of texts, the last `RUNS` runs."""

    def __init__(self) -> None:
        self.runs: deque[Run] = deque(maxlen=RUNS)

    def on_text_encoder(self, text: Text, args: tuple, kwargs: dict, output: Any) -> None:
        """A text encoder ran: remember what it read, and what became of it."""
        ids = args[0] if args else kwargs.get("input_ids")
        if ids is None:
            return
        inner = getattr(text.encoder, "text_model", text.encoder)
        normalise = getattr(inner, "final_layer_norm", None)
        outputs = output if isinstance(output, tuple) else tuple(output.values())
        states = [value for value in outputs if torch.is_tensor(value)]
        for layers in (value for value in outputs if isinstance(value, tuple)):
            states += layers
            if isinstance(normalise, torch.nn.LayerNorm):  # `clip_skip` takes an earlier layer, normalised
                states += [normalise.forward(layer) for layer in layers]
        states = [state for state in states if torch.is_tensor(state) and state.ndim == 3]
        if states and states[-1].shape[:2] != ids.shape:  # ChatGLM puts out (token, row, channel)
            states = [state.transpose(0, 1) for state in states]
        states = [state for state in states if state.shape[:2] == ids.shape and state.shape[2] == states[-1].shape[2]]
        if states:
            sums = torch.stack([summed(state) for state in states])
            self.runs.append(Run(text, ids.tolist(), states[0].shape[-1], sums))

    def decipher(self, sums: "Sums", row: int) -> Prompt | None:
        """The tokens of a row, stretch by stretch; [] for a row of zeros, None if they are not known."""
        prompt: Prompt = []
        first = 0
        while first < sums.n_tokens:
            if not sums.of(sums.width)[row, first].any():  # padding, or an encoder that the pipeline lacks
                first += 1
                continue
            nearest = None
            for measure in (_distances, self._distances_weighted):
                for run in self.runs:
                    stretch = sums.of(run.width)[row, first : first + len(run.ids[0])]
                    if run.width <= sums.width and len(stretch) == len(run.ids[0]):
                        distances = measure(run, stretch).min(axis=0)
                        i = int(distances.argmin())
                        if distances[i] <= (TOLERANCE if nearest is None else nearest[0]):
                            nearest = distances[i], run.tokenizer, run.ids[i], run.own(i)
                if nearest is not None:
                    break
            if nearest is None:
                return self._by_token(sums, row) if not prompt else None
            _, tokenizer, ids, own = nearest
            if (
                prompt
                and own is None
                and prompt[-1].tokenizer is tokenizer
                and prompt[-1].first + len(prompt[-1].ids) == first
            ):
                prompt[-1].ids = prompt[-1].ids + ids  # a long prompt, encoded in parts
            else:
                prompt.append(Tokens(tokenizer, ids, first, own))
            first += len(ids)
        return prompt

    def _by_token(self, sums: "Sums", row: int) -> Prompt | None:
        """The tokens of a row that holds some of those that the encoder read: without an instruction before the prompt,
        or with zeros in place of padding."""
        for run in self.runs:
            if run.width > sums.width:
                continue
            seen = sums.of(run.width)[row]
            places = np.flatnonzero(seen.any(axis=-1))
            for i, ids in enumerate(run.ids):
                for states in run.states[:, i]:
                    products = seen[places] @ states.T
                    lengths = (states**2).sum(axis=-1)
                    squares = (seen[places] ** 2).sum(axis=-1)[:, None] + lengths - 2 * products
                    nearest = squares.argmin(axis=-1)
                    away = np.linalg.norm(seen[places] - states[nearest], axis=-1)
                    if (away <= TOLERANCE * np.sqrt(lengths[nearest])).all():
                        own, padding = run.own(i), run.tokenizer.pad_token_id
                        kept = np.full(len(seen), -1)
                        kept[places] = nearest
                        return [
                            Tokens(
                                run.tokenizer,
                                [padding if place < 0 else ids[place] for place in kept],
                                0,
                                [place >= 0 and (own is None or own[place]) for place in kept],
                            )
                        ]
        return None

    def _distances_weighted(self, run: Run, stretch: np.ndarray) -> np.ndarray:
        """As `_distances`, to the run's states with some words weighted: moved away from 0 or from the empty prompt."""
        lengths = run.lengths
        best = np.full(lengths.shape[:2], np.inf)
        empty = [
            other.states[:, [i]]
            for other in self.runs
            if other.tokenizer is run.tokenizer and other.states[:, 0].shape == run.states[:, 0].shape
            for i, ids in enumerate(other.ids)
            if not content(run.tokenizer, ids)
        ]
        for base in (0.0, *empty[:1]):
            away, moved = run.states - base, stretch - base
            weights = (moved * away).sum(-1) / ((away**2).sum(-1) + 1e-12)
            rest = np.linalg.norm(moved - weights[..., None] * away, axis=-1) / (lengths + 1e-12)
            likely = (weights > WEIGHTS) | (np.linalg.norm(away, axis=-1) < TOLERANCE * lengths)
            best = np.minimum(best, np.where(likely.all(-1), rest.max(-1), np.inf))
        return best


class Sums:
    """Random sums of the channels of a call's text, for every width of channels that is asked for."""

    def __init__(self, text: torch.Tensor) -> None:
        self.text, (_, self.n_tokens, self.width) = text.detach(), text.shape
        self._by_width: dict[int, np.ndarray] = {}

    def of(self, width: int) -> np.ndarray:
        """(row, token, sum) of the first channels."""
        if width not in self._by_width:
            self._by_width[width] = summed(self.text[..., :width]).cpu().numpy()
        return self._by_width[width]

    def key(self, row: int) -> bytes:
        return self.of(self.width)[row].tobytes()

    def same(self, row: int, other: int) -> bool:
        values = self.of(self.width)
        return near(values[row], values[other])

    def is_in(self, row: int, embeddings: torch.Tensor) -> bool:
        """Whether a row is one of these embeddings (row, token, channel)."""
        if embeddings.shape[1:] != self.text.shape[1:]:
            return False
        others = summed(embeddings.detach()).cpu().numpy()
        return any(near(self.of(self.width)[row], other) for other in others)


def summed(values: torch.Tensor) -> torch.Tensor:
    """(..., channel) -> (..., sum): equal embeddings have equal sums, and different ones do not."""
    with torch.autocast(values.device.type, enabled=False):
        return values.detach().float() @ _signs(values.shape[-1], values.device)


@lru_cache(maxsize=8)
def _signs(width: int, device: torch.device) -> torch.Tensor:
    return torch.randn((width, SUMS), generator=torch.Generator().manual_seed(0)).to(device, non_blocking=True)


def identity(tensor: torch.Tensor) -> tuple | None:
    """What a tensor has in common with itself only, until it is written to; None in inference mode, which hides it."""
    if tensor.is_inference():
        return None
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version


def _distances(run: Run, stretch: np.ndarray) -> np.ndarray:
    """(state, row) the largest distance of a token from the run's, in shares of its length."""
    return (np.linalg.norm(run.states - stretch, axis=-1) / (run.lengths + 1e-12)).max(axis=-1)


def near(one: np.ndarray, other: np.ndarray) -> bool:
    lengths = np.linalg.norm(other, axis=-1)
    return bool((np.linalg.norm(one - other, axis=-1) <= TOLERANCE * lengths + 1e-12).all())


def device_of(encoder: Any, pipe: Any) -> torch.device:
    """Where a text encoder runs; weights that are moved in and out have hooks that say so."""
    hooks = (getattr(module, "_hf_hook", None) for module in encoder.modules())
    devices = (getattr(hook, "execution_device", None) for hook in hooks)
    device = next((device for device in devices if device is not None), None)
    return getattr(pipe, "_execution_device", encoder.device) if device is None else torch.device(device)
