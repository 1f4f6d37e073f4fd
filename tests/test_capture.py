from contextlib import contextmanager
from importlib import import_module

import numpy as np
import pytest
import torch
from tiny_sd import count_hooks, generate

from selattn_lib.aggregate import heatmap
from selattn_lib.capture import capture
from selattn_lib.heads import cross_attention_heads


class ByHand:
    """An attention processor that writes attention out in full, and keeps all of it."""

    def __init__(self):
        self.seen = []

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **ignored):
        text = encoder_hidden_states
        outputs, maps = [], []
        query, key, value = attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text)
        width = query.shape[-1] // attn.heads
        for h in range(attn.heads):
            part = slice(h * width, (h + 1) * width)
            logits = torch.einsum("bpc,btc->bpt", query[..., part], key[..., part]) / width**0.5
            exponentials = torch.exp(logits)
            maps.append(exponentials / exponentials.sum(dim=-1, keepdim=True))
            outputs.append(maps[-1] @ value[..., part])
        self.seen.append(torch.stack(maps, dim=1))  # (row, head, pixel, token)
        return attn.to_out[1](attn.to_out[0](torch.cat(outputs, dim=-1)))


@contextmanager
def attention_by_hand(pipe):
    """Yield a function: mean over calls of all attention, one (row, head, pixel, token) a layer."""
    unet = pipe.unet
    before = dict(unet.attn_processors)
    by_hand = [ByHand() for _ in range(16)]
    for layer, processor in zip(cross_attention_heads(pipe), by_hand, strict=True):
        unet.get_submodule(layer.name).set_processor(processor)
    try:
        yield lambda: [torch.stack(processor.seen).mean(dim=0) for processor in by_hand]
    finally:
        unet.set_attn_processor(before)


def assert_maps_equal(maps, expected, rows, columns, word=0):
    """Compare with attention by hand: for each image, the UNet's row and the columns of its word."""
    n_seen = 0
    for name in maps.data_vars:
        grid = name.removeprefix("maps_")
        for i, number in enumerate(maps[f"head_{grid}"].values):
            for image, (row, at) in enumerate(zip(rows, columns, strict=True)):
                column = expected[number // 8][row, number % 8][:, at].mean(dim=-1)
                got = maps[name].values[image, word, i]
                np.testing.assert_allclose(got.ravel(), column.numpy(), atol=1e-5)
                n_seen += 1
    assert n_seen == 128 * len(rows)


def test_maps_equal_attention_by_hand_conditional_half_only(tiny_pipe):
    with attention_by_hand(tiny_pipe) as expected, capture(tiny_pipe, ["bear", "a"]) as maps:
        generate(tiny_pipe, steps=3, negative_prompt="a dog")
    found = maps.dataset()
    assert_maps_equal(found, expected(), rows=[1], columns=[[4]])  # start, photo, of, a, bear
    assert_maps_equal(found, expected(), rows=[1], columns=[[3]], word=1)


def test_dataset_has_the_agreed_form(tiny_pipe):
    with capture(tiny_pipe, ["bear"]) as maps:
        generate(tiny_pipe)
    found = maps.dataset()
    assert list(found.data_vars) == ["maps_16x16", "maps_8x8", "maps_4x4", "maps_2x2"]
    assert [found[name].sizes[f"head_{name[5:]}"] for name in found.data_vars] == [40, 40, 40, 8]
    assert found["maps_8x8"].dims == ("image", "word", "head_8x8", "y_8x8", "x_8x8")
    assert found["maps_8x8"].dtype == np.float32
    assert found["head_2x2"].values.tolist() == list(range(48, 56))
    assert set(found["place_2x2"].values) == {"mid"}
    assert found["word"].values.tolist() == ["bear"]
    assert found.attrs["height"] == found.attrs["width"] == 128
    every = np.concatenate([found[f"head_{grid}"] for grid in ("16x16", "8x8", "4x4", "2x2")])
    assert sorted(every) == list(range(128))
    for values in found.data_vars.values():
        assert 0 <= values.min() and values.max() <= 1


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_image_is_identical_with_and_without_capture(tiny_pipe, guidance):
    plain = generate(tiny_pipe, guidance_scale=guidance, output_type="np")
    with capture(tiny_pipe, ["bear"]):
        captured = generate(tiny_pipe, guidance_scale=guidance, output_type="np")
    assert np.array_equal(plain, captured)


def test_no_guidance(tiny_pipe):
    with attention_by_hand(tiny_pipe) as expected, capture(tiny_pipe, "bear") as maps:
        generate(tiny_pipe, guidance_scale=1.0)
    assert_maps_equal(maps.dataset(), expected(), rows=[0], columns=[[4]])


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_batch_with_several_images_a_prompt_and_a_word_each(tiny_pipe, guidance):
    prompts = ["photo of a bear", "a cat on the desk"]
    with attention_by_hand(tiny_pipe) as expected, capture(tiny_pipe, [["bear"], ["cat"]]) as maps:
        generate(tiny_pipe, prompts, num_images_per_prompt=2, guidance_scale=guidance)
    found, first = maps.dataset(), 4 if guidance > 1 else 0
    rows = [first, first + 1, first + 2, first + 3]
    assert_maps_equal(found, expected(), rows=rows, columns=[[4], [4], [2], [2]])
    assert found["word"].values.tolist() == ["subject"]
    maps.heatmap("cat", image=2)
    with pytest.raises(ValueError, match=r"'bear' was not captured in image 3; captured there: \['cat'\]"):
        maps.heatmap("bear", image=3)
    with pytest.raises(IndexError, match="image 4"):
        maps.heatmap("cat", image=4)


def test_a_batch_gives_each_image_the_maps_it_has_alone(tiny_pipe):
    prompts = ["photo of a bear", "a bear on the desk"]
    with capture(tiny_pipe, ["bear"]) as together:
        generate(tiny_pipe, prompts)
    with capture(tiny_pipe, ["bear"]) as one_by_one:
        for i, prompt in enumerate(prompts):
            generate(tiny_pipe, prompt, seed=i)
    for name, values in together.dataset().data_vars.items():
        assert values.sizes["image"] == 2
        np.testing.assert_allclose(values, one_by_one.dataset()[name], atol=1e-5)


def test_word_of_several_tokens_and_word_that_occurs_twice(tiny_pipe):
    pieces = tiny_pipe.tokenizer("lampcat", add_special_tokens=False).input_ids
    assert len(pieces) > 1
    with (
        attention_by_hand(tiny_pipe) as expected,
        capture(tiny_pipe, ["lampcat", "oak tree", "a"]) as maps,
    ):
        generate(tiny_pipe, "a lampcat and a oak tree")
    n, found = len(pieces), maps.dataset()
    assert_maps_equal(found, expected(), rows=[1], columns=[list(range(2, 2 + n))])
    assert_maps_equal(found, expected(), rows=[1], columns=[[4 + n, 5 + n]], word=1)
    assert_maps_equal(found, expected(), rows=[1], columns=[[1, 3 + n]], word=2)


def test_not_square(tiny_pipe):
    with attention_by_hand(tiny_pipe) as expected, capture(tiny_pipe, ["bear"]) as maps:
        generate(tiny_pipe, height=72, width=136)
    found = maps.dataset()
    assert list(found.data_vars) == ["maps_9x17", "maps_5x9", "maps_3x5", "maps_2x3"]
    assert_maps_equal(found, expected(), rows=[1], columns=[[4]])
    assert maps.heatmap("bear").shape == (72, 136)


def test_large_layers_are_done_in_parts(tiny_pipe, monkeypatch):
    monkeypatch.setattr(import_module("selattn_lib.capture"), "MAX_LOGITS", 1)
    with attention_by_hand(tiny_pipe) as expected, capture(tiny_pipe, ["bear"]) as maps:
        generate(tiny_pipe, ["photo of a bear"] * 3)
    assert_maps_equal(maps.dataset(), expected(), rows=[3, 4, 5], columns=[[4]] * 3)


def test_half_precision(tiny_pipe):
    latents = torch.randn(2, 4, 16, 16, dtype=torch.bfloat16)
    tiny_pipe.unet.to(torch.bfloat16)
    try:
        embeddings = tiny_pipe.encode_prompt(["a bear"] * 2, "cpu", 1, False)[0].to(torch.bfloat16)
        with torch.no_grad(), capture(tiny_pipe, ["bear"], prompt=["a bear"] * 2) as maps:
            tiny_pipe.unet(latents, 500, embeddings)
    finally:
        tiny_pipe.unet.to(torch.float32)
    with torch.no_grad(), capture(tiny_pipe, ["bear"], prompt=["a bear"] * 2) as exact:
        tiny_pipe.unet(latents.float(), 500, embeddings.float())
    for name, values in maps.dataset().data_vars.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, exact.dataset()[name], atol=0.05)


def test_unet_called_directly(tiny_pipe):
    """The known-truth evaluation: noised latents, no guidance, the prompts of the rows given."""
    prompts = ["a bear", "a cat and a dog", "a dog"]
    latents = torch.randn(3, 4, 16, 16)
    with torch.no_grad():
        embeddings = tiny_pipe.encode_prompt(prompts, "cpu", 1, False)[0]
        with (
            attention_by_hand(tiny_pipe) as expected,
            capture(tiny_pipe, [["bear"], ["dog"], ["dog"]], prompt=prompts) as maps,
        ):
            for timestep in (200, 600):
                tiny_pipe.unet(latents, timestep, embeddings)
    assert_maps_equal(maps.dataset(), expected(), rows=[0, 1, 2], columns=[[2], [5], [2]])


def test_identical_latents_for_different_prompts_are_not_guidance(tiny_pipe):
    prompts = ["a bear", "a cat"]
    latents = torch.randn(1, 4, 16, 16).repeat(2, 1, 1, 1)
    with torch.no_grad():
        embeddings = tiny_pipe.encode_prompt(prompts, "cpu", 1, False)[0]
        with capture(tiny_pipe, ["a"], prompt=prompts) as maps:
            tiny_pipe.unet(latents, 200, embeddings)
    assert maps.dataset().sizes["image"] == 2


def test_embeddings_made_elsewhere_need_the_prompt(tiny_pipe):
    positive, negative = tiny_pipe.encode_prompt("photo of a bear", "cpu", 1, True)
    embeddings = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
    with (
        pytest.raises(ValueError, match=r"capture\(pipe, words, prompt=\.\.\.\)"),
        capture(tiny_pipe, ["bear"]),
    ):
        tiny_pipe(**embeddings, num_inference_steps=1)
    generator = torch.Generator().manual_seed(0)
    with capture(tiny_pipe, ["bear"], prompt="photo of a bear") as maps:
        tiny_pipe(**embeddings, generator=generator, num_inference_steps=2, height=128, width=128)
    with capture(tiny_pipe, ["bear"]) as usual:
        generate(tiny_pipe)
    for name, values in maps.dataset().data_vars.items():
        np.testing.assert_allclose(values, usual.dataset()[name], atol=1e-6)


def test_negative_embeddings_alone_are_not_mistaken_for_a_second_image(tiny_pipe):
    _, negative = tiny_pipe.encode_prompt("a bear", "cpu", 1, True)
    with pytest.raises(ValueError, match="ran 1 time"), capture(tiny_pipe, ["bear"]):
        generate(tiny_pipe, "a bear", negative_prompt_embeds=negative)
    with capture(tiny_pipe, ["bear"], prompt="a bear") as maps:
        generate(tiny_pipe, "a bear", negative_prompt_embeds=negative)
    assert maps.dataset().sizes["image"] == 1


def test_nothing_stays_behind(tiny_pipe):
    processors = dict(tiny_pipe.unet.attn_processors)
    plain = generate(tiny_pipe)
    with capture(tiny_pipe, ["bear"]):
        assert count_hooks(tiny_pipe) == 2 + 16 * 3
    assert count_hooks(tiny_pipe) == 0

    def stop(*ignored):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), capture(tiny_pipe, ["bear"]):
        generate(tiny_pipe, callback_on_step_end=stop)
    assert count_hooks(tiny_pipe) == 0
    assert tiny_pipe.unet.attn_processors == processors
    assert np.array_equal(generate(tiny_pipe), plain)


def test_a_generation_that_was_stopped_does_not_spoil_the_next(tiny_pipe):
    with capture(tiny_pipe, ["bear"]) as alone:
        generate(tiny_pipe)

    def stop(*ignored):
        raise KeyboardInterrupt

    with capture(tiny_pipe, ["bear"]) as maps:
        with pytest.raises(KeyboardInterrupt):
            generate(tiny_pipe, callback_on_step_end=stop)
        generate(tiny_pipe)
    for name, values in maps.dataset().data_vars.items():
        assert values.sizes["image"] == 2
        assert np.array_equal(values[1], alone.dataset()[name][0])


def test_nested_captures_agree(tiny_pipe):
    with capture(tiny_pipe, ["bear"]) as outer, capture(tiny_pipe, ["a", "bear"]) as inner:
        generate(tiny_pipe)
    for name, values in outer.dataset().data_vars.items():
        np.testing.assert_allclose(values[:, 0], inner.dataset()[name][:, 1], atol=1e-6)


def test_heatmap_of_a_word(tiny_pipe):
    with capture(tiny_pipe, ["bear", "photo"]) as maps:
        generate(tiny_pipe)
    heat = maps.heatmap("photo", heads=[3, 50, 100])
    assert heat.dims == ("y", "x") and heat.shape == (128, 128)
    assert heat.equals(heatmap(maps.dataset(), [3, 50, 100], word="photo"))
    assert not heat.equals(maps.heatmap("bear", heads=[3, 50, 100]))


def test_a_word_that_is_not_there_shows_the_tokens(tiny_pipe):
    with pytest.raises(ValueError, match=r"'cat' .* is not in the prompt.*'photo</w>'.*'bear</w>'"):
        with capture(tiny_pipe, ["cat"]):
            generate(tiny_pipe)


def test_a_word_outside_the_vocabulary_is_not_mistaken_for_padding(tiny_pipe):
    with pytest.raises(ValueError, match="'7' is not in the vocabulary"), capture(tiny_pipe, ["7"]):
        generate(tiny_pipe)


@pytest.mark.parametrize("words", [[], [[]], [["bear"], ["cat", "dog"]], "", [["bear"], []]])
def test_words_that_make_no_sense(tiny_pipe, words):
    with pytest.raises(ValueError), capture(tiny_pipe, words):
        generate(tiny_pipe)


def test_one_list_of_words_for_each_prompt(tiny_pipe):
    with pytest.raises(ValueError, match="1 lists of words for 2 prompts"), capture(tiny_pipe, [["bear"]]):
        generate(tiny_pipe, ["a bear", "a bear"])


def test_nothing_generated(tiny_pipe):
    with capture(tiny_pipe, ["bear"]) as maps:
        pass
    with pytest.raises(RuntimeError, match="Nothing was generated"):
        maps.dataset()


def test_batches_of_two_sizes_need_two_blocks(tiny_pipe):
    with torch.no_grad():
        embeddings = tiny_pipe.encode_prompt("a bear", "cpu", 1, False)[0]
        with pytest.raises(ValueError, match="one `with` block for each batch"):
            with capture(tiny_pipe, ["bear"], prompt="a bear"):
                tiny_pipe.unet(torch.randn(1, 4, 16, 16), 10, embeddings)
                tiny_pipe.unet(torch.randn(1, 4, 8, 8), 10, embeddings)
