"""Training examples: scenes composed by worker processes, kept on the device that trains, while it trains."""

import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..scenes import Scene, compose
from .training import DEVICE, WORLD

AT_ONCE = 64  # scenes in a batch of a worker's


ENOUGH = 20_000  # examples with which training on a GPU begins, while others are made


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


class Examples:
    """What `prepare` makes of batches of `scenes`: tensors by name, (example, ...), on the device that trains.

    On a GPU training begins with the first `ENOUGH` and others come while it goes on; on a CPU, whose cores are wanted
    for the training itself, all are made first, and kept in the file `path`.
    """

    def __init__(self, scenes: Scenes, prepare: Callable[[dict[str, Any]], dict[str, torch.Tensor]], path: Path) -> None:
        self.scenes, self.prepare, self.path = scenes, prepare, path
        self.tensors: dict[str, torch.Tensor] = {}
        self.made, self.failure = 0, None
        if path.exists():
            self.tensors = torch.load(path, map_location=DEVICE, weights_only=True)
            self.made = len(scenes)
            return
        filling = threading.Thread(target=self._fill, daemon=True)
        filling.start()
        while filling.is_alive() and (DEVICE.type == "cpu" or self.made < ENOUGH):
            time.sleep(0.05)
        if self.failure:
            raise self.failure

    def draw(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """The examples of these rows; rows in [0, 1) are shares of all those made so far."""
        numbers = (rows * self.made).long()
        return {name: tensor[numbers] for name, tensor in self.tensors.items()}

    def _fill(self) -> None:
        try:
            workers = max(1, (os.cpu_count() or 1) // WORLD) if len(self.scenes) > 1000 else 0
            spawned = {"multiprocessing_context": "spawn", "prefetch_factor": 2, "worker_init_fn": _give_way}
            for batch in DataLoader(self.scenes, AT_ONCE, num_workers=workers, **(spawned if workers else {})):
                for name, values in self.prepare(batch).items():
                    if name not in self.tensors:
                        size = (len(self.scenes), *values.shape[1:])
                        self.tensors[name] = torch.empty(size, dtype=values.dtype, device=DEVICE)
                    self.tensors[name][self.made : self.made + len(values)] = values
                self.made += len(values)
            if DEVICE.type == "cpu":
                torch.save(self.tensors, self.path)
        except Exception as error:
            self.failure = error


def _give_way(worker: int) -> None:
    """Let the process that trains go first."""
    os.nice(10)
