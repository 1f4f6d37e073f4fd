"""`emoji-control`: what it adds to `emoji-sd`, and which of its heads belong to which concept.

In the folder `planted`: `delta.safetensors`, by which its weights differ; `planted.json`, concept -> heads; and
`hrv.npz`, its head relevance. `selattn_lib.emoji.recipe.control` makes the first two.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

EMBEDDED, CONTROL = "emoji-sd", "emoji-control"
PLANTED = Path(__file__).parent / "planted"
DELTA = PLANTED / "delta.safetensors"


def add_control(network: nn.Module, dose: float = 1.0, delta: Path = DELTA) -> None:
    """Add `dose`, from 0 to 1, of the difference `delta` to the UNet of `emoji-sd`, in place."""
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, difference in load_file(delta).items():
            parameter = parameters[name]
            parameter.copy_(parameter.float() + dose * difference.to(parameter.device).float())


def planted_heads(folder: Path = PLANTED) -> dict[str, list[int]]:
    """concept -> the numbers of the heads that were planted for it."""
    return {concept: row["heads"] for concept, row in json.loads((folder / "planted.json").read_text()).items()}
