"""What a vector costs as a training grows: `python benchmarks/stream.py`.

Vectors go through the shuffle buffer into a small SAE, as they come from a pipeline; nothing goes to the disk. Neither
the time for a vector nor the memory may grow with their number.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator

import torch
from results import write_section
from torch import Tensor

from saeuron.activations import ShuffleBuffer
from saeuron.sae import SaeConfig, SparseAutoencoder
from saeuron.train import TrainConfig, Trainer, train

D_IN, BATCH, BUFFER = 96, 4096, 262_144


def vectors(count: int) -> Iterator[tuple[str, Tensor]]:
    """Batches of `count` vectors in all, made in pieces of 4,000 and shuffled."""
    buffer = ShuffleBuffer(BUFFER, BATCH)
    piece = torch.randn(4000, D_IN)
    for _ in range(count // 4000):
        for batch in buffer.push(piece):
            yield "here", batch
    for batch in buffer.drain():
        yield "here", batch


def main() -> None:
    """Print the table and put it into RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[100_000, 300_000, 1_000_000, 3_000_000, 10_000_000])
    lines = ["| vectors | microseconds a vector | peak MiB |", "|---|---|---|"]
    for count in parser.parse_args().counts:
        sae = SparseAutoencoder(SaeConfig(D_IN, num_latents=192, k=8))
        trainer = Trainer(sae, TrainConfig(lr=1e-3, batch=BATCH), max(1, count // BATCH))
        clock = time.perf_counter()
        for _ in train({"here": trainer}, vectors(count)):
            pass
        cost = 1e6 * (time.perf_counter() - clock) / (trainer.step_count * BATCH)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        lines.append(f"| {count:,} | {cost:.1f} | {peak:.0f} |")
    lines += ["", f"d_in {D_IN}, 192 latents, batches of {BATCH}, a buffer of {BUFFER:,} vectors, 0 bytes on disk."]
    write_section("Stream", "python benchmarks/stream.py", lines)


if __name__ == "__main__":
    main()
