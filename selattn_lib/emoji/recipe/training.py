"""What every stage of the recipe shares: one training loop, with checkpoints, optimisers and learning rate."""

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import ModelMixin
from torch import nn
from tqdm import tqdm

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))  # this process of so many: torchrun


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


SAVED_EVERY = 180  # seconds


@cache
def fast_dtype() -> torch.dtype:
    """bfloat16 on a GPU, and where this processor multiplies it faster than float32, by a factor of ten either way;
    else float32."""
    if DEVICE.type == "cuda":
        return torch.bfloat16
    seconds = {torch.float32: math.inf, torch.bfloat16: math.inf}
    for dtype in [*seconds] * 10:  # in turns, and the least of ten: other processes disturb
        matrices = torch.ones(4, 128, 128, dtype=dtype)
        start = time.perf_counter()
        matrices @ matrices
        seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return min(seconds, key=seconds.__getitem__)


def autocast() -> torch.autocast:
    """Networks compute in `fast_dtype` inside the `with` block."""
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=fast_dtype() == torch.bfloat16)


def begin(model: ModelMixin, start: Path | None, part: str) -> None:
    """Give the model the weights of a part of the pipeline in the folder `start`, if there is one to go on from."""
    if start is not None:
        model.load_state_dict(type(model).from_pretrained(start / part, torch_dtype=torch.float32).state_dict())


class Schedule(NamedTuple):
    """A learning rate: `peak` after `warmup` steps, and linearly to 0 over the last `decay`, a share of all `steps`, or
    of all `seconds` should these be over first."""

    steps: int
    peak: float
    warmup: int
    decay: float
    seconds: float = math.inf

    def rate(self, step: int, elapsed: float = 0) -> float:
        """The learning rate of a step, so many seconds after the first."""
        left = min(1 - step / self.steps, 1 - elapsed / self.seconds)
        return self.peak * max(0, min((step + 1) / self.warmup, 1, left / self.decay))


class Training:
    """One stage of the recipe: what it trains, and from which step it goes on.

    `path` is the checkpoint's, in which the model has the name `key`; `ema`, a second model, becomes the running
    average of the first one's weights; gradients are clipped to the norm `clip`.
    """

    def __init__(
        self,
        path: Path,
        schedule: Schedule,
        model: nn.Module,
        *,
        key: str = "model",
        ema: nn.Module | None = None,
        clip: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        self.name, self.schedule, self.model, self.ema, self.clip = path.stem, schedule, model.to(DEVICE), ema, clip
        matrices, others = split_parameters(model)
        muon = Muon(matrices, lr=schedule.peak)
        adam = torch.optim.AdamW(others, lr=schedule.peak, betas=betas, weight_decay=weight_decay)
        self.optimisers = (muon, adam)
        average = {} if ema is None else {"ema": ema.to(DEVICE)}
        self.checkpoint = Checkpoint(path, **{key: model}, **average, muon=muon, adam=adam)
        self.start = self.checkpoint.load()

    def run(self, step: Callable[[int], tuple[torch.Tensor, dict[str, float]]]) -> None:
        """Train to the last step; `step(number)` gives the loss, and what the progress bar shows: numbers, or tensors
        of one, which are read as seldom as they are shown, since the host waits for a GPU there."""
        steps, begun = self.schedule.steps, math.inf  # the clock starts after the first step, which compiles on a GPU
        numbers = range(self.start, steps)
        bar = tqdm(numbers, initial=self.start, total=steps, desc=self.name, disable=RANK > 0, mininterval=5)
        for number in bar:
            elapsed = max(0, time.monotonic() - begun)
            last = number + 1 == steps or elapsed > self.schedule.seconds
            loss, shown = step(number)
            loss.backward()
            if self.clip is not None:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
            for optimiser in self.optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = self.schedule.rate(number, elapsed)
                optimiser.step()
                optimiser.zero_grad()
            if self.ema is not None:
                weight = 1 - min(0.999, (number + 1) / (number + 10))
                with torch.no_grad():
                    torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), weight)
            if RANK == 0:
                if number % 20 == 0:
                    bar.set_postfix({name: f"{float(value):.3f}" for name, value in shown.items()}, refresh=False)
                self.checkpoint.save(number + 1, force=last)
            begun = min(begun, time.monotonic())
            if last:
                break


class Checkpoint:
    """Modules, optimisers and others that have a state, by name, saved atomically every `SAVED_EVERY` seconds."""

    def __init__(self, path: Path, **parts: Any) -> None:
        self.path, self.parts, self.saved = path, parts, time.monotonic()

    def load(self) -> int:
        """Restore the parts; the step to go on from, 0 if there is no checkpoint."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, map_location=DEVICE, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return state["step"]

    def save(self, step: int, force: bool = False) -> None:
        """Write the parts, with the step to go on from, if it is time to or `force`."""
        if force or time.monotonic() - self.saved > SAVED_EVERY:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial = self.path.with_suffix(".partial")
            torch.save({"step": step} | {name: part.state_dict() for name, part in self.parts.items()}, partial)
            partial.replace(self.path)
            self.saved = time.monotonic()


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The hidden weight matrices, for Muon, and all the rest (first and last layer, biases, norms), for AdamW."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        hidden = parameter.ndim > 1 and "conv_in" not in name and "conv_out" not in name
        (matrices if hidden else others).append(parameter)
    return matrices, others


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024): momentum whose matrix is orthogonalised by five Newton-Schulz steps, scaled to the
    RMS of an AdamW step. Convolution kernels count as (out, in * height * width) matrices. Matrices of one shape are
    treated together, which halves its time on a CPU."""

    # By hand, since torch.optim.Muon takes matrices only, and most of what is trained here is convolution kernels.

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """One step of every matrix."""
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
                x = (x.mT if rows > columns else x).to(fast_dtype()).contiguous()
                for _ in range(5):
                    gram = x @ x.mT
                    gram = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
                    x = torch.baddbmm(x, gram, x, beta=3.4445)
                x = (x.mT if rows > columns else x).float() * (0.2 * max(rows, columns) ** 0.5)
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                updates = [u.view_as(p) for u, p in zip(x.contiguous(), params, strict=True)]
                torch._foreach_add_(params, updates, alpha=-group["lr"])
