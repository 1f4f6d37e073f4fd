"""Plotly figures and tables from plain arrays; nothing here knows how the maps were made.

Every figure function but `contact_sheet` returns a `plotly.graph_objects.Figure` with transparent backgrounds and
mid-grey ink, readable on a light and on a dark page and at phone width. Numbers are rounded to keep notebooks small.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from IPython.display import HTML
from PIL import Image
from plotly.colors import sequential

from .metrics import best_disc, centred_disc, full_frame, iou, mean_iou

INK = "#7a7a7a"  # contrast of at least 4:1 with both white and a near-black page
FAINT = "rgba(128,128,128,0.25)"
# Okabe and Ito's colours, those with a contrast of 3:1 with both white and black first
COLOURS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
PLACE_COLOURS = {"down": COLOURS[1], "mid": COLOURS[3], "up": COLOURS[0]}
OVERLAY_OPACITY = 0.65
HEAD_NAME = re.compile(r"(\w+), layer: (\d+), head: (\d+)")

_AXIS = {"gridcolor": FAINT, "linecolor": INK, "tickcolor": INK, "zeroline": False, "automargin": True}
TEMPLATE = go.layout.Template(
    layout={
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": INK, "size": 12, "family": "system-ui, sans-serif"},
        "title": {"font": {"size": 14}, "x": 0.01, "xref": "container", "xanchor": "left"},
        "colorway": COLOURS,
        "margin": {"l": 10, "r": 10, "t": 50, "b": 40},
        "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom", "title": {"text": ""}},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "hoverlabel": {"align": "left"},
    }
)


def colour_map(name: str = "Viridis") -> np.ndarray:
    """256 RGB colours, uint8 (256, 3), of a perceptually uniform plotly scale: Viridis, Cividis, Magma ..."""
    anchors = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in getattr(sequential, name)]
    at = np.linspace(0, len(anchors) - 1, 256)
    channels = [np.interp(at, np.arange(len(anchors)), channel) for channel in zip(*anchors, strict=True)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def head_table(heads: Any) -> pd.DataFrame:
    """One row a head, columns place, layer, head, row, from head names or an object with `.names`.

    `row` numbers the layers in the order of the heads. Raises ValueError on a name that is not of the form
    "down, layer: 0, head: 3".
    """
    names = [str(name) for name in getattr(heads, "names", heads)]
    matches = [HEAD_NAME.fullmatch(name) for name in names]
    if wrong := [name for name, match in zip(names, matches, strict=True) if match is None]:
        raise ValueError(f"{wrong[0]!r} is no head's name; names such as 'down, layer: 0, head: 3' are expected.")
    table = pd.DataFrame([match.groups() for match in matches if match], columns=["place", "layer", "head"])
    table[["layer", "head"]] = table[["layer", "head"]].astype(int)
    table["name"] = names
    table["row"] = table.groupby(["place", "layer"], sort=False).ngroup()
    return table


def relevance_matrix(relevance: xr.DataArray, *, title: str = "Head relevance by concept") -> go.Figure:
    """Heat map of head relevance (concept, head), whose coordinate `head` holds the heads' names.

    Lines part the layers; the axis names layers and places. Rows have L1 norm H, so 1 is an average head.
    Colours end at the 99th percentile, to keep a few large values from hiding the rest.
    """
    _expect_dims(relevance, ("concept", "head"), "relevance")
    table = head_table(relevance["head"].values.tolist())
    values = relevance.values.astype(float)
    figure = go.Figure(
        go.Heatmap(
            z=_short(values, 3),
            x=table["name"].tolist(),
            y=[str(name) for name in relevance["concept"].values],
            colorscale="Viridis",
            zmin=0,
            zmax=round(float(np.quantile(values, 0.99)), 3) or 1,
            colorbar={
                "title": {"text": "relevance (1 = average head)", "side": "bottom"},
                "orientation": "h",
                "thickness": 10,
                "y": -70 / (15 * len(values)),
                "yanchor": "top",
            },
            hovertemplate="%{y}<br>%{x}<br>relevance %{z:.2f}<extra></extra>",
        )
    )
    centres, labels = [], []
    layers = table.groupby("row")
    for _, members in layers:
        first, last = members.index[0], members.index[-1]
        centres.append(members["name"].iloc[len(members) // 2])
        labels.append(str(members["layer"].iloc[0]))
        if first:
            figure.add_vline(first - 0.5, line={"color": "rgba(255,255,255,0.45)", "width": 0.7})
    for place, members in table.groupby("place", sort=False):
        first, last = members.index[0], members.index[-1]
        if first:
            figure.add_vline(first - 0.5, line={"color": "white", "width": 2})
        figure.add_annotation(
            x=(first + last) / 2, y=1, yref="paper", yanchor="bottom", text=str(place), showarrow=False
        )
    figure.update_xaxes(
        title="layer and its heads",
        tickvals=centres,
        ticktext=labels,
        tickangle=0,
        showgrid=False,
        tickfont={"size": 10},
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, tickfont={"size": 10}, dtick=1)
    return _finish(figure, title, height=200 + 15 * len(values), margin={"t": 70, "b": 130})


def sortable_relevance(relevance: xr.DataArray, *, title: str = "Head relevance by concept") -> go.Figure:
    """`relevance_matrix` with two menus, which work on a page without a kernel: the heads in the model's order or in
    that of their relevance for a concept; the concepts as listed, or those of like heads side by side."""
    figure = relevance_matrix(relevance, title=title)
    names, concepts = ([str(name) for name in relevance[dim].values] for dim in ("head", "concept"))
    layout = figure.layout
    by_layer = {
        "shapes": layout.shapes,
        "annotations": layout.annotations,
        "xaxis.showticklabels": True,
        "xaxis.ticks": "outside",
    }
    heads = {"heads by layer": {**by_layer, "xaxis.categoryarray": names, "xaxis.title.text": layout.xaxis.title.text}}
    for concept, row in zip(concepts, relevance.values, strict=True):
        heads[f"heads by {concept}"] = {
            "shapes": [],
            "annotations": [],
            "xaxis.showticklabels": False,
            "xaxis.ticks": "",
            "xaxis.categoryarray": [names[i] for i in np.argsort(-row, kind="stable")],
            "xaxis.title.text": f"heads, the most relevant to {concept} first",
        }
    alike = [concepts[i] for i in alike_order(relevance.values)]
    rows = {
        "concepts as listed": {"yaxis.categoryarray": concepts},
        "concepts by likeness": {"yaxis.categoryarray": alike},
    }
    figure.update_xaxes(categoryorder="array", categoryarray=names)
    figure.update_yaxes(categoryorder="array", categoryarray=concepts)
    menus = [_menu("relayout", heads), _menu("relayout", rows, above=1)]
    return figure.update_layout(**_room_for(menus, layout.height + 85, 155))


def concept_similarity(relevance: xr.DataArray) -> xr.DataArray:
    """Cosine similarity of the rows of head relevance (concept, head), (concept, other_concept) in [0, 1], those of
    like heads side by side; a concept without votes is like none."""
    _expect_dims(relevance, ("concept", "head"), "relevance")
    relevance = relevance.isel(concept=alike_order(relevance.values))
    rows = _unit_rows(relevance.values)
    names = relevance["concept"].values
    return xr.DataArray(rows @ rows.T, {"concept": names, "other_concept": names}, ("concept", "other_concept"))


def alike_order(rows: np.ndarray) -> np.ndarray:
    """Numbers of rows (n, m) in an order that puts like ones side by side: the leaves of a clustering by cosine."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(rows) < 3:
        return np.arange(len(rows))
    units = _unit_rows(rows)  # between unit vectors, distances rank as cosines do
    return leaves_list(linkage(units, "average", optimal_ordering=True))


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def top_heads(relevance: xr.DataArray, k: int = 30, *, first: str | None = None, title: str = "") -> go.Figure:
    """The heads of one concept on the grid, coloured by relevance, the `k` most relevant framed; a menu, which works on
    a page without a kernel, chooses the concept.

    `relevance` is (concept, head), `first` the concept to start with. Raises ValueError if it is not one of them.
    """
    _expect_dims(relevance, ("concept", "head"), "relevance")
    names = relevance["head"].values.tolist()
    concepts = [str(name) for name in relevance["concept"].values]
    first = concepts[0] if first is None else first
    if first not in concepts:
        raise ValueError(f"The concept {first!r} is not among {concepts}.")
    table = head_table(names)
    rows = table.drop_duplicates("row")
    labels = [f"{place} {layer}" for place, layer in zip(rows["place"], rows["layer"], strict=True)]
    figure = head_grid(names, relevance.sel(concept=first), title=title)
    figure.data = []
    for concept in concepts:
        own = head_grid(names, relevance.sel(concept=concept)).data[0]
        own.update(text=None, hovertemplate="%{y}, head %{x}<br>relevance %{z:.2f}<extra></extra>")
        best = np.argsort(-relevance.sel(concept=concept).values, kind="stable")[:k]
        frames = go.Scatter(
            x=table["head"].iloc[best].tolist(),
            y=[labels[row] for row in table["row"].iloc[best]],
            mode="markers",
            marker={"symbol": "square-open", "size": 15, "color": COLOURS[0], "line": {"width": 2.5}},
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_traces([own.update(visible=concept == first), frames.update(visible=concept == first)])
    shown = {concept: {"visible": [each == concept for each in concepts for _ in range(2)]} for concept in concepts}
    menu = _menu("restyle", shown).update(active=concepts.index(first))
    return figure.update_layout(**_room_for([menu], figure.layout.height + 40, 105))


def _room_for(menus: Sequence[go.layout.Updatemenu], height: int, top: int) -> dict[str, Any]:
    """The layout of a figure with menus: its title above them, not beside, where a phone has no room."""
    title = {"y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 12}}
    return {"updatemenus": menus, "height": height, "margin": {"t": top}, "title": title}


def _menu(method: str, options: Mapping[str, Any], above: int = 0) -> go.layout.Updatemenu:
    """A menu over a figure, `above` others: `options` maps what it offers to the argument of plotly's `method`."""
    buttons = [{"label": label, "method": method, "args": [value]} for label, value in options.items()]
    return go.layout.Updatemenu(
        buttons=buttons,
        x=1,
        xanchor="right",
        y=1,
        yanchor="bottom",
        pad={"b": 22 + 38 * above},
        font={"size": 11, "color": "#222832"},  # dark on light in any theme: plotly lights up what is pointed at
        bgcolor="#eef1f4",
        bordercolor=INK,
    )


def head_grid(
    heads: Any, values: Any, *, title: str = "", label: str = "relevance", colour: str = COLOURS[0]
) -> go.Figure:
    """One square a head: rows are layers, columns the heads of a layer.

    `heads` are head names or an object with `.names`; `values` is (head) floats, drawn as colours, or
    booleans, drawn as a selection lit up in `colour`. Raises ValueError if their numbers differ.
    """
    table, values = head_table(heads), np.asarray(values)
    if values.shape != (len(table),):
        raise ValueError(f"values has shape {values.shape} for {len(table)} heads; one value a head is needed.")
    rows = table.drop_duplicates("row")
    shape = (len(rows), table["head"].max() + 1)
    z, names = np.full(shape, np.nan), np.full(shape, "", dtype=object)
    z[table["row"], table["head"]] = values
    names[table["row"], table["head"]] = table["name"]
    style: dict[str, Any] = {
        "colorscale": "Viridis",
        "colorbar": {"title": {"text": label, "side": "right"}, "thickness": 10},
        "hovertemplate": f"%{{text}}<br>{label} %{{z:.3g}}<extra></extra>",
    }
    if values.dtype == bool:
        style = {
            "colorscale": [[0, "rgba(128,128,128,0.18)"], [1, colour]],
            "zmin": 0,
            "zmax": 1,
            "showscale": False,
            "hovertemplate": "%{text}<extra></extra>",
        }
    ticks = [f"{place} {layer}" for place, layer in zip(rows["place"], rows["layer"], strict=True)]
    figure = go.Figure(
        go.Heatmap(z=_short(z), x=list(range(shape[1])), y=ticks, text=names.tolist(), xgap=2, ygap=2, **style)
    )
    figure.update_xaxes(title="head", dtick=1, showgrid=False)
    figure.update_yaxes(title="place and layer", autorange="reversed", showgrid=False, dtick=1)
    return _finish(figure, title, width=360, height=130 + 20 * shape[0])


def overlay(
    image: np.ndarray,
    heat: Any,
    *,
    threshold: float | None = None,
    truth: Any = None,
    zoom: int | None = None,
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
        pixels = _outlined(pixels, edge, where=(x + y) % 10 < 6)
    if enlarged is not None and threshold is not None:
        pixels = _outlined(pixels, enlarged > threshold)
    return pixels.round().astype(np.uint8)


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


def iou_by_k(
    curves: Mapping[str, Any],
    *,
    marks: Sequence[int] = (),
    levels: Mapping[str, float] | None = None,
    title: str = "Mean IoU over the number of heads",
) -> go.Figure:
    """Mean IoU over the number of heads k = 1 ... K, with interval bands.

    `curves` maps a name to (k, 3) arrays of mean, low and high, or to (k) means alone. `marks` are numbers of
    heads to mark by vertical lines; `levels` maps the name of a reference, such as "all heads (DAAM)" or
    "centred disc", to its IoU, drawn as a horizontal line.
    """
    figure = go.Figure()
    for i, (name, curve) in enumerate(curves.items()):
        values = np.asarray(curve, dtype=float)
        if values.ndim == 1:
            values = values[:, None]
        if values.ndim != 2 or values.shape[1] not in (1, 3):
            raise ValueError(f"The curve {name!r} has shape {np.shape(curve)}; (k) or (k, 3) is expected.")
        colour, numbers = COLOURS[i % len(COLOURS)], list(range(1, len(values) + 1))
        if values.shape[1] == 3:
            figure.add_scatter(
                x=numbers + numbers[::-1],
                y=_short(np.concatenate([values[:, 1], values[::-1, 2]])),
                mode="lines",
                line={"width": 0},
                fill="toself",
                fillcolor=_transparent(colour, 0.18),
                hoverinfo="skip",
                legendgroup=name,
                showlegend=False,
            )
        figure.add_scatter(
            x=numbers,
            y=_short(values[:, 0]),
            name=name,
            legendgroup=name,
            line={"color": colour, "width": 2},
            hovertemplate=f"{name}<br>k = %{{x}}: IoU %{{y:.3f}}<extra></extra>",
        )
    for i, (name, level) in enumerate((levels or {}).items()):
        dash = ("dash", "dot", "dashdot", "longdash")[i % 4]
        longest = max(len(np.asarray(curve)) for curve in curves.values())
        figure.add_scatter(
            x=[1, longest],
            y=[round(float(level), 4)] * 2,
            name=f"{name} {level:.3f}",
            mode="lines",
            line={"color": INK, "width": 1.5, "dash": dash},
            hovertemplate=f"{name}: IoU %{{y:.3f}}<extra></extra>",
        )
    for k in marks:
        figure.add_vline(k, line={"color": INK, "width": 1, "dash": "dot"})
        figure.add_annotation(x=k, y=1, yref="paper", yanchor="bottom", text=str(k), showarrow=False, font={"size": 10})
    figure.update_xaxes(title="number of heads k")
    figure.update_yaxes(title="mean IoU (band: 95 % interval)")
    return _finish(figure, title, height=470, margin={"t": 75, "b": 130})


def rank_stability(
    first: Any, second: Any, *, heads: Any = None, top: int = 30, title: str = "Ranks of the heads in two halves"
) -> go.Figure:
    """Rank of each head by the scores (head) of two halves of the images, one point a head.

    The shaded square holds the heads that are among the `top` in both; the title gives their number and
    Spearman's rank correlation. With `heads` (names), points are coloured by place and named.
    """
    from scipy.stats import rankdata, spearmanr

    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"Scores (head) of two halves are expected, not of shapes {first.shape} and {second.shape}.")
    ranks = [rankdata(-scores, method="average") for scores in (first, second)]
    shared = int(((ranks[0] <= top) & (ranks[1] <= top)).sum())
    table = head_table(heads) if heads is not None else None
    places = ["heads"] * len(first) if table is None else table["place"].tolist()
    names = [f"head {i}" for i in range(len(first))] if table is None else table["name"].tolist()
    figure = go.Figure()
    edge = {"color": INK, "width": 1, "dash": "dot"}
    figure.add_shape(type="rect", x0=0, y0=0, x1=top + 0.5, y1=top + 0.5, fillcolor=FAINT, line=edge, layer="below")
    for place in dict.fromkeys(places):
        own = [i for i, each in enumerate(places) if each == place]
        figure.add_scatter(
            x=ranks[0][own].tolist(),
            y=ranks[1][own].tolist(),
            text=[names[i] for i in own],
            mode="markers",
            name=place,
            marker={"size": 7, "color": PLACE_COLOURS.get(place, COLOURS[0]), "opacity": 0.85},
            hovertemplate="%{text}<br>rank %{x}, then %{y}<extra></extra>",
        )
    figure.update_xaxes(title="rank, first half")
    figure.update_yaxes(title="rank, second half")
    correlation = spearmanr(first, second).statistic
    text = f"{title}<br><sub>Spearman’s ρ = {correlation:.2f}; {shared} of the top {top} heads shared</sub>"
    return _finish(figure, text, width=460, height=490, margin={"t": 70, "b": 90}, showlegend=table is not None)


def iou_table(
    measured: Mapping[str, Any],
    thresholds: Sequence[float],
    *,
    model: str,
    n_images: int,
    baselines: Mapping[str, Any],
    paper: Mapping[str, Sequence[float]] | None = None,
) -> pd.DataFrame:
    """Mean IoU, one row a (threshold, method), measured and the paper's in separate columns.

    `measured` maps a method to (threshold, 3) means with the ends of their intervals; `baselines` maps a
    baseline, "centred disc" or "full frame", to its (mean, low, high), which has no threshold; `paper` maps a
    method to the paper's mean at each threshold. All cells are text: "0.651", "[0.623, 0.680]", "" if none.
    """
    rows: dict[tuple[str, str], list[str]] = {}
    for name, values in {**measured, **(paper or {})}.items():
        if len(values) != len(thresholds):
            raise ValueError(f"{name!r} has {len(values)} rows for the {len(thresholds)} thresholds {thresholds}.")
    for i, threshold in enumerate(thresholds):
        for name, values in measured.items():
            published = paper[name][i] if paper and name in paper else np.nan
            printed = [""] if np.isnan(published) else [f"{published:.4f}"]
            rows[f"{threshold:g}", name] = [*_cells(values[i]), *printed]
    for name, values in baselines.items():
        rows["any", name] = [*_cells(values), ""]
    columns = [
        f"mean IoU measured: {model}, {n_images} images",
        "95 % interval",
        "mean IoU in the paper: SD v1.4, 100 images",
    ]
    index = pd.MultiIndex.from_tuples(rows, names=["threshold", "heads"])
    return pd.DataFrame(list(rows.values()), index=index, columns=columns).iloc[:, : 3 if paper else 2]


# Mean IoU at thresholds 0.3, 0.4 and 0.5: the paper's Tables 1 to 3, Stable Diffusion v1.4, *Animals*, 100 images.
PAPER = {
    "all heads (DAAM)": {0.3: 0.7490, 0.4: 0.7540, 0.5: 0.6261},
    "top 20 heads": {0.3: 0.7436, 0.4: 0.7001, 0.5: 0.5386},
    "top 30 heads": {0.3: 0.7698, 0.4: 0.7765, 0.5: 0.6785},
    "top 40 heads": {0.3: 0.7669, 0.4: 0.7412, 0.5: 0.6315},
    "bottom 30 heads": {0.3: 0.6654, 0.4: 0.6172, 0.5: 0.4649},
}


def benchmark_table(ious: Mapping[str, xr.DataArray], results: xr.Dataset, *, paper: bool = True) -> pd.DataFrame:
    """`iou_table` of a study: `ious` maps a method to its IoU (image, threshold), `results` is what it was measured on.

    Intervals draw whole subjects. Baselines: the best centred disc and the full frame on the same masks. The paper's
    numbers stand beside where it has some: for *Animals*, its thresholds and methods named as in `PAPER`, and unless
    `paper` is False.
    """
    groups, truth = results["subject"].values, results["truth"].values
    thresholds = [float(t) for t in next(iter(ious.values()))["threshold"].values]
    measured = {name: [mean_iou(each.sel(threshold=t), groups) for t in thresholds] for name, each in ious.items()}
    radius, _ = best_disc(truth)
    height, width = truth.shape[1:]
    dumb = {
        f"centred disc, radius {radius}": centred_disc(height, width, radius),
        "full frame": full_frame(height, width),
    }
    baselines = {name: mean_iou(iou(mask, truth), groups) for name, mask in dumb.items()}
    published = {
        name: [PAPER[name].get(t, float("nan")) for t in thresholds]
        for name in measured
        if paper and name in PAPER and results.attrs.get("concept") == "Animals"
    }
    return iou_table(
        measured, thresholds, model=results.attrs["model"], n_images=len(truth), baselines=baselines, paper=published
    )


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


def similarity_matrix(similarity: xr.DataArray, *, title: str = "") -> go.Figure:
    """Heat map of cosine similarities, (concept, other_concept) in [-1, 1]."""
    _expect_dims(similarity, ("concept", "other_concept"), "similarity")
    names = [str(name) for name in similarity["concept"].values]
    figure = go.Figure(
        go.Heatmap(
            z=_short(similarity.values, 3), x=names, y=names, colorscale="Viridis",
            colorbar={"thickness": 10, "title": {"text": "cosine", "side": "right"}},
            hovertemplate="%{y} and %{x}: %{z:.2f}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_xaxes(tickangle=-60)
    figure.update_yaxes(autorange="reversed")
    return _finish(figure, title, height=140 + 18 * len(names))


def training_curve(samples: Any, loss: Any, *, title: str = "") -> go.Figure:
    """Loss over the number of samples seen, on a logarithmic axis."""
    figure = go.Figure(go.Scatter(x=_short(samples, 0), y=_short(loss), mode="lines", line={"color": COLOURS[1]}))
    figure.update_xaxes(title="training samples seen")
    figure.update_yaxes(title="mean squared error", type="log")
    return _finish(figure, title, height=320)


def interval_lines(
    curves: Mapping[str, tuple[Any, Any]],
    *,
    x: str,
    y: str = "mean IoU (band: 95 % interval)",
    behind: Mapping[str, tuple[Any, Any]] | None = None,
    levels: Mapping[str, float] | None = None,
    marks: Sequence[float] = (),
    log: bool = False,
    title: str = "",
) -> go.Figure:
    """Lines with bands: `curves` maps a name to its places (n) on the axis and its values, (n) alone or (n, 3) with the
    ends of their intervals. `behind` are drawn in grey, below the others; `levels` are horizontal lines, `marks` places
    of vertical ones; `log` makes the axis `x` logarithmic. Raises ValueError if a curve's sizes differ.
    """
    figure = go.Figure()
    drawn = [(name, curve, INK) for name, curve in (behind or {}).items()]
    drawn += [(name, curve, COLOURS[i % len(COLOURS)]) for i, (name, curve) in enumerate(curves.items())]
    for name, (places, values), colour in drawn:
        values = np.asarray(values, dtype=float)
        values = values[:, None] if values.ndim == 1 else values
        if values.shape not in ((len(places), 1), (len(places), 3)):
            raise ValueError(f"The curve {name!r} has {len(places)} places and values of shape {values.shape}.")
        places = _short(places)
        if values.shape[1] == 3:
            ends = _short(np.concatenate([values[:, 1], values[::-1, 2]]))
            figure.add_scatter(
                x=places + places[::-1], y=ends, mode="lines", line={"width": 0}, fill="toself",
                fillcolor=_transparent(colour, 0.18), hoverinfo="skip", legendgroup=name, showlegend=False,
            )  # fmt: skip
        figure.add_scatter(
            x=places, y=_short(values[:, 0]), name=name, legendgroup=name, line={"color": colour, "width": 2},
            mode="lines+markers" if len(places) < 16 else "lines", marker={"size": 5},
            hovertemplate=f"{name}<br>%{{x}}: %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    spread = [place for _, (places, _), _ in drawn for place in np.asarray(places, dtype=float).tolist()]
    for i, (name, level) in enumerate((levels or {}).items()):
        dash = ("dash", "dot", "dashdot", "longdash")[i % 4]
        figure.add_scatter(
            x=[min(spread), max(spread)], y=[round(float(level), 4)] * 2, name=f"{name} {level:.3f}", mode="lines",
            line={"color": INK, "width": 1.5, "dash": dash}, hovertemplate=f"{name}: %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    for mark in marks:
        figure.add_vline(mark, line={"color": INK, "width": 1, "dash": "dot"})
    figure.update_xaxes(title=x, type="log" if log else "linear")
    figure.update_yaxes(title=y)
    return _finish(figure, title, height=470, margin={"t": 60, "b": 130})


def interval_dots(
    rows: Mapping[str, Sequence[float]],
    *,
    x: str,
    marked: Sequence[str] = (),
    levels: Mapping[str, float] | None = None,
    title: str = "",
) -> go.Figure:
    """One row a name: its mean as a dot and its interval as a line, from (mean, low, high), in the order given.

    The names in `marked` have another colour; `levels` are vertical lines.
    """
    figure = go.Figure()
    for colour, own in (
        (COLOURS[1], [n for n in rows if n not in marked]),
        (COLOURS[0], [n for n in rows if n in marked]),
    ):
        mean, low, high = np.array([rows[name] for name in own], dtype=float).reshape(-1, 3).T
        figure.add_scatter(
            x=_short(mean), y=own, mode="markers", marker={"color": colour, "size": 8}, showlegend=False,
            error_x={"array": _short(high - mean), "arrayminus": _short(mean - low), "thickness": 1.5, "width": 3},
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        )  # fmt: skip
    for i, (name, level) in enumerate((levels or {}).items()):
        dash = ("dash", "dot", "dashdot", "longdash")[i % 4]
        figure.add_vline(level, line={"color": INK, "width": 1.5, "dash": dash})
        figure.add_scatter(
            x=[None], y=[None], name=f"{name} {level:.3f}", mode="lines", line={"color": INK, "dash": dash}
        )
    figure.update_xaxes(title=x)
    figure.update_yaxes(categoryorder="array", categoryarray=list(rows)[::-1], dtick=1, tickfont={"size": 10})
    return _finish(figure, title, height=150 + 19 * len(rows), margin={"t": 50, "b": 90})


def interval_scatter(
    places: Sequence[float], values: Any, names: Sequence[str], *, x: str, y: str, title: str = ""
) -> go.Figure:
    """One named point an entry: `places` (n) on the axis `x`, `values` (n, 3) with the ends of their intervals."""
    mean, low, high = np.asarray(values, dtype=float).T
    figure = go.Figure(
        go.Scatter(
            x=_short(np.asarray(places)), y=_short(mean), text=list(names), mode="markers+text",
            textposition="top center", textfont={"size": 10}, marker={"color": COLOURS[1], "size": 8},
            error_y={"array": _short(high - mean), "arrayminus": _short(mean - low), "thickness": 1.2, "width": 3},
            hovertemplate="%{text}<br>%{x:.3f}, %{y:.3f}<extra></extra>",
        )
    )  # fmt: skip
    figure.add_hline(0, line={"color": INK, "width": 1, "dash": "dot"})
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y)
    return _finish(figure, title, height=430)


def score_surface(mean: xr.DataArray, plateau: xr.DataArray | None = None, *, title: str = "") -> go.Figure:
    """Heat map of a mean IoU (k, threshold), its highest cell marked; a white line goes round the `plateau`."""
    _expect_dims(mean, ("k", "threshold"), "mean")
    ks, thresholds = mean["k"].values.tolist(), _short(mean["threshold"].values)
    figure = go.Figure(
        go.Heatmap(
            z=_short(mean.values.T, 3), x=ks, y=thresholds, colorscale="Viridis",
            colorbar={"thickness": 10, "title": {"text": "mean IoU", "side": "right"}},
            hovertemplate="k = %{x}, threshold %{y}: IoU %{z:.3f}<extra></extra>",
        )
    )  # fmt: skip
    if plateau is not None:
        figure.add_contour(
            z=plateau.transpose("threshold", "k").values.astype(int).tolist(), x=ks, y=thresholds, showscale=False,
            contours={"start": 0.5, "end": 0.5, "size": 1, "coloring": "lines"}, line={"width": 2},
            colorscale=[[0, "white"], [1, "white"]], hoverinfo="skip",
        )  # fmt: skip
    k, threshold = np.unravel_index(mean.values.argmax(), mean.shape)
    figure.add_scatter(
        x=[ks[k]], y=[thresholds[threshold]], mode="markers", marker={"symbol": "x", "size": 10, "color": "white"},
        hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    figure.update_xaxes(title="number of heads k", showgrid=False)
    figure.update_yaxes(title="threshold", showgrid=False)
    return _finish(figure, title, height=420)


def data_uri(pixels: np.ndarray) -> str:
    """WebP data URI of uint8 RGB pixels (y, x, rgb)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=90, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


_PAPER: dict[str, Any] = {"xref": "paper", "yref": "paper", "xanchor": "center", "showarrow": False}


def _masked(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture, enlarged, with everything outside the mask greyed and darkened."""
    faded = (image @ [0.299, 0.587, 0.114] * 0.3)[..., None]
    return overlay(np.where(mask[..., None], image, faded).astype(np.uint8), None)


def _outlined(pixels: np.ndarray, mask: np.ndarray, where: Any = True) -> np.ndarray:
    """A white line inside a darker one along the border of the mask, at the pixels `where`."""
    inner = _grown(_grown(mask) & _grown(~mask))
    halo = _grown(inner)
    pixels = np.where((halo & where)[..., None], 0.35 * pixels, pixels)
    return np.where((inner & where)[..., None], 255.0, pixels)


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask and its neighbours above, below, left and right."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def _cells(values: Any) -> list[str]:
    mean, low, high = (float(value) for value in values)
    return [f"{mean:.3f}", f"[{low:.3f}, {high:.3f}]"]


def _short(values: np.ndarray, digits: int = 4) -> list:
    """Rounded numbers, None where there is none: short JSON, the same on every machine."""
    rounded = np.round(np.asarray(values, dtype=float), digits).astype(object)
    rounded[rounded != rounded] = None
    return rounded.tolist()


def _transparent(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def _expect_dims(array: Any, dims: tuple[str, ...], name: str) -> None:
    found = getattr(array, "dims", None)
    if found != dims:
        raise ValueError(f"{name} must be a DataArray with dimensions {dims}, not {type(array).__name__} {found}.")


def _finish(figure: go.Figure, title: str, **layout: Any) -> go.Figure:
    return figure.update_layout(template=TEMPLATE, title={"text": title}, **layout)
