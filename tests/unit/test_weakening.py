"""Studies of weakened heads, and whether a concept is still there."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from selattn_lib.emoji.scenes import compose
from selattn_lib.evaluation.scores import presence
from selattn_lib.studies.generated import Study, WeakenedStudy


def test_a_weakened_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELATTN_RUNS", str(tmp_path))
    settings: dict = {"words": ["bear"], "seeds": 1, "steps": 2, "batch": 1}
    plain, same = Study(**settings).run(), WeakenedStudy(**settings, weakened=[0, 1], scale=1).run()
    np.testing.assert_array_equal(plain.image_rgb, same.image_rgb)
    off = WeakenedStudy(**settings, weakened=np.arange(64))
    assert (off.run().image_rgb != plain.image_rgb).any()
    assert off.folder == WeakenedStudy(**settings, weakened=list(range(64))[::-1]).folder
    with pytest.raises(ValueError, match="weakened|heads \\[128\\] do not exist"):
        WeakenedStudy(**settings, weakened=[128])


DRAWN = [("Animals", "bear"), ("Vehicles", "car")]


def test_presence_is_area_and_share_of_objects() -> None:
    scenes = [compose(np.random.default_rng([9, i]), words=[key]) for i, key in enumerate(DRAWN)]
    pictures = xr.Dataset(
        {
            "image_rgb": (("image", "y", "x", "rgb"), np.stack([s.image for s in scenes])),
            "truth": (("image", "y", "x"), np.stack([s.masks[0] & (i == 0) for i, s in enumerate(scenes)])),
        },
        {"subject": ("image", [word for _, word in DRAWN])},
    )
    found = presence(pictures, "Animals")
    assert found.area.values.tolist() == [scenes[0].masks[0].mean(), 0]
    assert found.score[0] > 0.7 and found.score[1] < 0.3
    with pytest.raises(ValueError, match="no concept 'Nosuch'"):
        presence(pictures, "Nosuch")
    detected = pictures.assign(truth_score=("image", [0.7, np.nan]))
    assert presence(detected, "anything").score.values.tolist() == [0.7, 0]
