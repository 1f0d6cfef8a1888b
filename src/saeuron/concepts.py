"""Which latents belong to a concept: mean activity for each concept and step, scores, and the top features."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from saeuron.activations import Sampling, activations, seed_of
from saeuron.files import read_json, resolve_folder, write_folder
from saeuron.progress import progress
from saeuron.prompts import unknown
from saeuron.sae import Selection, SparseAutoencoder, as_selection


@dataclass(frozen=True, eq=False)
class ConceptProfile:
    """Mean activation of every latent for every concept at every denoising step: mu(i, t, D_c)."""

    concepts: tuple[str, ...]
    means: Float[Tensor, "concept step latent"]
    """Over the prompts of a concept and the positions of the map."""
    counts: Int[Tensor, " concept"]
    """Prompts of each concept."""
    timesteps: Float[Tensor, " step"]
    """The timestep that the denoiser was called with at each step."""
    hookpoint: str
    sae: str
    """Fingerprint of the SAE that was measured."""
    selection: Selection
    """How its latents were selected."""

    def __post_init__(self) -> None:
        concepts, steps, _ = self.means.shape
        if (len(self.concepts), len(self.counts), len(self.timesteps)) != (concepts, concepts, steps):
            raise ValueError(
                f"means of shape {tuple(self.means.shape)} do not fit {len(self.concepts)} concepts, "
                f"{len(self.counts)} counts and {len(self.timesteps)} timesteps"
            )
        if not (self.means.isfinite().all() and self.timesteps.isfinite().all() and (self.counts > 0).all()):
            raise ValueError("a profile's means and timesteps must be finite and its counts above 0")

    def index(self, concept: str) -> int:
        """Row of a concept. Raises ValueError, with near matches, for an unknown one."""
        if concept not in self.concepts:
            raise ValueError(unknown("concept", concept, self.concepts))
        return self.concepts.index(concept)

    def save_pretrained(self, folder: Path | str, *, dtype: torch.dtype = torch.float32) -> None:
        """Write `profile.safetensors` and `profile.json` to a folder, the means rounded to `dtype`."""
        facts = {
            "concepts": list(self.concepts),
            "hookpoint": self.hookpoint,
            "sae": self.sae,
            "selection": self.selection,
        }
        with write_folder(Path(folder)) as new:
            tensors = {"means": self.means.to(dtype), "counts": self.counts, "timesteps": self.timesteps}
            save_file({name: value.contiguous() for name, value in tensors.items()}, new / "profile.safetensors")
            (new / "profile.json").write_text(json.dumps(facts, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, name: Path | str, *, revision: str | None = None) -> ConceptProfile:
        """Read a profile from a folder or from the hub. Raises ValueError, naming the file, when it is damaged."""
        folder = resolve_folder(name, revision=revision)
        facts, path = read_json(folder / "profile.json"), folder / "profile.safetensors"
        try:
            tensors = load_file(path)
            return cls(
                tuple(facts["concepts"]),
                tensors["means"].float(),
                tensors["counts"],
                tensors["timesteps"],
                str(facts["hookpoint"]),
                str(facts["sae"]),
                as_selection(facts["selection"]),
            )
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise ValueError(f"'{path}' is damaged or no concept profile: {error}") from None


def profile(
    pipe: Any,
    saes: Mapping[str, SparseAutoencoder],
    prompts: Mapping[str, Sequence[str]],
    sampling: Sampling,
    *,
    selection: Selection | None = None,
    seed: int = 188,
) -> dict[str, ConceptProfile]:
    """Measure a profile at each hookpoint: one pass over the prompts of every concept, means kept online.

    `selection` is each SAE's own by default.

    Raises ValueError for a concept without prompts.
    """
    sums: dict[str, list[Tensor]] = {hookpoint: [] for hookpoint in saes}
    timesteps: dict[str, Tensor] = {}
    for concept, texts in progress(prompts.items(), desc="profile", unit="concept"):
        if not texts:
            raise ValueError(f"concept {concept!r} has no prompts; expected at least one")
        seeds = [seed_of(f"{i} {text}", seed) for i, text in enumerate(texts)]
        totals: dict[str, Tensor | int] = dict.fromkeys(saes, 0)
        for made in activations(pipe, texts, list(saes), sampling, seeds):
            for hookpoint, found in made.items():
                chosen = selection or saes[hookpoint].selection
                totals[hookpoint] += _sum_over_images(found.tokens, saes[hookpoint], chosen)
                timesteps[hookpoint] = found.timesteps
        for hookpoint, total in totals.items():
            sums[hookpoint].append(torch.as_tensor(total) / len(texts))
    return {
        hookpoint: ConceptProfile(
            tuple(prompts),
            torch.stack(sums[hookpoint]).float().cpu(),
            torch.tensor([len(texts) for texts in prompts.values()]),
            timesteps[hookpoint].float().cpu(),
            hookpoint,
            sae.fingerprint(),
            selection or sae.selection,
        )
        for hookpoint, sae in saes.items()
    }


@torch.no_grad()
def _sum_over_images(
    tokens: Float[Tensor, "step image token d_in"], sae: SparseAutoencoder, selection: Selection
) -> Float[Tensor, "step latent"]:
    """Sum over images, mean over positions, in float64."""
    sums = torch.zeros(len(tokens), sae.config.latents, dtype=torch.float64, device=sae.device)
    for step, found in enumerate(tokens):
        code = sae.encode(found.flatten(0, 1).to(sae.device), selection)
        sums[step].index_add_(0, code.latent, code.values.double())
    return sums / tokens.shape[2]


def scores(profile: ConceptProfile, concept: str, delta: float = 1e-8) -> Float[Tensor, "step latent"]:
    """How much more of a concept's activity than of the other concepts' falls on each latent (the paper's score).

    score(i, t, c) = mu(i, t, D_c) / (sum_j mu(j, t, D_c) + delta) - mu(i, t, D_notc) / (sum_j mu(j, t, D_notc) + delta)

    where D_notc holds all prompts of the other concepts. Raises ValueError for an unknown concept, or an only one.
    """
    row = profile.index(concept)
    if len(profile.concepts) < 2:
        raise ValueError(f"the profile has {concept!r} only; a score needs at least one other concept")
    weight = profile.counts.double().clone()
    weight[row] = 0
    others = torch.einsum("c,csl->sl", weight / weight.sum(), profile.means.double())
    mine = profile.means[row].double()
    share = mine / (mine.sum(1, keepdim=True) + delta) - others / (others.sum(1, keepdim=True) + delta)
    return share.float()


def top_features(
    profile: ConceptProfile, concept: str, features: int = 1, *, percentile: float | None = None
) -> list[Int[Tensor, " feature"]]:
    """F_c(t): the `features` latents with the highest score, best first, chosen separately at each step.

    With `percentile` (0 to 100), as the released code says it: those strictly above that quantile of the scores.
    """
    return highest(scores(profile, concept), features, percentile)


def highest(
    scores: Float[Tensor, "step latent"], features: int, percentile: float | None = None
) -> list[Int[Tensor, " _"]]:
    """Of each row, the places of the `features` highest scores, or of all above a percentile, best first."""
    if percentile is not None:
        if not 0 <= percentile <= 100:
            raise ValueError(f"percentile is {percentile}; expected a number from 0 to 100")
        scores = scores.double()  # in float32 the interpolation may round up to the next score
        bound = scores.quantile(percentile / 100, dim=1)
        counts = (scores > bound[:, None]).sum(1).tolist()
        return [row.argsort(descending=True)[:count] for row, count in zip(scores, counts, strict=True)]
    latents = scores.shape[1]
    if not 1 <= features <= latents:
        raise ValueError(f"features is {features}; expected a whole number from 1 to {latents}")
    return list(scores.topk(features, dim=1).indices)
