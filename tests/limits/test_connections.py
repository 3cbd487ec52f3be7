"""
How many connections there may be: in all, and from one address.
"""

from __future__ import annotations

from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from resticserver.access.proxies import UNIX, TrustedProxies
from resticserver.limits.connections import ConnectionLimits, NumberedConnections
from resticserver.telemetry.limited import Limited


class ConnectionLimitsTests(SynchronousTestCase):
    """L{ConnectionLimits}."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.counted: list[str] = []

    def limits(self, most: int, most_per_address: int, *trusted: str) -> ConnectionLimits:
        """Limits with trusted proxies; loopback, if none are named."""
        proxies = TrustedProxies.parse(trusted)
        return ConnectionLimits(most, most_per_address, proxies, Limited(self.clock, self.counted.append))

    def test_in_all(self) -> None:
        """Whatever their addresses; when one ends there is room for another."""
        limits = self.limits(3, 0)
        self.assertEqual([True] * 3, [limits.admit(address) for address in ("192.0.2.1", UNIX, "127.0.0.1")])
        self.assertFalse(limits.admit("192.0.2.2"))
        limits.release(UNIX)
        self.assertTrue(limits.admit("192.0.2.2"))
        self.assertFalse(limits.admit(UNIX))
        self.assertEqual(["max-connections"] * 2, self.counted)

    def test_by_address(self) -> None:
        """One address too many does not hinder another."""
        limits = self.limits(0, 2)
        self.assertEqual([True, True, False], [limits.admit("192.0.2.1") for _ in range(3)])
        self.assertTrue(limits.admit("192.0.2.2"))
        limits.release("192.0.2.1")
        self.assertEqual([True, False], [limits.admit("192.0.2.1") for _ in range(2)])
        self.assertEqual(["max-connections-per-address"] * 2, self.counted)
        for address in ("192.0.2.1", "192.0.2.1", "192.0.2.2"):
            limits.release(address)
        self.assertEqual({}, dict(limits._places))

    def test_networks(self) -> None:
        """One customer has a /64."""
        limits = self.limits(0, 1)
        self.assertTrue(limits.admit("2001:db8::1"))
        self.assertFalse(limits.admit("2001:db8::2"))
        self.assertTrue(limits.admit("2001:db8:0:1::1"))

    def test_shared_addresses(self) -> None:
        """Trusted proxies and unix sockets are many clients."""
        limits = self.limits(0, 1, "198.51.100.0/24")
        for address in ("198.51.100.7", UNIX):
            self.assertEqual([True] * 3, [limits.admit(address) for _ in range(3)])
        self.assertEqual([True, False], [limits.admit("127.0.0.1") for _ in range(2)])

    def test_log(self) -> None:
        """One line a minute, and how many more there were."""
        limits = self.limits(1, 0)
        with capturedLogs() as events:
            for _ in range(100):
                limits.admit("192.0.2.1")
            self.clock.advance(60)
        self.assertEqual(
            [
                "--max-connections: there are 1; one more from 192.0.2.1 was closed",
                "98 more times the limit max-connections was reached within 60 s; "
                "the last: --max-connections: there are 1; one more from 192.0.2.1 was closed",
            ],
            list(map(formatEvent, events)),
        )

    def test_numbered(self) -> None:
        """Known by numbers; a client that is gone already is no connection."""
        numbered = NumberedConnections(self.limits(2, 0))
        self.assertFalse(numbered.admit(1, None))
        self.assertEqual([True, True, False], [numbered.admit(number, "192.0.2.1") for number in (2, 3, 4)])
        numbered.release([2, 3])
        self.assertTrue(numbered.admit(5, "192.0.2.1"))
