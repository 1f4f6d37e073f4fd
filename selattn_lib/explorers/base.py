"""Explorers: sliders and clicks that recompute the maps in the browser.

An explorer is a box of ipywidgets controls, each `jslink`ed to one anywidget view that holds every head's map as
bytes. So it is as alive in a published page, where no kernel runs, as it is in JupyterLab. The view's code lies in
`browser/`: `core.js` computes what `selattn_lib.aggregate` and `.metrics` compute, the other files draw.
"""

import html
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as widgets
import numpy as np
import xarray as xr
from IPython.display import HTML, display

from ..evaluation.scores import iou
from ..maps.head_maps import HeadMaps
from ..maps.overlay import colour_map, data_uri, overlay
from ..models.heads import head_table
from .items import Item, _items, pack_maps, unpacked
from .view import ExplorerView


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
    """What the explorers share: the checks, the view's data, and controls linked to the view."""

    kind = ""
    k = _Setting("k")
    threshold = _Setting("threshold")
    image = _Setting("image")
    word = _Setting("word")

    def __init__(self, results: Any, rankings: Any, heads: Any, k: int, threshold: float) -> None:
        super().__init__()
        scores = {}
        if hasattr(rankings, "ranking"):  # a HeadRelevance
            names = [str(name) for name in rankings.scores["concept"].values]
            heads = rankings.scores["head"].values.tolist() if heads is None else heads
            scores = {name: rankings.scores.sel(concept=name).values.round(3).tolist() for name in names}
            rankings = {name: rankings.ranking(name) for name in names}
        if not rankings:
            raise ValueError("rankings is empty; at least one concept is needed.")
        self.view = ExplorerView(kind=self.kind, scores=scores, palette=colour_map().tobytes())
        self.controls: dict[str, Any] = {
            "word": widgets.Dropdown(description="Word"),
            "image": widgets.Dropdown(description="Image"),
            "k": widgets.IntSlider(1, 1, 1, description="Heads k"),
            "threshold": widgets.FloatSlider(0.4, min=0.05, max=0.95, step=0.01, description="Threshold"),
        }
        self.show(results)
        n_heads = len(self.view.random_order)
        self.rankings = {str(name): _checked_order(name, order, n_heads) for name, order in rankings.items()}
        if not 1 <= k <= n_heads:
            raise ValueError(f"k={k!r} is outside 1 to {n_heads}, the number of heads in these maps.")
        if not 0.05 <= threshold <= 0.95:
            raise ValueError(f"threshold={threshold!r} is outside 0.05 to 0.95.")
        if heads is not None and len(head_table(heads)) != n_heads:
            raise ValueError(f"heads names {len(head_table(heads))} heads; these maps have {n_heads}.")
        self.view.concepts = list(self.rankings)
        self.view.rankings = {name: order.tolist() for name, order in self.rankings.items()}
        self.view.grid = _grid_rows(self.view.grids) if heads is None else _named_rows(heads)
        self.controls["k"].value, self.controls["threshold"].value = k, threshold

    def show(self, results: Any) -> None:
        """Show other pictures, with the same heads: `results` as the explorer was made with.

        Raises ValueError where sizes do not fit together.
        """
        every = [results] if isinstance(results, HeadMaps) else list(results)
        words, labels, items = _items([each.dataset for each in every])
        packed, grids, shifts = pack_maps([item.maps for item in items])
        n_heads = sum(len(grid["heads"]) for grid in grids)
        if hasattr(self, "rankings") and n_heads != len(self.view.random_order):
            raise ValueError(f"These maps have {n_heads} heads; this explorer is for {len(self.view.random_order)}.")
        height, width = items[0].picture.shape[:2]
        held = [maps.assign_attrs(height=height, width=width) for maps in unpacked(packed, grids, shifts)]
        self._items = [item._replace(maps=maps) for item, maps in zip(items, held, strict=True)]
        uris = [data_uri(item.picture) for item in items]
        pictures = list(dict.fromkeys(uris))
        entries: list[dict[str, Any]] = []
        masks: list[np.ndarray] = []
        for item, uri, shift in zip(items, uris, shifts, strict=True):
            number = pictures.index(uri)
            entries.append({"picture": number, "shift": shift, "mask": len(masks), "regions": list(item.truths)})
            masks += item.truths.values()
        view = self.view
        with view.hold_sync(), view.hold_trait_notifications():
            view.height, view.width = height, width
            view.words, view.labels, view.pictures = words, labels, pictures
            view.maps, view.grids = packed, grids
            view.truth = b"".join(np.packbits(mask.ravel(), bitorder="little").tobytes() for mask in masks)
            view.random_order = np.random.default_rng(0).permutation(n_heads).tolist()
            view.word = view.image = 0
            view.picked = None
            view.items = entries
        for name, options in (("word", words), ("image", list(zip(labels, range(len(labels)), strict=True)))):
            with self.controls[name].hold_sync():  # between the two, the browser would see no choice at all
                self.controls[name].options = options
                self.controls[name].index = 0
        self.controls["k"].max = n_heads
        self.controls["word"].layout.display = None if len(words) > 1 else "none"
        self.controls["image"].layout.display = None if len(labels) > 1 else "none"

    def __repr__(self) -> str:
        size = f"{len(self._items)} maps, {len(self.view.random_order)} heads, {len(self.rankings)} concepts"
        return f"{type(self).__name__}: {size}"

    def _ipython_display_(self) -> None:
        """The widget, and behind it what stands there where no script runs."""
        display(super()._repr_mimebundle_(), raw=True)
        display(HTML(f"<noscript>{self.static_html().data}</noscript>"))

    def _concept_menu(self, concept: str, description: str, more: Sequence[str] = ()) -> widgets.Dropdown:
        if concept not in self.rankings:
            raise ValueError(f"The concept {concept!r} has no ranking here; there are {list(self.rankings)}")
        return widgets.Dropdown(options=[*self.rankings, *more], value=concept, description=description)

    def _link(self) -> None:
        """Link every control to the view and put them together."""
        for name, control in self.controls.items():
            setattr(self.view, name, getattr(control, _linked(control)))
            widgets.jslink((control, _linked(control)), (self.view, name))
        panel = widgets.GridBox(list(self.controls.values())).add_class("selattn-controls")
        self.children = (panel, self.view)
        self.add_class("selattn-explorer")

    @property
    def item(self) -> Item:
        """The word and picture now shown."""
        return self._items[self.controls["word"].index * len(self.view.labels) + self.image]

    @property
    def selection(self) -> dict[str, Any]:
        """The settings now shown, by name: word, image, k, threshold, and those of the explorer's own."""
        return {"word": self.word, "image": self.image, "k": self.k, "threshold": self.threshold}

    def _heat(self, heads: Any) -> xr.DataArray:
        return HeadMaps(self.item.maps).heatmap(0, heads)

    def _iou(self, heat: xr.DataArray) -> float | None:
        truth = next(iter(self.item.truths.values()), None)
        return None if truth is None else iou((heat > self.threshold).values, truth)

    def static_html(self) -> HTML:
        """The present state as pictures and numbers in plain HTML, for a page without scripts."""
        raise NotImplementedError

    def _static_html(self, sets: Mapping[str, Any]) -> HTML:
        """A strip of figures: the picture, and the map of each named set of heads with its numbers."""
        item = self.item
        outline = np.any(list(item.truths.values()), axis=0) if item.truths else None
        cells = [(overlay(item.picture, None, truth=outline), self.view.labels[self.image])]
        for name, heads in sets.items():
            heat = self._heat(heads)
            mask = heat.values > self.threshold
            scores = [f"IoU with {region} {iou(mask, truth):.3f}" for region, truth in item.truths.items()]
            text = ", ".join([name, *scores, f"{mask.mean():.0%} of the picture"])
            cells.append((overlay(item.picture, heat.values, threshold=self.threshold, truth=outline), text))
        figures = "".join(
            '<figure style="margin:0;flex:1 1 150px;max-width:256px">'
            f'<img src="{data_uri(pixels)}" alt="{html.escape(text)}" style="width:100%">'
            f"<figcaption>{html.escape(text)}</figcaption></figure>"
            for pixels, text in cells
        )
        word = f"“{self.word}”, " if self.word else ""
        truth = " Dashed: truth." if item.truths else ""
        caption = f"{word}threshold {self.threshold:.2f}. White line: edge of the mask.{truth}"
        return HTML(f'<div style="display:flex;flex-wrap:wrap;gap:10px">{figures}</div><p>{html.escape(caption)}</p>')


class _OneMap(_Explorer):
    """What the explorers of one choice of heads share: the map of these heads."""

    heads: Any  # the numbers of the chosen heads

    @property
    def selection(self) -> dict[str, Any]:
        return super().selection | {"heads": self.heads.tolist()}

    @property
    def heat(self) -> xr.DataArray:
        """(y, x) in [0, 1]: the average map of the chosen heads, zeros if there is none."""
        heads = self.heads
        return self._heat(heads) if len(heads) else self._heat("all") * 0

    @property
    def mask(self) -> xr.DataArray:
        """(y, x) boolean: where `heat` is above the threshold."""
        return self.heat > self.threshold

    @property
    def iou(self) -> float | None:
        """IoU of `mask` with the first true mask, None without one."""
        return self._iou(self.heat)


def _named_rows(heads: Any) -> list[dict[str, Any]]:
    rows = head_table(heads).groupby("row")
    return [{"label": f"{own['block'].iloc[0]} {own['layer'].iloc[0]}", "heads": own.index.tolist()} for _, own in rows]


def _grid_rows(grids: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Heads without names: a row a resolution."""
    return [{"label": f"{grid['height']} × {grid['width']}", "heads": list(grid["heads"])} for grid in grids]


def _checked_order(name: Any, order: Any, n_heads: int) -> np.ndarray:
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
