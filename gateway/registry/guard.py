"""Which addresses a registry may send the gateway to.

A registry names other hosts: the realm of its token server and the targets of its redirects. A hostile one
names the machine's own network. So everything that is not the configured registry itself must resolve to a
public address or stand on the administrator's allow-list, and it is the resolved address that is checked and
connected to.

``ipaddress.is_global`` alone is not the rule: it is true for translation prefixes that carry any IPv4 address
inside (64:ff9b::/96, 2002::/16), for anycast relays and for multicast, and its answer differs between Python
versions.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from functools import lru_cache

from aiohttp.abc import AbstractResolver, ResolveResult

from gateway.errors import AddressRefused, ConfigurationError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_DENIED: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "192.88.99.0/24",  # 6to4 relay anycast, RFC 7526
        "100.64.0.0/10",  # carrier-grade NAT, RFC 6598
        "168.63.129.16/32",  # a cloud's host agent behind a public number
        "64:ff9b::/96",  # NAT64, RFC 6052: any IPv4 address inside
        "64:ff9b:1::/48",  # local-use NAT64, RFC 8215
        "2001::/23",  # IETF protocol assignments, with Teredo (RFC 4380): embedded IPv4
        "2001:db8::/32",  # documentation, RFC 3849
        "2002::/16",  # 6to4, RFC 3056: any IPv4 address inside
        "3fff::/20",  # documentation, RFC 9637
    )
)
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
# Forms of an IPv4 address in its last 32 bits: mapped, translated (RFC 2765), and the deprecated compatible
# form.
_EMBEDDING = tuple(ipaddress.IPv6Network(text) for text in ("::ffff:0:0/96", "::ffff:0:0:0/96", "::/96"))


def unwrap(address: Address) -> Address:
    """The IPv4 address that ``address`` stands for, where it embeds one; else ``address`` itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in {ipaddress.IPv6Address("::"), ipaddress.IPv6Address("::1")}:
            return address
        if any(address in network for network in _EMBEDDING):
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def is_public(address: Address) -> bool:
    """Whether ``address`` is a unicast address of the public Internet."""
    address = unwrap(address)
    if isinstance(address, ipaddress.IPv6Address) and (address not in _GLOBAL_UNICAST or address.scope_id):
        return False
    if address.is_multicast or address.is_reserved or address.is_unspecified or not address.is_global:
        return False
    return not any(address in network for network in _DENIED if network.version == address.version)


class AllowList:
    """The administrator's exceptions.

    An entry is ``host``, ``host:port``, ``[v6]:port``, an address, or a network in CIDR form. A host's entry
    covers whatever it resolves to; a network covers every name that resolves into it. Raises
    ``ConfigurationError`` for an entry that is none of these.
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        self._networks: list[Network] = []
        self._hosts: set[tuple[str, int | None]] = set()
        for entry in entries:
            self._add(entry.strip())

    def _add(self, entry: str) -> None:
        try:
            self._networks.append(ipaddress.ip_network(entry.strip("[]"), strict=True))
        except ValueError:
            host, port = _split_host_port(entry)
            if not host or "/" in host or "*" in host:
                raise ConfigurationError(
                    f"allowed address {entry!r} is no host, host:port or network (as 10.0.0.0/8)"
                ) from None
            self._hosts.add((host, port))

    def covers_host(self, host: str, port: int) -> bool:
        """Whether the name itself is allowed."""
        name = canonical_host(host)
        return (name, port) in self._hosts or (name, None) in self._hosts

    def covers_address(self, address: Address) -> bool:
        """Whether a network of the list holds the address."""
        address = unwrap(address)
        return any(address in network for network in self._networks if network.version == address.version)

    def permits(self, host: str, port: int, address: Address) -> bool:
        """The decision: may ``host:port``, which resolved to ``address``, be connected to?"""
        return is_public(address) or self.covers_host(host, port) or self.covers_address(address)


class GuardedResolver(AbstractResolver):
    """Resolves through the system and hands on only the addresses that ``allowed`` permits.

    Raises ``AddressRefused`` when none is left. The connector connects to exactly the addresses returned
    here, so a name that answers differently the second time (DNS rebinding) gains nothing.
    """

    def __init__(self, allowed: AllowList, resolver: AbstractResolver) -> None:
        self._allowed = allowed
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The permitted addresses of ``host``."""
        found = await self._resolver.resolve(host, port, family)
        kept = [
            item for item in found if self._allowed.permits(host, port, ipaddress.ip_address(item["host"]))
        ]
        if not kept:
            raise refusal(host, port)
        return kept

    async def close(self) -> None:
        await self._resolver.close()


@lru_cache(maxsize=1024)
def literal_address(host: str) -> Address | None:
    """``host`` as an address where it is one (with or without brackets), else None."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


@lru_cache(maxsize=1024)  # on the way of every request, and parsing an address is slow
def canonical_host(host: str) -> str:
    """One spelling of a host: lower case, no final dot, no brackets, addresses in their shortest form."""
    name = host.lower().rstrip(".")
    address = literal_address(name)
    return str(address) if address else name


def refusal(host: str, port: int) -> AddressRefused:
    """The error for a host that may not be connected to. It says what to do, and not what the address is."""
    return AddressRefused(
        f"{host}:{port} is not a public address, and a registry named it; "
        "put it on the list of allowed addresses if it belongs to that registry"
    )


def _split_host_port(entry: str) -> tuple[str, int | None]:
    if entry.startswith("["):
        host, _, rest = entry[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        host, _, port = entry.partition(":")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):  # noqa: PLR2004
        raise ConfigurationError(f"allowed address {entry!r}: {port!r} is not a port")
    return canonical_host(host), int(port) if port else None
