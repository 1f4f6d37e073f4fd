"""Per-head attention maps of chosen words, taken from any generation of a pipeline, unchanged.

`Tap` follows the pipeline through forward hooks: the text encoders' input says where the words are, the network's
input says which rows are conditional, and each layer's own projections give the queries and keys (see `families`).
The model's attention is left alone, so the image stays the same bit for bit. `Capture` is the tap that keeps the
columns of some words; `selattn_lib.relevance` holds another.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, Self

import torch
import xarray as xr

from .aggregate import heatmap
from .families import Call, find_family
from .heads import cross_attention_heads

MAX_LOGITS = 2**22  # attention logits held at a time: 16 MB in float32, more than one SD v1 layer and image


@dataclass
class Tokens:
    """A prompt as one tokenizer cuts it, and where in the text that the model sees its first token lies."""

    tokenizer: Any
    ids: list[int]
    first: int


Prompt = list[Tokens]  # the same prompt, once for each stretch of the text


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


class Tap:
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
    def listening(self) -> Iterator[Self]:
        """Have the hooks in place for the length of a `with` block."""
        with ExitStack() as stack:

            def hook(register: Callable, see: Callable, **options: bool) -> None:
                stack.callback(register(see, **options).remove)

            self._forget()
            stack.callback(self._forget)
            hook(self.network.register_forward_pre_hook, self._see_call, with_kwargs=True)
            for i, text in enumerate(self._texts):
                if text.encoder is not None:
                    hook(text.encoder.register_forward_pre_hook, partial(self._see_text, i), with_kwargs=True)
            for number in self.layers:
                attention = self.network.get_submodule(self.heads.layers[number].name)
                for name in self.family.watched(attention):
                    see = partial(self._see_output, self._outputs[number], name)
                    hook(attention.get_submodule(name).register_forward_hook, see)
                hook(attention.register_forward_hook, partial(self._see_layer, number), with_kwargs=True)
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

    def _see_text(self, text: int, encoder: Any, args: tuple, kwargs: dict) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        self._encoded[text].append(ids.tolist())

    def _see_call(self, network: Any, args: tuple, kwargs: dict) -> None:
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

    def _see_output(self, outputs: dict[str, torch.Tensor], name: str, module: Any, args: tuple, output: Any) -> None:
        if self._attending:
            outputs[name] = output

    @torch.no_grad()
    def _see_layer(self, number: int, attention: Any, args: tuple, kwargs: dict, output: Any) -> None:
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


class Capture(Tap):
    """The maps of some words in the images made inside a `with capture(...)` block."""

    def __init__(
        self,
        pipe: Any,
        words: str | Sequence[str] | Sequence[Sequence[str]],
        prompt: str | Sequence[str] | None,
        heads: Sequence[int] | None,
        layers: Sequence[int] | None,
        timesteps: tuple[float, float] | None,
        per_timestep: bool,
    ) -> None:
        super().__init__(pipe, prompt)
        words = [words] if isinstance(words, str) else list(words)
        shared = all(isinstance(word, str) for word in words)
        self._words: list[list[str]] = [words] if shared else [list(each) for each in words]  # type: ignore
        self._shared = shared
        if not words or len({len(each) for each in self._words}) != 1 or not self._words[0]:
            raise ValueError(
                f"words={words!r} is neither a list of words, such as ['bear', 'lake'], nor one list "
                "of words for each prompt, all equally long, such as [['bear'], ['cat']]."
            )
        if timesteps is not None and len(timesteps) != 2:
            raise ValueError(f"timesteps={timesteps!r}: expected two of them, the first and the last to keep.")
        self._chosen = self._choose(heads, layers)  # layer number -> the heads in it
        self.layers = list(self._chosen)
        self._window = None if timesteps is None else (min(timesteps), max(timesteps))
        self._per_timestep = per_timestep
        self._image_words: list[list[str]] = []
        self._kept: list[Kept] = []

    def _choose(self, heads: Sequence[int] | None, layers: Sequence[int] | None) -> dict[int, list[int]]:
        if heads is not None and layers is not None:
            raise ValueError("Both heads and layers were given; give the numbers of one kind.")
        chosen, kind, total = (
            (layers, "layers", len(self.heads.layers)) if heads is None else (heads, "heads", len(self.heads))
        )
        numbers = set(range(total)) if chosen is None else {int(number) for number in chosen}
        if not numbers or not numbers <= set(range(total)):
            raise ValueError(f"{kind}={chosen!r}: expected some of the model's {kind}, numbers from 0 to {total - 1}.")
        kept = {}
        for number, layer in enumerate(self.heads):
            own = range(layer.n_heads)
            in_layer = [h for h in own if (number if heads is None else layer.first + h) in numbers]
            if in_layer:
                kept[number] = in_layer
        return kept

    def memory(self, height: int, width: int, *, images: int = 1, calls: int = 50) -> int:
        """Bytes that the maps of `images` images of (height, width) pixels will take, known before any is made.

        `calls`, the calls of the network an image (50 steps make 51 with PNDM), matter only with `per_timestep`.
        """
        latent = [side // self.pipe.vae_scale_factor for side in (height, width)]
        values = sum(len(own) * prod(self.heads.layers[number].grid(latent)) for number, own in self._chosen.items())
        return 4 * values * images * len(self._words[0]) * (calls if self._per_timestep else 1)

    def start(self, generation: Generation) -> None:
        prompts = generation.prompts
        if prompts is None:
            raise ValueError(
                "The network was called with embeddings made elsewhere, so the prompts are not known. "
                "Say what they are: capture(pipe, words, prompt=...), one prompt for each row of embeddings."
            )
        words = self._words * len(prompts) if self._shared else self._words
        if len(words) != len(prompts):
            raise ValueError(f"words has {len(words)} lists of words for {len(prompts)} prompts.")
        selectors = [
            torch.stack([_selector(word, prompt, generation.n_tokens) for word in wanted], dim=-1)
            for wanted, prompt in zip(words, prompts, strict=True)
        ]
        repeats = generation.images // len(prompts)
        selector = torch.stack(selectors).repeat_interleave(repeats, dim=0).to(generation.device)
        self._image_words += [wanted for wanted in words for _ in range(repeats)]
        self._kept.append(Kept(generation, selector))
        self._indices = {
            number: torch.tensor(own, device=generation.device)
            for number, own in self._chosen.items()
            if len(own) < self.heads.layers[number].n_heads
        }

    def call(self, generation: Generation) -> bool:
        if self._window is None:
            wanted = True
        else:
            first, last = self._window
            wanted = first <= _one_timestep(generation.timestep) <= last
        if wanted and self._per_timestep:
            self._kept[-1].timesteps.append(generation.timestep)
        return wanted

    def attend(self, number: int, attention: Any, query: torch.Tensor, key: torch.Tensor) -> None:
        if number in self._indices:
            query, key = (each.index_select(1, self._indices[number]) for each in (query, key))
        kept, n_heads, pixels = self._kept[-1], query.shape[1], query.shape[2]
        query, key = _float_by_head(query), _float_by_head(key)
        selector = kept.selector_of(n_heads)
        sums = kept.sums.setdefault(number, [])
        if self._per_timestep or not sums:
            sums.append(torch.zeros((len(query), pixels, selector.shape[-1]), device=query.device))
        unused, scale = query.new_empty(1), query.shape[-1] ** -0.5
        logits_at_once = MAX_LOGITS if query.device.type == "cpu" else 16 * MAX_LOGITS  # a GPU minds launches more
        step = max(1, logits_at_once // (len(query) * key.shape[1]))
        for at in range(0, pixels, step):
            part = slice(at, at + step)
            logits = torch.baddbmm(unused, query[:, part], key.transpose(1, 2), beta=0, alpha=scale)
            probabilities = logits.softmax(dim=-1)[..., : selector.shape[1]]  # Eq. 1, the text's columns
            sums[-1][:, part].baddbmm_(probabilities, selector)
        kept.calls[number] = kept.calls.get(number, 0) + 1

    def dataset(self) -> xr.Dataset:
        """The maps of every head kept, as the mean over the network's calls (Eq. 2 before its mean over heads).

        One float32 variable a native resolution, `maps_{h}x{w}` with dimensions (image, word, head_{h}x{w},
        y_{h}x{w}, x_{h}x{w}) and values in [0, 1]. The coordinate `head_{h}x{w}` holds the heads' global
        numbers, `place_{h}x{w}` their place (down, mid, up; joint; double, single); `word` holds the words, or
        "subject" where each prompt has its own. The attributes `height` and `width` are the image's size in pixels,
        `model` its model, `n_heads` the number of heads of the model. With `per_timestep` the dimension `call` comes
        third, and its coordinate `timestep` holds the calls' timesteps.

        Raises RuntimeError if nothing was generated, if some layer was never seen, if no call fell into the window
        of timesteps, or if the images have different sizes or timesteps.
        """
        if self._kept and not all(kept.sums for kept in self._kept) and self._window is not None:
            raise RuntimeError(f"No call of the network was at a timestep from {self._window[0]} to {self._window[1]}.")
        self.check_all_seen()
        latents = {kept.generation.latent for kept in self._kept}
        if len(latents) > 1:
            raise RuntimeError(f"Latents of several sizes, {sorted(latents)}: use one `with` block for each size.")
        latent = latents.pop()
        grids = {number: self.heads.layers[number].grid(latent) for number in self._chosen}
        words = self._words[0]
        if not self._shared:
            words = ["subject"] if len(words) == 1 else [f"subject {i}" for i in range(len(words))]
        coords: dict[str, Any] = {"word": words}
        call = ("call",) if self._per_timestep else ()
        if self._per_timestep:
            coords["timestep"] = ("call", self._timesteps())
        data = {}
        for height, width in dict.fromkeys(grids.values()):
            grid = f"{height}x{width}"
            members = [number for number, each in grids.items() if each == (height, width)]
            means = [torch.cat([kept.mean(number) for number in members], dim=2) for kept in self._kept]
            maps = torch.cat(means)  # (image, call, head, pixel, word)
            values = maps.permute(0, 4, 1, 2, 3).unflatten(-1, (height, width)).contiguous().cpu().numpy()
            dims = ("image", "word", *call, f"head_{grid}", f"y_{grid}", f"x_{grid}")
            data[f"maps_{grid}"] = (dims, values if call else values[:, :, 0])
            numbers = [self.heads.layers[number].first + head for number in members for head in self._chosen[number]]
            coords[f"head_{grid}"] = numbers
            coords[f"place_{grid}"] = (f"head_{grid}", self.heads.place[numbers])
        factor = self.pipe.vae_scale_factor
        size = {"height": latent[0] * factor, "width": latent[1] * factor}
        model = self.pipe.name_or_path or "unnamed"
        return xr.Dataset(data, coords, attrs={**size, "model": model, "n_heads": len(self.heads)})

    def _timesteps(self) -> list[float]:
        """Those of the calls kept, one map each."""
        every = [[_one_timestep(timestep) for timestep in kept.timesteps] for kept in self._kept]
        for kept, timesteps in zip(self._kept, every, strict=True):
            if timesteps != every[0] or any(len(maps) != len(timesteps) for maps in kept.sums.values()):
                raise RuntimeError(
                    "With per_timestep, every image and layer needs a map at each timestep: let no generation be "
                    "interrupted, skip no layers, and use one `with` block for each number of steps."
                )
        return every[0]

    def heatmap(self, word: str, heads: str | Sequence[int] = "all", image: int = 0) -> xr.DataArray:
        """Heat map (y, x) in [0, 1] of a captured word, at image size; `heads` as in `heatmap`."""
        maps = self.dataset()
        if not -len(self._image_words) <= image < len(self._image_words):
            raise IndexError(f"image {image} was asked for, of {len(self._image_words)} captured.")
        words = self._image_words[image]
        if word not in words:
            raise ValueError(f"{word!r} was not captured in image {image}; captured there: {words}")
        return heatmap(maps, heads, image=image, word=words.index(word))


@dataclass
class Kept:
    """What a `Capture` keeps of one generation. `sums` has one tensor (image * head, pixel, word) a layer, or one for
    each call; `selector` (image, token, word) averages the columns of each word."""

    generation: Generation
    selector: torch.Tensor
    sums: dict[int, list[torch.Tensor]] = field(default_factory=dict)
    calls: dict[int, int] = field(default_factory=dict)
    timesteps: list[Any] = field(default_factory=list)  # only where maps are kept for each
    _selectors: dict[int, torch.Tensor] = field(default_factory=dict)

    def selector_of(self, n_heads: int) -> torch.Tensor:
        """The selector (image * head, token, word) of a layer with so many heads."""
        if n_heads not in self._selectors:
            self._selectors[n_heads] = self.selector.repeat_interleave(n_heads, dim=0)
        return self._selectors[n_heads]

    def mean(self, number: int) -> torch.Tensor:
        """(image, call, head, pixel, word) of a layer: for each call, or over all of them as one."""
        sums = self.sums[number]
        stacked = torch.stack(sums) * (len(sums) / self.calls[number])
        return stacked.unflatten(1, (self.generation.images, -1)).transpose(0, 1)


@contextmanager
def capture(
    pipe: Any,
    words: str | Sequence[str] | Sequence[Sequence[str]],
    *,
    prompt: str | Sequence[str] | None = None,
    heads: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    timesteps: tuple[float, float] | None = None,
    per_timestep: bool = False,
) -> Iterator[Capture]:
    """Keep the attention maps of `words` in whatever the pipeline generates inside the `with` block.

    `words` is a list of words for all prompts, or one list for each prompt: `[["bear"], ["cat"]]`. A word may be a
    phrase (`"oak tree"`), and is looked for as it is written, upper and lower case alike, as a whole. Its map is the
    mean over its tokens and over its occurrences in the prompt; `"bear#2"` is its second occurrence alone. Where the
    model sees a prompt through two tokenizers one after the other (SD3: CLIP, then T5), the mean is taken in each, then
    over the two. Each call of the pipeline in the block adds its images; under guidance only the conditional half
    counts. The image is bit-identical to one made without, and nothing stays behind in the pipeline.

    Only what is asked for is kept: all heads, or those of the numbers `heads` or of the layers numbered `layers` (in
    the order of `cross_attention_heads`); all calls of the network, or those at scheduler timesteps, 0 to 1000, in the
    window `timesteps`, both ends included. With `per_timestep` each call has a map of its own instead of the mean;
    `memory` of what the block yields says beforehand how many bytes that will take.

    `prompt` is needed only where the text encoder is not called inside the block, because embeddings made
    elsewhere are passed to the pipeline or to `pipe.unet`: the prompts, one for each row of embeddings. The
    text encoder's calls then no longer mark where a new generation begins, so make one a block.

    Raises ValueError if a layer cannot be captured, if a selection makes no sense, and, as the generation starts, if a
    word is not in its prompt or if it cannot be known which prompts the network's rows belong to.
    """
    with Capture(pipe, words, prompt, heads, layers, timesteps, per_timestep).listening() as maps:
        yield maps


def word_tokens(tokenizer: Any, word: str) -> list[int]:
    """Token ids of a word by itself, no specials; ValueError if the tokenizer does not know it."""
    ids = tokenizer(word, add_special_tokens=False).input_ids
    if not ids or tokenizer.unk_token_id in ids:
        raise ValueError(f"{word!r} is not in the vocabulary of the model; use a word it knows.")
    return ids


def _selector(word: str, prompt: Prompt, n_tokens: int) -> torch.Tensor:
    """(token) weights that average the columns of a word's tokens, in each stretch of the text that has it."""
    found, problems = [], []
    for tokens in prompt:
        try:
            found.append([tokens.first + i for i in _find(word, tokens)])
        except ValueError as error:
            problems.append(str(error))
    if not found:
        raise ValueError(" ".join(problems))
    weights = torch.zeros(n_tokens)
    for places in found:
        weights[places] += 1 / (len(places) * len(found))
    return weights


def _find(word: str, tokens: Tokens) -> list[int]:
    """Places of the tokens that a word, or the n-th of several ("bear#2"), covers in a prompt; ValueError if none."""
    tokenizer = tokens.tokenizer
    numbered = re.fullmatch(r"(.+)#(\d+)", word)
    plain, which = (numbered[1], int(numbered[2])) if numbered else (word, None)
    ids = word_tokens(tokenizer, plain)
    pieces = _pieces(tokenizer, tokens.ids)
    owner = [place for place, piece in enumerate(pieces) for _ in piece]  # of each character
    wanted = re.escape("".join(_pieces(tokenizer, ids)).strip())
    matches = list(re.finditer(rf"(?<!\w){wanted}(?!\w)", "".join(pieces), re.IGNORECASE))
    if not matches:
        special = set(tokenizer.all_special_ids)
        shown = tokenizer.convert_ids_to_tokens([i for i in tokens.ids if i not in special])
        all_read = ", all that the model reads of it" if len(shown) >= len(tokens.ids) - 2 else ""
        raise ValueError(
            f"{plain!r} (tokens {tokenizer.convert_ids_to_tokens(ids)}) is not in the prompt, which has the "
            f"tokens {shown}{all_read}. Ask for words as they stand in the prompt."
        )
    if which is not None:
        if not 1 <= which <= len(matches):
            raise ValueError(f"{word!r} is not in the prompt: {plain!r} occurs {len(matches)} time(s), counted from 1.")
        matches = [matches[which - 1]]
    return sorted({place for match in matches for place in owner[match.start() : match.end()]})


def _pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """What each token stands for; CLIP ends words with a mark, T5 begins them with one."""
    special = set(tokenizer.all_special_ids)
    marked = zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)
    return ["\n" if i in special else piece.replace("</w>", " ").replace("\u2581", " ") for i, piece in marked]


def _float_by_head(values: torch.Tensor) -> torch.Tensor:
    """(image, head, position, channel) -> (image * head, position, channel), float32, in one copy or none."""
    return values.to(torch.float32, memory_format=torch.contiguous_format).flatten(0, 1)


def _one_timestep(timestep: Any) -> float:
    values = torch.as_tensor(timestep).unique()
    if len(values) != 1:
        raise ValueError(f"The rows of the batch are at several timesteps, {values.tolist()}; none can be singled out.")
    return float(values)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other))
