"""
Trusted proxies, and the client's address as they report it.

Sources: RFC 7239 (C{Forwarded}); C{X-Forwarded-For} as nginx, HAProxy and Apache write it.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

#: The address of the client of a unix socket. It is trusted, because the file's mode decides which users can connect.
UNIX = "-"

_DEFAULT = ("127.0.0.0/8", "::1/128")

#: How many proxies are followed at most.
_MOST_HOPS = 32

#: An address as both headers write it, with or without a port: 192.0.2.1:80, [2001:db8::1]:80, 2001:db8::1.
_NODE = re.compile(r"\[(?P<v6>[^\]]*)\](?::\w+)?|(?P<v4>[0-9.]+)(?::\w+)?|(?P<bare>[0-9A-Fa-f:.]+)(?:%[\w.-]+)?")

#: A pair of a Forwarded element, or a separator of pairs (;) or elements (,).
_FORWARDED = re.compile(
    r'\s*(?:(?P<name>[\w!#$%&\'*+.^`|~-]+)=(?P<value>"(?:[^"\\]|\\.)*"|[^\s;,"]*)|(?P<separator>[;,]))'
)


@dataclass(frozen=True)
class TrustedProxies:
    """The networks of trusted proxies; unix sockets are always trusted."""

    networks: tuple[IPNetwork, ...]

    @classmethod
    def parse(cls, values: Sequence[str]) -> TrustedProxies:
        """
        From the values of C{--trusted-proxy}: networks or addresses. No values mean this machine's own, C{none} means none.

        @raise ValueError: one is neither.
        """
        networks = []
        for value in values or _DEFAULT:
            if value == "none":
                continue
            try:
                networks.append(ipaddress.ip_network(value))
            except ValueError as error:
                reason = str(error) if str(error).endswith("has host bits set") else "neither an address nor a network"
                raise ValueError(f"{value}: {reason}") from None
        return cls(tuple(networks))

    def describe(self) -> str:
        """For the log."""
        return ", ".join([*map(str, self.networks), "Unix sockets"])

    def trusts(self, address: str) -> bool:
        """Whether this is the address of a trusted proxy."""
        if address == UNIX:
            return True
        parsed = _parsed(address)
        return parsed is not None and any(parsed in network for network in self.networks)

    def client_address(self, peers: Sequence[str], x_forwarded_for: Sequence[bytes], forwarded: Sequence[bytes]) -> str:
        """
        The nearest address that is not trusted, since it may claim any addresses behind it; the farthest if all are trusted.

        C{X-Forwarded-For} is used if there is one, because most proxies write that and forward a C{Forwarded} unchanged.

        @param peers: the addresses of the connection, the nearest first.
        @param x_forwarded_for: the header's values, and those of C{Forwarded}, in their order.
        """
        address = peers[0]
        for address in peers:
            if not self.trusts(address):
                return address
        claims = _x_forwarded_for(x_forwarded_for) if x_forwarded_for else _forwarded(forwarded)
        for _, claim in zip(range(_MOST_HOPS), claims, strict=False):
            parsed = _parsed(_host_of(claim))
            if parsed is None:
                return address
            address = str(parsed)
            if not self.trusts(address):
                return address
        return address


def _x_forwarded_for(values: Iterable[bytes]) -> Iterator[str]:
    """The elements, the nearest first."""
    text = b",".join(values).decode("latin-1")
    while text:
        text, _, element = text.rpartition(",")
        yield element.strip()


def _forwarded(values: Iterable[bytes]) -> Iterator[str]:
    """The values of C{for}, the nearest first; none if the header is malformed."""
    text = b",".join(values).decode("latin-1")
    elements = [""]
    position = 0
    while position < len(text.rstrip()):
        pair = _FORWARDED.match(text, position)
        if pair is None:
            return
        position = pair.end()
        if pair["separator"] == ",":
            elements.append("")
        elif pair["name"] is not None and pair["name"].lower() == "for":
            elements[-1] = re.sub(r"\\(.)", r"\1", pair["value"][1:-1]) if pair["value"][:1] == '"' else pair["value"]
    yield from reversed(elements)


def _host_of(node: str) -> str:
    """An element without its port and brackets; any text for one that is no address (C{unknown}, C{_hidden})."""
    found = _NODE.fullmatch(node)
    return (found["v6"] or found["v4"] or found["bare"] or "") if found is not None else ""


def plain_address(text: str) -> str:
    """An address in its shortest form, without a scope, and IPv4 in its own form; any other text unchanged."""
    parsed = _parsed(text)
    return text if parsed is None else str(parsed)


def _parsed(text: str) -> IPAddress | None:
    """An address, IPv4 in its own form; C{None} for everything else. A scope (C{%eth0}) is cut off."""
    try:
        parsed = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (parsed.ipv4_mapped or parsed) if isinstance(parsed, ipaddress.IPv6Address) else parsed
