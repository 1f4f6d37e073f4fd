"""Scores of maps, what to compare them with, and what may be concluded from them."""

from .baselines import best_disc, centred_disc, cross_fitted, full_frame, oracle_ious
from .scores import (
    attention_on,
    attention_ratio,
    every_score,
    head_precisions,
    iou,
    ious,
    log_attention_ratio,
    map_correlation,
    mean_attention,
    otsu_ious,
    presence,
    single_ious,
    threshold_free,
)
from .selection import (
    RULES,
    compare_rules,
    concept_gains,
    concept_means,
    consensus_gain,
    found,
    head_attention,
    rule_sets,
)
from .statistics import (
    Difference,
    Interval,
    agreement,
    area_under_roc,
    band,
    direction,
    effect_size,
    format_correlation,
    format_p,
    mean_interval,
    paired_difference,
    percentile,
    plateau,
    rank_agreement,
    rank_correlation,
    roc,
    share_interval,
    spread,
    statement,
)
from .tables import PAPER, SD14_SHARED, SD14_VOTES, Table, benchmark_table, chance_table, comparison_table

__all__ = ["Difference", "Interval", "Table", "agreement", "area_under_roc", "attention_on", "attention_ratio", "band"]
__all__ += ["benchmark_table", "best_disc", "centred_disc", "chance_table", "comparison_table", "cross_fitted"]
__all__ += ["direction", "effect_size", "format_correlation", "format_p", "full_frame", "iou", "ious"]
__all__ += ["log_attention_ratio", "map_correlation", "mean_attention", "mean_interval", "oracle_ious"]
__all__ += ["paired_difference", "percentile", "plateau", "presence", "rank_agreement", "rank_correlation", "roc"]
__all__ += ["share_interval", "single_ious", "spread", "statement", "threshold_free"]
__all__ += ["RULES", "compare_rules", "concept_gains", "consensus_gain", "every_score", "found", "head_attention"]
__all__ += ["PAPER", "SD14_SHARED", "SD14_VOTES", "head_precisions", "otsu_ious", "rule_sets"]
