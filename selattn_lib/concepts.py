"""Concepts and their words: the paper's 34, and those of the embedded world."""

from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

DATA = files("selattn_lib.data")


TABLES = ("paper", "emoji-sd")


def load_concepts(source: str | Path | Mapping[str, Any] = "paper") -> dict[str, list[str]]:
    """A table of concepts.

    Parameters
    ----------
    source : str, path or mapping
        "paper" (34 concepts, 10 words each, of the HRV paper), "emoji-sd" (those of the embedded world), a YAML file
        that maps each concept to a list of words, or such a mapping itself.

    Returns
    -------
    dict of str to list of str
        concept -> its words.

    Raises
    ------
    ValueError
        If there is no such table, or it does not map each concept to a list of words.

    Examples
    --------
    >>> concepts = load_concepts("paper")
    >>> len(concepts), concepts["Animals"][:3]
    (34, ['Dog', 'Cat', 'Elephant'])
    """
    name = str(source)  # papermill makes a number of a file's name that looks like one
    file: Any = DATA / f"concepts_{name.replace('-', '_')}.yaml" if source in TABLES else Path(name)
    if isinstance(source, Mapping):
        table: Any = source
    elif file.is_file():
        try:
            table = _parsed(read_text(file))
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{source} is not read ({reason}): expected plain YAML, without tags") from error
    else:
        raise ValueError(f"no concepts {str(source)!r}: expected {', '.join(TABLES)} or the path of a YAML file")
    if not isinstance(table, Mapping) or not table or not all(_is_words(words) for words in table.values()):
        raise ValueError(f"{source}: expected a mapping of each concept to a non-empty list of words")
    return {str(concept): list(words) for concept, words in table.items()}


@lru_cache(maxsize=4)
def _parsed(text: str) -> Any:
    """What is in a YAML text; slow, and asked for by every study."""
    return yaml.safe_load(text)


def _is_words(words: Any) -> bool:
    return isinstance(words, list | tuple) and len(words) > 0 and all(isinstance(word, str) for word in words)


def read_text(file: Any) -> str:
    """The text of a file in UTF-8 or, where its first bytes say so, in UTF-16, without the mark that Windows sets.

    Raises ValueError if it is in neither.
    """
    content = file.read_bytes()
    encoding = "utf-16" if content[:2] in (BOM_UTF16_BE, BOM_UTF16_LE) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not text in UTF-8: expected such, so save it with this encoding") from None


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
    if not (lines := [line.strip() for line in read_text(source).splitlines() if line.strip()]):
        raise ValueError(f"file {str(name_or_path)!r} has no lines: expected one entry a line")
    return lines


def check_concept(concept: str, concepts: Mapping[str, Sequence[str]]) -> str:
    """`concept` itself, if it is one of `concepts`; ValueError naming them all otherwise."""
    if concept not in [*concepts]:
        raise ValueError(
            f"no concept {concept!r}: expected one of {', '.join(concepts)}{did_you_mean(concept, concepts)}"
        )
    return concept


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: "; did you mean 'bear'?", or "" if none of `known` is near."""
    names = {name.lower(): name for name in known}
    near = get_close_matches(str(given).lower(), names, n=1)
    return f"; did you mean {names[near[0]]!r}?" if near else ""


BENCHMARK_ANIMALS = ("bear", "bird", "cat", "cow", "dog", "elephant", "sheep", "horse", "monkey", "zebra")


def benchmark_words(concept: str, concepts: Mapping[str, Sequence[str]]) -> list[str]:
    """Ten words to draw a concept by: the paper's animals (section 3.1) for *Animals*, else the first ten listed."""
    return list(BENCHMARK_ANIMALS) if concept == "Animals" else [w.lower() for w in concepts[concept][:10]]
