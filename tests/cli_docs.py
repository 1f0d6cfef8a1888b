"""docs/cli.md, made from the commands themselves: `make docs` writes it, a test compares it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import typer
from typer.testing import CliRunner

from saeuron.cli import app

PATH = Path(__file__).parent.parent / "docs" / "cli.md"


def commands(command, path=()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


def cli_docs() -> str:
    parts = ["# The command line\n\nMade from the commands by `make docs`.\n"]
    for path in commands(typer.main.get_command(app)):
        result = CliRunner().invoke(app, [*path, "--help"], terminal_width=100, prog_name="saeuron")
        assert result.exit_code == 0, path
        parts.append(f"## {' '.join(('saeuron', *path))}\n\n```\n{result.output.strip()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PATH.write_text(cli_docs())
