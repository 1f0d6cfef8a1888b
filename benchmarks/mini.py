"""How well MiniCanvas does what it is asked, before anything is removed: `python benchmarks/mini.py`.

Two rows: what the classifiers read in drawn pictures that they were not trained on, and in generated ones. The limit is
the first row: no generated picture can be read better than a drawn one.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from results import write_section

from saeuron import mini
from saeuron.activations import Sampling
from saeuron.evaluate.canvas import accuracy, grid, predict
from saeuron.images import generate
from saeuron.mini.build import VALIDATION_SEEDS
from saeuron.mini.canvas import render


def drawn(each: int) -> dict[str, float]:
    """Accuracy on held-out renderings; a plain picture counts as the style "plain"."""
    readers = mini.classifiers()
    right: dict[str, list[bool]] = {"style": [], "object": []}
    for object in mini.OBJECTS:
        pictures = [render(object, s, VALIDATION_SEEDS + i) for s in (*mini.STYLES, None) for i in range(each)]
        images = [Image.fromarray(picture.image) for picture in pictures]
        right["object"] += [read == object for read in readers["object"].predict(images)]
        asked = [picture.style or "plain" for picture in pictures]
        right["style"] += [read == style for read, style in zip(readers["style"].predict(images), asked, strict=True)]
    return {kind: float(np.mean(found)) for kind, found in right.items()} | {"images": len(right["object"])}


def generated(seeds: list[int]) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracy on generated images, and the same for each concept."""
    pipe, readers = mini.load(), {kind: found.predict for kind, found in mini.classifiers().items()}
    requests = grid(mini.OBJECTS, [None, *mini.STYLES], seeds)
    with tempfile.TemporaryDirectory() as folder:
        records = generate(pipe, requests, Path(folder), Sampling(mini.STEPS, mini.GUIDANCE, batch=39))
        found = predict(folder, records, readers)
    concepts = {style: accuracy([p for p in found if p.style == style], "style") for style in mini.STYLES}
    concepts |= {object: accuracy([p for p in found if p.object == object], "object") for object in mini.OBJECTS}
    total = {"style": accuracy(found, "style"), "object": accuracy(found, "object"), "images": len(found)}
    return total, concepts


def main() -> None:
    """Print the table and put it into RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[188, 288])
    parser.add_argument("--each", type=int, default=6, help="held-out renderings of each object in each style")
    arguments = parser.parse_args()
    held_out = drawn(arguments.each)
    made, concepts = generated(arguments.seeds)
    lines = ["| pictures | number | style read | object read |", "|---|---|---|---|"]
    for name, row in (("drawn, held out", held_out), (f"generated, {mini.STEPS} steps", made)):
        lines.append(f"| {name} | {row['images']:.0f} | {100 * row['style']:.1f} % | {100 * row['object']:.1f} % |")
    lowest = sorted(concepts, key=concepts.__getitem__)[:4]
    lines += ["", "Least well read: " + ", ".join(f"{name} {100 * concepts[name]:.1f} %" for name in lowest) + "."]
    write_section("The un-edited miniature", "python benchmarks/mini.py", lines)


if __name__ == "__main__":
    main()
