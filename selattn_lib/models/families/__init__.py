"""The kinds of model whose attention can be captured, one class a family.

A family says where the layers that attend from image to text are, how queries and keys come out of such a layer,
which arguments of a call hold what, and where the tokens of the text are. To support another one, write a subclass
of `Family` in `cross`, in `joint` or in `video`, add it to `FAMILIES`, and add a tiny model of it to
`tests/support/tiny_families.py`, whose tests it must pass.
"""

from itertools import accumulate
from typing import Any

from ..heads import Heads, Layer
from .alone import through_block
from .base import Call, Family, Model, Outputs, QueryKey, Sizes, Text, TextAttention, split_heads
from .cross import CrossAttention, HunyuanDiT, PixArt, Sana, UNet
from .joint import PRX, Chroma, Flux, Flux2, QwenImage, StableDiffusion3, ZImage
from .video import CogVideoX, HunyuanVideo15, Wan

FAMILIES: tuple[Family, ...] = (
    *(UNet(), PixArt(), Sana(), HunyuanDiT()),
    *(StableDiffusion3(), Flux(), Chroma(), Flux2(), QwenImage(), ZImage(), PRX()),
    *(Wan(), CogVideoX(), HunyuanVideo15()),
)

# What is refused, and why: the class of the network -> reason.
VIDEO = "it draws clips by a network that has no class here yet; of clips, Wan, CogVideoX and HunyuanVideo 1.5 have one"
HIDDEN = "its kernels do projections and attention in one, so that queries and keys are never seen"
REFUSED = {
    **dict.fromkeys(("HunyuanVideoTransformer3DModel", "LTXVideoTransformer3DModel"), VIDEO),
    **dict.fromkeys(("MochiTransformer3DModel", "SanaVideoTransformer3DModel"), VIDEO),
    **dict.fromkeys(("NunchakuFluxTransformer2dModel", "NunchakuQwenImageTransformer2DModel"), HIDDEN),
}


def check_scored(family: Family, name: str) -> None:
    """ValueError if the heads of a family's models, here of `name`, cannot be scored."""
    if family.unscored:
        scored = ", ".join(model for other in FAMILIES if not other.unscored for model in other.models)
        raise ValueError(
            f"The heads of {name} cannot be scored: {family.unscored}. Expected: {scored}; or head relevance from a "
            "file, or heads chosen by number or by the agreement of their maps (`consensus`)."
        )


def find_family(pipe_or_network: Any) -> tuple[Family, Any]:
    """(family, network) of a pipeline, or of its UNet or transformer; ValueError if it is of no family known."""
    for family in FAMILIES:
        network = getattr(pipe_or_network, family.part, None) or pipe_or_network
        if isinstance(network, family.network):
            return family, network
    for network in (pipe_or_network, *(getattr(pipe_or_network, part, None) for part in ("unet", "transformer"))):
        if reason := REFUSED.get(type(network).__name__):
            raise ValueError(f"A {type(network).__name__} cannot be captured: {reason}.")
    known = ", ".join(family.network.__name__ for family in FAMILIES)
    parts = [type(getattr(pipe_or_network, part, None)).__name__ for part in ("unet", "transformer")]
    has = ", ".join(name for name in parts if name != "NoneType") or "none"
    raise ValueError(
        f"{type(pipe_or_network).__name__} has no UNet or transformer of a known kind (it has: {has}); the pipeline of "
        f"a {known} is needed, or the network itself, not compiled."
    )


def cross_attention_heads(pipe_or_network: Any) -> Heads:
    """List the heads that attend to the text.

    Parameters
    ----------
    pipe_or_network : DiffusionPipeline, or its UNet or transformer
        Of a family in `selattn_lib.models.families`.

    Returns
    -------
    Heads
        In the one order in which everything here numbers them.

    Raises
    ------
    ValueError
        If the model is of no such family, if it is compiled, if it has no such layer, or if any of those layers
        computes its attention in a way that capture does not reproduce (all such layers are listed).

    Examples
    --------
    >>> from selattn_lib.models.pipelines import network_layout
    >>> len(cross_attention_heads(network_layout("sd14")))
    128
    """
    family, network = find_family(pipe_or_network)
    attentions = list(family.find(network))
    problems = [f"{layer.name}: {problem}" for layer in attentions if (problem := family.problem(layer))]
    problems += [
        f"{name or type(network).__name__}: is compiled, which leaves out what listens to it"
        for name, module in network.named_modules()
        if module._compiled_call_impl is not None
    ]
    if problems:
        raise ValueError(
            "These cross-attention layers cannot be captured; load the model without what is named here:\n  "
            + "\n  ".join(problems)
        )
    if not attentions:
        raise ValueError(f"{type(network).__name__} has no cross-attention; a text-to-image network is needed.")
    by_block = [[layer for layer in attentions if layer.block == block] for block in family.blocks]
    listed = [(i, layer) for members in by_block for i, layer in enumerate(members)]
    firsts = accumulate((layer.attention.heads for _, layer in listed), initial=0)
    layers = (
        Layer(layer.name, layer.block, i, layer.attention.heads, first, layer.stride)
        for (i, layer), first in zip(listed, firsts, strict=False)
    )
    return Heads(tuple(layers))
