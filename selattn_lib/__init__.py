"""Which cross-attention heads of a text-to-image model draw which visual concept, and maps from only those."""

from . import concepts, explore, figures
from .aggregate import cumulative_heatmaps, heatmap, normalise
from .capture import capture
from .concepts import load_concepts
from .heads import cross_attention_heads
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

__version__ = "0.1.0"
