"""Pictures of one's own: reading COCO and VOC."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from voc import voc

from selattn_lib.studies.annotations import centred_square, open_picture, read_masks


def coco(folder: Path, annotations: list[dict[str, Any]], **changes: Any) -> Path:
    for name in ("b.jpg", "a.jpg"):
        Image.new("RGB", (40, 20), "white").save(folder / name)
    content = {
        "images": [{"id": i, "file_name": n, "height": 20, "width": 40} for i, n in ((7, "b.jpg"), (8, "a.jpg"))],
        "categories": [{"id": 3, "name": "bear"}, {"id": 5, "name": "cat"}],
        "annotations": annotations,
        **changes,
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path


def bear(segmentation: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 7, "category_id": 3, "segmentation": segmentation}


def test_coco_polygons_and_run_lengths_of_one_word_are_one_mask(tmp_path: Path) -> None:
    square = bear([[10, 5, 20, 5, 20, 15, 10, 15]])
    column = bear({"counts": [21, 3, 776], "size": [20, 40]})
    other = {"image_id": 8, "category_id": 5, "segmentation": [[0, 0, 3, 0, 3, 3, 0, 3]]}
    (first, cats), (second, bears) = read_masks(coco(tmp_path, [square, column, other]))
    assert (first.name, second.name) == ("a.jpg", "b.jpg") and set(cats) == {"cat"}
    expected = np.zeros((20, 40), bool)
    expected[5:15, 10:20] = True
    expected[1:4, 1] = True
    assert bears["bear"].dtype == bool
    np.testing.assert_array_equal(bears["bear"], expected)


def test_coco_compressed_run_lengths(tmp_path: Path) -> None:
    """As pycocotools writes them, against the mask that they are of."""
    from pycocotools import mask

    expected = np.random.default_rng(0).random((20, 40)) > 0.5
    packed = mask.encode(np.asfortranarray(expected.astype(np.uint8)))
    segmentation = {"counts": packed["counts"].decode(), "size": packed["size"]}
    _, (_, bears) = read_masks(coco(tmp_path, [bear(segmentation)]))
    np.testing.assert_array_equal(bears["bear"], expected)


@pytest.mark.parametrize(
    "segmentation",
    [
        *[{"counts": [1, 2], "size": [3, 4]}, {"counts": "WV0"}, [["a"]], "polygon", [[1, 2]], 5, [[]], [None]],
        *[{"counts": counts, "size": [20, 40]} for counts in ([10**12], [-5, 805], ["a"], None, [1, 2])],
        *[[[0, 0, 9, far, 9, 9]] for far in (10**12, float("nan"), float("inf"))],
    ],
)
def test_coco_segmentations_that_are_none(tmp_path: Path, segmentation: Any) -> None:
    with pytest.raises(ValueError, match="segmentation of annotation 1 cannot be read .*: expected polygons"):
        list(read_masks(coco(tmp_path, [bear(segmentation)])))


@pytest.mark.parametrize(
    "changes, said",
    [
        (
            {"annotations": [{**bear([]), "category_id": 99}]},
            "annotation 1 is of category 99: expected one of its categories",
        ),
        ({"annotations": [{"id": 1}]}, "one of its annotations, has no .'category_id', 'image_id'"),
        ({"annotations": [5]}, "5, one of its annotations, has no"),
        ({"categories": 5}, "has no .'categories'.: expected a COCO file of instances"),
        (
            {"images": [{"id": 1, "file_name": "a", "height": 10**6, "width": 10**6}]},
            "a picture .* of 1000000 x 1000000 pixels",
        ),
        (
            {"images": [{"id": 1, "file_name": "", "height": 1, "width": 1}]},
            "a picture .* of 1 x 1 pixels",
        ),
        (
            {"images": [{"id": 1, "file_name": 5, "height": 1, "width": 1}]},
            "can be read .TypeError",
        ),
    ],
)
def test_coco_files_of_the_wrong_form(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        list(read_masks(coco(tmp_path, **{"annotations": [], **changes})))


def test_a_picture_that_would_fill_the_memory_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = voc(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(ValueError, match="0.png is not read: Image size .* Make it smaller"):
        list(read_masks(folder))


def test_more_labels_than_a_pixel_can_name(tmp_path: Path) -> None:
    voc(tmp_path)
    (tmp_path / "labels.txt").write_text("\n".join(f"label {i}" for i in range(255)))
    with pytest.raises(ValueError, match="labels.txt has 255 labels: expected at most 254"):
        list(read_masks(tmp_path))


def test_coco_files_that_are_not_read(tmp_path: Path) -> None:
    outside = [{"id": 1, "file_name": "../a.jpg", "height": 2, "width": 2}]
    with pytest.raises(ValueError, match="lies outside"):
        list(read_masks(coco(tmp_path, [], images=outside)))
    for content in ("{}", "[]"):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(ValueError, match="expected a COCO file of instances"):
            list(read_masks(tmp_path / "other.json"))
    with pytest.raises(ValueError, match="expected a COCO file"):
        read_masks(tmp_path)


def test_without_pycocotools_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ImportError, match=r"is a COCO file, which needs: pip install 'selattn_lib\[coco\]'"):
        list(read_masks(coco(tmp_path, [bear([[10, 5, 20, 5, 20, 15]])])))


def test_voc_knows_its_labels_and_leaves_void_out(tmp_path: Path) -> None:
    masks_of = list(read_masks(voc(tmp_path)))
    assert [list(masks) for _, masks in masks_of] == [["bear"], ["cat"]] * 2
    assert masks_of[1][0] == tmp_path / "JPEGImages" / "1.jpg" and not masks_of[1][1]["cat"][0].any()
    (tmp_path / "labels.txt").unlink()
    assert [list(masks) for _, masks in read_masks(tmp_path)][0] == ["aeroplane"]
    Image.new("RGB", (4, 4)).save(tmp_path / "SegmentationClass/0.png")
    with pytest.raises(ValueError, match="one class number a pixel"):
        list(read_masks(tmp_path))


def test_the_centred_square() -> None:
    picture = np.zeros((20, 40), np.uint8)
    picture[:, 10:30] = 255
    square = np.asarray(centred_square(Image.fromarray(picture)))
    assert square.shape == (20, 20) and (square == 255).all()


SQUARE = [10, 5, 20, 5, 20, 15, 10, 15]


@pytest.mark.parametrize(
    "how", ["flat polygon", "ids of pictures as text", "ids of categories as text", "mark", "sizes as text"]
)
def test_coco_as_annotation_tools_write_it(tmp_path: Path, how: str) -> None:
    annotation, changes = bear([SQUARE]), {}
    if how == "flat polygon":
        annotation["segmentation"] = SQUARE
    elif how == "ids of pictures as text":
        annotation["image_id"] = "7"
    elif how == "ids of categories as text":
        changes["categories"] = [{"id": "3", "name": "bear"}]
    elif how == "sizes as text":
        changes["images"] = [{"id": 7, "file_name": "b.jpg", "height": "20", "width": "40"}]
    path = coco(tmp_path, [annotation], **changes)
    if how == "mark":
        path.write_bytes(path.read_text().encode("utf-8-sig"))
    *_, (_, masks) = read_masks(path)
    expected = np.zeros((20, 40), bool)
    expected[5:15, 10:20] = True
    np.testing.assert_array_equal(masks["bear"], expected)


@pytest.mark.parametrize("segmentation", [None, [], {}])
def test_coco_boxes_are_no_masks_and_the_way_out_works(tmp_path: Path, segmentation: Any) -> None:
    box = {"bbox": [10, 5, 10, 10], "id": 4}
    with pytest.raises(
        ValueError, match="annotation 4 has no segmentation, and so no mask: .*leave it out, or"
    ) as error:
        list(read_masks(coco(tmp_path, [bear(segmentation) | box])))
    said = json.loads("{" + str(error.value).partition("whole box: ")[2] + "}")
    *_, (_, masks) = read_masks(coco(tmp_path, [bear(None) | box | said]))
    assert masks["bear"].sum() == 100 and masks["bear"][5:15, 10:20].all()
    with pytest.raises(ValueError, match="annotation 1 has no segmentation.*; leave it out$"):
        list(read_masks(coco(tmp_path, [bear(segmentation)])))


def test_coco_that_lacks_something_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="annotation 1 is of category 9: expected one of its categories, 3, 5"):
        list(read_masks(coco(tmp_path, [bear([SQUARE]) | {"category_id": 9}])))
    with pytest.raises(ValueError, match=r"one of its images, has no \['height', 'width'\]"):
        list(read_masks(coco(tmp_path, [], images=[{"id": 7, "file_name": "b.jpg"}])))
    with pytest.raises(ValueError, match="cannot be read .run lengths of 150 pixels for a picture of 800"):
        list(read_masks(coco(tmp_path, [bear({"counts": [100, 50], "size": [20, 40]})])))


@pytest.mark.parametrize("orientation, quarters", [(1, 0), (3, 2), (6, 1), (8, 3)])
def test_a_picture_is_turned_as_its_exif_data_say(tmp_path: Path, orientation: int, quarters: int) -> None:
    """Whatever way the camera was held, the red corner is where it is seen."""
    shown = np.full((20, 40, 3), 255, np.uint8)
    shown[:8, :8] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(np.rot90(shown, quarters))).save(tmp_path / "p.png", exif=exif)
    np.testing.assert_array_equal(np.asarray(open_picture(tmp_path / "p.png", (20, 40))), shown)
    with pytest.raises(
        ValueError, match="p.png has 40 x 20 pixels as it is shown, its masks 20 x 40: expected the same"
    ):
        open_picture(tmp_path / "p.png", (40, 20))
