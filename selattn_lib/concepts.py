"""Concepts and their words: the paper's 34, and those of the embedded world."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

DATA = files("selattn_lib.data")


TABLES = ("paper", "emoji-sd")


def load_concepts(name_or_path: str | Path = "paper") -> dict[str, list[str]]:
    """concept -> its words. "paper" (34 concepts, 10 words each, of the HRV paper), "emoji-sd" (those of the
    embedded world), or a YAML file of the same form.

    Raises ValueError if there is no such table, or the file does not map each concept to a list of words.
    """
    if name_or_path in TABLES:
        text = (DATA / f"concepts_{str(name_or_path).replace('-', '_')}.yaml").read_text(encoding="utf-8")
    elif Path(name_or_path).is_file():
        text = Path(name_or_path).read_text(encoding="utf-8")
    else:
        raise ValueError(f"no concepts {str(name_or_path)!r}: expected {', '.join(TABLES)} or the path of a YAML file")
    table = yaml.safe_load(text)
    good = isinstance(table, Mapping) and all(
        isinstance(words, list) and words and all(isinstance(w, str) for w in words) for words in table.values()
    )
    if not good:
        raise ValueError(f"{name_or_path}: expected a mapping of each concept to a non-empty list of words")
    return dict(table)


def read_lines(name_or_path: str | Path) -> list[str]:
    """The lines of a text file in UTF-8, without empty ones; "imagenet": the 1,000 class names of ILSVRC 2012, which
    are words of WordNet, in the order of their numbers.

    Raises ValueError if there is no such file, or nothing in it.
    """
    source: Any = DATA / "imagenet_classes.txt" if name_or_path == "imagenet" else Path(name_or_path)
    if not source.is_file():
        raise ValueError(
            f"no file {str(name_or_path)!r}: expected imagenet, or the path of a text with one entry a line"
        )
    if not (lines := [line.strip() for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]):
        raise ValueError(f"file {str(name_or_path)!r} has no lines: expected one entry a line")
    return lines


def check_concept(concept: str, concepts: Mapping[str, list[str]]) -> str:
    """`concept` itself, if it is one of `concepts`; ValueError naming them all otherwise."""
    if concept not in concepts:
        raise ValueError(f"no concept {concept!r}: expected one of {', '.join(concepts)}")
    return concept


BENCHMARK_ANIMALS = ("bear", "bird", "cat", "cow", "dog", "elephant", "sheep", "horse", "monkey", "zebra")


def benchmark_words(concept: str, concepts: Mapping[str, list[str]]) -> list[str]:
    """Ten words to draw a concept by: the paper's animals (section 3.1) for *Animals*, else the first ten listed."""
    return list(BENCHMARK_ANIMALS) if concept == "Animals" else [w.lower() for w in concepts[concept][:10]]
