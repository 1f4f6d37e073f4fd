"""What heads are called, and where a name says that a head is. Needs no diffusers, which takes seconds to import."""

import re
from typing import Any

import pandas as pd

BLOCKS = ("down", "mid", "up", "cross", "joint", "double", "single")  # in the order in which heads are numbered
HEAD_NAME = re.compile(rf"({'|'.join(BLOCKS)}), layer: (\d+), head: (\d+)")


def head_table(heads: Any) -> pd.DataFrame:
    """Where heads are, as a table.

    Parameters
    ----------
    heads : sequence of str, or Heads
        Names such as "down, layer: 0, head: 3".

    Returns
    -------
    pandas.DataFrame
        One row a head: block, layer, head, name, and `row`, the number of the layer among all.

    Raises
    ------
    ValueError
        On a name of another form.

    Examples
    --------
    >>> head_table(["down, layer: 0, head: 3"])["head"].tolist()
    [3]
    """
    names = [str(name) for name in getattr(heads, "names", heads)]
    matches = [HEAD_NAME.fullmatch(name) for name in names]
    if wrong := [name for name, match in zip(names, matches, strict=True) if match is None]:
        raise ValueError(f"{wrong[0]!r} is no head's name; names such as 'down, layer: 0, head: 3' are expected.")
    table = pd.DataFrame([match.groups() for match in matches if match], columns=["block", "layer", "head"])
    table[["layer", "head"]] = table[["layer", "head"]].astype(int)
    table["name"] = names
    table["row"] = table.groupby(["block", "layer"], sort=False).ngroup()
    return table
