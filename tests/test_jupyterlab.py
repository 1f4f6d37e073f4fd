"""One explorer in a real JupyterLab: sliders move the view, and the next cell reads what was selected."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import nbformat
import pytest
from playwright.sync_api import Browser

TESTS = Path(__file__).parent
FIRST = """from explorer_page import rankings, synthetic
from selattn_lib.explore import AggregationExplorer

results = synthetic([("down", 16), ("up", 8)], 64, ["bear"], 1)
explorer = AggregationExplorer(results, rankings(16), heads=results.attrs["heads"], k=5)
explorer"""
SECOND = """print("selected:", explorer.k, explorer.heads.tolist(), f"IoU {explorer.iou:.3f}")"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """The address of a JupyterLab with the notebook of the two cells, ending in a slash."""
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in (FIRST, SECOND)])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nb, tmp_path / "explorer.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    home = {"HOME": str(tmp_path), "JUPYTER_CONFIG_DIR": str(tmp_path / "config"), "PYTHONPATH": path}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
               f"--port={port}", "--IdentityProvider.token=", f"--ServerApp.root_dir={tmp_path}"]  # fmt: skip
    log = (tmp_path / "log").open("w")
    server = subprocess.Popen(command, env={**os.environ, **home}, stdout=log, stderr=log)
    root = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(240):
            try:
                urlopen(root + "api", timeout=1)
                break
            except OSError:
                time.sleep(0.5)
        yield root
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def test_an_explorer_in_jupyterlab(browser: Browser, lab: str) -> None:
    with browser.new_context(viewport={"width": 1280, "height": 1400}) as context:
        page = context.new_page()
        page.goto(lab + "lab/tree/explorer.ipynb", timeout=120_000)
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=120_000)
        page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=120_000)
        cells = page.locator(".jp-CodeCell .cm-content")
        cells.first.click()
        page.keyboard.press("Control+Enter")
        page.wait_for_selector(".selattn-view[data-update-ms]", timeout=240_000)
        handle = page.locator('.noUi-handle[aria-label="Heads k"]')
        handle.wait_for(state="attached")
        for _ in range(3):
            handle.press("ArrowRight")
        page.wait_for_timeout(1000)
        iou = page.locator(".selattn-chosen figcaption").inner_text().split(",")[0]
        assert "Top 8 heads" in page.locator(".selattn-status").inner_text()
        cells.last.click()
        page.keyboard.press("Control+Enter")
        said = page.locator(".jp-CodeCell").nth(1).locator(".jp-OutputArea-output", has_text="selected: 8")
        said.wait_for(timeout=60_000)
        numbers = said.inner_text()
        lit = page.locator(".selattn-grid rect").evaluate_all("els => els.map(e => e.style.fillOpacity)")
        heads = [i for i, opacity in enumerate(lit) if float(opacity) == 1]
        assert sorted(eval(numbers[numbers.index("[") : numbers.index("]") + 1])) == heads
        assert numbers.strip().endswith(iou.replace("IoU with round", "IoU"))
