"""UnlearnCanvas: images of every object in every style, read by two classifiers, scored as UA, IRA and CRA.

A protocol gets a pipeline and contexts in which it forgets; it knows nothing of how.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import Image

from saeuron.activations import Sampling
from saeuron.files import read_json, write_file
from saeuron.images import ImageRecord, ImageRequest, generate, open_images
from saeuron.progress import progress
from saeuron.prompts import evaluation_prompt

Kind = Literal["style", "object"]

Classifier = Callable[[Sequence[Image.Image]], list[str]]
"""Reads a label off each picture."""

Forget = Callable[[], AbstractContextManager[Any]]
"""Makes a context in which the pipeline forgets something."""


@dataclass(frozen=True)
class Prediction:
    """What was asked of an image and what the classifiers read in it: one row of `predictions.csv`."""

    path: str
    prompt: str
    seed: int
    style: str | None
    """None for a prompt without a style."""
    object: str | None
    predicted_style: str
    predicted_object: str

    def right(self, kind: Kind) -> bool:
        """Whether the classifier read what was asked for."""
        return getattr(self, kind) == getattr(self, f"predicted_{kind}")


class CanvasScores(NamedTuple):
    """Fractions, 0 to 1."""

    ua: float
    """Unlearning accuracy: how often the removed concept is not recognised where it was asked for."""
    ira: float
    """In-domain retain accuracy: how often the other concepts of the same kind are."""
    cra: float
    """Cross-domain retain accuracy: how often the concepts of the other kind are."""

    @property
    def mean(self) -> float:
        """Mean of the three."""
        return sum(self) / 3


def grid(
    objects: Iterable[str],
    styles: Iterable[str | None],
    seeds: Iterable[int],
    prompt: Callable[[str, str | None], str] = evaluation_prompt,
) -> list[ImageRequest]:
    """A request for every object in every style (None: without one) with every seed."""
    styles, seeds = list(styles), list(seeds)
    return [
        ImageRequest(prompt(object, style), seed, style, object)
        for object in objects
        for style in styles
        for seed in seeds
    ]


def predict(
    folder: Path | str, records: Sequence[ImageRecord], classifiers: Mapping[Kind, Classifier], batch: int = 64
) -> list[Prediction]:
    """Both classifiers' readings of the images, in order. Raises ValueError for an image that cannot be read."""
    predictions = []
    for start in range(0, len(records), batch):
        part = records[start : start + batch]
        images = list(open_images(folder, part))
        read = {kind: classify(images) for kind, classify in classifiers.items()}
        for record, style, object in zip(part, read["style"], read["object"], strict=True):
            predictions.append(
                Prediction(record.path, record.prompt, record.seed, record.style, record.object, style, object)
            )
    return predictions


def score(
    predictions: Sequence[Prediction], kind: Kind, removed: Collection[str], *, share: float | None = None
) -> CanvasScores:
    """UA, IRA and CRA after the `removed` concepts of a kind were removed.

    Style accuracy is over the images that were asked for in a style, object accuracy over those asked to show an
    object; for CRA, over all of them, the removed concept's included, as in the benchmark. A sample that holds more of
    the removed concept's images than the full grid does is weighted as if they were `share` of it.

    Raises ValueError when there is no image to compute one of the three from.
    """
    if not removed:
        raise ValueError("no removed concepts; expected at least one")
    other: Kind = "object" if kind == "style" else "style"

    def fraction(what: str, asked: Kind, among: Callable[[Prediction], bool]) -> float:
        right = [p.right(asked) for p in predictions if getattr(p, asked) is not None and among(p)]
        if not right:
            raise ValueError(f"no images {what} among {len(predictions)}; removed: {', '.join(removed)}")
        return sum(right) / len(right)

    def of_removed(p: Prediction) -> bool:
        return getattr(p, kind) in removed

    def of_others(p: Prediction) -> bool:
        return not of_removed(p)

    ua = 1 - fraction(f"of the removed {kind}s", kind, of_removed)
    ira = fraction(f"of other {kind}s", kind, of_others)
    if share is None:
        return CanvasScores(ua, ira, fraction(f"that show {other}s", other, lambda p: True))
    there = fraction(f"that show {other}s with what was removed", other, of_removed)
    elsewhere = fraction(f"that show {other}s without it", other, of_others)
    return CanvasScores(ua, ira, share * there + (1 - share) * elsewhere)


def accuracy(predictions: Sequence[Prediction], kind: Kind) -> float:
    """How often a concept of the kind is recognised where it was asked for."""
    right = [p.right(kind) for p in predictions if getattr(p, kind) is not None]
    if not right:
        raise ValueError(f"no images with a {kind} among {len(predictions)}")
    return sum(right) / len(right)


def predict_removals(
    pipe: Any,
    removals: Mapping[str, Forget],
    requests: Sequence[ImageRequest],
    classifiers: Mapping[Kind, Classifier],
    out: Path | str,
    sampling: Sampling,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, list[Prediction]]:
    """Make the images within each removal's context, one after the other, and read them.

    `settings` says what each removal's images depend on. `out` gets a folder for each removal with the images and
    `predictions.csv`; what is there already is not made again.
    """
    found: dict[str, list[Prediction]] = {}
    for name, forget in progress(removals.items(), desc="canvas", unit="removal"):
        folder = Path(out) / name
        with forget():
            records = generate(pipe, requests, folder, sampling, (settings or {}).get(name))
        found[name] = predict(folder, records, classifiers)
        write_predictions(folder / "predictions.csv", found[name])
    return found


def evaluate(
    pipe: Any,
    removals: Mapping[str, Forget],
    kind: Kind,
    requests: Sequence[ImageRequest],
    classifiers: Mapping[Kind, Classifier],
    out: Path | str,
    sampling: Sampling,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, CanvasScores]:
    """Score the removals of concepts: `predict_removals`, and `scores.json` in `out`."""
    found = predict_removals(pipe, removals, requests, classifiers, out, sampling, settings)
    scores = {concept: score(predictions, kind, [concept]) for concept, predictions in found.items()}
    write_scores(Path(out) / "scores.json", scores)
    return scores


def mean_scores(scores: Iterable[CanvasScores]) -> CanvasScores:
    """The benchmark's figure: each score averaged over the removals."""
    columns = list(zip(*scores, strict=True))
    if not columns:
        raise ValueError("no scores to average; expected at least one removal")
    return CanvasScores(*(sum(column) / len(column) for column in columns))


def write_scores(path: Path, scores: Mapping[str, CanvasScores]) -> None:
    """Scores of each removal and their mean, as json; removals that the file has already stay."""
    before = read_json(path)["removed"] if path.exists() else {}
    merged = {concept: CanvasScores(**found) for concept, found in before.items()} | dict(scores)
    table = {concept: found._asdict() for concept, found in merged.items()}
    with write_file(path) as new:
        new.write_text(json.dumps({"removed": table, "mean": mean_scores(merged.values())._asdict()}, indent=2) + "\n")


COLUMNS = tuple(field.name for field in fields(Prediction))


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """One row an image; an absent style or object is an empty cell."""
    with write_file(path) as new, new.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(asdict(prediction) for prediction in predictions)


def read_predictions(path: Path) -> list[Prediction]:
    """What `write_predictions` wrote. Raises ValueError, naming the file, for a missing column or a bad cell."""
    if not Path(path).is_file():
        raise ValueError(f"no file '{path}'")
    with Path(path).open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            raise ValueError(f"'{path}' has no column {', '.join(missing)}")
        rows = []
        for number, row in enumerate(reader, 2):
            if None in row.values():
                raise ValueError(f"'{path}', line {number}: a row that is cut off; expected {', '.join(COLUMNS)}")
            try:
                cells = {name: row[name] for name in COLUMNS} | {"seed": int(row["seed"])}
            except (TypeError, ValueError):
                raise ValueError(f"'{path}', line {number}: seed is {row['seed']!r}; expected a whole number") from None
            rows.append(Prediction(**cells | {"style": row["style"] or None, "object": row["object"] or None}))
    return rows
