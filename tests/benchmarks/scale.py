"""The figures of the book's page on scale: throughput with 2 local workers against 1, memory at 10 and 30 times as many
images, and the work in one image of Stable Diffusion v1. To be run on an idle machine, with OMP_NUM_THREADS=1."""

import json
import os
import subprocess
import sys
import tempfile

STUDY = """
import json, resource, sys, time
import selattn_lib as sa

if __name__ == "__main__":
    fields, workers = json.loads(sys.argv[1]), int(sys.argv[2])
    start = time.perf_counter()
    results = sa.Study(**fields).run(workers=workers)
    seconds = time.perf_counter() - start
    sa.study_ious(results)
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


if __name__ == "__main__":
    for workers in (1, 2):  # the difference of two sizes leaves out the start of the workers
        few, many = (measure(workers, seeds=seeds, steps=20, batch=5)[0] for seeds in (2, 8))
        print(
            f"{workers} workers: 20 images {few:.0f} s, 80 images {many:.0f} s: {60 / (many - few):.2f} images/s more"
        )
    for seeds in (1, 10, 30):
        print(f"{10 * seeds} images: {measure(seeds=seeds, steps=1)[1]:.0f} MB at the peak")
    counted = subprocess.run([sys.executable, "-c", FLOPS], capture_output=True, text=True, check=True)
    print(f"one UNet call of Stable Diffusion v1 on an image, with guidance: {int(counted.stdout) / 1e12:.2f} TFLOP")
