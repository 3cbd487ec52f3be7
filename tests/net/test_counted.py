"""
Factories that count connections, and refuse some.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from resticserver.access.proxies import TrustedProxies
from resticserver.limits.connections import ConnectionLimits
from resticserver.net.counted import CountingFactory, LimitedFactory
from resticserver.net.proxy_protocol import ProxyProtocolFactory
from resticserver.telemetry.limited import Limited


class CountingFactoryTests(SynchronousTestCase):
    """L{CountingFactory}."""

    def test_ends(self) -> None:
        """Each protocol's end is counted once, and is the protocol's as before."""
        ends: list[str] = []

        class Ending(Protocol):
            def connectionLost(self, reason: Failure = connectionDone) -> None:
                ends.append("lost")

        counted = CountingFactory(Factory.forProtocol(Ending), lambda: ends.append("counted"))
        for protocol in [counted.buildProtocol(None) for _ in range(2)]:
            protocol.connectionLost(Failure(ValueError()))
            self.assertEqual(["counted", "lost"], ends)
            self.assertNotIn("connectionLost", vars(protocol))
            ends.clear()


def connected(factory: Any, address: Any) -> tuple[Any, bool]:
    """A connection's protocol, and whether it stays open."""
    protocol = factory.buildProtocol(address)
    transport = StringTransport()
    protocol.makeConnection(transport)
    return protocol, not transport.disconnected


class LimitedFactoryTests(SynchronousTestCase):
    """L{LimitedFactory}."""

    def test_addresses(self) -> None:
        """One too many is closed; a unix socket has no address; IPv4 on an IPv6 socket is IPv4."""
        limits = ConnectionLimits(4, 1, TrustedProxies.parse(("none",)), Limited(Clock()))
        factory = LimitedFactory(Factory.forProtocol(Protocol), limits)
        one, open_ = connected(factory, IPv4Address("TCP", "192.0.2.1", 4711))
        self.assertTrue(open_)
        self.assertFalse(connected(factory, IPv6Address("TCP", "::ffff:192.0.2.1", 4711))[1])
        self.assertEqual([True, True, True, False], [connected(factory, UNIXAddress(""))[1] for _ in range(4)])
        one.connectionLost(connectionDone)
        self.assertTrue(connected(factory, IPv6Address("TCP", "::ffff:192.0.2.1", 4711))[1])

    def test_within_others(self) -> None:
        """Also where a factory of Twisted's is around it."""
        limits = ConnectionLimits(1, 0, TrustedProxies.parse(()), Limited(Clock()))
        factory = ProxyProtocolFactory(LimitedFactory(Factory.forProtocol(Protocol), limits))
        address = IPv4Address("TCP", "192.0.2.1", 4711)
        one, open_ = connected(factory, address)
        self.assertTrue(open_)
        self.assertFalse(connected(factory, address)[1])
        one.connectionLost(connectionDone)
        self.assertTrue(connected(factory, address)[1])
