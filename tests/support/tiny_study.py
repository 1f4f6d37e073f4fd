"""Studies of a tiny model with random weights: for what does not depend on what is drawn."""

from pathlib import Path
from typing import Any

from tiny_sd import build_pipeline

from selattn_lib.studies.generated import Study


def save_tiny_model(folder: Path) -> Path:
    build_pipeline().save_pretrained(folder)
    return folder


def tiny_settings(model: Path, **changes: Any) -> dict[str, Any]:
    settings = {"words": ["bear", "cat"], "seeds": 2, "steps": 1, "batch": 2, "segmenter": "emoji-sd"}
    return {"model": str(model), **settings, **changes}


def tiny_study(model: Path, **changes: Any) -> Study:
    return Study(**tiny_settings(model, **changes))
