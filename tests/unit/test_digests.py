"""What decides a study's numbers decides its folder: files too, each read once."""

import io
import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from tiny_families import build_sd3, build_sdxl
from tiny_study import save_tiny_model, tiny_settings, tiny_study

from selattn_lib.models.pipelines import model_source
from selattn_lib.studies.base import model_digest
from selattn_lib.studies.digests import file_digest
from selattn_lib.studies.generated import Study


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "model")


def change(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize(
    "part", ["scheduler", "tokenizer/tokenizer.json", "text_encoder/model", "unet/diff", "unet/config", "vae/diff"]
)
def test_every_part_of_a_local_model_decides_the_folder(model: Path, part: str) -> None:
    before = tiny_study(model)
    change(next(path for path in model.rglob("*") if f"{part}" in str(path.relative_to(model)) and path.is_file()))
    after = tiny_study(model)
    assert after.folder != before.folder and after.revision != before.revision
    with pytest.raises(ValueError, match="revision .*: the model in .* is of revision"):
        tiny_study(model, revision=before.revision)


@pytest.mark.parametrize("build, parts", [
    (build_sdxl, ["tokenizer_2", "text_encoder_2"]), (build_sd3, ["text_encoder_3", "tokenizer_3", "transformer"]),
])  # fmt: skip
def test_second_and_third_encoders_and_transformers_count(tmp_path: Path, build, parts: list[str]) -> None:
    build().save_pretrained(tmp_path / "model")
    digests = {model_digest(tmp_path / "model")}
    for part in parts:
        change(next(path for path in (tmp_path / "model" / part).iterdir() if path.suffix in (".json", ".safetensors")))
        digests.add(model_digest(tmp_path / "model"))
    assert len(digests) == 1 + len(parts)


def test_what_decides_no_number_does_not(model: Path) -> None:
    before = tiny_study(model).folder
    (model / "README.md").write_text("A model.")
    (model / "unet" / "diffusion_pytorch_model.bin").write_text("not read")
    config = model / "scheduler" / "scheduler_config.json"
    config.write_bytes(config.read_bytes().replace(b"\n", b"\r\n"))
    assert tiny_study(model).folder == before, "nor do line ends"


def test_a_local_segmenter_decides_the_folder(model: Path, tmp_path: Path) -> None:
    shutil.copytree(Path(model_source("emoji-sd")) / "segmenter", tmp_path / "seen" / "segmenter")
    before = tiny_study(model, segmenter=str(tmp_path / "seen")).folder
    change(tmp_path / "seen" / "segmenter" / "config.json")
    assert tiny_study(model, segmenter=str(tmp_path / "seen")).folder != before


def test_weights_are_read_once(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_study(model)
    read: list[Path] = []
    opened = io.open
    monkeypatch.setattr(io, "open", lambda file, *rest: read.append(file) or opened(file, *rest))
    Study(**tiny_settings(model)).folder  # noqa: B018
    assert not [path for path in read if str(path).endswith(".safetensors")]
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    digest, data = file_digest(weights), bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(0, 10**18))
    assert file_digest(weights) != digest
    assert [path for path in read if str(path).endswith(".safetensors")]


def test_pictures_and_masks_of_ones_own_decide_the_folder(tmp_path: Path) -> None:
    from selattn_lib.studies.noised import MaskedStudy

    for name in ("JPEGImages", "SegmentationClass"):
        (tmp_path / "voc" / name).mkdir(parents=True)
    (tmp_path / "voc" / "labels.txt").write_text("bear\n")

    def study(colour: str, mask: tuple[int, int, int, int] = (0, 0, 20, 20), folder: str = "voc") -> Path:
        Image.new("RGB", (64, 64), colour).save(tmp_path / folder / "JPEGImages" / "0.jpg")
        classes = Image.new("L", (64, 64))
        classes.paste(1, mask)
        classes.save(tmp_path / folder / "SegmentationClass" / "0.png")
        return MaskedStudy(source=tmp_path / folder, pixels=64).folder

    red = study("red")
    assert len({red, study("blue"), study("red", (0, 0, 30, 30))}) == 3 and study("red") == red
    (tmp_path / "voc").rename(tmp_path / "moved")
    assert study("red", folder="moved") == red, "where the files lie decides nothing"


def test_the_shipped_model_is_what_its_index_says() -> None:
    index = json.loads((Path(model_source("emoji-sd")) / "model_index.json").read_text())
    assert {"scheduler", "tokenizer", "text_encoder", "unet", "vae"} <= set(index)
    assert Study().revision == model_digest(Path(model_source("emoji-sd")))
