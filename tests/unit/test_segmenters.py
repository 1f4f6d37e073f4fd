"""Segmenters: the embedded one, and those of the hub on tiny models of the true classes."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_sam import tiny_grounded_sam, tiny_sam3

from selattn_lib.emoji.scenes import HELD_OUT, Scene, compose
from selattn_lib.emoji.segmenter import CLASSES, Prediction, load_weights
from selattn_lib.evaluation.scores import iou, ious
from selattn_lib.maps.head_maps import HeadMaps
from selattn_lib.models.segmenters import Detection, EmojiSegmenter, GroundedSAM, Sam3, bounding_box, load_segmenter


def scene(number: int, *words: tuple[str, str]) -> Scene:
    return compose(np.random.default_rng([HELD_OUT, 2, number]), list(words), "a caption")


@pytest.fixture(scope="module")
def emoji() -> EmojiSegmenter:
    return EmojiSegmenter()


def test_the_embedded_segmenter_finds_a_held_out_object_and_refuses_unknown_words(emoji: EmojiSegmenter) -> None:
    bear = scene(0, ("Animals", "bear"))
    [detection] = emoji.detect([Image.fromarray(bear.image)], ["bear"])
    mask = detection.mask
    assert mask.dtype == bool
    assert (mask & bear.masks[0]).sum() / (mask | bear.masks[0]).sum() > 0.7
    rows, columns = np.nonzero(mask)
    assert detection.box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert detection.box.dtype == np.float32 and detection.detections == 1
    with pytest.raises(ValueError, match="griffin"):
        emoji.detect([Image.fromarray(bear.image)], ["griffin"])
    with pytest.raises(ValueError, match="nosuch"):
        load_segmenter("nosuch")


def test_the_score_of_the_embedded_segmenter_is_the_share_of_the_concept_in_all_objects(emoji: EmojiSegmenter) -> None:
    bear, both = scene(0, ("Animals", "bear")), scene(1, ("Animals", "mouse"), ("Electronics", "laptop"))
    pictures = [Image.fromarray(s.image) for s in (bear, bear, both, both)]
    found = emoji.detect(pictures, ["bear", "car", "Animals", "mouse"])  # a mouse is a device, too
    areas = Prediction(load_weights(), np.stack([bear.image, both.image])).areas()
    animals, vehicles, devices = (
        areas[:, [concept == name for concept, _ in CLASSES]].sum(1) / areas.sum(1)
        for name in ("Animals", "Vehicles", "Electronics")
    )
    expected = [animals[0], vehicles[0], animals[1], animals[1] + devices[1]]
    np.testing.assert_allclose([detection.score for detection in found], expected, rtol=1e-6)
    assert found[0].score > 0.9 > 0.8 > found[2].score > 0.2 and found[3].score > 0.9
    nothing = found[1]
    assert nothing.detections == 0 and not nothing.mask.any() and np.isnan(nothing.box).all() and nothing.score < 0.1


def test_one_meaning_of_a_word_is_the_object_itself_and_not_its_concept(emoji: EmojiSegmenter) -> None:
    desk = scene(3, ("Animals", "mouse"), ("Electronics", "mouse"), ("Electronics", "laptop"))
    phrases = ["mouse (Animals)", "mouse (Electronics)", "bat (Animals)"]
    animal, device, bat = emoji.detect([Image.fromarray(desk.image)] * 3, phrases)
    assert iou(animal.mask, desk.masks[0]) > 0.7 and iou(device.mask, desk.masks[1]) > 0.7
    assert not bat.mask.any() and bat.detections == 0 and bat.score < 0.15
    [devices] = emoji.detect([Image.fromarray(desk.image)], ["Electronics"])
    assert (devices.mask & desk.masks[2]).sum() > 0.7 * desk.masks[2].sum() > (device.mask & desk.masks[2]).sum()


def test_what_the_embedded_segmenter_finds_does_not_depend_on_the_neighbours(emoji: EmojiSegmenter) -> None:
    pictures = [Image.fromarray(scene(i, ("Animals", "cat"), ("Vehicles", "car")).image) for i in range(5)]
    words = ["cat", "car", "mouse", "tree", "cat"]
    for picture, word, together in zip(pictures, words, emoji.detect(pictures, words), strict=True):
        [alone] = emoji.detect([picture], [word])
        assert np.array_equal(alone.mask, together.mask) and np.array_equal(alone.box, together.box, equal_nan=True)
        assert (alone.score, alone.detections) == (together.score, together.detections)


def test_the_box_of_a_mask_is_its_outermost_pixels() -> None:
    mask = np.zeros((6, 8), bool)
    assert np.isnan(bounding_box(mask)).all()
    mask[2, 3] = mask[4, 7] = True
    assert bounding_box(mask).tolist() == [3, 2, 8, 5]


@pytest.fixture(scope="module")
def grounded_sam(tmp_path_factory: pytest.TempPathFactory) -> GroundedSAM:
    detector, segmenter = tiny_grounded_sam(tmp_path_factory.mktemp("grounded_sam"))
    return GroundedSAM(detector=detector, segmenter=segmenter)


def test_segmenters_come_from_folders_too(tmp_path: Path, picture: Image.Image) -> None:
    tiny_grounded_sam(tmp_path / "one")
    tiny_sam3(tmp_path / "other")
    for folder, kind in (("one", GroundedSAM), ("other", Sam3)):
        loaded = load_segmenter(str(tmp_path / folder))
        assert type(loaded) is kind and loaded.detect([picture], ["bear"])[0].mask.shape == (40, 80)
    with pytest.raises(OSError, match="'sam3' could not be loaded from .*: expected a whole copy of the model"):
        load_segmenter(str(tmp_path))


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 80, 3)).astype(np.uint8))


def test_grounded_sam_draws_a_mask_of_the_pictures_size(grounded_sam: GroundedSAM, picture: Image.Image) -> None:
    grounded_sam.box_threshold = 0.0
    images = [picture, picture.convert("L").rotate(90, expand=True)]
    masks = [detection.mask for detection in grounded_sam.detect(images, ["Bear", "cat"])]
    assert [mask.shape for mask in masks] == [(40, 80), (80, 40)]
    assert all(mask.dtype == bool and 0 < mask.mean() < 1 for mask in masks)


def test_grounded_sam_without_a_detection_gives_an_empty_mask(grounded_sam: GroundedSAM, picture: Image.Image) -> None:
    grounded_sam.box_threshold = 1.0
    [detection] = grounded_sam.detect([picture], ["bear"])
    assert detection.mask.shape == (40, 80) and detection.mask.dtype == bool and not detection.mask.any()


def drawn_in(grounded_sam: GroundedSAM, picture: Image.Image, instances: str) -> tuple[Detection, Any, Any]:
    """A detection at a threshold of 0, with what the detector gave and what the segmenter was given and gave."""
    found, drawn = [], []
    hooks = [
        grounded_sam.detector.register_forward_hook(lambda _, args, out: found.append(out)),
        grounded_sam.segmenter.register_forward_hook(
            lambda _, args, kwargs, out: drawn.append((kwargs["input_boxes"][0], out.pred_masks)), with_kwargs=True
        ),
    ]
    grounded_sam.box_threshold, grounded_sam.instances = 0.0, instances
    [detection] = grounded_sam.detect([picture], ["bear"])
    grounded_sam.instances = "all"
    for hook in hooks:
        hook.remove()
    assert len(drawn) == 1, "one call of SAM an image"
    return detection, found[0], drawn[0]


def test_the_mask_of_grounded_sam_is_the_union_over_all_boxes(grounded_sam: GroundedSAM, picture: Image.Image) -> None:
    detection, found, (boxes, masks) = drawn_in(grounded_sam, picture, "all")
    scores = found.logits[0].sigmoid().amax(dim=-1)
    x, y, width, height = found.pred_boxes[0].T
    corners = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], dim=1)
    torch.testing.assert_close(boxes, corners * torch.tensor([64.0, 32, 64, 32]), atol=1e-3, rtol=0)  # SAM sees 32 x 64
    assert masks.shape == (1, 5, 1, 16, 16), "for each box the single mask, not the first of three guesses"
    sizes = torch.tensor([[40, 80]]), torch.tensor([[32, 64]])
    [each] = grounded_sam.segmenter_processor.post_process_masks(masks, *sizes)
    assert np.array_equal(detection.mask, each[:, 0].any(dim=0).numpy())

    order = scores.argsort(descending=True)
    assert detection.detections == 5 and detection.score == pytest.approx(float(scores.max()))
    np.testing.assert_allclose(detection.scores, scores[order], rtol=1e-6)
    inside = corners * torch.tensor([80.0, 40, 80, 40])
    np.testing.assert_allclose(detection.boxes, inside[order], atol=1e-3)
    around = torch.cat([inside[:, :2].amin(dim=0), inside[:, 2:].amax(dim=0)])
    np.testing.assert_allclose(detection.box, around, atol=1e-3)


def test_grounded_sam_may_take_the_best_box_alone(grounded_sam: GroundedSAM, picture: Image.Image) -> None:
    everything, _, (_, masks) = drawn_in(grounded_sam, picture, "all")
    best, found, (boxes, mask) = drawn_in(grounded_sam, picture, "best")
    number = int(found.logits[0].sigmoid().amax(dim=-1).argmax())
    assert len(boxes) == 1 and torch.equal(mask[0, 0] > 0, masks[0, number] > 0)
    assert not (best.mask & ~everything.mask).any() and (best.mask != everything.mask).any()
    assert best.detections == 5 and np.array_equal(best.boxes, everything.boxes), "all are kept"
    assert np.array_equal(best.box, best.boxes[0]) and best.score == everything.score


@pytest.mark.parametrize("instances, covers_both", [("all", 1.0), ("best", 0.5)])
def test_of_two_bears_a_map_that_covers_both_agrees_with_the_semantic_truth(
    grounded_sam: GroundedSAM, monkeypatch: pytest.MonkeyPatch, instances: str, covers_both: float
) -> None:
    """A detector that finds two bears, and a segmenter that draws its box."""
    boxes = torch.tensor([[4.0, 8, 16, 24], [24.0, 8, 36, 24]])

    def filled(_: Image.Image, boxes: list[list[float]]) -> np.ndarray:
        masks = np.zeros((len(boxes), 32, 40), bool)
        for mask, (left, top, right, bottom) in zip(masks, np.array(boxes).astype(int), strict=True):
            mask[top:bottom, left:right] = True
        return masks

    found = {"boxes": boxes, "scores": torch.tensor([0.5, 0.6]), "labels": ["bear", "bear"]}
    monkeypatch.setattr(grounded_sam, "_boxes", lambda images, phrases: [found])
    monkeypatch.setattr(grounded_sam, "_masks", filled)
    monkeypatch.setattr(grounded_sam, "instances", instances)
    [bears] = grounded_sam.detect([Image.new("RGB", (40, 32))], ["bear"])
    assert bears.scores.tolist() == np.float32([0.6, 0.5]).tolist() and bears.boxes[0].tolist() == [24, 8, 36, 24]
    assert bears.box.tolist() == ([4, 8, 36, 24] if instances == "all" else [24, 8, 36, 24])

    native = np.zeros((1, 1, 1, 32, 40))
    native[..., 8:24, 4:16] = native[..., 8:24, 24:36] = 1
    maps = HeadMaps.from_grids([([0], native)], ["bear"], (32, 40))
    maps = maps.with_pictures(np.zeros((1, 32, 40, 3), np.uint8), truth=bears.mask[None])
    assert ious(maps).values.tolist() == [[covers_both] * 3]
    one = iou(filled(Image.new("RGB", (40, 32)), boxes[1:].tolist())[0], bears.mask)
    assert one == (0.5 if instances == "all" else 1.0), "a map that misses a bear"


def test_grounded_sam_keeps_box_score_and_number_in_a_batch(grounded_sam: GroundedSAM, picture: Image.Image) -> None:
    """Three images, of which the threshold lets the detector find several, one and no detections."""
    pictures = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 80, 3), np.uint8)) for i in range(6)]
    grounded_sam.box_threshold = 0.0
    alone = [grounded_sam.detect([each], ["bear"])[0] for each in pictures]
    together = grounded_sam.detect(pictures, ["bear"] * 6)
    for one, other in zip(alone, together, strict=True):
        assert one.detections == other.detections == 5 and one.mask.shape == other.mask.shape
        np.testing.assert_allclose(one.box, other.box, atol=1e-3)
        np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
        assert one.score == one.scores[0] >= one.scores[-1] and (one.mask != other.mask).mean() < 0.01
    order = np.argsort([found.score for found in together])
    grounded_sam.box_threshold = together[order[2]].score + 1e-6
    for place, found in enumerate(grounded_sam.detect([pictures[i] for i in order], ["bear"] * 6)):
        if place <= 2:
            assert not found.mask.any() and found.detections == 0 and np.isnan([found.score, *found.box]).all()
        else:
            assert found.detections >= 1
            assert np.array_equal(found.boxes, together[order[place]].boxes[: found.detections])


def test_grounded_sam_may_draw_a_mask_of_nothing(
    grounded_sam: GroundedSAM, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    grounded_sam.box_threshold = 0.0
    monkeypatch.setattr(grounded_sam, "_masks", lambda image, boxes: np.zeros((len(boxes), 40, 80), bool))
    [found] = grounded_sam.detect([picture], ["bear"])
    assert not found.mask.any() and found.detections == 5 and np.isfinite([found.score, *found.box]).all()


@pytest.fixture(scope="module")
def sam3(tmp_path_factory: pytest.TempPathFactory) -> Sam3:
    return Sam3(source=tiny_sam3(tmp_path_factory.mktemp("sam3")))


@pytest.mark.parametrize("instances", ["all", "best"])
def test_sam3_takes_its_semantic_output_or_the_best_instance(
    sam3: Sam3, picture: Image.Image, monkeypatch: pytest.MonkeyPatch, instances: str
) -> None:
    outputs: list = []
    hook = sam3.model.register_forward_hook(lambda _, args, out: outputs.append(out))
    monkeypatch.setattr(sam3, "threshold", 0.0)
    monkeypatch.setattr(sam3, "instances", instances)
    wide, high = sam3.detect([picture, picture.rotate(90, expand=True)], ["bear", "oak tree"])
    hook.remove()
    assert [wide.mask.shape, high.mask.shape] == [(40, 80), (80, 40)]
    assert wide.detections == high.detections == 5
    scores = outputs[0].pred_logits[1].sigmoid() * outputs[0].presence_logits[1].sigmoid()
    order = scores.argsort(descending=True)
    boxes = outputs[0].pred_boxes[1].numpy() * [40, 80, 40, 80]
    assert high.score == pytest.approx(float(scores.max()))
    np.testing.assert_allclose(high.scores, scores[order])
    np.testing.assert_allclose(high.boxes, boxes[order], rtol=1e-6)
    if instances == "best":
        drawn = outputs[0].pred_masks[1, order[0]]
        np.testing.assert_allclose(high.box, boxes[order[0]], rtol=1e-6)
    else:
        drawn = outputs[0].semantic_seg[1, 0]
        np.testing.assert_allclose(high.box, [*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)], rtol=1e-6)
    drawn = torch.nn.functional.interpolate(drawn.sigmoid()[None, None], (80, 40), mode="bilinear")[0, 0]
    assert np.array_equal(high.mask, (drawn > 0.5).numpy())

    sam3.threshold = float(scores.topk(2).values.mean())
    assert sam3.detect([picture.rotate(90, expand=True)], ["oak tree"])[0].detections == 1
    sam3.threshold = 1.0
    [nothing] = sam3.detect([picture], ["bear"])
    assert nothing.detections == 0 and not nothing.mask.any() and np.isnan([nothing.score, *nothing.box]).all()
    assert nothing.boxes.shape == (0, 4) and nothing.scores.shape == (0,)


def test_what_a_mask_is_of_is_one_of_two(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="instances='each' with the segmenter grounded-sam: expected all or best"):
        load_segmenter("grounded-sam", instances="each")
    with pytest.raises(ValueError, match="instances='best' with the segmenter emoji-sd: expected all$"):
        load_segmenter(instances="best")
    tiny_grounded_sam(tmp_path)
    assert load_segmenter(str(tmp_path), instances="best").instances == "best"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["grounded-sam", "sam3"])
def test_a_hub_that_never_finishes_is_not_waited_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: Any, **__: Any) -> None:
        time.sleep(5)

    monkeypatch.setattr("selattn_lib.models.segmenters.INDEX_LIMIT", 0.05)
    monkeypatch.setattr("transformers.GroundingDinoProcessor.from_pretrained", hang)
    monkeypatch.setattr("transformers.CLIPTokenizer.from_pretrained", hang)
    with pytest.raises(OSError, match=f"'{name}' could not be loaded from .*no whole answer in 0.05 s"):
        load_segmenter(name)
