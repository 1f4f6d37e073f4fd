"""From per-head maps to one heat map: DAAM (Eq. 2), selected heads (Eq. 4), and every k at once.

Bicubic upsampling is linear, so maps of equal resolution are summed first and only the sums are upsampled. It
is also separable: two small matrix products do it.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr

BLOCK_PIXELS = 2**22  # upsampled pixels held at a time: 16 MB in float32


def heatmap(
    maps: xr.Dataset,
    heads: str | Sequence[int] | np.ndarray = "all",
    *,
    image: int = 0,
    word: int | str = 0,
    weights: Sequence[float] | np.ndarray | None = None,
    size: tuple[int, int] | None = None,
) -> xr.DataArray:
    """Mean attention map over `heads`, upsampled to the image and min-max normalised (Eq. 2, Eq. 4).

    `maps` is a head-maps dataset as `Capture.dataset()` gives it; maps kept for each timestep are averaged. `heads` is
    "all" that the maps hold (DAAM, Eq. 2); "daam", the variant of the `daam` package 0.2.0: without the mid block, each
    map upsampled to the largest of the grids and clamped at 0 before the mean; or global head numbers. `weights`, one a
    head, make it a weighted mean. `size` is the (height, width) wanted, the image's own by default.

    "daam" is the package's arithmetic at the model's own image size, where the package works, and for words of one
    token; of several, the package clamps each token's maps, and this the word's, which differ where a map touches 0.

    Returns (y, x) in [0, 1]. Raises ValueError on unknown heads, words or sizes of weights, and on "daam" where some of
    the model's heads were not kept.
    """
    size = size or _image_size(maps)
    native = _native(maps, image, word)
    if isinstance(heads, str) and heads == "daam":
        if weights is not None:
            raise ValueError("heads='daam' is an unweighted mean; give weights with head numbers.")
        heat = _daam(maps, native, size)
    else:
        numbers = _head_numbers(native, heads)
        share = np.ones(len(numbers)) if weights is None else np.asarray(weights, dtype=float)
        if share.shape != numbers.shape:
            raise ValueError(f"weights has shape {share.shape} for {len(numbers)} heads; give one a head.")
        if not share.sum() > 0:
            raise ValueError("weights must have a positive sum.")
        per_head = np.zeros(1 + max(own.max() for own, _ in native))
        np.add.at(per_head, numbers, share / share.sum())
        heat = torch.zeros(size)
        for own, values in native:
            if per_head[own].any():
                mean = torch.einsum("h,hyx->yx", torch.from_numpy(per_head[own]).float(), values)
                heat += _upsample(mean[None], size)[0]
    return normalise(xr.DataArray(heat.numpy(), dims=("y", "x")))


def cumulative_heatmaps(
    maps: xr.Dataset, order: Sequence[int] | np.ndarray, *, image: int = 0, word: int | str = 0
) -> xr.DataArray:
    """The heat maps of the first 1, 2, 3 ... heads of `order` (Eq. 4 for every k).

    Returns (k, y, x) in [0, 1], coordinate k = 1 ... len(order); each equals `heatmap(maps, order[:k])` up to
    rounding. For large images prefer `iter_cumulative`, which holds a few of them at a time.
    """
    blocks = [block.numpy() for block in iter_cumulative(maps, order, image=image, word=word)]
    heat = np.concatenate(blocks)
    return xr.DataArray(heat, dims=("k", "y", "x"), coords={"k": np.arange(1, len(heat) + 1)})


def iter_cumulative(
    maps: xr.Dataset, order: Sequence[int] | np.ndarray, *, image: int = 0, word: int | str = 0
) -> Iterator[torch.Tensor]:
    """Yield the maps of `cumulative_heatmaps` in order, as tensors (some k, y, x) of bounded size."""
    size = _image_size(maps)
    native = _native(maps, image, word)
    order = _head_numbers(native, order)
    where = {number: (values, i) for own, values in native for i, number in enumerate(own.tolist())}
    total = torch.zeros(size)
    step = max(1, BLOCK_PIXELS // (size[0] * size[1]))
    for first in range(0, len(order), step):
        members = [where[number] for number in order[first : first + step].tolist()]
        block = torch.empty((len(members), *size))
        for _, values in native:
            slots = [slot for slot, (source, _) in enumerate(members) if source is values]
            if slots:
                chosen = values[[members[slot][1] for slot in slots]]
                block[slots] = _upsample(chosen, size)
        for heat in block:  # five times faster than torch.cumsum
            total += heat
            heat.copy_(total)
        yield _normalise(block)


def normalise(heat: Any) -> Any:
    """Min-max normalise the last two dimensions (y, x) to [0, 1]; a constant map gives zeros.

    Takes and returns a DataArray, or an array of any kind with `min` and `max`.
    """
    values = torch.from_numpy(np.array(heat, dtype=np.float32))
    result = _normalise(values).numpy()
    return heat.copy(data=result) if isinstance(heat, xr.DataArray) else result


def _normalise(heat: torch.Tensor) -> torch.Tensor:
    """`normalise` in place, on a tensor (..., y, x)."""
    low = heat.amin(dim=(-2, -1), keepdim=True)
    heat -= low
    high = heat.amax(dim=(-2, -1), keepdim=True)
    return heat.div_(torch.where(high > 0, high, 1))


def _upsample(values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bicubic, (n, y, x) -> (n, height, width)."""
    return _bicubic(values.shape[1], size[0]) @ values @ _bicubic(values.shape[2], size[1]).T


@cache
def _bicubic(source: int, target: int) -> torch.Tensor:
    """(target, source) weights of bicubic upsampling in one direction."""
    identity = torch.eye(source)[None, None]
    return F.interpolate(identity, size=(target, source), mode="bicubic", align_corners=False)[0, 0]


def _daam(maps: xr.Dataset, native: list[tuple[np.ndarray, torch.Tensor]], size: tuple[int, int]) -> torch.Tensor:
    n_held, n_heads = sum(len(own) for own, _ in native), maps.attrs.get("n_heads")
    if n_heads and n_held < n_heads:
        raise ValueError(f"heads='daam' needs all {n_heads} heads of the model; these maps hold {n_held} of them.")
    height, width = max((values.shape[1:] for _, values in native), key=lambda grid: grid[0] * grid[1])
    kept = []
    for _, values in native:
        place = f"place_{values.shape[1]}x{values.shape[2]}"
        if place not in maps.coords:
            raise ValueError(f"heads='daam' leaves out the mid block, but the maps lack the coordinate {place!r}.")
        chosen = values[maps[place].values != "mid"]
        if len(chosen):
            kept.append(_upsample(chosen, (height, width)).clamp(min=0))
    return _upsample(torch.cat(kept).mean(dim=0, keepdim=True), size)[0]


def _native(maps: xr.Dataset, image: int, word: int | str) -> list[tuple[np.ndarray, torch.Tensor]]:
    """(head numbers, maps (head, y, x)) of one image and word, for each native resolution."""
    if isinstance(word, str):
        labels = maps["word"].values.tolist()
        if word not in labels:
            raise ValueError(f"The word {word!r} is not in these maps; they hold {labels}")
        word = labels.index(word)
    for dim, index in (("image", image), ("word", int(word))):
        if not -maps.sizes[dim] <= index < maps.sizes[dim]:
            raise IndexError(f"{dim} {index} was asked for, of {maps.sizes[dim]} in these maps.")
    native = []
    for name in map(str, maps.data_vars):
        if name.startswith("maps_"):
            grid = name.removeprefix("maps_")
            values = maps[name].isel(image=image, word=word)
            values = values.mean("call") if "call" in values.dims else values
            native.append((maps[f"head_{grid}"].values, torch.from_numpy(values.values.astype(np.float32))))
    return native


def _head_numbers(native: list[tuple[np.ndarray, torch.Tensor]], heads: str | Sequence[int] | np.ndarray) -> np.ndarray:
    held = np.sort(np.concatenate([own for own, _ in native]))
    if isinstance(heads, str):
        if heads != "all":
            raise ValueError(f"heads={heads!r} is not known; use 'all', 'daam' or head numbers.")
        return held
    numbers = np.asarray(heads)
    if numbers.ndim != 1 or not len(numbers) or not np.issubdtype(numbers.dtype, np.integer):
        raise ValueError(f"heads must be 'all', 'daam' or a non-empty list of head numbers, not {heads!r}")
    wrong = numbers[~np.isin(numbers, held)]
    if len(wrong):
        if held[-1] == len(held) - 1:
            raise ValueError(f"heads {wrong.tolist()} do not exist; the maps have heads 0 to {held[-1]}.")
        raise ValueError(
            f"heads {wrong.tolist()} are not in these maps, which hold only {held.tolist()}; capture them too."
        )
    if len(np.unique(numbers)) != len(numbers):
        raise ValueError("heads names some head more than once; use `weights` for a weighted mean.")
    return numbers


def _image_size(maps: xr.Dataset) -> tuple[int, int]:
    return int(maps.attrs["height"]), int(maps.attrs["width"])
