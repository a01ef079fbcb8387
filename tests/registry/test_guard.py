"""Addresses that a registry may name, and those that it may not."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from aiohttp.abc import AbstractResolver
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import AddressRefused, ConfigurationError
from gateway.registry.guard import AllowList, GuardedResolver, canonical_host, is_public, unwrap

PUBLIC = ["1.1.1.1", "8.8.8.8", "104.18.0.1", "2606:4700::1111", "2a00:1450:4001::1", "::ffff:8.8.8.8"]
REFUSED = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:10.0.0.1",
    "::10.0.0.1",
    "64:ff9b::8.8.8.8",
    "64:ff9b::10.0.0.1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:0a00:0001::1",
    "2002:0808:0808::1",
    "3fff::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_are_public(text):
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", REFUSED)
def test_everything_else_is_not(text):
    assert not is_public(ipaddress.ip_address(text))


@given(st.integers(0, 2**32 - 1))
def test_an_ipv4_address_is_judged_alike_however_it_is_wrapped(number):
    plain = ipaddress.IPv4Address(number)
    mapped = ipaddress.IPv6Address(0xFFFF << 32 | number)
    assert unwrap(mapped) == plain
    assert is_public(mapped) == is_public(plain)
    assert not is_public(ipaddress.IPv6Address((0x64FF9B << 96) | number))
    assert not is_public(ipaddress.IPv6Address((0x2002 << 112) | (number << 80)))


@given(st.ip_addresses())
def test_the_rule_only_ever_narrows_the_standard_library_s(address):
    if is_public(address):
        assert unwrap(address).is_global
        assert not unwrap(address).is_multicast


@pytest.mark.parametrize(
    ("entry", "host", "port", "address", "permitted"),
    [
        ("10.0.0.0/8", "storage.corp", 443, "10.1.2.3", True),
        ("10.0.0.0/8", "storage.corp", 443, "11.0.0.1", True),
        ("10.0.0.0/8", "storage.corp", 443, "192.168.0.1", False),
        ("10.0.0.0/8", "x", 443, "::ffff:10.0.0.1", True),
        ("127.0.0.1", "127.0.0.1", 5000, "127.0.0.1", True),
        ("127.0.0.1:5000", "127.0.0.1", 5000, "127.0.0.1", True),
        ("127.0.0.1:5000", "127.0.0.1", 5001, "127.0.0.1", False),
        ("Auth.Corp", "auth.corp.", 443, "10.0.0.1", True),
        ("auth.corp", "evil.auth.corp", 443, "10.0.0.1", False),
        ("auth.corp:443", "auth.corp", 80, "10.0.0.1", False),
        ("[fd00::1]:5000", "fd00::1", 5000, "fd00::1", True),
        ("fd00::/8", "x", 1, "fd12::1", True),
    ],
)
def test_the_allow_list_takes_hosts_ports_and_networks(entry, host, port, address, permitted):
    assert AllowList([entry]).permits(host, port, ipaddress.ip_address(address)) is permitted


@pytest.mark.parametrize(
    "entry", ["", "10.0.0.1/8", "*.corp", "http://x/", "x:port", "x:70000", "10.0.0.0/99"]
)
def test_a_wrong_entry_is_a_configuration_error(entry):
    with pytest.raises(ConfigurationError, match="allowed address"):
        AllowList([entry])


def test_hosts_have_one_spelling():
    assert canonical_host("Example.COM.") == "example.com"
    assert canonical_host("[2001:DB8:0::1]") == "2001:db8::1"


class FixedResolver(AbstractResolver):
    def __init__(self, *addresses: str) -> None:
        self.addresses, self.closed = addresses, False

    async def resolve(self, host, port=0, family=socket.AF_INET):
        return [
            {"hostname": host, "host": item, "port": port, "family": family, "proto": 0, "flags": 0}
            for item in self.addresses
        ]

    async def close(self) -> None:
        self.closed = True


async def test_only_permitted_addresses_of_a_name_are_handed_on():
    resolver = GuardedResolver(AllowList(), FixedResolver("127.0.0.1", "8.8.8.8", "::1"))
    assert [item["host"] for item in await resolver.resolve("mixed.example", 443)] == ["8.8.8.8"]


async def test_a_name_with_private_addresses_alone_is_refused_without_naming_them():
    inner = FixedResolver("10.9.8.7")
    resolver = GuardedResolver(AllowList(), inner)
    with pytest.raises(AddressRefused) as caught:
        await resolver.resolve("rebinding.example", 443)
    assert "rebinding.example:443" in str(caught.value)
    assert "10.9.8.7" not in str(caught.value)
    await resolver.close()
    assert inner.closed
