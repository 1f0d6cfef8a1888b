"""Activations of prompts, read while an unmodified pipeline generates, and shuffled one vector at a time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from saeuron.hooks import find_module, hidden_states, recorded


@dataclass(frozen=True)
class Sampling:
    """How a pipeline is called, for activations and for images alike."""

    steps: int = 50
    """Denoising steps."""
    guidance: float = 9.0
    """Classifier-free guidance scale."""
    batch: int = 8
    """Prompts in one call of the pipeline."""

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; expected a whole number from 1 on")
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}; expected a whole number from 1 on")
        if not 0 <= self.guidance < float("inf"):
            raise ValueError(f"guidance is {self.guidance}; expected a number from 0 on")

    def call(self, pipe: Any, prompts: Sequence[str], seeds: Sequence[int], output_type: str) -> Any:
        """`pipe(...)` on a batch: an image depends on its own prompt and seed, never on its neighbours.

        Raises ValueError for a seed that is negative or does not fit 64 bits.
        """
        for seed in seeds:
            if not 0 <= seed < 2**64:
                raise ValueError(f"seed is {seed}; expected a whole number from 0 to 2**64 - 1")
        return pipe(
            list(prompts),
            num_inference_steps=self.steps,
            guidance_scale=self.guidance,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            output_type=output_type,
        )


class Activations(NamedTuple):
    """What passed one hookpoint while a batch of prompts was denoised."""

    prompts: range
    """Positions of the batch in the list of prompts."""
    timesteps: Float[Tensor, " step"]
    """As the denoiser was called with them, in the order of the calls."""
    tokens: Float[Tensor, "step image token d_in"]


def activations(
    pipe: Any, prompts: Sequence[str], hookpoints: Sequence[str], sampling: Sampling, seeds: Sequence[int] | None = None
) -> Iterator[dict[str, Activations]]:
    """Activations at the hookpoints, one batch of prompts after the other; no pixels are decoded.

    The prompt half of the guidance batch only. `seeds` defaults to one derived from each prompt.
    """
    if not prompts:
        raise ValueError("no prompts; expected at least one")
    seeds = [seed_of(prompt) for prompt in prompts] if seeds is None else seeds
    for start in range(0, len(prompts), sampling.batch):
        batch = range(start, min(start + sampling.batch, len(prompts)))
        with torch.no_grad(), recorded(pipe, *hookpoints) as records:
            sampling.call(pipe, [prompts[i] for i in batch], [seeds[i] for i in batch], output_type="latent")
        yield {
            hookpoint: Activations(
                batch, torch.stack([r.timestep for r in found]), torch.stack([r.tokens for r in found])
            )
            for hookpoint, found in records.items()
        }


class HookpointShape(NamedTuple):
    """What passes a hookpoint while one prompt is denoised."""

    d_in: int
    map: tuple[int, ...]
    """Height and width, or the number of tokens where the block has no map."""
    steps: int
    """Calls of the denoiser."""

    @property
    def vectors(self) -> int:
        """Vectors that one prompt gives."""
        return math.prod(self.map) * self.steps


def hookpoint_shapes(pipe: Any, hookpoints: Sequence[str], sampling: Sampling) -> dict[str, HookpointShape]:
    """Shapes at the hookpoints, found by generating one image.

    Raises ValueError for a hookpoint that the pipeline does not have, that its forward pass does not reach, or that
    gives something else than image tokens.
    """
    found: dict[str, list[tuple[int, ...]]] = {hookpoint: [] for hookpoint in hookpoints}
    with ExitStack() as stack, torch.no_grad():
        for hookpoint in hookpoints:

            def note(module: Any, args: Any, output: Any, shapes: list[tuple[int, ...]] = found[hookpoint]) -> None:
                shapes.append(tuple(hidden_states(module, output).shape))

            stack.callback(find_module(pipe, hookpoint).register_forward_hook(note).remove)
        sampling.call(pipe, [""], [0], output_type="latent")
    shapes = {}
    for hookpoint, calls in found.items():
        if not calls:
            raise ValueError(f"nothing passes the hookpoint {hookpoint!r} while {type(pipe).__name__} generates")
        _, *rest = calls[0]
        d_in, place = (rest[0], tuple(rest[1:])) if len(rest) == 3 else (rest[1], (rest[0],))
        shapes[hookpoint] = HookpointShape(d_in, place, len(calls))
    return shapes


def seed_of(text: str, seed: int = 0) -> int:
    """A seed that depends on the text and `seed` only, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed} {text}".encode()).digest()[:4], "big")


class ShuffleBuffer:
    """A bounded pool that vectors go into in the order they are made and leave in random order, `uses` times each.

    Every vector is drawn exactly `uses` times before its place is given to another, so one pass over the stream trains
    as many epochs as that, without a vector being stored elsewhere or made again.
    """

    def __init__(self, capacity: int, batch: int, *, uses: int = 1, seed: int = 0) -> None:
        if not 1 <= batch <= capacity:
            raise ValueError(f"a batch of {batch} vectors does not fit a shuffle buffer of {capacity}")
        if not 1 <= uses <= 127:
            raise ValueError(f"uses is {uses}; expected a whole number from 1 to 127")
        self.capacity, self.batch, self.uses = capacity, batch, uses
        self.generator = torch.Generator().manual_seed(seed)
        self.vectors: Float[Tensor, "slot d_in"] | None = None
        self.left: Int8[Tensor, " slot"] = torch.zeros(capacity, dtype=torch.int8)
        """How often each slot's vector is still to be drawn; 0 is a free slot."""
        self.accepted = 0
        """Vectors put in so far."""

    def push(self, vectors: Float[Tensor, "row d_in"]) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Put vectors in and yield the batches that have to be drawn to make room for them."""
        if self.vectors is None:
            self.vectors = vectors.new_zeros(self.capacity, vectors.shape[1])
        self.vectors = self.vectors.to(vectors.device)  # a checkpoint is read on the CPU
        while len(vectors):
            free = (self.left == 0).nonzero().squeeze(1)[: len(vectors)]
            self.vectors[free.to(vectors.device)] = vectors[: len(free)]
            self.left[free] = self.uses
            self.accepted += len(free)
            vectors = vectors[len(free) :]
            if len(vectors):
                yield self._draw(self.left.nonzero().squeeze(1))

    def drain(self) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Yield what is left in whole batches; fewer vectors than one batch are dropped."""
        while len(taken := self.left.nonzero().squeeze(1)) >= self.batch:
            yield self._draw(taken)
        self.left.zero_()

    def _draw(self, taken: Int[Tensor, " slot"]) -> Float[Tensor, "batch d_in"]:
        chosen = taken[torch.randperm(len(taken), generator=self.generator)[: self.batch]]
        self.left[chosen] -= 1
        assert self.vectors is not None
        return self.vectors[chosen.to(self.vectors.device)]

    def state_dict(self) -> dict[str, Any]:
        """All that a continued run needs."""
        return {name: getattr(self, name) for name in ("vectors", "left", "accepted")} | {
            "generator": self.generator.get_state()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.vectors, self.left, self.accepted = state["vectors"], state["left"], state["accepted"]
        self.generator.set_state(state["generator"])


class ActivationStream:
    """Shuffled batches of activation vectors at several hookpoints, made while they are used; nothing on disk.

    Iterating yields `(hookpoint, batch)` pairs. `state_dict` between two of them, and `load_state_dict` into a stream
    made with the same arguments, continue where the first one was.
    """

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[str],
        hookpoints: Sequence[str],
        sampling: Sampling,
        *,
        batch: int = 4096,
        buffer: int = 262_144,
        uses: int = 1,
        seed: int = 0,
    ) -> None:
        self.pipe, self.prompts, self.hookpoints, self.sampling = pipe, list(prompts), list(hookpoints), sampling
        order = torch.randperm(len(self.prompts), generator=torch.Generator().manual_seed(seed)).tolist()
        self.prompts = [self.prompts[i] for i in order]
        self.seeds = [seed_of(f"{i} {self.prompts[i]}", seed) for i in range(len(self.prompts))]
        self.buffers = {
            hookpoint: ShuffleBuffer(buffer, batch, uses=uses, seed=seed + i) for i, hookpoint in enumerate(hookpoints)
        }
        self.done = 0
        """Prompts whose vectors are all in the buffers."""
        self.accepted = dict.fromkeys(hookpoints, 0)
        """Vectors that each buffer had taken in when those prompts were done."""

    def __iter__(self) -> Iterator[tuple[str, Float[Tensor, "batch d_in"]]]:
        if self.done < len(self.prompts):
            prompts, seeds = self.prompts[self.done :], self.seeds[self.done :]
            for made in activations(self.pipe, prompts, self.hookpoints, self.sampling, seeds):
                for hookpoint, found in made.items():
                    buffer = self.buffers[hookpoint]
                    already = buffer.accepted - self.accepted[hookpoint]
                    for vectors in buffer.push(found.tokens.flatten(0, 2)[already:]):
                        yield hookpoint, vectors
                self.accepted = {hookpoint: buffer.accepted for hookpoint, buffer in self.buffers.items()}
                self.done += len(found.prompts)
        for hookpoint, buffer in self.buffers.items():
            for vectors in buffer.drain():
                yield hookpoint, vectors

    def state_dict(self) -> dict[str, Any]:
        """All that a continued run needs; valid between any two batches."""
        buffers = {hookpoint: buffer.state_dict() for hookpoint, buffer in self.buffers.items()}
        return {"done": self.done, "accepted": dict(self.accepted), "buffers": buffers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict` of a stream that was made with the same arguments."""
        self.done, self.accepted = state["done"], dict(state["accepted"])
        for hookpoint, buffer in self.buffers.items():
            buffer.load_state_dict(state["buffers"][hookpoint])
