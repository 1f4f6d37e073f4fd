"""A folder as of Pascal VOC."""

from pathlib import Path

import numpy as np
from PIL import Image

from selattn_lib.emoji.scenes import HELD_OUT, compose


def voc(folder: Path, count: int = 4, labels: str = "bear\ncat\n") -> Path:
    """Composed scenes of bears and cats in VOC's folders."""
    for name in ("JPEGImages", "SegmentationClass"):
        (folder / name).mkdir()
    (folder / "labels.txt").write_text(labels)
    for i in range(count):
        scene = compose(np.random.default_rng([HELD_OUT, i]), [("Animals", ("bear", "cat")[i % 2])], "photo")
        Image.fromarray(scene.image).resize((192, 128)).save(folder / f"JPEGImages/{i}.jpg", quality=95)
        classes = scene.masks[0] * np.uint8(1 + i % 2)
        classes[0] = 255
        Image.fromarray(classes).resize((192, 128), Image.Resampling.NEAREST).save(
            folder / f"SegmentationClass/{i}.png"
        )
    return folder
