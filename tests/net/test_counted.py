"""
Factories that count connections, and refuse some.
"""

from __future__ import annotations

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from resticserver.access.proxies import TrustedProxies
from resticserver.limits.connections import ConnectionLimits
from resticserver.net.counted import CountingFactory, LimitedFactory
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


class LimitedFactoryTests(SynchronousTestCase):
    """L{LimitedFactory}."""

    def test_addresses(self) -> None:
        """No protocol for one too many; a unix socket has no address; IPv4 on an IPv6 socket is IPv4."""
        limits = ConnectionLimits(4, 1, TrustedProxies.parse(("none",)), Limited(Clock()))
        factory = LimitedFactory(Factory.forProtocol(Protocol), limits)
        one = factory.buildProtocol(IPv4Address("TCP", "192.0.2.1", 4711))
        self.assertIsNone(factory.buildProtocol(IPv6Address("TCP", "::ffff:192.0.2.1", 4711)))
        unix = [factory.buildProtocol(UNIXAddress("")) for _ in range(3)]
        self.assertNotIn(None, unix)
        self.assertIsNone(factory.buildProtocol(UNIXAddress("")))
        one.connectionLost(connectionDone)
        self.assertIsNotNone(factory.buildProtocol(IPv6Address("TCP", "::ffff:192.0.2.1", 4711)))
