"""Where the words of a prompt are among the tokens that a model sees."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from transformers.convert_slow_tokenizer import bytes_to_unicode

BYTES = {symbol: byte for byte, symbol in bytes_to_unicode().items()}  # what byte-level tokenizers show bytes as


@dataclass
class Tokens:
    """A prompt as one tokenizer cuts it, where in the text that the model sees its first token lies, and which of the
    tokens are the prompt's own (None: all), where the model reads it within instructions or the turns of a chat."""

    tokenizer: Any
    ids: list[int]
    first: int
    own: list[bool] | None = None

    @property
    def content(self) -> list[int]:
        """The ids of the prompt's own tokens, without specials."""
        own = self.own or [True] * len(self.ids)
        return content(self.tokenizer, [i for i, mine in zip(self.ids, own, strict=True) if mine])


Prompt = list[Tokens]  # the same prompt, once for each stretch of the text


def ids_of(tokenizer: Any, text: str, **settings: Any) -> list[int]:
    """Token ids of a text as a pipeline cuts it: a learned word of several vectors stands for all of them.

    Without `settings`, the text's own tokens only, and all of them.
    """
    for learned in {token for token in added_tokens(tokenizer) if token in text}:
        vectors = [learned]
        while f"{learned}_{len(vectors)}" in tokenizer.added_tokens_encoder:
            vectors.append(f"{learned}_{len(vectors)}")
        if len(vectors) > 1 and not any(vector in text for vector in vectors[1:]):
            text = text.replace(learned, " ".join(vectors))
    return tokenizer(text, **(settings or {"add_special_tokens": False, "verbose": False})).input_ids


def own_tokens(ids: Sequence[int], empty: Sequence[int], padding: int | None) -> list[bool]:
    """Which of the ids that an encoder reads for a prompt are the prompt's own, rather than what stands around it, as
    around an `empty` prompt."""
    real = [place for place, i in enumerate(ids) if i != padding]
    if not real:
        return [False] * len(ids)
    start, stop, around = real[0], real[-1] + 1, [i for i in empty if i != padding]
    before = after = 0
    while before < min(len(around), stop - start) and ids[start + before] == around[before]:
        before += 1
    rest = min(len(around), stop - start) - before
    while after < rest and ids[stop - 1 - after] == around[-1 - after]:
        after += 1
    return [start + before <= place < stop - after for place in range(len(ids))]


def added_tokens(tokenizer: Any) -> set[str]:
    """Words that were added to a tokenizer, by textual inversion for one; no specials."""
    return set(tokenizer.added_tokens_encoder) - set(tokenizer.all_special_tokens)


def content(tokenizer: Any, ids: list[int]) -> list[int]:
    """Token ids without specials, padding among them."""
    special = set(tokenizer.all_special_ids)
    return [i for i in ids if i not in special]


def word_tokens(tokenizer: Any, word: str) -> list[int]:
    """Token ids of a word by itself, no specials; ValueError if the tokenizer does not know it."""
    ids = ids_of(tokenizer, word)
    if not ids or tokenizer.unk_token_id in ids:
        raise ValueError(f"{word!r} is not in the vocabulary of the model; use a word it knows.")
    return ids


def word_weights(word: str | int, prompt: Prompt, n_tokens: int) -> torch.Tensor:
    """(token) weights that average the columns of a word's tokens, in each stretch of the text that has it.

    A number is the position of one token in all that the model reads.
    """
    weights = torch.zeros(n_tokens)
    if isinstance(word, int):
        if not 0 <= word < n_tokens:
            raise ValueError(f"token {word} was asked for, of the {n_tokens} that the model reads, counted from 0.")
        weights[word] = 1
        return weights
    stretches, problems = [], []
    for tokens in prompt:
        try:
            stretches.append([tokens.first + i for i in find_word(word, tokens)])
        except ValueError as error:
            problems.append(str(error))
    if not stretches:
        raise ValueError(" ".join(problems) or f"{word!r} is not in an empty prompt.")
    for places in stretches:
        weights[places] += 1 / (len(places) * len(stretches))
    return weights


def find_word(word: str, tokens: Tokens) -> list[int]:
    """Places of the tokens that a word, or the n-th of several ("bear#2"), covers in a prompt; ValueError if none.

    A special token is found by its name, such as "<|startoftext|>"; padding counts, so that "<|endoftext|>#1" is the
    end of the text.
    """
    tokenizer = tokens.tokenizer
    numbered = re.fullmatch(r"(.+)#(\d+)", word)
    plain, which = (numbered[1], int(numbered[2])) if numbered else (word, None)
    if plain in tokenizer.all_special_tokens:
        special_id = tokenizer.convert_tokens_to_ids(plain)
        matches = [[place] for place, i in enumerate(tokens.ids) if i == special_id]
        ids = [special_id]
    else:
        ids = word_tokens(tokenizer, plain)
        pieces = _pieces(tokenizer, tokens.ids)
        if tokens.own is not None:
            pieces = [piece if own else "\n" for piece, own in zip(pieces, tokens.own, strict=True)]
        owner = [place for place, piece in enumerate(pieces) for _ in piece]  # of each character
        pattern = re.escape(_letters("".join(_pieces(tokenizer, ids)).strip()))
        spans = re.finditer(rf"(?<!\w){pattern}(?!\w)", _letters("".join(pieces)), re.IGNORECASE)
        matches = [owner[span.start() : span.end()] for span in spans]
    if not matches:
        shown = tokenizer.convert_ids_to_tokens(tokens.content)
        read = len(tokens.ids) if tokens.own is None else sum(tokens.own)
        all_read = ", all that the model reads of it" if len(shown) >= read - 2 else ""
        raise ValueError(
            f"{plain!r} (tokens {tokenizer.convert_ids_to_tokens(ids)}) is not in the prompt, which has the "
            f"tokens {shown}{all_read}. Ask for words as they stand in the prompt."
        )
    if which is not None:
        if not 1 <= which <= len(matches):
            raise ValueError(f"{word!r} is not in the prompt: {plain!r} occurs {len(matches)} time(s), counted from 1.")
        matches = [matches[which - 1]]
    return sorted({place for match in matches for place in match})


def _letters(text: str) -> str:
    """A text in which every byte of a letter is a letter, though its symbol in a byte-level tokenizer may be a sign, at
    which a word would seem to end; of the same length."""
    characters = bytes(BYTES.get(symbol, 32) for symbol in text).decode(errors="surrogateescape")
    in_letters = [len(c.encode(errors="surrogateescape")) * [c.isalnum()] for c in characters]
    known = zip(text, chain(*in_letters), strict=True)
    return "".join(chr(0x4E00 + ord(s)) if letter and not s.isalnum() else s for s, letter in known)


def _pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """What each token stands for, with spaces between words.

    CLIP ends words with a mark, T5 and byte-level tokenizers begin them with one; where there are no marks, as in
    Bert's, "##" goes on with a word and everything else begins one. CLIP cuts a number into words of one digit each.
    """
    special, added = set(tokenizer.all_special_ids), added_tokens(tokenizer)
    names = tokenizer.convert_ids_to_tokens(ids)
    marks = ("</w>", "\u2581", "\u0120")
    vocabulary = tokenizer.get_vocab() if not any(mark in name for name in names for mark in marks) else names
    marked = any(mark in name for name in vocabulary for mark in marks)
    pieces = []
    for place, (i, name) in enumerate(zip(ids, names, strict=True)):
        if i in special:
            piece = "\n"
        elif name in added:
            piece = f" {name} "
        elif not marked:
            piece = name[2:] if name.startswith("##") else f" {name}"
        else:
            piece = name.replace("</w>", " ").replace("\u2581", " ").replace("\u0120", " ")
            following = names[place + 1].removesuffix("</w>") if place + 1 < len(names) else ""
            if name.endswith("</w>") and piece.strip().isdecimal() and following.isdecimal():
                piece = piece.strip()
        pieces.append(piece)
    return pieces
