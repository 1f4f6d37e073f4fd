"""Explorers: sliders over head count and threshold that recompute the maps in the browser.

An explorer is a box of ipywidgets controls, each `jslink`ed to one anywidget view that holds every head's map as
bytes. So it is as alive in a published page, where no kernel runs, as it is in JupyterLab. The view's code is
`explorer.js`; it computes what `selattn_lib.aggregate` and `.metrics` compute.
"""

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import numpy as np
import traitlets
import xarray as xr
from IPython.display import HTML

from .aggregate import heatmap
from .figures import colour_map, data_uri, head_table, overlay
from .metrics import iou

METHODS = ("most relevant", "least relevant", "random", "all")  # in the order of `explorer.js`


class ExplorerView(anywidget.AnyWidget):
    """What the browser draws. Made by the explorers below; its traits are the view's whole input."""

    _esm = Path(__file__).with_name("explorer.js")
    _css = Path(__file__).with_name("explorer.css")

    kind = traitlets.Unicode().tag(sync=True)
    word = traitlets.Unicode().tag(sync=True)  # empty if each image has its own
    height = traitlets.Int().tag(sync=True)
    width = traitlets.Int().tag(sync=True)
    labels: Any = traitlets.List().tag(sync=True)
    pictures: Any = traitlets.List().tag(sync=True)  # data URIs
    regions: Any = traitlets.List().tag(sync=True)  # names of the true masks
    truth = traitlets.Bytes().tag(sync=True)  # (region, image, y * x / 8), one bit a pixel
    maps = traitlets.Bytes().tag(sync=True)  # see `pack_maps`
    grids: Any = traitlets.List().tag(sync=True)
    shifts: Any = traitlets.List().tag(sync=True)
    rankings = traitlets.Dict().tag(sync=True)  # concept -> heads, most relevant first
    random_order: Any = traitlets.List().tag(sync=True)
    grid: Any = traitlets.List().tag(sync=True)  # rows of the head grid
    palette = traitlets.Bytes().tag(sync=True)  # 256 RGB colours
    n_concepts = traitlets.Int(1).tag(sync=True)

    image = traitlets.Int(0).tag(sync=True)
    k = traitlets.Int(1).tag(sync=True)
    threshold = traitlets.Float(0.4).tag(sync=True)
    method = traitlets.Int(0).tag(sync=True)
    concept_0 = traitlets.Int(0).tag(sync=True)
    concept_1 = traitlets.Int(0).tag(sync=True)
    concept_2 = traitlets.Int(0).tag(sync=True)


class _Setting:
    """A control's value as an attribute. Setting it moves the control, and the view even without a browser."""

    def __init__(self, name: str) -> None:
        self.name = name  # of the control and of the view's trait

    def __get__(self, explorer: "_Explorer", owner: type) -> Any:
        if explorer is None:
            return self
        value = explorer.controls[self.name].value
        return round(value, 9) if isinstance(value, float) else value  # sliders say 0.39999999999999997

    def __set__(self, explorer: "_Explorer", value: Any) -> None:
        control = explorer.controls[self.name]
        if isinstance(control, widgets.Dropdown):
            choices = [option if isinstance(option, str) else option[1] for option in control.options]
            if value not in choices:
                raise ValueError(f"{control.description} {value!r} is not among the choices: {choices}")
        elif not control.min <= value <= control.max:
            raise ValueError(f"{control.description} {value!r} is outside {control.min} to {control.max}.")
        control.value = value
        setattr(explorer.view, self.name, getattr(control, _linked(control)))


class _Explorer(widgets.VBox):
    """What both explorers share: the checks, the view's data, and controls linked to the view."""

    k = _Setting("k")
    threshold = _Setting("threshold")
    image = _Setting("image")

    def __init__(
        self,
        kind: str,
        images: Any,
        maps: xr.Dataset,
        truths: Mapping[str, Any],
        rankings: Any,
        labels: Sequence[str] | None,
        heads: Any,
        word: int | str,
        k: int,
        threshold: float,
    ) -> None:
        super().__init__()
        images = np.asarray(images)
        size = (maps.sizes["image"], int(maps.attrs["height"]), int(maps.attrs["width"]))
        if images.dtype != np.uint8 or images.shape != (*size, 3):
            raise ValueError(
                f"images has dtype {images.dtype} and shape {images.shape}; uint8 of shape {(*size, 3)} "
                "(image, y, x, rgb) is expected for these maps."
            )
        for name, truth in truths.items():
            if np.shape(truth) != size:
                raise ValueError(f"The mask {name!r} has shape {np.shape(truth)}; {size} (image, y, x) is expected.")
        labels = [f"image {i}" for i in range(size[0])] if labels is None else [str(label) for label in labels]
        if len(labels) != size[0]:
            raise ValueError(f"There are {len(labels)} labels for {size[0]} images; one an image is needed.")
        packed, grids, shifts = pack_maps(maps, word)
        n_heads = sum(len(grid["heads"]) for grid in grids)
        if hasattr(rankings, "ranking"):  # a HeadRelevance
            heads = rankings.scores["head"].values.tolist() if heads is None else heads
            rankings = {str(name): rankings.ranking(name) for name in rankings.scores["concept"].values}
        self.rankings = {name: _checked_order(name, order, n_heads) for name, order in rankings.items()}
        if not self.rankings:
            raise ValueError("rankings is empty; at least one concept is needed.")
        if not 1 <= k <= n_heads:
            raise ValueError(f"k={k!r} is outside 1 to {n_heads}, the number of heads in these maps.")
        if not 0.05 <= threshold <= 0.95:
            raise ValueError(f"threshold={threshold!r} is outside 0.05 to 0.95.")
        if heads is not None and len(head_table(heads)) != n_heads:
            raise ValueError(f"heads names {len(head_table(heads))} heads; these maps have {n_heads}.")

        self.maps, self.images, self.truths, self.labels = maps, images, truths, labels
        self._word = word
        self.random_order = np.random.default_rng(0).permutation(n_heads)
        name = str(maps["word"].values[word]) if isinstance(word, int) else word
        self.view = ExplorerView(
            kind=kind,
            word="" if name == "subject" else name,
            height=size[1],
            width=size[2],
            labels=labels,
            pictures=[data_uri(image) for image in images],
            regions=list(truths),
            truth=b"".join(_pack_masks(truth) for truth in truths.values()),
            maps=packed,
            grids=grids,
            shifts=shifts,
            rankings={name: order.tolist() for name, order in self.rankings.items()},
            random_order=self.random_order.tolist(),
            grid=[] if heads is None else _grid_rows(heads),
            palette=colour_map().tobytes(),
        )
        self.controls: dict[str, Any] = {
            "k": widgets.IntSlider(k, 1, n_heads, description="Heads k"),
            "threshold": widgets.FloatSlider(
                threshold, min=0.05, max=0.95, step=0.01, description="Threshold", readout_format=".2f"
            ),
            "image": widgets.Dropdown(options=list(zip(labels, range(size[0]), strict=True)), description="Image"),
        }

    def __repr__(self) -> str:
        size = f"{len(self.labels)} images, {len(self.random_order)} heads, {len(self.rankings)} concepts"
        return f"{type(self).__name__}: {size}"

    def _concept_menu(self, concept: str, description: str) -> widgets.Dropdown:
        if concept not in self.rankings:
            raise ValueError(f"The concept {concept!r} has no ranking here; there are {list(self.rankings)}")
        return widgets.Dropdown(options=list(self.rankings), value=concept, description=description)

    def _show(self) -> None:
        """Link every control to the view and put them together."""
        for name, control in self.controls.items():
            setattr(self.view, name, getattr(control, _linked(control)))
            widgets.jslink((control, _linked(control)), (self.view, name))
        panel = widgets.GridBox(list(self.controls.values())).add_class("selattn-controls")
        self.children = (panel, self.view)
        self.add_class("selattn-explorer")

    def _order(self, concept: str, method: str, k: int) -> np.ndarray:
        if method == "all":
            return self.rankings[concept]
        orders = {
            "most relevant": self.rankings[concept],
            "least relevant": self.rankings[concept][::-1],
            "random": self.random_order,
        }
        return orders[method][:k]

    def _heat(self, heads: Any) -> xr.DataArray:
        return heatmap(self.maps, heads, image=self.image, word=self._word)

    def _still(self, sets: Mapping[str, Any]) -> HTML:
        """A picture strip with captions, in plain HTML: the picture, and the map of each named set of heads."""
        picture = self.images[self.image]
        outline = next((np.asarray(truth[self.image], dtype=bool) for truth in self.truths.values()), None)
        cells = [(overlay(picture, None, truth=outline), self.labels[self.image])]
        for name, heads in sets.items():
            heat = self._heat(heads)
            mask = heat.values > self.threshold
            scores = [
                f"IoU with {region} {iou(mask, np.asarray(truth[self.image], dtype=bool)):.3f}"
                for region, truth in self.truths.items()
            ]
            text = ", ".join([name, *scores, f"{mask.mean():.0%} of the picture"])
            cells.append((overlay(picture, heat.values, threshold=self.threshold, truth=outline), text))
        figures = "".join(
            '<figure style="margin:0;flex:1 1 150px;max-width:256px">'
            f'<img src="{data_uri(pixels)}" alt="{html.escape(text)}" style="width:100%">'
            f"<figcaption>{html.escape(text)}</figcaption></figure>"
            for pixels, text in cells
        )
        word = f"“{self.view.word}”, " if self.view.word else ""
        truth = " Dashed: truth." if self.truths else ""
        caption = f"{word}threshold {self.threshold:.2f}. White line: edge of the mask.{truth}"
        return HTML(f'<div style="display:flex;flex-wrap:wrap;gap:10px">{figures}</div><p>{html.escape(caption)}</p>')


class AggregationExplorer(_Explorer):
    """One image at a time: the map of k chosen heads beside that of all heads, with IoU for both (Eq. 2, 4, 5).

    `images` is uint8 (image, y, x, rgb); `maps` a head-maps dataset; `truth` boolean (image, y, x), or None;
    `rankings` a `HeadRelevance`, or concept -> heads, most relevant first; `labels` a title for each image;
    `heads` the heads' names (taken from a `HeadRelevance`), for the head grid. `k` heads and `threshold` in
    0.05 to 0.95 are what it starts with. Maps travel as half floats: exact for studies, which store those.

    In a live kernel `k`, `threshold`, `image` (number), `concept` and `method` can be read and set; `heads`
    (head numbers), `heat` (y, x), `mask` (y, x) and `iou` are those now shown. Raises ValueError where sizes
    do not fit together.
    """

    concept = _Setting("concept_0")
    method = _Setting("method")

    def __init__(
        self,
        images: Any,
        maps: xr.Dataset,
        truth: Any,
        rankings: Any,
        labels: Sequence[str] | None = None,
        *,
        heads: Any = None,
        concept: str | None = None,
        word: int | str = 0,
        k: int = 30,
        threshold: float = 0.4,
    ) -> None:
        truths = {} if truth is None else {"truth": truth}
        super().__init__("aggregation", images, maps, truths, rankings, labels, heads, word, k, threshold)
        first = next(iter(self.rankings)) if concept is None else concept
        self.controls["concept_0"] = self._concept_menu(first, "Concept")
        self.controls["method"] = widgets.Dropdown(options=METHODS, description="Method")
        self._show()

    @property
    def heads(self) -> np.ndarray:
        """Numbers of the chosen heads."""
        return self._order(self.concept, self.method, self.k)

    @property
    def heat(self) -> xr.DataArray:
        """(y, x) in [0, 1]: the map of the chosen heads."""
        return self._heat(self.heads)

    @property
    def mask(self) -> xr.DataArray:
        """(y, x) boolean: where `heat` is above the threshold."""
        return self.heat > self.threshold

    @property
    def iou(self) -> float | None:
        """IoU of `mask` with the truth, None without one."""
        truth = self.truths.get("truth")
        return None if truth is None else iou(self.mask, np.asarray(truth[self.image], dtype=bool))

    def still(self) -> HTML:
        """The present state as pictures and numbers in plain HTML, for a page without scripts."""
        which = {"all": "all heads", "random": f"{self.k} random heads"}
        name = which.get(self.method, f"{self.k} heads {self.method} to {self.concept}")
        return self._still({name: self.heads, "all heads (DAAM)": "all"})


class DiagnosisExplorer(_Explorer):
    """One word, two or three concepts: where the heads of each concept see the word, beside all heads.

    Arguments as for `AggregationExplorer`. `concepts` are those it starts with; `truths` may name true masks,
    such as {"animal": (image, y, x), "device": (image, y, x)}, to print each map's IoU with each.

    In a live kernel `k`, `threshold`, `image` and `concepts` can be read; `heads`, `heat` and `mask` are
    dictionaries, concept -> what is now shown.
    """

    def __init__(
        self,
        images: Any,
        maps: xr.Dataset,
        rankings: Any,
        labels: Sequence[str] | None = None,
        *,
        concepts: Sequence[str] = ("Animals", "Electronics"),
        truths: Mapping[str, Any] | None = None,
        heads: Any = None,
        word: int | str = 0,
        k: int = 30,
        threshold: float = 0.4,
    ) -> None:
        if not 2 <= len(concepts) <= 3:
            raise ValueError(f"concepts={list(concepts)!r} must be two or three concepts.")
        super().__init__("diagnosis", images, maps, truths or {}, rankings, labels, heads, word, k, threshold)
        for i, concept in enumerate(concepts):
            self.controls[f"concept_{i}"] = self._concept_menu(concept, f"Concept {i + 1}")
        self.view.n_concepts = len(concepts)
        self._show()

    @property
    def concepts(self) -> list[str]:
        """The concepts now compared."""
        return [self.controls[f"concept_{i}"].value for i in range(self.view.n_concepts)]

    @property
    def heads(self) -> dict[str, np.ndarray]:
        """Concept -> numbers of its k most relevant heads."""
        return {concept: self.rankings[concept][: self.k] for concept in self.concepts}

    @property
    def heat(self) -> dict[str, xr.DataArray]:
        """Concept -> map (y, x) in [0, 1] of its heads."""
        return {concept: self._heat(heads) for concept, heads in self.heads.items()}

    @property
    def mask(self) -> dict[str, xr.DataArray]:
        """Concept -> boolean (y, x): where its map is above the threshold."""
        return {concept: heat > self.threshold for concept, heat in self.heat.items()}

    def still(self) -> HTML:
        """The present state as pictures and numbers in plain HTML, for a page without scripts."""
        sets: dict[str, Any] = {f"{self.k} heads for {concept}": heads for concept, heads in self.heads.items()}
        return self._still({**sets, "all heads (DAAM)": "all"})


def pack_maps(maps: xr.Dataset, word: int | str = 0) -> tuple[bytes, list[dict[str, Any]], list[int]]:
    """A head-maps dataset as bytes for the browser: (bytes, grids, shifts).

    The bytes are little-endian float16, image after image and in each grid after grid, (head, y, x). Image i is
    multiplied by 2**shifts[i] to use the range of float16 well: float16 input stays exact, and other values
    are off by at most 1 / 2048 of themselves. `grids` lists {"height", "width", "heads"}.

    Raises ValueError if there is no map, or a negative or infinite value, or not each head exactly once.
    """
    names = [str(name) for name in maps.data_vars if str(name).startswith("maps_")]
    if not names:
        raise ValueError(f"maps holds {list(maps.data_vars)} but no maps_HxW; a head-maps dataset is expected.")
    if isinstance(word, str):
        words = maps["word"].values.tolist()
        if word not in words:
            raise ValueError(f"The word {word!r} is not in these maps; they hold {words}")
        word = words.index(word)
    grids, flat = [], []
    for name in names:
        values = maps[name].isel(word=word).values.astype(np.float64)
        height, width = values.shape[-2:]
        numbers = maps[name.replace("maps_", "head_")].values.tolist()
        grids.append({"height": height, "width": width, "heads": numbers})
        flat.append(values.reshape(len(values), -1))
    listed = sorted(number for grid in grids for number in grid["heads"])
    if listed != list(range(len(listed))):
        raise ValueError(f"Each head number from 0 to {len(listed) - 1} is expected once; the maps have {listed}.")
    values = np.concatenate(flat, axis=1)
    if not (np.isfinite(values).all() and (values >= 0).all()):
        raise ValueError("maps holds negative or non-finite values; attention is a probability.")
    peaks = values.max(axis=1)
    shifts = [14 - math.floor(math.log2(peak)) if peak > 0 else 0 for peak in peaks.tolist()]
    scaled = values * np.exp2(np.array(shifts))[:, None]
    return scaled.astype("<f2").tobytes(), grids, shifts


def _pack_masks(masks: Any) -> bytes:
    """Masks (image, y, x) as one bit a pixel, each image starting on a byte."""
    masks = np.asarray(masks, dtype=bool)
    return np.packbits(masks.reshape(len(masks), -1), axis=1, bitorder="little").tobytes()


def _grid_rows(heads: Any) -> list[dict[str, Any]]:
    rows = head_table(heads).groupby("row")
    return [{"label": f"{own['place'].iloc[0]} {own['layer'].iloc[0]}", "heads": own.index.tolist()} for _, own in rows]


def _checked_order(name: str, order: Any, n_heads: int) -> np.ndarray:
    order = np.asarray(order)
    if sorted(order.ravel().tolist()) != list(range(n_heads)):
        raise ValueError(
            f"The ranking of {name!r} has {order.size} entries; each head number 0 to {n_heads - 1} of these maps "
            "is expected once."
        )
    return order


def _linked(control: Any) -> str:
    """The trait of a control that the browser knows: a Dropdown's `value` exists in Python only."""
    return "index" if isinstance(control, widgets.Dropdown) else "value"
