"""Pictures with masks in the format of COCO or of Pascal VOC."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..concepts import read_lines, read_text

MOST_PIXELS = 100_000_000  # of a picture
VOC_LABELS = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
).split()


def read_masks(source: str | Path, pictures: str | Path = "") -> Iterator[tuple[Path, dict[str, np.ndarray]]]:
    """Read pictures with masks, one at a time, by name.

    All instances of a word make one mask.

    Parameters
    ----------
    source : path
        A COCO file of instances (.json), with polygons or run lengths; it needs ``pip install 'selattn_lib[coco]'``.
        Or a folder as of Pascal VOC: JPEGImages/NAME.jpg, SegmentationClass/NAME.png, whose pixels are class numbers,
        of which 255 is nothing, and, unless they are VOC's twenty, labels.txt with the name of class 1, 2 ... one a
        line.
    pictures : path, optional
        The folder of COCO's pictures; by default that of `source`.

    Returns
    -------
    iterator of (pathlib.Path, dict of str to array (y, x) bool)
        A picture's file, and word -> mask.

    Raises
    ------
    ValueError
        If `source` is neither, or an entry of a COCO file lacks something, a mask above all.
    ImportError
        If a COCO file is to be read without pycocotools.

    Examples
    --------
    >>> read_masks("pictures.txt")
    Traceback (most recent call last):
    ValueError: 'pictures.txt': expected a COCO file (.json), or a folder with SegmentationClass in it
    """
    source = Path(source)
    if source.suffix == ".json" and source.is_file():
        return _read_coco(source, Path(pictures or source.parent))
    if (source / "SegmentationClass").is_dir():
        return _read_voc(source)
    raise ValueError(f"{str(source)!r}: expected a COCO file (.json), or a folder with SegmentationClass in it")


def _read_coco(source: Path, pictures: Path) -> Iterator[tuple[Path, dict[str, np.ndarray]]]:
    content = json.loads(read_text(source))
    lists = {name for name in content if isinstance(content[name], list)} if isinstance(content, dict) else set()
    if missing := {"images", "annotations", "categories"} - lists:
        raise ValueError(f"{source} has no {sorted(missing)}: expected a COCO file of instances")
    kinds = {"images": ("id", "file_name", "height", "width"), "annotations": ("image_id", "category_id")}
    for kind, needed in {**kinds, "categories": ("id", "name")}.items():
        for entry in content[kind]:
            if missing := set(needed) - set(entry if isinstance(entry, dict) else ()):
                raise ValueError(f"{source}: {entry!r}, one of its {kind}, has no {sorted(missing)}")
    # Numbers are written as text by some tools, in some places.
    words = {str(category["id"]): str(category["name"]) for category in content["categories"]}
    annotations = defaultdict(list)
    for annotation in content["annotations"]:
        if str(annotation["category_id"]) not in words:
            raise ValueError(
                f"{source}: annotation {annotation.get('id')} is of category {annotation['category_id']!r}: expected "
                f"one of its categories, {', '.join(words)}; list it there"
            )
        annotations[str(annotation["image_id"])].append(annotation)
    for image in sorted(content["images"], key=lambda image: str(image["file_name"])):
        path, height, width = _coco_picture(source, pictures, image)
        if not path.resolve().is_relative_to(pictures.resolve()):
            raise ValueError(f"{source}: {str(path)!r} lies outside {pictures}, and is not read")
        masks: dict[str, np.ndarray] = {}
        for annotation in annotations[str(image["id"])]:
            mask = _coco_mask(source, annotation, height, width)
            word = words[str(annotation["category_id"])]
            masks[word] = masks[word] | mask if word in masks else mask
        yield path, masks


def _coco_picture(source: Path, pictures: Path, image: dict[str, Any]) -> tuple[Path, int, int]:
    """Path, height and width of one of a COCO file's images."""
    try:
        path, height, width = pictures / image["file_name"], int(image["height"]), int(image["width"])
        if path == pictures or not 0 < height * width <= MOST_PIXELS:
            raise ValueError(f"a picture {path} of {height} x {width} pixels")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source} is no COCO file of instances that can be read ({error!r})") from error
    return path, height, width


def _coco_mask(source: Path, annotation: dict[str, Any], height: int, width: int) -> np.ndarray:
    """(y, x) bool of polygons, of run lengths as numbers, or of compressed run lengths."""
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise ImportError(f"{source} is a COCO file, which needs: pip install 'selattn_lib[coco]'") from error
    if not (segmentation := annotation.get("segmentation")):
        advice, box = "leave it out", annotation.get("bbox")
        if isinstance(box, list) and len(box) == 4:
            left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
            corners = [[left, top, right, top, right, bottom, left, bottom]]
            advice += f', or count its whole box: "segmentation": {corners}'
        raise ValueError(
            f"{source}: annotation {annotation.get('id')} has no segmentation, and so no mask: expected polygons or "
            f"run lengths; {advice}"
        )
    try:
        if isinstance(segmentation, dict):
            if list(segmentation["size"]) != [height, width]:
                raise ValueError(f"run lengths of size {segmentation['size']} for a picture of {[height, width]}")
            compressed = isinstance(counts := segmentation["counts"], str | bytes)
            if not compressed and (min(counts) < 0 or sum(counts) != height * width):
                raise ValueError(f"run lengths of {sum(counts)} pixels for a picture of {height * width}")
            lengths = segmentation if compressed else coco.frPyObjects(segmentation, height, width)
        else:
            flat = all(isinstance(number, int | float) for number in segmentation)  # one polygon, without a list
            polygons = [segmentation] if flat else segmentation
            reach = max(np.abs(np.asarray(polygon, float)).max() for polygon in polygons)
            if not reach <= 10 * max(height, width):
                raise ValueError(f"a polygon that reaches to {reach}")
            lengths = coco.merge(coco.frPyObjects(polygons, height, width))
        return coco.decode(lengths).astype(bool)
    except Exception as error:  # of many types, from compiled code
        raise ValueError(
            f"{source}: the segmentation of annotation {annotation.get('id')} cannot be read ({error}): expected "
            "polygons, or run lengths, compressed or as numbers"
        ) from error


def _read_voc(folder: Path) -> Iterator[tuple[Path, dict[str, np.ndarray]]]:
    labels = read_lines(folder / "labels.txt") if (folder / "labels.txt").exists() else VOC_LABELS
    if len(labels) > 254:
        raise ValueError(f"{folder / 'labels.txt'} has {len(labels)} labels: expected at most 254, as pixels are bytes")
    for path in sorted((folder / "SegmentationClass").glob("*.png")):
        classes = np.asarray(_opened(path))
        if classes.ndim != 2:
            raise ValueError(f"{path}: expected one class number a pixel, not colours")
        numbers = [int(number) for number in np.unique(classes) if 1 <= number <= len(labels)]
        masks = {labels[number - 1]: classes == number for number in numbers}
        yield folder / "JPEGImages" / f"{path.stem}.jpg", masks


def _opened(path: Path) -> Image.Image:
    """A picture's file, opened; ValueError if it claims to be larger than any picture is."""
    try:
        return Image.open(path)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is not read: {error}. Make it smaller") from error


def open_picture(path: Path, shape: tuple[int, ...]) -> Image.Image:
    """A picture in RGB, turned as its EXIF data say, since that is how annotation tools show it.

    Raises ValueError if it has not the `shape` (y, x) of its masks.
    """
    with _opened(path) as stored:
        picture = ImageOps.exif_transpose(stored).convert("RGB")
    if picture.size != shape[::-1]:
        raise ValueError(
            f"{path} has {picture.width} x {picture.height} pixels as it is shown, its masks {shape[1]} x {shape[0]}: "
            "expected the same; save the picture as it was when the masks were drawn, without EXIF orientation"
        )
    return picture


def centred_square(picture: Image.Image) -> Image.Image:
    """The largest centred square of a picture."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))
