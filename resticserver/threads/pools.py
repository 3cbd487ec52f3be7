"""
The server's own thread pools, so that disk access, password checks and the reactor's name look-ups never wait for each
other.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar, cast

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorFromThreads, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from .interface import Pool
from .steps import Stepped, run_together

T = TypeVar("T")


@dataclass(frozen=True)
class Pools:
    """
    The pools for a store's blocking calls.

    @ivar disk: for all that may wait for a disk.
    @ivar writers: hashes and writes the bytes of large uploads.
    @ivar quick: for what is short where the disk is quick: small uploads, removals.
    """

    disk: Pool
    writers: Pool
    quick: Pool


#: What to call with the result, the job, and its arguments.
_Job = tuple[Callable[[Any], object], Callable[..., Any], tuple[Any, ...]]

_log = Logger()


class JobPool(Service, Pool):
    """
    A thread pool as a service. All threads start with the service: starting one later would block the reactor for as
    long as busy threads keep it from the interpreter's lock.

    This is not Twisted's C{ThreadPool}. A queue written in C, and one reactor wake-up shared by several jobs, cost a
    fraction of its overhead per job, and most jobs here are short.

    @param size: how many jobs may run concurrently.
    @param nice: the nice value of its threads (Linux only, where threads have their own priority).
    """

    def __init__(self, reactor: IReactorFromThreads, name: str, size: int, nice: int = 0) -> None:
        self._reactor = reactor
        self._size = size
        self._nice = nice
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._ended: deque[tuple[Callable[[Any], object], Any]] = deque()
        #: True while a call of _answer is scheduled.
        self._told = False
        self._running = 0
        self._idle: list[Deferred[None]] = []
        self.setName(name)

    def startService(self) -> None:
        """Start the threads."""
        super().startService()
        for number in range(self._size):
            # A daemon thread, so that a job cannot block the exit of a process that ends abnormally.
            thread = threading.Thread(target=self._work, name=f"{self.name}-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stopService(self) -> Deferred[None]:
        """Wait for all jobs, then end the threads."""
        super().stopService()
        return self._idle_now().addCallback(lambda _: self._end_threads())

    def run(self, job: Callable[..., T], *args: Any) -> Deferred[T]:
        """Run C{job(*args)} in a thread; the Deferred fires with its result in the reactor's thread."""
        waiting: Deferred[T] = Deferred()
        self.call(waiting.callback, job, *args)
        return waiting

    def call(self, done: Callable[[Any], object], job: Callable[..., Any], *args: Any) -> None:
        """See L{Pool.call}. What C{done} raises is logged."""
        self._running += 1
        self._jobs.put((done, job, args))

    def _end_threads(self) -> None:
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _work(self) -> None:
        """The main loop of a thread."""
        if self._nice and sys.platform == "linux":
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        while True:
            item = self._jobs.get()
            if item is None:
                return
            self._run_one(*item)
            self._tell()
            # Otherwise the arguments of the last job would live until the next job.
            del item

    def _run_one(self, done: Callable[[Any], object], job: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Run a job, and keep its result."""
        result: Any
        try:
            result = job(*args)
        except BaseException:
            result = Failure()
        self._ended.append((done, result))

    def _tell(self) -> None:
        """Schedule the delivery of results in the reactor's thread."""
        # _answer works in the opposite order: it resets this flag before it looks. So a result appended after its look
        # finds the flag False.
        if not self._told:
            self._told = True
            self._reactor.callFromThread(self._answer)

    def _answer(self) -> None:
        """Deliver the available results. Called in the reactor's thread."""
        self._told = False
        # Only the results that are available now: their callbacks may produce more results immediately, and the
        # sockets must get their turn.
        for _ in range(len(self._ended)):
            done, result = self._ended.popleft()
            try:
                done(result)
            except Exception:
                _log.failure("could not use the result of a job")
            # That may have started another job, so only now is it clear whether the pool is idle.
            self._running -= 1
        if not self._running:
            idle, self._idle = self._idle, []
            for stopping in idle:
                stopping.callback(None)

    def _idle_now(self) -> Deferred[None]:
        """Return a Deferred that fires when no job is left."""
        waiting: Deferred[None] = Deferred()
        if self._running:
            self._idle.append(waiting)
        else:
            waiting.callback(None)
        return waiting


class _Evidence:
    """
    Whether jobs are slow: true for a while when the signs of it are more than those against it.

    @cvar ENOUGH: by how many.
    @ivar until_s: the end of that while, of the monotonic clock.
    """

    ENOUGH = 8

    def __init__(self) -> None:
        self._signs = 0
        self.until_s = 0.0

    def add(self, weight: int, lasts_s: float) -> None:
        """Note a sign for it, or (negative) against it; it lasts for so many seconds if it is enough."""
        self._signs = max(0, self._signs + weight)
        if self._signs >= self.ENOUGH:
            self._signs = 0
            self.until_s = time.monotonic() + lasts_s


class QuickPool(JobPool):
    """
    A pool for jobs that are short on a fast disk but wait on a slow one: small uploads and removals.

    Threads with such short jobs slow down each other and the reactor's thread. Each system call releases the
    interpreter's lock and wakes a waiting thread, and then takes the lock back before that thread has run. So this
    pool hands over jobs only after the reactor has served its sockets, runs them all in one thread, and delivers their
    results together. The reactor's thread sleeps meanwhile.

    This works as long as jobs are short. When a job takes longer, the jobs behind it get a thread each after
    L{PATIENCE_S}. When most jobs take longer, each gets a thread immediately for the next L{SLOW_S}, so that many jobs
    can wait for a slow disk concurrently.

    Jobs that wait for fsync in steps (L{resticserver.threads.steps}) need no threads of their own for that. When most of
    them take longer, those that came while the thread was busy are run side by side: begun together, and waiting together;
    while they wait, another thread begins what has come. Only if something else in a job takes long, each gets a thread.

    @param together: whether one thread can wait for several fsyncs at the same time.
    @cvar HOLD_S: how long a result may wait for the results of the jobs behind it.
    @cvar PATIENCE_S: how long a job waits for the one before it; up to twice as long in practice.
    @cvar QUICK_S: the longest duration of a quick job. With longer jobs, several threads are faster than one.
    @cvar QUICK_STEPS_S: the same for a job with steps, if several can wait together.
    @cvar SLOW_S: how long the pool stays in slow mode. A slow phase that began by chance must not prolong itself by
        threads that slow each other down.
    """

    HOLD_S = 0.01
    PATIENCE_S = 0.002
    QUICK_S = 0.0005
    QUICK_STEPS_S = 0.0003
    SLOW_S = 1.0

    #: For how many turns of the reactor new jobs are held back at most.
    MOST_HOLDS = 4
    #: How many jobs are run side by side at most.
    MOST_TOGETHER = 32

    def __init__(self, reactor: IReactorFromThreads, name: str, size: int, together: bool = False) -> None:
        super().__init__(reactor, name, size)
        self._clock = IReactorTime(reactor)
        self._together = together
        #: Jobs that the reactor has not handed over yet, and jobs that no thread has taken yet.
        self._new: list[_Job] = []
        self._waiting: deque[_Job] = deque()
        #: The queue that each thread sleeps on. Of these: the ones of sleeping threads (the last one is woken first),
        #: and the ones not assigned to a thread yet.
        self._wakeups: list[SimpleQueue[bool]] = [SimpleQueue() for _ in range(size)]
        self._asleep = list(self._wakeups)
        self._free_beds: list[SimpleQueue[bool]] = []
        #: How many of the new jobs were held back for others, and for how many turns.
        self._held = self._holds = 0
        #: Guards the waiting jobs and the sleeping threads: no job may be added between a thread's last look and its
        #: sleep.
        self._guard = threading.Lock()
        #: Counts what jobs have done: their begin and their steps.
        self._moves = 0
        self._moves_before = 0
        self._looking: IDelayedCall | None = None
        #: Whether jobs need a thread each, and whether those with steps are to be run side by side.
        self._slow = _Evidence()
        self._slow_steps = _Evidence()
        #: How many threads wait for several fsyncs now.
        self._waits = 0

    def startService(self) -> None:
        """Start the threads."""
        self._free_beds = list(self._wakeups)
        super().startService()

    def call(self, done: Callable[[Any], object], job: Callable[..., Any], *args: Any) -> None:
        """See L{Pool.call}."""
        self._running += 1
        if not self._new:
            self._clock.callLater(0, self._hand_over)
        self._new.append((done, job, args))

    def _hand_over(self) -> None:
        """
        Let the new jobs begin. Called in the reactor's thread, after it has served its sockets. While its turns bring more of
        them they wait, for L{MOST_HOLDS} turns: clients that were answered together ask again within a few turns, and a
        thread that has begun and the reactor's slow each other down.
        """
        if len(self._new) > self._held and self._holds < self.MOST_HOLDS and len(self._asleep) == self._size:
            self._held = len(self._new)
            self._holds += 1
            self._clock.callLater(0, self._hand_over)
            return
        self._held = self._holds = 0
        new, self._new = self._new, []
        with self._guard:
            self._waiting.extend(new)
            if time.monotonic() < self._slow.until_s:
                self._wake(len(self._waiting))
            elif len(self._asleep) + self._waits >= self._size:
                self._wake(1)
        if self._looking is None:
            self._look_later()

    def _wake(self, wanted: int) -> None:
        for _ in range(min(wanted, len(self._asleep))):
            self._asleep.pop().put(True)

    def _look_later(self) -> None:
        self._moves_before = self._moves
        self._looking = self._clock.callLater(self.PATIENCE_S, self._look)

    def _look(self) -> None:
        """
        Check whether one job blocks the others. Called at intervals in the reactor's thread while there are jobs.
        """
        self._looking = None
        with self._guard:
            if self._waiting and self._moves == self._moves_before:
                if self._gathers(time.monotonic()):
                    self._wake(1)  # it takes all; how slow steps are is known at the end of those that run
                else:
                    self._wake(len(self._waiting))
                    self._evidence_of(self._waiting[0][1]).add(2, self.SLOW_S)  # as much as two slow jobs
        # Also deliver results that were held back for the job that takes so long.
        if self._moves == self._moves_before:
            self._answer()
        if self._running:
            self._look_later()

    def _end_threads(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        for bed in self._wakeups:
            bed.put(False)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _work(self) -> None:
        """The main loop of a thread."""
        bed = self._free_beds.pop()
        while bed.get():
            self._work_off(bed)

    def _work_off(self, bed: SimpleQueue[bool]) -> None:
        """Run jobs until none is left."""
        told = time.monotonic()
        quick = False
        while True:
            with self._guard:
                # One thread is enough as long as jobs are quick, and only a thread that runs alone can tell whether
                # they are.
                if not self._waiting or (quick and len(self._asleep) + self._waits < self._size - 1):
                    self._asleep.append(bed)
                    break
                jobs, together = self._take()
                self._moves += 1
            if together:
                longest_s, quick_s = self._run_together(jobs), self.PATIENCE_S
                evidence = self._slow
            else:
                began_s = time.monotonic()
                self._run_one(*jobs[0])
                longest_s = time.monotonic() - began_s
                evidence = self._evidence_of(jobs[0][1])
                quick_s = self.QUICK_STEPS_S if evidence is self._slow_steps else self.QUICK_S
            del jobs
            ended = time.monotonic()
            quick = ended >= self._slow.until_s
            # Concurrent jobs slow each other down, so their durations say nothing about the disk.
            if len(self._asleep) == self._size - 1:
                evidence.add(1 if longest_s > quick_s else -1, self.SLOW_S)
            if together or longest_s > self.QUICK_S or ended - told > self.HOLD_S:
                told = ended
                self._tell()
        self._tell()

    def _take(self) -> tuple[list[_Job], bool]:
        """The next job, or those that are to be run side by side, which may be one; and whether they are."""
        jobs = [self._waiting.popleft()]
        if not isinstance(jobs[0][1], Stepped) or not self._gathers(time.monotonic()):
            return jobs, False
        while self._waiting and len(jobs) < self.MOST_TOGETHER and isinstance(self._waiting[0][1], Stepped):
            jobs.append(self._waiting.popleft())
        return jobs, True

    def _gathers(self, now_s: float) -> bool:
        """Whether jobs are run side by side now."""
        return self._together and self._slow.until_s <= now_s < self._slow_steps.until_s

    def _evidence_of(self, job: Callable[..., Any]) -> _Evidence:
        """What is known when a job is slow that ran by itself."""
        return self._slow_steps if self._together and isinstance(job, Stepped) else self._slow

    def _run_together(self, jobs: list[_Job]) -> float:
        """Run jobs with steps; how many seconds the longest step took, besides fsync."""
        last_s, longest_s = time.monotonic(), 0.0
        waited = False

        def ended(done: Callable[[Any], object], result: Any) -> None:
            self._ended.append((done, result))

        def moved(waits: bool) -> None:
            nonlocal last_s, longest_s, waited
            self._moves += 1
            now_s = time.monotonic()
            if not waited:
                longest_s = max(longest_s, now_s - last_s)
            last_s = now_s
            if waits == waited:
                return
            waited = waits
            with self._guard:
                self._waits += 1 if waits else -1
                if waits and self._waiting:
                    self._wake(1)  # while this thread waits, another one begins what has come

        # These have steps: _take takes no others together.
        run_together([(done, cast("Stepped", job).steps(*args)) for done, job, args in jobs], ended, moved)
        return longest_s
