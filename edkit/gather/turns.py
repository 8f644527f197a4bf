"""Whose turn it is: tickets in order, a cap in all and per host, pauses, and hosts that keep failing.

No network and no loop here: what is waited for is asked with `next_wake`, what is given up stands in `dropped`.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")

LONGEST_WAIT = 60.0  # seconds a run waits for one host's wish; longer ones are left to the next run
_GONE_SECONDS, _GONE_MOST = 60.0, 600.0  # how long a host that was given up is not tried again: first, at most
_MANY_HOSTS = 50_000


@dataclass(slots=True)
class _Host(Generic[T]):
    limit: int
    waiting: list[tuple[int, int, T]] = field(default_factory=list)  # heap by ticket
    active: int = 0
    not_before: float = 0.0  # clock seconds: it asked for a pause until then, or needs one
    spacing: float = 0.0  # seconds between two starts
    failures: int = 0  # in a row
    rests: int = 0  # it was left alone this many times since it last answered
    rested_at: float = 0.0  # when the last of those began; 0: it answers
    gone_until: float = 0.0
    times_gone: int = 0
    last_failure: str = ""
    has_answered: bool = False


class Turns(Generic[T]):
    """Hands out what waits, the lowest ticket first, as far as its host and the total leave room.

    A host that fails `fails_in_a_row` times is left alone for `rests[0]` seconds, then tried once; if that
    fails, for `rests[1]`, and so on; after the last (or the first, where it never answered), all that waits for
    it is given up (`host-failing`) and so is what comes in the next minute (later: minutes). One answer, and it is
    as good as any other. With `wary`, a host gets one at a time until `trust` is called. Seconds are those of `clock`.
    """

    def __init__(
        self,
        *,
        at_once: int,
        per_host: int,
        fails_in_a_row: int,
        rests: Sequence[float],
        wary: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._at_once, self._per_host = at_once, per_host
        self._fails_in_a_row, self._rests = fails_in_a_row, tuple(rests)
        self._wary, self._clock = wary, clock
        self._hosts: dict[str, _Host[T]] = {}
        self._ready: list[tuple[int, str]] = []  # heap of (first ticket, host); may hold what is no longer true
        self._asleep: list[tuple[float, str]] = []  # heap of (when, host)
        self._active = 0
        self._order = count()
        self._jitter = random.Random()
        self.dropped: list[tuple[T, str, str]] = []  # given up, with an Outcome's code and why; the caller empties it

    def add(self, name: str, ticket: int, item: T) -> None:
        """Let an item wait for its turn at a host."""
        host = self._hosts.get(name)
        if host is None:
            if len(self._hosts) >= _MANY_HOSTS:
                self._forget_idle()
            host = self._hosts[name] = _Host(limit=1 if self._wary else self._per_host)
        heapq.heappush(host.waiting, (ticket, next(self._order), item))
        self._offer(name, host)

    def take(self) -> tuple[str, T] | None:
        """The next item that may start, and its host; None where none may."""
        now = self._clock()
        while self._asleep and self._asleep[0][0] <= now:
            _, name = heapq.heappop(self._asleep)
            if name in self._hosts:
                self._offer(name, self._hosts[name])
        while self._ready and self._active < self._at_once:
            _, name = heapq.heappop(self._ready)
            host = self._hosts.get(name)
            if host is None or not host.waiting or host.active >= host.limit:
                continue
            if host.gone_until > now:
                self._drop(host, "host-failing", f"its host kept failing: {host.last_failure}")
                continue
            wait = host.not_before - now
            if wait > LONGEST_WAIT:
                self._drop(host, "host-paused", f"{wait:,.0f} s by its own wish")
                continue
            if wait > 0:
                heapq.heappush(self._asleep, (host.not_before, name))
                continue
            _, _, item = heapq.heappop(host.waiting)
            host.active += 1
            self._active += 1
            if host.spacing:
                host.not_before = now + host.spacing
            self._offer(name, host)
            return name, item
        return None

    def next_wake(self) -> float | None:
        """Seconds until a host that sleeps may be worth another `take`; None where none sleeps."""
        return max(0.0, self._asleep[0][0] - self._clock()) if self._asleep else None

    def free(self, name: str) -> None:
        """What was taken has ended, its place is free."""
        host = self._hosts[name]
        host.active -= 1
        self._active -= 1
        if not host.waiting and not host.active and self._forgettable(host):
            del self._hosts[name]
        else:
            self._offer(name, host)

    # ---- what is learnt about a host; all of these before `free`

    def trust(self, name: str) -> bool:
        """The host gave its robots.txt: it gets as many at a time as others do, unless it fails at the moment.

        Whether that makes room for more.
        """
        host = self._hosts.get(name)
        if host is None:
            return False
        host.has_answered = True
        if host.rested_at or host.limit == self._per_host:
            return False
        host.limit = self._per_host
        self._offer(name, host)
        return True

    def pause(self, name: str, seconds: float) -> None:
        """The host asked to be left alone for so long."""
        host = self._hosts.get(name)
        if host is not None:
            host.not_before = max(host.not_before, self._clock() + seconds)

    def space(self, name: str, seconds: float) -> None:
        """The host asked for so many seconds between two requests."""
        host = self._hosts.get(name)
        if host is not None and host.spacing != seconds:
            host.spacing = seconds
            self.pause(name, seconds)

    def answered(self, name: str) -> None:
        """The host works, whatever it said."""
        host = self._hosts.get(name)
        if host is not None:
            host.has_answered = True
            host.failures = host.rests = host.times_gone = 0
            host.gone_until = 0.0
            if host.rested_at:
                host.rested_at, host.limit = 0.0, self._per_host
                self._offer(name, host)

    def failed(self, name: str, why: str, *, started: float) -> None:
        """A request that began at clock second `started` met a host that is down, silent or out of order."""
        host = self._hosts.get(name)
        if host is None or started < host.rested_at:
            return  # it was on its way already when the host was last left alone
        now = self._clock()
        host.failures += 1
        host.last_failure = why
        if host.failures < self._fails_in_a_row:
            return
        host.rested_at, host.limit = now, 1
        # a host that never answered is most likely gone for good, as one in ten of an old table's are
        if host.rests < (len(self._rests) if host.has_answered else min(1, len(self._rests))):
            rest = self._rests[host.rests] * self._jitter.uniform(0.9, 1.1)
            host.rests += 1
            host.not_before = max(host.not_before, now + rest)
            return
        host.gone_until = now + min(_GONE_MOST, _GONE_SECONDS * 2**host.times_gone)
        host.times_gone += 1
        self._drop(host, "host-failing", f"{host.failures} failures in a row, the last: {why}")

    # ---- inner

    def _offer(self, name: str, host: _Host[T]) -> None:
        """Stand a host in line, if it has work and room."""
        if host.waiting and host.active < host.limit:
            heapq.heappush(self._ready, (host.waiting[0][0], name))

    def _drop(self, host: _Host[T], code: str, why: str) -> None:
        self.dropped.extend((item, code, why) for _, _, item in sorted(host.waiting, key=lambda entry: entry[:2]))
        host.waiting.clear()

    def _forgettable(self, host: _Host[T]) -> bool:
        now = self._clock()
        return not host.failures and host.not_before <= now and not host.spacing and host.gone_until <= now

    def _forget_idle(self) -> None:
        for name in [n for n, h in self._hosts.items() if not h.waiting and not h.active]:
            del self._hosts[name]
