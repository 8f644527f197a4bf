"""Only public addresses are connected to, however they are written or wrapped."""

from __future__ import annotations

import asyncio

import pytest

from edkit.gather.addresses import FilteringResolver, PrivateAddress, is_allowed, is_literal


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


def test_a_failed_look_up_is_remembered() -> None:
    async def twice() -> tuple[int, int]:
        resolver = FilteringResolver(allow_private=False)
        lookups = 0
        real = resolver._look_up

        async def counted(*args: object) -> object:
            nonlocal lookups
            lookups += 1
            return await real(*args)  # type: ignore[arg-type]

        resolver._look_up = counted  # type: ignore[method-assign,assignment]
        failures = 0
        for _ in range(3):
            try:
                await resolver.resolve("no-such-host.invalid", 80)
            except OSError:
                failures += 1
        await resolver.close()
        return lookups, failures

    assert asyncio.run(twice()) == (1, 3)
