"""Studies without sampling: composed scenes and pictures of one's own, each in the model's number format and place."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload_with_hook
from PIL import Image
from tiny_families import build_sd3, build_sdxl
from tiny_study import save_tiny_model
from voc import voc

from selattn_lib.models.pipelines import load_pipeline
from selattn_lib.studies.noised import KnownMeaningsStudy, KnownTruthStudy, MaskedStudy


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SELATTN_RUNS", str(tmp_path / "runs"))
    return tmp_path


def test_known_truth_needs_no_sampling_and_knows_its_masks() -> None:
    maps = KnownTruthStudy(scenes=4, batch=2, timesteps=(100, 500)).run()
    assert maps.subjects.tolist() == ["bear", "bird", "cat", "cow"]
    assert 0.05 < maps.truths["truth"].values.mean() < 0.7
    assert 0 < float(maps.dataset["maps_16x16"].max()) <= 1


def test_scenes_with_both_meanings_have_a_mask_of_each() -> None:
    study = KnownMeaningsStudy(word="bat", scenes=3, timesteps=(500,))
    scenes = study.examples([0, 1, 2])
    maps = study.run()
    assert set(maps.truths) == {"Animals", "Sports Equipment"} and maps.subjects.tolist() == ["bat"] * 3
    for number, (picture, masks) in enumerate(scenes):
        np.testing.assert_array_equal(maps.pictures[number], np.asarray(picture))
        for name, mask in zip(study.masks, masks, strict=True):
            np.testing.assert_array_equal(maps.truth(number, name), mask)
    one, other = (maps.truths[name].values for name in study.masks)
    assert not (one & other).any() and one.mean() > 0.01 and other.mean() > 0.01
    by_place = [mask.nonzero()[1].mean() for mask in one]
    assert np.ptp(by_place) > 20, "the animal is not always in the same place"
    with pytest.raises(ValueError, match="word='bear'"):
        KnownMeaningsStudy(word="bear")  # type: ignore[arg-type]


def test_known_truth_on_ones_own_pictures(runs: Path) -> None:
    settings: dict[str, Any] = {
        "source": voc(runs),
        "min_area": 0.01,
        "max_area": 0.95,
        "timesteps": (100, 500),
        "batch": 2,
    }
    maps = MaskedStudy(**settings).run()
    assert maps.subjects.tolist() == ["bear", "cat", "bear", "cat"]
    assert maps.image_coords["picture"].values.tolist() == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert maps.truths["truth"].dtype == bool and maps.truths["truth"].shape == (4, 128, 128) and maps.size[0] == 128
    assert 0 < float(maps.dataset["maps_16x16"].max()) <= 1
    one = MaskedStudy(**settings, words=["cat"], per_word=1)
    assert one.units() == [{"prompt": "photo of a cat", "subject": "cat", "seed": 0, "picture": "1.jpg"}]
    before = MaskedStudy(**settings).folder
    Image.fromarray(np.ones((128, 192), np.uint8)).save(runs / "SegmentationClass/0.png")
    assert MaskedStudy(**settings).folder != before, "other masks are another study"
    with pytest.raises(ValueError, match="no picture in which zebra covers"):
        MaskedStudy(**settings, words=["zebra"]).run()


def test_one_call_of_the_network_for_all_timesteps(runs: Path) -> None:
    study = MaskedStudy(source=voc(runs, 1), min_area=0, max_area=1, timesteps=(100, 500))
    seen = []
    hook = study.pipe.unet.register_forward_pre_hook(lambda unet, args: seen.append(args[1].tolist()))
    study.run()
    hook.remove()
    assert seen == [[100, 500]]


@pytest.mark.parametrize("build", [build_sdxl, build_sd3])
def test_other_families_see_each_picture_once_a_timestep(
    runs: Path, monkeypatch: pytest.MonkeyPatch, build: Any
) -> None:
    pipe, seen = build(), []
    network = getattr(pipe, "unet", None) or pipe.transformer
    network.register_forward_hook(lambda *call: seen.append(len(call[2][0])))
    monkeypatch.setattr(MaskedStudy, "pipe", pipe)
    settings: dict[str, Any] = {"source": voc(runs, 2), "pixels": 64, "template": "{word}", "timesteps": (300, 700)}
    maps = MaskedStudy(**settings, min_area=0, max_area=1).run()
    assert maps.n_images == 2 and maps.truths["truth"].shape == (2, 64, 64) and seen == [2, 2]
    one = MaskedStudy(**settings, min_area=0, max_area=1, batch=1).run()  # in another order of rows
    for height, width in maps.grids:
        name = f"maps_{height}x{width}"
        np.testing.assert_allclose(one.dataset[name], maps.dataset[name], atol=2e-3)


@pytest.mark.parametrize("kind", ["known", "masked"])
def test_each_in_the_models_own_number_format_device_and_offload(
    runs: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    model = str(save_tiny_model(runs / "model"))
    (runs / "voc").mkdir()

    def study(**settings: Any) -> Any:
        settings |= {"model": model, "timesteps": (300,)}
        if kind == "known":
            return KnownTruthStudy(**settings, words=["bear"], scenes=2)
        return MaskedStudy(**settings, source=runs / "voc", min_area=0, max_area=1)

    voc(runs / "voc", 2)
    exact, coarse = study(), study(dtype="bf16")
    maps = [study.run().dataset["maps_16x16"].values.astype(float) for study in (exact, coarse)]
    assert coarse.pipe.unet.dtype == torch.bfloat16 and coarse.folder != exact.folder
    assert np.isfinite(maps[1]).all() and 0 < np.abs(maps[0] - maps[1]).max() < 0.2

    whole = exact.load_or_compute().load()
    loaded: list[dict[str, Any]] = []

    def load(name: str, **settings: Any) -> Any:
        loaded.append(settings)
        pipe = load_pipeline(name, **{**settings, "offload": False})
        for part in (pipe.text_encoder, pipe.unet, pipe.vae):
            cpu_offload_with_hook(part, "cpu")
        return pipe

    monkeypatch.setenv("SELATTN_RUNS", str(runs / "again"))
    monkeypatch.setenv("SELATTN_OFFLOAD", "1")
    monkeypatch.setattr("selattn_lib.studies.base.load_pipeline", load)
    assert study().load_or_compute().identical(whole)
    assert loaded == [{"dtype": torch.float32, "revision": exact.revision, "offload": True}]


def test_a_turned_picture_and_its_upright_mask_meet_and_a_cropped_one_is_refused(runs: Path) -> None:
    """A crop whose centred square is as large as before would be taken for the whole."""
    picture = np.full((160, 120, 3), 255, np.uint8)
    picture[90:130, 20:60] = (255, 0, 0)
    corners = [20, 90, 60, 90, 60, 130, 20, 130]
    coco = {
        "images": [{"id": 1, "file_name": "p.png", "width": 120, "height": 160}],
        "categories": [{"id": 1, "name": "bear"}],
        "annotations": [{"image_id": 1, "category_id": 1, "segmentation": [corners]}],
    }
    (runs / "a.json").write_text(json.dumps(coco))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(picture))).save(runs / "p.png", exif=exif)
    study = MaskedStudy(source=runs / "a.json", pixels=120)
    [(seen, mask)] = study.examples([0])
    assert (mask == (np.asarray(seen)[..., 1] < 100)).all() and mask.any()
    for change in (picture[10:], picture[:, :100], picture.repeat(2, 0).repeat(2, 1)):
        Image.fromarray(np.ascontiguousarray(change)).save(runs / "p.png")
        (runs / "a.json").write_text(json.dumps(coco | {"info": change.shape}))  # as of another day
        with pytest.raises(ValueError, match="p.png has .* pixels as it is shown, its masks 120 x 160"):
            MaskedStudy(source=runs / "a.json", pixels=120)


def test_a_mask_of_another_size_than_its_picture_is_refused(runs: Path) -> None:
    study = MaskedStudy(source=voc(runs, 1), min_area=0, max_area=1)
    Image.new("RGB", (100, 100)).save(runs / "JPEGImages" / "0.jpg")
    with pytest.raises(ValueError, match="0.jpg has 100 x 100 pixels as it is shown, its masks 192 x 128"):
        study.run()


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"template": "photo"}, "{word}"),
        ({"pixels": 12}, "multiple of 8"),
        ({"timesteps": [5]}, "than or equal to 20"),
    ],
)
def test_fields_out_of_range(runs: Path, fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MaskedStudy(source=voc(runs, 1), **fields)


@pytest.mark.parametrize("timesteps", [(5000,), (-1,), ()])
def test_timesteps_that_are_none(timesteps: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError,
        match=r"timesteps=\(.*\): .*(than or equal to 1?0+|at least 1 item)",
    ):
        KnownTruthStudy(timesteps=timesteps)
