"""Where the words of a prompt are among the tokens that a model sees."""

import re
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Tokens:
    """A prompt as one tokenizer cuts it, and where in the text that the model sees its first token lies."""

    tokenizer: Any
    ids: list[int]
    first: int


Prompt = list[Tokens]  # the same prompt, once for each stretch of the text


def word_tokens(tokenizer: Any, word: str) -> list[int]:
    """Token ids of a word by itself, no specials; ValueError if the tokenizer does not know it."""
    ids = tokenizer(word, add_special_tokens=False).input_ids
    if not ids or tokenizer.unk_token_id in ids:
        raise ValueError(f"{word!r} is not in the vocabulary of the model; use a word it knows.")
    return ids


def word_weights(word: str, prompt: Prompt, n_tokens: int) -> torch.Tensor:
    """(token) weights that average the columns of a word's tokens, in each stretch of the text that has it."""
    found, problems = [], []
    for tokens in prompt:
        try:
            found.append([tokens.first + i for i in find_word(word, tokens)])
        except ValueError as error:
            problems.append(str(error))
    if not found:
        raise ValueError(" ".join(problems))
    weights = torch.zeros(n_tokens)
    for places in found:
        weights[places] += 1 / (len(places) * len(found))
    return weights


def find_word(word: str, tokens: Tokens) -> list[int]:
    """Places of the tokens that a word, or the n-th of several ("bear#2"), covers in a prompt; ValueError if none."""
    tokenizer = tokens.tokenizer
    numbered = re.fullmatch(r"(.+)#(\d+)", word)
    plain, which = (numbered[1], int(numbered[2])) if numbered else (word, None)
    ids = word_tokens(tokenizer, plain)
    pieces = _pieces(tokenizer, tokens.ids)
    owner = [place for place, piece in enumerate(pieces) for _ in piece]  # of each character
    wanted = re.escape("".join(_pieces(tokenizer, ids)).strip())
    matches = list(re.finditer(rf"(?<!\w){wanted}(?!\w)", "".join(pieces), re.IGNORECASE))
    if not matches:
        special = set(tokenizer.all_special_ids)
        shown = tokenizer.convert_ids_to_tokens([i for i in tokens.ids if i not in special])
        all_read = ", all that the model reads of it" if len(shown) >= len(tokens.ids) - 2 else ""
        raise ValueError(
            f"{plain!r} (tokens {tokenizer.convert_ids_to_tokens(ids)}) is not in the prompt, which has the "
            f"tokens {shown}{all_read}. Ask for words as they stand in the prompt."
        )
    if which is not None:
        if not 1 <= which <= len(matches):
            raise ValueError(f"{word!r} is not in the prompt: {plain!r} occurs {len(matches)} time(s), counted from 1.")
        matches = [matches[which - 1]]
    return sorted({place for match in matches for place in owner[match.start() : match.end()]})


def _pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """What each token stands for; CLIP ends words with a mark, T5 begins them with one."""
    special = set(tokenizer.all_special_ids)
    marked = zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)
    return ["\n" if i in special else piece.replace("</w>", " ").replace("\u2581", " ") for i, piece in marked]
