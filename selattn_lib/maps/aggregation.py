"""The arithmetic of heat maps: bicubic upsampling, and min-max normalisation."""

from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr

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


def normalise_(heat: torch.Tensor) -> torch.Tensor:
    """`normalise` in place, on a tensor (..., y, x)."""
    low, high = heat.amin(dim=(-2, -1), keepdim=True), heat.amax(dim=(-2, -1), keepdim=True)
    if not torch.isfinite(high - low).all():
        raise ValueError(
            "a map of attention is NaN or infinite: expected numbers in [0, 1]; draw again in fp32 or bf16"
        )
    constant = high - low <= ROUNDING * torch.maximum(high.abs(), low.abs())
    return heat.sub_(low).div_(torch.where(constant, torch.inf, high - low))


def upsample(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bicubic, (n, y, x) -> (n, height, width)."""
    return bicubic_weights(maps.shape[1], size[0]) @ maps @ bicubic_weights(maps.shape[2], size[1]).T


@cache
def bicubic_weights(source: int, target: int) -> torch.Tensor:
    """(target, source) weights of bicubic upsampling in one direction.

    By hand, since bicubic upsampling is separable and linear: a matrix product of sums of maps instead of an
    interpolation of every map.
    """
    identity = torch.eye(source)[None, None]
    return F.interpolate(identity, size=(target, source), mode="bicubic", align_corners=False)[0, 0]
