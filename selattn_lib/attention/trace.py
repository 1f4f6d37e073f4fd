"""Following a pipeline through a generation, unchanged, to the queries and keys of every layer that sees the text.

`Trace` listens through forward hooks: the text encoders' input says where the words are, the network's input says which
rows are conditional, and each layer's own projections give the queries and keys (see `families`). The model's
attention is left alone, so the image stays the same bit for bit. `selattn_lib.capture` holds a tap that keeps the
columns of some words, `selattn_lib.relevance` another.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, Self

import torch

from ..models.families import Call, find_family
from ..models.heads import cross_attention_heads
from ..models.tokens import Prompt, Tokens


@dataclass
class Generation:
    """One run of the network over its timesteps, for one batch of images."""

    prompts: list[Prompt] | None  # where known
    rows: slice  # the conditional rows of the network's batch, one an image
    images: int
    shape: torch.Size  # of the network's input
    n_tokens: int  # of the text, padding included
    latent: tuple[int, int]  # height and width
    device: torch.device
    negatives: int | None  # calls with the negative prompt to come before the next one that counts, where known
    calls: int = 0  # that counted
    timestep: Any = None  # of the last of them
    seen: set[int] = field(default_factory=set)  # layers


class Trace:
    """Hands the conditional queries and the keys of every layer that attends to the text to a subclass.

    A subclass says what to do when a generation starts (`start`), at each call of the network (`call`), and in each
    of `layers` in each call (`attend`).
    """

    def __init__(self, pipe: Any, prompt: str | Sequence[str] | None = None) -> None:
        self.pipe = pipe
        self.family, self.network = find_family(pipe)
        self.heads = cross_attention_heads(pipe)
        if pipe is self.network:
            raise ValueError(f"{type(pipe).__name__}: expected the pipeline that it belongs to, for its tokenizers.")
        self.layers: Sequence[int] = range(len(self.heads.layers))
        self.generations: list[Generation] = []
        self._given = [prompt] if isinstance(prompt, str) else prompt
        self._texts = self.family.texts(pipe)
        self._signature = inspect.signature(type(self.network).forward)
        self._attending = False
        self._forget()

    def _forget(self) -> None:
        self._encoded: list[list[list[list[int]]]] = [[] for _ in self._texts]  # token ids, since the last call
        self._generation: Generation | None = None
        self._first_call: Call | None = None  # of the generation
        self._last_call: Call | None = None  # that counted
        self._outputs: dict[int, dict[str, torch.Tensor]] = {number: {} for number in self.layers}

    def start(self, generation: Generation) -> None:
        """A new batch of images begins."""

    def call(self, generation: Generation) -> bool:
        """The network is about to be called, for the `generation.calls`-th time (from 0) in this generation.

        Returns whether `attend` is wanted in this call.
        """
        return True

    def attend(self, number: int, attention: Any, query: torch.Tensor, key: torch.Tensor) -> None:
        """Layer `number` attends with query and key, (image, head, pixel or token, channel), the text's keys first."""
        raise NotImplementedError

    @contextmanager
    def attached(self) -> Iterator[Self]:
        """Have the hooks in block for the length of a `with` block."""
        with ExitStack() as stack:

            def hook(register: Callable, see: Callable, **options: bool) -> None:
                stack.callback(register(see, **options).remove)

            self._forget()
            stack.callback(self._forget)
            hook(self.network.register_forward_pre_hook, self._on_network_call, with_kwargs=True)
            for i, text in enumerate(self._texts):
                if text.encoder is not None:
                    hook(text.encoder.register_forward_pre_hook, partial(self._on_text_encoder, i), with_kwargs=True)
            for number in self.layers:
                attention = self.network.get_submodule(self.heads.layers[number].name)
                for name in self.family.watched(attention):
                    see = partial(self._on_projection, self._outputs[number], name)
                    hook(attention.get_submodule(name).register_forward_hook, see)
                hook(attention.register_forward_hook, partial(self._on_layer, number), with_kwargs=True)
            yield self

    def check_all_seen(self) -> None:
        """RuntimeError if nothing was generated, or if some layer was never seen."""
        if not self.generations:
            raise RuntimeError("Nothing was generated yet: call the pipeline inside the `with` block.")
        for generation in self.generations:
            if missing := [self.heads.layers[i].name for i in self.layers if i not in generation.seen]:
                raise RuntimeError(
                    f"These layers were not called, or not through their projections, or the generation ended in its "
                    f"first call: {missing}"
                )

    def _on_text_encoder(self, text: int, encoder: Any, args: tuple, kwargs: dict) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        self._encoded[text].append(ids.tolist())

    def _on_network_call(self, network: Any, args: tuple, kwargs: dict) -> None:
        arguments = self._signature.bind(network, *args, **kwargs).arguments
        call, known = self.family.call(arguments), self._generation
        if known is None or any(self._encoded):
            self._generation = None
            known = self._new_generation(call, self.family.latent(call, arguments))
            self.start(known)
            self.generations.append(known)
            self._generation, self._first_call = known, call
        elif call.counts and call.sample.shape != known.shape:
            raise ValueError(
                f"The network's input changed from {tuple(known.shape)} to {tuple(call.sample.shape)} "
                "without the text encoder being called: use one `with` block for each batch."
            )
        elif not self.family.guided_in_batch and self._is_negative(call, known):
            call = Call(call.sample, call.text, call.timestep, counts=False)
        self._attending = call.counts
        if call.counts:
            self._last_call, known.timestep = call, call.timestep
            self._attending = self.call(known)
            known.calls += 1

    def _new_generation(self, call: Call, latent: tuple[int, int]) -> Generation:
        encoded, self._encoded = self._encoded, [[] for _ in self._texts]
        runs = max(map(len, encoded), default=0)
        prompts = self._prompts(encoded, call.text.shape[1])
        batch, half = len(call.sample), len(call.sample) // 2
        if not self.family.guided_in_batch:
            guided, images, negatives = False, batch, None if self._given or not runs else runs - 1
        else:
            # Under guidance the network sees the same latents twice, first with the negative prompts.
            guided = (
                batch % 2 == 0
                and (prompts is None or batch != len(prompts))
                and torch.equal(call.sample[:half], call.sample[half:])
            )
            images, negatives = half if guided else batch, 0
            # SDXL's negative prompt, where none is given, is zeros rather than an encoded text.
            encodings = 1 + (guided and not (runs == 1 and not call.text[:half].any()))
            if not self._given and runs and runs != encodings:
                raise ValueError(
                    f"The text encoder ran {runs} time(s) before a call of the network on {batch} rows "
                    f"{'with' if guided else 'without'} guidance, so prompts and negative prompts cannot be told "
                    "apart. Say what the prompts are: capture(pipe, words, prompt=...)."
                )
        if prompts and images % len(prompts):
            raise ValueError(
                f"{images} images for {len(prompts)} prompts: the same number for each prompt was expected. "
                "If `prompt` was given, it must have one entry for each row of embeddings."
            )
        rows, tokens = slice(batch - images, batch), call.text.shape[1]
        return Generation(prompts, rows, images, call.sample.shape, tokens, latent, call.sample.device, negatives)

    def _prompts(self, encoded: list[list[list[list[int]]]], n_tokens: int) -> list[Prompt] | None:
        """The tokens of each prompt, as given or as the text encoders saw them; None if neither."""
        if not self._given and not any(encoded):
            return None
        if self._given and not self._texts:
            raise ValueError(f"{type(self.pipe).__name__} has no tokenizer, so the words of `prompt` cannot be found.")
        stretches, first = [], 0
        for text, runs in zip(self._texts, encoded, strict=True):
            if self._given and text.tokenizer is not None:
                length = text.length or n_tokens - first
                settings: dict[str, Any] = {"padding": "max_length", "max_length": length, "truncation": True}
                ids = text.tokenizer(list(self._given), **settings).input_ids
            elif runs:
                ids = runs[0]
            else:  # a pipeline without this encoder sees zeros there
                first = n_tokens if text.length is None else first + text.length
                continue
            stretches.append([Tokens(text.tokenizer, each, first) for each in ids])
            first += len(ids[0])
        if first != n_tokens:
            raise ValueError(
                f"The prompts have {first} tokens, padding included, but the network was given the embeddings of "
                f"{n_tokens}, so words cannot be located."
            )
        return [list(prompt) for prompt in zip(*stretches, strict=True)]

    def _is_negative(self, call: Call, known: Generation) -> bool:
        """Whether a call in a generation under way is the negative prompt's, on the sample of the last one."""
        if self._first_call is None or _same(call.text, self._first_call.text):
            if known.negatives:
                raise ValueError(
                    "The text encoder ran twice but there is no guidance, so the prompts cannot be told apart. Say "
                    "what the prompts are: capture(pipe, words, prompt=...)."
                )
            return False
        if self._last_call is None or not _same(call.sample, self._last_call.sample):
            raise ValueError(
                "The embeddings of the text changed without the text encoder being called: use one `with` block for "
                "each batch."
            )
        if known.negatives == 0:
            raise ValueError(
                "The text encoder ran once before calls under guidance, so prompts and negative prompts cannot be told "
                "apart. Say what the prompts are: capture(pipe, words, prompt=...)."
            )
        known.negatives = None  # seen, once and for all
        return True

    def _on_projection(
        self, outputs: dict[str, torch.Tensor], name: str, module: Any, args: tuple, output: Any
    ) -> None:
        if self._attending:
            outputs[name] = output

    @torch.no_grad()
    def _on_layer(self, number: int, attention: Any, args: tuple, kwargs: dict, output: Any) -> None:
        outputs, generation = self._outputs[number], self._generation
        whole = len(outputs) == len(self.family.watched(attention))
        if generation is None or not self._attending or not whole:
            return
        if kwargs.get("attention_mask") is not None:
            raise ValueError(f"{self.heads.layers[number].name} was given a mask; capture does not reproduce it.")
        conditional = {name: value[generation.rows] for name, value in outputs.items()}
        outputs.clear()
        with torch.autocast(generation.device.type, enabled=False):
            query, key = self.family.query_key(attention, conditional, generation.n_tokens, kwargs)
            grid = self.heads.layers[number].grid(generation.latent)
            if query.shape[2] != prod(grid):
                raise RuntimeError(
                    f"{self.heads.layers[number].name} has {query.shape[2]} pixels, where latents of "
                    f"{generation.latent} make {grid}: capture does not know what else this pipeline feeds the network."
                )
            generation.seen.add(number)
            self.attend(number, attention, query, key)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other))
