"""`selattn reproduce`: what it says before it does anything."""

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_families import build_sdxl

from selattn_lib import cli
from selattn_lib.models.pipelines import network_layout
from selattn_lib.publishing.reproduce import Reproduction, time_call


def plan(words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What a dry run says, by the name of the line."""
    monkeypatch.setattr(
        "selattn_lib.publishing.reproduce.time_call", lambda unet, device, dtype, images: (images * 2.0, 3 * 10**9)
    )
    assert cli.main(["reproduce", "--dry-run", *shlex.split(words)]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    return dict(lines)  # type: ignore[arg-type]


def test_a_dry_run_says_what_the_paper_takes_and_leaves_no_trace(
    surroundings: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(surroundings.rglob("*"))
    said = plan("--model sd14 --device cpu", capsys, monkeypatch)
    assert sorted(surroundings.rglob("*")) == before
    assert said["model"] == "CompVis/stable-diffusion-v1-4, 128 heads, 0.86 G parameters in the UNet"
    assert said["device"] == "cpu, fp32, 10 images at a time"
    assert said["relevance"] == (
        "of 34 concepts, counted on 2,100 images of 1,000 class names, repeated in place of free prompts; "
        "the start token, where a model has one, is inside the softmax, as published"
    )
    assert said["masks"] == "by grounded-sam"
    assert said["images"].startswith("2,213, each of 50 steps; 0 are there")
    assert said["time"].startswith(
        "2 days, 14:42:06, estimated: 112,863 UNet calls at 2 s an image"
    )  # 2,213 x 51 x 2 s
    assert said["memory"].startswith("3.0 GB for the UNet")
    assert said["disk"].startswith("at most 0.20 GB")  # 113 images x (215,552 x 2 + 5 x 512 x 512) bytes
    assert said["book"].endswith("reproduce-sd14/_build/html/index.html")


def test_a_dry_run_on_other_terms(
    surroundings: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = "--words 3 --seeds 2 --steps 9 --dtype bf16 --batch 4 --segmenter sam3 --hrv"
    said = plan(f"--model sd15 {terms} emoji-sd", capsys, monkeypatch)
    assert "bf16, 4 images at a time" in said["device"] and said["relevance"].endswith("from emoji-sd")
    assert said["images"].startswith("11, each of 9 steps") and said["masks"] == "by sam3"


def test_the_papers_wording_and_free_prompts_are_options(
    surroundings: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (surroundings / "free.txt").write_text("a cat asleep\ntwo dogs at sea\n")
    terms = f"--hrv-texts {surroundings / 'free.txt'} --no-start-token --hrv-images 1002"
    said = plan(f"--model sd14 {terms}", capsys, monkeypatch)
    assert said["relevance"].endswith(
        "counted on 1,002 images of 1,000 class names and 2 free prompts; "
        "the start token, where a model has one, is outside the softmax, as the paper says"
    )
    published, worded = (Reproduction(model="sd14", start_token=inside) for inside in (True, False))
    assert published.relevance_study().start_token and published.parameters()["start_token"] is True
    assert published.relevance_study().folder != worded.relevance_study().folder
    assert worded.parameters()["hrv_texts"] == "" and worded.parameters()["start_token"] is False


@pytest.mark.parametrize(
    "words, said",
    [
        ("--model nosuch", "no model 'nosuch'"),
        ("--model sd14 --device nosuch", "no device 'nosuch' on this machine"),
        ("--model sd14 --seeds 0", "seeds=0"),
        ("--model sd14 --steps 0", "steps=0"),
        ("--model sd14 --hrv-images 1", "images=1"),
        ("--model sd14 --segmenter nosuch", "no segmenter 'nosuch'"),
        ("--model sd14 --hrv-texts nosuch", "texts='nosuch': no file"),
        ("--model sd14 --hrv nosuch", "No head relevance at nosuch"),
        ("--model sd14 --workers many", "workers='many'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_done(
    surroundings: Path, words: str, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selattn_lib.publishing.reproduce.time_call", None)
    assert cli.main(["reproduce", "--device", "cpu", *shlex.split(words)]) == 1
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_it_wants_to_be_run_where_the_notebooks_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["reproduce", "--model", "sd14"]) == 1
    assert "run this in the folder of the book's repository" in capsys.readouterr().err


def test_a_call_is_timed_on_any_unet_and_says_when_it_does_not_fit(
    surroundings: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build_sdxl().save_pretrained(surroundings / "sdxl")
    for folder, dtype, size in (("model", "fp32", 4), ("sdxl", "bf16", 2)):
        unet = network_layout(surroundings / folder)
        parameters = sum(weight.numel() for weight in unet.parameters())
        seconds, memory = time_call(unet, "cpu", dtype, 2)
        assert seconds > 0 and memory == size * parameters
        assert all(weight.is_meta for weight in unet.parameters()), "others are given the same layout"

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("selattn_lib.publishing.reproduce.torch.zeros", full)
    with pytest.raises(MemoryError, match="a UNet call on 8 images in fp32 does not fit.*: try a smaller --batch"):
        time_call(network_layout(surroundings / "model"), "cpu", "fp32", 8)


def test_the_published_form_of_head_relevance_is_taken(
    surroundings: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = surroundings / "published"
    folder.mkdir()
    layers = [("down", i) for i in range(6)] + [("mid", 0)] + [("up", i) for i in range(9)]
    np.save(folder / "names.npy", [f"{place}, layer: {i}, head: {h}" for place, i in layers for h in range(8)])
    np.save(folder / "vectors.npy", np.ones((34, 128), np.float32))
    said = plan(f"--model sd14 --hrv {folder}", capsys, monkeypatch)
    assert said["relevance"] == f"of 34 concepts, from {folder}" and said["images"].startswith("113, each of")
