"""Pictures of one prompt with the maps of its words: what the workbench and `selattn explain` show."""

import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from inspect import signature
from typing import Any

import numpy as np
import torch

from ..attention.capture import capture
from ..maps.head_maps import HeadMaps
from ..models.segmenters import MEANINGS, Segmenter
from ..studies.base import concepts_of

SPECIAL = "<|"  # how the names of special tokens begin, which stand in no prompt


def suggestion(name: str, known: Iterable[str]) -> str:
    """Of the names that there are, the likeliest to be meant, and all of them; for the end of an error."""
    names = {each.lower(): each for each in known}
    meant = [names[each] for each in get_close_matches(name.lower(), names, n=1)]
    return f"{f'did you mean {meant[0]!r}? ' if meant else ''}There are: {', '.join(names.values())}"


def check_words(words: Iterable[str], prompt: str) -> list[str]:
    """The words, each once, as `capture` takes them; ValueError if there is none, or one is not in the prompt."""
    words = list(dict.fromkeys(word for given in words if (word := given.strip())))
    if not words:
        raise ValueError(f"no words: expected some of the prompt {prompt!r}")
    for word in words:
        plain = re.sub(r"#\d+$", "", word)
        if not (plain.startswith(SPECIAL) or re.search(rf"(?<!\w){re.escape(plain)}(?!\w)", prompt, re.IGNORECASE)):
            there = dict.fromkeys(re.findall(r"\w[\w'-]*", prompt))
            raise ValueError(f"the word {plain!r} is not in the prompt: {suggestion(plain, there)}")
    return words


def usual_concept(words: Sequence[str], model: str, concepts: Sequence[str]) -> str:
    """The first of `concepts` that one of the words belongs to in the model's own table; *Animals*, or the first of
    all, if none does."""
    table = concepts_of(model)
    owners = [c for word in words for c in concepts if word.lower() in [w.lower() for w in table.get(c, ())]]
    return next(iter([*owners, *(c for c in concepts if c == "Animals"), *concepts]))


def draw(
    pipe: Any,
    prompt: str,
    words: Sequence[str],
    seeds: Sequence[int] = (0,),
    *,
    steps: int = 50,
    guidance: float | None = None,
    segmenter: Segmenter | None = None,
    on_step: Callable[[int], Any] = lambda done: None,
) -> HeadMaps:
    """Draw a prompt once for each seed, one picture after the other, and keep the maps of its words.

    `guidance` is the pipeline's own where it is None. Where a segmenter knows a word and finds it, the maps have its
    mask, as ``truth_{word}``. `on_step` is called with the number of steps that are done, of ``steps * len(seeds)``.
    Raises ValueError if a word is not in the prompt.
    """
    words = check_words(words, prompt)
    settings: dict[str, Any] = {"num_inference_steps": steps}
    settings |= {} if guidance is None else {"guidance_scale": guidance}
    images: list[Any] = []

    def count(pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
        on_step(steps * len(images) + min(step + 1, steps))
        return tensors

    if "callback_on_step_end" in signature(pipe.__call__).parameters:
        settings["callback_on_step_end"] = count
    with capture(pipe, words) as captured:
        for seed in seeds:
            images += pipe(prompt, generator=torch.Generator().manual_seed(seed), **settings).images
            on_step(steps * len(images))
    maps = HeadMaps(captured.head_maps().dataset.assign_coords(seed=("image", list(seeds))))
    masks = {f"truth_{word}": np.stack([_mask(segmenter, image, word) for image in images]) for word in words}
    return maps.with_pictures(images, **{name: mask for name, mask in masks.items() if mask.any()})


def _mask(segmenter: Segmenter | None, image: Any, word: str) -> np.ndarray:
    """(y, x) bool, where a segmenter sees a word; nowhere, if it does not know it."""
    meanings = [meaning for meaning in MEANINGS if meaning.rpartition(" (")[0] == word.lower()]
    try:
        phrase = meanings[0] if len(meanings) == 1 else word.lower()
        return segmenter.detect([image], [phrase])[0].mask if segmenter else np.zeros(image.size[::-1], bool)
    except ValueError:
        return np.zeros(image.size[::-1], bool)
