"""Scaled heads: exact, alone, and gone afterwards."""

import numpy as np
import pytest
import torch
from tiny_families import build_flux
from tiny_sd import count_hooks, generate

from selattn_lib.attention.capture import capture
from selattn_lib.attention.scaling import scaled_heads
from selattn_lib.models.heads import cross_attention_heads


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


@pytest.mark.parametrize("heads, scale, said", [([128], 0, "128"), ([-1], 0, "-1"), ([0], np.nan, "scale=nan")])
def test_what_cannot_be_scaled(tiny_pipe, heads, scale, said):
    with pytest.raises(ValueError, match=said), scaled_heads(tiny_pipe, heads, scale):
        pass


def test_models_without_cross_attention_are_refused():
    with pytest.raises(ValueError, match="cannot be scaled"), scaled_heads(build_flux(), [0], 0):
        pass
