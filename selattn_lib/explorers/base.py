"""What the explorers share.

An explorer is a box of ipywidgets controls, each `jslink`ed to one anywidget view that holds every head's map as
bytes. So it is as alive in a published page, where no kernel runs, as it is in JupyterLab. The view's code lies in
`js/`: `core.js` computes what `selattn_lib.maps` and `selattn_lib.evaluation.scores` compute, the other files draw.
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
import xarray as xr
from IPython.display import HTML, display

from ..evaluation.scores import iou
from ..maps.consensus import by_agreement, head_features
from ..maps.head_maps import HeadMaps
from ..maps.head_sets import HeadSelection
from ..maps.overlay import data_uri, overlay
from ..maps.relevance import HeadRelevance
from ..models.heads import head_table
from .items import Item, items_of, pack_maps, unpacked
from .page import page_of
from .view import THRESHOLDS, ExplorerView

Maps = HeadMaps | Sequence[HeadMaps]
Rankings = HeadRelevance | Mapping[str, Any]  # the latter: concept -> all heads, the most relevant first


class Setting:
    """A control's value as an attribute. Setting it moves the control, and the view even without a browser."""

    def __init__(self, name: str) -> None:
        self.name = name  # of the control and of the view's trait

    def __get__(self, explorer: "Explorer", owner: type) -> Any:
        if explorer is None:
            return self
        value = explorer.controls[self.name].value
        return round(value, 9) if isinstance(value, float) else value  # sliders say 0.39999999999999997

    def __set__(self, explorer: "Explorer", value: Any) -> None:
        control = explorer.controls[self.name]
        if isinstance(control, widgets.Dropdown):
            choices = [option if isinstance(option, str) else option[1] for option in control.options]
            if value not in choices:
                raise ValueError(f"{control.description} {value!r} is not among the choices: {choices}")
        elif not control.min <= value <= control.max:
            raise ValueError(f"{control.description} {value!r} is outside {control.min} to {control.max}")
        control.value = value
        setattr(explorer.view, self.name, getattr(control, linked_trait(control)))


class Explorer(widgets.VBox):
    """What the explorers share: the checks, the view's data, and controls linked to the view."""

    kind = ""
    heads: Any  # the numbers of the chosen heads, by concept where there are several sets
    mask: Any  # (y, x) bool, where their map is above the threshold
    k = Setting("k")
    threshold = Setting("threshold")
    image = Setting("image")
    word = Setting("word")

    def __init__(self, maps: Maps, rankings: Rankings, heads: Any, k: int, threshold: float) -> None:
        super().__init__()
        scores = {}
        if isinstance(rankings, HeadRelevance):
            names = [str(name) for name in rankings.scores["concept"].values]
            heads = rankings.scores["head"].values.tolist() if heads is None else heads
            scores = {name: rankings.scores.sel(concept=name).values.round(3).tolist() for name in names}
            rankings = {name: rankings.ranking(name) for name in names}
        if not rankings:
            raise ValueError("rankings is empty: expected at least one concept")
        low, high = (hundredths / 100 for hundredths in THRESHOLDS)
        self.view = ExplorerView(kind=self.kind, scores=scores)
        self.controls: dict[str, Any] = {
            "word": widgets.Dropdown(description="Word"),
            "image": widgets.Dropdown(description="Image"),
            "k": widgets.IntSlider(1, 1, 1, description="Heads k"),
            "threshold": widgets.FloatSlider(0.4, min=low, max=high, step=0.01, description="Threshold"),
        }
        self.show(maps)
        n_heads = self.n_heads
        self.rankings = {str(name): _checked_order(name, order, n_heads) for name, order in rankings.items()}
        if not 1 <= k <= n_heads:
            raise ValueError(f"k={k!r} is outside 1 to {n_heads}, the number of heads in these maps")
        if not low <= threshold <= high:
            raise ValueError(f"threshold={threshold!r} is outside {low} to {high}")
        if heads is not None and len(head_table(heads)) != n_heads:
            raise ValueError(f"heads names {len(head_table(heads))} heads: these maps have {n_heads}")
        self.view.concepts = list(self.rankings)
        self.view.rankings = {name: order.tolist() for name, order in self.rankings.items()}
        self.view.grid = _rows_of_grids(self.view.grids) if heads is None else _rows_of_layers(heads)
        self.controls["k"].value, self.controls["threshold"].value = k, threshold

    def show(self, maps: Maps) -> None:
        """Show other pictures, with the same heads: `maps` as the explorer was made with.

        Raises ValueError where sizes do not fit together.
        """
        words, labels, items = items_of([maps] if isinstance(maps, HeadMaps) else maps)
        packed, grids, shifts = pack_maps([item.maps for item in items])
        n_heads = sum(len(grid["heads"]) for grid in grids)
        if hasattr(self, "rankings") and n_heads != self.n_heads:
            raise ValueError(f"these maps have {n_heads} heads; this explorer is for {self.n_heads}")
        size = items[0].maps.size
        as_shown = unpacked(packed, grids, shifts, size)
        self.items = [item._replace(maps=item_maps) for item, item_maps in zip(items, as_shown, strict=True)]
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
            view.height, view.width = size
            view.words, view.labels, view.pictures = words, labels, pictures
            view.maps, view.grids = packed, grids
            view.truth = b"".join(np.packbits(mask.ravel(), bitorder="little").tobytes() for mask in masks)
            view.random_order = np.random.default_rng(0).permutation(n_heads).tolist()
            of_words = (self.items[i : i + len(labels)] for i in range(0, len(self.items), len(labels)))
            view.consensus = [_by_consensus(of_word) for of_word in of_words]
            view.word = view.image = 0
            view.picked = None
            view.items = entries
        for name, options in (("word", words), ("image", list(zip(labels, range(len(labels)), strict=True)))):
            with self.controls[name].hold_sync():  # between the two, the browser would see no choice at all
                self.controls[name].options = options
                self.controls[name].index = 0
            self.controls[name].layout.display = None if len(options) > 1 else "none"
        self.controls["k"].max = n_heads

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {len(self.items)} maps, {self.n_heads} heads, {len(self.rankings)} concepts"

    def _ipython_display_(self) -> None:
        """The widget, and behind it what stands there where no script runs."""
        display(super()._repr_mimebundle_(), raw=True)
        display(HTML(f"<noscript>{self.static_html().data}</noscript>"))

    def concept_menu(self, concept: str, description: str, more: Sequence[str] = ()) -> widgets.Dropdown:
        """A menu of the concepts, and of `more` below them; ValueError if `concept` is not one."""
        if concept not in self.rankings:
            raise ValueError(f"the concept {concept!r} has no ranking here: there are {list(self.rankings)}")
        return widgets.Dropdown(options=[*self.rankings, *more], value=concept, description=description)

    def link_controls(self) -> None:
        """Link every control to the view and put them together."""
        for name, control in self.controls.items():
            setattr(self.view, name, getattr(control, linked_trait(control)))
            widgets.jslink((control, linked_trait(control)), (self.view, name))
        panel = widgets.GridBox(list(self.controls.values())).add_class("selattn-controls")
        self.children = (panel, self.view)
        self.add_class("selattn-explorer")

    @property
    def n_heads(self) -> int:
        """How many heads the maps have."""
        return len(self.view.random_order)

    @property
    def consensus(self) -> np.ndarray:
        """(head) all heads, those first whose maps of the word now shown agree most, over all its pictures."""
        return np.array(self.view.consensus[self.controls["word"].index])

    @property
    def item(self) -> Item:
        """The word and picture now shown."""
        return self.items[self.controls["word"].index * len(self.view.labels) + self.image]

    @property
    def selection(self) -> dict[str, Any]:
        """The settings now shown, by name: word, image, k, threshold, and those of the explorer's own."""
        return {"word": self.word, "image": self.image, "k": self.k, "threshold": self.threshold}

    def heat_of(self, heads: HeadSelection) -> xr.DataArray:
        """(y, x) in [0, 1]: the map of some heads for the word and picture now shown."""
        return self.item.maps.heatmap(0, heads)

    def static_html(self) -> HTML:
        """The present state as pictures and numbers in plain HTML, for a page without scripts."""
        raise NotImplementedError

    def save(self, path: str | Path, title: str = "", notes: Sequence[str] = ()) -> Path:
        """Write the explorer, as it is now set, as one HTML file that needs nothing else: no kernel and no network.

        Parameters
        ----------
        path : path
            Of the file, which is replaced.
        title : str, optional
            What stands above it; the word and picture now shown by default.
        notes : sequence of str
            Paragraphs below the title.

        Returns
        -------
        pathlib.Path
        """
        title = title or f"{self.word} {self.view.labels[self.image]}".strip()
        Path(path).write_text(page_of(self, title, notes), encoding="utf-8")
        return Path(path)

    def strip(self, sets: Mapping[str, HeadSelection]) -> HTML:
        """A strip of figures: the picture, and the map of each named set of heads with its numbers."""
        item = self.item
        outline = np.any(list(item.truths.values()), axis=0) if item.truths else None
        cells = [(overlay(item.picture, None, truth=outline), self.view.labels[self.image])]
        for name, heads in sets.items():
            heat = self.heat_of(heads).values
            mask = heat > self.threshold
            scores = [f"IoU with {region} {iou(mask, truth):.3f}" for region, truth in item.truths.items()]
            text = ", ".join([name, *scores, f"{mask.mean():.0%} of the picture"])
            cells.append((overlay(item.picture, heat, threshold=self.threshold, truth=outline), text))
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


class OneMapExplorer(Explorer):
    """What the explorers of one choice of heads share: the map of these heads."""

    @property
    def selection(self) -> dict[str, Any]:
        return super().selection | {"heads": self.heads.tolist()}

    @property
    def heat(self) -> xr.DataArray:
        """(y, x) in [0, 1]: the average map of the chosen heads, zeros if there is none."""
        heads = self.heads
        return self.heat_of(heads) if len(heads) else self.heat_of("all") * 0

    @property
    def mask(self) -> xr.DataArray:
        """(y, x) boolean: where `heat` is above the threshold."""
        return self.heat > self.threshold

    @property
    def iou(self) -> float | None:
        """IoU of `mask` with the first true mask, None without one."""
        truth = next(iter(self.item.truths.values()), None)
        return None if truth is None else iou(self.mask.values, truth)


def _by_consensus(items: Sequence[Item]) -> list[int]:
    """All heads in the order of `consensus`, of the maps of a word."""
    agreement = [head_features(item.maps).sel(feature="consensus").values[0] for item in items]
    return by_agreement(np.mean(agreement, 0)).tolist()


def _rows_of_layers(heads: Any) -> list[dict[str, Any]]:
    layers = head_table(heads).groupby(["block", "layer"], sort=False)
    return [{"label": f"{block} {layer}", "heads": rows.index.tolist()} for (block, layer), rows in layers]


def _rows_of_grids(grids: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Heads without names: a row a resolution."""
    return [{"label": f"{grid['height']} × {grid['width']}", "heads": list(grid["heads"])} for grid in grids]


def _checked_order(concept: Any, order: Any, n_heads: int) -> np.ndarray:
    order = np.asarray(order)
    if sorted(order.ravel().tolist()) != list(range(n_heads)):
        expected = f"each head number of these maps, 0 to {n_heads - 1}, once"
        raise ValueError(f"the ranking of {concept!r} has {order.size} entries: expected {expected}")
    return order


def linked_trait(control: Any) -> str:
    """The trait of a control that the browser knows: a Dropdown's `value` exists in Python only."""
    return "index" if isinstance(control, widgets.Dropdown) else "value"
