"""Which models can be captured, and what of them."""

from functools import cache

import pandas as pd
import torch

from .families import FAMILIES, REFUSED, Family, cross_attention_heads

DOES = ["maps", "per_head", "relevance", "selection", "video"]


def supported_models() -> pd.DataFrame:
    """The models that `capture` knows, and those that it refuses by name.

    Returns
    -------
    pandas.DataFrame
        One row a model: `model`; `pipeline` and `network`, its classes in diffusers; `captured`, what of it is, or why
        it is refused; `heads`, how many at its published size (missing where that is in its files only); `maps`,
        whether there are maps of words, and `per_head`, whether each head has one; `relevance`, whether heads can be
        scored (`score_heads`, Eq. 3); `selection`, how heads are chosen for a map: "by relevance", "by number" or "";
        `video`, whether maps are (frame, y, x).

    Examples
    --------
    >>> table = supported_models().set_index("model")
    >>> int(table.heads["Stable Diffusion 1.x"]), table.selection["Z-Image"]
    (128, 'by number')
    """
    rows = []
    for family in FAMILIES:
        for name, model in family.models.items():
            selection = "by number" if family.unscored else "by relevance"
            network = family.network.__name__
            does = True, True, not family.unscored, selection, family.video
            rows.append((name, model.pipeline, network, family.captured, _published_heads(family, name), *does))
    does_not = False, False, False, "", False
    rows += [(network, "", network, f"refused: {why}", None, *does_not) for network, why in REFUSED.items()]
    columns = ["model", "pipeline", "network", "captured", "heads", *DOES]
    return pd.DataFrame(rows, columns=columns).astype({"heads": "Int64"})


@cache
def _published_heads(family: Family, name: str) -> int | None:
    """How many heads a model has at its published size: laid out once, which takes a second for the largest."""
    config = family.models[name].config
    if config is None:
        return None
    with torch.device("meta"):
        return len(cross_attention_heads(family.network(**config)))
