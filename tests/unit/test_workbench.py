"""Draw and explain: a prompt becomes a picture, and every explorer shows it."""

import numpy as np
import pytest
import torch
import xarray as xr

from selattn_lib.explorers.workbench import Workbench
from selattn_lib.maps.relevance import HeadRelevance
from selattn_lib.models.heads import cross_attention_heads


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
    assert bench.mask.dims == ("y", "x")
    bench.views.selected_index = 2
    assert set(bench.mask) == {"A", "B"}


def test_a_word_that_is_not_in_the_prompt_is_said_and_can_be_mended(bench):
    bench.words.value = "zebra"
    bench.button.click()
    assert "zebra" in bench.message.value and not bench.button.disabled
    with pytest.raises(RuntimeError, match="nothing is drawn yet"):
        _ = bench.heads


def test_relevance_of_another_model_must_be_given(tiny_pipe):
    with pytest.raises(ValueError, match="relevance is needed"):
        Workbench(tiny_pipe)
