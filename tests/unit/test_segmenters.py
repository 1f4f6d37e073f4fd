"""Segmenters: the embedded one, and those of the hub on tiny models of the true classes."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_sam import tiny_grounded_sam, tiny_sam3

from selattn_lib.emoji.scenes import HELD_OUT, Scene, compose
from selattn_lib.emoji.segmenter import CLASSES, Prediction, load_weights
from selattn_lib.evaluation.scores import iou
from selattn_lib.models.segmenters import EmojiSegmenter, GroundedSAM, Sam3, bounding_box, load_segmenter


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


def test_grounded_sam_segments_the_box_of_the_highest_score(grounded_sam: GroundedSAM, picture: Image.Image) -> None:
    found, boxes, drawn = [], [], []  # what the detector gives, what the segmenter is given, what it gives

    def note(_, args, kwargs, out) -> None:
        boxes.append(kwargs["input_boxes"].flatten().tolist())
        drawn.append(out.pred_masks.shape)

    hooks = [
        grounded_sam.detector.register_forward_hook(lambda _, args, out: found.append(out)),
        grounded_sam.segmenter.register_forward_hook(note, with_kwargs=True),
    ]
    grounded_sam.box_threshold = 0.0
    [several] = grounded_sam.detect([picture], ["bear"])
    scores = found[0].logits[0].sigmoid().amax(dim=-1)
    best, second = scores.topk(2).values.tolist()
    grounded_sam.box_threshold = (best + second) / 2
    [one] = grounded_sam.detect([picture], ["bear"])
    for hook in hooks:
        hook.remove()

    x, y, width, height = found[0].pred_boxes[0, scores.argmax()].tolist()
    corners = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    in_the_resized_picture = corners * [64, 32, 64, 32]  # the tiny SAM sees 40 x 80 pixels as 32 x 64
    np.testing.assert_allclose(boxes, [in_the_resized_picture] * 2, atol=1e-3)
    assert np.array_equal(several.mask, one.mask)
    assert drawn == [(1, 1, 1, 16, 16)] * 2, "the single mask, not the first of three guesses"


def test_grounded_sam_keeps_box_score_and_number_in_a_batch(grounded_sam: GroundedSAM, picture: Image.Image) -> None:
    """Three images, of which the threshold lets the detector find several, one and no detections."""
    pictures = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 80, 3), np.uint8)) for i in range(6)]
    grounded_sam.box_threshold = 0.0
    alone = [grounded_sam.detect([each], ["bear"])[0] for each in pictures]
    together = grounded_sam.detect(pictures, ["bear"] * 6)
    for one, other in zip(alone, together, strict=True):
        assert one.detections == other.detections == 5 and one.mask.shape == other.mask.shape
        np.testing.assert_allclose(one.box, other.box, atol=1e-3)
        assert one.score == pytest.approx(other.score, abs=1e-5) and (one.mask != other.mask).mean() < 0.01
    order = np.argsort([found.score for found in together])
    grounded_sam.box_threshold = together[order[2]].score + 1e-6
    for place, found in enumerate(grounded_sam.detect([pictures[i] for i in order], ["bear"] * 6)):
        if place <= 2:
            assert not found.mask.any() and found.detections == 0 and np.isnan([found.score, *found.box]).all()
        else:
            assert found.detections >= 1
            assert np.array_equal(found.box, together[order[place]].box)


def test_grounded_sam_may_draw_a_mask_of_nothing(
    grounded_sam: GroundedSAM, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    grounded_sam.box_threshold = 0.0
    monkeypatch.setattr(grounded_sam, "_masks", lambda images, boxes: [np.zeros((40, 80), bool) for _ in images])
    [found] = grounded_sam.detect([picture], ["bear"])
    assert not found.mask.any() and found.detections == 5 and np.isfinite([found.score, *found.box]).all()


@pytest.fixture(scope="module")
def sam3(tmp_path_factory: pytest.TempPathFactory) -> Sam3:
    return Sam3(source=tiny_sam3(tmp_path_factory.mktemp("sam3")))


def test_sam3_takes_the_instance_of_the_highest_score(sam3: Sam3, picture: Image.Image) -> None:
    outputs: list = []
    hook = sam3.model.register_forward_hook(lambda _, args, out: outputs.append(out))
    sam3.threshold = 0.0
    wide, high = sam3.detect([picture, picture.rotate(90, expand=True)], ["bear", "oak tree"])
    hook.remove()
    assert [wide.mask.shape, high.mask.shape] == [(40, 80), (80, 40)]
    assert wide.detections == high.detections == 5
    scores = outputs[0].pred_logits[1].sigmoid() * outputs[0].presence_logits[1].sigmoid()
    best = int(scores.argmax())
    assert high.score == pytest.approx(float(scores[best]))
    np.testing.assert_allclose(high.box, outputs[0].pred_boxes[1, best].numpy() * [40, 80, 40, 80], rtol=1e-6)
    drawn = outputs[0].pred_masks[1, best].sigmoid()
    drawn = torch.nn.functional.interpolate(drawn[None, None], (80, 40), mode="bilinear")[0, 0]
    assert np.array_equal(high.mask, (drawn > 0.5).numpy())

    sam3.threshold = float(scores.topk(2).values.mean())
    assert sam3.detect([picture.rotate(90, expand=True)], ["oak tree"])[0].detections == 1
    sam3.threshold = 1.0
    [nothing] = sam3.detect([picture], ["bear"])
    assert nothing.detections == 0 and not nothing.mask.any() and np.isnan([nothing.score, *nothing.box]).all()
