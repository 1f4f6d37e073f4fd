"""The figures of the book's page on scale: throughput with 2 local workers against 1, memory at 10 and 30 times as many
images, and the work in one image of Stable Diffusion v1.

    OMP_NUM_THREADS=1 python tests/benchmarks/scale.py      # on an idle machine; writes the page's two tables
    python tests/benchmarks/scale.py surface 10             # only the surface, from 10 images, on all cores
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

import selattn_lib as sa
from selattn_lib.evaluation.scores import GRID

RESULTS, BOOK = Path(__file__).with_name("results_scale.json"), Path(__file__).parents[2] / "book"
GRIDS = {64: 40, 32: 40, 16: 40, 8: 8}  # side of a head's grid, in Stable Diffusion v1 -> number of such heads
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
from selattn_lib.models.pipelines import network_layout

unet = network_layout("sd14")
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
    for side, heads in GRIDS.items():
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


def measured_table(found: dict[str, Any]) -> str:
    """What was measured, in Markdown. `found`: see `main`."""
    lines, rates = ["| What | Measured |", "| --- | --- |"], []
    for workers, (few, many) in found["seconds"].items():
        rates.append(60 / (many - few))
        who = "one local worker of one thread" if workers == "1" else f"{workers} local workers of one thread each"
        more = f", **{rates[-1] / rates[0]:.2f} times as many**" if len(rates) > 1 else ""
        lines += [
            f"| {who} | 20 images in {few:.0f} s, 80 in {many:.0f} s: {rates[-1]:.2f} images/s for the 60 more{more} |"
        ]
    memory = ", ".join(f"{megabytes:.0f} MB for {images} images" for images, megabytes in found["memory_mb"].items())
    lines += [
        f"| memory at the peak, scoring included | {memory} |",
        "",
        f"Measured on {found['date']}: {found['on']}.",
    ]
    return "\n".join(lines) + "\n"


def plan_table(tflop: float, images: int = 34 * 10 * 100, gpus: int = 8, rate: float = 40, calls: int = 51) -> str:
    """What a study of Stable Diffusion v1.4 would take, in Markdown: arithmetic from `tflop` a call, and `rate`
    TFLOP/s assumed."""
    values = sum(heads * side**2 for side, heads in GRIDS.items())
    megabytes = (2 * values + 5 * 512**2) / 1e6
    work, seconds = calls * tflop, round(calls * tflop / rate)
    sheet = f"*assumed*: {rate} TFLOP/s in fp16, about an eighth of what the data sheet of an A100 promises"
    held = f"maps of {values:,} values in float16, an image and two masks of 512 x 512 pixels"
    rows = [
        ("What", "How much", "Where from"),
        ("---", "---", "---"),
        (
            "one UNet call on one image, with guidance",
            f"{tflop:.2f} TFLOP",
            "counted on the model's layout by the script",
        ),
        (f"one image, 50 PNDM steps or {calls} calls", f"{work:.0f} TFLOP", f"{calls} x {tflop:.2f}"),
        ("seconds an image on one GPU", f"{seconds}", sheet),
        (
            f"all images on {gpus} GPUs",
            f"{images * seconds / gpus / 3600:.1f} hours",
            f"{images:,} x {seconds} s / {gpus}",
        ),
        (
            "results on the disk, at most",
            f"{images * megabytes / 1e3:.0f} GB",
            f"{images:,} x {megabytes:.2f} MB: {held}",
        ),
        (
            "counting head relevance first, on 2,100 images",
            f"{2100 * seconds / gpus / 60:.0f} minutes",
            f"2,100 x {seconds} s / {gpus}",
        ),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def tables(found: dict[str, Any]) -> dict[str, str]:
    """File of the book -> its text."""
    return {"scale_table.md": measured_table(found), "scale_plan.md": plan_table(found["tflop"])}


def main() -> None:
    """Measure, store what was found, and write the tables of the book."""
    found: dict[str, Any] = {"date": date.today().isoformat(), "on": f"{os.cpu_count()} cores, no graphics card"}
    found["seconds"] = {  # the difference of two sizes leaves out the start of the workers
        str(workers): [measure(workers, seeds=seeds, steps=20, batch=5)[0] for seeds in (2, 8)] for workers in (1, 2)
    }
    found["memory_mb"] = {str(10 * seeds): measure(seeds=seeds, steps=1)[1] for seeds in (1, 10, 30)}
    counted = subprocess.run([sys.executable, "-c", FLOPS], capture_output=True, text=True, check=True)
    found["tflop"] = int(counted.stdout) / 1e12
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    for name, text in tables(found).items():
        (BOOK / name).write_text(text, encoding="utf-8")
        print(text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["surface"]:
        print_surface(int(sys.argv[2]))
    else:
        main()
