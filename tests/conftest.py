"""Fixtures: a tiny Stable Diffusion pipeline, a small head-maps dataset, and where `selattn reproduce` is tried."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # tests import what they use, and no more: diffusers takes seconds
    from diffusers import StableDiffusionPipeline

    from selattn_lib.maps.head_maps import HeadMaps

gc.set_threshold(100_000, 50, 50)  # looking for garbage among millions of objects takes a tenth of the time
BLOCKS = {16: "down", 8: "up", 4: "mid"}  # by the width of the grid


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """What modules hold is no garbage: who collects some, as diffusers for each part that it loads, is done at once."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def maps() -> HeadMaps:
    """Nine heads at three resolutions, their numbers interleaved; 64 x 128 pixels."""
    import numpy as np
    import xarray as xr

    from selattn_lib.maps.head_maps import HeadMaps

    rng = np.random.default_rng(0)
    data: dict[str, Any] = {}
    coords: dict[str, Any] = {"word": ["bear", "cat"]}
    for i, width in enumerate(BLOCKS):
        grid, numbers = f"{width // 2}x{width}", [i, i + 3, i + 6]
        dims = ("image", "word", f"head_{grid}", f"y_{grid}", f"x_{grid}")
        data[f"maps_{grid}"] = (dims, rng.random((2, 2, 3, width // 2, width), dtype=np.float32) ** 4)
        coords[f"head_{grid}"] = numbers
        coords[f"place_{grid}"] = (f"head_{grid}", [BLOCKS[width]] * 3)
    return HeadMaps(xr.Dataset(data, coords, attrs={"height": 64, "width": 128}))


@pytest.fixture(scope="session")
def shared_pipe() -> StableDiffusionPipeline:
    from tiny_sd import build_pipeline

    return build_pipeline()


@pytest.fixture
def tiny_pipe(shared_pipe: StableDiffusionPipeline) -> Iterator[StableDiffusionPipeline]:
    """The pipeline of `tiny_sd`, checked after each test for hooks left behind."""
    from tiny_sd import count_hooks

    yield shared_pipe
    assert count_hooks(shared_pipe) == 0


@pytest.fixture(scope="session")
def one_kernel() -> Iterator[None]:
    """Notebooks are run in one kernel: see `one_kernel.py`."""
    from one_kernel import one_kernel

    with one_kernel():
        yield


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the repository, studies elsewhere, and no way to the hub."""
    folder = tmp_path_factory.mktemp("reproduce")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parents[1])
        patch.setenv("SELATTN_RUNS", str(folder / "runs"))
        patch.setenv("SELATTN_DEVICE", "")  # both put back at the end
        patch.setenv("SELATTN_OFFLOAD", "")
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        yield folder


@pytest.fixture(scope="module")
def arguments(surroundings: Path) -> list[str]:
    """Of `selattn reproduce`, on a narrow model."""
    from narrow_sd import save_models

    return save_models(surroundings, narrow=True)
