"""
Thread pools of our own, so that disks, passwords and the reactor's name look-ups never wait for each other.
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

from .serial_jobs import Pool

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
    A pool of threads as a service. The threads are there from the start: to start one later stops the reactor for as long as
    the others that work keep it from the interpreter's lock.

    Not Twisted's C{ThreadPool}: what this does for a job, a queue written in C and a wake-up of the reactor that several
    jobs share, takes a fraction of the time, and most jobs here are short.

    @param size: how many jobs may run at once.
    @param nice: how far its threads stand back for others (Linux, where threads have a priority of their own).
    """

    def __init__(self, reactor: IReactorFromThreads, name: str, size: int, nice: int = 0) -> None:
        self._reactor = reactor
        self._size = size
        self._nice = nice
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._ended: deque[tuple[Deferred[Any], Any]] = deque()
        #: Whether the reactor has been told that jobs have ended, and has not looked yet.
        self._told = False
        self._running = 0
        self._idle: list[Deferred[None]] = []
        self.setName(name)

    def startService(self) -> None:
        """Start the threads."""
        super().startService()
        for number in range(self._size):
            # As a daemon: a process that ends in an unusual way must not hang in a job.
            thread = threading.Thread(target=self._work, name=f"{self.name}-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def stopService(self) -> Deferred[None]:
        """Let all jobs end, then the threads."""
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
        """A thread's life."""
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
            # Else the last job's arguments and result would live until the next comes.
            del item, waiting, job, args, result

    def _tell(self) -> None:
        """Tell the reactor that jobs have ended."""
        # The other way round in _answer: what is appended behind its look finds this False.
        if not self._told:
            self._told = True
            self._reactor.callFromThread(self._answer)

    def _answer(self) -> None:
        """In the reactor's thread: hand on the results that are there."""
        self._told = False
        # Only those that are there now: what they bring about may end at once, and the sockets want their turn.
        for _ in range(len(self._ended)):
            waiting, result = self._ended.popleft()
            # Whoever waited may go on with a next job; only then is it known whether the pool is idle.
            waiting.callback(result)
            self._running -= 1
        if not self._running:
            idle, self._idle = self._idle, []
            for stopping in idle:
                stopping.callback(None)

    def _idle_now(self) -> Deferred[None]:
        """Fires when no job is there."""
        waiting: Deferred[None] = Deferred()
        if self._running:
            self._idle.append(waiting)
        else:
            waiting.callback(None)
        return waiting


class QuickPool(JobPool):
    """
    A pool for jobs that are short where the disk is quick, and wait where it is not: small uploads and removals.

    Threads that work for so short a time hinder each other and the reactor's more than they help: each of their calls of
    the system gives up the interpreter's lock and wakes one that waits for it, and has it back before that one has come. So
    jobs are handed over when the reactor has been through its sockets, one thread does them all, and their results come
    back together: the reactor's thread sleeps meanwhile.

    That holds as long as jobs are quick. When one takes longer, those behind it get a thread each after L{PATIENCE_S}; and
    when most take longer, they get it from the start for the next L{SLOW_S}, so that on a slow disk many wait at once.

    @cvar HOLD_S: how long a result waits for those of the jobs behind it.
    @cvar PATIENCE_S: how long a job waits for the one before it; to twice of that.
    @cvar QUICK_S: what a quick job takes at most. With longer ones several threads are quicker after all.
    @cvar SLOW_S: how long it is remembered that jobs are slow; one that begins by chance must not go on by the threads that
        hinder each other.
    """

    HOLD_S = 0.001
    PATIENCE_S = 0.002
    QUICK_S = 0.0005
    SLOW_S = 1.0

    #: So many more slow jobs than quick ones make the pool slow; a wait that was too long counts twice.
    _SIGNS = 8

    def __init__(self, reactor: IReactorFromThreads, name: str, size: int) -> None:
        super().__init__(reactor, name, size)
        self._clock = IReactorTime(reactor)
        #: What the reactor has not handed over yet, and what no thread has taken yet.
        self._new: list[_Job] = []
        self._waiting: deque[_Job] = deque()
        #: What each thread sleeps on; those that sleep, of which the last one is woken first; those without a thread.
        self._wakeups: list[SimpleQueue[bool]] = [SimpleQueue() for _ in range(size)]
        self._asleep = list(self._wakeups)
        self._free_beds: list[SimpleQueue[bool]] = []
        #: Guards what waits and who sleeps: no job may be left between a thread's last look and its sleep.
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
        """In the reactor's thread, behind its sockets: let the new jobs begin."""
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
        """In the reactor's thread, now and then while there are jobs: see whether one keeps the others waiting."""
        self._looking = None
        with self._guard:
            if self._waiting and self._taken == self._taken_before:
                self._wake(len(self._waiting))
                self._sign(2)
        # Results that wait for a job that takes so long, too.
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
        """A thread's life."""
        bed = self._free_beds.pop()
        while bed.get():
            self._work_off(bed)

    def _work_off(self, bed: SimpleQueue[bool]) -> None:
        """Run jobs as long as there are any."""
        told = ended = time.monotonic()
        quick = False
        while True:
            with self._guard:
                # As long as jobs are quick one thread is enough, and only one that is alone can see whether they are.
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
            # What several do at once takes each of them longer, which says nothing of the disk.
            if len(self._asleep) == self._size - 1:
                self._sign(1 if took_s > self.QUICK_S else -1)
            if took_s > self.QUICK_S or ended - told > self.HOLD_S:
                told = ended
                self._tell()
        self._tell()

    def _sign(self, weight: int) -> None:
        """A sign that jobs are slow, or that they are not."""
        self._signs = max(0, self._signs + weight)
        if self._signs >= self._SIGNS:
            self._signs = 0
            self._slow_until = time.monotonic() + self.SLOW_S
