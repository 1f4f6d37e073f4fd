"""A study kept in windows of timesteps."""

from pathlib import Path

import numpy as np
import pytest

from selattn_lib.studies.generated import Study, WindowStudy


def test_windows_average_to_the_study_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELATTN_RUNS", str(tmp_path))
    settings: dict = {"words": ["bear"], "seeds": 2, "steps": 3, "batch": 2}
    whole, parts = Study(**settings).run(), WindowStudy(**settings, windows=2).run()
    assert parts.dataset["maps_16x16"].dims[:3] == ("image", "word", "window") and parts.dataset.sizes["window"] == 2
    first, last = parts.dataset["from_timestep"], parts.dataset["to_timestep"]
    assert first[0] > last[0] > last[1]
    np.testing.assert_array_equal(parts.pictures, whole.pictures)
    np.testing.assert_array_equal(parts.truths["truth"], whole.truths["truth"])
    for name in ("maps_16x16", "maps_2x2"):  # 4 calls (PNDM's 3 + 1) in two windows
        np.testing.assert_allclose(parts.dataset[name].astype(float).mean("window"), whole.dataset[name], atol=1e-3)
    with pytest.raises(ValueError, match="windows=9: expected at most 4"):
        WindowStudy(**settings, windows=9).run()
