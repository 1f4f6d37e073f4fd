"""The table at the top of the page on performance, from the numbers that run.py and gpu.py have stored.

python tests/benchmarks/summary.py      # measures nothing
"""

import json
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "book/performance_summary.md"
MODELS = {"sd14/float16": "Stable Diffusion v1.4", "sdxl/float16": "SDXL", "flux/bfloat16": "FLUX.1"}
WAYS = {"capture": "`capture`", "daam": "`daam`", "amd-exact": "`attention-map-diffusers`"}


def markdown(on_cpu: list[dict[str, Any]], on_gpu: dict[str, Any]) -> str:
    """A row for each model and device: seconds of a plain generation, and how many times as long it takes with maps."""
    head = ["model", "a plain generation", *(f"with {name}" for name in WAYS.values()), "extra memory of `capture`"]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    cells, gpu = on_gpu["cells"], on_gpu["machine"]["gpu"].removeprefix("NVIDIA ")
    for model, name in MODELS.items():
        seconds = {way: cells[f"{model}/{way}"].get("seconds", []) for way in ("plain", *WAYS)}
        extra = cells[f"{model}/capture"]["peak_mb"] - cells[f"{model}/plain"]["peak_mb"]
        lines.append(row(f"{name}, {gpu}", seconds, extra))
    cells = next(found["cells"] for found in on_cpu if "memory/capture/5" in found["cells"])
    rounds = [cell["cpu_s"] for name, cell in cells.items() if name.startswith("time/")]
    seconds = {way: [cell[way] for cell in rounds] for way in ("plain", *WAYS)}
    extra = cells["memory/capture/5"] - cells["memory/plain/5"]
    lines.append(row("Stable Diffusion v1.4, CPU, one step", seconds, extra))
    return "\n".join(lines) + "\n"


def row(name: str, seconds: dict[str, list[float]], extra_mb: float) -> str:
    """The cells of a model; a ratio is the median over rounds."""
    shown = [name, f"{median(seconds['plain']):.2f} s"]
    for way in WAYS:
        ratios = [taken / plain for taken, plain in zip(seconds[way], seconds["plain"], strict=False)]
        once = " (one run)" if len(ratios) == 1 else ""
        shown.append(f"×\N{NO-BREAK SPACE}{median(ratios):.2f}{once}" if ratios else "not supported")
    return f"| {' | '.join(shown)} | {extra_mb:.0f}\N{NO-BREAK SPACE}MB |"


def stored() -> str:
    """The table of the numbers that are stored."""
    return markdown(*(json.loads((HERE / name).read_text()) for name in ("results.json", "results_gpu.json")))


if __name__ == "__main__":
    TABLE.write_text(stored(), encoding="utf-8")
    print(f"The table is in {TABLE}")
