"""One html file, without any reference to elsewhere, from text, tables and pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from PIL import Image

from saeuron.files import write_file


@dataclass
class Report:
    """Parts in the order in which they were added."""

    title: str
    parts: list[str] = field(default_factory=list)

    def heading(self, text: str) -> None:
        """A heading of a section."""
        self.parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> None:
        """A paragraph."""
        self.parts.append(f"<p>{escape(text)}</p>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; the first column holds names, the others figures."""

        def line(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(line(row, "td") for row in rows)
        self.parts.append(f"<table><thead>{line(header, 'th')}</thead><tbody>{body}</tbody></table>")

    def picture(self, image: Image.Image, caption: str) -> None:
        """A picture at its own size, or as wide as the page."""
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", optimize=True)
        data = base64.b64encode(buffer.getvalue()).decode()
        self.parts.append(
            f'<figure><img src="data:image/png;base64,{data}" width="{image.width}" alt="{escape(caption)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def save(self, path: Path) -> None:
        """Write the page."""
        body = "\n".join(self.parts)
        with write_file(path) as new:
            new.write_text(
                f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
                f'<meta name="viewport" content="width=device-width"><title>{escape(self.title)}</title>'
                f"<style>{STYLE}</style></head>\n<body><main><h1>{escape(self.title)}</h1>\n{body}\n</main></body></html>\n",
                encoding="utf-8",
            )


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1f2933; background: #f5f5f2; margin: 0 }
main { max-width: 1100px; margin: 0 auto; padding: 24px }
h1 { font-size: 28px; margin: 0 0 8px } h2 { font-size: 20px; margin: 36px 0 8px }
p { max-width: 75ch; margin: 8px 0 }
table { border-collapse: collapse; background: #fff; margin: 12px 0 }
th, td { padding: 6px 14px; border-bottom: 1px solid #ddd; text-align: right; font-variant-numeric: tabular-nums }
th:first-child, td:first-child { text-align: left }
figure { margin: 12px 0; overflow-x: auto } img { max-width: 100%; height: auto; display: block }
figcaption { color: #52606d; font-size: 14px; margin-top: 4px }
"""
