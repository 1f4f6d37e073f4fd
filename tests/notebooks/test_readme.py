"""The README's lines of Python, run on the shipped model."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selattn_lib.studies.base import guidance_of

ROOT = Path(__file__).parents[2]


def test_the_readme_s_lines_do_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code and f"guidance_scale={guidance_of('emoji-sd'):g}, generator=seed" in code[1], "as its studies draw"
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code[1].replace("generator=seed", "generator=seed, num_inference_steps=2"), names)
    assert names["heat"].dims == names["daam"].dims == ("y", "x")
    assert not np.allclose(names["heat"], names["daam"])
    kinds = {path.stem.rsplit("-", 1)[-1] for path in (tmp_path / "runs" / "bear").glob("*.png")}
    assert kinds == {"overlay", "map", "mask"}
