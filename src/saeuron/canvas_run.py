"""UnlearnCanvas with SAeUron as the way of forgetting: removals from settings, and the search for settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from saeuron.activations import Sampling
from saeuron.concepts import ConceptProfile
from saeuron.evaluate.canvas import CanvasScores, Classifier, Kind, evaluate, grid, predict_removals, score
from saeuron.files import read_json, resolve_folder, write_file
from saeuron.images import ImageRequest
from saeuron.models import Vocabulary, bundle, load_saes
from saeuron.progress import progress, silenced
from saeuron.prompts import ANCHORS, trial_prompt, unknown
from saeuron.sae import SparseAutoencoder
from saeuron.unlearn import ErrorTerm, UnlearningPlan, plan, unlearned


class Setting(NamedTuple):
    """How one concept is removed."""

    hookpoints: tuple[str, ...]
    """Where the best features are looked for."""
    features: int
    """tau_c"""
    multiplier: float
    """gamma_c"""


@dataclass(frozen=True)
class CanvasRun:
    """SAEs, profiles and settings: all that it takes to remove any of the concepts."""

    model: str
    """What the pipeline was loaded by."""
    saes: Mapping[str, SparseAutoencoder]
    profiles: Mapping[Kind, Mapping[str, ConceptProfile]]
    """By kind and hookpoint."""
    settings: Mapping[Kind, Mapping[str, Setting]]
    """By kind and concept."""

    @classmethod
    def load(
        cls, model: str, saes: str | None = None, profiles: str | None = None, settings: Path | None = None
    ) -> CanvasRun:
        """Read everything from folders; what is not given is MiniCanvas's, for MiniCanvas.

        Raises ValueError when something is missing or does not fit.
        """
        bundled = bundle(model)
        if bundled is not None:
            saes, profiles = saes or str(bundled.saes), profiles or str(bundled.profiles)
            settings = settings or bundled.settings
        if saes is None or profiles is None:
            raise ValueError(f"--sae and --profiles (and --settings, to evaluate) are needed for the model '{model}'")
        chosen = read_settings(settings) if settings else {}
        root = resolve_folder(profiles)
        kinds: tuple[Kind, ...] = ("style", "object")
        measured: dict[Kind, dict[str, ConceptProfile]] = {
            kind: {
                path.parent.name: ConceptProfile.from_pretrained(path.parent)
                for path in sorted(root.glob(f"{kind}s/*/profile.json"))
            }
            for kind in kinds
        }
        return cls(model, load_saes(saes), measured, chosen)

    @staticmethod
    def known(kind: str, known: Sequence[str], only: Sequence[str] | None) -> list[str]:
        """All that are known, or `only` those. Raises ValueError for one that is not known, or when none is."""
        for concept in only or []:
            if concept not in known:
                raise ValueError(unknown(kind, concept, known))
        if not known:
            raise ValueError(f"there is no {kind} to choose from in these profiles and settings")
        return list(only or known)

    def plan(
        self, kind: Kind, concept: str, setting: Setting | None = None, error: ErrorTerm = "kept"
    ) -> UnlearningPlan:
        """The plan that removes a concept with its setting, or with another one."""
        hookpoints, features, multiplier = setting or self.settings[kind][concept]
        self.known("hookpoint", list(self.profiles[kind]), hookpoints)
        measured = [self.profiles[kind][hookpoint] for hookpoint in hookpoints]
        return plan(measured, [concept], features, multiplier, error=error)

    def forget(self, pipe: Any, made: UnlearningPlan) -> Callable[[], AbstractContextManager[None]]:
        """A maker of contexts, as the protocols take them."""
        return partial(unlearned, pipe, self.saes, made)

    def evaluate(
        self,
        pipe: Any,
        kind: Kind,
        concepts: Sequence[str],
        words: Vocabulary,
        classifiers: Mapping[Kind, Classifier],
        out: Path,
        sampling: Sampling,
        seeds: Sequence[int],
        error: ErrorTerm = "kept",
    ) -> dict[str, CanvasScores]:
        """Remove each concept in turn and score every object in every style and plain."""
        plans = {concept: self.plan(kind, concept, error=error) for concept in concepts}
        requests = grid(words.objects, [None, *words.styles], seeds)
        removals = {concept: self.forget(pipe, made) for concept, made in plans.items()}
        facts = {concept: {"model": self.model, "plan": made.fingerprint()} for concept, made in plans.items()}
        return evaluate(pipe, removals, kind, requests, classifiers, out, sampling, facts)

    def sweep(
        self,
        pipe: Any,
        kind: Kind,
        concepts: Sequence[str],
        candidates: Sequence[Setting],
        words: Vocabulary,
        classifiers: Mapping[Kind, Classifier],
        out: Path,
        sampling: Sampling,
        anchors: Path = ANCHORS,
    ) -> dict[str, dict[Setting, CanvasScores]]:
        """Scores of every candidate setting for every concept, on validation prompts.

        `out` gets the images, and `sweep.json` with a row for each candidate that was tried there, now or before.
        """
        plans = {
            (concept, setting): self.plan(kind, concept, setting) for concept in concepts for setting in candidates
        }
        table: dict[str, dict[Setting, CanvasScores]] = {concept: {} for concept in concepts}
        for (concept, setting), made in progress(plans.items(), desc="sweep", unit="setting"):
            requests = validation_requests(kind, concept, words, anchors)
            facts = {made.fingerprint(): {"model": self.model, "plan": made.fingerprint()}}
            forget = {made.fingerprint(): self.forget(pipe, made)}
            with silenced():
                found = predict_removals(pipe, forget, requests, classifiers, out / concept, sampling, facts)
            scores = score(found[made.fingerprint()], kind, [concept], share=1 / len(words.of(kind)))
            table[concept][setting] = scores
            _add_row(out / "sweep.json", {"kind": kind, "concept": concept, **setting._asdict(), **scores._asdict()})
        return table


def validation_requests(
    kind: Kind, concept: str, words: Vocabulary, folder: Path = ANCHORS, seed: int = 1
) -> list[ImageRequest]:
    """A few images that tell how well a concept is removed and the others are kept; no evaluation prompt among them.

    The concept with every concept of the other kind, and every other concept of its kind with two or three.
    """
    styles = [None, *words.styles]
    prompt = partial(trial_prompt, folder=folder)
    if kind == "object":
        requests = grid([concept], styles, [seed], prompt)
        for i, object in enumerate(o for o in words.objects if o != concept):
            two = [styles[(2 * i + j) % len(styles)] for j in range(2)]
            requests += grid([object], two, [seed], prompt)
    else:
        requests = grid(words.objects, [concept], [seed], prompt)
        for i, style in enumerate(s for s in words.styles if s != concept):
            chosen = {words.objects[(3 * i + j) % len(words.objects)] for j in range(3)}
            requests += grid(sorted(chosen), [style], [seed], prompt)
    return requests


def best_settings(table: Mapping[str, Mapping[Setting, CanvasScores]], *, shared: bool = False) -> dict[str, Setting]:
    """For each concept the candidate with the highest mean of UA, IRA and CRA; one for all of them when `shared`."""
    if shared:
        first = next(iter(table.values()))
        best = max(first, key=lambda setting: sum(scores[setting].mean for scores in table.values()))
        return dict.fromkeys(table, best)
    return {concept: max(scores, key=lambda setting: scores[setting].mean) for concept, scores in table.items()}


def _add_row(path: Path, row: dict[str, Any]) -> None:
    """Add a row to the json list in a file, in place of one of the same kind, concept and setting."""
    names = ("kind", "concept", *Setting._fields)
    row = json.loads(json.dumps(row))
    rows = read_json(path)["rows"] if path.exists() else []
    rows = [other for other in rows if any(other[name] != row[name] for name in names)]
    with write_file(path) as new:
        new.write_text(json.dumps({"rows": [*rows, row]}, indent=1) + "\n")


def write_settings(path: Path, settings: Mapping[Kind, Mapping[str, Setting]]) -> None:
    """Settings by kind and concept, as json; those of other concepts that the file has already stay."""
    before = read_settings(path) if path.exists() else {}
    merged = {kind: {**before.get(kind, {}), **settings.get(kind, {})} for kind in (*before, *settings)}
    table = {kind: {concept: s._asdict() for concept, s in found.items()} for kind, found in merged.items()}
    with write_file(path) as new:
        new.write_text(json.dumps(table, indent=1) + "\n")


def read_settings(path: Path) -> dict[Kind, dict[str, Setting]]:
    """What `write_settings` wrote. Raises ValueError, naming the file, for anything else."""
    table = read_json(Path(path))
    try:
        kinds: tuple[Kind, ...] = ("style", "object")
        return {
            kind: {
                c: Setting(tuple(map(str, s["hookpoints"])), int(s["features"]), float(s["multiplier"]))
                for c, s in found.items()
            }
            for kind in kinds
            if (found := table.get(kind, {}))
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"'{path}': not settings of kind, concept, hookpoints, features, multiplier ({error})"
        ) from None
