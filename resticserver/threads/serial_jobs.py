"""
Pool jobs on one object, such as an upload: one at a time, with a cleanup after the last one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from .interface import Pool

T = TypeVar("T")

_log = Logger()


class SerialJobs:
    """
    Pool jobs on one object (an upload, an open file): one at a time, with a cleanup after the last one.

    A caller that waits for a job may be cancelled because the client disconnected. The job itself is not cancelled,
    and the cleanup still waits for it.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._running = False
        #: For the caller of the job that runs.
        self._waiting: Deferred[Any] | None = None
        self._closing: Callable[[], None] | None = None
        self._then: Callable[[], None] | None = None
        self._closed = False

    def run(self, job: Callable[..., T], *args: Any, pool: Pool | None = None) -> Deferred[T]:
        """
        Run a job after the previous one has ended.

        @param pool: the pool to use, if not the default one.
        @raise CancelledError: L{close} was called.
        """
        if self._closed:
            raise CancelledError()
        assert not self._running
        self._running = True
        waiting: Deferred[T] = Deferred()
        self._waiting = waiting
        (pool or self._pool).call(self._ended, job, *args)
        return waiting

    def _ended(self, result: Any) -> None:
        waiting, self._waiting = self._waiting, None
        self._running = False
        if self._closing is not None:
            self._run_closing()
        assert waiting is not None
        waiting.callback(result)

    def close(self, job: Callable[[], None], then: Callable[[], None] | None = None) -> None:
        """
        Run C{job} after the current job, and no job after it. Only the first call has an effect.

        @param then: called in the reactor's thread after C{job} has ended.
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
