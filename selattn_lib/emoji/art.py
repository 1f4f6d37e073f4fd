"""The drawings the emoji world is composed of, and where they come from.

`art.zip` (shipped) holds one picture a glyph and set, `<set>/<glyph>.webp`, RGBA, `SIZE` pixels square.
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

SIZE = 256


SETS = {  # set -> (npm package, version, licence), the shaded one, which leads, first
    "fluent-3d": ("@lobehub/fluent-emoji-3d", "1.1.0", "MIT, Microsoft"),
    "noto": ("@iconify-json/noto", "1.2.9", "Apache-2.0, Google"),
    "twemoji": ("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0, Twitter"),
    "fluent": ("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT, Microsoft"),
    "emojione": ("@iconify-json/emojione", "1.2.3", "CC-BY-4.0, EmojiOne 2"),
}


HERE = files("selattn_lib.emoji")


@cache
def glyphs() -> dict[str, dict[str, str]]:
    """concept -> word -> glyph name, from `glyphs.yaml`."""
    return yaml.safe_load((HERE / "glyphs.yaml").read_text())


@cache
def archive() -> zipfile.ZipFile:
    """The shipped pictures, still packed."""
    return zipfile.ZipFile(io.BytesIO((HERE / "art.zip").read_bytes()))


@cache
def drawings(glyph: str) -> list[np.ndarray]:
    """The drawings of a glyph, one a set that has it, each (y, x, rgba) uint8 cropped to what is visible."""
    names = [f"{name}/{glyph}.webp" for name in SETS]
    pictures = [Image.open(archive().open(name)).convert("RGBA") for name in names if name in archive().NameToInfo]
    visible = [picture.getchannel("A").point(lambda a: 255 * (a > 16)).getbbox() for picture in pictures]
    return [np.asarray(picture.crop(box)) for picture, box in zip(pictures, visible, strict=True)]


def build(folder: Path, out: Path) -> None:
    """Fetch the pinned npm packages into `folder`, and write every glyph in use, rendered where it is a vector
    drawing, into the archive `out`."""
    import resvg_py  # type: ignore[import-untyped]

    names = sorted({glyph for words in glyphs().values() for glyph in words.values()})
    folder.mkdir(parents=True, exist_ok=True)
    packages = {name: _fetch(folder, name) for name in SETS}
    points = {glyph: point for point, glyph in json.loads(packages["twemoji"]["chars.json"]).items()}
    with zipfile.ZipFile(out, "w") as packed:
        for name, package in packages.items():
            icons = json.loads(package.get("icons.json", "{}"))
            for glyph in names:
                if icons:
                    parent = icons.get("aliases", {}).get(glyph, {}).get("parent", glyph)
                    if (icon := icons["icons"].get(parent)) is None:
                        continue
                    box = f"0 0 {icon.get('width', icons['width'])} {icon.get('height', icons['height'])}"
                    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{icon["body"]}</svg>'
                    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE)
                    picture, data = Image.open(io.BytesIO(bytes(png))), io.BytesIO()
                    picture.save(data, "webp", lossless=True, quality=100)
                    drawn = data.getvalue()
                else:  # pictures, named by code points
                    drawn = package.get(f"assets/{points[glyph]}.webp") or package[f"assets/{points[glyph]}-fe0f.webp"]
                packed.writestr(zipfile.ZipInfo(f"{name}/{glyph}.webp"), drawn)


def _fetch(folder: Path, name: str) -> dict[str, bytes]:
    """The files of a set's npm package, which is kept in `folder`."""
    package, version, _ = SETS[name]
    command = ["npm", "pack", "--silent", f"{package}@{version}"]
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    with tarfile.open(folder / done.stdout.split()[-1]) as tar:
        members = [member for member in tar if member.isfile()]
        return {member.name.removeprefix("package/"): tar.extractfile(member).read() for member in members}  # type: ignore[union-attr]


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(str(HERE / "art.zip")))
