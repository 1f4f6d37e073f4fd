"""The recipe of `emoji-sd`: autoencoder, text encoder, UNet, segmenter; each resumes from its last checkpoint.
Last of all `emoji-control`: `control --weights selattn_lib/emoji/weights` trains it from the shipped `emoji-sd`, into
selattn_lib/emoji/planted; and `quality --weights selattn_lib/emoji/weights` prints how many words both draw right.

    python -m selattn_lib.emoji.recipe.train all

On a CPU every process should have one core and one thread (OMP_NUM_THREADS=1): `torchrun --nproc-per-node 2 -m
selattn_lib.emoji.recipe.train unet` trains the UNet on two.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .autoencoder import train_autoencoder
from .control import make_control
from .export import export
from .quality import control_quality
from .segmenter import train_segmenter
from .unet import train_unet

STAGES: dict[str, Callable[..., Any]] = {
    "autoencoder": train_autoencoder,
    "unet": train_unet,
    "segmenter": train_segmenter,
}


def main() -> None:
    """The whole recipe, or one stage of it; started again, each goes on from its last checkpoint."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("stage", choices=["all", *STAGES, "export", "control", "quality"])
    parser.add_argument("--work", type=Path, default=Path("runs/training"), help="checkpoints and latents")
    parser.add_argument("--weights", type=Path, default=Path("runs/emoji-sd"), help="the finished pipeline")
    parser.add_argument("--start", type=Path, help="a pipeline whose weights to go on from; default: from nothing")
    for name, kind, meaning in (
        ("steps", int, "of the stage"),
        ("batch", int, "examples a step"),
        ("seconds", float, "after which the stage ends, its learning rate at 0, should the steps not be done"),
        ("count", int, "scenes that are composed, or for the quality pictures of each model"),
    ):
        parser.add_argument(f"--{name}", type=kind, help=f"{meaning}; default: as shipped")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    names = ("start", "steps", "batch", "seconds", "count")
    options = {name: value for name in names if (value := getattr(given, name)) is not None}
    for name, train in STAGES.items():
        if given.stage in (name, "all"):
            train(given.work, given.weights, **options)
    if given.stage in ("export", "all"):
        export(given.work, given.weights)
    if given.stage in ("control", "all"):
        own = {name: options[name] for name in ("steps", "batch") if name in options}
        make_control(given.work, given.weights, **own)
    if given.stage == "quality":
        asked = {name: options[name] for name in ("steps", "count") if name in options}
        print(control_quality(given.weights, **asked).to_string())


if __name__ == "__main__":
    main()
