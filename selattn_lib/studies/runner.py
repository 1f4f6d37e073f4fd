"""Running a job: its lock, what is stored already, workers, and halves where memory runs out.

Nothing here knows of models: a `Job` says what its units are and how to compute some of them.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from filelock import AcquireReturnProxy, FileLock, Timeout
from tqdm import tqdm

from .store import Store

Compute = Callable[[Sequence[int]], xr.Dataset]


@dataclass(frozen=True)
class Job:
    """What can be run: units 0 ... `size` - 1, to be computed `batch` at a time and kept in `folder`.

    `compute` gives some units' variables, each with `image` as its first dimension; it raises MemoryError where they
    do not fit. `remote` is the same, as something that can be pickled for a worker (`compute` itself by default).
    `description`, which JSON can hold, is written beside the results; the settings in `free` decide none of them.
    """

    folder: Path
    size: int
    batch: int
    label: str
    description: dict[str, Any]
    compute: Compute
    remote: Compute | None = None
    free: frozenset[str] = frozenset()


def run(job: Job, workers: Any = None, bar: tqdm | None = None) -> xr.Dataset:
    """Compute what is not stored yet, and return everything, each variable read from the disk only where it is used.

    `workers` and `bar` are those of `StudyBase.run`. Raises OSError if the disk is full or the folder is damaged,
    MemoryError if a single unit does not fit.
    """
    workers = workers_wanted(workers)
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(job.folder)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES):
            raise
        return _open_whole(job, error)
    with lock:
        try:
            return _complete(job, workers, bar)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            text = f"the disk of {job.folder} is full; what is computed is kept: free some space, then run again"
            raise OSError(errno.ENOSPC, text) from error


def _lock(folder: Path) -> AcquireReturnProxy:
    """Take the folder's lock for a `with` block; it ends with the process, however it ends."""
    lock = FileLock(folder / "lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        print(f"waiting for another process, which computes {folder}", file=sys.stderr, flush=True)
        return lock.acquire()


def _open_whole(job: Job, reason: OSError) -> xr.Dataset:
    """What is stored in a folder that cannot be written to, if nothing is missing there."""
    with suppress(FileNotFoundError):
        store = Store(job.folder, job.size, read_only=True)
        store.check_description(job.description, job.free)
        if all(map(store.is_complete, range(job.size))):
            return store.open()
    text = (
        f"{job.folder} may only be read, and its results are not all there: copy it into a folder that may be written "
        "to, and set SELATTN_RUNS to that"
    )
    raise OSError(reason.errno, text) from reason


def _complete(job: Job, workers: Any, bar: tqdm | None) -> xr.Dataset:
    store = Store(job.folder, job.size)
    store.describe(job.description, job.free)
    batches = [range(i, min(i + job.batch, job.size)) for i in range(0, job.size, job.batch)]
    missing = [units for units in batches if not all(map(store.is_complete, units))]
    if missing:
        there = job.size - sum(map(len, missing))
        with nullcontext(bar) if bar is not None else tqdm(total=job.size, initial=there, desc=job.label) as shown:
            for units, dataset in _computed(job, missing, workers):
                store.write(units, dataset)
                shown.update(len(units))
    return store.open()


def _computed(job: Job, batches: Sequence[range], workers: Any) -> Iterator[tuple[range, xr.Dataset]]:
    """Each batch with its variables: here and in order, or on workers and as they come."""
    if not workers:
        yield from (compute_in_halves(units, job.compute, job.label) for units in batches)
        return
    try:
        import dask.config
        from distributed import Client, as_completed
    except ImportError as error:
        raise ImportError(f"workers={workers!r} needs dask: pip install 'selattn_lib[cluster]'") from error
    local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
    # Two processes of threads that spin while they wait for each other would be ten times as slow as one.
    patient = {"distributed.nanny.pre-spawn-environ.OMP_WAIT_POLICY": "PASSIVE"}
    with dask.config.set(patient), Client(**local) if isinstance(workers, int) else Client(workers) as client:
        futures = client.map(compute_in_halves, batches, compute=job.remote or job.compute, label=job.label)
        for future in as_completed(futures):
            if future.cancelled():
                raise ConnectionError(f"the scheduler of workers={workers!r} is gone: start one, then run again")
            yield future.result()


def compute_in_halves(units: range, compute: Compute, label: str) -> tuple[range, xr.Dataset]:
    """(units, their variables), computed in halves if memory runs out, and again in halves if need be.

    A picture's last bits depend on how many are computed together (rounding differs by the shape of a matrix
    product), which is why the batch is part of a study. The variable `batch` (image) of the results says how many
    were: less than the study's own where memory ran out, and there the bits are those of a smaller batch.
    """
    try:
        return units, compute(units).assign(batch=("image", np.full(len(units), len(units), np.uint16)))
    except MemoryError as error:
        reason = str(error).partition("\n")[0]
    if len(units) == 1:
        raise MemoryError(f"{label}: no memory for even one image at a time ({reason})")
    middle = len(units) // 2
    halves = [compute_in_halves(half, compute, label)[1] for half in (units[:middle], units[middle:])]
    return units, xr.concat(halves, "image")


def workers_wanted(workers: Any = None) -> Any:
    """`workers` of `StudyBase.run`: as given, else what `$SELATTN_WORKERS` says, as a number if it is one, else 0.

    Raises ValueError unless it is 0 or more, a scheduler's address such as tcp://host:8786, or a cluster object.
    """
    wanted = os.environ.get("SELATTN_WORKERS") or 0 if workers is None else workers
    wanted = int(wanted) if isinstance(wanted, str) and wanted.isdecimal() else wanted
    number = isinstance(wanted, int) and not isinstance(wanted, bool) and wanted >= 0
    address = isinstance(wanted, str) and "://" in wanted
    if not (number or address or hasattr(wanted, "scheduler_address")):
        raise ValueError(f"workers={wanted!r}: expected 0 or more, or a scheduler's address such as tcp://host:8786")
    return wanted
