"""Every style and every object of MiniCanvas removed in turn: `python benchmarks/removals.py`.

About half an hour on 2 cores; run again after an interruption, it continues. The limit is what the un-edited pipeline
does: IRA and CRA cannot be expected above its accuracy.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from results import write_section

from saeuron.activations import Sampling
from saeuron.canvas_run import CanvasRun
from saeuron.evaluate.canvas import Kind, accuracy, grid, mean_scores, predict
from saeuron.images import generate
from saeuron.models import MINI, load_classifiers, load_pipeline, usual_sampling, vocabulary


def main() -> None:
    """Print the table and put it into RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/removals"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[188])
    arguments = parser.parse_args()
    pipe, words, readers = load_pipeline(MINI), vocabulary(MINI), load_classifiers(MINI)
    run, sampling = CanvasRun.load(MINI), Sampling(*usual_sampling(MINI, 25), batch=34)
    requests = grid(words.objects, [None, *words.styles], arguments.seeds)
    folder = arguments.out / "before"
    before = predict(folder, generate(pipe, requests, folder, sampling), readers)
    lines = [
        f"Before any removal: style {100 * accuracy(before, 'style'):.1f} %, "
        f"object {100 * accuracy(before, 'object'):.1f} %, {len(before)} images.",
        "",
        "| removed | features | multiplier | UA | IRA | CRA |",
        "|---|---|---|---|---|---|",
    ]
    kinds: tuple[Kind, ...] = ("style", "object")
    for kind in kinds:
        names = list(words.of(kind))
        out = arguments.out / f"{kind}s"
        scores = run.evaluate(pipe, kind, names, words, readers, out, sampling, arguments.seeds)
        mean = mean_scores(scores.values())
        lines.append(f"| **{kind}s, mean** | | | " + " | ".join(f"**{100 * x:.1f}**" for x in mean) + " |")
        for name, found in scores.items():
            setting = run.settings[kind][name]
            how = f"{setting.features} | {setting.multiplier:g}"
            lines.append(f"| {name} | {how} | " + " | ".join(f"{100 * x:.1f}" for x in found) + " |")
    for kind in kinds:
        places = sorted({place for setting in run.settings[kind].values() for place in setting.hookpoints})
        lines += ["", f"{kind.capitalize()}s at {', '.join(places)}."]
    write_section("Every style and object removed in turn", "python benchmarks/removals.py", lines)


if __name__ == "__main__":
    main()
