"""Running a study: locks, resuming, workers, halving where memory runs out."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xarray as xr
from filelock import FileLock, Timeout

from .parameters import read_literal

if TYPE_CHECKING:
    from .base import StudyBase


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process, however it ends."""
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process, which computes {folder}", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def workers_wanted(workers: Any = None) -> Any:
    """`workers` of `StudyBase.run`: as given, else what `$SELATTN_WORKERS` says, as a number if it is one, else 0.

    Raises ValueError unless it is 0 or more, a scheduler's address such as tcp://host:8786, or a cluster object.
    """
    wanted = read_literal(os.environ.get("SELATTN_WORKERS") or 0 if workers is None else workers)
    number = isinstance(wanted, int) and not isinstance(wanted, bool) and wanted >= 0
    address = isinstance(wanted, str) and "://" in wanted
    if not (number or address or hasattr(wanted, "scheduler_address")):
        raise ValueError(f"workers={wanted!r}: expected 0 or more, or a scheduler's address such as tcp://host:8786")
    return wanted


def _on_worker(units: range, kind: type["StudyBase"], fields: str, threads: int) -> tuple[range, xr.Dataset]:
    torch.set_num_threads(threads)  # which decides bits on a CPU
    return units, _study(kind, fields).compute_in_halves(units)


@lru_cache(maxsize=1)
def _study(kind: type["StudyBase"], fields: str) -> "StudyBase":
    """One study, and so one model, in a worker's memory at a time."""
    return kind(**json.loads(fields))
