"""
The server's books: counted, asked, refused, kept across restarts, and asked from another process. Time is a Clock, the store
and the state file are real, and a pool does at once what it is asked for, or when the test says so.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from resticserver.errors import InsufficientStorage, Unavailable
from resticserver.quota.admission import Admission, Admitted
from resticserver.quota.directory_locks import DirectoryLocks
from resticserver.service import kept_counts, repository_counter
from resticserver.service import quota_keeper as accounts_module
from resticserver.service.kept_counts import STEP
from resticserver.service.quota_keeper import COUNT_AGAIN_S, TRY_AGAIN_S, QuotaKeeper, QuotaRules
from resticserver.service.recount import FRESH_S, PATIENCE_S
from resticserver.sizes import UNLIMITED, Amount, Limit
from resticserver.storage.directory_snapshots import Snapshots
from resticserver.storage.layout import Repository, cell_of
from resticserver.storage.local import LocalStore
from resticserver.storage.state import RepositoryState, StateFile
from resticserver.targets import Kind, Target
from resticserver.threads.interface import Pool

from ..contract.store import id_of, save
from ..support.memory import InlinePool
from ..support.scratch import scratch_directory

ALICE: Repository = ("alice",)
LAPTOP: Repository = ("alice", "laptop")
BOB: Repository = ("bob",)
MIB = 1 << 20


def target_of(repository: Repository, content: bytes, kind: str = "data") -> Target:
    """Where an object goes."""
    return Target(repository, Kind.OBJECT, kind, id_of(content))


class StepPool(Pool):
    """
    A pool whose jobs run when the test says so, one at a time.

    @ivar inline: jobs run at once.
    @ivar ran: how many have run.
    """

    def __init__(self) -> None:
        self.jobs: list[tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]] = []
        self.inline = False
        self.ran = 0

    def run(self, job: Callable[..., Any], *args: Any) -> Deferred[Any]:
        """Keep a job."""
        if self.inline:
            self.ran += 1
            return maybeDeferred(job, *args)
        done: Deferred[Any] = Deferred()
        self.jobs.append((done, job, args))
        return done

    def step(self, number: int = 0) -> None:
        """Run one."""
        done, job, args = self.jobs.pop(number)
        self.ran += 1
        maybeDeferred(job, *args).chainDeferred(done)

    def step_until(self, name: str) -> None:
        """Run them until one of this name is the next."""
        while self.jobs and getattr(self.jobs[0][1], "__name__", "") != name:
            self.step()
        assert self.jobs, f"no {name} comes"

    def finish(self, most: int = 100_000) -> int:
        """Run all, and what they bring; how many that were."""
        before = self.ran
        while self.jobs and self.ran - before < most:
            self.step()
        return self.ran - before


class LatePool(StepPool):
    """One whose results come a step after the work: as from threads, of which the reactor hears later."""

    def step(self, number: int = 0) -> None:
        """Do the work of one, or say that it is done."""
        done, job, args = self.jobs.pop(number)
        if isinstance(job, Told):
            self.ran += 1
            job.result.chainDeferred(done)
        else:
            self.jobs.append((done, Told(maybeDeferred(job, *args)), ()))


class Told:
    """
    A job that was done.

    @ivar result: what came of it.
    """

    def __init__(self, result: Deferred[Any]) -> None:
        self.result = result

    def __call__(self) -> None:
        """It is a job, and nothing is left to do."""


class FixedQuotas:
    """The limits of some users and repositories."""

    def __init__(self) -> None:
        self.users: dict[str, Limit] = {}
        self.repositories: dict[Repository, Limit] = {}
        self.uncounted: set[Repository] = set()

    def has_limits(self) -> bool:
        """Whether there are any."""
        return bool(self.users or self.repositories)

    def limit_of_user(self, name: str) -> Limit:
        """A user's."""
        return self.users.get(name, UNLIMITED)

    def limit_of_repository(self, user: str | None, repository: Repository) -> Limit:
        """A repository's."""
        return self.repositories.get(repository, UNLIMITED)

    def trash_counts(self, user: str | None, repository: Repository) -> bool:
        """In all but C{uncounted}."""
        return repository not in self.uncounted


class AccountsCase(SynchronousTestCase):
    """A data directory with two repositories, and the books of its server."""

    #: Whether the directory's times are believed, so that counts find snapshots and the state file.
    believed = False

    def setUp(self) -> None:
        self.data = scratch_directory(self) / "data"
        # As many at a time as at first: a Clock does not tell how long that takes.
        self.patch(repository_counter, "COUNT_S", 0.001)
        self.quotas = FixedQuotas()
        self.pool: Any = InlinePool()
        self.clock: Any = Clock()
        self.make_store()
        for repository in (ALICE, BOB):
            self.store.create_repository(repository)

    def make_store(self) -> None:
        """The store of a process, and its state file."""
        self.state = StateFile(str(self.data))
        self.addCleanup(self.state.close)
        self.store = LocalStore(
            str(self.data), snapshots=Snapshots(keeps_times=lambda fd: self.believed, store=self.state)
        )
        self.store.prepare()
        self.directory_locks = DirectoryLocks()

    def make(self, limit: int | Limit | None = None, directory_locks: Any = None) -> QuotaKeeper:
        """Books that have not begun yet."""
        self.quota_keeper = QuotaKeeper(
            self.clock,
            QuotaRules(
                UNLIMITED if limit is None else limit if isinstance(limit, Limit) else Limit(limit), self.quotas
            ),
            self.store.counting,
            self.state,
            self.pool,
            directory_locks or self.directory_locks,
        )
        self.admission = Admission(self.quota_keeper, self.directory_locks)
        return self.quota_keeper

    def start(self, limit: int | Limit | None = None, directory_locks: Any = None) -> QuotaKeeper:
        """Books that have begun."""
        quota_keeper = self.make(limit, directory_locks)
        quota_keeper.startService()
        self.clock.advance(0)
        return quota_keeper

    def start_counted(self, limit: int | Limit | None = None) -> StepPool:
        """Books that have counted, whose pool waits for the test from now on."""
        pool = self.pool = StepPool()
        pool.inline = True
        self.start(limit)
        assert self.quota_keeper._complete
        pool.inline = False
        return pool

    def crash(self, limit: int | Limit | None = None, pool: Any = None) -> QuotaKeeper:
        """Another process on the same data, after one that could do nothing more."""
        self.state.close()
        self.clock = Clock()
        self.pool = pool if pool is not None else InlinePool()
        self.make_store()
        return self.start(limit)

    def stop(self) -> Deferred[None]:
        """The books end."""
        return Deferred.fromCoroutine(self.quota_keeper.stopService())

    def ask(
        self,
        repository: Repository,
        size_bytes: int,
        content: bytes = b"asked",
        user: str | None = None,
        kind: str = "data",
        holder: object = None,
    ) -> Deferred[int]:
        """Room for an upload."""
        target = target_of(repository, content, kind)
        return Deferred.fromCoroutine(self.quota_keeper.reserve(user, target, size_bytes, holder))

    def reserve(self, repository: Repository, size_bytes: int, **named: Any) -> int:
        """Room, which is there."""
        return self.successResultOf(self.ask(repository, size_bytes, **named))

    def refused(self, repository: Repository, size_bytes: int, **named: Any) -> str:
        """What a refusal says."""
        failed = self.failureResultOf(self.ask(repository, size_bytes, **named), InsufficientStorage)
        return str(failed.value)

    def settle(self, number: int, repository: Repository, size_bytes: int = 0, content: bytes = b"asked") -> None:
        """An upload has ended, with so much or nothing."""
        change = Amount(size_bytes, 1) if size_bytes else Amount()
        self.quota_keeper.settle(number, repository, cell_of("data", id_of(content)), change)

    def plant(self, repository: Repository, content: bytes, kind: str = "data") -> Path:
        """An object behind the server's back."""
        save(self.store, repository, kind, content)
        return Path(self.store.object_path(repository, kind, id_of(content)))

    def stored(self) -> Amount:
        """What is there, looked at with nothing of ours."""
        sizes = [
            path.stat().st_size
            for path in self.data.rglob("*")
            if path.is_file() and (len(path.name) == 64 or path.name == "config")
        ]
        return Amount(sum(sizes), len(sizes))

    def used(self) -> Amount:
        """What is taken for stored."""
        server = self.quota_keeper.ledger.server
        return Amount(server.used_bytes, server.used_objects)

    def reserved(self) -> Amount:
        """What is reserved."""
        server = self.quota_keeper.ledger.server
        return Amount(server.reserved_bytes, server.reserved_objects)

    def passed(self, cell: int) -> bool:
        """Whether the count that runs has passed a cell already: the job that waits is about later ones."""
        arguments = getattr(self.pool.jobs[0][1], "args", ((), [0]))
        return bool(arguments[1][0] > cell)

    def assert_exact(self) -> None:
        """The books are what is there."""
        self.assertEqual(self.stored(), self.used())

    def promised(self) -> dict[Repository, RepositoryState]:
        """What the state file says."""
        state = StateFile(str(self.data))
        try:
            return state.repositories()
        finally:
            state.close()

    def assert_promised(self) -> None:
        """The state file promises no less than what there may be."""
        promised = self.promised()
        for repository, account in self.quota_keeper.ledger.repositories.items():
            if account.reserved_objects or account.used_objects:
                self.assertIn(repository, promised)
                self.assertLessEqual(account.most.size_bytes, promised[repository].at_most.size_bytes, repository)
                self.assertLessEqual(account.most.objects, promised[repository].at_most.objects, repository)

    def said(self, events: Any) -> list[str]:
        """What was logged that people see."""
        return [formatEvent(event) for event in events if event["log_level"] > LogLevel.debug]


class StartTests(AccountsCase):
    """When account is kept, and what is counted first."""

    def test_without_limits(self) -> None:
        """Nothing is counted, said, reserved or written."""
        with capturedLogs() as events:
            self.start()
            self.clock.advance(10_000)
        self.assertEqual([], self.said(events))
        self.assertFalse(self.quota_keeper.active)
        self.assertEqual(0, self.reserve(ALICE, 1 << 60))
        self.quota_keeper.settle(0, ALICE, 0, Amount(5, 1))
        self.quota_keeper.recount(ALICE)
        self.quota_keeper.holder_gone(self)
        self.assertEqual((Amount(), {}), (self.used(), self.quota_keeper.ledger.repositories))
        self.successResultOf(self.stop())
        self.assertEqual({}, self.promised())
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_counts(self) -> None:
        """With a limit all is counted at the start, and the two lines say when it begins and how much there is."""
        self.plant(ALICE, b"x" * 1000)
        self.plant(LAPTOP[:1], b"y" * 24, "keys")
        (self.data / "bob" / "config").write_bytes(b"z" * 100)
        os.truncate(self.plant(BOB, b"sparse"), 3 << 30)
        with capturedLogs() as events:
            self.make(1 << 40)
            self.assertEqual([], self.said(events))
            self.quota_keeper.startService()
            self.assertEqual(["Initializing quota (can take a while)..."], self.said(events))
            self.clock.advance(0)
        self.assertEqual("Quota initialized, currently using 3.00 GiB", self.said(events)[1])
        self.assertEqual(2, len(self.said(events)))
        self.assert_exact()
        self.assertEqual(4, self.used().objects)

    def test_limits_of_the_policy(self) -> None:
        """A user's limit, or a repository's, is a reason to count as well; so is a limit of objects."""
        self.plant(ALICE, b"x" * 1000)
        for users, repositories, limit in (
            ({"bob": Limit(1)}, {}, None),
            ({}, {BOB: Limit(1)}, None),
            ({}, {}, Limit(objects=5)),
        ):
            self.quotas.users, self.quotas.repositories = users, repositories
            self.start(limit)
            self.assertTrue(self.quota_keeper.active)
            self.assert_exact()

    def test_limits_come_later(self) -> None:
        """When the first limit comes (the policy was read again) account is kept from then on, also without it."""
        self.plant(ALICE, b"x" * 1000)
        self.start()
        self.assertFalse(self.quota_keeper.refresh())
        self.quotas.users["alice"] = Limit(1001)
        with capturedLogs() as events:
            self.assertTrue(self.quota_keeper.refresh())
            self.clock.advance(0)
            self.assertTrue(self.quota_keeper.refresh())
            self.clock.advance(0)
        self.assertEqual(2, len(self.said(events)))
        self.assert_exact()
        self.refused(ALICE, 2)
        self.quotas.users.clear()
        self.assertTrue(self.quota_keeper.refresh())
        self.assertTrue(self.reserve(ALICE, 2))

    def test_refresh_before_the_start(self) -> None:
        """Nothing begins before the service does."""
        self.make(5)
        self.assertFalse(self.quota_keeper.refresh())
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_waits_for_the_first_count(self) -> None:
        """As long as nothing is known uploads wait, and then they are judged."""
        self.plant(ALICE, b"x" * 1000)
        pool = self.pool = StepPool()
        self.start(1500)
        fits, does_not = self.ask(ALICE, 500), self.ask(BOB, 501)
        self.assertNoResult(fits)
        pool.step_until("put_repositories")
        self.assertNoResult(fits)
        with capturedLogs():
            pool.finish()
        self.successResultOf(fits)
        self.failureResultOf(does_not, InsufficientStorage)

    def test_counted_after_a_removal(self) -> None:
        """What was removed may have been others' and not in the books: its repository is counted a while later."""
        self.plant(ALICE, b"x" * 1000)
        self.start(5000)
        self.plant(ALICE, b"y" * 700)
        self.quota_keeper.settle(0, ALICE, cell_of("data", id_of(b"x" * 1000)), Amount(-300, -1))
        self.assertNotEqual(self.stored(), self.used())
        self.clock.advance(accounts_module.SOON_S)
        self.assert_exact()

    def test_who_has_no_limit_does_not_wait(self) -> None:
        """Where account is kept because somebody looks at it, or for others, an upload waits for no count."""
        pool = self.pool = StepPool()
        quota_keeper = QuotaKeeper(
            self.clock,
            QuotaRules(UNLIMITED, self.quotas, in_any_case=True),
            self.store.counting,
            self.state,
            self.pool,
            self.directory_locks,
        )
        self.quota_keeper = quota_keeper
        with capturedLogs() as events:
            quota_keeper.startService()
            self.clock.advance(0)
            asked = self.ask(ALICE, 500)
            while not asked.called:  # for the ceiling's sake alone
                pool.step()
            self.assertFalse(quota_keeper._complete)
            self.successResultOf(asked)
            pool.finish()
        self.assertTrue(quota_keeper._complete)
        self.assertEqual([], self.said(events))

    def test_patience(self) -> None:
        """After 20 seconds it is 503, and the count goes on; who goes before that is gone."""
        pool = self.pool = StepPool()
        self.start(1500)
        waiting, gone = self.ask(ALICE, 500), self.ask(ALICE, 500)
        self.clock.advance(PATIENCE_S - 0.1)
        self.assertNoResult(waiting)
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.clock.advance(0.1)
        self.assertEqual(
            "the server is still counting stored data, try again later",
            str(self.failureResultOf(waiting, Unavailable).value),
        )
        pool.finish()
        self.assertEqual(Amount(), self.reserved())
        asked = self.ask(ALICE, 500)
        pool.finish()
        self.successResultOf(asked)

    def test_volume_gone(self) -> None:
        """A count without the volume is 503 for who waits; it is tried again later, and nothing was taken for empty."""
        self.plant(ALICE, b"x" * 1000)
        away = self.data.with_suffix(".away")
        self.make(1500)
        os.rename(self.data, away)
        self.data.mkdir()
        with capturedLogs() as events:
            self.quota_keeper.startService()
            self.clock.advance(0)
            self.failureResultOf(self.ask(ALICE, 1), Unavailable)
            self.clock.advance(TRY_AGAIN_S)
            self.failureResultOf(self.ask(ALICE, 1), Unavailable)
            self.data.rmdir()
            os.rename(away, self.data)
            self.clock.advance(TRY_AGAIN_S)
        self.assertEqual("Quota initialized, currently using 0.00 GiB", self.said(events)[-1])
        self.assertEqual([], [event for event in events if "log_failure" in event])
        self.assert_exact()
        self.refused(ALICE, 501)

    def test_volume_gone_half_way(self) -> None:
        """A volume that goes while it is counted does not make it less."""
        self.plant(ALICE, b"x" * 1000)
        pool = self.start_counted(1500)
        self.clock.advance(COUNT_AGAIN_S)
        pool.step()
        pool.step()
        away = self.data.with_suffix(".away")
        os.rename(self.data, away)
        self.data.mkdir()
        with capturedLogs():
            pool.finish()
        self.assertEqual(Amount(1000, 1), self.used())
        self.data.rmdir()
        os.rename(away, self.data)
        pool.inline = True
        self.clock.advance(TRY_AGAIN_S)
        self.assert_exact()

    def test_disk_that_fails(self) -> None:
        """An error of the data directory is logged, and it is tried again."""
        scandir = os.scandir

        def fail(path: Any) -> Any:
            if str(path) == str(self.data):
                raise OSError(5, os.strerror(5))
            return scandir(path)

        patch = self.patch(os, "scandir", fail)
        with capturedLogs() as events:
            self.start(1500)
        self.assertIn("could not count stored data", "".join(self.said(events)))
        patch.restore()
        self.flushLoggedErrors(OSError)
        self.clock.advance(TRY_AGAIN_S)
        self.assertTrue(self.quota_keeper._complete)

    def test_directories_that_cannot_be_read(self) -> None:
        """
        In a count, and after a restart, what was last known of them counts; in one that nothing is known of, nothing. Other
        directories are counted as ever, and uploads are not held up.
        """
        content = b"x" * 1000
        broken = self.plant(ALICE, content).parent
        self.plant(BOB, b"y" * 100)
        opened = os.open

        def fail(path: Any, *rest: Any, **named: Any) -> int:
            if str(path) == str(broken):
                raise OSError(13, os.strerror(13), path)
            return opened(path, *rest, **named)

        self.start(1500)
        self.assertEqual(Amount(1100, 2), self.used())
        patch = self.patch(os, "open", fail)
        self.plant(BOB, b"z" * 10)
        with capturedLogs() as events:
            for _ in range(3):
                self.clock.advance(COUNT_AGAIN_S)
            self.assertEqual(Amount(1110, 3), self.used())
            self.assertIn("exceeded: upload of 391 bytes, 390 bytes left", self.refused(BOB, 391))
            self.reserve(BOB, 390)
        self.assertEqual(1, len([line for line in self.said(events) if "cannot read" in line]), self.said(events))
        self.successResultOf(self.stop())
        with capturedLogs():
            self.crash(1500)
        self.assertEqual(Amount(1110, 3), self.used())
        patch.restore()
        with capturedLogs() as events:
            self.clock.advance(COUNT_AGAIN_S)
        self.assert_exact()
        self.assertEqual(1, len([line for line in self.said(events) if "can be read again" in line]), self.said(events))

    def test_repository_that_cannot_be_entered(self) -> None:
        """It stays in the books, and so do those below it."""
        for repository in (ALICE, LAPTOP):
            self.store.create_repository(repository)
            self.plant(repository, b"x" * 500)
        self.start(1500)
        stat = os.stat

        def fail(path: Any, *rest: Any, **named: Any) -> Any:
            if isinstance(path, str) and path.startswith(f"{self.data}/alice/"):
                raise OSError(107, os.strerror(107), path)
            return stat(path, *rest, **named)

        self.patch(os, "stat", fail)
        self.patch(os, "open", lambda path, *rest, opened=os.open, **named: fail(path) and opened(path, *rest, **named))
        with capturedLogs() as events:
            for _ in range(3):
                self.clock.advance(COUNT_AGAIN_S)
        self.assertEqual(Amount(1000, 2), self.used())
        self.reserve(BOB, 500)
        said = [line for line in self.said(events) if "cannot read" in line]
        self.assertEqual(1, len(said), said)
        self.assertIn(f"cannot read {self.data}/alice: ", said[0])

    def test_counts_again(self) -> None:
        """Every ten minutes all is counted again: what came or went beside the server is known then."""
        path = self.plant(ALICE, b"x" * 1000)
        self.start(1 << 40)
        path.unlink()
        self.store.create_repository(("carol",))
        self.plant(("carol",), b"y" * 7)
        self.clock.advance(COUNT_AGAIN_S - 1)
        self.assertEqual(1000, self.used().size_bytes)
        with capturedLogs() as events:
            self.clock.advance(1)
        self.assertEqual([], self.said(events))
        self.assertEqual(Amount(7, 1), self.used())
        shutil.rmtree(self.data / "carol")
        self.clock.advance(COUNT_AGAIN_S)
        self.assertEqual(Amount(), self.used())
        self.assertEqual({}, self.quota_keeper.ledger.repositories)

    def test_stopped(self) -> None:
        """After the end nothing is counted any more, and no call is left."""
        self.start(1 << 40)
        self.successResultOf(self.stop())
        self.assertEqual([], self.clock.getDelayedCalls())


class RefusalTests(AccountsCase):
    """What is reserved, refused, and counted before that."""

    def test_words(self) -> None:
        """Each limit says whose it is."""
        self.quotas.users = {"alice": Limit(1100)}
        self.quotas.repositories = {LAPTOP: Limit(1050)}
        self.store.create_repository(LAPTOP)
        self.plant(LAPTOP, b"x" * 1000)
        self.start(1200)
        for repository, size_bytes, words in (
            (LAPTOP, 51, "quota of 1.02 KiB for repository alice/laptop exceeded: upload of 51 bytes, 50 bytes left"),
            (ALICE, 101, "quota of 1.07 KiB for alice exceeded: upload of 101 bytes, 100 bytes left"),
            (BOB, 201, "quota of 1.17 KiB for this server exceeded: upload of 201 bytes, 200 bytes left"),
        ):
            self.assertEqual(words, self.refused(repository, size_bytes))
            number = self.reserve(repository, size_bytes - 1)
            self.settle(number, repository)

    def test_from_reserve_to_settle(self) -> None:
        """Numbers are never used twice; what is reserved becomes what is there; to settle twice changes nothing more."""
        self.start(1000)
        one, other = self.reserve(ALICE, 600), self.reserve(BOB, 400)
        self.assertNotEqual(one, other)
        self.refused(ALICE, 1)
        self.settle(one, ALICE, 100)
        self.settle(one, ALICE)
        self.assertEqual((Amount(100, 1), Amount(400, 1)), (self.used(), self.reserved()))
        third = self.reserve(ALICE, 500)
        self.assertNotIn(third, (one, other))
        for number, repository in ((other, BOB), (third, ALICE)):
            self.settle(number, repository)
        self.assertEqual((Amount(100, 1), Amount()), (self.used(), self.reserved()))

    def grow(self, number: int, size_bytes: int) -> Deferred[None]:
        """More room."""
        return Deferred.fromCoroutine(self.quota_keeper.grow(number, size_bytes))

    def test_grow(self) -> None:
        """More room for the same upload; one that has ended, or was never, takes none."""
        self.start(1000)
        number = self.reserve(ALICE, 0)
        self.successResultOf(self.grow(number, 1000))
        self.failureResultOf(self.grow(number, 1), InsufficientStorage)
        self.assertEqual(Amount(1000, 1), self.reserved())
        self.settle(number, ALICE, 900)
        for ended in (number, 12345):
            self.successResultOf(self.grow(ended, 5))
        self.assertEqual((Amount(900, 1), Amount()), (self.used(), self.reserved()))

    def test_grow_that_ends_while_it_is_counted(self) -> None:
        """An upload that was aborted while room was looked for leaves nothing."""
        pool = self.start_counted(1000)
        pool.inline = True
        number = self.reserve(ALICE, 900)
        pool.inline = False
        growing = self.grow(number, 200)
        self.assertNoResult(growing)
        self.settle(number, ALICE)
        pool.finish()
        self.successResultOf(growing)
        self.assertEqual(Amount(), self.reserved())

    def test_room_that_others_made(self) -> None:
        """Before a refusal it is counted again: what was removed by hand makes room at once, for each kind of limit."""
        for limit, users, repositories in (
            (1000, {}, {}),
            (None, {"alice": Limit(1000)}, {}),
            (None, {}, {ALICE: Limit(1000)}),
            (Limit(objects=1), {}, {}),
        ):
            self.quotas.users, self.quotas.repositories = users, repositories
            path = self.plant(ALICE, b"x" * 1000)
            self.start(limit)
            self.refused(ALICE, 1)
            self.clock.advance(FRESH_S)
            path.unlink()
            number = self.reserve(ALICE, 1000)
            self.settle(number, ALICE)
            self.assert_exact()

    def test_room_that_others_took(self) -> None:
        """And what was put there by hand is seen when it is counted the next time."""
        self.start(1000)
        self.plant(BOB, b"x" * 1000)
        self.clock.advance(COUNT_AGAIN_S)
        self.refused(ALICE, 1)

    def test_not_too_often(self) -> None:
        """One who is refused again and again does not have it counted each time, and each account has its own time."""
        path = self.plant(ALICE, b"x" * 1000)
        self.quotas.users = {"bob": Limit(0)}
        pool = self.start_counted(1000)
        pool.inline = True
        self.refused(ALICE, 1)
        ran = pool.ran
        path.unlink()
        for _ in range(5):
            self.refused(ALICE, 1)
        self.clock.advance(FRESH_S - 0.1)
        self.refused(ALICE, 1)
        self.assertEqual(ran, pool.ran)
        self.refused(BOB, 1)
        self.assertGreater(pool.ran, ran)
        self.clock.advance(0.1)
        self.reserve(ALICE, 1)

    def test_many_at_once(self) -> None:
        """Many who are refused at once have it counted once; then there is room for some of them."""
        path = self.plant(ALICE, b"x" * 1000)
        pool = self.start_counted(1000)
        asked = [self.ask(ALICE, 400) for _ in range(5)]
        path.unlink()
        jobs = pool.finish()
        self.assertLess(jobs, 150)
        results: list[Any] = []
        for one in asked:
            one.addBoth(lambda result: results.append(result))
        self.assertEqual(2, sum(isinstance(result, int) for result in results))
        self.assertEqual(Amount(800, 2), self.reserved())

    def test_both_limits(self) -> None:
        """Where a repository's limit and its user's leave no room both are looked at before it is refused."""
        self.quotas.users = {"alice": Limit(1200)}
        self.quotas.repositories = {ALICE: Limit(1000)}
        self.store.create_repository(LAPTOP)
        paths = [self.plant(ALICE, b"x" * 1000), self.plant(LAPTOP, b"y" * 500)]
        self.start()
        for path in paths:
            path.unlink()
        self.reserve(ALICE, 1000)

    def test_looked_at_after_it_was_asked(self) -> None:
        """
        What was removed before the upload was asked for makes room, also where a count was under way that had passed
        its place.
        """
        self.quotas.repositories = {ALICE: Limit(1000)}
        path = self.plant(ALICE, b"x" * 1000)
        pool = self.start_counted()
        self.quota_keeper.recount(ALICE)
        while not self.passed(cell_of("data", path.name)):
            pool.step()
        path.unlink()
        asked = self.ask(ALICE, 1000)
        pool.finish()
        self.successResultOf(asked)

    def test_deleted_while_it_is_counted(self) -> None:
        """The same for a repository that was deleted while a count was under way."""
        path = self.plant(ALICE, b"x" * 1000)
        pool = self.start_counted(2000)
        self.quota_keeper.recount(ALICE)
        while not self.passed(cell_of("data", path.name)):
            pool.step()
        self.store.delete_repository(ALICE)
        self.quota_keeper.recount(ALICE)
        pool.finish()
        self.assertEqual(Amount(), self.used())

    def test_count_that_takes_too_long(self) -> None:
        """Who waits for 20 seconds is refused by what is known, and nothing is left of it."""
        path = self.plant(ALICE, b"x" * 1000)
        pool = self.start_counted(1000)
        asked = self.ask(ALICE, 1)
        path.unlink()
        self.clock.advance(PATIENCE_S)
        self.failureResultOf(asked, InsufficientStorage)
        pool.finish()
        self.assertEqual((Amount(), Amount()), (self.used(), self.reserved()))

    def test_client_goes_while_it_is_counted(self) -> None:
        """Nothing is reserved for one who has gone; the count comes to its end."""
        path = self.plant(ALICE, b"x" * 1000)
        pool = self.start_counted(1000)
        asked = self.ask(ALICE, 1)
        path.unlink()
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        pool.finish()
        self.assertEqual((Amount(), Amount()), (self.used(), self.reserved()))

    def test_client_goes_while_the_ceiling_is_raised(self) -> None:
        """Nor for one who goes while the state file is written."""
        pool = self.start_counted(1 << 50)
        asked = self.ask(ALICE, 1 << 40)
        pool.step_until("put_repositories")
        self.assertEqual(Amount(1 << 40, 1), self.reserved())
        asked.cancel()
        self.failureResultOf(asked, CancelledError)
        self.assertEqual(Amount(), self.reserved())
        pool.finish()

    def test_repository_that_is_not_known(self) -> None:
        """One that was made by hand since is counted before anything is added to it."""
        self.quotas.repositories = {("carol",): Limit(1000)}
        self.start()
        self.store.create_repository(("carol",))
        self.plant(("carol",), b"x" * 900)
        self.refused(("carol",), 101)
        self.reserve(("carol",), 100)

    def test_two_ask_for_what_is_not_known(self) -> None:
        """Also for the second who asks while it is being counted."""
        self.quotas.repositories = {("carol",): Limit(1000)}
        pool = self.start_counted()
        self.store.create_repository(("carol",))
        self.plant(("carol",), b"x" * 900)
        first = self.ask(("carol",), 1)
        pool.step()  # the first look, which finds little
        second = self.ask(("carol",), 500, content=b"second")
        pool.finish()
        self.successResultOf(first)
        self.failureResultOf(second, InsufficientStorage)

    def test_removal_in_what_is_not_known(self) -> None:
        """A removal does not make a repository a known one."""
        self.quotas.repositories = {("carol",): Limit(1000)}
        self.start()
        self.store.create_repository(("carol",))
        self.plant(("carol",), b"x" * 900)
        path = self.plant(("carol",), b"y" * 100, "locks")
        path.unlink()
        self.quota_keeper.settle(0, ("carol",), cell_of("locks", path.name), Amount(-100, -1))
        self.refused(("carol",), 101)
        self.assert_exact()

    def test_what_is_not_known_takes_too_long(self) -> None:
        """If it cannot be counted in time nothing is admitted on suspicion."""
        self.quotas.repositories = {("carol",): Limit(1000)}
        pool = self.start_counted()
        self.store.create_repository(("carol",))
        self.plant(("carol",), b"x" * 900)
        asked = self.ask(("carol",), 500)
        self.clock.advance(PATIENCE_S)
        pool.finish()
        self.failureResultOf(asked, Unavailable)
        self.assertEqual(Amount(), self.reserved())

    def test_names_that_are_none(self) -> None:
        """Repositories that are asked for and never made leave nothing, refused or not."""
        self.start(1000)
        for number in range(5):
            self.settle(self.reserve((f"x{number}",), 1), (f"x{number}",))
            self.refused((f"y{number}",), 1001)
            self.clock.advance(FRESH_S)
        self.assertEqual({}, self.quota_keeper.ledger.repositories)

    def test_a_user_called_all(self) -> None:
        """No name of a user is one of ours: that one's refusals are counted as everyone's, also while it is first counted."""
        self.quotas.users = {name: Limit(1000) for name in ("all", "ceiling", "alice")}
        for name in ("all", "ceiling"):
            self.store.create_repository((name,))
            self.plant((name,), b"x" * 1000)
        self.start()
        self.crash()
        away = self.data.with_suffix(".away")
        os.rename(self.data, away)
        self.data.mkdir()
        self.clock = Clock()
        # Something is known of all, and the first count fails.
        with capturedLogs():
            self.state._data = os.fsencode(str(away))
            self.state = StateFile(str(away))
            self.addCleanup(self.state.close)
            self.start()
            self.assertFalse(self.quota_keeper._complete)
            self.data.rmdir()
            os.rename(away, self.data)
            for name in ("all", "ceiling"):
                asked = self.ask((name,), 1)
                self.clock.advance(PATIENCE_S)
                self.failureResultOf(asked, InsufficientStorage)
            self.clock.advance(TRY_AGAIN_S)
        self.assertTrue(self.quota_keeper._complete)


class CeilingTests(AccountsCase):
    """What the state file promises."""

    def test_each_reservation(self) -> None:
        """Before an upload may begin the file promises no less than it may come to, and a little change writes nothing."""
        self.plant(ALICE, b"x" * 1000)
        pool = self.start_counted(1 << 50)
        pool.inline = True
        self.assert_promised()
        sizes = [1, STEP.size_bytes, 5, STEP.size_bytes + 1, 1 << 40, 0, 77]
        numbers = []
        for number, size_bytes in enumerate(sizes):
            numbers.append(self.reserve((ALICE, BOB, ("carol",))[number % 3], size_bytes, content=b"%d" % number))
            self.assert_promised()
        self.successResultOf(Deferred.fromCoroutine(self.quota_keeper.grow(numbers[0], 1 << 41)))
        self.assert_promised()
        ran = pool.ran
        self.reserve(BOB, 1)
        self.assertEqual(ran, pool.ran)

    def test_many_objects(self) -> None:
        """Also of objects."""
        self.start(1 << 50)
        for number in range(0, STEP.objects * 2 + 1):
            self.quota_keeper.settle(0, ALICE, number % 256, Amount(0, 1))
            if number % 1000 == 0:
                self.settle(self.reserve(ALICE, 0), ALICE)
                self.assert_promised()

    def test_lowered_again(self) -> None:
        """A count that finds less lowers it, so that a crash does not leave a ceiling of long ago."""
        self.start(1 << 50)
        self.settle(self.reserve(ALICE, 1 << 40), ALICE, 5)
        self.assertGreater(self.promised()[ALICE].at_most.size_bytes, 1 << 40)
        self.plant(ALICE, b"12345")
        self.clock.advance(COUNT_AGAIN_S)
        self.assertLess(self.promised()[ALICE].at_most.size_bytes, 1 << 30)
        self.assert_promised()

    def test_reserved_while_it_is_lowered(self) -> None:
        """What is reserved while a lower ceiling is on its way to the file is promised all the same."""
        pool = self.start_counted(1 << 50)
        pool.inline = True
        self.plant(ALICE, b"12345")
        self.settle(self.reserve(ALICE, 1 << 40), ALICE, 5)
        pool.inline = False
        self.clock.advance(COUNT_AGAIN_S)
        pool.step_until("put_repositories")
        asked = self.ask(ALICE, 1 << 39)
        pool.finish()
        self.successResultOf(asked)
        self.assert_promised()

    def test_name_that_is_used_while_it_is_forgotten(self) -> None:
        """A repository that is forgotten because it was empty, and is asked for at that moment, is promised."""
        pool = self.start_counted(1 << 50)
        pool.inline = True
        self.settle(self.reserve(("carol",), 5), ("carol",))
        pool.inline = False
        self.clock.advance(COUNT_AGAIN_S)
        pool.step_until("forget_repositories")
        asked = self.ask(("carol",), 5)
        pool.finish()
        self.successResultOf(asked)
        self.assert_promised()

    def test_aborted_while_it_is_promised(self) -> None:
        """The same where one who asked went away before the file was written, at whatever stage of a count."""
        ended = False
        stage = 0
        while not ended:
            name = (f"c{stage}",)
            pool = self.start_counted(1 << 50)
            pool.inline = True
            before = self.reserve(name, 5)
            pool.inline = False
            self.clock.advance(COUNT_AGAIN_S)
            for _ in range(stage):
                pool.step()
            ended = len(pool.jobs) == 0
            asked = self.ask(name, 3 * STEP.size_bytes)
            self.settle(before, name)
            if not asked.called:
                asked.cancel()
            asked.addErrback(lambda _: None)
            pool.finish()
            again = self.ask(name, 5)
            pool.finish()
            self.successResultOf(again)
            self.assertIn(name, self.promised(), f"after {stage} jobs of the count")
            stage += 1

    def test_state_that_cannot_be_kept(self) -> None:
        """Uploads go on where the state file cannot be written."""
        self.patch(StateFile, "put_repositories", lambda *_, **__: False)
        self.start(1000)
        self.settle(self.reserve(ALICE, 1000), ALICE, 900)
        self.refused(ALICE, 1001)


class RestartTests(AccountsCase):
    """What the next start knows."""

    def promised_bytes(self, repository: Repository) -> int:
        """The most that the file says there is."""
        return self.promised()[repository].at_most.size_bytes

    def test_clean(self) -> None:
        """After a clean stop the file says exactly what there is, and the next start knows it before it has counted."""
        self.plant(ALICE, b"x" * 1000)
        self.plant(BOB, b"y" * 10)
        self.start(1 << 50)
        self.settle(self.reserve(ALICE, 1 << 40), ALICE)
        self.successResultOf(self.stop())
        self.assertEqual(Amount(1000, 1), self.promised()[ALICE].at_most)
        self.assertEqual({ALICE, BOB}, set(self.promised()))
        pool = StepPool()
        self.crash(1020, pool=pool)
        pool.step()  # the file is read
        self.assertEqual(Amount(1010, 2), self.used())
        fits = self.ask(ALICE, 5)
        while not fits.called:
            pool.step()
        self.assertFalse(self.quota_keeper._complete)
        with capturedLogs():
            pool.finish()
        self.assert_exact()

    def test_clean_without_what_is_gone(self) -> None:
        """Repositories that are gone, or were only asked for, are not in the file after a clean stop."""
        self.plant(ALICE, b"x" * 1000)
        self.start(1 << 50)
        self.settle(self.reserve(("carol",), 5), ("carol",))
        self.settle(self.reserve(ALICE, 5), ALICE)
        self.store.delete_repository(ALICE)
        self.quota_keeper.recount(ALICE)
        self.successResultOf(self.stop())
        self.assertEqual(
            {}, {repository: s.at_most for repository, s in self.promised().items() if s.at_most != (0, 0)}
        )

    def test_stopped_while_it_is_counted(self) -> None:
        """A stop does not wait for a count that has long to go, nor does that overwrite what was kept."""
        for number in range(5):
            self.store.create_repository((f"r{number}",))
            self.plant((f"r{number}",), b"x" * 10)
        pool = self.start_counted(1 << 50)
        self.clock.advance(COUNT_AGAIN_S)
        for _ in range(5):
            pool.step()
        stopped = self.stop()
        jobs = pool.finish()
        self.successResultOf(stopped)
        self.assertLess(jobs, 10)
        self.assertEqual(
            {Amount(10, 1)}, {state.at_most for state in self.promised().values() if state.at_most != (0, 0)}
        )

    def test_stopped_while_it_is_counted_first(self) -> None:
        """Nor does a stop wait for the first count."""
        for number in range(5):
            self.store.create_repository((f"r{number}",))
            self.plant((f"r{number}",), b"x" * 10)
        pool = self.pool = StepPool()
        self.start(1 << 50)
        for _ in range(5):
            pool.step()
        stopped = self.stop()
        self.assertLess(pool.finish(), 10)
        self.successResultOf(stopped)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_stopped_with_the_workers(self) -> None:
        """The end of the workers, which end before the books do, is no reason to count everything."""
        self.plant(ALICE, b"x" * 10)
        pool = self.start_counted(1 << 50)
        for worker in range(3):
            self.quota_keeper.holder_gone(worker)
        stopped = self.stop()
        self.assertLess(pool.finish(), 10)
        self.successResultOf(stopped)
        self.assertEqual(Amount(10, 1), self.promised()[ALICE].at_most)

    def test_crash(self) -> None:
        """After a crash what may have come counts as stored until it was counted, for server and user."""
        self.quotas.users = {"alice": Limit(1 << 50)}
        self.plant(ALICE, b"x" * 1000)
        self.start(1 << 50)
        self.reserve(ALICE, 5000)
        self.plant(ALICE, b"y" * 5000)  # it was committed, and then came the crash
        pool = StepPool()
        self.crash(1 << 50, pool=pool)
        pool.step()
        for account in (self.quota_keeper.ledger.server, self.quota_keeper.ledger.user("alice")):
            self.assertGreaterEqual(account.used_bytes, 6000)
        self.assertLess(self.used().size_bytes, 6000 + 2 * STEP.size_bytes)
        while pool.jobs:
            self.assertGreaterEqual(self.used().size_bytes, 6000)
            self.assertGreaterEqual(self.used().objects, 2)
            with capturedLogs():
                pool.step()
        self.assert_exact()

    def test_crash_after_things_moved(self) -> None:
        """Never less than what is there at any step of the count, also where much was removed and as much came."""
        # It is in one of the directories that are counted first.
        first = next(b"%d" % n + b"x" * 100_000 for n in range(999) if id_of(b"%d" % n + b"x" * 100_000) < "10")
        path = self.plant(ALICE, first)
        self.start(1 << 50)
        others = [b"%d" % number for number in range(200)]
        path.unlink()
        self.quota_keeper.settle(0, ALICE, cell_of("data", path.name), Amount(-len(first), -1))
        for content in others:
            number = self.reserve(ALICE, 500, content=content)
            self.plant(ALICE, content * (500 // len(content)))
            self.settle(number, ALICE, 500 // len(content) * len(content), content)
        pool = StepPool()
        # A ceiling that is as low as it may be: nothing more than there was.
        self.patch(accounts_module, "STEP", Amount())
        self.patch(kept_counts, "STEP", Amount())
        most = max(self.stored().size_bytes, len(first))
        self.state.put_repositories({ALICE: RepositoryState(Amount(most, 200), *self.promised()[ALICE][1:])})
        self.crash(1 << 50, pool=pool)
        pool.step()
        stored = self.stored()
        while pool.jobs:
            self.assertGreaterEqual(self.used().size_bytes, stored.size_bytes)
            self.assertGreaterEqual(self.used().objects, stored.objects)
            with capturedLogs():
                pool.step()
        self.assert_exact()

    def test_crash_beside_a_limit(self) -> None:
        """After a crash nobody is refused for what is only uncertain: it is counted first."""
        self.plant(ALICE, b"x" * 1000)
        self.start(2000)
        self.reserve(ALICE, 500)
        pool = StepPool()
        self.crash(2000, pool=pool)
        pool.step()
        asked = self.ask(ALICE, 1000)
        with capturedLogs():
            pool.finish()
        self.successResultOf(asked)
        self.assertEqual(Amount(1000, 1), self.reserved())

    def test_uncertain_and_too_slow(self) -> None:
        """If that takes longer than 20 seconds it is 503, for it is not known."""
        self.plant(ALICE, b"x" * 1000)
        self.start(2000)
        pool = StepPool()
        self.crash(2000, pool=pool)
        pool.step()
        asked = self.ask(ALICE, 1000)
        self.clock.advance(PATIENCE_S)
        self.failureResultOf(asked, Unavailable)
        pool.finish()
        self.assertEqual(Amount(), self.reserved())

    def test_repository_gone_meanwhile(self) -> None:
        """One that was removed while no server ran is forgotten after the first count, in the file too."""
        self.plant(ALICE, b"x" * 1000)
        self.plant(BOB, b"x" * 10)
        self.start(1 << 50)
        self.successResultOf(self.stop())
        shutil.rmtree(self.data / "alice")
        self.crash(1 << 50)
        self.assert_exact()
        self.assertEqual([BOB], list(self.promised()))

    def test_known_at_once(self) -> None:
        """With a state file of a clean stop nobody waits for the count."""
        self.plant(ALICE, b"x" * 1000)
        self.start(2000)
        self.successResultOf(self.stop())
        pool = StepPool()
        self.crash(2000, pool=pool)
        pool.step()
        self.assertFalse(self.quota_keeper._complete)
        asked = self.ask(ALICE, 1000)
        for _ in range(20):
            if asked.called:
                break
            pool.step()
        self.successResultOf(asked)
        self.assertFalse(self.quota_keeper._complete)

    def test_without_the_file(self) -> None:
        """Without a state file all is counted first."""
        self.plant(ALICE, b"x" * 1000)
        self.start(2000)
        self.successResultOf(self.stop())
        os.unlink(self.data / ".rest-server" / "state.sqlite3")
        self.crash(2000)
        self.assert_exact()
        self.assert_promised()


class HolderTests(AccountsCase):
    """A worker that has ended."""

    def test_held_until_counted(self) -> None:
        """What it had reserved counts until it is known what has become of it; others' stays reserved."""
        pool = self.start_counted(10_000)
        pool.inline = True
        self.reserve(ALICE, 3000, holder="one")
        self.reserve(BOB, 2000, holder="two")
        self.plant(ALICE, b"x" * 2500)  # it was committed, and the word of it never came
        pool.inline = False
        self.quota_keeper.holder_gone("one")
        while self.quota_keeper._reservations and any(
            held[1] == "one" for held in self.quota_keeper._reservations.values()
        ):
            self.assertGreaterEqual(self.used().size_bytes + self.reserved().size_bytes, 4500)
            pool.step()
        self.assertEqual((Amount(2500, 1), Amount(2000, 1)), (self.used(), self.reserved()))
        pool.finish()
        self.assert_exact()

    def test_what_it_removed(self) -> None:
        """What it had removed and not said is counted as well."""
        path = self.plant(BOB, b"x" * 2500)
        self.start(10_000)
        path.unlink()
        self.quota_keeper.holder_gone("one")
        self.assert_exact()

    def test_while_it_is_asking(self) -> None:
        """What it was asking for when it ended is not kept for ever."""
        for stage in range(4):
            pool = self.start_counted(10_000)
            asked = self.ask(("carol",), 1 << 12, holder="one")
            for _ in range(stage):
                if pool.jobs:
                    pool.step()
            self.quota_keeper.holder_gone("one")
            pool.finish()
            asked.addErrback(lambda _: None)
            self.assertEqual(Amount(), self.reserved(), stage)
            self.assertEqual({}, self.quota_keeper._reservations)

    def test_committed_behind_a_count_under_way(self) -> None:
        """A count that had passed the place where it has just committed does not tell: another one is needed."""
        self.quotas.repositories = {ALICE: Limit(1 << 40)}
        pool = self.start_counted()
        content = b"x" * 2500
        pool.inline = True
        self.reserve(ALICE, 2500, content=content, holder="one")
        pool.inline = False
        self.quota_keeper.recount(ALICE)
        cell = cell_of("data", id_of(content))
        while not self.passed(cell):
            pool.step()
        self.plant(ALICE, content)
        self.quota_keeper.holder_gone("one")
        while pool.jobs:
            self.assertGreaterEqual(self.used().size_bytes + self.reserved().size_bytes, 2500)
            pool.step()
        self.assert_exact()


class BesideTests(AccountsCase):
    """Uploads and removals beside counts, in any order."""

    def setUp(self) -> None:
        super().setUp()
        self.disk = StepPool()
        self.failures: list[Any] = []

    def upload(self, repository: Repository, content: bytes) -> Deferred[None]:
        """An upload as the routes make it, whose commit waits in a pool."""

        async def upload() -> None:
            admitted: Admitted = await self.admission.admit(None, target_of(repository, content), len(content))
            try:
                await admitted.enter()
                upload = self.store.upload(repository, "data", id_of(content), len(content))
                await self.disk.run(upload.open)
                await self.disk.run(upload.write, [content])
                await self.disk.run(upload.commit)
            finally:
                admitted.end(upload.change)

        return Deferred.fromCoroutine(upload())

    def remove(self, repository: Repository, content: bytes) -> Deferred[None]:
        """A removal as the routes make it."""

        async def remove() -> None:
            admitted = self.admission.admit_removal(target_of(repository, content))
            await admitted.enter()
            removing = self.disk.run(self.store.remove_object, repository, "data", id_of(content))
            removing.addCallbacks(admitted.end, lambda _: admitted.end())
            await removing

        return Deferred.fromCoroutine(remove())

    def test_count_waits_for_a_commit(self) -> None:
        """A directory is counted only when the commit in it has ended and was booked; others wait until it was counted."""
        pool = self.start_counted(1 << 40)
        pool.inline = True
        content = b"x" * 1000
        uploading = self.upload(ALICE, content)
        self.disk.step()
        self.disk.step()
        pool.inline = False
        self.quota_keeper.recount(ALICE)
        self.assertEqual([], pool.jobs)
        late = self.upload(ALICE, content + b"late")
        self.disk.step()
        self.successResultOf(uploading)
        self.assertEqual(1, len(pool.jobs))
        self.assertEqual([], self.disk.jobs)
        while not self.disk.jobs:
            pool.step()
        self.disk.finish()
        pool.finish()
        self.disk.finish()
        self.successResultOf(late)
        self.assert_exact()

    def test_count_waits_for_a_removal(self) -> None:
        """So it does for a removal."""
        self.plant(ALICE, b"x")
        pool = self.start_counted(1 << 40)
        removing = self.remove(ALICE, b"x")
        self.quota_keeper.recount(ALICE)
        self.assertEqual([], pool.jobs)
        self.disk.finish()
        self.successResultOf(removing)
        pool.finish()
        self.assertEqual(Amount(), self.used())

    def stored_of(self, contents: list[bytes]) -> Amount:
        """What is there of these."""
        names = [id_of(content) for content in contents]
        paths = [self.data / where / "data" / name[:2] / name for where in ("alice", "bob") for name in names]
        sizes = [path.stat().st_size for path in paths if path.exists()]
        return Amount(sum(sizes), len(sizes))

    def test_any_order(self) -> None:
        """Whatever the order, the books never have less than the disk, no limit is exceeded, and at the end it is exact."""
        rounds = int(os.environ.get("RESTICSERVER_ORDERS", "25"))
        for seed in range(rounds):
            dice = random.Random(seed)
            shutil.rmtree(self.data)
            self.clock = Clock()
            self.make_store()
            for repository in (ALICE, BOB):
                self.store.create_repository(repository)
            self.disk = LatePool()
            self.quotas.users = {"alice": Limit(6000)}
            pool = self.start_counted(9000)
            contents = [bytes([number]) * dice.randrange(1, 3000) for number in range(8)]
            done: list[Deferred[Any]] = []
            for _ in range(150):
                what = dice.random()
                repository = dice.choice((ALICE, BOB))
                if what < 0.1:
                    done.append(self.upload(repository, dice.choice(contents)))
                elif what < 0.17:
                    done.append(self.remove(repository, dice.choice(contents)))
                elif what < 0.2:
                    self.quota_keeper.recount(repository)
                elif what < 0.22:
                    self.clock.advance(dice.choice((0.1, FRESH_S, COUNT_AGAIN_S)))
                elif what < 0.6 and self.disk.jobs:
                    self.disk.step(dice.randrange(len(self.disk.jobs)))
                elif pool.jobs:
                    pool.step()
                stored = self.stored_of(contents)
                self.assertLessEqual(stored.size_bytes, 9000, seed)
                used, reserved = self.used(), self.reserved()
                self.assertLessEqual(stored.size_bytes, used.size_bytes + reserved.size_bytes, seed)
                self.assertLessEqual(stored.objects, used.objects + reserved.objects, seed)
            while pool.jobs or self.disk.jobs:
                self.disk.finish()
                pool.finish(3)
            for one in done:
                one.addErrback(lambda failure: failure.trap(InsufficientStorage, Unavailable))
                self.successResultOf(one)
            self.assert_exact()
            self.assertEqual(Amount(), self.reserved())
            account = self.quota_keeper.ledger.repositories.get(ALICE)
            on_disk = sum(path.stat().st_size for path in (self.data / "alice").rglob("*") if len(path.name) == 64)
            self.assertEqual(on_disk, account.used_bytes if account is not None else 0)

    def test_deleted_repository(self) -> None:
        """After a repository was deleted, and that was said, it has nothing and its owner neither."""
        self.plant(ALICE, b"x" * 1000)
        self.start(1 << 40)
        self.store.delete_repository(ALICE)
        self.quota_keeper.recount(ALICE)
        self.assertEqual(Amount(), self.used())
        self.assertNotIn(ALICE, self.quota_keeper.ledger.repositories)
        self.clock.advance(COUNT_AGAIN_S)
        self.assertNotIn(ALICE, self.promised())

    def test_made_again(self) -> None:
        """A repository that was deleted and made again counts from nothing."""
        self.test_deleted_repository()
        self.store.create_repository(ALICE)
        uploading = self.upload(ALICE, b"y" * 5)
        self.disk.finish()
        self.successResultOf(uploading)
        self.assert_exact()
