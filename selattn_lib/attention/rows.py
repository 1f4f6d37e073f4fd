"""Whose attention it is: every row of every call of the network is known by the text embedding that it was given.

Nothing is told by where a row stands in its batch. What the text encoders read and put out is seen; a row whose
embedding is one of these has those tokens. Which texts are prompts the pipeline's own call says, or `prompt=`; where
neither does, a row is the picture's if no other text is shown the same latents. Whatever stays unclear is refused.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..models.families import Call, Text
from ..models.tokens import Prompt, Tokens, content, ids_of, own_tokens
from .embeddings import Embeddings, Sums, device_of, identity
from .pipeline_calls import PipelineCall

TEXTS = 8  # embeddings at a time of which is remembered whose they are


@dataclass(frozen=True)
class Reading:
    """One call of the network that counts: the rows that draw the pictures, in order, and what each of them read.

    `prompts` has None for a text whose tokens are not known, `n_prompts` says how many prompts there are where the
    pipeline knows it (several pictures may have the same), `new` that a batch of pictures begins, `sure` that the rows
    are not those of negative prompts that say the same, which show the same attention.
    """

    rows: slice | torch.Tensor
    prompts: list[Prompt | None]
    n_prompts: int | None
    new: bool
    sure: bool


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
    encode : function
        Has the pipeline encode prompts, so many tokens of each, its own way; None if it has none.
    """

    pipe: Any
    texts: list[Text]
    given: list[str] | None
    channels: int
    encode: Callable[[list[str], int], torch.Tensor | None]
    call: PipelineCall | None = None

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._embeddings = Embeddings()
        self.begin(None)

    def begin(self, call: PipelineCall | None) -> None:
        """A call of the pipeline begins, or (None) the pipeline is left and somebody may call its network."""
        self.call = call
        self._keys: list | None = None  # what tells the last texts apart
        self._known: dict[Any, tuple[Sequence[torch.Tensor], Any]] = {}  # texts that were read, the last few
        self._encoded, self._encoded_given = False, False
        self._loop: tuple[float, float, bool] | None = None  # first timestep, last one, whether others came between
        self._repeats = 0  # calls at the last timestep
        self._stray: torch.Tensor | None = None  # latents shown with a text that is not the prompt's, and not since
        self._young = False  # whether the call before began pictures that several given prompts are of, in a loop
        self._last: torch.Tensor | None = None  # latents of the last call that counted

    def on_text_encoder(self, text: Text, encoder: Any, args: tuple, kwargs: dict, output: Any) -> None:
        """A text encoder ran."""
        self._embeddings.on_text_encoder(text, args, kwargs, output)
        self._encoded = True

    @property
    def encoded_here(self) -> bool:
        """Whether a text encoder ran in this block."""
        return bool(self._embeddings.runs)

    def read(self, call: Call) -> Reading | None:
        """Which rows of a call draw the pictures, and what they read; None if the call has only other rows.

        Raises ValueError if that is not clear.
        """
        key = None if any(identity(text) is None for text in call.texts) else tuple(map(identity, call.texts))
        if key is None or key not in self._known:
            if len(call.text) != len(call.sample):
                raise ValueError(f"The network got {len(call.sample)} latents and {len(call.text)} texts.")
            if len(self._known) == TEXTS:
                del self._known[next(iter(self._known))]
            # The texts are kept so that no other tensor can take their place in memory.
            self._known[key] = call.texts, self._choose(call)
        _, chosen = self._known[key]
        if isinstance(chosen, str):
            if chosen == "stray":
                self._check_strays(call, counts=False)
            return None
        rows, prompts, keys, sure = chosen
        if not sure and self.call is not None and self.call.arguments.get("guess_mode"):
            raise ValueError(
                "With guess_mode=True and a negative prompt that says what the prompt says, which row is whose is not "
                "clear: give another negative prompt."
            )
        if self.call is not None and self._keys not in (None, keys) and _equal(self._last, call.sample):
            raise ValueError(
                "The network is shown the same latents with two texts, and which is the prompt is not clear."
            )
        self._check_strays(call, counts=True)
        new = self._begins(call, keys)
        if self._young and not new:  # the second call, where pictures have parted that began with the same noise
            self._alone(call, Sums(call.text), prompts, rows)
        self._young = new and self.call is None and len(self.given or ()) > 1
        picked = slice(rows[0], rows[-1] + 1)
        if rows != list(range(rows[0], rows[-1] + 1)):
            picked = torch.tensor(rows, device=call.sample.device)  # type: ignore[assignment]
        return Reading(picked, prompts, self.call.n_prompts if self.call else None, new, sure)

    def check_strays(self) -> None:
        """ValueError if the last latents were shown with texts that are not the prompt's only."""
        if self._stray is not None:
            raise ValueError(f"The network was not shown what the model makes of {self._asked()} to the end.")

    def _choose(self, call: Call) -> tuple[list[int], list[Prompt | None], list, bool] | str:
        """The rows that draw the pictures, what they read, what tells texts apart, and whether no negative prompt could
        be taken for a prompt; or "negative", or "stray"."""
        sums = Sums(call.text)
        prompts = [self._embeddings.decipher(sums, row) for row in range(len(call.text))]
        mine = self._prompt_rows(sums, prompts)
        if not mine and self.given and not self._encoded_given and not self._blind:
            self._encode_given(call.text.shape[1])
            prompts = [self._embeddings.decipher(sums, row) for row in range(len(call.text))]
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
                    f"The pipeline's embeddings are not what its text encoder makes of {self._asked()}. Give the text "
                    "as the model reads it, without weights or brackets. Blends and weights below 1 cannot be "
                    "captured; with clip_skip, encode inside the block."
                )
            return "stray"
        elif self.call and self.call.n_prompts and not self._blind:
            rows = self._unexpected(call, sums, prompts, others)
        else:
            rows = self._alone(call, sums, prompts, others)
        if self.given and self._blind:
            return rows, self._by_position(len(rows), call.text.shape[1]), [None] * len(rows), True
        keys = [sums.key(row) if prompts[row] is None else read_ids(prompts[row]) for row in rows]
        return rows, [prompts[row] for row in rows], keys, self._are_prompts(call, sums, prompts, rows)

    def _prompt_rows(self, sums: Sums, prompts: list[Prompt | None]) -> list[int]:
        """The rows whose text is a prompt's, as the caller or the pipeline's call says."""
        embeddings = None if self.call is None else self.call.arguments.get("prompt_embeds")
        if embeddings is not None and (not self.given or self._blind):
            return [row for row in range(len(prompts)) if sums.is_in(row, embeddings)]
        return [row for row, prompt in enumerate(prompts) if prompt and self._says(prompt, "prompt")]

    def _is_negative(self, sums: Sums, prompts: list[Prompt | None], row: int) -> bool:
        """Whether a row that is no prompt's is known to be a negative one, or of an empty text."""
        embeddings = None if self.call is None else self.call.arguments.get("negative_prompt_embeds")
        if embeddings is not None and sums.is_in(row, embeddings):
            return True
        prompt = prompts[row]
        return prompt is not None and (not any(read_ids(prompt)) or self._says(prompt, "negative_prompt"))

    def _says(self, prompt: Prompt, kind: str) -> bool:
        """Whether the caller or the pipeline's call says that a text is a prompt, or a negative one."""
        stretches = {text.tokenizer: text for text in self.texts}

        def said_of(tokens: Tokens) -> list[bool]:
            stretch = stretches.get(tokens.tokenizer, Text(tokens.tokenizer, None, None))
            texts = self.call.texts(kind, stretch.argument) if self.call else []
            texts = self.given if self.given and kind == "prompt" else texts
            return [_reads(tokens, text, stretch) for text in texts]

        said = [said_of(tokens) for tokens in prompt]
        return any(all(stretch) for stretch in zip(*said, strict=False))

    def _pictures(self, call: Call, sums: Sums, rows: list[int]) -> list[int]:
        """Of rows with prompts, one for each picture: copies that guidance perturbs come after the picture's own."""
        expected = self.call.n_images if self.call else None
        others = len(call.text) - len(rows)
        if expected == len(rows) or (expected is None and (len(rows) == 1 or others >= len(rows))):
            return rows
        alike: list[list[int]] = []  # rows of the same text and latents, for each picture
        for row in rows:
            for group in alike:
                if sums.same(row, group[0]) and self._same_latents(call, row, group[0]):
                    group.append(row)
                    break
            else:
                alike.append([row])
        # A batch is blocks of rows, one a picture: where some negative prompts say what the prompts say, the block of
        # the prompts is known by the pictures for which they do not.
        n = len(alike)
        blocks = {group[0] // n for group in alike if len(group) == 1}
        first = [next((row for row in group if row // n in blocks), group[0]) for group in alike]
        first.sort(key=lambda row: row % n)
        if len(first) == expected or (expected is None and len(first) in (len(rows), others)):
            return first
        if expected is None and self.given:
            return rows if len(rows) == len(self.given) else first
        if expected is None:
            raise ValueError(
                f"A loop that is not the pipeline's shows the network {len(rows)} rows of which {len(first)} differ in "
                "latents or text: pictures that are the same, or copies that guidance perturbs? Say it: "
                "prompt=[...], one prompt for each picture."
            )
        raise ValueError(
            f"{len(rows)} of the {len(call.text)} rows that the network is shown at a time have the prompt's text, for "
            f"{expected} picture{'s' * (expected > 1)}: capture does not know which of them the pictures are."
        )

    def _are_prompts(self, call: Call, sums: Sums, prompts: list[Prompt | None], rows: list[int]) -> bool:
        """Whether none of the rows that draw the pictures could as well be that of a negative prompt."""
        others = [row for row in range(len(call.text)) if row not in rows]
        twins = [
            any(sums.same(row, other) and self._same_latents(call, row, other) for other in others)
            for row in rows
            if (prompt := prompts[row]) is not None and self._says(prompt, "negative_prompt")
        ]
        return not any(twins) or (twins.count(True) < len(rows) and len({row // len(rows) for row in rows}) == 1)

    def _alone(self, call: Call, sums: Sums, prompts: list[Prompt | None], rows: list[int]) -> list[int]:
        """The rows, if no two of them show the same latents with different texts."""
        for row in rows:
            for other in rows[: rows.index(row)]:
                if not sums.same(row, other) and self._same_latents(call, row, other):
                    raise ValueError(
                        f"The network is shown the same latents with {_shown(prompts[other])} and with "
                        f"{_shown(prompts[row])}: which of them is the prompt? Say it: prompt=..."
                    )
        return self._pictures(call, sums, rows)

    def _unexpected(self, call: Call, sums: Sums, prompts: list[Prompt | None], rows: list[int]) -> list[int]:
        """Rows with texts of which the pipeline's call says nothing: swapped half-way, or read in a way of its own."""
        if all(prompts[row] for row in rows) and len(rows) == self.call.n_images:  # type: ignore[union-attr]
            return self._alone(call, sums, prompts, rows)
        texts = " and ".join(dict.fromkeys(_shown(prompts[row]) for row in rows))
        raise ValueError(
            f"The network is shown {texts}, while the pipeline was called with {self._asked()}, so capture does not "
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
            self._loop, self._repeats = (now, now, False), 1
            return True
        start, last_one, moved = self._loop
        again = moved and now == start
        if again or ((changed or encoded) and now > last_one) or (encoded and now == last_one and not self.given):
            self._loop, self._repeats = (now, now, False), 1
            return True
        if changed:
            self._keys = None
            raise ValueError(
                "The network is shown another text half-way, or a negative prompt in a call of its own, by a loop that "
                "is not the pipeline's: say what the prompts are, prompt=..., or use one `with` block for each text."
            )
        self._loop = start, now, moved or now != start
        self._repeats = self._repeats + 1 if now == last_one else 1
        timesteps = getattr(getattr(self.pipe, "scheduler", None), "timesteps", None)
        if self._repeats > 1 and self._repeats > (0 if timesteps is None else int((timesteps == now).sum())):
            raise ValueError(
                f"The network is shown the prompt {self._repeats} times at timestep {now:g} by a loop that is not the "
                "pipeline's, more often than its scheduler has this timestep: which of the calls draws the picture is "
                "not clear. Have a `with` block around each call that draws, and around no other."
            )
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

    def _asked(self) -> str:
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
        if self.encode([*self.given, ""], n_tokens) is not None:
            self._encoded = encoded
            return
        for text, _, length in self._stretches(n_tokens):
            ids = _padded(text, [*self.given, ""], length).to(device_of(text.encoder, self.pipe))
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


def read_ids(prompt: Prompt | None) -> list[list[int]]:
    """The ids of a text's own tokens, stretch by stretch."""
    return [tokens.content for tokens in prompt or []]


def _equal(one: torch.Tensor | None, other: torch.Tensor) -> bool:
    return one is other or (one is not None and one.shape == other.shape and torch.equal(one, other))


def _reads(tokens: Tokens, text: str, stretch: Text) -> bool:
    """Whether tokens are those of a text, as far as the model reads it."""
    tokenizer, ids = tokens.tokenizer, tokens.content
    ways = [content(tokenizer, ids_of(tokenizer, text))]
    if stretch.framed is not None:
        framed, empty = stretch.framed(text), stretch.framed("")
        ways.append(Tokens(tokenizer, framed, 0, own_tokens(framed, empty, tokenizer.pad_token_id)).content)
    cut = len(ids) >= len(tokens.ids) - 2
    if tokens.own is not None:  # with nothing after it but the end of all text
        ended = tokens.own[-1] or tokens.ids[-1] in tokenizer.all_special_ids
        cut = bool(ids) and ended and tokenizer.pad_token_id not in tokens.ids
    return any(ids == expected or (cut and ids == expected[: len(ids)]) for expected in ways)


def _padded(text: Text, prompts: Sequence[str], length: int) -> torch.Tensor:
    settings = {"truncation": True, "max_length": length, "padding": "max_length"}
    return torch.tensor([ids_of(text.tokenizer, prompt, **settings) for prompt in prompts])


def _shown(prompt: Prompt | None) -> str:
    if prompt is None:
        return "a text that was encoded elsewhere"
    return repr(prompt[0].tokenizer.decode(read_ids(prompt)[0]).strip()) if prompt else "nothing"
