"""What the commands share: options, and the steps from options to objects."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

if TYPE_CHECKING:
    from saeuron.activations import Sampling
    from saeuron.concepts import ConceptProfile
    from saeuron.evaluate.canvas import CanvasScores


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
Steps = Annotated[
    int | None, Option(help="Denoising steps.  [default: as the paper's; 25 for mini]", show_default=False)
]
Guidance = Annotated[float | None, Option(help="Guidance scale.  [default: 9; 4 for mini]", show_default=False)]
Batch = Annotated[int, Option(help="Prompts in one call of the pipeline.")]
Half = Annotated[bool, Option("--half", help="Save in float16: half the size, for sharing.")]
Quiet = Annotated[bool, Option("--quiet", help="No progress bars, no messages.")]
Out = Annotated[Path, Option(help="Folder for the results.")]
SaeFolder = Annotated[str, Option("--sae", help="Folder (or hub id) of SAEs, one folder for each hookpoint.")]
Hookpoints = Annotated[list[str] | None, Option("--hookpoint", help="Block; may be given several times.")]
Concepts = Annotated[list[str] | None, Option("--concept", help="Concept; may be given several times.")]
Anchors = Annotated[Path | None, Option(help="Folder with one <object>.txt of anchor prompts each, instead of ours.")]
StylesFile = Annotated[
    Path | None, Option("--styles", help="File with one style a line, instead of the model's usual ones.")
]
BundledSaes = Annotated[str | None, Option("--sae", help="Folder of SAEs.  [default: bundled, for mini]")]
Profiles = Annotated[str | None, Option(help="Folder with `styles` and `objects`.  [default: bundled, for mini]")]
StyleClassifier = Annotated[Path | None, Option(help="Weights of a style classifier.  [default: bundled, for mini]")]
ObjectClassifier = Annotated[Path | None, Option(help="Weights of an object classifier.  [default: bundled, for mini]")]


def load_model(model: str, device: str, dtype: str) -> Any:
    """The pipeline that the options name."""
    from saeuron.models import load_pipeline

    return load_pipeline(model, device, dtype)


def sampling_of(model: str, steps: int | None, guidance: float | None, batch: int, default: int = 50) -> Sampling:
    """The sampling that the options say: `default` steps at guidance 9 for any model but the miniature."""
    from saeuron.activations import Sampling
    from saeuron.models import usual_sampling

    usual = usual_sampling(model, default)
    return Sampling(usual[0] if steps is None else steps, usual[1] if guidance is None else guidance, batch)


def load_profiles(name: str, hookpoints: list[str] | None) -> list[ConceptProfile]:
    """The profile in a folder (or hub repository), or those in it of all hookpoints, or of the given ones."""
    from saeuron.concepts import ConceptProfile
    from saeuron.files import resolve_folder

    folder = resolve_folder(name)
    if not hookpoints and not (folder / "profile.json").exists():
        hookpoints = sorted(path.parent.name for path in folder.glob("*/profile.json"))
    if not hookpoints:
        return [ConceptProfile.from_pretrained(folder)]
    return [ConceptProfile.from_pretrained(folder, hookpoint) for hookpoint in hookpoints]


def said(quiet: bool) -> AbstractContextManager[None]:
    """Messages on, or, when quiet, progress bars and messages off."""
    from saeuron.progress import silenced

    logging.getLogger("saeuron").setLevel(logging.WARNING if quiet else logging.INFO)
    return silenced() if quiet else nullcontext()


def print_scores(scores: Mapping[str, CanvasScores]) -> None:
    """A table of scores in percent, with the mean below when there are several."""
    from saeuron.evaluate.canvas import mean_scores

    shown = dict(scores)
    if len(shown) > 1:
        shown["mean"] = mean_scores(scores.values())
    rows = [[name, *(f"{100 * value:.1f}" for value in found)] for name, found in shown.items()]
    print_table(["removed", "UA %", "IRA %", "CRA %"], rows)


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Columns as wide as their widest cell; the first one holds names, the others figures."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        typer.echo("  ".join(cells).rstrip())
