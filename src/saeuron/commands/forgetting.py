"""Saying what to forget, and generating without it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from saeuron.commands.options import (
    Batch,
    Device,
    Dtype,
    ErrorTerm,
    Guidance,
    Hookpoints,
    Model,
    Out,
    Quiet,
    Steps,
    load_model,
    load_profiles,
    said,
    sampling_of,
)


def plan(
    concepts: Annotated[list[str], Argument(help="Concepts to remove.")],
    profile: Annotated[str, Option(help="Folder of the profile, or of one for each hookpoint: all are used.")],
    out: Out,
    hookpoint: Hookpoints = None,
    features: Annotated[int | None, Option(help="Features for each concept and step (tau).", show_default="1")] = None,
    multiplier: Annotated[float, Option(help="What their activations are multiplied by, times mu (gamma).")] = -1.0,
    percentile: Annotated[float | None, Option(help="Select features above this percentile of the scores.")] = None,
    error: Annotated[ErrorTerm, Option(help="'released' replicates the released code.")] = ErrorTerm.kept,
    join: Annotated[list[str] | None, Option(help="Other plans to do in the same pass.")] = None,
) -> None:
    """Say what to do to which features at which step: a few kilobytes, to be used and shared."""
    from saeuron.files import claim_folder
    from saeuron.unlearn import UnlearningPlan
    from saeuron.unlearn import plan as run

    if features is not None and percentile is not None:
        raise ValueError("--features and --percentile are two ways to select; expected one of them")
    measured, count = load_profiles(profile, hookpoint), 1 if features is None else features
    made = run(measured, concepts, count, multiplier, percentile=percentile, error=error.value)
    for other in join or []:
        made = made + UnlearningPlan.from_pretrained(other)
    claim_folder(out, "plan", {"concepts": list(made.concepts), "plan": made.fingerprint()}, renew=True)
    made.save_pretrained(out)
    for block in made.blocks:
        typer.echo(
            f"{block.hookpoint}: up to {block.features.shape[1]} feature(s) in each of {len(block.features)} steps"
        )
    typer.echo(
        f"plan without {', '.join(made.concepts)} in {out}" if made.blocks else f"plan that does nothing in {out}"
    )


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
    from saeuron.models import check_widths, load_saes
    from saeuron.prompts import read_lines
    from saeuron.unlearn import UnlearningPlan, unlearned

    sampling = sampling_of(model, steps, guidance, batch)
    texts = [line for text in prompts for line in (read_lines(Path(text)) if text.endswith(".txt") else [text])]
    requests = [ImageRequest(text, number) for text in texts for number in seed or [0]]
    if (plan is None) != (sae is None):
        raise ValueError("--plan and --sae, the folder of the SAEs that the plan is for, go together; expected both")
    made = UnlearningPlan.from_pretrained(plan) if plan is not None else None
    pipe = load_model(model, device, dtype)
    context: Any = nullcontext()
    settings: dict[str, Any] = {"model": model}
    if made is not None and sae is not None:
        saes = load_saes(sae, [block.hookpoint for block in made.blocks], device=pipe.device)
        check_widths(pipe, saes, sampling)
        context = unlearned(pipe, saes, made)
        settings["plan"] = made.fingerprint()
    with said(quiet), context:
        records = run(pipe, requests, out, sampling, settings)
    typer.echo(f"{len(records)} image(s) in {out}")
