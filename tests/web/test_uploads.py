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
from resticserver.errors import InsufficientStorage
from resticserver.quota.admission import Admission
from resticserver.quota.directory_locks import DirectoryLocks
from resticserver.sizes import Amount
from resticserver.storage.layout import Repository
from resticserver.targets import Target
from resticserver.web.authentication import NoAuthentication
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

    def settle(self, number: int, repository: Repository, cell: int, change: Amount) -> None:
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
