"""Which internet addresses a fetch may connect to, and a resolver that gives out no others.

A table is other people's data: a URL in it may point at the reader's own router, printer or cloud metadata.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from aiohttp.abc import AbstractResolver, ResolveResult

if TYPE_CHECKING:
    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# IPv6 networks whose last 32 bits are an IPv4 address: NAT64, its local kin, compatible, translated (SIIT)
_EMBEDS = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96")))
_ISATAP = (0x0000_5EFE, 0x0200_5EFE)  # bits 64..95 of an ISATAP address, in any network
_METADATA = frozenset(
    {
        ipaddress.ip_address("169.254.169.254"),
        ipaddress.ip_address("fd00:ec2::254"),
        ipaddress.ip_address("100.100.100.200"),
    }
)
_LOOKUPS = 32  # look-ups at a time: they block a thread each, some for many seconds
_FOUND_SECONDS, _MISSING_SECONDS = 300.0, 60.0
_MANY_NAMES = 100_000


class PrivateAddress(OSError):
    """A host whose every address is private, local or otherwise not of the public internet."""


@lru_cache(maxsize=65_536)
def is_allowed(address: str, *, private: bool = False) -> bool:
    """Whether a fetch may go to an address (as text): a public one, also once unwrapped from IPv6.

    `private` lets the reader's own networks in (loopback, 10/8, 192.168/16, fc00::/7, ...), but never
    link-local, cloud metadata, multicast or reserved addresses. False for what can't be parsed.
    """
    try:
        ip = ipaddress.ip_address(address.split("%", 1)[0])
    except ValueError:
        return False
    return all(_is_allowed(each, private) for each in _unwrapped(ip))


def _is_allowed(ip: Address, private: bool) -> bool:
    if ip.is_multicast or ip.is_link_local or ip.is_unspecified or ip in _METADATA:
        return False
    if ip.is_loopback:
        return private
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.is_site_local or (ip.is_private and not ip.is_reserved):
            return private
        return ip.is_global
    if ip.is_reserved:
        return False
    return ip.is_global or private


def _unwrapped(ip: Address) -> list[Address]:
    """The IPv4 address inside an IPv6 one, and the outer one where the inner is not all of it; else the address.

    Mapped, compatible, translated, NAT64, 6to4, Teredo and ISATAP forms.
    """
    if isinstance(ip, ipaddress.IPv4Address):
        return [ip]
    inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
    if ip.ipv4_mapped is not None or any(ip in network for network in _EMBEDS):
        return [inner]
    if ip.sixtofour is not None:
        return [ip, ip.sixtofour]
    if ip.teredo is not None:
        return [ip, *ip.teredo]
    if (int(ip) >> 32) & 0xFFFF_FFFF in _ISATAP:
        return [ip, inner]
    return [ip]


def is_literal(host: str) -> bool:
    """Whether a host is an IP address in its plain form, which no resolver is asked for."""
    try:
        ipaddress.ip_address(host.split("%", 1)[0].strip("[]"))
    except ValueError:
        return False
    return True


def plain(host: str) -> str:
    """A host as it is connected to: an address in any spelling becomes its plain form, a name stays a name.

    `0x7f.1`, `2130706433`, `0177.0.0.1` and `127.0.0.1.` are 127.0.0.1, as browsers and C libraries read them.
    Raises ValueError for a host that looks like an address and is none, and for characters that no host has.
    """
    host = host.lower()
    if ":" in host:
        return str(ipaddress.IPv6Address(host.strip("[]")))  # with a zone it is no public address: refused as such
    name = host.removesuffix(".")
    if not name or len(name) > 253 or not _HOST.fullmatch(name):
        raise ValueError(f"{host[:80]!r} is no host")
    last = name.rpartition(".")[2]
    if not (last.isdigit() or _HEX.fullmatch(last)):
        return name
    parts = [_number(part) for part in name.split(".")]
    if len(parts) > 4 or any(part > 255 for part in parts[:-1]) or parts[-1] >= 256 ** (5 - len(parts)):
        raise ValueError(f"{host[:80]!r} is no address")
    value = parts[-1] + sum(part << (24 - 8 * i) for i, part in enumerate(parts[:-1]))
    return str(ipaddress.IPv4Address(value))


_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_HEX = re.compile(r"0x[0-9a-f]*")


def _number(text: str) -> int:
    """Decimal, octal after 0, hexadecimal after 0x."""
    if _HEX.fullmatch(text):
        return int(text[2:] or "0", 16)
    return int(text, 8 if len(text) > 1 and text.startswith("0") else 10)


# mail, shells, databases and the like: a web address that leads there is an attempt to talk to them
# fmt: off
_OTHER_SERVICES = frozenset({
    7, 9, 13, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 79, 110, 111, 113, 119, 123, 135, 137, 139, 143, 161, 179,
    389, 427, 445, 465, 512, 513, 514, 515, 526, 530, 531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993,
    995, 1719, 1720, 1723, 2049, 3306, 3389, 3659, 4045, 4190, 5060, 5061, 5432, 6000, 6379, 6566, 6665, 6666, 6667,
    6668, 6669, 6679, 6697, 10080, 11211, 27017,
})
# fmt: on


def is_web_port(port: int | None) -> bool:
    """Whether a port may be a web server's: browsers refuse much the same ones."""
    return port is None or (0 < port < 65536 and port not in _OTHER_SERVICES)


def guarded_socket(*, allow_private: bool) -> Callable[[tuple[Any, ...]], socket.socket]:
    """Makes the sockets that connections go through, and none to an address that is not allowed.

    The last door: whatever a URL, a redirect or a resolver said, the address looked at here is the one that is
    connected to. Raises PrivateAddress.
    """

    def make(info: tuple[Any, ...]) -> socket.socket:
        family, kind, proto, _, address = info
        if not is_allowed(str(address[0]), private=allow_private):
            raise PrivateAddress(f"{address[0]} is not a public address")
        made = socket.socket(family, kind, proto)
        made.setblocking(False)
        return made

    return make


LookUp = Callable[[str, int, int, int], Sequence[tuple[Any, ...]]]
"""(host, port, family, kind) -> as `socket.getaddrinfo`; may block."""


class FilteringResolver(AbstractResolver):
    """Resolves names through the system and hands out public addresses only.

    The connection goes to what this returns, so nothing can change between the check and the use. Found
    addresses are remembered for five minutes, failures for one; whoever asks for a name that is being looked up
    waits for the same answer, and at most `_LOOKUPS` look-ups run at a time, each in a thread that no exit
    waits for.
    """

    def __init__(self, *, allow_private: bool, look_up: LookUp = socket.getaddrinfo) -> None:
        self._allow_private, self._look_up = allow_private, look_up
        self._known: OrderedDict[str, tuple[float, list[tuple[int, int, str]] | OSError]] = OrderedDict()
        self._asked: dict[str, asyncio.Task[list[tuple[int, int, str]] | OSError]] = {}
        self._room = asyncio.Semaphore(_LOOKUPS)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The public addresses of a host; PrivateAddress where it has only others, OSError where none."""
        known = self._known.get(host)
        found = known[1] if known is not None and known[0] > time.monotonic() else await self._shared(host)
        if isinstance(found, OSError):
            raise found.with_traceback(None)
        return [
            ResolveResult(
                hostname=host,
                host=ip,
                port=port,
                family=each,
                proto=proto,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for each, proto, ip in found
            if family in (socket.AF_UNSPEC, each)
        ]

    async def close(self) -> None:
        """Ask no more; threads in a look-up end with it."""
        for task in self._asked.values():
            task.cancel()

    async def _shared(self, host: str) -> list[tuple[int, int, str]] | OSError:
        task = self._asked.get(host)
        if task is None:
            task = self._asked[host] = asyncio.create_task(self._ask(host))
            task.add_done_callback(lambda _: self._asked.pop(host, None))
        # whoever asked first may be cut off by its time limit; the others still wait
        return await asyncio.shield(task)

    async def _ask(self, host: str) -> list[tuple[int, int, str]] | OSError:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sequence[tuple[Any, ...]] | OSError] = loop.create_future()

        def tell(infos: Sequence[tuple[Any, ...]] | OSError) -> None:
            if not answer.done():
                answer.set_result(infos)

        def ask() -> None:
            infos: Sequence[tuple[Any, ...]] | OSError
            try:
                infos = self._look_up(host, 0, socket.AF_UNSPEC, socket.SOCK_STREAM)
            except UnicodeError as error:  # a label no DNS name can have
                infos = socket.gaierror(socket.EAI_NONAME, f"{host[:80]}: {error}")
            except OSError as error:
                infos = error
            with suppress(RuntimeError):  # the loop is gone
                loop.call_soon_threadsafe(tell, infos)

        async with self._room:
            threading.Thread(target=ask, name="edkit-dns", daemon=True).start()
            infos = await answer
        found = infos if isinstance(infos, OSError) else self._allowed(host, infos)
        seconds = _MISSING_SECONDS if isinstance(found, OSError) else _FOUND_SECONDS
        self._known[host] = (time.monotonic() + seconds, found)
        self._known.move_to_end(host)
        while len(self._known) > _MANY_NAMES:
            self._known.popitem(last=False)
        return found

    def _allowed(self, host: str, infos: Sequence[tuple[Any, ...]]) -> list[tuple[int, int, str]] | OSError:
        allowed: list[tuple[int, int, str]] = []
        refused = ""
        for family, _, proto, _, address in infos:
            ip = str(address[0])
            if is_allowed(ip, private=self._allow_private):
                allowed.append((family, proto, ip))
            else:
                refused = ip
        if not allowed:
            return PrivateAddress(f"{host} leads to {refused}") if refused else OSError(f"{host} has no address")
        return allowed
