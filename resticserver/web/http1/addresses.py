"""
Clients' addresses as Twisted has them, in the form in which logs and rules have them.
"""

from __future__ import annotations

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

from ...access.proxies import plain_address


def address_text(address: IAddress | None) -> str:
    """A client's address for logs and rules: IPv4 in its own form also behind an IPv6 socket, C{-} for a unix socket."""
    if isinstance(address, IPv4Address):
        return address.host
    if isinstance(address, IPv6Address):
        return plain_address(address.host)
    return "-" if isinstance(address, UNIXAddress) else "unknown"
