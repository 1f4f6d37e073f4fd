"""Names of models to ready pipelines."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, UNet2DConditionModel
from huggingface_hub.errors import GatedRepoError

from .families import FAMILIES

HUB = {"sd14": "CompVis/stable-diffusion-v1-4", "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5"}
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
EMBEDDED = "emoji-sd"


@contextmanager
def quietly() -> Iterator[None]:
    """Without the loading bars of diffusers and transformers, which would end up as widgets in a notebook."""
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    shown = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


@quietly()
def load_pipeline(
    name: str | Path = EMBEDDED,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
) -> DiffusionPipeline:
    """A text-to-image pipeline, ready to call, without a progress bar of its own.

    `name`: "emoji-sd" (shipped, needs no network), "sd14", "sd15", a Hugging Face hub id "owner/model", or a local
    folder; of Stable Diffusion 1.x, 2.x, XL, 3 or 3.5, or FLUX.1. `device`: "cuda", "mps" or "cpu", the first that
    there is by default. `dtype`: by default float32, but on CUDA float16, or bfloat16 for SD3 and FLUX. `revision`: of
    a hub id, a branch, tag or commit; the newest by default. Weights are read from safetensors only, and no code that
    comes with a model is ever run.

    Raises ValueError if `name` is none of these, or names a pipeline of another kind; OSError, with what to do, if the
    hub cannot be reached or does not let you in, or if a file of the model is missing or damaged.
    """
    device = device or pick_device()
    source = model_source(name)
    with explained(str(name), source):
        index = DiffusionPipeline.load_config(source, revision=revision)
    networks = {family.network.__name__: family.part for family in FAMILIES}
    parts = {part: index[part][1] for part in ("unet", "transformer") if part in index}
    if not any(networks.get(network) == part for part, network in parts.items()):
        raise ValueError(
            f"model {str(name)!r} is a {index.get('_class_name')} with {parts or 'no unet and no transformer'}; "
            f"expected a pipeline of a {', '.join(networks)}"
        )
    half = torch.bfloat16 if "transformer" in parts else torch.float16
    checker = {"safety_checker": None, "requires_safety_checker": False} if "safety_checker" in index else {}
    with explained(str(name), source):
        pipe = DiffusionPipeline.from_pretrained(
            source,
            dtype=dtype or (half if device.startswith("cuda") else torch.float32),
            revision=revision,
            use_safetensors=True,
            **checker,
        )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


@contextmanager
def explained(name: str, source: str) -> Iterator[None]:
    """Whatever stops `name` from being loaded from `source`, a folder or a hub id, as one OSError of a sentence."""
    try:
        yield
    except Exception as error:  # each library has its own for a file that it cannot read
        if Path(source).is_dir():
            way = (
                "expected a whole copy of the model: a file there is missing or damaged, or is not one that is read "
                "(weights are safetensors only, and code is never run)"
            )
        elif any(isinstance(each, GatedRepoError) for each in _chain(error)):
            way = f"accept its terms at https://huggingface.co/{source}, then log in with: hf auth login"
        else:
            way = (
                "expected a network that reaches the Hugging Face hub, a copy in its cache, or a local folder; "
                f"{EMBEDDED} needs neither"
            )
        reason = str(error).strip().partition("\n")[0].rstrip(". ")
        raise OSError(f"{name!r} could not be loaded from {source!r} ({reason}): {way}") from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def unet_layout(name: str | Path) -> UNet2DConditionModel:
    """The UNet of a model without its weights, from its configuration alone: enough to list its heads.

    For "sd14" and "sd15" no network is needed. Raises as `load_pipeline` does.
    """
    with torch.device("meta"):
        if str(name) in ("sd14", "sd15"):
            return UNet2DConditionModel()  # the defaults of diffusers are the layout of Stable Diffusion v1
        source = model_source(name)
        with explained(str(name), source):
            return UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(source, subfolder="unet"))


def model_source(name: str | Path) -> str:
    """Where `from_pretrained` finds the model: a folder or a hub id; ValueError if `name` can be neither."""
    if name == EMBEDDED:
        return str(files("selattn_lib.emoji") / "weights")
    if str(name) in HUB:
        return HUB[str(name)]
    if Path(name).is_dir():
        if not (Path(name) / "model_index.json").exists():
            raise ValueError(f"folder {str(name)!r} has no model_index.json: expected a saved diffusers pipeline")
        return str(name)
    if HUB_ID.fullmatch(str(name)) and ".." not in str(name):
        return str(name)
    raise ValueError(
        f"no model {str(name)!r}: expected {EMBEDDED}, {', '.join(HUB)}, a hub id such as owner/model, or the path of "
        "a folder that exists"
    )


def pick_device() -> str:
    """ "cuda", "mps" or "cpu", the first that this machine has."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
