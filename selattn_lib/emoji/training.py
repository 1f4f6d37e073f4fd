"""What every stage of the recipe shares: checkpoints, the Muon optimiser, the learning rate."""

import time
from pathlib import Path

import numpy as np
import torch
from torch import nn


def as_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 (image, y, x, rgb) -> float (image, rgb, y, x) in [-1, 1]."""
    return torch.tensor(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


class Checkpoint:
    """A dict of modules and optimisers, saved atomically every `minutes`."""

    def __init__(self, path: Path, minutes: float = 3, **parts):
        self.path, self.minutes, self.parts, self.saved = path, minutes, parts, time.monotonic()

    def load(self) -> int:
        """Restore the parts; the step to go on from, 0 if there is no checkpoint."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return state["step"]

    def save(self, step: int, force: bool = False) -> None:
        if force or time.monotonic() - self.saved > 60 * self.minutes:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(".partial")
            torch.save({"step": step} | {k: v.state_dict() for k, v in self.parts.items()}, partial)
            partial.replace(self.path)
            self.saved = time.monotonic()


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The hidden weight matrices, for Muon, and all the rest (first and last layer, biases, norms), for AdamW."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, p in model.named_parameters():
        hidden = p.ndim > 1 and "conv_in" not in name and "conv_out" not in name
        (matrices if hidden else others).append(p)
    return matrices, others


def set_rate(optimisers, rate: float) -> None:
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024): momentum whose matrix is orthogonalised by five Newton-Schulz steps, scaled to the
    RMS of an AdamW step. Convolution kernels count as (out, in * height * width) matrices."""

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                x = p.grad.lerp(momentum, group["momentum"]).flatten(1).bfloat16()
                tall = x.shape[0] > x.shape[1]
                x = x.T if tall else x
                x = x / (x.norm() + 1e-7)
                for _ in range(5):
                    gram = x @ x.T
                    x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
                step = (x.T if tall else x).float().view_as(p) * 0.2 * max(x.shape) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(step, alpha=-group["lr"])
