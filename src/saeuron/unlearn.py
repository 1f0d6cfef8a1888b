"""Removing concepts while images are generated: the plan, the edit, and the context in which a pipeline forgets."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeuron.concepts import ConceptProfile, highest, scores
from saeuron.files import read_json, read_tensors, resolve_folder, write_folder, write_tensors
from saeuron.hooks import Edit, edited
from saeuron.sae import Selection, SparseAutoencoder, as_selection

ErrorTerm = Literal["kept", "released"]
"""What becomes of the SAE's reconstruction error e = x - x_hat: kept, or, as the released code has it, subtracted."""


@dataclass(frozen=True, eq=False)
class BlockPlan:
    """What to do to which features at one hookpoint, for each step; the rows are padded to one length."""

    hookpoint: str
    sae: str
    """Fingerprint of the SAE that the features are of."""
    selection: Selection
    timesteps: Float[Tensor, " step"]
    features: Int[Tensor, "step feature"]
    gain: Float[Tensor, "step feature"]
    """What an activation is multiplied by: gamma_c mu(i, t, D_c)."""
    threshold: Float[Tensor, "step feature"]
    """The gate mu(i, t, D): only larger activations are multiplied. Infinite in the padding."""

    def __post_init__(self) -> None:
        shape = self.features.shape
        if not (shape == self.gain.shape == self.threshold.shape and len(self.timesteps) == shape[0]):
            raise ValueError("features, gain and threshold must have one shape, with a row for each timestep")
        if not (self.gain.isfinite().all() and self.timesteps.isfinite().all() and (self.features >= 0).all()):
            raise ValueError("a plan's gains and timesteps must be finite and its features 0 or more")
        if self.threshold.isnan().any():
            raise ValueError("a plan's threshold must be a number")


@dataclass(frozen=True, eq=False)
class UnlearningPlan:
    """What to remove and how: a few kilobytes that a pipeline needs, beside the SAEs, to forget.

    Plans add up: `plan(styles, ...) + plan(objects, ...)` does both in one pass, at one hookpoint or at several.
    """

    blocks: tuple[BlockPlan, ...]
    """At most one for each hookpoint."""
    concepts: tuple[str, ...]
    error: ErrorTerm = "kept"

    def __post_init__(self) -> None:
        if self.error not in ("kept", "released"):
            raise ValueError(f"error is {self.error!r}; expected 'kept' or 'released'")

    def __add__(self, other: UnlearningPlan) -> UnlearningPlan:
        if self.error != other.error:
            raise ValueError(f"plans with error={self.error!r} and error={other.error!r} cannot be joined")
        blocks = {block.hookpoint: block for block in self.blocks}
        for block in other.blocks:
            mine = blocks.get(block.hookpoint)
            blocks[block.hookpoint] = block if mine is None else _join(mine, block)
        concepts = tuple(dict.fromkeys((*self.concepts, *other.concepts)))
        return UnlearningPlan(tuple(blocks.values()), concepts, self.error)

    def fingerprint(self) -> str:
        """16 hex digits that tell this plan from others."""
        digest = hashlib.sha256(self.error.encode())
        for block in self.blocks:
            digest.update(f"{block.hookpoint} {block.sae} {block.selection}".encode())
            for name in _TENSORS:
                digest.update(getattr(block, name).contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def save_pretrained(self, folder: Path | str) -> None:
        """Write `plan.safetensors` and `plan.json` to a folder."""
        tensors = {f"{i}.{name}": getattr(block, name) for i, block in enumerate(self.blocks) for name in _TENSORS}
        blocks = [{name: getattr(block, name) for name in ("hookpoint", "sae", "selection")} for block in self.blocks]
        facts = {"concepts": list(self.concepts), "error": self.error, "blocks": blocks}
        with write_folder(Path(folder)) as new:
            write_tensors(new / "plan.safetensors", tensors)
            (new / "plan.json").write_text(json.dumps(facts, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, name: Path | str, *, revision: str | None = None) -> UnlearningPlan:
        """Read a plan from a folder or from the hub. Raises ValueError, naming the file, when it is damaged."""
        folder = resolve_folder(name, revision=revision)
        facts, path = read_json(folder / "plan.json"), folder / "plan.safetensors"
        tensors = read_tensors(path, "unlearning plan")
        try:
            blocks = tuple(
                BlockPlan(
                    str(block["hookpoint"]),
                    str(block["sae"]),
                    as_selection(block["selection"]),
                    *(tensors[f"{i}.{name}"] for name in _TENSORS),
                )
                for i, block in enumerate(facts["blocks"])
            )
            return cls(blocks, tuple(facts["concepts"]), facts["error"])
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"'{path}' is damaged or no unlearning plan: {error}") from None


_TENSORS = ("timesteps", "features", "gain", "threshold")


def plan(
    profile: ConceptProfile | Sequence[ConceptProfile],
    concepts: Sequence[str],
    features: int = 1,
    multiplier: float = -1.0,
    *,
    percentile: float | None = None,
    error: ErrorTerm = "kept",
) -> UnlearningPlan:
    """A plan that removes concepts: at each step, the top `features` of each are multiplied by `multiplier * mu`.

        z_i <- multiplier mu(i, t, D_c) z_i   where z_i > mu(i, t, D), for i in F_c(t)

    With the profiles of several hookpoints, F_c(t) holds the `features` best of all of them together, so that each
    concept is edited where it shows most. `percentile` selects as `top_features` says. A latent of several concepts
    gets the gain furthest below.

    Raises ValueError for unknown concepts, a multiplier that is not finite, and profiles that do not go together.
    """
    profiles = [profile] if isinstance(profile, ConceptProfile) else list(profile)
    if not math.isfinite(multiplier):
        raise ValueError(f"multiplier is {multiplier}; expected a finite number, such as -1")
    if not profiles or any(not torch.equal(profiles[0].timesteps, other.timesteps) for other in profiles):
        raise ValueError(f"{len(profiles)} profiles; expected at least one, all measured at the same timesteps")
    parts = [_plan_one(profiles, concept, features, multiplier, percentile, error) for concept in concepts]
    empty = UnlearningPlan((), (), error)
    return sum(parts, start=empty)


def _plan_one(
    profiles: Sequence[ConceptProfile],
    concept: str,
    features: int,
    multiplier: float,
    percentile: float | None,
    error: ErrorTerm,
) -> UnlearningPlan:
    """The plan for one concept, without the hookpoints that none of its features are at, and so nothing is done."""
    best = highest(torch.cat([scores(profile, concept) for profile in profiles], dim=1), features, percentile)
    blocks, start = [], 0
    for profile in profiles:
        here = range(start, start + profile.means.shape[2])
        start = here.stop
        mine = [chosen[(chosen >= here.start) & (chosen < here.stop)] - here.start for chosen in best]
        if any(map(len, mine)) or error == "released":  # that error term changes the block without any feature
            mean, everywhere = profile.means[profile.index(concept)], profile.means.mean(0)
            rows = [(f, multiplier * mean[step, f], everywhere[step, f]) for step, f in enumerate(mine)]
            blocks.append(BlockPlan(profile.hookpoint, profile.sae, profile.selection, profile.timesteps, *_pad(rows)))
    return UnlearningPlan(tuple(blocks), (concept,), error)


Row = tuple[Int[Tensor, " _"], Float[Tensor, " _"], Float[Tensor, " _"]]
"""Features, gains and thresholds of one step."""


def _pad(rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """The rows as three rectangles; what fills them up never fires."""
    features, gain, threshold = zip(*rows, strict=True)

    def rectangle(parts: Sequence[Tensor], fill: float) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=fill)

    return rectangle(features, 0), rectangle(gain, 1), rectangle(threshold, math.inf)


def _join(one: BlockPlan, two: BlockPlan) -> BlockPlan:
    """Both at one hookpoint; a latent of both keeps the gain furthest below, with its threshold."""
    same = one.sae == two.sae and one.selection == two.selection and torch.equal(one.timesteps, two.timesteps)
    if not same:
        raise ValueError(f"plans for {one.hookpoint} of different SAEs, selections or timesteps cannot be joined")
    rows = []
    for step in range(len(one.timesteps)):
        merged: dict[int, tuple[float, float]] = {}
        for block in (one, two):
            for feature, gain, threshold in zip(
                block.features[step].tolist(), block.gain[step].tolist(), block.threshold[step].tolist(), strict=True
            ):
                if threshold < math.inf and (feature not in merged or gain < merged[feature][0]):
                    merged[feature] = gain, threshold
        gains, thresholds = zip(*merged.values(), strict=True) if merged else ((), ())
        chosen = torch.tensor(list(merged), dtype=torch.long)
        rows.append((chosen, torch.tensor(gains).float(), torch.tensor(thresholds).float()))
    features, gain, threshold = _pad(rows)
    return replace(one, features=features, gain=gain, threshold=threshold)


def erase(
    tokens: Float[Tensor, "*batch d_in"],
    sae: SparseAutoencoder,
    features: Int[Tensor, " feature"],
    gain: Float[Tensor, " feature"],
    threshold: Float[Tensor, " feature"],
    *,
    selection: Selection = "topk",
    error: ErrorTerm = "kept",
) -> Float[Tensor, "*batch d_in"]:
    """Multiply some features where they exceed their threshold: x + where(z > threshold, z (gain - 1), 0) W_dec.

    Nothing is reconstructed: the reconstruction error stays in the tokens, and where nothing fires the very same tensor
    comes back. Differentiable in `tokens`. With error="released", what the released code computes instead:
    x_hat + (x_hat - x) = x - 2 e before the same change.
    """
    if error == "released":
        rows = tokens.flatten(0, -2)
        x_hat = sae.decode(sae.encode(rows, selection)).reshape(tokens.shape)
        base = (2 * x_hat - tokens.to(x_hat.dtype)).to(tokens.dtype)
    else:
        base = tokens
    if len(features) == 0:
        return base
    z = sae.activations_of(tokens, features, selection, threshold)
    change = torch.where(z > threshold, z * (gain - 1), 0)
    if not change.any():
        return base
    return base + (change.to(sae.W_dec.dtype) @ sae.W_dec[features]).to(tokens.dtype)


@contextmanager
def unlearned(
    pipe: Any, saes: SparseAutoencoder | Mapping[str, SparseAutoencoder], plan: UnlearningPlan
) -> Iterator[None]:
    """Within the context, `pipe` generates without the plan's concepts, at any number of steps and with any scheduler.

    `saes` is the SAE, or one for each hookpoint. The plan's row is the one with the nearest timestep.

    Raises ValueError when the plan is for another SAE or the pipeline lacks the hookpoint.
    """
    edits = {block.hookpoint: _edit(sae_of(block, saes), block, plan.error) for block in plan.blocks}
    with edited(pipe, edits):
        yield


def sae_of(block: BlockPlan, saes: SparseAutoencoder | Mapping[str, SparseAutoencoder]) -> SparseAutoencoder:
    """The SAE that a block's plan is for. Raises ValueError when it is not there or another one."""
    if isinstance(saes, SparseAutoencoder):
        sae = saes
    elif block.hookpoint in saes:
        sae = saes[block.hookpoint]
    else:
        raise ValueError(f"no SAE for the plan's hookpoint {block.hookpoint}; given: {', '.join(saes) or 'none'}")
    if block.sae != sae.fingerprint():
        raise ValueError(f"the plan for {block.hookpoint} is for SAE {block.sae}, this one is {sae.fingerprint()}")
    return sae


def _edit(sae: SparseAutoencoder, block: BlockPlan, error: ErrorTerm) -> Edit:
    tables: dict[torch.device, BlockPlan] = {}

    def edit(tokens: Tensor, timestep: Tensor) -> Tensor:
        table = tables.get(tokens.device)
        if table is None:
            sae.to(tokens.device)
            moved = {name: getattr(block, name).to(tokens.device) for name in _TENSORS}
            table = tables[tokens.device] = replace(block, **moved)
        step = (table.timesteps - timestep.to(tokens.device)).abs().argmin()
        return erase(
            tokens,
            sae,
            table.features[step],
            table.gain[step],
            table.threshold[step],
            selection=block.selection,
            error=error,
        )

    return edit
