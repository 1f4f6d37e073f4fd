"""Studies: everything that decides some numbers, as one validated object that computes, keeps and resumes them.

A study's hash names its folder under `runs/` (or `$SELATTN_RUNS`). Its units are computed in fixed batches, each
written and then marked done, so a run that was stopped goes on where it was, and every random choice derives from
the study's fields and the unit alone.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from tqdm import tqdm

from ..concepts import load_concepts
from ..maps.head_maps import HeadMaps
from ..models.pipelines import (
    DEVICES,
    DTYPES,
    EMBEDDED,
    default_dtype,
    load_pipeline,
    model_source,
    pick_device,
)
from .runner import _alone, _on_worker, workers_wanted
from .store import FORMAT, Store

GUIDANCE = {EMBEDDED: 3.0}  # where the paper's 7.5 oversaturates the pictures


PARTS = ("text_encoder", "unet", "vae")  # of a model, whose weights decide a study


def runs_folder() -> Path:
    """Where studies are kept: `$SELATTN_RUNS`, or `runs` in the current folder."""
    return Path(os.environ.get("SELATTN_RUNS", "runs"))


def concepts_of(model: str) -> dict[str, list[str]]:
    """The concept table that goes with a model: the embedded world's own, or the paper's."""
    return load_concepts(EMBEDDED if model == EMBEDDED else "paper")


class StudyBase(BaseModel):
    """What the kinds of studies share: validation that speaks in sentences, the folder, and the run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uses_segmenter: ClassVar[bool] = False  # whether a segmenter takes part

    model: str = EMBEDDED
    revision: str = ""
    batch: int = Field(default=10, ge=1, description="units computed together; part of the study, as it decides bits")
    dtype: Literal["fp32", "fp16", "bf16"] = Field(default="fp32", description="of the model; empty: the device's own")

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            found = [(".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, ")) for e in error.errors()]
            lines = [f"{name}={fields.get(name)!r}: {text}" if name in fields else text for name, text in found]
            raise ValueError("; ".join(lines)) from None

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, fields: dict[str, Any]) -> dict[str, Any]:
        model = str(fields.get("model", EMBEDDED))
        source = model_source(model)
        if Path(source).is_dir():  # local weights may change under one name
            digest = hashlib.sha256()
            for path in sorted(Path(source).glob("*/*.safetensors")):
                if path.parent.name in PARTS or (cls.uses_segmenter and path.parent.name == "segmenter"):
                    digest.update(path.read_bytes())
            revision = digest.hexdigest()[:12]
            if fields.get("revision", "") not in ("", revision):
                raise ValueError(f"revision {fields['revision']!r}: the weights in {source} are of revision {revision}")
            fields = {**fields, "revision": revision}
        if not fields.get("dtype"):
            fields = {**fields, "dtype": default_dtype(model, pick_device(), fields.get("revision") or None)}
        if "guidance" in cls.model_fields and fields.get("guidance") is None:
            fields = {**fields, "guidance": GUIDANCE.get(model, 7.5)}
        return fields

    @property
    def folder(self) -> Path:
        """`runs/<kind>-<hash>`."""
        content = json.dumps([FORMAT, self.model_dump(mode="json")], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:12]
        return runs_folder().absolute() / f"{type(self).__name__.removesuffix('Study').lower() or 'study'}-{digest}"

    @cached_property
    def pipe(self) -> Any:
        offload = os.environ.get("SELATTN_OFFLOAD") == "1"
        return load_pipeline(self.model, dtype=DTYPES[self.dtype], revision=self.revision or None, offload=offload)

    @property
    def size(self) -> int:
        """Number of units."""
        raise NotImplementedError

    def compute(self, units: Sequence[int]) -> xr.Dataset:
        """These units' variables, each with `image` as its first dimension."""
        raise NotImplementedError

    def results(self, stored: xr.Dataset) -> Any:
        """What `run` returns, made from all that is stored."""
        return stored

    def run(self, workers: Any = None, bar: tqdm | None = None) -> Any:
        """Compute what is not stored yet, with a progress bar, and return the results.

        `workers`: 0, to compute in this process; a number of processes to start here; or where a `dask.distributed`
        cluster is, as the address of its scheduler ("tcp://...") or as a cluster object, such as dask-jobqueue's.
        By default what `$SELATTN_WORKERS` says, else 0. Workers need this library, the model and as many threads as
        this process; they hand results to this process, which alone writes, and what a lost worker was at is done
        by another. A script that starts processes must do so under `if __name__ == "__main__":`.

        A run that is killed, or finds the disk full, goes on where it was when it is started again; units whose files
        were damaged are computed again; a second process on the same study waits for the first. The results are the
        same bits in all these cases, on one type of device: `$SELATTN_DEVICE` or the best there is. Which it was stands
        in the variable `device` (image) of the results. With `$SELATTN_OFFLOAD` at 1 the parts of a model wait in main
        memory until they are called. `bar`: to be moved on by one for each unit, in place of a bar of the study's own.

        Raises OSError if the disk is full or the model cannot be loaded, MemoryError if a single unit does not fit.
        """
        return self.results(self.load_or_compute(workers, bar))

    def load_or_compute(self, workers: Any = None, bar: tqdm | None = None) -> xr.Dataset:
        """`run`, up to the variables of all units, each read from the disk only where it is used."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with _alone(self.folder):
            try:
                return self._completed(workers_wanted(workers), bar)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                text = f"the disk of {self.folder} is full; what is computed is kept: free some space, then run again"
                raise OSError(errno.ENOSPC, text) from error

    def _completed(self, workers: Any, bar: tqdm | None) -> xr.Dataset:
        (self.folder / "study.json").write_text(self.model_dump_json(indent=1))
        store = Store(self.folder, self.size)
        batches = [range(i, min(i + self.batch, self.size)) for i in range(0, self.size, self.batch)]
        missing = [units for units in batches if not all(map(store.is_complete, units))]
        if missing:
            there = self.size - sum(map(len, missing))
            own = tqdm(total=self.size, initial=there, desc=self.label) if bar is None else nullcontext(bar)
            with own as shown:
                for units, found in self._mapped(missing, workers):
                    store.write(units, found)
                    shown.update(len(units))
        stored = store.open()
        return stored.assign(device=("image", np.array(DEVICES)[stored["device"].values]))

    def _mapped(self, batches: Sequence[range], workers: Any) -> Iterator[tuple[range, xr.Dataset]]:
        """`computed` of each batch of units, here and in order or on workers and as they come."""
        if not workers:
            yield from ((units, self.compute_in_halves(units)) for units in batches)
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
            job = {"kind": type(self), "fields": self.model_dump_json(), "threads": torch.get_num_threads()}
            yield from (found for _, found in as_completed(client.map(_on_worker, batches, **job), with_results=True))

    def compute_in_halves(self, units: Sequence[int]) -> xr.Dataset:
        """`compute`, in halves if memory runs out, and again in halves if need be.

        A picture's last bits depend on how many are computed together (rounding differs by the shape of a matrix
        product), which is why `batch` is part of a study. The variable `batch` (image) of the results says how many
        were: less than the study's own where memory ran out, and there the bits are those of a smaller batch.
        """
        try:
            found = self.compute(units)
            number = DEVICES.index(pick_device().partition(":")[0])
            return found.assign(
                batch=("image", np.full(len(units), len(units), np.uint16)),
                device=("image", np.full(len(units), number, np.uint8)),
            )
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            reason = str(error).splitlines()[0]
        if len(units) == 1:
            raise MemoryError(f"{self.label}: no memory for even one image at a time ({reason})")
        clear_device_cache(garbage_collection=True)
        half = len(units) // 2
        return xr.concat([self.compute_in_halves(units[:half]), self.compute_in_halves(units[half:])], "image")

    @property
    def label(self) -> str:
        return f"{type(self).__name__} on {self.model}"


class _Maps(StudyBase):
    """Units are images, each with the head maps of one word and where it comes from."""

    def units(self) -> list[dict[str, Any]]:
        """`prompt`, `subject` (the word) and `seed` of every unit, in order."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        return len(self.units())

    def results(self, stored: xr.Dataset) -> xr.Dataset:
        units = self.units()
        stored = stored.assign_coords({key: ("image", [unit[key] for unit in units]) for key in units[0]})
        return stored.assign_attrs(model=self.model)

    def run(self, workers: Any = None, bar: tqdm | None = None) -> HeadMaps:
        return HeadMaps(super().run(workers, bar))


def halved(maps: xr.Dataset) -> xr.Dataset:
    """Head maps in float16, as they are stored."""
    return maps.map(lambda values: values.astype(np.float16) if values.dtype == np.float32 else values)
