"""JupyterLab with a live kernel, in Chromium: draw and explain, move a slider, go on from it in the next cell."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from chromium import watched_page
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import Browser, Page, expect

CELLS = [
    "from selattn_lib.explorers import Workbench\nbench = Workbench(steps=2)\nbench",
    "print(bench.selection, len(bench.heads), f'{bench.mask.values.mean():.0%}')",
]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """Address of a JupyterLab without settings of this machine's user, in a folder with one notebook."""
    nb = new_notebook(cells=[new_code_cell(source) for source in CELLS])
    nb.metadata.kernelspec = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    (tmp_path / "work").mkdir()
    nbformat.write(nb, tmp_path / "work" / "try.ipynb")
    own = ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}", "--port-retries=0"]
    command += ["--IdentityProvider.token=", "--LabApp.news_url=None"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    environment = os.environ | {name: str(tmp_path / name) for name in own}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=tmp_path / "work", env=environment, stdout=log, stderr=log)
    root = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(root + "api").close()
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.5)
        yield root
    finally:
        server.terminate()
        server.wait(30)


def run_cell(page: Page, number: int) -> None:
    page.locator(".jp-CodeCell .cm-content").nth(number).click()
    page.keyboard.press("Shift+Enter")


def test_draw_and_explain_then_read_the_choice_in_the_next_cell(browser: Browser, lab: str) -> None:
    with browser.new_context(viewport={"width": 1280, "height": 1000}) as context, watched_page(context, lab) as page:
        page.goto(f"{lab}doc/tree/try.ipynb")
        expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=60_000)
        run_cell(page, 0)
        button = page.get_by_role("button", name="Draw and explain")
        expect(button).to_be_visible(timeout=120_000)
        button.click()
        page.wait_for_selector(".selattn-view[data-draw-ms]", timeout=120_000)
        k = page.locator('.noUi-handle[aria-label="Heads k"]').first
        k.press("Home")
        for _ in range(6):
            k.press("ArrowRight")
        page.wait_for_timeout(500)
        share = re.search(r"(\d+) %", page.locator(".selattn-chosen figcaption").first.inner_text())
        run_cell(page, 1)
        printed = page.locator(".jp-OutputArea-output pre").last
        expect(printed).to_contain_text("'k': 7", timeout=30_000)
        assert share and printed.inner_text().split()[-2:] == ["7", f"{share[1]}%"]
