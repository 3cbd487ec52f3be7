"""
Pool jobs as the web layer sees them: one at a time on each thing, and its end after the last of them.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Generic, Protocol, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

T = TypeVar("T")

_log = Logger()


class Pool(Protocol):
    """Runs blocking calls elsewhere."""

    def run(self, job: Callable[..., T], *args: Any) -> Deferred[T]:
        """Run C{job(*args)}; the Deferred fires with its result in the reactor's thread."""


def shielded(running: Deferred[T]) -> Deferred[T]:
    """What fires as C{running} does; to cancel it means to wait no more, and leaves C{running} alone."""
    waiting: Deferred[T] = Deferred()
    running.addBoth(waiting.callback)
    return waiting


async def ended_within(seconds: float, reactor: IReactorTime, running: Deferred[Any]) -> bool:
    """
    Wait for something, but not for ever; whether it has ended. It goes on in any case.

    What it fails with is raised.
    """
    waiting = shielded(running)
    late = reactor.callLater(seconds, waiting.cancel)
    try:
        await waiting
    except CancelledError:
        if late.active():
            raise  # not the time is up, but whoever waits has been cancelled
        return False
    finally:
        if late.active():
            late.cancel()
    return True


class Shared(Generic[T]):
    """
    Something that is found out once for all who ask while that goes on.

    @param find: finds it out.
    """

    def __init__(self, find: Callable[[], Deferred[T]]) -> None:
        self._find = find
        self._waiting: list[Deferred[T]] = []
        self._finding = False

    def get(self) -> Deferred[T]:
        """Fires with it. To cancel it means to wait no more, and leaves the others alone."""
        waiting: Deferred[T] = Deferred(self._waiting.remove)
        self._waiting.append(waiting)
        if not self._finding:
            self._finding = True
            self._find().addBoth(self._found)
        return waiting

    def _found(self, result: Any) -> None:
        self._finding = False
        for waiting in self._waiting[:]:
            self._waiting.remove(waiting)
            waiting.callback(result)


class Fresh(Generic[T]):
    """
    What takes a while to find out, and may be asked for again and again: those who ask while it is being found out share the
    answer, and it is kept for some times as long as that took. So it costs a part of the processor at most, whoever asks how
    often, and where it is quick nobody is told old news.

    @cvar KEPT_TIMES: as long as it took.
    @param find: finds it out.
    """

    KEPT_TIMES = 4

    def __init__(self, reactor: IReactorTime, find: Callable[[], Coroutine[Deferred[Any], Any, T]]) -> None:
        self._reactor = reactor
        self._find = find
        self._kept: tuple[float, T] | None = None
        self._shared: Shared[T] = Shared(lambda: Deferred.fromCoroutine(self._find_and_keep()))

    async def get(self) -> T:
        """It, as it is now or was a moment ago."""
        if self._kept is not None and self._reactor.seconds() < self._kept[0]:
            return self._kept[1]
        return await self._shared.get()

    async def _find_and_keep(self) -> T:
        began_s = self._reactor.seconds()
        found = await self._find()
        now_s = self._reactor.seconds()
        self._kept = (now_s + self.KEPT_TIMES * (now_s - began_s), found)
        return found


class Look(Generic[T]):
    """
    Something that is looked up on a disk that may hang. One job at a time, so that it costs one thread and not all of them,
    and whoever asks waits for a while at most.

    @param job: what looks, in the pool.
    @param patience_s: for how long one waits.
    """

    def __init__(self, reactor: IReactorTime, pool: Pool, job: Callable[[], T], patience_s: float) -> None:
        self._reactor = reactor
        self._patience_s = patience_s
        self._shared: Shared[T] = Shared(lambda: pool.run(job))

    async def find(self) -> T | None:
        """What is found now; C{None} where that takes too long."""
        waiting = self._shared.get()
        late = self._reactor.callLater(self._patience_s, waiting.cancel)
        try:
            return await waiting
        except CancelledError:
            if late.active():
                raise  # not the time is up, but whoever asked has been cancelled
            return None
        finally:
            if late.active():
                late.cancel()


class SerialJobs:
    """
    Pool jobs on one thing (an upload, an open file): one at a time, and its end after the last of them.

    Whoever waits for a job may be cancelled (the client is gone); the job is not, and the end still comes after it.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._running = False
        self._closing: Callable[[], None] | None = None
        self._then: Callable[[], None] | None = None
        self._closed = False

    def run(self, job: Callable[..., T], *args: Any, pool: Pool | None = None) -> Deferred[T]:
        """
        Run a job, in another pool if one is given; the one before must have ended.

        @raise CancelledError: all is over already.
        """
        if self._closed:
            raise CancelledError()
        assert not self._running
        self._running = True
        waiting: Deferred[T] = Deferred()
        (pool or self._pool).run(job, *args).addBoth(self._ended, waiting)
        return waiting

    def _ended(self, result: Any, waiting: Deferred[Any]) -> None:
        self._running = False
        if self._closing is not None:
            self._run_closing()
        waiting.callback(result)

    def close(self, job: Callable[[], None], then: Callable[[], None] | None = None) -> None:
        """
        Run C{job} when the running one has ended, and none after it. Only the first call counts.

        @param then: called in the reactor's thread when that has ended.
        """
        if self._closed:
            return
        self._closed = True
        self._closing = job
        self._then = then
        if not self._running:
            self._run_closing()

    def _run_closing(self) -> None:
        job, self._closing = self._closing, None
        assert job is not None
        closed = self._pool.run(job).addErrback(lambda failure: _log.failure("could not clean up", failure))
        if (then := self._then) is not None:
            closed.addCallback(lambda _: then())
