"""What a scrape would come to: a few hundred candidates, drawn over the whole table, are fetched and discarded."""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edkit.data.catalog import Catalog
from edkit.data.names import host_of
from edkit.data.progress import Progress
from edkit.data.random import unit
from edkit.gather.candidate import FETCHED, KEPT, Candidate, Funnel
from edkit.gather.collect import Counts, options_id
from edkit.gather.fetch import Fetched, Fetcher, FetchSettings, Request, stage_name
from edkit.gather.place import Placer

NUM_PROBED = 300
_NUM_HOSTS = 5000  # candidates that tell how the table spreads over hosts
_Z = 1.959964  # of 95 %


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a probe found, and what that means for the whole. Ranges are 95 % intervals."""

    probed: int
    good: int
    rate: float  # of those probed
    rate_low: float
    rate_high: float
    mean_bytes: float  # of a good image; 0 where none was good
    untried: int  # matches that no earlier run has settled
    wanted: int  # images still to get: up to the limit, or all there are
    reachable: bool  # whether the untried matches are likely to give as many
    downloads: int  # that this likely takes
    downloads_low: int
    downloads_high: int
    rows: int  # of the tables, from their beginning
    num_bytes: float  # on the disk
    seconds: float
    busiest_host: str
    busiest_share: float  # of the downloads
    waits_for_host: bool  # that host, asked politely, takes longer than all the rest
    seed: int


def wilson(good: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a rate of which `good` in `n` were seen (Wilson 1927); (0, 1) where n is 0."""
    if n == 0:
        return 0.0, 1.0
    rate, z2 = good / n, _Z * _Z
    middle = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


class Prober:
    """Draws, fetches and judges a sample of one query's candidates."""

    def __init__(
        self, catalog: Catalog, out: Path, *, query: str, settings: FetchSettings, seed: int, progress: Progress
    ) -> None:
        self.settings, self.seed, self.progress = settings, seed, progress
        self.placer = Placer(catalog, out, query=query, captions="filename", options=options_id(settings))
        self.total = self.placer.num_kept()
        self.counts = Counts()
        self.num_untried = 0

    def run(self, found: Iterable[list[Candidate]], funnel: Funnel, *, limit: int | None) -> Estimate:
        """Read all candidates (`funnel` is filled by that) and probe some."""
        finished = False
        try:
            drawn = self._draw(found)
            fetched, latency = self._fetch(drawn[:NUM_PROBED])
            failed = [(c, f) for c, f in fetched if f.code != FETCHED]
            good = [(c, f) for c, f in fetched if f.code == FETCHED]
            self.placer.place([], failed)
            self.placer.discard(good, reason="probed by --estimate")
            for _, one in fetched:
                self.counts.add(KEPT if one.code == FETCHED else one.code)
            finished = True
        finally:
            self.placer.close(finished=finished, keep_waiting=True)
        wanted = None if limit is None else max(0, limit - self.total)
        hosts = Counter(host_of(candidate.url) for candidate in drawn)
        return self._judge([f for _, f in good], len(fetched), latency, hosts, wanted, funnel.rows)

    def _draw(self, found: Iterable[list[Candidate]]) -> list[Candidate]:
        """Some of the candidates that no earlier run has settled, the same for the same seed, in drawn order."""
        heap: list[tuple[float, int, Candidate]] = []  # the smallest draws; their largest on top
        with self.progress.task("searching", unit="matches") as advance:
            for some in found:
                for first in range(0, len(some), 500):
                    part = some[first : first + 500]
                    for candidate, why in zip(part, self.placer.settled_many(part), strict=True):
                        if why is not None or stage_name(candidate.url) in self.placer.waiting:
                            self.counts.skip(why or "fetched before, waits for its turn")
                            continue
                        self.num_untried += 1
                        draw = -unit(self.seed, "estimate", candidate.url)
                        if len(heap) < _NUM_HOSTS:
                            heapq.heappush(heap, (draw, -self.num_untried, candidate))
                        elif draw > heap[0][0]:
                            heapq.heapreplace(heap, (draw, -self.num_untried, candidate))
                advance(len(some))
        return [candidate for _, _, candidate in sorted(heap, key=lambda item: (-item[0], -item[1]))]

    def _fetch(self, drawn: list[Candidate]) -> tuple[list[tuple[Candidate, Fetched]], float]:
        """Fetch them all; what came, and the mean seconds that one took."""
        ended: list[tuple[Candidate, Fetched]] = []
        busy = 0.0  # seconds of all fetches together
        with (
            Fetcher(self.settings, self.placer.staging) as fetcher,
            self.progress.task("probing", total=len(drawn), unit="images") as advance,
        ):
            fetcher.submit(
                [
                    Request(ticket=ticket, url=c.url, checksum=c.checksum, phash=c.phash)
                    for ticket, c in enumerate(drawn)
                ]
            )
            last = time.monotonic()
            while len(ended) < len(drawn):
                came = fetcher.results(timeout=0.1)
                now = time.monotonic()
                busy += (now - last) * min(self.settings.concurrency, len(drawn) - len(ended))
                last = now
                ended += [(drawn[fetched.ticket], fetched) for fetched in came]
                advance(len(came))
        return ended, busy / max(1, len(drawn))

    def _judge(
        self, good: list[Fetched], probed: int, latency: float, hosts: Counter[str], wanted: int | None, rows: int
    ) -> Estimate:
        low, high = wilson(len(good), probed)
        rate = len(good) / probed if probed else 0.0
        left = self.num_untried
        if wanted is None:
            wanted, downloads, least, most = round(rate * left), left, left, left
        else:
            downloads, least, most = (min(left, math.ceil(wanted / r)) if r else left for r in (rate, high, low))
        mean_bytes = sum(fetched.num_bytes for fetched in good) / len(good) if good else 0.0
        host, count = hosts.most_common(1)[0] if hosts else ("", 0)
        share = count / hosts.total() if hosts else 0.0
        by_all = downloads * latency / self.settings.concurrency
        by_host = share * downloads * latency / min(self.settings.per_host, self.settings.concurrency)
        return Estimate(
            probed=probed,
            good=len(good),
            rate=rate,
            rate_low=low,
            rate_high=high,
            mean_bytes=mean_bytes,
            untried=left,
            wanted=wanted,
            reachable=rate * left >= wanted,
            downloads=downloads,
            downloads_low=least,
            downloads_high=most,
            rows=math.ceil(rows * downloads / left) if left else 0,
            num_bytes=mean_bytes * min(wanted, round(rate * left)),
            seconds=max(by_all, by_host),
            busiest_host=host,
            busiest_share=share,
            waits_for_host=by_host > by_all,
            seed=self.seed,
        )
