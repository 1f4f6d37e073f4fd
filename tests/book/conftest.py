"""A browser, and the book that the tests look at."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import chromium
from playwright.sync_api import Browser, Page

from selattn_lib.publishing.build import build_book

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Iterator[Page]:
    """One for all pages, one after the other, so that the shared scripts are compiled once. Colours change at once."""
    with browser.new_context(color_scheme="light", reduced_motion="reduce") as context, context.new_page() as page:
        yield page


@pytest.fixture(scope="session")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the book, built from the committed notebooks with warnings as errors."""
    return build_book(ROOT, ROOT / "notebooks", tmp_path_factory.mktemp("book"), strict=True).parent
