"""Which models can be captured, and what of them."""

import pandas as pd
import torch

from .families import FAMILIES, REFUSED
from .heads import cross_attention_heads


def supported_models() -> pd.DataFrame:
    """The models that `capture` knows, and those that it refuses by name.

    Returns
    -------
    pandas.DataFrame
        One row a model: `model`; `pipeline` and `network`, its classes in diffusers; `captured`, what of it is, or why
        it is refused; `heads`, how many at its published size (missing where that is in its files only); `maps`,
        whether there is a map for each head and word; `relevance`, whether heads can be scored (`score_heads`, Eq. 3);
        `selection`, how heads are chosen for a map: "by relevance", "by number" or "".

    Examples
    --------
    >>> table = supported_models().set_index("model")
    >>> int(table.heads["Stable Diffusion 1.x"]), table.selection["Z-Image"]
    (128, 'by number')
    """
    rows = []
    for family in FAMILIES:
        for name, model in family.models.items():
            heads = None
            if model.config is not None:
                with torch.device("meta"):
                    heads = len(cross_attention_heads(family.network(**model.config)))
            scored, network = not family.unscored, family.network.__name__
            selection = "by relevance" if scored else "by number"
            rows.append((name, model.pipeline, network, family.captured, heads, True, scored, selection))
    rows += [(network, "", network, f"refused: {why}", None, False, False, "") for network, why in REFUSED.items()]
    columns = ["model", "pipeline", "network", "captured", "heads", "maps", "relevance", "selection"]
    return pd.DataFrame(rows, columns=columns).astype({"heads": "Int64"})
