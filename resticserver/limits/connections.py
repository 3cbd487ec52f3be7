"""
How many connections there may be, in all and from one address. Knows no sockets: the
code that accepts connections asks it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..access.proxies import UNIX, TrustedProxies
from ..access.throttle import network_of
from ..telemetry.limited import MAX_CONNECTIONS, MAX_CONNECTIONS_PER_ADDRESS, Limited


class ConnectionLimits:
    """
    Counts connections. For IPv6 an address is a /64, which one customer has.

    @param most: how many there may be; 0 for no limit.
    @param most_per_address: how many there may be from one address; 0 for no limit. Trusted proxies and unix sockets have no
        limit by address: many clients share them.
    """

    def __init__(self, most: int, most_per_address: int, proxies: TrustedProxies, limited: Limited) -> None:
        self._most = most
        self._most_per_address = most_per_address
        self._proxies = proxies
        self._limited = limited
        self._number = 0
        self._places: Counter[str] = Counter()

    def admit(self, address: str) -> bool:
        """
        Count one more connection, if that is allowed. Else it is to be closed.

        @param address: the other end of its socket; L{UNIX} for a unix socket.
        """
        if self._most and self._number >= self._most:
            self._limited.limited(
                MAX_CONNECTIONS, f"--max-connections: there are {self._number}; one more from {address} was closed"
            )
            return False
        place = self._place_of(address)
        if place is not None:
            number = self._places[place]
            if number >= self._most_per_address:
                self._limited.limited(
                    MAX_CONNECTIONS_PER_ADDRESS,
                    f"--max-connections-per-address: there are {number} from {place}; one more was closed",
                )
                return False
            self._places[place] += 1
        self._number += 1
        return True

    def release(self, address: str) -> None:
        """A connection that was admitted has ended."""
        self._number -= 1
        place = self._place_of(address)
        if place is not None:
            self._places[place] -= 1
            if not self._places[place]:
                del self._places[place]

    def _place_of(self, address: str) -> str | None:
        """What counts as one address; C{None} if there is no limit for it."""
        if not self._most_per_address or address == UNIX or self._proxies.trusts(address):
            return None
        return network_of(address)


class NumberedConnections:
    """L{ConnectionLimits} for connections that are known by numbers."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._addresses: dict[int, str] = {}

    def admit(self, number: int, address: str | None) -> bool:
        """Count one more connection, if that is allowed. C{address} is C{None} if its client is gone already."""
        if address is None or not self._limits.admit(address):
            return False
        self._addresses[number] = address
        return True

    def release(self, numbers: Iterable[int]) -> None:
        """Connections that were admitted have ended."""
        for number in numbers:
            self._limits.release(self._addresses.pop(number))
