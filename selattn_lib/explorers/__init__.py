"""Explorers: sliders and clicks that recompute the maps in the browser."""

from .aggregation import AggregationExplorer
from .diagnosis import DiagnosisExplorer
from .heads import HeadExplorer
from .switch import ExplorerSwitch
from .workbench import Workbench

__all__ = ["AggregationExplorer", "DiagnosisExplorer", "ExplorerSwitch", "HeadExplorer", "Workbench"]
