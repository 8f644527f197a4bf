"""What a site asks of robots: robots.txt (RFC 9309), X-Robots-Tag and TDM-Reservation.

A site is an origin: scheme, host and port. Its robots.txt is fetched once, judged for `edkit` and for whoever the
user agent names, and kept in memory within a bound.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from yarl import URL

from edkit.gather.request import PRODUCT, Failed

if TYPE_CHECKING:
    from protego import Protego

MAX_BYTES = 500 * 1024  # RFC 9309, 2.5: at least so much is read; what follows is cut off
MAX_REDIRECTS = 5  # RFC 9309, 2.3.1.2
_KEPT_BYTES = 16 << 20  # of robots.txt texts; the parsed rules take several times as much
_UNREACHABLE_SECONDS = 300.0  # how long a failure is remembered
_LONG = 16 * 1024  # bytes; a longer text is parsed off the loop

# what ends as the page's own failure would: there is no site to ask
_NO_SITE = frozenset({"dns", "connect", "tls", "private-address", "bad-url"})

_NO_AI = frozenset({"noai", "noimageai", "noimageindex", "noindex", "none"})
_WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
_PRODUCT = re.compile(r"[A-Za-z_][A-Za-z_-]*")  # RFC 9309, 2.2.1: a product token


def names_in(user_agent: str) -> tuple[str, ...]:
    """Who a user agent string says it is, lower case: ours first, then its product tokens.

    `Mozilla/5.0 (compatible; FooBot/1.2; +https://...)` names mozilla and foobot.
    """
    found = [PRODUCT]
    outside = re.sub(r"\([^)]*\)", " ", user_agent)
    inside = " ".join(re.findall(r"\(([^)]*)\)", user_agent))
    for text in outside.split()[:1] + re.findall(r"[A-Za-z_-]+/[0-9]", f"{outside} {inside}"):
        match = _PRODUCT.match(text)
        if match and match[0].lower() not in found:
            found.append(match[0].lower())
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What one robots.txt asks of us."""

    crawl_delay: float = 0.0  # seconds between two requests
    num_bytes: int = 0
    _judge: Protego | None = None
    _names: tuple[str, ...] = ()

    def allows(self, url: str) -> bool:
        """Whether a URL of this site may be fetched."""
        return self._judge is None or all(self._judge.can_fetch(url, name) for name in self._names)


NO_RULES = Rules()


def parse(text: str, names: Sequence[str]) -> Rules:
    """The rules for these names: the groups that name one of them hold together, else the group of all (`*`)."""
    from protego import Protego

    if not text.strip():
        return NO_RULES
    judge = Protego.parse(text)
    named = tuple(name for name in names if re.search(rf"(?im)^\s*user[- ]?agent\s*:?\s*{re.escape(name)}\b", text))
    names = named or ("*",)
    delay = max((judge.crawl_delay(name) or 0.0 for name in names), default=0.0)
    return Rules(crawl_delay=delay, num_bytes=len(text), _judge=judge, _names=tuple(names))


class Get(Protocol):
    """Fetches the start of a text: its status and up to `max_bytes` bytes; Failed where there is no answer."""

    def __call__(self, url: str, *, max_bytes: int, max_redirects: int) -> Awaitable[tuple[int, bytes]]: ...


class Robots:
    """The robots.txt files of a run; belongs to one event loop."""

    def __init__(self, get: Get, *, user_agent: str, retries: int = 1, pool: Executor | None = None) -> None:
        self._get, self._names, self._retries, self._pool = get, names_in(user_agent), retries, pool
        self._known: OrderedDict[str, tuple[float, Rules | Failed]] = OrderedDict()  # until when, least used first
        self._num_bytes = 0
        self._asked: dict[str, asyncio.Task[Rules]] = {}

    def known(self, address: URL) -> Rules | None:
        """The rules of a URL's site as far as they are known: None where it has yet to be asked.

        Failed where they forbid the URL (`robots`) or the site would not tell them (`robots-unreachable`).
        """
        site = origin(address)
        until, rules = self._known.get(site, (0.0, NO_RULES))
        if until <= time.monotonic():
            return None
        self._known.move_to_end(site)
        if isinstance(rules, Failed):
            raise Failed(rules.code, rules.reason)
        return _allowing(rules, address)

    async def check(self, address: URL) -> Rules:
        """As `known`, once the site has been asked; also Failed where there is no site to ask."""
        rules = self.known(address)
        if rules is not None:
            return rules
        site = origin(address)
        task = self._asked.get(site)
        if task is None:
            task = self._asked[site] = asyncio.create_task(self._ask(site))
            task.add_done_callback(lambda done: self._answered(site, done))
        # whoever asked first may be cut off; the others still wait
        return _allowing(await asyncio.shield(task), address)

    async def close(self) -> None:
        """End what is under way."""
        tasks = list(self._asked.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _answered(self, site: str, task: asyncio.Task[Rules]) -> None:
        self._asked.pop(site, None)
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            self._keep(site, float("inf"), task.result())
        elif isinstance(error, Failed) and error.code not in _NO_SITE:
            self._keep(site, time.monotonic() + max(_UNREACHABLE_SECONDS, error.retry_after), error)

    def _keep(self, site: str, until: float, found: Rules | Failed) -> None:
        old = self._known.pop(site, None)
        for gone in (old,) if old else ():
            self._num_bytes -= _weight(site, gone[1])
        self._known[site] = (until, found)
        self._num_bytes += _weight(site, found)
        while self._num_bytes > _KEPT_BYTES and len(self._known) > 1:
            name, (_, gone_rules) = self._known.popitem(last=False)
            self._num_bytes -= _weight(name, gone_rules)

    async def _ask(self, site: str) -> Rules:
        for retry in range(self._retries + 1):
            if retry:
                await asyncio.sleep(0.5 * 2**retry)
            try:
                status, data = await self._get(f"{site}/robots.txt", max_bytes=MAX_BYTES, max_redirects=MAX_REDIRECTS)
            except Failed as failed:
                if failed.code in _NO_SITE:
                    raise
                if failed.code in ("redirects", "bad-answer", "empty"):
                    return NO_RULES  # RFC 9309, 2.3.1.3: it can't be had, so it doesn't ask for anything
                last = Failed("robots-unreachable", f"{failed.code}: {failed.reason}", retry_after=failed.retry_after)
                continue
            if 200 <= status < 300:
                text = data.decode("utf-8-sig", "replace")
                if len(data) < _LONG or self._pool is None:
                    return parse(text, self._names)
                return await asyncio.get_running_loop().run_in_executor(self._pool, parse, text, self._names)
            if status != 429 and status < 500:
                return NO_RULES
            last = Failed("robots-unreachable", f"HTTP {status}")
        raise last


def _weight(site: str, found: Rules | Failed) -> int:
    return 500 + len(site) + (found.num_bytes if isinstance(found, Rules) else 0)


def origin(address: URL) -> str:
    """Scheme, host and port of a URL: `https://example.org`, `http://example.org:8080`."""
    return f"{address.scheme}://{address.host_port_subcomponent}"


def _allowing(rules: Rules, address: URL) -> Rules:
    if not rules.allows(str(address)):
        raise Failed("robots", f"{origin(address)}/robots.txt")
    return rules


# ---- what an answer's header says


def opt_out(headers: Mapping[str, str], names: Sequence[str] = (PRODUCT,)) -> str:
    """Why an answer's header withholds it from AI training, or "" where it doesn't.

    `X-Robots-Tag` with noai, noimageai, noimageindex, noindex or none, for everyone or for one of our names (any
    case, several headers, lists); `TDM-Reservation: 1` (W3C TDMRep). `headers` is a multi-mapping or a plain one.
    """
    get_all: Callable[[str], list[str]] = getattr(headers, "getall", None) or (lambda name: [headers[name]])
    if "X-Robots-Tag" in headers:
        for line in get_all("X-Robots-Tag"):
            found = _forbidden(line, names)
            if found:
                return f"X-Robots-Tag: {found}"
    if "TDM-Reservation" in headers and any(v.strip() == "1" for v in get_all("TDM-Reservation")):
        policy = get_all("TDM-Policy")[0].strip() if "TDM-Policy" in headers else ""
        return f"TDM-Reservation: 1{f', its policy is {policy}' if policy else ''}"
    return ""


def _forbidden(line: str, names: Sequence[str]) -> str:
    """The first directive of one X-Robots-Tag that forbids and is meant for us."""
    ours = True  # until a robot's name says for whom the rest is meant
    for part in line.lower().split(","):
        name, colon, rest = part.strip().partition(":")
        if colon and name.strip() in _WITH_VALUE:
            continue
        if colon and name.strip() not in _NO_AI:
            ours = name.strip() in ("*", *names)
            part = "" if rest.partition(":")[0].strip() in _WITH_VALUE else rest
        if ours:
            for word in part.split():
                if word in _NO_AI:
                    return word
    return ""
