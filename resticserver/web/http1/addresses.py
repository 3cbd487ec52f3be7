"""
Clients' addresses: from Twisted's objects to the text that logs and rules use.
"""

from __future__ import annotations

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

from ...access.proxies import plain_address


def address_text(address: IAddress | None) -> str:
    """A client's address for logs and rules. IPv4 is written as IPv4 also on an IPv6 socket; C{-} is a unix socket."""
    if isinstance(address, IPv4Address):
        return address.host
    if isinstance(address, IPv6Address):
        return plain_address(address.host)
    return "-" if isinstance(address, UNIXAddress) else "unknown"
