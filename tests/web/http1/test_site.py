"""
L{resticserver.web.http1.site}: the end of a site's connections. (Requests are test_channel's and test_api's.)
"""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from resticserver.web.http1.site import LAST_REQUEST_S

from ...support.memory import Bench, HeldPool, request

GET = request("GET", "/config")


class RetireTests(SynchronousTestCase):
    """L{RepositorySite.retire}: no hurry."""

    def setUp(self) -> None:
        self.pool = HeldPool()
        self.bench = Bench(self.mktemp(), pool=self.pool)

    def test_nobody(self) -> None:
        """Without connections it is over at once."""
        self.successResultOf(self.bench.site.retire())

    def test_idle(self) -> None:
        """A connection that waits for its client has one more answer, which says that it is the last."""
        used, fresh = self.bench.ask(GET), self.bench.connect()
        self.pool.release()
        retired = self.bench.site.retire()
        late = self.bench.connect()
        for connection in (used, fresh, late):
            self.assertFalse(connection.closed)
            connection.send(GET)
            self.pool.release()
            self.assertTrue(connection.closed)
            self.assertIn(b"Connection: close\r\n", connection.received.rpartition(b"HTTP/1.1 ")[2])
        self.assertEqual([404, 404], used.statuses())
        for connection in (used, fresh):
            connection.lose()
        self.assertNoResult(retired)
        late.lose()
        self.successResultOf(retired)

    def test_busy(self) -> None:
        """An answer that is on its way promises nothing new: its connection ends after the next one."""
        connection = self.bench.ask(GET)
        self.bench.site.retire()
        self.pool.release()
        self.assertEqual(([404], False), (connection.statuses(), connection.closed))
        connection.send(GET)
        self.pool.release()
        self.assertEqual(([404, 404], True), (connection.statuses(), connection.closed))

    def test_stop_meanwhile(self) -> None:
        """A stop closes what is idle; both are over when none is left."""
        connection = self.bench.connect()
        retired, drained = self.bench.site.retire(), self.bench.site.drain()
        self.assertFalse(connection.closed)
        self.bench.clock.advance(LAST_REQUEST_S)
        self.assertTrue(connection.closed)
        connection.lose()
        self.successResultOf(retired)
        self.successResultOf(drained)
