"""
L{resticserver.service.readiness}: whether the data directory takes what is written to it, and how often that is tried.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from resticserver.service.readiness import FRESH_S, PATIENCE_S, Readiness
from resticserver.sizes import FreeSpace
from resticserver.storage.local import LocalStore
from resticserver.storage.publish import Mechanisms, Publisher
from resticserver.storage.readonly import ReadOnlyStore

from ..support.descriptors import left_open, open_descriptors
from ..support.memory import HeldPool

LATE = "the data directory does not respond"


class CountingPool(HeldPool):
    """Keeps jobs, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def run(self, job: Any, *args: Any) -> Deferred[Any]:
        """Keep a job."""
        self.number += 1
        return super().run(job, *args)


class ReadinessCase(SynchronousTestCase):
    """A store with one repository, and a clock."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.path = self.mktemp()
        self.store = self.make_store()

    def make_store(self, **options: Any) -> LocalStore:
        """A store of the data directory."""
        store = LocalStore(self.path, **options)
        store.prepare()
        store.create_repository(("alice",))
        store.volume.mark()
        return store

    def readiness(self, pool: Any = None, store: LocalStore | None = None) -> Readiness:
        """Whether that store is ready."""
        self.pool = pool or HeldPool()
        return Readiness(self.clock, store or self.store, self.pool)

    def look(self, readiness: Readiness) -> Deferred[str]:
        """One who asks."""
        return Deferred.fromCoroutine(readiness.look())

    def found(self, readiness: Readiness) -> str:
        """What one is told who asks now, of a disk that answers at once."""
        asked = self.look(readiness)
        self.pool.release()
        return self.successResultOf(asked)


class FoundTests(ReadinessCase):
    """What makes it ready, and what not."""

    def test_ready(self) -> None:
        """A data directory that takes what is written is ready, and nothing stays in it."""
        before = sorted(str(path) for path in Path(self.path).rglob("*"))
        self.assertEqual("", self.found(self.readiness()))
        self.assertEqual(before, sorted(str(path) for path in Path(self.path).rglob("*")))

    def test_named_temporary_files(self) -> None:
        """Also where there are no unnamed files nothing stays that is not the server's own."""
        store = self.make_store(publisher=Publisher(mechanisms=Mechanisms(unnamed=False)))
        self.assertEqual("", self.found(self.readiness(store=store)))
        left = [name for name in os.listdir(self.path) if name not in ("alice", ".rest-server", ".tmp")]
        self.assertEqual([], left)
        if os.path.isdir(f"{self.path}/.tmp"):
            self.assertEqual([], os.listdir(f"{self.path}/.tmp"))

    def test_no_repository_yet(self) -> None:
        """A server that was just set up is ready."""
        self.path = self.mktemp()
        store = LocalStore(self.path)
        store.prepare()
        self.assertEqual("", self.found(self.readiness(store=store)))

    def test_empty_directory_in_its_place(self) -> None:
        """An unmounted volume: the directory is there, can be written, and is the wrong one. Nothing is written into it."""
        readiness = self.readiness()
        self.assertEqual("", self.found(readiness))
        away = f"{self.path}.away"
        os.rename(self.path, away)
        os.mkdir(self.path)
        self.clock.advance(FRESH_S)
        with capturedLogs():
            self.assertEqual("the volume with the repositories is missing", self.found(readiness))
        self.assertEqual([], os.listdir(self.path))
        os.rmdir(self.path)
        os.rename(away, self.path)
        self.clock.advance(FRESH_S)
        self.assertEqual("", self.found(readiness))

    def test_no_directory(self) -> None:
        """Nothing is there at all."""
        for known in (True, False):
            store = LocalStore(self.path)
            if known:
                store.volume.check()
            shutil.move(self.path, f"{self.path}.away")
            with capturedLogs():
                self.assertIn("is missing" if known else "cannot be written", self.found(self.readiness(store=store)))
            shutil.move(f"{self.path}.away", self.path)

    def test_cannot_be_written(self) -> None:
        """Each way in which writing fails, with its reason: no file can be made, nothing goes in, nothing stays."""

        class Refuses:
            """A publisher whose disk is full, or broken."""

            def __init__(self, publisher: Any) -> None:
                self._publisher = publisher

            def __getattr__(self, name: str) -> Any:
                return getattr(self._publisher, name)

            def fsync(self, fd: int) -> None:
                raise OSError(5, "Input/output error")

        with capturedLogs():
            self.store.publisher, publisher = Refuses(self.store.publisher), self.store.publisher  # type: ignore[assignment]
            self.assertEqual("the data directory cannot be written: Input/output error", self.found(self.readiness()))
            self.store.publisher = publisher
            self.patch(
                publisher, "temporary", lambda *args: (_ for _ in ()).throw(OSError(30, "Read-only file system"))
            )
            self.assertEqual(
                "the data directory cannot be written: Read-only file system", self.found(self.readiness())
            )

    def test_read_only(self) -> None:
        """A server with C{--read-only} is ready where it cannot write, if it can read; any other error is one as ever."""
        store = ReadOnlyStore(self.path)
        store.prepare()
        with capturedLogs():
            for code, ready in ((30, True), (13, True), (5, False)):
                patch = self.patch(
                    store.publisher,
                    "temporary",
                    lambda *args, code=code: (_ for _ in ()).throw(OSError(code, os.strerror(code))),
                )
                self.assertEqual(ready, not self.found(self.readiness(store=store)))
                patch.restore()
            self.patch(
                store.publisher, "temporary", lambda *args: (_ for _ in ()).throw(OSError(30, "Read-only file system"))
            )
            self.patch(os, "scandir", lambda path: (_ for _ in ()).throw(OSError(5, "Input/output error")))
            found = self.found(self.readiness(store=store))
        self.assertEqual("the data directory cannot be read: Input/output error", found)

    def test_not_enough_room(self) -> None:
        """C{--min-free} leaves no room for uploads."""
        store = self.make_store(min_free=FreeSpace(1 << 60, 0.0))
        with capturedLogs():
            self.assertIn("must stay free", self.found(self.readiness(store=store)))

    def test_a_fault(self) -> None:
        """What nobody thought of is not ready, and logged; the next look is as any other."""
        readiness = self.readiness()
        real = self.store.volume.check
        self.patch(self.store.volume, "check", lambda: 1 / 0)
        self.assertEqual("an error in the server", self.found(readiness))
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        self.patch(self.store.volume, "check", real)
        self.clock.advance(FRESH_S)
        self.assertEqual("", self.found(readiness))

    def test_no_descriptors_left(self) -> None:
        """Looks leave nothing open, however they end."""
        store = self.make_store(min_free=FreeSpace(1, 0.0))
        readiness = self.readiness(store=store)
        self.assertEqual("", self.found(readiness))
        before = open_descriptors()
        with capturedLogs():
            for number in range(20):
                self.clock.advance(FRESH_S)
                assert store.free_space is not None
                full = number % 2
                store.free_space.coming(1 << 60 if full else -(1 << 60) if number else 0)
                self.assertEqual(bool(full), bool(self.found(readiness)))
        self.assertEqual([], left_open(before))

    def test_said_once(self) -> None:
        """The log says when it becomes not ready, and why, and when it is ready again, each once; and at the start nothing."""
        readiness = self.readiness()
        real = self.store.volume.check
        with capturedLogs() as events:
            self.assertEqual("", self.found(readiness))

            def broken() -> None:
                raise OSError(5, "Input/output error")

            self.store.volume.check = broken  # type: ignore[method-assign]
            for _ in range(3):
                self.clock.advance(FRESH_S)
                self.found(readiness)
            self.store.volume.check = real  # type: ignore[method-assign]
            for _ in range(3):
                self.clock.advance(FRESH_S)
                self.found(readiness)
        self.assertEqual(
            ["not ready: the data directory cannot be written: Input/output error", "ready again"],
            [event["state"] for event in events if "state" in event],
        )


class AskersTests(ReadinessCase):
    """How many jobs many who ask make, and how long they wait."""

    def test_fresh(self) -> None:
        """What was found holds for C{FRESH_S} for all who ask, and not longer."""
        pool = CountingPool()
        readiness = self.readiness(pool)
        for _ in range(50):
            self.assertEqual("", self.found(readiness))
        self.clock.advance(FRESH_S - 0.01)
        self.found(readiness)
        self.assertEqual(1, pool.number)
        self.clock.advance(0.01)
        self.found(readiness)
        self.assertEqual(2, pool.number)

    def test_fresh_from_its_end(self) -> None:
        """A slow disk is not asked again at once: what was found is as old as its end, not as its beginning."""
        pool = HeldPool()
        readiness = self.readiness(pool)
        asker = self.look(readiness)
        self.clock.advance(2.9)
        pool.release()
        self.assertEqual("", self.successResultOf(asker))
        self.clock.advance(FRESH_S - 0.01)
        self.assertEqual("", self.found(readiness))
        self.assertEqual([], pool.jobs)

    def test_bad_news_is_fresh_too(self) -> None:
        """What is not ready is looked at as seldom, and seen to be ready again as soon."""
        pool = CountingPool()
        readiness = self.readiness(pool)
        os.rename(self.path, f"{self.path}.away")
        with capturedLogs():
            self.assertNotEqual("", self.found(readiness))
            os.rename(f"{self.path}.away", self.path)
            self.assertNotEqual("", self.found(readiness))
            self.assertEqual(1, pool.number)
            self.clock.advance(FRESH_S)
            self.assertEqual("", self.found(readiness))

    def test_one_job_for_many(self) -> None:
        """Whoever asks while one looks waits for the same look."""
        pool = HeldPool()
        readiness = self.readiness(pool)
        askers = [self.look(readiness)]
        self.clock.advance(1)
        askers += [self.look(readiness) for _ in range(20)]
        self.assertEqual(1, len(pool.jobs))
        for asker in askers:
            self.assertNoResult(asker)
        pool.release()
        self.assertEqual([""] * 21, [self.successResultOf(asker) for asker in askers])

    def test_all_are_told_the_same(self) -> None:
        """Also bad news is for all who waited, and said once."""
        pool = HeldPool()
        readiness = self.readiness(pool)
        askers = [self.look(readiness) for _ in range(3)]
        shutil.rmtree(self.path)
        with capturedLogs() as events:
            pool.release()
        answers = {self.successResultOf(asker) for asker in askers}
        self.assertEqual(1, len(answers))
        self.assertNotIn("", answers)
        self.assertEqual(1, len([event for event in events if "state" in event]))

    def test_hung(self) -> None:
        """A disk that hangs is not ready after C{PATIENCE_S}, for each who asks, and takes one thread alone."""
        pool = HeldPool()
        readiness = self.readiness(pool)
        with capturedLogs():
            first = self.look(readiness)
            self.clock.advance(PATIENCE_S - 0.01)
            self.assertNoResult(first)
            self.clock.advance(0.01)
            self.assertEqual(LATE, self.successResultOf(first))
            for _ in range(10):
                asker = self.look(readiness)
                self.clock.advance(PATIENCE_S)
                self.assertEqual(LATE, self.successResultOf(asker))
        self.assertEqual(1, len(pool.jobs))
        self.assertEqual([], self.clock.getDelayedCalls())
        pool.release()
        self.clock.advance(FRESH_S)
        with capturedLogs():
            asker = self.look(readiness)
            pool.release()
            self.assertEqual("", self.successResultOf(asker))

    def test_object_store(self) -> None:
        """What does not respond is called what it is."""
        self.store.volume.words = "the object store"
        readiness = self.readiness(HeldPool())
        with capturedLogs():
            asker = self.look(readiness)
            self.clock.advance(PATIENCE_S)
            self.assertEqual("the object store does not respond", self.successResultOf(asker))

    def test_hung_and_back(self) -> None:
        """
        A disk that answered late, after its last asker was told that it does not, has answered: the next is told what was found.
        """
        pool = HeldPool()
        readiness = self.readiness(pool)
        with capturedLogs():
            asker = self.look(readiness)
            self.clock.advance(PATIENCE_S)
            self.assertEqual(LATE, self.successResultOf(asker))
            self.clock.advance(1)
            pool.release()
            self.clock.advance(0.1)
            self.assertEqual("", self.found(readiness))

    def test_who_asks_goes_away(self) -> None:
        """
        A health check of less patience than ours: the look goes on, and who asks next is told what it has found, and nothing
        of an earlier state.
        """
        pool = HeldPool()
        readiness = self.readiness(pool)
        asker = self.look(readiness)
        self.clock.advance(1)
        asker.cancel()
        self.failureResultOf(asker, CancelledError)
        self.clock.advance(0.5)
        pool.release()
        self.clock.advance(0.5)
        self.assertEqual("", self.found(readiness))

    def test_who_asks_goes_away_from_others(self) -> None:
        """One who goes away takes nothing from those who wait with them."""
        pool = HeldPool()
        readiness = self.readiness(pool)
        gone, stays = self.look(readiness), self.look(readiness)
        gone.cancel()
        self.failureResultOf(gone, CancelledError)
        self.assertNoResult(stays)
        pool.release()
        self.assertEqual("", self.successResultOf(stays))
        self.assertEqual([], self.clock.getDelayedCalls())
