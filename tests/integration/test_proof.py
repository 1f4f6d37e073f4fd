"""Layers that do something else with their attention are refused by name; adapters and exact processors pass."""

from contextlib import contextmanager

import numpy as np
import pytest
import tiny_families
import torch
from attention_truth import assert_captured, attention_seen
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from tiny_sd import build_pipeline, count_hooks, generate

from selattn_lib.attention.capture import capture
from selattn_lib.attention.proof import is_exact
from selattn_lib.attention.scaling import scaled_heads
from selattn_lib.models.families import cross_attention_heads

FIRST = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
PROMPT = "a bear and a cat"  # "bear" is token 2


class Full:
    """Attention written out, of a class that capture has never seen; `change` is done to its softmax."""

    def change(self, probabilities):
        return probabilities

    def merged(self, attn, query, key, value):
        return self.change(attn.get_attention_scores(query, key)) @ value

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **ignored):
        text = encoder_hidden_states
        parts = [attn.head_to_batch_dim(x) for x in (attn.to_q(hidden_states), attn.to_k(text), attn.to_v(text))]
        merged = attn.batch_to_head_dim(self.merged(attn, *parts))
        return self.after(attn.to_out[1](attn.to_out[0](merged + self.added(attn, hidden_states))))

    def added(self, attn, hidden_states):
        return 0

    def after(self, output):
        return output


class Replaced(Full):
    """Prompt-to-prompt: the last row attends as the one before it."""

    def change(self, probabilities):
        by_row = probabilities.unflatten(0, (2, -1)).clone()
        by_row[-1] = by_row[-2]
        return by_row.flatten(0, 1)


class Reweighted(Full):
    def change(self, probabilities):
        return probabilities * (1 + 0.2 * (torch.arange(probabilities.shape[-1]) == 2))


class Between(Replaced):
    """Replaces in its seventh call only."""

    calls = 0

    def change(self, probabilities):
        self.calls += 1
        return super().change(probabilities) if self.calls == 7 else probabilities


class Masked(Full):
    """The text's attention in one corner only, as regional prompts have it."""

    def merged(self, attn, query, key, value):
        values = super().merged(attn, query, key, value)
        return values * (torch.arange(values.shape[1]) < max(1, values.shape[1] // 2))[:, None]


class Regional(Full):
    def merged(self, attn, query, key, value):
        other = attn.head_to_batch_dim(attn.to_k(torch.ones(2, 20, 32)))
        return super().merged(attn, query, key, value) + attn.get_attention_scores(query, other) @ value


class Adapter(Full, torch.nn.Module):
    """As IP-Adapter in its authors' own code: attention to a picture, by projections of its own, is added."""

    def __init__(self, width):
        super().__init__()
        self.to_k_ip, self.to_v_ip = (torch.nn.Linear(8, width, bias=False) for _ in range(2))

    def added(self, attn, hidden_states):
        image = torch.ones(2, 4, 8) * torch.arange(4)[:, None]
        parts = (attn.to_q.forward(hidden_states), self.to_k_ip(image), self.to_v_ip(image))
        query, key, value = (attn.head_to_batch_dim(x) for x in parts)
        return 0.6 * attn.batch_to_head_dim(attn.get_attention_scores(query, key) @ value)


class Afterwards(Full):
    """Adds to what the layer puts out."""

    def after(self, output):
        return output + 0.1


@contextmanager
def processors(pipe, make):
    before = dict(pipe.unet.attn_processors)
    for layer in cross_attention_heads(pipe):
        module = pipe.unet.get_submodule(layer.name)
        module.set_processor(make(module))
    try:
        yield
    finally:
        pipe.unet.set_attn_processor(before)


@pytest.mark.parametrize("kind", [Full, Adapter, Afterwards])
def test_what_attends_as_it_says_passes(tiny_pipe, kind):
    with processors(tiny_pipe, lambda layer: Adapter(layer.inner_dim) if kind is Adapter else kind()):
        plain = generate(tiny_pipe, PROMPT)
        with attention_seen(tiny_pipe) as seen, capture(tiny_pipe, ["bear"]) as maps:
            captured = generate(tiny_pipe, PROMPT)
    assert torch.equal(plain, captured)
    assert_captured(maps, seen, [1], [[2]])


def test_attention_that_is_not_finite_is_said_to_be_so(tiny_pipe):
    with processors(tiny_pipe, lambda layer: Full()):
        with pytest.raises(ValueError, match="is NaN or infinite in call 1"), capture(tiny_pipe, ["bear"]):
            generate(tiny_pipe, PROMPT, latents=torch.full((1, 4, 8, 8), torch.nan))


@pytest.mark.parametrize("kind", [Replaced, Reweighted, Masked, Between])
def test_what_attends_otherwise_is_refused_by_name(tiny_pipe, kind):
    with processors(tiny_pipe, lambda layer: kind()):
        with pytest.raises(ValueError, match=rf"{kind.__name__}\) does not draw with softmax.*verify=False"):
            with capture(tiny_pipe, ["bear"]):
                generate(tiny_pipe, PROMPT, steps=8, height=64, width=64)
        assert count_hooks(tiny_pipe) == 0
        with capture(tiny_pipe, ["bear"], verify=False) as maps:
            generate(tiny_pipe, PROMPT, steps=1)
    assert maps.head_maps().n_images == 1


def test_several_projections_in_one_call_are_refused(tiny_pipe):
    with processors(tiny_pipe, lambda layer: Regional()):
        with pytest.raises(ValueError, match=rf"{FIRST} \(Regional\) ran its to_k twice"), capture(tiny_pipe, ["bear"]):
            generate(tiny_pipe, PROMPT)


def test_a_class_or_a_layer_whose_parts_were_replaced_is_not_known(tiny_pipe, monkeypatch):
    layer = tiny_pipe.unet.get_submodule(FIRST)
    assert is_exact(layer)
    for name in ("forward", "get_attention_scores"):
        with monkeypatch.context() as patch:
            patch.setitem(vars(layer), name, getattr(layer, name))
            assert not is_exact(layer)
    with monkeypatch.context() as patch:
        patch.setattr(AttnProcessor2_0, "__call__", Replaced.__call__)
        assert not is_exact(layer)
    assert is_exact(layer)


def test_a_class_whose_parts_were_replaced_is_not_known(tiny_pipe, monkeypatch):
    """For all layers at once, as packages do that want no processors of their own."""
    scores = Attention.get_attention_scores
    layer = tiny_pipe.unet.get_submodule(FIRST)
    monkeypatch.setattr(Attention, "get_attention_scores", lambda *args: scores(*args) ** 2)
    assert not is_exact(layer)
    with processors(tiny_pipe, lambda layer: AttnProcessor()), capture(tiny_pipe, ["bear"]):
        with pytest.raises(ValueError, match=rf"{FIRST} \(AttnProcessor\) does not draw with softmax"):
            generate(tiny_pipe, PROMPT)
        monkeypatch.undo()
        generate(tiny_pipe, PROMPT)


@pytest.mark.parametrize("calls", [1, 7])
def test_attention_that_was_replaced_under_known_processors(tiny_pipe, monkeypatch, calls):
    """From the first call on, or later; what attends as PyTorch does passes."""
    attend, begins = torch.nn.functional.scaled_dot_product_attention, calls
    seen = []
    hook = tiny_pipe.unet.register_forward_pre_hook(lambda *_: seen.append(len(seen)))

    def sharper(query, key, value, **settings):
        return attend(1.2 * query if len(seen) >= begins else query, key, value, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", sharper)
    try:
        with pytest.raises(ValueError, match=rf"{FIRST} \(AttnProcessor2_0\) does not draw with softmax"):
            with capture(tiny_pipe, ["bear"]):
                generate(tiny_pipe, PROMPT, steps=8, height=64, width=64)
        assert len(seen) == calls
        begins = 100
        with capture(tiny_pipe, ["bear"]) as maps:
            generate(tiny_pipe, PROMPT, height=64, width=64)
        assert maps.head_maps().n_images == 1
    finally:
        hook.remove()


def test_a_forward_that_was_replaced_is_proven(tiny_pipe):
    """As the first prompt-to-prompt did it."""
    layer = tiny_pipe.unet.get_submodule(FIRST)
    replaced = Replaced()
    layer.forward = lambda hidden_states, encoder_hidden_states=None, **_: replaced(
        layer, hidden_states, encoder_hidden_states
    )
    try:
        with pytest.raises(ValueError, match=FIRST), capture(tiny_pipe, ["bear"]):
            generate(tiny_pipe, PROMPT)
    finally:
        del layer.forward


def test_merged_pixels_are_refused(tiny_pipe, monkeypatch):
    layer = tiny_pipe.unet.get_submodule(FIRST)
    forward = layer.forward
    merged = lambda pixels, *args, **settings: forward(pixels[:, ::2], *args, **settings).repeat_interleave(2, 1)  # noqa: E731
    monkeypatch.setitem(vars(layer), "forward", merged)
    with pytest.raises(RuntimeError, match=rf"{FIRST} .* has 32 pixels.*merges pixels"), capture(tiny_pipe, ["bear"]):
        generate(tiny_pipe, PROMPT)


def test_an_adapter_of_diffusers_passes_with_and_without_being_known(tiny_pipe, monkeypatch):
    pipe = build_pipeline()
    names = [name for name in pipe.unet.attn_processors if name.endswith("attn2.processor")]
    widths = [pipe.unet.get_submodule(name.removesuffix(".processor")).inner_dim for name in names]
    adapter = {
        f"{2 * i + 1}.{kind}.weight": torch.randn(width, 32)
        for i, width in enumerate(widths)
        for kind in ("to_k_ip", "to_v_ip")
    }
    norm = {"norm.weight": torch.ones(32), "norm.bias": torch.zeros(32)}
    projection = {"proj.weight": torch.randn(128, 16), "proj.bias": torch.zeros(128), **norm}
    pipe.unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": adapter}])
    picture = {"ip_adapter_image_embeds": [torch.randn(2, 1, 16)]}
    with attention_seen(pipe) as seen, capture(pipe, ["bear"]) as maps:
        generate(pipe, PROMPT, **picture)
    assert_captured(maps, seen, [1], [[2]])
    monkeypatch.setattr("selattn_lib.attention.proof.EXACT", set())
    with capture(pipe, ["bear"]):
        generate(pipe, PROMPT, steps=1, **picture)


@pytest.mark.parametrize("name", ["sd35", "flux"])
def test_joint_attention_is_proven_too(name, monkeypatch):
    pipe = getattr(tiny_families, f"build_{name}")()
    settings = {"height": 64, "width": 96, "max_sequence_length": 12, "steps": 1}
    monkeypatch.setattr("selattn_lib.attention.proof.EXACT", set())
    plain = generate(pipe, PROMPT, **settings)
    with capture(pipe, ["bear"]) as maps:
        assert np.array_equal(generate(pipe, PROMPT, **settings), plain)
    assert maps.head_maps().n_images == 1
    attend = torch.nn.functional.scaled_dot_product_attention

    def sharper(query, key, value, **settings):
        return attend(1.2 * query, key, value, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", sharper)
    with pytest.raises(ValueError, match="does not draw with softmax"), capture(pipe, ["bear"]):
        generate(pipe, PROMPT, **settings)


def test_scaled_heads_are_proven_by_what_attention_puts_out(tiny_pipe):
    with processors(tiny_pipe, lambda layer: Full()), scaled_heads(tiny_pipe, [0, 5], 0.3):
        with capture(tiny_pipe, ["bear"]) as maps:
            generate(tiny_pipe, PROMPT, steps=1)
    assert maps.dataset().sizes["image"] == 1


def test_what_is_known_is_not_proven_again():
    """Nothing of the proof runs for processors of diffusers that are known to be exact."""
    pipe = build_pipeline()
    with capture(pipe, ["bear"]) as maps:
        generate(pipe, PROMPT, steps=1)
        assert not any(maps.to_prove(generation) for generation in maps.generations)
