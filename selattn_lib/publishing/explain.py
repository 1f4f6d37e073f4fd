"""`selattn explain`: from a prompt to pictures, overlays, maps, masks and a page with the explorer, in one folder."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from ..explorers.aggregation import AggregationExplorer
from ..explorers.drawing import agreement_ranking, check_words, draw, save_pictures, suggestion, usual_concepts
from ..maps.head_maps import HeadMaps
from ..maps.relevance import SHIPPED, HeadRelevance
from ..models.pipelines import EMBEDDED, check_draws_pictures, in_embedded_world, load_pipeline
from ..models.segmenters import load_segmenter
from ..studies.base import guidance_of
from ..studies.parameters import read_literal
from ..studies.relevance import relevance_for

SETTINGS = "explain.json"  # in the folder: with what it was made, and which files are its own


def explain(
    prompt: str,
    words: Sequence[str],
    out: Path,
    *,
    model: str = EMBEDDED,
    heads: str = "30",
    concept: str = "",
    seeds: int = 1,
    steps: int = 50,
    guidance: float | None = None,
    threshold: float = 0.4,
    hrv: str = "",
) -> Path:
    """Draw a prompt and write what its words look at to `out`; returns the page, `out`/index.html.

    All is checked before the model is loaded, and `out` is there, or changed, only when everything is written. Raises
    ValueError on anything that does not fit, naming it and what was expected.
    """
    words = check_words(words, prompt)
    for name, value, least in (("seeds", seeds, 1), ("steps", steps, 1)):
        if value < least:
            raise ValueError(f"--{name} {value}: expected {least} or more")
    if not 0 < threshold < 1:
        raise ValueError(f"--threshold {threshold}: expected a number between 0 and 1, such as 0.4")
    if guidance is not None and not 0 <= guidance < inf:
        raise ValueError(f"--guidance {guidance}: expected a finite number of 0 or more, such as 7.5")
    relevance = _relevance(model, heads, hrv)
    k, concept = _choice(relevance, heads, concept, words, model)
    guidance = guidance_of(model) if guidance is None and in_embedded_world(model) else guidance
    settings: dict[str, Any] = {"prompt": prompt, "words": words, "model": model, "heads": k or "all"}
    settings |= {"concept": concept, "hrv": hrv, "seeds": seeds, "steps": steps}
    settings |= {"guidance": guidance, "threshold": threshold}
    with whole_folder(out) as folder:
        check_draws_pictures(model)
        pipe = load_pipeline(model)
        segmenter = load_segmenter(EMBEDDED) if in_embedded_world(model) else None
        with tqdm(total=seeds * steps, unit="step", desc=f"drawing with {model}") as bar:
            options: dict[str, Any] = {"steps": steps, "guidance": guidance, "segmenter": segmenter}
            maps = draw(pipe, prompt, words, range(seeds), on_step=lambda done: bar.update(done - bar.n), **options)
        _write(folder, maps, relevance, k, settings)
    return out / "index.html"


def _relevance(model: str, heads: str, hrv: str) -> HeadRelevance | None:
    """Head relevance to choose heads by; None where none is known and none is needed."""
    if hrv or model in SHIPPED:
        return relevance_for(model, hrv or model)
    if heads != "all":
        raise ValueError(
            f"--heads {heads}: no head relevance of {model} comes with the library. Give yours with --hrv, a saved "
            ".npz or a folder of published vectors; or average every head with --heads all"
        )
    return None


def _choice(
    relevance: HeadRelevance | None, heads: str, concept: str, words: Sequence[str], model: str
) -> tuple[int | None, str]:
    """How many heads, None for all; and whose."""
    known = [] if relevance is None else relevance.scores["concept"].values.tolist()
    if concept and concept not in known:
        way = suggestion(concept, known) if known else "give some with --hrv, a saved .npz or a published folder"
        raise ValueError(f"--concept {concept!r} has no head relevance here: {way}")
    if heads == "all":
        return None, concept or (usual_concepts(words, model, known)[0] if known else "")
    most, k = 0 if relevance is None else relevance.scores.sizes["head"], read_literal(heads)
    if not isinstance(k, int) or not 1 <= k <= most:
        raise ValueError(f"--heads {heads}: expected all, or a whole number from 1 to {most}, the heads of {model}")
    return k, concept or usual_concepts(words, model, known)[0]


def _write(folder: Path, maps: HeadMaps, relevance: HeadRelevance | None, k: int | None, settings: dict) -> None:
    """Pictures, overlays, maps and masks as PNG, the page, and the settings."""
    concept, threshold = settings["concept"], settings["threshold"]
    chosen = {f"top-{k}-{concept}": relevance.top(concept, k)} if relevance is not None and k else {}
    save_pictures(folder, maps, chosen, threshold)
    explorer = AggregationExplorer(
        maps,
        agreement_ranking(maps) if relevance is None else relevance,
        concept=concept or None,
        method="top k" if k else "all heads",
        k=k or min(30, maps.n_heads),
        threshold=threshold,
    )
    shown = {name: value for name, value in settings.items() if value and name not in ("prompt", "words")}
    notes = [
        f"Where {' and '.join(f'“{word}”' for word in settings['words'])} went in the picture, by the cross-attention "
        f"of {maps.n_heads} heads. Choose a word and some of the heads; the map on the right is that of all of them.",
        "Made by selattn explain: " + ", ".join(f"{name} {value}" for name, value in shown.items()) + ".",
    ]
    explorer.save(folder / "index.html", settings["prompt"], notes)
    files = sorted(path.name for path in folder.iterdir())
    (folder / SETTINGS).write_text(json.dumps(settings | {"files": files}, indent=1, default=list), encoding="utf-8")


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write to, whose files go to `out` when all are written, in the place of those of an earlier run.

    Raises ValueError if `out` holds what is not of an earlier run, before anything is written.
    """
    mark = out / SETTINGS
    if (out.exists() and not out.is_dir()) or (out.is_dir() and any(out.iterdir()) and not mark.exists()):
        raise ValueError(
            f"--out {out} is there already, and was not made by selattn explain: nothing in it is touched. Name a "
            "folder that is new, empty, or of an earlier run, whose files are then replaced"
        )
    try:
        earlier = json.loads(mark.read_text(encoding="utf-8")).get("files", []) if mark.exists() else []
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{mark} is damaged, so which files are of an earlier run is not known: remove it") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as new:
        yield Path(new)
        out.mkdir(exist_ok=True)
        for name in earlier:
            (out / Path(name).name).unlink(missing_ok=True)
        for file in sorted(Path(new).iterdir()):
            file.replace(out / file.name)
