"""The command line: each command parses, calls the library, and prints."""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

TOUR = """
Remove concepts from text-to-image diffusion models with sparse autoencoders, and see what was removed.

Start with `saeuron demo --out demo`: it does everything below on a small pipeline that comes with the package.

\b
  saeuron hookpoints                       which blocks can be edited
  saeuron train --out sae                  train an SAE on a block's activations
  saeuron profile --sae sae --out styles   measure which features each concept uses
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


class Kind(StrEnum):
    """What a concept is."""

    style = "style"
    object = "object"


class ErrorTerm(StrEnum):
    """What becomes of the reconstruction error."""

    kept = "kept"
    released = "released"


Model = Annotated[str, Option(help="Pipeline: 'mini', a diffusers folder, or a hub id.")]
Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:N or mps.")]
Dtype = Annotated[str, Option(help="auto, float32, float16 or bfloat16.")]
Steps = Annotated[int | None, Option(help="Denoising steps.  [default: 50, mini 25; evaluate 100]", show_default=False)]
Guidance = Annotated[float | None, Option(help="Guidance scale.  [default: 9, mini 4]", show_default=False)]
Batch = Annotated[int, Option(help="Prompts in one call of the pipeline.")]
Quiet = Annotated[bool, Option("--quiet", help="No progress bars, no messages.")]
Out = Annotated[Path, Option(help="Folder for the results.")]
SaeFolder = Annotated[str, Option("--sae", help="Folder (or hub id) of SAEs, one folder for each hookpoint.")]
Hookpoints = Annotated[list[str] | None, Option("--hookpoint", help="Block; may be given several times.")]
Anchors = Annotated[Path | None, Option(help="Folder with one <object>.txt of anchor prompts each, instead of ours.")]


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

    with _said(quiet):
        scores = run(out, DemoConfig(style=style, object=object), quick=quick)
    _print_scores(scores)
    typer.echo(f"report: {out / 'report.html'}")


@app.command()
def hookpoints(
    model: Model = "mini",
    scan: Annotated[bool, Option("--scan", help="Train a small SAE at each and rank them.")] = False,
    kind: Annotated[Kind, Option(help="What the concepts are.")] = Kind.object,
    concept: Annotated[list[str] | None, Option(help="Concepts to rank by; may be given several times.")] = None,
    prompts: Annotated[int, Option(help="Training prompts of the scan.")] = 221,
    only: Hookpoints = None,
    out: Annotated[Path, Option(help="Folder for the scan's images and scan.json.")] = Path("scan"),
    steps: Steps = None,
    guidance: Guidance = None,
    batch: Batch = 16,
    anchor_prompts: Anchors = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quiet: Quiet = False,
) -> None:
    """List the blocks that can be edited with their width and map; with --scan, rank them."""
    from saeuron.activations import hookpoint_shapes
    from saeuron.hooks import candidate_hookpoints

    pipe = _load(model, device, dtype)
    sampling = _sampling(model, steps, guidance, batch)
    names = only or candidate_hookpoints(pipe)
    if not scan:
        shapes = hookpoint_shapes(pipe, names, _sampling(model, 1, guidance, 1))
        _print_table(
            ["hookpoint", "d_in", "map"],
            [[name, str(shape.d_in), "x".join(map(str, shape.map))] for name, shape in shapes.items()],
        )
        return
    from saeuron.evaluate.canvas import grid
    from saeuron.models import vocabulary
    from saeuron.prompts import ANCHORS, styled, training_prompts, unknown, validation_prompts
    from saeuron.prompts import anchor_prompts as anchors_of
    from saeuron.scan import scan as run

    folder, words = anchor_prompts or ANCHORS, vocabulary(model)
    known = words.of(kind)
    chosen = concept or list(known)[:4]
    for name in chosen:
        if name not in known:
            raise ValueError(unknown(kind.value, name, known))
    texts = validation_prompts(kind.value, words.objects, words.styles, folder, each=1)
    if kind is Kind.object:
        others = [o for o in words.objects if o not in chosen][:4]
        trials = grid(
            [*chosen, *others], [None, *words.styles[:4]], [0], lambda o, s: styled(anchors_of(o, folder)[1], s)
        )
    else:
        others = [s for s in words.styles if s not in chosen][:4]
        trials = grid(words.objects[:5], [*chosen, *others], [0], lambda o, s: styled(anchors_of(o, folder)[1], s))
    with _said(quiet):
        reports = run(
            pipe,
            names,
            training_prompts(words.objects, words.styles, folder, count=prompts),
            {name: texts[name] for name in (*chosen, *others)},
            sampling,
            kind=kind.value,
            targets=chosen,
            trials=trials,
            classifiers=_classifiers(model),
            out=out / kind.value,
        )
    rows = []
    for r in reports:
        edit = [f"{value:.3f}" for value in r.edit] if r.edit else ["-"] * 3
        shape = [str(r.shape.d_in), "x".join(map(str, r.shape.map))]
        rows.append([r.hookpoint, *shape, f"{r.fvu:.3f}", f"{r.best_score:.3f}", f"{r.knn:.3f}", *edit])
    _print_table(["hookpoint", "d_in", "map", "FVU", "best score", "kNN", "UA", "IRA", "CRA"], rows)


@app.command()
def train(
    out: Out,
    model: Model = "mini",
    hookpoint: Hookpoints = None,
    prompts: Annotated[
        Path | None, Option(help="File with one training prompt a line, instead of anchor prompts.")
    ] = None,
    count: Annotated[int | None, Option(help="How many of the prompts.", show_default="all")] = None,
    expansion: Annotated[int, Option(help="Latents for each input dimension.")] = 16,
    k: Annotated[int, Option(help="Active latents for each vector.")] = 32,
    lr: Annotated[float, Option(help="Learning rate; falls linearly to 0.")] = 4e-4,
    vectors: Annotated[int, Option(help="Vectors in a training step.")] = 4096,
    epochs: Annotated[int, Option(help="How often each vector is used.")] = 5,
    buffer: Annotated[int, Option(help="Vectors in the shuffle buffer.")] = 262_144,
    seed: Annotated[int, Option(help="Seed of weights, order and noise.")] = 0,
    resume: Annotated[bool, Option(help="Continue from the checkpoint in the folder.")] = True,
    steps: Steps = None,
    guidance: Guidance = None,
    batch: Batch = 8,
    anchor_prompts: Anchors = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quiet: Quiet = False,
) -> None:
    """Train one SAE for each hookpoint on activations that are made meanwhile; nothing is cached on disk."""
    from saeuron.activations import ActivationStream, hookpoint_shapes
    from saeuron.models import default_hookpoints, vocabulary
    from saeuron.prompts import ANCHORS, training_prompts
    from saeuron.sae import SaeConfig, SparseAutoencoder
    from saeuron.train import TrainConfig, Trainer
    from saeuron.train import train as run

    config = TrainConfig(lr=lr, batch=vectors, epochs=epochs)
    sampling = _sampling(model, steps, guidance, batch)
    if prompts is not None:
        texts = _read_lines(prompts)[:count]
    else:
        words = vocabulary(model)
        texts = training_prompts(words.objects, words.styles, anchor_prompts or ANCHORS, count=count, seed=seed)
    settings = {
        "model": model, "hookpoints": hookpoint, "prompts": len(texts), "expansion": expansion, "k": k, "seed": seed,
        "buffer": buffer, **vars(config), **vars(sampling),
    }  # fmt: skip
    _claim(out, settings, resume)
    pipe = _load(model, device, dtype)
    names = hookpoint or list(dict.fromkeys(default_hookpoints(model).values()))
    shapes = hookpoint_shapes(pipe, names, sampling)
    stream = ActivationStream(pipe, texts, names, sampling, batch=vectors, buffer=buffer, uses=epochs, seed=seed)
    trainers = {}
    for name in names:
        sae = SparseAutoencoder(SaeConfig(shapes[name].d_in, expansion, k=k), device=pipe.device, seed=seed)
        trainers[name] = Trainer(sae, config, shapes[name].vectors * len(texts) * epochs // vectors)
    with _said(quiet):
        for stats in run(trainers, stream, out=out):
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
    prompts: Annotated[
        Path | None, Option(help="Folder with one <concept>.txt of prompts each: your own concepts.")
    ] = None,
    each: Annotated[
        int | None, Option(help="Prompts for each pair of object and style, instead of the paper's.")
    ] = None,
    seed: Annotated[int, Option(help="Seed of the noise.")] = 188,
    steps: Steps = None,
    guidance: Guidance = None,
    batch: Batch = 8,
    anchor_prompts: Anchors = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quiet: Quiet = False,
) -> None:
    """Measure each concept's mean feature activity at every step; a folder for each hookpoint."""
    from saeuron.concepts import profile as run
    from saeuron.models import load_saes, vocabulary
    from saeuron.prompts import ANCHORS, validation_prompts

    sampling = _sampling(model, steps, guidance, batch, default=100)
    if prompts is not None:
        files = sorted(prompts.glob("*.txt"))
        if not files:
            raise ValueError(f"no prompts in '{prompts}': expected one <concept>.txt for each concept")
        texts = {path.stem: _read_lines(path) for path in files}
    else:
        words = vocabulary(model)
        texts = validation_prompts(kind.value, words.objects, words.styles, anchor_prompts or ANCHORS, each=each)
    pipe = _load(model, device, dtype)
    saes = load_saes(sae, hookpoint, device=pipe.device)
    with _said(quiet):
        for name, found in run(pipe, saes, texts, sampling, seed=seed).items():
            found.save_pretrained(out / name)
            typer.echo(f"profile of {len(found.concepts)} concepts in {out / name}")


@app.command()
def plan(
    concepts: Annotated[list[str], Argument(help="Concepts to remove.")],
    profile: Annotated[str, Option(help="Folder of the profile.")],
    out: Out,
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

    made = run(
        ConceptProfile.from_pretrained(_only_child(profile, "profile.json")),
        concepts, features, multiplier, percentile=percentile, error=error.value,
    )  # fmt: skip
    for other in join or []:
        made = made + UnlearningPlan.from_pretrained(other)
    made.save_pretrained(out)
    typer.echo(f"plan without {', '.join(made.concepts)} in {out}")


@app.command()
def generate(
    prompts: Annotated[list[str], Argument(help="Prompts, or files with one a line.")],
    out: Out,
    model: Model = "mini",
    sae: Annotated[str | None, Option(help="Folder of the SAEs that the plan is for.")] = None,
    plan: Annotated[str | None, Option(help="Folder of the plan; without one, nothing is removed.")] = None,
    seed: Annotated[
        list[int] | None, Option(help="Seeds; each prompt is generated with each.", show_default="0")
    ] = None,
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
    from saeuron.unlearn import UnlearningPlan, unlearned

    sampling = _sampling(model, steps, guidance, batch)
    texts = [line for text in prompts for line in (_read_lines(Path(text)) if text.endswith(".txt") else [text])]
    requests = [ImageRequest(text, number) for text in texts for number in seed or [0]]
    if plan is not None and sae is None:
        raise ValueError(f"the plan '{plan}' needs --sae, the folder of the SAEs that it is for")
    made = UnlearningPlan.from_pretrained(plan) if plan is not None else None
    pipe = _load(model, device, dtype)
    context: Any = nullcontext()
    settings: dict[str, Any] = {"model": model}
    if made is not None and sae is not None:
        saes = load_saes(sae, [block.hookpoint for block in made.blocks], device=pipe.device)
        context = unlearned(pipe, saes, made)
        settings["plan"] = made.fingerprint()
    with _said(quiet), context:
        records = run(pipe, requests, out, sampling, settings)
    typer.echo(f"{len(records)} image(s) in {out}")


@evaluate_app.command("canvas")
def evaluate_canvas(
    out: Out,
    model: Model = "mini",
    kind: Annotated[list[Kind] | None, Option(help="Kinds to evaluate.", show_default="both")] = None,
    concept: Annotated[list[str] | None, Option(help="Only these concepts; may be given several times.")] = None,
    sae: Annotated[str | None, Option(help="Folder of SAEs.", show_default="the bundled ones, for mini")] = None,
    profiles: Annotated[
        str | None, Option(help="Folder with `styles` and `objects`.", show_default="the bundled ones, for mini")
    ] = None,
    settings: Annotated[
        Path | None,
        Option(help="Json: kind, concept: hookpoint, features, multiplier.", show_default="bundled, for mini"),
    ] = None,
    error: Annotated[ErrorTerm, Option(help="'released' replicates the released code.")] = ErrorTerm.kept,
    seed: Annotated[list[int] | None, Option(help="Seeds.", show_default="188")] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    batch: Batch = 17,
    style_classifier: Annotated[Path | None, Option(help="Weights of a style classifier.")] = None,
    object_classifier: Annotated[Path | None, Option(help="Weights of an object classifier.")] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quiet: Quiet = False,
) -> None:
    """Remove each concept in turn, generate every object in every style, and score UA, IRA and CRA."""
    from saeuron.canvas_run import CanvasRun
    from saeuron.models import vocabulary

    words = vocabulary(model)
    run = CanvasRun.load(model, sae, profiles, settings)
    pipe = _load(model, device, dtype)
    readers = _classifiers(model, style_classifier, object_classifier)
    sampling = _sampling(model, steps, guidance, batch, default=100)
    with _said(quiet):
        for one in kind or list(Kind):
            chosen = run.concepts(one.value, concept)
            scores = run.evaluate(
                pipe, one.value, chosen, words, readers, out / f"{one.value}s", sampling, seed or [188], error.value
            )
            _print_scores(scores)


# ------------------------------------------------------------------------------------------------------- shared parts


def _load(model: str, device: str, dtype: str) -> Any:
    from saeuron.models import load_pipeline

    return load_pipeline(model, device, dtype)


def _sampling(model: str, steps: int | None, guidance: float | None, batch: int, default: int = 50) -> Any:
    from saeuron.activations import Sampling
    from saeuron.models import MINI

    if model == MINI:
        from saeuron import mini

        default_steps, default_guidance = mini.STEPS, mini.GUIDANCE
    else:
        default_steps, default_guidance = default, 9.0
    return Sampling(
        default_steps if steps is None else steps, default_guidance if guidance is None else guidance, batch
    )


def _classifiers(model: str, style: Path | None = None, object: Path | None = None) -> dict[Any, Any]:
    from saeuron import mini
    from saeuron.models import MINI

    if (style is None or object is None) and model != MINI:
        raise ValueError(f"no classifiers for the model '{model}'; expected --style-classifier and --object-classifier")
    models = mini.classifiers() if model == MINI else {}
    for name, path in (("style", style), ("object", object)):
        if path is not None:
            models[name] = mini.Classifier.load(path)
    return {name: found.predict for name, found in models.items()}


def _claim(out: Path, settings: dict[str, Any], resume: bool) -> None:
    """Make sure that a folder is new, empty, or of the same settings, and write them down."""
    from saeuron.files import claim_folder

    if not resume:
        for name in ("checkpoint.safetensors", "stats.jsonl", "settings.json"):
            (out / name).unlink(missing_ok=True)
    claim_folder(out, settings)


def _only_child(folder: str, name: str) -> str:
    """The folder itself, or its one folder that has the file."""
    found = [path.parent for path in Path(folder).glob(f"*/{name}")]
    if (Path(folder) / name).exists() or len(found) != 1:
        return folder
    return str(found[0])


def _read_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise ValueError(f"no file '{path}'; expected a text file with one prompt a line")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"'{path}' is empty; expected one prompt a line")
    return lines


def _said(quiet: bool) -> Any:
    """Messages on, or, when quiet, progress bars and messages off."""
    from saeuron.progress import silenced

    logging.getLogger("saeuron").setLevel(logging.WARNING if quiet else logging.INFO)
    return silenced() if quiet else nullcontext()


def _print_scores(scores: Any) -> None:
    from saeuron.evaluate.canvas import mean_scores

    rows = [[name, *(f"{100 * value:.1f}" for value in found)] for name, found in scores.items()]
    if len(rows) > 1:
        rows.append(["mean", *(f"{100 * value:.1f}" for value in mean_scores(scores.values()))])
    _print_table(["removed", "UA %", "IRA %", "CRA %"], rows)


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        typer.echo("  ".join(cells).rstrip())


def main(arguments: list[str] | None = None) -> None:
    """Entry point: what is wrong with the input is one line on standard error and exit code 2."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        app(arguments, standalone_mode=True)
    except ValueError as error:
        sys.stderr.write(f"saeuron: {error}\n")
        sys.exit(2)
    except OSError as error:
        where = f" '{error.filename}'" if error.filename else ""
        sys.stderr.write(f"saeuron: {error.strerror or error}{where}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
