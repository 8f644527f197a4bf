"""Only public addresses are connected to, however they are written or wrapped."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edkit.gather.addresses import FilteringResolver, PrivateAddress, guarded_socket, is_allowed, is_literal, plain
from edkit.gather.request import Failed
from edkit.gather.web import checked


@pytest.mark.parametrize("address", ["8.8.8.8", "151.101.1.1", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_are_allowed(address: str) -> None:
    assert is_allowed(address)


LOCAL = ["127.0.0.1", "10.0.0.1", "172.16.5.4", "192.168.1.1", "100.64.0.1", "::1", "fd12::1", "fec0::1"]


@pytest.mark.parametrize("address", LOCAL)
def test_the_readers_own_networks_are_refused_unless_allowed(address: str) -> None:
    assert not is_allowed(address)
    assert is_allowed(address, private=True)


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "169.254.0.7", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "100.100.100.200"),
        *("0.0.0.0", "::", "224.0.0.1", "ff02::1", "240.0.0.1", "255.255.255.255", "not an address", ""),
    ],
)
def test_metadata_link_local_multicast_and_reserved_addresses_are_always_refused(address: str) -> None:
    assert not is_allowed(address)
    assert not is_allowed(address, private=True)


@pytest.mark.parametrize(
    "address",
    [
        "::ffff:127.0.0.1",  # mapped
        "::127.0.0.1",  # compatible
        "64:ff9b::7f00:1",  # NAT64
        "2002:7f00:1::",  # 6to4
        "2001:0:7f00:1::1",  # Teredo, server
        "::ffff:169.254.169.254",
    ],
)
def test_an_ipv4_address_is_found_inside_an_ipv6_one(address: str) -> None:
    assert not is_allowed(address)


def test_literals_are_told_from_names() -> None:
    assert is_literal("127.0.0.1") and is_literal("::1") and is_literal("[::1]")
    assert not is_literal("127.1") and not is_literal("0x7f000001") and not is_literal("example.org")


@pytest.mark.parametrize("host", ["localhost", "127.1", "0x7f000001", "2130706433"])
def test_names_and_odd_spellings_are_judged_by_what_they_resolve_to(host: str) -> None:
    async def resolve(allow: bool) -> list[str]:
        resolver = FilteringResolver(allow_private=allow)
        try:
            return [found["host"] for found in await resolver.resolve(host, 80)]
        finally:
            await resolver.close()

    with pytest.raises(PrivateAddress):
        asyncio.run(resolve(False))
    assert asyncio.run(resolve(True))


# ---- every private form, whatever it is wrapped in or however it is spelt

PRIVATE_NETWORKS = [
    *("10.0.0.0/8", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "100.64.0.0/10"),
    *("0.0.0.0/8", "224.0.0.0/4", "240.0.0.0/4", "192.0.2.0/24", "198.18.0.0/15"),
]


@st.composite
def private_ipv4(draw: st.DrawFn) -> ipaddress.IPv4Address:
    network = ipaddress.IPv4Network(draw(st.sampled_from(PRIVATE_NETWORKS)))
    return network[draw(st.integers(0, network.num_addresses - 1))]


WRAPPED = {
    "mapped": lambda v4, host: (0xFFFF << 32) | v4,
    "compatible": lambda v4, host: v4,
    "translated": lambda v4, host: (0xFFFF << 48) | v4,
    "NAT64": lambda v4, host: (0x64FF9B << 96) | v4,
    "6to4": lambda v4, host: (0x2002 << 112) | (v4 << 80) | host,
    "Teredo client": lambda v4, host: (0x2001 << 112) | (0x08080808 << 64) | (v4 ^ 0xFFFFFFFF),
    "Teredo server": lambda v4, host: (0x2001 << 112) | (v4 << 64) | (0x08080808 ^ 0xFFFFFFFF),
    "ISATAP": lambda v4, host: (0x26064700 << 96) | (0x5EFE << 32) | v4,
    "ISATAP, universal": lambda v4, host: (0x26064700 << 96) | (0x2005EFE << 32) | v4,
}


@pytest.mark.parametrize("form", WRAPPED)
@settings(max_examples=60, deadline=None)
@given(v4=private_ipv4(), host=st.integers(0, 2**80 - 1))
def test_a_private_ipv4_address_is_refused_in_every_ipv6_form(form: str, v4: ipaddress.IPv4Address, host: int) -> None:
    wrapped = ipaddress.IPv6Address(WRAPPED[form](int(v4), host))
    assert not is_allowed(str(v4))
    assert not is_allowed(str(wrapped)), wrapped
    assert not is_allowed(wrapped.exploded)


def spelt(v4: ipaddress.IPv4Address, way: int, num_parts: int) -> str:
    """An address in 1 to 4 parts, each decimal, octal or hexadecimal."""
    value = int(v4)
    parts = [value >> 24 - 8 * i & 255 for i in range(num_parts - 1)]
    parts.append(value & (1 << 8 * (5 - num_parts)) - 1)
    forms = ("{}", "0{:o}", "0x{:x}", "0X{:X}")
    return ".".join(forms[way >> 2 * i & 3].format(part) for i, part in enumerate(parts))


@settings(max_examples=200, deadline=None)
@given(v4=private_ipv4(), way=st.integers(0, 255), num_parts=st.integers(1, 4), dot=st.sampled_from(["", "."]))
def test_every_spelling_of_a_private_address_is_refused(
    v4: ipaddress.IPv4Address, way: int, num_parts: int, dot: str
) -> None:
    text = spelt(v4, way, num_parts) + dot
    assert plain(text) == str(v4)
    with pytest.raises(Failed) as refused:
        checked(f"http://{text}/1.jpg", allow_private=False)
    assert refused.value.code == "private-address"


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 255), st.integers(1, 4))
def test_a_spelling_never_makes_an_address_of_another(value: int, way: int, num_parts: int) -> None:
    v4 = ipaddress.IPv4Address(value)
    text = spelt(v4, way, num_parts)
    assert plain(text) == str(v4) == socket.inet_ntoa(socket.inet_aton(text))


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://127.1/", "private-address"),
        ("http://[::ffff:127.0.0.1]/", "private-address"),
        ("http://[::1]:8080/", "private-address"),
        ("http://[fe80::1%25eth0]/", "private-address"),
        ("http://１２７.０.０.１/", "private-address"),  # full-width digits
        ("http://127。0。0。1/", "private-address"),  # ideographic full stops
        ("http://%31%32%37.0.0.1/", "bad-url"),
        ("http://example.org@127.0.0.1/", "private-address"),
        ("http://user:pass@10.0.0.1/", "private-address"),
        ("http://256.1.1.1/", "bad-url"),
        ("http://1.2.3.4.5/", "bad-url"),
        ("http://0x/", "private-address"),  # 0.0.0.0
        ("http://example.org:25/", "bad-url"),
        ("http://example.org:6379/", "bad-url"),
        ("http://example.org:99999/", "bad-url"),
        ("http://exa mple.org/", "bad-url"),
        ("http://example.org\r\nX: y/", "bad-url"),
        ("http://-/", ""),
        ("http:///1.jpg", "bad-url"),
        ("gopher://example.org/", "bad-url"),
        ("http://" + "a." * 200 + "org/", "bad-url"),
    ],
)
def test_a_url_is_judged_by_the_host_it_would_connect_to(url: str, code: str) -> None:
    try:
        checked(url, allow_private=False)
        found = ""
    except Failed as failed:
        found = failed.code
    assert found == code


def test_names_and_passwords_of_a_url_are_not_sent_on_and_signatures_stay_as_they_are() -> None:
    assert str(checked("http://me:secret@example.org/a", allow_private=False)) == "http://example.org/a"
    signed = "https://example.org/a%2Fb?Signature=x%2By/z=="
    assert str(checked(signed, allow_private=False)) == signed
    assert str(checked("https://exämple.org/ä", allow_private=False)) == "https://xn--exmple-cua.org/%C3%A4"
    assert checked("http://134744072/", allow_private=False).host == "8.8.8.8"


def test_no_socket_is_made_to_an_address_that_is_not_allowed() -> None:
    make = guarded_socket(allow_private=False)
    for address in ("127.0.0.1", "169.254.169.254", "localhost", "::ffff:10.0.0.1"):
        with pytest.raises(PrivateAddress):
            make((socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 80)))
    made = make((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("8.8.8.8", 80)))
    assert not made.getblocking()
    made.close()


# ---- look-ups


class Names:
    """A name service: answers one after the other, counted."""

    def __init__(self, *answers: str | OSError, seconds: float = 0.0) -> None:
        self.answers, self.seconds = list(answers), seconds
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, family: int, kind: int) -> list[Any]:
        self.asked.append(host)
        time.sleep(self.seconds)
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        if isinstance(answer, OSError):
            raise answer
        return [(socket.AF_INET, kind, 6, "", (answer, port))]


async def ask(resolver: FilteringResolver, *hosts: str) -> list[Any]:
    try:
        return await asyncio.gather(*(resolver.resolve(host, 80) for host in hosts), return_exceptions=True)
    finally:
        await resolver.close()


def test_a_failed_look_up_is_remembered() -> None:
    names = Names(socket.gaierror(socket.EAI_NONAME, "no such name"))

    async def thrice() -> list[Any]:
        resolver = FilteringResolver(allow_private=False, look_up=names)
        return [(await ask(resolver, "no-such-host.invalid"))[0] for _ in range(3)]

    assert all(isinstance(found, OSError) for found in asyncio.run(thrice()))
    assert len(names.asked) == 1


def test_parallel_requests_for_a_name_share_one_look_up() -> None:
    names = Names("8.8.8.8", seconds=0.05)

    async def many() -> list[Any]:
        return await ask(FilteringResolver(allow_private=False, look_up=names), *["example.org"] * 50)

    assert {found[0]["host"] for found in asyncio.run(many())} == {"8.8.8.8"}
    assert names.asked == ["example.org"]


def test_a_name_that_changes_its_address_is_not_asked_again() -> None:
    names = Names("8.8.8.8", "127.0.0.1")

    async def twice() -> list[Any]:
        resolver = FilteringResolver(allow_private=False, look_up=names)
        return [(await ask(resolver, "rebinding.test"))[0][0]["host"] for _ in range(2)]

    assert asyncio.run(twice()) == ["8.8.8.8", "8.8.8.8"] and len(names.asked) == 1


def test_a_look_up_that_hangs_holds_up_its_own_name_only() -> None:
    def look_up(host: str, port: int, family: int, kind: int) -> list[Any]:
        time.sleep(10 if host == "slow.test" else 0)
        return [(socket.AF_INET, kind, 6, "", ("8.8.8.8", port))]

    async def both() -> str:
        resolver = FilteringResolver(allow_private=False, look_up=look_up)
        slow = asyncio.create_task(resolver.resolve("slow.test", 80))
        quick = await asyncio.wait_for(resolver.resolve("quick.test", 80), 8)
        slow.cancel()
        await resolver.close()
        return quick[0]["host"]

    began = time.monotonic()
    assert asyncio.run(both()) == "8.8.8.8" and time.monotonic() - began < 9
