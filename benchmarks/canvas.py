"""What forgetting costs while images are made: `python benchmarks/canvas.py`.

The same batch of images of MiniCanvas un-edited (the limit), with a plan, and with the plan's edit as the released hook
does it; interleaved rounds. Then the same grid asked for a second time, which makes nothing.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import released
import torch
from results import write_section
from torch import Tensor

from saeuron import mini
from saeuron.activations import Sampling
from saeuron.canvas_run import CanvasRun
from saeuron.evaluate.canvas import grid
from saeuron.hooks import Edit, edited
from saeuron.images import generate
from saeuron.sae import SparseAutoencoder
from saeuron.unlearn import BlockPlan, unlearned


def released_edit(sae: SparseAutoencoder, block: BlockPlan) -> Edit:
    """The edit of a block's plan by the released hook."""

    def edit(tokens: Tensor, timestep: Tensor) -> Tensor:
        step = (block.timesteps - timestep).abs().argmin()
        return released.hook(sae, tokens, block.features[step], block.gain[step], block.threshold[step])

    return edit


def main() -> None:
    """Print the table and put it into RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    pipe, run = mini.load(), CanvasRun.load("mini")
    plan = run.plan("style", "Winter") + run.plan("object", "Cats")
    slow = {block.hookpoint: released_edit(run.saes[block.hookpoint], block) for block in plan.blocks}
    contexts: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "un-edited": nullcontext,
        "a style and an object removed": partial(unlearned, pipe, run.saes, plan),
        "the same, released hook": partial(edited, pipe, slow),
    }
    sampling = Sampling(mini.STEPS, mini.GUIDANCE, 34)
    requests = grid(mini.OBJECTS, [None, "Rust"], [188])
    seconds: dict[str, list[float]] = {name: [] for name in contexts}
    for number in range(rounds + 1):
        for name, context in contexts.items():
            clock = time.perf_counter()
            with context(), torch.no_grad():
                sampling.call(pipe, [r.prompt for r in requests], [r.seed for r in requests], "pil")
            if number:
                seconds[name].append((time.perf_counter() - clock) / len(requests))
    with tempfile.TemporaryDirectory() as folder:
        generate(pipe, requests, Path(folder), sampling)
        clock = time.perf_counter()
        generate(pipe, requests, Path(folder), sampling)
        seconds["asked for a second time"] = [(time.perf_counter() - clock) / len(requests)]
    lines = ["| images | median ms an image | of un-edited |", "|---|---|---|"]
    limit = statistics.median(seconds["un-edited"])
    for name, found in seconds.items():
        lines.append(f"| {name} | {1000 * statistics.median(found):.1f} | {statistics.median(found) / limit:.3f} |")
    places = len(plan.blocks)
    lines += ["", f"{len(requests)} images, {mini.STEPS} steps, edited at {places} hookpoints, {rounds} rounds."]
    write_section("Generation", "python benchmarks/canvas.py", lines)


if __name__ == "__main__":
    main()
