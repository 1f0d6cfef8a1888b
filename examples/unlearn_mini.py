"""Forget a style and an object at once, with what comes with the package; leaves before_after.png in a folder."""

import sys
from pathlib import Path

import torch

from saeuron import mini, unlearned
from saeuron.canvas_run import CanvasRun
from saeuron.figures import labelled_grid

PROMPTS = ["An image of Bears in Winter style.", "An image of Flame in Winter style.", "An image of Flame."]


def main(out: Path) -> None:
    pipe, bundled = mini.load(), CanvasRun.load("mini")
    forget = bundled.plan("style", "Winter") + bundled.plan("object", "Flame")

    def images() -> list:
        noise = [torch.Generator().manual_seed(7) for _ in PROMPTS]
        return pipe(PROMPTS, num_inference_steps=mini.STEPS, guidance_scale=mini.GUIDANCE, generator=noise).images

    before = images()
    with unlearned(pipe, bundled.saes, forget):
        after = images()
    out.mkdir(parents=True, exist_ok=True)
    labelled_grid([before, after], ["before", "after"], PROMPTS, tile=256).save(out / "before_after.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example"))
