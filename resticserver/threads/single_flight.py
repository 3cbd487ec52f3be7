"""
One run shared by all callers that ask for the same thing at the same time, like Go's C{singleflight}. Two classes
build on it: one caches the result for a while, and one limits the time that a caller waits.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from .interface import Pool, shielded

T = TypeVar("T")


async def ended_within(seconds: float, reactor: IReactorTime, running: Deferred[Any]) -> bool:
    """
    Wait for a Deferred, but no longer than C{seconds}. It continues in any case.

    @return: whether it has fired. Its failure is raised.
    """
    try:
        await shielded(running).addTimeout(seconds, reactor)
    except defer.TimeoutError:
        return False
    return True


class SingleFlight(Generic[T]):
    """Runs each operation only once at a time. All methods must be called in the reactor's thread."""

    def __init__(self) -> None:
        #: By key: the Deferreds that wait for the current run, and those for the next one.
        self._runs: dict[Hashable, tuple[list[Deferred[T]], list[Deferred[T]]]] = {}

    def run(self, key: Hashable, start: Callable[[], Deferred[T]], join: bool = True) -> Deferred[T]:
        """
        Run C{start}, unless a run with this key is in progress.

        @param join: share the result of the current run; if false, wait for a run that begins after this call.
        @return: fires with the run's result. Cancelling it ends this wait only, and not the run.
        """
        runs = self._runs.get(key)
        waiters: list[Deferred[T]] = [] if runs is None else runs[0 if join else 1]
        waiter: Deferred[T] = Deferred(waiters.remove)
        waiters.append(waiter)
        if runs is None:
            self._start(key, start, waiters)
        return waiter

    def _start(self, key: Hashable, start: Callable[[], Deferred[T]], waiters: list[Deferred[T]]) -> None:
        self._runs[key] = (waiters, [])
        start().addBoth(self._ended, key, start)

    def _ended(self, result: Any, key: Hashable, start: Callable[[], Deferred[T]]) -> None:
        waiters, later = self._runs.pop(key)
        if later:
            self._start(key, start, later)
        while waiters:  # a callback may cancel one of the others
            waiters.pop(0).callback(result)


class CachedFlight(Generic[T]):
    """
    An operation that is slow and requested often. Callers share one run, and its result is kept for a multiple of the
    time that it took. This bounds its share of the processor, and a quick operation never returns an old result.

    @cvar KEPT_TIMES: that multiple.
    @param find: the operation.
    """

    KEPT_TIMES = 4

    def __init__(self, reactor: IReactorTime, find: Callable[[], Coroutine[Deferred[Any], Any, T]]) -> None:
        self._reactor = reactor
        self._find = find
        self._kept: tuple[float, T] | None = None
        self._flight: SingleFlight[T] = SingleFlight()

    async def get(self) -> T:
        """The result of a new run, or a recent one."""
        if self._kept is not None and self._reactor.seconds() < self._kept[0]:
            return self._kept[1]
        return await self._flight.run(None, lambda: Deferred.fromCoroutine(self._find_and_keep()))

    async def _find_and_keep(self) -> T:
        began_s = self._reactor.seconds()
        found = await self._find()
        now_s = self._reactor.seconds()
        self._kept = (now_s + self.KEPT_TIMES * (now_s - began_s), found)
        return found


class TimedFlight(Generic[T]):
    """
    A read from a disk that may hang. Only one job runs at a time, so a hanging disk blocks one thread of the pool and
    not all of them. A caller waits for a limited time.

    @param job: reads the value in the pool.
    @param timeout_s: how long a caller waits.
    """

    def __init__(self, reactor: IReactorTime, pool: Pool, job: Callable[[], T], timeout_s: float) -> None:
        self._reactor = reactor
        self._timeout_s = timeout_s
        self._start = lambda: pool.run(job)
        self._flight: SingleFlight[T] = SingleFlight()

    async def find(self) -> T | None:
        """The current value; C{None} if reading takes too long."""
        try:
            return await self._flight.run(None, self._start).addTimeout(self._timeout_s, self._reactor)
        except defer.TimeoutError:
            return None
