from contextlib import contextmanager
from importlib import import_module

import accelerate
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, UNet2DConditionModel
from tiny_sd import build_pipeline, count_hooks, generate

from selattn_lib.attention.capture import capture
from selattn_lib.attention.scoring import score_heads
from selattn_lib.maps.consensus import finest_heads
from selattn_lib.maps.head_maps import heatmap
from selattn_lib.models.families import cross_attention_heads


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
    found = maps.head_maps().dataset
    assert_maps_equal(found, expected(), rows=[1], columns=[[4]])  # start, photo, of, a, bear
    assert_maps_equal(found, expected(), rows=[1], columns=[[3]], word=1)


def test_dataset_has_the_agreed_form(tiny_pipe):
    with capture(tiny_pipe, ["bear"]) as maps:
        generate(tiny_pipe, height=128, width=128)
    found = maps.head_maps().dataset
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
    assert_maps_equal(maps.head_maps().dataset, expected(), rows=[0], columns=[[4]])


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_batch_with_several_images_a_prompt_and_a_word_each(tiny_pipe, guidance):
    prompts = ["photo of a bear", "a cat on the desk"]
    with attention_by_hand(tiny_pipe) as expected, capture(tiny_pipe, [["bear"], ["cat"]]) as maps:
        generate(tiny_pipe, prompts, num_images_per_prompt=2, guidance_scale=guidance)
    found, first = maps.head_maps().dataset, 4 if guidance > 1 else 0
    rows = [first, first + 1, first + 2, first + 3]
    assert_maps_equal(found, expected(), rows=rows, columns=[[4], [4], [2], [2]])
    assert found["word"].values.tolist() == ["subject"]
    maps.heatmap("cat", image=2)
    with pytest.raises(ValueError, match=r"'bear' is not in these maps: they hold \['cat'\]"):
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
    for name, values in together.head_maps().dataset.data_vars.items():
        assert values.sizes["image"] == 2
        np.testing.assert_allclose(values, one_by_one.head_maps().dataset[name], atol=1e-5)


def test_word_of_several_tokens_and_word_that_occurs_twice(tiny_pipe):
    pieces = tiny_pipe.tokenizer("lampcat", add_special_tokens=False).input_ids
    assert len(pieces) > 1
    with (
        attention_by_hand(tiny_pipe) as expected,
        capture(tiny_pipe, ["lampcat", "oak tree", "a"]) as maps,
    ):
        generate(tiny_pipe, "a lampcat and a oak tree")
    n, found = len(pieces), maps.head_maps().dataset
    assert_maps_equal(found, expected(), rows=[1], columns=[list(range(2, 2 + n))])
    assert_maps_equal(found, expected(), rows=[1], columns=[[4 + n, 5 + n]], word=1)
    assert_maps_equal(found, expected(), rows=[1], columns=[[1, 3 + n]], word=2)


def test_not_square(tiny_pipe):
    with attention_by_hand(tiny_pipe) as expected, capture(tiny_pipe, ["bear"]) as maps:
        generate(tiny_pipe, height=72, width=136)
    found = maps.head_maps().dataset
    assert list(found.data_vars) == ["maps_9x17", "maps_5x9", "maps_3x5", "maps_2x3"]
    assert_maps_equal(found, expected(), rows=[1], columns=[[4]])
    assert maps.heatmap("bear").shape == (72, 136)


def test_large_layers_are_done_in_parts(tiny_pipe, monkeypatch):
    monkeypatch.setattr(import_module("selattn_lib.attention.capture"), "MAX_LOGITS", 1)
    with attention_by_hand(tiny_pipe) as expected, capture(tiny_pipe, ["bear"]) as maps:
        generate(tiny_pipe, ["photo of a bear"] * 3)
    assert_maps_equal(maps.head_maps().dataset, expected(), rows=[3, 4, 5], columns=[[4]] * 3)


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
    for name, values in maps.head_maps().dataset.data_vars.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, exact.head_maps().dataset[name], atol=0.05)


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
    assert_maps_equal(maps.head_maps().dataset, expected(), rows=[0, 1, 2], columns=[[2], [5], [2]])


def test_identical_latents_for_different_prompts_are_not_guidance(tiny_pipe):
    prompts = ["a bear", "a cat"]
    latents = torch.randn(1, 4, 16, 16).repeat(2, 1, 1, 1)
    with torch.no_grad():
        embeddings = tiny_pipe.encode_prompt(prompts, "cpu", 1, False)[0]
        with capture(tiny_pipe, ["a"], prompt=prompts) as maps:
            tiny_pipe.unet(latents, 200, embeddings)
    assert maps.head_maps().dataset.sizes["image"] == 2


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
        tiny_pipe(**embeddings, generator=generator, num_inference_steps=2, height=64, width=64)
    with capture(tiny_pipe, ["bear"]) as usual:
        generate(tiny_pipe)
    for name, values in maps.head_maps().dataset.data_vars.items():
        np.testing.assert_allclose(values, usual.head_maps().dataset[name], atol=1e-6)


@pytest.mark.parametrize("prompt", [None, "a bear"])
def test_negative_embeddings_alone_are_not_mistaken_for_a_second_image(tiny_pipe, prompt):
    negative, _ = tiny_pipe.encode_prompt("a bear on the desk", "cpu", 1, False)
    with attention_by_hand(tiny_pipe) as expected, capture(tiny_pipe, ["bear"], prompt=prompt) as maps:
        generate(tiny_pipe, "a bear", negative_prompt_embeds=negative)
    assert_maps_equal(maps.head_maps().dataset, expected(), rows=[1], columns=[[2]])


def test_nothing_stays_behind(tiny_pipe):
    kind, processors = type(tiny_pipe), dict(tiny_pipe.unet.attn_processors)
    plain = generate(tiny_pipe)
    with capture(tiny_pipe, ["bear"]):
        assert count_hooks(tiny_pipe) == 2 + 16 * 5
        assert type(tiny_pipe) is not kind
    assert type(tiny_pipe) is kind
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
    for name, values in maps.head_maps().dataset.data_vars.items():
        assert values.sizes["image"] == 2
        assert np.array_equal(values[1], alone.head_maps().dataset[name][0])


def test_nested_captures_agree(tiny_pipe):
    with capture(tiny_pipe, ["bear"]) as outer, capture(tiny_pipe, ["a", "bear"]) as inner:
        generate(tiny_pipe)
    for name, values in outer.head_maps().dataset.data_vars.items():
        np.testing.assert_allclose(values[:, 0], inner.head_maps().dataset[name][:, 1], atol=1e-6)


def test_heatmap_of_a_word(tiny_pipe):
    with capture(tiny_pipe, ["bear", "photo"]) as maps:
        generate(tiny_pipe)
    heat = maps.heatmap("photo", heads=[3, 50, 100])
    assert heat.dims == ("y", "x") and heat.shape == (64, 64)
    assert heat.equals(heatmap(maps.head_maps(), [3, 50, 100], word="photo"))
    assert not heat.equals(maps.heatmap("bear", heads=[3, 50, 100]))


def test_a_word_that_is_not_there_shows_the_tokens(tiny_pipe):
    with pytest.raises(ValueError, match=r"'cat' .* is not in the prompt.*'photo</w>'.*'bear</w>'"):
        with capture(tiny_pipe, ["cat"]):
            generate(tiny_pipe)


def test_a_prompt_that_was_refused_does_not_spoil_the_next(tiny_pipe):
    with capture(tiny_pipe, ["bear"]) as maps:
        with pytest.raises(ValueError, match="'bear' .* is not in the prompt"):
            generate(tiny_pipe, "a cat")
        generate(tiny_pipe, "a bear")
    assert maps.head_maps().dataset.sizes["image"] == 1


def test_a_word_beyond_what_the_model_reads(tiny_pipe):
    with pytest.raises(ValueError, match="'bear' .* is not in the prompt.*, all that the model reads of it"):
        with capture(tiny_pipe, ["bear"]):
            generate(tiny_pipe, "a " * 18 + "bear")


def test_the_network_alone_will_not_do(tiny_pipe):
    with pytest.raises(ValueError, match="UNet2DConditionModel: expected the pipeline"):
        with capture(tiny_pipe.unet, ["bear"]):
            pass


def test_a_word_outside_the_vocabulary_is_not_mistaken_for_padding(tiny_pipe):
    with pytest.raises(ValueError, match="'7' is not in the vocabulary"), capture(tiny_pipe, ["7"]):
        generate(tiny_pipe)


@pytest.mark.parametrize("words", [[], [[]], [["bear"], ["cat", "dog"]], "", [["bear"], []]])
def test_words_that_make_no_sense(tiny_pipe, words):
    with pytest.raises(ValueError), capture(tiny_pipe, words):
        generate(tiny_pipe)


@pytest.mark.parametrize("heads", [np.arange(128) == 40, [1.7], "all", 5])
def test_heads_that_are_no_numbers(tiny_pipe, heads):
    with pytest.raises(ValueError, match="expected a list of whole numbers"), capture(tiny_pipe, "bear", heads=heads):
        pass


def test_projections_that_were_fused_and_undone_are_captured():
    pipe = build_pipeline()
    with capture(pipe, "bear") as expected:
        generate(pipe)
    pipe.unet.fuse_qkv_projections()
    with pytest.raises(ValueError, match=r"undo with unfuse_qkv_projections\(\)"), capture(pipe, "bear"):
        pass
    pipe.unet.unfuse_qkv_projections()
    with capture(pipe, "bear") as maps:
        generate(pipe)
    assert np.array_equal(maps.heatmap("bear"), expected.heatmap("bear"))


def test_one_list_of_words_for_each_prompt(tiny_pipe):
    with pytest.raises(ValueError, match="1 lists of words for 2 prompts"), capture(tiny_pipe, [["bear"]]):
        generate(tiny_pipe, ["a bear", "a bear"])


def test_nothing_generated(tiny_pipe):
    with capture(tiny_pipe, ["bear"]) as maps:
        pass
    with pytest.raises(RuntimeError, match="Nothing was generated"):
        maps.head_maps()


def test_batches_of_two_sizes_need_two_blocks(tiny_pipe):
    with torch.no_grad():
        embeddings = tiny_pipe.encode_prompt("a bear", "cpu", 1, False)[0]
        with pytest.raises(ValueError, match="one `with` block for each batch"):
            with capture(tiny_pipe, ["bear"], prompt="a bear"):
                tiny_pipe.unet(torch.randn(1, 4, 16, 16), 10, embeddings)
                tiny_pipe.unet(torch.randn(1, 4, 8, 8), 5, embeddings)


def test_a_word_is_found_whole_in_any_case_and_as_its_nth_occurrence(tiny_pipe):
    prompt = "A cat, a CAT and a lampcat"
    with attention_by_hand(tiny_pipe) as expected, capture(tiny_pipe, ["Cat", "cat#1", "cat#2"]) as maps:
        generate(tiny_pipe, prompt)
    tokens = tiny_pipe.tokenizer.convert_ids_to_tokens(tiny_pipe.tokenizer(prompt).input_ids)
    first, second, *rest = [i for i, token in enumerate(tokens) if token == "cat</w>"]
    assert len(rest) <= 1  # the end of "lampcat", which is no cat
    for word, places in enumerate([[first, second], [first], [second]]):
        assert_maps_equal(maps.head_maps().dataset, expected(), rows=[1], columns=[places], word=word)
    assert maps.head_maps().dataset["word"].values.tolist() == ["Cat", "cat#1", "cat#2"]
    for word in ("cat#3", "cat#0"):
        with pytest.raises(ValueError, match=rf"'{word}' is not in the prompt: 'cat' occurs 2"):
            with capture(tiny_pipe, word):
                generate(tiny_pipe, prompt)


def test_what_only_head_maps_have_is_asked_of_them(tiny_pipe):
    with capture(tiny_pipe, ["bear"]) as maps, pytest.raises(AttributeError, match=r"no 'grids'; .*`head_maps\(\)`"):
        finest_heads(maps)
    with pytest.raises(AttributeError, match=r"no 'nosuch'\.$"):
        maps.nosuch  # noqa: B018


def test_only_some_heads_are_kept(tiny_pipe):
    chosen = [127, 3, 50, 51]
    with capture(tiny_pipe, ["bear", "a"]) as every, capture(tiny_pipe, ["bear", "a"], heads=chosen) as some:
        generate(tiny_pipe)
    found, full = some.head_maps().dataset, every.head_maps().dataset
    assert sorted(n for name in found.data_vars for n in found[f"head_{name[5:]}"].values) == sorted(chosen)
    for name, values in found.data_vars.items():
        grid = name[5:]
        same = [full[f"head_{grid}"].values.tolist().index(n) for n in found[f"head_{grid}"].values]
        np.testing.assert_allclose(values, full[name].values[:, :, same], atol=1e-6)
    assert some.memory(64, 64) == sum(values.nbytes for values in found.data_vars.values())
    np.testing.assert_allclose(some.heatmap("a"), every.heatmap("a", heads=chosen), atol=1e-5)
    np.testing.assert_allclose(some.heatmap("a", heads=[50]), every.heatmap("a", heads=[50]), atol=1e-5)
    with pytest.raises(ValueError, match=r"heads \[4\] are not in these maps, which hold only \[3, 50, 51, 127\]"):
        some.heatmap("a", heads=[3, 4])
    with pytest.raises(ValueError, match="heads='daam' needs all 128 heads of the model: these maps hold 4"):
        some.heatmap("a", heads="daam")


def test_only_some_layers_are_listened_to(tiny_pipe):
    with capture(tiny_pipe, ["bear"]) as every, capture(tiny_pipe, ["bear"], layers=[6]) as mid:
        generate(tiny_pipe, height=128, width=128)
        assert count_hooks(tiny_pipe) == 2 + 16 * 5 + 2 + 5
    assert list(mid.head_maps().dataset.data_vars) == ["maps_2x2"]
    np.testing.assert_allclose(mid.head_maps().dataset["maps_2x2"], every.head_maps().dataset["maps_2x2"], atol=1e-6)


def test_one_map_for_each_timestep(tiny_pipe):
    with capture(tiny_pipe, ["bear"]) as mean, capture(tiny_pipe, ["bear"], per_timestep=True) as each:
        generate(tiny_pipe, ["photo of a bear"] * 2, steps=3)
    found = each.head_maps().dataset
    assert found["maps_8x8"].dims == ("image", "word", "call", "head_8x8", "y_8x8", "x_8x8")
    assert found["timestep"].values.tolist() == [667, 334, 334, 1]  # PNDM calls twice at its second
    assert each.memory(64, 64, images=2, calls=4) == sum(values.nbytes for values in found.data_vars.values())
    means = mean.head_maps().dataset
    assert mean.memory(64, 64, images=2) == sum(values.nbytes for values in means.data_vars.values())
    for name, values in means.data_vars.items():
        np.testing.assert_allclose(found[name].mean("call"), values, atol=1e-6)
    np.testing.assert_allclose(each.heatmap("bear"), mean.heatmap("bear"), atol=1e-4)
    assert np.abs(found["maps_8x8"].isel(call=0) - found["maps_8x8"].isel(call=3)).max() > 1e-3


def test_a_window_of_timesteps(tiny_pipe):
    window = (334, 999)
    with (
        capture(tiny_pipe, ["bear"], per_timestep=True) as each,
        capture(tiny_pipe, ["bear"], timesteps=window) as early,
        capture(tiny_pipe, ["bear"], timesteps=window[::-1], per_timestep=True) as early_each,
        capture(tiny_pipe, ["bear"], timesteps=(2, 300)) as none,
    ):
        generate(tiny_pipe, steps=3)
    for name, values in each.head_maps().dataset.data_vars.items():
        np.testing.assert_allclose(early.head_maps().dataset[name], values.isel(call=slice(3)).mean("call"), atol=1e-6)
    assert early_each.head_maps().dataset["timestep"].values.tolist() == [667, 334, 334]
    with pytest.raises(RuntimeError, match="No call of the network was at a timestep from 2 to 300"):
        none.head_maps()


@pytest.mark.parametrize(
    "selection, message",
    [
        ({"heads": [128]}, r"heads=\[128\]: expected some of the model's heads, numbers from 0 to 127"),
        ({"heads": []}, "heads"),
        ({"layers": [-1]}, "numbers from 0 to 15"),
        ({"heads": [1], "layers": [1]}, "one kind"),
        ({"timesteps": (1, 2, 3)}, "expected two"),
    ],
)
def test_selections_that_make_no_sense(tiny_pipe, selection, message):
    with pytest.raises(ValueError, match=message), capture(tiny_pipe, ["bear"], **selection):
        pass


def test_timesteps_need_one_for_all_rows(tiny_pipe):
    with torch.no_grad():
        embeddings = tiny_pipe.encode_prompt(["a bear"] * 2, "cpu", 1, False)[0]
        with (
            pytest.raises(ValueError, match="several timesteps"),
            capture(tiny_pipe, ["bear"], prompt=["a bear"] * 2, timesteps=(0, 999)),
        ):
            tiny_pipe.unet(torch.randn(2, 4, 16, 16), torch.tensor([1, 2]), embeddings)


def test_sliced_attention(tiny_pipe):
    with capture(tiny_pipe, ["bear"]) as usual:
        generate(tiny_pipe)
    tiny_pipe.enable_attention_slicing(1)
    try:
        plain = generate(tiny_pipe)
        with capture(tiny_pipe, ["bear"]) as sliced:
            captured = generate(tiny_pipe)
    finally:
        tiny_pipe.disable_attention_slicing()
    assert np.array_equal(plain, captured)
    for name, values in usual.head_maps().dataset.data_vars.items():
        np.testing.assert_allclose(sliced.head_maps().dataset[name], values, atol=1e-5)


def test_models_moved_in_and_out_by_accelerate(tiny_pipe):
    """What `enable_model_cpu_offload` does on a machine with an accelerator, here from the CPU to the CPU."""
    with capture(tiny_pipe, ["bear"]) as usual:
        plain = generate(tiny_pipe)
    moved, previous = [tiny_pipe.text_encoder, tiny_pipe.unet], None
    for model in moved:
        _, previous = accelerate.cpu_offload_with_hook(model, "cpu", previous)
    try:
        with capture(tiny_pipe, ["bear"]) as offloaded, score_heads(tiny_pipe, {"A": ["bear"], "B": ["cat"]}):
            assert np.array_equal(plain, generate(tiny_pipe))
    finally:
        for model in moved:
            accelerate.hooks.remove_hook_from_module(model, recurse=True)
    assert offloaded.head_maps().dataset.equals(usual.head_maps().dataset)


def test_a_network_with_lora_weights(tiny_pipe):
    peft = pytest.importorskip("peft")
    with capture(tiny_pipe, ["bear"]) as without:
        generate(tiny_pipe)
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    tiny_pipe.unet.add_adapter(config)
    try:
        plain = generate(tiny_pipe)
        with capture(tiny_pipe, ["bear"]):
            assert np.array_equal(generate(tiny_pipe), plain)
        with attention_by_hand(tiny_pipe) as expected, capture(tiny_pipe, ["bear"]) as maps:
            generate(tiny_pipe)
    finally:
        tiny_pipe.unload_lora_weights()
    assert_maps_equal(maps.head_maps().dataset, expected(), rows=[1], columns=[[4]])
    assert np.abs(maps.head_maps().dataset["maps_8x8"] - without.head_maps().dataset["maps_8x8"]).max() > 1e-3
    assert not hasattr(tiny_pipe.unet, "peft_config")


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_image_to_image(tiny_pipe, guidance):
    pipe = StableDiffusionImg2ImgPipeline(**tiny_pipe.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    settings = {"prompt": "photo of a bear", "image": torch.rand(1, 3, 64, 128), "strength": 0.5}
    settings |= {"num_inference_steps": 4, "guidance_scale": guidance, "output_type": "latent"}
    plain = pipe(generator=torch.Generator().manual_seed(0), **settings).images
    with attention_by_hand(pipe) as expected, capture(pipe, ["bear"]) as maps:
        pipe(generator=torch.Generator().manual_seed(0), **settings)
    with capture(pipe, ["bear"]):
        assert np.array_equal(plain, pipe(generator=torch.Generator().manual_seed(0), **settings).images)
    assert_maps_equal(maps.head_maps().dataset, expected(), rows=[int(guidance > 1)], columns=[[4]])
    assert maps.heatmap("bear").shape == (64, 128)


@pytest.mark.parametrize("guidance", [1.0, 7.5])
def test_inpainting_with_nine_channels(tiny_pipe, guidance):
    unet = UNet2DConditionModel.from_config(tiny_pipe.unet.config, in_channels=9).eval()
    parts = {**tiny_pipe.components, "unet": unet}
    pipe = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    mask = torch.zeros(1, 1, 128, 64)
    mask[..., 32:, :] = 1
    settings = {"prompt": ["photo of a bear", "a bear"], "image": torch.rand(1, 3, 128, 64), "mask_image": mask}
    settings |= {"num_inference_steps": 2, "guidance_scale": guidance, "height": 128, "width": 64}
    settings |= {"num_images_per_prompt": 2, "output_type": "latent"}
    plain = pipe(generator=torch.Generator().manual_seed(0), **settings).images
    with attention_by_hand(pipe) as expected, capture(pipe, ["bear"]) as maps:
        pipe(generator=torch.Generator().manual_seed(0), **settings)
    with capture(pipe, ["bear"]):
        assert np.array_equal(plain, pipe(generator=torch.Generator().manual_seed(0), **settings).images)
    rows = range(4, 8) if guidance > 1 else range(4)
    assert_maps_equal(maps.head_maps().dataset, expected(), rows=list(rows), columns=[[4], [4], [2], [2]])


def test_stopped_inside_the_network_nothing_stays_behind(tiny_pipe):
    plain = generate(tiny_pipe)
    processors = dict(tiny_pipe.unet.attn_processors)

    def stop(*ignored):
        raise KeyboardInterrupt

    deep = tiny_pipe.unet.get_submodule("up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v")
    with capture(tiny_pipe, ["bear"]) as alone:
        generate(tiny_pipe)
    with capture(tiny_pipe, ["bear"]) as maps:
        handle = deep.register_forward_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            generate(tiny_pipe)
        handle.remove()
    assert count_hooks(tiny_pipe) == 0
    assert tiny_pipe.unet.attn_processors == processors
    with pytest.raises(RuntimeError, match="ended in its first call.*up_blocks.1.attentions.0"):
        maps.head_maps()
    with capture(tiny_pipe, ["bear"]) as again:
        assert np.array_equal(generate(tiny_pipe), plain)
    assert again.head_maps().dataset.equals(alone.head_maps().dataset)


def test_layers_that_do_not_use_their_projections_are_listed(tiny_pipe):
    """A processor of its own that leaves `to_k` out."""
    layer = tiny_pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2
    before = layer.processor

    class Aside:
        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **ignored):
            return hidden_states

    layer.set_processor(Aside())
    try:
        with capture(tiny_pipe, ["bear"]) as maps, score_heads(tiny_pipe, {"A": ["bear"], "B": ["cat"]}) as votes:
            generate(tiny_pipe)
    finally:
        layer.set_processor(before)
    for read in (maps.head_maps, votes.counts):
        with pytest.raises(RuntimeError, match=r"\['mid_block.attentions.0.transformer_blocks.0.attn2'\]"):
            read()


def test_heads_daam_is_the_package_from_its_sums_to_its_picture(tiny_pipe):
    """The arithmetic of daam 0.2.0, restated: `trace.compute_global_heat_map`, then `WordHeatMap.expand_as`."""
    with attention_by_hand(tiny_pipe) as expected, capture(tiny_pipe, ["bear"]) as maps:
        generate(tiny_pipe, steps=3, height=128, width=128)
    merged = []
    for layer, attention in zip(maps.heads, expected(), strict=True):
        if layer.block == "mid":
            continue
        for head in range(layer.n_heads):
            per_token = attention[1, head].T  # the conditional half, (token, pixel)
            side = int(per_token.shape[1] ** 0.5)
            summed = 4 * per_token.reshape(-1, 1, side, side)  # over the UNet's calls
            merged.append(F.interpolate(summed, size=(16, 16), mode="bicubic").clamp_(min=0))
    word = torch.stack(merged).mean(0)[:, 0][4]
    image = F.interpolate(word[None, None], size=(128, 128), mode="bicubic")
    image = (image - image.min()) / (image.max() - image.min() + 1e-8)
    np.testing.assert_allclose(maps.heatmap("bear", heads="daam"), image[0, 0].numpy(), atol=1e-5)
