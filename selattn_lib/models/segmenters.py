"""Ground truth: the mask of what a phrase names in an image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image

from ..concepts import did_you_mean
from ..emoji.art import glyphs
from ..emoji.segmenter import CLASSES, SHARE, Prediction, load_weights
from .pipelines import (
    EMBEDDED,
    INDEX_LIMIT,
    WEIGHTS_LIMIT,
    check_shards,
    explaining_load_errors,
    within,
    without_progress_bars,
)

SEGMENTERS = (EMBEDDED, "grounded-sam", "sam3")
INSTANCES = ("all", "best")  # of what a phrase names: which a mask is of

MEANINGS = {f"{word} ({concept})": number for number, (concept, word) in enumerate(CLASSES)}  # of the embedded world


class Detection(NamedTuple):
    """What a segmenter finds of a phrase in an image.

    Attributes
    ----------
    mask : array (y, x) bool
        Of the image's size: all that the phrase names; all False if nothing is found.
    box : array (4) float32
        Left, top, right and bottom of what the mask is of, in pixels; not a number if nothing is found.
    score : float
        In [0, 1]. Of a segmenter that detects first, the highest score of a box; not a number if nothing is found. Of
        the embedded one, the share of the phrase's concepts in all that it takes for an object, found or not.
    detections : int
        How many were detected above the threshold; 0 if nothing is found. Their mask may still be empty.
    boxes : array (detection, 4) float32
        The box of each, the highest score first; none from the embedded segmenter, which does not detect boxes.
    scores : array (detection) float32
        The score of each.
    """

    mask: np.ndarray
    box: np.ndarray
    score: float
    detections: int
    boxes: np.ndarray = np.empty((0, 4), np.float32)
    scores: np.ndarray = np.empty(0, np.float32)


def detection_of(mask: np.ndarray, boxes: np.ndarray, scores: np.ndarray, instances: str) -> Detection:
    """The `Detection` of some boxes (detection, 4), 1 or more with their scores, and a mask of all or of the best."""
    order = np.argsort(-scores, kind="stable")
    boxes, scores = boxes[order].astype(np.float32), scores[order].astype(np.float32)
    meant = boxes[:1] if instances == "best" else boxes
    box = np.concatenate([meant[:, :2].min(axis=0), meant[:, 2:].max(axis=0)])
    return Detection(mask, box, float(scores[0]), len(scores), boxes, scores)


class Segmenter(Protocol):
    """Whatever finds phrases in images."""

    def detect(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> list[Detection]:
        """The `Detection` of each image's phrase, all images in one batch."""
        ...


@without_progress_bars()
def load_segmenter(name: str = EMBEDDED, *, device: str = "cpu", instances: str = "all") -> Segmenter:
    """Load a segmenter.

    Parameters
    ----------
    name : str
        "emoji-sd", the shipped segmenter of the embedded world; "grounded-sam", Grounding DINO and SAM from the hub;
        "sam3", SAM 3 from the hub, by text; or a local folder, either of a SAM 3, or with the folders ``detector`` (a
        Grounding DINO) and ``segmenter`` (a SAM) in it.
    device : str
        Where it computes, such as "cpu" or "cuda".
    instances : str
        "all": a mask is of everything that the phrase names, the semantic segmentation that the paper scores against.
        "best": of the one with the highest score alone, which the embedded segmenter cannot tell from the others.

    Returns
    -------
    Segmenter
        Its ``detect(images, phrases)`` gives a `Detection` of each image's phrase.

    Raises
    ------
    ValueError
        On any other name, naming all segmenters, and on any other `instances`.
    OSError
        If a model cannot be loaded, or the hub does not answer in time, with what to do.

    Examples
    --------
    >>> segmenter = load_segmenter("emoji-sd")
    >>> [detection] = segmenter.detect([Image.new("RGB", (128, 128))], ["bear"])
    >>> detection.mask.shape, detection.detections
    ((128, 128), 0)
    """
    check_instances(instances, check_segmenter(name))
    if name == EMBEDDED:
        return EmojiSegmenter(device)
    if name in SEGMENTERS:
        return {"grounded-sam": GroundedSAM, "sam3": Sam3}[name](device, instances=instances)
    if (Path(name) / "detector").is_dir():
        parts = f"{name}/detector", f"{name}/segmenter"
        return GroundedSAM(device, detector=parts[0], segmenter=parts[1], instances=instances)
    return Sam3(device, source=name, instances=instances)


def check_segmenter(name: str) -> str:
    """`name` itself, or the full path of the folder; ValueError naming all segmenters if there is none such."""
    if name in SEGMENTERS:
        return name
    if not Path(name).is_dir():
        known = f"expected one of {', '.join(SEGMENTERS)}, or a local folder"
        raise ValueError(f"no segmenter {name!r}: {known}{did_you_mean(name, SEGMENTERS)}")
    return str(Path(name).resolve())


def check_instances(instances: str, segmenter: str) -> str:
    """`instances` itself; ValueError if it is not what this segmenter can tell apart."""
    known = INSTANCES[:1] if segmenter == EMBEDDED else INSTANCES
    if instances not in known:
        raise ValueError(f"instances={instances!r} with the segmenter {segmenter}: expected {' or '.join(known)}")
    return instances


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
        expected = f"expected one of {', '.join(known)}{did_you_mean(phrase, known)}"
        raise ValueError(f"the embedded segmenter knows no {phrase!r}: {expected}")
    return concepts


class GroundedSAM:
    """Grounded-SAM: Grounding DINO finds boxes for the phrase, SAM draws what is in them, and the mask is the union.

    Boxes count if they score above `box_threshold`; with `instances` "best", only that of the highest score has a mask.
    `detector`, `segmenter`: hub ids or local folders. Raises OSError if one of them cannot be loaded, with what to do.
    """

    DETECTOR, SEGMENTER = "IDEA-Research/grounding-dino-base", "facebook/sam-vit-huge"

    def __init__(self, device: str = "cpu", *, detector: str = DETECTOR, segmenter: str = SEGMENTER,
                 box_threshold: float = 0.3, instances: str = "all") -> None:  # fmt: skip
        self.box_threshold, self.device, self.instances = box_threshold, device, instances
        with explaining_load_errors("grounded-sam", detector):
            self.detector_processor = load_part(transformers.GroundingDinoProcessor, detector)
            self.detector = load_part(transformers.GroundingDinoForObjectDetection, detector).to(device).eval()
        with explaining_load_errors("grounded-sam", segmenter):
            self.segmenter_processor = load_part(transformers.SamProcessor, segmenter)
            self.segmenter = load_part(transformers.SamModel, segmenter).to(device).eval()

    @torch.no_grad()
    def detect(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> list[Detection]:
        """The `Detection` of each phrase in its image."""
        images = [image.convert("RGB") for image in images]
        return [self._detect(image, **found) for image, found in zip(images, self._boxes(images, phrases), strict=True)]

    def _detect(self, image: Image.Image, boxes: torch.Tensor, scores: torch.Tensor, **_: Any) -> Detection:
        if not len(scores):
            return nothing_in(image)
        meant = boxes[scores.argmax()][None] if self.instances == "best" else boxes
        mask = np.logical_or.reduce(self._masks(image, meant.tolist()))
        return detection_of(mask, boxes.cpu().numpy(), scores.cpu().numpy(), self.instances)

    def _boxes(self, images: list[Image.Image], phrases: Sequence[str]) -> list[dict[str, Any]]:
        """`boxes` (detection, 4) in pixels and `scores` (detection) of each image."""
        text = [f"{phrase.lower()}." for phrase in phrases]
        inputs = self.detector_processor(images=images, text=text, padding=True, return_tensors="pt").to(self.device)
        sizes = [(image.height, image.width) for image in images]
        return self.detector_processor.post_process_grounded_object_detection(
            self.detector(**inputs), inputs.input_ids, threshold=self.box_threshold, target_sizes=sizes
        )

    def _masks(self, image: Image.Image, boxes: list[list[float]]) -> np.ndarray:
        """(box, y, x) bool, what SAM draws in each box, all in one call."""
        inputs = self.segmenter_processor(image, input_boxes=[boxes], return_tensors="pt")
        out = self.segmenter(**inputs.to(self.device, torch.float32), multimask_output=False)
        sizes = (inputs[name].cpu() for name in ("original_sizes", "reshaped_input_sizes"))
        [masks] = self.segmenter_processor.post_process_masks(out.pred_masks.cpu(), *sizes)
        return masks[:, 0].numpy()


class Sam3:
    """SAM 3, which finds and segments what a phrase names by itself; the mask is its semantic one.

    Something is found if an instance scores above `threshold`; with `instances` "best", the mask is of the instance of
    the highest score. `source`: a hub id (its terms must be accepted there first) or a local folder. Raises OSError if
    it cannot be loaded, with what to do.
    """

    SOURCE = "facebook/sam3"

    def __init__(self, device: str = "cpu", *, source: str = SOURCE, threshold: float = 0.3,
                 instances: str = "all") -> None:  # fmt: skip
        self.threshold, self.device, self.instances = threshold, device, instances
        with explaining_load_errors("sam3", source):
            self.tokenizer = load_part(transformers.CLIPTokenizer, source)
            self.model = load_part(transformers.Sam3Model, source).to(device).eval()

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
            found = scores[i] > self.threshold
            if not found.any():
                detections.append(nothing_in(image))
                continue
            drawn = out.pred_masks[i, scores[i].argmax()][None] if self.instances == "best" else out.semantic_seg[i]
            size = (image.height, image.width)
            mask = F.interpolate(drawn[None].sigmoid().cpu(), size, mode="bilinear")[0, 0] > 0.5
            boxes = out.pred_boxes[i].cpu()[found].numpy() * [image.width, image.height, image.width, image.height]
            detections.append(detection_of(mask.numpy(), boxes, scores[i][found].numpy(), self.instances))
        return detections


def load_part(kind: Any, source: str) -> Any:
    """A model of transformers, from safetensors alone, or what prepares its input; from the hub in bounded time."""
    if not issubclass(kind, torch.nn.Module):
        return within(INDEX_LIMIT, kind.from_pretrained, source, trust_remote_code=False)
    check_shards(source)
    return within(WEIGHTS_LIMIT, kind.from_pretrained, source, dtype=torch.float32, use_safetensors=True)
