"""The command line: each command parses, calls the library, and prints."""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from saeuron.options import (
    Anchors,
    Batch,
    BundledSaes,
    Concepts,
    Device,
    Dtype,
    ErrorTerm,
    Guidance,
    Half,
    Hookpoints,
    Kind,
    Model,
    ObjectClassifier,
    Out,
    Profiles,
    Quiet,
    SaeFolder,
    Steps,
    StyleClassifier,
    StylesFile,
    load_model,
    print_scores,
    print_table,
    profile_folders,
    said,
    sampling_of,
)

TOUR = """
Remove concepts from text-to-image diffusion models with sparse autoencoders, and see what was removed.

Start with `saeuron demo --out demo`: it does everything below on a small pipeline that comes with the package.

\b
  saeuron hookpoints                       which blocks can be edited
  saeuron train --out sae                  train an SAE on a block's activations
  saeuron profile --sae sae --out styles   measure which features each concept uses
  saeuron sweep --out sweep                find how many features, and how strongly
  saeuron plan Rust --profile styles --out no-rust
                                           say what to do to which features
  saeuron generate "A cat in Rust style." --sae sae --plan no-rust --out images
                                           generate without the concept
  saeuron evaluate canvas --out scores     remove every concept in turn, and score

Every command takes `--model`: `mini` (the bundled pipeline), a diffusers folder, or a hub id.
Run a command again after an interruption and it continues.
"""

app = typer.Typer(
    name="saeuron", help=TOUR, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    add_completion=False,
)  # fmt: skip
evaluate_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure what forgetting does.")
app.add_typer(evaluate_app, name="evaluate")


@app.command()
def demo(
    out: Out = Path("demo"),
    quick: Annotated[bool, Option("--quick", help="Use the bundled SAEs and profiles: seconds, not minutes.")] = False,
    style: Annotated[str, Option(help="Style to forget.")] = "Rust",
    object: Annotated[str, Option(help="Object to forget.")] = "Cats",
    quiet: Quiet = False,
) -> None:
    """Train, forget a style and an object, and prove it, on the bundled pipeline; leaves report.html."""
    from saeuron.demo import DemoConfig
    from saeuron.demo import demo as run

    with said(quiet):
        scores = run(out, DemoConfig(style, object, quick))
    print_scores(scores)
    typer.echo(f"report: {out / 'report.html'}")


@app.command()
def hookpoints(
    model: Model = "mini",
    scan: Annotated[bool, Option("--scan", help="Train a small SAE at each and rank them.")] = False,
    kind: Annotated[Kind, Option(help="What the concepts are.")] = Kind.object,
    concept: Concepts = None,
    only: Hookpoints = None,
    count: Annotated[int, Option(help="Training prompts of the scan.")] = 221,
    out: Annotated[Path, Option(help="Folder for the scan's images.")] = Path("scan"),
    steps: Steps = None,
    guidance: Guidance = None,
    batch: Batch = 16,
    anchor_prompts: Anchors = None,
    styles: StylesFile = None,
    style_classifier: StyleClassifier = None,
    object_classifier: ObjectClassifier = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quiet: Quiet = False,
) -> None:
    """List the blocks that can be edited with their width and map; with --scan, rank them for some concepts."""
    from saeuron.activations import hookpoint_shapes
    from saeuron.hooks import candidate_hookpoints
    from saeuron.models import MINI, load_classifiers, vocabulary
    from saeuron.prompts import ANCHORS
    from saeuron.scan import scan as run
    from saeuron.scan import scan_prompts

    folder = anchor_prompts or ANCHORS
    prompts = (
        scan_prompts(kind.value, concept or [], vocabulary(model, anchor_prompts, styles), count, folder)
        if scan
        else None
    )
    pipe = load_model(model, device, dtype)
    names = only or candidate_hookpoints(pipe)
    if prompts is None:
        shapes = hookpoint_shapes(pipe, names, sampling_of(model, 1, guidance, 1))
        listed = [[name, str(shape.d_in), "x".join(map(str, shape.map))] for name, shape in shapes.items()]
        print_table(["hookpoint", "d_in", "map"], listed)
        return
    readers = None
    if model == MINI or style_classifier or object_classifier:
        readers = load_classifiers(model, style_classifier, object_classifier)
    with said(quiet):
        sampling = sampling_of(model, steps, guidance, batch)
        reports = run(pipe, names, prompts, sampling, kind=kind.value, classifiers=readers, out=out / kind.value)
    rows = []
    for r in reports:
        edit = [f"{value:.3f}" for value in r.edit] if r.edit else ["-"] * 3
        shape = [str(r.shape.d_in), "x".join(map(str, r.shape.map))]
        rows.append([r.hookpoint, *shape, f"{r.fvu:.3f}", f"{r.best_score:.3f}", f"{r.knn:.3f}", *edit])
    print_table(["hookpoint", "d_in", "map", "FVU", "best score", "kNN", "UA", "IRA", "CRA"], rows)


@app.command()
def train(
    out: Out,
    model: Model = "mini",
    hookpoint: Hookpoints = None,
    prompts: Annotated[Path | None, Option(help="File with one prompt a line, instead of anchor prompts.")] = None,
    count: Annotated[int | None, Option(help="How many of the prompts.", show_default="all")] = None,
    expansion: Annotated[int, Option(help="Latents for each input dimension.")] = 16,
    k: Annotated[int, Option(help="Active latents for each vector.")] = 32,
    lr: Annotated[float, Option(help="Learning rate; falls linearly to 0.")] = 4e-4,
    vectors: Annotated[int, Option(help="Vectors in a training step.")] = 4096,
    epochs: Annotated[int, Option(help="How often each vector is used.")] = 5,
    buffer: Annotated[int, Option(help="Vectors in the shuffle buffer.")] = 262_144,
    seed: Annotated[int, Option(help="Seed of weights, order and noise.")] = 0,
    half: Half = False,
    resume: Annotated[bool, Option(help="Continue from the checkpoint in the folder, or start over.")] = True,
    steps: Steps = None,
    guidance: Guidance = None,
    batch: Batch = 8,
    anchor_prompts: Anchors = None,
    styles: StylesFile = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quiet: Quiet = False,
) -> None:
    """Train one SAE for each hookpoint on activations that are made meanwhile; nothing is cached on disk."""
    import torch

    from saeuron.activations import ActivationStream, hookpoint_shapes
    from saeuron.files import claim_folder
    from saeuron.models import default_hookpoints, vocabulary
    from saeuron.prompts import ANCHORS, read_lines, training_prompts
    from saeuron.sae import SaeConfig, SparseAutoencoder
    from saeuron.train import TrainConfig, Trainer, forget_run
    from saeuron.train import train as run

    config, sampling = TrainConfig(lr=lr, batch=vectors, epochs=epochs), sampling_of(model, steps, guidance, batch)
    if prompts is not None:
        texts = read_lines(prompts)[:count]
    else:
        words = vocabulary(model, anchor_prompts, styles)
        texts = training_prompts(words.objects, words.styles, anchor_prompts or ANCHORS, count=count, seed=seed)
    names = hookpoint or default_hookpoints(model)
    pipe = load_model(model, device, dtype)
    shapes = hookpoint_shapes(pipe, names, sampling)
    stream = ActivationStream(pipe, texts, names, sampling, batch=vectors, buffer=buffer, uses=epochs, seed=seed)
    trainers = {}
    for name in names:
        sae = SparseAutoencoder(SaeConfig(shapes[name].d_in, expansion, k=k), device=pipe.device, seed=seed)
        trainers[name] = Trainer(sae, config, shapes[name].vectors * len(texts) * epochs // vectors)
    if not resume:
        forget_run(out)
    shape = {"hookpoints": names, "expansion": expansion, "k": k, "buffer": buffer, "seed": seed}
    claim_folder(out, {"model": model, "prompts": len(texts), **shape, **vars(config), "sampling": vars(sampling)})
    with said(quiet):
        for stats in run(trainers, stream, out=out, save_dtype=torch.float16 if half else None):
            logging.getLogger("saeuron").info(
                "%s step %d/%d: loss %.4f, FVU %.4f, L0 %.1f, dead %.3f, %.0f vectors/s",
                stats.hookpoint, stats.step, trainers[stats.hookpoint].steps,
                stats.loss, stats.fvu, stats.l0, stats.dead, stats.vectors_per_second,
            )  # fmt: skip
    typer.echo(f"{len(names)} SAE(s) in {out}")


@app.command()
def profile(
    out: Out,
    sae: SaeFolder,
    model: Model = "mini",
    kind: Annotated[Kind, Option(help="What the concepts are.")] = Kind.style,
    hookpoint: Hookpoints = None,
    prompts: Annotated[Path | None, Option(help="Your own concepts: a folder with one <concept>.txt each.")] = None,
    each: Annotated[int | None, Option(help="Prompts for each object in each style, instead of the paper's.")] = None,
    seed: Annotated[int, Option(help="Seed of the noise.")] = 188,
    half: Half = False,
    steps: Steps = None,
    guidance: Guidance = None,
    batch: Batch = 8,
    anchor_prompts: Anchors = None,
    styles: StylesFile = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quiet: Quiet = False,
) -> None:
    """Measure each concept's mean feature activity at every step; a folder for each hookpoint."""
    import torch

    from saeuron.concepts import profile as run
    from saeuron.models import load_saes, vocabulary
    from saeuron.prompts import ANCHORS, read_lines, validation_prompts

    sampling = sampling_of(model, steps, guidance, batch, default=100)
    if prompts is not None:
        files = sorted(prompts.glob("*.txt"))
        if not files:
            raise ValueError(f"no prompts in '{prompts}': expected one <concept>.txt for each concept")
        texts = {path.stem: read_lines(path) for path in files}
    else:
        words = vocabulary(model, anchor_prompts, styles)
        texts = validation_prompts(kind.value, words.objects, words.styles, anchor_prompts or ANCHORS, each=each)
    pipe = load_model(model, device, dtype)
    saes = load_saes(sae, hookpoint, device=pipe.device)
    with said(quiet):
        for name, found in run(pipe, saes, texts, sampling, seed=seed).items():
            found.save_pretrained(out / name, dtype=torch.float16 if half else torch.float32)
            typer.echo(f"profile of {len(found.concepts)} concepts in {out / name}")


@app.command()
def sweep(
    out: Out,
    model: Model = "mini",
    kind: Annotated[Kind, Option(help="What the concepts are.")] = Kind.object,
    concept: Concepts = None,
    hookpoint: Hookpoints = None,
    sae: BundledSaes = None,
    profiles: Profiles = None,
    features: Annotated[list[int] | None, Option(help="Numbers of features to try.", show_default="1, 2, 4")] = None,
    multiplier: Annotated[
        list[float] | None, Option(help="Multipliers to try.", show_default="-0.5, -1, -2, -4, -8")
    ] = None,
    together: Annotated[bool, Option("--together", help="Edit at all hookpoints in one plan.")] = False,
    shared: Annotated[bool, Option("--shared", help="One setting for all concepts.")] = False,
    steps: Steps = None,
    guidance: Guidance = None,
    batch: Batch = 16,
    anchor_prompts: Anchors = None,
    styles: StylesFile = None,
    style_classifier: StyleClassifier = None,
    object_classifier: ObjectClassifier = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quiet: Quiet = False,
) -> None:
    """Try numbers of features and multipliers on validation prompts; leaves settings.json for `evaluate`."""
    from saeuron.canvas_run import CanvasRun, Setting, best_settings, write_settings
    from saeuron.models import load_classifiers, vocabulary
    from saeuron.prompts import ANCHORS

    run = CanvasRun.load(model, sae, profiles)
    words = vocabulary(model, anchor_prompts, styles)
    places = run.known("hookpoint", list(run.profiles[kind.value]), hookpoint)
    chosen = run.known(kind.value, words.of(kind.value), concept)
    candidates = [
        Setting(tuple(where), count, gamma)
        for where in ([places] if together else [[place] for place in places])
        for count in features or [1, 2, 4]
        for gamma in multiplier or [-0.5, -1, -2, -4, -8]
    ]
    readers = load_classifiers(model, style_classifier, object_classifier)
    pipe = load_model(model, device, dtype)
    sampling = sampling_of(model, steps, guidance, batch, default=100)
    folder = anchor_prompts or ANCHORS
    with said(quiet):
        table = run.sweep(pipe, kind.value, chosen, candidates, words, readers, out / f"{kind}s", sampling, folder)
    best = best_settings(table, shared=shared)
    write_settings(out / "settings.json", {kind.value: best})
    for name, setting in best.items():
        where = " + ".join(setting.hookpoints)
        typer.echo(f"{name}: {where}, {setting.features} feature(s), multiplier {setting.multiplier:g}")
    print_scores({name: table[name][setting] for name, setting in best.items()})


@app.command()
def plan(
    concepts: Annotated[list[str], Argument(help="Concepts to remove.")],
    profile: Annotated[str, Option(help="Folder of the profile, or of one for each hookpoint: all are used.")],
    out: Out,
    hookpoint: Hookpoints = None,
    features: Annotated[int, Option(help="Features for each concept and step (tau).")] = 1,
    multiplier: Annotated[float, Option(help="What their activations are multiplied by, times mu (gamma).")] = -1.0,
    percentile: Annotated[float | None, Option(help="Select features above this percentile of the scores.")] = None,
    error: Annotated[ErrorTerm, Option(help="'released' replicates the released code.")] = ErrorTerm.kept,
    join: Annotated[list[str] | None, Option(help="Other plans to do in the same pass.")] = None,
) -> None:
    """Say what to do to which features at which step: a few kilobytes, to be used and shared."""
    from saeuron.concepts import ConceptProfile
    from saeuron.unlearn import UnlearningPlan
    from saeuron.unlearn import plan as run

    measured = [ConceptProfile.from_pretrained(folder) for folder in profile_folders(profile, hookpoint)]
    made = run(measured, concepts, features, multiplier, percentile=percentile, error=error.value)
    for other in join or []:
        made = made + UnlearningPlan.from_pretrained(other)
    made.save_pretrained(out)
    typer.echo(f"plan without {', '.join(made.concepts)} in {out}")


@app.command()
def generate(
    prompts: Annotated[list[str], Argument(help="Prompts, or .txt files with one a line.")],
    out: Out,
    model: Model = "mini",
    sae: Annotated[str | None, Option(help="Folder of the SAEs that the plan is for.")] = None,
    plan: Annotated[str | None, Option(help="Folder of the plan; without one, nothing is removed.")] = None,
    seed: Annotated[list[int] | None, Option(help="Seeds; each prompt is used with each.", show_default="0")] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    batch: Batch = 8,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quiet: Quiet = False,
) -> None:
    """Generate images into a folder with a manifest, with or without a plan."""
    from saeuron.images import ImageRequest
    from saeuron.images import generate as run
    from saeuron.models import load_saes
    from saeuron.prompts import read_lines
    from saeuron.unlearn import UnlearningPlan, unlearned

    sampling = sampling_of(model, steps, guidance, batch)
    texts = [line for text in prompts for line in (read_lines(Path(text)) if text.endswith(".txt") else [text])]
    requests = [ImageRequest(text, number) for text in texts for number in seed or [0]]
    if plan is not None and sae is None:
        raise ValueError(f"the plan '{plan}' needs --sae, the folder of the SAEs that it is for")
    made = UnlearningPlan.from_pretrained(plan) if plan is not None else None
    pipe = load_model(model, device, dtype)
    context: Any = nullcontext()
    settings: dict[str, Any] = {"model": model}
    if made is not None and sae is not None:
        saes = load_saes(sae, [block.hookpoint for block in made.blocks], device=pipe.device)
        context = unlearned(pipe, saes, made)
        settings["plan"] = made.fingerprint()
    with said(quiet), context:
        records = run(pipe, requests, out, sampling, settings)
    typer.echo(f"{len(records)} image(s) in {out}")


@evaluate_app.command("canvas")
def evaluate_canvas(
    out: Out,
    model: Model = "mini",
    kind: Annotated[list[Kind] | None, Option(help="Kinds to evaluate.", show_default="both")] = None,
    concept: Concepts = None,
    sae: BundledSaes = None,
    profiles: Profiles = None,
    settings: Annotated[
        Path | None, Option(help="Json from `sweep`: how each concept is removed.  [default: bundled, for mini]")
    ] = None,
    error: Annotated[ErrorTerm, Option(help="'released' replicates the released code.")] = ErrorTerm.kept,
    seed: Annotated[list[int] | None, Option(help="Seeds.", show_default="188")] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    batch: Batch = 17,
    anchor_prompts: Anchors = None,
    styles: StylesFile = None,
    style_classifier: StyleClassifier = None,
    object_classifier: ObjectClassifier = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quiet: Quiet = False,
) -> None:
    """Remove each concept in turn, generate every object in every style, and score UA, IRA and CRA."""
    from saeuron.canvas_run import CanvasRun
    from saeuron.models import load_classifiers, vocabulary

    run, words = CanvasRun.load(model, sae, profiles, settings), vocabulary(model, anchor_prompts, styles)
    chosen = {one: run.known(one, list(run.settings.get(one.value, {})), concept) for one in kind or list(Kind)}
    readers = load_classifiers(model, style_classifier, object_classifier)
    sampling = sampling_of(model, steps, guidance, batch, default=100)
    pipe = load_model(model, device, dtype)
    with said(quiet):
        for one, names in chosen.items():
            folder = out / f"{one}s"
            scores = run.evaluate(pipe, one.value, names, words, readers, folder, sampling, seed or [188], error.value)
            print_scores(scores)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: what is wrong with the input is one line on standard error and exit code 2."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        app(arguments)
    except ValueError as error:
        sys.stderr.write(f"saeuron: {error}\n")
        sys.exit(2)
    except OSError as error:
        where = f" '{error.filename}'" if error.filename else ""
        sys.stderr.write(f"saeuron: {error.strerror or error}{where}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
