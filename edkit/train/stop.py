"""Ctrl-C and SIGTERM, while a run has something to save."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_ECHO = 5.0  # seconds: a launcher hands on the Ctrl-C that the terminal gave to each process anyway


class Stopped(KeyboardInterrupt):
    """The run was asked to end, at a place where it is whole."""


class Stop:
    """Whether the run was asked to end.

    The first word is kept until the run comes to a place where it is whole; a second one raises KeyboardInterrupt
    wherever it comes, a third one kills.
    """

    def __init__(self, *, alone: bool = True) -> None:
        """`alone`: no other process must end at the same step."""
        self.asked = False
        self._alone, self._at_once, self._since = alone, False, 0.0

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """In this block the first word raises Stopped too: nothing in it is lost that can't be done again."""
        try:
            if self._alone:
                self._at_once = True
                self.look()
            yield
        finally:
            self._at_once = False

    def look(self) -> None:
        """Raise Stopped where the run was asked to end."""
        if self.asked:
            raise Stopped

    def hear(self, signum: int, frame: object) -> None:
        """The signals' handler."""
        if self.asked:
            if not self._alone and time.monotonic() - self._since < _ECHO:
                return
            signal.signal(signum, signal.SIG_DFL)
            raise KeyboardInterrupt
        self.asked, self._since = True, time.monotonic()
        if self._at_once:
            raise Stopped


@contextmanager
def listening(*, alone: bool = True) -> Iterator[Stop]:
    """A Stop that hears Ctrl-C and SIGTERM; outside the main thread, where Python hears none, it never stops."""
    stop = Stop(alone=alone)
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
