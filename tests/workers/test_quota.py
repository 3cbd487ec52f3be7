"""Quotas with workers: L{resticserver.workers.quota}, over the parent's L{QuotaKeeper}."""

from __future__ import annotations

import gc
import socket
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import InsufficientStorage, Unavailable
from resticserver.quota.directory_locks import DirectoryLocks, Key
from resticserver.service.recount import PATIENCE_S
from resticserver.sizes import Amount
from resticserver.storage.layout import Repository, cell_of
from resticserver.targets import Kind, Target
from resticserver.workers.ipc import IpcConnection
from resticserver.workers.messages import CloseDirectories, OpenDirectories
from resticserver.workers.quota import QuotaRequests, RemoteQuota, WorkerDirectoryLocks

from ..contract.store import id_of
from ..service.test_quota_keeper import ALICE, BOB, LAPTOP, AccountsCase, StepPool
from ..support.wires import StepReactor


class FakeWorkers:
    """The fences of some workers, and what they were told."""

    def __init__(self, number: int) -> None:
        self.directory_locks = [DirectoryLocks() for _ in range(number)]
        self.told: list[Any] = []

    def take(self, command: CloseDirectories | OpenDirectories) -> list[Key]:
        """What a worker reads."""
        self.told.append((type(command), command.repository, sorted(command.cells)))
        return [(command.repository, cell) for cell in command.cells]

    async def ask_all(self, question: Any) -> bool:
        """Close the directories of all."""
        assert type(question) is CloseDirectories
        keys = self.take(question)
        for closing in [
            Deferred.fromCoroutine(directory_locks.close(keys)) for directory_locks in self.directory_locks
        ]:
            await closing
        return True

    def tell_all(self, command: Any) -> None:
        """Open them."""
        assert type(command) is OpenDirectories
        keys = self.take(command)
        for directory_locks in self.directory_locks:
            directory_locks.open(keys)


class WorkerDirectoryLocksTests(SynchronousTestCase):
    """L{WorkerDirectoryLocks}."""

    def setUp(self) -> None:
        self.workers = FakeWorkers(2)
        self.directory_locks = WorkerDirectoryLocks(self.workers)

    def close(self, *keys: Key) -> Deferred[None]:
        """Close some fences."""
        return Deferred.fromCoroutine(self.directory_locks.close(list(keys)))

    def enter(self, worker: int, key: Key) -> Deferred[None]:
        """Somebody wants in."""
        return Deferred.fromCoroutine(self.workers.directory_locks[worker].enter(key))

    def test_all_workers(self) -> None:
        """It is closed when it is closed in all, for nobody who comes later, and open again in all."""
        self.successResultOf(self.enter(1, (ALICE, 3)))
        closing = self.close((ALICE, 3), (ALICE, 4))
        self.assertNoResult(closing)
        late = [self.enter(worker, (ALICE, cell)) for worker in range(2) for cell in (3, 4)]
        self.workers.directory_locks[1].leave((ALICE, 3))
        self.successResultOf(closing)
        for one in late:
            self.assertNoResult(one)
        self.directory_locks.open([(ALICE, 3), (ALICE, 4)])
        for one in late:
            self.successResultOf(one)
        self.assertEqual([(CloseDirectories, ALICE, [3, 4]), (OpenDirectories, ALICE, [3, 4])], self.workers.told)

    def test_several_repositories(self) -> None:
        """Keys are said by repository."""
        self.successResultOf(self.close((ALICE, 1), ((), 2), (ALICE, 3)))
        self.directory_locks.open([(ALICE, 1), ((), 2), (ALICE, 3)])
        commands = (CloseDirectories, OpenDirectories)
        expected = [(command, *which) for command in commands for which in ((ALICE, [1, 3]), ((), [2]))]
        self.assertEqual(expected, self.workers.told)

    def test_workers_that_begin(self) -> None:
        """What is closed, or about to be, is known for workers that begin meanwhile; after it is opened it is not."""
        self.assertEqual([], self.directory_locks.closed)
        self.successResultOf(self.enter(0, (ALICE, 3)))
        closing = self.close((ALICE, 3))
        self.assertEqual([(ALICE, 3)], self.directory_locks.closed)
        self.successResultOf(self.close((LAPTOP, 3)))
        self.workers.directory_locks[0].leave((ALICE, 3))
        self.successResultOf(closing)
        self.assertEqual([(ALICE, 3), (LAPTOP, 3)], self.directory_locks.closed)
        self.directory_locks.open([(ALICE, 3)])
        self.assertEqual([(LAPTOP, 3)], self.directory_locks.closed)
        self.directory_locks.open([(LAPTOP, 3)])
        self.assertEqual([], self.directory_locks.closed)


class WorkersCountTests(AccountsCase):
    """Counts, where workers serve."""

    def test_counts_behind_the_workers_fences(self) -> None:
        """Nothing is looked at while a worker is inside, and all is open at the end."""
        self.plant(ALICE, b"x" * 1000)
        workers = FakeWorkers(2)
        directory_locks = WorkerDirectoryLocks(workers)
        cell = cell_of("data", id_of(b"x" * 1000))
        self.successResultOf(Deferred.fromCoroutine(workers.directory_locks[1].enter((ALICE, cell))))
        self.start(1 << 40, directory_locks)
        self.assertFalse(self.quota_keeper._complete)
        workers.directory_locks[1].leave((ALICE, cell))
        self.assertTrue(self.quota_keeper._complete)
        self.assert_exact()
        self.assertEqual([], directory_locks.closed)
        for locks in workers.directory_locks:
            self.successResultOf(Deferred.fromCoroutine(locks.enter((ALICE, cell))))


class RemoteQuotaTests(AccountsCase):
    """L{RemoteQuota} and L{QuotaRequests}, with a wire between."""

    def setUp(self) -> None:
        super().setUp()
        self.clock = StepReactor()
        self.pool = StepPool()
        self.pool.inline = True
        self.start(1000)
        ends = socket.socketpair()
        handlers = QuotaRequests(self.quota_keeper).handlers("worker")
        self.parents = IpcConnection(
            self.clock, ends[0], "worker", handlers, lambda: self.quota_keeper.holder_gone("worker")
        )
        self.ipc = IpcConnection(self.clock, ends[1], "the parent", {}, lambda: None)
        for ipc in (self.parents, self.ipc):
            ipc.start()
            self.addCleanup(ipc.close)
        self.remote = RemoteQuota(self.ipc, True)

    def far(
        self, size_bytes: int, repository: Repository = ALICE, kind: str = "data", user: str | None = None
    ) -> Deferred[int]:
        """A worker asks for room."""
        name = "config" if kind == "config" else id_of(b"far")
        target = Target(repository, Kind.CONFIG if kind == "config" else Kind.OBJECT, kind, name)
        asked = Deferred.fromCoroutine(self.remote.reserve(user, target, size_bytes))
        self.clock.pump()
        return asked

    def grow(self, number: int, size_bytes: int) -> Deferred[None]:
        """A worker asks for more."""
        grown = Deferred.fromCoroutine(self.remote.grow(number, size_bytes))
        self.clock.pump()
        return grown

    def test_from_reserve_to_settle(self) -> None:
        """All that can be done here can be done from there."""
        number = self.successResultOf(self.far(100))
        self.assertTrue(number)
        self.assertEqual(Amount(100, 1), self.reserved())
        self.successResultOf(self.grow(number, 50))
        self.assertEqual(Amount(150, 1), self.reserved())
        self.remote.settle(number, ALICE, 5, Amount(120, 1))
        self.clock.pump()
        self.assertEqual((Amount(120, 1), Amount()), (self.used(), self.reserved()))
        self.assertEqual(120, self.quota_keeper.ledger.account(ALICE).sizes[5])
        self.remote.settle(0, ALICE, 5, Amount(-120, -1))
        self.clock.pump()
        self.assertEqual(Amount(), self.used())

    def test_settled(self) -> None:
        """L{RemoteQuota.settled} waits until the parent has booked what was settled, or is gone."""
        number = self.successResultOf(self.far(900))
        self.remote.settle(number, ALICE, 5, Amount())
        waiting = Deferred.fromCoroutine(self.remote.settled())
        self.assertNoResult(waiting)
        self.assertEqual(Amount(900, 1), self.reserved())
        self.clock.pump()
        self.successResultOf(waiting)
        self.assertEqual(Amount(), self.reserved())
        self.parents.close()
        waiting = Deferred.fromCoroutine(self.remote.settled())
        self.clock.pump()
        self.successResultOf(waiting)

    def test_every_kind(self) -> None:
        """Of every type, in every repository, and who asks makes a difference only where there is a rule."""
        for repository in ((), ALICE, LAPTOP, ("ü \udcff",)):
            for kind in ("data", "index", "keys", "locks", "snapshots", "config"):
                number = self.successResultOf(self.far(10, repository, kind, "alice"))
                self.assertEqual(Amount(10, 1), self.reserved())
                self.assertIn(repository, self.quota_keeper.ledger.repositories)
                self.remote.settle(number, repository, cell_of(kind, "0" * 64), Amount())
                self.clock.pump()
        self.assertEqual(Amount(), self.reserved())

    def test_refusals(self) -> None:
        """Refusals are what they are at the parent, with its words; whatever else goes wrong there is not for the client."""
        failure = self.failureResultOf(self.far(1001), InsufficientStorage)
        words = "quota of 1000 bytes for this server exceeded: upload of 1001 bytes, 1000 bytes left"
        self.assertEqual(words, failure.value.message)
        self.assertEqual(("quota", "this server"), (failure.value.cause, failure.value.limit_of))
        number = self.successResultOf(self.far(1000))
        self.failureResultOf(self.grow(number, 1), InsufficientStorage)
        self.quota_keeper._based = False
        self.pool.inline = False
        asked = self.far(0, BOB)
        self.clock.advance(PATIENCE_S)
        self.clock.pump()
        message = self.failureResultOf(asked, Unavailable).value.message
        self.assertEqual("the server is still counting stored data, try again later", message)
        self.patch(self.quota_keeper.ledger, "reserve", lambda *_: 1 // 0)
        self.quota_keeper._based = True
        self.pool.inline = True
        self.pool.finish()
        self.failureResultOf(self.far(0, BOB), Unavailable)

    def test_inactive(self) -> None:
        """Without account nothing is asked or told, until the parent says that there is one."""
        self.remote.active = False
        self.assertEqual(0, self.successResultOf(self.far(1 << 60)))
        self.remote.settle(0, ALICE, 5, Amount(5, 1))
        self.clock.pump()
        self.assertEqual(Amount(), self.used())
        self.remote.enable()
        self.failureResultOf(self.far(1 << 60), InsufficientStorage)

    def test_look_again(self) -> None:
        """A deleted repository is counted."""
        self.plant(ALICE, b"x" * 100)
        self.remote.recount(ALICE)
        self.clock.pump()
        self.assert_exact()

    def test_client_goes_while_it_asks(self) -> None:
        """A client that goes before the answer: what the parent reserves for it is given back when the answer comes."""
        self.pool.inline = False
        asked = self.far(100, ("carol",))
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.pool.finish()
        self.clock.pump()
        self.pool.finish()
        self.clock.pump()
        gc.collect()
        self.assertEqual([], self.flushLoggedErrors())
        self.assertEqual(Amount(), self.reserved())
        self.assertEqual({}, self.quota_keeper._reservations)

    def test_client_goes_before_a_refusal(self) -> None:
        """Or before a refusal, which nobody hears then."""
        self.pool.inline = False
        asked = self.far(1 << 40)
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.pool.finish()
        self.clock.pump()
        gc.collect()
        self.assertEqual([], self.flushLoggedErrors())
        self.assertEqual(Amount(), self.reserved())

    def test_client_goes_while_it_grows(self) -> None:
        """Or while it asks for more: all of it is given back when the upload has ended."""
        number = self.successResultOf(self.far(10))
        self.pool.inline = False
        grown = self.grow(number, 100)
        grown.addErrback(lambda _: None)
        grown.cancel()
        self.remote.settle(number, ALICE, 0, Amount())
        self.clock.pump()
        self.pool.finish()
        self.clock.pump()
        self.assertEqual(Amount(), self.reserved())

    def test_wire_is_lost(self) -> None:
        """Without the parent there is no room: 503, for those who wait and for those who come; and settling fails nothing."""
        number = self.successResultOf(self.far(10))
        self.pool.inline = False
        waiting, gone = self.far(10, ("carol",)), self.far(10, ("carol",))
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.parents.close()
        self.clock.pump()
        self.failureResultOf(waiting, Unavailable)
        self.failureResultOf(self.far(10), Unavailable)
        self.failureResultOf(self.grow(number, 10), Unavailable)
        self.remote.settle(number, ALICE, 0, Amount())
        self.remote.recount(ALICE)
        gc.collect()
        self.assertEqual([], self.flushLoggedErrors())

    def test_worker_is_lost(self) -> None:
        """All that it held, and what it was asking for, is given back once it was counted."""
        self.successResultOf(self.far(10))
        self.pool.inline = False
        waiting = self.far(10, ("carol",))
        self.ipc.close()
        self.clock.pump()
        self.assertEqual(Amount(10, 1), self.reserved())
        self.pool.finish()
        self.clock.pump()
        self.assertEqual((Amount(), {}), (self.reserved(), self.quota_keeper._reservations))
        waiting.addErrback(lambda _: None)
