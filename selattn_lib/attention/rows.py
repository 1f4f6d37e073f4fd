"""Whose attention it is: every row of every call of the network is known by the text embedding that it was given.

Nothing is told by where a row stands in its batch. What the text encoders read and put out is seen; a row whose
embedding is one of these has those tokens. Which texts are prompts the pipeline's own call says, or `prompt=`; where
neither does, a row is the picture's if no other text is shown the same latents. Whatever stays unclear is refused.
"""

import inspect
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from threading import RLock
from typing import Any

import numpy as np
import torch

from ..models.families import Call, Text
from ..models.tokens import Prompt, Tokens, content, ids_of

SUMS = 16  # random sums of channels by which embeddings are compared: what is kept of them
TOLERANCE = 0.01  # of a token's length: float16 rounds to 0.001, two words differ by 0.3 and more
WEIGHTS = 0.2  # the least weight of a word in a weighted prompt
TEXTS = 8  # embeddings at a time of which is remembered whose they are
RUNS = 64  # of the text encoders, the last that are remembered
SLACK = 32  # pixels by which pipelines round a size


@dataclass(frozen=True)
class Reading:
    """One call of the network that counts: the rows that draw the pictures, in order, and what each of them read.

    `prompts` has None for a text whose tokens are not known, `n_prompts` says how many prompts there are where the
    pipeline knows it (several pictures may have the same), `new` that a batch of pictures begins.
    """

    rows: slice | torch.Tensor
    prompts: list[Prompt | None]
    n_prompts: int | None
    new: bool


@dataclass
class PipelineCall:
    """The arguments of a pipeline's own call, by name, defaults included."""

    arguments: dict[str, Any]

    def texts(self, kind: str, argument: str = "prompt") -> list[str]:
        """The strings given as "prompt" or "negative_prompt" to the encoder of `argument`, such as "prompt_2"."""
        values = self.arguments.get(kind + argument.removeprefix("prompt")) or self.arguments.get(kind)
        return [values] if isinstance(values, str) else [str(value) for value in values or []]

    @property
    def n_prompts(self) -> int | None:
        """How many prompts, if that can be seen."""
        embeddings = self.arguments.get("prompt_embeds")
        return len(self.texts("prompt")) or (None if embeddings is None else len(embeddings)) or None

    @property
    def n_images(self) -> int | None:
        """How many pictures, if that can be seen."""
        return self.n_prompts and self.n_prompts * (self.arguments.get("num_images_per_prompt") or 1)

    def check_size(self, latent: tuple[int, int], factor: int) -> None:
        """ValueError if the network sees latents of less than the picture."""
        if self.arguments.get("padding_mask_crop") is not None:
            raise ValueError(
                "padding_mask_crop shows the network a part of the picture only, so its maps are not the picture's: "
                "cut the picture yourself, and capture the part without padding_mask_crop."
            )
        size = self.arguments.get("height") or 0, self.arguments.get("width") or 0
        sees = latent[0] * factor, latent[1] * factor
        if all(size) and any(abs(side - seen) >= SLACK for side, seen in zip(size, sees, strict=True)):
            raise ValueError(
                f"The picture has {size[0]} x {size[1]} pixels, but the network is shown {sees[0]} x {sees[1]} of them "
                "at a time: maps of such parts are not maps of the picture."
            )


@dataclass(frozen=True)
class Run:
    """What a text encoder read (row, token) and put out, as sums (state, row, token, sum) of each hidden state."""

    tokenizer: Any
    ids: list[list[int]]
    width: int  # channels
    sums: torch.Tensor

    @cached_property
    def states(self) -> np.ndarray:
        return self.sums.cpu().numpy()


@dataclass
class Rows:
    """Reads the calls of one pipeline's network.

    Parameters
    ----------
    pipe, texts
        The pipeline, and the stretches of text that its network sees.
    given : list of str or None
        The prompts, where the caller says so.
    channels : int
        How many channels of the network's sample are latents; others hold masks or further pictures.
    """

    pipe: Any
    texts: list[Text]
    given: list[str] | None
    channels: int
    runs: deque[Run] = field(default_factory=lambda: deque(maxlen=RUNS))
    call: PipelineCall | None = None

    def __post_init__(self) -> None:
        self.begin(None)

    def begin(self, call: PipelineCall | None) -> None:
        """A call of the pipeline begins, or (None) the pipeline is left and somebody may call its network."""
        self.call = call
        self._keys: list | None = None  # what tells the last texts apart
        self._known: dict[Any, tuple[torch.Tensor, Any]] = {}  # texts that were read, the last few
        self._encoded, self._encoded_given = False, False
        self._loop: tuple[float, float, bool] | None = None  # first timestep, last one, whether others came between
        self._stray: torch.Tensor | None = None  # latents shown with a text that is not the prompt's, and not since
        self._last: torch.Tensor | None = None  # latents of the last call that counted

    def on_text_encoder(self, text: Text, args: tuple, kwargs: dict, output: Any) -> None:
        """A text encoder ran: remember what it read, and what became of it."""
        ids = args[0] if args else kwargs.get("input_ids")
        if ids is None:
            return
        inner = getattr(text.encoder, "text_model", text.encoder)
        normalise = getattr(inner, "final_layer_norm", None)
        outputs = output if isinstance(output, tuple) else tuple(output.values())
        states = [value for value in outputs if torch.is_tensor(value) and value.shape[:2] == ids.shape]
        for layers in (value for value in outputs if isinstance(value, tuple)):
            states += layers
            if isinstance(normalise, torch.nn.LayerNorm):  # `clip_skip` takes an earlier layer, normalised
                states += [normalise.forward(layer) for layer in layers]
        states = [state for state in states if state.ndim == 3]
        if states:
            sums = torch.stack([summed(state) for state in states])
            self.runs.append(Run(text.tokenizer, ids.tolist(), states[0].shape[-1], sums))
            self._encoded = True

    def read(self, call: Call) -> Reading | None:
        """Which rows of a call draw the pictures, and what they read; None if the call has only other rows.

        Raises ValueError if that is not clear.
        """
        key = identity(call.text)
        if key is None or key not in self._known:
            if len(call.text) != len(call.sample):
                raise ValueError(f"The network got {len(call.sample)} latents and {len(call.text)} texts.")
            if len(self._known) == TEXTS:
                del self._known[next(iter(self._known))]
            # The text is kept so that no other tensor can take its place in memory.
            self._known[key] = call.text, self._choose(call)
        _, chosen = self._known[key]
        if isinstance(chosen, str):
            if chosen == "stray":
                self._check_strays(call, counts=False)
            return None
        rows, prompts, keys = chosen
        self._check_strays(call, counts=True)
        new = self._begins(call, keys)
        picked = slice(rows[0], rows[-1] + 1)
        if rows != list(range(rows[0], rows[-1] + 1)):
            picked = torch.tensor(rows, device=call.sample.device)  # type: ignore[assignment]
        return Reading(picked, prompts, self.call.n_prompts if self.call else None, new)

    def check_strays(self) -> None:
        """ValueError if the last latents were shown with texts that are not the prompt's only."""
        if self._stray is not None:
            raise ValueError(f"The network was not shown what the model makes of {self._wanted()} to the end.")

    def _choose(self, call: Call) -> tuple[list[int], list[Prompt | None], list] | str:
        """The rows that draw the pictures, what they read, and what tells texts apart; or "negative", or "stray"."""
        sums = _Sums(call.text)
        prompts = [self._decipher(sums, row) for row in range(len(call.text))]
        mine = self._prompt_rows(sums, prompts)
        if not mine and self.given and not self._encoded_given and not self._blind:
            self._encode_given(call.text.shape[1])
            prompts = [self._decipher(sums, row) for row in range(len(call.text))]
            mine = self._prompt_rows(sums, prompts)
        others = [row for row in range(len(call.text)) if row not in mine and not self._is_negative(sums, prompts, row)]
        if mine:
            rows = self._pictures(call, sums, mine)
        elif not others:
            return "negative"
        elif self.given and not self._blind:
            embeddings = None if self.call is None else self.call.arguments.get("prompt_embeds")
            if embeddings is not None and any(sums.is_in(row, embeddings) for row in others):
                raise ValueError(
                    f"The pipeline's embeddings are not what its text encoder makes of {self._wanted()}. Give the text "
                    "as the model reads it, without weights or brackets. Blends and weights below 1 cannot be "
                    "captured; with clip_skip, encode inside the block."
                )
            return "stray"
        elif self.call and self.call.n_prompts and not self._blind:
            rows = self._unexpected(call, sums, prompts, others)
        else:
            rows = self._alone(call, sums, prompts, others)
        if self.given and self._blind:
            return rows, self._by_position(len(rows), call.text.shape[1]), [None] * len(rows)
        keys = [sums.key(row) if prompts[row] is None else read_ids(prompts[row]) for row in rows]
        return rows, [prompts[row] for row in rows], keys

    def _decipher(self, sums: "_Sums", row: int) -> Prompt | None:
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
                            nearest = distances[i], run.tokenizer, run.ids[i]
                if nearest is not None:
                    break
            if nearest is None:
                return None
            _, tokenizer, ids = nearest
            if prompt and prompt[-1].tokenizer is tokenizer and prompt[-1].first + len(prompt[-1].ids) == first:
                prompt[-1].ids = prompt[-1].ids + ids  # a long prompt, encoded in parts
            else:
                prompt.append(Tokens(tokenizer, ids, first))
            first += len(ids)
        return prompt

    def _distances_weighted(self, run: Run, stretch: np.ndarray) -> np.ndarray:
        """As `_distances`, to the run's states with some words weighted: moved away from 0 or from the empty prompt."""
        lengths = np.linalg.norm(run.states, axis=-1)
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

    def _prompt_rows(self, sums: "_Sums", prompts: list[Prompt | None]) -> list[int]:
        """The rows whose text is a prompt's, as the caller or the pipeline's call says."""
        embeddings = None if self.call is None else self.call.arguments.get("prompt_embeds")
        if embeddings is not None and (not self.given or self._blind):
            return [row for row in range(len(prompts)) if sums.is_in(row, embeddings)]
        return [row for row, prompt in enumerate(prompts) if prompt and self._says(prompt, "prompt")]

    def _is_negative(self, sums: "_Sums", prompts: list[Prompt | None], row: int) -> bool:
        """Whether a row that is no prompt's is known to be a negative one, or of an empty text."""
        embeddings = None if self.call is None else self.call.arguments.get("negative_prompt_embeds")
        prompt = prompts[row]
        if prompt is None:
            return embeddings is not None and sums.is_in(row, embeddings)
        if embeddings is not None and sums.is_in(row, embeddings):
            return True
        return not any(read_ids(prompt)) or (self.call is not None and self._says(prompt, "negative_prompt"))

    def _says(self, prompt: Prompt, kind: str) -> bool:
        """Whether the caller or the pipeline's call says that a text is a prompt, or a negative one."""
        arguments = {text.tokenizer: text.argument for text in self.texts}

        def texts(tokens: Tokens) -> list[str]:
            if self.given and kind == "prompt":
                return self.given
            return self.call.texts(kind, arguments.get(tokens.tokenizer, "prompt")) if self.call else []

        said = [[_reads(tokens, text) for text in texts(tokens)] for tokens in prompt]
        return any(all(stretch) for stretch in zip(*said, strict=False))

    def _pictures(self, call: Call, sums: "_Sums", rows: list[int]) -> list[int]:
        """Of rows with prompts, one for each picture: copies that guidance perturbs come after the picture's own."""
        expected = self.call.n_images if self.call else None
        others = len(call.text) - len(rows)
        if expected == len(rows) or (expected is None and not 0 < others < len(rows)):
            return rows
        first: list[int] = []
        for row in rows:
            if not any(sums.same(row, other) and self._same_latents(call, row, other) for other in first):
                first.append(row)
        if len(first) == (expected or others):
            return first
        if expected is None:
            return rows
        raise ValueError(
            f"{len(rows)} of the {len(call.text)} rows that the network is shown at a time have the prompt's text, for "
            f"{expected} picture{'s' * (expected > 1)}: capture does not know which of them the pictures are."
        )

    def _alone(self, call: Call, sums: "_Sums", prompts: list[Prompt | None], rows: list[int]) -> list[int]:
        """The rows, if no two of them show the same latents with different texts."""
        for row in rows:
            for other in rows[: rows.index(row)]:
                if not sums.same(row, other) and self._same_latents(call, row, other):
                    raise ValueError(
                        f"The network is shown the same latents with {_shown(prompts[other])} and with "
                        f"{_shown(prompts[row])}: which of them is the prompt? Say it: prompt=..."
                    )
        return self._pictures(call, sums, rows)

    def _unexpected(self, call: Call, sums: "_Sums", prompts: list[Prompt | None], rows: list[int]) -> list[int]:
        """Rows with texts of which the pipeline's call says nothing: encoded half-way, or read in a way of its own."""
        changed = self._keys is None or self._encoded
        if changed and all(prompts[row] for row in rows) and len(rows) == self.call.n_images:  # type: ignore
            return self._alone(call, sums, prompts, rows)
        texts = " and ".join(dict.fromkeys(_shown(prompts[row]) for row in rows))
        raise ValueError(
            f"The network is shown {texts}, while the pipeline was called with {self._wanted()}, so capture does not "
            "know whose attention this is. Encode texts inside the block, one for each picture."
        )

    def _begins(self, call: Call, keys: list) -> bool:
        """Whether pictures begin: with the pipeline's call or, in a loop of one's own, where timesteps start over."""
        changed, encoded = keys != self._keys, self._encoded
        self._keys, self._encoded = keys, False
        if self.call is not None:
            self._loop, last = (0.0, 0.0, False), self._loop
            return last is None
        now = float(torch.as_tensor(call.timestep).max())
        if self._loop is None:
            self._loop = now, now, False
            return True
        start, last_one, moved = self._loop
        again = moved and now == start
        if again or ((changed or encoded) and now > last_one) or (encoded and now == last_one and not self.given):
            self._loop = now, now, False
            return True
        if changed:
            self._keys = None
            raise ValueError(
                "The network is shown another text half-way, or a negative prompt in a call of its own, by a loop that "
                "is not the pipeline's: say what the prompts are, prompt=..., or use one `with` block for each text."
            )
        self._loop = start, now, moved or now != start
        return False

    def _check_strays(self, call: Call, counts: bool) -> None:
        """A text that is not the prompt's may only be shown beside it, on the same latents: a negative prompt's."""
        latents = call.sample
        if self._stray is not None and not _equal(self._stray, latents):
            self.check_strays()
        beside = counts or (self._last is not None and _equal(self._last, latents))
        self._stray = None if beside else latents
        if counts:
            self._last = latents

    def _wanted(self) -> str:
        texts = self.given or (self.call.texts("prompt") if self.call else [])
        return f"prompt={texts!r}" if texts else "embeddings"

    def _same_latents(self, call: Call, row: int, other: int) -> bool:
        one, two = (call.sample[i][: self.channels] if call.sample.ndim == 4 else call.sample[i] for i in (row, other))
        return torch.equal(one, two)

    @property
    def _blind(self) -> bool:
        """Whether prompts were given, but the encoder that would make their embeddings is gone."""
        return bool(self.given) and any(text.tokenizer is not None and text.encoder is None for text in self.texts)

    def _by_position(self, n_rows: int, n_tokens: int) -> list[Prompt | None]:
        """The given prompts' tokens, padded as the pipeline pads them; nothing can be compared."""
        warnings.warn(
            "The text encoder is gone, so that capture cannot see whether the embeddings are those of `prompt`.",
            stacklevel=2,
        )
        assert self.given
        if n_rows % len(self.given):
            raise ValueError(f"{len(self.given)} prompts for {n_rows} pictures: expected one for each embedding.")
        prompts: list[Prompt] = [[] for _ in self.given]
        for text, first, length in self._stretches(n_tokens):
            for prompt, ids in zip(prompts, _padded(text, self.given, length).tolist(), strict=True):
                prompt.append(Tokens(text.tokenizer, ids, first))
        return [prompts[i * len(prompts) // n_rows] for i in range(n_rows)]

    @torch.no_grad()
    def _encode_given(self, n_tokens: int) -> None:
        """Run the text encoders on the given prompts, and on the empty one; `on_text_encoder` sees what they make."""
        assert self.given
        self._encoded_given, encoded = True, self._encoded
        for text, _, length in self._stretches(n_tokens):
            device = getattr(self.pipe, "_execution_device", text.encoder.device)
            ids = _padded(text, [*self.given, ""], length).to(device)
            text.encoder(ids, **({"output_hidden_states": True} if text.early else {}))
        self._encoded = encoded

    def _stretches(self, n_tokens: int) -> Iterator[tuple[Text, int, int]]:
        """(text, first token, length) of each stretch that the pipeline can make."""
        first = 0
        for text in self.texts:
            length = text.length or n_tokens - first
            if text.tokenizer is not None and length > 0:
                yield text, first, length
            first += length


class _Sums:
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
        return _near(values[row], values[other])

    def is_in(self, row: int, embeddings: torch.Tensor) -> bool:
        """Whether a row is one of these embeddings (row, token, channel)."""
        if embeddings.shape[1:] != self.text.shape[1:]:
            return False
        others = summed(embeddings.detach()).cpu().numpy()
        return any(_near(self.of(self.width)[row], other) for other in others)


def summed(values: torch.Tensor) -> torch.Tensor:
    """(..., channel) -> (..., sum): equal embeddings have equal sums, and different ones do not."""
    return values.float() @ _signs(values.shape[-1], values.device)


@lru_cache(maxsize=8)
def _signs(width: int, device: torch.device) -> torch.Tensor:
    return torch.randn((width, SUMS), generator=torch.Generator().manual_seed(0)).to(device, non_blocking=True)


def identity(tensor: torch.Tensor) -> tuple | None:
    """What a tensor has in common with itself only, until it is written to; None in inference mode, which hides it."""
    if tensor.is_inference():
        return None
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version


def read_ids(prompt: Prompt | None) -> list[list[int]]:
    """The ids of a text's own tokens, stretch by stretch."""
    return [content(tokens.tokenizer, tokens.ids) for tokens in prompt or []]


def _distances(run: Run, stretch: np.ndarray) -> np.ndarray:
    """(state, row) the largest distance of a token from the run's, in shares of its length."""
    lengths = np.linalg.norm(run.states, axis=-1)
    return (np.linalg.norm(run.states - stretch, axis=-1) / (lengths + 1e-12)).max(axis=-1)


def _near(one: np.ndarray, other: np.ndarray) -> bool:
    lengths = np.linalg.norm(other, axis=-1)
    return bool((np.linalg.norm(one - other, axis=-1) <= TOLERANCE * lengths + 1e-12).all())


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other))


def _reads(tokens: Tokens, text: str) -> bool:
    """Whether tokens are those of a text, as far as the model reads it."""
    ids, wanted = content(tokens.tokenizer, tokens.ids), content(tokens.tokenizer, ids_of(tokens.tokenizer, text))
    return ids == wanted or (len(ids) >= len(tokens.ids) - 2 and ids == wanted[: len(ids)])


def _padded(text: Text, prompts: Sequence[str], length: int) -> torch.Tensor:
    ids = [
        ids_of(text.tokenizer, prompt, truncation=True, max_length=length, padding="max_length") for prompt in prompts
    ]
    return torch.tensor(ids)


def _shown(prompt: Prompt | None) -> str:
    if prompt is None:
        return "a text that was encoded elsewhere"
    return (
        repr(prompt[0].tokenizer.decode(content(prompt[0].tokenizer, prompt[0].ids)).strip()) if prompt else "nothing"
    )


LOCK = RLock()


@contextmanager
def pipeline_calls(pipe: Any, listener: Callable[[PipelineCall], Any]) -> Iterator[None]:
    """Have `listener(call)`, a context manager, around every call of this one pipeline.

    A pipeline has no hooks. So, for the length of the block, its class is a subclass of its own that says when it is
    called; blocks may be nested, and may end in any order.
    """
    with LOCK:
        if not hasattr(type(pipe), "_call_listeners"):
            members = {"__call__": _told, "_call_listeners": [], "__module__": type(pipe).__module__}
            pipe.__class__ = type(type(pipe).__name__, (type(pipe),), members)
        type(pipe)._call_listeners.append(listener)
    try:
        yield
    finally:
        with LOCK:
            type(pipe)._call_listeners.remove(listener)
            if not type(pipe)._call_listeners:
                pipe.__class__ = type(pipe).__mro__[1]


def _told(pipe: Any, *args: Any, **kwargs: Any) -> Any:
    call = type(pipe).__mro__[1].__call__
    try:
        bound = inspect.signature(call).bind(pipe, *args, **kwargs)
        bound.apply_defaults()
        arguments = {**bound.arguments, **bound.arguments.get("kwargs", {})}
    except TypeError:  # which the pipeline says itself
        arguments = {}
    with ExitStack() as stack:
        for listener in list(type(pipe)._call_listeners):
            stack.enter_context(listener(PipelineCall(arguments)))
        return call(pipe, *args, **kwargs)
