"""From a URL to a checked image in the staging folder, many at a time: the network half of `scrape`.

One thread runs one event loop with one session and one TLS context; a small pool decodes and writes. The
caller's thread hands in requests and takes out results, in whatever order they end.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import os
import queue
import random
import ssl
import threading
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urljoin, urlsplit

import aiohttp
from yarl import URL

from edkit import __version__
from edkit.data.errors import BadInput, UsageError
from edkit.data.image import DEFAULT_MAX_PIXELS, probe, suffix_for, verify
from edkit.gather.addresses import FilteringResolver, PrivateAddress, is_allowed, is_literal
from edkit.gather.candidate import FETCHED

if TYPE_CHECKING:
    from edkit.data.image import Header

CheckHash = Literal["off", "strict", "perceptual"]
USER_AGENT = f"edkit/{__version__} (collects training images; obeys Retry-After)"

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_HOPS = 8
_RETRIED_HERE = frozenset({"timeout", "reset", "http-408", "http-425", "http-429"})  # and every http-5xx
_LONGEST_WAIT = 60.0  # seconds a run waits for one host's Retry-After; longer ones are left to the next run
_IN_MEMORY = 2 << 20  # bytes of a body held in memory; the rest of a larger one goes to its file at once
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchSettings:
    """How to fetch, and what an image must be. Raises UsageError where made from nonsense."""

    concurrency: int = 64
    per_host: int = 8
    timeout: float = 30.0  # seconds for one try, redirects included
    idle_timeout: float = 10.0  # seconds without a byte
    retries: int = 2  # after the first try
    max_bytes: int = 50_000_000
    max_pixels: int = DEFAULT_MAX_PIXELS
    min_size: int = 0
    max_aspect: float | None = None
    check_hash: CheckHash | bool = "off"
    user_agent: str = USER_AGENT
    allow_private: bool = False
    honour_robots: bool = True
    honour_opt_out: bool = True  # X-Robots-Tag: noai and its kin, TDM-Reservation: 1

    def __post_init__(self) -> None:
        if isinstance(self.check_hash, bool):  # the switch it was before there were two ways
            object.__setattr__(self, "check_hash", "strict" if self.check_hash else "off")
        if self.check_hash not in ("off", "strict", "perceptual"):
            raise UsageError(f"--check-hash {self.check_hash}: off, strict or perceptual")
        for name in ("concurrency", "per_host", "timeout", "idle_timeout", "max_bytes", "max_pixels"):
            if not getattr(self, name) > 0:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: more than 0")
        if self.retries < 0:
            raise UsageError(f"--retries {self.retries}: 0 or more")
        if not self.user_agent.strip().isprintable() or not self.user_agent.strip():
            raise UsageError("--user-agent: one line that says who fetches")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One URL to fetch; `ticket` is the caller's own number, and lower ones go first."""

    ticket: int
    url: str
    checksum: str = ""  # md5 or sha256, hex
    phash: str = ""  # 64-bit perceptual hash, 16 hex digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """How a request ended. `code` is FETCHED where a good image lies under `staged`, else an Outcome's."""

    ticket: int
    code: str
    reason: str = ""
    http_status: int | None = None
    final_url: str = ""
    sha256: str = ""
    num_bytes: int = 0
    width: int = 0
    height: int = 0
    suffix: str = ""  # of what the content is, ".jpg"
    tries: int = 1
    staged: Path | None = None
    checksum_matches: bool | None = None  # None: the table has none


def stage_name(url: str) -> str:
    """The name of a URL's file in the staging folder, without its ending."""
    return hashlib.blake2b(url.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class Fetcher:
    """Fetches what is handed in; a context manager that stops at once when it is left."""

    def __init__(self, settings: FetchSettings, staging: Path) -> None:
        self._settings, self._staging = settings, staging
        self._done: queue.SimpleQueue[Fetched | BaseException] = queue.SimpleQueue()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edkit-fetch", daemon=True)
        # all below belongs to the loop's thread
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._session: aiohttp.ClientSession | None = None
        self._hosts: dict[str, _Host] = {}
        self._ready: list[tuple[int, str]] = []  # heap of (first ticket, host)
        self._active = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._pool = ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 2)), thread_name_prefix="edkit-check")
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
        self._stop = asyncio.Event()
        settings = self._settings
        resolver = FilteringResolver(allow_private=settings.allow_private)
        connector = aiohttp.TCPConnector(
            limit=0,  # `_pump` counts, so that waiting for a turn is no part of a timeout
            ssl=ssl.create_default_context(),  # once: each costs tens of milliseconds
            resolver=resolver,
            ttl_dns_cache=300,
        )
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(
                total=None,
                sock_connect=min(settings.idle_timeout, settings.timeout),
                sock_read=settings.idle_timeout,
            ),
            headers={
                "User-Agent": settings.user_agent.strip(),
                "Accept": "image/*,*/*;q=0.5",
                "Accept-Encoding": "identity",
            },
            auto_decompress=False,  # a bomb is unpacked with a limit, or not at all
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as self._session:
            self._started.set()
            await self._stop.wait()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        await resolver.close()

    def _accept(self, requests: list[Request]) -> None:
        for request in requests:
            self._enqueue(_Try(request=request, host=_host(request.url)))
        self._pump()

    def _enqueue(self, one: _Try) -> None:
        host = self._hosts.setdefault(one.host, _Host())
        heapq.heappush(host.waiting, (one.request.ticket, one))
        self._offer(one.host, host)

    def _offer(self, name: str, host: _Host) -> None:
        """Stand a host in line, if it has work and room."""
        if host.waiting and host.active < self._settings.per_host:
            heapq.heappush(self._ready, (host.waiting[0][0], name))

    def _pump(self) -> None:
        """Start what may start: the lowest tickets whose hosts have room."""
        assert self._loop is not None
        while self._ready and self._active < self._settings.concurrency:
            _, name = heapq.heappop(self._ready)
            host = self._hosts.get(name)
            if host is None or not host.waiting or host.active >= self._settings.per_host:
                continue
            wait = host.not_before - time.monotonic()
            if wait > _LONGEST_WAIT:
                self._give_up(host, wait)
                continue
            if wait > 0:
                if not host.asleep:
                    host.asleep = True
                    self._loop.call_later(wait, self._wake, name)
                continue
            _, one = heapq.heappop(host.waiting)
            host.active += 1
            self._active += 1
            task = self._loop.create_task(self._work(one, host))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self._offer(name, host)

    def _give_up(self, host: _Host, wait: float) -> None:
        """A host that asked for a long pause gets it: what still waits for it ends here, for another run."""
        for _, one in host.waiting:
            reason = f"{wait:,.0f} s by its Retry-After"
            ended = Fetched(ticket=one.request.ticket, code="host-paused", reason=reason, tries=one.tries)
            self._done.put(ended)
        host.waiting.clear()

    def _wake(self, name: str) -> None:
        host = self._hosts.get(name)
        if host is not None:
            host.asleep = False
            self._offer(name, host)
            self._pump()

    def _again(self, one: _Try) -> None:
        self._enqueue(one)
        self._pump()

    async def _work(self, one: _Try, host: _Host) -> None:
        assert self._loop is not None
        one.tries += 1
        result: Fetched | BaseException
        wait = -1.0  # seconds until the next try; negative: there is none
        try:
            result = await self._attempt(one)
        except _Failed as failed:
            code, left = failed.code, self._settings.retries - (one.tries - 1)
            if failed.retry_after > 0:
                host.not_before = max(host.not_before, time.monotonic() + failed.retry_after)
            worth_it = code in _RETRIED_HERE or code.startswith("http-5")
            if left > 0 and worth_it and failed.retry_after <= _LONGEST_WAIT:
                backoff = 0.5 * 2 ** (one.tries - 1) * self._jitter.uniform(0.75, 1.25)
                wait = max(backoff, failed.retry_after)
            result = Fetched(
                ticket=one.request.ticket,
                code=code,
                reason=failed.reason,
                http_status=failed.http_status,
                final_url=failed.final_url,
                tries=one.tries,
                num_bytes=failed.num_bytes,
                checksum_matches=False if code == "hash" else None,
            )
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - a full disk, or a fault of ours: the caller raises it
            result = error
        finally:
            self._active -= 1
            host.active -= 1
        if wait >= 0:
            self._loop.call_later(wait, self._again, one)
        else:
            self._done.put(result)
        if not host.waiting and not host.active and host.not_before <= time.monotonic():
            self._hosts.pop(one.host, None)
        else:
            self._offer(one.host, host)
        self._pump()

    # ---- one try

    async def _attempt(self, one: _Try) -> Fetched:
        trail = _Trail(url=one.request.url)
        body = _Body(self._staging / f"{stage_name(one.request.url)}.part", self._settings.max_bytes)
        try:
            try:
                async with asyncio.timeout(self._settings.timeout):
                    encoding, content_type = await self._download(trail, body)
            except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
                if isinstance(error, OSError) and error.filename is not None:
                    raise  # of a file, not of the network
                raise _named(error, self._settings) from error
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._pool, _check, one, trail, body, encoding, content_type, self._settings
            )
        except _Failed as failed:
            failed.final_url = trail.url if trail.url != one.request.url else ""
            failed.http_status = trail.status
            raise
        finally:
            body.drop()

    async def _download(self, trail: _Trail, body: _Body) -> tuple[str, str]:
        """Follow redirects and read the body; its encoding and what its type claims to be."""
        assert self._session is not None
        visited: set[str] = set()
        while True:
            address = _address(trail.url, allow_private=self._settings.allow_private)
            if trail.url in visited or len(visited) > _MAX_HOPS:
                raise _Failed("redirects", "in a circle" if trail.url in visited else f"over {_MAX_HOPS} times")
            visited.add(trail.url)
            async with self._session.get(address, allow_redirects=False) as response:
                trail.status = response.status
                if response.status in _REDIRECTS:
                    target = response.headers.get("Location", "").strip()
                    if not target:
                        raise _Failed("redirects", "to nowhere")
                    trail.url = urljoin(trail.url, target)
                    continue
                if response.status == 204 or response.status == 205:
                    raise _Failed("empty")
                if response.status not in (200, 203):
                    raise _Failed(
                        f"http-{response.status}",
                        response.reason or "",
                        retry_after=_retry_after(response.headers.get("Retry-After", "")),
                    )
                if (response.content_length or 0) > self._settings.max_bytes:
                    raise _Failed("too-large", f"{response.content_length:,} bytes announced")
                async for chunk in response.content.iter_any():
                    body.add(chunk)
                return response.headers.get("Content-Encoding", "").strip().lower(), response.content_type


@dataclass(slots=True)
class _Host:
    waiting: list[tuple[int, _Try]] = field(default_factory=list)  # heap by ticket
    active: int = 0
    not_before: float = 0.0  # monotonic seconds: it asked for a pause until then
    asleep: bool = False


@dataclass(slots=True, eq=False)
class _Try:
    request: Request
    host: str
    tries: int = 0

    def __lt__(self, other: _Try) -> bool:
        return self.request.ticket < other.request.ticket


@dataclass(slots=True)
class _Trail:
    """Where a fetch has come to."""

    url: str
    status: int | None = None


class _Failed(Exception):
    """One try ended without an image."""

    def __init__(self, code: str, reason: str = "", *, retry_after: float = 0.0, num_bytes: int = 0) -> None:
        super().__init__(code, reason)
        # some libraries quote what they received, all of it
        reason = " ".join(reason.split("\n", 1)[0].split())[:200]
        self.code, self.reason, self.retry_after, self.num_bytes = code, reason, retry_after, num_bytes
        self.http_status: int | None = None
        self.final_url = ""


class _Body:
    """A body as it arrives: in memory at first, a large one in a file; never over the limit."""

    def __init__(self, part: Path, max_bytes: int) -> None:
        self.part, self._max_bytes = part, max_bytes
        self.num_bytes = 0
        self._head = bytearray()
        self._file: Any = None

    def add(self, chunk: bytes) -> None:
        """Take the next bytes; _Failed past the limit."""
        self.num_bytes += len(chunk)
        if self.num_bytes > self._max_bytes:
            raise _Failed("too-large", f"over {self._max_bytes:,} bytes", num_bytes=self.num_bytes)
        if self._file is None and self.num_bytes <= _IN_MEMORY:
            self._head += chunk
            return
        try:
            if self._file is None:
                self._file = self.part.open("wb")
                self._file.write(self._head)
                self._head.clear()
            self._file.write(chunk)
        except OSError as error:
            error.filename = str(self.part)  # a full disk must not look like a fault of the network
            raise

    def bytes(self) -> bytes:
        """The whole body."""
        if self._file is None:
            return bytes(self._head)
        self._file.close()
        return self.part.read_bytes()

    def drop(self) -> None:
        """Forget it, and its file if it still bears the temporary name."""
        self._head = bytearray()
        if self._file is not None:
            self._file.close()
            self.part.unlink(missing_ok=True)


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:
        return ""


def _address(url: str, *, allow_private: bool) -> URL:
    """The URL as aiohttp takes it; _Failed where it is none we go to."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise _Failed("bad-url", str(error)) from error
    if parts.scheme.lower() not in ("http", "https"):
        raise _Failed("bad-url", f"{parts.scheme or 'no scheme'}: only http and https are fetched")
    if not host or len(url) > 8000 or any(ord(c) < 32 for c in url):
        raise _Failed("bad-url", "no host" if not host else "not an address")
    # aiohttp asks no resolver for a literal, so it is judged here
    if is_literal(host) and not is_allowed(host, private=allow_private):
        raise _Failed("private-address", host)
    try:
        # a URL that needs no quoting goes out byte for byte: some are signed
        return URL(url, encoded=url.isascii() and " " not in url)
    except ValueError as error:
        raise _Failed("bad-url", str(error)) from error


def _named(error: Exception, settings: FetchSettings) -> _Failed:
    """What an exception of the network means."""
    if isinstance(error, TimeoutError):
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return _Failed("timeout", "no connection in time")
        if isinstance(error, aiohttp.ServerTimeoutError):
            return _Failed("timeout", f"no byte for {settings.idle_timeout:g} s")
        return _Failed("timeout", f"over {settings.timeout:g} s")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        if isinstance(error.os_error, PrivateAddress):
            return _Failed("private-address", str(error.os_error))
        return _Failed("dns", error.os_error.strerror or str(error.os_error))
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return _Failed("tls", str(error))
    if isinstance(error, aiohttp.ClientConnectorError):
        return _Failed("connect", error.os_error.strerror or str(error.os_error))
    if isinstance(error, aiohttp.InvalidURL | ValueError):
        return _Failed("bad-url", str(error))
    if isinstance(error, aiohttp.ClientPayloadError):
        return _Failed("reset", "the body was cut short")
    if isinstance(error, aiohttp.ClientResponseError):
        return _Failed("bad-answer", error.message)
    return _Failed("reset", str(error) or type(error).__name__)


def _retry_after(text: str) -> float:
    """Seconds that a Retry-After header (a number or a date) asks for; 0 where it says nothing."""
    text = text.strip()
    if text.isdigit() and len(text) < 9:
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


# ---- the image, in the pool


def _check(one: _Try, trail: _Trail, body: _Body, encoding: str, content_type: str, settings: FetchSettings) -> Fetched:
    """Decode, judge, and write a good image to the staging folder."""
    data = _unpacked(body.bytes(), encoding, settings.max_bytes)
    if not data:
        raise _Failed("empty")
    header = _image_header(data, content_type, settings)
    sha256 = hashlib.sha256(data).hexdigest()
    matches: bool | None = None
    checksum = one.request.checksum
    if checksum:
        actual = sha256 if len(checksum) == 64 else hashlib.md5(data, usedforsecurity=False).hexdigest()
        matches = actual == checksum
        if settings.check_hash == "strict" and not matches:
            raise _Failed("hash", f"{actual} is not {checksum}", num_bytes=len(data))
    staged = body.part.with_suffix(".img")
    body.part.write_bytes(data)
    body.part.replace(staged)
    return Fetched(
        ticket=one.request.ticket,
        code=FETCHED,
        http_status=trail.status,
        final_url=trail.url if trail.url != one.request.url else "",
        sha256=sha256,
        num_bytes=len(data),
        width=header.width,
        height=header.height,
        suffix=suffix_for(header.format),
        tries=one.tries,
        staged=staged,
        checksum_matches=matches,
    )


def _unpacked(data: bytes, encoding: str, max_bytes: int) -> bytes:
    """The body without a Content-Encoding that was not asked for."""
    if encoding in ("", "identity", "none"):
        return data
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise _Failed("not-an-image", f"packed as {encoding[:40]}", num_bytes=len(data))
    unpacker = zlib.decompressobj(wbits=47)  # gzip or zlib, by its own header
    try:
        unpacked = unpacker.decompress(data, max_bytes + 1)
    except zlib.error as error:
        # servers that call a plain file gzip are common
        if data.startswith(_MAGIC):
            return data
        raise _Failed("broken-image", f"{encoding}: {error}", num_bytes=len(data)) from error
    if len(unpacked) > max_bytes:
        raise _Failed("too-large", f"over {max_bytes:,} bytes unpacked", num_bytes=len(data))
    return unpacked


def _image_header(data: bytes, content_type: str, settings: FetchSettings) -> Header:
    """What the image is, once it decodes to its last row; _Failed where it doesn't or isn't wanted."""
    num_bytes = len(data)
    try:
        header = probe(data, max_pixels=settings.max_pixels)
        suffix_for(header.format)
    except BadInput as error:
        if "pixels" in error.what:
            raise _Failed("too-many-pixels", error.what, num_bytes=num_bytes) from error
        if data.startswith(_MAGIC) or data[4:8] == b"ftyp":
            raise _Failed("broken-image", error.what, num_bytes=num_bytes) from error
        raise _Failed("not-an-image", _kind(data, content_type), num_bytes=num_bytes) from error
    width, height = header.width, header.height
    if min(width, height) < settings.min_size:
        raise _Failed("too-small", f"{width} x {height}", num_bytes=num_bytes)
    if settings.max_aspect is not None and max(width, height) > min(width, height) * settings.max_aspect:
        raise _Failed("extreme-aspect", f"{width} x {height}", num_bytes=num_bytes)
    try:
        return verify(data, max_pixels=settings.max_pixels)
    except BadInput as error:
        raise _Failed("broken-image", error.what, num_bytes=num_bytes) from error


def _kind(data: bytes, content_type: str) -> str:
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in head:
        return "SVG"
    if head.startswith((b"<!doctype html", b"<html", b"<head", b"<body", b"<script")) or b"<html" in head:
        return "a web page"
    return f"{content_type or 'unknown'} content"
