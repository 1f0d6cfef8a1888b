"""Progress bars, and the one switch that silences them."""

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


def progress(iterable: Iterable[Any] | None = None, *, desc: str, unit: str, total: int | None = None) -> tqdm:
    """A bar over `iterable`, or one to be updated by hand; shown on a terminal only."""
    return tqdm(iterable, desc=desc, unit=unit, total=total, disable=True if _quiet.get() else None, leave=False)
