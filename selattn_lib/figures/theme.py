"""What all figures share: colours, template, rounding."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

DASHES = ("dash", "dot", "dashdot", "longdash")
INK = "#7a7a7a"  # contrast of at least 4:1 with both white and a near-black page
FAINT = "rgba(128,128,128,0.25)"
# Okabe and Ito's colours, safe for colour-blind readers; those with a contrast of 3:1 with white and with black first
COLOURS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
# Ways to choose heads, by what their names hold, and the colour of each in every chapter; the first that fits counts
METHODS = {
    "oracle": COLOURS[4],
    "consensus": COLOURS[3],
    "finest grid": COLOURS[2],
    "random": INK,
    "least relevant": COLOURS[5],
    "bottom": COLOURS[5],
    "HRV": COLOURS[0],
    "most relevant": COLOURS[0],
    "top": COLOURS[0],
    "all heads": COLOURS[1],
}
BLOCK_COLOURS = {"down": COLOURS[1], "mid": COLOURS[3], "up": COLOURS[0]}
AXIS = {"gridcolor": FAINT, "linecolor": INK, "tickcolor": INK, "zeroline": False, "automargin": True}
TEMPLATE = go.layout.Template(
    layout={
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": INK, "size": 12, "family": "system-ui, sans-serif"},
        "title": {"font": {"size": 14}, "x": 0.01, "xref": "container", "xanchor": "left"},
        "colorway": COLOURS,
        "margin": {"l": 10, "r": 10, "t": 50, "b": 40},
        "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom", "title": {"text": ""}},
        "xaxis": AXIS,
        "yaxis": AXIS,
        "hoverlabel": {"align": "left"},
    }
)


def rounded(values: Any, digits: int = 4) -> list:
    """Rounded numbers, None where there is none: short JSON, the same on every machine."""
    numbers = np.round(np.asarray(values, dtype=float), digits).astype(object)
    numbers[numbers != numbers] = None
    return numbers.tolist()


def method_colour(name: str) -> str | None:
    """The colour of a way to choose heads; None if the name is of none."""
    return next((colour for method, colour in METHODS.items() if method in name), None)


def line_styles(names: Sequence[str], beside: Sequence[str] = ()) -> list[tuple[str, str]]:
    """(colour, dash) of each line of a figure: a method's own, dashed where it comes again, others in turn what no
    method has, of these or of those `beside` them."""
    colours = [method_colour(name) for name in names]
    taken = {*colours, *map(method_colour, beside)}
    free = iter([colour for colour in COLOURS if colour not in taken] or COLOURS)
    styles: list[tuple[str, str]] = []
    for colour in colours:
        chosen = colour or next(free, INK)
        styles.append((chosen, ("solid", *DASHES)[[used for used, _ in styles].count(chosen) % 5]))
    return styles


def transparent(colour: str, opacity: float) -> str:
    """A colour such as "#D55E00" as plotly's rgba."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def expect_dims(array: Any, dims: tuple[str, ...], name: str) -> None:
    """Raise ValueError unless `array` is a DataArray of these dimensions, in this order."""
    if getattr(array, "dims", None) != dims:
        kind = f"{type(array).__name__} {getattr(array, 'dims', '')}".strip()
        raise ValueError(f"{name} is {kind}: expected a DataArray with dimensions {dims}")


def finish(figure: go.Figure, title: str, **layout: Any) -> go.Figure:
    """The figure with the template and its title."""
    return figure.update_layout(template=TEMPLATE, title={"text": title}, **layout)
