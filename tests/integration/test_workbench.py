"""Draw and explain: a prompt becomes a picture, and every explorer shows it."""

import base64
import html
import io
import re
import zipfile

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image

from selattn_lib.explorers.workbench import Workbench
from selattn_lib.maps.relevance import HeadRelevance
from selattn_lib.models.families import cross_attention_heads

KINDS = ("overlay", "map", "mask")


@pytest.fixture
def bench(tiny_pipe) -> Workbench:
    heads = cross_attention_heads(tiny_pipe)
    votes = np.random.default_rng(0).integers(1, 50, (3, len(heads)))
    counts = xr.DataArray(votes, dims=("concept", "head"), coords={"concept": list("ABC"), "head": heads.names})
    relevance = HeadRelevance.from_counts(counts)
    return Workbench(tiny_pipe, relevance, prompt="a photo of a bear", words="bear", steps=2, guidance=3)


def test_drawing_fills_every_explorer_and_another_drawing_all_of_them_again(bench, tiny_pipe):
    seen = []
    bench.progress.observe(lambda change: seen.append(change.new), "value")
    bench.draw()
    assert seen == sorted(seen) and seen[-1] == bench.progress.max == 2
    plain = tiny_pipe("a photo of a bear", num_inference_steps=2, guidance_scale=3,
                      generator=torch.Generator().manual_seed(0)).images[0]  # fmt: skip
    np.testing.assert_array_equal(bench.maps.pictures[0], np.asarray(plain))
    first = [explorer.view.pictures for explorer in bench.explorers]
    bench.prompt.value, bench.words.value, bench.seed.value = "a cat and a dog", "cat, dog", 5
    bench.button.click()
    assert bench.message.value == "“a cat and a dog”, seed 5"
    for explorer, before in zip(bench.explorers, first, strict=True):
        assert explorer.view.words == ["cat", "dog"] and explorer.view.pictures != before
    bench.explorer.k = 4
    assert bench.heads.tolist() == bench.selection["heads"] and len(bench.heads) == 4
    assert bench.mask.dims == ("set", "y", "x") and bench.mask["set"].values.tolist() == ["chosen"]
    np.testing.assert_array_equal(bench.mask[0], bench.explorer.mask)
    bench.views.selected_index = 2
    assert bench.mask["set"].values.tolist() == ["A", "B"] and bench.mask.dims == ("set", "y", "x")


def test_a_word_that_is_not_in_the_prompt_is_said_and_can_be_mended(bench):
    bench.words.value = "zebra"
    bench.button.click()
    assert "zebra" in bench.message.value and not bench.button.disabled
    with pytest.raises(RuntimeError, match="nothing is drawn yet"):
        _ = bench.heads


def test_without_head_relevance_the_heads_are_ranked_by_their_agreement(tiny_pipe):
    bench = Workbench(tiny_pipe, prompt="a photo of a bear", words="bear", steps=2, guidance=3)
    bench.draw()
    assert list(bench.explorer.rankings) == ["agreement with all heads"]
    assert bench.views.titles == ("Aggregation", "Heads"), "a diagnosis compares two concepts"
    first = bench.explorer
    bench.seed.value = 1
    bench.button.click()
    assert bench.explorer is not first, "another picture, another ranking"


def test_what_is_saved_is_what_is_seen(bench, tmp_path):
    assert bench.save_button.disabled
    bench.words.value = "photo, bear"
    bench.draw()
    bench.explorer.k, bench.explorer.threshold, bench.explorer.word = 4, 0.3, "bear"
    bench.save_button.click()
    link = re.search(r'download="explained.zip" href="data:application/zip;base64,([^"]+)"', bench.message.value)
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(link[1]))) as archive:
        names = set(archive.namelist())
        kinds = {f"000-{w}-{s}-{k}.png" for w in ("photo", "bear") for s in ("all", "chosen") for k in KINDS}
        assert names == {"000-picture.png", "index.html", *kinds}
        mask = np.asarray(Image.open(io.BytesIO(archive.read("000-bear-chosen-mask.png")))) > 0
    heat = bench.maps.heatmap("bear", bench.heads)
    np.testing.assert_array_equal(mask, heat > 0.3)
    bench.views.selected_index = 2
    with zipfile.ZipFile(bench.save(tmp_path / "saved.zip")) as archive:
        assert {"000-bear-A-mask.png", "000-bear-B-mask.png"} <= set(archive.namelist())


def test_the_form_offers_every_model_and_says_which_words_the_embedded_one_knows(bench, monkeypatch):
    assert {"emoji-sd", "sd14", "sdxl"} <= set(bench.model.options) and bench.known.value == ""
    bench.model.value, bench.steps.value = "emoji-sd", 1
    bench.prompt.value, bench.words.value = "a guitar and a bear", "guitar"
    bench.draw()
    assert "violin" in bench.known.value and bench.maps.size == (128, 128)
    assert bench.explorer.concept == "Musical Instruments" and bench.guidance == 3
    assert "truth" in bench.explorer.item.truths or not bench.maps.truths
    bench.words.value = "bear"
    bench.draw()
    assert bench.explorer.concept == "Animals"


@pytest.mark.parametrize(("box", "value", "said"), [("model", "emoji-ds", "no model"), ("hrv", "nosuch", "<.npz>")])
def test_errors_are_said_in_full_and_as_text(bench, monkeypatch, box, value, said):
    def fail(*_, **__):
        raise OSError(f"no model {value!r}, no head relevance <.npz>: " + "a long way out, " * 20 + "the end")

    for name in ("check_draws_pictures", "relevance_for"):
        monkeypatch.setattr(f"selattn_lib.explorers.workbench.{name}", fail)
    getattr(bench, box).value = value
    bench.button.click()
    text = html.unescape(bench.message.value)
    assert said in text and "the end" in text and "<.npz>" not in bench.message.value
    assert not bench.button.disabled
