"""Which latents belong to a concept: mean activity for each concept and step, scores, and the top features."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saeuron.activations import Sampling, activations, seed_of
from saeuron.files import (
    load_state,
    read_json,
    read_tensors,
    resolve_folder,
    save_state,
    write_folder,
    write_tensors,
)
from saeuron.progress import progress
from saeuron.prompts import unknown
from saeuron.sae import Selection, SparseAutoencoder, as_selection

CHECKPOINT_SECONDS = 60
"""How much work a killed `profile` may lose."""


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

    def of(self, concepts: Sequence[str]) -> ConceptProfile:
        """The same of some of the concepts only, such as those of one kind."""
        rows = [self.index(concept) for concept in concepts]
        return replace(self, concepts=tuple(concepts), means=self.means[rows], counts=self.counts[rows])

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
            write_tensors(new / "profile.safetensors", tensors)
            (new / "profile.json").write_text(json.dumps(facts, indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls, name: Path | str, hookpoint: str | None = None, *, revision: str | None = None
    ) -> ConceptProfile:
        """Read a profile from a folder or from the hub: `name` itself, or its folder for `hookpoint`.

        Raises ValueError, naming the file, for one that is missing or damaged.
        """
        folder = _profile_folder(resolve_folder(name, revision=revision), hookpoint)
        facts, path = read_json(folder / "profile.json"), folder / "profile.safetensors"
        tensors = read_tensors(path, "concept profile")
        try:
            return cls(
                tuple(facts["concepts"]),
                tensors["means"].float(),
                tensors["counts"],
                tensors["timesteps"],
                str(facts["hookpoint"]),
                str(facts["sae"]),
                as_selection(facts["selection"]),
            )
        except (KeyError, ValueError, TypeError) as error:
            raise ValueError(f"'{path}' is damaged or no concept profile: {error}") from None


def _profile_folder(folder: Path, hookpoint: str | None) -> Path:
    """The folder that holds `profile.json`: this one, the one for `hookpoint`, or the only one there is."""
    found = sorted(path.parent.name for path in folder.glob("*/profile.json"))
    if (folder / "profile.json").exists() or not (found or hookpoint):
        return folder
    if hookpoint is None and len(found) == 1:
        return folder / found[0]
    if hookpoint not in found:
        asked = "several profiles" if hookpoint is None else f"no profile for hookpoint {hookpoint!r}"
        raise ValueError(f"{asked} in '{folder}'; name one of the hookpoints: {', '.join(found) or 'none'}")
    return folder / hookpoint


def profile(
    pipe: Any,
    saes: Mapping[str, SparseAutoencoder],
    prompts: Mapping[str, Sequence[str]],
    sampling: Sampling,
    *,
    selection: Selection | None = None,
    seed: int = 188,
    checkpoint: Path | None = None,
) -> dict[str, ConceptProfile]:
    """Measure a profile at each hookpoint: one pass over the prompts of all concepts, means kept online.

    A prompt of several concepts is generated once; its noise depends on the prompt and `seed`. `selection` is each
    SAE's own by default. With `checkpoint`, the sums are written to that file once a minute, and the same call
    continues from it.

    Raises ValueError for a concept without prompts.
    """
    for concept, texts in prompts.items():
        if not texts:
            raise ValueError(f"concept {concept!r} has no prompts; expected at least one")
    concepts_of: dict[str, list[int]] = {}
    for row, texts in enumerate(prompts.values()):
        for text in texts:
            concepts_of.setdefault(text, []).append(row)
    unique = list(concepts_of)
    chosen = {hookpoint: selection or sae.selection for hookpoint, sae in saes.items()}
    sums: dict[str, Tensor] = {}
    timesteps: dict[str, Tensor] = {}
    done = 0
    if checkpoint is not None and checkpoint.exists():
        state = load_state(checkpoint)
        sums, timesteps, done = state["sums"], state["timesteps"], state["done"]
    saved = time.monotonic()
    with progress(total=len(unique), desc="profile", unit="prompt") as bar:
        bar.update(done)
        left = unique[done:]
        seeds = [seed_of(text, seed) for text in left]
        for made in activations(pipe, left, list(saes), sampling, seeds) if left else ():
            for hookpoint, (batch, times, tokens) in made.items():
                sae = saes[hookpoint]
                timesteps[hookpoint] = times.float().cpu()
                if hookpoint not in sums:
                    shape = len(prompts), len(tokens), sae.config.latents
                    sums[hookpoint] = torch.zeros(shape, dtype=torch.float64)
                rows = [(image, row) for image, i in enumerate(batch) for row in concepts_of[left[i]]]
                images, concepts = (torch.tensor(column) for column in zip(*rows, strict=True))
                for step, found in enumerate(tokens):
                    means = means_of_images(found, sae, chosen[hookpoint]).cpu().double()
                    sums[hookpoint][:, step].index_add_(0, concepts, means[images])
            bar.update(len(batch))
            done += len(batch)
            if checkpoint is not None and time.monotonic() >= saved + CHECKPOINT_SECONDS:
                save_state(checkpoint, {"sums": sums, "timesteps": timesteps, "done": done})
                saved = time.monotonic()
    counts = torch.tensor([len(texts) for texts in prompts.values()])
    return {
        hookpoint: ConceptProfile(
            tuple(prompts),
            (sums[hookpoint] / counts[:, None, None]).float(),
            counts,
            timesteps[hookpoint],
            hookpoint,
            sae.fingerprint(),
            chosen[hookpoint],
        )
        for hookpoint, sae in saes.items()
    }


@torch.no_grad()
def means_of_images(
    tokens: Float[Tensor, "image token d_in"], sae: SparseAutoencoder, selection: Selection
) -> Float[Tensor, "image latent"]:
    """Mean activation of each latent over the positions of each image."""
    images, positions, _ = tokens.shape
    code = sae.encode(tokens.flatten(0, 1).to(sae.device), selection)
    place = code.rows() // positions * sae.config.latents + code.latent
    sums = torch.zeros(images * sae.config.latents, device=sae.device)
    return sums.index_add_(0, place, code.values.float()).view(images, -1) / positions


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
