"""Plotly figures, and sheets of pictures. They draw what they are given and compute no results."""

from .curves import interval_dots, interval_lines, interval_scatter, score_surface, training_curve
from .pictures import compare_maps, contact_sheet, overlay_grid
from .relevance import head_grid, rank_stability, relevance_matrix, similarity_matrix, sortable_relevance, top_heads

__all__ = ["compare_maps", "contact_sheet", "head_grid", "interval_dots", "interval_lines", "interval_scatter"]
__all__ += ["overlay_grid", "rank_stability", "relevance_matrix", "score_surface", "similarity_matrix"]
__all__ += ["sortable_relevance", "top_heads", "training_curve"]
