"""Every family of models that can be captured, on a tiny model of its true class and layout."""

from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from inspect import signature
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tiny_families
import torch
import torch.nn.functional as F
from attention_truth import assert_proven
from diffusers import (
    PixArtTransformer2DModel,
    PRXTransformer2DModel,
    SanaTransformer2DModel,
    SanaVideoTransformer3DModel,
)
from tiny_families import CLIP_TOKENS, build
from tiny_sd import generate

from selattn_lib.attention.capture import capture
from selattn_lib.attention.scoring import RelevanceCounter, score_heads
from selattn_lib.models.families import FAMILIES as FAMILY_CLASSES
from selattn_lib.models.families import cross_attention_heads, find_family
from selattn_lib.models.pipelines import network_layout
from selattn_lib.models.supported import supported_models
from selattn_lib.models.tokens import Tokens, find_word
from selattn_lib.publishing.reproduce import time_call
from selattn_lib.studies.relevance import RelevanceStudy, relevance_for

CONCEPTS = {"Animals": ["bear", "cat", "lampcat"], "Things": ["desk", "oak tree"]}

T5_TOKENS = 12
PROMPTS = ["photo of a bear", "a bear on the desk"]
PIXELS = 4 * 6  # of a transformer with patches of 2 x 2, for 64 x 96 pixels


@dataclass(frozen=True)
class Case:
    """Where "bear" is in what the model reads of the two prompts, and how its pipeline is called.

    `text_at` is where the text's keys begin, where they share the softmax with the image's; -1: the image comes last.
    """

    where: list
    text_at: int | None = None
    guided: dict = field(default_factory=lambda: {"negative_prompt": ["a dog"] * 2})
    alone: dict = field(default_factory=lambda: {"guidance_scale": 1.0})  # without guidance
    settings: dict = field(default_factory=dict)
    negative: str = "before"  # the rows with the prompts, "after" them, or in calls "apart"


# CLIP puts a start token first, T5 does not; SD3 sees CLIP's tokens, then T5's; Hunyuan-DiT BERT's 77, then T5's.
CLIP, T5 = [[4], [2]], [[3], [1]]
BOTH = [[[4], [CLIP_TOKENS + 3]], [[2], [CLIP_TOKENS + 1]]]
CHAT = [[9], [7]]  # after "<|im_start|>", "user" in letters, and the end of the line
INSTRUCTED = [[165], [163]]  # after the system message
SHORT, WHOLE = {"max_sequence_length": T5_TOKENS}, {"use_resolution_binning": False}
FAMILIES = {
    "sd2": Case(CLIP),
    "sdxl": Case(CLIP),
    "kolors": Case([[-1], [-4]], settings=SHORT),
    "pixart": Case(T5, settings=WHOLE | SHORT),
    "pixart_sigma": Case(T5, settings=WHOLE | SHORT),
    "sana": Case(CLIP, settings=WHOLE | SHORT),
    "hunyuan": Case([[[4], [77 + 3]], [[2], [77 + 1]]], settings=WHOLE),
    "sd3": Case(BOTH, PIXELS, settings=SHORT),
    "sd35": Case(BOTH, PIXELS, settings=SHORT),
    "flux": Case(
        T5, -1, {"negative_prompt": ["a dog"] * 2, "true_cfg_scale": 2.0}, alone={}, settings=SHORT, negative="apart"
    ),
    "chroma": Case(T5, -1, settings=SHORT, negative="apart"),
    "klein": Case(CHAT, -1, guided={}, settings={"max_sequence_length": 48}, negative="apart"),
    "flux2": Case(INSTRUCTED, -1, guided={}, alone={}, settings={"max_sequence_length": 256}, negative="after"),
    # Of several pictures under guidance, the pipeline gives its network too few timesteps.
    "prx": Case([[19], [16]], -1, {"guidance_scale": 1.0}, settings=WHOLE | {"guidance_scale": 1.0}, negative="after"),
    "prx_pixel": Case(T5, -1, {"guidance_scale": 1.0}, settings=WHOLE | {"guidance_scale": 1.0}, negative="after"),
    "qwen": Case(T5, -1, alone={}, negative="apart"),
    "zimage": Case(CHAT, 32, settings={"max_sequence_length": 48}, alone={"guidance_scale": 0.0}, negative="after"),
}


def network_of(pipe):
    return getattr(pipe, "unet", None) or pipe.transformer


def draw(name, prompt=PROMPTS, **settings):
    """Two steps at a size that is not square."""
    settings = deepcopy(FAMILIES[name].settings | settings)  # Z-Image writes into lists of prompts
    return generate(build(name), deepcopy(prompt), height=64, width=96, **settings)


@contextmanager
def attention_seen(pipe):
    """Yield, for each layer, the softmax of every query over every key that the model itself hands to PyTorch's
    attention, one (row, head, query, key) a call."""
    network, inside = network_of(pipe), []
    seen = [[] for _ in cross_attention_heads(pipe)]
    real = F.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, *args, **kwargs):
        if inside:
            logits = torch.einsum("bhqc,bhkc->bhqk", query.double(), key.double()) / query.shape[-1] ** 0.5
            if attn_mask is not None:
                logits = (
                    logits.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
                )
            seen[inside[-1]].append(logits.softmax(dim=-1))
        return real(query, key, value, attn_mask, *args, **kwargs)

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
    """(head, pixel) mean of the columns `where` of one row, for the image's queries; of each stretch, then of both."""
    text_at = FAMILIES[name].text_at
    if text_at is not None:
        probabilities = probabilities[:, -PIXELS:] if text_at < 0 else probabilities[:, :PIXELS, text_at:]
    stretches = where if isinstance(where[0], list) else [where]
    return torch.stack([probabilities[:, :, places].mean(-1) for places in stretches]).mean(0)


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


@pytest.mark.parametrize("name", FAMILIES)
def test_batch_under_guidance_equals_the_models_own_attention_and_changes_nothing(name):
    pipe, case = build(name), FAMILIES[name]
    guided = case.guided | {"num_images_per_prompt": 2}
    plain = draw(name, **guided)
    hooks = count_all_hooks(pipe)
    with attention_seen(pipe) as seen, capture(pipe, ["bear"]) as maps:
        captured = draw(name, **guided)
    assert np.array_equal(plain, captured)
    assert count_all_hooks(pipe) == hooks  # transformers has some of its own
    if case.negative == "apart":  # a call with the prompts, a call with the negative prompts, and so on
        assert {len(calls) for calls in seen} == {4}
        seen = [calls[::2] for calls in seen]
    assert {len(calls) for calls in seen} == {2}
    first = 4 if case.negative == "before" else 0
    where = [each for each in case.where for _ in range(2)]
    assert_maps_equal(name, maps, seen, range(first, first + 4), where)
    assert maps.heatmap("bear", image=3).shape == (64, 96)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_image_without_guidance(name):
    pipe, case = build(name), FAMILIES[name]
    plain = draw(name, PROMPTS[0], **case.alone)
    with attention_seen(pipe) as seen, capture(pipe, "bear") as maps:
        captured = draw(name, PROMPTS[0], **case.alone)
    assert np.array_equal(plain, captured)
    assert_maps_equal(name, maps, seen, [0], case.where[:1])


@pytest.mark.parametrize("name", FAMILIES)
def test_every_layer_puts_out_what_its_captured_attention_makes(name, monkeypatch):
    assert_proven(build(name), lambda: draw(name, steps=1), monkeypatch)


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_of_embeddings_made_elsewhere_are_said(name):
    pipe = build(name)
    with capture(pipe, "bear", prompt=PROMPTS[0]) as maps:
        draw(name, PROMPTS[0], steps=1)
    assert maps.head_maps().n_images == 1
    with pytest.raises(ValueError, match="cat"), capture(pipe, "bear", prompt="a bear on a cat"):
        draw(name, PROMPTS[0], steps=1)


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
    assert_maps_equal(name, maps, seen, [0 if name == "flux" else 1], FAMILIES[name].where[:1])


@pytest.mark.parametrize("name", ["prx", "prx_pixel"])
def test_one_image_of_prx_under_guidance(name):
    pipe, guided = build(name), {"guidance_scale": 3.0, "negative_prompt": "a dog"}
    plain = draw(name, PROMPTS[0], **guided)
    with attention_seen(pipe) as seen, capture(pipe, "bear") as maps:
        captured = draw(name, PROMPTS[0], **guided)
    assert np.array_equal(plain, captured)
    assert_maps_equal(name, maps, seen, [1], FAMILIES[name].where[:1])


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
    torch.testing.assert_close(votes.tokens(votes.text), torch.cat([states[0, :1], *semantic]), atol=1e-5, rtol=0)


# Where a word's tokens begin in what the model reads of the word alone. In PRX's, "bear" and "oak" are letters then.
ALONE = {"pixart": [0], "sana": [1], "hunyuan": [1, 77], "prx": [-4], "prx_pixel": [0]}


@contextmanager
def queries_and_keys(pipe):
    """Yield, for each layer, what the model hands to PyTorch's attention, one (query, key) a call."""
    real, seen = F.scaled_dot_product_attention, []

    def spy(query, key, *args, **kwargs):
        seen.append((query, key))
        return real(query, key, *args, **kwargs)

    layers, hooks, kept = list(cross_attention_heads(pipe)), [], [[] for _ in cross_attention_heads(pipe)]
    for i, layer in enumerate(layers):
        module = network_of(pipe).get_submodule(layer.name)
        hooks.append(module.register_forward_hook(lambda *_, i=i: kept[i].append(seen[-1])))
    try:
        with mock.patch.object(F, "scaled_dot_product_attention", spy):
            yield kept
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("name", ALONE)
def test_transformers_whose_text_stays_vote_by_the_keys_that_they_make_of_words(name):
    """Eq. 3 from the model's own queries, and the keys that it makes of each word as a prompt."""
    pipe, words = build(name), {"Animals": "bear", "Things": "oak tree"}
    concepts = {concept: [word] for concept, word in words.items()}
    with queries_and_keys(pipe) as drawn, score_heads(pipe, concepts) as votes:
        captured = draw(name, PROMPTS[0])
    assert np.array_equal(captured, draw(name, PROMPTS[0]))
    keys = []
    for n_tokens, word in enumerate(words.values(), start=1):
        places = [place + i for place in ALONE[name] for i in range(4 if name == "prx" else n_tokens)]
        with queries_and_keys(pipe) as alone:
            draw(name, word, steps=1)
        text = slice(-PIXELS) if FAMILIES[name].text_at == -1 else slice(None)
        keys.append([calls[0][1][-1][:, text][:, places] for calls in alone])  # (head, token, channel) of each layer
    expected = np.zeros((2, len(votes.heads)), int)
    for layer, calls, *by_word in zip(votes.heads, drawn, *keys, strict=True):
        for query, _ in calls:
            logits = query[-1] @ torch.cat(by_word, dim=1).transpose(1, 2) * query.shape[-1] ** -0.5
            first, second = logits.softmax(-1).mean(1).split([key.shape[1] for key in by_word], dim=-1)
            winner = (second.mean(-1) > first.mean(-1)).int().numpy()
            expected[winner, layer.first + np.arange(layer.n_heads)] += 1
    np.testing.assert_array_equal(votes.counts()[0], expected)
    assert expected.sum() == 2 * len(votes.heads) and (expected.sum(1) > 0).all()


def test_t5_puts_no_start_token_before_a_word():
    with pytest.raises(ValueError, match="PixArtAlphaPipeline puts no start token"):
        with score_heads(build("pixart"), CONCEPTS, start_token=True):
            pass


def test_studies_measure_and_take_the_head_relevance_of_a_transformer(tmp_path, monkeypatch):
    monkeypatch.setenv("SELATTN_RUNS", str(tmp_path / "runs"))
    pipe, model = tiny_families.build_pixart(), str(tmp_path / "pixart")
    pipe.transformer.register_to_config(sample_size=32)  # the least that its pipeline takes
    pipe.save_pretrained(model)
    settings = {"images": 2, "steps": 1, "concepts": CONCEPTS, "texts": ["a bear on the desk"]}
    relevance = RelevanceStudy(model=model, **settings).run()
    assert relevance.scores["head"].values.tolist() == cross_attention_heads(pipe).names
    assert relevance.scores["head"].values[0] == "cross, layer: 0, head: 0" and (relevance.scores.sum() > 0)
    relevance.save(tmp_path / "hrv.npz")
    taken = relevance_for(model, tmp_path / "hrv.npz")
    np.testing.assert_allclose(taken.scores, relevance.scores)
    seconds, memory = time_call(network_layout(model), "cpu", "fp32", 1)
    assert seconds > 0 and memory == sum(weight.nbytes for weight in pipe.transformer.parameters())


# Where a word's tokens begin in what the model reads of it alone, where words are carried from block to block.
CARRIED = {
    **dict.fromkeys(("sd3", "sd35"), [1, CLIP_TOKENS]),
    **dict.fromkeys(("flux", "chroma", "qwen"), [0]),
    **{"klein": [6], "flux2": [162]},
}


@contextmanager
def calls_of(modules):
    """Yield, for each module, the keyword arguments of its calls."""
    kept = [[] for _ in modules]
    see = [lambda _, args, kwargs, i=i: kept[i].append(dict(kwargs)) for i in range(len(modules))]
    hooks = [each.register_forward_pre_hook(s, with_kwargs=True) for each, s in zip(modules, see, strict=True)]
    try:
        yield kept
    finally:
        for hook in hooks:
            hook.remove()


@cache
@torch.no_grad()
def word_by_itself(name, word):
    """(1, token, channel) of a word as the first block gets it, and where its tokens are in the text."""
    pipe = build(name)
    tokenizers = [text.tokenizer for text in find_family(pipe)[0].texts(pipe)]
    lengths = [len(tokenizer(word, add_special_tokens=False).input_ids) for tokenizer in tokenizers]
    places = [first + i for first, n in zip(CARRIED[name], lengths, strict=True) for i in range(n)]
    longest = {"max_sequence_length": 256 if name.startswith("sd3") else 512}  # as the pipelines have it by default
    with calls_of([network_of(pipe)]) as [calls]:
        draw(name, word, steps=1, **FAMILIES[name].alone | longest)
    states = calls[0]["encoder_hidden_states"]
    if name == "qwen":
        states = network_of(pipe).txt_in(network_of(pipe).txt_norm(states))
    else:
        states = network_of(pipe).context_embedder(states)
    return states[-1:, places], places


@torch.no_grad()
def recount(name, blocks, concepts, unit, row):
    """Shares of attention (call, head, concept) in one image: at each block, the words stand where the prompt stood,
    beside the picture's own image, and the model's own block makes of both what it does. `blocks`: the arguments of
    each block's calls."""
    pipe, shares = build(name), []
    modules = [network_of(pipe).get_submodule(layer.name.rpartition(".")[0]) for layer in cross_attention_heads(pipe)]
    lengths = [len(words) for words in concepts.values()]
    for call in range(len(blocks[0])):
        drawn = np.random.default_rng([5, unit, call]).integers(lengths, size=(1, len(concepts)))[0]
        alone = [word_by_itself(name, words[i]) for words, i in zip(concepts.values(), drawn, strict=True)]
        words, sizes = torch.cat([states for states, _ in alone], dim=1), [len(places) for _, places in alone]
        places, by_layer = [place for _, each in alone for place in each], []
        for module, calls in zip(modules, blocks, strict=True):
            given = {n: v[row : row + 1] if torch.is_tensor(v) else v for n, v in calls[call].items()}
            given |= {n: None for n in given if n in ("attention_mask", "encoder_hidden_states_mask")}
            if name == "qwen":
                given["image_rotary_emb"] = given["image_rotary_emb"][0], given["image_rotary_emb"][1][places]
            elif "image_rotary_emb" in given:
                rope = given["image_rotary_emb"]
                given["image_rotary_emb"] = tuple(torch.cat([x[places], x[-PIXELS:]]) for x in rope)
            if given.get("encoder_hidden_states") is not None:
                given["encoder_hidden_states"] = words
            else:
                given["hidden_states"] = torch.cat([words, given["hidden_states"][:, -PIXELS:]], dim=1)
            with mock.patch.object(F, "scaled_dot_product_attention", wraps=F.scaled_dot_product_attention) as attend:
                made = module(**given)
            words = made[0] if isinstance(made, tuple) else made[:, : len(places)]
            args, by_name = attend.call_args_list[0]
            query, key = args[:2] or (by_name["query"], by_name["key"])
            first = FAMILIES[name].text_at == -1  # whether the text is
            query = query[0, :, -PIXELS:] if first else query[0, :, :PIXELS]
            key = key[0, :, : len(places)] if first else key[0, :, PIXELS:]
            attended = (query @ key.transpose(1, 2) * query.shape[-1] ** -0.5).softmax(-1).mean(1)
            by_layer.append(torch.stack([x.mean(-1) for x in attended.split(sizes, dim=-1)], dim=-1))
        shares.append(torch.cat(by_layer))
    return torch.stack(shares)


@pytest.mark.parametrize("name", CARRIED)
def test_words_pass_through_the_models_own_blocks_unseen(name):
    """Two prompts under guidance, each picture with words of its own; maps and picture as without."""
    pipe, case = build(name), FAMILIES[name]
    concepts = {"Animals": ["bear", "lampcat"], "Things": ["desk", "oak tree"], "Colours": ["blue"]}
    with capture(pipe, ["bear"]) as plain_maps:
        plain = draw(name, **case.guided)
    modules = [network_of(pipe).get_submodule(layer.name.rpartition(".")[0]) for layer in cross_attention_heads(pipe)]
    hooks, shares, vote = count_all_hooks(pipe), [], RelevanceCounter._vote

    def see(counter):
        if counter._attended is not None:
            shares.append((counter._attended * counter._share) @ counter._columns_to_concepts)
        vote(counter)

    with (
        calls_of(modules) as blocks,
        capture(pipe, ["bear"]) as maps,
        mock.patch.object(RelevanceCounter, "_vote", see),
    ):
        with score_heads(pipe, concepts, seed=5, units=[7, 2]) as votes:
            assert np.array_equal(draw(name, **case.guided), plain)
        counts = votes.counts()
    assert count_all_hooks(pipe) == hooks
    assert maps.head_maps().dataset.equals(plain_maps.head_maps().dataset)
    blocks = [calls[::2] for calls in blocks] if case.negative == "apart" else blocks
    first = 2 if case.negative == "before" else 0
    expected = torch.stack([recount(name, blocks, concepts, unit, first + i) for i, unit in enumerate((7, 2))])
    np.testing.assert_allclose(torch.stack(shares, dim=1), expected, atol=1e-5)
    winners = F.one_hot(expected.argmax(-1), len(concepts)).sum(1).transpose(1, 2)
    np.testing.assert_array_equal(counts, winners)
    assert (counts.sum("concept") == 2).all() and (counts.sum(["image", "head"]) > 0).all()


@pytest.mark.parametrize("name", ["zimage"])
def test_other_joint_attention_cannot_be_scored(name):
    with pytest.raises(ValueError, match="cannot be scored: its .* Expected: Stable Diffusion 1.x, .*consensus"):
        with score_heads(build(name), CONCEPTS):
            pass


@pytest.mark.parametrize("name", ["sd2", "sdxl", "pixart", "hunyuan", "sd3", "sd35", "flux", "chroma"])
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


def test_heads_are_counted_on_the_defaults_of_the_classes_or_on_a_checkpoint_that_the_page_names():
    """What diffusers' source does not carry is written by hand, and says of which files."""
    page, by_hand = (Path(__file__).parents[2] / "book" / "performance.md").read_text(), []
    for family in FAMILY_CLASSES:
        for name, model in family.models.items():
            assert bool(model.config) == bool(model.checkpoint), name
            if model.config:
                by_hand.append(name)
                assert model.checkpoint in page
    assert by_hand == [*("Stable Diffusion 2.x", "Stable Diffusion XL", "Kolors", "Hunyuan-DiT"),
                       *("Stable Diffusion 3", "Stable Diffusion 3.5 large"),
                       *("Wan 2.1 1.3B", "Wan 2.2 5B", "CogVideoX 5B", "CogVideoX 1.5 5B")]  # fmt: skip
    heads = supported_models().set_index("model").heads
    default = {kind: {k: p.default for k, p in signature(kind).parameters.items()} for kind in
               (PixArtTransformer2DModel, PRXTransformer2DModel, SanaTransformer2DModel)}  # fmt: skip
    pixart, prx, sana = default.values()
    assert heads["PixArt-Sigma"] == pixart["num_layers"] * pixart["num_attention_heads"]
    assert heads["PRX"] == prx["depth"] * prx["num_heads"]
    assert heads["SANA"] == sana["num_layers"] * sana["num_cross_attention_heads"]


def test_what_is_refused_by_name_is_refused():
    refused = supported_models().query("not maps")
    for name, why in zip(refused.network, refused.captured, strict=True):
        network = type(name, (torch.nn.Module,), {})()
        with pytest.raises(ValueError, match="cannot be captured") as error:
            find_family(network)
        assert why.removeprefix("refused: ") in str(error.value)
    with torch.device("meta"), pytest.raises(ValueError, match="has no class here yet"):
        cross_attention_heads(SanaVideoTransformer3DModel(num_layers=1))


def test_a_compiled_network_is_refused():
    pipe = build("sd2")
    try:
        pipe.unet.compile()
        with pytest.raises(ValueError, match="UNet2DConditionModel: is compiled"), capture(pipe, ["bear"]):
            pass
    finally:
        pipe.unet._compiled_call_impl = None
