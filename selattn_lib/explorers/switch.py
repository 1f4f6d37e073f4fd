"""Several explorers in the place of one, such as those of several models."""

from collections.abc import Mapping

import ipywidgets as widgets
from IPython.display import HTML, display

from .base import Explorer, linked_trait


class ExplorerSwitch(widgets.VBox):
    """A menu above one of several explorers; a setting that all of them have is the same in all.

    Parameters
    ----------
    explorers : mapping of str to Explorer
        What the menu calls each -> the explorer, such as one of each model. The first is shown first.
    description : str
        The menu's label.

    Raises
    ------
    ValueError
        Without an explorer.

    Examples
    --------
    >>> import numpy as np
    >>> from selattn_lib import AggregationExplorer, HeadMaps
    >>> maps = HeadMaps.from_grids([([0, 1], np.random.default_rng(0).random((1, 1, 2, 4, 4)))], ["bear"], (32, 32))
    >>> maps = maps.with_pictures(np.zeros((1, 32, 32, 3), np.uint8))
    >>> orders = {"emoji-sd": [1, 0], "emoji-control": [0, 1]}
    >>> each = {model: AggregationExplorer(maps, {"Animals": order}, k=1) for model, order in orders.items()}
    >>> switch = ExplorerSwitch(each)
    >>> switch.menu.value = "emoji-control"
    >>> switch.shown.heads
    array([0])
    """

    def __init__(self, explorers: Mapping[str, Explorer], description: str = "Model") -> None:
        if not explorers:
            raise ValueError("explorers is empty: expected at least one")
        super().__init__()
        self.explorers = dict(explorers)
        first, *others = self.explorers.values()
        self.menu = widgets.Dropdown(options=list(self.explorers), description=description)
        self.stack = widgets.Stack([first, *others], selected_index=0)
        widgets.jslink((self.menu, "index"), (self.stack, "selected_index"))
        for name, control in first.controls.items():
            for other in others:
                if name in other.controls and _alike(control, other.controls[name]):
                    trait = linked_trait(control)
                    widgets.jslink((control, trait), (other.controls[name], trait))
        panel = widgets.GridBox([self.menu]).add_class("selattn-controls")
        self.children = (panel, self.stack)

    @property
    def shown(self) -> Explorer:
        """The explorer that the menu names."""
        return self.explorers[self.menu.value]

    def _ipython_display_(self) -> None:
        """The widget, and behind it what stands there where no script runs."""
        display(super()._repr_mimebundle_(), raw=True)
        display(HTML(f"<noscript>{self.shown.static_html().data}</noscript>"))


def _alike(control: widgets.Widget, other: widgets.Widget) -> bool:
    """Whether two controls offer the same choices."""
    limits = [name for name in ("options", "min", "max") if hasattr(control, name)]
    return type(control) is type(other) and all(getattr(control, n) == getattr(other, n) for n in limits)
