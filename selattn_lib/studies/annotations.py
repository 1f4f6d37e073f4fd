"""Pictures with masks in the format of COCO or of Pascal VOC."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..concepts import read_lines

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
