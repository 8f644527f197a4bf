"""From a URL to a checked image in the staging folder, many at a time: the network half of `scrape`.

One thread runs one event loop with one session; a small pool decodes and writes. The caller's thread hands in
requests and takes out results, in whatever order they end. Whose turn it is says `turns`, what a site asks of
robots `robots`, how one try goes `web`, and what is an image that is wanted `judge`.
"""

from __future__ import annotations

import asyncio
import os
import queue
import random
import socket
import threading
import time
from collections.abc import Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from yarl import URL

from edkit.gather.addresses import FilteringResolver, LookUp
from edkit.gather.candidate import FETCHED
from edkit.gather.judge import judge, unpacked
from edkit.gather.request import (
    PRODUCT,
    USER_AGENT,
    CheckHash,
    Failed,
    Fetched,
    FetchSettings,
    Request,
    stage_name,
)
from edkit.gather.robots import Robots, Rules
from edkit.gather.turns import LONGEST_WAIT, Turns
from edkit.gather.web import Body, Trail, Web

__all__ = ["CheckHash", "FetchSettings", "Fetched", "Fetcher", "PRODUCT", "Request", "USER_AGENT", "stage_name"]

_WORTH_ANOTHER_TRY = frozenset({"timeout", "reset", "http-408", "http-425", "http-429"})  # and every http-5xx
_HOST_FAILS = frozenset({"timeout", "reset", "connect", "tls"})  # and every http-5xx
_UNJUDGED = 32 << 20  # bytes that may wait for the pool
_SAYS_NOTHING = frozenset({"bad-url", "private-address", "dns", "robots", "robots-unreachable"})  # about its host


@dataclass(slots=True, eq=False)
class _Try:
    request: Request
    host: str
    tries: int = 0
    ended: Fetched | None = None  # how the last try did


class Fetcher:
    """Fetches what is handed in; a context manager that stops at once when it is left."""

    def __init__(self, settings: FetchSettings, staging: Path, *, look_up: LookUp = socket.getaddrinfo) -> None:
        self._settings, self._staging, self._look_up = settings, staging, look_up
        self._done: queue.SimpleQueue[Fetched | BaseException] = queue.SimpleQueue()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edkit-fetch", daemon=True)
        # images are decoded and written here: both leave the interpreter to the loop
        self._num_unjudged = 0  # bytes of bodies that wait for the pool or are in it
        self._counting = threading.Lock()
        self._pool = ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 2)), thread_name_prefix="edkit-check")
        # all below belongs to the loop's thread
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._room: asyncio.Event  # for more bodies; cleared by who waits for it, set from the pool
        self._web: Web
        self._robots: Robots | None = None
        self._turns: Turns[_Try]
        self._alarm: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._jitter = random.Random()

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=15)
        self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; each comes back once from `results`."""
        if requests and self._loop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._accept, list(requests))

    def results(self, timeout: float) -> list[Fetched]:
        """What has ended since the last call; waits up to `timeout` seconds for the first.

        Raises what broke the fetching as a whole (a full disk, say).
        """
        found: list[Fetched] = []
        try:
            item = self._done.get(timeout=timeout)
            while True:
                if isinstance(item, BaseException):
                    raise item
                found.append(item)
                item = self._done.get_nowait()
        except queue.Empty:
            return found

    # ---- the loop

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # noqa: BLE001 - it reaches the caller through `results`
            self._done.put(error)
        finally:
            self._started.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop, self._room = asyncio.Event(), asyncio.Event()
        self._room.set()
        settings = self._settings
        self._turns = Turns(
            at_once=settings.concurrency,
            per_host=settings.per_host,
            fails_in_a_row=settings.fails_in_a_row,
            rests=settings.rests,
            wary=settings.honour_robots,
        )
        resolver = FilteringResolver(allow_private=settings.allow_private, look_up=self._look_up)
        self._web = Web(settings, resolver)
        if settings.honour_robots:
            self._robots = Robots(
                self._web.start_of,
                user_agent=settings.user_agent,
                retries=min(1, settings.retries),
                pool=self._pool,
            )
        self._started.set()
        await self._stop.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._robots is not None:
            await self._robots.close()
        await self._web.close()
        await resolver.close()

    def _accept(self, requests: list[Request]) -> None:
        for request in requests:
            host = _host(request.url)
            self._turns.add(host, request.ticket, _Try(request, host))
        self._pump()

    def _again(self, one: _Try) -> None:
        self._turns.add(one.host, one.request.ticket, one)
        self._pump()

    def _pump(self) -> None:
        """Start what may start, end what is given up, and set the alarm for what must wait."""
        assert self._loop is not None
        while (turn := self._turns.take()) is not None:
            task = self._loop.create_task(self._work(turn[1]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        for one, code, reason in self._turns.dropped:
            given_up = Fetched(ticket=one.request.ticket, code=code, reason=reason, tries=one.tries)
            self._done.put(one.ended or given_up)
        self._turns.dropped.clear()
        if self._alarm is not None:
            self._alarm.cancel()
        wait = self._turns.next_wake()
        self._alarm = None if wait is None else self._loop.call_later(wait + 0.001, self._pump)

    async def _work(self, one: _Try) -> None:
        """One try, what it teaches about its host, and what comes next."""
        assert self._loop is not None
        host = one.host
        one.tries += 1
        started = time.monotonic()
        wait: float | None = None  # seconds until the next try; None: there is none
        try:
            await self._attempt(one)
            self._turns.answered(host)
            result: Fetched | BaseException | None = None  # the pool will tell
        except Failed as failed:
            code = failed.code
            if failed.retry_after > 0:
                self._turns.pause(host, failed.retry_after)
            if code in _HOST_FAILS or code.startswith("http-5"):
                self._turns.failed(host, f"{code} {failed.reason}".strip(), started=started)
            elif code not in _SAYS_NOTHING:
                self._turns.answered(host)
            worth_it = code in _WORTH_ANOTHER_TRY or code.startswith("http-5")
            if one.tries <= self._settings.retries and worth_it and failed.retry_after <= LONGEST_WAIT:
                wait = max(0.5 * 2 ** (one.tries - 1) * self._jitter.uniform(0.75, 1.25), failed.retry_after)
            result = one.ended = _ended(one, failed)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - a full disk, or a fault of ours: the caller raises it
            result = error
        finally:
            self._turns.free(host)
        if wait is not None:
            self._loop.call_later(wait, self._again, one)
        elif result is not None:
            self._done.put(result)
        self._pump()

    async def _attempt(self, one: _Try) -> None:
        """From a request to a body that the pool judges; Failed names why there is none."""
        trail = Trail(url=one.request.url)
        body = Body(self._staging / f"{stage_name(one.request.url)}.img", self._settings.max_bytes)

        def may_ask(address: URL) -> Awaitable[object] | None:
            """Raises Failed where robots.txt forbids it; gives something to wait for where it is not known yet."""
            if self._robots is None:
                return None
            host = one.host if trail.url == one.request.url or _host(trail.url) == one.host else ""
            rules = self._robots.known(address)
            if rules is None:
                return self._first_ask(self._robots, address, host)
            self._obey(rules, host)
            return None

        try:
            encoding, content_type = await self._web.download(trail, body, before=may_ask)
            while self._num_unjudged > _UNJUDGED:  # bytes in memory; the host waits with us
                self._room.clear()
                if self._num_unjudged > _UNJUDGED:  # still: a body judged in between would have woken nobody
                    await self._room.wait()
        except BaseException as error:
            body.drop()
            if isinstance(error, Failed):
                _locate(error, trail, one)
            raise
        # no verdict is worth another try, so the host's place is free and nobody waits for it
        with self._counting:
            self._num_unjudged += body.num_bytes
        self._pool.submit(self._judge, one, trail, body, encoding, content_type)

    async def _first_ask(self, robots: Robots, address: URL, host: str) -> None:
        self._obey(await robots.check(address), host)

    def _obey(self, rules: Rules, host: str) -> None:
        """Ask a host as often as its robots.txt lets us; none ("") where a redirect has left it."""
        if not host:
            return
        if rules.crawl_delay:
            self._turns.space(host, rules.crawl_delay)
        elif self._turns.trust(host):
            self._pump()

    def _judge(self, one: _Try, trail: Trail, body: Body, encoding: str, content_type: str) -> None:
        """What becomes of a body; runs in the pool."""
        result: Fetched | BaseException
        try:
            result = self._keep(one, trail, body, encoding, content_type)
        except Failed as failed:
            _locate(failed, trail, one)
            result = _ended(one, failed)
        except BaseException as error:  # noqa: BLE001 - a full disk, or a fault of ours: the caller raises it
            result = error
        body.drop()
        with self._counting:
            self._num_unjudged -= body.num_bytes
        # at half, so that those who wait are woken seldom, and find room for all of them
        if not self._room.is_set() and self._num_unjudged <= _UNJUDGED // 2 and self._loop is not None:
            self._loop.call_soon_threadsafe(self._room.set)
        self._done.put(result)

    def _keep(self, one: _Try, trail: Trail, body: Body, encoding: str, content_type: str) -> Fetched:
        """Judge a body and write a good image to the staging folder."""
        settings, request = self._settings, one.request
        data = unpacked(body.bytes(), encoding, settings.max_bytes)
        verdict = judge(
            data,
            content_type=content_type,
            max_pixels=settings.max_pixels,
            min_size=settings.min_size,
            max_aspect=settings.max_aspect,
            checksum=request.checksum,
            phash=request.phash,
            check_hash=settings.check_hash,
        )
        # whole or not, under this name it counts only once the ledger or a note has its hash
        body.staged.write_bytes(data)
        return Fetched(
            ticket=request.ticket,
            code=FETCHED,
            http_status=trail.status,
            final_url=trail.url if trail.url != request.url else "",
            sha256=verdict.sha256,
            num_bytes=len(data),
            width=verdict.header.width,
            height=verdict.header.height,
            suffix=verdict.suffix,
            tries=one.tries,
            staged=body.staged,
            checksum_matches=verdict.checksum_matches,
            phash_distance=verdict.phash_distance,
        )


def _locate(failed: Failed, trail: Trail, one: _Try) -> None:
    failed.final_url = trail.url if trail.url != one.request.url else ""
    failed.http_status = trail.status


def _ended(one: _Try, failed: Failed) -> Fetched:
    return Fetched(
        ticket=one.request.ticket,
        code=failed.code,
        reason=failed.reason,
        http_status=failed.http_status,
        final_url=failed.final_url,
        tries=one.tries,
        num_bytes=failed.num_bytes,
        checksum_matches=failed.checksum_matches,
        phash_distance=failed.phash_distance,
    )


def _host(url: str) -> str:
    """Host and port, the unit of politeness."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:
        return ""
