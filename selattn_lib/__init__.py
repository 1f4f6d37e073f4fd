"""Which cross-attention heads of a text-to-image model draw which visual concept, and maps from only those.

The public names are imported when they are first used, since torch, diffusers and transformers take seconds to import.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import concepts, controls, diagnosis, explore, figures, study, surface, weakening
    from .aggregate import cumulative_heatmaps, heatmap, normalise
    from .capture import capture
    from .concepts import load_concepts
    from .heads import cross_attention_heads
    from .masked import MaskedStudy
    from .metrics import (
        attention_on,
        band,
        best_disc,
        centred_disc,
        full_frame,
        iou,
        mean_iou,
        paired_difference,
        study_iou_curves,
        study_ious,
    )
    from .models import load_pipeline
    from .relevance import HeadRelevance, load_hrv, score_heads
    from .segment import load_segmenter
    from .study import DiagnosisStudy, KnownTruthStudy, RelevanceStudy, Study, check_selection, relevance_for
    from .workbench import Workbench

__version__ = "0.1.0"

NAMES = {  # module -> the public names in it
    "aggregate": ["cumulative_heatmaps", "heatmap", "normalise"],
    "capture": ["capture"],
    "concepts": ["load_concepts"],
    "controls": [],
    "diagnosis": [],
    "explore": [],
    "figures": [],
    "heads": ["cross_attention_heads"],
    "masked": ["MaskedStudy"],
    "metrics": ["attention_on", "band", "best_disc", "centred_disc", "full_frame", "iou", "mean_iou",
                "paired_difference", "study_iou_curves", "study_ious"],
    "models": ["load_pipeline"],
    "relevance": ["HeadRelevance", "load_hrv", "score_heads"],
    "segment": ["load_segmenter"],
    "study": ["DiagnosisStudy", "KnownTruthStudy", "RelevanceStudy", "Study", "check_selection", "relevance_for"],
    "surface": [],
    "weakening": [],
    "workbench": ["Workbench"],
}  # fmt: skip


class _Package(ModuleType):
    def __getattr__(self, name: str) -> Any:
        for module, names in NAMES.items():
            if name in names:
                self.__dict__[name] = value = getattr(import_module(f"{__name__}.{module}"), name)
                return value
        if name in NAMES:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        """Python names a module in its package once it is imported; here `capture` is to stay the function."""
        if not (isinstance(value, ModuleType) and name in NAMES.get(name, [])):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *NAMES, *(name for names in NAMES.values() for name in names)})


sys.modules[__name__].__class__ = _Package
