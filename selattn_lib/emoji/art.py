"""The drawings the emoji world is composed of, and where they come from.

`art.zip` (shipped) holds one lossless picture a glyph and set, `<set>/<glyph>.webp`, RGBA, `SIZE` pixels square.
`python -m selattn_lib.emoji.art FOLDER` rebuilds it from the npm packages below, unpacked into FOLDER.
"""

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

SIZE = 96


SETS = {  # set -> (npm package, version, licence)
    "noto": ("@iconify-json/noto", "1.2.9", "Apache-2.0, Google"),
    "twemoji": ("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0, Twitter"),
    "fluent": ("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT, Microsoft"),
}


HERE = files("selattn_lib.emoji")


@cache
def glyphs() -> dict[str, dict[str, str]]:
    """concept -> word -> glyph name, from `glyphs.yaml`."""
    return yaml.safe_load((HERE / "glyphs.yaml").read_text())


@cache
def load_art() -> dict[str, list[np.ndarray]]:
    """glyph name -> its drawings, one a set that has it, each (y, x, rgba) uint8 cropped to what is visible."""
    art: dict[str, list[np.ndarray]] = {}
    with zipfile.ZipFile(io.BytesIO((HERE / "art.zip").read_bytes())) as archive:
        for name in sorted(archive.namelist()):
            picture = Image.open(io.BytesIO(archive.read(name))).convert("RGBA")
            picture = picture.crop(picture.getchannel("A").point(lambda a: 255 * (a > 16)).getbbox())
            art.setdefault(Path(name).stem, []).append(np.asarray(picture))
    return art


def build(folder: Path, out: Path) -> None:
    """Fetch the pinned npm packages into `folder`, render every glyph in use, and write the archive `out`."""
    import resvg_py  # type: ignore[import-untyped]

    names = sorted({glyph for words in glyphs().values() for glyph in words.values()})
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(out, "w") as archive:
        for set_name, (package, version, _) in SETS.items():
            packed = subprocess.run(
                ["npm", "pack", "--silent", f"{package}@{version}"],
                cwd=folder, check=True, capture_output=True, text=True,
            ).stdout.split()[-1]  # fmt: skip
            with tarfile.open(folder / packed) as tar:
                icons = json.load(tar.extractfile("package/icons.json"))  # type: ignore[arg-type]
            for glyph in names:
                name = icons.get("aliases", {}).get(glyph, {}).get("parent", glyph)
                if name not in icons["icons"]:
                    continue
                icon = icons["icons"][name]
                box = f"0 0 {icon.get('width', icons['width'])} {icon.get('height', icons['height'])}"
                svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>'
                png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE)
                picture, data = Image.open(io.BytesIO(bytes(png))), io.BytesIO()
                picture.save(data, "webp", lossless=True, quality=100)
                archive.writestr(zipfile.ZipInfo(f"{set_name}/{glyph}.webp"), data.getvalue())


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(str(HERE / "art.zip")))
