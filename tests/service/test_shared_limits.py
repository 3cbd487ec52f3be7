"""
Limits that several servers on one bucket share, as the quota keeper uses them: what is leased, counted, refused and given back.
The engine is in memory, time is a Clock for what is scheduled here, and the leases have the real one.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, cast

from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import InsufficientStorage, Unavailable
from resticserver.objects.engine import EngineError
from resticserver.objects.front_ends import Fence, LeaseEnded, Times
from resticserver.objects.leases import Leases
from resticserver.quota.ledger import Account
from resticserver.service.shared_limits import (
    COUNT_AGAIN_S,
    RENEW_S,
    TIDY_S,
    LeasedUpload,
    Scope,
    SharedLimit,
    SharedLimits,
)
from resticserver.sizes import LEAST_RESERVE_OBJECTS, Amount, Limit
from resticserver.storage.layout import Repository

from ..support.memory import HeldPool, InlinePool
from ..support.memory_engine import MemoryEngine

PREFIX = ".rest-server/quota/"
LAPTOP: Repository = ("alice", "laptop")
PHONE: Repository = ("alice", "phone")


class StartedPool(InlinePool):
    """A pool that runs jobs at once."""

    is_started = False

    def startService(self) -> None:
        """Start it."""
        self.is_started = True

    def stopService(self) -> None:
        """End it."""
        self.is_started = False


class FrontEnd:
    """
    One server: its limits, and how it counts.

    @ivar stored: what is in each repository; the same for all servers.
    @ivar totals: the repositories that were counted, in order.
    """

    def __init__(self, engine: MemoryEngine, stored: dict[Repository, Amount], **times: float) -> None:
        self.clock = Clock()
        self.stored = stored
        self.totals: list[Repository] = []
        self.pool = StartedPool()
        self.leases = Leases(engine, PREFIX, times=Times(**times))
        self.limits = SharedLimits(self.clock, self.leases, self, self.pool)
        self.limits.use(self)
        self.limits.startService()

    def repositories(self) -> list[Repository]:
        """All of them."""
        return list(self.stored)

    def repositories_of(self, user: str) -> list[Repository]:
        """Those in a user's folder."""
        return [repository for repository in self.stored if repository[:1] == (user,)]

    def total(self, repository: Repository) -> Deferred[Amount]:
        """What a count finds."""
        self.totals.append(repository)
        return succeed(self.stored.get(repository, Amount()))


def limit_of(scope: Scope, size_bytes: int | None = None, objects: int | None = None) -> SharedLimit:
    """A limit."""
    return SharedLimit(scope, Account("alice"), Limit(size_bytes, objects))


class SharedLimitsTests(SynchronousTestCase):
    """Two servers on one bucket."""

    def setUp(self) -> None:
        self.engine = MemoryEngine()
        self.stored: dict[Repository, Amount] = {LAPTOP: Amount(100, 1)}
        self.one, self.other = FrontEnd(self.engine, self.stored), FrontEnd(self.engine, self.stored)

    def run_now(self, work: Coroutine[Deferred[Any], Any, Any]) -> Any:
        """What work returns that waits for nothing."""
        return self.successResultOf(Deferred.fromCoroutine(work))

    def take(self, front_end: FrontEnd, limit: SharedLimit, size_bytes: int, above: bool = False) -> LeasedUpload:
        """An upload of one object."""
        upload = LeasedUpload([limit], above)
        self.run_now(front_end.limits.take(upload, size_bytes, 1))
        return upload

    def refused(self, front_end: FrontEnd, limit: SharedLimit, size_bytes: int, above: bool = False) -> str:
        """Why an upload is refused."""
        upload = LeasedUpload([limit], above)
        taken = Deferred.fromCoroutine(front_end.limits.take(upload, size_bytes, 1))
        self.assertEqual([], upload.bytes_held + upload.objects_held)
        return str(self.failureResultOf(taken, InsufficientStorage).value)

    def store(self, front_end: FrontEnd, limit: SharedLimit, size_bytes: int) -> None:
        """A whole upload to the laptop's repository."""
        upload = self.take(front_end, limit, size_bytes)
        stored = self.stored[LAPTOP]
        self.stored[LAPTOP] = Amount(stored.size_bytes + size_bytes, stored.objects + 1)
        front_end.limits.ended(upload, Amount(size_bytes, 1), certain=True)

    def test_nothing_without_an_upload(self) -> None:
        """A start sends nothing, and neither does time, nor the end."""
        self.one.clock.advance(2 * TIDY_S)
        self.run_now(self.one.limits.stopService())
        self.assertEqual([], self.engine.calls)
        self.assertFalse(self.one.pool.is_started)

    def test_bytes(self) -> None:
        """What is stored counts, through whichever server it came; the refusal says how much is left."""
        limit = limit_of(Scope(repository=LAPTOP), 1000)
        self.store(self.one, limit, 400)
        self.store(self.other, limit, 400)
        # What has ended is counted twice until the server that stored it has said so.
        for _ in range(2):
            self.other.clock.advance(TIDY_S)
        self.one.clock.advance(60)
        self.assertEqual(
            "quota of 1000 bytes for alice exceeded: upload of 101 bytes, 100 bytes left",
            self.refused(self.one, limit, 101),
        )
        self.assertIn("upload of 101 bytes, 100 bytes left", self.refused(self.other, limit, 101))
        self.store(self.one, limit, 100)
        self.assertEqual(1000, self.stored[LAPTOP].size_bytes)
        self.assertIn(", 0 bytes left", self.refused(self.other, limit, 1))

    def test_objects(self) -> None:
        """The number of objects is a limit of its own."""
        limit = limit_of(Scope(repository=LAPTOP), objects=2)
        self.store(self.one, limit, 1)
        self.assertEqual(
            "quota of 2 objects for alice exceeded: upload of 1 object, 0 left", self.refused(self.other, limit, 1)
        )

    def test_both(self) -> None:
        """An upload that one of its limits refuses takes nothing of the other."""
        limits = [limit_of(Scope(repository=LAPTOP), 1000), limit_of(Scope(), objects=1)]
        upload = LeasedUpload(limits, above=False)
        self.failureResultOf(Deferred.fromCoroutine(self.one.limits.take(upload, 900, 1)), InsufficientStorage)
        self.store(self.one, limits[0], 900)

    def test_user(self) -> None:
        """A user's limit is for all repositories in the folder, also for those that another server has made."""
        limit = limit_of(Scope(user="alice"), 1000)
        self.stored[PHONE] = Amount(500, 1)
        self.stored[("bob",)] = Amount(5000, 1)
        self.assertIn("400 bytes left", self.refused(self.one, limit, 401))
        self.assertEqual([LAPTOP, PHONE], self.one.totals)
        self.store(self.one, limit, 400)

    def test_server(self) -> None:
        """The server's limit is for everything."""
        self.stored[("bob",)] = Amount(500, 1)
        self.assertIn("400 bytes left", self.refused(self.one, limit_of(Scope(), 1000), 401))

    def test_growth(self) -> None:
        """An upload of unknown length takes more while it comes; what it does not store of that is given back."""
        limit = limit_of(Scope(repository=LAPTOP), 1000)
        upload = self.take(self.one, limit, 0)
        for _ in range(2):
            self.run_now(self.one.limits.take(upload, 400, 0))
        grown = Deferred.fromCoroutine(self.one.limits.take(upload, 400, 0))
        words = str(self.failureResultOf(grown, InsufficientStorage).value)
        self.assertEqual("quota of 1000 bytes for alice exceeded: upload of 1.17 KiB so far, 900 bytes left", words)
        self.stored[LAPTOP] = Amount(600, 2)
        self.one.limits.ended(upload, Amount(500, 1), certain=True)
        self.one.clock.advance(COUNT_AGAIN_S)
        self.store(self.one, limit, 400)
        self.assertIn("0 bytes left", self.refused(self.one, limit, 1))

    def test_above(self) -> None:
        """What pruning needs may use a reserve above the limit, and nothing else may."""
        limit = limit_of(Scope(repository=LAPTOP), 10_000, 1)
        self.stored[LAPTOP] = Amount(10_000, 1)
        self.assertIn("0 bytes left", self.refused(self.one, limit, 1))
        upload = self.take(self.one, limit, 100, above=True)
        self.assertIn("exceeded", self.refused(self.other, limit, 1, above=True))
        self.one.limits.ended(upload, Amount(), certain=True)
        for _ in range(2):
            self.one.clock.advance(TIDY_S)
        self.other.clock.advance(60)
        for _ in range(LEAST_RESERVE_OBJECTS):
            self.take(self.other, limit, 1, above=True)
        self.assertIn("of 1 object for alice", self.refused(self.other, limit, 1, above=True))

    def test_removed(self) -> None:
        """What was removed has room again, after a count that a refusal would need."""
        limit = limit_of(Scope(repository=LAPTOP), 1000)
        self.store(self.one, limit, 900)
        self.assertIn("0 bytes left", self.refused(self.one, limit, 1))
        self.stored[LAPTOP] = Amount(100, 1)
        self.assertIn("0 bytes left", self.refused(self.one, limit, 1), "it was counted a moment ago")
        self.one.clock.advance(60)
        self.store(self.one, limit, 900)

    def test_uncertain(self) -> None:
        """An upload that may have been stored counts as stored, until it certainly is over."""
        limit = limit_of(Scope(repository=LAPTOP), 1000)
        upload = self.take(self.one, limit, 900)
        self.one.limits.ended(upload, Amount(), certain=False)
        self.one.clock.advance(60)
        self.assertIn("0 bytes left", self.refused(self.one, limit, 901))
        quick = FrontEnd(self.engine, self.stored, grace_s=0.0)
        limit = limit_of(Scope(user="bob"), 900)
        upload = self.take(quick, limit, 900)
        quick.limits.ended(upload, Amount(), certain=False)
        quick.clock.advance(60)
        self.take(quick, limit, 900)

    def test_client_gone(self) -> None:
        """What is leased for a client that is gone by then is given back."""
        pool = HeldPool()
        self.one.limits._pool = cast(Any, pool)
        limit = limit_of(Scope(repository=LAPTOP), 1000)
        taken = Deferred.fromCoroutine(self.one.limits.take(LeasedUpload([limit], above=False), 900, 1))
        waiting = Deferred.fromCoroutine(self.one.limits.take(LeasedUpload([limit], above=False), 900, 1))
        taken.cancel()
        self.failureResultOf(taken, CancelledError)
        pool.release(20)
        self.successResultOf(waiting)

    def test_engine_is_silent(self) -> None:
        """Without an answer nothing is known, so the client has to try again."""
        limit = limit_of(Scope(repository=LAPTOP), 1000)

        def fail() -> None:
            raise EngineError()

        self.engine.before["put"] = [fail]
        upload = LeasedUpload([limit], above=False)
        taken = Deferred.fromCoroutine(self.one.limits.take(upload, 1, 1))
        self.failureResultOf(taken, Unavailable)
        self.store(self.one, limit, 900)
        self.assertIn("0 bytes left", self.refused(self.other, limit, 1))

    def test_fence(self) -> None:
        """What was leased may be stored as long as this server is known to be alive."""
        limit = limit_of(Scope(repository=LAPTOP), 1000)
        upload = self.take(self.one, limit, 100)
        until = self.one.limits.usable_until(upload)
        assert until is not None
        Fence(until).check()
        late = FrontEnd(self.engine, self.stored, usable_s=0.2)
        upload = self.take(late, limit, 100)
        until = late.limits.usable_until(upload)
        assert until is not None
        early = Fence(until._replace(running_s=0.0))
        self.assertRaises(LeaseEnded, early.check)
        early = Fence(until._replace(wall_s=0.0))
        self.assertRaises(LeaseEnded, early.check)
        self.assertIsNone(late.limits.usable_until(LeasedUpload([], above=False)))

    def test_given_up(self) -> None:
        """After the others have declared it dead, nothing that it had leased may be stored."""
        limit = limit_of(Scope(repository=LAPTOP), 1000)
        upload = self.take(self.one, limit, 100)
        self.engine.put(f"{PREFIX}front-ends/{self.one.leases.holder}.dead", b"")
        self.one.clock.advance(RENEW_S)
        self.assertRaises(LeaseEnded, self.one.limits.usable_until, upload)
        self.one.limits.ended(upload, Amount(), certain=True)
        self.one.limits.usable_until(self.take(self.one, limit, 100))

    def test_end(self) -> None:
        """A server that ends gives back what it has leased, and leaves no trace of itself."""
        limit = limit_of(Scope(repository=LAPTOP), 1000)
        self.store(self.one, limit, 100)
        self.run_now(self.one.limits.stopService())
        self.store(self.other, limit, 800)
        self.run_now(self.other.limits.stopService())
        self.assertEqual([], [key for key in self.engine.objects if "/front-ends/" in key])

    def test_unused(self) -> None:
        """What is not used for a minute or two is given back to the other servers."""
        limit = limit_of(Scope(repository=LAPTOP), 100_000)
        self.store(self.one, limit, 1)
        self.assertIn(" left", self.refused(self.other, limit, 99_899))
        for _ in range(2):
            self.one.clock.advance(TIDY_S)
        self.other.clock.advance(60)
        self.store(self.other, limit, 99_899)
        self.assertEqual(100_000, self.stored[LAPTOP].size_bytes)

    def test_counted_now_and_then(self) -> None:
        """What came past the servers is found by a count now and then."""
        limit = limit_of(Scope(repository=LAPTOP), 10_000)
        self.store(self.one, limit, 10)
        counts = len(self.one.totals)
        self.store(self.one, limit, 10)
        self.assertEqual(counts, len(self.one.totals))
        self.one.clock.advance(COUNT_AGAIN_S)
        self.store(self.one, limit, 10)
        self.assertEqual(counts + 1, len(self.one.totals))
