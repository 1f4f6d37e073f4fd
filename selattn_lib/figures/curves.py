"""Lines, dots and surfaces with their intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from .theme import COLOURS, INK, _expect_dims, _finish, _short, _transparent


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
