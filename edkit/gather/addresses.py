"""Which internet addresses a fetch may connect to, and a resolver that gives out no others.

A table is other people's data: a URL in it may point at the reader's own router, printer or cloud metadata.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from aiohttp.abc import AbstractResolver, ResolveResult

if TYPE_CHECKING:
    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_COMPATIBLE = ipaddress.IPv6Network("::/96")
_METADATA = frozenset(
    {
        ipaddress.ip_address("169.254.169.254"),
        ipaddress.ip_address("fd00:ec2::254"),
        ipaddress.ip_address("100.100.100.200"),
    }
)
_LOOKUPS = 32  # look-ups at a time: they block a thread each, some for many seconds
_FOUND_SECONDS, _MISSING_SECONDS = 300.0, 60.0


class PrivateAddress(OSError):
    """A host whose every address is private, local or otherwise not of the public internet."""


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
    """The IPv4 address inside an IPv6 one (mapped, compatible, 6to4, Teredo, NAT64), else the address."""
    if isinstance(ip, ipaddress.IPv4Address):
        return [ip]
    if ip.ipv4_mapped is not None:
        return [ip.ipv4_mapped]
    if ip in _NAT64 or ip in _COMPATIBLE:
        return [ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)]
    if ip.sixtofour is not None:
        return [ip, ip.sixtofour]
    if ip.teredo is not None:
        return [ip, *ip.teredo]
    return [ip]


def is_literal(host: str) -> bool:
    """Whether a host is an IP address in its plain form, which no resolver is asked for."""
    try:
        ipaddress.ip_address(host.split("%", 1)[0].strip("[]"))
    except ValueError:
        return False
    return True


class FilteringResolver(AbstractResolver):
    """Resolves names through the system and hands out public addresses only.

    The connection goes to what this returns, so nothing can change between the check and the use. Odd
    spellings of an address (`127.1`, `0x7f000001`) come here as names and are judged by what they resolve to.
    Failures are remembered for a minute, and at most `_LOOKUPS` look-ups run at a time.
    """

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._pool = ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="edkit-dns")
        self._known: dict[tuple[str, int], tuple[float, list[ResolveResult] | OSError]] = {}

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The public addresses of a host; PrivateAddress where it has only others, OSError where none."""
        now = time.monotonic()
        known = self._known.get((host, port))
        if known is None or known[0] < now:
            if len(self._known) > 100_000:
                self._known.clear()
            found = await self._look_up(host, port, family)
            seconds = _MISSING_SECONDS if isinstance(found, OSError) else _FOUND_SECONDS
            known = self._known[(host, port)] = (now + seconds, found)
        if isinstance(known[1], OSError):
            raise known[1].with_traceback(None)
        return known[1]

    async def close(self) -> None:
        """Let the threads go; those in a look-up end with it."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _look_up(self, host: str, port: int, family: socket.AddressFamily) -> list[ResolveResult] | OSError:
        loop = asyncio.get_running_loop()
        try:
            infos = await loop.run_in_executor(
                self._pool, lambda: socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
            )
        except UnicodeError as error:  # a label no DNS name can have
            return socket.gaierror(socket.EAI_NONAME, f"{host[:80]}: {error}")
        except OSError as error:
            return error
        allowed: list[ResolveResult] = []
        refused = ""
        for found_family, _, proto, _, address in infos:
            ip = str(address[0])
            if not is_allowed(ip, private=self._allow_private):
                refused = ip
                continue
            allowed.append(
                ResolveResult(
                    hostname=host,
                    host=ip,
                    port=int(address[1]),
                    family=found_family,
                    proto=proto,
                    flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                )
            )
        if not allowed:
            return PrivateAddress(f"{host} leads to {refused}")
        return allowed
