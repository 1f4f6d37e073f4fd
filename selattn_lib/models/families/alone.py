"""Words that go through the blocks of a model beside the prompt's, seen by neither the prompt nor the image."""

from collections.abc import Callable
from copy import copy
from typing import Any

import torch


class StandIn(torch.nn.Module):
    """In a block's attention's place: `attend` says what comes of the words (row, token, channel) that reach it."""

    def __init__(self, attend: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.attend = attend

    def forward(self, hidden_states: torch.Tensor, encoder_hidden_states: Any = None, **options: Any) -> Any:
        if encoder_hidden_states is None:
            return self.attend(hidden_states)
        return hidden_states, self.attend(encoder_hidden_states)


def through_block(
    block: torch.nn.Module,
    attention: str,
    arguments: dict[str, Any],
    words: torch.Tensor,
    attend: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor | None:
    """What a block makes of words (row, token, channel): its own norms, modulation and MLP, run on words in the place
    of text, without an image, and with `attend` as its attention. The block itself is left alone.

    `attention` is that submodule's name, `arguments` what the block was called with, for the same rows. None after the
    last block that has a text.
    """
    alone = copy(block)
    alone._modules = {**block._modules, attention: StandIn(attend)}
    joined = arguments.get("encoder_hidden_states") is None  # text and image come as one sequence
    ours = {"hidden_states": words} if joined else {"encoder_hidden_states": words, "hidden_states": words[:, :0]}
    made = type(block).forward(alone, **{**arguments, **ours})
    return made[0] if isinstance(made, tuple) else made
