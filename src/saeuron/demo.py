"""The main job in one call: train SAEs on MiniCanvas's activations, forget a style and an object, and prove it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from saeuron import mini
from saeuron.activations import ActivationStream, Sampling, hookpoint_shapes
from saeuron.canvas_run import Setting, read_settings
from saeuron.concepts import ConceptProfile, profile
from saeuron.evaluate.canvas import CanvasScores, Forget, Kind, Prediction, accuracy, grid, predict, score
from saeuron.figures import labelled_grid
from saeuron.files import claim_folder, write_file
from saeuron.images import ImageRequest, generate, open_images
from saeuron.models import load_saes
from saeuron.prompts import spoken, training_prompts, unknown, validation_prompts
from saeuron.report import Report
from saeuron.sae import SaeConfig, SparseAutoencoder
from saeuron.train import TrainConfig, Trainer, train, trained
from saeuron.unlearn import UnlearningPlan, plan, unlearned

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DemoConfig:
    """What the demonstration does; the defaults take minutes on 2 cores."""

    style: str = "Rust"
    object: str = "Cats"
    quick: bool = False
    """Use the bundled SAEs and profiles instead of training them."""
    training_prompts: int = 221
    expansion_factor: int = 2
    k: int = 8
    lr: float = 1e-3
    batch: int = 1024
    epochs: int = 3
    steps: int = mini.STEPS
    """Denoising steps."""
    other_styles: int = 2
    """Styles beside the removed one and none that are evaluated."""
    seed: int = 188
    """Seed of the evaluated images."""


class Removal(NamedTuple):
    """A concept to be removed, and how."""

    kind: Kind
    concept: str
    setting: Setting


class Outcome(NamedTuple):
    """The evaluated images of one pass: what was asked and read, and the pictures."""

    predictions: list[Prediction]
    pictures: list[Image.Image]


def demo(out: Path | str, config: DemoConfig = DemoConfig()) -> dict[str, CanvasScores]:
    """Leave SAEs, profiles, plans, images, `scores.json` and `report.html` in `out`; returns the scores by concept.

    Raises ValueError for a style or an object that MiniCanvas does not have, and when `out` holds something else.
    """
    out, clock = Path(out), time.perf_counter()
    removals = _removals(config)
    claim_folder(out, "demo", asdict(config))
    pipe = mini.load()
    hookpoints = list(dict.fromkeys(hookpoint for removal in removals for hookpoint in removal.setting.hookpoints))
    if config.quick:
        saes = load_saes(mini.SAES, hookpoints, device=pipe.device)
        profiles = {r.kind: _read_profiles(mini.PROFILES, r) for r in removals}
    else:
        saes = _train(pipe, hookpoints, config, out / "sae")
        profiles = _measure_profiles(pipe, saes, removals, config, out / "profiles")
    plans = {r.concept: plan(profiles[r.kind], [r.concept], *r.setting[1:]) for r in removals}
    plans[f"{config.style} + {config.object}"] = plans[config.style] + plans[config.object]

    requests, shown = _requests(config)
    outcomes = {"before": _outcome(pipe, nullcontext, requests, config, out / "images" / "before", None)}
    for name, made in plans.items():
        folder = name.replace(" ", "")
        made.save_pretrained(out / "plans" / folder)
        asked = shown if " + " in name else requests
        forget = partial(unlearned, pipe, saes, made)
        outcomes[name] = _outcome(pipe, forget, asked, config, out / "images" / folder, made)
    scores = {r.concept: score(outcomes[r.concept].predictions, r.kind, [r.concept]) for r in removals}
    _write_scores(out, config, removals, scores, outcomes["before"], saes, time.perf_counter() - clock)
    _write_report(out, config, removals, scores, outcomes, shown)
    return scores


def _removals(config: DemoConfig) -> list[Removal]:
    kinds: list[tuple[Kind, str, Sequence[str]]] = [
        ("style", config.style, mini.STYLES),
        ("object", config.object, mini.OBJECTS),
    ]
    for kind, name, known in kinds:
        if name not in known:
            raise ValueError(unknown(kind, name, known))
    settings = read_settings(mini.SETTINGS)
    return [Removal(kind, name, settings[kind][name]) for kind, name, _ in kinds]


def _sampling(config: DemoConfig) -> Sampling:
    return Sampling(steps=config.steps, guidance=mini.GUIDANCE, batch=34)


def _train(pipe: Any, hookpoints: list[str], config: DemoConfig, out: Path) -> dict[str, SparseAutoencoder]:
    """One SAE for each hookpoint, all from one stream of activations; those of an earlier run are read back."""
    if trained(out, hookpoints):
        return load_saes(out, hookpoints, device=pipe.device)
    prompts = training_prompts(mini.OBJECTS, mini.STYLES, count=config.training_prompts)
    sampling, settings = _sampling(config), TrainConfig(lr=config.lr, batch=config.batch, epochs=config.epochs)
    stream = ActivationStream(
        pipe, prompts, hookpoints, sampling, batch=config.batch, buffer=65_536, uses=config.epochs
    )
    trainers = {}
    for hookpoint, shape in hookpoint_shapes(pipe, hookpoints, sampling).items():
        config_of = SaeConfig(shape.d_in, config.expansion_factor, k=config.k)
        sae = SparseAutoencoder(config_of, device=pipe.device)
        steps = shape.vectors * len(prompts) * config.epochs // config.batch
        trainers[hookpoint] = Trainer(sae, settings, steps)
        log.info("training an SAE at %s: %d latents, %d steps", hookpoint, config_of.latents, steps)
    for stats in train(trainers, stream, out=out, log_every=100):
        log.info("  %s step %d: FVU %.3f, L0 %.1f", stats.hookpoint, stats.step, stats.fvu, stats.l0)
    return {hookpoint: trainer.sae for hookpoint, trainer in trainers.items()}


def _read_profiles(folder: Path, removal: Removal) -> list[ConceptProfile]:
    return [ConceptProfile.from_pretrained(folder / f"{removal.kind}s" / h) for h in removal.setting.hookpoints]


def _measure_profiles(
    pipe: Any, saes: Mapping[str, SparseAutoencoder], removals: Sequence[Removal], config: DemoConfig, out: Path
) -> dict[Kind, list[ConceptProfile]]:
    """Profiles of all styles and objects, on the same validation prompts; those of an earlier run are read back."""
    wanted = [out / f"{r.kind}s" / hookpoint / "profile.json" for r in removals for hookpoint in r.setting.hookpoints]
    if not all(path.exists() for path in wanted):
        log.info("measuring which features each style and object uses")
        texts = {r.kind: validation_prompts(r.kind, mini.OBJECTS, mini.STYLES, each=1) for r in removals}
        measured = profile(pipe, saes, texts["style"] | texts["object"], _sampling(config))
        for r in removals:
            for hookpoint in r.setting.hookpoints:
                found = measured[hookpoint].of(list(texts[r.kind]))
                found.save_pretrained(out / f"{r.kind}s" / hookpoint)
    return {r.kind: _read_profiles(out, r) for r in removals}


def _requests(config: DemoConfig) -> tuple[list[ImageRequest], list[ImageRequest]]:
    """Every object in a few styles, to be evaluated; and the part of it that the report shows."""
    others = [style for style in mini.STYLES if style != config.style]
    others = others[:: max(1, len(others) // config.other_styles)][: config.other_styles]
    requests = grid(mini.OBJECTS, [None, config.style, *others], [config.seed])
    objects = [config.object, *(o for o in mini.OBJECTS[::3] if o != config.object)][:7]
    return requests, [request for request in requests if request.object in objects]


def _outcome(
    pipe: Any,
    forget: Forget,
    requests: Sequence[ImageRequest],
    config: DemoConfig,
    folder: Path,
    made: UnlearningPlan | None,
) -> Outcome:
    """Generate, read and return the images within the context that `forget` makes."""
    log.info("generating %d images: %s", len(requests), folder.name)
    with forget():
        settings = {"model": "mini", "plan": made and made.fingerprint()}
        records = generate(pipe, requests, folder, _sampling(config), settings)
    readers: Any = {kind: classifier.predict for kind, classifier in mini.classifiers().items()}
    return Outcome(predict(folder, records, readers), list(open_images(folder, records)))


def _write_scores(
    out: Path,
    config: DemoConfig,
    removals: Sequence[Removal],
    scores: Mapping[str, CanvasScores],
    before: Outcome,
    saes: Mapping[str, SparseAutoencoder],
    seconds: float,
) -> None:
    kinds: tuple[Kind, Kind] = ("style", "object")
    facts = {
        "settings": asdict(config) | {"guidance": mini.GUIDANCE},
        "removals": {r.concept: {"kind": r.kind, **r.setting._asdict()} for r in removals},
        "saes": {hookpoint: sae.fingerprint() for hookpoint, sae in saes.items()},
        "accuracy_before": {kind: accuracy(before.predictions, kind) for kind in kinds},
        "scores": {name: found._asdict() for name, found in scores.items()},
        "seconds": round(seconds, 1),
    }
    with write_file(out / "scores.json") as new:
        new.write_text(json.dumps(facts, indent=2) + "\n")


def _write_report(
    out: Path,
    config: DemoConfig,
    removals: Sequence[Removal],
    scores: Mapping[str, CanvasScores],
    outcomes: Mapping[str, Outcome],
    shown: Sequence[ImageRequest],
) -> None:
    """`report.html` and the grids in it."""
    page = Report(f"Forgetting {spoken(config.style)} and {config.object}")
    origin = "bundled with the package" if config.quick else "trained a moment ago on the pipeline's own activations"
    page.text(
        f"MiniCanvas is a Stable Diffusion pipeline of 64 x 64 pixels. Sparse autoencoders, {origin}, found the "
        f"features of each concept; those were turned down while the pictures below were generated. Every pair of "
        f"pictures comes from the same prompt and the same noise. No weight of the diffusion model was changed."
    )
    page.table(
        ["removed", "UA: it is gone", "IRA: its kin are kept", "CRA: the other kind is kept", "features", "multiplier"],
        [
            [
                r.concept,
                *(f"{100 * value:.1f} %" for value in scores[r.concept]),
                str(r.setting.features),
                f"{r.setting.multiplier:g}",
            ]
            for r in removals
        ],
    )
    read = outcomes["before"].predictions
    page.text(
        f"Two classifiers read the pictures. Before any removal they recognise the object in "
        f"{100 * accuracy(read, 'object'):.1f} % of the {len(read)} pictures, and the style in "
        f"{100 * accuracy(read, 'style'):.1f} % of the {sum(p.style is not None for p in read)} asked for in one."
    )
    for name, outcome in outcomes.items():
        if name != "before":
            sheet = _before_after(outcomes["before"], outcome, shown, name.split(" + "))
            page.heading(f"{spoken(name)} removed")
            page.picture(sheet, "Each pair: before, after. Framed: where the removed concept was asked for.")
            sheet.save(out / f"grid_{name.replace(' ', '')}.png")
    page.save(out / "report.html")


def _before_after(
    before: Outcome, after: Outcome, shown: Sequence[ImageRequest], removed: Sequence[str]
) -> Image.Image:
    """Two rows for each style, a column for each shown object."""
    cells = [{(p.style, p.object): picture for p, picture in zip(*outcome, strict=True)} for outcome in (before, after)]
    objects = list(dict.fromkeys(request.object or "" for request in shown))
    rows: list[list[Image.Image]] = []
    labels: list[str] = []
    marked: list[tuple[int, int]] = []
    for style in dict.fromkeys(request.style for request in shown):
        for cell, word in zip(cells, ("before", "after"), strict=True):
            if word == "after":
                asked = [style in removed or object in removed for object in objects]
                marked += [(len(rows), column) for column, yes in enumerate(asked) if yes]
            rows.append([cell[style, object] for object in objects])
            labels.append(f"{spoken(style or 'no style')}, {word}")
    return labelled_grid(rows, labels, objects, tile=96, marked=marked)
