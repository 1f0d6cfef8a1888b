"""From activations to a plan, in Python: a small SAE for one block, a profile of four styles, one style forgotten."""

import sys
from pathlib import Path

import saeuron
from saeuron import ActivationStream, SaeConfig, Sampling, SparseAutoencoder, TrainConfig, Trainer, mini
from saeuron.activations import hookpoint_shapes
from saeuron.evaluate.canvas import grid
from saeuron.prompts import training_prompts, validation_prompts

HOOKPOINT, STYLES, OBJECTS = "unet.up_blocks.1.attentions.2", mini.STYLES[:4], mini.OBJECTS[:4]


def main(out: Path) -> None:
    pipe, sampling = mini.load(), Sampling(steps=10, guidance=mini.GUIDANCE, batch=16)
    prompts = training_prompts(OBJECTS, STYLES, count=32)
    shape = hookpoint_shapes(pipe, [HOOKPOINT], sampling)[HOOKPOINT]
    stream = ActivationStream(pipe, prompts, [HOOKPOINT], sampling, batch=512, buffer=8192, uses=4)
    sae = SparseAutoencoder(SaeConfig(shape.d_in, expansion_factor=4, k=16))
    trainer = Trainer(sae, TrainConfig(lr=1e-3, batch=512), steps=shape.vectors * len(prompts) * 4 // 512)
    for stats in saeuron.train({HOOKPOINT: trainer}, stream):
        print(f"step {stats.step}: FVU {stats.fvu:.3f}")

    texts = validation_prompts("style", OBJECTS, STYLES, each=1)
    measured = saeuron.profile(pipe, {HOOKPOINT: sae}, texts, sampling)[HOOKPOINT]
    forget = saeuron.plan(measured, [STYLES[0]], features=1, multiplier=-1.0)
    forget.save_pretrained(out / "plan")

    requests = grid(OBJECTS, STYLES[:1], seeds=[0])
    saeuron.generate(pipe, requests, out / "before", sampling)
    with saeuron.unlearned(pipe, sae, forget):
        saeuron.generate(pipe, requests, out / "after", sampling)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "example"))
