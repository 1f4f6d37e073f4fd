"""Words are found by what the model read, whatever tokenizer cut it."""

from functools import cache

import numpy as np
import pytest
import tiny_families
import torch
from attention_truth import assert_captured, attention_seen
from tiny_sd import build_pipeline, word_tokenizer
from transformers import BertTokenizer

from selattn_lib.attention.capture import capture
from selattn_lib.models.tokens import BYTES, Tokens, find_word, word_weights

DIGITS = "abcdefghijklmnopqrstuvwxyz0123456789"


@cache
def learned():
    """A pipeline that learned one word of three vectors, and one of one vector without brackets."""
    pipe = build_pipeline()
    pipe.load_textual_inversion({"<cat-toy>": torch.randn(3, 32)}, token="<cat-toy>")
    pipe.load_textual_inversion({"mytoy": torch.randn(1, 32)}, token="mytoy")
    return pipe


def places(tokenizer, prompt, word):
    return find_word(word, Tokens(tokenizer, tokenizer(prompt).input_ids, 0))


@pytest.mark.parametrize(
    "prompt, word, columns",
    [
        ("a photo of <cat-toy> on the desk", "<cat-toy>", [4, 5, 6]),
        ("a photo of <cat-toy> on the desk", "on", [7]),
        ("a photo of <cat-toy> on the desk", "<cat-toy> on", [4, 5, 6, 7]),
        ("a photo of mytoy on the desk", "mytoy", [4]),
        ("a photo of mytoy on the desk", "on", [5]),
        ("a photo of mytoy, mytoy", "mytoy#2", None),
        ("a bear", "<|startoftext|>", [0]),
        ("a bear", "<|endoftext|>#1", [3]),
        ("a bear", "<|endoftext|>", list(range(3, 20))),
        ("a bear", 2, [2]),
        ("a bear", 0, [0]),
    ],
)
def test_learned_words_special_tokens_and_positions(prompt, word, columns):
    pipe = learned()
    if columns is None:  # the tokenizer knows no comma
        columns = [len(pipe.tokenizer(prompt).input_ids) - 2]
    settings = {"num_inference_steps": 1, "height": 64, "width": 64, "output_type": "latent"}
    with attention_seen(pipe) as seen, capture(pipe, [word]) as maps:
        pipe(prompt, **settings)
    assert_captured(maps, seen, [1], [columns])
    name = word if isinstance(word, str) else f"token {word}"
    assert maps.head_maps().words == [name]
    np.testing.assert_array_equal(maps.heatmap(name), maps.heatmap())


def test_a_position_beyond_the_text():
    tokens = Tokens(word_tokenizer(["bear"]), [0, 1], 0)
    with pytest.raises(ValueError, match="token 77 was asked for, of the 20"):
        word_weights(77, [tokens], 20)


@pytest.mark.parametrize(
    "prompt, word, found",
    [
        ("a 10 cat", "10", [2, 3]),
        ("a 10 cat", "1", None),
        ("a 10 cat", "0", None),
        ("a 1 cat", "1", [2]),
        ("a 210 cat", "10", None),
        ("a cat 2", "2", [3]),
        ("a cat 2", "cat", [2]),
    ],
)
def test_numbers_are_found_whole(prompt, word, found):
    tokenizer = word_tokenizer(["a", "cat"], characters=DIGITS)
    if found is None:
        with pytest.raises(ValueError, match="is not in the prompt"):
            places(tokenizer, prompt, word)
    else:
        assert places(tokenizer, prompt, word) == found


@pytest.mark.parametrize(
    "longer, word", [("имир", "мир"), ("мири", "мир"), ("שלום", "לום"), ("שלום", "שלו"), ("éa", "a")]
)
def test_a_part_of_a_word_in_another_alphabet_is_not_found(longer, word):
    symbols = "".join(sorted(BYTES))
    tokenizer = word_tokenizer([], characters=symbols)
    with pytest.raises(ValueError, match="is not in the prompt"):
        places(tokenizer, longer, word)
    length, before = len(word.encode()), len(longer.encode())
    assert places(tokenizer, f"{longer} {word}", word) == list(range(before + 1, before + 1 + length))


def bert():
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] a photo of the bear cat lamp ##cat ##s on desk".split()
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)})


@pytest.mark.parametrize(
    "word, found", [("bear", [4]), ("a", [1]), ("lampcat", [6, 7]), ("lamp", None), ("on the desk", [8, 9, 10])]
)
def test_a_tokenizer_without_marks_of_spaces(word, found):
    tokenizer = bert()
    if found is None:
        with pytest.raises(ValueError, match="is not in the prompt"):
            places(tokenizer, "a photo of bear the lampcat on the desk", word)
    else:
        assert places(tokenizer, "a photo of bear the lampcat on the desk", word) == found


def test_t5_and_clip_agree_on_a_learned_word():
    clip, t5 = tiny_families.build_sd3().tokenizer, tiny_families.build_sd3().tokenizer_3
    for tokenizer, first in ((clip, 2), (t5, 1)):
        tokenizer.add_tokens(["<toy>", "<toy>_1"])
        ids = tokenizer("a <toy> <toy>_1 bear").input_ids
        assert find_word("<toy>", Tokens(tokenizer, ids, 0)) == [first, first + 1]
