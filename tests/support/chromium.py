"""Chromium with the network cut, and pages that note every error and every request to the outside."""

import functools
import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from system_setup import find_browser

AXE = Path(__file__).parents[1] / "book" / "axe" / "axe.min.js"  # axe-core 4.14.1, as on npm
FLAGS = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update".split()
FLAGS += ["--disable-sync", "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]


@contextmanager
def chromium() -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        pytest.fail("no browser: run `make system`", pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def address(folder: Path, scheme: str) -> Iterator[str]:
    """Address of a folder, ending in a slash, by "http" or "file"."""
    if scheme == "file":
        yield folder.as_uri() + "/"
        return
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextmanager
def watched(page: Page, root: str) -> Iterator[Page]:
    """The page fails its test, at the end, on any error or request to anywhere but `root`; then it is blank again."""
    trouble: list[str] = []
    own = (root, "data:", "blob:")
    notes: dict[Any, Callable[[Any], None]] = {
        "pageerror": lambda error: trouble.append(f"error: {error}"),
        "console": lambda m: trouble.append(f"console: {m.text}") if m.type == "error" else None,
        "requestfailed": lambda request: trouble.append(f"failed: {request.url}"),
        "request": lambda r: None if r.url.startswith(own) else trouble.append(f"outside: {r.url}"),
    }
    for event, note in notes.items():
        page.on(event, note)
    yield page
    place, found = page.url, list(trouble)  # leaving breaks off what is still on its way
    page.goto("about:blank")
    for event, note in notes.items():
        page.remove_listener(event, note)
    assert not found, (place, found)


@contextmanager
def watched_page(context: BrowserContext, root: str) -> Iterator[Page]:
    """A new page, watched."""
    with context.new_page() as page, watched(page, root):
        yield page


def expect_no_overflow(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_function("document.documentElement.scrollWidth <= 390")


def expect_accessible(page: Page) -> None:
    """No violation of more than minor impact by axe-core's rules."""
    page.wait_for_function("[...document.querySelectorAll('.noUi-handle')].every((slider) => slider.ariaLabel)")
    if page.evaluate("!window.axe"):
        page.evaluate(AXE.read_text())
    rules = page.evaluate("axe.run({resultTypes: ['violations'], preload: false, selectors: false})")["violations"]
    broken = [rule for rule in rules if rule["impact"] != "minor"]
    assert not broken, [(rule["id"], rule["nodes"][0]["html"]) for rule in broken]
