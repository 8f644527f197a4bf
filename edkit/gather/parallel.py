"""Work that threads do ahead of whoever takes its results, who gets them in the order of the work all the same."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Unit = TypeVar("Unit")
Result = TypeVar("Result")

_DEPTH = 2  # results of one unit that wait to be taken


def num_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(slots=True)
class _Slot(Generic[Unit, Result]):
    """A unit on its way: its results not yet taken, and whether there will be more."""

    unit: Unit
    results: deque[Result] = field(default_factory=deque)
    ended: bool = False
    error: BaseException | None = None


class InOrder(Generic[Unit, Result]):
    """Iterates over (unit, result) in the units' order while `workers` threads work ahead, in bounded memory.

    `units` is asked by one thread at a time. What units or work raise is raised here, in its turn. Use it in a
    `with` block: leaving it stops the threads.
    """

    def __init__(self, units: Iterator[Unit], work: Callable[[Unit], Iterator[Result]], *, workers: int) -> None:
        self._units, self._work = units, work
        self._most = workers + 1
        self._slots: deque[_Slot[Unit, Result]] = deque()
        self._changed = threading.Condition()
        self._asking = threading.Lock()
        self._exhausted = self._stopped = False
        self._threads = [threading.Thread(target=self._run, name="edkit-rows", daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> InOrder[Unit, Result]:
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=10)

    def __iter__(self) -> Iterator[tuple[Unit, Result]]:
        while True:
            with self._changed:
                while not (self._slots and (self._slots[0].results or self._slots[0].ended)):
                    if self._exhausted and not self._slots:
                        return
                    self._changed.wait()
                slot = self._slots[0]
                result: Result | None = None
                if slot.results:
                    result = slot.results.popleft()
                    has_result = True
                else:
                    self._slots.popleft()
                    has_result = False
                self._changed.notify_all()
            if has_result:
                yield slot.unit, result  # type: ignore[misc]
            elif slot.error is not None:
                raise slot.error

    def _run(self) -> None:
        while (slot := self._next()) is not None:
            try:
                for result in self._work(slot.unit):
                    with self._changed:
                        while len(slot.results) >= _DEPTH and not self._stopped:
                            self._changed.wait()
                        if self._stopped:
                            return
                        slot.results.append(result)
                        self._changed.notify_all()
            except BaseException as error:  # noqa: BLE001 - raised again by whoever takes the results
                slot.error = error
            with self._changed:
                slot.ended = True
                self._exhausted |= slot.error is not None
                self._changed.notify_all()

    def _next(self) -> _Slot[Unit, Result] | None:
        """The next unit's slot, once there is room; None where there is no more work."""
        with self._asking:
            with self._changed:
                while len(self._slots) >= self._most and not self._stopped and not self._exhausted:
                    self._changed.wait()
                if self._stopped or self._exhausted:
                    return None
            error: BaseException | None = None
            try:
                slot: _Slot[Unit, Result] = _Slot(next(self._units))
            except StopIteration:
                slot = None  # type: ignore[assignment]
            except BaseException as raised:  # noqa: BLE001 - raised again by whoever takes the results
                slot, error = _Slot(None, ended=True, error=raised), raised  # type: ignore[arg-type]
            with self._changed:
                self._exhausted |= slot is None or error is not None
                if slot is not None:
                    self._slots.append(slot)
                self._changed.notify_all()
            return None if error is not None else slot
