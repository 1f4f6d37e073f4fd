"""Ground truth: the mask of what a phrase names in an image."""

from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from .models import quietly


class Segmenter(Protocol):
    """Images and one phrase each -> one boolean mask (y, x) each, of the image's size; all False if not found."""

    def __call__(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> list[np.ndarray]: ...


@quietly()
def load_segmenter(name: str = "emoji-sd", *, device: str = "cpu") -> Segmenter:
    """ "emoji-sd": the shipped segmenter of the embedded world; "grounded-sam": Grounding DINO and SAM from the hub.

    Raises ValueError for any other name.
    """
    if name == "emoji-sd":
        return EmojiSegmenter(device)
    if name == "grounded-sam":
        return GroundedSAM(device)
    raise ValueError(f"no segmenter {name!r}: expected emoji-sd or grounded-sam")


class EmojiSegmenter:
    """A small U-Net over the concepts of the embedded world, trained on composed scenes with their exact masks.

    The mask of a word is where its concept is the likeliest class; a word of several concepts takes them all.
    """

    def __init__(self, device: str = "cpu") -> None:
        from diffusers import UNet2DModel

        folder = str(files("selattn_lib.emoji") / "weights" / "segmenter")
        self.model = UNet2DModel.from_pretrained(folder, torch_dtype=torch.float32).to(device).eval()
        self.device = device

    def classes(self, images: Sequence[Image.Image]) -> np.ndarray:
        """(image, y, x) class number at each pixel, an index into `selattn_lib.emoji.segmenter.CLASSES`."""
        from .emoji.segmenter import logits
        from .emoji.training import as_tensor

        found = []
        with torch.no_grad():
            for image in images:  # one by one: the mask of an image never depends on its neighbours
                x = as_tensor(np.asarray(image.convert("RGB"))[None]).to(self.device)
                found.append(logits(self.model, x)[0].argmax(0).cpu().numpy())
        return np.stack(found)

    def __call__(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> list[np.ndarray]:
        from .emoji.art import glyphs
        from .emoji.segmenter import CLASSES

        known = sorted({word for words in glyphs().values() for word in words})
        masks = []
        for seen, phrase in zip(self.classes(images), phrases, strict=True):
            wanted = [CLASSES.index(c) for c, words in glyphs().items() if phrase in words or phrase == c]
            if not wanted:
                raise ValueError(f"the embedded segmenter knows no {phrase!r}: expected one of {', '.join(known)}")
            masks.append(np.isin(seen, wanted))
        return masks


class GroundedSAM:
    """Grounded-SAM as in the paper: Grounding DINO finds a box for the phrase, SAM draws the mask in it.

    The box of the highest score counts; no box above `box_threshold` gives an empty mask.
    """

    DETECTOR, SEGMENTER = "IDEA-Research/grounding-dino-base", "facebook/sam-vit-huge"

    def __init__(self, device: str = "cpu", *, detector: str = DETECTOR, segmenter: str = SEGMENTER,
                 box_threshold: float = 0.3) -> None:  # fmt: skip
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor, SamModel, SamProcessor

        self.box_threshold, self.device = box_threshold, device
        weights: Any = {"dtype": torch.float32, "use_safetensors": True}
        self.detector = AutoModelForZeroShotObjectDetection.from_pretrained(detector, **weights).to(device).eval()
        self.detector_processor = AutoProcessor.from_pretrained(detector)
        self.segmenter = SamModel.from_pretrained(segmenter, **weights).to(device).eval()
        self.segmenter_processor = SamProcessor.from_pretrained(segmenter)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> list[np.ndarray]:
        masks = []
        for image, phrase in zip([image.convert("RGB") for image in images], phrases, strict=True):
            box = self._box(image, phrase)
            masks.append(np.zeros((image.height, image.width), bool) if box is None else self._mask(image, box))
        return masks

    def _box(self, image: Image.Image, phrase: str) -> list[float] | None:
        """(left, top, right, bottom) in pixels of the likeliest detection, or None."""
        inputs = self.detector_processor(images=image, text=f"{phrase.lower()}.", return_tensors="pt").to(self.device)
        found = self.detector_processor.post_process_grounded_object_detection(
            self.detector(**inputs), inputs.input_ids, threshold=self.box_threshold,
            target_sizes=[(image.height, image.width)],
        )[0]  # fmt: skip
        return found["boxes"][found["scores"].argmax()].tolist() if len(found["boxes"]) else None

    def _mask(self, image: Image.Image, box: list[float]) -> np.ndarray:
        inputs = self.segmenter_processor(image, input_boxes=[[box]], return_tensors="pt")
        out = self.segmenter(**inputs.to(self.device, torch.float32), multimask_output=False)
        masks = self.segmenter_processor.post_process_masks(
            out.pred_masks.cpu(), inputs["original_sizes"].cpu(), inputs["reshaped_input_sizes"].cpu()
        )
        return masks[0][0, 0].numpy()
