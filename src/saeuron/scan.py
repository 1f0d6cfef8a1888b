"""Where a concept can be edited: hookpoints ranked by how well a briefly trained SAE singles concepts out there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from saeuron.activations import ActivationStream, HookpointShape, Sampling, activations, hookpoint_shapes
from saeuron.concepts import ConceptProfile, profile, scores
from saeuron.evaluate.canvas import CanvasScores, Classifier, Kind, grid, mean_scores, predict_removals, score
from saeuron.files import claim_folder
from saeuron.hooks import Edit, Record, edited, recorded
from saeuron.images import ImageRequest
from saeuron.models import Vocabulary, load_saes
from saeuron.prompts import ANCHORS, digest, training_prompts, trial_prompt, unknown, validation_prompts
from saeuron.sae import SaeConfig, SparseAutoencoder
from saeuron.train import TrainConfig, Trainer, last_fvu, train, trained
from saeuron.unlearn import plan, unlearned


@dataclass(frozen=True)
class ScanConfig:
    """How much is spent on each hookpoint."""

    expansion_factor: int = 8
    k: int = 16
    lr: float = 1e-3
    batch: int = 1024
    epochs: int = 2
    buffer: int = 65_536
    features: int = 1
    """Features for each concept in the trial edit."""
    multipliers: tuple[float, ...] = (-1.0, -4.0)
    """Trial edits; the best one counts."""


@dataclass(frozen=True)
class HookpointReport:
    """What the scan found at one hookpoint, over the given concepts."""

    hookpoint: str
    shape: HookpointShape
    fvu: float
    """Fraction of variance that the brief SAE leaves unexplained."""
    best_score: float
    """Score of a concept's best feature, mean over steps and concepts."""
    knn: float
    """How often the nearest image, by mean SAE features, is of the same concept."""
    reach: float | None = None
    """How often the concept is gone when the block's output is that of the same noise with another prompt: what an edit
    there can at most do. None, as the next two, when no classifiers were given."""
    multiplier: float | None = None
    edit: CanvasScores | None = None
    """What the better of the trial edits does, mean over concepts."""


class ScanPrompts(NamedTuple):
    """The texts of a scan."""

    training: list[str]
    """To train the SAEs on."""
    concepts: dict[str, list[str]]
    """To measure the concepts on: the targets, and others as a contrast."""
    targets: list[str]
    """The concepts that count."""
    trials: dict[str, list[ImageRequest]]
    """Images of each target's trial edit: five that show it, and one for each other concept."""
    swaps: list[tuple[ImageRequest, str]]
    """Images of the targets, each with the prompt of the same without the target."""


def scan_prompts(
    kind: Kind, targets: Sequence[str], words: Vocabulary, count: int, folder: Path = ANCHORS, contrast: int = 4
) -> ScanPrompts:
    """Training prompts of everything, and validation and trial prompts of the targets and a few others.

    Without targets, the first four concepts of the kind. Raises ValueError for one that is not known, or the only one.
    """
    known = words.of(kind)
    for name in targets:
        if name not in known:
            raise ValueError(unknown(kind, name, known))
    if len(known) < 2:
        raise ValueError(f"there is one {kind} only, {', '.join(known)}; a scan compares at least two")
    targets = list(targets or known[:4])
    chosen = [*targets, *[name for name in known if name not in targets][:contrast]]
    texts = validation_prompts(kind, words.objects, words.styles, folder, each=1)

    prompt = partial(trial_prompt, folder=folder)
    trials, swaps = {}, []
    for target in targets:
        others = [name for name in chosen if name != target]
        if kind == "object":
            mine = grid([target], [None, *words.styles[:4]], [0], prompt)
            kin = [request for name in others for request in grid([name], words.styles[:1], [0], prompt)]
            swaps += [(request, prompt(others[0], request.style)) for request in mine]
        else:
            mine = grid(words.objects[:5], [target], [0], prompt)
            kin = [request for name in others for request in grid(words.objects[:1], [name], [0], prompt)]
            swaps += [(request, prompt(words.objects[i], None)) for i, request in enumerate(mine)]
        trials[target] = mine + kin
    training = training_prompts(words.objects, words.styles, folder, count=count)
    return ScanPrompts(training, {name: texts[name] for name in chosen}, targets, trials, swaps)


def scan(
    pipe: Any,
    hookpoints: Sequence[str],
    prompts: ScanPrompts,
    sampling: Sampling,
    config: ScanConfig = ScanConfig(),
    *,
    kind: Kind = "style",
    classifiers: Mapping[Kind, Classifier] | None = None,
    out: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[HookpointReport]:
    """Train a small SAE at every hookpoint from one stream, profile the concepts, try an edit, and rank.

    With `classifiers` and `out`, each target is removed and the trial images are scored; the ranking is by the edit's
    mean score then, by the best score otherwise. `out` keeps SAEs, profiles and images, so that the same call continues
    there; `settings` says what else they depend on.
    """
    out = None if out is None else Path(out)
    if out is not None:
        texts = digest([*prompts.training, *(text for found in prompts.concepts.values() for text in found)])
        made_with = {"sampling": asdict(sampling), "hookpoints": list(hookpoints), "prompts": texts}
        claim_folder(out, "scan", {**asdict(config), **made_with, **(settings or {})})
    shapes = hookpoint_shapes(pipe, hookpoints, sampling)
    saes, fvu = _brief_saes(pipe, shapes, prompts.training, sampling, config, out)
    profiles = _profiles(pipe, saes, prompts.concepts, sampling, out)
    nearest = _knn(pipe, saes, prompts.concepts, sampling)
    reports = []
    for hookpoint, sae in saes.items():
        best = [scores(profiles[hookpoint], concept).amax(1).mean().item() for concept in prompts.targets]
        report = HookpointReport(
            hookpoint, shapes[hookpoint], fvu[hookpoint], sum(best) / len(best), nearest[hookpoint]
        )
        if classifiers and out is not None:
            reach = _reach(pipe, hookpoint, prompts.swaps, sampling, kind, classifiers[kind])
            tried = {}
            for multiplier in config.multipliers:
                found = []
                for target, requests in prompts.trials.items():
                    made = plan(profiles[hookpoint], [target], config.features, multiplier)
                    removal = {target: partial(unlearned, pipe, sae, made)}
                    facts = {target: {"plan": made.fingerprint()}}
                    folder = out / "images" / hookpoint / f"{multiplier:g}"
                    read = predict_removals(pipe, removal, requests, classifiers, folder, sampling, facts)
                    found.append(score(read[target], kind, [target]))
                tried[multiplier] = mean_scores(found)
            multiplier = max(tried, key=lambda m: tried[m].mean)
            report = replace(report, reach=reach, multiplier=multiplier, edit=tried[multiplier])
        reports.append(report)
    return sorted(reports, key=lambda r: r.edit.mean if r.edit else r.best_score, reverse=True)


def _brief_saes(
    pipe: Any,
    shapes: Mapping[str, HookpointShape],
    prompts: Sequence[str],
    sampling: Sampling,
    config: ScanConfig,
    out: Path | None,
) -> tuple[dict[str, SparseAutoencoder], dict[str, float]]:
    """An SAE for each hookpoint, with the FVU that it ended at; those of an earlier scan are read back."""
    folder = None if out is None else out / "sae"
    if folder is not None and trained(folder, shapes):
        return load_saes(folder, list(shapes), device=pipe.device), last_fvu(folder)
    stream = ActivationStream(
        pipe, prompts, list(shapes), sampling, batch=config.batch, buffer=config.buffer, uses=config.epochs
    )
    settings = TrainConfig(lr=config.lr, batch=config.batch, epochs=config.epochs)
    trainers = {}
    for hookpoint, shape in shapes.items():
        sae = SparseAutoencoder(SaeConfig(shape.d_in, config.expansion_factor, k=config.k), device=pipe.device)
        trainers[hookpoint] = Trainer(sae, settings, shape.vectors * len(prompts) * config.epochs // config.batch)
    fvu = {stats.hookpoint: stats.fvu for stats in train(trainers, stream, out=folder)}
    return {hookpoint: trainer.sae for hookpoint, trainer in trainers.items()}, fvu


def _profiles(
    pipe: Any,
    saes: Mapping[str, SparseAutoencoder],
    prompts: Mapping[str, Sequence[str]],
    sampling: Sampling,
    out: Path | None,
) -> dict[str, ConceptProfile]:
    """Profiles at each hookpoint; those of an earlier scan are read back."""
    if out is None:
        return profile(pipe, saes, prompts, sampling)
    if not all((out / "profiles" / hookpoint / "profile.json").exists() for hookpoint in saes):
        for hookpoint, measured in profile(pipe, saes, prompts, sampling).items():
            measured.save_pretrained(out / "profiles" / hookpoint)
    return {hookpoint: ConceptProfile.from_pretrained(out / "profiles" / hookpoint) for hookpoint in saes}


@torch.no_grad()
def _reach(
    pipe: Any,
    hookpoint: str,
    swaps: Sequence[tuple[ImageRequest, str]],
    sampling: Sampling,
    kind: Kind,
    classify: Classifier,
) -> float:
    """How often the concept is not read off an image that was made with the block's output of the other prompt."""
    gone = 0
    for start in range(0, len(swaps), sampling.batch):
        requests, others = zip(*swaps[start : start + sampling.batch], strict=True)
        seeds = [request.seed for request in requests]
        with recorded(pipe, hookpoint, prompt_half=False) as records:
            sampling.call(pipe, others, seeds, "latent")
        with edited(pipe, {hookpoint: _donor(records[hookpoint])}):
            images = sampling.call(pipe, [request.prompt for request in requests], seeds, "pil").images
        gone += sum(getattr(r, kind) != read for r, read in zip(requests, classify(images), strict=True))
    return gone / len(swaps)


def _donor(records: Sequence[Record]) -> Edit:
    """An edit that puts what was recorded in place of what comes, call by call."""
    left = iter(records)

    def edit(tokens: Tensor, timestep: Tensor) -> Tensor:
        return next(left).tokens

    return edit


@torch.no_grad()
def _knn(
    pipe: Any, saes: Mapping[str, SparseAutoencoder], prompts: Mapping[str, Sequence[str]], sampling: Sampling
) -> dict[str, float]:
    """Leave-one-out accuracy of the nearest neighbour by cosine, on the mean code of each image."""
    labels = [concept for concept, texts in prompts.items() for _ in texts]
    texts = [text for texts in prompts.values() for text in texts]
    codes: dict[str, list[Tensor]] = {hookpoint: [] for hookpoint in saes}
    for made in activations(pipe, texts, list(saes), sampling):
        for hookpoint, found in made.items():
            for image in range(found.tokens.shape[1]):
                codes[hookpoint].append(_mean_code(found.tokens[:, image], saes[hookpoint]))
    result = {}
    for hookpoint, rows in codes.items():
        unit = torch.nn.functional.normalize(torch.stack(rows), dim=1)
        likeness = (unit @ unit.T).fill_diagonal_(-1)
        result[hookpoint] = sum(labels[i] == labels[j] for i, j in enumerate(likeness.argmax(1).tolist())) / len(labels)
    return result


def _mean_code(tokens: Float[Tensor, "step token d_in"], sae: SparseAutoencoder) -> Float[Tensor, " latent"]:
    code = sae.encode(tokens.flatten(0, 1).to(sae.device), sae.selection)
    return torch.zeros(sae.config.latents, device=sae.device).index_add_(0, code.latent, code.values.float())
