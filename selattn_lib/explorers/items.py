"""What an explorer shows, as bytes for the browser."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr


class Item(NamedTuple):
    """One word in one picture: its maps (a dataset of one image and word, in the precision that the browser has),
    the `picture` (y, x, rgb), and the true masks (y, x) by name."""

    maps: xr.Dataset
    picture: np.ndarray
    truths: dict[str, np.ndarray]


def _items(results: Sequence[xr.Dataset]) -> tuple[list[str], list[str], list[Item]]:
    """The words, the labels of the images of each, and the items, word after word."""
    by_word: dict[str, list[Item]] = {}
    labels: dict[str, list[str]] = {}
    for each in results:
        if "image_rgb" not in each:
            raise ValueError("results has no pictures image_rgb; add them to maps of your own by with_pictures().")
        size = (int(each.attrs["height"]), int(each.attrs["width"]))
        if each["image_rgb"].dtype != np.uint8 or each["image_rgb"].shape[1:] != (*size, 3):
            raise ValueError(
                f"image_rgb has dtype {each['image_rgb'].dtype} and shape {each['image_rgb'].shape}; uint8 of "
                f"{('any', *size, 3)} (image, y, x, rgb) is expected for these maps."
            )
        named = {str(name): values for name, values in sorted(each.data_vars.items())}
        truths = {name: mask for name, mask in named.items() if re.match("truth(_|$)", name) and mask.ndim == 3}
        for name, mask in truths.items():
            if mask.shape[1:] != size:
                raise ValueError(f"The mask {name!r} has shape {mask.shape}; {('any', *size)} is expected.")
        native = [name for name in each.data_vars if str(name).startswith("maps_")]
        words = each["word"].values.tolist()
        subjects = each["subject"].values.tolist() if "subject" in each.coords else None
        for image in range(each.sizes["image"]):
            picture = each["image_rgb"][image].values
            masks = {name.removeprefix("truth_"): mask[image].values.astype(bool) for name, mask in truths.items()}
            for index, word in enumerate(words):
                label = subjects[image] if subjects and len(words) == 1 else "" if word == "subject" else word
                own = {"truth": masks[label]} if label in masks else {}
                truth = own if set(masks) & set(words) else masks
                maps = each[native].isel(image=[image], word=[index])
                by_word.setdefault(label, []).append(Item(maps, picture, truth))
                seed = f"seed {each['seed'].values[image]}" if "seed" in each.coords else ""
                labels.setdefault(label, []).append(seed)
    counts = {word: len(items) for word, items in by_word.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"There must be equally many pictures of each word, at least one; there are {counts}.")
    first, *rest = labels.values()
    if not all(first) or any(each != first for each in rest):
        first = [f"picture {i + 1}" for i in range(len(first))]
    return list(by_word), first, [item for items in by_word.values() for item in items]


def pack_maps(maps: Sequence[xr.Dataset]) -> tuple[bytes, list[dict[str, Any]], list[int]]:
    """Head maps, one dataset an item, of one image and word each, as bytes for the browser: (bytes, grids, shifts).

    The bytes are little-endian float16, item after item and in each grid after grid, (head, y, x). Item i is
    multiplied by 2**shifts[i] to use the range of float16 well: float16 input stays exact, and other values
    are off by at most 1 / 2048 of themselves. `grids` lists {"height", "width", "heads"}.

    Raises ValueError if there is no map, or a negative or infinite value, or not each head exactly once.
    """
    packed, shifts, common = [], [], None
    for each in maps:
        names = sorted((str(n) for n in each.data_vars if str(n).startswith("maps_")), key=lambda n: -each[n].size)
        if not names:
            raise ValueError(f"maps holds {list(each.data_vars)} but no maps_HxW; a head-maps dataset is expected.")
        grids, flat = [], []
        for name in names:
            one = each[name].isel(image=0, word=0)
            own = (one.mean("call") if "call" in one.dims else one).values.astype(np.float64)
            height, width = own.shape[-2:]
            numbers = each[name.replace("maps_", "head_")].values.tolist()
            grids.append({"height": height, "width": width, "heads": numbers})
            flat.append(own.ravel())
        listed = sorted(number for grid in grids for number in grid["heads"])
        if listed != list(range(len(listed))):
            raise ValueError(f"Each head number from 0 to {len(listed) - 1} is expected once; the maps have {listed}.")
        if common not in (None, grids):
            raise ValueError("The maps of the words come from models of different heads, or sizes of images.")
        common = grids
        values = np.concatenate(flat)
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise ValueError("maps holds negative or non-finite values; attention is a probability.")
        peak = float(values.max())
        shifts.append(14 - math.floor(math.log2(peak)) if peak > 0 else 0)
        packed.append((values * 2.0 ** shifts[-1]).astype("<f2").tobytes())
    return b"".join(packed), common or [], shifts


def unpacked(packed: bytes, grids: Sequence[Mapping[str, Any]], shifts: Sequence[int]) -> list[xr.Dataset]:
    """The maps that the browser makes of what `pack_maps` returned: float32 datasets of one image and word each."""
    rows = np.frombuffer(packed, "<f2").astype(np.float32).reshape(len(shifts), -1)
    found = []
    for row, shift in zip(rows, shifts, strict=True):
        data, coords, at = {}, {}, 0
        for grid in grids:
            height, width, numbers = grid["height"], grid["width"], grid["heads"]
            name, count = f"{height}x{width}", len(numbers) * height * width
            values = (row[at : at + count] * np.float32(2.0**-shift)).reshape(1, 1, len(numbers), height, width)
            data[f"maps_{name}"] = (("image", "word", f"head_{name}", f"y_{name}", f"x_{name}"), values)
            coords[f"head_{name}"] = numbers
            at += count
        found.append(xr.Dataset(data, coords))
    return found
