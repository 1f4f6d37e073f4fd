"""Hearing of a pipeline's own calls: when one begins and ends, and with which arguments."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from threading import RLock
from typing import Any

SLACK = 32  # pixels by which pipelines round a size


@dataclass
class PipelineCall:
    """The arguments of a pipeline's own call, by name, defaults included."""

    arguments: dict[str, Any]

    def texts(self, kind: str, argument: str = "prompt") -> list[str]:
        """The strings given as "prompt" or "negative_prompt" to the encoder of `argument`, such as "prompt_2"."""
        values = self.arguments.get(kind + argument.removeprefix("prompt")) or self.arguments.get(kind)
        return [values] if isinstance(values, str) else [str(value) for value in values or []]

    @property
    def n_prompts(self) -> int | None:
        """How many prompts, if that can be seen."""
        embeddings = self.arguments.get("prompt_embeds")
        return len(self.texts("prompt")) or (None if embeddings is None else len(embeddings)) or None

    @property
    def n_images(self) -> int | None:
        """How many pictures, if that can be seen."""
        repeats = self.arguments.get("num_images_per_prompt") or self.arguments.get("num_videos_per_prompt") or 1
        return self.n_prompts and self.n_prompts * repeats

    def check_size(self, latent: tuple[int, int], factor: int) -> None:
        """ValueError if the network sees latents of less than the picture."""
        if self.arguments.get("padding_mask_crop") is not None:
            raise ValueError(
                "padding_mask_crop shows the network a part of the picture only, so its maps are not the picture's: "
                "cut the picture yourself, and capture the part without padding_mask_crop."
            )
        size = self.arguments.get("height") or 0, self.arguments.get("width") or 0
        sees = latent[0] * factor, latent[1] * factor
        other = all(size) and any(abs(side - seen) >= SLACK for side, seen in zip(size, sees, strict=True))
        if other and self.arguments.get("use_resolution_binning"):
            raise ValueError(
                f"The picture is drawn at {sees[0]} x {sees[1]} pixels, and then made {size[0]} x {size[1]}, so that "
                f"maps would not fit it: use height={sees[0]}, width={sees[1]}, or use_resolution_binning=False."
            )
        if other:
            raise ValueError(
                f"The picture has {size[0]} x {size[1]} pixels, but the network is shown {sees[0]} x {sees[1]} of them "
                "at a time: maps of such parts are not maps of the picture."
            )


LOCK = RLock()


@contextmanager
def pipeline_calls(pipe: Any, listener: Callable[[PipelineCall], Any]) -> Iterator[None]:
    """Have `listener(call)`, a context manager, around every call of this one pipeline.

    A pipeline has no hooks. So, for the length of the block, its class is a subclass of its own that says when it is
    called; blocks may be nested, and may end in any order.
    """
    with LOCK:
        if not hasattr(type(pipe), "_call_listeners"):
            members = {
                "__call__": _telling(type(pipe).__call__),
                "_call_listeners": [],
                "__module__": type(pipe).__module__,
            }
            pipe.__class__ = type(type(pipe).__name__, (type(pipe),), members)
        type(pipe)._call_listeners.append(listener)
    try:
        yield
    finally:
        with LOCK:
            type(pipe)._call_listeners.remove(listener)
            if not type(pipe)._call_listeners:
                pipe.__class__ = type(pipe).__mro__[1]


def _telling(call: Callable[..., Any]) -> Callable[..., Any]:
    """A pipeline's `call`, which says so first."""

    @wraps(call)
    def told(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            bound = inspect.signature(call).bind(pipe, *args, **kwargs)
            bound.apply_defaults()
            arguments = {**bound.arguments, **bound.arguments.get("kwargs", {})}
            # Some pipelines write into the lists that they are given.
            arguments = {name: list(value) if isinstance(value, list) else value for name, value in arguments.items()}
        except TypeError:  # which the pipeline says itself
            arguments = {}
        with ExitStack() as stack:
            for listener in list(type(pipe)._call_listeners):
                stack.enter_context(listener(PipelineCall(arguments)))
            return call(pipe, *args, **kwargs)

    return told
