"""What capture costs on a GPU: Stable Diffusion v1.4, SDXL and FLUX.1 at full size, with random weights.

    python tests/benchmarks/gpu.py                        # three minutes of one CUDA device
    python tests/benchmarks/gpu.py --device cpu --small   # tiny models, to see that it works
    python tests/benchmarks/gpu.py --table                # only the book's table, from the numbers that are stored

Each number is written to a JSON file as soon as it is measured, the most telling first; at its end the command writes
the table of the book. What does not work for a model says so in its place, and the rest goes on.
"""

import argparse
import gc
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import torch
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/support")]
from tiny_families import build_flux, build_sdxl  # noqa: E402
from tiny_sd import build_pipeline  # noqa: E402

from benchmarks.ways import INSTALLED, PROMPT, WAYS, Way  # noqa: E402

RESULTS, TABLE = ROOT / "tests/benchmarks/results_gpu.json", ROOT / "book/performance_gpu_table.md"
NAMES = ("plain", "capture", "capture+hrv", "daam", "amd", "amd-exact")
ROUNDS, SLOW = 5, 3  # a way that takes so many times as long as a plain generation has one round
NO_TIME = "not measured: no time was left"


@dataclass(frozen=True)
class Layout:
    """A model as people run it: its tiny twin, and what the full one has instead in which part."""

    name: str
    tiny: Callable[[], Any]
    side: int  # of the picture, in pixels
    steps: int
    full: dict[str, dict[str, Any]]


def clip(width: int, layers: int) -> dict[str, int]:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "projection_dim": width}
    return {**sizes, "num_hidden_layers": layers, "num_attention_heads": width // 64, "max_position_embeddings": 77}


CLIP_L, CLIP_G = clip(768, layers=12), clip(1280, layers=32)
T5 = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64, "num_layers": 2}  # of 24 layers: it runs only once
SD_UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "norm_num_groups": 32,
    "cross_attention_dim": 768,
}
SDXL_UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "norm_num_groups": 32,
    "cross_attention_dim": 2048,
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
FLUX_TRANSFORMER = {
    "in_channels": 64,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "axes_dims_rope": (16, 56, 56),
}
LAYOUTS = {
    "sd14": Layout("Stable Diffusion v1.4", build_pipeline, 512, 10, {"unet": SD_UNET, "text_encoder": CLIP_L}),
    "sdxl": Layout("SDXL", build_sdxl, 1024, 10, {"unet": SDXL_UNET, "text_encoder": CLIP_L, "text_encoder_2": CLIP_G}),
    "flux": Layout(
        "FLUX.1", build_flux, 1024, 4, {"transformer": FLUX_TRANSFORMER, "text_encoder": CLIP_L, "text_encoder_2": T5}
    ),
}
MODELS = ("sd14/float16", "sdxl/float16", "flux/bfloat16", "sd14/bfloat16")  # the most telling first


@contextmanager
def made_as(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Weights come into being where and as they are needed: SDXL's, made on a CPU, take a minute."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def build(layout: Layout, device: str, dtype: torch.dtype, small: bool) -> Any:
    """The pipeline with random weights; its autoencoder, which is not run, is tiny."""
    pipe = layout.tiny()
    for name, settings in {} if small else layout.full.items():
        tiny = getattr(pipe, name)
        with made_as(device, dtype):
            if name.startswith("text_encoder"):
                full = type(tiny)(type(tiny.config)(**tiny.config.to_dict() | settings))
            else:
                full = type(tiny).from_config(tiny.config, **settings)
        pipe.register_modules(**{name: full.eval()})
        if "max_position_embeddings" in settings:  # CLIP's
            getattr(pipe, name.replace("text_encoder", "tokenizer")).model_max_length = 77
    return pipe.to(device, dtype)


class OneStep:
    """A callback of a pipeline that profiles the second step of a generation, which is one call of the network."""

    def __init__(self) -> None:
        cuda = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self.profile, self.running = profile(activities=[ProfilerActivity.CPU, *cuda]), False

    def __call__(self, pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == 0:
            wait(pipe)  # so that nothing of the first step falls into the second
            self.profile.start()
            self.running = True
        elif step == 1:
            self.stop()
        return {}

    def stop(self) -> None:
        if self.running:
            self.profile.stop()
            self.running = False

    def counts(self) -> dict[str, int]:
        return count(event.name for event in self.profile.events())


def count(events: Iterable[str]) -> dict[str, int]:
    """Launches of kernels, waits for the GPU, and copies to the host, by the names of a profile's events."""
    names = list(events)
    calls = [name for name in names if name.startswith("cu")]  # of the CUDA runtime (cuda...) or driver (cu...)
    return {
        "launches": sum("Launch" in name for name in calls),
        "waits": sum("Synchronize" in name for name in calls),
        "copies": sum(name.startswith("Memcpy DtoH") for name in names),
    }


def wait(pipe: Any) -> None:
    if pipe.device.type == "cuda":
        torch.cuda.synchronize()


@dataclass
class Run:
    """One generation: its latents, its seconds, and the peak of its memory above what was there before."""

    latents: torch.Tensor
    seconds: float
    peak_mb: float


def run(pipe: Any, layout: Layout, way: Way, small: bool, callback: OneStep | None = None) -> Run:
    """A generation beside which something is kept, from before the `with` block to after it, by the GPU's clock."""
    cuda, side, steps = pipe.device.type == "cuda", 128 if small else layout.side, 3 if small else layout.steps
    settings: dict[str, Any] = {"height": side, "width": side, "output_type": "latent", "num_inference_steps": steps}
    gc.collect()
    wait(pipe)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    start = mark(cuda)
    with way.run(pipe) as finish:
        generator = torch.Generator().manual_seed(0)
        latents = pipe(PROMPT, generator=generator, callback_on_step_end=callback, **settings).images
        finish()
    end = mark(cuda)
    wait(pipe)
    if not cuda:
        return Run(latents, round(end - start, 4), peak_mb=0)
    peak = torch.cuda.max_memory_allocated() - before
    return Run(latents, round(start.elapsed_time(end) / 1000, 4), round(peak / 1e6, 1))


def mark(cuda: bool) -> Any:
    """A moment in the GPU's work, or on a clock."""
    if not cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class Results:
    """The cells measured so far, in a JSON file: one for each model, type of numbers and way."""

    def __init__(self, path: Path, machine: dict[str, Any]) -> None:
        self.path, self.machine = path, machine
        self.cells: dict[str, dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, key: str, **values: Any) -> None:
        print(key, json.dumps(values), flush=True)
        self.cells.setdefault(key, {}).update(values)
        found = {"machine": self.machine, "date": date.today().isoformat(), "cells": self.cells}
        self.path.write_text(json.dumps(found, indent=1) + "\n")


def measure(model: str, device: str, small: bool, results: Results, until: float) -> None:
    """Every way once, profiled, which warms it up too; then rounds in which each has its turn, as long as time is."""
    key, dtype = model.split("/")
    layout, ways = LAYOUTS[key], [name for name in NAMES if name in INSTALLED]
    if time.monotonic() > until:
        raise TimeoutError(NO_TIME)
    pipe = build(layout, device, getattr(torch, dtype), small)
    expected = run(pipe, layout, WAYS["plain"], small)
    same, takes = {}, {}
    for name in list(ways):
        callback = OneStep()
        try:
            if time.monotonic() > until:
                raise TimeoutError(NO_TIME)
            done = run(pipe, layout, WAYS[name], small, callback)
            same[name], takes[name] = torch.equal(expected.latents, done.latents), done.seconds
            results.add(f"{model}/{name}", same_bits=same[name], peak_mb=done.peak_mb, **callback.counts())
        except Exception as error:  # what one way cannot do must not cost the others their numbers
            callback.stop()
            if name == "plain":  # there is nothing to compare with
                raise
            results.add(f"{model}/{name}", failed=reason(WAYS[name], error))
            ways.remove(name)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS):
        if turn:  # what is slow by far needs no second number: the time is for the others
            ways = [name for name in ways if takes[name] < SLOW * takes["plain"]]
        if time.monotonic() + sum(takes[name] for name in ways if turn) > until:
            break
        for name in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
            done = run(pipe, layout, WAYS[name], small)
            takes[name] = done.seconds
            seconds[name].append(done.seconds)
            same[name] &= torch.equal(expected.latents, done.latents)
            results.add(f"{model}/{name}", seconds=seconds[name], same_bits=same[name], peak_mb=done.peak_mb)


def reason(way: Way, error: Exception) -> str:
    """Why there is no number, in the error's own words."""
    text = " ".join(str(error).split())[:200]
    if isinstance(error, TimeoutError):
        return text
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    if way.needs == "selattn_lib" and isinstance(error, ValueError):
        return f"refused: {text}"
    return f"not supported: {type(error).__name__}: {text}"


def machine_of(device: str) -> dict[str, Any]:
    """What it is measured on."""
    found = {"gpu": "none", "driver": "none", "cuda": torch.version.cuda, "torch": torch.__version__}
    found |= {"diffusers": diffusers.__version__, "python": platform.python_version()}
    if device == "cuda":
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        answer = subprocess.run(asked, capture_output=True, text=True).stdout.split()
        found |= {"gpu": torch.cuda.get_device_name(), "driver": answer[0] if answer else "unknown"}
    return found


# The table of the book.

COLUMNS = (
    "beside the generation",
    "time",
    "kernels launched a step",
    "waits a step",
    "copies to the host a step",
    "extra peak memory (MB)",
    "latents",
)
NOT_MEASURED = """Not measured on a GPU. `make benchmarks DEVICE=cuda` does so where there is one, in three minutes, and
writes this table.
"""


def markdown(found: dict[str, Any] | None) -> str:
    """The table of the book, and what it was measured on."""
    if not found:
        return NOT_MEASURED
    lines = []
    for model in MODELS:
        layout, dtype = LAYOUTS[model.split("/")[0]], model.split("/")[1]
        lines += [f"**{layout.name}**, {layout.side} x {layout.side} pixels, {layout.steps} steps, {dtype}:", ""]
        cells = {name: found["cells"][f"{model}/{name}"] for name in NAMES if f"{model}/{name}" in found["cells"]}
        if cells:
            lines += [f"| {' | '.join(COLUMNS)} |", "| --- " * len(COLUMNS) + "|"]
            lines += [f"| {WAYS[name].name} | {' | '.join(_row(cell, cells, name))} |" for name, cell in cells.items()]
        if model in found["cells"] or not cells:
            lines += ["", found["cells"].get(model, {}).get("failed", "not measured")]
        lines += [""]
    made_on = "{gpu}, driver {driver}; Python {python}, PyTorch {torch}, diffusers {diffusers}"
    lines += [f"Measured on {found['date']} by `make benchmarks DEVICE=cuda` on: {made_on.format(**found['machine'])}."]
    return "\n".join(lines) + "\n"


def _row(cell: dict[str, Any], cells: dict[str, Any], name: str) -> list[str]:
    """The cells of a way after its name; what is added to the plain generation, but for the plain one itself."""
    if "failed" in cell:
        return [cell["failed"].replace("|", "\\|"), *["-"] * (len(COLUMNS) - 2)]
    plain, seconds = cells["plain"], cell.get("seconds", [])
    ratios = [with_it / without for with_it, without in zip(seconds, plain.get("seconds", []), strict=False)]
    shown = f"× {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})" if ratios else "not measured"
    kinds = ("launches", "waits", "copies")
    numbers = [f"{cell[kind] - plain[kind]:+d}" for kind in kinds]
    memory = f"{cell['peak_mb'] - plain['peak_mb']:.0f}"
    if name == "plain":
        shown = f"{median(seconds):.3f} s" if seconds else shown
        numbers, memory = [f"{cell[kind]}" for kind in kinds], f"(itself: {cell['peak_mb']:.0f})"
    if not plain["launches"]:  # the profiler saw no GPU
        numbers = ["not counted"] * len(kinds)
    return [shown, *numbers, memory, "the same bits" if cell["same_bits"] else "changed"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny models, to see that it works")
    parser.add_argument("--seconds", type=float, default=150, help="how long it may take")
    parser.add_argument("--out", type=Path, help="the JSON file; a table is written beside it")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the table again")
    given = parser.parse_args()
    path = given.out or (ROOT / "runs/benchmarks/small_gpu.json" if given.small else RESULTS)
    table = TABLE if path == RESULTS else path.with_suffix(".md")
    if not given.table:
        ends = time.monotonic() + given.seconds
        if given.device == "cuda" and not torch.cuda.is_available():
            raise SystemExit("PyTorch finds no CUDA device here; --device cpu --small tries everything else.")
        results = Results(path, machine_of(given.device))
        for left, model in zip(range(len(MODELS), 0, -1), MODELS, strict=True):
            now = time.monotonic()
            try:
                measure(model, given.device, given.small, results, now + (ends - now) / left)
            except Exception as error:
                results.add(model, failed=reason(WAYS["plain"], error))
            gc.collect()
            if given.device == "cuda":
                torch.cuda.empty_cache()
    table.write_text(markdown(json.loads(path.read_text()) if path.exists() else None))
    print(f"The table is in {table}")


if __name__ == "__main__":
    main()
