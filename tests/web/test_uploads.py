"""
L{resticserver.web.uploads}: an upload ends once, and before its client hears of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from resticserver.access.policy import Policy
from resticserver.access.proxies import TrustedProxies
from resticserver.errors import InsufficientStorage
from resticserver.quota.admission import Admission
from resticserver.quota.directory_locks import DirectoryLocks
from resticserver.sizes import Amount
from resticserver.storage.layout import Repository
from resticserver.targets import Target
from resticserver.web.authentication import NoAuthentication
from resticserver.web.http1.options import SiteOptions
from resticserver.web.http1.request import DROP_S
from resticserver.web.http1.site import RepositorySite
from resticserver.web.routes import Api

from ..support.memory import Bench, Connection, HeldPool, request

CONTENT = b"x" * 1000
NAME = hashlib.sha256(CONTENT).hexdigest()
OTHER = "0" * 64


class WatchedQuota:
    """A quota of C{left_bytes} for all uploads; what is settled is noted with what the client has heard by then."""

    def __init__(self, left_bytes: int) -> None:
        self.left_bytes = left_bytes
        self.connection: Connection | None = None
        self.ends: list[tuple[Amount, bytes]] = []
        #: Fires when what was settled is booked, in another process.
        self.booked: Deferred[None] = succeed(None)

    async def reserve(self, user: str | None, target: Target, size_bytes: int) -> int:
        """Reserve."""
        if size_bytes > self.left_bytes:
            raise InsufficientStorage("no room")
        return 1

    async def grow(self, number: int, size_bytes: int) -> None:
        """Reserve more."""
        raise InsufficientStorage("no more room")

    is_shared = False

    async def fence(self, number: int) -> None:
        """Nothing to call."""

    def settle(self, number: int, repository: Repository, cell: int, change: Amount, certain: bool = True) -> None:
        """An upload has ended."""
        assert self.connection is not None
        self.ends.append((change, self.connection.received))

    async def settled(self) -> None:
        """Until everything is booked."""
        await self.booked

    def recount(self, repository: Repository) -> None:
        """Not asked for here."""
        raise AssertionError(repository)


class EndTests(SynchronousTestCase):
    """How an upload ends."""

    def begin(self, pool: Any = None) -> None:
        """A server, and a connection to it."""
        self.bench = Bench(self.mktemp(), pool=pool)
        self.bench.store.create_repository(("alice",))
        self.quota = WatchedQuota(10_000)
        admission = Admission(self.quota, DirectoryLocks())
        repositories = replace(self.bench.repositories, admission=admission)
        api = Api(NoAuthentication(), Policy(), repositories)
        site = RepositorySite(api.resource(), self.bench.clock, self.bench.records.append)
        self.connection = self.quota.connection = Connection(site)

    def chunked(self, name: str) -> bytes:
        """An upload of unknown length."""
        head = f"POST /alice/data/{name} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        return head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(CONTENT), CONTENT)

    def test_stored(self) -> None:
        """What is stored is settled before the answer."""
        self.begin()
        self.connection.send(request("POST", f"/alice/data/{NAME}", CONTENT))
        self.assertEqual([(Amount(1000, 1), b"")], self.quota.ends)
        self.assertEqual([200], self.connection.statuses())

    def test_wrong_content(self) -> None:
        """A refused upload's reservation is given back before the answer: a client may try again at once."""
        self.begin()
        self.connection.send(request("POST", f"/alice/data/{OTHER}", CONTENT))
        self.assertEqual([(Amount(), b"")], self.quota.ends)
        self.assertEqual([400], self.connection.statuses())

    def test_grown_too_large(self) -> None:
        """So it is where a quota refuses more in the middle of a body, and the file is removed in a pool."""
        pool = HeldPool()
        self.begin(pool)
        self.connection.send(self.chunked(NAME))
        for _ in range(20):
            if self.connection.received:
                break
            pool.release()
        self.assertEqual([507], self.connection.statuses())
        self.assertEqual([(Amount(), b"")], self.quota.ends)

    def test_booked_elsewhere(self) -> None:
        """Where another process books it, the answer waits for that."""
        self.begin()
        self.quota.booked = Deferred()
        self.connection.send(request("POST", f"/alice/data/{OTHER}", CONTENT))
        self.assertEqual([(Amount(), b"")], self.quota.ends)
        self.assertEqual(b"", self.connection.received)
        self.quota.booked.callback(None)
        self.assertEqual([400], self.connection.statuses())

    def test_no_repository(self) -> None:
        """And where there is no repository."""
        self.begin()
        self.connection.send(request("POST", f"/bob/data/{NAME}", CONTENT))
        self.assertEqual([(Amount(), b"")], self.quota.ends)
        self.assertEqual([404], self.connection.statuses())

    def test_client_gone(self) -> None:
        """A client that goes while its upload is stored: it ends once, when the job has ended, with what was stored."""
        pool = HeldPool()
        self.begin(pool)
        self.connection.send(request("POST", f"/alice/data/{NAME}", CONTENT))
        self.connection.lose()
        self.assertEqual([], self.quota.ends)
        pool.release(5)
        self.assertEqual([(Amount(1000, 1), b"")], self.quota.ends)
        self.assertEqual(1, len(self.bench.records))


class BehindProxyTests(SynchronousTestCase):
    """Proxies may lose an answer that comes before the end of the body."""

    LARGE = b"x" * 100_000

    def begin(self, proxies: tuple[str, ...] = ("192.0.2.7",), **headers: str) -> Connection:
        """An upload without a right, whose head and first bytes have come."""
        options = SiteOptions(proxies=TrustedProxies.parse(proxies))
        self.bench = Bench(self.mktemp(), policy=Policy(append_only=True, private_repos=True), options=options)
        connection = self.bench.connect()
        self.sent = request("POST", f"/alice/data/{OTHER}", self.LARGE, **headers)
        connection.send(self.sent[:30_000])
        return connection

    def test_refused_after_the_body(self) -> None:
        """The refusal waits for the rest of the body, none of which is kept."""
        connection = self.begin()
        self.bench.clock.advance(DROP_S / 2)
        self.assertEqual([], connection.statuses())
        connection.send(self.sent[30_000:])
        self.assertEqual([403], connection.statuses())
        self.assertFalse(connection.closed)
        connection.send(request("GET", "/alice/nothing"))
        self.assertEqual([403, 404], connection.statuses())
        self.assertEqual(len(self.LARGE), self.bench.records[0].received_bytes)

    def test_slow_body(self) -> None:
        """It does not wait for a slow one, which is then swallowed as without a proxy."""
        connection = self.begin()
        self.bench.clock.advance(DROP_S)
        self.assertEqual([403], connection.statuses())
        connection.send(self.sent[30_000:])
        connection.send(request("GET", "/alice/nothing"))
        self.assertEqual([403, 404], connection.statuses())

    def test_client_gone(self) -> None:
        """A client that goes meanwhile leaves one record and no timer that does anything."""
        connection = self.begin()
        connection.lose()
        self.bench.clock.advance(DROP_S)
        self.assertEqual(1, len(self.bench.records))
        self.assertEqual(b"", connection.received)

    def test_bad_chunk(self) -> None:
        """A body whose rest cannot be parsed ends the wait."""
        self.begin()
        connection = self.bench.connect()
        head = f"POST /alice/data/{OTHER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        connection.send(head + b"3\r\nabc\r\n")
        self.assertEqual([], connection.statuses())
        connection.send(b"no number\r\n")
        self.assertEqual([403], connection.statuses())
        self.assertTrue(connection.closed)

    def test_awaits_continue(self) -> None:
        """A client that waits for C{100 Continue} is refused at once."""
        self.begin()
        connection = self.bench.connect()
        connection.send(request("POST", f"/alice/data/{OTHER}", self.LARGE, Expect="100-continue")[:-100_000])
        self.assertEqual([403], connection.statuses())

    def test_without_proxy(self) -> None:
        """A client itself is answered at once."""
        self.assertEqual([403], self.begin(("192.0.2.8",)).statuses())
