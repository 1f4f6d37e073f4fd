"""Parameters as papermill and the command line hand them over, read."""

import ast
from typing import Any

EXPECTED = {
    str: "texts, such as ['bear', 'cat']",
    int: "whole numbers, such as [20, 30]",
    float: "numbers, such as [0.3, 0.4]",
}


def read_list(name: str, value: Any, kind: type = str, *, least: int = 0, each: int = 0) -> list[Any]:
    """A parameter that is a list, in any form in which it may be given.

    Parameters
    ----------
    name : str
        Of the parameter, for the error.
    value
        A list or tuple, a single entry, or the text of one of these, as papermill's `-p` hands it over: Python, JSON,
        or just entries with commas between them. Empty texts and None are lists of nothing.
    kind : type
        Of the entries: str, int or float.
    least : int
        How many entries there have to be.
    each : int
        If not 0: each entry is itself a list of so many of that kind.

    Returns
    -------
    list

    Raises
    ------
    ValueError
        On anything else, naming what was expected.

    Examples
    --------
    >>> read_list("words", "bear, oak tree"), read_list("words", '["bear"]'), read_list("heads", "20, 30", int)
    (['bear', 'oak tree'], ['bear'], [20, 30])
    """
    given = read_literal(value)
    if isinstance(given, str):  # words without quotes
        given = [part.strip(" '\"") for part in given.strip().strip("[]()").split(",")]
        given = [part for part in given if part]
    entries = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
    if kind is not str and not each:
        entries = [read_literal(entry) for entry in entries]
    groups = entries if each else [entries]
    right = all(isinstance(group, list | tuple) and len(group) == (each or len(entries)) for group in groups)
    kinds = (int, float) if kind is float else kind
    right = right and all(isinstance(e, kinds) and not isinstance(e, bool) for group in groups for e in group)
    if not right or len(entries) < least:
        lists = f"lists of {each} " * bool(each)
        number = f"{least} or more " * (least > 1)
        raise ValueError(f"{name}={value!r}: expected {number}{lists}{EXPECTED[kind]}")
    return entries


def read_literal(value: Any) -> Any:
    """A Python literal for the text of one, anything else as it is."""
    try:
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (ValueError, SyntaxError):
        return value
