"""The embedded world: its scenes, its art, and a recipe that learns."""

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selattn_lib.concepts import load_concepts
from selattn_lib.emoji.art import glyphs, load_art
from selattn_lib.emoji.recipe.autoencoder import LATENT_CHANNELS, LatentBasis, new_autoencoder
from selattn_lib.emoji.recipe.composing import Scenes, captioned
from selattn_lib.emoji.recipe.examples import Examples
from selattn_lib.emoji.recipe.quality import without_background
from selattn_lib.emoji.recipe.report import concept_similarity
from selattn_lib.emoji.recipe.segmenter import jitter, labels, seen_scenes, varied
from selattn_lib.emoji.recipe.text import new_tokenizer, vocabulary
from selattn_lib.emoji.recipe.training import split_parameters
from selattn_lib.emoji.recipe.unet import new_unet
from selattn_lib.emoji.scenes import (
    AMBIGUOUS,
    BENCHMARK,
    GRID,
    SIZE,
    SIZES,
    TIMES,
    USUAL,
    WEATHERS,
    _place,
    compose,
    drawings,
)
from selattn_lib.emoji.segmenter import CELL, CLASSES, Prediction, as_tensor, logits, new_segmenter
from selattn_lib.evaluation.scores import iou
from selattn_lib.models.pipelines import load_pipeline


def scene(*seed: int, **options):
    return compose(np.random.default_rng(seed), **options)


def test_every_glyph_is_in_the_archive_in_at_least_two_styles() -> None:
    art = load_art()
    names = {glyph for words in glyphs().values() for glyph in words.values()}
    assert set(art) == names
    assert {name for name in names if len(art[name]) < 2} == set()
    assert sum(len(styles) == 3 for styles in art.values()) > 0.97 * len(names)


def test_the_benchmark_and_the_concepts_are_words_of_the_world() -> None:
    assert set(BENCHMARK) <= set(glyphs()["Animals"])
    for concept, words in load_concepts("emoji-sd").items():
        if concept in glyphs():
            assert set(words) <= set(glyphs()[concept]), concept


def test_twenty_of_the_papers_concepts_are_in_the_world_and_their_common_words_are_said() -> None:
    paper, ours = load_concepts("paper"), load_concepts("emoji-sd")
    assert set(ours) <= set(paper)
    assert sum(len(words) >= 6 for words in ours.values()) >= 20
    text = (files("selattn_lib") / "data" / "concepts_emoji_sd.yaml").read_text()
    said = dict(re.findall(r"^(\S[^:\n]*): \[.*\n# - shared: (.*)$", text, re.MULTILINE))
    for concept, words in ours.items():
        known = {w.lower() for w in paper[concept]}
        assert said[concept].split(", ") == [w for w in words if w.lower() in known], concept


def test_ambiguous_words_have_two_meanings_and_belong_to_no_concept_list() -> None:
    for word, planted in AMBIGUOUS.items():
        assert all((concept, word) in drawings() for concept in planted.concepts)
        assert all(key in drawings() for key in planted.companions)
        assert word in planted.caption.split()
        assert not any(word in words for words in load_concepts("emoji-sd").values())
    twice = {word for _, word in drawings() if sum(w == word for _, w in drawings()) > 1}
    assert twice == set(AMBIGUOUS)


def test_a_planted_caption_has_three_objects_whether_or_not_both_meanings_are_among_them() -> None:
    word_of = {planted.caption: word for word, planted in AMBIGUOUS.items()}
    scenes = [s for s in (scene(5, i) for i in range(300)) if s.caption in word_of]
    assert {(len(s.words), s.words.count(word_of[s.caption])) for s in scenes} == {(3, 1), (3, 2)}
    assert all(len({*zip(s.concepts, s.words, strict=True)}) == 3 for s in scenes)


def test_no_light_or_weather_comes_over_a_scene_whose_caption_is_given() -> None:
    bear = [("Animals", "bear")]
    free = [scene(6, i, words=bear) for i in range(100)]
    given = [scene(6, i, words=bear, caption="photo of a bear") for i in range(100)]
    lit = [not np.array_equal(one.image, other.image) for one, other in zip(free, given, strict=True)]
    spoken = [not {*TIMES, *WEATHERS}.isdisjoint(one.caption.split()) for one in free]
    assert sum(spoken) > 5 and all(np.array(lit)[spoken]) and sum(lit) < 40


def test_a_scene_is_its_seed() -> None:
    one, same, other = scene(1, 2), scene(1, 2), scene(1, 3)
    assert np.array_equal(one.image, same.image) and one.caption == same.caption
    assert not np.array_equal(one.image, other.image)


def test_masks_are_exact_and_disjoint_and_captions_name_the_objects() -> None:
    for i in range(60):
        s = scene(5, i)
        assert s.image.shape == (SIZE, SIZE, 3) and s.image.dtype == np.uint8
        assert s.masks.shape == (len(s.words), SIZE, SIZE) and s.masks.sum(0).max() <= 1
        assert s.masks[-1].any()
        for word in s.words:
            assert word in s.caption or " other " in s.caption
        assert set(zip(s.concepts, s.words, strict=True)) <= set(CLASSES)


def test_objects_sit_off_centre_and_vary_in_size() -> None:
    masks = np.stack([scene(6, i, words=[("Animals", "bear")]).masks[0] for i in range(60)])
    centre = np.array([np.argwhere(mask).mean(0) for mask in masks])
    assert centre.std(0).min() > 8 and masks.mean((1, 2)).std() > 0.04


def test_objects_lie_on_the_grid_and_inside_the_frame() -> None:
    rng = np.random.default_rng(3)
    for i in range(200):
        count = 1 + i % 3
        picture, corner = _place(rng, CLASSES[rng.integers(len(CLASSES))], i % count, count, USUAL[count])
        assert all(at % GRID == 0 and 0 <= at <= SIZE - side for at, side in zip(corner, picture.size, strict=True))


def test_a_caption_of_size_is_true() -> None:
    scenes = [scene(8, i, words=[("Shape", "circle")]) for i in range(300)]
    for name, cells in SIZES.items():
        width = [s.masks[0].any(0).sum() / GRID for s in scenes if f"a {name} circle" in s.caption]
        assert width and min(cells) - 0.5 <= min(width) and max(width) <= max(cells), name


def test_the_tokenizer_has_one_token_a_word_and_spells_the_rest() -> None:
    tokenizer = new_tokenizer(vocabulary(["photo of a bear on the desk"]))
    ids = tokenizer("photo of a bear").input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[1:-1] == ["photo</w>", "of</w>", "a</w>", "bear</w>"]
    assert tokenizer.unk_token_id not in tokenizer("xylograph", add_special_tokens=False).input_ids


def test_latents_are_the_mean_colour_and_what_is_left_of_it() -> None:
    images = np.stack([scene(7, i).image for i in range(40)])
    basis = LatentBasis.fit(images)
    latents = basis(as_tensor(images))
    assert latents.shape == (40, LATENT_CHANNELS, 16, 16)
    np.testing.assert_allclose(latents.std((0, 2, 3)).numpy(), [1] * 3 + [0.6] * 5, rtol=0.02)
    red = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    red[..., 0] = 255
    flat = (basis(as_tensor(red))[0, :, 0, 0] + basis.offset)[3:]
    assert flat.abs().max() < 1e-4, "a plain block has nothing but its colour"


def test_the_architectures_are_standard_and_small() -> None:
    unet, vae = new_unet(), new_autoencoder()
    assert sum(p.numel() for p in unet.parameters()) < 14e6
    assert sum(p.numel() for p in vae.parameters()) < 2e6
    matrices, others = split_parameters(unet)
    assert sum(map(torch.numel, matrices)) > 0.95 * sum(p.numel() for p in unet.parameters())
    assert {id(p) for p in matrices}.isdisjoint(map(id, others))


def test_the_segmenter_outlines_pixels_and_names_cells() -> None:
    x = torch.zeros(3, 3, SIZE, SIZE)
    outline, names = logits(new_segmenter(), x)
    assert outline.shape == (3, SIZE, SIZE) and names.shape == (3, len(CLASSES), SIZE // CELL, SIZE // CELL)
    assert jitter(x, np.random.default_rng(0)).shape == x.shape


def test_labels_are_the_visible_objects() -> None:
    s = scene(9, 0, words=[("Animals", "mouse"), ("Electronics", "mouse")])
    outline, names = labels(s)
    np.testing.assert_array_equal(outline, s.masks.any(0))
    for mask, key in zip(s.masks, [("Animals", "mouse"), ("Electronics", "mouse")], strict=True):
        of_key = np.kron(names == CLASSES.index(key), np.ones((CELL, CELL), bool))
        assert iou(of_key, mask) > 0.7
    assert set(np.unique(names)) == {-1, CLASSES.index(("Animals", "mouse")), CLASSES.index(("Electronics", "mouse"))}


def test_the_segmenters_scenes_are_made_once_and_most_go_through_the_autoencoder(tmp_path: Path) -> None:
    weights = files("selattn_lib.emoji") / "weights"
    made, kept = (seen_scenes(tmp_path, weights, count=8, seed=5).tensors for _ in range(2))
    assert len(list(tmp_path.iterdir())) == 1 and set(made) == {"images", "outlines", "names"}
    scenes = [varied(np.random.default_rng([5, i])) for i in range(8)]
    same = [np.array_equal(image, s.image) for image, s in zip(made["images"], scenes, strict=True)]
    assert same == [False] * 5 + [True] * 3
    for i, s in enumerate(scenes):
        outline, names = labels(s)
        np.testing.assert_array_equal(made["outlines"][i], outline)
        np.testing.assert_array_equal(made["names"][i], names)
    for name, tensor in made.items():
        assert torch.equal(tensor, kept[name])


def test_a_failure_of_a_worker_is_raised_where_the_examples_are_wanted(tmp_path: Path) -> None:
    def prepare(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        raise RuntimeError("no room on the device")

    with pytest.raises(RuntimeError, match="no room"):
        Examples(Scenes(2, (3,), captioned), prepare, tmp_path / "examples.pt")


def test_a_prediction_sums_names_by_concept_and_area() -> None:
    prediction = Prediction.__new__(Prediction)
    prediction.outline, prediction.names = torch.zeros(1, SIZE, SIZE), torch.zeros(1, len(CLASSES), 32, 32)
    prediction.outline[0, :, :64] = 0.9  # the left half is an object:
    shown = [CLASSES.index(key) for key in (("Animals", "bear"), ("Animals", "cat"), ("Vehicles", "car"))]
    prediction.names[0, shown] = torch.tensor([0.3, 0.3, 0.4])[:, None, None]
    assert prediction.masks([["Animals"]])[0, :, :64].all(), "two animals together are likelier than the car"
    assert not prediction.masks([["Animals"]])[0, :, 64:].any() and not prediction.masks([["Vehicles"]]).any()
    np.testing.assert_allclose(prediction.areas()[0, shown], np.array([0.3, 0.3, 0.4]) * 0.9 * SIZE**2 / 2, rtol=1e-5)
    assert np.flatnonzero(prediction.seen()[0]).tolist() == sorted(shown)


def test_words_of_a_concept_are_nearer_to_each_other_than_to_others() -> None:
    similarity, nearest = concept_similarity(load_pipeline("emoji-sd"))
    within = np.diag(similarity)
    across = similarity.values[~np.eye(len(similarity), dtype=bool)]
    assert within.mean() > across.mean() + 0.2 and nearest > 0.7


def test_background_subtraction_finds_what_was_composed() -> None:
    found = []
    for i in range(600):
        s = scene(10, i, words=[("Animals", BENCHMARK[i % 10])])
        if (
            any(f"on a {colour} background" in s.caption for colour in ("blue", "green", "purple"))
            and " at " not in s.caption
        ):
            found.append(iou(without_background(s.image), s.masks[0]))
    assert len(found) > 10 and np.median(found) > 0.95
