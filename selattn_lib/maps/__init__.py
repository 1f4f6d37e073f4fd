"""Head maps as data: the maps of every head, sets of heads, and which heads a concept has."""

from .aggregation import normalise
from .consensus import consensus, finest_heads, head_features
from .head_maps import HeadMaps, heatmap
from .head_sets import first_heads, matched_heads, random_orders
from .relevance import HeadRelevance, concentration, concept_similarity, load_hrv, overlap, relevance_orders

__all__ = ["HeadMaps", "HeadRelevance", "concentration", "concept_similarity", "first_heads", "heatmap", "load_hrv"]
__all__ += ["consensus", "finest_heads", "head_features", "matched_heads", "normalise", "overlap", "random_orders"]
__all__ += ["relevance_orders"]
