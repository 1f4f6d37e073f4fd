"""Ground truth: the mask of what a phrase names in an image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image

from ..emoji.art import glyphs
from ..emoji.segmenter import CLASSES, SHARE, Prediction, load_weights
from .pipelines import EMBEDDED, check_shards, explaining_load_errors, without_progress_bars

SEGMENTERS = (EMBEDDED, "grounded-sam", "sam3")


MEANINGS = {f"{word} ({concept})": number for number, (concept, word) in enumerate(CLASSES)}  # of the embedded world


LOADING: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}


class Detection(NamedTuple):
    """What a segmenter finds of a phrase in an image.

    Attributes
    ----------
    mask : array (y, x) bool
        Of the image's size; all False if nothing is found.
    box : array (4) float32
        Left, top, right and bottom of what the mask is of, in pixels; not a number if nothing is found.
    score : float
        In [0, 1]. Of a segmenter that detects first, the score of the box; not a number if nothing is found. Of the
        embedded one, the share of the phrase's concepts in all that it takes for an object, found or not.
    detections : int
        How many were detected above the threshold, of which the highest score counts; 0 if nothing is found. A
        detection's mask may still be empty.
    """

    mask: np.ndarray
    box: np.ndarray
    score: float
    detections: int


class Segmenter(Protocol):
    """Whatever finds phrases in images."""

    def detect(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> list[Detection]:
        """The `Detection` of each image's phrase, all images in one batch."""
        ...


@without_progress_bars()
def load_segmenter(name: str = EMBEDDED, *, device: str = "cpu") -> Segmenter:
    """Load a segmenter.

    Parameters
    ----------
    name : str
        "emoji-sd", the shipped segmenter of the embedded world; "grounded-sam", Grounding DINO and SAM from the hub;
        "sam3", SAM 3 from the hub, by text; or a local folder, either of a SAM 3, or with the folders ``detector`` (a
        Grounding DINO) and ``segmenter`` (a SAM) in it.
    device : str
        Where it computes, such as "cpu" or "cuda".

    Returns
    -------
    Segmenter
        Its ``detect(images, phrases)`` gives a `Detection` of each image's phrase.

    Raises
    ------
    ValueError
        On any other name, naming all segmenters.
    OSError
        If a model cannot be loaded, with what to do.

    Examples
    --------
    >>> segmenter = load_segmenter("emoji-sd")
    >>> [detection] = segmenter.detect([Image.new("RGB", (128, 128))], ["bear"])
    >>> detection.mask.shape, detection.detections
    ((128, 128), 0)
    """
    if check_segmenter(name) in SEGMENTERS:
        return {EMBEDDED: EmojiSegmenter, "grounded-sam": GroundedSAM, "sam3": Sam3}[name](device)
    if (Path(name) / "detector").is_dir():
        return GroundedSAM(device, detector=f"{name}/detector", segmenter=f"{name}/segmenter")
    return Sam3(device, source=name)


def check_segmenter(name: str) -> str:
    """`name` itself, or the full path of the folder; ValueError naming all segmenters if there is none such."""
    if name in SEGMENTERS:
        return name
    if not Path(name).is_dir():
        raise ValueError(f"no segmenter {name!r}: expected one of {', '.join(SEGMENTERS)}, or a local folder")
    return str(Path(name).resolve())


def nothing_in(image: Image.Image) -> Detection:
    """The detection of nothing."""
    return Detection(np.zeros((image.height, image.width), bool), np.full(4, np.nan, np.float32), np.nan, 0)


def bounding_box(mask: np.ndarray) -> np.ndarray:
    """(4) left, top, right, bottom of a mask (y, x): the edges of its outermost pixels; not a number if it is empty."""
    if not mask.any():
        return np.full(4, np.nan, np.float32)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


class EmojiSegmenter:
    """A small U-Net that outlines and names the objects of the embedded world, trained on composed scenes.

    The mask of a word is where there is an object, likelier of the word's concept than of another; a word of several
    concepts takes them all. That of one meaning of a word, "mouse (Animals)", is where there is an object likelier
    this one than any other; it is empty if it fills less than `SHARE` of all objects.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.model = load_weights(device)

    def detect(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> list[Detection]:
        """The `Detection` of each phrase in its image; ValueError on a phrase that is no word, meaning or concept."""
        sought = [looked_for(phrase) for phrase in phrases]
        return [self._detect(image, what) for image, what in zip(images, sought, strict=True)]

    def _detect(self, image: Image.Image, what: str | list[str]) -> Detection:
        prediction = Prediction(self.model, np.asarray(image.convert("RGB"))[None])
        if isinstance(what, str):
            number = MEANINGS[what]
            [areas], [mask] = prediction.areas(), prediction.object_masks([CLASSES[number]])
            score = areas[number] / max(areas.sum(), 1e-9)
            mask &= score >= SHARE
        else:
            [mask], [score] = prediction.masks([what]), prediction.shares([what])
        return Detection(mask, bounding_box(mask), float(score), int(mask.any()))


def looked_for(phrase: str) -> str | list[str]:
    """What the embedded segmenter looks for: one meaning of a word, "mouse (Animals)", or the concepts that have this
    word, or this name; ValueError if there is none."""
    if phrase in MEANINGS:
        return phrase
    concepts = [concept for concept, words in glyphs().items() if phrase in words or phrase == concept]
    if not concepts:
        known = sorted({word for words in glyphs().values() for word in words})
        raise ValueError(f"the embedded segmenter knows no {phrase!r}: expected one of {', '.join(known)}")
    return concepts


class GroundedSAM:
    """Grounded-SAM as in the paper: Grounding DINO finds boxes for the phrase, SAM draws the mask in the best.

    Boxes count if they score above `box_threshold`. `detector`, `segmenter`: hub ids or local folders.
    Raises OSError if one of them cannot be loaded, with what to do.
    """

    DETECTOR, SEGMENTER = "IDEA-Research/grounding-dino-base", "facebook/sam-vit-huge"

    def __init__(self, device: str = "cpu", *, detector: str = DETECTOR, segmenter: str = SEGMENTER,
                 box_threshold: float = 0.3) -> None:  # fmt: skip
        self.box_threshold, self.device = box_threshold, device
        with explaining_load_errors("grounded-sam", detector):
            check_shards(detector)
            model = transformers.GroundingDinoForObjectDetection.from_pretrained(detector, **LOADING)
            self.detector = model.to(device).eval()
            processor = transformers.GroundingDinoProcessor
            self.detector_processor = processor.from_pretrained(detector, trust_remote_code=False)
        with explaining_load_errors("grounded-sam", segmenter):
            check_shards(segmenter)
            self.segmenter = transformers.SamModel.from_pretrained(segmenter, **LOADING).to(device).eval()
            self.segmenter_processor = transformers.SamProcessor.from_pretrained(segmenter, trust_remote_code=False)

    @torch.no_grad()
    def detect(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> list[Detection]:
        """The `Detection` of each phrase in its image."""
        images = [image.convert("RGB") for image in images]
        detections = [nothing_in(image) for image in images]
        boxes = self._boxes(images, phrases)
        numbers = [i for i, of_image in enumerate(boxes) if len(of_image["scores"])]
        best = [boxes[i]["boxes"][boxes[i]["scores"].argmax()].tolist() for i in numbers]
        for i, box, mask in zip(numbers, best, self._masks([images[i] for i in numbers], best), strict=True):
            scores = boxes[i]["scores"]
            detections[i] = Detection(mask, np.array(box, np.float32), float(scores.max()), len(scores))
        return detections

    def _boxes(self, images: list[Image.Image], phrases: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """`boxes` (detection, 4) in pixels and `scores` (detection) of each image."""
        text = [f"{phrase.lower()}." for phrase in phrases]
        inputs = self.detector_processor(images=images, text=text, padding=True, return_tensors="pt").to(self.device)
        sizes = [(image.height, image.width) for image in images]
        return self.detector_processor.post_process_grounded_object_detection(
            self.detector(**inputs), inputs.input_ids, threshold=self.box_threshold, target_sizes=sizes
        )

    def _masks(self, images: list[Image.Image], boxes: list[list[float]]) -> list[np.ndarray]:
        """(y, x) bool, what SAM draws in one box of each image."""
        if not images:
            return []
        inputs = self.segmenter_processor(images, input_boxes=[[box] for box in boxes], return_tensors="pt")
        out = self.segmenter(**inputs.to(self.device, torch.float32), multimask_output=False)
        sizes = (inputs[name].cpu() for name in ("original_sizes", "reshaped_input_sizes"))
        masks = self.segmenter_processor.post_process_masks(out.pred_masks.cpu(), *sizes)
        return [mask[0, 0].numpy() for mask in masks]


class Sam3:
    """SAM 3, which finds and segments what a phrase names by itself; of several instances the highest score counts.

    Instances count if they score above `threshold`. `source`: a hub id (its terms must be accepted there first) or a
    local folder. Raises OSError if it cannot be loaded, with what to do.
    """

    SOURCE = "facebook/sam3"

    def __init__(self, device: str = "cpu", *, source: str = SOURCE, threshold: float = 0.3) -> None:
        self.threshold, self.device = threshold, device
        with explaining_load_errors("sam3", source):
            check_shards(source)
            self.model = transformers.Sam3Model.from_pretrained(source, **LOADING).to(device).eval()
            self.tokenizer = transformers.CLIPTokenizer.from_pretrained(source)

    @torch.no_grad()
    def detect(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> list[Detection]:
        """The `Detection` of each phrase in its image."""
        side = self.model.config.vision_config.image_size
        square = [np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)) for image in images]
        pixels = torch.from_numpy(np.stack(square)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        length = self.model.config.text_config.max_position_embeddings
        settings = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}
        text = self.tokenizer(list(phrases), **settings)
        out = self.model(pixel_values=pixels.to(self.device), **text.to(self.device))
        scores = (out.pred_logits.sigmoid() * out.presence_logits.sigmoid()).cpu()  # (image, instance)
        detections = []
        for i, image in enumerate(images):
            best, number = scores[i].argmax(), int((scores[i] > self.threshold).sum())
            if not number:
                detections.append(nothing_in(image))
                continue
            size = (image.height, image.width)
            mask = F.interpolate(out.pred_masks[i, best][None, None].sigmoid().cpu(), size, mode="bilinear")[0, 0] > 0.5
            box = out.pred_boxes[i, best].cpu().numpy() * [image.width, image.height, image.width, image.height]
            detections.append(Detection(mask.numpy(), box.astype(np.float32), float(scores[i, best]), number))
        return detections
