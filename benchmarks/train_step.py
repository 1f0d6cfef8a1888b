"""A training step at the paper's size beside the released algorithm and the bare encoder product.

`python benchmarks/train_step.py`: forward, backward and Adam; medians of interleaved rounds; peak memory of each in a
process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import released
import torch
from results import write_section
from torch import Tensor

from saeuron.sae import SaeConfig, SparseAutoencoder
from saeuron.train import TrainConfig, Trainer

D_IN, LATENTS, K, ROWS = 1280, 20_480, 32, 4096


def vectors(seed: int) -> Tensor:
    """A batch with structure: sums of few fixed directions and a little noise."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(512, D_IN, generator=torch.Generator().manual_seed(7))
    weight = torch.rand(ROWS, 512, generator=generator) * (torch.rand(ROWS, 512, generator=generator) > 0.97)
    return weight @ directions + 0.1 * torch.randn(ROWS, D_IN, generator=generator)


def step_of(name: str, n_dead: int = 0) -> Callable[[Tensor], object]:
    """The step that a name stands for, on an SAE of its own."""
    sae = SparseAutoencoder(SaeConfig(D_IN, num_latents=LATENTS, k=K))
    dead = torch.arange(LATENTS) < n_dead
    if name == "released":
        slow = released.Trainer(sae)
        return lambda x: slow.step(x, dead)
    if name.startswith("product"):
        dtype = torch.bfloat16 if name.endswith("bfloat16") else torch.float32
        weight, bias = sae.encoder.weight.detach().to(dtype), sae.encoder.bias.detach().to(dtype)
        return lambda x: torch.nn.functional.linear(x.to(dtype), weight, bias)
    trainer = Trainer(sae, TrainConfig(bfloat16=name.endswith("bfloat16")), 10**6)
    trainer.silent[dead] = 10**9
    return trainer.step


NAMES = ("released", "product float32", "product bfloat16", "saeuron float32", "saeuron bfloat16")


def peak_memory(name: str) -> float:
    """GiB that two steps need beyond what is there before them."""
    code = (
        "import sys; sys.path.insert(0, 'benchmarks'); import train_step as t; x = t.vectors(0); "
        f"step = t.step_of({name!r}); before = t.resident(); step(x); step(x); print(t.resident() - before)"
    )
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def resident() -> float:
    """Largest resident size of this process so far, GiB; from Linux, since getrusage counts the parent's too."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 2**20


def main() -> None:
    """Print the table and put it into RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    steps = {name: step_of(name) for name in NAMES}
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    for number in range(rounds + 1):
        x = vectors(number)
        for name, step in steps.items():
            clock = time.perf_counter()
            step(x)
            if number:  # the first step also sets b_dec and warms up
                seconds[name].append(time.perf_counter() - clock)
    steps.clear()
    median = {name: statistics.median(found) for name, found in seconds.items()}
    lines = ["| step | median s | released / this | this / product float32 | peak GiB |", "|---|---|---|---|---|"]
    for name in NAMES:
        memory = "" if name.startswith("product") else f"{peak_memory(name):.2f}"
        faster, slower = median["released"] / median[name], median[name] / median["product float32"]
        lines.append(f"| {name} | {median[name]:.2f} | {faster:.1f} | {slower:.2f} | {memory} |")
    lines += ["", f"d_in {D_IN}, {LATENTS} latents, k {K}, {ROWS} vectors, no dead latents, {rounds} rounds."]
    write_section("Training step", "python benchmarks/train_step.py", lines)


if __name__ == "__main__":
    main()
