import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from selattn_lib.maps.aggregation import normalise
from selattn_lib.maps.head_maps import HeadMaps, heatmap


def one_head(maps, number, image, word):
    for name, values in maps.data_vars.items():
        numbers = maps[f"head_{name[5:]}"].values.tolist()
        if number in numbers:
            return torch.from_numpy(values.values[image, word, numbers.index(number)])
    raise AssertionError(number)


def by_hand(maps, heads, weights=None, image=0, word=0, size=(64, 128)):
    """Eq. 2 / Eq. 4 to the letter: upsample every head's map, then average, then normalise."""
    weights = [1.0] * len(heads) if weights is None else weights
    total = torch.zeros(size)
    for number, weight in zip(heads, weights, strict=True):
        each = one_head(maps, number, image, word)[None, None]
        total += weight * F.interpolate(each, size=size, mode="bicubic", align_corners=False)[0, 0]
    total = (total / sum(weights)).numpy()
    return (total - total.min()) / (total.max() - total.min())


@pytest.mark.parametrize("heads", [[4], [8, 0, 3], list(range(9))])
@pytest.mark.parametrize("image, word", [(0, 0), (1, 1)])
def test_heatmap_equals_upsampling_each_head(maps, heads, image, word):
    heat = heatmap(maps, heads, image=image, word=word)
    assert heat.dims == ("y", "x") and heat.dtype == np.float32
    np.testing.assert_allclose(heat, by_hand(maps, heads, image=image, word=word), atol=1e-5)


def test_all_is_every_head_and_words_have_names(maps):
    assert heatmap(maps, word="cat").equals(heatmap(maps, range(9), word=1))


def test_weights(maps):
    weights = [0.5, 0.0, 2.0]
    np.testing.assert_allclose(heatmap(maps, [8, 0, 3], weights=weights), by_hand(maps, [8, 0, 3], weights), atol=1e-5)


def test_size(maps):
    np.testing.assert_allclose(heatmap(maps, [1, 5], size=(32, 48)), by_hand(maps, [1, 5], size=(32, 48)), atol=1e-5)


def test_float16_from_disk(maps):
    halved = maps.astype(np.float16)
    heat = heatmap(halved)
    assert heat.dtype == np.float32
    np.testing.assert_allclose(heat, heatmap(maps), atol=2e-3)


def test_daam_package_variant(maps):
    upsampled = []
    for number in (0, 1, 3, 4, 6, 7):  # not 2, 5, 8: the mid block
        each = one_head(maps, number, 0, 0)[None, None]
        upsampled.append(F.interpolate(each, size=(8, 16), mode="bicubic").clamp_(min=0))
    mean = torch.stack(upsampled).mean(0)
    expected = F.interpolate(mean, size=(64, 128), mode="bicubic")[0, 0].numpy()
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    np.testing.assert_allclose(heatmap(maps, "daam"), expected, atol=1e-5)
    assert np.abs(heatmap(maps, "daam") - heatmap(maps, "all")).max() > 0.01


def test_daam_variant_needs_the_places(maps):
    with pytest.raises(ValueError, match="place_8x16"):
        heatmap(maps.drop_vars("place_8x16"), "daam")


@pytest.mark.parametrize("block_pixels", [1, 3 * 64 * 128, 2**22])
def test_cumulative_equals_direct_for_every_k(maps, monkeypatch, block_pixels):
    monkeypatch.setattr("selattn_lib.aggregate.BLOCK_PIXELS", block_pixels)
    order = np.random.default_rng(1).permutation(9)
    every = cumulative_heatmaps(maps, order, image=1, word="cat")
    assert every.dims == ("k", "y", "x") and every["k"].values.tolist() == list(range(1, 10))
    for k in range(1, 10):
        np.testing.assert_allclose(every.sel(k=k), heatmap(maps, order[:k], image=1, word=1), atol=1e-5)


def test_cumulative_of_some_heads(maps):
    np.testing.assert_allclose(cumulative_heatmaps(maps, [7, 2]).sel(k=2), heatmap(maps, [2, 7]), atol=1e-5)


@pytest.mark.parametrize(
    "heads, message",
    [
        ([9], r"heads \[9\] do not exist; the maps have heads 0 to 8"),
        ([-1], "do not exist"),
        ([], "non-empty"),
        ([1, 1], "more than once"),
        ([0.5], "head numbers"),
        ("most", "'most' is not known"),
    ],
)
def test_heads_that_make_no_sense(maps, heads, message):
    with pytest.raises(ValueError, match=message):
        heatmap(maps, heads)


def test_other_arguments_that_make_no_sense(maps):
    with pytest.raises(ValueError, match=r"'dog' is not in these maps; they hold \['bear', 'cat'\]"):
        heatmap(maps, word="dog")
    with pytest.raises(IndexError, match="image 2"):
        heatmap(maps, image=2)
    with pytest.raises(ValueError, match="weights"):
        heatmap(maps, [1, 2], weights=[1])
    with pytest.raises(ValueError, match="positive"):
        heatmap(maps, [1, 2], weights=[0, 0])
    with pytest.raises(ValueError, match="unweighted"):
        heatmap(maps, "daam", weights=[1] * 9)


sizes = st.tuples(st.integers(1, 6), st.integers(1, 6))
heats = arrays(np.float32, sizes, elements=st.floats(-1, 1, width=32))


@given(heats)
def test_normalise_spans_0_to_1_and_keeps_the_order(heat):
    before = heat.copy()
    result = normalise(heat)
    assert np.array_equal(heat, before)
    if heat.min() == heat.max():
        assert (result == 0).all()
    else:
        assert result.min() == 0 and result.max() == 1
        by_value = np.argsort(heat, axis=None)
        assert (np.diff(result.ravel()[by_value]) >= 0).all()


def test_normalise_keeps_what_it_is_given():
    heat = xr.DataArray([[[1.0, 3.0]], [[5.0, 5.0]]], dims=("k", "y", "x"), coords={"k": [1, 2]})
    result = normalise(heat)
    assert result.values.tolist() == [[[0, 1]], [[0, 0]]]
    assert result["k"].values.tolist() == [1, 2]
    assert isinstance(normalise(heat.values), np.ndarray)
