"""All parameters of a chapter, checked in its first cell, before anything is computed."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..concepts import benchmark_words, check_concept, read_lines
from ..emoji.art import glyphs
from ..maps.relevance import load_hrv
from ..models.families import cross_attention_heads
from ..models.pipelines import CONTROL, EMBEDDED, network_layout
from .base import concepts_of
from .generated import DiagnosisStudy, Study
from .noised import MaskedStudy
from .parameters import read_list
from .relevance import relevance_for

COUNTS = {  # whole numbers -> the least that makes sense
    "batch": 1, "draws": 1, "example_seeds": 1, "fast_seeds": 1, "fast_steps": 1, "diagnosis_seeds": 1,
    "hrv_images": 2, "hrv_steps": 1, "mice": 1, "mouse_seeds": 1, "scenes": 1, "seed": 0, "seeds": 1, "steps": 1,
    "window_seeds": 1, "windows": 1, "word_seeds": 1, "word_step": 1, "words_each": 2,
}  # fmt: skip
CHECKED = {
    *COUNTS,
    *"model models heads threshold thresholds hrv hrv_texts start_token published doses learnt guidance dtype".split(),
    *"concept other concepts concept_file words examples word prompt cases looked_for".split(),
    *"segmenter masks pictures scale tokens".split(),
}


def check_parameters(given: Mapping[str, Any], *, several: bool = False, objects: bool = True) -> None:
    """Refuse, in one sentence and before anything is computed, what a chapter cannot be run with.

    Parameters
    ----------
    given : mapping
        Name -> value of a chapter's parameters; what else is in it, as in `globals()`, is left aside.
    several : bool
        Whether there may be several numbers of heads.
    objects : bool
        Whether the concepts are of objects, which are drawn and of which a mask is needed.

    Returns
    -------
    None

    Raises
    ------
    ValueError, OSError
        On a model, a concept, a word, a list, a number or a file that is none, naming what was expected.

    Examples
    --------
    >>> check_parameters({"model": "emoji-sd", "concept": "Animals", "heads": 30})
    >>> check_parameters({"model": "emoji-sd", "concept": "Size"})
    Traceback (most recent call last):
    ValueError: concept 'Size' is of no objects that the segmenter emoji-sd knows: expected one of Animals, Plants, ...
    """
    given = {name: value for name, value in given.items() if name in CHECKED}
    several_words = {"scenes": 2} if "models" in given else {}  # rules are learnt on one half, and scored on the other
    for name, least in (COUNTS | several_words).items():
        value = given.get(name, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value!r}: expected a whole number, {least} or more")
    for name in ("scale", "start_token"):
        if not isinstance(given.get(name, 0), int | float):
            raise ValueError(f"{name}={given[name]!r}: expected {'a number' if name == 'scale' else 'True or False'}")
    if given.get("tokens", "all") not in ("all", "words"):
        raise ValueError(f"tokens={given['tokens']!r}: expected all or words")
    for name, read in (("hrv_texts", read_lines), ("published", load_hrv)):
        if given.get(name):
            read(str(given[name]))
    for name, kind in (("doses", float), ("learnt", int)):
        read_list(name, given.get(name), kind)
    models = read_list("models", given["models"], least=1) if "models" in given else [given.get("model", CONTROL)]
    for model in models:
        _check_for(str(model), given, several, objects)


def _check_for(model: str, given: dict[str, Any], several: bool, objects: bool) -> None:
    """What depends on the model."""
    thresholds = given.get("thresholds", [given.get("threshold", 0.5)])
    check_selection(given.get("heads", 1), thresholds, model, several=several)
    if given.get("hrv"):
        relevance_for(model, given["hrv"])
    asked = given.get("concepts")  # a file, or where there is a `concept_file` a list of them
    source = given.get("concept_file", asked) or ""
    concepts, lists = concepts_of(model, source), "concept_file" in given
    names = read_list("concepts", asked, least=2 if asked else 0) if lists else []
    names += [given[name] for name in ("concept", "other") if name in given]
    shared = ("seeds", "steps", "guidance", "dtype", "batch", "segmenter")
    fields: dict[str, Any] = {name: given[name] for name in shared if name in given} | {"concepts": source}
    words: Any = read_list("words", given.get("words")) or read_list("examples", given.get("examples"))
    cases = read_list("cases", given.get("cases"), each=4)
    if "prompt" in given and given["word"].lower() not in given["prompt"].lower():
        raise ValueError(f"word={given['word']!r} is not in the prompt {given['prompt']!r}: expected one of its words")
    for name in names:
        check_concept(name, concepts)
    if "looked_for" in given:
        cases = [[given["word"], given["prompt"], *names]]
    for word, prompt, *meanings in cases:
        case = {"word": word, "prompt": prompt, "meanings": meanings, "looked_for": given.get("looked_for", ())}
        DiagnosisStudy(model=model, **case, **fields).check_phrases()
    if "cases" in given or cases:
        return
    study = Study(model=model, words=words, **{"concept": names[0]} if names else {}, **fields)
    if study.segmenter == EMBEDDED and objects:
        for name in names if not words else names[1:]:
            _check_objects(name, concepts)
    if words or study.segmenter != EMBEDDED:
        study.check_phrases()
    if given.get("masks"):
        MaskedStudy(model=model, source=given["masks"], pictures=given.get("pictures", ""), words=study.words)


def _check_objects(concept: str, concepts: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError, naming those that are, unless a concept is of objects of the embedded world."""
    if concept not in (known := object_concepts(concepts)):
        expected = f"expected one of {', '.join(known)}" if known else f"none of {', '.join(concepts)} is"
        raise ValueError(f"concept {concept!r} is of no objects that the segmenter {EMBEDDED} knows: {expected}")


def object_concepts(concepts: Mapping[str, Sequence[str]]) -> list[str]:
    """The concepts of objects of the embedded world, which can be composed, drawn and segmented.

    Parameters
    ----------
    concepts : mapping
        concept -> its words.

    Returns
    -------
    list of str
        Those whose words, the first ten, are all such objects.

    Examples
    --------
    >>> object_concepts({"Pets": ["dog", "cat"], "Size": ["tiny", "huge"]})
    ['Pets']
    """
    known = {word for words in glyphs().values() for word in words}
    return [name for name in concepts if known.issuperset(benchmark_words(name, concepts))]


def check_selection(heads: Any, thresholds: Any, model: str, *, several: bool = False) -> tuple[Any, list[float]]:
    """Numbers of heads and thresholds as they will be used.

    Parameters
    ----------
    heads : int, list of int or str
        How many heads to average, from 1 to the model's number of heads; as for `read_list`.
    thresholds : float, list of float or str
        Each strictly between 0 and 1; as for `read_list`.
    model : str
        As for `load_pipeline`.
    several : bool
        Whether there may be several numbers of heads.

    Returns
    -------
    (int, list of float), or with `several` (list of int, list of float)

    Raises
    ------
    ValueError
        On anything else, naming what was expected.

    Examples
    --------
    >>> check_selection(30, "[0.3, 0.4]", "sd14")
    (30, [0.3, 0.4])
    >>> check_selection("20, 30", 0.4, "sd14", several=True)
    ([20, 30], [0.4])
    """
    counts, values = read_list("heads", heads, int, least=1), read_list("thresholds", thresholds, float, least=1)
    n_heads = len(cross_attention_heads(network_layout(model)))
    if not all(1 <= count <= n_heads for count in counts):
        raise ValueError(f"heads={heads!r}: expected whole numbers from 1 to {n_heads}, the heads of {model}")
    if len(counts) > 1 and not several:
        raise ValueError(f"heads={heads!r}: expected one number of heads here, such as {counts[0]}")
    if not all(0 < value < 1 for value in values):
        raise ValueError(f"thresholds={thresholds!r}: expected numbers between 0 and 1, such as [0.3, 0.4, 0.5]")
    return counts if several else counts[0], values
