"""What capture costs on Stable Diffusion v1.4's architecture, beside `daam` 0.2.0 and `attention-map-diffusers` 1.0.0.

    python tests/benchmarks/run.py            # an hour or two of two cores that have nothing else to do
    python tests/benchmarks/run.py --small    # a narrow model: minutes, to see that it works
    python tests/benchmarks/run.py --ways capture+proof    # only some rows of the table, beside the plain generation

Each number is written to a JSON file as soon as it is measured; started again, the command goes on where it was. What
was measured on other machines stays there, and stands in the table under their letters. At its end the command writes
the table of the book. The other packages are measured where they can be imported; `make benchmarks`
puts them into a folder of their own, without what they require, since `daam` asks for versions of 2023.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from statistics import median
from string import ascii_uppercase
from typing import Any
from unittest.mock import patch

import diffusers
import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch.nn import Module
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPTextConfig, CLIPTextModel

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/support")]
from tiny_sd import WORDS, build_pipeline, word_tokenizer  # noqa: E402

from benchmarks.scale import surface_seconds  # noqa: E402
from benchmarks.ways import INSTALLED, OURS, PROMPT, WAYS  # noqa: E402

PAIRS = 7
LAYERS = 16
# One thread: more of them spin while they wait for each other, which counts as CPU time.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
# So that peaks are those of memory in use: glibc hands freed blocks back to the system at once.
HAND_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
MEMORY = [  # (way, steps), the most telling first
    *[("plain", 5), ("capture", 5), ("daam", 5), ("amd", 5), ("amd-exact", 5), ("capture", 50), ("capture", 20)],
    *[("daam", 20), ("amd", 20), ("amd-exact", 20), ("plain", 20), ("plain", 50), ("capture+hrv", 5)],
    ("capture+proof", 5),
]
# What makes a host wait for a GPU, by the names under which PyTorch calls it.
WAITS = "item tolist cpu numpy nonzero equal unique masked_select __bool__ __float__ __int__ __index__".split()


def build(small: bool) -> Any:
    """Stable Diffusion v1.4's UNet and text encoder with random weights; the autoencoder, which is not run, is tiny."""
    torch.manual_seed(0)
    pipe = build_pipeline()
    tokenizer = word_tokenizer(WORDS)
    tokenizer.model_max_length = 77
    wide = {"cross_attention_dim": 768, "block_out_channels": (320, 640, 1280, 1280)}
    narrow = {"cross_attention_dim": 64, "block_out_channels": (32, 64, 64, 64)}
    unet = UNet2DConditionModel(sample_size=64, attention_head_dim=8, **(narrow if small else wide))
    text = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    if not small:
        text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    config = CLIPTextConfig(
        **text,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    pipe.register_modules(unet=unet.eval(), text_encoder=CLIPTextModel(config).eval(), tokenizer=tokenizer)
    return pipe


def draw(pipe: Any, small: bool, steps: int) -> Any:
    """Latents of one image, under guidance: 512 x 512, or 128 x 128 from the narrow model."""
    generator, side = torch.Generator().manual_seed(0), 128 if small else 512
    settings: dict[str, Any] = {"height": side, "width": side, "guidance_scale": 7.5, "output_type": "latent"}
    return pipe(PROMPT, generator=generator, num_inference_steps=steps, **settings).images


class Results:
    """The cells measured so far on this machine, in a JSON file beside those of others; and the ways to be measured."""

    def __init__(self, path: Path, names: Sequence[str] = INSTALLED) -> None:
        self.path, self.names = path, names
        self.all: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
        here = [found for found in self.all if found["machine"] == machine()]
        self.found = here[0] if here else {"machine": machine(), "cells": {}}
        self.cells: dict[str, Any] = self.found["cells"]

    def add(self, key: str, value: Any) -> None:
        print(key, json.dumps(value), flush=True)
        self.cells[key], self.found["date"] = value, date.today().isoformat()
        if self.found not in self.all:
            self.all.append(self.found)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.all, indent=1) + "\n")
        part.replace(self.path)


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "cpu": next(line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        "cores": os.cpu_count(),
        "memory_gb": round(gigabytes),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


# The jobs, each a process of its own.


def measure_times(results: Results, small: bool) -> None:
    """CPU seconds (user + system, all threads) of a generation of one step, each way in turn; a first round warms up.

    One step is the hardest case for what is done once a generation.
    """
    pipe = build(small)
    for pair in range(-1, PAIRS):
        if f"time/{pair}" in measured(results, "time"):
            continue
        seconds, latents = {}, {}
        turn = pair % len(results.names)
        for name in [*results.names[turn:], *results.names[:turn]]:
            with WAYS[name].run(pipe) as finish:
                start = os.times()
                latents[name] = draw(pipe, small, 1)
                finish()
                end = os.times()
            seconds[name] = round(end.user + end.system - start.user - start.system, 2)
        changed = {name: float((image - latents["plain"]).abs().max()) for name, image in latents.items()}
        if pair >= 0:
            results.add(f"time/{pair}", {"cpu_s": seconds, "image_changed_by": changed})


@contextmanager
def hooks_timed() -> Iterator[list[float]]:
    """CPU seconds of every call of a hook that is registered in the block."""
    spent: list[float] = []

    def timing(register: Callable) -> Callable:
        def register_timed(module: Module, hook: Callable, **options: Any) -> Any:
            def timed(*args: Any, **kwargs: Any) -> Any:
                start = time.process_time()
                try:
                    return hook(*args, **kwargs)
                finally:
                    spent.append(time.process_time() - start)

            return register(module, timed, **options)

        return register_timed

    with ExitStack() as stack:
        for name in ("register_forward_hook", "register_forward_pre_hook"):
            stack.enter_context(patch.object(Module, name, timing(getattr(Module, name))))
        yield spent


def measure_hooks(results: Results, small: bool) -> None:
    """CPU seconds in the hooks over those outside them, in one and the same generation: no noise between runs."""
    pipe = build(small)
    draw(pipe, small, 1)
    for name in results.names:
        if name not in OURS or f"hooks/{name}" in results.cells:
            continue
        shares = []
        for _ in range(PAIRS):
            start = time.process_time()
            with hooks_timed() as spent, WAYS[name].run(pipe) as finish:
                draw(pipe, small, 1)
                ended = time.process_time()
                finish()
            inside = sum(spent) + time.process_time() - ended
            shares.append(round(inside / (time.process_time() - start - inside), 4))
        results.add(f"hooks/{name}", shares)


def measure_memory(results: Results, small: bool, name: str, steps: int) -> None:
    """MB by which a generation's peak is above what the process held before it, after one step to warm up."""
    pipe = build(small)
    draw(pipe, small, 1)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before = status("VmRSS")
    with WAYS[name].run(pipe) as finish:
        draw(pipe, small, steps)
        finish()
    results.add(f"memory/{name}/{steps}", round((status("VmHWM") - before) / 1024, 1))


def status(field: str) -> int:
    """A field of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field)))


class Kernels(TorchDispatchMode):
    """Counts the operators that would start a kernel on a GPU: all but views and memory that is not filled."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.count += not (func.is_view or "empty" in func.name() or "detach" in func.name())
        return func(*args, **kwargs or {})


class Waits(TorchFunctionMode):
    """Counts the calls in which a host would wait for a GPU."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        moved = name == "to" and any(isinstance(value, str | torch.device) for value in (*args, *kwargs.values()))
        self.count += name in WAITS or (moved and not kwargs.get("non_blocking"))
        return func(*args, **kwargs)


def count_call(pipe: Any, name: str) -> np.ndarray:
    """(kernels, waits) of one call of the UNet, the last of a generation; the model's width has no say in it."""
    totals = []
    for steps in (2, 3):  # each step is a call
        with WAYS[name].run(pipe), Kernels() as kernels, Waits() as waits:
            draw(pipe, True, steps)
        totals.append(np.array([kernels.count, waits.count]))
    return totals[1] - totals[0]


def measure_launches(results: Results, small: bool) -> None:
    """Kernels and waits that each way adds to a call of the UNet."""
    pipe = build(small=True)
    for dtype in ("float32", "bfloat16"):
        pipe.to(getattr(torch, dtype))
        plain_call = count_call(pipe, "plain")
        for name in results.names:
            kernels, waits = (count_call(pipe, name) - plain_call).tolist()
            results.add(f"launches/{name}/{dtype}", {"kernels": kernels, "waits": waits})


def measure_surface(results: Results, small: bool, images: int = 4) -> None:
    """Seconds for 100 images of SD v1.4's size of the IoU at every number of heads and at three thresholds."""
    results.add("surface", round(surface_seconds(images, (0.3, 0.4, 0.5)) * 100 / images, 1))


JOBS = {
    "launches": measure_launches,
    "surface": measure_surface,
    "time": measure_times,
    "hooks": measure_hooks,
    **{f"memory/{name}/{steps}": partial(measure_memory, name=name, steps=steps) for name, steps in MEMORY},
}


def measured(results: Results, job: str) -> set[str]:
    """The keys of a job's cells that hold every way that is to be measured."""
    rounds = [f"time/{pair}" for pair in range(PAIRS)]
    keys = {
        "time": [key for key in rounds if {*results.names} <= {*results.cells.get(key, {}).get("cpu_s", {})}],
        "launches": [f"launches/{name}/bfloat16" for name in results.names],
        "hooks": [f"hooks/{name}" for name in results.names if name in OURS],
    }
    return {key for key in keys.get(job, [job]) if key in results.cells}


def is_done(results: Results, job: str) -> bool:
    wanted = {"time": PAIRS, "launches": len(results.names), "hooks": len({*results.names} & {*OURS})}
    return len(measured(results, job)) == wanted.get(job, 1)


COLUMNS = (
    "beside the generation",
    "CPU time",
    "in hooks",
    "extra MB at 5, 20, 50 steps",
    "image changed",
    "kernels a layer",
    "waits",
)


def markdown(results: list[dict[str, Any]]) -> str:
    """The table of the book, and what its rows were measured on, one letter a machine."""
    lines = [f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|"]
    notes = []
    made_on = "{cpu}, {cores} cores, {memory_gb} GB of memory; Python {python}, PyTorch {torch}, diffusers {diffusers}"
    for letter, found in zip(ascii_uppercase, results, strict=False):
        cells = found["cells"]
        for name, way in WAYS.items():
            share = f"{median(cells[f'hooks/{name}']):.1%}" if f"hooks/{name}" in cells else ""
            row = _time(cells, name), share, _memory(cells, name), _image(cells, name), *_launches(cells, name)
            if any(row):
                lines.append(f"| {way.name} ({letter}) | " + " | ".join(value or "-" for value in row) + " |")
        if "surface" in cells:
            many = "The IoU of 100 images at 128 numbers of heads and 3 thresholds"
            notes += [f"{many}, on machine {letter}: {cells['surface']} seconds."]
        notes += [f"Machine {letter}, {found['date']}: {made_on.format(**found['machine'])}."]
    return "\n".join(lines) + "\n\n" + "\n\n".join(notes) + "\n\nMeasured by `make benchmarks`.\n"


def _rounds(cells: dict[str, Any], name: str) -> list[dict[str, Any]]:
    rounds = [cells[f"time/{pair}"] for pair in range(PAIRS) if f"time/{pair}" in cells]
    return [cell for cell in rounds if name in cell["cpu_s"]]


def _time(cells: dict[str, Any], name: str) -> str:
    """Against the plain run of the same round; of how many rounds, where some are still missing."""
    if not (rounds := _rounds(cells, name)):
        return ""
    if name == "plain":
        return f"{median(cell['cpu_s']['plain'] for cell in rounds):.1f} s"
    ratios = [cell["cpu_s"][name] / cell["cpu_s"]["plain"] for cell in rounds]
    fewer = f" of {len(rounds)}" if len(rounds) < PAIRS else ""
    spread = f"({min(ratios):.3f} to {max(ratios):.3f}{fewer})".replace(" ", "\N{NO-BREAK SPACE}")
    return f"×\N{NO-BREAK SPACE}{median(ratios):.3f} {spread}"


def _image(cells: dict[str, Any], name: str) -> str:
    if not (rounds := _rounds(cells, name)):
        return ""
    changed = max(cell["image_changed_by"][name] for cell in rounds)
    return f"{changed:.0e}" if changed else "no"


def _memory(cells: dict[str, Any], name: str) -> str:
    """MB above a plain generation of as many steps, or of 5 where that was not measured."""
    peaks = [cells.get(f"memory/{name}/{steps}") for steps in (5, 20, 50)]
    if peaks == [None] * 3 or "memory/plain/5" not in cells:
        return ""
    plain_peaks = [cells.get(f"memory/plain/{steps}", cells["memory/plain/5"]) for steps in (5, 20, 50)]
    extra = [peak and peak - (name != "plain") * usual for peak, usual in zip(peaks, plain_peaks, strict=True)]
    shown = ", ".join("-" if value is None else f"{value:.0f}" for value in extra)
    return f"(itself: {shown})" if name == "plain" else shown


def _launches(cells: dict[str, Any], name: str) -> tuple[str, str]:
    """Kernels a layer and waits, added to a call of the network; the larger number of the two data types."""
    counts = [cell for key, cell in cells.items() if key.startswith(f"launches/{name}/")]
    if not counts:
        return "", ""
    kernels, waits = (max(count[kind] for count in counts) for kind in ("kernels", "waits"))
    return f"{kernels / LAYERS:.1f}", str(waits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a narrow model, to see that it works")
    parser.add_argument(
        "--only", default="", help="the jobs that begin with this: launches, surface, time, hooks or memory"
    )
    parser.add_argument(
        "--ways", nargs="+", choices=INSTALLED, default=INSTALLED, help="rows of the table; default: all"
    )
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    names = [name for name in INSTALLED if name == "plain" or name in given.ways]
    path = ROOT / ("runs/benchmarks/small.json" if given.small else "tests/benchmarks/results.json")
    table = path.with_suffix(".md") if given.small else ROOT / "book/performance_table.md"
    if given.job:
        JOBS[given.job](Results(path, names), given.small)
        return
    for job in JOBS:
        name = job.split("/")[1] if "/" in job else "plain"
        if job.startswith(given.only) and name in names and not is_done(Results(path, names), job):
            command = [sys.executable, __file__, "--job", job, *["--small"] * given.small, "--ways", *names]
            settings = {} if job == "surface" else ONE_THREAD | (HAND_BACK if "memory" in job else {})
            subprocess.run(command, check=True, env=os.environ | settings)
    table.write_text(markdown(Results(path).all))
    print(f"The table is in {table}")


if __name__ == "__main__":
    main()
