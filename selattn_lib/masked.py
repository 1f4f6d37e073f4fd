"""The known-truth benchmark on pictures of one's own, with masks in the format of COCO or of Pascal VOC."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from diffusers import AutoPipelineForImage2Image
from PIL import Image, ImageDraw
from pydantic import Field, model_validator

from .capture import capture
from .concepts import read_lines
from .models import load_pipeline
from .study import _Maps, halved

VOC_LABELS = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
).split()


def read_masks(source: str | Path, pictures: str | Path = "") -> Iterator[tuple[Path, dict[str, np.ndarray]]]:
    """Each picture with the masks (y, x) bool of what is in it, by word; one picture at a time, by name.

    `source` is a COCO file of instances (.json), whose pictures are in the folder `pictures` (by default its own), or a
    folder as of Pascal VOC: JPEGImages/NAME.jpg, SegmentationClass/NAME.png, whose pixels are class numbers, and,
    unless they are VOC's twenty, labels.txt with the name of class 1, 2 ... one a line. All instances of a word make
    one mask; VOC's void pixels (255) belong to none.

    Raises ValueError if `source` is neither, or a segmentation is of a kind that such files do not hold.
    """
    source = Path(source)
    if source.suffix == ".json" and source.is_file():
        return _read_coco(source, Path(pictures or source.parent))
    if (source / "SegmentationClass").is_dir():
        return _read_voc(source)
    raise ValueError(f"{str(source)!r}: expected a COCO file (.json), or a folder with SegmentationClass in it")


def _read_coco(source: Path, pictures: Path) -> Iterator[tuple[Path, dict[str, np.ndarray]]]:
    content = json.loads(source.read_text())
    if missing := {"images", "annotations", "categories"} - set(content):
        raise ValueError(f"{source} has no {sorted(missing)}: expected a COCO file of instances")
    names = {each["id"]: each["name"] for each in content["categories"]}
    by_image: dict[Any, list[dict[str, Any]]] = {}
    for each in content["annotations"]:
        by_image.setdefault(each["image_id"], []).append(each)
    for image in sorted(content["images"], key=lambda each: each["file_name"]):
        path = pictures / image["file_name"]
        if not path.resolve().is_relative_to(pictures.resolve()):
            raise ValueError(f"{source}: {image['file_name']!r} lies outside {pictures}, and is not read")
        masks: dict[str, np.ndarray] = {}
        for each in by_image.get(image["id"], []):
            mask = _coco_mask(each["segmentation"], image["height"], image["width"])
            word = names[each["category_id"]]
            masks[word] = masks[word] | mask if word in masks else mask
        yield path, masks


def _coco_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    if isinstance(segmentation, dict):  # run lengths down the columns, of nothing first
        counts = segmentation["counts"]
        if isinstance(counts, str):
            raise ValueError("compressed run lengths are not read: expected polygons, or run lengths as numbers")
        runs = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        return runs.reshape(width, height).T
    canvas = Image.new("1", (width, height))
    for polygon in segmentation:
        ImageDraw.Draw(canvas).polygon(polygon, fill=1)
    return np.array(canvas)


def _read_voc(folder: Path) -> Iterator[tuple[Path, dict[str, np.ndarray]]]:
    labels = read_lines(folder / "labels.txt") if (folder / "labels.txt").exists() else VOC_LABELS
    for path in sorted((folder / "SegmentationClass").glob("*.png")):
        classes = np.asarray(Image.open(path))
        if classes.ndim != 2:
            raise ValueError(f"{path}: expected one class number a pixel, not colours")
        found = [int(number) for number in np.unique(classes) if 1 <= number <= len(labels)]
        masks = {labels[number - 1]: classes == number for number in found}
        yield folder / "JPEGImages" / f"{path.stem}.jpg", masks


def squared(picture: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
    """The largest centred square of a picture, at `size` pixels a side."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.resize((size, size), resample, box=(left, top, left + side, top + side))


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
        every = maps.dataset()  # all pictures at the first timestep, then all at the second ...
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
