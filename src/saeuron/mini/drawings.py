"""Where MiniCanvas's drawings come from: icon sets on the npm registry, rasterised once onto one sheet.

Needs `npm` and the `resvg-py` package (extra `[dev]`); using the miniature needs neither.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path

from PIL import Image

from saeuron.mini.canvas import OBJECTS, SETS, TILE

PACKAGES = {
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "noto": "@iconify-json/noto@1.2.9",
    "fluent-emoji-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "noto-v1": "@iconify-json/noto-v1@1.2.5",
}
"""CC-BY-4.0, Apache-2.0, MIT and Apache-2.0; NOTICE has the credits."""

CODE_POINTS = {
    "Architectures": "1f3db", "Bears": "1f43b", "Birds": "1f426", "Butterfly": "1f98b", "Cats": "1f431",
    "Dogs": "1f436", "Fishes": "1f41f", "Flame": "1f525", "Flowers": "1f33b", "Frogs": "1f438", "Horses": "1f40e",
    "Human": "1f468", "Rabbits": "1f430", "Sandwiches": "1f354", "Sea": "1f30a", "Towers": "1f5fc", "Trees": "1f332",
}  # fmt: skip


def draw_sheet(folder: Path, sheet: Path) -> None:
    """Write the sheet that `canvas.drawings` reads; the icon sets are fetched into `folder` unless they lie there."""
    packages = {name: _fetch(package, folder) for name, package in PACKAGES.items()}
    names: dict[str, list[str]] = {}
    for package in packages.values():
        for code_point, name in json.loads(package["chars.json"]).items():
            names.setdefault(code_point, []).append(name)
    picture = Image.new("RGBA", (TILE * len(SETS), TILE * len(OBJECTS)))
    for column, set_name in enumerate(SETS):
        icons = json.loads(packages[set_name]["icons.json"])
        for row, object in enumerate(OBJECTS):
            svg = _svg(icons, names[CODE_POINTS[object]])
            picture.paste(_rasterise(svg), (column * TILE, row * TILE))
    sheet.parent.mkdir(parents=True, exist_ok=True)
    picture.save(sheet, optimize=True)


def _fetch(package: str, folder: Path) -> dict[str, bytes]:
    """The json files of an npm package, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / (package.lstrip("@").replace("/", "-").replace("@", "-") + ".tgz")
    if not archive.exists():
        subprocess.run(["npm", "pack", package], cwd=folder, check=True, capture_output=True)
    with tarfile.open(archive) as tar:
        files = {Path(member.name).name: tar.extractfile(member) for member in tar if member.name.endswith(".json")}
        return {name: file.read() for name, file in files.items() if file is not None}


def _svg(icons: dict, names: list[str]) -> str:
    """The first of `names` that the set has, aliases followed, as a complete svg."""
    for name in names:
        name = icons.get("aliases", {}).get(name, {}).get("parent", name)
        icon = icons["icons"].get(name)
        if icon is not None:
            box = [icon.get(key, icons.get(key, default)) for key, default in _BOX.items()]
            return (
                '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{box[0]} {box[1]} {box[2]} {box[3]}" width="{TILE}" height="{TILE}">{icon["body"]}</svg>'
            )
    raise ValueError(f"the set {icons['prefix']!r} has no icon named {' or '.join(map(repr, names))}")


_BOX = {"left": 0, "top": 0, "width": 16, "height": 16}


def _rasterise(svg: str) -> Image.Image:
    import resvg_py

    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA").resize((TILE, TILE))
