"""The figures of the book's page on scale: throughput with 2 local workers against 1, memory at 10 and 30 times as many
images, the work in one image of Stable Diffusion v1, and the time of a surface of its size.

    OMP_NUM_THREADS=1 python tests/benchmarks/scale.py      # on an idle machine
    python tests/benchmarks/scale.py surface 10             # only the surface, from 10 images, on all cores
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

import selattn_lib as sa
from selattn_lib.evaluation.scores import GRID

STUDY = """
import json, resource, sys, time
import selattn_lib as sa

if __name__ == "__main__":
    fields, workers = json.loads(sys.argv[1]), int(sys.argv[2])
    start = time.perf_counter()
    results = sa.Study(**fields).run(workers=workers)
    seconds = time.perf_counter() - start
    sa.ious(results)
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3]))
"""
FLOPS = """
import torch
from torch.utils.flop_counter import FlopCounterMode
from selattn_lib.models.pipelines import unet_layout

unet = unet_layout("sd14")
with FlopCounterMode(display=False) as counter, torch.device("meta"), torch.no_grad():
    unet(torch.zeros(2, 4, 64, 64), torch.zeros(2), torch.zeros(2, 77, 768))
print(counter.get_total_flops())
"""


def measure(workers: int = 0, **fields: object) -> tuple[float, float]:
    """(seconds, megabytes at the peak of the process that called) of a study on `emoji-sd`, from nothing."""
    with tempfile.TemporaryDirectory() as runs:
        path = os.path.join(runs, "one_study.py")
        with open(path, "w") as script:
            script.write(STUDY)
        command = [sys.executable, path, json.dumps(fields), str(workers)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, "SELATTN_RUNS": runs}
        )
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def surface_seconds(images: int, thresholds: Sequence[float] = GRID) -> float:
    """Seconds for the IoU of maps of Stable Diffusion v1.4's size (512 x 512 pixels, 128 heads) with every number of
    heads and at all thresholds."""
    rng = np.random.default_rng(0)
    data: dict[str, Any] = {"truth": (("image", "y", "x"), rng.random((images, 512, 512)) < 0.3)}
    coords: dict[str, Any] = {"word": ["bear"]}
    first = 0
    for side, heads in ((64, 40), (32, 40), (16, 40), (8, 8)):
        grid = f"{side}x{side}"
        values = rng.random((images, 1, heads, side, side), dtype=np.float32).astype(np.float16)
        data[f"maps_{grid}"] = (("image", "word", f"head_{grid}", f"y_{grid}", f"x_{grid}"), values)
        coords[f"head_{grid}"] = np.arange(first, first + heads)
        first += heads
    maps = sa.HeadMaps(xr.Dataset(data, coords, {"height": 512, "width": 512}))
    sets = sa.first_heads(rng.permutation(first), range(1, first + 1))
    start = time.perf_counter()
    sa.ious(maps, sets, thresholds)
    return time.perf_counter() - start


def print_surface(images: int) -> None:
    start = time.process_time()
    seconds, cpu = surface_seconds(images) * 100 / images, (time.process_time() - start) * 100 / images
    print(
        f"a surface of 100 images of 512 x 512 pixels, 128 numbers of heads, {len(GRID)} thresholds, from {images} "
        f"images, {torch.get_num_threads()} threads: {seconds:.0f} s, {cpu:.0f} s of all cores"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["surface"]:
        print_surface(int(sys.argv[2]))
        sys.exit()
    for workers in (1, 2):  # the difference of two sizes leaves out the start of the workers
        few, many = (measure(workers, seeds=seeds, steps=20, batch=5)[0] for seeds in (2, 8))
        print(
            f"{workers} workers: 20 images {few:.0f} s, 80 images {many:.0f} s: {60 / (many - few):.2f} images/s more"
        )
    for seeds in (1, 10, 30):
        print(f"{10 * seeds} images: {measure(seeds=seeds, steps=1)[1]:.0f} MB at the peak")
    counted = subprocess.run([sys.executable, "-c", FLOPS], capture_output=True, text=True, check=True)
    print(f"one UNet call of Stable Diffusion v1 on an image, with guidance: {int(counted.stdout) / 1e12:.2f} TFLOP")
    print_surface(10)
