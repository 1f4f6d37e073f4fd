"""Scaled heads: exact, alone, and gone afterwards."""

import numpy as np
import pytest
import tiny_families
import torch
from tiny_families import build_flux
from tiny_sd import count_hooks, generate

from selattn_lib.attention.capture import capture
from selattn_lib.attention.scaling import scaled_heads
from selattn_lib.models.families import cross_attention_heads


def test_scale_1_changes_no_bit_and_nothing_stays_behind(tiny_pipe):
    plain = generate(tiny_pipe)
    with scaled_heads(tiny_pipe, range(128), 1.0):
        assert count_hooks(tiny_pipe) == 16
        assert torch.equal(generate(tiny_pipe), plain)
    with scaled_heads(tiny_pipe, [5], 0.0):
        assert not torch.equal(generate(tiny_pipe), plain)
    with pytest.raises(KeyError), scaled_heads(tiny_pipe, [5], 0.0):
        raise KeyError
    assert count_hooks(tiny_pipe) == 0 and torch.equal(generate(tiny_pipe), plain)


def test_scaling_a_head_is_scaling_its_columns_of_the_projection(tiny_pipe):
    """Against the same change made to the weights."""
    heads = cross_attention_heads(tiny_pipe)
    chosen = [0, 3, 70, 127]
    with scaled_heads(tiny_pipe, chosen, -0.5):
        found = generate(tiny_pipe)
    kept = {}
    for layer in heads:
        projection = tiny_pipe.unet.get_submodule(layer.name).to_out[0]
        kept[layer.name] = projection.weight.data.clone()
        for number in chosen:
            if layer.first <= number < layer.first + layer.n_heads:
                width = projection.in_features // layer.n_heads
                at = (number - layer.first) * width
                projection.weight.data[:, at : at + width] *= -0.5
    expected = generate(tiny_pipe)
    for layer in heads:
        tiny_pipe.unet.get_submodule(layer.name).to_out[0].weight.data = kept[layer.name]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_nested_scales_multiply_and_capture_goes_along(tiny_pipe):
    with scaled_heads(tiny_pipe, [9], 0.25):
        once = generate(tiny_pipe)
    with scaled_heads(tiny_pipe, [9], 0.5), capture(tiny_pipe, ["bear"]) as maps, scaled_heads(tiny_pipe, [9], 0.5):
        assert torch.equal(generate(tiny_pipe), once)
    assert maps.head_maps().dataset.sizes["image"] == 1


class ScaledColumns:
    """Attention to the letter, with the columns of some heads multiplied after the softmax, in some rows of a batch."""

    def __init__(self, heads, tokens_of_row, scale):
        self.heads, self.tokens_of_row, self.scale = heads, tokens_of_row, scale

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        projected = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2).double() for x in projected)
        attention = (query @ key.transpose(2, 3) * attn.scale).softmax(dim=-1)
        for row, tokens in self.tokens_of_row.items():
            for head in self.heads:
                attention[row, head, :, tokens] *= self.scale
        return attn.to_out[0]((attention @ value).transpose(1, 2).flatten(-2).to(hidden_states.dtype))


def test_scaling_attention_to_words_is_scaling_their_columns_after_the_softmax(tiny_pipe):
    """Against a processor that does it; the prompt's rows are the second half under guidance."""
    heads = cross_attention_heads(tiny_pipe)
    chosen = [0, 3, 70, 127]
    plain = generate(tiny_pipe, prompt=["a photo of bear", "oak"])
    with scaled_heads(tiny_pipe, chosen, -2.0, tokens="words"), capture(tiny_pipe, [["bear"], ["oak"]]) as maps:
        found = generate(tiny_pipe, prompt=["a photo of bear", "oak"])
    assert count_hooks(tiny_pipe) == 0 and maps.head_maps().n_images == 2
    kept = tiny_pipe.unet.attn_processors
    for layer in heads:
        own = [number - layer.first for number in chosen if layer.first <= number < layer.first + layer.n_heads]
        words = {2: [1, 2, 3, 4], 3: [1]}  # token 0 starts, the one after the words ends, the rest is padding
        tiny_pipe.unet.get_submodule(layer.name).set_processor(ScaledColumns(own, words, -2.0))
    expected = generate(tiny_pipe, prompt=["a photo of bear", "oak"])
    tiny_pipe.unet.set_attn_processor(kept)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert (found - plain).abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_scale_1_of_words_changes_no_bit(tiny_pipe):
    plain = generate(tiny_pipe)
    with scaled_heads(tiny_pipe, range(128), 1.0, tokens="words"):
        assert torch.equal(generate(tiny_pipe), plain)
    with scaled_heads(tiny_pipe, range(128), 0.0, tokens="words"):
        assert not torch.equal(generate(tiny_pipe), plain)
    assert count_hooks(tiny_pipe) == 0 and torch.equal(generate(tiny_pipe), plain)


def test_words_of_a_negative_prompt_that_says_the_same_are_left_alone(tiny_pipe):
    def prompts_rows(module, args, values):
        values = values.clone()
        values[2:, 1:5] *= -2
        return values

    prompt = "photo of a bear"
    settings = {"prompt": [prompt] * 2, "negative_prompt": ["a dog", prompt]}
    with scaled_heads(tiny_pipe, range(128), -2.0, tokens="words"):
        scaled = generate(tiny_pipe, **settings)
    layers = [module.to_v for name, module in tiny_pipe.unet.named_modules() if name.endswith("attn2")]
    hooks = [layer.register_forward_hook(prompts_rows) for layer in layers]
    expected = generate(tiny_pipe, **settings)
    for hook in hooks:
        hook.remove()
    assert torch.equal(scaled, expected)
    with pytest.raises(ValueError, match="give another negative prompt"):
        with scaled_heads(tiny_pipe, range(128), -2.0, tokens="words"):
            generate(tiny_pipe, prompt, negative_prompt=prompt)


def test_words_that_are_not_known_cannot_be_scaled(tiny_pipe):
    embeddings = tiny_pipe.encode_prompt("a photo of bear", "cpu", 1, False)[0]
    with (
        pytest.raises(ValueError, match="have the pipeline encode its prompts"),
        scaled_heads(tiny_pipe, [0], 0.0, tokens="words"),
    ):
        tiny_pipe(prompt_embeds=embeddings, guidance_scale=1, num_inference_steps=1, output_type="latent")
    with pytest.raises(ValueError, match="tokens='bear': expected all or words"):
        scaled_heads(tiny_pipe, [0], 0.0, tokens="bear").__enter__()


@pytest.mark.parametrize(
    "heads, scale, said",
    [
        ([128], 0, "128"),
        ([-1], 0, "-1"),
        ([0], np.nan, "scale=nan"),
        (np.arange(128) == 40, 0, "expected a list of whole numbers"),
        ([1.7], 0, "expected a list of whole numbers"),
        ("all", 0, "heads='all': expected a list"),
        (5, 0, "heads=5: expected a list"),
    ],
)
def test_what_cannot_be_scaled(tiny_pipe, heads, scale, said):
    with pytest.raises(ValueError, match=said), scaled_heads(tiny_pipe, heads, scale):
        pass


@pytest.mark.parametrize("name", ["pixart", "sana", "hunyuan"])
def test_heads_of_transformers_with_cross_attention(name):
    """All that a head does, against the same change of its weights; its attention to words is a part of it."""
    pipe = getattr(tiny_families, f"build_{name}")()
    size = {"height": 64, "width": 96, "use_resolution_binning": False}
    plain, [layer, *_] = generate(pipe, **size), cross_attention_heads(pipe)
    with scaled_heads(pipe, [1], 1.0), scaled_heads(pipe, [1], 1.0, tokens="words"):
        assert torch.equal(generate(pipe, **size), plain)
    with scaled_heads(pipe, [1], 0.0, tokens="words"):
        wordless = generate(pipe, **size)
    with scaled_heads(pipe, [1], 0.0):
        without = generate(pipe, **size)
    projection = pipe.transformer.get_submodule(layer.name).to_out[0]
    projection.weight.data[:, projection.in_features // layer.n_heads :] = 0
    torch.testing.assert_close(without, generate(pipe, **size), rtol=1e-3, atol=1e-4)
    assert len({picture.sum().item() for picture in (plain, wordless, without)}) == 3


def test_models_without_cross_attention_are_refused():
    with pytest.raises(ValueError, match="cannot be scaled: .* is one sum"), scaled_heads(build_flux(), [0], 0):
        pass
