"""Files of known size and checksum from the web, resumed where an earlier try broke off.

Made for sets whose every file is listed with its MD5 (FFHQ): a partial file is kept and goes on with an HTTP Range
request, from whichever mirror answers. One event loop in a thread of its own; `get` is called
from many.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import threading
import time
from collections.abc import Coroutine, Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

import aiohttp

from edkit.gather.addresses import FilteringResolver, PrivateAddress, is_allowed, is_literal
from edkit.gather.local import MAX_BYTES, Refused

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_HOPS = 8
_LONGEST_WAIT = 60.0  # seconds of a Retry-After that are waited for
_PAGE_BYTES = 64 << 10  # of a web page that stands where a file should, read to see what it says
_QUOTA = ("quota", "too many users have viewed or downloaded")


class Downloader:
    """Downloads files to their full size and checksum; a context manager."""

    def __init__(
        self,
        *,
        timeout: float = 30.0,
        retries: int = 4,
        user_agent: str,
        allow_private: bool = False,
    ) -> None:
        self._timeout, self._retries, self._user_agent = timeout, retries, user_agent
        self._allow_private = allow_private
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="edkit-resume", daemon=True)
        self._session: aiohttp.ClientSession | None = None
        self._resolver: FilteringResolver | None = None
        self._not_before: dict[str, float] = {}  # host -> when it may be asked again
        self._closing = False

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._open())
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Break off what runs; partial files stay for the next time."""
        if not self._closing:
            self._closing = True
            self._run(self._close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=10)
            if not self._thread.is_alive():
                self._loop.close()

    def get(self, urls: Sequence[str], part: Path, *, size: int, md5: str) -> bytes:
        """The file's bytes, from the first URL that gives them; `part` holds what there is until `done` removes it.

        Raises Refused with an outcome's code where no URL has it.
        """
        part.parent.mkdir(parents=True, exist_ok=True)
        refused: Refused | None = None
        for url in urls:
            # a part of another version of the file spoils the whole: then once more from its first byte
            for fresh in (False, True):
                if fresh:
                    part.unlink(missing_ok=True)
                resumed = part.exists()
                try:
                    self._fetch_all(url, part, size)
                except Refused as error:
                    refused = error
                    break
                data = part.read_bytes()
                actual = hashlib.md5(data, usedforsecurity=False).hexdigest()
                if not md5 or actual == md5:
                    return data
                part.unlink()
                refused = Refused("hash", f"MD5 {actual} is not {md5}")
                if not resumed:
                    break
        raise refused or Refused("bad-url", "no address")

    # ---- one URL

    def _fetch_all(self, url: str, part: Path, size: int) -> None:
        """Bring `part` to its full size, in as many tries as are allowed."""
        tries = 0
        while True:
            before = part.stat().st_size if part.exists() else 0
            if size and before == size:
                return
            if size and before > size:
                part.unlink()
            try:
                self._run(self._fetch(url, part, size))
                return
            except _Passing as passing:
                after = part.stat().st_size if part.exists() else 0
                # a connection that brings something each time may break off as often as it likes
                tries = 0 if after > before + _PAGE_BYTES else tries + 1
                if tries > self._retries or passing.wait > _LONGEST_WAIT or self._closing:
                    raise Refused(passing.code, passing.reason) from passing
                wait = max(passing.wait, 0.5 * 2 ** max(0, tries - 1))
                time.sleep(min(wait, _LONGEST_WAIT))

    async def _fetch(self, url: str, part: Path, size: int) -> None:
        try:
            await self._attempt(url, part, size)
        except (Refused, _Passing):
            raise
        except (TimeoutError, aiohttp.ServerTimeoutError) as error:
            raise _Passing("timeout", f"nothing for {self._timeout:g} s") from error
        except aiohttp.ClientConnectorDNSError as error:
            if isinstance(error.os_error, PrivateAddress):
                raise Refused("private-address", str(error.os_error)) from error
            raise _Passing("dns", str(error.os_error)) from error
        except (aiohttp.ClientSSLError, ssl.SSLError) as error:
            raise Refused("tls", str(error)) from error
        except aiohttp.ClientConnectorError as error:
            raise _Passing("connect", error.os_error.strerror or str(error.os_error)) from error
        except (aiohttp.InvalidURL, ValueError) as error:
            raise Refused("bad-url", str(error)) from error
        except aiohttp.ClientError as error:
            raise _Passing("reset", str(error) or type(error).__name__) from error

    async def _attempt(self, url: str, part: Path, size: int) -> None:
        assert self._session is not None
        for _ in range(_MAX_HOPS):
            host = _host(url, allow_private=self._allow_private)
            pause = self._not_before.get(host, 0.0) - time.monotonic()
            if pause > _LONGEST_WAIT:
                raise Refused("host-paused", f"{pause:,.0f} s by its Retry-After")
            if pause > 0:
                await asyncio.sleep(pause)
            have = part.stat().st_size if part.exists() else 0
            headers = {"Range": f"bytes={have}-"} if have else {}
            async with self._session.get(url, headers=headers, allow_redirects=False) as response:
                if response.status in _REDIRECTS:
                    target = response.headers.get("Location", "").strip()
                    if not target:
                        raise Refused("redirects", "to nowhere")
                    url = urljoin(url, target)
                    continue
                await self._take(response, part, have, size, host)
                return
        raise Refused("redirects", f"over {_MAX_HOPS} times")

    async def _take(self, response: aiohttp.ClientResponse, part: Path, have: int, size: int, host: str) -> None:
        if response.status == 416:
            # it has no bytes after ours: what we hold is not a part of its file
            part.unlink(missing_ok=True)
            raise _Passing("wrong-size", "the partial file did not fit")
        if response.status == 429 or response.status >= 500:
            wait = _retry_after(response.headers.get("Retry-After", ""))
            self._not_before[host] = max(self._not_before.get(host, 0.0), time.monotonic() + min(wait, 3600))
            raise _Passing(f"http-{response.status}", response.reason or "", wait)
        if response.content_type in ("text/html", "application/xhtml+xml"):
            await _refuse_page(response)
        if response.status not in (200, 206):
            raise Refused(f"http-{response.status}", response.reason or "")
        if response.status == 200:
            have = 0  # it gives the whole file, whatever was asked
        elif _range_start(response.headers.get("Content-Range", "")) != have:
            part.unlink(missing_ok=True)
            raise _Passing("bad-answer", "another part than was asked for")
        most = min(size or MAX_BYTES, MAX_BYTES)
        with part.open("r+b" if have else "wb") as file:
            file.seek(have)
            file.truncate()
            async for chunk in response.content.iter_any():
                have += len(chunk)
                if have > most:
                    file.truncate(0)
                    raise Refused("wrong-size" if most == size else "too-large", f"over {most:,} bytes")
                file.write(chunk)
        if size and have < size:
            raise _Passing("reset", f"{have:,} of {size:,} bytes")

    # ---- the loop

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            future.result()
        except asyncio.CancelledError as error:
            raise Refused("reset", "broken off") from error

    async def _open(self) -> None:
        self._resolver = FilteringResolver(allow_private=self._allow_private)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, ssl=ssl.create_default_context(), resolver=self._resolver, ttl_dns_cache=300
            ),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._timeout, sock_read=self._timeout),
            headers={"User-Agent": self._user_agent, "Accept-Encoding": "identity"},
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def _close(self) -> None:
        current = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not current]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
        if self._resolver is not None:
            await self._resolver.close()


class _Passing(Exception):
    """A failure that another try may mend; `wait` seconds were asked for."""

    def __init__(self, code: str, reason: str = "", wait: float = 0.0) -> None:
        self.code, self.reason, self.wait = code, reason, wait
        super().__init__(code, reason)


async def _refuse_page(response: aiohttp.ClientResponse) -> None:
    """A web page where a file should be: say what it says."""
    page = bytearray()
    async for chunk in response.content.iter_any():
        page += chunk
        if len(page) >= _PAGE_BYTES:
            break
    text = page.decode("utf-8", "replace").lower()
    if any(words in text for words in _QUOTA):
        raise Refused("quota", "Google Drive answered with its quota page")
    if response.status not in (200, 206):
        raise Refused(f"http-{response.status}", response.reason or "")
    raise Refused("not-an-image", "a web page")


def _host(url: str, *, allow_private: bool) -> str:
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme.lower() not in ("http", "https") or not host:
        raise Refused("bad-url", "only http and https are fetched")
    # aiohttp asks no resolver for a literal, so it is judged here
    if is_literal(host) and not is_allowed(host, private=allow_private):
        raise Refused("private-address", host)
    return host


def _range_start(text: str) -> int:
    """The first byte of a `Content-Range: bytes 100-199/200`; -1 where it says none."""
    unit, _, rest = text.strip().partition(" ")
    first = rest.partition("-")[0]
    return int(first) if unit.lower() == "bytes" and first.isdecimal() else -1


def _retry_after(text: str) -> float:
    if text.strip().isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
