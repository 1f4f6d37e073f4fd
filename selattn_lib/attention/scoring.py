"""Counting the votes of head relevance (Eq. 3) while a pipeline generates."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from diffusers import DiffusionPipeline

from ..maps.relevance import HeadRelevance
from ..models.families import Family, Outputs, Text, check_scored, split_heads, through_block
from ..models.tokens import word_tokens
from .embeddings import Embeddings, Sums, device_of
from .trace import Generation, Prompts, Trace

Concepts = Mapping[str, Sequence[str]]  # name -> words
WORDS_AT_ONCE = 64  # concept words encoded together
SPECIALS = 4  # tokens at most that an encoder puts before and after a word


class RelevanceCounter(Trace):
    """The votes of every head, in the images made inside a `with score_heads(...)` block."""

    def __init__(
        self,
        pipe: Any,
        concepts: Concepts,
        seed: int,
        units: Iterable[int] | None,
        start_token: bool | None,
        prompt: Prompts,
    ) -> None:
        super().__init__(pipe, prompt)
        check_scored(self.family, type(pipe).__name__)
        if not isinstance(concepts, Mapping):
            raise ValueError(f"concepts={concepts!r}: expected a mapping of the name of each concept to its words")
        for name, words in concepts.items():
            if isinstance(words, str) or not all(isinstance(word, str) for word in words):
                raise ValueError(
                    f"The words of {name} are {words!r}: expected a list of words, such as ['bear', 'cat']."
                )
        if empty := [name for name, words in concepts.items() if not words]:
            raise ValueError(f"These concepts have no words: {empty}")
        if len(concepts) < 2:
            raise ValueError(f"Heads vote among concepts; at least two are needed, not {list(concepts)}.")
        self.concepts = list(concepts)
        self._seed = seed
        self._units = None if units is None else list(units)
        every_word = [word for words in concepts.values() for word in words]
        self.text, self._own, places = _encode_words(self.family, pipe, every_word)
        self._carried, starts = self.family.carried, not self._own[:, 0].any() and not self.family.carried
        if start_token and not starts:
            raise ValueError(f"start_token=True, but {type(pipe).__name__} puts no start token before a word.")
        self._start_token = starts if start_token is None else start_token
        if self._carried:
            self.blocks = [self.network.get_submodule(layer.name.rpartition(".")[0]) for layer in self.heads]
        length = self._own.sum(dim=1).numpy()
        first = 1 + np.cumsum(length) - length  # after the start token
        self._n_words = np.array([len(words) for words in concepts.values()])
        offsets = np.cumsum(self._n_words) - self._n_words
        # One column for each concept and sub-token, as many as the concept's longest word has.
        longest = [length[o : o + n].max() for o, n in zip(offsets, self._n_words, strict=True)]
        self._column_concept = np.repeat(np.arange(len(concepts)), longest)
        self._column_token = np.concatenate([np.arange(n) for n in longest])
        self._first, self._length, self._offsets = first, length, offsets
        self._layer = np.repeat(np.arange(len(self.heads.layers)), [layer.n_heads for layer in self.heads])  # (head)
        self._tokens: torch.Tensor | None = None  # as the layers are given them, or the first of them
        self._place = F.pad(places[self._own], (1, 0))  # (token) in a text
        self._words: torch.Tensor | None = None  # (image, column, channel) that are carried, at the next layer
        self._keys: dict[int, torch.Tensor] = {}
        self._attended: torch.Tensor | None = None  # (image, head, column) of the call under way
        self._counts: list[torch.Tensor] = []  # (image, concept, head) of each generation

    def tokens(self, text: torch.Tensor) -> torch.Tensor:
        """(token, channel) of a text (word, token, channel): the start token's, then every word's own."""
        start = max(int(self._own[0].int().argmax()) - 1, 0)  # right before the first word: padding may come first
        return torch.cat([text[0, start : start + 1], text[self._own.to(text.device)]])

    def start(self, generation: Generation) -> None:
        self._vote()
        done = sum(len(counts) for counts in self._counts)
        units = range(done + generation.images) if self._units is None else self._units
        self._now = list(units[done : done + generation.images])
        if len(self._now) < generation.images:
            raise ValueError(f"units names {len(units)} images; {done + generation.images} are being made.")
        if self._carried and (last := int(self._place.max())) >= generation.n_tokens:
            raise ValueError(
                f"A word has token {last} of a text of its own, but the prompt's text has {generation.n_tokens} tokens "
                "only: leave max_sequence_length as it is, or take shorter words."
            )
        device = generation.device
        shape = (generation.images, len(self.concepts), len(self.heads))
        self._counts.append(torch.zeros(shape, dtype=torch.int32, device=device))
        one_hot = F.one_hot(torch.from_numpy(self._column_concept), len(self.concepts)).float()
        self._columns_to_concepts = one_hot.to(device)  # (column, concept)

    def call(self, generation: Generation) -> bool:
        """Count the votes of the last call, and draw one word a concept for each (image, layer) of this one, or where
        words are carried from layer to layer, for each image."""
        self._vote()
        self._words = None
        size = (1 if self._carried else len(self.heads.layers), len(self.concepts))
        generators = [np.random.default_rng([self._seed, unit, generation.calls]) for unit in self._now]
        drawn = np.stack([each.integers(self._n_words, size=size) for each in generators], axis=1)
        words = (drawn + self._offsets)[..., self._column_concept]  # (layer, image, column)
        used = self._column_token < self._length[words]
        tokens = self._first[words] + np.where(used, self._column_token, 0)
        share = (used / self._length[words]).astype(np.float32)
        bias = np.where(used, 0, -np.inf).astype(np.float32)
        # A GPU is not waited for, except where such copies are not safe.
        later = generation.device.type != "mps"
        of_heads = share[0 * self._layer if self._carried else self._layer].transpose(1, 0, 2)
        self._index, self._share, self._bias = (
            torch.from_numpy(each).to(generation.device, non_blocking=later) for each in (tokens, of_heads, bias)
        )  # (layer or 1, image, column), (image, head, column), (layer or 1, image, column)
        self._attended = self._share.new_zeros(self._share.shape)
        return True

    def totals(self) -> dict[int, torch.Tensor]:
        if self._attended is None:
            return {}
        parts = self._attended.split([layer.n_heads for layer in self.heads], dim=1)
        return {number: part.flatten() for number, part in enumerate(parts)}

    def to_prove(self, generation: Generation) -> set[int]:
        return set(self.layers) if self._carried else set()  # whose values words attend to

    def attend(
        self,
        number: int,
        attention: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        bias: torch.Tensor | None,
        seen: Outputs,
    ) -> None:
        with torch.autocast(query.device.type, enabled=self.generations[-1].autocast):  # as the layer gets its text
            if self._tokens is None:
                text = self.text.to(query.device, self.generations[-1].dtype)
                self._tokens = self.tokens(self.family.project(self.network, text))
            if self._carried:
                return self._carry(number, attention, query, key, seen["value"])
            if number not in self._keys:
                keys = self.family.keys(attention, self._tokens)
                self._keys[number] = keys.float() * query.shape[-1] ** -0.5
        keys, index, bias = self._keys[number], self._index[number], self._bias[number]
        chosen = keys[index]  # (image, column, head * channel)
        if self._start_token:  # token 0: the same, whatever the first word
            chosen = torch.cat([keys[:1].expand(len(index), 1, -1), chosen], dim=1)
            bias = F.pad(bias, (1, 0))
        self._attend(number, query, split_heads(chosen, query.shape[1]), bias)

    def _attend(self, number: int, query: torch.Tensor, keys: torch.Tensor, bias: torch.Tensor) -> None:
        """Keep what layer `number`, with query (image, head, pixel, channel), pays to words: keys (image, head, column,
        channel), scaled, with a column before them if the start token is in the softmax; bias (image, column)."""
        assert self._attended is not None
        at = slice(first := self.heads.layers[number].first, first + query.shape[1])
        for image, (q, k) in enumerate(zip(query, keys, strict=True)):
            probabilities = torch.baddbmm(bias[image], q.float(), k.transpose(1, 2)).softmax(dim=-1)
            columns = probabilities[..., 1:] if self._start_token else probabilities
            torch.mean(columns, dim=1, out=self._attended[image, at])

    def _carry(self, number: int, attention: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Have the words pass through the block of layer `number`, and be voted for on the way.

        As in ConceptAttention (arXiv 2502.04320), they attend to the image and to each other, and nobody to them.
        """
        assert self._tokens is not None
        n_tokens, bias = self.generations[-1].n_tokens, self._bias[0]
        if self._words is None:
            self._words = self._tokens[self._index[0]]
        places = self._place.to(query.device)[self._index[0]]
        image_key, image_value = key[:, :, n_tokens:], value[:, :, n_tokens:]
        there = F.pad(bias == 0, (0, image_key.shape[2]), value=True)[:, None, None]  # (image, 1, 1, key)

        def attend(normed: torch.Tensor) -> torch.Tensor:
            q, k, v = self.family.words(attention, normed, places, self.block_arguments)
            self._attend(number, query, k.float() * query.shape[-1] ** -0.5, bias)
            keys, values = torch.cat([k, image_key], dim=2), torch.cat([v, image_value], dim=2)
            attended = F.scaled_dot_product_attention(q, keys, values, there)
            return self.family.put_out(attention, attended.transpose(1, 2).flatten(2), normed)

        name = self.heads.layers[number].name.rpartition(".")[2]
        self._words = through_block(self.blocks[number], name, self.block_arguments, self._words, attend)

    def _vote(self) -> None:
        """Let every head that attended in the last call vote, if there was one: few launches, whatever the layers."""
        if self._attended is None:
            return
        winner = ((self._attended * self._share) @ self._columns_to_concepts).argmax(dim=-1)  # (image, head)
        voted = (self._attended.amax(dim=-1) > 0).to(torch.int32)
        self._counts[-1] = self._counts[-1].scatter_add(1, winner[:, None], voted[:, None])
        self._attended = None

    def counts(self) -> xr.DataArray:
        """Votes (image, concept, head), one for each (call, image, head); `image` holds the unit numbers.

        Raises RuntimeError if nothing was generated, or if some layer was never seen.
        """
        self.check_all_seen()
        self._vote()
        values = torch.cat(self._counts).cpu().numpy()
        units = range(len(values)) if self._units is None else self._units[: len(values)]
        coords = {"image": list(units), "concept": self.concepts, **self.heads.coords()}
        return xr.DataArray(values, dims=("image", "concept", "head"), coords=coords, name="counts")

    def relevance(self) -> HeadRelevance:
        """The head relevance from all votes so far."""
        return HeadRelevance.from_counts(self.counts())


@contextmanager
def score_heads(
    pipe: DiffusionPipeline,
    concepts: Concepts,
    *,
    seed: int = 0,
    units: Iterable[int] | None = None,
    start_token: bool | None = False,
    prompt: str | Sequence[str] | None = None,
) -> Iterator[RelevanceCounter]:
    """Count the heads' votes for concepts while images are generated in the `with` block (Eq. 3).

    At each (call, layer) one word a concept is drawn. softmax(Q K^T / sqrt(d)) of the conditional queries over the
    drawn words' semantic tokens is averaged over pixels and over each word's tokens, and each head votes for the
    concept of the largest. May be nested with `capture`, in either order, and leaves the image as it is, bit for bit.

    Where image and text share one softmax and the text changes from block to block (Stable Diffusion 3, FLUX.1, Chroma,
    Qwen-Image), one word a concept is drawn for each call, and these pass through the blocks beside the prompt's text,
    modulated as it is, as in ConceptAttention (arXiv 2502.04320): they attend to the image and to each other, and
    neither the image nor the prompt to them. Queries of the image vote among their keys as above.

    Parameters
    ----------
    pipe : diffusers.DiffusionPipeline
        Of a model whose heads can be scored, see `supported_models`.
    concepts : mapping of str to list of str
        Name -> words, for two concepts or more.
    seed : int
        The draws depend on it, on the image's number, on the call and on the layer, never on the batch.
    units : iterable of int, optional
        The images' numbers; 0, 1, 2 ... by default, in the order of generation.
    start_token : bool, optional
        Keep the start token of the first word inside the softmax, as the published implementation does; None: where the
        model puts one before a word, and words are not carried through its blocks.
    prompt : str or list of str, optional
        As for `capture`; seldom needed.

    Yields
    ------
    RelevanceCounter
        ``counts()`` are the votes (image, concept, head), ``relevance()`` the `HeadRelevance` from them.

    Raises
    ------
    ValueError
        If there are fewer than two concepts or one without words, if a layer cannot be captured, if heads of this model
        cannot be scored, or if there is no start token to be kept; and while pictures
        are made, as for `capture`.

    Examples
    --------
    >>> from selattn_lib import load_pipeline
    >>> pipe = load_pipeline("emoji-sd", device="cpu")
    >>> with score_heads(pipe, {"Animals": ["bear", "cat"], "Vehicles": ["car", "bus"]}) as votes:
    ...     picture = pipe("photo of a bear", num_inference_steps=2).images[0]
    >>> votes.counts().sizes["head"]
    128
    """
    with RelevanceCounter(pipe, concepts, seed, units, start_token, prompt).attached() as counter:
        yield counter


def _encode_words(family: Family, pipe: Any, words: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each word by itself, as the pipeline encodes prompts.

    Returns the embeddings (word, token, channel), which tokens are the word's own: no start, end or padding, nor what
    the model reads around a prompt; and where they stand in the text.
    """
    texts = [text for text in family.texts(pipe) if text.encoder is not None]
    longest = max(len(word_tokens(text.tokenizer, word)) for text in texts for word in words) + SPECIALS
    length = longest
    if family.carried:  # as long as a prompt, since some pipelines have it attend to its padding; which is cut off here
        length, longest = signature(pipe.encode_prompt).parameters["max_sequence_length"].default, longest * len(texts)
    n_tokens = sum(text.length or length for text in family.texts(pipe))
    encoded, own, at = [], [], []
    for first in range(0, len(words), WORDS_AT_ONCE):
        some, heard = words[first : first + WORDS_AT_ONCE], Embeddings()
        with ExitStack() as stack, torch.no_grad():
            for text in texts:
                see = partial(_hear, heard, text)
                stack.callback(text.encoder.register_forward_hook(see, with_kwargs=True).remove)
            states = family.encode(pipe, some, n_tokens)
        if states is None:
            return _encode_for_clip(pipe, words, longest)
        sums = Sums(states)
        places = torch.zeros(states.shape[:2], dtype=torch.bool)
        for row, word in enumerate(some):
            for tokens in heard.decipher(sums, row) or []:
                mine = tokens.own or [True] * len(tokens.ids)
                special = tokens.tokenizer.all_special_ids
                kept = [i not in special and own for i, own in zip(tokens.ids, mine, strict=True)]
                places[row, tokens.first : tokens.first + len(kept)] = torch.tensor(kept)
            if not places[row].any():
                raise ValueError(f"{word!r} does not reach the network of this {type(pipe).__name__} as a text.")
        order = torch.arange(places.shape[1]).expand_as(places)
        if family.carried:  # those of the word first
            order = places.int().argsort(dim=1, descending=True, stable=True)[:, :longest]
        rows, spare = torch.arange(len(some))[:, None], max(0, longest - order.shape[1]) * family.carried
        encoded.append(F.pad(states.cpu()[rows, order], (0, 0, 0, spare)))
        own.append(F.pad(places[rows, order], (0, spare)))
        at.append(F.pad(order, (0, spare)))
    return torch.cat(encoded), torch.cat(own), torch.cat(at)


def _hear(heard: Embeddings, text: Text, encoder: Any, args: tuple, kwargs: dict, output: Any) -> None:
    heard.on_text_encoder(text, args, kwargs, output)


def _encode_for_clip(pipe: Any, words: list[str], longest: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`_encode_words` by CLIP's encoders, one or two: a start token, the word's own, an end token."""
    suffixes = [s for s in ("", "_2") if getattr(pipe, f"text_encoder{s}", None) is not None]
    parts = [(getattr(pipe, f"tokenizer{s}"), getattr(pipe, f"text_encoder{s}")) for s in suffixes]
    lengths = torch.tensor([len(word_tokens(parts[0][0], word)) for word in words])
    encoded = []
    for at in range(0, len(words), WORDS_AT_ONCE):
        batch = [
            _encode(pipe, tokenizer, encoder, words[at : at + WORDS_AT_ONCE], penultimate="_2" in suffixes)
            for tokenizer, encoder in parts
        ]
        states = torch.cat(batch, dim=-1)
        encoded.append(F.pad(states, (0, 0, 0, longest - states.shape[1])))
    places = torch.arange(longest).expand(len(words), -1)
    return torch.cat(encoded), (places >= 1) & (places <= lengths[:, None]), places


@torch.no_grad()
def _encode(pipe: Any, tokenizer: Any, encoder: Any, words: list[str], penultimate: bool) -> torch.Tensor:
    """(word, token, channel) the last hidden state, normalised, or the last but one, as SDXL reads it."""
    ids = tokenizer(words, padding=True, return_tensors="pt").input_ids.to(device_of(encoder, pipe))
    return encoder.forward(ids, output_hidden_states=True).hidden_states[-2] if penultimate else encoder.forward(ids)[0]
