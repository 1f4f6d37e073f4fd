"""Head maps of blobs, with pictures and true masks, for tests and benchmarks of figures and explorers."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from selattn_lib.maps.head_maps import HeadMaps


def synthetic(grids: Sequence[tuple[str, int]], size: int, words: Sequence[str], images: int) -> HeadMaps:
    """Head maps of blobs, with pictures and the masks `truth_round` and `truth_square`, and 8 heads a layer; `grids`
    are the layers' blocks and the side of their maps."""
    rng = np.random.default_rng(0)
    numbers: dict[int, list[int]] = {}
    for layer, (_, side) in enumerate(grids):
        numbers.setdefault(side, []).extend(range(8 * layer, 8 * layer + 8))
    arrays = []
    for side, heads in numbers.items():
        y, x = (np.mgrid[:side, :side] + 0.5) / side
        shape = (images, len(words), len(heads), 1, 1)
        cy, cx, radius = (rng.uniform(low, high, shape) for low, high in ((0.2, 0.8), (0.2, 0.8), (0.1, 0.3)))
        values = 0.03 * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / radius**2) + 0.002 * rng.random((side, side))
        arrays.append((heads, values.astype(np.float16)))
    y, x = np.mgrid[:size, :size] / size
    pictures = [np.stack([200 * x, 200 * y, 90 + 80 * (x + i) % 90], -1).astype(np.uint8) for i in range(images)]
    disc = [np.hypot(y - 0.4, x - 0.3 - 0.2 * i) < 0.25 for i in range(images)]
    square = [(abs(y - 0.6) < 0.2) & (abs(x - 0.6) < 0.2)] * images
    maps = HeadMaps.from_grids(arrays, words, (size, size))
    return maps.with_pictures(pictures, truth_round=disc, truth_square=square)


def names_of(grids: Sequence[tuple[str, int]]) -> list[str]:
    """The heads' names, 8 a layer."""
    layers = Counter[str]()
    names = []
    for block, _ in grids:
        names += [f"{block}, layer: {layers[block]}, head: {head}" for head in range(8)]
        layers[block] += 1
    return names


def rankings(n_heads: int, concepts: Sequence[str] = ("Animals", "Electronics", "Plants")) -> dict[str, np.ndarray]:
    """Concept -> the heads in random order."""
    rng = np.random.default_rng(4)
    return {concept: rng.permutation(n_heads) for concept in concepts}
