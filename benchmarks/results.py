"""RESULTS.md: one section for each benchmark, replaced when it is run again."""

from __future__ import annotations

import datetime
import os
import platform
import re
import sys
from importlib.metadata import version
from pathlib import Path

PATH = Path(__file__).parent / "RESULTS.md"

# torch may yet import the standard library's `profile`, which must not be found here
sys.path[:] = [path for path in sys.path if Path(path).resolve() != PATH.parent.resolve()]


def write_section(title: str, command: str, lines: list[str]) -> None:
    """Print the lines and put them into RESULTS.md under a title, with the date, the machine and the versions."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "transformers"))
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    made = f"`{command}`, {datetime.date.today()}, {machine}, {packages}."
    body = "\n".join([f"## {title}", "", made, "", *lines, ""])
    print(body)
    text = (
        PATH.read_text() if PATH.exists() else "# Results\n\nEach section is the output of the command that it names.\n"
    )
    section = re.compile(rf"^## {re.escape(title)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    PATH.write_text(section.sub(lambda _: body + "\n", text) if section.search(text) else text.rstrip() + "\n\n" + body)
