"""Images for prompts and seeds, in a folder with a manifest, made once and read back."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from saeuron.activations import Sampling
from saeuron.files import claim_folder, write_file
from saeuron.progress import progress


@dataclass(frozen=True)
class ImageRequest:
    """An image to be made, and what it is asked to show."""

    prompt: str
    seed: int
    style: str | None = None
    object: str | None = None


@dataclass(frozen=True)
class ImageRecord(ImageRequest):
    """An image that was made: one line of `manifest.jsonl`."""

    path: str = ""
    """File name, relative to the folder of the manifest."""


def generate(
    pipe: Any,
    requests: Sequence[ImageRequest],
    folder: Path | str,
    sampling: Sampling,
    settings: Mapping[str, Any] | None = None,
) -> list[ImageRecord]:
    """Make the images that `folder` does not have yet, and return the records of all that are asked for, in order.

    The manifest grows as images land, so that the same call continues one that was interrupted. `settings` says what
    else the images depend on (model, plan); it is kept in `run.json`.

    Raises ValueError when the folder holds images of other settings, or files that are not ours.
    """
    folder = Path(folder)
    claim_folder(folder, "images", {"steps": sampling.steps, "guidance": sampling.guidance, **(settings or {})})
    _mend_manifest(folder)
    made = {_request(record): record for record in _read_manifest(folder) if (folder / record.path).is_file()}
    missing = [request for request in dict.fromkeys(requests) if request not in made]
    with progress(total=len(missing), desc=folder.name, unit="image") as bar:
        for start in range(0, len(missing), sampling.batch):
            batch = missing[start : start + sampling.batch]
            with torch.no_grad():
                images = sampling.call(pipe, [r.prompt for r in batch], [r.seed for r in batch], "pil").images
            for request, image in zip(batch, images, strict=True):
                made[request] = _write(folder, request, image)
                bar.update()
    return [made[request] for request in requests]


def read_images(folder: Path | str) -> list[ImageRecord]:
    """The records of a folder that `generate` made. Raises ValueError when it has none, or an image is missing."""
    folder = Path(folder)
    records = _read_manifest(folder)
    if not records:
        raise ValueError(f"no images in '{folder}': expected a folder with manifest.jsonl")
    for record in records:
        if not (folder / record.path).is_file():
            raise ValueError(f"'{folder / record.path}' is in the manifest but not in the folder")
    return records


def open_images(folder: Path | str, records: Iterable[ImageRecord]) -> Iterator[Image.Image]:
    """The pictures, RGB, one after the other. Raises ValueError, naming the file, for one that cannot be read."""
    for record in records:
        path = Path(folder) / record.path
        try:
            with Image.open(path) as image:
                yield image.convert("RGB")
        except (OSError, SyntaxError) as error:
            raise ValueError(f"cannot read the image '{path}': {error}") from None


def _write(folder: Path, request: ImageRequest, image: Image.Image) -> ImageRecord:
    words = re.sub(r"[^A-Za-z0-9]+", "-", request.prompt).strip("-")[:60]
    digest = hashlib.sha256(repr(request).encode()).hexdigest()[:8]
    record = ImageRecord(**asdict(request), path=f"{words}_seed{request.seed}_{digest}.png")
    with write_file(folder / record.path) as new:
        image.save(new, format="PNG")
    with (folder / "manifest.jsonl").open("a", encoding="utf-8") as manifest:
        manifest.write(json.dumps(asdict(record)) + "\n")
    return record


def _request(record: ImageRecord) -> ImageRequest:
    return ImageRequest(record.prompt, record.seed, record.style, record.object)


def _read_manifest(folder: Path) -> list[ImageRecord]:
    """Records by line."""
    path = folder / "manifest.jsonl"
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = ImageRecord(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(f"'{path}', line {number}: not a record of an image ({error})") from None
        if Path(record.path).name != record.path:
            raise ValueError(f"'{path}', line {number}: path {record.path!r} is not a plain file name")
        records.append(record)
    return records


def _mend_manifest(folder: Path) -> None:
    """Drop a last line that was cut off when its writer was killed; its image is made again."""
    path = folder / "manifest.jsonl"
    if path.exists():
        text = path.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):
            with write_file(path) as new:
                new.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
