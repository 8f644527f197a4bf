"""From candidates to placed images: many fetched at a time, kept in the candidates' own order."""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from edkit.data.catalog import Catalog
from edkit.data.progress import Advance, Progress
from edkit.gather.candidate import DUPLICATE, FETCHED, KEPT, SURPLUS, Candidate, Funnel
from edkit.gather.fetch import Fetched, Fetcher, FetchSettings, Request, stage_name
from edkit.gather.place import Captions, Placer

Matching = Callable[[Funnel], Iterator[list[Candidate]]]
"""Yields candidates in order, in lists, and fills the funnel as it reads."""

_WINDOW = 4096  # rows on the way at once: how far fetching runs ahead of the slowest row
_COMMIT_SECONDS = 0.5
_COMMIT_ROWS = 256


@dataclass(slots=True)
class Counts:
    outcomes: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    num_bytes: int = 0

    def add(self, code: str, n: int = 1) -> None:
        if n:
            self.outcomes[code] = self.outcomes.get(code, 0) + n

    def skip(self, why: str) -> None:
        self.skipped[why] = self.skipped.get(why, 0) + 1


@dataclass(slots=True)
class _Row:
    """A candidate on its way; `fetched` once it has ended."""

    candidate: Candidate
    fetched: Fetched | None = None


class Collector:
    """One run over candidates: hands rows out, takes results in any order, places them in table order."""

    def __init__(
        self,
        catalog: Catalog,
        out: Path,
        query: str,
        captions: Captions,
        settings: FetchSettings,
        limit: int | None,
        progress: Progress,
    ) -> None:
        self.catalog, self.out, self.query, self.settings, self.progress = (
            *(catalog, out, query),
            *(settings, progress),
        )
        self.limit = limit
        self.placer = Placer(catalog, out, query=query, captions=captions, options=_options_id(settings))
        self.before = self.total = catalog.ledger_count(query=query, outcome=KEPT)
        self.counts = Counts()
        self.window: deque[_Row] = deque()  # in table order
        self.by_ticket: dict[int, _Row] = {}  # those not ended yet
        self.failed: list[_Row] = []  # ended, not in the ledger yet
        self.num_waiting = 0  # good, and behind a row that has not ended
        self.num_ended = self.num_good = 0
        self.ticket = 0

    def run(self, matching: Matching) -> Funnel:
        """Fetch until the limit or the tables' end; the funnel of what was read for it."""
        finished = False
        ahead = _Ahead(matching)
        try:
            if not self._reached():
                with (
                    Fetcher(self.settings, self.placer.staging) as fetcher,
                    self.progress.task("fetching", total=self.limit, unit="images") as advance,
                ):
                    advance(self.total)
                    try:
                        self._loop(ahead, fetcher, advance)
                    except KeyboardInterrupt:
                        self._commit(advance)
                        raise
            finished = True
        finally:
            ahead.close()
            self.placer.close(finished=finished)
        return ahead.funnel

    def _reached(self) -> bool:
        return self.limit is not None and self.total >= self.limit

    def _loop(self, ahead: _Ahead, fetcher: Fetcher, advance: Advance) -> None:
        last_commit = time.monotonic()
        backlog: deque[Candidate] = deque()
        num_new = 0
        while True:
            starved = self._hand_out(ahead, backlog, fetcher)
            nothing_out = not self.by_ticket
            if not nothing_out:
                for fetched in fetcher.results(timeout=0.1):
                    self._take(fetched)
                    num_new += 1
            elif starved and not ahead.done:
                ahead.wait(0.1)
            now = time.monotonic()
            if num_new >= _COMMIT_ROWS or now - last_commit > _COMMIT_SECONDS or not self.by_ticket:
                self._commit(advance)
                num_new, last_commit = 0, now
            if self._reached():
                self._discard()
                return
            if ahead.done and not backlog and not self.window:
                self._commit(advance)
                return

    def _hand_out(self, ahead: _Ahead, backlog: deque[Candidate], fetcher: Fetcher) -> bool:
        """Give the fetcher as much as makes sense; True where the tables have nothing ready."""
        requests: list[Request] = []
        starved = False
        room = self._room()
        while room > 0:
            if not backlog:
                some = ahead.take()
                if some is None:
                    starved = True
                    break
                backlog.extend(some)
                continue
            candidate = backlog.popleft()
            settled = self.placer.settled(candidate)
            if settled is not None:
                self.counts.skip(settled)
                continue
            row = _Row(candidate)
            self.window.append(row)
            room -= 1
            waits = self.placer.waiting.pop(stage_name(candidate.url), None)
            if waits is not None:
                row.fetched = waits
                self.num_waiting += 1
                continue
            self.ticket += 1
            self.by_ticket[self.ticket] = row
            requests.append(Request(ticket=self.ticket, url=candidate.url, checksum=candidate.checksum))
        fetcher.submit(requests)
        return starved

    def _room(self) -> int:
        """How many more rows to start: near a limit no more than are likely needed."""
        room = _WINDOW - len(self.window)
        if self.limit is not None:
            rate = max(0.02, (self.num_good + 2) / (self.num_ended + 2))
            needed = self.limit - self.total - self.num_waiting
            room = min(room, int(needed / rate) + 1 - len(self.by_ticket) if needed > 0 else 0)
        return room

    def _take(self, fetched: Fetched) -> None:
        row = self.by_ticket.pop(fetched.ticket)
        row.fetched = fetched
        self.num_ended += 1
        if fetched.code == FETCHED:
            self.num_good += 1
            self.num_waiting += 1
        else:
            self.failed.append(row)

    def _commit(self, advance: Advance) -> None:
        """Place what no earlier row holds up any more, and record what failed."""
        good: list[tuple[Candidate, Fetched]] = []
        while self.window and self.window[0].fetched is not None and not self._reached():
            row = self.window[0]
            assert row.fetched is not None
            if row.fetched.code == FETCHED:
                room = None if self.limit is None else self.limit - self.total - len(good)
                if room == 0:
                    break
                good.append((row.candidate, row.fetched))
                self.num_waiting -= 1
            self.window.popleft()
        failed = [(row.candidate, row.fetched) for row in self.failed if row.fetched is not None]
        self.failed.clear()
        for _, fetched in failed:
            self.counts.add(fetched.code)
        if good or failed:
            placed = self.placer.place(good, failed)
            self.total += len(placed.kept)
            self.counts.add(KEPT, len(placed.kept))
            self.counts.add(DUPLICATE, placed.num_duplicates)
            self.counts.num_bytes += placed.num_bytes
            num_lost = sum(self.counts.outcomes.values()) - self.counts.outcomes.get(KEPT, 0)
            advance(len(placed.kept), note=f"{num_lost:,} not kept" if num_lost else "")
            if placed.num_duplicates and not self._reached():
                # duplicates made room under the limit for rows that were held back
                self._commit(advance)
                return
        for row in self.window:
            if row.fetched is not None and row.fetched.code == FETCHED:
                self.placer.note(row.candidate, row.fetched)

    def _discard(self) -> None:
        """Past the limit: what was fetched all the same is recorded and removed."""
        ended = [(row.candidate, row.fetched) for row in self.window if row.fetched is not None]
        surplus = [(candidate, fetched) for candidate, fetched in ended if fetched.code == FETCHED]
        self.placer.discard(surplus)
        self.counts.add(SURPLUS, len(surplus))


def _options_id(settings: FetchSettings) -> str:
    """The options that decide whether an image is taken, as one short id."""
    judged = (settings.max_bytes, settings.max_pixels, settings.check_hash, settings.allow_private)
    return hashlib.sha256(repr(judged).encode()).hexdigest()[:8]


class _Ahead:
    """Reads the tables in a thread of its own, a few chunks ahead of whoever takes them."""

    def __init__(self, matching: Matching) -> None:
        self.funnel = Funnel()  # as it stood at the last chunk taken
        self.done = False
        self._queue: queue.Queue[tuple[list[Candidate], Funnel] | BaseException | None] = queue.Queue(8)
        self._held: tuple[list[Candidate], Funnel] | BaseException | None = None
        self._has_held = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(matching,), name="edkit-tables", daemon=True)
        self._thread.start()

    def take(self) -> list[Candidate] | None:
        """The next chunk's candidates; None where none is ready, or (`done`) where there are no more."""
        if self.done:
            return None
        if not self._has_held:
            try:
                self._held = self._queue.get_nowait()
            except queue.Empty:
                return None
        self._has_held = False
        if self._held is None:
            self.done = True
            return None
        if isinstance(self._held, BaseException):
            raise self._held
        found, self.funnel = self._held
        return found

    def wait(self, seconds: float) -> None:
        """Wait until a chunk is ready."""
        if not self._has_held and not self.done:
            try:
                self._held = self._queue.get(timeout=seconds)
                self._has_held = True
            except queue.Empty:
                return

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join(timeout=10)

    def _read(self, matching: Matching) -> None:
        funnel = Funnel()
        try:
            for found in matching(funnel):
                if not self._put((found, replace(funnel, dropped=dict(funnel.dropped)))):
                    return
            self._put(None)
        except BaseException as error:  # noqa: BLE001 - raised again by `take`
            self._put(error)

    def _put(self, item: tuple[list[Candidate], Funnel] | BaseException | None) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False
