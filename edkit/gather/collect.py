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
from edkit.data.names import host_of
from edkit.data.progress import Advance, Progress
from edkit.gather.candidate import DUPLICATE, FETCHED, KEPT, SURPLUS, Candidate, Funnel
from edkit.gather.fetch import Fetched, Fetcher, FetchSettings, Request, stage_name
from edkit.gather.place import Captions, Placer

Matching = Callable[[Funnel], Iterator[list[Candidate]]]
"""Yields candidates in order, in lists, and fills the funnel as it reads."""

_WINDOW = 16_384  # rows on the way at once: how far fetching runs ahead of the slowest row
_COMMIT_SECONDS = 0.5
_COMMIT_ROWS = 256
_ASKED = 500  # candidates looked up in the ledger at a time
_AHEAD = 2  # lists of candidates read before they are asked for; one may hold tens of thousands
_SKIP_SECONDS = 0.2  # of skipping what is settled, between looks at what has arrived


@dataclass(slots=True)
class Counts:
    """How the tries of one run ended."""

    outcomes: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    hosts: dict[str, dict[str, int]] = field(default_factory=dict)  # host -> how its fetches ended, where asked for
    num_bytes: int = 0

    def add(self, code: str, n: int = 1) -> None:
        if n:
            self.outcomes[code] = self.outcomes.get(code, 0) + n

    def skip(self, why: str) -> None:
        self.skipped[why] = self.skipped.get(why, 0) + 1

    def add_host(self, url: str, code: str) -> None:
        ended = self.hosts.setdefault(host_of(url), {})
        ended[code] = ended.get(code, 0) + 1


@dataclass(slots=True)
class _Row:
    """A candidate on its way; `fetched` once it has ended."""

    candidate: Candidate
    fetched: Fetched | None = None
    is_placed: bool = False


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
        *,
        placer: Placer | None = None,  # None: one that writes files
        by_host: bool = False,
    ) -> None:
        self.settings, self.progress, self.limit, self.by_host = settings, progress, limit, by_host
        self.placer = placer or Placer(catalog, out, query=query, captions=captions, options=options_id(settings))
        self.total = self.placer.num_kept()
        self.counts = Counts()
        self.window: deque[_Row] = deque()  # in table order
        self.by_ticket: dict[int, _Row] = {}  # those not ended yet
        self.failed: list[_Row] = []  # ended, not in the ledger yet
        self.arrived: list[_Row] = []  # good ones since the last commit
        self.unasked: deque[Candidate] = deque()  # not looked up in the ledger yet
        self.fresh: deque[Candidate] = deque()  # looked up: to be tried
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
                    self.placer.finish()
            finished = True
        finally:
            ahead.close()
            self.placer.close(finished=finished)
        return ahead.funnel

    def _reached(self) -> bool:
        return self.limit is not None and self.total >= self.limit

    def _loop(self, ahead: _Ahead, fetcher: Fetcher, advance: Advance) -> None:
        last_commit = time.monotonic()
        num_new = 0
        while True:
            starved = self._hand_out(ahead, fetcher, advance)
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
            if ahead.done and not (self.unasked or self.fresh or self.window):
                self._commit(advance)
                return

    def _hand_out(self, ahead: _Ahead, fetcher: Fetcher, advance: Advance) -> bool:
        """Give the fetcher as much as makes sense; True where the tables have nothing ready."""
        requests: list[Request] = []
        until = time.monotonic() + _SKIP_SECONDS
        starved = False
        room = self._room()
        while room > 0 and not starved:
            if not self.fresh:
                if time.monotonic() > until:
                    break
                starved = not self._look_up(ahead, advance)
                continue
            candidate = self.fresh.popleft()
            row = _Row(candidate)
            self.window.append(row)
            room -= 1
            waits = self.placer.waiting.pop(stage_name(candidate.url), None) if self.placer.waiting else None
            if waits is not None:
                row.fetched = waits
                self.num_waiting += 1
                continue
            self.ticket += 1
            self.by_ticket[self.ticket] = row
            requests.append(
                Request(ticket=self.ticket, url=candidate.url, checksum=candidate.checksum, phash=candidate.phash)
            )
        fetcher.submit(requests)
        return starved

    def _look_up(self, ahead: _Ahead, advance: Advance) -> bool:
        """Ask the ledger about the next candidates; False where the tables have none ready."""
        if not self.unasked:
            some = ahead.take()
            if some is None:
                return False
            self.unasked.extend(some)
        asked = [self.unasked.popleft() for _ in range(min(_ASKED, len(self.unasked)))]
        for candidate, why in zip(asked, self.placer.settled_many(asked), strict=True):
            if why is None:
                self.fresh.append(candidate)
            else:
                self.counts.skip(why)
        if not self.num_ended and len(self.fresh) < len(asked):
            advance(0, note=f"{sum(self.counts.skipped.values()):,} settled before")
        return True

    def _room(self) -> int:
        """How many more rows to start: near a limit no more than are likely needed."""
        room = _WINDOW - len(self.window)
        if self.limit is not None:
            # what is dead says so sooner than what is good: those under way count as good as a table usually is
            under_way = len(self.by_ticket)
            rate = (self.num_good + 0.75 * (under_way + 16)) / (self.num_ended + under_way + 16)
            rate = max(0.02, rate)
            needed = self.limit - self.total - self.num_waiting
            room = min(room, int(needed / rate) + 1 - len(self.by_ticket) if needed > 0 else 0)
        return room

    def _take(self, fetched: Fetched) -> None:
        row = self.by_ticket.pop(fetched.ticket)
        row.fetched = fetched
        self.num_ended += 1
        if self.by_host:
            self.counts.add_host(row.candidate.url, KEPT if fetched.code == FETCHED else fetched.code)
        if fetched.code == FETCHED:
            self.num_good += 1
            self.num_waiting += 1
            self.arrived.append(row)
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
                row.is_placed = True
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
        self.placer.note([(r.candidate, r.fetched) for r in self.arrived if r.fetched and not r.is_placed])
        self.arrived.clear()

    def _discard(self) -> None:
        """Past the limit: what was fetched all the same is recorded and removed."""
        ended = [(row.candidate, row.fetched) for row in self.window if row.fetched is not None]
        surplus = [(candidate, fetched) for candidate, fetched in ended if fetched.code == FETCHED]
        self.placer.discard(surplus)
        self.counts.add(SURPLUS, len(surplus))


def options_id(settings: FetchSettings) -> str:
    """The options that decide whether an image is taken, as one short id."""
    judged = (
        *(settings.max_bytes, settings.max_pixels, settings.check_hash, settings.allow_private),
        *(settings.honour_robots, settings.honour_opt_out),
    )
    return hashlib.sha256(repr(judged).encode()).hexdigest()[:8]


class _Ahead:
    """Reads the tables in a thread of its own, a few chunks ahead of whoever takes them."""

    def __init__(self, matching: Matching) -> None:
        self.funnel = Funnel()  # as it stood at the last chunk taken
        self.done = False
        self._queue: queue.Queue[tuple[list[Candidate], Funnel] | BaseException | None] = queue.Queue(_AHEAD)
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
