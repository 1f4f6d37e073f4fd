"""Nothing lost: killed, damaged, crowded, out of disk or memory, or spread over workers, a run ends as it should."""

import errno
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
import zarr
from filelock import FileLock
from toy_study import BATCH, UNITS, Toy
from tqdm import tqdm

from selattn_lib.studies import store
from selattn_lib.studies.runner import workers_wanted
from selattn_lib.studies.store import count_finished

FORK = multiprocessing.get_context("fork")  # starts at once, with all that is imported here


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """Its forks share no lock of progress bars, which one that is killed may hold: the others would wait for ever."""
    monkeypatch.setattr(tqdm, "_lock", threading.RLock(), raising=False)
    return Toy(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """One that was run to its end without a break."""
    toy = Toy(tmp_path_factory.mktemp("finished"))
    toy.run()
    return toy


@pytest.fixture(scope="module")
def whole(finished: Toy) -> xr.Dataset:
    """The results of the unbroken run."""
    return finished.run().load()


@pytest.fixture
def copy(finished: Toy, toy: Toy) -> Toy:
    """A run that came to its end, to be spoilt."""
    shutil.copytree(finished.runs, toy.runs, dirs_exist_ok=True)
    return toy


def test_a_run_needs_no_torch() -> None:
    """So that workers and forks of it start at once."""
    code = "import sys, selattn_lib.studies.runner; print({'torch', 'pydantic', 'diffusers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_killed_at_random_moments_it_ends_with_the_same_bits(toy: Toy, whole: xr.Dataset) -> None:
    moments, kills = random.Random(1), 8
    for kill in range(kills):
        process = FORK.Process(target=toy.run)
        process.start()
        while kill == 0 and not toy.computed():  # one is in the midst of a batch, however slow the machine
            time.sleep(0.001)
        process.join(timeout=moments.uniform(0.02, 0.3))
        process.kill()
        process.join()
    assert toy.run().identical(whole)
    assert not list(toy.folder.rglob("*.partial")), "what a killed process was writing is cleared away"
    assert UNITS // BATCH < toy.computed() <= UNITS // BATCH + kills, "one batch in flight for each kill, at most"


def test_two_processes_share_the_work_of_one_study(toy: Toy, whole: xr.Dataset) -> None:
    processes = [FORK.Process(target=toy.run) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert toy.computed() == UNITS // BATCH
    assert toy.run().identical(whole)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
@pytest.mark.parametrize("part", ["data.zarr/maps/c/5/0/0/0", "data.zarr/batch/c/5", "images/00005.png"])
def test_what_was_damaged_is_computed_again(
    copy: Toy, whole: xr.Dataset, part: str, damage: Callable[[Path], None]
) -> None:
    damage(copy.folder / part)
    assert copy.run().identical(whole)
    assert copy.computed() == UNITS // BATCH + 1


@pytest.mark.parametrize("part", ["zarr.json", "maps/zarr.json"])
def test_without_what_describes_its_arrays_all_is_computed_again(copy: Toy, whole: xr.Dataset, part: str) -> None:
    (copy.folder / "data.zarr" / part).unlink()
    assert copy.run().identical(whole)
    assert copy.computed() == 2 * UNITS // BATCH


def test_checksums_cut_short_cost_one_batch(copy: Toy, whole: xr.Dataset) -> None:
    log = copy.folder / "checksums.txt"
    log.write_bytes(log.read_bytes()[:-5])
    for _ in range(2):  # the torn line did not spoil the next
        assert copy.run().identical(whole)
        assert copy.computed() == UNITS // BATCH + 1


def test_a_damaged_folder_is_said_to_be_damaged(copy: Toy) -> None:
    (copy.folder / "data.zarr" / "truth" / "zarr.json").write_text("{")
    with pytest.raises(OSError, match=f"{copy.folder} is damaged .*: delete it, and run the study again"):
        copy.run()


def test_an_array_too_many_costs_nothing(copy: Toy, whole: xr.Dataset) -> None:
    zarr.open_group(copy.folder / "data.zarr").create_array("more", shape=(UNITS,), dtype="f4")
    assert copy.run().identical(whole)
    assert copy.computed() == UNITS // BATCH


def test_another_studys_results_are_not_served(copy: Toy) -> None:
    description = copy.folder / "study.json"
    description.write_text(description.read_text().replace(str(UNITS), "7"))
    with pytest.raises(OSError, match="holds results of another study, of other size: delete it, and run again"):
        copy.run()
    description.write_text("[]")
    with pytest.raises(OSError, match="is damaged"):
        copy.run()


@pytest.mark.parametrize("name", ["study.json", "checksums.txt", "lock", "data.zarr", "images/00003.png", "images"])
@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_links_and_pipes_are_refused(copy: Toy, tmp_path: Path, name: str, kind: str) -> None:
    shutil.move(copy.folder / name, tmp_path / "outside")
    before = digest_of(tmp_path / "outside")
    (copy.folder / name).symlink_to(tmp_path / "outside") if kind == "link" else os.mkfifo(copy.folder / name)
    with pytest.raises(OSError, match="is a link, or no plain file|symbolic link|lock"):
        copy.run()
    assert digest_of(tmp_path / "outside") == before


def digest_of(place: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in [place, *place.rglob("*")] if path.is_file()}


def test_no_flipped_bit_of_what_describes_the_arrays_gives_other_numbers(copy: Toy, whole: xr.Dataset) -> None:
    draws = random.Random(3)
    for path in [*copy.folder.glob("data.zarr/**/zarr.json"), copy.folder / "study.json"] * 12:
        content = path.read_bytes()
        at = draws.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << draws.randrange(8)]) + content[at + 1 :])
        with pytest.raises(OSError, match="is damaged.*: delete it"):
            reader = store.Store(copy.folder, UNITS, read_only=True)
            assert not all(map(reader.is_complete, range(UNITS))), path
            raise OSError("is damaged: delete it")
        path.write_bytes(content)
    assert copy.run().identical(whole) and copy.computed() == UNITS // BATCH


def test_a_store_without_checksums_of_its_metadata_is_read_as_before(copy: Toy, whole: xr.Dataset) -> None:
    log, group = copy.folder / "checksums.txt", zarr.open_group(copy.folder / "data.zarr")
    log.write_text("\n".join(line for line in log.read_text().splitlines() if line[:1].isdecimal()))
    group.attrs.put({name: group.attrs[name] for name in ("coords", "attrs")})
    assert count_finished(copy.folder) == UNITS
    assert copy.run().identical(whole) and copy.computed() == UNITS // BATCH
    group.attrs.update({"coords": 5})
    with pytest.raises(OSError, match="is damaged"):
        copy.run()


def test_results_whose_folder_is_gone_are_not_zeros(copy: Toy) -> None:
    results = copy.run()
    shutil.rmtree(copy.folder)
    for name in ("maps", "truth", "image_rgb"):
        with pytest.raises(OSError, match=r"is gone, with the results|00000\.png"):
            results[name].load()


def test_checksums_that_are_no_text_are_counted(copy: Toy) -> None:
    log = copy.folder / "checksums.txt"
    log.write_bytes(log.read_bytes().replace(b"\n4 ", b"\n\xff "))
    assert count_finished(copy.folder) == UNITS - 1


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_on_a_disk_to_read_only_what_is_complete_opens(
    copy: Toy, whole: xr.Dataset, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    before = {path: path.stat().st_mtime_ns for path in copy.folder.rglob("*")}
    assert copy.run().identical(whole)
    assert {path: path.stat().st_mtime_ns for path in copy.folder.rglob("*")} == before
    (copy.folder / "images" / "00005.png").unlink()
    with pytest.raises(OSError, match="may only be read, and its results are not all there: .*SELATTN_RUNS"):
        copy.run()
    shutil.rmtree(copy.folder)
    with pytest.raises(OSError, match="may only be read, and its results are not all there: .*SELATTN_RUNS"):
        copy.run()


@pytest.mark.parametrize("at", [1, 5, 30])
def test_a_full_disk_is_one_sentence_and_loses_nothing(
    toy: Toy, whole: xr.Dataset, monkeypatch: pytest.MonkeyPatch, at: int
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
            toy.run()
    assert error.value.errno == errno.ENOSPC
    assert toy.run().identical(whole)
    assert toy.computed() <= UNITS // BATCH + 1


class Crowded(Toy):
    """Raises `error` for more than `most` units at a time."""

    most, error = 0, MemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nGPU 0 has 8 GiB")

    def compute(self, units: Sequence[int]) -> xr.Dataset:
        if len(units) > self.most:
            raise self.error
        return super().compute(units)


def test_a_batch_that_does_not_fit_is_halved(
    tmp_path: Path, whole: xr.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Crowded, "most", 2)
    results = Crowded(tmp_path, batch=5).run()
    assert results["batch"].values.tolist() == [2, 2, 1, 2, 2] * 2 + [2, 2]
    assert results.drop_vars("batch").identical(whole.drop_vars("batch"))


def test_not_even_one_image_fits(tmp_path: Path) -> None:
    with pytest.raises(MemoryError, match=r"^Toy: no memory for even one image at a time \(CUDA out .* 2.00 GiB\)$"):
        Crowded(tmp_path).run()


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Crowded, "error", RuntimeError("broken"))
    with pytest.raises(RuntimeError, match="^broken$"):
        Crowded(tmp_path).run()


def test_threads_of_a_scheduler_give_the_same_bits(toy: Toy, whole: xr.Dataset) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None) as here:
        assert toy.run(workers=here.scheduler_address).identical(whole)
        shutil.rmtree(toy.folder)
        assert toy.run(workers=here).identical(whole)


def test_a_scheduler_that_dies_is_a_sentence_and_loses_nothing(toy: Toy, whole: xr.Dataset) -> None:
    distributed = pytest.importorskip("distributed")
    here = distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None)

    def close() -> None:
        while not count_finished(toy.folder):
            time.sleep(0.02)
        here.close()

    threading.Thread(target=close).start()
    with pytest.raises(OSError, match="the scheduler of workers='.*' is gone: start one, then run again"):
        replace(toy, seconds=0.3).run(workers=here.scheduler_address)
    assert toy.run().identical(whole)


@pytest.mark.parametrize("said, wanted", [("0", 0), ("", 0), ("2", 2), ("tcp://node:8786", "tcp://node:8786")])
def test_workers_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, said: str, wanted: Any) -> None:
    monkeypatch.setenv("SELATTN_WORKERS", said)
    assert workers_wanted() == wanted and workers_wanted(0) == 0


@pytest.mark.parametrize("workers", ["many", -1, 1.5, True])
def test_workers_that_make_no_sense(toy: Toy, workers: Any) -> None:
    with pytest.raises(ValueError, match=r"workers=.*: expected"):
        toy.run(workers=workers)
    assert toy.computed() == 0
