"""Figures of head relevance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from scipy.stats import rankdata

from ..models.heads import head_table
from .theme import BLOCK_COLOURS, COLOURS, FAINT, INK, expect_dims, finish, rounded


def relevance_matrix(relevance: xr.DataArray, *, title: str = "Head relevance by concept") -> go.Figure:
    """Heat map of head relevance, a row a concept. Lines part the layers; the axis names layers and blocks.

    Parameters
    ----------
    relevance : xarray.DataArray (concept, head)
        0 or more, 1 for an average head; the coordinate `head` holds the heads' names. Colours end at the 99th
        percentile, to keep a few large values from hiding the rest.
    title : str
        The figure's title.

    Returns
    -------
    plotly.graph_objects.Figure

    Raises
    ------
    ValueError
        If the dimensions are others, or on a name that is no head's.

    Examples
    --------
    >>> names = ["down, layer: 0, head: 0", "mid, layer: 0, head: 0"]
    >>> scores = xr.DataArray([[0.5, 1.5]], {"concept": ["Animals"], "head": names}, ("concept", "head"))
    >>> relevance_matrix(scores).data[0].y
    ('Animals',)
    """
    expect_dims(relevance, ("concept", "head"), "relevance")
    table = head_table(relevance["head"].values.tolist())
    values = relevance.values.astype(float)
    concepts = [str(name) for name in relevance["concept"].values]
    bar = {"title": {"text": "relevance (1 = average head)", "side": "bottom"}, "orientation": "h", "thickness": 10}
    bar |= {"y": -70 / (15 * len(values)), "yanchor": "top"}
    scale = {"colorscale": "Viridis", "zmin": 0, "zmax": round(float(np.quantile(values, 0.99)), 3) or 1}
    hover = "%{y}<br>%{x}<br>relevance %{z:.2f}<extra></extra>"
    names = table["name"].tolist()
    cells = go.Heatmap(z=rounded(values, 3), x=names, y=concepts, colorbar=bar, hovertemplate=hover, **scale)
    figure = go.Figure(cells)
    centres, layers = [], []
    for _, members in table.groupby("row"):
        centres.append(members["name"].iloc[len(members) // 2])
        layers.append(str(members["layer"].iloc[0]))
        if members.index[0]:
            figure.add_vline(members.index[0] - 0.5, line={"color": "rgba(255,255,255,0.45)", "width": 0.7})
    for block, members in table.groupby("block", sort=False):
        first, last = members.index[0], members.index[-1]
        if first:
            figure.add_vline(first - 0.5, line={"color": "white", "width": 2})
        at = {"x": (first + last) / 2, "y": 1, "yref": "paper", "yanchor": "bottom"}
        figure.add_annotation(text=str(block), showarrow=False, **at)
    ticks = {"tickvals": centres, "ticktext": layers, "tickangle": 0, "tickfont": {"size": 10}}
    figure.update_xaxes(title="layer and its heads", showgrid=False, **ticks)
    figure.update_yaxes(autorange="reversed", showgrid=False, tickfont={"size": 10}, dtick=1)
    return finish(figure, title, height=200 + 15 * len(values), margin={"t": 70, "b": 130})


def sortable_relevance(
    relevance: xr.DataArray, *, alike: Sequence[str] = (), title: str = "Head relevance by concept"
) -> go.Figure:
    """`relevance_matrix` with menus, which work on a page without a kernel.

    Parameters
    ----------
    relevance : xarray.DataArray (concept, head)
        As for `relevance_matrix`. A menu puts the heads in the model's order or in that of their relevance for a
        concept.
    alike : sequence of str, optional
        The concepts in an order that puts like ones side by side, such as `concept_similarity` gives: a second menu
        puts the rows in this order.
    title : str
        The figure's title.

    Returns
    -------
    plotly.graph_objects.Figure

    Examples
    --------
    >>> names = ["down, layer: 0, head: 0", "down, layer: 0, head: 1"]
    >>> scores = xr.DataArray(np.eye(2), {"concept": ["Animals", "Plants"], "head": names}, ("concept", "head"))
    >>> len(sortable_relevance(scores).layout.updatemenus)
    1
    """
    figure = relevance_matrix(relevance, title=title)
    names, concepts = ([str(name) for name in relevance[dim].values] for dim in ("head", "concept"))
    layout = figure.layout
    lines = {"shapes": layout.shapes, "annotations": layout.annotations}
    ticks = {"xaxis.showticklabels": True, "xaxis.ticks": "outside", "xaxis.title.text": layout.xaxis.title.text}
    heads = {"heads by layer": lines | ticks | {"xaxis.categoryarray": names}}
    bare = {"shapes": [], "annotations": [], "xaxis.showticklabels": False, "xaxis.ticks": ""}
    for concept, row in zip(concepts, relevance.values, strict=True):
        order = [names[i] for i in np.argsort(-row, kind="stable")]
        caption = {"xaxis.title.text": f"heads, the most relevant to {concept} first"}
        heads[f"heads by {concept}"] = bare | caption | {"xaxis.categoryarray": order}
    rows = {"concepts as listed": {"yaxis.categoryarray": concepts}}
    rows["concepts by likeness"] = {"yaxis.categoryarray": [str(concept) for concept in alike]}
    figure.update_xaxes(categoryorder="array", categoryarray=names)
    figure.update_yaxes(categoryorder="array", categoryarray=concepts)
    menus = [_menu("relayout", heads)] + ([_menu("relayout", rows, above=1)] if len(alike) else [])
    return figure.update_layout(**_room_for(menus, layout.height + 85, 155))


def top_heads(relevance: xr.DataArray, k: int = 30, *, first: str | None = None, title: str = "") -> go.Figure:
    """The heads of one concept on the grid, coloured by relevance, the most relevant framed.

    Parameters
    ----------
    relevance : xarray.DataArray (concept, head)
        As for `relevance_matrix`. A menu, which works on a page without a kernel, chooses the concept.
    k : int
        So many heads are framed.
    first : str, optional
        The concept to start with.
    title : str
        The figure's title.

    Returns
    -------
    plotly.graph_objects.Figure

    Raises
    ------
    ValueError
        If `first` is not one of the concepts.

    Examples
    --------
    >>> names = ["down, layer: 0, head: 0", "down, layer: 0, head: 1"]
    >>> scores = xr.DataArray(np.eye(2), {"concept": ["Animals", "Plants"], "head": names}, ("concept", "head"))
    >>> len(top_heads(scores, 1, first="Plants").layout.updatemenus[0].buttons)
    2
    """
    expect_dims(relevance, ("concept", "head"), "relevance")
    names = relevance["head"].values.tolist()
    concepts = [str(name) for name in relevance["concept"].values]
    first = concepts[0] if first is None else first
    if first not in concepts:
        raise ValueError(f"the concept {first!r} is not among {concepts}")
    table = head_table(names)
    labels = (table["block"] + " " + table["layer"].astype(str)).tolist()
    figure = head_grid(names, relevance.sel(concept=first), title=title)
    figure.data = []
    square = {"symbol": "square-open", "size": 15, "color": COLOURS[0], "line": {"width": 2.5}}
    for concept in concepts:
        cells = head_grid(names, relevance.sel(concept=concept)).data[0]
        cells.update(text=None, hovertemplate="%{y}, head %{x}<br>relevance %{z:.2f}<extra></extra>")
        best = np.argsort(-relevance.sel(concept=concept).values, kind="stable")[:k]
        at = {"x": table["head"].iloc[best].tolist(), "y": [labels[head] for head in best]}
        frames = go.Scatter(mode="markers", marker=square, hoverinfo="skip", showlegend=False, **at)
        figure.add_traces([trace.update(visible=concept == first) for trace in (cells, frames)])
    shown = {concept: {"visible": [name == concept for name in concepts for _ in range(2)]} for concept in concepts}
    menu = _menu("restyle", shown).update(active=concepts.index(first))
    return figure.update_layout(**_room_for([menu], figure.layout.height + 40, 105))


def _room_for(menus: Sequence[go.layout.Updatemenu], height: int, top: int) -> dict[str, Any]:
    """The layout of a figure with menus: its title above them, not beside, where a phone has no room."""
    title = {"y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 12}}
    return {"updatemenus": menus, "height": height, "margin": {"t": top}, "title": title}


def _menu(method: str, options: Mapping[str, Any], above: int = 0) -> go.layout.Updatemenu:
    """A menu over a figure, `above` others: `options` maps what it offers to the argument of plotly's `method`."""
    buttons = [{"label": label, "method": method, "args": [value]} for label, value in options.items()]
    at = {"x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom", "pad": {"b": 22 + 38 * above}}
    font = {"size": 11, "color": "#222832"}  # dark on light in any theme: plotly lights up what is pointed at
    return go.layout.Updatemenu(buttons=buttons, font=font, bgcolor="#eef1f4", bordercolor=INK, **at)


def head_grid(
    heads: Any, values: Any, *, title: str = "", label: str = "relevance", colour: str = COLOURS[0]
) -> go.Figure:
    """One square a head: rows are layers, columns the heads of a layer.

    Parameters
    ----------
    heads : sequence of str, or object with `.names`
        The heads' names, such as those of `cross_attention_heads(pipe)`.
    values : array (head)
        Floats, drawn as colours, or booleans, drawn as a selection lit up in `colour`.
    title, label, colour : str
        The figure's title, what the values are, and the colour of a selection.

    Returns
    -------
    plotly.graph_objects.Figure

    Raises
    ------
    ValueError
        If there is not one value a head.

    Examples
    --------
    >>> head_grid(["mid, layer: 0, head: 0", "mid, layer: 0, head: 1"], [0.5, 1.5]).data[0].y
    ('mid 0',)
    """
    table, values = head_table(heads), np.asarray(values)
    if values.shape != (len(table),):
        raise ValueError(f"values has shape {values.shape} for {len(table)} heads: expected one value a head")
    rows = table.drop_duplicates("row")
    shape = (len(rows), table["head"].max() + 1)
    z, names = np.full(shape, np.nan), np.full(shape, "", dtype=object)
    z[table["row"], table["head"]] = values
    names[table["row"], table["head"]] = table["name"]
    bar = {"title": {"text": label, "side": "right"}, "thickness": 10}
    style: dict[str, Any] = {"colorscale": "Viridis", "colorbar": bar}
    hover = f"%{{text}}<br>{label} %{{z:.3g}}<extra></extra>"
    if values.dtype == bool:
        style = {"colorscale": [[0, "rgba(128,128,128,0.18)"], [1, colour]], "zmin": 0, "zmax": 1, "showscale": False}
        hover = "%{text}<extra></extra>"
    layers = (rows["block"] + " " + rows["layer"].astype(str)).tolist()
    style |= {"text": names.tolist(), "hovertemplate": hover, "xgap": 2, "ygap": 2}
    figure = go.Figure(go.Heatmap(z=rounded(z), x=list(range(shape[1])), y=layers, **style))
    figure.update_xaxes(title="head", dtick=1, showgrid=False)
    figure.update_yaxes(title="block and layer", autorange="reversed", showgrid=False, dtick=1)
    return finish(figure, title, width=360, height=130 + 20 * shape[0])


def rank_stability(
    first: Any,
    second: Any,
    agreement: tuple[float, float],
    *,
    heads: Any = None,
    top: int = 30,
    title: str = "Ranks of the heads in two halves",
) -> go.Figure:
    """Rank of each head by the scores of two halves of the images, one point a head.

    Parameters
    ----------
    first, second : array (head)
        Scores by each half.
    agreement : (float, float)
        What the title says: Spearman's rank correlation and the share of the `top` heads in common, as
        `rank_agreement` gives them.
    heads : sequence of str, optional
        The heads' names: points are coloured by block and named.
    top : int
        A shaded square holds the heads that are among so many first ones in both halves.
    title : str
        The figure's title.

    Returns
    -------
    plotly.graph_objects.Figure

    Raises
    ------
    ValueError
        Unless there are as many scores of both halves.

    Examples
    --------
    >>> len(rank_stability([3, 2, 1], [3, 1, 2], (0.5, 1.0), top=1).data[0].x)
    3
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"scores of shapes {first.shape} and {second.shape}: expected (head) of two halves")
    table = head_table(heads) if heads is not None else None
    blocks = np.array(["heads"] * len(first) if table is None else table["block"])
    names = np.array([f"head {i}" for i in range(len(first))] if table is None else table["name"])
    figure = go.Figure()
    edge = {"color": INK, "width": 1, "dash": "dot"}
    corners = {"x0": 0, "y0": 0, "x1": top + 0.5, "y1": top + 0.5}
    figure.add_shape(type="rect", fillcolor=FAINT, line=edge, layer="below", **corners)
    hover = "%{text}<br>rank %{x}, then %{y}<extra></extra>"
    for block in dict.fromkeys(blocks.tolist()):
        x, y = (rankdata(-scores)[blocks == block].tolist() for scores in (first, second))
        marker = {"size": 7, "color": BLOCK_COLOURS.get(block, COLOURS[0]), "opacity": 0.85}
        text = {"text": names[blocks == block].tolist(), "hovertemplate": hover}
        figure.add_scatter(x=x, y=y, name=block, mode="markers", marker=marker, **text)
    figure.update_xaxes(title="rank, first half")
    figure.update_yaxes(title="rank, second half")
    correlation, shared = agreement
    caption = f"Spearman’s ρ = {correlation:.2f}; {shared * top:.0f} of the top {top} heads shared"
    layout = {"width": 460, "height": 490, "margin": {"t": 70, "b": 90}, "showlegend": table is not None}
    return finish(figure, f"{title}<br><sub>{caption}</sub>", **layout)


def similarity_matrix(similarity: xr.DataArray, *, title: str = "") -> go.Figure:
    """Heat map of cosine similarities in [-1, 1], of dimensions (concept, other_concept).

    Parameters
    ----------
    similarity : xarray.DataArray (concept, other_concept)
        As `concept_similarity` gives it.
    title : str
        The figure's title.

    Returns
    -------
    plotly.graph_objects.Figure

    Examples
    --------
    >>> names = ["Animals", "Plants"]
    >>> cosines = xr.DataArray(np.eye(2), {"concept": names, "other_concept": names}, ("concept", "other_concept"))
    >>> similarity_matrix(cosines).data[0].z
    ([1.0, 0.0], [0.0, 1.0])
    """
    expect_dims(similarity, ("concept", "other_concept"), "similarity")
    names = [str(name) for name in similarity["concept"].values]
    bar = {"thickness": 10, "title": {"text": "cosine", "side": "right"}}
    cells = {"z": rounded(similarity.values, 3), "hovertemplate": "%{y} and %{x}: %{z:.2f}<extra></extra>"}
    figure = go.Figure(go.Heatmap(x=names, y=names, colorscale="Viridis", colorbar=bar, **cells))
    figure.update_xaxes(tickangle=-60)
    figure.update_yaxes(autorange="reversed")
    return finish(figure, title, height=140 + 18 * len(names))
