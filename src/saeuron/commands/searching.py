"""The demonstration, and the search for places and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from saeuron.commands.options import (
    Anchors,
    Batch,
    BundledSaes,
    Concepts,
    Device,
    Dtype,
    Guidance,
    Hookpoints,
    Kind,
    Model,
    ObjectClassifier,
    Out,
    Profiles,
    Quiet,
    Steps,
    StyleClassifier,
    StylesFile,
    load_model,
    print_scores,
    print_table,
    said,
    sampling_of,
)


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


def hookpoints(
    model: Model = "mini",
    scan: Annotated[bool, Option("--scan", help="Train a small SAE at each and rank them.")] = False,
    kind: Annotated[Kind, Option(help="What the concepts are.")] = Kind.object,
    concept: Concepts = None,
    only: Hookpoints = None,
    count: Annotated[int, Option(help="Training prompts of the scan.")] = 221,
    out: Annotated[Path, Option(help="Folder of the scan.")] = Path("scan"),
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
    sampling = sampling_of(model, steps, guidance, batch)
    with said(quiet):
        reports = run(
            pipe, names, prompts, sampling, kind=kind.value, classifiers=readers, out=out, settings={"model": model}
        )
    rows = []
    for r in reports:
        edit = ["-" if value is None else f"{value:.3f}" for value in (r.reach, *(r.edit or (None, None, None)))]
        shape = [str(r.shape.d_in), "x".join(map(str, r.shape.map))]
        rows.append([r.hookpoint, *shape, f"{r.fvu:.3f}", f"{r.best_score:.3f}", f"{r.knn:.3f}", *edit])
    print_table(["hookpoint", "d_in", "map", "FVU", "best score", "kNN", "reach", "UA", "IRA", "CRA"], rows)


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
    from saeuron.files import claim_folder
    from saeuron.models import check_widths, load_classifiers, vocabulary
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
    sampling = sampling_of(model, steps, guidance, batch, default=100)
    folder = anchor_prompts or ANCHORS
    pipe = load_model(model, device, dtype)
    check_widths(pipe, run.saes, sampling)
    claim_folder(out, "sweep", {"model": model, "steps": sampling.steps, "guidance": sampling.guidance})
    with said(quiet):
        table = run.sweep(pipe, kind.value, chosen, candidates, words, readers, out / f"{kind}s", sampling, folder)
    best = best_settings(table, shared=shared)
    write_settings(out / "settings.json", {kind.value: best})
    for name, setting in best.items():
        where = " + ".join(setting.hookpoints)
        typer.echo(f"{name}: {where}, {setting.features} feature(s), multiplier {setting.multiplier:g}")
    print_scores({name: table[name][setting] for name, setting in best.items()})
