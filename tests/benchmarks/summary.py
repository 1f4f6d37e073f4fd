"""The table at the top of the page on performance, from the numbers that run.py and gpu.py have stored.

python tests/benchmarks/summary.py      # measures nothing
"""

import json
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "book/performance_summary.md"
MODELS = {"sd14/float16": "SD v1.4", "sdxl/float16": "SDXL", "flux/bfloat16": "FLUX.1"}
WAYS = {"capture": "capture", "daam": "daam", "amd-exact": "attention-map-diffusers"}
NAMES = ["maps by", "nothing", *WAYS.values(), "extra memory of capture", "runs"]


def markdown(on_cpu: list[dict[str, Any]], on_gpu: dict[str, Any]) -> str:
    """A column for each model and device: seconds without maps, and how many times as long it takes with them."""
    cells, gpu = on_gpu["cells"], on_gpu["machine"]["gpu"].removeprefix("NVIDIA ")
    columns = [NAMES]
    for model, name in MODELS.items():
        seconds = {way: cells[f"{model}/{way}"].get("seconds", []) for way in ("plain", *WAYS)}
        extra = cells[f"{model}/capture"]["peak_mb"] - cells[f"{model}/plain"]["peak_mb"]
        columns.append(column(f"{name}, {gpu}", seconds, extra))
    cells = next(found["cells"] for found in on_cpu if "memory/capture/5" in found["cells"])
    rounds = [cell["cpu_s"] for name, cell in cells.items() if name.startswith("time/")]
    seconds = {way: [cell[way] for cell in rounds] for way in ("plain", *WAYS)}
    extra = cells["memory/capture/5"] - cells["memory/plain/5"]
    columns.append(column("SD v1.4, CPU", seconds, extra))
    first, *rows = zip(*columns, strict=True)
    lines = [first, ["---"] * len(first), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def column(name: str, seconds: dict[str, list[float]], extra_mb: float) -> list[str]:
    """The cells of a model; a ratio is the median over runs."""
    shown = [name, f"{median(seconds['plain']):.2f} s"]
    for way in WAYS:
        ratios = [taken / plain for taken, plain in zip(seconds[way], seconds["plain"], strict=False)]
        shown.append(f"×\N{NO-BREAK SPACE}{median(ratios):.2f}" if ratios else "not supported")
    return [*shown, f"{extra_mb:.0f} MB", f"{len(seconds['plain'])}"]


def stored() -> str:
    """The table of the numbers that are stored."""
    return markdown(*(json.loads((HERE / name).read_text()) for name in ("results.json", "results_gpu.json")))


if __name__ == "__main__":
    TABLE.write_text(stored(), encoding="utf-8")
    print(f"The table is in {TABLE}")
