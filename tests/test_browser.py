"""The book in Chromium with the network cut, over http:// and from files."""

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from test_book import pages

PROSE = [page for page in pages() if page.startswith("book/")]
CHAPTERS = [page for page in pages() if page.startswith("notebooks/")]
FLAGS = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update".split()
FLAGS += ["--disable-sync", "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
INSTALL = "no Chromium found: apt-get install chromium, or .venv/bin/playwright install chromium"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    system = next((path for name in names if (path := shutil.which(name))), None)
    with sync_playwright() as playwright:
        if system is None and not Path(playwright.chromium.executable_path).exists():
            pytest.fail(INSTALL, pytrace=False)
        browser = playwright.chromium.launch(executable_path=system, args=FLAGS)
        yield browser
        browser.close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module", params=["http", "file"])
def root(request: pytest.FixtureRequest, book: Path) -> Iterator[str]:
    """Address of the book, ending in a slash."""
    if request.param == "file":
        yield book.as_uri() + "/"
        return
    handler = functools.partial(Quiet, directory=str(book))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def context(browser: Browser, root: str) -> Iterator[BrowserContext]:
    """One for all pages of an address, so that the shared scripts are read once, as for a reader."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext, root: str) -> Iterator[Page]:
    """A page that fails its test, at the end, on any error or request to anywhere but the book."""
    page = context.new_page()
    trouble: list[str] = []
    own = (root, "data:", "blob:")
    page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
    page.on("console", lambda m: trouble.append(f"console: {m.text}") if m.type == "error" else None)
    page.on("requestfailed", lambda request: trouble.append(f"failed: {request.url}"))
    page.on("request", lambda r: None if r.url.startswith(own) else trouble.append(f"outside: {r.url}"))
    yield page
    page.close()
    assert trouble == []


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


def expect_no_overflow(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


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
