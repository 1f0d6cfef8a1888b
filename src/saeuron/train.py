"""Training SAEs on a stream of activation vectors."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saeuron.files import load_state, save_state, write_file
from saeuron.progress import progress
from saeuron.sae import SparseAutoencoder, geometric_median

CHECKPOINT, STATS = "checkpoint.safetensors", "stats.jsonl"
"""Files of a run."""


@dataclass(frozen=True)
class TrainConfig:
    """How SAEs are trained; the defaults are the paper's."""

    lr: float = 4e-4
    """Learning rate of the first step; it falls linearly to zero."""
    batch: int = 4096
    """Vectors in a step; at least 2, since the loss is relative to their variance."""
    epochs: int = 5
    """How often each vector is used; 10 for the style block of the paper."""
    auxk_alpha: float = 1 / 32
    """Weight of the AuxK term."""
    dead_after: int = 10_000_000
    """A latent is dead when it has not fired for this many vectors."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    threshold_decay: float = 0.99
    """Decay of the running mean that becomes the inference threshold."""
    bfloat16: bool = False
    """Compute the encoder's product, nearly all of the work, in bfloat16; weights and all else stay as they are."""

    def __post_init__(self) -> None:
        for name in ("lr", "batch", "epochs", "dead_after", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number above 0")
        if self.batch < 2:
            raise ValueError(f"batch is {self.batch}; expected at least 2 vectors in a step")


class TrainStats(NamedTuple):
    """Statistics of one SAE, each a mean over the steps since the last ones."""

    hookpoint: str
    step: int
    loss: float
    fvu: float
    auxk: float
    l0: float
    """Active latents for each vector."""
    dead: float
    """Fraction of the latents that are dead now."""
    vectors_per_second: float


class Trainer:
    """One SAE in training: its optimizer, and how long each latent has been silent."""

    def __init__(self, sae: SparseAutoencoder, config: TrainConfig, steps: int) -> None:
        if steps < 1:
            raise ValueError(f"{steps} training steps; expected at least 1: more vectors, or a smaller batch")
        self.sae, self.config, self.steps = sae.train().requires_grad_(True), config, steps
        fused = sae.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(sae.parameters(), lr=config.lr, eps=6.25e-10, fused=fused)
        self.step_count = 0
        self.silent: Int[Tensor, " latent"] = torch.zeros(sae.config.latents, dtype=torch.long, device=sae.device)
        """Vectors since each latent last fired."""
        self._dead: Int[Tensor, " dead"] = torch.empty(0, dtype=torch.long, device=sae.device)
        self._dead_every = max(1, config.dead_after // (100 * config.batch))

    def step(self, x: Float[Tensor, "row d_in"]) -> Float[Tensor, " statistic"]:
        """Improve the SAE on one batch; returns loss, FVU, AuxK, L0 and the dead fraction, on the device."""
        sae, config = self.sae, self.config
        x = x.to(sae.device)
        if self.step_count == 0:
            with torch.no_grad():
                sae.b_dec.copy_(geometric_median(x))
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * max(0.0, 1 - self.step_count / self.steps)
        is_dead = self.silent > config.dead_after
        if self.step_count % self._dead_every == 0:
            self._dead = is_dead.nonzero().squeeze(1)  # a device waits here, so not in every step
        bound = 0.8 * sae.threshold if self.step_count and sae.device.type == "cpu" else None
        self.optimizer.zero_grad()
        loss = sae.loss(
            x, self._dead, config.auxk_alpha, bound=bound, dtype=torch.bfloat16 if config.bfloat16 else None
        )
        loss.total.backward()
        self._clip()
        sae.project_decoder_gradient()
        self.optimizer.step()
        sae.normalize_decoder()
        with torch.no_grad():
            self.silent += len(x)
            self.silent[loss.code.latent] = 0
            if sae.config.batch_topk and len(loss.code.values):
                # starts as a plain mean, so that a short run is not dragged down by the zero that it starts from
                decay = min(config.threshold_decay, self.step_count / (self.step_count + 1))
                sae.threshold.lerp_(loss.code.values.min().float(), 1 - decay)
            l0 = loss.total.new_tensor(len(loss.code.values) / len(x))
        self.step_count += 1
        return torch.stack([loss.total, loss.fvu, loss.auxk, l0, is_dead.to(l0.dtype).mean()]).detach()

    def _clip(self) -> None:
        """Scale the gradient down to the largest norm; on the CPU, where looking is free, only if it is larger."""
        parameters = list(self.sae.parameters())
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if norm.device.type != "cpu" or not norm <= self.config.clip:
            nn.utils.clip_grads_with_norm_(parameters, self.config.clip, norm)

    def state_dict(self) -> dict[str, Any]:
        """All that a continued run needs."""
        adam = self.optimizer.state_dict()["state"]
        return {
            "sae": self.sae.state_dict(),
            "adam": {str(index): values for index, values in adam.items()},
            "step_count": self.step_count,
            "silent": self.silent,
            "dead": self._dead,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.sae.load_state_dict(state["sae"])
        adam = self.optimizer.state_dict()
        adam["state"] = {int(index): values for index, values in state["adam"].items()}
        self.optimizer.load_state_dict(adam)
        self.step_count = state["step_count"]
        self.silent, self._dead = (state[name].to(self.sae.device) for name in ("silent", "dead"))
        self.sae.changed()


Stream = Iterable[tuple[str, Tensor]]
"""Batches with the hookpoint that each is from."""


@runtime_checkable
class Resumable(Protocol):
    """A stream that continues where it was, such as `ActivationStream`."""

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` of a stream made with the same arguments takes."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from there."""
        ...


def train(
    trainers: Mapping[str, Trainer],
    stream: Stream,
    *,
    out: Path | None = None,
    log_every: int = 50,
    checkpoint_every: int = 500,
    save_dtype: torch.dtype | None = None,
) -> Iterator[TrainStats]:
    """Improve one SAE for each hookpoint on the batches of the stream and yield their statistics as they come.

    With `out`, the SAEs are saved there at the end, `stats.jsonl` grows, and every `checkpoint_every` steps a
    checkpoint is written; the same call with the same `out` continues from it, the stream too if it is `Resumable`.
    `save_dtype` rounds the saved weights.

    Raises ValueError when a loss is no longer finite, or when the stream is too short for one batch.
    """
    checkpoint = None if out is None else Path(out) / CHECKPOINT
    if out is not None and checkpoint is not None:
        if checkpoint.exists():
            _resume(checkpoint, trainers, stream)
        _cut_stats(Path(out) / STATS, {hookpoint: trainer.step_count for hookpoint, trainer in trainers.items()})
    window: dict[str, list[Tensor]] = {hookpoint: [] for hookpoint in trainers}
    clock = dict.fromkeys(trainers, time.perf_counter())

    def summary(hookpoint: str) -> TrainStats:
        seconds = time.perf_counter() - clock[hookpoint]
        loss, fvu, auxk, l0, dead = torch.stack(window[hookpoint]).mean(0).tolist()
        trainer = trainers[hookpoint]
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss at {hookpoint} is {loss} in step {trainer.step_count}: the training diverged; "
                f"a smaller learning rate than {trainer.config.lr:g} may help"
            )
        rate = len(window[hookpoint]) * trainer.config.batch / seconds
        window[hookpoint].clear()
        clock[hookpoint] = time.perf_counter()
        stats = TrainStats(hookpoint, trainer.step_count, loss, fvu, auxk, l0, dead, rate)
        if out is not None:
            _append(Path(out) / STATS, stats._asdict())
        return stats

    with progress(total=sum(t.steps for t in trainers.values()), desc="train", unit="step") as bar:
        bar.update(sum(t.step_count for t in trainers.values()))
        for number, (hookpoint, vectors) in enumerate(stream, 1):
            window[hookpoint].append(trainers[hookpoint].step(vectors))
            bar.update()
            if len(window[hookpoint]) == log_every:
                yield summary(hookpoint)
            if checkpoint is not None and number % checkpoint_every == 0:
                _save(checkpoint, trainers, stream)
    for hookpoint in trainers:
        if window[hookpoint]:
            yield summary(hookpoint)
    for hookpoint, trainer in trainers.items():
        if trainer.step_count == 0:
            raise ValueError(f"not one batch for {hookpoint}: more prompts or a smaller batch are needed")
        trainer.sae.eval().requires_grad_(False)
        if out is not None:
            trainer.sae.save_pretrained(out, hookpoint, dtype=save_dtype)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)


def trained(out: Path, hookpoints: Iterable[str]) -> bool:
    """Whether a run of `train` into `out` is finished: an SAE for every hookpoint, and nothing to continue from."""
    saved = all((out / hookpoint / "cfg.json").exists() for hookpoint in hookpoints)
    return saved and not (out / CHECKPOINT).exists()


def last_fvu(out: Path) -> dict[str, float]:
    """The FVU that each hookpoint's SAE ended at, from the statistics in `out`."""
    lines = (out / STATS).read_text(encoding="utf-8").splitlines()
    return {stats["hookpoint"]: stats["fvu"] for stats in map(json.loads, lines)}


def forget_run(out: Path, hookpoints: Iterable[str]) -> None:
    """Remove what `train` left in `out`, or would continue from."""
    for name in (CHECKPOINT, STATS):
        (out / name).unlink(missing_ok=True)
    for hookpoint in hookpoints:
        shutil.rmtree(out / hookpoint, ignore_errors=True)


def _save(path: Path, trainers: Mapping[str, Trainer], stream: Stream) -> None:
    state = {"trainers": {hookpoint: trainer.state_dict() for hookpoint, trainer in trainers.items()}}
    if isinstance(stream, Resumable):
        state["stream"] = stream.state_dict()
    save_state(path, state)


def _resume(path: Path, trainers: Mapping[str, Trainer], stream: Stream) -> None:
    state = load_state(path)
    if set(state["trainers"]) != set(trainers):
        raise ValueError(f"'{path}' is of {', '.join(state['trainers'])}; expected {', '.join(trainers)}")
    for hookpoint, trainer in trainers.items():
        trainer.load_state_dict(state["trainers"][hookpoint])
    if isinstance(stream, Resumable):
        stream.load_state_dict(state["stream"])


def _cut_stats(path: Path, steps: Mapping[str, int]) -> None:
    """Drop the statistics of steps that are about to be taken again, and a line that was cut off."""
    if path.exists():
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if record["step"] <= steps.get(record["hookpoint"], 0):
                kept.append(line)
        with write_file(path) as new:
            new.write_text("".join(kept), encoding="utf-8")


def _append(path: Path, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(dict(record)) + "\n")
