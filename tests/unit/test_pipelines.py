"""Loading pipelines by name, from folders and from the hub."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_families
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DModel
from safetensors.torch import load_file

from selattn_lib.attention.capture import capture
from selattn_lib.concepts import load_concepts
from selattn_lib.emoji.scenes import HELD_OUT, compose
from selattn_lib.maps.relevance import load_hrv
from selattn_lib.models import pipelines
from selattn_lib.models.families import cross_attention_heads
from selattn_lib.models.pipelines import default_dtype, load_pipeline, model_source, network_layout, pick_device
from selattn_lib.models.segmenters import load_segmenter
from selattn_lib.studies.generated import Study, generate


@pytest.fixture(scope="module")
def emoji() -> StableDiffusionPipeline:
    return load_pipeline("emoji-sd", device="cpu")


def test_emoji_sd_has_the_layout_of_stable_diffusion_v1(emoji: StableDiffusionPipeline) -> None:
    heads = cross_attention_heads(emoji)
    assert len(heads) == 128 and len(heads.layers) == 16
    assert [sum(layer.block == block for layer in heads) for block in ("down", "mid", "up")] == [6, 1, 9]
    assert type(emoji.scheduler).__name__ == "PNDMScheduler"


def test_the_shipped_weights_fit_in_40_mb() -> None:
    folder = Path(model_source("emoji-sd"))
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 40e6
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl", ".ckpt")]


def test_the_unet_has_learned_its_words(emoji: StableDiffusionPipeline) -> None:
    """The right caption predicts a held-out scene's noise better than no caption."""
    scenes = [compose(np.random.default_rng([HELD_OUT, 1, i]), [("Animals", w)], f"photo of a {w}")
              for i, w in enumerate(["bear", "sheep", "zebra", "elephant"] * 4)]  # fmt: skip
    pixels = np.stack([s.image for s in scenes]).astype(np.float32) / 255
    with torch.no_grad():
        clean = emoji.vae.encode(emoji.image_processor.preprocess(pixels)).latent_dist.mode()
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        t = torch.full((len(scenes),), 600)
        noised = emoji.scheduler.add_noise(clean, noise, t)
        target = (
            emoji.scheduler.alphas_cumprod[600] ** 0.5 * noise
            - (1 - emoji.scheduler.alphas_cumprod[600]) ** 0.5 * clean
        )
        losses = []
        for captions in ([s.caption for s in scenes], [""] * len(scenes)):
            text, _ = emoji.encode_prompt(captions, "cpu", 1, False)
            losses.append(float((emoji.unet(noised, t, text).sample - target).square().mean()))
    assert losses[0] < 0.97 * losses[1], losses


def test_the_first_lines_of_the_readme(emoji: StableDiffusionPipeline) -> None:
    with capture(emoji, words=["bear"]) as maps:
        emoji("photo of a bear", num_inference_steps=2)
    relevance = load_hrv("emoji-sd")
    assert relevance.scores["concept"].values.tolist() == list(load_concepts("emoji-sd"))
    heat = maps.heatmap("bear", heads=relevance.top("Animals", 30))
    assert heat.shape == (128, 128) and float(heat.min()) == 0 and float(heat.max()) == 1


def test_images_follow_their_seeds(emoji: StableDiffusionPipeline) -> None:
    one, two = generate(emoji, ["a cat", "a cat"], [1, 2], steps=2, guidance=2)
    again, _ = generate(emoji, ["a cat", "a cat"], [1, 2], steps=2, guidance=2)
    assert np.array_equal(one, again) and not np.array_equal(one, two)


def test_a_folder_saved_by_diffusers_loads(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    tiny_pipe.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path, device="cpu", dtype=torch.float64)
    assert loaded.unet.dtype == torch.float64


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def pickled(path: Path) -> None:
    torch.save({}, path.with_suffix(".bin"))
    path.unlink()


@pytest.mark.parametrize("damage", [cut, pickled, Path.unlink])
@pytest.mark.parametrize(
    "weights",
    ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "tokenizer/tokenizer.json"],
)
def test_a_missing_or_damaged_file_is_one_sentence(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, weights: str, damage: Callable[[Path], None]
) -> None:
    tiny_pipe.save_pretrained(tmp_path)
    if weights.endswith("json"):
        (tmp_path / weights).write_text("{")
    else:
        damage(tmp_path / weights)
    with pytest.raises(OSError, match="a file there is missing or damaged, or is not one that is read") as error:
        load_pipeline(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_an_index_names_safetensors_files_of_its_folder_only(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    folder = tmp_path / "model"
    tiny_pipe.save_pretrained(folder)
    getattr(tiny_pipe, part).save_pretrained(folder / part, max_shard_size="40KB")
    [index] = (folder / part).glob("*.safetensors.index.json")
    [*_, whole] = (folder / part).glob("*[lr].safetensors")
    whole.unlink()
    assert load_pipeline(folder, device="cpu").unet is not None, "shards as they should be are read"
    (folder / part).rename(tmp_path / "elsewhere")
    (folder / part).symlink_to(tmp_path / "elsewhere")  # a part that is a link is looked into too
    content = json.loads(index.read_text())
    shard = next(iter(content["weight_map"].values()))
    (folder / part / shard).rename(tmp_path / "outside.safetensors")
    torch.save(load_file(tmp_path / "outside.safetensors"), folder / part / "shard.bin")
    right = content["weight_map"]
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda *_, **__: pytest.fail("it was opened"))
    for name in ("../../outside.safetensors", "shard.bin", f"{tmp_path}/outside.safetensors"):
        content["weight_map"] = {key: name if value == shard else value for key, value in right.items()}
        index.write_text(json.dumps(content))
        with pytest.raises(OSError, match="which is no safetensors file of this folder.*: expected a whole") as error:
            load_pipeline(folder, device="cpu")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("where", ["unet", "_class_name"])
def test_code_that_comes_with_a_model_is_not_run(
    tiny_pipe: StableDiffusionPipeline, tmp_path: Path, where: str
) -> None:
    tiny_pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, where: ["evil", "Evil"]}))
    for folder in (tmp_path, tmp_path / "unet"):
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'made')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises((OSError, ValueError), match="code is never run|expected a pipeline of a UNet"):
        load_pipeline(tmp_path)
    assert not (tmp_path / "made").exists()


def test_the_layout_of_a_unet_is_known_without_its_weights(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    tiny_pipe.save_pretrained(tmp_path)
    for weights in tmp_path.glob("*/*.safetensors"):
        weights.unlink()
    assert cross_attention_heads(network_layout(tmp_path)) == cross_attention_heads(tiny_pipe)
    assert cross_attention_heads(network_layout("sd14")) == cross_attention_heads(network_layout("emoji-sd"))


def test_a_model_of_no_known_family_has_no_layout(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"transformer": ["diffusers", "DiTTransformer2DModel"]}')
    with pytest.raises(ValueError, match="expected a pipeline of a UNet2DConditionModel, PixArtTransformer2DModel"):
        network_layout(tmp_path)
    assert default_dtype(tmp_path, "cuda:1") == "bf16" and default_dtype(tmp_path, "mps") == "fp32"
    assert default_dtype("emoji-sd", "cuda") == "fp16"


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that says it has a card of NVIDIA's, and no other."""
    monkeypatch.delenv("SELATTN_DEVICE", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)


def test_the_device_is_the_best_there_is_unless_one_is_named(cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [pick_device(), pick_device("cpu"), pick_device("cuda:1")] == ["cuda", "cpu", "cuda:1"]
    monkeypatch.setenv("SELATTN_DEVICE", "cpu")
    assert [pick_device(), pick_device("cuda")] == ["cpu", "cuda"]
    for wanted in ("mps", "nosuch"):
        with pytest.raises(ValueError, match=f"no device '{wanted}' on this machine: expected cuda or cpu"):
            pick_device(wanted)


def test_what_is_offloaded_is_left_where_it_is(
    cuda: None, tiny_pipe: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_pipe.save_pretrained(tmp_path)
    offloaded: list[str] = []
    monkeypatch.setattr(StableDiffusionPipeline, "enable_model_cpu_offload", lambda _, device: offloaded.append(device))
    assert load_pipeline(tmp_path, offload=True, dtype=torch.bfloat16).device.type == "cpu"
    assert offloaded == ["cuda"]
    with pytest.raises(ValueError, match="expected a device of cuda or mps"):
        load_pipeline(tmp_path, device="cpu", offload=True)


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_folders_of_the_other_families_load(name: str, tmp_path: Path) -> None:
    pipe = getattr(tiny_families, f"build_{name}")()
    pipe.save_pretrained(tmp_path)
    loaded = load_pipeline(tmp_path, device="cpu")
    assert type(loaded) is type(pipe)
    assert len(cross_attention_heads(loaded)) == len(cross_attention_heads(pipe))


def test_pipelines_of_another_kind_are_refused(tmp_path: Path) -> None:
    DDPMPipeline(UNet2DModel(8, block_out_channels=(32,), down_block_types=("DownBlock2D",),
                             up_block_types=("UpBlock2D",)), DDPMScheduler()).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(ValueError, match="is a DDPMPipeline with {'unet': 'UNet2DModel'}; expected a pipeline of a UN"):
        load_pipeline(tmp_path)


@pytest.mark.parametrize(
    "name", ["nosuch", "./missing", "a/b/c", "../x", "owner/..", "owner/a..b", "owner/a\nb", "~/x"]
)
def test_what_is_no_model_is_said_to_be_none(name: str) -> None:
    with pytest.raises(ValueError, match="expected emoji-sd"):
        model_source(name)


def test_an_unreachable_hub_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load, name in ((load_pipeline, "nobody/nothing"), (load_segmenter, "grounded-sam"), (load_segmenter, "sam3")):
        with pytest.raises(OSError, match="emoji-sd needs neither") as error:
            load(name)  # type: ignore[operator]
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("slow", ["load_config", "from_pretrained"])
def test_a_hub_that_never_ends_its_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, slow: str) -> None:
    monkeypatch.setattr(DiffusionPipeline, "load_config", lambda *_, **__: {"unet": ["d", "UNet2DConditionModel"]})
    monkeypatch.setattr(DiffusionPipeline, slow, lambda *_, **__: time.sleep(30))
    monkeypatch.setattr(pipelines, "INDEX_LIMIT", 0.1)
    monkeypatch.setattr(pipelines, "WEIGHTS_LIMIT", 0.1)
    start = time.monotonic()
    with pytest.raises(OSError, match="no whole answer in 0.1 s; HF_HUB_OFFLINE=1 reads the cache alone"):
        load_pipeline("owner/model", device="cpu")
    assert time.monotonic() - start < 10


def test_a_revision_reaches_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def config(source: str, **settings: object) -> dict[str, list[str]]:
        asked.append((source, settings["revision"]))
        return {"unet": ["diffusers", "UNet2DConditionModel"]}

    def load(source: str, **settings: object) -> None:
        raise OSError(f"{source} at {settings['revision']}, safetensors: {settings['use_safetensors']}")

    monkeypatch.setattr(DiffusionPipeline, "load_config", config)
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", load)
    with pytest.raises(OSError, match="owner/model at v2, safetensors: True"):
        Study(model="owner/model", revision="v2").pipe  # noqa: B018
    assert set(asked) == {("owner/model", "v2")}
