"""How long a step of a slider takes to draw in the browser, with maps as large as Stable Diffusion v1.4's.

python tests/benchmarks/sliders.py      # on an idle machine, with a Chromium; writes what the book's page includes
"""

import json
import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS, TABLE = Path(__file__).with_name("results_sliders.json"), ROOT / "book/slider_times.md"
TESTS = ["-rP", "tests/book/test_explorer_page.py", "-k", "sd14s"]
NAMES = {"aggregation": "Aggregation", "heads": "Heads", "diagnosis": "Diagnosis"}


def times(output: str) -> dict[str, float]:
    """Explorer -> median milliseconds of a step, from what the tests print."""
    printed = re.findall(r"_as_sd14s\[(\w+)\].*?milliseconds of each step: (\[.*?\])", output, re.DOTALL)
    return {kind: median(json.loads(steps)) for kind, steps in printed}


def markdown(found: dict[str, Any]) -> str:
    """The text that the book includes."""
    lines = ["| Explorer | Milliseconds a step |", "| --- | --- |"]
    lines += [f"| {NAMES[kind]} | {step:.0f} |" for kind, step in found["milliseconds"].items()]
    return "\n".join(lines) + f"\n\nMeasured on {found['date']}: {found['on']}.\n"


if __name__ == "__main__":
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *TESTS], cwd=ROOT, capture_output=True, text=True, check=True
    )
    on = f"{os.cpu_count()} cores, no graphics card"
    found = {"date": date.today().isoformat(), "on": on, "milliseconds": times(done.stdout)}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    TABLE.write_text(markdown(found), encoding="utf-8")
    print(markdown(found))
