"""Head relevance vectors (HRV, Eq. 3): which heads look where a visual concept's words look.

While any images are generated, every head votes, at every call of the UNet, for the concept whose word, drawn
at random, receives most of its attention. A concept's relevance vector is its share of the votes.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr

from .concepts import load_concepts
from .families import UNet, split_heads
from .tap import Generation, Tap
from .words import word_tokens

WORDS_AT_ONCE = 64  # concept words encoded together
HEAD_NAME = re.compile(r"(down|mid|up), layer: (\d+), head: (\d+)")


@dataclass(frozen=True)
class HeadRelevance:
    """Relevance of every head for every concept.

    `scores` (concept, head): the votes, each row scaled to an L1 norm of H, the number of heads; a row
    without votes is 0. `counts` (concept, head): the votes themselves, None where only scores are published.
    """

    scores: xr.DataArray
    counts: xr.DataArray | None = None

    @classmethod
    def from_counts(cls, counts: xr.DataArray) -> Self:
        """Scale votes (concept, head), or (image, concept, head) to be summed over images, to scores."""
        if "image" in counts.dims:
            counts = counts.sum("image", keep_attrs=True)
        counts = counts.transpose("concept", "head")
        total = counts.sum("head")
        return cls(counts / total.where(total > 0, 1) * counts.sizes["head"], counts)

    def ranking(self, concept: str) -> np.ndarray:
        """(head) head numbers, the most relevant first; of equal heads the lower number first.

        Raises ValueError if the concept is not known.
        """
        names = self.scores["concept"].values.tolist()
        if concept not in names:
            raise ValueError(f"Concept {concept!r} is not known; these are: {', '.join(names)}")
        return np.argsort(-self.scores.values[names.index(concept)], kind="stable")

    def top(self, concept: str, k: int) -> np.ndarray:
        """The k most relevant heads, the most relevant first; ValueError unless 1 <= k <= H."""
        return self.ranking(concept)[: self._checked(k)]

    def bottom(self, concept: str, k: int) -> np.ndarray:
        """The k least relevant heads, the least relevant last; ValueError unless 1 <= k <= H."""
        return self.ranking(concept)[-self._checked(k) :]

    def _checked(self, k: int) -> int:
        n_heads = self.scores.sizes["head"]
        if not 1 <= k <= n_heads:
            raise ValueError(f"k={k} heads of {n_heads} were asked for; k must be 1 to {n_heads}.")
        return k

    def save(self, path: str | Path) -> None:
        """Write one .npz file, without pickles."""
        arrays = {
            "scores": self.scores.values,
            "concepts": np.array(self.scores["concept"].values, dtype=str),
            "heads": np.array(self.scores["head"].values, dtype=str),
        }
        if self.counts is not None:
            arrays["counts"] = self.counts.values
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | Path, *, concepts: Sequence[str] | None = None) -> Self:
        """Read what `save` wrote, or a folder of published HRVs.

        Such a folder holds two .npy files: numbers (concept, head) and the heads' names, such as
        "down, layer: 0, head: 3". It does not name the concepts: `concepts` does, in the order of the rows;
        by default they are the HRV paper's 34.

        Heads are put in order, down, mid, up, whatever their order in the file; nothing is unpickled. Raises
        FileNotFoundError if there is nothing at `path`, ValueError if the contents do not fit: the shape, the heads'
        names, or a row that is neither 0 nor of L1 norm H.
        """
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"No head relevance at {path}: no .npz file and no folder of .npy files.")
        if path.is_dir():
            return cls._load_published(path, concepts)
        file = _arrays(path)
        if missing := {"scores", "concepts", "heads"} - set(file):
            raise ValueError(f"{path} holds {sorted(file)} but no {sorted(missing)}; save() writes them.")
        concepts, heads = file["concepts"].tolist(), file["heads"].tolist()
        scores = _normed(_table(file["scores"], concepts, heads, path), path)
        return cls(scores, _table(file["counts"], concepts, heads, path) if "counts" in file else None)

    @classmethod
    def _load_published(cls, folder: Path, concepts: Sequence[str] | None) -> Self:
        arrays = [array for file in sorted(folder.glob("*.npy")) for array in _arrays(file).values()]
        numbers = [array for array in arrays if array.dtype.kind == "f"]
        names = [array for array in arrays if array.dtype.kind == "U"]
        if len(numbers) != 1 or len(names) != 1:
            raise ValueError(
                f"{folder} holds {len(numbers)} .npy files of floats and {len(names)} of strings; one of "
                "each is expected: the vectors (concept, head) and the names of the heads."
            )
        concepts = list(load_concepts("paper")) if concepts is None else list(concepts)
        return cls(_normed(_table(numbers[0], concepts, names[0].ravel().tolist(), folder), folder))


def load_hrv(model_or_path: str | Path) -> HeadRelevance:
    """Load head relevance: "emoji-sd" for the embedded model's, or a path as for `HeadRelevance.load`."""
    if str(model_or_path) == "emoji-sd":
        return HeadRelevance.load(Path(__file__).parent / "emoji" / "hrv.npz")
    return HeadRelevance.load(model_or_path)


class RelevanceCounter(Tap):
    """The votes of every head, in the images made inside a `with score_heads(...)` block."""

    def __init__(
        self,
        pipe: Any,
        concepts: Mapping[str, Sequence[str]],
        seed: int,
        units: Iterable[int] | None,
        start_token: bool,
    ) -> None:
        super().__init__(pipe)
        if not isinstance(self.family, UNet):
            raise ValueError(
                f"The heads of {type(pipe).__name__} cannot be scored: they attend to image and text at once, and only "
                "attention to words alone is a vote. Expected: Stable Diffusion 1.x, 2.x or XL."
            )
        if empty := [name for name, words in concepts.items() if not words]:
            raise ValueError(f"These concepts have no words: {empty}")
        if len(concepts) < 2:
            raise ValueError(f"Heads vote among concepts; at least two are needed, not {list(concepts)}.")
        self.concepts = list(concepts)
        self._seed, self._start_token = seed, start_token
        self._units = None if units is None else list(units)
        every_word = [word for words in concepts.values() for word in words]
        self._tokens, first, length = _encode_words(pipe, every_word)
        self._n_words = np.array([len(words) for words in concepts.values()])
        offsets = np.cumsum(self._n_words) - self._n_words
        # One column for each concept and sub-token, as many as the concept's longest word has.
        longest = [length[o : o + n].max() for o, n in zip(offsets, self._n_words, strict=True)]
        self._column_concept = np.repeat(np.arange(len(concepts)), longest)
        self._column_token = np.concatenate([np.arange(n) for n in longest])
        self._first, self._length, self._offsets = first, length, offsets
        self._layer = np.repeat(np.arange(len(self.heads.layers)), [layer.n_heads for layer in self.heads])  # (head)
        self._keys: dict[int, torch.Tensor] = {}
        self._attended: torch.Tensor | None = None  # (image, head, column) of the call under way
        self._counts: list[torch.Tensor] = []  # (image, concept, head) of each generation

    def start(self, generation: Generation) -> None:
        self._vote()
        done = sum(len(counts) for counts in self._counts)
        units = range(done + generation.images) if self._units is None else self._units
        self._now = list(units[done : done + generation.images])
        if len(self._now) < generation.images:
            raise ValueError(f"units names {len(units)} images; {done + generation.images} are being made.")
        device = generation.device
        shape = (generation.images, len(self.concepts), len(self.heads))
        self._counts.append(torch.zeros(shape, dtype=torch.int32, device=device))
        one_hot = F.one_hot(torch.from_numpy(self._column_concept), len(self.concepts)).float()
        self._columns_to_concepts = one_hot.to(device)  # (column, concept)

    def call(self, generation: Generation) -> bool:
        """Count the votes of the last call, and draw one word a concept for each (image, layer) of this one."""
        self._vote()
        size = (len(self.heads.layers), len(self.concepts))
        generators = [np.random.default_rng([self._seed, unit, generation.calls]) for unit in self._now]
        drawn = np.stack([each.integers(self._n_words, size=size) for each in generators], axis=1)
        words = (drawn + self._offsets)[..., self._column_concept]  # (layer, image, column)
        used = self._column_token < self._length[words]
        tokens = self._first[words] + np.where(used, self._column_token, 0)
        share = (used / self._length[words]).astype(np.float32)
        bias = np.where(used, 0, -np.inf).astype(np.float32)
        # A GPU is not waited for, except where such copies are not safe.
        later = generation.device.type != "mps"
        self._index, self._share, self._bias = (
            torch.from_numpy(each).to(generation.device, non_blocking=later)
            for each in (tokens, share[self._layer].transpose(1, 0, 2), bias)
        )  # (layer, image, column), (image, head, column), (layer, image, column)
        self._attended = self._share.new_zeros(self._share.shape)
        return True

    def attend(self, number: int, attention: Any, query: torch.Tensor, key: torch.Tensor) -> None:
        assert self._attended is not None
        if number not in self._keys:
            tokens = self._tokens.to(query.device, next(attention.to_k.parameters()).dtype)
            # `forward` rather than a call: hooks of our own, and of others, are for the model's use.
            self._keys[number] = attention.to_k.forward(tokens).float() * attention.scale
        keys = self._keys[number]
        n_heads, index, bias = query.shape[1], self._index[number], self._bias[number]
        chosen = keys[index]  # (image, column, head * channel)
        if self._start_token:  # token 0: the same, whatever the first word
            chosen = torch.cat([keys[:1].expand(len(index), 1, -1), chosen], dim=1)
            bias = F.pad(bias, (1, 0))
        first = self.heads.layers[number].first
        for image, (q, k) in enumerate(zip(query, split_heads(chosen, n_heads), strict=True)):
            probabilities = torch.baddbmm(bias[image], q.float(), k.transpose(1, 2)).softmax(dim=-1)
            columns = probabilities[..., 1:] if self._start_token else probabilities
            torch.mean(columns, dim=1, out=self._attended[image, first : first + n_heads])

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
    pipe: Any,
    concepts: Mapping[str, Sequence[str]],
    *,
    seed: int = 0,
    units: Iterable[int] | None = None,
    start_token: bool = False,
) -> Iterator[RelevanceCounter]:
    """Count the heads' votes for `concepts` (name -> words) while images are generated in the block (Eq. 3).

    At each (call, layer) one word a concept is drawn; the conditional queries' softmax over the drawn words'
    semantic tokens is averaged over pixels and over each word's tokens, and each head votes for the concept
    of the largest. The draws depend on `seed`, on the image's number in `units` (0, 1, 2 ... by default, in
    order of generation), on the call and on the layer, never on the batch. `start_token` keeps the start
    token of the first word inside the softmax, as the published implementation does; it gets no vote.

    May be nested with `capture`, in either order, and leaves the image as it is, bit for bit.
    Raises ValueError on fewer than two concepts, on concepts without words, and on layers that cannot be
    captured.
    """
    with RelevanceCounter(pipe, concepts, seed, units, start_token).listening() as counter:
        yield counter


def _encode_words(pipe: Any, words: list[str]) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Encode each word by itself: start token, word, end token.

    Returns the embeddings (token, channel): the start token's, then every word's semantic tokens; and for
    each word the position of its first token in them and the number of its tokens.
    """
    suffixes = [s for s in ("", "_2") if getattr(pipe, f"text_encoder{s}", None) is not None]
    parts = [(getattr(pipe, f"tokenizer{s}"), getattr(pipe, f"text_encoder{s}")) for s in suffixes]
    lengths = np.array([len(word_tokens(parts[0][0], word)) for word in words])
    kept: list[torch.Tensor] = []
    for at in range(0, len(words), WORDS_AT_ONCE):
        batch = [
            _encode(tokenizer, encoder, words[at : at + WORDS_AT_ONCE], penultimate="_2" in suffixes)
            for tokenizer, encoder in parts
        ]
        states = torch.cat(batch, dim=-1)
        if not kept:
            kept.append(states[0, :1])
        kept += [state[1 : 1 + n] for state, n in zip(states, lengths[at:], strict=False)]
    return torch.cat(kept), 1 + np.cumsum(lengths) - lengths, lengths


@torch.no_grad()
def _encode(tokenizer: Any, encoder: Any, words: list[str], penultimate: bool) -> torch.Tensor:
    """(word, token, channel) the last hidden state, normalised, or the last but one, as SDXL reads it."""
    ids = tokenizer(words, padding=True, return_tensors="pt").input_ids.to(encoder.device)
    return encoder.forward(ids, output_hidden_states=True).hidden_states[-2] if penultimate else encoder.forward(ids)[0]


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file, or the one of a .npy file; ValueError if it is damaged or would need unpickling."""
    try:
        file: Any = np.load(path, allow_pickle=False)
        return {"": file} if isinstance(file, np.ndarray) else {name: file[name] for name in file}
    except (ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} is damaged, or pickled, and is not read: {error}") from error


def _table(values: np.ndarray, concepts: Sequence[str], heads: Sequence[str], source: Path) -> xr.DataArray:
    if values.shape != (len(concepts), len(heads)):
        raise ValueError(
            f"{source} holds an array of shape {values.shape}; {len(concepts)} concepts x {len(heads)} heads "
            "were expected."
        )
    parts = [HEAD_NAME.fullmatch(head) for head in heads]
    if bad := [head for head, part in zip(heads, parts, strict=True) if not part] or _repeated(heads):
        raise ValueError(
            f"{source} names heads {bad[:3]}: expected names such as 'down, layer: 0, head: 3', each once."
        )
    rank = [(UNet.places.index(part[1]), int(part[2]), int(part[3])) for part in parts if part]
    coords = {"concept": list(concepts), "head": list(heads)}
    table = xr.DataArray(values, dims=("concept", "head"), coords=coords)
    return table.isel(head=sorted(range(len(heads)), key=rank.__getitem__))


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, times in Counter(names).items() if times > 1]


def _normed(scores: xr.DataArray, source: Path) -> xr.DataArray:
    """`scores` (concept, head) themselves, if they are head relevance: 0 or more, each row 0 or of L1 norm H."""
    if not (np.isfinite(scores.values) & (scores.values >= 0)).all():
        raise ValueError(f"{source} holds values that are negative or no numbers; head relevance is 0 or more.")
    heads, norms = scores.sizes["head"], scores.sum("head").values
    for concept, norm in zip(scores["concept"].values, norms, strict=True):
        if norm and abs(norm - heads) > 0.01 * heads:
            raise ValueError(f"{source}: the row of {concept} has an L1 norm of {norm:.4g}; {heads} was expected.")
    return scores
