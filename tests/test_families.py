"""Every family of models that can be captured, on a tiny model of its true class and layout."""

from contextlib import contextmanager
from functools import cache
from unittest import mock

import numpy as np
import pytest
import tiny_families
import torch
import torch.nn.functional as F
from tiny_families import CLIP_TOKENS
from tiny_sd import generate

from selattn_lib.capture import capture
from selattn_lib.heads import cross_attention_heads

T5_TOKENS = 12
FAMILIES = ["sd2", "sdxl", "sd3", "sd35", "flux"]
PROMPTS = ["photo of a bear", "a bear on the desk"]
# Where "bear" is in the two prompts. CLIP puts a start token first, T5 does not; SD3 sees CLIP's tokens, then T5's.
CLIP, T5 = [[4], [2]], [[3], [1]]
BOTH = [[[4], [CLIP_TOKENS + 3]], [[2], [CLIP_TOKENS + 1]]]


@cache
def build(name):
    return getattr(tiny_families, f"build_{name}")()


def network_of(pipe):
    return getattr(pipe, "unet", None) or pipe.transformer


def draw(name, prompt=PROMPTS, **settings):
    """Two steps at a size that is not square."""
    if name in ("sd3", "sd35", "flux"):
        settings["max_sequence_length"] = T5_TOKENS
    return generate(build(name), prompt, height=64, width=96, **settings)


@contextmanager
def attention_seen(pipe):
    """Yield, for each layer, the softmax of every query over every key that the model itself hands to PyTorch's
    attention, one (row, head, query, key) a call."""
    network, inside = network_of(pipe), []
    seen = [[] for _ in cross_attention_heads(pipe)]
    real = F.scaled_dot_product_attention

    def spy(query, key, *args, **kwargs):
        if inside:
            logits = torch.einsum("bhqc,bhkc->bhqk", query.double(), key.double()) / query.shape[-1] ** 0.5
            seen[inside[-1]].append(logits.softmax(dim=-1))
        return real(query, key, *args, **kwargs)

    hooks = []
    for i, layer in enumerate(cross_attention_heads(pipe)):
        module = network.get_submodule(layer.name)
        hooks.append(module.register_forward_pre_hook(lambda *_, i=i: inside.append(i)))
        hooks.append(module.register_forward_hook(lambda *_: inside.clear()))
    try:
        with mock.patch.object(F, "scaled_dot_product_attention", spy):
            yield seen
    finally:
        for hook in hooks:
            hook.remove()


def columns(name, probabilities, where):
    """(head, pixel) mean of the columns `where` of one row, for the image's queries."""
    if name in ("sd3", "sd35"):  # image first, then text
        pixels = probabilities.shape[-1] - CLIP_TOKENS - T5_TOKENS
        stretches = [probabilities[:, :pixels, [pixels + i for i in places]].mean(-1) for places in where]
        return torch.stack(stretches).mean(0)
    if name == "flux":  # text first, then image
        probabilities = probabilities[:, T5_TOKENS:]
    return probabilities[:, :, where].mean(-1)


def assert_maps_equal(name, maps, seen, rows, where, word=0):
    found = maps.dataset()
    by_head = {}
    for variable in found.data_vars:
        numbers = found[f"head_{variable[5:]}"].values.tolist()
        values = found[variable].isel(word=word).values.reshape(len(rows), len(numbers), -1)
        by_head.update({number: values[:, i] for i, number in enumerate(numbers)})
    for layer, calls in zip(maps.heads, seen, strict=True):
        for image, (row, at) in enumerate(zip(rows, where, strict=True)):
            expected = torch.stack([columns(name, call[row], at) for call in calls]).mean(0)
            got = np.stack([by_head[layer.first + h][image] for h in range(layer.n_heads)])
            np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)
    assert len(by_head) == len(maps.heads)


def where_bear(name):
    return {"flux": T5, "sd3": BOTH, "sd35": BOTH}.get(name, CLIP)


@pytest.mark.parametrize("name", FAMILIES)
def test_batch_under_guidance_equals_the_models_own_attention_and_changes_nothing(name):
    pipe, guided = build(name), {"negative_prompt": ["a dog"] * 2, "num_images_per_prompt": 2}
    if name == "flux":
        guided["true_cfg_scale"] = 2.0
    plain = draw(name, **guided)
    hooks = count_all_hooks(pipe)
    with attention_seen(pipe) as seen, capture(pipe, ["bear"]) as maps:
        captured = draw(name, **guided)
    assert np.array_equal(plain, captured)
    assert count_all_hooks(pipe) == hooks == 0
    if name == "flux":  # a call with the prompts, a call with the negative prompts, and so on
        assert {len(calls) for calls in seen} == {4}
        seen, first = [calls[::2] for calls in seen], 0
    else:
        assert {len(calls) for calls in seen} == {2}
        first = 4
    where = [each for each in where_bear(name) for _ in range(2)]
    assert_maps_equal(name, maps, seen, range(first, first + 4), where)
    assert maps.heatmap("bear", image=3).shape == (64, 96)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_image_without_guidance(name):
    pipe = build(name)
    settings = {} if name == "flux" else {"guidance_scale": 1.0}
    plain = draw(name, PROMPTS[0], **settings)
    with attention_seen(pipe) as seen, capture(pipe, "bear") as maps:
        captured = draw(name, PROMPTS[0], **settings)
    assert np.array_equal(plain, captured)
    assert_maps_equal(name, maps, seen, [0], where_bear(name)[:1])


@pytest.mark.parametrize("name, dtype", [("sd2", torch.float16), ("sdxl", torch.bfloat16), ("sd35", torch.float16),
                                         ("flux", torch.bfloat16)])  # fmt: skip
def test_half_precision_is_as_exact(name, dtype):
    """From the model's own queries and keys, rounded as they are, in float32."""
    pipe = build(name)
    pipe.to(dtype)
    try:
        with attention_seen(pipe) as seen, capture(pipe, "bear") as maps:
            draw(name, PROMPTS[0])
    finally:
        build.cache_clear()  # what was rounded stays so
    assert_maps_equal(name, maps, seen, [0 if name == "flux" else 1], where_bear(name)[:1])


def count_all_hooks(pipe):
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    modules = [module for part in parts for module in part.modules()]
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def test_sdxl_has_1300_heads():
    heads = cross_attention_heads(build("sdxl"))
    by_place = {place: [layer.n_heads for layer in heads if layer.place == place] for place in ("down", "mid", "up")}
    assert len(heads) == 1300
    assert by_place == {"down": [10] * 4 + [20] * 20, "mid": [20] * 10, "up": [20] * 30 + [10] * 6}
    assert heads.names[0] == "down, layer: 0, head: 0" and heads.names[-1] == "up, layer: 35, head: 9"


def test_sd2_has_more_heads_the_deeper():
    heads = cross_attention_heads(build("sd2"))
    assert [layer.n_heads for layer in heads] == [5, 5, 10, 10, 20, 20, 20, *[20] * 3, *[10] * 3, *[5] * 3]


def test_heads_of_transformers():
    heads = cross_attention_heads(build("sd35"))
    assert [layer.name for layer in heads] == [f"transformer_blocks.{i}.attn" for i in range(3)]
    assert heads.names[-1] == "joint, layer: 2, head: 1"
    heads = cross_attention_heads(build("flux").transformer)
    assert [(layer.place, layer.index) for layer in heads] == [
        ("double", 0), ("double", 1), ("single", 0), ("single", 1), ("single", 2)
    ]  # fmt: skip
    assert heads.names[4] == "single, layer: 0, head: 0"
