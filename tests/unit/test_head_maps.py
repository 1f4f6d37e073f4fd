import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from selattn_lib.maps.aggregation import NORMALISATIONS, ROUNDING, normalise
from selattn_lib.maps.head_maps import HeadMaps, heatmap
from selattn_lib.maps.head_sets import first_heads
from selattn_lib.maps.overlay import overlay


def one_head(maps, number, image, word):
    """The native map of a head, read from the dataset itself."""
    for name, values in maps.dataset.data_vars.items():
        numbers = maps.dataset[f"head_{name[5:]}"].values.tolist()
        if number in numbers:
            return torch.from_numpy(values.values[image, word, numbers.index(number)])
    raise AssertionError(number)


@pytest.fixture
def pictured(maps):
    """The maps with noise for pictures, and with true masks."""
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 256, (2, 64, 128, 3), dtype=np.uint8)
    masks = np.zeros((2, 64, 128), bool)
    masks[0, 20:40, 30:90] = True
    return maps.with_pictures(pictures, truth=masks, truth_cat=~masks)


def by_hand(maps, heads, weights=None, image=0, word=0, size=(64, 128)):
    """Eq. 2 / Eq. 4 to the letter: upsample every head's map, then average, then normalise."""
    weights = [1.0] * len(heads) if weights is None else weights
    total = torch.zeros(size)
    for number, weight in zip(heads, weights, strict=True):
        native = one_head(maps, number, image, word)[None, None]
        total += weight * F.interpolate(native, size=size, mode="bicubic", align_corners=False)[0, 0]
    total = (total / sum(weights)).numpy()
    return (total - total.min()) / (total.max() - total.min())


@pytest.mark.parametrize("heads", [[4], [8, 0, 3], list(range(9))])
@pytest.mark.parametrize("image, word", [(0, 0), (1, 1)])
def test_heatmap_equals_upsampling_each_head(maps, heads, image, word):
    heat = maps.heatmap(word, heads, image=image)
    assert heat.dims == ("y", "x") and heat.dtype == np.float32
    np.testing.assert_allclose(heat, by_hand(maps, heads, image=image, word=word), atol=1e-5)


def from_0_to_1(heat):
    return (heat - heat.min()) / (heat.max() - heat.min())


def normalised_by_hand(maps, heads, weights, normalise, image=1, word=0, size=(64, 128)):
    """Eq. 4 in float64, each head's map upsampled on its own, normalised in one of three ways."""
    total = np.zeros(size)
    for number, weight in zip(heads, weights, strict=True):
        native = one_head(maps, number, image, word)[None, None].double()
        one = F.interpolate(native, size=size, mode="bicubic", align_corners=False)[0, 0].numpy()
        total += weight * (from_0_to_1(one) if normalise == "per-head" else one)
    return (total / total.max()).clip(min=0) if normalise == "max" else from_0_to_1(total)


@pytest.mark.parametrize("normalise", NORMALISATIONS)
@pytest.mark.parametrize("heads", [[4], [8, 0, 3], list(range(9))])
def test_maps_are_normalised_in_one_of_three_ways(maps, heads, normalise):
    weights = np.random.default_rng(0).random(len(heads))
    expected = normalised_by_hand(maps, heads, weights, normalise)
    heat = maps.heatmap(0, heads, image=1, weights=weights, normalise=normalise)
    np.testing.assert_allclose(heat, expected, atol=1e-5)
    assert heat.max() == 1 and heat.min() >= 0
    plain = normalised_by_hand(maps, heads, weights, "minmax")
    assert (np.abs(plain - expected).max() < 1e-9) == (normalise == "minmax" or (normalise, heads) == ("per-head", [4]))
    sets = np.eye(9)[heads].sum(axis=0, keepdims=True)
    [[many]] = maps.heatmaps(sets, image=1, normalise=normalise)
    np.testing.assert_allclose(many, maps.heatmap(0, heads, image=1, normalise=normalise), atol=1e-5)


def test_without_a_word_maps_are_normalised_as_daam_does(maps):
    assert maps.heatmap().equals(maps.heatmap(normalise="minmax"))


@pytest.mark.parametrize("normalise, level", [("minmax", 0), ("max", 1), ("per-head", 0)])
def test_a_head_that_sees_nothing_in_particular(normalise, level):
    flat, spot = np.full((2, 2), 0.3), np.array([[0.0, 0.5], [0.5, 1.0]])
    maps = HeadMaps.from_grids([([0, 1], np.stack([flat, spot])[None, None])], ["bear"], (2, 2))
    assert maps.heatmap(heads=[0], normalise=normalise).values.tolist() == [[level] * 2] * 2
    assert maps.heatmap(heads=[0, 1], normalise=normalise).values[1, 1] == 1
    if normalise == "per-head":  # nothing of it is left in a mean
        np.testing.assert_allclose(maps.heatmap(normalise=normalise), spot, atol=1e-6)
    dark = HeadMaps.from_grids([([0], np.zeros((1, 1, 1, 2, 2)))], ["bear"], (2, 2))
    assert not dark.heatmap(normalise=normalise).any()


def test_other_ways_to_normalise_are_refused(maps):
    for way in (maps.heatmap, lambda **how: next(maps.heatmaps(np.ones((1, 9)), **how))):
        with pytest.raises(ValueError, match="normalise='sum': expected one of minmax, max, per-head"):
            way(normalise="sum")
    with pytest.raises(ValueError, match="heads='daam' has its mean normalised: expected normalise='minmax' or 'max'"):
        maps.heatmap(heads="daam", normalise="per-head")
    share = maps.heatmap(heads="daam", normalise="max")
    np.testing.assert_allclose(from_0_to_1(share), maps.heatmap(heads="daam"), atol=0.05)


def test_what_is_drawn_and_saved_is_normalised_alike(pictured, tmp_path):
    heat = pictured.heatmap("cat", [1, 2], normalise="max")
    expected = overlay(pictured.pictures[0], heat.values, threshold=0.4, truth=pictured.truth(0))
    np.testing.assert_array_equal(np.asarray(pictured.overlay("cat", [1, 2], normalise="max")), expected)
    pictured.save(tmp_path, [1, 2], threshold=0.6, normalise="max")
    mask = np.asarray(Image.open(tmp_path / "000-cat-heads-1-2-max-mask.png"))
    np.testing.assert_array_equal(mask > 0, heat > 0.6)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "000-cat-heads-1-2-max-overlay.png")).ndim, 3)


def test_what_is_in_them(maps):
    assert (maps.n_images, maps.n_heads, maps.words, maps.size) == (2, 9, ["bear", "cat"], (64, 128))
    assert {grid: numbers.tolist() for grid, numbers in maps.grids.items()} == {
        (8, 16): [0, 3, 6],
        (4, 8): [1, 4, 7],
        (2, 4): [2, 5, 8],
    }
    assert maps.grid_of_head.tolist() == ["8x16", "4x8", "2x4"] * 3 and maps.heads.tolist() == list(range(9))
    assert repr(maps) == ("HeadMaps: 2 images of 64 x 128 pixels, words bear, cat, 9 heads (8x16: 3, 4x8: 3, 2x4: 3)")
    for numbers, native in maps.native(1, "cat"):
        for number, values in zip(numbers, native, strict=True):
            assert torch.equal(values, one_head(maps, number, 1, 1))
    with pytest.raises(ValueError, match="expected head maps"):
        HeadMaps(xr.Dataset({"image_rgb": ("x", [1])}))


def test_all_is_every_head_and_words_have_names(maps):
    assert maps.heatmap("cat").equals(maps.heatmap(1, range(9)))


def test_the_one_line_way_takes_maps_and_their_dataset(maps):
    for held in (maps, maps.dataset):
        assert heatmap(held, [3, 1], image=1, word="cat").equals(maps.heatmap("cat", [3, 1], image=1))


def test_weights(maps):
    weights = [0.5, 0.0, 2.0]
    np.testing.assert_allclose(
        maps.heatmap(0, [8, 0, 3], weights=weights), by_hand(maps, [8, 0, 3], weights), atol=1e-5
    )


def test_size(maps):
    np.testing.assert_allclose(maps.heatmap(0, [1, 5], size=(32, 48)), by_hand(maps, [1, 5], size=(32, 48)), atol=1e-5)


def test_float16_from_disk(maps):
    heat = HeadMaps(maps.dataset.astype(np.float16)).heatmap()
    assert heat.dtype == np.float32
    np.testing.assert_allclose(heat, maps.heatmap(), atol=2e-3)


def test_daam_package_variant(maps):
    upsampled = []
    for number in (0, 1, 3, 4, 6, 7):  # not 2, 5, 8: the mid block
        native = one_head(maps, number, 0, 0)[None, None]
        upsampled.append(F.interpolate(native, size=(8, 16), mode="bicubic").clamp_(min=0))
    mean = torch.stack(upsampled).mean(0)
    expected = F.interpolate(mean, size=(64, 128), mode="bicubic")[0, 0].numpy()
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    np.testing.assert_allclose(maps.heatmap(heads="daam"), expected, atol=1e-5)
    assert np.abs(maps.heatmap(heads="daam") - maps.heatmap(heads="all")).max() > 0.01


def test_daam_variant_needs_the_blocks_and_every_head(maps):
    with pytest.raises(ValueError, match="place_8x16"):
        HeadMaps(maps.dataset.drop_vars("place_8x16")).heatmap(heads="daam")
    with pytest.raises(ValueError, match="all 12 heads of the model: these maps hold 9"):
        HeadMaps(maps.dataset.assign_attrs(n_heads=12)).heatmap(heads="daam")


@pytest.mark.parametrize("pixels_at_once", [1, 3 * 64 * 128, 2**22])
def test_many_sets_at_once_equal_one_at_a_time_for_every_k(maps, monkeypatch, pixels_at_once):
    monkeypatch.setattr("selattn_lib.maps.head_maps.PIXELS_AT_ONCE", pixels_at_once)
    order = np.random.default_rng(1).permutation(9)
    blocks = list(maps.heatmaps(first_heads(order, range(1, 10)), image=1, word="cat"))
    assert all(len(block) * 64 * 128 <= max(pixels_at_once, 64 * 128) for block in blocks)
    for k, heat in enumerate(torch.cat(blocks), start=1):
        np.testing.assert_allclose(heat, maps.heatmap(1, order[:k], image=1), atol=1e-5)


def test_maps_of_some_heads(maps):
    """As `capture(..., heads=...)` keeps them: the numbers stay those of the model."""
    some = HeadMaps(maps.dataset.isel(head_8x16=[1], head_4x8=[2], head_2x4=[]))
    assert some.heads.tolist() == [3, 7] and some.grid_of_head.tolist() == ["8x16", "4x8"]
    [[heat]] = some.heatmaps(some.weights([7]).values[None])
    np.testing.assert_allclose(heat, maps.heatmap(0, [7]), atol=1e-5)
    np.testing.assert_allclose(some.heatmap(), maps.heatmap(0, [3, 7]), atol=1e-5)
    with pytest.raises(ValueError, match=r"heads \[0\] are not in these maps, which hold only \[3, 7\]"):
        some.heatmap(heads=[0])


def test_maps_kept_call_by_call_are_averaged_and_windows_chosen(maps):
    calls = xr.concat([maps.dataset * 0.5, maps.dataset * 1.5], "call").assign_attrs(maps.dataset.attrs)
    order = ("image", "word", "call", ...)
    by_call = HeadMaps(calls.transpose(*order))
    np.testing.assert_allclose(by_call.heatmap("cat", [1, 2]), maps.heatmap("cat", [1, 2]), atol=1e-5)
    windows = HeadMaps(calls.rename(call="window").transpose("image", "word", "window", ...))
    np.testing.assert_allclose(windows.select(window=1).heatmap(), maps.heatmap(), atol=1e-5)
    with pytest.raises(ValueError, match=r"2 windows of timesteps: choose one by maps.select\(window=0\)"):
        windows.heatmap()


@pytest.mark.parametrize("images", [1, [1], slice(1, 2), np.array([1])])
def test_some_of_the_pictures(maps, images):
    assert maps.select(image=images).n_images == 1
    assert maps.select(image=images).heatmap("cat").equals(maps.heatmap("cat", image=1))


def test_words_of_their_own(maps):
    """Where pictures differ in their subject, a word is asked for by the name that it has in its picture."""
    own = HeadMaps(maps.dataset.isel(word=[0]).assign_coords(word=["subject"], subject=("image", ["fox", "hen"])))
    assert own.heatmap("hen", image=1).equals(maps.heatmap(0, image=1)) and own.word(0) == "fox"
    assert own.subjects.tolist() == ["fox", "hen"] and own.image_coords["subject"].values.tolist() == ["fox", "hen"]
    with pytest.raises(ValueError, match=r"'hen' is not in these maps: they hold \['fox'\]"):
        own.heatmap("hen", image=0)


def test_pictures_and_true_masks(maps, pictured):
    assert pictured.pictures.shape == (2, 64, 128, 3) and list(pictured.truths) == ["truth", "cat"]
    assert pictured.truth(0).sum() == 20 * 60 and (pictured.truth(1, "cat")).all()
    with pytest.raises(ValueError, match="no true masks 'dog' in these results: they hold"):
        pictured.truth(0, "dog")
    for call in (lambda: maps.pictures, lambda: maps.overlay("bear")):
        with pytest.raises(ValueError, match="no pictures: add them by maps.with_pictures"):
            call()
    with pytest.raises(ValueError, match=r"expected \(2, 64, 128, 3\)"):
        maps.with_pictures(pictured.pictures[:1])
    with pytest.raises(ValueError, match="named \\['bear'\\]: expected 'truth' or 'truth_NAME'"):
        maps.with_pictures(pictured.pictures, bear=np.zeros((2, 64, 128), bool))


def test_overlay_is_the_map_over_the_picture(pictured):
    picture = pictured.overlay("cat", [2, 4], image=1, threshold=0.5)
    heat = pictured.heatmap("cat", [2, 4], image=1).values
    expected = overlay(pictured.pictures[1], heat, threshold=0.5, truth=pictured.truth(1))
    assert picture.size == (256, 128) and np.array_equal(picture, expected)
    assert not np.array_equal(pictured.overlay("cat", [2, 4], image=1, threshold=None), expected)


def test_saved_files_are_the_overlay_the_map_and_the_mask(pictured, tmp_path):
    written = pictured.save(tmp_path / "made" / "here", [2, 4], threshold=0.25)
    stems = [f"{image}-{word}-heads-2-4" for image in ("000", "001") for word in ("bear", "cat")]
    assert sorted(path.name for path in written) == sorted(
        f"{stem}-{kind}.png" for stem in stems for kind in ("map", "mask", "overlay")
    )
    assert sorted(written) == sorted((tmp_path / "made" / "here").iterdir())
    heat = pictured.heatmap("cat", [2, 4], image=1).values
    files = {kind: Image.open(tmp_path / "made" / "here" / f"{stems[3]}-{kind}.png") for kind in ("map", "mask")}
    assert files["map"].mode == files["mask"].mode == "L" and files["map"].size == (128, 64)
    assert np.abs(np.asarray(files["map"]) / 255 - heat).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(np.asarray(files["mask"]), (heat > 0.25) * 255)
    drawn = np.asarray(Image.open(tmp_path / "made" / "here" / f"{stems[3]}-overlay.png"))
    assert np.array_equal(drawn, pictured.overlay("cat", [2, 4], image=1, threshold=0.25))


def test_pictures_of_floats_are_kept_as_bytes_and_masks_are_hard(maps, pictured):
    floats = maps.with_pictures(pictured.pictures / 255)
    assert floats.pictures.dtype == np.uint8 and np.array_equal(floats.pictures, pictured.pictures)
    for odd in (pictured.pictures.astype(int), pictured.pictures.astype(float), floats.pictures / np.float32(np.nan)):
        with pytest.raises(ValueError, match=r"expected uint8, or floats in \[0, 1\]"):
            maps.with_pictures(odd)
    with pytest.raises(ValueError, match=r"\['truth'\] hold more than 0 and 1"):
        maps.with_pictures(pictured.pictures, truth=np.full((2, 64, 128), 0.5))


def test_saved_names_tell_words_apart_that_differ_in_signs_only(maps, tmp_path):
    written = HeadMaps(maps.dataset.assign_coords(word=["a,", "a."])).save(tmp_path)
    assert len(written) == len(set(written)) == len([*tmp_path.iterdir()])


def test_saved_names_tell_sets_of_heads_apart_and_are_safe(maps, tmp_path):
    odd = HeadMaps(maps.dataset.isel(image=[0], word=[0]).assign_coords(word=["a/b: c"]))
    names = {odd.save(tmp_path, heads)[0].name for heads in ("all", "daam", range(9), [0, 1])}
    assert len(names) == 4 and "000-a-b-c-all-map.png" in names and "000-a-b-c-heads-0-1-map.png" in names
    assert not any("overlay" in path.name for path in tmp_path.iterdir()), "there are no pictures"
    assert odd.save(tmp_path, [0, 1], name="top")[0].name == "000-a-b-c-top-map.png"


@pytest.mark.parametrize(
    "heads, message",
    [
        ([9], r"heads \[9\] do not exist: expected numbers from 0 to 8"),
        ([-1], "do not exist"),
        ([], "non-empty"),
        ([1, 1], "more than once"),
        ([0.5], "head numbers"),
        ("most", "heads='most': expected 'all' or head numbers"),
    ],
)
def test_heads_that_make_no_sense(maps, heads, message):
    with pytest.raises(ValueError, match=message):
        maps.heatmap(heads=heads)


def test_other_arguments_that_make_no_sense(maps):
    with pytest.raises(ValueError, match=r"'dog' is not in these maps: they hold \['bear', 'cat'\]"):
        maps.heatmap("dog")
    with pytest.raises(IndexError, match="image 2"):
        maps.heatmap(image=2)
    with pytest.raises(ValueError, match="weights"):
        maps.heatmap(heads=[1, 2], weights=[1])
    for weights in ([0, 0], [-1, 3], [np.inf, 1], [np.nan, 1]):
        with pytest.raises(ValueError, match="0 or more with a positive sum"):
            maps.heatmap(heads=[1, 2], weights=weights)
    with pytest.raises(ValueError, match="unweighted"):
        maps.heatmap(heads="daam", weights=[1] * 9)


sizes = st.tuples(st.integers(1, 6), st.integers(1, 6))
heats = arrays(np.float32, sizes, elements=st.floats(-1, 1, width=32))


@given(heats)
def test_normalise_spans_0_to_1_and_keeps_the_order(heat):
    before = heat.copy()
    result = normalise(heat)
    assert np.array_equal(heat, before)
    if heat.max() - heat.min() <= np.float32(ROUNDING) * np.abs(heat).max():
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


def test_a_variable_of_the_dataset_is_had_by_name(maps):
    assert maps["word"].identical(maps.dataset["word"])
