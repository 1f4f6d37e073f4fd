"""What a model itself hands to PyTorch's attention, to compare captured maps with."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention

from selattn_lib.attention.capture import Capture, capture
from selattn_lib.models.families import cross_attention_heads, find_family


@contextmanager
def attention_seen(pipe: Any) -> Iterator[list[list[torch.Tensor]]]:
    """Yield, for each layer, the softmax of every query over every key, one (row, head, query, key) a call."""
    network, inside, hooks = find_family(pipe)[1], [], []
    layers = list(cross_attention_heads(pipe))
    seen: list[list[torch.Tensor]] = [[] for _ in layers]
    real = F.scaled_dot_product_attention

    def spy(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if inside:
            logits = query.detach().double() @ key.detach().double().transpose(2, 3) / query.shape[-1] ** 0.5
            seen[inside.pop()].append(logits.softmax(dim=-1))
        return real(query, key, *args, **kwargs)

    real_scores = Attention.get_attention_scores

    def spy_scores(attention: Attention, query: torch.Tensor, key: torch.Tensor, mask: Any = None) -> torch.Tensor:
        scores = real_scores(attention, query, key, mask)
        if inside:
            seen[inside.pop()].append(scores.detach().unflatten(0, (-1, attention.heads)))
        return scores

    for i, layer in enumerate(layers):
        module = network.get_submodule(layer.name)
        hooks.append(module.register_forward_pre_hook(lambda *_, i=i: inside.append(i)))
        hooks.append(module.register_forward_hook(lambda *_: inside.clear()))
    try:
        with (
            mock.patch.object(F, "scaled_dot_product_attention", spy),
            mock.patch.object(Attention, "get_attention_scores", spy_scores),
        ):
            yield seen
    finally:
        for hook in hooks:
            hook.remove()


def assert_captured(
    maps: Capture,
    seen: list[list[torch.Tensor]],
    rows: Sequence[int],
    columns: Sequence[Sequence[int]],
    calls: slice | Sequence[int] = slice(None),
) -> None:
    """The maps of each image are the mean over these calls of `columns` of its row; there is an image for each row."""
    head_maps = maps.head_maps()
    assert head_maps.n_images == len(rows)
    for image, (row, places) in enumerate(zip(rows, columns, strict=True)):
        native = {int(n): m for numbers, grid in head_maps.native(image) for n, m in zip(numbers, grid, strict=True)}
        for layer, attention in zip(maps.heads, seen, strict=True):
            chosen = attention[calls] if isinstance(calls, slice) else [attention[call] for call in calls]
            expected = torch.stack([call[row][:, :, places].mean(dim=-1) for call in chosen]).mean(dim=0)
            captured = torch.stack([native[layer.first + head] for head in range(layer.n_heads)]).flatten(1)
            np.testing.assert_allclose(captured, expected, atol=1e-5)


def assert_proven(pipe: Any, draw: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer puts out what its captured attention makes, as for a processor that is not known, of two prompts that
    `draw` draws; and one that does something else is found out."""
    monkeypatch.setattr("selattn_lib.attention.proof.EXACT", set())
    with capture(pipe, "bear") as maps:
        draw()
    assert maps.head_maps().n_images == 2
    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda query, *args, **kw: attend(1.2 * query, *args, **kw))
    with pytest.raises(ValueError, match="does not draw with softmax"), capture(pipe, "bear"):
        draw()
