"""Figures made of pictures and maps."""

from collections.abc import Mapping, Sequence
from html import escape
from textwrap import wrap
from typing import Any

import numpy as np
import plotly.graph_objects as go
from IPython.display import HTML

from ..maps.overlay import data_uri, overlay
from .theme import _finish


def overlay_grid(
    images: Any,
    maps: Mapping[str, Any],
    *,
    truth: Any = None,
    threshold: float | None = 0.4,
    labels: Sequence[str] | None = None,
    scores: Mapping[str, Sequence[float]] | None = None,
    title: str = "",
) -> go.Figure:
    """Rows of pictures; columns are the picture, its truth, and its heat map of each kind (Figures 1 and 2).

    `images` is uint8 (image, y, x, rgb); `maps` maps a column's title to floats in [0, 1] (image, y, x);
    `truth` is boolean (image, y, x). Heat maps lie over the picture's lightness; a white line goes round the
    pixels above `threshold`, a dashed one round the truth. `scores` maps a column's title to one IoU an
    image, printed below. Pictures are embedded as WebP.
    """
    images = np.asarray(images)
    for name, array in {**maps, **({} if truth is None else {"truth": truth})}.items():
        if np.shape(array) != images.shape[:3]:
            raise ValueError(f"{name!r} has shape {np.shape(array)}; {images.shape[:3]} (image, y, x) is expected.")
    columns: dict[str, list[np.ndarray]] = {"picture": [overlay(image, None) for image in images]}
    masks: Any = [None] * len(images)
    if truth is not None:
        masks = np.asarray(truth, dtype=bool)
        columns["truth"] = [_masked(image, mask) for image, mask in zip(images, masks, strict=True)]
    for name, heats in maps.items():
        columns[name] = [
            overlay(image, heat, threshold=threshold, truth=mask)
            for image, heat, mask in zip(images, np.asarray(heats), masks, strict=True)
        ]
    cell, gap, below = 150, 6, 30  # pixels; on a phone all shrink together, but letters do not
    width = len(columns) * (cell + gap) - gap
    row_height = cell * images.shape[1] // images.shape[2]
    step = row_height + below
    height = len(images) * step
    figure = go.Figure()
    for i, (name, pictures) in enumerate(columns.items()):
        left, right = i * (cell + gap) / width, (i * (cell + gap) + cell) / width
        figure.add_annotation(
            x=(left + right) / 2, y=1, yanchor="bottom", text="<br>".join(wrap(name, 10)), **_PAPER, font={"size": 11}
        )
        for j, pixels in enumerate(pictures):
            figure.add_layout_image(
                source=data_uri(pixels),
                x=left,
                y=1 - j * step / height,
                sizex=right - left,
                sizey=row_height / height,
                xref="paper",
                yref="paper",
                sizing="contain",
                xanchor="left",
                yanchor="top",
            )
            text = labels[j] if i == 0 and labels is not None else ""
            if scores is not None and name in scores:
                text = f"IoU {scores[name][j]:.2f}"
            if text:
                figure.add_annotation(
                    x=(left + right) / 2,
                    y=1 - (j * step + row_height) / height,
                    yanchor="top",
                    text=text,
                    **_PAPER,
                    font={"size": 10},
                )
    figure.update_xaxes(visible=False, range=[0, 1], fixedrange=True)
    figure.update_yaxes(visible=False, range=[0, 1], fixedrange=True)
    lines = max(len(wrap(name, 10)) for name in columns)
    margin = {"l": 2, "r": 2, "t": 10 + 16 * lines + (30 if title else 0), "b": 4}
    return _finish(figure, title, width=width + 4, height=height + margin["t"] + 4, margin=margin)


def contact_sheet(images: Any, labels: Sequence[str], *, columns: int = 5) -> HTML:
    """Pictures, uint8 (image, y, x, rgb), each with its label below, as HTML: at most `columns` in a row, fewer on a
    narrow page. Raises ValueError unless there is one label an image."""
    images = np.asarray(images)
    if len(images) != len(labels):
        raise ValueError(f"There are {len(labels)} labels for {len(images)} images; one an image is needed.")
    cells = "".join(
        f'<figure style="margin:0"><img src="{data_uri(image)}" alt="Picture: {name}" style="width:100%;display:block">'
        f'<figcaption style="font-size:.75em;line-height:1.3">{name}</figcaption></figure>'
        for image, name in zip(images, (escape(str(label)) for label in labels), strict=True)
    )
    grid = f"display:grid;gap:.6em;grid-template-columns:repeat(auto-fill,minmax(max(5.5em,{100 // columns - 3}%),1fr))"
    return HTML(f'<div style="{grid}">{cells}</div>')


_PAPER: dict[str, Any] = {"xref": "paper", "yref": "paper", "xanchor": "center", "showarrow": False}


def _masked(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture, enlarged, with everything outside the mask greyed and darkened."""
    faded = (image @ [0.299, 0.587, 0.114] * 0.3)[..., None]
    return overlay(np.where(mask[..., None], image, faded).astype(np.uint8), None)
