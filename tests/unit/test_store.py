"""Nothing lost: killed, damaged, crowded, out of disk or memory, or spread over workers, a study ends as it should."""

import errno
import json
import multiprocessing
import os
import pickle
import random
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
import zarr
from diffusers import StableDiffusionPipeline

from selattn_lib import store
from selattn_lib.studies.base import StudyBase, runs_folder
from selattn_lib.studies.generated import Study
from selattn_lib.studies.runner import workers_wanted

UNITS, BATCH = 12, 2
FORK = multiprocessing.get_context("fork")  # starts at once, with all that is imported here


class Toy(StudyBase):
    """Numbers and pictures that depend on the unit alone, in a moment."""

    batch: int = BATCH

    @property
    def size(self) -> int:
        return UNITS

    def compute(self, units: Sequence[int]) -> xr.Dataset:
        with runs_folder().joinpath("computed").open("a") as log:
            log.write("x")
        time.sleep(0.03)
        draws = [np.random.default_rng(unit) for unit in units]
        maps = np.stack([draw.random((3, 16, 16)).astype(np.float16) for draw in draws])
        pictures = np.stack([draw.integers(0, 256, (32, 24, 3), dtype=np.uint8) for draw in draws])
        data = {"maps": (("image", "head", "v", "u"), maps), "image_rgb": (("image", "y", "x", "rgb"), pictures)}
        return xr.Dataset(
            {**data, "truth": (("image", "y", "x"), pictures[..., 0] > 99)}, {"head": [2, 0, 1]}, {"a": 1}
        )


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELATTN_RUNS", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with an unbroken one in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELATTN_RUNS", str(tmp_path_factory.mktemp("finished")))
        Toy().run()
        return runs_folder()


@pytest.fixture(scope="module")
def whole(finished: Path) -> xr.Dataset:
    """The results of the unbroken run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELATTN_RUNS", str(finished))
        return Toy().run().load()


@pytest.fixture
def copy(finished: Path, runs: Path) -> Path:
    """The folder of a study that was run to its end, to be spoilt."""
    shutil.copytree(finished, runs, dirs_exist_ok=True)
    return Toy().folder


def computed() -> int:
    """Number of batches that any process has begun to compute so far."""
    log = runs_folder() / "computed"
    return len(log.read_text()) if log.exists() else 0


def test_killed_at_random_moments_it_ends_with_the_same_bits(whole: xr.Dataset) -> None:
    study, moments, kills = Toy(), random.Random(1), 8
    for _ in range(kills):
        process = FORK.Process(target=study.run)
        process.start()
        process.join(timeout=moments.uniform(0.02, 0.3))
        process.kill()
        process.join()
    assert study.run().identical(whole)
    assert not list(study.folder.rglob("*.partial")), "what a killed process was writing is cleared away"
    assert UNITS // BATCH < computed() <= UNITS // BATCH + kills, "one batch in flight for each kill, at most"


def test_two_processes_share_the_work_of_one_study(whole: xr.Dataset) -> None:
    processes = [FORK.Process(target=Toy().run) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert computed() == UNITS // BATCH
    assert Toy().run().identical(whole)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("part", ["data.zarr/maps/c/5/0/0/0", "data.zarr/batch/c/5", "images/00005.png"])
def test_what_was_damaged_is_computed_again(
    copy: Path, whole: xr.Dataset, part: str, damage: Callable[[Path], None]
) -> None:
    damage(copy / part)
    assert Toy().run().identical(whole)
    assert computed() == UNITS // BATCH + 1


@pytest.mark.parametrize("part", ["zarr.json", "maps/zarr.json"])
def test_without_what_describes_its_arrays_all_is_computed_again(copy: Path, whole: xr.Dataset, part: str) -> None:
    (copy / "data.zarr" / part).unlink()
    assert Toy().run().identical(whole)
    assert computed() == 2 * UNITS // BATCH


def test_checksums_cut_short_cost_one_batch(copy: Path, whole: xr.Dataset) -> None:
    log = copy / "checksums.txt"
    log.write_bytes(log.read_bytes()[:-5])
    for _ in range(2):  # the torn line did not spoil the next
        assert Toy().run().identical(whole)
        assert computed() == UNITS // BATCH + 1


def test_a_damaged_folder_is_said_to_be_damaged(copy: Path) -> None:
    (copy / "data.zarr" / "truth" / "zarr.json").write_text("{")
    with pytest.raises(OSError, match=f"{copy} is damaged .*: delete it, and run the study again"):
        Toy().run()


@pytest.mark.parametrize("at", [1, 5, 30])
def test_a_full_disk_is_one_sentence_and_loses_nothing(
    whole: xr.Dataset, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    write, calls = zarr.storage.LocalStore.set, []

    async def full(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == at:
            raise OSError(errno.ENOSPC, "No space left on device")
        await write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(zarr.storage.LocalStore, "set", full)
        with pytest.raises(OSError, match="disk of .* is full; what is computed is kept") as error:
            Toy().run()
    assert error.value.errno == errno.ENOSPC
    assert Toy().run().identical(whole)
    assert computed() <= UNITS // BATCH + 1


def crowd(monkeypatch: pytest.MonkeyPatch, most: int, error: Exception) -> None:
    """Have `error` raised for more than so many units at a time."""
    compute = Toy.compute

    def crowded(self: Toy, units: range) -> xr.Dataset:
        if len(units) > most:
            raise error
        return compute(self, units)

    monkeypatch.setattr(Toy, "compute", crowded)


FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB")


def test_a_batch_that_does_not_fit_is_halved(whole: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd(monkeypatch, 2, FULL)
    found = Toy(batch=5).run()
    assert found["batch"].values.tolist() == [2, 2, 1, 2, 2] * 2 + [2, 2]
    assert found.drop_vars("batch").identical(whole.drop_vars("batch"))


def test_not_even_one_image_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd(monkeypatch, 0, FULL)
    with pytest.raises(MemoryError, match=r"no memory for even one image at a time \(CUDA out of memory"):
        Toy().run()


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd(monkeypatch, 0, RuntimeError("broken"))
    with pytest.raises(RuntimeError, match="^broken$"):
        Toy().run()


def test_threads_of_a_scheduler_give_the_same_bits(whole: xr.Dataset) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as here:
        assert Toy().run(workers=here.scheduler_address).identical(whole)
        shutil.rmtree(Toy().folder)
        assert Toy().run(workers=here).identical(whole)


def test_processes_give_the_same_bits_and_a_killed_one_costs_its_batch(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed")
    psutil = pytest.importorskip("psutil")
    tiny_pipe.save_pretrained(tmp_path / "model")
    fields = {"words": ["bear", "cat"], "seeds": 3, "steps": 1, "batch": 1, "segmenter": "emoji-sd"}
    study = Study(model=str(tmp_path / "model"), **fields)
    serial = study.run().load()
    monkeypatch.setenv("SELATTN_RUNS", str(tmp_path / "again"))

    def kill() -> None:
        while not (study.folder / "checksums.txt").exists():  # until a batch has come back
            time.sleep(0.02)
        worker = multiprocessing.active_children()[0]
        killed.append(psutil.Process(worker.pid).environ())
        worker.kill()

    killed: list[dict[str, str]] = []
    threading.Thread(target=kill).start()
    assert study.run(workers=2).identical(serial)
    assert [environment["OMP_WAIT_POLICY"] for environment in killed] == ["PASSIVE"]


@pytest.mark.parametrize("said, wanted", [("0", 0), ("", 0), ("2", 2), ("tcp://node:8786", "tcp://node:8786")])
def test_workers_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, said: str, wanted: Any) -> None:
    monkeypatch.setenv("SELATTN_WORKERS", said)
    assert workers_wanted() == wanted and workers_wanted(0) == 0


@pytest.mark.parametrize("workers", ["many", -1, 1.5, True])
def test_workers_that_make_no_sense(workers: Any) -> None:
    with pytest.raises(ValueError, match=r"workers=.*: expected"):
        Toy().run(workers=workers)
    assert computed() == 0


def test_results_are_read_where_they_are_used(copy: Path, whole: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that memory does not grow with the number of images."""
    found, opened, read = Toy().run(), [], store._pixels
    monkeypatch.setattr(store, "_pixels", lambda path: opened.append(path.name) or read(path))
    np.testing.assert_array_equal(found.image_rgb.isel(image=3, y=slice(8, 16)), whole.image_rgb[3, 8:16])
    assert opened == ["00003.png"]
    np.testing.assert_array_equal(found.image_rgb[[7, 2, 2]], whole.image_rgb.values[[7, 2, 2]])
    np.testing.assert_array_equal(found.image_rgb[::-5, 3, :, 1], whole.image_rgb.values[::-5, 3, :, 1])


class Mischief:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_store_from_a_stranger_is_not_unpickled(whole: xr.Dataset, runs: Path) -> None:
    """In zarr's second format an array could name pickle as its codec."""
    data, evil = Toy().folder / "data.zarr", pickle.dumps(Mischief(runs / "made"))
    array = {"shape": [UNITS], "chunks": [1], "dtype": "|O", "filters": [{"id": "pickle", "protocol": 5}]}
    array |= {"zarr_format": 2, "compressor": None, "fill_value": None, "order": "C"}
    (data / "truth").mkdir(parents=True)
    (data / ".zgroup").write_text('{"zarr_format": 2}')
    (data / "truth" / ".zarray").write_text(json.dumps(array))
    for unit in range(UNITS):
        (data / "truth" / str(unit)).write_bytes(evil)
    assert Toy().run().identical(whole)
    assert not (runs / "made").exists()
    pickle.loads(evil)
    assert (runs / "made").exists(), "the store is indeed harmful"
