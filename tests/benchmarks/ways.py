"""The ways to generate that the benchmarks compare: nothing beside it, `capture`, and other packages for the same."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import MagicMock

from diffusers.models.attention_processor import AttnProcessor2_0

import selattn_lib as sa

PROMPT, WORD, TOKEN = "photo of a bear", "bear", 4  # the word's place in the text
# 34 concepts of ten words, as in the HRV paper; one word of each has three tokens.
CONCEPT = ["bear", "cat", "dog", "desk", "mouse", "blue", "lamp", "oak", "photo", "oak tree lamp"]

# Each yields what turns the things kept into the maps of every head.


@contextmanager
def plain(pipe: Any) -> Iterator[Callable]:
    yield lambda: None


@contextmanager
def capture(pipe: Any) -> Iterator[Callable]:
    with sa.capture(pipe, [WORD]) as maps:
        yield maps.head_maps


class Unknown(AttnProcessor2_0):
    """Attention as it is, by a class that capture does not know to be exact, so that its layers are proven."""


@contextmanager
def capture_proven(pipe: Any) -> Iterator[Callable]:
    before = dict(pipe.unet.attn_processors)
    pipe.unet.set_attn_processor(Unknown())
    try:
        with capture(pipe) as finish:
            yield finish
    finally:
        pipe.unet.set_attn_processor(before)


@contextmanager
def capture_hrv(pipe: Any) -> Iterator[Callable]:
    concepts = {f"concept {n}": CONCEPT for n in range(34)}
    with sa.capture(pipe, [WORD]) as maps, sa.score_heads(pipe, concepts) as votes:
        yield lambda: (maps.head_maps(), votes.counts())


@contextmanager
def daam(pipe: Any) -> Iterator[Callable]:
    # Imported at the package's top for plots and for grammar; nothing that is measured uses them.
    for name in ("matplotlib", "matplotlib.pyplot", "spacy", "spacy.tokens"):
        sys.modules.setdefault(name, MagicMock())
    from daam import trace

    with TemporaryDirectory() as folder, trace(pipe, data_dir=folder):
        yield lambda: None  # its maps of every token and head are there


@contextmanager
def amd(pipe: Any, mode: str = "fast") -> Iterator[Callable]:
    from attention_map_diffusers import AttentionCapture

    settings = {"timesteps": "all", "heads": "all", "tokens": [TOKEN], "mode": mode, "max_capture_bytes": None}
    with AttentionCapture(pipe, relations="image->text", **settings) as maps:
        yield lambda: maps.compute(pipe.device)


@contextmanager
def amd_exact(pipe: Any) -> Iterator[Callable]:
    with amd(pipe, "exact") as compute:
        yield compute


@dataclass(frozen=True)
class Way:
    """One way to generate: how it is shown, what does it, and the module that it needs."""

    name: str
    run: Callable[[Any], AbstractContextManager[Callable]]
    needs: str = "selattn_lib"


WAYS = {
    "plain": Way("nothing", plain),
    "capture": Way("`capture`", capture),
    "capture+proof": Way("`capture`, of processors that it does not know", capture_proven),
    "capture+hrv": Way("`capture` and `score_heads`", capture_hrv),
    "daam": Way("`daam` 0.2.0", daam, "daam"),
    "amd": Way("`attention-map-diffusers` 1.0.0, `fast`", amd, "attention_map_diffusers"),
    "amd-exact": Way("`attention-map-diffusers` 1.0.0, `exact`", amd_exact, "attention_map_diffusers"),
}
INSTALLED = [name for name, way in WAYS.items() if find_spec(way.needs)]
OURS = ("capture", "capture+proof", "capture+hrv")
