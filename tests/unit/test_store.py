"""What is on the disk: read where it is used, never unpickled, never written to by a reader."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from toy_study import UNITS, Toy

from selattn_lib.studies import store


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path, seconds=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    return Toy(tmp_path_factory.mktemp("finished"), seconds=0).run().load()


def test_results_are_read_where_they_are_used(toy: Toy, whole: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that memory does not grow with the number of images."""
    results, opened, read = toy.run(), [], store._pixels
    monkeypatch.setattr(store, "_pixels", lambda path: opened.append(path.name) or read(path))
    np.testing.assert_array_equal(results.image_rgb.isel(image=3, y=slice(8, 16)), whole.image_rgb[3, 8:16])
    assert opened == ["00003.png"]
    np.testing.assert_array_equal(results.image_rgb[[7, 2, 2]], whole.image_rgb.values[[7, 2, 2]])
    np.testing.assert_array_equal(results.image_rgb[::-5, 3, :, 1], whole.image_rgb.values[::-5, 3, :, 1])


class Mischief:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_store_from_a_stranger_is_not_unpickled(toy: Toy, whole: xr.Dataset) -> None:
    """In zarr's second format an array could name pickle as its codec."""
    data, evil = toy.folder / "data.zarr", pickle.dumps(Mischief(toy.runs / "made"))
    array = {"shape": [UNITS], "chunks": [1], "dtype": "|O", "filters": [{"id": "pickle", "protocol": 5}]}
    array |= {"zarr_format": 2, "compressor": None, "fill_value": None, "order": "C"}
    (data / "truth").mkdir(parents=True)
    (data / ".zgroup").write_text('{"zarr_format": 2}')
    (data / "truth" / ".zarray").write_text(json.dumps(array))
    for unit in range(UNITS):
        (data / "truth" / str(unit)).write_bytes(evil)
    assert toy.run().identical(whole)
    assert not (toy.runs / "made").exists()
    pickle.loads(evil)
    assert (toy.runs / "made").exists(), "the store is indeed harmful"


def test_a_reader_writes_nothing_and_clears_nothing_away(toy: Toy, whole: xr.Dataset) -> None:
    toy.run()
    (toy.folder / "images" / "00003.partial").write_text("another process is at this")
    before = {path: path.stat().st_mtime_ns for path in toy.folder.rglob("*")}
    reader = store.Store(toy.folder, UNITS, read_only=True)
    assert all(map(reader.is_complete, range(UNITS))) and reader.open().identical(whole)
    assert {path: path.stat().st_mtime_ns for path in toy.folder.rglob("*")} == before
