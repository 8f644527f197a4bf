"""How long work reports that it moves: the wings call it, the command line draws it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[..., None]
"""`advance(n=1, note="")`: n more units are done; the note stands beside the bar."""


class Progress(Protocol):
    """Draws one bar a task; `SILENT` draws none."""

    def task(self, what: str, total: int | None = None, unit: str = "images") -> AbstractContextManager[Advance]:
        """A bar for `what` (an -ing word), of `total` units where that is known; without a unit it shows no rate."""

    def say(self, line: str) -> None:
        """One line of news above the bars (on stderr)."""


class _Silent:
    @contextmanager
    def task(self, what: str, total: int | None = None, unit: str = "images") -> Iterator[Advance]:
        def advance(n: int = 1, note: str = "") -> None:
            pass

        yield advance

    def say(self, line: str) -> None:
        pass


SILENT: Progress = _Silent()
