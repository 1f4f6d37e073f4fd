"""Which models this library captures, and which `attention-map-diffusers` does: the table of the page on performance.

    python tests/benchmarks/models.py            # writes the table again
    python tests/benchmarks/models.py FOLDER     # where the peer is installed (runs/peers): reads its source first

What is said of the peer follows from its source alone: it names checkpoints, and it takes a model if it has a capturing
processor for each kind of attention processor that the model's layers have, by that kind's name. Otherwise it stops.
"""

import ast
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from selattn_lib.models.supported import supported_models

ROOT = Path(__file__).parents[2]
OUT, PEER = ROOT / "book/models_table.md", Path(__file__).with_name("results_peer.json")
PACKAGE = "attention_map_diffusers"
NAMED = {  # this library's name of a model -> how the peer's checkpoint of it begins
    "Stable Diffusion 2.x": "stable-diffusion-2",
    "Stable Diffusion XL": "stable-diffusion-xl",
    "SANA": "Sana_",
    "Stable Diffusion 3": "stable-diffusion-3-",
    "Stable Diffusion 3.5 large": "stable-diffusion-3.5",
    "FLUX.1": "FLUX.1-",
    "FLUX.2 klein": "FLUX.2-klein",
    "Z-Image": "Z-Image",
    "PRX pixel": "prxpixel",
    "Wan 2.1 1.3B": "Wan2.1-T2V-1.3B",
    "CogVideoX 2B": "CogVideoX-2b",
    "HunyuanVideo 1.5": "HunyuanVideo-1.5",
}
COLUMNS = ["maps", "per_head", "relevance", "selection", "video"]


def read_peer(folder: Path) -> dict[str, Any]:
    """What the source of the peer in `folder` says: its version, checkpoints, processors, and what it does of heads."""
    [metadata] = folder.glob(f"{PACKAGE}-*.dist-info/METADATA")
    described = metadata.read_text(encoding="utf-8")
    sources = {path: path.read_text(encoding="utf-8") for path in sorted((folder / PACKAGE).rglob("*.py"))}
    lists = [assigned for source in sources.values() for assigned in _dictionaries(ast.parse(source))]
    config = next(source for path, source in sources.items() if path.name == "config.py")
    compute = next(source for path, source in sources.items() if path.name == "compute.py")
    return {
        "version": re.search(r"^Version: (.+)$", described, re.MULTILINE)[1],
        "checkpoints": re.findall(r"^\| `[^`]+` \| \[`[^/`]+/([^`]+)`\]", described, re.MULTILINE),
        "processors": sorted({name for _, names in lists for name in names}),
        "per_head": 'heads == "all"' in compute,
        "heads_by_default": re.search(r"^ +heads: .*= \"(\w+)\"$", config, re.MULTILINE)[1],
        "relevance": any(re.search(r"head.?relevance|\bhrv\b", source, re.IGNORECASE) for source in sources.values()),
        "video": any("frame" in source for source in sources.values()),
    }


def _dictionaries(module: ast.Module) -> Iterator[tuple[str, list[str]]]:
    """(name, keys) of each dictionary of processors by name."""
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and isinstance(node.targets[0], ast.Name):
            if node.targets[0].id.endswith("PROCESSOR_NAMES"):
                yield node.targets[0].id, [ast.literal_eval(key) for key in node.value.keys if key is not None]


def peer_cells(peer: Mapping[str, Any], model: str, processors: set[str], video: bool) -> dict[str, str]:
    """Column -> what the peer does of a model whose layers have these processors."""
    named = model in NAMED and any(checkpoint.startswith(NAMED[model]) for checkpoint in peer["checkpoints"])
    taken = named or (bool(processors) and processors <= {*peer["processors"]})
    yes = "yes" if taken else "no"
    return {
        "maps": "yes" if named else "not named" if taken else "no",
        "per_head": yes if peer["per_head"] else "no",
        "relevance": yes if peer["relevance"] else "no",
        "selection": "by number" if taken else "no",
        "video": yes if video and peer["video"] else "no",
    }


def table(peer: Mapping[str, Any], processors: Mapping[str, set[str]]) -> str:
    """The page's two tables, in Markdown; `processors` (model) are the kinds that its layers have."""
    models = supported_models()
    lines = ["| Model | Pipeline of diffusers | What is captured | Heads |", "| --- | --- | --- | --- |"]
    for row in models[models.maps].itertuples():
        heads = "as many as its files say" if pd.isna(row.heads) else f"{row.heads:,}"
        lines.append(f"| {row.model} | `{row.pipeline}` | {row.captured} | {heads} |")
    titles = ["Model", "Maps", "Per head", "Head relevance", "Selection of heads", "Video"]
    lines += ["", f"Beside `attention-map-diffusers` {peer['version']} (this library / the peer):", ""]
    lines += [f"| {' | '.join(titles)} |", f"| {' | '.join(['---'] * len(titles))} |"]
    for row in models.itertuples():
        ours = {column: _shown(getattr(row, column)) for column in COLUMNS}
        video = row.video or row.network.endswith("3DModel")
        theirs = peer_cells(peer, row.model, processors.get(row.model, set()), video)
        lines.append(f"| {row.model} | {' | '.join(f'{ours[c]} / {theirs[c]}' for c in COLUMNS)} |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else value or "no"


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "tests")]
    from tiny_families import processors_of_models

    if folders := sys.argv[1:]:
        PEER.write_text(json.dumps(read_peer(Path(folders[0])), indent=1) + "\n", encoding="utf-8")
    OUT.write_text(table(json.loads(PEER.read_text(encoding="utf-8")), processors_of_models()), encoding="utf-8")
