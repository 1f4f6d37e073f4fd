"""A job whose units are made in a moment, without a model: for what can happen to a run."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from selattn_lib.studies import runner

UNITS, BATCH = 12, 2


@dataclass(frozen=True)
class Toy:
    """Numbers and pictures that depend on the unit alone."""

    runs: Path
    batch: int = BATCH
    seconds: float = 0.03

    @property
    def folder(self) -> Path:
        return self.runs / "toy"

    def run(self, workers: object = None) -> xr.Dataset:
        job = runner.Job(self.folder, UNITS, self.batch, "Toy", {"size": UNITS}, self.compute)
        return runner.run(job, workers)

    def compute(self, units: Sequence[int]) -> xr.Dataset:
        with (self.runs / "computed").open("a") as log:
            log.write("x")
        time.sleep(self.seconds)
        draws = [np.random.default_rng(unit) for unit in units]
        maps = np.stack([draw.random((3, 16, 16)).astype(np.float16) for draw in draws])
        pictures = np.stack([draw.integers(0, 256, (32, 24, 3), dtype=np.uint8) for draw in draws])
        data = {"maps": (("image", "head", "v", "u"), maps), "image_rgb": (("image", "y", "x", "rgb"), pictures)}
        return xr.Dataset(
            {**data, "truth": (("image", "y", "x"), pictures[..., 0] > 99)}, {"head": [2, 0, 1]}, {"a": 1}
        )

    def computed(self) -> int:
        """Number of batches that any process has begun to compute so far."""
        log = self.runs / "computed"
        return len(log.read_text()) if log.exists() else 0
