"""Proving that something was forgotten and the rest was not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from saeuron.commands.options import (
    Anchors,
    Batch,
    BundledSaes,
    Concepts,
    Device,
    Dtype,
    ErrorTerm,
    Guidance,
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
    said,
    sampling_of,
)


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
    from saeuron.files import claim_folder
    from saeuron.models import check_widths, load_classifiers, vocabulary

    run, words = CanvasRun.load(model, sae, profiles, settings), vocabulary(model, anchor_prompts, styles)
    known = {one: list(run.settings.get(one.value, {})) for one in kind or list(Kind)}
    run.known(" or ".join(known), [name for names in known.values() for name in names], concept)
    chosen = {one: [name for name in names if not concept or name in concept] for one, names in known.items()}
    readers = load_classifiers(model, style_classifier, object_classifier)
    sampling = sampling_of(model, steps, guidance, batch, default=100)
    pipe = load_model(model, device, dtype)
    check_widths(pipe, run.saes, sampling)
    claim_folder(out, "evaluate canvas", {"model": model, "steps": sampling.steps, "guidance": sampling.guidance})
    with said(quiet):
        for one, names in chosen.items():
            if not names:
                continue
            folder = out / f"{one}s"
            scores = run.evaluate(pipe, one.value, names, words, readers, folder, sampling, seed or [188], error.value)
            print_scores(scores)
