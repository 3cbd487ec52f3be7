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
from typing import Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorFromThreads, IReactorTime
from twisted.python.failure import Failure

from .interface import Pool

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


_Job = tuple[Deferred[Any], Callable[..., Any], tuple[Any, ...]]


class JobPool(Service):
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
        self._ended: deque[tuple[Deferred[Any], Any]] = deque()
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
        self._running += 1
        waiting: Deferred[T] = Deferred()
        self._jobs.put((waiting, job, args))
        return waiting

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
            waiting, job, args = item
            result: Any
            try:
                result = job(*args)
            except BaseException:
                result = Failure()
            self._ended.append((waiting, result))
            self._tell()
            # Otherwise the arguments and the result of the last job would live until the next job.
            del item, waiting, job, args, result

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
            waiting, result = self._ended.popleft()
            # The callback may start another job, so only afterwards is it clear whether the pool is idle.
            waiting.callback(result)
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

    @cvar HOLD_S: how long a result may wait for the results of the jobs behind it.
    @cvar PATIENCE_S: how long a job waits for the one before it; up to twice as long in practice.
    @cvar QUICK_S: the longest duration of a quick job. With longer jobs, several threads are faster than one.
    @cvar SLOW_S: how long the pool stays in slow mode. A slow phase that began by chance must not prolong itself by
        threads that slow each other down.
    """

    HOLD_S = 0.001
    PATIENCE_S = 0.002
    QUICK_S = 0.0005
    SLOW_S = 1.0

    #: The excess of slow jobs over quick ones that makes the pool slow; a wait that was too long counts twice.
    _SIGNS = 8

    def __init__(self, reactor: IReactorFromThreads, name: str, size: int) -> None:
        super().__init__(reactor, name, size)
        self._clock = IReactorTime(reactor)
        #: Jobs that the reactor has not handed over yet, and jobs that no thread has taken yet.
        self._new: list[_Job] = []
        self._waiting: deque[_Job] = deque()
        #: The queue that each thread sleeps on. Of these: the ones of sleeping threads (the last one is woken first),
        #: and the ones not assigned to a thread yet.
        self._wakeups: list[SimpleQueue[bool]] = [SimpleQueue() for _ in range(size)]
        self._asleep = list(self._wakeups)
        self._free_beds: list[SimpleQueue[bool]] = []
        #: Guards the waiting jobs and the sleeping threads: no job may be added between a thread's last look and its
        #: sleep.
        self._guard = threading.Lock()
        self._taken = 0
        self._taken_before = 0
        self._looking: IDelayedCall | None = None
        self._signs = 0
        self._slow_until = 0.0

    def startService(self) -> None:
        """Start the threads."""
        self._free_beds = list(self._wakeups)
        super().startService()

    def run(self, job: Callable[..., T], *args: Any) -> Deferred[T]:
        """Run C{job(*args)} in a thread; the Deferred fires with its result in the reactor's thread."""
        self._running += 1
        waiting: Deferred[T] = Deferred()
        if not self._new:
            self._clock.callLater(0, self._hand_over)
        self._new.append((waiting, job, args))
        return waiting

    def _hand_over(self) -> None:
        """Let the new jobs begin. Called in the reactor's thread, after it has served its sockets."""
        new, self._new = self._new, []
        with self._guard:
            self._waiting.extend(new)
            if time.monotonic() < self._slow_until:
                self._wake(len(self._waiting))
            elif len(self._asleep) == self._size:
                self._wake(1)
        if self._looking is None:
            self._look_later()

    def _wake(self, wanted: int) -> None:
        for _ in range(min(wanted, len(self._asleep))):
            self._asleep.pop().put(True)

    def _look_later(self) -> None:
        self._taken_before = self._taken
        self._looking = self._clock.callLater(self.PATIENCE_S, self._look)

    def _look(self) -> None:
        """
        Check whether one job blocks the others. Called at intervals in the reactor's thread while there are jobs.
        """
        self._looking = None
        with self._guard:
            if self._waiting and self._taken == self._taken_before:
                self._wake(len(self._waiting))
                self._sign(2)
        # Also deliver results that were held back for the job that takes so long.
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
        told = ended = time.monotonic()
        quick = False
        while True:
            with self._guard:
                # One thread is enough as long as jobs are quick, and only a thread that runs alone can tell whether
                # they are.
                if not self._waiting or (quick and len(self._asleep) < self._size - 1):
                    self._asleep.append(bed)
                    break
                waiting, job, args = self._waiting.popleft()
                self._taken += 1
            result: Any
            try:
                result = job(*args)
            except BaseException:
                result = Failure()
            self._ended.append((waiting, result))
            del waiting, job, args, result
            began, ended = ended, time.monotonic()
            took_s = ended - began
            quick = ended >= self._slow_until
            # Concurrent jobs slow each other down, so their durations say nothing about the disk.
            if len(self._asleep) == self._size - 1:
                self._sign(1 if took_s > self.QUICK_S else -1)
            if took_s > self.QUICK_S or ended - told > self.HOLD_S:
                told = ended
                self._tell()
        self._tell()

    def _sign(self, weight: int) -> None:
        """Note evidence that jobs are slow, or that they are quick (negative weight)."""
        self._signs = max(0, self._signs + weight)
        if self._signs >= self._SIGNS:
            self._signs = 0
            self._slow_until = time.monotonic() + self.SLOW_S
