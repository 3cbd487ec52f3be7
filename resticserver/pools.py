"""
Thread pools of our own, so that disks, passwords and the reactor's name look-ups never wait for each other.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.failure import Failure

T = TypeVar("T")

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
            # The other way round in _answer: what is appended behind its look finds this False.
            if not self._told:
                self._told = True
                self._reactor.callFromThread(self._answer)
            # Else the last job's arguments and result would live until the next comes.
            del item, waiting, job, args, result

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
