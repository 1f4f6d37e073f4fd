"""Pictures of one's own: reading COCO and VOC, and the known-truth benchmark on them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_families import build_sd3, build_sdxl

from selattn_lib.emoji.scenes import HELD_OUT, compose
from selattn_lib.studies.annotations import read_masks, squared
from selattn_lib.studies.noised import MaskedStudy


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELATTN_RUNS", str(tmp_path / "runs"))
    return tmp_path


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


def test_coco_polygons_and_run_lengths_of_one_word_are_one_mask(tmp_path: Path) -> None:
    square = {"image_id": 7, "category_id": 3, "segmentation": [[10, 5, 19, 5, 19, 14, 10, 14]]}
    column = {"image_id": 7, "category_id": 3, "segmentation": {"counts": [21, 3, 776], "size": [20, 40]}}
    other = {"image_id": 8, "category_id": 5, "segmentation": [[0, 0, 3, 0, 3, 3, 0, 3]]}
    (first, cats), (second, bears) = read_masks(coco(tmp_path, [square, column, other]))
    assert (first.name, second.name) == ("a.jpg", "b.jpg") and set(cats) == {"cat"}
    expected = np.zeros((20, 40), bool)
    expected[5:15, 10:20] = True
    expected[1:4, 1] = True
    np.testing.assert_array_equal(bears["bear"], expected)


def test_coco_files_that_are_not_read(tmp_path: Path) -> None:
    packed = {"image_id": 7, "category_id": 3, "segmentation": {"counts": "WV0", "size": [20, 40]}}
    with pytest.raises(ValueError, match="compressed run lengths"):
        list(read_masks(coco(tmp_path, [packed])))
    outside = [{"id": 1, "file_name": "../a.jpg", "height": 2, "width": 2}]
    with pytest.raises(ValueError, match="lies outside"):
        list(read_masks(coco(tmp_path, [], images=outside)))
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a COCO file of instances"):
        list(read_masks(tmp_path / "other.json"))
    with pytest.raises(ValueError, match="expected a COCO file"):
        read_masks(tmp_path)


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


def test_voc_knows_its_labels_and_leaves_void_out(tmp_path: Path) -> None:
    found = list(read_masks(voc(tmp_path)))
    assert [list(masks) for _, masks in found] == [["bear"], ["cat"]] * 2
    assert found[1][0] == tmp_path / "JPEGImages" / "1.jpg" and not found[1][1]["cat"][0].any()
    (tmp_path / "labels.txt").unlink()
    assert [list(masks) for _, masks in read_masks(tmp_path)][0] == ["aeroplane"]
    Image.new("RGB", (4, 4)).save(tmp_path / "SegmentationClass/0.png")
    with pytest.raises(ValueError, match="one class number a pixel"):
        list(read_masks(tmp_path))


def test_the_centred_square() -> None:
    picture = np.zeros((20, 40), np.uint8)
    picture[:, 10:30] = 255
    assert (np.asarray(squared(Image.fromarray(picture), 10, Image.Resampling.NEAREST)) == 255).all()


def test_known_truth_on_ones_own_pictures(runs: Path) -> None:
    settings: dict[str, Any] = {"source": voc(runs), "least": 0.01, "most": 0.95, "timesteps": (100, 500), "batch": 2}
    found = MaskedStudy(**settings).run()
    assert found.subject.values.tolist() == ["bear", "cat", "bear", "cat"]
    assert found.picture.values.tolist() == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert found.truth.dtype == bool and found.truth.shape == (4, 128, 128) and found.attrs["height"] == 128
    assert 0 < float(found["maps_16x16"].max()) <= 1
    one = MaskedStudy(**settings, words=["cat"], per_word=1)
    assert one.units() == [{"prompt": "photo of a cat", "subject": "cat", "seed": 0, "picture": "1.jpg"}]
    before = MaskedStudy(**settings).folder
    Image.fromarray(np.ones((128, 192), np.uint8)).save(runs / "SegmentationClass/0.png")
    assert MaskedStudy(**settings).folder != before, "other masks are another study"
    with pytest.raises(ValueError, match="no picture in which zebra covers"):
        MaskedStudy(**settings, words=["zebra"]).run()


def test_one_call_of_the_network_for_each_timestep(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = MaskedStudy(source=voc(runs, 1), least=0, most=1, timesteps=(100, 500))
    seen = []
    study.pipe.unet.register_forward_pre_hook(lambda unet, args: seen.append((len(args[0]), int(args[1]))))
    study.run()
    assert [rows for rows, _ in seen] == [1, 1]
    assert [abs(found - wanted) <= 20 for (_, found), wanted in zip(seen, (100, 500), strict=True)] == [True, True]


@pytest.mark.parametrize("build", [build_sdxl, build_sd3])
def test_other_families(runs: Path, monkeypatch: pytest.MonkeyPatch, build: Any) -> None:
    monkeypatch.setattr("selattn_lib.studies.noised.load_pipeline", lambda name, revision: build())
    study = MaskedStudy(source=voc(runs, 2), least=0, most=1, timesteps=(300, 700), pixels=64, template="{word}")
    found = study.run()
    assert found.sizes["image"] == 2 and found.truth.shape == (2, 64, 64)


@pytest.mark.parametrize(
    "fields, said",
    [({"template": "photo"}, "{word}"), ({"pixels": 12}, "multiple of 8"), ({"timesteps": [5]}, "20 to 1000")],
)
def test_fields_out_of_range(runs: Path, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MaskedStudy(source=voc(runs, 1), **fields)
