"""Whether a layer did with its attention what capture says: softmax(Q K^T) V, and nothing else, to the text."""

from itertools import permutations
from typing import Any

import torch
import torch.nn.functional as F

from ..models.families import split_heads

# Processors of diffusers that do, by reading them; adapters among them add attention to pictures.
EXACT = {
    *("AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor", "AttnProcessorNPU"),
    *("IPAdapterAttnProcessor", "IPAdapterAttnProcessor2_0", "IPAdapterXFormersAttnProcessor"),
    *("JointAttnProcessor2_0", "XFormersJointAttnProcessor", "SD3IPAdapterJointAttnProcessor2_0"),
    *("PAGJointAttnProcessor2_0", "PAGCFGJointAttnProcessor2_0", "FluxAttnProcessor", "FluxIPAdapterAttnProcessor"),
    *("SanaAttnProcessor2_0", "HunyuanAttnProcessor2_0", "PAGHunyuanAttnProcessor2_0", "PAGCFGHunyuanAttnProcessor2_0"),
    *("Flux2AttnProcessor", "Flux2ParallelSelfAttnProcessor", "QwenDoubleStreamAttnProcessor2_0"),
    *("ZSingleStreamAttnProcessor", "PRXAttnProcessor2_0", "WanAttnProcessor", "CogVideoXAttnProcessor2_0"),
    "HunyuanVideo15AttnProcessor2_0",
}


def is_exact(attention: Any) -> bool:
    """Whether a layer runs one of these processors, and nobody has replaced its parts."""
    kind, parts = type(attention.processor), ("forward", "get_attention_scores")
    used = [kind, kind.__call__, *(getattr(type(attention), part) for part in parts if hasattr(attention, part))]
    ours = all(each.__module__.startswith("diffusers.") for each in used)
    return ours and kind.__name__ in EXACT and not {*parts} & vars(attention).keys()


def is_torchs_own() -> bool:
    """Whether nobody has replaced PyTorch's attention, which most processors call."""
    return F.scaled_dot_product_attention is torch._C._nn.scaled_dot_product_attention


def differs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    used: torch.Tensor,
    added: list[torch.Tensor],
    bias: torch.Tensor | None = None,
) -> bool:
    """Whether softmax(Q K^T / sqrt(d) + bias) V is not what a layer used, in some image and head.

    query (image, head, pixel, channel), key and value (image, head, token, channel), used (image, pixel, head *
    channel). `added` are outputs (image, token, head * channel) of an adapter's own projections: attention to them may
    have been added.
    """
    query, key, value = query.float(), key.float(), value.float()
    n_heads, used_by_head = query.shape[1], split_heads(used.float(), query.shape[1])
    tolerance = max(1e-3, 8 * torch.finfo(used.dtype).eps)
    expected = attended(query, key, value, bias)
    rest = used_by_head - expected
    limit = tolerance * used_by_head.flatten(2).norm(dim=-1)

    def gone(rest: torch.Tensor) -> bool:
        return bool((rest.flatten(2).norm(dim=-1) <= limit).all())

    if gone(rest) or not expected.isfinite().all():  # which `Trace` says
        return False
    width = n_heads * query.shape[-1]
    by_head = [split_heads(x.float().flatten(1, -2), n_heads) for x in added if x.shape[-1] == width]
    for one, other in permutations(by_head, 2):
        if one.shape == other.shape:
            term = attended(query, one, other)
            if gone(rest - (rest * term).sum() / (term * term).sum() * term):
                return False
    return True


def attended(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """(image, head, pixel, channel)."""
    logits = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
    return (logits if bias is None else logits + bias).softmax(dim=-1) @ value
