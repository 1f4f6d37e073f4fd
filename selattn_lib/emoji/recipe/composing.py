"""Scenes to train on, as worker processes compose them: without diffusers, so that these start sooner."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ..scenes import Scene, compose


class Scenes(Dataset):
    """Scene i of `count`, which depends on (*seed, i) alone, as `view` shows it."""

    def __init__(
        self, count: int, seed: Sequence[int], view: Callable[[Scene], dict[str, Any]], drawn: Callable = compose
    ) -> None:
        self.count, self.seed, self.view, self.drawn = count, seed, view, drawn

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self.view(self.drawn(np.random.default_rng([*self.seed, i])))


def captioned(scene: Scene) -> dict[str, Any]:
    """What the UNet learns from of a scene."""
    return {"images": scene.image, "captions": scene.caption}


def give_way(worker: int) -> None:
    """Let the process that trains go first."""
    os.nice(10)
