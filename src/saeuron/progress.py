"""Progress bars, and what silences them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def silenced() -> Iterator[None]:
    """Within the context, no progress bar is shown."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Within the context, diffusers and transformers show no bars and no remarks on how they load a model."""
    import diffusers.utils.logging
    import transformers.utils.logging

    before = []
    for library in (diffusers.utils.logging, transformers.utils.logging):
        before.append((library, library.get_verbosity(), library.is_progress_bar_enabled()))
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity, bars in before:
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()


def progress(iterable: Iterable[Any] | None = None, *, desc: str, unit: str, total: int | None = None) -> tqdm:
    """A bar over `iterable`, or one to be updated by hand; shown on a terminal only."""
    return tqdm(iterable, desc=desc, unit=unit, total=total, disable=True if _quiet.get() else None, leave=False)
