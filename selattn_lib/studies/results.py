"""Stored results, as what a study's `run` returns."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ..maps.head_maps import HeadMaps
from ..maps.relevance import HeadRelevance
from ..models.pipelines import DEVICES
from .digests import FORMAT
from .store import Store, calling_damaged


def load(folder: str | Path) -> HeadMaps | HeadRelevance:
    """The results of a finished study, from its folder alone: the study's model need not be there.

    Parameters
    ----------
    folder : path
        A study's folder, such as ``study.folder``. Nothing is written there, so that it may be one to read only.

    Returns
    -------
    HeadMaps or HeadRelevance
        What ``study.run()`` returned. Variables are read from the disk where they are used.

    Raises
    ------
    FileNotFoundError
        If the folder is not a study's.
    ValueError
        If the study is not finished, or is of another version of this library.
    OSError
        If files of it are damaged.

    Examples
    --------
    >>> import selattn_lib as sa
    >>> study = sa.KnownTruthStudy(scenes=1, timesteps=[500])
    >>> study.run() # doctest: +ELLIPSIS
    HeadMaps: 1 image of ...
    >>> sa.load(study.folder) # doctest: +ELLIPSIS
    HeadMaps: 1 image of ...
    """
    folder = Path(folder)
    if not (folder / "study.json").is_file():
        raise FileNotFoundError(f"no study in {str(folder)!r}: expected a folder with study.json in it")
    with calling_damaged(folder):
        description = json.loads((folder / "study.json").read_text(encoding="utf-8"))
        written, size = description.get("format"), int(description["size"])
    if written != FORMAT:
        raise ValueError(f"{folder} is of format {written}: expected {FORMAT}; run the study again")
    store = Store(folder, size, read_only=True)
    if missing := [unit for unit in range(store.size) if not store.is_complete(unit)]:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {store.size} images, which are not computed or damaged: run the study"
        )
    with calling_damaged(folder):
        stored = with_device_names(store.open())
        return head_maps(stored, description) if "units" in description else head_relevance(stored)


def with_device_names(stored: xr.Dataset) -> xr.Dataset:
    """`device` (image), a number in the store, as a name."""
    return stored.assign(device=("image", np.array(DEVICES)[stored["device"].values]))


def head_relevance(stored: xr.Dataset) -> HeadRelevance:
    """The relevance that follows from the stored `counts` (image, concept, head)."""
    return HeadRelevance.from_counts(stored["counts"].astype(int).load())


def head_maps(stored: xr.Dataset, description: dict[str, Any]) -> HeadMaps:
    """Stored maps with what a study's description says of the pictures: prompt, subject and seed (image).

    Where a segmenter took part, the coordinate `{mask}_outcome` (image) says what it found: "found", "several found"
    (of all of which the mask is, or with `instances` "best" of the one of the highest score), "empty mask" or "not
    found", the last two with a mask of nothing.
    """
    units, settings = description["units"], description["settings"]
    coords: dict[str, Any] = {key: ("image", [unit[key] for unit in units]) for key in units[0]}
    for name in [str(name).removesuffix("_detections") for name in stored if str(name).endswith("_detections")]:
        number = stored[f"{name}_detections"].values
        empty = np.array([not mask.values.any() for mask in stored[name]])
        outcome = np.select([number == 0, empty, number > 1], ["not found", "empty mask", "several found"], "found")
        coords[f"{name}_outcome"] = ("image", outcome)
    attributes = {name: settings[name] for name in ("model", "concept") if name in settings}
    return HeadMaps(stored.assign_coords(coords).assign_attrs(attributes))
