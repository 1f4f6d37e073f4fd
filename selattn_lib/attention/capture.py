"""Per-head attention maps of chosen words, taken from any generation of a pipeline, unchanged.

`tap` follows the pipeline and hands over each layer's queries and keys; what is done with them is here: the softmax
once more, on the side, and one sum a layer of the columns of the words asked for.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
import xarray as xr

from ..maps.head_maps import HeadMaps
from ..maps.head_sets import HeadSelection
from ..models.tokens import word_weights
from .trace import Generation, Trace

MAX_LOGITS = 2**22  # attention logits held at a time: 16 MB in float32, more than one SD v1 layer and image


class Capture(Trace):
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
            torch.stack([word_weights(word, prompt, generation.n_tokens) for word in wanted], dim=-1)
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

    def head_maps(self) -> HeadMaps:
        """The maps of every head kept, as the mean over the network's calls (Eq. 2 before its mean over heads).

        See `HeadMaps` for what is in it. The word is called "subject" where each prompt has its own. With
        `per_timestep` the dimension `call` comes after the words, and its coordinate `timestep` holds the calls'
        timesteps.

        Raises
        ------
        RuntimeError
            If nothing was generated, if some layer was never seen, if no call fell into the window of timesteps, or if
            the images have different sizes or timesteps.
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
            coords[f"place_{grid}"] = (f"head_{grid}", self.heads.block[numbers])
        factor = self.pipe.vae_scale_factor
        size = {"height": latent[0] * factor, "width": latent[1] * factor}
        model = self.pipe.name_or_path or "unnamed"
        if not self._shared:
            coords["own_words"] = (("image", "word"), self._image_words)
        return HeadMaps(xr.Dataset(data, coords, attrs={**size, "model": model, "n_heads": len(self.heads)}))

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

    def heatmap(self, word: int | str = 0, heads: HeadSelection = "all", **options: Any) -> xr.DataArray:
        """`HeadMaps.heatmap` of what is captured: (y, x) in [0, 1], at the picture's size."""
        return self.head_maps().heatmap(word, heads, **options)


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
    with Capture(pipe, words, prompt, heads, layers, timesteps, per_timestep).attached() as maps:
        yield maps


def _float_by_head(values: torch.Tensor) -> torch.Tensor:
    """(image, head, position, channel) -> (image * head, position, channel), float32, in one copy or none."""
    return values.to(torch.float32, memory_format=torch.contiguous_format).flatten(0, 1)


def _one_timestep(timestep: Any) -> float:
    values = torch.as_tensor(timestep).unique()
    if len(values) != 1:
        raise ValueError(f"The rows of the batch are at several timesteps, {values.tolist()}; none can be singled out.")
    return float(values)
