"""A folder of results that survives whatever happens to the process or to the files: see `Store`."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from PIL import Image
from xarray.backends import BackendArray
from xarray.core import indexing

FORMAT = 3  # of the stores; changes when old ones must not be read


class Store:
    """Results of the units 0 ... `size` - 1 of a study in `folder`: one zarr chunk a unit and variable, pictures as
    PNG, and a file of checksums.

    Every file is written aside and then moved into place, and a unit counts only once its checksum is written, last:
    a process killed at any moment leaves each unit whole or not there. Whatever was damaged later no longer fits its
    checksum, so `is_complete` denies it. Only arrays of numbers in zarr's third format are read, so that a folder from
    a stranger holds nothing that could be unpickled. One process at a time may write; with `read_only` nothing is
    written, nor cleared away.

    Raises OSError if the folder's metadata cannot be read.
    """

    def __init__(self, folder: Path, size: int, *, read_only: bool = False) -> None:
        self.folder, self.size = folder, size
        for unfinished in [] if read_only else folder.rglob("*.partial"):
            unfinished.unlink()
        try:
            self._group = zarr.open_group(folder / "data.zarr", mode="r" if read_only else "a", zarr_format=3)
            self._arrays = {name: array for name, array in self._group.arrays()}
        except (ValueError, TypeError, KeyError) as error:
            raise OSError(f"{folder} is damaged ({error}): delete it, and run the study again") from error
        self._log = folder / "checksums.txt"
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        self._checksums = dict(line.split() for line in lines if len(line.split()) == 2)

    def describe(self, description: dict[str, Any]) -> None:
        """Write what the results are of."""
        aside = self.folder / "study.partial"
        aside.write_text(json.dumps(description, indent=1), encoding="utf-8")
        aside.replace(self.folder / "study.json")

    def is_complete(self, unit: int) -> bool:
        """Whether all of a unit is there and as it was written."""
        if str(unit) not in self._checksums or "coords" not in self._group.attrs:
            return False
        try:
            return self._checksums[str(unit)] == _checksum(self._read(unit))
        except Exception:  # what a damaged chunk or picture raises depends on where it is damaged
            return False

    def write(self, units: range, dataset: xr.Dataset) -> None:
        """Write these units' variables, each with `image` as its first dimension."""
        for name, values in dataset.data_vars.items():
            if name == "image_rgb":
                (self.folder / "images").mkdir(exist_ok=True)
                for unit, picture in zip(units, values.values, strict=True):
                    Image.fromarray(picture).save(aside := self._picture(unit).with_suffix(".partial"), format="PNG")
                    aside.replace(self._picture(unit))
                continue
            shape = values.shape[1:]
            self._arrays[str(name)] = array = self._group.require_array(
                str(name), shape=(self.size, *shape), chunks=(1, *shape), dtype=values.dtype,
                dimension_names=[str(d) for d in values.dims],
            )  # fmt: skip
            array[units.start : units.stop] = values.values
        fixed = {str(k): [list(c.dims), c.values.tolist()] for k, c in dataset.coords.items() if "image" not in c.dims}
        self._group.attrs.update({"coords": fixed, "attrs": dict(dataset.attrs)})
        with self._log.open("a") as log:
            for at, unit in enumerate(units):
                self._checksums[str(unit)] = checksum = _checksum(
                    {str(name): values.values[at] for name, values in dataset.data_vars.items()}
                )
                log.write(f"\n{unit} {checksum}")  # a new line first, lest a torn one swallow it

    def open(self) -> xr.Dataset:
        """Everything, each array read from the disk only when and where it is used."""
        stored = xr.open_zarr(self._group.store, consolidated=False, chunks=None, zarr_format=3)
        if (self.folder / "images").exists():
            pictures = indexing.LazilyIndexedArray(_Pictures([self._picture(i) for i in range(self.size)]))
            stored["image_rgb"] = xr.Variable(("image", "y", "x", "rgb"), indexing.MemoryCachedArray(pictures))
        fixed: Any = self._group.attrs["coords"]
        stored = stored.assign_coords({name: (dims, values) for name, (dims, values) in fixed.items()})
        return stored.assign_attrs(self._group.attrs["attrs"])  # type: ignore[arg-type]

    def _read(self, unit: int) -> dict[str, np.ndarray]:
        values = {name: np.asarray(array[unit]) for name, array in self._arrays.items()}
        if (self.folder / "images").exists():
            values["image_rgb"] = _pixels(self._picture(unit))
        return values

    def _picture(self, unit: int) -> Path:
        return self.folder / "images" / f"{unit:05d}.png"


def count_finished(folder: Path) -> int:
    """Number of units that were written in `folder`, without a look at whether they are damaged since."""
    log = folder / "checksums.txt"
    return len(set(line.split()[0] for line in log.read_text().splitlines() if line.strip())) if log.exists() else 0


class _Pictures(BackendArray):
    """Picture files of one size as an array (image, y, x, rgb) uint8 for xarray to read from."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths, first = paths, _pixels(paths[0])
        self.shape, self.dtype = (len(paths), *first.shape), first.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._read)

    def _read(self, key: tuple[int | slice, ...]) -> np.ndarray:
        image, *rest = key
        if isinstance(image, slice):
            return np.stack([_pixels(path) for path in self.paths[image]])[(slice(None), *rest)]
        return _pixels(self.paths[image])[tuple(rest)]


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def _checksum(values: dict[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name, array in sorted(values.items()):
        digest.update(f"{name} {array.dtype} {array.shape} ".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
