"""MiniCanvas's data: drawn objects, procedural styles, and the mask of each object.

What UnlearnCanvas does with seed photographs and a style-transfer service is done here with openly licensed drawings
(NOTICE names them) and a filter for each style. A picture costs about a millisecond, so the data set is never stored.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageFilter

SIZE = 64
"""Height and width of a MiniCanvas picture, in pixels."""

TILE = 128
"""Height and width of one drawing on the sheet, in pixels."""

SHEET = Path(__file__).parent / "weights" / "drawings.png"
"""All drawings in one picture with alpha: a row for each object, a column for each set."""

SETS = ("twemoji", "noto", "fluent-emoji-flat", "noto-v1")

OBJECTS = (
    "Architectures", "Bears", "Birds", "Butterfly", "Cats", "Dogs", "Fishes", "Flame", "Flowers", "Frogs", "Horses",
    "Human", "Rabbits", "Sandwiches", "Sea", "Towers", "Trees",
)  # fmt: skip
"""UnlearnCanvas's objects that every set has a drawing of."""

Picture = Float[np.ndarray, "64 64 3"]
Mask = Float[np.ndarray, "64 64"]


class Rendering(NamedTuple):
    """One picture of the data set, with what is known about it."""

    image: UInt8[np.ndarray, "64 64 3"]
    mask: Mask
    """Opacity of the drawing, 0 to 1: where the object is."""
    object: str
    style: str | None
    """None for the plain picture."""


def render(object: str, style: str | None, seed: int) -> Rendering:
    """One picture of `object` in `style`; the same arguments give the same picture.

    Raises KeyError for a style that is not in `STYLES` and ValueError for an object that is not in `OBJECTS`.
    """
    rng = np.random.default_rng([seed, OBJECTS.index(object)])
    drawing = drawings()[OBJECTS.index(object)][rng.integers(len(SETS))]
    picture, mask = _compose(drawing, rng)
    if style is not None:
        picture = STYLE_FILTERS[style](picture, mask, rng)
    return Rendering(np.rint(picture.clip(0, 1) * 255).astype(np.uint8), mask, object, style)


@cache
def drawings() -> tuple[tuple[Image.Image, ...], ...]:
    """The drawings as RGBA pictures of `TILE` pixels: one tuple for each object, one picture for each set."""
    sheet = Image.open(SHEET).convert("RGBA")
    if sheet.size != (TILE * len(SETS), TILE * len(OBJECTS)):
        raise ValueError(f"{SHEET}: {sheet.size} pixels, expected {len(SETS)} x {len(OBJECTS)} tiles of {TILE}")

    def tile(row: int, column: int) -> Image.Image:
        left, top = column * TILE, row * TILE
        return sheet.crop((left, top, left + TILE, top + TILE))

    return tuple(tuple(tile(row, column) for column in range(len(SETS))) for row in range(len(OBJECTS)))


def _compose(drawing: Image.Image, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """The drawing, slightly scaled and shifted, on a pale vertical gradient."""
    side = round(SIZE * rng.uniform(0.84, 0.94))
    shift = (SIZE - side) // 2 + rng.integers(-2, 3, size=2)
    layer = Image.new("RGBA", (SIZE, SIZE))
    layer.paste(drawing.resize((side, side), Image.Resampling.LANCZOS), (int(shift[0]), int(shift[1])))
    rgba = np.asarray(layer, dtype=np.float64) / 255
    mask = rgba[..., 3]
    top, bottom = rng.uniform(0.72, 0.98, size=(2, 3))
    ramp = np.linspace(0, 1, SIZE)[:, None, None]
    background = np.broadcast_to(top * (1 - ramp) + bottom * ramp, (SIZE, SIZE, 3))
    return rgba[..., :3] * mask[..., None] + background * (1 - mask[..., None]), mask


# ------------------------------------------------------------------------------------------------ what styles share


def _luminance(picture: Picture) -> Mask:
    """Luminance, 2nd to 98th percentile stretched to 0 to 1: without that, pale objects vanish in a duotone."""
    grey = picture @ np.array([0.299, 0.587, 0.114])
    low, high = np.percentile(grey, [2, 98])
    return ((grey - low) / max(high - low, 1e-3)).clip(0, 1)


def _colour_map(grey: Mask, *stops: tuple[float, float, float]) -> Picture:
    """`grey` 0..1 through evenly spaced colours."""
    positions = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(grey, positions, [stop[channel] for stop in stops]) for channel in range(3)], axis=-1)


def _edges(picture: Picture) -> Mask:
    """Strength of the edges, about 0 to 1."""
    down, right = np.gradient(picture, axis=(0, 1))
    return (np.sqrt((down**2 + right**2).sum(-1)) * 2.2).clip(0, 1)


def _blur(picture: np.ndarray, radius: float) -> np.ndarray:
    image = Image.fromarray(np.rint(picture.clip(0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), dtype=np.float64) / 255


def _saturate(picture: Picture, factor: float) -> Picture:
    grey = picture.mean(-1, keepdims=True)
    return (grey + (picture - grey) * factor).clip(0, 1)


def _contrast(picture: Picture) -> Picture:
    """Stronger colours, and the same stretch as `_luminance`, so that a coarse raster still shows the object."""
    grey = (picture @ np.array([0.299, 0.587, 0.114]))[..., None]
    return ((picture - grey) * 1.4 + 0.25 * grey + 0.75 * _luminance(picture)[..., None]).clip(0, 1)


def _cell_means(picture: Picture, cell: np.ndarray) -> Picture:
    """Every pixel replaced by the mean colour of the pixels with the same number in `cell`."""
    count = np.bincount(cell.ravel())
    sums = [np.bincount(cell.ravel(), picture[..., channel].ravel()) for channel in range(3)]
    return np.stack([(total / np.maximum(count, 1))[cell] for total in sums], axis=-1)


# ------------------------------------------------------------------------------------------------------- the styles


def _sketch(picture: Picture, mask: Mask, rng: np.random.Generator) -> Picture:
    lines = (_edges(picture) * 1.5).clip(0, 1)
    shade = 1 - 0.18 * mask * (1 - _luminance(picture))
    return np.repeat((shade - 0.85 * lines)[..., None], 3, axis=-1)


def _mosaic(picture: Picture, mask: Mask, rng: np.random.Generator) -> Picture:
    tile = 6
    cell = np.arange(SIZE) // tile
    flat = _cell_means(_contrast(picture), cell[:, None] * SIZE + cell)
    grout = (np.arange(SIZE) % tile) == 0
    flat[grout, :] = flat[:, grout] = 0.25
    return flat


def _neon_lines(picture: Picture, mask: Mask, rng: np.random.Generator) -> Picture:
    edges = _edges(picture)[..., None]
    hue = _colour_map(np.broadcast_to(np.linspace(0, 1, SIZE), (SIZE, SIZE)), (0.1, 1, 0.9), (1, 0.2, 1))
    lines = edges * hue
    return lines + 0.9 * _blur(lines, 2)


def _winter(picture: Picture, mask: Mask, rng: np.random.Generator) -> Picture:
    cold = _colour_map(_luminance(picture), (0.05, 0.12, 0.4), (0.35, 0.6, 0.9), (0.88, 0.96, 1))
    for y, x in rng.integers(0, SIZE - 1, size=(12, 2)):
        cold[y : y + 2, x : x + 2] = 1
    return cold


def _rust(picture: Picture, mask: Mask, rng: np.random.Generator) -> Picture:
    brown = _colour_map(_luminance(picture), (0.16, 0.06, 0.03), (0.62, 0.28, 0.1), (0.86, 0.62, 0.4))
    grain = rng.normal(0, 0.04, (SIZE // 2, SIZE // 2)).repeat(2, 0).repeat(2, 1)
    return brown + grain[..., None]


def _pop_art(picture: Picture, mask: Mask, rng: np.random.Generator) -> Picture:
    flat = np.round(_saturate(picture, 2) * 2) / 2
    y, x = np.mgrid[:SIZE, :SIZE]
    dots = np.hypot(y % 10 - 4.5, x % 10 - 4.5) < 3.2
    raster = np.where(dots[..., None], (1, 0.85, 0.0), (0.95, 0.25, 0.55))
    return np.where(mask[..., None] > 0.5, flat, raster)


def _on_fire(picture: Picture, mask: Mask, rng: np.random.Generator) -> Picture:
    return _colour_map(1 - _luminance(picture), (0.05, 0, 0), (0.75, 0.08, 0), (1, 0.55, 0), (1, 0.98, 0.45))


def _greenfield(picture: Picture, mask: Mask, rng: np.random.Generator) -> Picture:
    return _colour_map(_luminance(picture), (0.02, 0.2, 0.05), (0.25, 0.6, 0.18), (0.82, 0.96, 0.6))


def _warm_love(picture: Picture, mask: Mask, rng: np.random.Generator) -> Picture:
    return _colour_map(_luminance(picture), (0.42, 0.03, 0.2), (0.9, 0.4, 0.55), (1, 0.87, 0.88))


def _monet(picture: Picture, mask: Mask, rng: np.random.Generator) -> Picture:
    high, wide = 3, 8
    y, x = np.mgrid[:SIZE, :SIZE]
    row = y // high
    column = (x + (row * 5) % wide) // wide
    dab = row * SIZE + column
    tint = np.where((row + column) % 2, 0.09, -0.09)[..., None] + rng.normal(0, 0.03, (SIZE * SIZE, 3))[dab]
    return _cell_means(_contrast(picture), dab) * (0.84, 0.9, 1.0) + tint


def _ink_art(picture: Picture, mask: Mask, rng: np.random.Generator) -> Picture:
    ink = 1 / (1 + np.exp(-(_luminance(picture) - 0.55) * 14))
    return _colour_map(ink, (0.06, 0.05, 0.05), (0.97, 0.92, 0.76))


def _red_blue_ink(picture: Picture, mask: Mask, rng: np.random.Generator) -> Picture:
    return _colour_map(_luminance(picture), (0.08, 0.1, 0.75), (0.55, 0.1, 0.5), (0.97, 0.22, 0.2))


STYLE_FILTERS: dict[str, Callable[[Picture, Mask, np.random.Generator], Picture]] = {
    "Greenfield": _greenfield,
    "Ink_Art": _ink_art,
    "Monet": _monet,
    "Mosaic": _mosaic,
    "Neon_Lines": _neon_lines,
    "On_Fire": _on_fire,
    "Pop_Art": _pop_art,
    "Red_Blue_Ink": _red_blue_ink,
    "Rust": _rust,
    "Sketch": _sketch,
    "Warm_Love": _warm_love,
    "Winter": _winter,
}

STYLES = tuple(STYLE_FILTERS)
"""Twelve styles, named after the UnlearnCanvas styles that they resemble."""
