"""Small still pictures of a notebook's figures, for the gallery: drawn from what it holds, without a browser."""

import base64
import io
import math
import re
from urllib.parse import quote

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 240, 150
INK = "#7a7a7a"  # seen on light and on dark
PLOTLY = "application/vnd.plotly.v1+json"
PICTURE = re.compile(r"data:image/[a-z]+;base64,([\w+/=]+)")


def thumbnail(outputs: list[dict]) -> str:
    """Address (data:) of a small picture of the first figure among a cell's outputs: contact sheets, heat maps, lines.

    Raises ValueError where there is no figure.
    """
    for output in outputs:
        data = output.get("data", {})
        figure = data.get(PLOTLY)
        pictures = PICTURE.findall(data.get("text/html", ""))
        if figure is not None:
            in_rows = sorted(figure["layout"].get("images", []), key=lambda image: (-image["y"], image["x"]))
            pictures = [PICTURE.findall(image["source"])[0] for image in in_rows]
        if pictures:
            return sheet(pictures)
        if figure is not None:
            heat = [trace for trace in figure["data"] if trace["type"] == "heatmap" and trace.get("visible", True)]
            return heat_map(heat[0], figure["layout"]) if heat else plot(figure)
    raise ValueError("no figure among these outputs")


def webp(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=70)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def sheet(pictures: list[str]) -> str:
    """The first two rows of four pictures, given in base64."""
    shown = pictures[:8]
    columns = min(4, len(shown))
    side = WIDTH // columns
    whole = Image.new("RGB", (WIDTH, side * math.ceil(len(shown) / columns)), "white")
    for place, text in enumerate(shown):
        with Image.open(io.BytesIO(base64.b64decode(text))) as picture:
            small = picture.convert("RGB").resize((side - 2, side - 2))
        whole.paste(small, (place % columns * side, place // columns * side))
    return webp(whole)


def numbers(values) -> np.ndarray:
    """A list of plotly's JSON, or its typed array, as numbers; what is missing is not a number."""
    if isinstance(values, dict):
        flat = np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"])
        shape = [int(size) for size in str(values.get("shape", flat.size)).split(",")]
        return flat.reshape(shape).astype(float)
    return np.array(values, float)


def heat_map(trace: dict, layout: dict) -> str:
    z = numbers(trace["z"])
    low, high = trace.get("zmin", np.nanmin(z)), trace.get("zmax", np.nanmax(z))
    stops, colours = zip(*trace["colorscale"], strict=True)
    channels = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours])
    share = np.clip((np.nan_to_num(z, nan=low) - low) / ((high - low) or 1), 0, 1)
    pixels = np.stack([np.interp(share, stops, channel) for channel in channels.T], -1).astype(np.uint8)
    if layout.get("yaxis", {}).get("autorange") != "reversed":
        pixels = pixels[::-1]
    return webp(Image.fromarray(pixels).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST))


def places(values, axis: dict, names: list) -> np.ndarray:
    """Values along an axis as numbers: names by their order, logarithms where the axis has them."""
    if isinstance(values, list) and any(isinstance(value, str) for value in values):
        names.extend(dict.fromkeys(value for value in values if value not in names))
        return np.array([names.index(value) for value in values], float)
    found = numbers(values)
    return np.log10(found) if axis.get("type") == "log" else found


def plot(figure: dict) -> str:
    """Lines, bands, dots with their intervals and marked places, as SVG; no letters: they would be too small."""
    layout, drawn, spans = figure["layout"], [], []
    axes = [layout.get(name, {}) for name in ("xaxis", "yaxis")]
    names = [list(axis.get("categoryarray", [])) for axis in axes]
    for trace in figure["data"]:
        if trace.get("visible", True) is True and trace["type"] == "scatter":
            x, y = (places(trace[key], axis, known) for key, axis, known in zip("xy", axes, names, strict=True))
            error = trace.get("error_x", {})
            more, less = (numbers(error.get(key, [])) for key in ("array", "arrayminus"))
            bars = (x - less, x + more) if len(more) == len(less) == len(x) else (x, x)
            drawn.append((trace, x, y, bars))
            spans += [np.stack([end, y]) for end in (x, *bars)]
    inside = np.concatenate(spans, 1)
    low, high = np.nanmin(inside, 1), np.nanmax(inside, 1)
    room = np.where(high > low, high - low, 1)

    def at(x, y) -> tuple[np.ndarray, np.ndarray]:
        left, up = (x - low[0]) / room[0], (y - low[1]) / room[1]
        return 8 + left * (WIDTH - 16), HEIGHT - 8 - up * (HEIGHT - 16)

    def points(x, y) -> str:
        kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), 80)).astype(int))
        pairs = zip(*at(x[kept], y[kept]), strict=True)
        return " ".join(f"{left:.1f},{top:.1f}" for left, top in pairs if left == left and top == top)

    parts = [f'<rect x=".5" y=".5" width="{WIDTH - 1}" height="{HEIGHT - 1}" fill="none" stroke="{INK}"/>']
    for shape in layout.get("shapes", []):
        if shape["type"] == "line" and shape["x0"] == shape["x1"] and low[0] <= shape["x0"] <= high[0]:
            x, _ = at(np.float64(shape["x0"]), low[1])
            parts.append(f'<path d="M{x:.1f} 0V{HEIGHT}" stroke="{INK}" stroke-dasharray="3"/>')
    for trace, x, y, (start, end) in drawn:
        colour = trace.get("line", {}).get("color") or trace.get("marker", {}).get("color", INK)
        if trace.get("fill") == "toself":
            parts.append(f'<polygon points="{points(x, y)}" fill="{trace["fillcolor"]}"/>')
        elif "lines" in trace.get("mode", ""):
            dash = ' stroke-dasharray="4"' if trace["line"].get("dash") else ""
            parts.append(f'<polyline points="{points(x, y)}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        else:
            for left, right, top in zip(at(start, y)[0], at(end, y)[0], at(x, y)[1], strict=True):
                parts.append(f'<path d="M{left:.1f} {top:.1f}H{right:.1f}" stroke="{colour}"/>')
            dots = zip(*at(x, y), strict=True)
            parts += [f'<circle cx="{left:.1f}" cy="{top:.1f}" r="2.5" fill="{colour}"/>' for left, top in dots]
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(parts)}</svg>'
    return f"data:image/svg+xml,{quote(svg, safe='/ =')}"
