"""What every stage of the recipe shares: checkpoints, the Muon optimiser, the learning rate."""

import time
from collections import defaultdict
from pathlib import Path

import torch
from torch import nn


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
    RMS of an AdamW step. Convolution kernels count as (out, in * height * width) matrices. Matrices of one shape are
    treated together, which halves its time on a CPU."""

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for p in group["params"]:
                by_shape[p.flatten(1).shape].append(p)
            for (rows, columns), params in by_shape.items():
                grads = [p.grad for p in params]
                momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in params]
                torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
                ahead = torch._foreach_lerp(grads, momenta, group["momentum"])
                x = torch.stack([a.flatten(1) for a in ahead])
                x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
                x = (x.mT if rows > columns else x).bfloat16().contiguous()
                for _ in range(5):
                    gram = x @ x.mT
                    gram = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
                    x = torch.baddbmm(x, gram, x, beta=3.4445)
                x = (x.mT if rows > columns else x).float() * (0.2 * max(rows, columns) ** 0.5)
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                updates = [u.view_as(p) for u, p in zip(x.contiguous(), params, strict=True)]
                torch._foreach_add_(params, updates, alpha=-group["lr"])
