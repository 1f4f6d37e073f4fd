"""What all studies share: everything that decides some numbers, as one validated object that keeps its results.

A study's hash names its folder under `runs/` (or `$SELATTN_RUNS`). Its units are computed in fixed batches, each
written and then marked done (see `runner`), so a run that was stopped goes on where it was, and every random choice
derives from the study's fields and the unit alone.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from inspect import signature
from pathlib import Path
from string import Formatter
from typing import Any, ClassVar, Literal

import diffusers
import numpy as np
import torch
import xarray as xr
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from tqdm import tqdm

from ..concepts import benchmark_words, check_concept, load_concepts
from ..emoji.control import DELTA
from ..maps.head_maps import HeadMaps
from ..models.pipelines import (
    DEVICES,
    DTYPES,
    EMBEDDED,
    HUB,
    check_draws_pictures,
    default_dtype,
    dose_of,
    in_embedded_world,
    load_pipeline,
    model_index,
    model_source,
    pick_device,
)
from . import runner
from .digests import FORMAT, READ, files_digest
from .parameters import read_list
from .results import head_maps, with_device_names

UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # parts of a pipeline that decide no picture

LOADED: dict[tuple[Any, ...], Any] = {}  # the model of the last study that needed one, by what decides it


def guidance_of(model: str, revision: str | None = None) -> float:
    """The usual guidance scale of a model: of Stable Diffusion the paper's 7.5, of other models their pipeline's own (1
    where it has none), but 3 in the embedded world, where 7.5 oversaturates."""
    if in_embedded_world(model):
        return 3.0
    kind = "StableDiffusionPipeline" if model in HUB else str(model_index(model, revision).get("_class_name"))
    pipeline: Any = getattr(diffusers, kind, object)
    own = signature(pipeline.__call__).parameters.get("guidance_scale")
    if own is None or kind in ("StableDiffusionPipeline", "StableDiffusionXLPipeline"):
        return 7.5
    return own.default or 1.0


def runs_folder() -> Path:
    """Where studies are kept, unless `$SELATTN_RUNS` or the current folder changes.

    Returns
    -------
    pathlib.Path
        `$SELATTN_RUNS`, or `runs` in the current folder.

    Examples
    --------
    >>> isinstance(runs_folder(), Path)
    True
    """
    return Path(os.environ.get("SELATTN_RUNS") or "runs")


def concepts_of(model: str, concepts: str | Path | Mapping[str, Any] = "") -> dict[str, list[str]]:
    """The concepts to use with a model.

    Parameters
    ----------
    model : str
        As for `load_pipeline`.
    concepts : str, path or mapping
        As for `load_concepts`; if empty, the embedded world's own for its models, else the paper's.

    Returns
    -------
    dict of str to list of str
        concept -> its words.

    Examples
    --------
    >>> len(concepts_of("sd14"))
    34
    >>> concepts_of("sd14", {"Pets": ["dog", "cat"]})
    {'Pets': ['dog', 'cat']}
    """
    return load_concepts(concepts or (EMBEDDED if in_embedded_world(model) else "paper"))


def model_digest(folder: Path, *more: Path) -> str:
    """12 hexadecimal digits for all that a pipeline in a folder draws by: weights, configurations, tokenizers;
    and for `more` files."""
    index = model_index(folder)
    parts = [name for name, loaded_by in index.items() if isinstance(loaded_by, list | tuple) and name not in UNUSED]
    files = [path for part in parts for path in (folder / part).glob("*") if path.suffix in READ]
    return files_digest([folder / "model_index.json", *files, *more], folder)[:12]


class StudyBase(BaseModel):
    """Validation that speaks in sentences, the folder, and the run.

    A kind of study is a subclass that has its settings as fields, `size`, `compute` and `run`, and that lists in
    `decides_nothing` the fields that do not change a number, and so are no part of the hash.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    decides_nothing: ClassVar[set[str]] = set()

    model: str = EMBEDDED
    revision: str = ""
    batch: int = Field(default=10, ge=1, description="units computed together; part of the study, as it decides bits")
    dtype: Literal["fp32", "fp16", "bf16"] = Field(default="fp32", description="of the model; empty: the device's own")

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            faults = [("".join(map(str, e["loc"][:1])), e["msg"].removeprefix("Value error, ")) for e in error.errors()]
            lines = [f"{name}={fields.get(name)!r}: {text}" if name in fields else text for name, text in faults]
            raise ValueError("; ".join(lines)) from None

    @model_validator(mode="before")
    @classmethod
    def _fill_fields(cls, fields: dict[str, Any]) -> dict[str, Any]:
        model = str(fields.get("model", EMBEDDED))
        source = Path(model_source(model))
        if source.is_dir():  # local weights may change under one name
            revision = model_digest(source, *[DELTA] * bool(dose_of(model)))
            if fields.get("revision", "") not in ("", revision):
                raise ValueError(f"revision {fields['revision']!r}: the model in {source} is of revision {revision}")
            fields = {**fields, "revision": revision}
        if not fields.get("dtype"):
            fields = {**fields, "dtype": default_dtype(model, pick_device(), fields.get("revision") or None)}
        if "guidance" in cls.model_fields and fields.get("guidance") is None:
            fields = {**fields, "guidance": guidance_of(model, fields.get("revision") or None)}
        if "concepts" in cls.model_fields:
            fields = {**fields, "concepts": concepts_of(model, fields.get("concepts") or "")}
        return fields

    def decisive(self) -> dict[str, Any]:
        """What decides the numbers, as JSON: the fields, and the contents of files that they name."""
        return self.model_dump(mode="json", exclude=self.decides_nothing)

    @property
    def folder(self) -> Path:
        """`runs/<kind>-<hash>`."""
        content = json.dumps([FORMAT, self.decisive()], sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()[:12]
        return runs_folder().absolute() / f"{type(self).__name__.removesuffix('Study').lower() or 'study'}-{digest}"

    @property
    def pipe(self) -> Any:
        """The model, loaded in the study's number format on the device that `pick_device` names. Studies that follow
        each other on one model load it once: it is kept until a study wants another, and then gives its memory back."""
        revision, offload = self.revision or None, os.environ.get("SELATTN_OFFLOAD") == "1"
        wanted = self.model, revision, self.dtype, pick_device(), offload
        if wanted not in LOADED:
            check_draws_pictures(self.model, revision)
            LOADED.clear()
            LOADED[wanted] = load_pipeline(self.model, dtype=DTYPES[self.dtype], revision=revision, offload=offload)
        return LOADED[wanted]

    @property
    def size(self) -> int:
        """Number of units."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """What a progress bar calls it."""
        return f"{type(self).__name__} on {self.model}"

    def compute(self, units: Sequence[int]) -> xr.Dataset:
        """These units' variables, each with `image` as its first dimension."""
        raise NotImplementedError

    def description(self) -> dict[str, Any]:
        """What is written beside the results: all that `selattn_lib.load` needs."""
        kind = type(self).__name__
        return {"format": FORMAT, "kind": kind, "size": self.size, "settings": self.model_dump(mode="json")}

    def run(self, workers: Any = None, bar: tqdm | None = None) -> Any:
        """Compute what is not stored yet, with a progress bar, and return the results.

        A run that is killed, or finds the disk full, goes on where it was when it is started again; units whose files
        were damaged are computed again; a second process on the same study waits for the first. The results are the
        same bits in all these cases, on one type of device: `$SELATTN_DEVICE` or the best there is. Which it was stands
        in the variable `device` (image) of the results. With `$SELATTN_OFFLOAD` at 1 the parts of a model wait in main
        memory until they are called.

        Parameters
        ----------
        workers : int, str or cluster, optional
            0, to compute in this process; a number of processes to start here; or where a `dask.distributed` cluster
            is, as the address of its scheduler ("tcp://...") or as a cluster object, such as dask-jobqueue's. By
            default what `$SELATTN_WORKERS` says, else 0. Workers need this library, the model and as many threads as
            this process; they hand results to this process, which alone writes, and what a lost worker was at is done
            by another. A script that starts processes must do so under `if __name__ == "__main__":`.
        bar : tqdm, optional
            To be moved on by one for each unit, in place of a bar of the study's own.

        Returns
        -------
        HeadMaps or HeadRelevance
            As the kind of study says. Variables are read from the disk where they are used.

        Raises
        ------
        OSError
            If the disk is full or the model cannot be loaded.
        MemoryError
            If a single unit does not fit.
        """
        raise NotImplementedError

    def load_or_compute(self, workers: Any = None, bar: tqdm | None = None) -> xr.Dataset:
        """`run`, up to the variables of all units, each read from the disk only where it is used."""
        remote = partial(_compute_remotely, type(self), self.model_dump_json(), torch.get_num_threads())
        what = self.folder, self.size, self.batch, self.label, self.description()
        job = runner.Job(*what, self._compute, remote, frozenset(self.decides_nothing))
        return with_device_names(runner.run(job, workers, bar))

    def _compute(self, units: Sequence[int]) -> xr.Dataset:
        """`compute`, with the device's number, and with a lack of memory as Python's own MemoryError."""
        try:
            dataset = self.compute(units)
            number = DEVICES.index(pick_device().partition(":")[0])
            return dataset.assign(device=("image", np.full(len(units), number, np.uint8)))
        except (RuntimeError, MemoryError) as error:
            if not is_lack_of_memory(error):
                raise
            reason = str(error)
        clear_device_cache(garbage_collection=True)  # once the error no longer holds on to tensors
        raise MemoryError(reason)


def is_lack_of_memory(error: Exception) -> bool:
    """Whether a device, PyTorch on a CPU, or oneDNN (which only says that it could not) ran out of memory."""
    primitive = "could not create a primitive" in str(error)
    return isinstance(error, MemoryError) or primitive or should_reduce_batch_size(error)


def _compute_remotely(kind: type[StudyBase], fields: str, threads: int, units: Sequence[int]) -> xr.Dataset:
    torch.set_num_threads(threads)  # which decides bits on a CPU
    return _study(kind, fields)._compute(units)


@lru_cache(maxsize=1)
def _study(kind: type[StudyBase], fields: str) -> StudyBase:
    """One study, and so one model, in a worker's memory at a time."""
    return kind(**json.loads(fields))


class HeadMapStudy(StudyBase):
    """Units are pictures, each with the head maps of one word and where it comes from."""

    def units(self) -> list[dict[str, Any]]:
        """`prompt`, `subject` (the word) and `seed` of every unit, in order."""
        raise NotImplementedError

    @property
    def size(self) -> int:
        return len(self.units())

    def description(self) -> dict[str, Any]:
        return {**super().description(), "units": self.units()}

    def run(self, workers: Any = None, bar: tqdm | None = None) -> HeadMaps:
        return head_maps(self.load_or_compute(workers, bar), self.description())


class ConceptStudy(HeadMapStudy):
    """Pictures of the words of one concept: the paper's ten animals for *Animals*, the first ten of its list otherwise.

    `concepts` is the table that the concept is of: the path of a YAML file or a table, by default the model's own.
    """

    decides_nothing: ClassVar[set[str]] = {"concepts"}  # the words do

    concept: str = "Animals"
    words: tuple[str, ...] = ()
    concepts: dict[str, tuple[str, ...]] = Field(default={}, repr=False)

    @model_validator(mode="before")
    @classmethod
    def _fill_words(cls, fields: dict[str, Any]) -> dict[str, Any]:
        concepts = concepts_of(str(fields.get("model", EMBEDDED)), fields.get("concepts") or "")
        concept = check_concept(fields.get("concept", "Animals"), concepts)
        words = read_list("words", fields.get("words")) or benchmark_words(concept, concepts)
        return {**fields, "words": tuple(words)}


def check_template(template: str) -> str:
    """`template` itself, if it has a {word} and no other field; ValueError otherwise."""
    try:
        fields = {part[1:] for part in Formatter().parse(template) if part[1] is not None}
    except ValueError:
        fields = set()
    if fields != {("word", "", None)}:
        raise ValueError("expected a prompt with {word} in it, and no other braces")
    return template


def stored_precision(maps: xr.Dataset) -> xr.Dataset:
    """Head maps in float16, as they are stored."""
    return maps.map(lambda values: values.astype(np.float16) if values.dtype == np.float32 else values)


def pixels_variable(pictures: Sequence[Any]) -> tuple[tuple[str, ...], np.ndarray]:
    """`image_rgb` (image, y, x, rgb) uint8 of some pictures."""
    return ("image", "y", "x", "rgb"), np.stack([np.asarray(picture) for picture in pictures])
