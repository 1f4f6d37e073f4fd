"""For notebooks and tests alike: what nbval does not compare, and the book that the tests look at."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent
os.environ.setdefault("SELATTN_RUNS", str(ROOT / "runs"))  # wherever a kernel is started, one store of studies


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Figures hold numbers to the last digit, which differs between CPUs: nbval compares what is printed."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("application/vnd.plotly.v1+json", "text/html", "stderr")


def place(file: str) -> tuple[int, str]:
    """When a file's tests are run, and what goes to one worker: the chapters, which share a kernel and studies, and all
    that read the book. These two take longest, and begin."""
    if "tests/notebooks/test_reproduced" in file or "tests/notebooks/test_notebooks" in file:
        return ("test_notebooks" in file), "chapters"
    if "tests/book/" in file:
        return 2, "book"
    if "test_families" in file or "supported" in file:  # all models of all families are built and laid out once
        return 4, "families"
    return (3 if "notebooks/" in file or "tests/processes/" in file else 4), file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Work is given out in the order of the collection, not first what has most tests."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return place(super()._split_scope(nodeid))[1]

    config.option.loadscopereorder = False
    return Together(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported stays: the garbage collector need not look at it, now or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: place(item.nodeid)[0])
