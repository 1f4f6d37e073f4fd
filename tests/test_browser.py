"""The book in Chromium with the network cut, over http:// and from files."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from chromium import address, expect_no_overflow, watched_page
from playwright.sync_api import Browser, BrowserContext, Page
from test_book import pages

PROSE = [page for page in pages() if page.startswith("book/")]
CHAPTERS = [page for page in pages() if page.startswith("notebooks/")]


@pytest.fixture(scope="module", params=["http", "file"])
def root(request: pytest.FixtureRequest, book: Path) -> Iterator[str]:
    """Address of the book, ending in a slash."""
    with address(book, request.param) as root:
        yield root


@pytest.fixture(scope="module")
def context(browser: Browser, root: str) -> Iterator[BrowserContext]:
    """One for all pages of an address, so that the shared scripts are read once, as for a reader."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, root: str) -> Iterator[Page]:
    with watched_page(context, root) as page:
        yield page


def open_page(page: Page, address: str) -> None:
    """Go there and wait until every widget and figure is drawn."""
    page.goto(address, timeout=60_000)
    for there, drawn in {
        'script[type="application/vnd.jupyter.widget-view+json"]': ".widget-subarea > *",
        ".plotly-figure": ".plotly-figure .main-svg:first-child",
    }.items():
        count = page.locator(there).count()
        page.wait_for_function(
            "([drawn, count]) => document.querySelectorAll(drawn).length >= count",
            arg=[drawn, count],
            timeout=60_000,
        )


@pytest.mark.parametrize("name", ["index", *PROSE, "search"])
def test_a_page_loads_and_fits_a_phone(page: Page, root: str, name: str) -> None:
    open_page(page, f"{root}{name}.html")
    if name == "index":
        page.wait_for_url("**/book/intro.html")
    count = "selector => document.querySelectorAll(selector).length"
    page.wait_for_function(f"({count})('.math') == ({count})('mjx-container')")
    assert page.locator("mjx-merror").count() == 0
    expect_no_overflow(page)


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_has_figures_and_a_live_explorer_and_fits_a_phone(page: Page, root: str, name: str) -> None:
    open_page(page, f"{root}{name}.html")
    assert page.locator(".plotly-figure .main-svg").count() > 0

    explorer = page.locator(".widget-subarea").first
    handle = explorer.locator(".noUi-handle").first
    canvas = "el => [...el.querySelectorAll('canvas')].map(c => c.toDataURL()).join()"
    words, pictures = explorer.inner_text(), explorer.evaluate(canvas)
    handle.focus()
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(300)
    assert explorer.inner_text() != words
    assert explorer.evaluate(canvas) != pictures

    colour = "getComputedStyle(document.querySelector('.plotly-figure text')).fill"
    before = page.evaluate(colour)
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    page.wait_for_timeout(300)
    assert page.evaluate(colour) != before
    expect_no_overflow(page)
