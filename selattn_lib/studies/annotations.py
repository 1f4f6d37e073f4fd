"""Pictures with masks in the format of COCO or of Pascal VOC."""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..concepts import read_lines

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
        If `source` is neither, or a segmentation is of a kind that such files do not hold.
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
    content = json.loads(source.read_text(encoding="utf-8"))
    if missing := {"images", "annotations", "categories"} - set(content if isinstance(content, dict) else ()):
        raise ValueError(f"{source} has no {sorted(missing)}: expected a COCO file of instances")
    annotations = defaultdict(list)
    try:
        words = {category["id"]: str(category["name"]) for category in content["categories"]}
        for annotation in content["annotations"]:
            words[annotation["category_id"]], annotation["segmentation"]  # both are there
            annotations[annotation["image_id"]].append(annotation)
        images = [(pictures / i["file_name"], annotations[i["id"]], i["height"], i["width"]) for i in content["images"]]
        for path, _, height, width in images:
            if path == pictures or height * width > MOST_PIXELS:
                raise ValueError(f"a picture {path} of {height} x {width} pixels")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source} is no COCO file of instances that can be read ({error!r})") from error
    for path, own, height, width in sorted(images, key=lambda image: image[0]):
        if not path.resolve().is_relative_to(pictures.resolve()):
            raise ValueError(f"{source}: {str(path)!r} lies outside {pictures}, and is not read")
        masks: dict[str, np.ndarray] = {}
        for annotation in own:
            mask = _coco_mask(source, annotation, height, width)
            word = words[annotation["category_id"]]
            masks[word] = masks[word] | mask if word in masks else mask
        yield path, masks


def _coco_mask(source: Path, annotation: dict[str, Any], height: int, width: int) -> np.ndarray:
    """(y, x) bool of polygons, of run lengths as numbers, or of compressed run lengths."""
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise ImportError(f"{source} is a COCO file, which needs: pip install 'selattn_lib[coco]'") from error
    segmentation = annotation["segmentation"]
    try:
        if isinstance(segmentation, dict):
            if list(segmentation["size"]) != [height, width]:
                raise ValueError(f"run lengths of size {segmentation['size']} for a picture of {[height, width]}")
            compressed = isinstance(counts := segmentation["counts"], str | bytes)
            if not compressed and (min(counts) < 0 or sum(counts) != height * width):
                raise ValueError(f"run lengths of {sum(counts)} pixels in all")
            lengths = segmentation if compressed else coco.frPyObjects(segmentation, height, width)
        else:
            reach = max(np.abs(np.asarray(polygon, float)).max() for polygon in segmentation) if segmentation else 0
            if not reach <= 10 * max(height, width):
                raise ValueError(f"a polygon that reaches to {reach}")
            lengths = coco.merge(coco.frPyObjects(segmentation, height, width))
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
        classes = np.asarray(open_picture(path))
        if classes.ndim != 2:
            raise ValueError(f"{path}: expected one class number a pixel, not colours")
        numbers = [int(number) for number in np.unique(classes) if 1 <= number <= len(labels)]
        masks = {labels[number - 1]: classes == number for number in numbers}
        yield folder / "JPEGImages" / f"{path.stem}.jpg", masks


def open_picture(path: Path) -> Image.Image:
    """A picture's file, opened; ValueError if it claims to be larger than any picture is."""
    try:
        return Image.open(path)
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is not read: {error}. Make it smaller") from error


def centred_square(picture: Image.Image) -> Image.Image:
    """The largest centred square of a picture."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    return picture.crop((left, top, left + side, top + side))
