"""The prompts of the experiments: anchor prompts to learn and tune on, evaluation prompts to measure with."""

from __future__ import annotations

import difflib
import hashlib
import itertools
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

ANCHORS = Path(__file__).parent / "anchors"
"""Our own anchor prompts: 80 one-sentence captions for each of UnlearnCanvas's 20 objects, one file an object."""

STYLES = tuple((Path(__file__).parent / "styles.txt").read_text(encoding="utf-8").split())
"""UnlearnCanvas's 50 styles."""

OBJECTS = tuple(path.stem for path in sorted(ANCHORS.glob("*.txt")))
"""UnlearnCanvas's 20 objects."""


def anchor_files(folder: Path = ANCHORS) -> dict[str, Path]:
    """The files of anchor prompts by object: `<object>.txt`, or `sd_prompt_<object>.txt` as UnlearnCanvas has them.

    Raises ValueError when there is none.
    """
    found = {path.stem.removeprefix("sd_prompt_"): path for path in sorted(Path(folder).glob("*.txt"))}
    if not found:
        raise ValueError(f"no anchor prompts in '{folder}': expected one <object>.txt for each object")
    return found


def anchor_prompts(object: str, folder: Path = ANCHORS) -> list[str]:
    """The anchor prompts of an object, one a line of its file.

    Raises ValueError when there is no such file or nothing in it.
    """
    files = anchor_files(folder)
    if object not in files:
        raise ValueError(f"no anchor prompts for {unknown('object', object, files)}")
    return read_lines(files[object])


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without blank ones. Raises ValueError when there is no file or nothing in it."""
    if not path.is_file():
        raise ValueError(f"no file '{path}'; expected a text file with one entry a line")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"'{path}' is not a text file; expected UTF-8, one entry a line") from None
    if not any(lines):
        raise ValueError(f"'{path}' is empty; expected one entry a line")
    return [line for line in lines if line]


def styled(prompt: str, style: str | None) -> str:
    """`prompt` with the postfix that the SAE's training prompts carry, or as it is when `style` is None."""
    return prompt if style is None else f"{prompt.removesuffix('.')} in {spoken(style)} style."


def evaluation_prompt(object: str, style: str | None) -> str:
    """UnlearnCanvas's evaluation prompt for an object in a style, or without one."""
    return f"An image of {object}." if style is None else f"An image of {object} in {spoken(style)} style."


def trial_prompt(object: str, style: str | None, folder: Path = ANCHORS) -> str:
    """A prompt to try settings with: the object's second anchor prompt, where it has one, in a style.

    Profiles of styles are measured on the first one.
    """
    return styled(anchor_prompts(object, folder)[:2][-1], style)


def digest(texts: Iterable[str]) -> str:
    """16 hex digits that tell these texts from others."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def spoken(name: str) -> str:
    """A style's name as it stands in a prompt: `Van_Gogh` is said "Van Gogh"."""
    return name.replace("_", " ")


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence for a name that is not known: what was given, near matches, and what there is."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    listed = ", ".join(known[:60]) + (", ..." if len(known) > 60 else "")
    return f"unknown {kind} {name!r}; {hint}there are {len(known)}: {listed}"


def training_prompts(
    objects: Sequence[str],
    styles: Sequence[str],
    folder: Path = ANCHORS,
    *,
    count: int | None = None,
    seed: int = 0,
) -> list[str]:
    """Every anchor prompt, plain and in every style, as the paper's SAEs are trained on; or `count` of them by chance.

    The chance is the same for every object and style, so that few prompts still hold them all.
    """
    rng = random.Random(seed)
    cells = []
    for object in objects:
        for style in (None, *styles):
            texts = [styled(prompt, style) for prompt in anchor_prompts(object, folder)]
            rng.shuffle(texts)
            cells.append(texts)
    rng.shuffle(cells)
    rounds = [text for row in itertools.zip_longest(*cells) for text in row if text is not None]
    if count is None:
        return rounds
    if not 1 <= count <= len(rounds):
        raise ValueError(f"{count} prompts asked for; expected a number from 1 to {len(rounds)}, all that there are")
    return rounds[:count]


def validation_prompts(
    kind: str, objects: Sequence[str], styles: Sequence[str], folder: Path = ANCHORS, *, each: int | None = None
) -> dict[str, list[str]]:
    """The prompts of each concept that a profile is measured on; none is an evaluation prompt.

    Styles: the first anchor prompt of each object, in the style. Objects: all anchor prompts, without a style. With
    `each`, that many for each pair of object and style instead (and without a style too, for objects).
    """
    if kind not in ("style", "object"):
        raise ValueError(f"unknown kind {kind!r}; expected 'style' or 'object'")
    if each is not None and each < 1:
        raise ValueError(f"each is {each}; expected a whole number from 1 on")
    pairs: dict[str, list[tuple[str, str | None]]]
    if kind == "style":
        pairs = {style: [(object, style) for object in objects] for style in styles}
    else:
        pairs = {object: [(object, style) for style in ((None, *styles) if each else (None,))] for object in objects}
    return {
        concept: [
            styled(prompt, style)
            for object, style in found
            for prompt in anchor_prompts(object, folder)[: each or (1 if kind == "style" else None)]
        ]
        for concept, found in pairs.items()
    }
