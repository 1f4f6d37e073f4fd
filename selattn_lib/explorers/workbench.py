"""Draw and explain: the explorers on a prompt of one's own, in a live kernel."""

from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
from PIL import Image

from ..attention.capture import capture
from ..maps.head_maps import HeadMaps
from ..maps.relevance import SHIPPED, HeadRelevance, load_hrv
from ..models.pipelines import EMBEDDED, is_embedded, load_pipeline
from ..models.segmenters import load_segmenter
from ..studies.base import guidance_of
from .aggregation import AggregationExplorer
from .base import Explorer
from .diagnosis import DiagnosisExplorer
from .heads import HeadExplorer


class Workbench(widgets.VBox):
    """A prompt, a word of it and a seed; a button that draws; and the three explorers, which then show the picture.

    `draw()` does what the button does. `maps` are those of the last picture; `explorer` is the explorer now looked at,
    whose `selection`, `heads` and `mask` are also the workbench's own.

    Parameters
    ----------
    pipe : str or DiffusionPipeline
        A pipeline, or a name for `load_pipeline`. In the embedded world its segmenter gives each word's true mask,
        where it knows the word.
    relevance : HeadRelevance, optional
        Of the pipeline's heads; by default the shipped one of "emoji-sd" or "emoji-control".
    prompt : str
        What to draw.
    words : str or sequence of str
        Parts of the prompt; in one string, parted by commas.
    seed, steps : int
        Of the generation.
    guidance : float, optional
        The model's usual scale by default.

    Raises
    ------
    ValueError
        If no relevance is given and none is shipped for the model.

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
        if relevance is None and name not in SHIPPED:
            raise ValueError(f"relevance is needed for {name or type(pipe).__name__}: see relevance_for or load_hrv")
        self.relevance = load_hrv(name) if relevance is None else relevance
        self.pipe = load_pipeline(pipe) if isinstance(pipe, str) else pipe
        self.guidance = guidance_of(name) if guidance is None else guidance
        self._segmenter = load_segmenter(EMBEDDED) if is_embedded(name) else None
        wide = {"layout": {"width": "auto"}}
        text = words if isinstance(words, str) else ", ".join(words)
        self.prompt = widgets.Text(prompt, description="Prompt", **wide)
        self.words = widgets.Text(text, description="Words", **wide)
        self.seed = widgets.IntText(seed, description="Seed", **wide)
        self.steps = widgets.BoundedIntText(steps, 1, 1000, description="Steps", **wide)
        self.button = widgets.Button(description="Draw and explain", button_style="primary")
        self.progress = widgets.IntProgress(0, 0, 1, **wide)
        self.message = widgets.Label()
        self.explorers: list[Explorer] = []
        self.maps: HeadMaps | None = None
        self.button.on_click(lambda button: self._draw_or_say_why_not())
        self.views = widgets.Tab()
        form = [self.prompt, self.words, self.seed, self.steps]
        panel = widgets.GridBox(form).add_class("selattn-controls")
        self.children = [panel, widgets.HBox([self.button, self.progress, self.message]), self.views]

    def draw(self) -> HeadMaps:
        """Generate the picture, show it in every explorer, and return its maps.

        Raises ValueError if a word is not in the prompt.
        """
        words = [word.strip() for word in self.words.value.split(",") if word.strip()]
        self.progress.value, self.progress.max = 0, self.steps.value

        def count(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
            self.progress.value = min(step + 1, self.progress.max)
            return tensors

        settings: dict[str, Any] = {"num_inference_steps": self.steps.value, "guidance_scale": self.guidance}
        settings |= {"generator": torch.Generator().manual_seed(self.seed.value), "callback_on_step_end": count}
        with capture(self.pipe, words) as captured:
            [image] = self.pipe(self.prompt.value, **settings).images
        truths = {f"truth_{word}": mask[None] for word in words if (mask := self._true_mask(image, word)) is not None}
        self.maps = captured.head_maps().with_pictures([image], **truths)
        self._show(self.maps)
        return self.maps

    def _true_mask(self, image: Image.Image, word: str) -> np.ndarray | None:
        if self._segmenter is None:
            return None
        try:
            return self._segmenter.detect([image], [word])[0].mask
        except ValueError:  # a word that the segmenter does not know
            return None

    def _show(self, maps: HeadMaps) -> None:
        if self.explorers:
            for explorer in self.explorers:
                explorer.show(maps)
            return
        concepts = [str(name) for name in self.relevance.scores["concept"].values]
        k = min(30, self.relevance.scores.sizes["head"])
        self.explorers = [
            AggregationExplorer(maps, self.relevance, k=k),
            HeadExplorer(maps, self.relevance, k=k),
            DiagnosisExplorer(maps, self.relevance, k=k, concepts=concepts[:2]),
        ]
        self.views.children = self.explorers
        self.views.titles = ["Aggregation", "Heads", "Diagnosis"]
        self.views.selected_index = 0

    def _draw_or_say_why_not(self) -> None:
        self.button.disabled, self.message.value = True, "drawing ..."
        try:
            self.draw()
            self.message.value = f"“{self.prompt.value}”, seed {self.seed.value}"
        except (ValueError, RuntimeError) as error:
            self.message.value = str(error)
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
    def mask(self) -> Any:
        """The open explorer's mask, or masks by concept."""
        return self.explorer.mask
