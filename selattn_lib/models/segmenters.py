"""Ground truth: the mask of what a phrase names in an image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from .pipelines import explaining_load_errors, without_progress_bars

SEGMENTERS = ("emoji-sd", "grounded-sam", "sam3")


WEIGHTS: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True}


class Segmenter(Protocol):
    """Images and one phrase each -> one boolean mask (y, x) each, of the image's size; all False if not found."""

    def __call__(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> list[np.ndarray]: ...


@without_progress_bars()
def load_segmenter(name: str = "emoji-sd", *, device: str = "cpu") -> Segmenter:
    """ "emoji-sd": the shipped segmenter of the embedded world; "grounded-sam": Grounding DINO and SAM from the hub;
    "sam3": SAM 3 from the hub, by text; or a local folder, either of a SAM 3, or with the folders `detector` (a
    Grounding DINO) and `segmenter` (a SAM) in it.

    Raises ValueError for any other name, OSError if a model cannot be loaded, with what to do.
    """
    if check_segmenter(name) in SEGMENTERS:
        return {"emoji-sd": EmojiSegmenter, "grounded-sam": GroundedSAM, "sam3": Sam3}[name](device)
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


class EmojiSegmenter:
    """A small U-Net that outlines and names the objects of the embedded world, trained on composed scenes.

    The mask of a word is where there is an object, likelier of the word's concept than of another; a word of several
    concepts takes them all.
    """

    def __init__(self, device: str = "cpu") -> None:
        from ..emoji.segmenter import load_weights

        self.model = load_weights(device)

    def __call__(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> list[np.ndarray]:
        from ..emoji.art import glyphs
        from ..emoji.segmenter import Prediction

        wanted = []
        for phrase in phrases:
            wanted.append([c for c, words in glyphs().items() if phrase in words or phrase == c])
            if not wanted[-1]:
                known = sorted({word for words in glyphs().values() for word in words})
                raise ValueError(f"the embedded segmenter knows no {phrase!r}: expected one of {', '.join(known)}")
        pictures = np.stack([np.asarray(image.convert("RGB")) for image in images])
        return list(Prediction(self.model, pictures).masks(wanted))


class Detection(NamedTuple):
    """What was found of a phrase in an image.

    `mask` (y, x) bool; `box` (4) left, top, right, bottom in pixels, and `score` in [0, 1], of the detection that the
    mask is of; `detections`, the number that scored above the threshold. The outcomes are: one detection; several,
    of which the highest score counts; a detection whose mask is empty; none, and then the mask is empty, and box and
    score are not a number.
    """

    mask: np.ndarray
    box: np.ndarray
    score: float
    detections: int


class Detector:
    """A segmenter that detects first; a subclass says how, in `detect`."""

    def detect(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> list[Detection]:
        """The `Detection` of each phrase in its image, all images in one batch."""
        raise NotImplementedError

    def __call__(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> list[np.ndarray]:
        return [found.mask for found in self.detect(images, phrases)]


def nothing_in(image: Image.Image) -> Detection:
    return Detection(np.zeros((image.height, image.width), bool), np.full(4, np.nan, np.float32), np.nan, 0)


class GroundedSAM(Detector):
    """Grounded-SAM as in the paper: Grounding DINO finds boxes for the phrase, SAM draws the mask in the best.

    Boxes count if they score above `box_threshold`. `detector`, `segmenter`: hub ids or local folders.
    Raises OSError if one of them cannot be loaded, with what to do.
    """

    DETECTOR, SEGMENTER = "IDEA-Research/grounding-dino-base", "facebook/sam-vit-huge"

    def __init__(self, device: str = "cpu", *, detector: str = DETECTOR, segmenter: str = SEGMENTER,
                 box_threshold: float = 0.3) -> None:  # fmt: skip
        from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor, SamModel, SamProcessor

        self.box_threshold, self.device = box_threshold, device
        with explaining_load_errors("grounded-sam", detector):
            self.detector = GroundingDinoForObjectDetection.from_pretrained(detector, **WEIGHTS).to(device).eval()
            self.detector_processor = GroundingDinoProcessor.from_pretrained(detector, trust_remote_code=False)
        with explaining_load_errors("grounded-sam", segmenter):
            self.segmenter = SamModel.from_pretrained(segmenter, **WEIGHTS).to(device).eval()
            self.segmenter_processor = SamProcessor.from_pretrained(segmenter, trust_remote_code=False)

    @torch.no_grad()
    def detect(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> list[Detection]:
        images = [image.convert("RGB") for image in images]
        found = [nothing_in(image) for image in images]
        boxes = self._boxes(images, phrases)
        seen = [i for i, each in enumerate(boxes) if len(each["scores"])]
        best = [boxes[i]["boxes"][boxes[i]["scores"].argmax()].tolist() for i in seen]
        for i, box, mask in zip(seen, best, self._masks([images[i] for i in seen], best), strict=True):
            scores = boxes[i]["scores"]
            found[i] = Detection(mask, np.array(box, np.float32), float(scores.max()), len(scores))
        return found

    def _boxes(self, images: list[Image.Image], phrases: Sequence[str]) -> list[dict[str, torch.Tensor]]:
        """`boxes` (detection, 4) in pixels and `scores` (detection) of each image."""
        text = [f"{phrase.lower()}." for phrase in phrases]
        inputs = self.detector_processor(images=images, text=text, padding=True, return_tensors="pt").to(self.device)
        return self.detector_processor.post_process_grounded_object_detection(
            self.detector(**inputs), inputs.input_ids, threshold=self.box_threshold,
            target_sizes=[(image.height, image.width) for image in images],
        )  # fmt: skip

    def _masks(self, images: list[Image.Image], boxes: list[list[float]]) -> list[np.ndarray]:
        if not images:
            return []
        inputs = self.segmenter_processor(images, input_boxes=[[box] for box in boxes], return_tensors="pt")
        out = self.segmenter(**inputs.to(self.device, torch.float32), multimask_output=False)
        masks = self.segmenter_processor.post_process_masks(
            out.pred_masks.cpu(), inputs["original_sizes"].cpu(), inputs["reshaped_input_sizes"].cpu()
        )
        return [mask[0, 0].numpy() for mask in masks]


class Sam3(Detector):
    """SAM 3, which finds and segments what a phrase names by itself; of several instances the highest score counts.

    Instances count if they score above `threshold`. `source`: a hub id (its terms must be accepted there first) or a
    local folder. Raises OSError if it cannot be loaded, with what to do.
    """

    SOURCE = "facebook/sam3"

    def __init__(self, device: str = "cpu", *, source: str = SOURCE, threshold: float = 0.3) -> None:
        from transformers import CLIPTokenizer, Sam3Model

        self.threshold, self.device = threshold, device
        with explaining_load_errors("sam3", source):
            self.model = Sam3Model.from_pretrained(source, **WEIGHTS).to(device).eval()
            self.tokenizer = CLIPTokenizer.from_pretrained(source)

    @torch.no_grad()
    def detect(self, images: Sequence[Image.Image], phrases: Sequence[str]) -> list[Detection]:
        side = self.model.config.vision_config.image_size
        square = [np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)) for image in images]
        pixels = torch.from_numpy(np.stack(square)).permute(0, 3, 1, 2).float().div(127.5).sub(1)
        length = self.model.config.text_config.max_position_embeddings
        text = self.tokenizer(
            list(phrases), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        out = self.model(pixel_values=pixels.to(self.device), **text.to(self.device))
        scores = (out.pred_logits.sigmoid() * out.presence_logits.sigmoid()).cpu()  # (image, instance)
        found = []
        for i, image in enumerate(images):
            best, detections = scores[i].argmax(), int((scores[i] > self.threshold).sum())
            if not detections:
                found.append(nothing_in(image))
                continue
            size = (image.height, image.width)
            mask = F.interpolate(out.pred_masks[i, best][None, None].sigmoid().cpu(), size, mode="bilinear")[0, 0] > 0.5
            box = out.pred_boxes[i, best].cpu().numpy() * [image.width, image.height, image.width, image.height]
            found.append(Detection(mask.numpy(), box.astype(np.float32), float(scores[i, best]), detections))
        return found
