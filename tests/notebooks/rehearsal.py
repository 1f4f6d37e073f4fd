"""A dress rehearsal (`make rehearsal`): Stable Diffusion v1.4 at its full size with random weights, and Grounded-SAM in
its true classes, from the command `selattn reproduce` to a built book. Prints wall time and peak memory."""

import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from narrow_sd import save_models

ROOT = Path(__file__).parents[2]

if __name__ == "__main__":
    work = ROOT / "runs" / "rehearsal"
    shutil.rmtree(work, ignore_errors=True)
    arguments = save_models(work, narrow="--narrow" in sys.argv)
    start = time.monotonic()
    command = [Path(sys.executable).with_name("selattn"), *arguments]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "SELATTN_RUNS": str(work / "studies")})
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"{time.monotonic() - start:.0f} s, {peak:.1f} GB at the peak of its largest process")
    shutil.rmtree(work / "model")
    sys.exit(done.returncode)
