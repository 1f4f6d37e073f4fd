"""The segmenter: a small U-Net that outlines the objects in a picture and names them, trained on composed scenes seen
through the autoencoder. It gives the true masks, and it says what `emoji-sd` draws; it never learns from that.
"""

from collections.abc import Sequence
from importlib.resources import files

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel

from .art import glyphs

CELL = 4  # pixels; an outline has a value at every pixel, a name at every cell


CLASSES = [(c, w) for c, words in glyphs().items() for w in words]  # an ambiguous word is two things to see


SHARE = 0.15  # of the area of all objects in a picture, from which an object counts as seen there


CONCEPTS = list(dict.fromkeys(concept for concept, _ in CLASSES))


def as_tensor(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 (image, y, x, rgb) -> float (image, rgb, y, x) in [-1, 1]."""
    pixels = torch.tensor(images) if isinstance(images, np.ndarray) else images
    return pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def new_segmenter() -> UNet2DModel:
    """A U-Net on cells of `CELL` x `CELL` pixels; it has no use for a timestep, which is always 0."""
    return UNet2DModel(
        sample_size=32,
        in_channels=3 * CELL**2,
        out_channels=CELL**2 + len(CLASSES),
        block_out_channels=(64, 96, 144),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        norm_num_groups=8,
        add_attention=False,
    )


def logits(model: UNet2DModel, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (image, rgb, y, x) in [-1, 1] -> (image, y, x), whether a pixel is of an object; and (image, class,
    y / CELL, x / CELL), which object a cell is of, if of any."""
    out = model(F.pixel_unshuffle(x, CELL), 0).sample
    return F.pixel_shuffle(out[:, : CELL**2], CELL)[:, 0], out[:, CELL**2 :]


def load_weights(device: str = "cpu") -> UNet2DModel:
    """The shipped segmenter."""
    folder = str(files("selattn_lib.emoji") / "weights" / "segmenter")
    return UNet2DModel.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True).to(device).eval()


class Prediction:
    """What a segmenter sees in pictures (image, y, x, rgb) uint8.

    `outline` (image, y, x): the probability that a pixel is of an object. `names` (image, class, y / CELL, x / CELL):
    the probability of each of `CLASSES`, should a cell be of an object.
    """

    @torch.no_grad()
    def __init__(self, model: UNet2DModel, pictures: np.ndarray) -> None:
        parts = []
        for picture in pictures:  # one by one: what is seen in a picture never depends on its neighbours
            outline, names = logits(model, as_tensor(picture[None]).to(model.device))
            parts.append((outline[0].sigmoid().cpu(), names[0].softmax(0).cpu()))
        self.outline, self.names = (torch.stack(part) for part in zip(*parts, strict=True))

    def masks(self, concepts: Sequence[Sequence[str]]) -> np.ndarray:
        """(image, y, x) where an object is that is likelier of the `concepts` asked for in a picture than of others."""
        numbers = torch.tensor([CONCEPTS.index(concept) for concept, _ in CLASSES])
        of_concept = torch.zeros(len(self.names), len(CONCEPTS), *self.names.shape[2:]).index_add(
            1, numbers, self.names
        )
        likeliest = F.interpolate(of_concept, scale_factor=CELL, mode="bilinear").argmax(1).numpy()
        named = [
            np.isin(concept, [CONCEPTS.index(name) for name in names])
            for concept, names in zip(likeliest, concepts, strict=True)
        ]
        return np.stack(named) & (self.outline > 0.5).numpy()

    def object_masks(self, keys: Sequence[tuple[str, str]]) -> np.ndarray:
        """(image, y, x) where an object is that is likelier the one asked for in a picture, (concept, word), than any
        other."""
        likeliest = F.interpolate(self.names, scale_factor=CELL, mode="bilinear").argmax(1).numpy()
        numbers = np.array([CLASSES.index(key) for key in keys])[:, None, None]
        return (likeliest == numbers) & (self.outline > 0.5).numpy()

    def shares(self, concepts: Sequence[Sequence[str]]) -> np.ndarray:
        """(image) in [0, 1], by area: how much of all that is drawn in a picture is of the `concepts` asked for."""
        of_concept = [[concept in names for concept, _ in CLASSES] for names in concepts]
        areas = self.areas()
        return np.array([row[own].sum() / max(row.sum(), 1e-9) for row, own in zip(areas, of_concept, strict=True)])

    def seen(self) -> np.ndarray:
        """(image, class) bool, which objects are in a picture: they fill `SHARE` of all that is drawn there."""
        areas = self.areas()
        return areas >= SHARE * areas.sum(1, keepdims=True)

    def areas(self) -> np.ndarray:
        """(image, class) pixels that show each object, weighted by the probabilities."""
        cells = F.avg_pool2d(self.outline[:, None], CELL) * CELL**2
        return (self.names * cells).sum((2, 3)).numpy()
