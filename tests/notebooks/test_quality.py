"""How many words a model draws right: counted in pictures whose objects are known, and printed by a command."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file

from selattn_lib.emoji.control import DELTA
from selattn_lib.emoji.recipe import quality, train
from selattn_lib.emoji.scenes import HELD_OUT, compose
from selattn_lib.evaluation.statistics import share_interval
from selattn_lib.models.pipelines import load_pipeline


def test_a_model_draws_a_word_right_where_the_segmenter_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = quality.CLASSES[::20]

    def drawn(shift: int, prompts: list[str], seeds: list[int], *, steps: int) -> np.ndarray:
        assert prompts == [quality.prompt_for(*key) for key in keys] and steps == 15
        return np.stack([compose(np.random.default_rng([HELD_OUT, i, seed]), [keys[(i + shift) % len(keys)]]).image
                         for i in range(len(keys)) for seed in seeds])  # fmt: skip

    monkeypatch.setattr(quality, "drawn", drawn)
    right = quality.drawn_right({"good": 0, "bad": 1}, keys, [0, 1])
    assert float(right.sel(set="good").mean()) > 0.8 and float(right.sel(set="bad").mean()) < 0.1
    assert right["subject"].values.tolist()[:3] == [quality.prompt_for(*key) for key in (keys[0], keys[0], keys[1])]
    table = quality.quality_table(right)
    share = share_interval(right.sel(set="good"), right["subject"].values)
    assert table.loc["good"].tolist() == [str(share), "", ""]
    p = "p (≥\N{NO-BREAK SPACE}0.004)"  # of nine words
    assert table.columns.tolist() == ["share of words drawn right [95 %]", "less good [95 %]", p]
    assert table.loc["bad", "less good [95 %]"].startswith("-1.0") and table.loc["bad", p] < "0.05"


def test_the_quality_of_the_model_and_of_its_control_is_printed_by_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", "quality", "--weights", str(quality.WEIGHTS), "--work", str(tmp_path)])
    pipes: list[Any] = []
    monkeypatch.setattr(quality, "drawn_right", lambda given, *words, steps: pipes.append(given) or right_of(given))
    train.main()
    assert "emoji-control" in capsys.readouterr().out
    [given] = pipes
    expected = load_pipeline("emoji-control").unet.state_dict()
    torch.testing.assert_close(given["emoji-control"].unet.state_dict(), expected)
    assert not torch.equal(given["emoji-sd"].unet.state_dict()[CHANGED], expected[CHANGED])


CHANGED = next(iter(load_file(DELTA)))


def right_of(pipes: dict[str, Any]) -> xr.DataArray:
    coords = {"set": list(pipes), "subject": ("image", list("abcdef"))}
    return xr.DataArray(np.eye(6, 2), coords, ("image", "set"))
