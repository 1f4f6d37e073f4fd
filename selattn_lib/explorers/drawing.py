"""Pictures of one prompt with the maps of its words: what the workbench and `selattn explain` show."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..attention.capture import capture
from ..maps.consensus import by_agreement, head_features
from ..maps.head_maps import HeadMaps
from ..maps.head_sets import HeadSelection
from ..models.pipelines import check_draws_pictures
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
        pattern = r"\s+".join(map(re.escape, plain.split()))  # between other words; a sign may follow a letter
        pattern = r"(?<!\w)" * plain[:1].isalnum() + pattern + r"(?!\w)" * plain[-1:].isalnum()
        if not (plain.startswith(SPECIAL) or re.search(pattern, prompt, re.IGNORECASE)):
            there = dict.fromkeys(re.findall(r"\w[\w'-]*", prompt))
            raise ValueError(f"the word {plain!r} is not in the prompt: {suggestion(plain, there)}")
    return words


def usual_concepts(words: Sequence[str], model: str, concepts: Sequence[str]) -> list[str]:
    """All of `concepts`, first those that a word belongs to in the model's own table or by one of its meanings, then
    *Animals* and *Electronics*, then the others."""
    table = concepts_of(model)
    own = [
        concept
        for word in (word.lower() for word in words)
        for concept in concepts
        if word in [member.lower() for member in table.get(concept, ())] or f"{word} ({concept})" in MEANINGS
    ]
    usual = [concept for concept in ("Animals", "Electronics") if concept in concepts]
    return list(dict.fromkeys([*own, *usual, *concepts]))


def agreement_ranking(maps: HeadMaps) -> dict[str, np.ndarray]:
    """What to rank heads by where no head relevance is known, as the explorers take it: head numbers, first those whose
    maps agree most with the mean map of all heads (`selattn_lib.maps.consensus`), averaged over words and pictures."""
    agreement = [head_features(maps, word).sel(feature="consensus").mean("image") for word in range(len(maps.words))]
    return {"agreement with all heads": maps.heads[by_agreement(np.mean(agreement, axis=0))]}


def save_pictures(folder: Path, maps: HeadMaps, chosen: Mapping[str, HeadSelection], threshold: float) -> None:
    """Write each picture as PNG, and overlay, map and mask of all heads and of the `chosen`, which have names."""
    for number, picture in enumerate(maps.pictures):
        Image.fromarray(picture).save(folder / f"{number:03d}-picture.png")
    for name, heads in {"all": "all", **chosen}.items():
        maps.save(folder, heads, threshold=threshold, name=re.sub(r"[^\w-]+", "-", name))


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
    check_draws_pictures(pipe)
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
