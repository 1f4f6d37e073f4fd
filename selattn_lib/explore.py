"""Explorers: sliders and clicks that recompute the maps in the browser.

An explorer is a box of ipywidgets controls, each `jslink`ed to one anywidget view that holds every head's map as
bytes. So it is as alive in a published page, where no kernel runs, as it is in JupyterLab. The view's code lies in
`browser/`: `core.js` computes what `selattn_lib.aggregate` and `.metrics` compute, the other files draw.
"""

import html
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anywidget
import ipywidgets as widgets
import numpy as np
import traitlets
import xarray as xr
from IPython.display import HTML, display

from .aggregate import heatmap
from .figures import colour_map, data_uri, head_table, overlay
from .metrics import iou

METHODS = ("top k", "bottom k", "random k", "all heads")  # in the order of `core.js`
ATTENTION = "attention on "  # how a head explorer's menu names a ranking by what is seen
BROWSER = Path(__file__).with_name("browser")
SCRIPTS = ("core", "parts", "aggregation", "heads", "diagnosis", "view")  # joined in this order to one ES module


def script() -> str:
    """The ES module that runs in the browser."""
    return "\n".join((BROWSER / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)


class ExplorerView(anywidget.AnyWidget):
    """What the browser draws. Made by the explorers below; its traits are the view's whole input."""

    _esm = script()
    _css = (BROWSER / "explorer.css").read_text(encoding="utf-8")

    kind = traitlets.Unicode().tag(sync=True)
    height = traitlets.Int().tag(sync=True)
    width = traitlets.Int().tag(sync=True)
    words: Any = traitlets.List().tag(sync=True)
    labels: Any = traitlets.List().tag(sync=True)  # of the images of each word
    items: Any = traitlets.List().tag(sync=True)  # word after word, its images: {picture, shift, mask, regions}
    pictures: Any = traitlets.List().tag(sync=True)  # data URIs
    truth = traitlets.Bytes().tag(sync=True)  # (mask, y * x / 8), one bit a pixel, from an item's `mask` on
    maps = traitlets.Bytes().tag(sync=True)  # see `pack_maps`
    grids: Any = traitlets.List().tag(sync=True)
    concepts: Any = traitlets.List().tag(sync=True)  # in the menus' order; a notebook's file does not keep a dict's
    rankings = traitlets.Dict().tag(sync=True)  # concept -> heads, most relevant first
    scores = traitlets.Dict().tag(sync=True)  # concept -> relevance (head); empty where only rankings are known
    random_order: Any = traitlets.List().tag(sync=True)
    grid: Any = traitlets.List().tag(sync=True)  # rows of the head grid
    palette = traitlets.Bytes().tag(sync=True)  # 256 RGB colours
    n_concepts = traitlets.Int(1).tag(sync=True)
    meanings: Any = traitlets.List().tag(sync=True)  # of each word, the numbers of its concepts

    word = traitlets.Int(0).tag(sync=True)
    image = traitlets.Int(0).tag(sync=True)
    k = traitlets.Int(1).tag(sync=True)
    threshold = traitlets.Float(0.4).tag(sync=True)
    method = traitlets.Int(0).tag(sync=True)
    concept_0 = traitlets.Int(0).tag(sync=True)
    concept_1 = traitlets.Int(0).tag(sync=True)
    concept_2 = traitlets.Int(0).tag(sync=True)
    picked: Any = traitlets.List(default_value=None, allow_none=True).tag(sync=True)  # heads clicked; None: ranked


class Item(NamedTuple):
    """One word in one picture: its maps (a dataset of one image and word, in the precision that the browser has),
    the `picture` (y, x, rgb), and the true masks (y, x) by name."""

    maps: xr.Dataset
    picture: np.ndarray
    truths: dict[str, np.ndarray]


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
        every = [results] if isinstance(results, xr.Dataset) else list(results)
        words, labels, items = _items(every)
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
        display(HTML(f"<noscript>{self.still().data}</noscript>"))

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
        return heatmap(self.item.maps, heads)

    def _iou(self, heat: xr.DataArray) -> float | None:
        truth = next(iter(self.item.truths.values()), None)
        return None if truth is None else iou((heat > self.threshold).values, truth)

    def still(self) -> HTML:
        """The present state as pictures and numbers in plain HTML, for a page without scripts."""
        raise NotImplementedError

    def _still(self, sets: Mapping[str, Any]) -> HTML:
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


class AggregationExplorer(_OneMap):
    """One word in one picture: the map of k chosen heads beside that of all heads, with IoU for both (Eq. 2, 4, 5).

    `results` is a head-maps dataset with the pictures `image_rgb` (image, y, x, rgb) uint8 and, where known, the true
    masks `truth` (image, y, x) bool, as a study gives it (for maps of your own, see `with_pictures`), or several of
    them; there must be equally many pictures of each word. `rankings` is a `HeadRelevance`, or a mapping of a concept
    to its heads, most relevant first; `heads` the heads' names (taken from a `HeadRelevance`). `k` heads and
    `threshold` in 0.05 to 0.95 are what it starts with.

    The browser holds half-precision maps, with a scale for each map: exact for studies, which store such, and else off
    by at most 1 / 2048 of a value. What it prints are the library's own numbers on these maps.

    In a live kernel `word`, `image` (number), `k`, `threshold`, `concept` and `method` (of `METHODS`) can be read and
    set; `selection` is all of them, `heads` (head numbers), `heat` (y, x), `mask` (y, x) and `iou` what they give.
    Raises ValueError where sizes do not fit together.
    """

    kind = "aggregation"
    concept = _Setting("concept_0")
    method = _Setting("method")

    def __init__(
        self,
        results: Any,
        rankings: Any,
        *,
        concept: str | None = None,
        method: str = METHODS[0],
        heads: Any = None,
        k: int = 30,
        threshold: float = 0.4,
    ) -> None:
        super().__init__(results, rankings, heads, k, threshold)
        if method not in METHODS:
            raise ValueError(f"method={method!r} is none of {METHODS}.")
        first = next(iter(self.rankings)) if concept is None else concept
        self.controls["concept_0"] = self._concept_menu(first, "Concept")
        self.controls["method"] = widgets.Dropdown(options=METHODS, value=method, description="Method")
        self._link()

    @property
    def selection(self) -> dict[str, Any]:
        return super().selection | {"concept": self.concept, "method": self.method}

    @property
    def heads(self) -> np.ndarray:
        """Numbers of the chosen heads."""
        order = self.rankings[self.concept]
        orders = {"bottom k": order[::-1], "random k": np.array(self.view.random_order)}
        return order if self.method == "all heads" else orders.get(self.method, order)[: self.k]

    def still(self) -> HTML:
        which = {"all heads": "all heads", "random k": f"{self.k} random heads"}
        name = which.get(self.method, f"{self.method.split()[0]} {self.k} heads for {self.concept}")
        return self._still({name: self.heads, "all heads (DAAM)": "all"})


class HeadExplorer(_OneMap):
    """Every head's own map on the grid of heads; pick heads by clicking, by rank, layer or resolution, and see the
    average map of exactly those, and what each head is most relevant to.

    Arguments as for `AggregationExplorer`. Where the results hold true masks, `truth` or `truth_{name}`, the ranking
    may also be by the share of each head's attention that falls on one of them: see `attention_share`.

    In a live kernel `heads` (head numbers) can be read and set, `ranking` (a concept, or "attention on {name}"),
    `word`, `image`, `k` and `threshold` as well; `selection` is all of them, `heat`, `mask` and `iou` what they give.
    """

    kind = "heads"
    ranking = _Setting("concept_0")

    def __init__(
        self,
        results: Any,
        rankings: Any,
        *,
        concept: str | None = None,
        heads: Any = None,
        k: int = 30,
        threshold: float = 0.4,
    ) -> None:
        super().__init__(results, rankings, heads, k, threshold)
        first = next(iter(self.rankings)) if concept is None else concept
        regions = dict.fromkeys(name for item in self._items for name in item.truths)
        self.controls["concept_0"] = self._concept_menu(first, "Rank by", [ATTENTION + name for name in regions])
        self._link()
        for name in ("k", "concept_0"):
            self.controls[name].observe(self._rank_again, "value")

    def _rank_again(self, change: Any) -> None:
        self.view.picked = None

    @property
    def selection(self) -> dict[str, Any]:
        return super().selection | {"ranking": self.ranking}

    @property
    def heads(self) -> np.ndarray:
        """Numbers of the picked heads; of the k first in the ranking, if none were picked by hand."""
        return self.order[: self.k] if self.view.picked is None else np.array(self.view.picked, dtype=int)

    @heads.setter
    def heads(self, numbers: Sequence[int]) -> None:
        picked, n_heads = sorted({int(number) for number in numbers}), len(self.view.random_order)
        if wrong := [number for number in picked if not 0 <= number < n_heads]:
            raise ValueError(f"heads {wrong} do not exist; the maps have heads 0 to {n_heads - 1}.")
        self.view.picked = picked

    @property
    def order(self) -> np.ndarray:
        """(head) head numbers in the order of the chosen ranking, the first the most relevant."""
        if not self.ranking.startswith(ATTENTION):
            return self.rankings[self.ranking]
        truth = self.item.truths.get(self.ranking.removeprefix(ATTENTION))
        if truth is None:
            return np.arange(len(self.view.random_order))
        shares = [attention_share(self._heat([head]).values, truth) for head in range(len(self.view.random_order))]
        return np.argsort(-np.array(shares), kind="stable")

    def still(self) -> HTML:
        return self._still({f"{len(self.heads)} heads by {self.ranking}": self.heads, "all heads (DAAM)": "all"})


class DiagnosisExplorer(_Explorer):
    """One ambiguous word, two or three concepts: where the heads of each concept see the word, how their masks overlap
    and where the one map is stronger than the other, beside all heads.

    Arguments as for `AggregationExplorer`; `results` may be those of several words. `concepts` are those it starts
    with, or a mapping of each word to those to start with. True masks `truth_{name}`, such as a `DiagnosisStudy` has,
    are outlined, and each map's IoU with each printed.

    In a live kernel `word`, `image`, `k`, `threshold` and `concepts` can be read; `heads`, `heat` and `mask` are
    dictionaries, concept -> what is now shown.
    """

    kind = "diagnosis"

    def __init__(
        self,
        results: Any,
        rankings: Any,
        *,
        concepts: Sequence[str] | Mapping[str, Sequence[str]] = ("Animals", "Electronics"),
        heads: Any = None,
        k: int = 30,
        threshold: float = 0.4,
    ) -> None:
        super().__init__(results, rankings, heads, k, threshold)
        words = self.view.words
        by_word = concepts if isinstance(concepts, Mapping) else dict.fromkeys(words, concepts)
        if missing := [word for word in words if word not in by_word]:
            raise ValueError(f"concepts names none for {missing}; two or three for each word are needed.")
        lists = [list(by_word[word]) for word in words]
        if len({len(each) for each in lists}) != 1 or not 2 <= len(lists[0]) <= 3:
            raise ValueError(f"concepts={concepts!r} must be two or three concepts, as many for each word.")
        names = list(self.rankings)
        for i, concept in enumerate(lists[0]):
            self.controls[f"concept_{i}"] = self._concept_menu(concept, f"Concept {i + 1}")
        if unknown := {concept for each in lists for concept in each} - set(names):
            raise ValueError(f"The concepts {sorted(unknown)} have no ranking here; there are {names}")
        self.view.n_concepts = len(lists[0])
        self.view.meanings = [[names.index(concept) for concept in each] for each in lists]
        self._link()

    @property
    def selection(self) -> dict[str, Any]:
        return super().selection | {"concepts": self.concepts}

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
        sets: dict[str, Any] = {f"top {self.k} heads for {concept}": heads for concept, heads in self.heads.items()}
        return self._still({**sets, "all heads (DAAM)": "all"})


def with_pictures(maps: xr.Dataset, images: Sequence[Any], **truths: Any) -> xr.Dataset:
    """A head-maps dataset, as `Capture.dataset()` gives it, with its pictures, for the explorers.

    `images` are as many pictures, PIL images or uint8 arrays (y, x, rgb); `truths` are true masks (image, y, x) bool,
    named `truth` or `truth_{name}`; where a name is one of the words, each word has the mask of its name alone.
    """
    pictures = np.stack([np.asarray(image) for image in images])
    masks = {name: (("image", "y", "x"), np.asarray(mask)) for name, mask in truths.items()}
    return maps.assign({"image_rgb": (("image", "y", "x", "rgb"), pictures)} | masks)


def _items(results: Sequence[xr.Dataset]) -> tuple[list[str], list[str], list[Item]]:
    """The words, the labels of the images of each, and the items, word after word."""
    by_word: dict[str, list[Item]] = {}
    labels: dict[str, list[str]] = {}
    for each in results:
        if "image_rgb" not in each:
            raise ValueError("results has no pictures image_rgb; add them to maps of your own by with_pictures().")
        size = (int(each.attrs["height"]), int(each.attrs["width"]))
        if each["image_rgb"].dtype != np.uint8 or each["image_rgb"].shape[1:] != (*size, 3):
            raise ValueError(
                f"image_rgb has dtype {each['image_rgb'].dtype} and shape {each['image_rgb'].shape}; uint8 of "
                f"{('any', *size, 3)} (image, y, x, rgb) is expected for these maps."
            )
        named = {str(name): values for name, values in sorted(each.data_vars.items())}
        truths = {name: mask for name, mask in named.items() if re.match("truth(_|$)", name) and mask.ndim == 3}
        for name, mask in truths.items():
            if mask.shape[1:] != size:
                raise ValueError(f"The mask {name!r} has shape {mask.shape}; {('any', *size)} is expected.")
        native = [name for name in each.data_vars if str(name).startswith("maps_")]
        words = each["word"].values.tolist()
        subjects = each["subject"].values.tolist() if "subject" in each.coords else None
        for image in range(each.sizes["image"]):
            picture = each["image_rgb"][image].values
            masks = {name.removeprefix("truth_"): mask[image].values.astype(bool) for name, mask in truths.items()}
            for index, word in enumerate(words):
                label = subjects[image] if subjects and len(words) == 1 else "" if word == "subject" else word
                own = {"truth": masks[label]} if label in masks else {}
                truth = own if set(masks) & set(words) else masks
                maps = each[native].isel(image=[image], word=[index])
                by_word.setdefault(label, []).append(Item(maps, picture, truth))
                seed = f"seed {each['seed'].values[image]}" if "seed" in each.coords else ""
                labels.setdefault(label, []).append(seed)
    counts = {word: len(items) for word, items in by_word.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"There must be equally many pictures of each word, at least one; there are {counts}.")
    first, *rest = labels.values()
    if not all(first) or any(each != first for each in rest):
        first = [f"picture {i + 1}" for i in range(len(first))]
    return list(by_word), first, [item for items in by_word.values() for item in items]


def pack_maps(maps: Sequence[xr.Dataset]) -> tuple[bytes, list[dict[str, Any]], list[int]]:
    """Head maps, one dataset an item, of one image and word each, as bytes for the browser: (bytes, grids, shifts).

    The bytes are little-endian float16, item after item and in each grid after grid, (head, y, x). Item i is
    multiplied by 2**shifts[i] to use the range of float16 well: float16 input stays exact, and other values
    are off by at most 1 / 2048 of themselves. `grids` lists {"height", "width", "heads"}.

    Raises ValueError if there is no map, or a negative or infinite value, or not each head exactly once.
    """
    packed, shifts, common = [], [], None
    for each in maps:
        names = sorted((str(n) for n in each.data_vars if str(n).startswith("maps_")), key=lambda n: -each[n].size)
        if not names:
            raise ValueError(f"maps holds {list(each.data_vars)} but no maps_HxW; a head-maps dataset is expected.")
        grids, flat = [], []
        for name in names:
            one = each[name].isel(image=0, word=0)
            own = (one.mean("call") if "call" in one.dims else one).values.astype(np.float64)
            height, width = own.shape[-2:]
            numbers = each[name.replace("maps_", "head_")].values.tolist()
            grids.append({"height": height, "width": width, "heads": numbers})
            flat.append(own.ravel())
        listed = sorted(number for grid in grids for number in grid["heads"])
        if listed != list(range(len(listed))):
            raise ValueError(f"Each head number from 0 to {len(listed) - 1} is expected once; the maps have {listed}.")
        if common not in (None, grids):
            raise ValueError("The maps of the words come from models of different heads, or sizes of images.")
        common = grids
        values = np.concatenate(flat)
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise ValueError("maps holds negative or non-finite values; attention is a probability.")
        peak = float(values.max())
        shifts.append(14 - math.floor(math.log2(peak)) if peak > 0 else 0)
        packed.append((values * 2.0 ** shifts[-1]).astype("<f2").tobytes())
    return b"".join(packed), common or [], shifts


def unpacked(packed: bytes, grids: Sequence[Mapping[str, Any]], shifts: Sequence[int]) -> list[xr.Dataset]:
    """The maps that the browser makes of what `pack_maps` returned: float32 datasets of one image and word each."""
    rows = np.frombuffer(packed, "<f2").astype(np.float32).reshape(len(shifts), -1)
    found = []
    for row, shift in zip(rows, shifts, strict=True):
        data, coords, at = {}, {}, 0
        for grid in grids:
            height, width, numbers = grid["height"], grid["width"], grid["heads"]
            name, count = f"{height}x{width}", len(numbers) * height * width
            values = (row[at : at + count] * np.float32(2.0**-shift)).reshape(1, 1, len(numbers), height, width)
            data[f"maps_{name}"] = (("image", "word", f"head_{name}", f"y_{name}", f"x_{name}"), values)
            coords[f"head_{name}"] = numbers
            at += count
        found.append(xr.Dataset(data, coords))
    return found


def _named_rows(heads: Any) -> list[dict[str, Any]]:
    rows = head_table(heads).groupby("row")
    return [{"label": f"{own['place'].iloc[0]} {own['layer'].iloc[0]}", "heads": own.index.tolist()} for _, own in rows]


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


def attention_share(heat: np.ndarray, mask: np.ndarray) -> float:
    """How much of a heat map (y, x) falls on a mask (y, x), as `metrics.attention_on` counts it: its mean there over
    its mean in the picture; 1 if either is empty."""
    return float(heat[mask].mean() / heat.mean()) if mask.any() and heat.any() else 1.0
