"""Per-head attention maps of chosen words, taken from any generation of a pipeline, unchanged.

`Tap` follows the pipeline through forward hooks: the text encoder's input says where the words are, the
UNet's input says which rows are conditional, and each cross-attention layer's own `to_q` and `to_k` give the
queries and keys. The model's attention is left alone, so the image stays the same bit for bit. `Capture` is
the tap that keeps the columns of some words; `selattn_lib.relevance` holds another.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Self

import torch
import xarray as xr
from diffusers.models.attention_processor import Attention

from .aggregate import heatmap
from .heads import cross_attention_heads, find_unet

MAX_LOGITS = 2**22  # attention logits held at a time: 16 MB in float32, more than one SD v1 layer and image


@dataclass
class Generation:
    """One run of the UNet over its timesteps, for one batch of images."""

    prompts: list[list[int]] | None  # token ids of each prompt, where known
    rows: slice  # the conditional rows of the UNet's batch, one an image
    images: int
    shape: torch.Size  # of the UNet's input
    device: torch.device
    calls: int = 0


class Tap:
    """Hands the conditional queries and the keys of every cross-attention layer to a subclass.

    A subclass says what to do when a generation starts (`start`), at each call of the UNet (`call`), and
    in each layer of each call (`attend`).
    """

    def __init__(self, pipe: Any, prompt: str | Sequence[str] | None = None) -> None:
        self.pipe = pipe
        self.heads = cross_attention_heads(pipe)
        self._given = None if prompt is None else _token_ids(pipe.tokenizer, prompt)
        self._encoded: list[list[list[int]]] = []  # by each call of the text encoder since the last UNet call
        self._generation: Generation | None = None
        self._queries: dict[int, torch.Tensor] = {}

    def start(self, generation: Generation) -> None:
        """A new batch of images begins."""

    def call(self, generation: Generation) -> None:
        """The UNet is about to be called, for the `generation.calls`-th time (from 0) in this generation."""

    def attend(self, number: int, attention: Attention, query: torch.Tensor, key: torch.Tensor) -> None:
        """Layer `number` has computed query and key, (image, head, pixel or token, channel)."""
        raise NotImplementedError

    @contextmanager
    def listening(self) -> Iterator[Self]:
        """Have the hooks in place for the length of a `with` block."""
        unet = find_unet(self.pipe)
        with ExitStack() as stack:

            def hook(register: Callable, see: Callable, **options: bool) -> None:
                stack.callback(register(see, **options).remove)

            stack.callback(self._queries.clear)
            hook(unet.register_forward_pre_hook, self._see_unet, with_kwargs=True)
            if encoder := getattr(self.pipe, "text_encoder", None):
                hook(encoder.register_forward_pre_hook, self._see_text, with_kwargs=True)
            for number, layer in enumerate(self.heads):
                attention = unet.get_submodule(layer.name)
                hook(attention.to_q.register_forward_hook, partial(self._see_query, number))
                hook(attention.to_k.register_forward_hook, partial(self._see_key, number, attention))
            yield self

    def _see_text(self, encoder: Any, args: tuple, kwargs: dict) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        self._encoded.append(ids.tolist())

    def _see_unet(self, unet: Any, args: tuple, kwargs: dict) -> None:
        sample = args[0] if args else kwargs["sample"]
        text = args[2] if len(args) > 2 else kwargs["encoder_hidden_states"]
        if kwargs.get("encoder_attention_mask") is not None:
            raise ValueError("The UNet was given an `encoder_attention_mask`; capture does not reproduce it.")
        if self._generation is None or self._encoded:
            encoded, self._encoded = self._encoded, []
            self._generation = self._new_generation(sample, text, encoded)
            self.start(self._generation)
        elif sample.shape != self._generation.shape:
            raise ValueError(
                f"The UNet's input changed from {tuple(self._generation.shape)} to {tuple(sample.shape)} "
                "without the text encoder being called: use one `with` block for each batch."
            )
        self.call(self._generation)
        self._generation.calls += 1

    def _new_generation(self, sample: torch.Tensor, text: torch.Tensor, encoded: list[list[list[int]]]) -> Generation:
        prompts = self._given or (encoded[0] if encoded else None)
        batch, half = len(sample), len(sample) // 2
        # Under guidance the UNet sees the same latents twice, first with the negative prompts.
        guided = (
            batch % 2 == 0 and (prompts is None or batch != len(prompts)) and torch.equal(sample[:half], sample[half:])
        )
        if not self._given and encoded and len(encoded) != 1 + guided:
            raise ValueError(
                f"The text encoder ran {len(encoded)} time(s) before a UNet call of {batch} rows "
                f"{'with' if guided else 'without'} guidance, so prompts and negative prompts cannot be told "
                "apart. Say what the prompts are: capture(pipe, words, prompt=...)."
            )
        images = half if guided else batch
        if prompts and images % len(prompts):
            raise ValueError(
                f"{images} images for {len(prompts)} prompts: the same number for each prompt was expected. "
                "If `prompt` was given, it must have one entry for each row of embeddings."
            )
        if prompts and len(prompts[0]) != text.shape[1]:
            raise ValueError(
                f"The prompts have {len(prompts[0])} tokens, padding included, but the UNet was given the "
                f"embeddings of {text.shape[1]}, so words cannot be located."
            )
        return Generation(prompts, slice(batch - images, batch), images, sample.shape, sample.device)

    def _see_query(self, number: int, module: Any, args: tuple, output: torch.Tensor) -> None:
        self._queries[number] = output

    @torch.no_grad()
    def _see_key(self, number: int, attention: Attention, module: Any, args: tuple, output: torch.Tensor) -> None:
        query, generation = self._queries.pop(number), self._generation
        if generation is None:  # the layer was called by itself, outside its UNet
            return
        with torch.autocast(query.device.type, enabled=False):
            self.attend(
                number,
                attention,
                split_heads(query[generation.rows], attention.heads),
                split_heads(output[generation.rows], attention.heads),
            )


class Capture(Tap):
    """The maps of some words in the images made inside a `with capture(...)` block."""

    def __init__(
        self,
        pipe: Any,
        words: str | Sequence[str] | Sequence[Sequence[str]],
        prompt: str | Sequence[str] | None,
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
        self._image_words: list[list[str]] = []
        self._generations: list[tuple[Generation, dict[int, torch.Tensor], Counter[int]]] = []
        self._selector: torch.Tensor

    def start(self, generation: Generation) -> None:
        prompts = generation.prompts
        if prompts is None:
            raise ValueError(
                "The UNet was called with embeddings made elsewhere, so the prompts are not known. "
                "Say what they are: capture(pipe, words, prompt=...), one prompt for each row of embeddings."
            )
        words = self._words * len(prompts) if self._shared else self._words
        if len(words) != len(prompts):
            raise ValueError(f"words has {len(words)} lists of words for {len(prompts)} prompts.")
        selectors = [
            torch.stack([_selector(self.pipe.tokenizer, word, prompt) for word in wanted], dim=-1)
            for wanted, prompt in zip(words, prompts, strict=True)
        ]
        repeats = generation.images // len(prompts)
        stacked = torch.stack(selectors).repeat_interleave(repeats, dim=0)
        self._selector = stacked.to(generation.device)  # (image, token, word)
        self._image_words += [wanted for wanted in words for _ in range(repeats)]
        self._generations.append((generation, {}, Counter()))

    def attend(self, number: int, attention: Attention, query: torch.Tensor, key: torch.Tensor) -> None:
        _, sums, calls = self._generations[-1]
        images, n_heads, pixels, _ = query.shape
        if number not in sums:
            size = (images, n_heads, pixels, self._selector.shape[-1])
            sums[number] = torch.zeros(size, device=query.device)
        scaled = key.float().transpose(-1, -2) * attention.scale
        step = max(1, MAX_LOGITS // (n_heads * pixels * key.shape[2]))
        for first in range(0, images, step):
            part = slice(first, first + step)
            probabilities = (query[part].float() @ scaled[part]).softmax(dim=-1)  # Eq. 1
            sums[number][part] += probabilities @ self._selector[part, None]
        calls[number] += 1

    def dataset(self) -> xr.Dataset:
        """The maps of every head, as the mean over UNet calls (Eq. 2 before its mean over heads).

        One float32 variable a native resolution, `maps_{h}x{w}` with dimensions (image, word, head_{h}x{w},
        y_{h}x{w}, x_{h}x{w}) and values in [0, 1]. The coordinate `head_{h}x{w}` holds the heads' global
        numbers, `place_{h}x{w}` their place (down, mid, up); `word` holds the words, or "subject" where each
        prompt has its own. The attributes `height` and `width` are the image's size in pixels, `model` its
        model. Raises RuntimeError if nothing was generated, or if some layer was never seen.
        """
        if not self._generations:
            raise RuntimeError("Nothing was generated yet: call the pipeline inside the `with` block.")
        latents = {generation.shape[-2:] for generation, _, _ in self._generations}
        if len(latents) > 1:
            sizes = sorted(tuple(size) for size in latents)
            raise RuntimeError(f"Latents of several sizes, {sizes}: use one `with` block for each size.")
        latent = latents.pop()
        for _, sums, _ in self._generations:
            if missing := [layer.name for i, layer in enumerate(self.heads) if i not in sums]:
                raise RuntimeError(f"These layers were never called, or not through to_q and to_k: {missing}")
        grids = [_grid(latent, self._generations[0][1][i].shape[2]) for i in range(len(self.heads.layers))]
        words = self._words[0]
        if not self._shared:
            words = ["subject"] if len(words) == 1 else [f"subject {i}" for i in range(len(words))]
        coords: dict[str, Any] = {"word": words}
        data = {}
        for height, width in dict.fromkeys(grids):
            grid = f"{height}x{width}"
            members = [i for i, each in enumerate(grids) if each == (height, width)]
            means = [torch.cat([sums[i] / calls[i] for i in members], dim=1) for _, sums, calls in self._generations]
            maps = torch.cat(means)  # (image, head, pixel, word)
            dims = ("image", "word", f"head_{grid}", f"y_{grid}", f"x_{grid}")
            values = maps.permute(0, 3, 1, 2).unflatten(-1, (height, width)).contiguous().cpu().numpy()
            data[f"maps_{grid}"] = (dims, values)
            layers = [self.heads.layers[i] for i in members]
            numbers = [layer.first + head for layer in layers for head in range(layer.n_heads)]
            coords[f"head_{grid}"] = numbers
            coords[f"place_{grid}"] = (f"head_{grid}", self.heads.place[numbers])
        factor = self.pipe.vae_scale_factor
        size = {"height": latent[0] * factor, "width": latent[1] * factor}
        return xr.Dataset(data, coords, attrs={**size, "model": self.pipe.name_or_path or "unnamed"})

    def heatmap(self, word: str, heads: str | Sequence[int] = "all", image: int = 0) -> xr.DataArray:
        """Heat map (y, x) in [0, 1] of a captured word, at image size; `heads` as in `heatmap`."""
        maps = self.dataset()
        if not -len(self._image_words) <= image < len(self._image_words):
            raise IndexError(f"image {image} was asked for, of {len(self._image_words)} captured.")
        words = self._image_words[image]
        if word not in words:
            raise ValueError(f"{word!r} was not captured in image {image}; captured there: {words}")
        return heatmap(maps, heads, image=image, word=words.index(word))


@contextmanager
def capture(
    pipe: Any,
    words: str | Sequence[str] | Sequence[Sequence[str]],
    *,
    prompt: str | Sequence[str] | None = None,
) -> Iterator[Capture]:
    """Keep the attention maps of `words` in whatever the pipeline generates inside the `with` block.

    `words` is a list of words for all prompts, or one list for each prompt: [["bear"], ["cat"]]. The map of
    a word is the mean over its tokens and over its occurrences in the prompt. Each call of the pipeline in
    the block adds its images; under guidance only the conditional half counts. The image is bit-identical to
    one made without, and nothing stays behind in the pipeline.

    `prompt` is needed only where the text encoder is not called inside the block, because embeddings made
    elsewhere are passed to the pipeline or to `pipe.unet`: the prompts, one for each row of embeddings. The
    text encoder's calls then no longer mark where a new generation begins, so make one a block.

    Raises ValueError if a layer cannot be captured, and, as the generation starts, if a word is not in its
    prompt or if it cannot be known which prompts the UNet's rows belong to.
    """
    with Capture(pipe, words, prompt).listening() as maps:
        yield maps


def split_heads(projected: torch.Tensor, n_heads: int) -> torch.Tensor:
    """(image, position, head * channel) -> (image, head, position, channel)."""
    return projected.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def word_tokens(tokenizer: Any, word: str) -> list[int]:
    """Token ids of a word by itself, no specials; ValueError if the tokenizer does not know it."""
    ids = tokenizer(word, add_special_tokens=False).input_ids
    if not ids or tokenizer.unk_token_id in ids:
        raise ValueError(f"{word!r} is not in the vocabulary of the model; use a word it knows.")
    return ids


def _token_ids(tokenizer: Any, prompt: str | Sequence[str]) -> list[list[int]]:
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    return tokenizer(prompts, padding="max_length", truncation=True).input_ids


def _selector(tokenizer: Any, word: str, prompt: list[int]) -> torch.Tensor:
    """(token) weights that average the columns of all tokens of all occurrences of a word in a prompt."""
    ids = word_tokens(tokenizer, word)
    starts = [i for i in range(len(prompt)) if prompt[i : i + len(ids)] == ids]
    if not starts:
        special = set(tokenizer.all_special_ids)
        tokens = tokenizer.convert_ids_to_tokens([i for i in prompt if i not in special])
        raise ValueError(
            f"{word!r} (tokens {tokenizer.convert_ids_to_tokens(ids)}) is not in the prompt, which has the "
            f"tokens {tokens}. Ask for words as they stand in the prompt."
        )
    weights = torch.zeros(len(prompt))
    weights[[start + i for start in starts for i in range(len(ids))]] = 1
    return weights / weights.sum()


def _grid(latent: Sequence[int], pixels: int) -> tuple[int, int]:
    """(height, width) of a layer with so many pixels: the latent's, halved some times, rounded up."""
    for halvings in count():
        height, width = (-(-side // 2**halvings) for side in latent)
        if height * width == pixels:
            return height, width
        if height * width < pixels or height * width == 1:
            raise RuntimeError(f"A layer has {pixels} pixels, no halving of the {tuple(latent)} latent.")
    raise AssertionError
