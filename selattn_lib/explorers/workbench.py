"""Draw and explain: the explorers on a prompt of one's own, in a live kernel."""

import base64
import html
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ipywidgets as widgets
import xarray as xr

from ..maps.head_maps import HeadMaps
from ..maps.relevance import SHIPPED, HeadRelevance
from ..models.pipelines import CONTROL, EMBEDDED, HUB, check_draws_pictures, in_embedded_world, load_pipeline
from ..models.segmenters import Segmenter, load_segmenter
from ..studies.base import concepts_of, guidance_of
from ..studies.relevance import relevance_for
from .aggregation import AggregationExplorer
from .base import Explorer
from .diagnosis import DiagnosisExplorer
from .drawing import agreement_ranking, draw, save_pictures, usual_concepts
from .heads import HeadExplorer


class Workbench(widgets.VBox):
    """A prompt, a word of it and a seed; a button that draws; and the three explorers, which then show the picture.

    `draw()` does what the button does. `maps` are those of the last picture; `explorer` is the explorer now looked at,
    whose `selection`, `heads` and `mask` are also the workbench's own. `save(path)` does what *Save* offers.

    Parameters
    ----------
    pipe : str or DiffusionPipeline
        A pipeline, or a name for `load_pipeline`. In the embedded world its segmenter gives each word's true mask,
        where it knows the word, and a list below the form says which words the model knows.
    relevance : HeadRelevance, optional
        Of the pipeline's heads; by default the shipped one of "emoji-sd" or "emoji-control". Where none is known, heads
        are ranked by how much their maps agree with the mean map of all.
    prompt : str
        What to draw.
    words : str or sequence of str
        Parts of the prompt; in one string, parted by commas.
    seed, steps : int
        Of the generation.
    guidance : float, optional
        The model's usual scale by default.

    Examples
    --------
    >>> bench = Workbench("emoji-sd", prompt="a bear on the beach", words="bear", steps=2)
    >>> bench.draw()
    HeadMaps: 1 image of 128 x 128 pixels, words bear, 128 heads ...
    """

    def __init__(
        self,
        pipe: Any = EMBEDDED,
        relevance: HeadRelevance | None = None,
        *,
        prompt: str = "a bear on the beach",
        words: str | Sequence[str] = "bear",
        seed: int = 0,
        steps: int = 50,
        guidance: float | None = None,
    ) -> None:
        super().__init__()
        name = pipe if isinstance(pipe, str) else ""
        wide = {"layout": {"width": "auto"}}
        text = words if isinstance(words, str) else ", ".join(words)
        self.prompt = widgets.Text(prompt, description="Prompt", **wide)
        self.words = widgets.Text(text, description="Words", **wide)
        self.seed = widgets.IntText(seed, description="Seed", **wide)
        self.steps = widgets.BoundedIntText(steps, 1, 1000, description="Steps", **wide)
        models, own = (
            [EMBEDDED, CONTROL, *HUB],
            "a name, owner/model or a folder" if name else "the pipeline that was given",
        )
        self.model = widgets.Combobox(value=name, options=models, placeholder=own, description="Model", **wide)
        self.hrv = widgets.Text(placeholder="relevance: .npz or folder", description="HRV", **wide)
        self.button = widgets.Button(description="Draw and explain", button_style="primary")
        self.save_button = widgets.Button(
            description="Save", tooltip="Pictures, maps and masks as a zip", disabled=True
        )
        self.progress = widgets.IntProgress(0, 0, 1, **wide)
        self.message = widgets.HTML()
        self.known = widgets.HTML()
        self.explorers: list[Explorer] = []
        self.maps: HeadMaps | None = None
        self.pipe, self.relevance, self._guidance = pipe, relevance, guidance
        self._loaded = ("", "")
        self._segmenter: Segmenter | None = None
        self._load(relevance)
        self.button.on_click(lambda button: self._try(self._draw_and_say))
        self.save_button.on_click(lambda button: self._try(self._offer))
        self.views = widgets.Tab()
        form = [self.prompt, self.words, self.seed, self.steps, self.model, self.hrv]
        panel = widgets.GridBox(form).add_class("selattn-controls")
        row = widgets.HBox([self.button, self.save_button, self.progress])
        self.children = [panel, self.known, row, self.message, self.views]

    def _load(self, relevance: HeadRelevance | None = None) -> None:
        """The model and the head relevance that the form names, if they are others than before."""
        asked = model, hrv = self.model.value.strip(), self.hrv.value.strip()
        if asked == self._loaded:
            return
        if relevance is None and (hrv or model in SHIPPED):
            relevance = relevance_for(model, hrv or model)
        if model != self._loaded[0]:
            check_draws_pictures(model)
            self.pipe = load_pipeline(model)
        self.relevance, self._loaded, self.explorers = relevance, asked, []
        self._segmenter = load_segmenter(EMBEDDED) if in_embedded_world(model) else None
        rows = [f"<b>{concept}</b>: {', '.join(words)}" for concept, words in concepts_of(EMBEDDED).items()]
        listed = f"<details><summary>The words that {EMBEDDED} knows</summary>{'<br>'.join(rows)}</details>"
        self.known.value = listed if in_embedded_world(model) else ""

    @property
    def guidance(self) -> float | None:
        """The guidance scale that is drawn with; None for the pipeline's own."""
        usual = guidance_of(self._loaded[0]) if in_embedded_world(self._loaded[0]) else None
        return usual if self._guidance is None else self._guidance

    def draw(self) -> HeadMaps:
        """Generate the picture, show it in every explorer, and return its maps.

        Raises ValueError if a word is not in the prompt, and what `load_pipeline` raises on another model.
        """
        self._load()
        self.progress.value, self.progress.max = 0, self.steps.value
        self.maps = draw(
            self.pipe,
            self.prompt.value,
            self.words.value.split(","),
            [self.seed.value],
            steps=self.steps.value,
            guidance=self.guidance,
            segmenter=self._segmenter,
            on_step=lambda done: setattr(self.progress, "value", done),
        )
        self._show(self.maps)
        self.save_button.disabled = False
        return self.maps

    def _show(self, maps: HeadMaps) -> None:
        """The maps in every explorer, which are made anew where other words have other concepts."""
        if self.explorers and self.relevance is not None and self.explorers[0].view.words == maps.words:
            for explorer in self.explorers:
                explorer.show(maps)
            return
        open_tab = self.views.selected_index or 0
        rankings: Any = agreement_ranking(maps) if self.relevance is None else self.relevance
        names = list(rankings) if self.relevance is None else rankings.scores["concept"].values.tolist()
        concepts = usual_concepts(maps.words, self._loaded[0], names)
        settings: dict[str, Any] = {"k": min(30, maps.n_heads)}
        if self.explorers:
            settings = {"k": self.explorers[0].k, "threshold": self.explorers[0].threshold}
        self.explorers = [
            AggregationExplorer(maps, rankings, concept=concepts[0], **settings),
            HeadExplorer(maps, rankings, concept=concepts[0], **settings),
        ]
        if len(concepts) > 1:
            self.explorers.append(DiagnosisExplorer(maps, rankings, concepts=concepts[:2], **settings))
        self.views.children = self.explorers
        self.views.titles = ["Aggregation", "Heads", "Diagnosis"][: len(self.explorers)]
        self.views.selected_index = min(open_tab, len(self.explorers) - 1)

    def save(self, path: str | Path) -> Path:
        """Write the picture, and overlay, map and mask of every word, by all heads and by those of the open explorer,
        as a zip, with a page that shows that explorer without a kernel. Raises RuntimeError before anything is drawn.
        """
        explorer, maps = self.explorer, self.maps
        assert maps is not None  # or there would be no explorer
        heads = explorer.heads if isinstance(explorer.heads, dict) else {"chosen": explorer.heads}
        some = {name: numbers for name, numbers in heads.items() if len(numbers)}
        with TemporaryDirectory() as folder, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            save_pictures(Path(folder), maps, some, explorer.threshold)
            explorer.save(Path(folder) / "index.html", self.prompt.value)
            for file in sorted(Path(folder).iterdir()):
                archive.write(file, file.name)
        return Path(path)

    def _draw_and_say(self) -> None:
        self.message.value = "drawing ..."
        self.draw()
        self.message.value = html.escape(f"“{self.prompt.value}”, seed {self.seed.value}")

    def _offer(self) -> None:
        """The zip as a link, which the browser saves wherever the kernel runs."""
        with TemporaryDirectory() as folder:
            content = self.save(Path(folder) / "explained.zip").read_bytes()
        address = f"data:application/zip;base64,{base64.b64encode(content).decode()}"
        self.message.value = (
            f'<a download="explained.zip" href="{address}">explained.zip, {len(content) // 1024} kB</a>'
        )

    def _try(self, act: Any) -> None:
        """Do it, or say why not, in full."""
        self.button.disabled = True
        try:
            act()
        except (ValueError, RuntimeError, OSError, MemoryError) as error:
            self.message.value = f'<span style="white-space:normal">{html.escape(str(error))}</span>'
        finally:
            self.button.disabled = False

    @property
    def explorer(self) -> Explorer:
        """The explorer on the tab that is open; RuntimeError before anything is drawn."""
        if not self.explorers:
            raise RuntimeError("nothing is drawn yet: press the button, or call draw()")
        return self.explorers[self.views.selected_index or 0]

    @property
    def selection(self) -> dict[str, Any]:
        """The open explorer's settings."""
        return self.explorer.selection

    @property
    def heads(self) -> Any:
        """The open explorer's chosen heads."""
        return self.explorer.heads

    @property
    def mask(self) -> xr.DataArray:
        """(set, y, x) boolean: the open explorer's mask, of the set "chosen", or one of each concept."""
        mask = self.explorer.mask
        masks = mask if isinstance(mask, dict) else {"chosen": mask}
        return xr.concat(list(masks.values()), "set").assign_coords(set=list(masks))
