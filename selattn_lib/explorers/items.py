"""What an explorer shows, as bytes for the browser."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..maps.head_maps import HeadMaps


class Item(NamedTuple):
    """One word in one picture: its `maps` (of one image and word, in the precision that the browser has), the
    `picture` (y, x, rgb) uint8, and the true masks (y, x) bool by name."""

    maps: HeadMaps
    picture: np.ndarray
    truths: dict[str, np.ndarray]


def items_of(results: Sequence[HeadMaps]) -> tuple[list[str], list[str], list[Item]]:
    """The words, the labels of the images of each, and the items, word after word.

    Raises ValueError without pictures, on clips, on sizes that do not fit, and unless there are equally many pictures
    of each word.
    """
    items: dict[str, list[Item]] = {}
    labels: dict[str, list[str]] = {}
    for maps in results:
        seeds = maps.image_coords.get("seed")
        for image, picture in enumerate(maps.of_pictures().pictures):
            truths = {name: maps.truth(image, name) for name in maps.truths}
            for number in range(len(maps.words)):
                word = maps.word(image, number)
                word = "" if word == "subject" else word
                if set(truths) & set(maps.words):  # masks named as words belong to these alone, if found
                    masks = {"truth": truths[word]} if word in truths and truths[word].any() else {}
                else:
                    masks = truths
                items.setdefault(word, []).append(Item(maps.select(image=[image], word=[number]), picture, masks))
                labels.setdefault(word, []).append("" if seeds is None else f"seed {seeds.values[image]}")
    counts = {word: len(members) for word, members in items.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"pictures of each word: {counts}; expected equally many, at least one")
    first, *rest = labels.values()
    if not all(first) or any(other != first for other in rest):
        first = [f"picture {i + 1}" for i in range(len(first))]
    return list(items), first, [item for members in items.values() for item in members]


def pack_maps(items: Sequence[HeadMaps]) -> tuple[bytes, list[dict[str, Any]], list[int]]:
    """Head maps, of one image and word each, as bytes for the browser: (bytes, grids, shifts).

    The bytes are little-endian float16, item after item and in each grid after grid, (head, y, x). Item i is
    multiplied by 2**shifts[i] to use the range of float16 well: float16 input stays exact, and other values
    are off by at most 1 / 2048 of themselves. `grids` lists {"height", "width", "heads"}.

    Raises ValueError on a negative or infinite value, or unless each head number is there exactly once.
    """
    packed, shifts, common = [], [], None
    for maps in items:
        native = sorted(maps.native(), key=lambda grid: -grid[1].numel())
        grids = [{"height": m.shape[1], "width": m.shape[2], "heads": numbers.tolist()} for numbers, m in native]
        if maps.heads.tolist() != list(range(maps.n_heads)):
            raise ValueError(f"the maps have heads {maps.heads.tolist()}: expected each from 0 to {maps.n_heads - 1}")
        if common not in (None, grids):
            raise ValueError("the maps of the words come from models of different heads, or sizes of images")
        common = grids
        values = np.concatenate([grid.numpy().ravel() for _, grid in native]).astype(np.float64)
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise ValueError("the maps hold negative or non-finite values: expected attention, which is in [0, 1]")
        peak = float(values.max())
        shifts.append(14 - math.floor(math.log2(peak)) if peak > 0 else 0)
        packed.append((values * 2.0 ** shifts[-1]).astype("<f2").tobytes())
    return b"".join(packed), common or [], shifts


def unpacked(
    packed: bytes, grids: Sequence[Mapping[str, Any]], shifts: Sequence[int], size: tuple[int, int]
) -> list[HeadMaps]:
    """The maps that the browser makes of what `pack_maps` returned, in float32, of one image and word each."""
    items, sizes = [], [len(grid["heads"]) * grid["height"] * grid["width"] for grid in grids]
    for row, shift in zip(np.frombuffer(packed, "<f2").reshape(len(shifts), -1), shifts, strict=True):
        values = np.split(row.astype(np.float32) * np.float32(2.0**-shift), np.cumsum(sizes)[:-1])
        arrays = [
            (grid["heads"], part.reshape(1, 1, -1, grid["height"], grid["width"]))
            for part, grid in zip(values, grids, strict=True)
        ]
        items.append(HeadMaps.from_grids(arrays, [""], size))
    return items
