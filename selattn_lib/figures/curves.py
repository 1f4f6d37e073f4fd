"""Lines, dots and surfaces with their intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from .theme import COLOURS, DASHES, INK, expect_dims, finish, line_styles, method_colour, rounded, transparent


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
    """Lines with bands, such as the mean IoU over the number of heads.

    Parameters
    ----------
    curves : mapping
        Name -> (places, values): places (n) on the axis `x`, values (n) alone or (n, 3) with the ends of their
        intervals.
    x, y : str
        The axes' titles.
    behind : mapping, optional
        More curves, drawn in grey below the others.
    levels : mapping, optional
        Name -> height of a horizontal line, such as "all heads (DAAM)".
    marks : sequence of float
        Places of vertical lines, which are labelled by their number.
    log : bool
        Whether the axis `x` is logarithmic.
    title : str
        The figure's title.

    Returns
    -------
    plotly.graph_objects.Figure

    Raises
    ------
    ValueError
        If the sizes of a curve differ.

    Examples
    --------
    >>> figure = interval_lines({"top k": ([1, 2], [0.4, 0.5])}, x="number of heads k", levels={"all": 0.3})
    >>> [trace.name for trace in figure.data]
    ['top k', 'all 0.300']
    """
    figure = go.Figure()
    drawn = [(name, curve, (INK, "solid")) for name, curve in (behind or {}).items()]
    styles = line_styles(list(curves), list(levels or {}))
    drawn += [(*curve, style) for curve, style in zip(curves.items(), styles, strict=True)]
    for name, (places, values), (colour, dash) in drawn:
        values = np.asarray(values, dtype=float)
        values = values[:, None] if values.ndim == 1 else values
        if values.shape not in ((len(places), 1), (len(places), 3)):
            raise ValueError(f"the curve {name!r} has {len(places)} places and values of shape {values.shape}")
        places = rounded(places)
        if values.shape[1] == 3:
            ends = rounded(np.concatenate([values[:, 1], values[::-1, 2]]))
            fill = {"fill": "toself", "fillcolor": transparent(colour, 0.18), "line": {"width": 0}, "mode": "lines"}
            group = {"legendgroup": name, "showlegend": False, "hoverinfo": "skip"}
            figure.add_scatter(x=places + places[::-1], y=ends, **fill, **group)
        style = {"line": {"color": colour, "width": 2, "dash": dash}, "marker": {"size": 5}}
        style |= {"mode": "lines+markers" if len(places) < 16 else "lines"}
        hover = f"{name}<br>%{{x}}: %{{y:.3f}}<extra></extra>"
        figure.add_scatter(x=places, y=rounded(values[:, 0]), name=name, legendgroup=name, hovertemplate=hover, **style)
    spread = [place for _, (places, _), _ in drawn for place in np.asarray(places, dtype=float).tolist()]
    for i, (name, level) in enumerate((levels or {}).items()):
        line = {"color": method_colour(name) or INK, "width": 1.5, "dash": DASHES[i % 4]}
        ends, heights = [min(spread), max(spread)], [round(float(level), 4)] * 2
        hover = f"{name}: %{{y:.3f}}<extra></extra>"
        figure.add_scatter(x=ends, y=heights, name=f"{name} {level:.3f}", mode="lines", line=line, hovertemplate=hover)
    for mark in marks:
        figure.add_vline(mark, line={"color": INK, "width": 1, "dash": "dot"})
        at = float(np.log10(mark)) if log else mark  # as annotations of a logarithmic axis want it
        label = {"text": f"{mark:g}", "showarrow": False, "font": {"size": 10}}
        figure.add_annotation(x=at, y=1, yref="paper", yanchor="bottom", **label)
    figure.update_xaxes(title=x, type="log" if log else "linear")
    figure.update_yaxes(title=y)
    return finish(figure, title, height=470, margin={"t": 75 if marks else 60, "b": 130})


def training_curve(samples: Any, loss: Any, *, title: str = "") -> go.Figure:
    """Loss (n) over the number of samples seen (n), on a logarithmic axis.

    Parameters
    ----------
    samples, loss : array (n)
        At each step that was logged.
    title : str
        The figure's title.

    Returns
    -------
    plotly.graph_objects.Figure

    Examples
    --------
    >>> len(training_curve([1, 2], [0.9, 0.8]).data)
    1
    """
    figure = go.Figure(go.Scatter(x=rounded(samples, 0), y=rounded(loss), mode="lines", line={"color": COLOURS[1]}))
    figure.update_xaxes(title="training samples seen")
    figure.update_yaxes(title="mean squared error", type="log")
    return finish(figure, title, height=320)


def interval_dots(
    rows: Mapping[str, Sequence[float]],
    *,
    x: str,
    marked: Sequence[str] = (),
    levels: Mapping[str, float] | None = None,
    title: str = "",
) -> go.Figure:
    """One row a name: its mean as a dot and its interval as a line.

    Parameters
    ----------
    rows : mapping
        Name -> (mean, low, high), such as an `Interval`, in the order of the rows.
    x : str
        The axis's title.
    marked : sequence of str
        Names to be drawn in the colour of the most relevant heads. Others have that of the method that they name.
    levels : mapping, optional
        Name -> place of a vertical line.
    title : str
        The figure's title.

    Returns
    -------
    plotly.graph_objects.Figure

    Examples
    --------
    >>> interval_dots({"bear": (0.5, 0.4, 0.6)}, x="mean IoU").data[0].y
    ('bear',)
    """
    figure = go.Figure()
    colours = {name: COLOURS[0] if name in marked else method_colour(name) or INK for name in rows}
    for colour in dict.fromkeys(colours.values()):
        names = [name for name in rows if colours[name] == colour]
        mean, low, high = np.array([rows[name] for name in names], dtype=float).reshape(-1, 3).T
        bars = {"array": rounded(high - mean), "arrayminus": rounded(mean - low), "thickness": 1.5, "width": 3}
        style = {"mode": "markers", "marker": {"color": colour, "size": 8}, "showlegend": False}
        hover = "%{y}: %{x:.3f}<extra></extra>"
        figure.add_scatter(x=rounded(mean), y=names, error_x=bars, hovertemplate=hover, **style)
    for i, (name, level) in enumerate((levels or {}).items()):
        line = {"color": method_colour(name) or INK, "dash": DASHES[i % 4]}
        figure.add_vline(level, line=line | {"width": 1.5})
        figure.add_scatter(x=[None], y=[None], name=f"{name} {level:.3f}", mode="lines", line=line)
    figure.update_xaxes(title=x)
    figure.update_yaxes(categoryorder="array", categoryarray=list(rows)[::-1], dtick=1, tickfont={"size": 10})
    return finish(figure, title, height=150 + 19 * len(rows), margin={"t": 50, "b": 90})


def interval_scatter(
    places: Sequence[float], values: Any, names: Sequence[str], *, x: str, y: str, title: str = ""
) -> go.Figure:
    """One named point an entry: `places` (n) on the axis `x`, `values` (n, 3) with the ends of their intervals.

    Parameters
    ----------
    places : sequence of float (n)
        On the axis `x`.
    values : array (n, 3)
        Means on the axis `y`, with the ends of their intervals.
    names : sequence of str (n)
        What the points are.
    x, y, title : str
        Of the axes and of the figure.

    Returns
    -------
    plotly.graph_objects.Figure

    Examples
    --------
    >>> interval_scatter([0.5], [[0.1, 0.0, 0.2]], ["Animals"], x="concentration", y="gain").data[0].text
    ('Animals',)
    """
    mean, low, high = np.asarray(values, dtype=float).T
    bars = {"array": rounded(high - mean), "arrayminus": rounded(mean - low), "thickness": 1.2, "width": 3}
    text = {"text": list(names), "mode": "markers+text", "textposition": "top center", "textfont": {"size": 10}}
    style = {"marker": {"color": COLOURS[1], "size": 8}}
    hover = "%{text}<br>%{x:.3f}, %{y:.3f}<extra></extra>"
    figure = go.Figure()
    figure.add_scatter(x=rounded(places), y=rounded(mean), error_y=bars, hovertemplate=hover, **text, **style)
    figure.add_hline(0, line={"color": INK, "width": 1, "dash": "dot"})
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y)
    return finish(figure, title, height=430)


def score_surface(mean: xr.DataArray, plateau: xr.DataArray | None = None, *, title: str = "") -> go.Figure:
    """Heat map of a score over the number of heads and the threshold, its highest cell marked.

    Parameters
    ----------
    mean : xarray.DataArray (k, threshold)
        Mean IoU, in [0, 1].
    plateau : xarray.DataArray (k, threshold) bool, optional
        A white line goes round these cells.
    title : str
        The figure's title.

    Returns
    -------
    plotly.graph_objects.Figure

    Raises
    ------
    ValueError
        If the dimensions are others.

    Examples
    --------
    >>> mean = xr.DataArray([[0.1, 0.2]], {"k": [5], "threshold": [0.3, 0.4]}, ("k", "threshold"))
    >>> score_surface(mean).data[1].y
    (0.4,)
    """
    expect_dims(mean, ("k", "threshold"), "mean")
    ks, thresholds = mean["k"].values.tolist(), rounded(mean["threshold"].values)
    bar = {"thickness": 10, "title": {"text": "mean IoU", "side": "right"}}
    hover = "k = %{x}, threshold %{y}: IoU %{z:.3f}<extra></extra>"
    scores = {"z": rounded(mean.values.T, 3), "colorscale": "Viridis", "colorbar": bar, "hovertemplate": hover}
    figure = go.Figure(go.Heatmap(x=ks, y=thresholds, **scores))
    if plateau is not None:
        inside = plateau.transpose("threshold", "k").values.astype(int).tolist()
        edge = {"contours": {"start": 0.5, "end": 0.5, "size": 1, "coloring": "lines"}, "line": {"width": 2}}
        white = {"colorscale": [[0, "white"], [1, "white"]], "showscale": False, "hoverinfo": "skip"}
        figure.add_contour(z=inside, x=ks, y=thresholds, **edge, **white)
    k, threshold = np.unravel_index(mean.values.argmax(), mean.shape)
    cross = {"mode": "markers", "marker": {"symbol": "x", "size": 10, "color": "white"}}
    figure.add_scatter(x=[ks[k]], y=[thresholds[threshold]], hoverinfo="skip", showlegend=False, **cross)
    figure.update_xaxes(title="number of heads k", showgrid=False)
    figure.update_yaxes(title="threshold", showgrid=False)
    return finish(figure, title, height=420)
