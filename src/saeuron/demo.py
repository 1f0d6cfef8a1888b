"""The main job in one call: train SAEs on MiniCanvas's activations, forget a style and an object, and prove it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from saeuron import mini
from saeuron.activations import ActivationStream, Sampling, hookpoint_shapes
from saeuron.concepts import ConceptProfile, profile
from saeuron.evaluate.canvas import (
    CanvasScores,
    Kind,
    Prediction,
    accuracy,
    grid,
    predict,
    score,
    write_predictions,
)
from saeuron.figures import labelled_grid
from saeuron.files import read_json, write_file
from saeuron.images import generate, open_images
from saeuron.prompts import spoken, training_prompts, unknown, validation_prompts
from saeuron.report import Report
from saeuron.sae import SaeConfig, SparseAutoencoder
from saeuron.train import TrainConfig, Trainer, train
from saeuron.unlearn import UnlearningPlan, plan, unlearned

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DemoConfig:
    """How much the demonstration does; the defaults take minutes on 2 cores."""

    style: str = "Rust"
    object: str = "Cats"
    training_prompts: int = 221
    num_latents: int = 1536
    k: int = 16
    lr: float = 1e-3
    batch: int = 1024
    epochs: int = 4
    shown_styles: int = 4
    """Styles beside the removed one and the plain picture that are evaluated."""
    seed: int = 188
    """Seed of the evaluated images."""


def demo(out: Path | str, config: DemoConfig = DemoConfig(), *, quick: bool = False) -> dict[str, CanvasScores]:
    """Leave SAEs, profiles, plans, images, `scores.json` and `report.html` in `out`; returns the scores by removal.

    With `quick`, the bundled SAEs and profiles are used instead of training them. Raises ValueError for a style or an
    object that MiniCanvas does not have.
    """
    out = Path(out)
    for kind, name, known in (("style", config.style, mini.STYLES), ("object", config.object, mini.OBJECTS)):
        if name not in known:
            raise ValueError(unknown(kind, name, known))
    clock = time.perf_counter()
    pipe, settings = mini.load(), read_json(mini.SETTINGS)
    wanted = {"style": settings["style"][config.style], "object": settings["object"][config.object]}
    hookpoints = list(dict.fromkeys(choice["hookpoint"] for choice in wanted.values()))

    if quick:
        saes = {h: SparseAutoencoder.from_pretrained(mini.SAES, h) for h in hookpoints}
        profiles = {k: ConceptProfile.from_pretrained(mini.PROFILES / f"{k}s" / wanted[k]["hookpoint"]) for k in wanted}
    else:
        saes = _train(pipe, hookpoints, config, out / "sae")
        profiles = _profile(pipe, saes, wanted, out / "profiles")
    removals = {
        config.style: _plan(profiles["style"], config.style, wanted["style"]),
        config.object: _plan(profiles["object"], config.object, wanted["object"]),
    }
    removals[f"{config.style} + {config.object}"] = removals[config.style] + removals[config.object]
    for name, made in removals.items():
        made.save_pretrained(out / "plans" / name.replace(" ", ""))

    predictions, pictures = _images(pipe, saes, removals, config, out)
    scores = {
        config.style: score(predictions[config.style], "style", [config.style]),
        config.object: score(predictions[config.object], "object", [config.object]),
    }
    _write(out, config, wanted, predictions, scores, pictures, saes, quick, time.perf_counter() - clock)
    return scores


def _train(pipe: Any, hookpoints: list[str], config: DemoConfig, out: Path) -> dict[str, SparseAutoencoder]:
    """One SAE for each hookpoint, all from one stream of activations."""
    prompts = training_prompts(mini.OBJECTS, mini.STYLES, count=config.training_prompts)
    sampling = Sampling(steps=mini.STEPS, guidance=mini.GUIDANCE, batch=32)
    stream = ActivationStream(
        pipe, prompts, hookpoints, sampling, batch=config.batch, buffer=65_536, uses=config.epochs
    )
    settings = TrainConfig(lr=config.lr, batch=config.batch, epochs=config.epochs)
    trainers = {}
    for hookpoint, shape in hookpoint_shapes(pipe, hookpoints, sampling).items():
        sae = SparseAutoencoder(SaeConfig(shape.d_in, num_latents=config.num_latents, k=config.k))
        steps = shape.vectors * len(prompts) * config.epochs // config.batch
        trainers[hookpoint] = Trainer(sae, settings, steps)
        log.info("training an SAE at %s: %d latents, %d steps", hookpoint, config.num_latents, steps)
    for stats in train(trainers, stream, out=out, log_every=100):
        log.info("  %s step %d: FVU %.3f, L0 %.1f", stats.hookpoint, stats.step, stats.fvu, stats.l0)
    return {hookpoint: trainer.sae for hookpoint, trainer in trainers.items()}


def _profile(
    pipe: Any, saes: Mapping[str, SparseAutoencoder], wanted: Mapping[str, Mapping[str, Any]], out: Path
) -> dict[str, ConceptProfile]:
    """Profiles of all styles and all objects, on validation prompts, from one pass over their images."""
    sampling = Sampling(steps=mini.STEPS, guidance=mini.GUIDANCE, batch=32)
    profiles = {}
    for kind, choice in wanted.items():
        log.info("measuring which features the %ss use", kind)
        texts = validation_prompts(kind, mini.OBJECTS, mini.STYLES, each=1)
        hookpoint = choice["hookpoint"]
        profiles[kind] = profile(pipe, {hookpoint: saes[hookpoint]}, texts, sampling)[hookpoint]
        profiles[kind].save_pretrained(out / f"{kind}s" / hookpoint)
    return profiles


def _plan(profile: ConceptProfile, concept: str, choice: Mapping[str, Any]) -> UnlearningPlan:
    return plan(profile, [concept], choice["features"], choice["multiplier"])


def _images(
    pipe: Any,
    saes: Mapping[str, SparseAutoencoder],
    removals: Mapping[str, UnlearningPlan],
    config: DemoConfig,
    out: Path,
) -> tuple[dict[str, list[Prediction]], dict[str, list[Image.Image]]]:
    """Readings and pictures of the same requests before and after each removal, from the same noise."""
    others = [style for style in mini.STYLES if style != config.style]
    styles = [None, config.style, *others[:: max(1, len(others) // config.shown_styles)][: config.shown_styles]]
    requests = grid(mini.OBJECTS, styles, [config.seed])
    sampling = Sampling(steps=mini.STEPS, guidance=mini.GUIDANCE, batch=51)
    classifiers: dict[Kind, Callable] = {kind: c.predict for kind, c in mini.classifiers().items()}  # type: ignore[misc]
    predictions, pictures = {}, {}
    forgets: dict[str, Callable[[], AbstractContextManager]] = {"before": nullcontext}
    forgets |= {name: partial(unlearned, pipe, saes, made) for name, made in removals.items()}
    for name, forget in forgets.items():
        folder = out / "images" / name.replace(" ", "")
        log.info("generating %d images: %s", len(requests), name)
        with forget():
            records = generate(pipe, requests, folder, sampling, {"model": "mini", "removed": name})
        predictions[name] = predict(folder, records, classifiers)
        pictures[name] = list(open_images(folder, records))
        write_predictions(folder / "predictions.csv", predictions[name])
    return predictions, pictures


def _write(
    out: Path,
    config: DemoConfig,
    wanted: Mapping[str, Mapping[str, Any]],
    predictions: Mapping[str, list[Prediction]],
    scores: Mapping[str, CanvasScores],
    pictures: Mapping[str, list[Image.Image]],
    saes: Mapping[str, SparseAutoencoder],
    quick: bool,
    seconds: float,
) -> None:
    """`scores.json`, the grids and the report."""
    both = f"{config.style} + {config.object}"
    base = {"style": accuracy(predictions["before"], "style"), "object": accuracy(predictions["before"], "object")}
    facts = {
        "settings": vars(config) | {"quick": quick, "sampling": {"steps": mini.STEPS, "guidance": mini.GUIDANCE}},
        "removals": wanted,
        "saes": {hookpoint: sae.fingerprint() for hookpoint, sae in saes.items()},
        "accuracy_before": base,
        "scores": {name: found._asdict() for name, found in scores.items()},
        "seconds": round(seconds, 1),
    }
    with write_file(out / "scores.json") as new:
        new.write_text(json.dumps(facts, indent=2) + "\n")

    page = Report(f"Forgetting {spoken(config.style)} and {config.object}")
    origin = "bundled with the package" if quick else "trained a moment ago on the pipeline's own activations"
    page.text(
        f"MiniCanvas is a Stable Diffusion pipeline of 64 x 64 pixels. Sparse autoencoders, {origin}, found the "
        f"features of each concept; those were turned down while the pictures below were generated. Every pair of "
        f"pictures comes from the same prompt and the same noise. No weight of the diffusion model was changed."
    )
    page.table(
        ["removed", "UA: it is gone", "IRA: its kin are kept", "CRA: the other kind is kept", "features", "multiplier"],
        [
            [
                name,
                *(f"{100 * value:.1f} %" for value in found),
                str(wanted[kind]["features"]),
                f"{wanted[kind]['multiplier']:g}",
            ]
            for (name, found), kind in zip(scores.items(), wanted, strict=True)
        ],
    )
    page.text(
        f"Two classifiers read the pictures. Before any removal they recognise the style in "
        f"{100 * base['style']:.1f} % and the object in {100 * base['object']:.1f} % of the "
        f"{len(predictions['before'])} pictures."
    )
    for name in (*scores, both):
        sheet = _before_after(predictions["before"], pictures["before"], pictures[name], config)
        page.heading(f"{spoken(name)} removed")
        page.picture(
            sheet, "Above: as generated before. Below: after. Framed: where the removed concept was asked for."
        )
        sheet.save(out / f"grid_{name.replace(' ', '')}.png")
    page.save(out / "report.html")


def _before_after(
    asked: list[Prediction], before: list[Image.Image], after: list[Image.Image], config: DemoConfig
) -> Image.Image:
    """Two rows for each style, a column for each of a few objects."""
    objects = [config.object, *(o for o in mini.OBJECTS[::3] if o != config.object)][:7]
    styles = list(dict.fromkeys(p.style for p in asked))
    place = {(p.style, p.object): i for i, p in enumerate(asked)}
    rows: list[list[Image.Image]] = []
    labels: list[str] = []
    marked: list[tuple[int, int]] = []
    for style in styles:
        for pictures, word in ((before, "before"), (after, "after")):
            marked += [
                (len(rows), column)
                for column, object in enumerate(objects)
                if word == "after" and (style == config.style or object == config.object)
            ]
            rows.append([pictures[place[style, object]] for object in objects])
            labels.append(f"{spoken(style or 'plain')} {word}")
    return labelled_grid(rows, labels, objects, tile=96, marked=marked)
