"""Head relevance vectors (HRV, Eq. 3): which heads look where a visual concept's words look.

While any images are generated, every head votes, at every call of the UNet, for the concept whose word, drawn
at random, receives most of its attention. A concept's relevance vector is its share of the votes.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Self

import numpy as np
import xarray as xr
from scipy.cluster.hierarchy import leaves_list, linkage

from ..concepts import load_concepts
from ..emoji.control import CONTROL, EMBEDDED, PLANTED
from ..models.heads import BLOCKS, HEAD_NAME
from .head_sets import first_heads

SHIPPED = {EMBEDDED: PLANTED.parent / "hrv.npz", CONTROL: PLANTED / "hrv.npz"}


@dataclass(frozen=True)
class HeadRelevance:
    """Relevance of every head for every concept (Eq. 3).

    Parameters
    ----------
    scores : xarray.DataArray (concept, head)
        The votes, each row scaled to an L1 norm of H, the number of heads; a row without votes is 0.
    counts : xarray.DataArray (concept, head), optional
        The votes themselves, None where only scores are published.
    votes : xarray.DataArray (image, concept, head), optional
        The votes of each image, None where only their sums or scores are known.

    Examples
    --------
    >>> counts = xr.DataArray([[3, 0, 1, 4]], {"concept": ["Animals"]}, ("concept", "head"))
    >>> relevance = HeadRelevance.from_counts(counts)
    >>> relevance.scores.values.tolist(), relevance.top("Animals", 2).tolist()
    ([[1.5, 0.0, 0.5, 2.0]], [3, 0])
    """

    scores: xr.DataArray
    counts: xr.DataArray | None = None
    votes: xr.DataArray | None = None

    @classmethod
    def from_counts(cls, counts: xr.DataArray) -> Self:
        """Scale votes (concept, head), or (image, concept, head) to be summed over images, to scores."""
        votes = counts.transpose("image", "concept", "head") if "image" in counts.dims else None
        counts = counts if votes is None else counts.sum("image", keep_attrs=True)
        counts = counts.transpose("concept", "head")
        total = counts.sum("head")
        return cls(counts / total.where(total > 0, 1) * counts.sizes["head"], counts, votes)

    def ranking(self, concept: str) -> np.ndarray:
        """(head) head numbers, the most relevant first; of equal heads the lower number first.

        Raises ValueError if the concept is not known.
        """
        return np.argsort(-self._row(concept), kind="stable")

    def top(self, concept: str, k: int) -> np.ndarray:
        """The k most relevant heads, the most relevant first; ValueError unless 1 <= k <= H.

        Of heads with equally many votes the lower number comes first. A UserWarning says so where these are at the edge
        of the selection (`tie`).
        """
        return self._warned(concept, k, "top")[:k]

    def bottom(self, concept: str, k: int) -> np.ndarray:
        """The k least relevant heads, the least relevant last; ValueError unless 1 <= k <= H.

        Of heads with equally many votes the higher number comes last; with a warning, as of `top`.
        """
        return self._warned(concept, k, "bottom")[-k:]

    def tie(self, concept: str, k: int, end: str = "top") -> str:
        """What head numbers decide in the choice of the `end`, top or bottom, k heads; "" where votes decide it all.

        Examples
        --------
        >>> counts = xr.DataArray([[3, 1, 1, 0]], {"concept": ["Animals"]}, ("concept", "head"))
        >>> HeadRelevance.from_counts(counts).tie("Animals", 2)
        'Animals, top 2: 1 of 2 heads with equally many votes is taken, the lower number first; k = 1 or 3 avoids this'
        """
        ranked = self._row(concept)[self.ranking(concept)][:: 1 if end == "top" else -1]
        alike = np.flatnonzero(ranked == ranked[self._checked(k) - 1])
        if alike[-1] < k:
            return ""
        n, first, last = k - alike[0], int(alike[0]), int(alike[-1]) + 1
        rule = f"the {'lower' if end == 'top' else 'higher'} number first"
        way_out = f"k = {first} or {last} avoids this" if first else f"k = {last} avoids this"
        taken = f"{n} of {len(alike)} heads with {'equally many' if ranked[alike[0]] else 'no'} votes"
        return f"{concept}, {end} {k}: {taken} {'is' if n == 1 else 'are'} taken, {rule}; {way_out}"

    def orders(self, concept: str, draws: int = 50, seed: int = 0) -> xr.DataArray:
        """The ranking, and others that show how far it hangs on the images that it was counted on.

        Parameters
        ----------
        concept : str
            One of the concepts.
        draws, seed : int
            How often as many images are drawn from these, with replacement, and ranked by their votes. A draw is of the
            same images for every concept.

        Returns
        -------
        xarray.DataArray (ranking, head)
            Head numbers, as `first_heads` takes them: first `ranking` itself, then the draws; none without `votes`.

        Examples
        --------
        >>> load_hrv("emoji-sd").orders("Animals").shape  # itself, and 50 draws
        (51, 128)
        """
        counts = self.redrawn(concept, draws, seed)
        return counts.copy(data=np.argsort(-counts.values, axis=1, kind="stable"))

    def redrawn(self, concept: str, draws: int = 50, seed: int = 0) -> xr.DataArray:
        """(ranking, head) the relevance that `orders` ranks: as it is, and the votes of images drawn anew."""
        counts = [self._row(concept)]
        if self.votes is not None:
            n_images = self.votes.sizes["image"]
            times = np.random.default_rng(seed).multinomial(n_images, np.full(n_images, 1 / n_images), size=draws)
            counts += list(times @ self.votes.sel(concept=concept).values.astype(int))
        return xr.DataArray(np.stack(counts), dims=("ranking", "head"))

    def top_sets(self, concept: str, k: int) -> xr.DataArray:
        """(ranking, head) weights of the k most relevant heads by each of the `orders`."""
        return first_heads(self.orders(concept), [k]).isel(k=0, drop=True)

    def bottom_sets(self, concept: str, k: int) -> xr.DataArray:
        """(ranking, head) weights of the k least relevant heads by each of the `orders`."""
        return first_heads(self.orders(concept)[:, ::-1], [k]).isel(k=0, drop=True)

    @property
    def noise(self) -> str:
        """What intervals know of the noise of the ranking."""
        if self.votes is None:
            return "the head relevance comes without its images' votes: intervals leave out the noise of the ranking"
        return f"intervals hold the noise of the ranking, which was counted on {self.votes.sizes['image']} images"

    def _row(self, concept: str) -> np.ndarray:
        names = self.scores["concept"].values.tolist()
        if concept not in names:
            raise ValueError(f"Concept {concept!r} is not known; these are: {', '.join(names)}")
        return self.scores.values[names.index(concept)]

    def _warned(self, concept: str, k: int, end: str) -> np.ndarray:
        if tie := self.tie(concept, k, end):
            warnings.warn(tie, UserWarning, stacklevel=3)
        return self.ranking(concept)

    def _checked(self, k: int) -> int:
        n_heads = self.scores.sizes["head"]
        if not 1 <= k <= n_heads:
            raise ValueError(f"k={k} heads of {n_heads} were asked for; k must be 1 to {n_heads}.")
        return k

    def save(self, path: str | Path) -> None:
        """Write one .npz file, without pickles; with the votes of each image where they are known."""
        arrays = {
            "scores": self.scores.values,
            "concepts": np.array(self.scores["concept"].values, dtype=str),
            "heads": np.array(self.scores["head"].values, dtype=str),
        }
        if self.votes is not None:
            arrays["votes"] = self.votes.values.astype("uint32")
        elif self.counts is not None:
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
        concepts, heads = (np.atleast_1d(file[name]).tolist() for name in ("concepts", "heads"))
        scores = _normed(_table(file["scores"], concepts, heads, path), path)
        if "votes" in file:
            votes = _table(file["votes"], concepts, heads, path, ("image", "concept", "head")).astype(int)
            return cls(scores, votes.sum("image"), votes)
        return cls(scores, _table(file["counts"], concepts, heads, path) if "counts" in file else None)

    @classmethod
    def _load_published(cls, folder: Path, concepts: Sequence[str] | None) -> Self:
        concepts = list(load_concepts("paper")) if concepts is None else list(concepts)
        arrays = {file.name: array for file in sorted(folder.glob("*.npy")) for array in _arrays(file).values()}
        numbers = [array for array in arrays.values() if array.dtype.kind == "f"]
        names = [array for array in arrays.values() if array.dtype.kind == "U"]
        if len(numbers) != 1 or len(names) != 1:  # a whole folder of results: the two that belong together
            pairs = [(n, heads) for n in numbers for heads in names if n.shape == (len(concepts), heads.size)]
            pairs = [(n, heads) for n, heads in pairs if np.allclose(n.sum(1)[n.any(1)], heads.size, rtol=0.01)]
            if len(pairs) != 1:
                raise ValueError(
                    f"{folder} holds {len(numbers)} .npy files of floats and {len(names)} of strings, {[*arrays]}; one "
                    f"of each is expected, or one pair that fits: the vectors ({len(concepts)} concepts, head), each "
                    f"row 0 or of L1 norm H, and the names of the H heads. Put these two in a folder of their own."
                )
            [(numbers[0], names[0])] = pairs
        return cls(_normed(_table(numbers[0], concepts, names[0].ravel().tolist(), folder), folder))


def load_hrv(model_or_path: str | Path) -> HeadRelevance:
    """Load head relevance.

    Parameters
    ----------
    model_or_path : str or path
        "emoji-sd" or "emoji-control" for an embedded model's, or a path as for `HeadRelevance.load`.

    Returns
    -------
    HeadRelevance
        With its votes where the file has them.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is nothing, or nothing that fits.

    Examples
    --------
    >>> load_hrv("emoji-sd").top("Animals", 30).shape
    (30,)
    """
    return HeadRelevance.load(SHIPPED.get(str(model_or_path), model_or_path))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file, or the one of a .npy file; ValueError if it is damaged or would need unpickling."""
    try:
        file: Any = np.load(path, allow_pickle=False)
        return {"": file} if isinstance(file, np.ndarray) else {name: file[name] for name in file}
    except Exception as error:  # of many types: it depends on where a file is damaged
        raise ValueError(f"{path} is damaged, or pickled, and is not read: {error}") from error


def _table(
    values: np.ndarray,
    concepts: Sequence[str],
    heads: Sequence[str],
    source: Path,
    dims: tuple[str, ...] = ("concept", "head"),
) -> xr.DataArray:
    if values.ndim != len(dims) or values.shape[-2:] != (len(concepts), len(heads)):
        raise ValueError(
            f"{source} holds an array of shape {values.shape}; {len(concepts)} concepts x {len(heads)} heads "
            "were expected."
        )
    if values.dtype.kind not in "fiu" or not all(isinstance(name, str) for name in [*concepts, *heads]):
        raise ValueError(f"{source} holds an array of {values.dtype}, or odd names: expected numbers, and text.")
    if bad := [head for head, times in Counter(heads).items() if times > 1 or not HEAD_NAME.fullmatch(head)]:
        raise ValueError(
            f"{source} names heads {bad[:3]}: expected names such as 'down, layer: 0, head: 3', each once."
        )
    parts = [part for head in heads if (part := HEAD_NAME.fullmatch(head))]
    rank = [(BLOCKS.index(part[1]), int(part[2]), int(part[3])) for part in parts]
    coords = {"concept": list(concepts), "head": list(heads)}
    table = xr.DataArray(values, dims=dims, coords=coords)
    return table.isel(head=sorted(range(len(heads)), key=rank.__getitem__))


def _normed(scores: xr.DataArray, source: Path) -> xr.DataArray:
    """`scores` (concept, head) themselves, if they are head relevance: 0 or more, each row 0 or of L1 norm H."""
    if not (np.isfinite(scores.values) & (scores.values >= 0)).all():
        raise ValueError(f"{source} holds values that are negative or no numbers; head relevance is 0 or more.")
    heads, norms = scores.sizes["head"], scores.sum("head").values
    for concept, norm in zip(scores["concept"].values, norms, strict=True):
        if norm and abs(norm - heads) > 0.01 * heads:
            raise ValueError(f"{source}: the row of {concept} has an L1 norm of {norm:.4g}; {heads} was expected.")
    return scores


def concentration(relevance: HeadRelevance, k: int = 30) -> xr.DataArray:
    """How concentrated each head relevance vector is: the share of its votes that its top k heads have.

    Parameters
    ----------
    relevance : HeadRelevance
        Of some concepts.
    k : int
        From 1 to H.

    Returns
    -------
    xarray.DataArray (concept)
        From k / H, if all heads are alike, to 1.

    Examples
    --------
    >>> scores = xr.DataArray([[0.0, 3.0, 1.0, 0.0]], {"concept": ["Animals"]}, ("concept", "head"))
    >>> concentration(HeadRelevance(scores), k=1).values.tolist()
    [0.75]
    """
    relevance._checked(k)
    scores = np.sort(relevance.scores.transpose("concept", "head").values, axis=1)
    return relevance.scores["concept"].copy(data=scores[:, -k:].sum(axis=1) / scores.sum(axis=1)).rename("share")


def overlap(relevance: HeadRelevance, k: int = 30) -> float:
    """How much the concepts share their heads: the share of their top k heads that two of them have in common, mean
    over all pairs.

    Parameters
    ----------
    relevance : HeadRelevance
        Of two concepts or more.
    k : int
        From 1 to H.

    Returns
    -------
    float
        In [0, 1]; k / H is to be expected of vectors that have nothing to do with each other.

    Examples
    --------
    >>> scores = xr.DataArray([[0.0, 3.0, 1.0], [1.0, 3.0, 0.0]], {"concept": ["a", "b"]}, ("concept", "head"))
    >>> overlap(HeadRelevance(scores), k=2)
    0.5
    """
    tops = [set(relevance.top(str(name), k).tolist()) for name in relevance.scores["concept"].values]
    return float(np.mean([len(one & other) / k for one, other in combinations(tops, 2)]))


def relevance_orders(
    counts: xr.DataArray, concept: str, sizes: Sequence[int], *, draws: int = 20, seed: int = 0
) -> xr.DataArray:
    """Rankings of the heads for a concept, each counted on some of the images.

    Parameters
    ----------
    counts : xarray.DataArray (image, concept, head)
        Votes.
    concept : str
        One of them.
    sizes : sequence of int
        Numbers n of images, drawn `draws` times each.
    draws, seed : int
        A draw depends on (seed, n, its number) alone.

    Returns
    -------
    xarray.DataArray (size, draw, head)
        Head numbers, as `first_heads` takes them.

    Examples
    --------
    >>> votes = xr.DataArray(np.ones((4, 1, 3), int), {"concept": ["Animals"]}, ("image", "concept", "head"))
    >>> relevance_orders(votes, "Animals", [2], draws=1).values.tolist()
    [[[0, 1, 2]]]
    """
    n_images, orders = counts.sizes["image"], []
    for size in sizes:
        drawn = [np.random.default_rng([seed, size, draw]).permutation(n_images)[:size] for draw in range(draws)]
        orders.append([HeadRelevance.from_counts(counts[images]).ranking(concept) for images in drawn])
    return xr.DataArray(np.array(orders), {"size": list(sizes)}, ("size", "draw", "head"))


def concept_similarity(scores: xr.DataArray) -> xr.DataArray:
    """How alike the heads of two concepts are, like concepts side by side.

    Parameters
    ----------
    scores : xarray.DataArray (concept, head)
        Head relevance, 0 or more. A concept without votes is like none.

    Returns
    -------
    xarray.DataArray (concept, other_concept)
        Cosine similarity in [0, 1], in the order of a clustering's leaves.

    Examples
    --------
    >>> scores = xr.DataArray([[2.0, 0.0], [0.0, 2.0], [1.9, 0.1]], {"concept": list("abc")}, ("concept", "head"))
    >>> similarity = concept_similarity(scores)
    >>> similarity["concept"].values.tolist(), round(float(similarity.sel(concept="a", other_concept="c")), 3)
    (['b', 'c', 'a'], 0.999)
    """
    rows = scores.transpose("concept", "head").values
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    units = rows / np.where(lengths > 0, lengths, 1)  # between unit vectors, distances rank as cosines do
    if len(units) > 2:
        order = leaves_list(linkage(units, "average", optimal_ordering=True))
        scores, units = scores.isel(concept=order), units[order]
    names = scores["concept"].values
    return xr.DataArray(units @ units.T, {"concept": names, "other_concept": names}, ("concept", "other_concept"))
