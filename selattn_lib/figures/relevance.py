"""Figures of head relevance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from ..models.heads import head_table
from .theme import BLOCK_COLOURS, COLOURS, FAINT, INK, _expect_dims, _finish, _short


def relevance_matrix(relevance: xr.DataArray, *, title: str = "Head relevance by concept") -> go.Figure:
    """Heat map of head relevance (concept, head), whose coordinate `head` holds the heads' names.

    Lines part the layers; the axis names layers and blocks. Rows have L1 norm H, so 1 is an average head.
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
    for block, members in table.groupby("block", sort=False):
        first, last = members.index[0], members.index[-1]
        if first:
            figure.add_vline(first - 0.5, line={"color": "white", "width": 2})
        figure.add_annotation(
            x=(first + last) / 2, y=1, yref="paper", yanchor="bottom", text=str(block), showarrow=False
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
    labels = [f"{block} {layer}" for block, layer in zip(rows["block"], rows["layer"], strict=True)]
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
    ticks = [f"{block} {layer}" for block, layer in zip(rows["block"], rows["layer"], strict=True)]
    figure = go.Figure(
        go.Heatmap(z=_short(z), x=list(range(shape[1])), y=ticks, text=names.tolist(), xgap=2, ygap=2, **style)
    )
    figure.update_xaxes(title="head", dtick=1, showgrid=False)
    figure.update_yaxes(title="block and layer", autorange="reversed", showgrid=False, dtick=1)
    return _finish(figure, title, width=360, height=130 + 20 * shape[0])


def rank_stability(
    first: Any, second: Any, *, heads: Any = None, top: int = 30, title: str = "Ranks of the heads in two halves"
) -> go.Figure:
    """Rank of each head by the scores (head) of two halves of the images, one point a head.

    The shaded square holds the heads that are among the `top` in both; the title gives their number and
    Spearman's rank correlation. With `heads` (names), points are coloured by block and named.
    """
    from scipy.stats import rankdata, spearmanr

    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"Scores (head) of two halves are expected, not of shapes {first.shape} and {second.shape}.")
    ranks = [rankdata(-scores, method="average") for scores in (first, second)]
    shared = int(((ranks[0] <= top) & (ranks[1] <= top)).sum())
    table = head_table(heads) if heads is not None else None
    blocks = ["heads"] * len(first) if table is None else table["block"].tolist()
    names = [f"head {i}" for i in range(len(first))] if table is None else table["name"].tolist()
    figure = go.Figure()
    edge = {"color": INK, "width": 1, "dash": "dot"}
    figure.add_shape(type="rect", x0=0, y0=0, x1=top + 0.5, y1=top + 0.5, fillcolor=FAINT, line=edge, layer="below")
    for block in dict.fromkeys(blocks):
        own = [i for i, each in enumerate(blocks) if each == block]
        figure.add_scatter(
            x=ranks[0][own].tolist(),
            y=ranks[1][own].tolist(),
            text=[names[i] for i in own],
            mode="markers",
            name=block,
            marker={"size": 7, "color": BLOCK_COLOURS.get(block, COLOURS[0]), "opacity": 0.85},
            hovertemplate="%{text}<br>rank %{x}, then %{y}<extra></extra>",
        )
    figure.update_xaxes(title="rank, first half")
    figure.update_yaxes(title="rank, second half")
    correlation = spearmanr(first, second).statistic
    text = f"{title}<br><sub>Spearman’s ρ = {correlation:.2f}; {shared} of the top {top} heads shared</sub>"
    return _finish(figure, text, width=460, height=490, margin={"t": 70, "b": 90}, showlegend=table is not None)


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
