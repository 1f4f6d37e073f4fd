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

from selattn_lib.attention.capture import capture
from selattn_lib.attention.scoring import score_heads
from selattn_lib.models.heads import cross_attention_heads
from selattn_lib.models.tokens import Tokens, find_word

CONCEPTS = {"Animals": ["bear", "cat", "lampcat"], "Things": ["desk", "oak tree"]}

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
    found = maps.head_maps().dataset
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
    assert count_all_hooks(pipe) == hooks  # transformers has some of its own
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
    by_block = {block: [layer.n_heads for layer in heads if layer.block == block] for block in ("down", "mid", "up")}
    assert len(heads) == 1300
    assert by_block == {"down": [10] * 4 + [20] * 20, "mid": [20] * 10, "up": [20] * 30 + [10] * 6}
    assert heads.names[0] == "down, layer: 0, head: 0" and heads.names[-1] == "up, layer: 35, head: 9"


def test_sd2_has_more_heads_the_deeper():
    heads = cross_attention_heads(build("sd2"))
    assert [layer.n_heads for layer in heads] == [5, 5, 10, 10, 20, 20, 20, *[20] * 3, *[10] * 3, *[5] * 3]


def test_heads_of_transformers():
    heads = cross_attention_heads(build("sd35"))
    assert [layer.name for layer in heads] == [f"transformer_blocks.{i}.attn" for i in range(3)]
    assert heads.names[-1] == "joint, layer: 2, head: 1"
    heads = cross_attention_heads(build("flux").transformer)
    assert [(layer.block, layer.index) for layer in heads] == [
        ("double", 0), ("double", 1), ("single", 0), ("single", 1), ("single", 2)
    ]  # fmt: skip
    assert heads.names[4] == "single, layer: 0, head: 0"


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_embeddings_made_elsewhere_with_their_prompt(name):
    pipe = build(name)
    length = {} if name == "sdxl" else {"max_sequence_length": T5_TOKENS}
    others = {"prompt_2": None, "prompt_3": None} if name == "sd3" else {"prompt_2": None}
    encoded = pipe.encode_prompt(prompt=PROMPTS[0], **others, **length)
    if name == "flux":
        embeddings = dict(zip(["prompt_embeds", "pooled_prompt_embeds"], encoded, strict=False))
    else:
        names = ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
        embeddings = dict(zip(names, encoded, strict=True))
    settings = {**embeddings, "height": 64, "width": 96, "num_inference_steps": 2, "output_type": "latent", **length}
    with pytest.raises(ValueError, match=r"capture\(pipe, words, prompt=\.\.\.\)"), capture(pipe, ["bear"]):
        pipe(**settings)
    with capture(pipe, ["bear"], prompt=PROMPTS[0]) as maps:
        pipe(generator=torch.Generator().manual_seed(0), **settings)
    with capture(pipe, ["bear"]) as usual:
        draw(name, PROMPTS[0])
    for variable, values in maps.head_maps().dataset.data_vars.items():
        np.testing.assert_allclose(values, usual.head_maps().dataset[variable], atol=1e-5)


def test_flux_negative_prompts_in_calls_of_their_own():
    """Known from the prompt by the pipeline's own arguments, whichever of the two is encoded first or elsewhere."""
    pipe, encode = build("flux"), {"prompt_2": None, "max_sequence_length": T5_TOKENS}
    settings = {"height": 64, "width": 96, "num_inference_steps": 2, "max_sequence_length": T5_TOKENS}
    settings |= {"output_type": "latent", "true_cfg_scale": 2.0}
    outside, pooled_outside, _ = pipe.encode_prompt("a dog", **encode)
    negative = {"negative_prompt_embeds": outside, "negative_pooled_prompt_embeds": pooled_outside}
    for negatives in ({"negative_prompt": PROMPTS[1]}, negative):
        with attention_seen(pipe) as seen, capture(pipe, ["bear"]) as maps:
            pipe.encode_prompt(PROMPTS[1], **encode)
            text, pooled, _ = pipe.encode_prompt(PROMPTS[0], **encode)
            pipe(prompt_embeds=text, pooled_prompt_embeds=pooled, **negatives, **settings)
        assert_maps_equal("flux", maps, [calls[::2] for calls in seen], [0], T5[:1])


def test_flux_pixels_that_are_not_the_images_are_refused():
    """As in pipelines that show the transformer a second image."""
    pipe = build("flux")
    text, pooled, text_ids = pipe.encode_prompt("a bear", None, max_sequence_length=T5_TOKENS)
    ids = pipe._prepare_latent_image_ids(1, 4, 6, "cpu", torch.float32)
    with pytest.raises(RuntimeError, match="48 pixels, where latents of"), torch.no_grad():
        with capture(pipe, ["bear"], prompt="a bear"):
            pipe.transformer(
                torch.randn(1, 48, 16), text, pooled, torch.tensor([0.5]), torch.cat([ids, ids]), text_ids,
                guidance=torch.tensor([3.5]),
            )  # fmt: skip


def test_sd3_skip_layer_guidance_does_not_count():
    pipe = build("sd35")
    with attention_seen(pipe) as seen, capture(pipe, ["bear"]) as maps:
        draw("sd35", PROMPTS[0], steps=4, skip_guidance_layers=[1], skip_layer_guidance_stop=1.0)
    assert [len(calls) for calls in seen] == [7, 4, 7]
    seen = [[call for call in calls if len(call) == 2] for calls in seen]  # both halves, not the skipping call's one
    assert_maps_equal("sd35", maps, seen, [1], BOTH[:1])


def test_sd3_without_t5():
    full = build("sd3")
    pipe = type(full)(**{**full.components, "text_encoder_3": None, "tokenizer_3": None})
    pipe.set_progress_bar_config(disable=True)
    with attention_seen(pipe) as seen, capture(pipe, ["bear"]) as maps:
        pipe(
            PROMPTS[0], height=64, width=96, num_inference_steps=1, output_type="latent", max_sequence_length=T5_TOKENS
        )
    assert_maps_equal("sd3", maps, seen, [1], [CLIP[:1]])


@pytest.mark.parametrize(
    "prompt, word, covered",
    [
        ("a bear, and", "bear", ["\u2581bear"]),
        ('a "Bear" on', "bear", list("Bear")),
        ("a bear-cat", "cat", list("cat")),
        ("a cat and a dog-cat", "cat#2", list("cat")),
        ("a oak tree and", "oak tree", ["\u2581oak", "\u2581tree"]),
        ("a lampcat", "lampcat", ["\u2581lamp", *"cat"]),
        ("a lampcat", "cat", None),
        ("a lampcat", "lamp", None),
    ],
)
def test_t5_tokens_of_whole_words(prompt, word, covered):
    tokenizer = build("flux").tokenizer_2
    tokens = Tokens(tokenizer, tokenizer(prompt).input_ids, 0)
    if covered is None:
        with pytest.raises(ValueError, match="is not in the prompt"):
            find_word(word, tokens)
    else:
        assert tokenizer.convert_ids_to_tokens([tokens.ids[i] for i in find_word(word, tokens)]) == covered


def test_a_word_that_is_not_there_shows_the_tokens_of_every_tokenizer():
    with pytest.raises(ValueError, match=r"'cat' .*'photo</w>'.*Ask.*'cat' .*'\u2581photo', '\u2581of'"):
        with capture(build("sd3"), ["cat"]):
            draw("sd3", PROMPTS[0])


def test_sdxl_scores_heads_by_words_as_its_encoders_read_them():
    pipe = build("sdxl")
    with score_heads(pipe, CONCEPTS) as votes, capture(pipe, ["bear"]) as maps:
        captured = draw("sdxl", PROMPTS[0])
    assert np.array_equal(captured, draw("sdxl", PROMPTS[0]))
    assert maps.head_maps().dataset.sizes["image"] == 1
    assert votes.counts().shape == (1, 2, 1300) and (votes.counts().sum("concept") == 2).all()
    words = [word for words in CONCEPTS.values() for word in words]
    with torch.no_grad():
        states = pipe.encode_prompt(words, device="cpu", do_classifier_free_guidance=False)[0]
    lengths = [len(pipe.tokenizer(word, add_special_tokens=False).input_ids) for word in words]
    semantic = [state[1 : 1 + n] for state, n in zip(states, lengths, strict=True)]
    torch.testing.assert_close(votes.tokens, torch.cat([states[0, :1], *semantic]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["sd35", "flux"])
def test_joint_attention_cannot_be_scored(name):
    with pytest.raises(ValueError, match="Expected: Stable Diffusion 1.x, 2.x or XL"):
        with score_heads(build(name), CONCEPTS):
            pass


@pytest.mark.parametrize("name", FAMILIES)
def test_fused_projections_are_refused_layer_by_layer(name):
    network = network_of(build(name))
    n_layers = len(cross_attention_heads(network).layers)
    try:
        network.fuse_qkv_projections()
        with pytest.raises(ValueError, match="cannot be captured") as error:
            cross_attention_heads(network)
    finally:
        build.cache_clear()
    assert str(error.value).count("fused projections") == n_layers


def test_a_compiled_network_is_refused():
    pipe = build("sd2")
    try:
        pipe.unet.compile()
        with pytest.raises(ValueError, match="UNet2DConditionModel: is compiled"), capture(pipe, ["bear"]):
            pass
    finally:
        pipe.unet._compiled_call_impl = None
