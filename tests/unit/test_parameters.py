"""Selections of heads and thresholds, as papermill and the command line hand them over."""

from pathlib import Path

import pytest
from tiny_families import build_sdxl

from selattn_lib.studies.parameters import check_selection


@pytest.mark.parametrize("heads, thresholds", [(0, [0.5]), (129, [0.5]), (True, [0.5]), (30, [1.5]), (30, [])])
def test_a_bad_selection_is_refused(heads: int, thresholds: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        check_selection(heads, thresholds, "emoji-sd")


def test_heads_are_counted_on_the_model(tmp_path: Path) -> None:
    build_sdxl().save_pretrained(tmp_path / "sdxl")
    assert check_selection([1300, 20], "[0.5]", str(tmp_path / "sdxl")) == ([1300, 20], [0.5])
    with pytest.raises(ValueError, match="heads=1301: expected whole numbers from 1 to 1300, the heads of .*sdxl"):
        check_selection(1301, [0.5], str(tmp_path / "sdxl"))
