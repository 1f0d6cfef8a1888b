"""Forget a style and an object at once, with what comes with the package; leaves before_after.png in a folder."""

import sys
from pathlib import Path

import torch

from saeuron import ConceptProfile, SparseAutoencoder, mini, plan, unlearned
from saeuron.canvas_run import read_settings
from saeuron.figures import labelled_grid

STYLE, OBJECT = "Winter", "Flame"
PROMPTS = [f"An image of {thing} in Winter style." for thing in ("Bears", "Flame")] + ["An image of Flame."]


def main(out: Path) -> None:
    pipe = mini.load()
    settings = read_settings(mini.SETTINGS)
    saes, both = {}, None
    for kind, concept in (("style", STYLE), ("object", OBJECT)):
        where, features, multiplier = settings[kind][concept]
        saes[where] = SparseAutoencoder.from_pretrained(mini.SAES, where)
        profile = ConceptProfile.from_pretrained(mini.PROFILES / f"{kind}s" / where)
        one = plan(profile, [concept], features, multiplier)
        both = one if both is None else both + one

    def images() -> list:
        noise = [torch.Generator().manual_seed(7) for _ in PROMPTS]
        return pipe(PROMPTS, num_inference_steps=mini.STEPS, guidance_scale=mini.GUIDANCE, generator=noise).images

    before = images()
    with unlearned(pipe, saes, both):
        after = images()
    out.mkdir(parents=True, exist_ok=True)
    labelled_grid([before, after], ["before", "after"], PROMPTS, tile=256).save(out / "before_after.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example"))
