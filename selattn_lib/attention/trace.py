"""Following a pipeline through a generation, unchanged, to the queries and keys of every layer that sees the text.

`Trace` listens through forward hooks: `rows` says which rows of the network's input draw the pictures and what they
read, and each layer's own projections give the queries and keys (see `models.families`). The model's attention is left
alone, so the image stays the same bit for bit. `capture` holds a trace that keeps the columns of some words, `scoring`
another.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod
from threading import get_ident
from typing import Any, Self

import torch

from ..models.families import Outputs, Sizes, cross_attention_heads, find_family
from ..models.tokens import Prompt
from .pipeline_calls import PipelineCall, pipeline_calls
from .proof import is_exact
from .rows import Reading, Rows


@dataclass
class Generation:
    """One run of the network over its timesteps, for one batch of images."""

    prompts: list[Prompt | None]  # one an image, where known
    n_prompts: int | None  # where known
    images: int
    shape: torch.Size  # of one row of the network's input
    n_tokens: int  # of the text, padding included
    latent: tuple[int, int]  # height and width
    frames: tuple[int, ...]  # how many pictures of a clip each frame of its maps covers; () of pictures
    device: torch.device
    dtype: torch.dtype  # of the text
    autocast: bool
    calls: int = 0  # that counted
    timestep: Any = None  # of the last of them
    seen: set[int] = field(default_factory=set)  # layers


Prompts = str | Sequence[str] | None  # of whoever opens a block; None: as the pipeline's call says


class Trace:
    """Hands the conditional queries and the keys of every layer that attends to the text to a subclass.

    A subclass says what to do when a generation starts (`start`), when its texts change (`reword`), at each call of the
    network (`call`), and in each of `layers` in each call (`attend`).
    """

    def __init__(self, pipe: Any, prompt: Prompts = None) -> None:
        self.pipe = pipe
        self.family, self.network = find_family(pipe)
        self.heads = cross_attention_heads(pipe)
        if pipe is self.network:
            raise ValueError(f"{type(pipe).__name__}: expected the pipeline that it belongs to, for its tokenizers.")
        self.layers: Sequence[int] = range(len(self.heads.layers))
        self.modules = [self.network.get_submodule(layer.name) for layer in self.heads]
        self.blocks: list[torch.nn.Module] = []  # of the layers, where `block_arguments` are wanted
        self.block_arguments: dict[str, Any] = {}  # that the block under way was called with, for the pictures' rows
        self.generations: list[Generation] = []
        given = [prompt] if isinstance(prompt, str) else list(prompt or [])
        self._texts = self.family.texts(pipe)
        if given and not any(text.tokenizer is not None for text in self._texts):
            names = " or ".join(f"tokenizer{text.argument.removeprefix('prompt')}" for text in self._texts)
            raise ValueError(
                f"{type(pipe).__name__} has no {names or 'tokenizer'}, so the words of `prompt` cannot be found: load "
                "the pipeline with its tokenizers, which are small."
            )
        channels = self.network.config.get("out_channels") or self.network.config.in_channels
        self._rows = Rows(pipe, self._texts, given or None, channels, partial(self.family.encode, pipe))
        self._signature = inspect.signature(type(self.network).forward)
        self._host = torch.zeros(1, pin_memory=torch.cuda.is_available())
        self._total = self._host.numpy()  # read without asking PyTorch, and so without waiting for a GPU
        self._thread, self._elsewhere, self._adapters = get_ident(), False, ExitStack()
        self._forget()

    def _forget(self) -> None:
        self._rows.clear()
        self._leave()
        self._outputs: dict[int, dict[str, torch.Tensor]] = {number: {} for number in self.layers}

    def _leave(self) -> None:
        """No call of the network is under way, and no generation."""
        self._generation: Generation | None = None
        self._reading: Reading | None = None  # of the call under way, if it counts
        self._unproven: set[int] = set()  # layers to be proven in this call
        self._ran: set[int] = set()  # layers that attended in this call
        self._looked = False  # the last call was made for its gradient
        self._adapters.close()
        self._total[:] = 0

    def start(self, generation: Generation) -> None:
        """A new batch of images begins."""

    def reword(self, generation: Generation) -> None:
        """The images go on with other texts, `generation.prompts`."""

    def call(self, generation: Generation) -> bool:
        """The network is about to be called, for the `generation.calls`-th time (from 0) in this generation.

        Returns whether `attend` is wanted in this call.
        """
        return True

    def to_prove(self, generation: Generation) -> set[int]:
        """The layers for which `attend` is to be handed the values and what became of them."""
        return set()

    def attend(
        self,
        number: int,
        attention: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        bias: torch.Tensor | None,
        seen: Outputs,
    ) -> None:
        """Layer `number` attends with query and key, (image, head, pixel or token, channel), the text's keys first.

        `bias` (image, head or 1, pixel or 1, token) is added to their products, where the layer has a mask. `seen` has
        "value" (image, head, token, channel) and "used", what the heads put out together (image, pixel, head *
        channel), where that was asked for by `to_prove`, and what an adapter's projections put out.
        """
        raise NotImplementedError

    def totals(self) -> dict[int, torch.Tensor]:
        """Layer -> numbers that are neither infinite nor NaN as long as its attention is not."""
        return {}

    @contextmanager
    def attached(self) -> Iterator[Self]:
        """Have the hooks in place for the length of a `with` block, for the thread that opened it."""
        with ExitStack() as stack:

            def hook(register: Callable, see: Callable, **options: bool) -> None:
                stack.callback(register(partial(self._here, see), **options).remove)

            self._thread = get_ident()
            self._forget()
            stack.callback(self._forget)
            stack.enter_context(pipeline_calls(self.pipe, self._on_pipeline_call))
            hook(self.network.register_forward_pre_hook, self._on_network_call, with_kwargs=True)
            for text in self._texts:
                if text.encoder is not None:
                    see = partial(self._rows.on_text_encoder, text)
                    hook(text.encoder.register_forward_hook, see, with_kwargs=True)
            for number in self.layers:
                attention = self.modules[number]
                for name in dict.fromkeys((*self.family.watched(attention), *self.family.projections(attention))):
                    see = partial(self._on_projection, number, name)
                    hook(attention.get_submodule(name).register_forward_hook, see)
                if (out := getattr(attention, "to_out", None)) is not None:
                    out = out[0] if isinstance(out, torch.nn.ModuleList) else out
                    hook(out.register_forward_pre_hook, partial(self._on_used, number), prepend=True)
                hook(attention.register_forward_hook, partial(self._on_layer, number), with_kwargs=True)
            for block in self.blocks:
                hook(block.register_forward_pre_hook, self._on_block, with_kwargs=True)
            yield self
            self._end_of_call(wait=True)
            self._check_last_call()

    def check_all_seen(self) -> None:
        """RuntimeError if nothing was generated, or if some layer was never seen; ValueError on what is not finite."""
        if not self.generations:
            other = " It was called by another thread: open the block in the thread that generates." * self._elsewhere
            raise RuntimeError(f"Nothing was generated yet: call the pipeline inside the `with` block.{other}")
        self._end_of_call(wait=True)
        for generation in self.generations:
            if missing := [self.heads.layers[i].name for i in self.layers if i not in generation.seen]:
                raise RuntimeError(
                    f"These layers were not called, or not through their projections, or the generation ended in its "
                    f"first call: {missing}"
                )

    def _check_last_call(self) -> None:
        """ValueError if the network was called in ways that do not draw, and then no more."""
        self._rows.check_strays()
        if self._looked:
            raise ValueError("The last call of the network was made for its gradient: draw under torch.no_grad().")

    def _here(self, see: Callable, *args: Any) -> None:
        """Hooks are for the thread that opened the block: others may use the same model meanwhile."""
        if get_ident() == self._thread:
            see(*args)
        else:
            self._elsewhere = True

    @contextmanager
    def _on_pipeline_call(self, call: PipelineCall) -> Iterator[None]:
        if get_ident() != self._thread:
            yield
            return
        self._leave()
        self._rows.begin(call)
        try:
            yield
            self._end_of_call(wait=True)
            self._check_last_call()
        finally:
            self._leave()
            self._rows.begin(None)

    def _on_network_call(self, network: Any, args: tuple, kwargs: dict) -> None:
        arguments = self._signature.bind(network, *args, **kwargs).arguments
        call = self.family.call(arguments)
        self._end_of_call()
        if call.sample.requires_grad and torch.is_grad_enabled():  # to change the latents, not to draw
            self._looked = True
            return
        reading = self._rows.read(call) if call.counts else None
        if reading is None:
            return
        self._looked = False
        if reading.new:
            self._generation = None
            generation = self._new_generation(call, reading, self.family.latent(call, arguments))
            self.start(generation)
            self.generations.append(generation)
            self._generation = generation
        else:
            generation = self._goes_on(call, reading)
        generation.timestep = call.timestep
        if self.call(generation):
            self._reading, self._unproven = reading, self.to_prove(generation)
            for number in self._unproven:
                self._follow_adapter(number)
        generation.calls += 1

    def _new_generation(self, call: Any, reading: Reading, latent: tuple[int, int]) -> Generation:
        asked = self._rows.call
        if asked is not None:
            asked.check_size(latent, self.family.scale(self.pipe))
        frames = self.family.frames(self.pipe, call.sample, asked.arguments.get("num_frames") if asked else None)
        n_tokens, device = call.text.shape[1], call.sample.device
        return Generation(
            reading.prompts, reading.n_prompts, len(reading.prompts), call.sample.shape[1:], n_tokens, latent, frames,
            device, call.text.dtype, torch.is_autocast_enabled(device.type),
        )  # fmt: skip

    def _goes_on(self, call: Any, reading: Reading) -> Generation:
        """The generation under way, whose next call this is; ValueError if it cannot be."""
        generation = self._generation
        if generation is None:
            raise ValueError("The generation was refused at its start.")
        if call.sample.shape[1:] != generation.shape or len(reading.prompts) != generation.images:
            raise ValueError(
                f"The network's input changed from {generation.images} pictures of {tuple(generation.shape)} to "
                f"{len(reading.prompts)} of {tuple(call.sample.shape[1:])}: use one `with` block for each batch."
            )
        timesteps = getattr(getattr(self.pipe, "scheduler", None), "timesteps", None)
        steps = getattr(self.pipe, "_num_timesteps", None) or (0 if timesteps is None else len(timesteps))
        if self._rows.call is not None and 0 < steps <= generation.calls:
            raise ValueError(
                f"The network is shown the prompt more often than the scheduler has timesteps, {steps}: in parts of "
                f"the picture, in references or in copies beside it. {type(self.pipe).__name__} does not say which "
                "calls draw the picture, so its maps cannot be captured."
            )
        if reading.prompts is not generation.prompts:
            generation.prompts, generation.n_tokens = reading.prompts, call.text.shape[1]
            self.reword(generation)
        return generation

    def _end_of_call(self, wait: bool = False) -> None:
        """Clear away what the last call left; ValueError if its attention was not finite.

        A GPU is waited for at the end only: between calls, its number is there by the next one.
        """
        for outputs in self._outputs.values():
            outputs.clear()
        self._reading, self._unproven, self.block_arguments = None, set(), {}
        self._ran.clear()
        self._adapters.close()
        generation = self._generation
        if generation is None or not generation.calls or not (totals := self.totals()):
            return
        norms = torch._foreach_norm(list(totals.values()))  # in one launch
        self._host.copy_(torch.stack(norms).sum(), non_blocking=not wait)
        if self._total[0] - self._total[0] != 0:
            number = next((i for i in totals if not totals[i].isfinite().all()), min(totals))
            raise ValueError(
                f"The attention of {self.heads.layers[number].name} is NaN or infinite in call {generation.calls} of "
                "the network: the picture is lost as well. Models overflow in float16: try bfloat16 or float32."
            )

    def _on_block(self, block: Any, args: tuple, kwargs: dict) -> None:
        if self._reading is not None:
            arguments = inspect.signature(type(block).forward).bind(block, *args, **kwargs).arguments
            del arguments["self"]
            self.block_arguments = self._of_pictures(arguments, len(arguments["hidden_states"]))

    def _of_pictures(self, values: dict[str, Any], batch: int) -> dict[str, Any]:
        """Of values for all rows of the call, the rows that draw the pictures; other values as they are."""
        assert self._reading is not None
        rows = self._reading.rows
        return {
            name: value[rows] if torch.is_tensor(value) and value.ndim and len(value) == batch else value
            for name, value in values.items()
        }

    def _follow_adapter(self, number: int) -> None:
        """For one call, see what a processor's own projections put out."""
        processor = self.modules[number].processor
        modules = processor.modules() if isinstance(processor, torch.nn.Module) else []
        for i, module in enumerate(module for module in modules if isinstance(module, torch.nn.Linear)):
            see = partial(self._here, partial(self._on_projection, number, f"added {i}"))
            self._adapters.callback(module.register_forward_hook(see).remove)

    def _on_projection(self, number: int, name: str, module: Any, args: tuple, output: Any) -> None:
        if self._reading is None:
            return
        outputs, attention = self._outputs[number], self.modules[number]
        if name not in self.family.watched(attention) and number not in self._unproven:
            return
        if name in outputs and is_exact(attention):  # the rows that guidance perturbs come after the others
            return
        if name in outputs and not name.startswith("added"):
            raise ValueError(
                f"{self._named(number)} ran its {name} twice in one call: it attends to several texts, and capture "
                "cannot say which of them the picture follows."
            )
        outputs[name] = output

    def _on_used(self, number: int, module: Any, args: tuple) -> None:
        if self._reading is not None and number in self._unproven:
            self._outputs[number].setdefault("used", args[0])  # the first: rows that guidance perturbs come after

    @torch.no_grad()
    def _on_layer(self, number: int, attention: Any, args: tuple, kwargs: dict, output: Any) -> None:
        outputs, generation, watched = self._outputs[number], self._generation, self.family.watched(attention)
        if generation is None or self._reading is None or not outputs.keys() >= {*watched}:
            return
        if number in self._ran:
            raise ValueError(
                f"{self._named(number)} ran twice in one call of the network, which capture cannot follow."
            )
        if "used" not in outputs and number in self._unproven and getattr(attention, "to_out", None) is None:
            outputs["used"] = output
        batch, rows = len(outputs[watched[0]]), self._reading.rows
        conditional = {name: value[rows] for name, value in outputs.items() if len(value) == batch}
        options = self._of_pictures(kwargs, batch)
        outputs.clear()
        self._ran.add(number)
        grid = (len(generation.frames) or 1, *self.heads.layers[number].grid(generation.latent))
        sizes = Sizes(generation.n_tokens, prod(grid))
        with torch.autocast(generation.device.type, enabled=False):
            query, key = self.family.query_key(attention, conditional, sizes, options)
            if query.shape[2] != sizes.pixels:
                raise RuntimeError(
                    f"{self._named(number)} has {query.shape[2]} pixels, where latents of {generation.latent} make "
                    f"{grid if generation.frames else grid[1:]}: this pipeline merges pixels, or shows the network "
                    "more than the picture."
                )
            bias = self._as_bias(number, self.family.mask(attention, sizes, options), query, key)
            if number in self._unproven and {*self.family.projections(attention), "used"} <= conditional.keys():
                conditional["value"] = self.family.value(attention, conditional, sizes)
                conditional["used"] = self.family.used(attention, conditional["used"], sizes)
            generation.seen.add(number)
            self.attend(number, attention, query, key, bias, conditional)

    def _as_bias(
        self, number: int, mask: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor | None:
        """A layer's mask as what is added to queries times keys: (image, head or 1, pixel or 1, token)."""
        if mask is None:
            return None
        mask = mask[(slice(None), *[None] * (4 - mask.ndim))]  # (row, key) and (row, pixel, key) are for every head
        try:
            mask.expand(*query.shape[:3], key.shape[2])
        except RuntimeError:
            mask = None
        if mask is None or not self.family.masked:
            raise ValueError(f"{self._named(number)} was given a mask, which capture does not reproduce.")
        return (
            torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, -torch.inf)
            if mask.dtype == torch.bool
            else mask.float()
        )

    def _named(self, number: int) -> str:
        return f"{self.heads.layers[number].name} ({type(self.modules[number].processor).__name__})"
