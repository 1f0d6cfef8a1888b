"""Pictures for people: grids of images with labels. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

INK, PAPER, ACCENT = "#1f2933", "#ffffff", "#b3261e"


def labelled_grid(
    rows: Sequence[Sequence[Image.Image]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    *,
    tile: int = 128,
    marked: Sequence[tuple[int, int]] = (),
) -> Image.Image:
    """A table of pictures, `tile` pixels each, with labels above and at the left; `marked` cells get a frame.

    Raises ValueError when rows or labels do not fit each other.
    """
    if len(rows) != len(row_labels) or any(len(row) != len(column_labels) for row in rows):
        raise ValueError(f"{len(rows)} rows of pictures do not fit {len(row_labels)} x {len(column_labels)} labels")
    font = ImageFont.load_default(size=max(13, tile // 9))
    gap, high = 4, max(13, tile // 9) + 10
    wide = int(max(font.getlength(label) for label in row_labels)) + 16
    size = (wide + len(column_labels) * (tile + gap), high + len(rows) * (tile + gap))
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(column_labels):
        middle = wide + column * (tile + gap) + tile / 2
        draw.text((middle, high / 2), label, INK, font, anchor="mm")
    for row, pictures in enumerate(rows):
        top = high + row * (tile + gap)
        draw.text((wide - 8, top + tile / 2), row_labels[row], INK, font, anchor="rm")
        for column, picture in enumerate(pictures):
            left = wide + column * (tile + gap)
            sheet.paste(picture.convert("RGB").resize((tile, tile), Image.Resampling.LANCZOS), (left, top))
            if (row, column) in marked:
                draw.rectangle((left, top, left + tile - 1, top + tile - 1), outline=ACCENT, width=3)
    return sheet
