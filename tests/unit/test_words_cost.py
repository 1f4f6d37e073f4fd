"""What it costs to carry words through FLUX.1, counted on layers of its true size without weights."""

import re
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from torch.utils.flop_counter import FlopCounterMode

from selattn_lib.models.families import find_family, through_block

WORDS, TEXT, IMAGE = (
    2 * 34,
    512,
    4096,
)  # tokens: two for a word of each concept, a prompt's, those of 1024 x 1024 pixels
PAGE = Path(__file__).parents[2] / "book" / "performance.md"


def operations(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def test_the_page_says_what_words_of_34_concepts_cost_in_flux():
    with torch.device("meta"):
        network = FluxTransformer2DModel(num_layers=1, num_single_layers=1)
        family, _ = find_family(network)
        heads, wide = network.config.num_attention_heads, network.inner_dim
        words, text, image = (torch.zeros(1, n, wide) for n in (WORDS, TEXT, IMAGE))
        places = torch.zeros(1, WORDS, dtype=torch.long)
        key = torch.zeros(1, heads, IMAGE, wide // heads)
        rope = (torch.zeros(TEXT + IMAGE, wide // heads),) * 2
    given = {"hidden_states": image, "encoder_hidden_states": text, "temb": torch.zeros(1, wide, device="meta")}
    given["image_rotary_emb"] = rope
    alone = beside = 0
    for block, layers in ((network.transformer_blocks[0], 19), (network.single_transformer_blocks[0], 38)):

        def attend(normed, block=block):
            query, own_key, value = family.words(block.attn, normed, places, given)
            (key @ own_key.transpose(2, 3)).softmax(dim=-1)  # the image's queries vote
            every = [torch.cat([own, key], dim=2) for own in (own_key, value)]
            attended = F.scaled_dot_product_attention(query, *every).transpose(1, 2).flatten(2)
            return family.put_out(block.attn, attended, normed)

        alone += layers * operations(lambda block=block: block(**given))
        beside += layers * operations(lambda block=block: through_block(block, "attn", given, words, attend))
    votes = heads * IMAGE * WORDS * 4
    said = re.search(r"([\d.]+) % of the\s+network's operations.*?([\d.]+) MB", PAGE.read_text(), re.DOTALL)
    assert said and said.groups() == (f"{100 * beside / alone:.1f}", f"{votes / 1e6:.0f}")
