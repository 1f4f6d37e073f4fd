"""Parameters as papermill and the command line hand them over: read, and checked before anything is computed."""

import ast
from typing import Any

from ..models.heads import cross_attention_heads
from ..models.pipelines import unet_layout


def check_selection(heads: Any, thresholds: Any, model: str) -> tuple[Any, list[float]]:
    """Numbers of heads and thresholds as they will be used.

    Parameters
    ----------
    heads : int, list of int or str
        Numbers of heads to average, from 1 to the model's number of heads; papermill's `-p heads "[20, 30]"` arrives as
        text, which is read.
    thresholds : float, list of float or str
        Each strictly between 0 and 1.
    model : str
        As for `load_pipeline`.

    Returns
    -------
    (int or list of int, list of float)

    Raises
    ------
    ValueError
        On anything else, naming what was expected.

    Examples
    --------
    >>> check_selection(30, "[0.3, 0.4]", "sd14")
    (30, [0.3, 0.4])
    """
    heads, thresholds = read_literal(heads), read_literal(thresholds)
    n_heads = len(cross_attention_heads(unet_layout(model)))
    for count in heads if isinstance(heads, list) and heads else [heads]:
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= n_heads:
            raise ValueError(f"heads={heads!r}: expected whole numbers from 1 to {n_heads}, the heads of {model}")
    values = thresholds if isinstance(thresholds, list | tuple) else [thresholds]
    if not values or not all(isinstance(t, int | float) and 0 < t < 1 for t in values):
        raise ValueError(f"thresholds={thresholds!r}: expected numbers between 0 and 1, such as [0.3, 0.4, 0.5]")
    return heads, list(values)


def read_literal(value: Any) -> Any:
    """A Python literal for the text of one, anything else as it is."""
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        return value
