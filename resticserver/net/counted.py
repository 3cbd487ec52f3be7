"""
Protocol factories that count their connections, and refuse those that are too many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from ..access.proxies import UNIX, plain_address
from ..limits.connections import ConnectionLimits


class CountingFactory:
    """A protocol factory that calls C{ended} at the end of each connection."""

    noisy = False

    def __init__(self, factory: IProtocolFactory, ended: Callable[[], object]) -> None:
        self._factory = factory
        self._ended = ended

    def buildProtocol(self, address: Any) -> Any:
        """See C{twisted.internet.interfaces.IProtocolFactory}."""
        return calling_at_end(self._factory.buildProtocol(address), self._ended)


class LimitedFactory:
    """A protocol factory that closes connections that are too many, without a byte of TLS or HTTP."""

    noisy = False

    def __init__(self, factory: IProtocolFactory, limits: ConnectionLimits) -> None:
        self._factory = factory
        self._limits = limits

    def doStart(self) -> None:
        """See C{twisted.internet.interfaces.IProtocolFactory}."""
        self._factory.doStart()

    def doStop(self) -> None:
        """See C{twisted.internet.interfaces.IProtocolFactory}."""
        self._factory.doStop()

    def buildProtocol(self, address: Any) -> Any:
        """See C{twisted.internet.interfaces.IProtocolFactory}; C{address} is the socket's other end."""
        if isinstance(address, IPv4Address | IPv6Address):
            text = plain_address(address.host)
        else:
            text = UNIX if isinstance(address, UNIXAddress) else "unknown"
        if not self._limits.admit(text):
            return _Refused()
        return calling_at_end(self._factory.buildProtocol(address), lambda: self._limits.release(text))


class _Refused(Protocol):
    """
    A connection that is closed at once. (Without a protocol Twisted would close it, but not below TLS or the PROXY protocol of
    an endpoint string.)
    """

    transport: Any

    def connectionMade(self) -> None:
        """Twisted's call: the connection is there."""
        self.transport.abortConnection()


def calling_at_end(protocol: Any, ended: Callable[[], object]) -> Any:
    """
    Have C{ended} called at the end of a protocol's connection.

    @param protocol: of any class, so its C{connectionLost} is replaced on the object.
    @return: the protocol.
    """

    def connection_lost(reason: Failure = connectionDone) -> None:
        del protocol.connectionLost
        ended()
        protocol.connectionLost(reason)

    protocol.connectionLost = connection_lost
    return protocol
