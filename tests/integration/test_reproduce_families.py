"""The paper's experiments on every kind of model: what is said beforehand, and a rehearsal on tiny ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_families

from selattn_lib.models.families import cross_attention_heads, find_family
from selattn_lib.publishing.reproduce import Reproduction
from selattn_lib.studies import base
from selattn_lib.studies.relevance import RelevanceStudy

SETTINGS: dict[str, Any] = {"words": 1, "seeds": 1, "steps": 1, "hrv_images": 2, "batch": 1, "segmenter": "emoji-sd"}


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A function that saves a tiny model's configuration; the model itself is what a study loads."""
    monkeypatch.setenv("SELATTN_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("SELATTN_DEVICE", "cpu")

    def save(name: str, **config: Any) -> tuple[Any, str]:
        pipe = getattr(tiny_families, f"build_{name}")()
        family, network = find_family(pipe)
        network.register_to_config(**config)
        folder = tmp_path / name
        pipe.save_config(folder)
        network.save_config(folder / family.part)
        if getattr(pipe, "vae", None) is not None:
            pipe.vae.save_config(folder / "vae")
        monkeypatch.setattr(base, "load_pipeline", lambda *_, **__: pipe)
        return pipe, str(folder)

    return save


@pytest.mark.parametrize(
    "name, pixels",
    [("kolors", 64), ("pixart", 64), ("sana", 64), ("hunyuan", 64), ("sd3", 64), ("prx", 512)]
    + [(name, 1024) for name in ("flux", "chroma", "klein", "qwen", "prx_pixel")],
)
def test_a_dry_run_speaks_of_the_model_at_hand(name: str, pixels: int, saved: Any) -> None:
    pipe, model = saved(name)
    reproduction = Reproduction(model=model, dry_run=True, dtype="fp32", **SETTINGS)
    said = reproduction.plan(reproduction.studies())
    part = "UNet" if name == "kolors" else "transformer"
    assert f"{len(cross_attention_heads(pipe))} heads" in said["model"] and said["model"].endswith(f"in the {part}")
    assert said["pictures"] == f"of {pixels} x {pixels} pixels"
    timed = f"{part} calls at" if name != "qwen" else "not measured: a QwenImageTransformer2DModel without its weights"
    assert said["images"].startswith("4, each of 1 steps") and timed in said["time"]
    assert f"GB for the {part}" in said["memory"] and "of 34 concepts, counted on 2 images" in said["relevance"]


def test_a_dry_run_of_what_does_not_fit_says_so(saved: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selattn_lib.publishing.reproduce.free_memory", lambda device: 1000)
    _, model = saved("sd3")
    reproduction = Reproduction(model=model, dry_run=True, dtype="fp32", **SETTINGS)
    said = reproduction.plan(reproduction.studies())
    assert said["time"].startswith("not measured, and not to be run here: a transformer call on 1 images in fp32")
    real = reproduction.model_copy(update={"dry_run": False})
    with pytest.raises(MemoryError, match="try a smaller --batch"):
        real.plan(real.studies())


def test_heads_that_cannot_be_scored_are_refused_before_anything_is_done(saved: Any) -> None:
    _, model = saved("zimage")
    with pytest.raises(ValueError, match="cannot be scored: its text passes blocks of its own .*from a file"):
        Reproduction(model=model, dtype="fp32", **SETTINGS).studies()


@pytest.mark.parametrize("name, config", [("sd3", {}), ("pixart", {"sample_size": 32})])
def test_all_studies_of_the_paper_run(name: str, config: dict[str, Any], saved: Any) -> None:
    """With the paper's 34 concepts, and the pipeline's own guidance."""
    pipe, model = saved(name, **config)
    heads = cross_attention_heads(pipe).names
    for study in Reproduction(model=model, dtype="fp32", **SETTINGS).studies():
        results = study.run()
        assert study.guidance == {"sd3": 7.0, "pixart": 4.5}[name]  # type: ignore[attr-defined]
        if isinstance(study, RelevanceStudy):
            assert results.scores.shape == (34, len(heads)) and results.scores["head"].values.tolist() == heads
            assert study.counts().sum() == 2 * len(heads)
        else:
            assert results.n_heads == len(heads) and results.n_images == 1


def test_prx_draws_one_picture_at_a_time_under_guidance(saved: Any) -> None:
    _, model = saved("prx")
    concepts = {"Animals": ["bear"], "Things": ["desk"]}
    study = RelevanceStudy(model=model, images=2, steps=1, batch=2, texts=["a bear"], concepts=concepts)
    with pytest.raises(
        ValueError, match="PRXPipeline draws one picture at a time under guidance: expected a batch of 1"
    ):
        study.run()
