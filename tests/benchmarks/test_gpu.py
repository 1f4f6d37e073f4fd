"""The benchmark of a GPU, rehearsed without one: what it counts, what it refuses, and what its table says."""

import json
import time
from pathlib import Path

from benchmarks import gpu, ways


def test_a_small_run_measures_and_is_shown(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(gpu, "ROUNDS", 1)
    monkeypatch.setattr(ways, "CONCEPT", ["bear", "oak tree lamp"])  # FLUX.1 encodes each word as a whole prompt
    monkeypatch.setattr(gpu, "INSTALLED", ["plain", "capture", "capture+hrv"])
    results = gpu.Results(tmp_path / "gpu.json", gpu.machine_of("cpu"))
    gpu.measure("flux/bfloat16", "cpu", True, results, until=time.monotonic() + 600)
    found = json.loads(results.path.read_text())
    plain, captured, scored = (found["cells"][f"flux/bfloat16/{name}"] for name in gpu.INSTALLED)
    assert captured["same_bits"] and len(captured["seconds"]) == len(plain["seconds"]) == 1
    assert scored["same_bits"] and len(scored["seconds"]) == 1
    assert "not measured" in gpu.markdown(found)  # the other models


def test_a_refusal_of_the_library_is_told_from_what_fails() -> None:
    assert (
        gpu.reason(gpu.WAYS["capture+hrv"], ValueError("these heads\ncannot vote"))
        == "refused: these heads cannot vote"
    )
    assert gpu.reason(gpu.WAYS["daam"], AttributeError("no unet")) == "not supported: AttributeError: no unet"


def test_calls_of_cuda_are_told_apart_by_their_names() -> None:
    launched = ["cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernelEx"]
    others = ["aten::mm", "cudaMemcpyAsync", "cudaStreamSynchronize", "Memcpy DtoH (Device -> Pageable)", "ampere_gemm"]
    assert gpu.count(launched + others) == {"launches": 3, "waits": 1, "copies": 1}


def test_the_table_shows_what_is_added_to_a_plain_generation() -> None:
    plain = {"same_bits": True, "peak_mb": 100.0, "launches": 800, "waits": 2, "copies": 1, "seconds": [1.0, 2.0, 1.0]}
    capture = plain | {"peak_mb": 102.0, "launches": 880, "seconds": [1.1, 2.4, 1.0]}
    daam = {"failed": "not supported: TypeError: float | None"}
    cells = {f"sd14/float16/{name}": cell for name, cell in zip(gpu.NAMES[:2], (plain, capture), strict=True)}
    cells |= {"sd14/float16/daam": daam, "sdxl/float16": {"failed": "out of memory"}}
    table = gpu.markdown({"machine": gpu.machine_of("cpu"), "date": "2026-11-26", "cells": cells})
    assert "| nothing | 1.000 s | 800 | 2 | 1 | (itself: 100) | the same bits |" in table
    assert "| `capture` | × 1.100 (1.000 to 1.200) | +80 | +0 | +0 | 2 | the same bits |" in table
    assert "float \\| None" in table and "\nout of memory\n" in table


def test_the_book_shows_the_numbers_that_are_stored() -> None:
    found = json.loads(gpu.RESULTS.read_text()) if gpu.RESULTS.exists() else None
    assert gpu.TABLE.read_text(encoding="utf-8") == gpu.markdown(found)
