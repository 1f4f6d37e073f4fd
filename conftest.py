"""For notebooks and tests alike: what nbval does not compare, and the book that the tests look at."""

import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent
os.environ.setdefault("SELATTN_RUNS", str(ROOT / "runs"))  # wherever a kernel is started, one store of studies


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Figures hold numbers to the last digit, which differs between CPUs: nbval compares what is printed."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += ("application/vnd.plotly.v1+json", "text/html", "stderr")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file goes to one worker; so do the chapters, which share studies, and all that read the book. The longest go
    first."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "book" if "tests/book/" in file else "chapters" if "notebooks/test_notebooks" in file else file

    return Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of notebooks first, then those of the book, then the rest."""
    items.sort(key=lambda item: ("notebooks" not in item.path.parts, "book" not in item.path.parts))
