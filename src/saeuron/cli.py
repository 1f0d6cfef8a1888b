"""The command line: its commands, and what is said when the input is wrong."""

from __future__ import annotations

import logging
import sys
from typing import NoReturn

import typer

from saeuron.commands import evaluation, forgetting, searching, training

TOUR = """
Remove concepts from text-to-image diffusion models with sparse autoencoders, and see what was removed.

Start with `saeuron demo --out demo`: it does everything below on a small pipeline that comes with the package.

\b
  saeuron hookpoints                       which blocks can be edited
  saeuron train --out sae --count 442      train SAEs on activations, with 442 prompts
  saeuron profile --sae sae --out styles   measure which features each concept uses
  saeuron sweep --out sweep                find how many features, and how strongly
  saeuron plan Rust --profile styles --features 3 --out no-rust
                                           say what to do to which features
  saeuron generate "A cat in Rust style." --sae sae --plan no-rust --out images
                                           generate without the concept
  saeuron evaluate canvas --out scores     remove every concept in turn, and score

Every command takes `--model`: `mini` (the bundled pipeline), a diffusers folder, or a hub id.
Run a command again after an interruption and it continues.
"""

app = typer.Typer(
    name="saeuron", help=TOUR, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    add_completion=False,
)  # fmt: skip
evaluate_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Measure what forgetting does.")
app.add_typer(evaluate_app, name="evaluate")
for command in (
    searching.demo,
    searching.hookpoints,
    training.train,
    training.profile,
    searching.sweep,
    forgetting.plan,
    forgetting.generate,
):
    app.command()(command)
evaluate_app.command("canvas")(evaluation.evaluate_canvas)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: what is wrong with the input is one line on standard error and exit code 2."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        app(arguments)
    except ValueError as error:
        complain(str(error))
    except OSError as error:
        where = f" '{error.filename}'" if error.filename else ""
        complain(f"{error.strerror or error}{where}")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        reason = (str(error).strip() or "allocation failed").splitlines()[0]
        complain(f"not enough memory: {reason}")


def complain(sentence: str) -> NoReturn:
    """Say it on standard error and leave with exit code 2."""
    sys.stderr.write(f"saeuron: {sentence}\n")
    sys.exit(2)


if __name__ == "__main__":
    main()
