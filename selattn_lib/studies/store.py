"""A folder of results that survives whatever happens to the process or to the files: see `Store`."""

import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from PIL import Image
from xarray.backends import BackendArray
from xarray.backends.zarr import ZarrArrayWrapper
from xarray.core import indexing


@contextmanager
def calling_damaged(folder: Path) -> Iterator[None]:
    """Say of whatever cannot be read there that the folder is damaged."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise OSError(f"{folder} is damaged ({error}): delete it, and run the study again") from error


class Store:
    """Results of the units 0 ... `size` - 1 of a study in `folder`: one zarr chunk a unit and variable, pictures as
    PNG (those of clips are chunks, too), and a file of checksums.

    Every file is written aside and then moved into place, and a unit counts only once its checksum is written, last:
    a process killed at any moment leaves each unit whole or not there. Whatever was damaged later no longer fits its
    checksum, so `is_complete` denies it; what describes the arrays and the study has checksums of its own, which stores
    of older versions of this library lack. Only arrays of numbers in zarr's third format are read, no links and nothing
    that was not written here, so that a folder from a stranger holds nothing that could be unpickled and leads nowhere
    else. One process at a time may write; with `read_only` nothing is written, nor cleared away.

    Raises OSError if the folder's metadata cannot be read, or is not what was written.
    """

    def __init__(self, folder: Path, size: int, *, read_only: bool = False) -> None:
        self.folder, self.size = folder, size
        for path in folder.rglob("*"):
            if path.is_symlink() or (not path.is_file() and not path.is_dir() and path.exists()):
                raise OSError(f"{path} is a link, or no plain file, which no study writes: delete it, and run again")
            if path.suffix == ".partial" and not read_only:
                path.unlink()
        self._log = folder / "checksums.txt"
        self._checksums = _read_log(self._log)
        with calling_damaged(folder):
            files = _Files(folder / "data.zarr", read_only=read_only)
            self._group = zarr.open_group(files, mode="r" if read_only else "a", zarr_format=3)
            self._arrays = dict(self._group.arrays())
            listed: Any = self._group.attrs.get("variables")  # older stores do not list them
            names = set(listed or [*self._arrays, "image_rgb"])
            self._arrays = {name: array for name, array in self._arrays.items() if name in names}
            self._pictures = (folder / "images").exists() and "image_rgb" in names
            self._lacking = bool(names - {*self._arrays, "image_rgb"}) or "coords" not in self._group.attrs
            if read_only:
                self._check("study", [folder / "study.json"])
            if not self._lacking:
                self._check("metadata", self._metadata())

    def _metadata(self) -> list[Path]:
        """The files that describe the arrays."""
        data = self.folder / "data.zarr"
        return [data / "zarr.json", *(data / name / "zarr.json" for name in sorted(self._arrays))]

    def _check(self, key: str, files: list[Path]) -> None:
        if self._checksums.get(key, digest := _digest(files)) != digest:
            raise ValueError(f"{files[0].name} is not what was written")

    def describe(self, description: dict[str, Any], free: Collection[str] = ()) -> None:
        """Write what the results are of; OSError if they are another study's, the settings in `free` aside."""
        self.check_description(description, free)
        aside = self.folder / "study.partial"
        aside.write_text(json.dumps(description, indent=1), encoding="utf-8")
        self._note({"study": _digest([aside])})
        aside.replace(self.folder / "study.json")

    def check_description(self, description: dict[str, Any], free: Collection[str] = ()) -> None:
        """OSError if what is written of the results is not this, the settings in `free` aside."""
        try:
            written = json.loads((self.folder / "study.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return
        with calling_damaged(self.folder):
            there, mine = ({**of, **of.get("settings", {})} for of in (written, description))
            names = there.keys() & mine.keys() - {*free, "settings"}
        if other := ", ".join(sorted(name for name in names if there[name] != mine[name])):
            raise OSError(f"{self.folder} holds results of another study, of other {other}: delete it, and run again")

    def _note(self, checksums: dict[str, str]) -> None:
        """Add to the file of checksums those that are new."""
        with self._log.open("a") as log:
            for key, checksum in checksums.items():
                if self._checksums.get(key) != checksum:
                    log.write(f"\n{key} {checksum}")  # a new line first, lest a torn one swallow it
        self._checksums |= checksums

    def is_complete(self, unit: int) -> bool:
        """Whether all of a unit is there and as it was written."""
        if str(unit) not in self._checksums or self._lacking:
            return False
        try:
            return self._checksums[str(unit)] == _checksum(self._read(unit))
        except Exception:  # what a damaged chunk or picture raises depends on where it is damaged
            return False

    def write(self, units: range, dataset: xr.Dataset) -> None:
        """Write these units' variables, each with `image` as its first dimension."""
        self._arrays, self._pictures = {}, "image_rgb" in dataset and "frame" not in dataset["image_rgb"].dims
        for name, values in dataset.data_vars.items():
            if name == "image_rgb" and self._pictures:
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
        variables = [str(name) for name in dataset.data_vars]
        self._group.attrs.update({"coords": fixed, "attrs": dict(dataset.attrs), "variables": variables})
        self._lacking = False
        checksums = {"metadata": _digest(self._metadata())}
        for at, unit in enumerate(units):
            checksums[str(unit)] = _checksum({str(name): v.values[at] for name, v in dataset.data_vars.items()})
        self._note(checksums)

    def open(self) -> xr.Dataset:
        """Everything, each array read from the disk only when and where it is used."""
        with calling_damaged(self.folder):
            own: list[Any] = [(name, array) for name, array in self._group.arrays() if name in self._arrays]
            variables = {name: _lazy(array.metadata.dimension_names, ZarrArrayWrapper(array)) for name, array in own}
            if self._pictures:
                pictures = _Pictures([self._picture(i) for i in range(self.size)])
                variables["image_rgb"] = _lazy(("image", "y", "x", "rgb"), pictures)
            written: Any = self._group.attrs
            coords = {name: (dims, values) for name, (dims, values) in written["coords"].items()}
            return xr.Dataset(variables, coords, written["attrs"])

    def _read(self, unit: int) -> dict[str, np.ndarray]:
        values = {name: np.asarray(array[unit]) for name, array in self._arrays.items()}
        if self._pictures:
            values["image_rgb"] = _pixels(self._picture(unit))
        return values

    def _picture(self, unit: int) -> Path:
        return self.folder / "images" / f"{unit:05d}.png"


def count_finished(folder: Path) -> int:
    """Number of units that were written in `folder`, without a look at whether they are damaged since."""
    return sum(key.isdecimal() for key in _read_log(folder / "checksums.txt"))


def _read_log(path: Path) -> dict[str, str]:
    """What has a checksum -> its last one."""
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return dict(line.split() for line in lines if len(line.split()) == 2)


def _digest(files: list[Path]) -> str:
    return hashlib.blake2b(b"".join(file.read_bytes() for file in files), digest_size=8).hexdigest()


class _Files(zarr.storage.LocalStore):
    """A folder of chunks, where one that is missing stands for zeros, as long as the folder is there."""

    async def get(self, key: str, *args: Any, **options: Any) -> Any:
        content = await super().get(key, *args, **options)
        if content is None and not self.root.exists() and "zarr.json" not in key:
            raise FileNotFoundError(f"{self.root} is gone, with the results that were open: run the study again")
        return content


def _lazy(dims: Any, array: Any) -> xr.Variable:
    """An array to be read where it is used, and then kept."""
    return xr.Variable(dims, indexing.MemoryCachedArray(indexing.LazilyIndexedArray(array)))


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
