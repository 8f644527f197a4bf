"""One try at one URL over HTTP: redirects followed and checked, the body counted and timed as it comes."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from edkit.gather.addresses import (
    FilteringResolver,
    PrivateAddress,
    guarded_socket,
    is_allowed,
    is_literal,
    is_web_port,
    plain,
)
from edkit.gather.request import Failed, FetchSettings
from edkit.gather.robots import names_in, opt_out

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_HOPS = 8
_IN_MEMORY = 1 << 20  # bytes of a body held in memory; the rest of a larger one goes to its file at once


@dataclass(slots=True)
class Trail:
    """Where a try has come to."""

    url: str
    status: int | None = None


class Body:
    """A body as it arrives: in memory at first, a large one in a file; never over the limit."""

    def __init__(self, staged: Path, max_bytes: int) -> None:
        """`staged` is where a good image will lie; the file of a large body stands beside it as `.part`."""
        self.staged, self._max_bytes = staged, max_bytes
        self.num_bytes = 0
        self._chunks: list[bytes] = []
        self._file: Any = None

    def add(self, chunk: bytes) -> None:
        """Take the next bytes; Failed past the limit."""
        self.num_bytes += len(chunk)
        if self.num_bytes > self._max_bytes:
            raise Failed("too-large", f"over {self._max_bytes:,} bytes", num_bytes=self.num_bytes)
        if self._file is None and self.num_bytes <= _IN_MEMORY:
            self._chunks.append(chunk)
            return
        try:
            if self._file is None:
                self._file = self._part.open("wb")
                self._file.writelines(self._chunks)
                self._chunks.clear()
            self._file.write(chunk)
        except OSError as error:
            error.filename = str(self._part)  # a full disk must not look like a fault of the network
            raise

    def bytes(self) -> bytes:
        """The whole body."""
        if self._file is None:
            return self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._file.close()
        return self._part.read_bytes()

    def drop(self) -> None:
        """Forget it, and its file if it still bears the temporary name."""
        self._chunks = []
        if self._file is not None:
            self._file.close()
            self._part.unlink(missing_ok=True)

    @property
    def _part(self) -> Path:
        return self.staged.with_suffix(".part")


Before = Callable[[URL], Awaitable[object] | None]
"""Asked before every request with its URL, redirects' too, and waited for where it gives something to wait for;
raises Failed where the request must not be made."""


class Web:
    """A session with the web: one connection pool, one TLS context, one DNS cache; an async context manager."""

    def __init__(self, settings: FetchSettings, resolver: FilteringResolver) -> None:
        self._settings = settings
        self._names = names_in(settings.user_agent)
        connector = aiohttp.TCPConnector(
            # TLS as aiohttp set it up once, when it was imported: each context costs tens of milliseconds
            limit=0,  # turns are counted elsewhere, so that waiting for one is no part of a timeout
            resolver=resolver,
            use_dns_cache=False,  # the resolver has its own, with failures in it
            socket_factory=guarded_socket(allow_private=settings.allow_private),
        )
        self._session = aiohttp.ClientSession(
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
            trust_env=False,  # a proxy would connect wherever it is told to; so would a .netrc's password leave
        )

    async def close(self) -> None:
        await self._session.close()

    async def download(self, trail: Trail, body: Body, *, before: Before | None = None) -> tuple[str, str]:
        """Follow redirects and read the image; its Content-Encoding and Content-Type. Failed names what went wrong.

        `trail` tells where it ended. The time `before` takes is not counted.
        """
        settings = self._settings
        try:
            async with (
                asyncio.timeout(settings.timeout) as clock,
                await self._final(trail, _MAX_HOPS, clock, before) as response,
            ):
                if response.status in (204, 205):
                    raise Failed("empty")
                if response.status not in (200, 203):
                    raise Failed(
                        f"http-{response.status}",
                        response.reason or "",
                        retry_after=retry_after(response.headers.get("Retry-After", "")),
                    )
                withheld = opt_out(response.headers, self._names) if settings.honour_opt_out else ""
                if withheld:
                    raise Failed("opt-out", withheld)
                if (response.content_length or 0) > settings.max_bytes:
                    raise Failed("too-large", f"{response.content_length:,} bytes announced")
                began = time.monotonic()
                async for chunk in response.content.iter_any():
                    body.add(chunk)
                    seconds = time.monotonic() - began
                    if seconds > settings.idle_timeout and body.num_bytes < settings.min_rate * seconds:
                        raise Failed(
                            "timeout", f"only {body.num_bytes / seconds:,.0f} bytes/s", num_bytes=body.num_bytes
                        )
                return response.headers.get("Content-Encoding", "").strip().lower(), response.content_type
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise  # of a file, not of the network
            raise _named(error, settings) from error

    async def start_of(self, url: str, *, max_bytes: int, max_redirects: int) -> tuple[int, bytes]:
        """The status and the first bytes of a text; Failed where there is no answer."""
        trail, found = Trail(url=url), bytearray()
        try:
            async with (
                asyncio.timeout(self._settings.timeout) as clock,
                await self._final(trail, max_redirects, clock, None) as response,
            ):
                if 200 <= response.status < 300:
                    async for chunk in response.content.iter_any():
                        found += chunk
                        if len(found) >= max_bytes:
                            break
                if response.status == 429 or response.status >= 500:
                    wait = retry_after(response.headers.get("Retry-After", ""))
                    raise Failed(f"http-{response.status}", response.reason or "", retry_after=wait)
                return response.status, bytes(found[:max_bytes])
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise _named(error, self._settings) from error

    async def _final(
        self, trail: Trail, max_hops: int, clock: asyncio.Timeout, before: Before | None
    ) -> aiohttp.ClientResponse:
        """The answer at the end of the redirects, to be left as a context; `clock` stands still for `before`."""
        visited: set[str] = set()
        while True:
            address = checked(trail.url, allow_private=self._settings.allow_private)
            if trail.url in visited or len(visited) > max_hops:
                raise Failed("redirects", "in a circle" if trail.url in visited else f"over {max_hops} times")
            visited.add(trail.url)
            asked = before(address) if before is not None else None
            if asked is not None:
                loop = asyncio.get_running_loop()
                left = (clock.when() or 0.0) - loop.time()
                clock.reschedule(None)
                await asked
                clock.reschedule(loop.time() + left)
            response = await self._session.get(address, allow_redirects=False)
            trail.status = response.status
            if response.status not in _REDIRECTS:
                return response
            async with response:
                target = response.headers.get("Location", "").strip()
            if not target:
                raise Failed("redirects", "to nowhere")
            trail.url = urljoin(trail.url, target)


def checked(url: str, *, allow_private: bool) -> URL:
    """A URL as it is requested: its host in plain form, no name or password in it. Failed where it is none we go to."""
    scheme = url.partition(":")[0].strip().lower()
    if scheme not in ("http", "https"):
        raise Failed("bad-url", f"{scheme[:20] or 'no scheme'}: only http and https are fetched")
    if len(url) > 8000 or _CONTROL.search(url):
        raise Failed("bad-url", "not an address")
    try:
        # a URL that needs no quoting goes out byte for byte: some are signed
        address = URL(url, encoded=url.isascii() and " " not in url)
        # as it is written in the request: other scripts' digits and dots have become plain ones
        seen = address.raw_host
        if not seen:
            raise Failed("bad-url", "no host")
        host, is_open = _judged(seen, allow_private)
        if not is_web_port(address.explicit_port):
            raise Failed("bad-url", f"port {address.explicit_port} is no web server's")
        if address.raw_user is not None or address.raw_password is not None:
            address = address.with_user(None)
        if host != seen:
            address = address.with_host(host)
    except (ValueError, TypeError) as error:
        raise Failed("bad-url", str(error)) from error
    if not is_open:
        raise Failed("private-address", host)
    return address


_CONTROL = re.compile(r"[\x00-\x1f]")


@lru_cache(maxsize=65_536)
def _judged(host: str, allow_private: bool) -> tuple[str, bool]:
    """A host in plain form, and whether it may be connected to as far as it is an address; ValueError for no host."""
    found = plain(host)
    # no resolver is asked for an address, so it is judged here
    return found, not is_literal(found) or is_allowed(found, private=allow_private)


def retry_after(text: str) -> float:
    """Seconds that a Retry-After header (a number or a date) asks for; 0 where it says nothing."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text) if len(text) < 9 else 1e8
    try:
        when = parsedate_to_datetime(text)
        return max(0.0, (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError, IndexError):
        return 0.0


def _named(error: Exception, settings: FetchSettings) -> Failed:
    """What an exception of the network means."""
    cause = getattr(error, "os_error", error)
    if isinstance(cause, PrivateAddress):
        return Failed("private-address", str(cause))
    if isinstance(error, TimeoutError):
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return Failed("timeout", "no connection in time")
        if isinstance(error, aiohttp.ServerTimeoutError):
            return Failed("timeout", f"no byte for {settings.idle_timeout:g} s")
        return Failed("timeout", f"over {settings.timeout:g} s")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Failed("dns", error.os_error.strerror or str(error.os_error))
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return Failed("tls", str(error))
    if isinstance(error, aiohttp.ClientConnectorError):
        return Failed("connect", error.os_error.strerror or str(error.os_error))
    if isinstance(error, aiohttp.InvalidURL | ValueError):
        return Failed("bad-url", str(error))
    if isinstance(error, aiohttp.ClientPayloadError):
        return Failed("reset", "the body was cut short")
    if isinstance(error, aiohttp.ClientResponseError):
        return Failed("bad-answer", error.message)
    return Failed("reset", str(error) or type(error).__name__)
