"""Figures: what they show, their labels, and their weight."""

import base64
import io
import re
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import pytest
import xarray as xr
from PIL import Image

from selattn_lib import figures
from selattn_lib.figures.theme import INK

LAYERS = [("down", i) for i in range(6)] + [("mid", 0)] + [("up", i) for i in range(9)]
NAMES = [f"{block}, layer: {layer}, head: {head}" for block, layer in LAYERS for head in range(8)]
CONCEPTS = [f"Concept {i}" for i in range(34)]


def texts(figure: go.Figure) -> str:
    return " ".join(a.text for a in figure.layout.annotations) + " " + (figure.layout.title.text or "")


def decode(uri: str) -> np.ndarray:
    assert uri.startswith("data:image/webp;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))


@pytest.fixture
def relevance() -> xr.DataArray:
    scores = np.random.default_rng(0).gamma(0.6, size=(34, 128))
    scores *= 128 / scores.sum(axis=1, keepdims=True)
    return xr.DataArray(scores, dims=("concept", "head"), coords={"concept": CONCEPTS, "head": NAMES})


def test_relevance_matrix_names_concepts_layers_and_blocks(relevance):
    figure = figures.relevance_matrix(relevance)
    heat = figure.data[0]
    assert list(heat.y) == CONCEPTS and list(heat.x) == NAMES
    np.testing.assert_allclose(np.array(heat.z, float), relevance, atol=5e-4)
    assert list(figure.layout.xaxis.ticktext) == [str(layer) for _, layer in LAYERS]
    assert len(figure.layout.shapes) == 15 + 2  # between layers, and again between blocks
    assert all(block in texts(figure) for block in ("down", "mid", "up"))
    assert len(figure.to_json()) < 60_000


def test_relevance_matrix_refuses_other_arrays(relevance):
    with pytest.raises(ValueError, match=r"dimensions \('concept', 'head'\)"):
        figures.relevance_matrix(relevance.T)
    with pytest.raises(ValueError, match="'0' is no head's name"):
        figures.relevance_matrix(relevance.assign_coords(head=np.arange(128)))


def test_the_sortable_matrix_orders_heads_by_a_concept_and_concepts_by_likeness(relevance):
    alike = CONCEPTS[::-1]
    figure = figures.sortable_relevance(relevance, alike=alike)
    assert len(figures.sortable_relevance(relevance).layout.updatemenus) == 1
    heads, rows = figure.layout.updatemenus
    assert list(figure.layout.xaxis.categoryarray) == list(heads.buttons[0].args[0]["xaxis.categoryarray"]) == NAMES
    chosen = next(button for button in heads.buttons if button.label == f"heads by {CONCEPTS[5]}")
    values = relevance.sel(concept=CONCEPTS[5], head=list(chosen.args[0]["xaxis.categoryarray"])).values
    assert (np.diff(values) <= 0).all() and len(values) == 128
    assert list(rows.buttons[1].args[0]["yaxis.categoryarray"]) == alike
    assert list(figure.layout.yaxis.categoryarray) == CONCEPTS
    assert len(figure.to_json()) < 200_000


def test_top_heads_of_each_concept_on_the_grid(relevance):
    figure = figures.top_heads(relevance, 30, first=CONCEPTS[3])
    [menu] = figure.layout.updatemenus
    assert menu.active == 3 and len(menu.buttons) == len(CONCEPTS)
    assert [i for i, trace in enumerate(figure.data) if trace.visible] == [6, 7]
    for number in (3, 10):
        assert [i for i, shown in enumerate(menu.buttons[number].args[0]["visible"]) if shown] == [
            2 * number, 2 * number + 1,
        ]  # fmt: skip
        heat, frames = figure.data[2 * number : 2 * number + 2]
        framed = {(y, x) for y, x in zip(frames.y, frames.x, strict=True)}
        row = relevance.sel(concept=CONCEPTS[number]).values
        top = {(f"{m[0]} {m[1]}", m[2]) for m in (parts(NAMES[i]) for i in np.argsort(-row, kind="stable")[:30])}
        assert framed == top
        np.testing.assert_allclose(np.array(heat.z, float).ravel(), row, atol=1e-3)
    with pytest.raises(ValueError, match="'Nosuch' is not among"):
        figures.top_heads(relevance, first="Nosuch")


def parts(name: str) -> tuple[str, str, int]:
    block, layer, head = re.fullmatch(r"(\w+), layer: (\d+), head: (\d+)", name).groups()
    return block, layer, int(head)


def test_head_grid_puts_each_head_in_its_place():
    figure = figures.head_grid(SimpleNamespace(names=NAMES), np.arange(128.0), title="All", label="number")
    heat = figure.data[0]
    assert np.array(heat.z, float).tolist() == np.arange(128.0).reshape(16, 8).tolist()
    assert heat.text[6][3] == "mid, layer: 0, head: 3"
    assert heat.y[6] == "mid 0" and figure.layout.yaxis.autorange == "reversed"
    assert "All" in texts(figure)
    assert len(figure.to_json()) < 12_000


def test_head_grid_of_a_selection_and_of_uneven_layers():
    selection = np.isin(np.arange(128), [5, 127])
    z = np.array(figures.head_grid(NAMES, selection).data[0].z, float)
    assert np.argwhere(z == 1).tolist() == [[0, 5], [15, 7]]
    uneven = figures.head_grid([*NAMES[:8], "mid, layer: 0, head: 0"], np.ones(9))
    assert uneven.data[0].z[1] == (1.0, *[None] * 7) or list(uneven.data[0].z[1]) == [1.0, *[None] * 7]
    with pytest.raises(ValueError, match=r"shape \(3,\) for 128 heads"):
        figures.head_grid(NAMES, [1, 2, 3])


def test_overlay_grid_holds_a_labelled_picture_a_cell():
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (3, 64, 64, 3)).astype(np.uint8)
    heat = np.tile(np.linspace(0, 1, 64), (3, 64, 1))
    maps = {"all heads": heat, "top 30": xr.DataArray(heat, dims=("image", "y", "x"))}
    labels = ["bear, seed 0", "cat, seed 1", "cow, seed 2"]
    scores = {"top 30": [0.1, 0.2, 0.345]}
    figure = figures.overlay_grid(images, maps, truth=heat > 0.5, labels=labels, scores=scores, title="Title")
    assert len(figure.layout.images) == 3 * 4
    assert decode(figure.layout.images[0].source).shape == (256, 256, 3)
    assert all(text in texts(figure) for text in ["picture", "truth", "top 30", *labels, "IoU 0.34", "Title"])
    lefts = {round(image.x, 3) for image in figure.layout.images}
    assert len(lefts) == 4 and max(i.x + i.sizex for i in figure.layout.images) <= 1 + 1e-9
    with pytest.raises(ValueError, match="'top 30' has shape"):
        figures.overlay_grid(images, {"top 30": heat[:2]})


def test_overlay_grid_weighs_little():
    y, x = np.mgrid[:128, :128]
    smooth = np.stack([y, x, (x + y) // 2], axis=-1).astype(np.uint8)
    heat = np.exp(-((y - 60) ** 2 + (x - 70) ** 2) / 900)
    figure = figures.overlay_grid(np.stack([smooth] * 5), {"a": np.stack([heat] * 5), "b": np.stack([heat] * 5)})
    assert len(figure.to_json()) < 250_000


def test_rank_stability_shows_ranks_and_says_how_they_agree():
    scores = np.random.default_rng(0).random(128)
    same = figures.rank_stability(scores, scores, (1.0, 1.0), heads=NAMES, top=30)
    assert "ρ = 1.00; 30 of the top 30" in texts(same)
    assert {trace.name for trace in same.data} == {"down", "mid", "up"}
    [opposite] = figures.rank_stability(scores, -scores, (-1.0, 0.0)).data
    assert (np.add(opposite.x, opposite.y) == 129).all() and opposite.x[scores.argmax()] == 1
    assert "ρ = -1.00; 0 of the top 30" in texts(figures.rank_stability(scores, -scores, (-1.0, 0.0)))
    with pytest.raises(ValueError, match="two halves"):
        figures.rank_stability(scores, scores[:5], (1.0, 1.0))


def test_contact_sheet_holds_every_picture_with_its_label():
    images = np.stack([np.full((16, 16, 3), 30 * i, np.uint8) for i in range(7)])
    labels = [f"word <{i}>" for i in range(7)]
    page = figures.contact_sheet(images, labels, columns=5).data
    sources, captions = re.findall(r'src="([^"]+)"', page), re.findall(r"<figcaption[^>]*>(.*?)</figcaption>", page)
    assert [decode(source)[0, 0, 0] for source in sources] == pytest.approx(30 * np.arange(7), abs=3)
    assert captions == [f"word &lt;{i}&gt;" for i in range(7)]
    assert re.findall(r'alt="Picture: (.*?)"', page) == captions
    with pytest.raises(ValueError, match="6 labels for 7 images"):
        figures.contact_sheet(images, labels[:6])


def test_training_curve_is_the_loss_over_the_samples():
    figure = figures.training_curve([0, 1000.4, 2000], np.array([1.0, 0.12346, np.nan]), title="Loss")
    assert list(figure.data[0].x) == [0, 1000, 2000] and list(figure.data[0].y) == [1, 0.1235, None]
    assert figure.layout.yaxis.type == "log" and figure.layout.xaxis.type != "log"
    assert figure.layout.xaxis.title.text == "training samples seen" and "Loss" in texts(figure)


def test_similarity_matrix_shows_every_pair():
    names = ["Animals", "Color"]
    values = xr.DataArray([[1, 0.25], [-0.5, 1]], {"concept": names}, ("concept", "other_concept"))
    figure = figures.similarity_matrix(values, title="Near")
    assert [list(row) for row in figure.data[0].z] == [[1, 0.25], [-0.5, 1]]
    assert list(figure.data[0].x) == list(figure.data[0].y) == names and "Near" in texts(figure)
    with pytest.raises(ValueError, match="similarity"):
        figures.similarity_matrix(values.rename(concept="word"))


def test_every_figure_follows_the_page(relevance):
    made = [
        figures.relevance_matrix(relevance),
        figures.head_grid(NAMES, np.zeros(128)),
        figures.interval_lines({"a": (range(1, 6), np.zeros(5))}, x="k"),
        figures.rank_stability(np.arange(128), np.arange(128), (1.0, 1.0)),
        figures.overlay_grid(np.zeros((1, 8, 8, 3), np.uint8), {"a": np.zeros((1, 8, 8))}),
        figures.training_curve(np.arange(3), np.ones(3)),
        figures.similarity_matrix(xr.DataArray(np.eye(2), {"concept": ["a", "b"]}, ("concept", "other_concept"))),
    ]
    for figure in made:
        assert figure.layout.template.layout.paper_bgcolor == "rgba(0,0,0,0)"
        assert figure.layout.template.layout.font.color == INK
        assert not re.search(r'"bdata"', figure.to_json())  # typed arrays would hide the numbers in binary


def test_interval_lines_have_a_band_each_and_levels():
    curves = {"top": ([1, 10, 100], np.array([[0.5, 0.4, 0.6]] * 3)), "bare": ([1, 2], [0.1, 0.2])}
    figure = figures.interval_lines(
        curves, x="k", behind={"random": ([1, 2], np.ones((2, 3)))}, levels={"all": 0.3}, marks=[30], log=True
    )
    names = [trace.name for trace in figure.data if trace.name]
    assert names == ["random", "top", "bare", "all 0.300"] and len(figure.data) == 6
    assert figure.data[2].y[-1] == 0.6 or 0.6 in figure.data[2].y
    assert all(trace.mode == "lines" for trace in figure.data if trace.fill)  # no dots at the ends of a short band
    assert figure.layout.xaxis.type == "log" and list(figure.data[-1].x) == [1, 100]
    assert figure.layout.shapes[0].x0 == 30 and 10 ** figure.layout.annotations[0].x == pytest.approx(30)
    with pytest.raises(ValueError, match="'top' has 2 places"):
        figures.interval_lines({"top": ([1, 2], np.ones((3, 3)))}, x="k")


def test_interval_lines_over_every_number_of_heads():
    mean = np.linspace(0.4, 0.6, 128)
    band, ks = np.stack([mean, mean - 0.05, mean + 0.05], axis=1), range(1, 129)
    curves = {"most relevant": (ks, band), "random": (ks, mean - 0.1)}
    figure = figures.interval_lines(curves, x="number of heads k", marks=[20, 30, 40], levels={"centred disc": 0.48})
    lines = {trace.name: trace for trace in figure.data if trace.name}
    assert list(lines) == ["most relevant", "random", "centred disc 0.480"]
    assert lines["most relevant"].x[0] == 1 and lines["most relevant"].x[-1] == 128
    assert set(lines["centred disc 0.480"].y) == {0.48}
    band = next(trace for trace in figure.data if trace.fill == "toself")
    assert band.y[0] == pytest.approx(0.35) and band.y[-1] == pytest.approx(0.45)
    assert sorted(shape.x0 for shape in figure.layout.shapes) == [20, 30, 40]
    assert sorted((label.x, label.text) for label in figure.layout.annotations) == [(20, "20"), (30, "30"), (40, "40")]
    assert figure.layout.xaxis.title.text == "number of heads k"
    assert len(figure.to_json()) < 20_000
    with pytest.raises(ValueError, match=r"shape \(128, 2\)"):
        figures.interval_lines({"wrong": (ks, np.zeros((128, 2)))}, x="k")


def test_interval_dots_keep_the_order_and_mark():
    figure = figures.interval_dots({"a": (1, 0, 3), "b": (2, 1, 3)}, x="IoU", marked=["b"], levels={"all": 1.5})
    assert figure.layout.yaxis.categoryarray == ("b", "a")
    assert (
        figure.data[1].y == ("b",)
        and figure.data[0].error_x.array == (2,)
        and figure.data[0].error_x.arrayminus == (1,)
    )


def test_a_way_to_choose_heads_has_one_colour_in_every_figure():
    ways = ["all heads", "top 30 Animals", "least relevant", "finest grid", "consensus", "random", "oracle", "words"]
    dots = figures.interval_dots({way: (1, 0, 2) for way in ways}, x="gain")
    colour = {name: trace.marker.color for trace in dots.data for name in trace.y}
    assert colour["words"] == colour["random"] and len(set(colour.values())) == len(ways) - 1
    curves = {way: ([1, 2], [0.1, 0.2]) for way in ("words", "first 4 by HRV", "first 30 by HRV", "consensus x HRV")}
    lines = figures.interval_lines(curves, x="k", levels={"all heads": 0.3})
    drawn = {trace.name: trace.line for trace in lines.data}
    assert drawn["all heads 0.300"].color == colour["all heads"]
    assert drawn["first 4 by HRV"].color == drawn["first 30 by HRV"].color == colour["top 30 Animals"]
    assert (drawn["first 4 by HRV"].dash, drawn["first 30 by HRV"].dash) == ("solid", "dash")
    assert drawn["consensus x HRV"].color == colour["consensus"]
    assert drawn["words"].color not in {line.color for name, line in drawn.items() if name != "words"}


def test_interval_scatter_names_its_points():
    figure = figures.interval_scatter([0.1, 0.2], [[1, 0.5, 2], [0, -1, 1]], ["one", "two"], x="share", y="gain")
    assert figure.data[0].text == ("one", "two") and figure.data[0].error_y.array == (1, 1)


def test_score_surface_marks_its_highest_cell():
    mean = xr.DataArray([[0.1, 0.2], [0.9, 0.3]], {"k": [5, 9], "threshold": [0.3, 0.4]}, ("k", "threshold"))
    figure = figures.score_surface(mean, mean > 0.25)
    assert (figure.data[2].x, figure.data[2].y) == ((9,), (0.3,))
    assert np.asarray(figure.data[0].z)[0].tolist() == [0.1, 0.9]
    with pytest.raises(ValueError, match="dimensions"):
        figures.score_surface(mean.T)
