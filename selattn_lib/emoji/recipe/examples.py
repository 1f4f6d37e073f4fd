"""Training examples: scenes composed by worker processes, kept on the device that trains, while it trains."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from .composing import Scenes, give_way
from .training import DEVICE, WORLD

AT_ONCE = 64  # scenes in a batch of a worker's


ENOUGH = 20_000  # examples with which training on a GPU begins, while others are made


class Examples:
    """What `prepare` makes of batches of `scenes`: tensors by name, (example, ...), on the device that trains.

    They are composed by as many processes as there are cores. On a GPU training begins with the first `ENOUGH`, and
    more come while it goes on; on a CPU, whose cores are wanted for the training itself, all are made first, and kept
    in the file `path`.
    """

    def __init__(
        self,
        scenes: Scenes,
        prepare: Callable[[dict[str, Any]], dict[str, torch.Tensor]],
        path: Path,
        workers: int | None = None,
    ) -> None:
        self.scenes, self.prepare, self.path = scenes, prepare, path
        few = len(scenes) <= 1000  # sooner composed than processes are started
        self.workers = (0 if few else max(1, (os.cpu_count() or 1) // WORLD)) if workers is None else workers
        self.tensors: dict[str, torch.Tensor] = {}
        self.made = 0
        self.failure: Exception | None = None
        if path.exists():
            self.tensors = torch.load(path, map_location=DEVICE, weights_only=True)
            self.made = len(scenes)
            return
        filling = threading.Thread(target=self._fill, daemon=True)
        filling.start()
        while filling.is_alive() and (DEVICE.type == "cpu" or self.made < ENOUGH):
            time.sleep(0.05)
        self.raise_failure()

    def draw(self, shares: torch.Tensor) -> dict[str, torch.Tensor]:
        """The examples at these `shares`, in [0, 1), of all those made so far."""
        self.raise_failure()
        numbers = (shares * self.made).long()
        return {name: tensor[numbers] for name, tensor in self.tensors.items()}

    def raise_failure(self) -> None:
        """Raise what ended the making of examples, if something did."""
        if self.failure is not None:
            raise self.failure

    def _fill(self) -> None:
        try:
            spawned = {"multiprocessing_context": "spawn", "prefetch_factor": 2, "worker_init_fn": give_way}
            options: dict[str, Any] = spawned if self.workers else {}
            bar = tqdm(total=len(self.scenes), desc="composing scenes", mininterval=5)
            for batch in DataLoader(self.scenes, AT_ONCE, num_workers=self.workers, **options):
                for name, values in self.prepare(batch).items():
                    if name not in self.tensors:
                        size = (len(self.scenes), *values.shape[1:])
                        self.tensors[name] = torch.empty(size, dtype=values.dtype, device=DEVICE)
                    self.tensors[name][self.made : self.made + len(values)] = values
                self.made += len(values)
                bar.update(len(values))
            if DEVICE.type == "cpu":
                torch.save(self.tensors, self.path)
        except Exception as error:
            self.failure = error
