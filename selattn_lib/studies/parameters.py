"""Parameters as papermill and the command line hand them over: read, and checked before anything is computed."""

import ast
from typing import Any

from ..models.heads import cross_attention_heads
from ..models.pipelines import unet_layout


def check_selection(heads: Any, thresholds: Any, model: str) -> tuple[Any, list[float]]:
    """(heads, thresholds) as they will be used; papermill's `-p thresholds "[0.3]"` arrives as text, which is read.

    Raises ValueError unless `heads`, one number or a list of them, are whole numbers from 1 to the number of heads of
    the model, and every threshold lies strictly between 0 and 1.
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
