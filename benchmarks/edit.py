"""The edit beside the released hook, as a part of one step of Stable Diffusion 1.4's UNet (random weights).

`python benchmarks/edit.py`: 16 x 16 vectors of 1,280, batch 1 with guidance; medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import released
import torch
from results import write_section

from saeuron.sae import SaeConfig, SparseAutoencoder
from saeuron.unlearn import erase

D_IN, LATENTS, K = 1280, 20_480, 32


def unet_step() -> Callable[[], object]:
    """One call of a UNet with the architecture of Stable Diffusion 1.4."""
    from diffusers import UNet2DConditionModel  # only now: see results.py

    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=768,
        attention_head_dim=8,
    ).eval()
    latents, text = torch.randn(2, 4, 64, 64), torch.randn(2, 77, 768)
    return lambda: unet(latents, 500, text)


@torch.no_grad()
def main() -> None:
    """Print the table and put it into RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    sae = SparseAutoencoder(SaeConfig(D_IN, num_latents=LATENTS, k=K)).eval().requires_grad_(False)
    tokens = torch.randn(2, 256, D_IN)
    sae.threshold.copy_(sae.pre_acts(tokens[0]).topk(K).values[:, -1].mean())
    often = sae.encode(tokens.flatten(0, 1)).latent.bincount(minlength=LATENTS).argsort(descending=True)
    never = torch.full((1,), 1e6)

    def edit(count: int, threshold: torch.Tensor, selection: str) -> Callable[[], object]:
        features = often[:count]
        gain, bound = torch.full((count,), -2.0), threshold.expand(count)
        if selection == "released":
            return lambda: released.hook(sae, tokens, features, gain, bound)
        return lambda: erase(tokens, sae, features, gain, bound, selection=selection)  # type: ignore[arg-type]

    everywhere = torch.full((1,), -1.0)
    # a latent that fires in every vector, as a style's does
    sae.encoder.bias[often[0]] = 100.0
    sae.changed()
    runs = {
        "UNet step": unet_step(),
        "released hook": edit(1, everywhere, "released"),
        "nothing fires, threshold": edit(1, never, "threshold"),
        "nothing fires, TopK": edit(1, never, "topk"),
        "fires everywhere, threshold": edit(1, everywhere, "threshold"),
        "fires everywhere, TopK": edit(1, everywhere, "topk"),
        "49 concepts, nothing fires, TopK": edit(49, never, "topk"),
        "49 concepts, one fires, TopK": edit(49, everywhere, "topk"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            repeats = 20 if "nothing" in name else 1
            clock = time.perf_counter()
            for _ in range(repeats):
                run()
            if number:
                seconds[name].append((time.perf_counter() - clock) / repeats)
    median = {name: statistics.median(found) for name, found in seconds.items()}
    lines = ["| what | median ms | % of the UNet step | of the released hook |", "|---|---|---|---|"]
    for name, value in median.items():
        part, beside = 100 * value / median["UNet step"], value / median["released hook"]
        lines.append(f"| {name} | {1000 * value:.2f} | {part:.3f} | {beside:.3f} |")
    lines += ["", f"d_in {D_IN}, {LATENTS} latents, k {K}, 2 x 256 vectors, {rounds} rounds."]
    write_section("Edit", "python benchmarks/edit.py", lines)


if __name__ == "__main__":
    main()
