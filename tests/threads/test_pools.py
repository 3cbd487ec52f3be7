"""
The thread pools: jobs elsewhere, answers in the reactor's thread, and an orderly end.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import TestCase

from resticserver.threads.interface import Pool
from resticserver.threads.pools import JobPool, QuickPool
from resticserver.threads.serial_jobs import SerialJobs
from resticserver.threads.steps import Steps, stepped

from ..support.waiting import wait_until
from ..support.wires import as_reactor

#: No test waits so long; it only keeps a broken one from hanging for ever.
PATIENCE_S = 60.0


class JobPoolTests(TestCase):
    """L{JobPool}."""

    timeout = PATIENCE_S

    def started(self, size: int = 4) -> JobPool:
        """A pool that takes jobs and is stopped at the end of the test."""
        pool = JobPool(reactor, "jobs", size)  # type: ignore[arg-type]
        pool.startService()
        self.addCleanup(lambda: pool.stopService() if pool.running else None)
        return pool

    def gate(self) -> threading.Event:
        """What a job waits for; opened at the end of the test in any case."""
        event = threading.Event()
        self.addCleanup(event.set)
        return event

    async def test_broken_callback(self) -> None:
        """A result that cannot be used is logged, and the others come all the same."""
        pool = self.started()
        pool.call(lambda result: result // 0, lambda: 1)
        self.assertEqual(2, await pool.run(lambda: 2))
        while pool._running:
            await deferLater(reactor, 0.001)
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))

    async def test_result(self) -> None:
        """A job runs in another thread with its arguments; its result comes back in the reactor's."""
        pool = self.started()
        here: list[threading.Thread] = []

        def job(*arguments: int) -> tuple[int, threading.Thread]:
            return sum(arguments), threading.current_thread()

        def answered(result: tuple[int, threading.Thread]) -> tuple[int, threading.Thread]:
            here.append(threading.current_thread())
            return result

        total, thread = await pool.run(job, 1, 2, 3).addCallback(answered)
        self.assertEqual(6, total)
        self.assertIsNot(threading.current_thread(), thread)
        self.assertEqual([threading.current_thread()], here)

    async def test_failure(self) -> None:
        """What a job raises comes back as a failure, and the pool goes on."""
        pool = self.started()
        with self.assertRaises(ZeroDivisionError):
            await pool.run(lambda: 1 // 0)
        self.assertEqual(1, await pool.run(lambda: 1))

    async def test_size(self) -> None:
        """As many jobs run at once as the pool is large, and no more."""
        pool = self.started(3)
        together = threading.Barrier(3)
        lock, inside, most = threading.Lock(), [0], [0]

        def job() -> None:
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            together.wait(PATIENCE_S)
            with lock:
                inside[0] -= 1

        await gatherResults([pool.run(job) for _ in range(9)])
        self.assertEqual(3, most[0])

    async def test_pools_do_not_wait_for_each_other(self) -> None:
        """A pool whose threads are all busy keeps no other from its work."""
        one, other = self.started(1), self.started(1)
        gate = self.gate()
        busy = one.run(gate.wait, PATIENCE_S)
        self.assertEqual(1, await other.run(lambda: 1))
        gate.set()
        self.assertTrue(await busy)

    async def test_stop(self) -> None:
        """A pool that stops lets the jobs that run and those that wait come to their end."""
        pool = self.started(1)
        gate = self.gate()
        results: list[Any] = []
        for job in (gate.wait, lambda: "second"):
            pool.run(job).addCallback(results.append)
        stopped = pool.stopService()
        self.assertNoResult(stopped)
        gate.set()
        await stopped
        self.assertEqual([True, "second"], results)

    async def test_stop_idle(self) -> None:
        """One that has nothing to do stops at once, and leaves no thread."""
        pool = self.started()
        await pool.run(lambda: None)
        await pool.stopService()
        self.assertEqual([], [thread for thread in threading.enumerate() if "jobs" in thread.name])

    async def test_stop_with_a_failing_job(self) -> None:
        """A job that fails last does not keep the pool from stopping."""
        pool = self.started(1)
        gate = self.gate()

        def job() -> None:
            gate.wait(PATIENCE_S)
            raise ValueError

        result = pool.run(job)
        stopped = pool.stopService()
        gate.set()
        await stopped
        self.failureResultOf(result, ValueError)

    async def test_what_a_job_leaves_to_be_done(self) -> None:
        """
        A job that follows from the end of the last one (an upload is aborted behind the write that runs) is done too
        before the threads go: else a temporary file would be left.
        """
        pool = self.started(1)
        gate = self.gate()
        done: list[str] = []
        jobs = SerialJobs(pool)
        jobs.run(gate.wait)
        jobs.close(lambda: done.append("closed"))
        stopped = pool.stopService()
        gate.set()
        await stopped
        self.assertEqual(["closed"], done)

    async def test_jobs_that_follow_each_other(self) -> None:
        """The same for a whole row of jobs, each from the end of the one before."""
        pool = self.started(1)
        gate = self.gate()
        done: list[int] = []

        def next_one(_: object, number: int) -> None:
            done.append(number)
            if number < 5:
                pool.run(lambda: None).addCallback(next_one, number + 1)

        pool.run(gate.wait).addCallback(next_one, 1)
        stopped = pool.stopService()
        gate.set()
        await stopped
        self.assertEqual([1, 2, 3, 4, 5], done)


class Turns(Clock):
    """A reactor whose turns a test counts, and that takes calls of threads when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.called: SimpleQueue[Callable[[], object]] = SimpleQueue()

    def callFromThread(self, call: Callable[[], object]) -> None:
        """Twisted's call."""
        self.called.put(call)

    def turn(self) -> None:
        """One turn. A Clock itself would make those that follow from it as well."""
        calls, self.calls = self.calls, []
        for call in calls:
            call.called = 1
            call.func(*call.args, **call.kw)

    def call_all(self) -> None:
        """Do what threads want."""
        while not self.called.empty():
            self.called.get()()


class QuickPoolTests(JobPoolTests):
    """L{QuickPool}: all that L{JobPool} does, and by how many threads."""

    def started(self, size: int = 4, **attributes: float) -> QuickPool:
        """
        A pool that takes jobs and is stopped at the end of the test.

        @param attributes: of the class, that are other ones here.
        """
        pool = QuickPool(reactor, "jobs", size)  # type: ignore[arg-type]
        for name, value in attributes.items():
            setattr(pool, name, value)
        pool.startService()
        self.addCleanup(lambda: pool.stopService() if pool.running else None)
        return pool

    async def together(self, pool: JobPool, number: int, moment_s: float = 0.2) -> int:
        """By how many threads so many jobs are done that come at once, and that each wait for the others a moment at most."""
        barrier = threading.Barrier(number)

        def job() -> int:
            with contextlib.suppress(threading.BrokenBarrierError):
                barrier.wait(moment_s)
            return threading.get_ident()

        return len(set(await gatherResults([pool.run(job) for _ in range(number)])))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what threads do."""
        while not condition():
            await deferLater(reactor, 0.001)

    async def test_quick(self) -> None:
        """One thread is enough for jobs that are quick."""
        pool = self.started(PATIENCE_S=PATIENCE_S, QUICK_S=PATIENCE_S)
        threads = set()
        for _ in range(5):
            threads |= set(await gatherResults([pool.run(threading.get_ident) for _ in range(20)]))
        self.assertEqual(1, len(threads))
        self.assertEqual(1, await self.together(pool, 3))

    async def test_handed_over_together(self) -> None:
        """Jobs begin when the reactor has come round, and results of quick ones come back together."""
        pool = self.started(HOLD_S=PATIENCE_S, QUICK_S=PATIENCE_S, PATIENCE_S=PATIENCE_S)
        began: list[int] = []
        ended: list[int] = []
        gate = self.gate()

        def job(number: int) -> int:
            began.append(number)
            return number

        def wait() -> None:
            began.append(3)
            gate.wait(PATIENCE_S)

        jobs = [pool.run(job, number).addCallback(ended.append) for number in range(3)]
        last = pool.run(wait)
        self.assertEqual([], began)
        await self.until(lambda: len(began) == 4)
        self.assertEqual([], ended)
        gate.set()
        await gatherResults([*jobs, last])
        self.assertEqual([0, 1, 2], ended)

    def test_waits_for_more(self) -> None:
        """New jobs are held back while each turn of the reactor brings more of them, but only for a few turns."""
        turns = Turns()
        pool = QuickPool(as_reactor(turns), "jobs", 2)
        pool.startService()
        self.addCleanup(pool.stopService)
        began: SimpleQueue[int] = SimpleQueue()
        for number in range(2):
            pool.call(began.put, began.put, number)
            turns.turn()
            self.assertEqual(number + 1, len(pool._new))
        turns.turn()
        self.assertEqual([], pool._new)
        self.assertEqual([0, 1], [began.get(timeout=PATIENCE_S) for _ in range(2)])
        wait_until(lambda: len(pool._asleep) == 2)
        for number in range(QuickPool.MOST_HOLDS + 1):
            self.assertEqual(number, len(pool._new))
            pool.call(began.put, began.put, number)
            turns.turn()
        self.assertEqual([], pool._new)
        while pool._running:
            turns.call_all()

    async def test_a_slow_one_holds_up_nobody(self) -> None:
        """Behind a job that takes long the others are done by other threads, and what ended before it comes back."""
        pool = self.started(HOLD_S=PATIENCE_S)
        gate = self.gate()
        before = pool.run(lambda: "before")
        slow = pool.run(gate.wait, PATIENCE_S)
        behind = [pool.run(lambda: "behind") for _ in range(5)]
        self.assertEqual("before", await before)
        self.assertEqual(["behind"] * 5, await gatherResults(behind))
        self.assertEqual("later", await pool.run(lambda: "later"))
        self.assertNoResult(slow)
        gate.set()
        self.assertTrue(await slow)

    async def test_all_slow(self) -> None:
        """When jobs take long, each has a thread from the start."""
        pool = self.started(PATIENCE_S=PATIENCE_S, QUICK_S=-1.0, SLOW_S=PATIENCE_S)
        for _ in range(10):
            await pool.run(lambda: None)
        self.assertEqual(3, await self.together(pool, 3, PATIENCE_S))

    async def test_slow_once(self) -> None:
        """A slow one now and then makes no slow pool."""
        pool = self.started(PATIENCE_S=PATIENCE_S, SLOW_S=PATIENCE_S, QUICK_S=PATIENCE_S)
        for number in range(20):
            pool.QUICK_S = -1.0 if number % 2 else PATIENCE_S
            await pool.run(lambda: None)
        self.assertEqual(1, await self.together(pool, 3))

    async def test_not_slow_for_ever(self) -> None:
        """After a while it is tried again whether one thread is enough."""
        pool = self.started(PATIENCE_S=PATIENCE_S, QUICK_S=-1.0, SLOW_S=PATIENCE_S)
        for _ in range(10):
            await pool.run(lambda: None)
        self.assertEqual(3, await self.together(pool, 3, PATIENCE_S))
        pool._slow.until_s = 0.0
        pool.QUICK_S = PATIENCE_S
        self.assertEqual(1, await self.together(pool, 3))

    async def test_goes_back_to_one(self) -> None:
        """Threads that helped do not go on side by side when jobs are quick again."""
        pool = self.started(QUICK_S=PATIENCE_S)
        gate = self.gate()
        began: list[int] = []

        def wait() -> None:
            began.append(1)
            gate.wait(PATIENCE_S)

        slow = [pool.run(wait) for _ in range(3)]
        await self.until(lambda: len(began) == 3)
        pool.PATIENCE_S = PATIENCE_S
        pool._slow.until_s = 0.0
        more = [pool.run(threading.get_ident) for _ in range(100)]
        gate.set()
        await gatherResults(slow)
        self.assertLessEqual(len(set((await gatherResults(more))[5:])), 1)


class GatedDisk:
    """
    Waits for a gate in each fsync.

    @ivar calls: how many descriptors each call had.
    """

    def __init__(self, gate: threading.Event) -> None:
        self.gate = gate
        self.calls: list[int] = []

    def fsync(self, fd: int) -> None:
        """One."""
        self.fsync_all([fd])

    def fsync_all(self, fds: Sequence[int]) -> list[OSError | None]:
        """Several."""
        self.calls.append(len(fds))
        self.gate.wait(PATIENCE_S)
        return [OSError(5, "no") if fd == 13 else None for fd in fds]


@stepped
def store(disk: GatedDisk, fd: int) -> Steps[int]:
    """A job with a step."""
    yield disk, fd
    return fd


class SideBySideTests(JobPoolTests):
    """L{QuickPool} with jobs that wait for fsync in steps."""

    def started(self, size: int = 4, **attributes: float) -> QuickPool:
        """See L{QuickPoolTests.started}; as if its jobs had been slow."""
        pool = QuickPool(reactor, "jobs", size, together=True)  # type: ignore[arg-type]
        for name, value in attributes.items():
            setattr(pool, name, value)
        pool._slow_steps.until_s = time.monotonic() + PATIENCE_S
        pool.startService()
        self.addCleanup(lambda: pool.stopService() if pool.running else None)
        return pool

    def disk(self) -> GatedDisk:
        """A disk that waits."""
        gate = threading.Event()
        self.addCleanup(gate.set)
        return GatedDisk(gate)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what threads do."""
        while not condition():
            await deferLater(reactor, 0.001)

    async def test_side_by_side(self) -> None:
        """What came meanwhile waits together, in one thread, and each has its own end."""
        pool, disk = self.started(PATIENCE_S=PATIENCE_S), self.disk()
        first = pool.run(store, disk, 1)
        await self.until(lambda: len(disk.calls) == 1)
        others = [pool.run(store, disk, fd) for fd in (2, 13, 4)]
        plain = pool.run(threading.get_ident)
        last = [pool.run(store, disk, fd) for fd in (5, 6)]
        await deferLater(reactor, 0.01)
        disk.gate.set()
        self.assertEqual(1, await first)
        self.assertEqual([2, 4], [await others[0], await others[2]])
        with self.assertRaises(OSError):
            await others[1]
        await plain
        self.assertEqual([5, 6], await gatherResults(last))
        self.assertEqual([1, 3, 2], disk.calls)

    async def test_quick(self) -> None:
        """Where jobs are quick, one runs after the other."""
        pool, disk = self.started(PATIENCE_S=PATIENCE_S, QUICK_STEPS_S=PATIENCE_S), self.disk()
        disk.gate.set()
        pool._slow_steps.until_s = 0.0
        await gatherResults([pool.run(store, disk, fd) for fd in range(10)])
        self.assertEqual([1] * 10, disk.calls)

    async def test_slow_is_noticed(self) -> None:
        """When they take longer, they are run side by side from then on."""
        pool, disk = self.started(PATIENCE_S=PATIENCE_S, QUICK_STEPS_S=-1.0), self.disk()
        disk.gate.set()
        pool._slow_steps.until_s = 0.0
        await gatherResults([pool.run(store, disk, fd) for fd in range(10)])
        disk.calls.clear()
        await gatherResults([pool.run(store, disk, fd) for fd in range(20, 30)])
        self.assertEqual([10], disk.calls)

    async def test_slow_steps(self) -> None:
        """When single steps are slow, each has a thread; those behind one that waits do not wait for long."""
        pool, disk = self.started(), self.disk()
        first = pool.run(store, disk, 1)
        await self.until(lambda: len(disk.calls) == 1)
        second = [pool.run(store, disk, fd) for fd in (2, 3)]
        await self.until(lambda: len(disk.calls) == 2)
        pool._slow.until_s = time.monotonic() + PATIENCE_S
        third = [pool.run(store, disk, fd) for fd in (4, 5)]
        await self.until(lambda: len(disk.calls) == 4)
        self.assertEqual([1, 2, 1, 1], disk.calls)
        disk.gate.set()
        await gatherResults([first, *second, *third])


class HeldPool(Pool):
    """A pool whose jobs run when the test says so."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Any, tuple[Any, ...], Deferred[Any]]] = []

    def run(self, job: Any, *args: Any) -> Deferred[Any]:
        """Keep a job."""
        result: Deferred[Any] = Deferred()
        self.jobs.append((job, args, result))
        return result

    def next(self) -> None:
        """Run the oldest."""
        job, args, result = self.jobs.pop(0)
        try:
            result.callback(job(*args))
        except Exception:
            result.errback()


class JobsTests(TestCase):
    """L{SerialJobs}: the jobs on one thing, and its end behind them."""

    def setUp(self) -> None:
        """A pool by hand."""
        self.pool = HeldPool()
        self.jobs = SerialJobs(self.pool)
        self.done: list[str] = []

    def test_result(self) -> None:
        """Results and failures come through."""
        result = self.jobs.run(lambda number: number + 1, 1)
        self.pool.next()
        self.assertEqual(2, self.successResultOf(result))
        failed = self.jobs.run(lambda: 1 // 0)
        self.pool.next()
        self.failureResultOf(failed, ZeroDivisionError)

    def test_close_when_idle(self) -> None:
        """The end comes at once where no job runs, by the pool too."""
        self.jobs.close(lambda: self.done.append("closed"))
        self.assertEqual([], self.done)
        self.pool.next()
        self.assertEqual(["closed"], self.done)

    def test_close_behind_a_job(self) -> None:
        """While a job runs its end waits: a file must not be closed under a write."""
        self.jobs.run(lambda: self.done.append("written"))
        self.jobs.close(lambda: self.done.append("closed"))
        self.assertEqual(1, len(self.pool.jobs))
        self.pool.next()
        self.pool.next()
        self.assertEqual(["written", "closed"], self.done)

    def test_close_behind_a_cancelled_job(self) -> None:
        """Whoever waits for a job may be gone; the job is not, and the end still comes behind it."""
        result = self.jobs.run(lambda: self.done.append("written"))
        result.addErrback(lambda failure: None)
        result.cancel()
        self.jobs.close(lambda: self.done.append("closed"))
        self.assertEqual([], self.done)
        self.pool.next()
        self.pool.next()
        self.assertEqual(["written", "closed"], self.done)

    def test_close_behind_a_failed_job(self) -> None:
        """Nor does a failure keep it from coming."""
        result = self.jobs.run(lambda: 1 // 0)
        self.jobs.close(lambda: self.done.append("closed"))
        self.pool.next()
        self.pool.next()
        self.failureResultOf(result, ZeroDivisionError)
        self.assertEqual(["closed"], self.done)

    def test_closed_once(self) -> None:
        """Only the first end counts."""
        self.jobs.close(lambda: self.done.append("first"))
        self.jobs.close(lambda: self.done.append("second"))
        self.pool.next()
        self.assertEqual(([], ["first"]), (self.pool.jobs, self.done))

    def test_end_fails(self) -> None:
        """An end that fails is logged."""
        self.jobs.close(lambda: 1 // 0)  # type: ignore[arg-type]
        self.pool.next()
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
