"""Pictures under heat maps, as pixels."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image
from plotly.colors import sequential
from scipy.ndimage import binary_dilation

OVERLAY_OPACITY = 0.65
OUTLINE_WIDTHS = (2, 4)  # of a white line and the dark one below it, in pixels where the longer side has 256
OUTLINE_DARKNESS = 0.65
DASH, PERIOD = 6, 10  # of a truth's outline, in the same pixels, along x + y


def colour_map(name: str = "Viridis") -> np.ndarray:
    """256 RGB colours, uint8 (256, 3), of a perceptually uniform plotly scale: Viridis, Cividis, Magma ..."""
    anchors = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in getattr(sequential, name)]
    at = np.linspace(0, len(anchors) - 1, 256)
    channels = [np.interp(at, np.arange(len(anchors)), channel) for channel in zip(*anchors, strict=True)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def overlay(
    image: np.ndarray, heat: Any, *, threshold: float | None = None, truth: Any = None, zoom: int | None = None
) -> np.ndarray:
    """The picture's lightness under the colours of a heat map, uint8 RGB (y, x, rgb), enlarged `zoom` times.

    `image` is uint8 (y, x, rgb), `heat` floats in [0, 1] (y, x) or None for the picture itself. A white line
    goes round the pixels above `threshold`, a dashed one round the boolean mask `truth`. `zoom` by default
    makes the longer side about 256 pixels.
    """
    image = np.asarray(image)
    height, width = image.shape[:2]
    for name, array in (("heat", heat), ("truth", truth)):
        if array is not None and np.shape(array) != (height, width):
            raise ValueError(f"{name} has shape {np.shape(array)} for an image of {(height, width)} pixels.")
    zoom = zoom or max(1, round(256 / max(height, width)))
    size = (width * zoom, height * zoom)
    pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), dtype=float)
    enlarged = None
    if heat is not None:
        source = Image.fromarray(np.asarray(heat, dtype=np.float32))
        enlarged = np.asarray(source.resize(size, Image.Resampling.BILINEAR)).clip(0, 1)
        grey = pixels @ [0.299, 0.587, 0.114]
        colours = colour_map()[(255 * enlarged).round().astype(int)]
        pixels = OVERLAY_OPACITY * colours + (1 - OVERLAY_OPACITY) * grey[..., None]
    if truth is not None:
        edge = np.asarray(Image.fromarray(np.asarray(truth, dtype=np.uint8) * 255).resize(size)) > 127
        y, x = np.ogrid[: size[1], : size[0]]
        pixels = _outlined(pixels, edge, where=(x + y) % PERIOD < DASH)
    if enlarged is not None and threshold is not None:
        pixels = _outlined(pixels, enlarged > threshold)
    return pixels.round().astype(np.uint8)


def data_uri(pixels: np.ndarray) -> str:
    """WebP data URI of uint8 RGB pixels (y, x, rgb)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=90, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _outlined(pixels: np.ndarray, mask: np.ndarray, where: Any = True) -> np.ndarray:
    """A white line inside a darker one along the border of the mask, at the pixels `where`."""
    white, dark = (
        binary_dilation(mask, iterations=width // 2) & binary_dilation(~mask, iterations=width // 2)
        for width in OUTLINE_WIDTHS
    )
    pixels = np.where((dark & where)[..., None], (1 - OUTLINE_DARKNESS) * pixels, pixels)
    return np.where((white & where)[..., None], 255.0, pixels)
