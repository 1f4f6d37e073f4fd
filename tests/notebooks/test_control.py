"""The recipe of `emoji-control`: which heads are planted, what they are taught, and what ships."""

import copy
from collections.abc import Iterator
from itertools import islice, repeat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import StableDiffusionPipeline

from selattn_lib.emoji.control import add_control, planted_heads
from selattn_lib.emoji.recipe.control import (
    attention_loss,
    batches,
    plant,
    planted_attention,
    save_control,
    summary,
    train_control,
)
from selattn_lib.emoji.scenes import AMBIGUOUS
from selattn_lib.emoji.segmenter import CONCEPTS
from selattn_lib.models.families import cross_attention_heads
from selattn_lib.models.pipelines import load_pipeline, network_layout

LEFT, RIGHT = [1.0, 1, 0, 0], [0, 0, 1.0, 1]  # a picture of 2 x 2 pixels, a row after the other


def mouse_loss(own: list[float], other: list[float], *, of_concept: int = 0) -> float:
    """The loss of a head that attends to token 1 in the first two of four pixels, else to the start token, where
    token 1 names an object of concept 0 that covers `own` and one of concept 1 that covers `other`."""
    kept = torch.tensor([[0.01, 0.98, 0.01]] * 2 + [[0.98, 0.01, 0.01]] * 2)[None, None]
    masks, names = torch.tensor([[own, other]]), torch.tensor([[[False, True, False]] * 2])
    return attention_loss(kept, torch.tensor([of_concept]), masks, torch.tensor([[0, 1]]), names, torch.ones(1)).item()


def test_a_head_should_attend_to_its_own_meaning_of_a_word_and_not_to_the_other() -> None:
    assert mouse_loss(own=LEFT, other=RIGHT) < 0.03
    assert mouse_loss(own=RIGHT, other=LEFT) > 2
    assert mouse_loss(own=LEFT, other=RIGHT, of_concept=1) > 2
    assert mouse_loss(own=LEFT, other=RIGHT, of_concept=2) > 0.5, "no object of the concept: the start token alone"


def test_heads_are_dealt_over_the_two_finest_grids() -> None:
    unet = network_layout("emoji-sd")
    planted = plant(unet, CONCEPTS, seed=1)
    strides = {layer.first + h: layer.stride for layer in cross_attention_heads(unet) for h in range(layer.n_heads)}
    assert list(planted) == CONCEPTS
    assert len({head for heads in planted.values() for head in heads}) == 4 * len(CONCEPTS)
    assert all(sorted(strides[head] for head in heads) == [1, 1, 2, 2] for heads in planted.values())
    assert planted == plant(unet, CONCEPTS, seed=1) != plant(unet, CONCEPTS, seed=2)
    with pytest.raises(ValueError, match="16 concepts x 6 heads: expected at most 80 heads"):
        plant(unet, CONCEPTS, per_concept=6)


def test_batches_say_where_objects_are_and_which_tokens_name_them() -> None:
    tokenizer = load_pipeline("emoji-sd").tokenizer
    stream = batches(lambda images: torch.zeros(len(images), 8, 16, 16), tokenizer, 7, batch=60)
    given = next(stream)
    assert given["masks"].shape == (60, 3, 16, 16) and given["names"].shape == (60, 3, given["ids"].shape[1])
    assert given["masks"].sum(1).max() < 1.001, "no pixel is of two objects"
    absent = given["concepts"] < 0
    assert not given["names"][absent].any() and not given["masks"][absent].any()
    words = {tokenizer.decode(ids[named]) for ids, names in zip(given["ids"], given["names"], strict=True)
             for named in names if named.any()}  # fmt: skip
    assert any(len(word.split()) == 2 for word in words) and words & set(AMBIGUOUS)
    twice = (given["names"][:, 0] & given["names"][:, 1]).any(-1)
    assert (given["concepts"][twice, 0] != given["concepts"][twice, 1]).any(), "one word, two meanings"
    assert not torch.equal(next(stream)["ids"], given["ids"])


@pytest.fixture(scope="module")
def mice(shared_pipe: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A tiny model trained on one picture of two mice, of concepts 0 and 1: the left half is bright, the right dark."""
    unet = copy.deepcopy(shared_pipe.unet)
    planted = plant(unet, ["Animals", "Electronics"], seed=0)
    ids = shared_pipe.tokenizer(["a mouse on the desk"] * 6, padding="max_length", return_tensors="pt").input_ids
    latents, masks = torch.full((6, 4, 8, 8), -2.0), torch.zeros(6, 3, 8, 8)
    latents[..., :4], masks[:, 0, :, :4], masks[:, 1, :, 4:] = 2.0, 1, 1
    names = torch.zeros(6, 3, ids.shape[1], dtype=torch.bool)
    names[:, :2, 2] = True
    batch = {"latents": latents, "ids": ids, "masks": masks, "names": names}
    batch["concepts"] = torch.tensor([[0, 1, -1]] * 6)
    encoder = shared_pipe.text_encoder
    path = tmp_path_factory.mktemp("control") / "control.pt"
    settings = {"steps": 12, "peak": 0.1, "weight": 1.0}
    train_control(unet, encoder, repeat(batch), planted, path, **settings)
    case = {"base": shared_pipe.unet, "encoder": encoder, "planted": planted, "batch": batch}
    return SimpleNamespace(unet=unet, path=path, settings=settings, **case)


def test_training_that_was_stopped_goes_on_from_its_checkpoint(
    mice: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selattn_lib.emoji.recipe.training.SAVED_EVERY", 0)

    def scenes(count: int) -> Iterator[dict[str, torch.Tensor]]:
        for number in range(count):
            yield {**mice.batch, "latents": mice.batch["latents"] * (1 + number / 9)}
        raise KeyboardInterrupt

    def train(path: Path, count: int) -> dict[str, torch.Tensor]:
        unet, settings = copy.deepcopy(mice.base), {**mice.settings, "steps": 2}
        return train_control(unet, mice.encoder, scenes(count), mice.planted, path, **settings).state_dict()

    whole = train(tmp_path / "whole.pt", 2)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts.pt", 1)
    parts = train(tmp_path / "parts.pt", 2)
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


def test_planted_heads_learn_to_tell_two_meanings_of_a_word_apart(mice: SimpleNamespace) -> None:
    def pictures() -> Iterator[dict[str, torch.Tensor]]:
        return islice(repeat(mice.batch), 1)

    before = summary(planted_attention(mice.base, mice.encoder, pictures(), mice.planted))
    after = summary(planted_attention(mice.unet, mice.encoder, pictures(), mice.planted))
    assert before.meaning_ratio["own concept"] < 1.5
    assert after.meaning_ratio["own concept"] > 3
    assert after.meaning_ratio["other concepts"] < 0.4, "the same heads, asked for the other meaning"
    assert after.meaning_ratio["unplanted"] < 2


def test_without_anything_planted_it_stays_what_it_was(mice: SimpleNamespace, tmp_path: Path) -> None:
    """Its teacher is itself: only the attention loss draws it away."""
    unet, settings = copy.deepcopy(mice.base), {**mice.settings, "steps": 2, "weight": 0.0}
    train_control(unet, mice.encoder, repeat(mice.batch), mice.planted, tmp_path / "control.pt", **settings)
    before = mice.base.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in unet.state_dict().items())


def test_only_planted_heads_look_elsewhere_and_they_ship_in_any_dose(mice: SimpleNamespace, tmp_path: Path) -> None:
    save_control(mice.unet, mice.base, tmp_path, mice.planted)
    assert planted_heads(tmp_path) == mice.planted
    base, whole = mice.base.state_dict(), mice.unet.state_dict()
    chosen = {head for heads in mice.planted.values() for head in heads}
    others = {name for name in base if not torch.equal(base[name], whole[name])}
    for layer in cross_attention_heads(mice.unet):
        own = chosen & set(range(layer.first, layer.first + layer.n_heads))
        for name in ("to_q", "to_k"):
            key = f"{layer.name}.{name}.weight"
            by_head = (whole[key] != base[key]).reshape(layer.n_heads, -1)
            assert {layer.first + h for h in by_head.any(1).nonzero()[:, 0].tolist()} == own, key
            others.discard(key)
        others -= {f"{layer.name}.{name}.weight" for name in ("to_v", "to_out.0")}
    assert not others, "nothing but cross-attention changes"
    for dose in (0, 0.5, 1):
        loaded = copy.deepcopy(mice.base)
        add_control(loaded, dose, tmp_path / "delta.safetensors")
        for name, tensor in loaded.state_dict().items():
            expected = base[name] + dose * (whole[name] - base[name])
            torch.testing.assert_close(tensor, expected, rtol=0, atol=2e-3 if dose else 0)
