"""What is tested in processes of its own, which take seconds to import PyTorch: what a fresh Python imports and says,
signals, and workers."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook
from toy_study import Toy

from selattn_lib.emoji.recipe.composing import Scenes, captioned
from selattn_lib.emoji.recipe.examples import Examples
from selattn_lib.emoji.scenes import compose
from selattn_lib.studies.store import count_finished

HEAVY = {"torch", "diffusers", "transformers", "xarray", "nbformat", "plotly", "scipy", "sklearn", "papermill"}
SCRIPT = f"""
import json, sys
import selattn_lib as sa
from selattn_lib import cli
import selattn_lib.publishing.build
cli.main(["--help"])
heavy = {HEAVY} & set(sys.modules)
import selattn_lib.publishing.notebooks, selattn_lib.studies.parameters
heavy |= {HEAVY} & set(sys.modules) - {{"nbformat"}}
import selattn_lib.evaluation, selattn_lib.figures, selattn_lib.maps
heavy |= {{"diffusers"}} & set(sys.modules)  # saved maps are read, scored and shown without it
sa.load_pipeline("emoji-sd", device="cpu")
said = []
print("hub", file=sys.stderr)
for load, name in (sa.load_pipeline, "owner/model"), (sa.load_segmenter, "sam3"):
    try: load(name)
    except OSError as error: said.append(str(error))
print(json.dumps([sorted(heavy), type(sa.capture).__name__, sa.studies.__name__, said]))
"""


class Gate(BaseHTTPRequestHandler):
    """A hub whose models all wait for their terms to be accepted."""

    def do_HEAD(self) -> None:  # noqa: N802
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.CompletedProcess[str]]:
    """What a Python says that has just started, with a hub whose address is read once, when it is imported."""
    server = HTTPServer(("127.0.0.1", 0), Gate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path_factory.mktemp("hub"))}
    environment = os.environ | hub | {"HF_HUB_OFFLINE": "0"}
    yield subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    server.shutdown()


def test_importing_is_quick_and_quiet(fresh: subprocess.CompletedProcess[str]) -> None:
    """What takes seconds to import is imported when it is used."""
    assert fresh.returncode == 0 and fresh.stderr.partition("hub\n")[0] == ""
    assert json.loads(fresh.stdout.splitlines()[-1])[:3] == [[], "function", "selattn_lib.studies"]


def test_a_gated_model_says_where_to_accept_its_terms(fresh: subprocess.CompletedProcess[str]) -> None:
    said = json.loads(fresh.stdout.splitlines()[-1])[-1]
    assert len(said) == 2, fresh.stderr
    for line, source in zip(said, ("owner/model", "facebook/sam3"), strict=True):
        assert line.endswith(f"accept its terms at https://huggingface.co/{source}, then log in with: hf auth login")


def test_a_signal_leaves_nothing_behind(tmp_path: Path) -> None:
    started = tmp_path / "started"
    notebook = new_notebook(cells=[new_code_cell(f"open({str(started)!r}, 'w'); import time; time.sleep(60)")])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "a.ipynb")
    command = [Path(sys.executable).with_name("selattn"), "run", tmp_path / "a.ipynb", "--out", tmp_path / "out"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    for _ in range(600):
        if started.exists():
            break
        time.sleep(0.1)
    process.terminate()
    assert process.wait(60) == 143
    assert list((tmp_path / "out").iterdir()) == []


def test_examples_made_by_worker_processes_are_those_made_without(tmp_path: Path) -> None:
    def prepare(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        return {"mean": batch["images"].float().mean((1, 2, 3))}

    one, many = (
        Examples(Scenes(130, (3,), captioned), prepare, tmp_path / f"{workers}.pt", workers) for workers in (0, 2)
    )
    assert one.made == many.made == 130 and torch.equal(one.tensors["mean"], many.tensors["mean"])
    means = [compose(np.random.default_rng((3, i))).image.mean() for i in (0, 129)]
    np.testing.assert_allclose(one.draw(torch.tensor([0.0, 0.9999]))["mean"], means, rtol=1e-5)


def test_processes_give_the_same_bits_and_a_killed_one_costs_its_batch(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    psutil = pytest.importorskip("psutil")
    toy = Toy(tmp_path / "spread", seconds=0.2)
    for folder in ("spread", "whole"):
        (tmp_path / folder).mkdir()
    killed: list[dict[str, str]] = []

    def kill() -> None:
        while not count_finished(toy.folder):  # until a batch has come back
            time.sleep(0.02)
        worker = multiprocessing.active_children()[0]
        killed.append(psutil.Process(worker.pid).environ())
        worker.kill()

    threading.Thread(target=kill).start()
    assert toy.run(workers=2).identical(Toy(tmp_path / "whole").run().load())
    assert [environment["OMP_WAIT_POLICY"] for environment in killed] == ["PASSIVE"]
