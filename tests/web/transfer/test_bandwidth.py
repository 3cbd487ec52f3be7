"""
Transfers past the reactor's thread with a limit of bandwidth: nothing is lost, the limit is kept roughly, no thread waits.

A real site on a real port. How exactly a limit is kept is measured by C{benchmarks/bandwidth.py}.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time

from resticserver.access.policy import Policy
from resticserver.limits.bandwidth import BURST_S, Bandwidth, BothDirections
from resticserver.quota.admission import Admission
from resticserver.telemetry.record import Ending
from resticserver.threads.pools import Pools
from resticserver.web.authentication import NoAuthentication
from resticserver.web.routes import Api, Repositories
from resticserver.web.transfer import body as bodies

from ...support.client import read_reply
from .test_plain import BODY, MIB, DirectCase, TlsCase, head, real

#: Bytes a second.
RATE = 4 * MIB


class BandwidthTests(DirectCase):
    """Both directions, plain; all clients share the limit."""

    def setUp(self) -> None:
        super().setUp()
        self.both = BothDirections(Bandwidth(real, RATE), Bandwidth(real, RATE), lambda user, repository: None)
        self.addCleanup(self.both.up.stop)
        self.addCleanup(self.both.down.stop)
        repositories = Repositories(
            self.store, Pools(self.pool, self.pool, self.pool), Admission(), bandwidth=self.both
        )
        api = Api(NoAuthentication(), Policy(), repositories)
        self.site.resource = api.resource()

    def assert_took(self, bytes_: int, begun_s: float) -> None:
        """Not much less time than the limit wants, and not several times as much."""
        took_s = time.monotonic() - begun_s
        self.assertGreater(took_s, 0.9 * (bytes_ / RATE - BURST_S))
        self.assertLess(took_s, 5 * bytes_ / RATE)

    async def test_upload(self) -> None:
        """Whole, and not at once."""

        def talk(connection: socket.socket) -> int:
            connection.sendall(head(BODY) + BODY)
            return read_reply(connection, "POST").status

        begun_s = time.monotonic()
        self.assertEqual(200, await self.client(talk))
        self.assert_took(len(BODY), begun_s)
        self.assertEqual([BODY], list(self.stored().values()))
        self.assertIn(True, self.store.directly)

    async def test_download(self) -> None:
        """Whole, and not at once; what is behind it comes behind it."""
        get = self.store_body(BODY)

        def talk(connection: socket.socket) -> bytes:
            connection.sendall(get + b"GET /keys/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            with connection.makefile("rb") as replies:
                return replies.read()

        begun_s = time.monotonic()
        replies = await self.client(talk)
        self.assert_took(len(BODY), begun_s)
        answers = [answer.partition(b"\r\n\r\n")[2] for answer in replies.split(b"HTTP/1.1 200 OK\r\n")[1:]]
        self.assertEqual([BODY, b"[]"], answers)
        self.assertEqual([len(BODY), 2], [record.sent_bytes for record in self.records])

    async def test_through_the_reactor(self) -> None:
        """Where no transfer is possible, likewise."""
        self.patch(bodies, "duplicate_of", lambda request: None)
        get = self.store_body(BODY)
        other = BODY[::-1]

        def down(connection: socket.socket) -> bytes:
            connection.sendall(get)
            return read_reply(connection).body

        def up(connection: socket.socket) -> int:
            connection.sendall(head(other) + other)
            return read_reply(connection, "POST").status

        for talk, expected in ((down, BODY), (up, 200)):
            begun_s = time.monotonic()
            self.assertEqual(expected, await self.client(talk))
            self.assert_took(len(BODY), begun_s)

    async def test_pool_is_free(self) -> None:
        """While transfers wait for their grants, no thread of the pool does."""
        get = self.store_body(BODY)

        def talk(connection: socket.socket) -> int:
            connection.sendall(get)
            return len(read_reply(connection).body)

        clients = [self.client(talk) for _ in range(4)]
        await self.until(lambda: self.both.down._bucket is not None and self.both.down._bucket.usage("", 0).short)
        begun_s = time.monotonic()
        for _ in range(20):
            await self.pool.run(lambda: None)
        self.assertLess(time.monotonic() - begun_s, 1)
        self.assertEqual([len(BODY)] * 4, [await client for client in clients])

    async def test_lost(self) -> None:
        """A client that goes away while it waits: one record, nothing stored, and the limit is free for others."""
        get = self.store_body(BODY * 3)

        def down(connection: socket.socket) -> None:
            connection.sendall(get)
            connection.recv(1000)

        def up(connection: socket.socket) -> None:
            connection.sendall(head(BODY * 2) + BODY)

        await self.client(down)
        await self.client(up)
        await self.until(lambda: len(self.records) == 2)
        self.assertCountEqual([Ending.TRUNCATED, Ending.LOST], [record.ending for record in self.records])
        self.assertEqual(1, len(self.stored()))
        await self.test_upload_small()

    async def test_upload_small(self) -> None:
        """A body that is here with its head."""
        body = BODY[:1000]

        def talk(connection: socket.socket) -> int:
            connection.sendall(head(body) + body)
            return read_reply(connection, "POST").status

        self.assertEqual(200, await self.client(talk))

    async def test_stopped(self) -> None:
        """The server ends connections that wait."""
        get = self.store_body(BODY * 3)

        def talk(connection: socket.socket) -> int:
            connection.sendall(get)
            received = len(connection.recv(1000))
            real.callFromThread(self.site.abort_all)
            with contextlib.suppress(OSError):
                while piece := connection.recv(1 << 20):
                    received += len(piece)
            return received

        self.assertLess(await self.client(talk), 3 * len(BODY))
        await self.until(lambda: self.records)

    async def test_slow_client(self) -> None:
        """One that stops reading now and then gets all of it."""
        get = self.store_body(BODY)

        def talk(connection: socket.socket) -> int:
            connection.sendall(get)
            received = 0
            while received < len(BODY):
                received += len(connection.recv(100 << 10))
                time.sleep(0.01)
            return received

        self.assertGreater(await self.client(talk), len(BODY))


class TlsBandwidthTests(TlsCase, BandwidthTests):
    """The same over TLS."""

    async def test_slow_sender(self) -> None:
        """A client that sends a record at a time, with pauses."""
        body = BODY[: 400 << 10]

        def talk(connection: socket.socket) -> int:
            assert isinstance(connection, ssl.SSLSocket)
            connection.sendall(head(body))
            for begin in range(0, len(body), 10_000):
                connection.sendall(body[begin : begin + 10_000])
                time.sleep(0.005)
            return read_reply(connection, "POST").status

        self.assertEqual(200, await self.client(talk))
        self.assertEqual([body], list(self.stored().values()))
