"""Per-head attention maps of chosen words, taken from any generation of a pipeline, unchanged.

`trace` follows the pipeline and hands over each layer's queries and keys; what is done with them is here: the softmax
once more, on the side, and one sum a layer of the columns of the words asked for.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from diffusers import DiffusionPipeline

from ..maps.head_maps import HeadMaps
from ..maps.head_sets import HeadSelection, whole_numbers
from ..models.families import Outputs
from ..models.tokens import word_weights
from .proof import differs, is_exact, is_torchs_own
from .trace import Generation, Prompts, Trace

Words = str | int | Sequence[str | int] | Sequence[Sequence[str | int]]
Numbers = Sequence[int] | None  # of heads or layers; None: all
MAX_LOGITS = 2**22  # attention logits held at a time: 16 MB in float32, more than one SD v1 layer and image


class Capture(Trace):
    """The maps of some words in the images made inside a `with capture(...)` block."""

    def __init__(
        self,
        pipe: Any,
        words: Words,
        prompt: Prompts,
        heads: Numbers,
        layers: Numbers,
        timesteps: tuple[float, float] | None,
        per_timestep: bool,
        verify: bool,
    ) -> None:
        super().__init__(pipe, prompt)
        listed: list[Any] = [words] if isinstance(words, str | int) else list(words)
        shared = all(isinstance(word, str | int) for word in listed)
        self._words: list[list[str | int]] = [listed] if shared else [list(words) for words in listed]
        self._shared = shared
        if not listed or len({len(texts) for texts in self._words}) != 1 or not self._words[0]:
            raise ValueError(
                f"words={words!r} is neither a list of words, such as ['bear', 'lake'], nor one list "
                "of words for each prompt, all equally long, such as [['bear'], ['cat']]."
            )
        if timesteps is not None and len(timesteps) != 2:
            raise ValueError(f"timesteps={timesteps!r}: expected two of them, the first and the last to keep.")
        self._chosen = self._choose(heads, layers)  # layer number -> the heads in it
        self.layers = list(self._chosen)
        self._window = None if timesteps is None else (min(timesteps), max(timesteps))
        self._per_timestep, self._verify = per_timestep, verify
        self._image_words: list[list[str]] = []
        self._records: list[Record] = []

    if not TYPE_CHECKING:  # which would then let every name pass

        def __getattr__(self, name: str) -> Any:
            there = f"; what `head_maps()` of it gives has {name!r}" if hasattr(HeadMaps, name) else ""
            raise AttributeError(f"A capture has no {name!r}{there}.", name=name, obj=self)

    def _choose(self, heads: Numbers, layers: Numbers) -> dict[int, list[int]]:
        if heads is not None and layers is not None:
            raise ValueError("Both heads and layers were given; give the numbers of one kind.")
        kind, chosen = ("layers", layers) if heads is None else ("heads", heads)
        total = len(self.heads.layers) if heads is None else len(self.heads)
        numbers = set(range(total)) if chosen is None else set(whole_numbers(chosen, kind).tolist())
        if not numbers or not numbers <= set(range(total)):
            raise ValueError(f"{kind}={chosen!r}: expected some of the model's {kind}, numbers from 0 to {total - 1}.")
        in_layer = {
            number: [h for h in range(layer.n_heads) if (number if heads is None else layer.first + h) in numbers]
            for number, layer in enumerate(self.heads)
        }
        return {number: some for number, some in in_layer.items() if some}

    def memory(self, height: int, width: int, *, images: int = 1, calls: int = 50, frames: int = 1) -> int:
        """Bytes that the maps of `images` images of (height, width) pixels will take, known before any is made.

        `calls`, the calls of the network an image (50 steps make 51 with PNDM), matter only with `per_timestep`;
        `frames` are those of a clip's maps (21 for Wan's 81 pictures).
        """
        latent = [side // self.family.scale(self.pipe) for side in (height, width)]
        values = sum(len(heads) * prod(self.heads.layers[i].grid(latent)) for i, heads in self._chosen.items())
        return 4 * values * frames * images * len(self._words[0]) * (calls if self._per_timestep else 1)

    def start(self, generation: Generation) -> None:
        n_lists, n_prompts = len(self._words), generation.n_prompts or generation.images
        if not self._shared and (n_lists != (generation.n_prompts or n_lists) or generation.images % n_lists):
            raise ValueError(f"words has {n_lists} lists of words for {n_prompts} prompts.")
        record = Record(generation, self._select(generation))
        repeats = generation.images // n_lists
        self._image_words += [[_label(word) for word in words] for words in self._words for _ in range(repeats)]
        self._records.append(record)
        self._indices = {
            number: torch.tensor(heads, device=generation.device)
            for number, heads in self._chosen.items()
            if len(heads) < self.heads.layers[number].n_heads
        }

    def _select(self, generation: Generation) -> torch.Tensor:
        """(image, token, word) what averages the columns of each word; ValueError if some word is not there."""
        if any(prompt is None for prompt in generation.prompts):
            blended = " (Blends, and words of weight below 1, cannot be captured.)" * self._rows.encoded_here
            raise ValueError(
                "The network was called with embeddings made elsewhere, so the prompts are not known. "
                f"Say what they are: capture(pipe, words, prompt=...), as the text encoder reads them.{blended}"
            )
        repeats = generation.images // len(self._words)
        selectors = [
            torch.stack([word_weights(word, prompt, generation.n_tokens) for word in self._words[i // repeats]], dim=-1)
            for i, prompt in enumerate(generation.prompts)
            if prompt is not None
        ]
        return torch.stack(selectors).to(generation.device)

    def reword(self, generation: Generation) -> None:
        self._records[-1].select(self._select(generation))

    def to_prove(self, generation: Generation) -> set[int]:
        """All that is not known, in every call, since a method may begin and end anywhere."""
        own = is_torchs_own()
        return {n for n in self.layers if self._verify and not (own and is_exact(self.modules[n]))}

    def totals(self) -> dict[int, torch.Tensor]:
        return {number: sums[-1] for number, sums in self._records[-1].sums.items()} if self._records else {}

    def call(self, generation: Generation) -> bool:
        inside = True
        if self._window is not None:
            first, last = self._window
            inside = first <= _one_timestep(generation.timestep) <= last
        if inside and self._per_timestep:
            self._records[-1].timesteps.append(generation.timestep)
        return inside

    def attend(
        self,
        number: int,
        attention: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        bias: torch.Tensor | None,
        seen: Outputs,
    ) -> None:
        if number in self._unproven:
            self._prove(number, query, key, bias, seen)
        if number in self._indices:
            query, key = (states.index_select(1, self._indices[number]) for states in (query, key))
            if bias is not None and bias.shape[1] > 1:
                bias = bias.index_select(1, self._indices[number])
        record, n_heads, pixels = self._records[-1], query.shape[1], query.shape[2]
        query, key = _float_by_head(query), _float_by_head(key)
        selector = record.selector_of(n_heads)
        sums = record.sums.setdefault(number, [])
        if self._per_timestep or not sums:
            sums.append(torch.zeros((len(query), pixels, selector.shape[-1]), device=query.device))
        unused, scale = query.new_empty(1), query.shape[-1] ** -0.5
        logits_at_once = MAX_LOGITS if query.device.type == "cpu" else 16 * MAX_LOGITS  # a GPU minds launches more
        step = max(1, logits_at_once // (len(query) * key.shape[1]))
        for at in range(0, pixels, step):
            part = slice(at, at + step)
            logits = torch.baddbmm(unused, query[:, part], key.transpose(1, 2), beta=0, alpha=scale)
            if bias is not None:
                logits.unflatten(0, (-1, n_heads)).add_(bias if bias.shape[2] == 1 else bias[:, :, part])
            probabilities = logits.softmax(dim=-1)[..., : selector.shape[1]]  # Eq. 1, the text's columns
            sums[-1][:, part].baddbmm_(probabilities, selector)
        record.calls[number] = record.calls.get(number, 0) + 1

    def _prove(
        self, number: int, query: torch.Tensor, key: torch.Tensor, bias: torch.Tensor | None, seen: Outputs
    ) -> None:
        """ValueError if a layer whose processor is not known did something else with its attention than it says."""
        if "value" in seen:
            added = [value for name, value in seen.items() if name.startswith("added")]
            if not differs(query, key, seen["value"], seen["used"], added, bias):
                return
        raise ValueError(
            f"{self._named(number)} does not draw with softmax(Q K^T) V of its projections: it replaces, weights or "
            "merges the attention, and maps of what it did not use would mislead. To have them all the same: "
            "capture(..., verify=False)."
        )

    def head_maps(self) -> HeadMaps:
        """The maps of every head, as the mean over the network's calls (Eq. 2 before its mean over heads).

        See `HeadMaps` for what is in it. The word is called "subject" where each prompt has its own. With
        `per_timestep` the dimension `call` comes after the words, and its coordinate `timestep` holds the calls'
        timesteps.

        Raises
        ------
        RuntimeError
            If nothing was generated, if some layer was never seen, if no call fell into the window of timesteps, or if
            the images have different sizes or timesteps.
        """
        if self._window is not None and not all(record.sums for record in self._records):
            raise RuntimeError(f"No call of the network was at a timestep from {self._window[0]} to {self._window[1]}.")
        self.check_all_seen()
        latents = {(record.generation.latent, record.generation.frames) for record in self._records}
        if len(latents) > 1:
            sizes = sorted((*[len(frames)] * bool(frames), *latent) for latent, frames in latents)
            raise RuntimeError(f"Latents of several sizes, {sizes}: use one `with` block for each size.")
        latent, frames = latents.pop()
        grids = {number: self.heads.layers[number].grid(latent) for number in self._chosen}
        words = [_label(word) for word in self._words[0]]
        if not self._shared:
            words = ["subject"] if len(words) == 1 else [f"subject {i}" for i in range(len(words))]
        coords: dict[str, Any] = {"word": words}
        call = ("call",) if self._per_timestep else ()
        if self._per_timestep:
            coords["timestep"] = ("call", self._timesteps())
        frame = ("frame",) if frames else ()
        if frames:
            coords["covers"] = ("frame", list(frames))
        data = {}
        for height, width in dict.fromkeys(grids.values()):
            grid = f"{height}x{width}"
            members = [number for number, size in grids.items() if size == (height, width)]
            means = [torch.cat([record.mean(number) for number in members], dim=2) for record in self._records]
            maps = torch.cat(means)  # (image, call, head, pixel, word)
            shape = (len(frames), height, width) if frames else (height, width)
            values = maps.permute(0, 4, 1, 2, 3).unflatten(-1, shape).contiguous().cpu().numpy()
            if not np.isfinite(values).all():
                raise ValueError(f"The attention is NaN or infinite on the grid of {height} x {width}.")
            dims = ("image", "word", *call, f"head_{grid}", *frame, f"y_{grid}", f"x_{grid}")
            data[f"maps_{grid}"] = (dims, values if call else values[:, :, 0])
            numbers = [self.heads.layers[number].first + head for number in members for head in self._chosen[number]]
            coords[f"head_{grid}"] = numbers
            coords[f"place_{grid}"] = (f"head_{grid}", self.heads.block[numbers])
        factor = self.family.scale(self.pipe)
        size = {"height": latent[0] * factor, "width": latent[1] * factor}
        model = getattr(self.pipe, "name_or_path", None) or "unnamed"
        if not self._shared:
            coords["own_words"] = (("image", "word"), self._image_words)
        return HeadMaps(xr.Dataset(data, coords, attrs={**size, "model": model, "n_heads": len(self.heads)}))

    def _timesteps(self) -> list[float]:
        """Those of the calls that are kept, one map each."""
        every = [[_one_timestep(timestep) for timestep in record.timesteps] for record in self._records]
        for record, timesteps in zip(self._records, every, strict=True):
            if timesteps != every[0] or any(len(maps) != len(timesteps) for maps in record.sums.values()):
                raise RuntimeError(
                    "With per_timestep, every image and layer needs a map at each timestep: let no generation be "
                    "interrupted, skip no layers, and use one `with` block for each number of steps."
                )
        return every[0]

    def dataset(self) -> xr.Dataset:
        """`head_maps()` as an xarray dataset."""
        return self.head_maps().dataset

    def heatmap(self, word: int | str = 0, heads: HeadSelection = "all", **options: Any) -> xr.DataArray:
        """`HeadMaps.heatmap` of what is captured: (y, x), of clips (frame, y, x), in [0, 1], at the picture's size."""
        return self.head_maps().heatmap(word, heads, **options)


@dataclass
class Record:
    """What a `Capture` keeps of one generation: `sums` has one tensor (image * head, pixel, word) a layer, or one for
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

    def select(self, selector: torch.Tensor) -> None:
        """Go on with other columns."""
        self.selector = selector
        self._selectors.clear()

    def mean(self, number: int) -> torch.Tensor:
        """(image, call, head, pixel, word) of a layer: for each call, or over all of them as one."""
        sums = self.sums[number]
        stacked = torch.stack(sums) * (len(sums) / self.calls[number])
        return stacked.unflatten(1, (self.generation.images, -1)).transpose(0, 1)


@contextmanager
def capture(
    pipe: DiffusionPipeline,
    words: Words,
    *,
    prompt: str | Sequence[str] | None = None,
    heads: Sequence[int] | None = None,
    layers: Sequence[int] | None = None,
    timesteps: tuple[float, float] | None = None,
    per_timestep: bool = False,
    verify: bool = True,
) -> Iterator[Capture]:
    """Keep the attention maps of `words` in whatever the pipeline generates inside the `with` block.

    A map is a column of softmax(Q K^T / sqrt(d)) (Eq. 1), one for each head, averaged over the calls of the network
    that draw the picture (Eq. 2 before its mean over heads); negative prompts and perturbed copies do not count. Each
    call of the pipeline in the block adds its images. The image is bit-identical to one made without, and nothing
    stays behind in the pipeline. Maps of clips (`WanPipeline`, `CogVideoXPipeline`) have a frame for each latent frame.

    A loop of one's own may show the network what cannot be told from pictures: references or perturbed copies with the
    prompt's text as rows before or beside the pictures' own, or in calls at timesteps of their own. Open the block
    around the calls that draw, and no others.

    Parameters
    ----------
    pipe : diffusers.DiffusionPipeline
        Of a model in `supported_models`.
    words : str, int, or a list of these, or one such list for each prompt
        A word or a phrase (``"oak tree"``), found as it is written, in upper or lower case, as a whole. Its map is the
        mean over its tokens and over its occurrences; ``"bear#2"`` is the second alone. A special token goes by its
        name (``"<|startoftext|>"``), any token by its position among all that the model reads, 0 or more. Where the
        model reads a prompt through two tokenizers one after the other (SD3: CLIP, then T5), the mean is taken in
        each, then over the two.
    prompt : str or list of str, optional
        The prompts as the text encoders read them, without weights. Needed where embeddings are made outside the
        block, or where a loop of one's own shows the network several texts and it is not clear which is the prompt, or
        rows that are the same, and it is not clear how many are pictures: then one prompt a picture.
    heads, layers : sequence of int, optional
        Only the heads of these numbers, or those of the layers of these numbers, as in `cross_attention_heads`.
    timesteps : (float, float), optional
        Only calls at scheduler timesteps in this window, within [0, 1000], both ends included.
    per_timestep : bool
        A map for each call instead of the mean; `Capture.memory` says how many bytes that takes.
    verify : bool
        Compare what layers with processors of unknown kinds put out with what their captured attention would, in every
        call.

    Yields
    ------
    Capture
        ``heatmap(word, heads)`` is one map, ``head_maps()`` all of them.

    Raises
    ------
    ValueError
        If a layer cannot be captured or a selection makes no sense; and while the picture is made, if a word is not in
        its prompt, if it is not clear whose attention a row is, if a layer uses its attention in another way, or if
        the attention is NaN or infinite.

    Examples
    --------
    >>> from selattn_lib import load_pipeline
    >>> pipe = load_pipeline("emoji-sd", device="cpu")
    >>> with capture(pipe, ["bear"]) as maps:
    ...     picture = pipe("photo of a bear", num_inference_steps=2).images[0]
    >>> maps.heatmap("bear", heads=[3, 14, 15]).shape
    (128, 128)
    >>> maps.head_maps()
    HeadMaps: 1 image of 128 x 128 pixels, words bear, 128 heads (...)
    """
    with Capture(pipe, words, prompt, heads, layers, timesteps, per_timestep, verify).attached() as maps:
        yield maps


def _label(word: str | int) -> str:
    return word if isinstance(word, str) else f"token {word}"


def _float_by_head(values: torch.Tensor) -> torch.Tensor:
    """(image, head, position, channel) -> (image * head, position, channel), float32, in one copy or none."""
    return values.to(torch.float32, memory_format=torch.contiguous_format).flatten(0, 1)


def _one_timestep(timestep: Any) -> float:
    values = torch.as_tensor(timestep).unique()
    if len(values) != 1:
        raise ValueError(f"The rows of the batch are at several timesteps, {values.tolist()}; none can be singled out.")
    return float(values)
