"""
Thread pools of our own, so that disks, passwords and the reactor's name look-ups never wait for each other.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.python.threadpool import ThreadPool

T = TypeVar("T")


class JobPool(Service):
    """
    A pool of threads as a service; threads come as they are needed.

    @param size: how many jobs may run at once.
    @param nice: how far its threads stand back for others (Linux, where threads have a priority of their own).
    """

    def __init__(self, reactor: IReactorFromThreads, name: str, size: int, nice: int = 0) -> None:
        self._reactor = reactor
        self._nice = nice
        self._is_nice = threading.local()
        self._threads = ThreadPool(minthreads=0, maxthreads=size, name=name)
        self._running = 0
        self._idle: list[Deferred[None]] = []
        self.setName(name)

    def startService(self) -> None:
        """Take jobs from now on."""
        super().startService()
        self._threads.start()

    def stopService(self) -> Deferred[None]:
        """Let all jobs end, then the threads."""
        super().stopService()
        return self._idle_now().addCallback(lambda _: self._threads.stop())

    def run(self, job: Callable[..., T], *args: Any) -> Deferred[T]:
        """Run C{job(*args)} in a thread; the Deferred fires with its result in the reactor's thread."""
        self._running += 1
        waiting: Deferred[T] = Deferred()

        def ended(_: bool, result: Any) -> None:
            self._reactor.callFromThread(self._ended, waiting, result)

        self._threads.callInThreadWithCallback(ended, self._in_its_place(job) if self._nice else job, *args)
        return waiting

    def _in_its_place(self, job: Callable[..., T]) -> Callable[..., T]:
        """A job that sets its thread's priority before anything else."""

        def run(*args: Any) -> T:
            if not hasattr(self._is_nice, "done"):
                self._is_nice.done = True
                if sys.platform == "linux":
                    with suppress(OSError):
                        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
            return job(*args)

        return run

    def _ended(self, waiting: Deferred[Any], result: Any) -> None:
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
