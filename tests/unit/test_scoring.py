import accelerate
import numpy as np
import pytest
import torch
from tiny_sd import build_pipeline, count_hooks, generate

from selattn_lib.attention.capture import capture
from selattn_lib.attention.scoring import score_heads
from selattn_lib.models.families import cross_attention_heads

CONCEPTS = {"Animals": ["bear", "cat", "dogdesk"], "Things": ["desk", "oak tree"], "Colours": ["blue"]}


def slow_votes(pipe, queries, concepts, seed, units, start_token=False):
    """HRV counting written out: `queries[call][layer]` is (image, pixel, head * channel)."""
    heads = cross_attention_heads(pipe)
    states = {}
    for word in {word for words in concepts.values() for word in words}:
        ids = pipe.tokenizer(word, return_tensors="pt").input_ids
        with torch.no_grad():
            states[word] = pipe.text_encoder(ids)[0][0]  # start, word ..., end
    votes = np.zeros((len(units), len(concepts), len(heads)), dtype=int)
    n_words = [len(words) for words in concepts.values()]
    for call, layers in enumerate(queries):
        for image, unit in enumerate(units):
            rng = np.random.default_rng([seed, unit, call])
            drawn = rng.integers(n_words, size=(len(layers), len(n_words)))
            for i, layer in enumerate(heads):
                attention = pipe.unet.get_submodule(layer.name)
                chosen = [words[drawn[i, c]] for c, words in enumerate(concepts.values())]
                tokens = [states[word][1:-1] for word in chosen]
                columns = torch.cat([states[chosen[0]][:1], *tokens] if start_token else tokens)
                with torch.no_grad():
                    keys = attention.to_k(columns)
                width = keys.shape[-1] // layer.n_heads
                for head in range(layer.n_heads):
                    part = slice(head * width, (head + 1) * width)
                    logits = layers[i][image][:, part] @ keys[:, part].T / width**0.5
                    attended = logits.softmax(dim=-1).mean(dim=0)
                    at, means = int(start_token), []
                    for each in tokens:
                        means.append(attended[at : at + len(each)].mean().item())
                        at += len(each)
                    votes[image, int(np.argmax(means)), layer.first + head] += 1
    return votes


def record_queries(pipe, kept):
    """Hooks that keep the queries of every call; returns their handles."""
    layers = [pipe.unet.get_submodule(layer.name) for layer in cross_attention_heads(pipe)]

    def keep(module, args, output):
        if not kept or len(kept[-1]) == len(layers):
            kept.append([])
        kept[-1].append(output)

    # The order of execution is the order of numbering: down, mid, up.
    return [layer.to_q.register_forward_hook(keep) for layer in layers]


@pytest.mark.parametrize("start_token", [False, True])
def test_votes_equal_a_slow_loop(tiny_pipe, start_token):
    queries = []
    handles = record_queries(tiny_pipe, queries)
    with score_heads(tiny_pipe, CONCEPTS, seed=5, units=[7, 2], start_token=start_token) as counter:
        generate(tiny_pipe, ["photo of a bear", "a dog"])
    for handle in handles:
        handle.remove()
    conditional = [[query[2:] for query in layers] for layers in queries]
    expected = slow_votes(tiny_pipe, conditional, CONCEPTS, 5, [7, 2], start_token)
    counts = counter.counts()
    assert counts.dims == ("image", "concept", "head")
    assert counts["image"].values.tolist() == [7, 2]
    assert counts["concept"].values.tolist() == list(CONCEPTS)
    assert counts["head"].values.tolist() == cross_attention_heads(tiny_pipe).names
    assert np.array_equal(counts, expected)
    assert (counts.sum("concept") == len(queries)).all()
    assert (counts.sum(["image", "head"]) > 0).all()  # every concept got a vote: the test can tell them apart


def test_votes_do_not_depend_on_the_batch(tiny_pipe):
    prompts = ["photo of a bear", "a cat and a dog", "a desk"]
    with score_heads(tiny_pipe, CONCEPTS) as together:
        generate(tiny_pipe, prompts)
    with score_heads(tiny_pipe, CONCEPTS) as one_by_one:
        for i, prompt in enumerate(prompts):
            generate(tiny_pipe, prompt, seed=i)
    with score_heads(tiny_pipe, CONCEPTS, units=[2]) as last:
        generate(tiny_pipe, prompts[2], seed=2)
    # A vote may only turn where rounding decides between two all but equal concepts.
    assert np.abs(together.counts() - one_by_one.counts()).sum() <= 4
    assert np.array_equal(one_by_one.counts()[2], last.counts()[0])


def test_seed_and_unit_change_the_draws(tiny_pipe):
    counts = []
    for seed, unit in ((0, 0), (1, 0), (0, 1), (0, 0)):
        with score_heads(tiny_pipe, CONCEPTS, seed=seed, units=[unit]) as counter:
            generate(tiny_pipe)
        counts.append(counter.counts().values)
    assert not np.array_equal(counts[0], counts[1])
    assert not np.array_equal(counts[0], counts[2])
    assert np.array_equal(counts[0], counts[3])


def test_one_generation_serves_both_and_changes_nothing(tiny_pipe):
    plain = generate(tiny_pipe)
    with capture(tiny_pipe, ["bear"]) as maps:
        generate(tiny_pipe)
    with score_heads(tiny_pipe, CONCEPTS) as counter:
        generate(tiny_pipe)
    with capture(tiny_pipe, ["bear"]) as maps_too, score_heads(tiny_pipe, CONCEPTS) as counter_too:
        both = generate(tiny_pipe)
    assert count_hooks(tiny_pipe) == 0
    assert np.array_equal(plain, both)
    assert maps.head_maps().dataset.equals(maps_too.head_maps().dataset)
    assert counter.counts().equals(counter_too.counts())


def test_unet_called_directly(tiny_pipe):
    latents = torch.randn(2, 4, 16, 16)
    with torch.no_grad():
        embeddings = tiny_pipe.encode_prompt(["a bear", "a dog"], "cpu", 1, False)[0]
        with score_heads(tiny_pipe, CONCEPTS) as counter:
            tiny_pipe.unet(latents, 500, embeddings)
    assert counter.counts().sizes["image"] == 2
    assert (counter.counts().sum("concept") == 1).all()


def test_a_call_cut_short_counts_for_the_layers_that_it_reached(tiny_pipe):
    last, calls = cross_attention_heads(tiny_pipe).layers[-1], []

    def stop(*_):
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with tiny_pipe.unet.get_submodule(last.name).register_forward_pre_hook(stop):
        with score_heads(tiny_pipe, CONCEPTS) as counter, torch.inference_mode():
            with pytest.raises(KeyboardInterrupt):
                generate(tiny_pipe)
    assert counter.counts().sum("concept").values.tolist() == [[2] * 120 + [1] * 8]


def test_too_few_units(tiny_pipe):
    with (
        pytest.raises(ValueError, match="units names 1 images; 2"),
        score_heads(tiny_pipe, CONCEPTS, units=[3]),
    ):
        generate(tiny_pipe, ["a bear", "a cat"])


@pytest.mark.parametrize(
    "concepts, message",
    [
        ({"Animals": ["bear"]}, "at least two"),
        ({"Animals": ["bear"], "Things": []}, "no words"),
        ({"Animals": "bear", "Things": ["lamp"]}, "The words of Animals are 'bear': expected a list"),
        ({"Animals": ["bear"], "Things": [3]}, "The words of Things"),
        (["Animals", "Things"], "expected a mapping"),
        ({"Animals": ["bear"], "Things": ["7"]}, "vocabulary"),
    ],
)
def test_concepts_that_make_no_sense(tiny_pipe, concepts, message):
    with pytest.raises(ValueError, match=message), score_heads(tiny_pipe, concepts):
        pass


def test_nothing_generated(tiny_pipe):
    with score_heads(tiny_pipe, CONCEPTS) as counter:
        pass
    with pytest.raises(RuntimeError, match="Nothing was generated"):
        counter.counts()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_weights_stored_in_another_type_than_they_compute_in(dtype):
    """Words are projected in the type in which the layer gets its text, under layer-wise casting."""
    pipe, rounded = build_pipeline(), build_pipeline()
    for name, weight in rounded.unet.named_parameters():
        if ".attn" in name and "to_" in name:
            weight.data = weight.data.to(dtype).float()
    pipe.unet.enable_layerwise_casting(storage_dtype=dtype, compute_dtype=torch.float32, skip_modules_pattern=SKIPPED)
    counts = []
    for model in (pipe, rounded):
        with score_heads(model, CONCEPTS) as votes:
            generate(model)
        counts.append(votes.counts())
    assert np.abs(counts[0] - counts[1]).sum() <= 4


SKIPPED = ("conv", "norm", "time", "proj_", "ff", "resnets")  # what is left as it is: all but attention


class Quantised(torch.nn.Linear):
    """As the 4-bit layers of bitsandbytes: bytes for weights, floats for what is computed."""

    def __init__(self, linear):
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.real = linear.weight.data
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.uint8), requires_grad=False)

    def forward(self, values):
        assert values.is_floating_point()
        return values @ self.real.T


def test_weights_stored_as_bytes():
    pipe = build_pipeline()
    with score_heads(pipe, CONCEPTS) as plain:
        generate(pipe)
    for layer in cross_attention_heads(pipe):
        attention = pipe.unet.get_submodule(layer.name)
        attention.to_k = Quantised(attention.to_k)
    with score_heads(pipe, CONCEPTS) as votes:
        generate(pipe)
    assert np.array_equal(votes.counts(), plain.counts())


def test_a_text_encoder_whose_weights_are_elsewhere():
    """Offloaded layer by layer, it has weights on no device."""
    pipe = build_pipeline()
    accelerate.cpu_offload(pipe.text_encoder, "cpu")
    assert pipe.text_encoder.device.type == "meta"
    with score_heads(pipe, CONCEPTS) as votes:
        assert votes.text.device.type == "cpu"


def test_the_prompt_given_for_a_loop_of_ones_own(tiny_pipe):
    bear, dog = (tiny_pipe.encode_prompt(text, "cpu", 1, False)[0] for text in ("a bear", "a dog"))
    latents = torch.randn(1, 4, 8, 8).repeat(2, 1, 1, 1)
    for texts in ([bear, dog], [dog, bear]):
        with torch.no_grad(), score_heads(tiny_pipe, CONCEPTS, prompt="a bear") as votes:
            tiny_pipe.unet(latents, 500, torch.cat(texts))
        assert votes.counts().sizes["image"] == 1
    with pytest.raises(ValueError, match="which of them is the prompt"), score_heads(tiny_pipe, CONCEPTS):
        tiny_pipe.unet(latents, 500, torch.cat([bear, dog]))
