"""The arithmetic of heat maps: bicubic upsampling, and normalisation."""

from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr

NORMALISATIONS = ("minmax", "max", "per-head")  # see `normalise_`
ROUNDING = 1e-5  # of a map's highest value: what differs less is not told from a constant map


def normalise(heat: Any) -> Any:
    """Min-max normalise maps to [0, 1].

    Parameters
    ----------
    heat : array or xarray.DataArray (..., y, x)
        Each map is normalised by itself.

    Returns
    -------
    array or xarray.DataArray (..., y, x)
        float32; zeros for a map that is constant, rounding aside.

    Raises
    ------
    ValueError
        If a map has values that are NaN or infinite.

    Examples
    --------
    >>> normalise(np.array([[1.0, 2.0], [3.0, 5.0]])).tolist()
    [[0.0, 0.25], [0.5, 1.0]]
    """
    values = normalise_(torch.from_numpy(np.array(heat, dtype=np.float32))).numpy()
    return heat.copy(data=values) if isinstance(heat, xr.DataArray) else values


def normalise_(heat: torch.Tensor, how: str = "minmax") -> torch.Tensor:
    """Scale mean maps (..., y, x) to [0, 1] in place, each by itself, in one of the ways of `NORMALISATIONS`.

    "minmax": (M - min M) / (max M - min M), as the `daam` package does; zeros for a constant map. "max": M / max M, so
    that a threshold is a share of the maximum, as in DAAM's paper; the bicubic filter's undershoot is 0. "per-head":
    like "minmax", of a mean of maps that are `stretched` already. Raises ValueError on any other way.
    """
    if how not in NORMALISATIONS:
        raise ValueError(f"normalise={how!r}: expected one of {', '.join(NORMALISATIONS)}")
    low, span = _low_and_span(heat)
    if how == "max":
        high = heat.amax(dim=(-2, -1), keepdim=True)
        return heat.div_(torch.where(high > 0, high, torch.inf)).clamp_(min=0)
    return heat.sub_(low).div_(span)


def stretched(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Maps of heads (head, y, x), of a clip (head, frame, y, x), each shifted and scaled so that it goes from 0 to 1,
    over all frames, once it is upsampled to `size`.

    Upsampling is linear and leaves a constant as it is, so this comes before it, and sums stay cheap.
    """
    drawn = (_low_and_span(upsample(one, size).flatten(1, -2)) for one in maps.split(1))
    low, span = map(torch.cat, zip(*drawn, strict=True))
    return ((maps.flatten(1, -2) - low) / span).view_as(maps)


def _low_and_span(heat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(..., 1, 1) each map's lowest value, and how far it goes up from there: infinity for a constant one."""
    low, high = heat.amin(dim=(-2, -1), keepdim=True), heat.amax(dim=(-2, -1), keepdim=True)
    if not torch.isfinite(high - low).all():
        raise ValueError(
            "a map of attention is NaN or infinite: expected numbers in [0, 1]; draw again in fp32 or bf16"
        )
    constant = high - low <= ROUNDING * torch.maximum(high.abs(), low.abs())
    return low, torch.where(constant, torch.inf, high - low)


def upsample(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bicubic, (..., y, x) -> (..., height, width)."""
    return bicubic_weights(maps.shape[-2], size[0]) @ maps @ bicubic_weights(maps.shape[-1], size[1]).T


@cache
def bicubic_weights(source: int, target: int) -> torch.Tensor:
    """(target, source) weights of bicubic upsampling in one direction.

    By hand, since bicubic upsampling is separable and linear: a matrix product of sums of maps instead of an
    interpolation of every map.
    """
    identity = torch.eye(source)[None, None]
    return F.interpolate(identity, size=(target, source), mode="bicubic", align_corners=False)[0, 0]
