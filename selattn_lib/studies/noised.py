"""Studies without sampling: pictures with known masks are noised, and the network sees each once a timestep."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from diffusers import AutoPipelineForImage2Image
from PIL import Image
from pydantic import Field, model_validator

from ..attention.capture import capture
from ..models.pipelines import load_pipeline
from .annotations import read_masks, squared
from .base import _Maps, halved
from .generated import _Benchmark


class KnownTruthStudy(_Benchmark):
    """Heads judged on composed scenes with exact masks, without sampling: each scene is noised to `timesteps`, the
    UNet sees it once at each with its caption, and the maps of the word are averaged. For the embedded world."""

    scenes: int = Field(default=100, ge=1)
    timesteps: tuple[int, ...] = (100, 300, 500, 700)
    seed: int = 0

    def units(self) -> list[dict[str, Any]]:
        chosen = [self.words[i % len(self.words)] for i in range(self.scenes)]
        return [{"prompt": f"photo of a {w}", "subject": w, "seed": i} for i, w in enumerate(chosen)]

    @torch.no_grad()
    def compute(self, units: Sequence[int]) -> xr.Dataset:
        from ..emoji.scenes import HELD_OUT, compose

        pipe, every, times = self.pipe, self.units(), torch.tensor(self.timesteps)
        chosen = [every[i] for i in units]
        scenes = [
            compose(np.random.default_rng([HELD_OUT, self.seed, i]), [(self.concept, u["subject"])], u["prompt"])
            for i, u in zip(units, chosen, strict=True)
        ]
        pictures = np.stack([scene.image for scene in scenes])
        pixels = pipe.image_processor.preprocess(pictures.astype(np.float32) / 255).to(pipe.vae.device, pipe.vae.dtype)
        clean = pipe.vae.encode(pixels).latent_dist.mode()
        clean = (clean * pipe.vae.config.scaling_factor).repeat_interleave(len(times), 0)
        draws = [torch.Generator().manual_seed(int(i)) for i in units]
        noise = torch.cat([torch.randn((len(times), *clean.shape[1:]), generator=g) for g in draws])
        noised = pipe.scheduler.add_noise(clean, noise.to(clean.device, clean.dtype), times.repeat(len(units)))
        with capture(pipe, words=[[u["subject"]] for u in chosen]) as maps:
            text, _ = pipe.encode_prompt([u["prompt"] for u in chosen], clean.device, len(times), False)
            pipe.unet(noised, times.repeat(len(units)).to(clean.device), text)
        found = halved(maps.head_maps().dataset.coarsen(image=len(times)).mean())
        found["image_rgb"] = (("image", "y", "x", "rgb"), pictures)
        found["truth"] = (("image", "y", "x"), np.stack([scene.masks[0] for scene in scenes]))
        return found


class MaskedStudy(_Maps):
    """Heads judged on pictures with masks (`read_masks`), without sampling, on any model that diffusers has an
    image-to-image pipeline of: each picture is noised to `timesteps`, the network sees it once at each with `template`
    as its caption, and the maps of the word are averaged.

    Of each of `words` (default: all that occur) the first `per_word` pictures count in which the word covers `least` to
    `most` of the centred square. Timesteps, out of 1000, are rounded to one of 50 steps of the model's scheduler.
    The results are those of a `KnownTruthStudy`, with the name of the `picture` (image) as a coordinate.

    Raises ValueError if no picture counts, on what `read_masks` does not read, and on anything out of range.
    """

    source: str
    pictures: str = ""
    content: str = Field(default="", description="digest of what is in `source`; filled in")
    words: tuple[str, ...] = ()
    per_word: int = Field(default=10, ge=1)
    least: float = Field(default=0.05, ge=0, le=1)
    most: float = Field(default=0.8, ge=0, le=1)
    template: str = "photo of a {word}"
    pixels: int = Field(default=0, ge=0, description="a side, a multiple of 8; 0: the model's own")
    timesteps: tuple[int, ...] = (100, 300, 500, 700)
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _read_source(cls, fields: dict[str, Any]) -> dict[str, Any]:
        source = Path(fields.get("source", ""))
        files = [source] if source.is_file() else sorted([*source.glob("SegmentationClass/*"), *source.glob("*.txt")])
        digest = hashlib.sha256()
        for path in files:
            digest.update(path.name.encode() + path.read_bytes())
        text: dict[str, str] = {name: str(fields[name]) for name in ("source", "pictures") if name in fields}
        return {**fields, **text, "content": digest.hexdigest()[:12]}

    @model_validator(mode="after")
    def _check(self) -> "MaskedStudy":
        if "{word}" not in self.template:
            raise ValueError(f"template {self.template!r}: expected a prompt with {{word}} in it")
        if self.pixels % 8:
            raise ValueError(f"pixels={self.pixels}: expected a multiple of 8")
        if not self.timesteps or not all(20 <= t <= 1000 for t in self.timesteps):
            raise ValueError(f"timesteps={self.timesteps}: expected numbers from 20 to 1000")
        return self

    @cached_property
    def pipe(self) -> Any:
        pipe = AutoPipelineForImage2Image.from_pipe(load_pipeline(self.model, revision=self.revision or None))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    @cached_property
    def side(self) -> int:
        """Pixels a side of the pictures as the model sees them."""
        network = getattr(self.pipe, "unet", None) or self.pipe.transformer
        return self.pixels or network.config.sample_size * self.pipe.vae_scale_factor

    @cached_property
    def chosen(self) -> list[tuple[dict[str, Any], Path, np.ndarray]]:
        """(unit, path of its picture, its mask (y, x) bool) of every unit."""
        found: list[tuple[dict[str, Any], Path, np.ndarray]] = []
        times = dict.fromkeys(self.words, 0)
        for path, masks in read_masks(self.source, self.pictures):
            for word, mask in masks.items():
                if self.words and word not in times:
                    continue
                square = np.asarray(squared(Image.fromarray(mask), self.side, Image.Resampling.NEAREST))
                if self.least <= square.mean() <= self.most and times.get(word, 0) < self.per_word:
                    times[word] = times.get(word, 0) + 1
                    unit = {"prompt": self.template.format(word=word), "subject": word, "seed": len(found)}
                    found.append(({**unit, "picture": path.name}, path, square))
            if self.words and min(times.values()) >= self.per_word:
                break
        if not found:
            words = ", ".join(self.words) or "anything"
            raise ValueError(
                f"source {self.source!r} has no picture in which {words} covers {self.least} to {self.most} of it"
            )
        return found

    def units(self) -> list[dict[str, Any]]:
        return [unit for unit, _, _ in self.chosen]

    @torch.no_grad()
    def compute(self, units: Sequence[int]) -> xr.Dataset:
        some = [self.chosen[i] for i in units]
        pictures = [
            squared(Image.open(path).convert("RGB"), self.side, Image.Resampling.BICUBIC) for _, path, _ in some
        ]
        with capture(self.pipe, words=[[unit["subject"]] for unit, _, _ in some]) as maps:
            for number in range(len(self.timesteps)):
                self.pipe(
                    [unit["prompt"] for unit, _, _ in some], image=pictures, strength=self.timesteps[number] / 1000,
                    num_inference_steps=50, guidance_scale=1.0, output_type="latent", callback_on_step_end=_stop,
                    generator=[torch.Generator().manual_seed(_seed(self.seed, i, number)) for i in units],
                )  # fmt: skip
        every = maps.head_maps().dataset  # all pictures at the first timestep, then all at the second ...
        parts = [every.isel(image=slice(at, at + len(some))) for at in range(0, every.sizes["image"], len(some))]
        found = halved(xr.concat(parts, "timestep").mean("timestep", keep_attrs=True))
        found["image_rgb"] = (("image", "y", "x", "rgb"), np.stack([np.asarray(picture) for picture in pictures]))
        found["truth"] = (("image", "y", "x"), np.stack([mask for _, _, mask in some]))
        return found


def _stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """Let the first call of the network be the last."""
    pipe._interrupt = True
    return {}


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
