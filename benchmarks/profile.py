"""Measuring a concept from activations, beside the released way: `python benchmarks/profile.py`.

The same activations (16 x 16 vectors of 1,280 for each prompt and step) go through both: here sums over sparse codes,
one step at a time; there a dense code for every prompt, kept until the mean is taken.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from results import write_section
from torch import Tensor

from saeuron.concepts import means_of_images
from saeuron.sae import SaeConfig, SparseAutoencoder

D_IN, LATENTS, K, POSITIONS = 1280, 20_480, 32, 256


def ours(sae: SparseAutoencoder, prompts: list[Tensor]) -> Tensor:
    """Mean over prompts for each step, sums kept online."""
    total = torch.zeros(len(prompts[0]), LATENTS, dtype=torch.float64)
    for tokens in prompts:
        for step, found in enumerate(tokens):
            total[step] += means_of_images(found[None], sae, "topk")[0]
    return total / len(prompts)


def dense(sae: SparseAutoencoder, prompts: list[Tensor]) -> Tensor:
    """The same by a dense code of every prompt and step."""
    kept = []
    for tokens in prompts:
        steps = []
        for found in tokens:
            pre_acts = sae.pre_acts(found)
            values, place = pre_acts.topk(K, dim=1)
            steps.append(torch.zeros_like(pre_acts).scatter(1, place, values))
        kept.append(torch.stack(steps).mean(1))
    return torch.stack(kept).double().mean(0)


@torch.no_grad()
def main() -> None:
    """Print the table and put it into RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.manual_seed(0)
    sae = SparseAutoencoder(SaeConfig(D_IN, num_latents=LATENTS, k=K)).eval().requires_grad_(False)
    prompts = [torch.randn(4, POSITIONS, D_IN) for _ in range(4)]
    weight = sae.encoder.weight
    runs = {
        "released way": lambda: dense(sae, prompts),
        "saeuron": lambda: ours(sae, prompts),
        "encoder product only": lambda: [step @ weight.T for tokens in prompts for step in tokens],
    }
    torch.testing.assert_close(ours(sae, prompts), dense(sae, prompts), rtol=1e-4, atol=1e-6)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            clock = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - clock)
    median = {name: statistics.median(found) for name, found in seconds.items()}
    lines = ["| way | median ms for a prompt and step | released / this |", "|---|---|---|"]
    for name, value in median.items():
        lines.append(f"| {name} | {1000 * value / 16:.1f} | {median['released way'] / value:.2f} |")
    lines += ["", f"d_in {D_IN}, {LATENTS} latents, k {K}, {POSITIONS} vectors, {rounds} rounds."]
    write_section("Profile", "python benchmarks/profile.py", lines)


if __name__ == "__main__":
    main()
