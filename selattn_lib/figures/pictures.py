"""Figures made of pictures and maps."""

from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from textwrap import wrap
from typing import Any

import numpy as np
import plotly.graph_objects as go
from IPython.display import HTML

from ..maps.head_maps import HeadMaps
from ..maps.head_sets import HeadSelection
from ..maps.overlay import data_uri, overlay
from .theme import finish

CELL, GAP, BELOW = 150, 6, 30  # pixels; on a phone all shrink together, but letters do not


def overlay_grid(
    images: Any,
    heatmaps: Mapping[str, Any],
    *,
    truth: Any = None,
    threshold: float | None = 0.4,
    labels: Sequence[str] | None = None,
    scores: Mapping[str, Sequence[float]] | None = None,
    title: str = "",
) -> go.Figure:
    """Rows of pictures; columns are the picture, its truth, and its heat map of each kind (Figures 1 and 2).

    Heat maps lie over the picture's lightness; a white line goes round the pixels above the threshold, a dashed one
    round the truth. Pictures are embedded as WebP.

    Parameters
    ----------
    images : array (image, y, x, rgb) uint8
        The pictures.
    heatmaps : mapping
        A column's title -> heat maps (image, y, x) in [0, 1].
    truth : array (image, y, x) bool, optional
        True masks.
    threshold : float, optional
        In (0, 1); no line if None.
    labels : sequence of str, optional
        One an image, printed below its picture.
    scores : mapping, optional
        A column's title -> one IoU an image, printed below.
    title : str
        The figure's title.

    Returns
    -------
    plotly.graph_objects.Figure

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> figure = overlay_grid(np.zeros((2, 8, 8, 3), np.uint8), {"all heads": np.zeros((2, 8, 8))})
    >>> len(figure.layout.images)
    4
    """
    images = np.asarray(images)
    for name, array in {**heatmaps, **({} if truth is None else {"truth": truth})}.items():
        if np.shape(array) != images.shape[:3]:
            raise ValueError(f"{name!r} has shape {np.shape(array)}: expected {images.shape[:3]} (image, y, x)")
    columns: dict[str, list[np.ndarray]] = {"picture": [overlay(image, None) for image in images]}
    masks: Any = [None] * len(images)
    if truth is not None:
        masks = np.asarray(truth, dtype=bool)
        columns["truth"] = [_masked(image, mask) for image, mask in zip(images, masks, strict=True)]
    for name, heats in heatmaps.items():
        rows = zip(images, np.asarray(heats), masks, strict=True)
        columns[name] = [overlay(image, heat, threshold=threshold, truth=mask) for image, heat, mask in rows]
    width = len(columns) * (CELL + GAP) - GAP
    row_height = CELL * images.shape[1] // images.shape[2]
    height = len(images) * (row_height + BELOW)
    figure = go.Figure()

    def write(text: str, left: float, y: float, anchor: str, size: int) -> None:
        at = {"x": left + CELL / 2 / width, "y": y, "xref": "paper", "yref": "paper", "yanchor": anchor}
        figure.add_annotation(text=text, xanchor="center", showarrow=False, font={"size": size}, **at)

    for i, (name, pictures) in enumerate(columns.items()):
        left = i * (CELL + GAP) / width
        write("<br>".join(wrap(name, 10)), left, 1, "bottom", 11)
        for j, pixels in enumerate(pictures):
            top = 1 - j / len(images)
            size = {"sizex": CELL / width, "sizey": row_height / height, "sizing": "contain"}
            at = {"x": left, "y": top, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "top"}
            figure.add_layout_image(source=data_uri(pixels), **size, **at)
            text = labels[j] if i == 0 and labels is not None else ""
            text = f"IoU {scores[name][j]:.2f}" if scores is not None and name in scores else text
            if text:
                write(text, left, top - row_height / height, "top", 10)
    figure.update_xaxes(visible=False, range=[0, 1], fixedrange=True)
    figure.update_yaxes(visible=False, range=[0, 1], fixedrange=True)
    lines = max(len(wrap(name, 10)) for name in columns)
    margin = {"l": 2, "r": 2, "t": 10 + 16 * lines + (30 if title else 0), "b": 4}
    return finish(figure, title, width=width + 4, height=height + margin["t"] + 4, margin=margin)


def compare_maps(
    maps: HeadMaps,
    heads: Mapping[str, HeadSelection],
    images: Sequence[int],
    *,
    threshold: float = 0.4,
    labels: Sequence[str] | None = None,
    title: str = "",
    normalise: str = "minmax",
) -> go.Figure:
    """`overlay_grid` of some images, with a column of heat maps for each set of heads, and the truth if there is one.

    Parameters
    ----------
    maps : HeadMaps
        With pictures.
    heads : mapping
        Title of a column -> heads, as for `HeadMaps.heatmap`.
    images : sequence of int
        Which images, one a row.
    threshold, labels, title
        As for `overlay_grid`; labels are the images' subjects by default.
    normalise : str
        As for `HeadMaps.heatmap`.

    Returns
    -------
    plotly.graph_objects.Figure

    Examples
    --------
    >>> maps = HeadMaps.from_grids([([0, 1], np.random.default_rng(0).random((1, 1, 2, 4, 4)))], ["bear"], (32, 32))
    >>> maps = maps.with_pictures(np.zeros((1, 32, 32, 3), np.uint8))
    >>> len(compare_maps(maps, {"all heads": "all"}, [0], labels=["bear"]).layout.images)
    2
    """
    rows = [int(image) for image in images]
    heat = partial(maps.of_pictures().heatmap, 0, normalise=normalise)
    columns = {name: [heat(chosen, image=i) for i in rows] for name, chosen in heads.items()}
    truth = np.stack([maps.truth(i) for i in rows]) if "truth" in maps.truths else None
    labels = maps.subjects[rows].tolist() if labels is None else labels
    return overlay_grid(maps.pictures[rows], columns, truth=truth, threshold=threshold, labels=labels, title=title)


def contact_sheet(images: Any, labels: Sequence[str], *, columns: int = 5) -> HTML:
    """Pictures with their labels below, as HTML.

    Parameters
    ----------
    images : array (image, y, x, rgb) uint8
        The pictures.
    labels : sequence of str
        One an image.
    columns : int
        At most so many in a row; fewer on a narrow page.

    Returns
    -------
    IPython.display.HTML

    Raises
    ------
    ValueError
        Unless there is one label an image.

    Examples
    --------
    >>> contact_sheet(np.zeros((1, 8, 8, 3), np.uint8), ["bear, seed 0"]).data.count("<img")
    1
    """
    images = np.asarray(images)
    if len(images) != len(labels):
        raise ValueError(f"{len(labels)} labels for {len(images)} images: expected one an image")
    cells = "".join(
        f'<figure style="margin:0"><img src="{data_uri(image)}" alt="Picture: {name}" style="width:100%;display:block">'
        f'<figcaption style="font-size:.75em;line-height:1.3">{name}</figcaption></figure>'
        for image, name in zip(images, (escape(str(label)) for label in labels), strict=True)
    )
    grid = f"display:grid;gap:.6em;grid-template-columns:repeat(auto-fill,minmax(max(5.5em,{100 // columns - 3}%),1fr))"
    return HTML(f'<div style="{grid}">{cells}</div>')


def _masked(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture, enlarged, with everything outside the mask greyed and darkened."""
    faded = (image @ [0.299, 0.587, 0.114] * 0.3)[..., None]
    return overlay(np.where(mask[..., None], image, faded).astype(np.uint8), None)
