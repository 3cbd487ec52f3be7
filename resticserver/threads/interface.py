"""
A pool as the other packages see it, and how to wait for its jobs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred

T = TypeVar("T")


class Pool(Protocol):
    """Runs blocking calls in other threads."""

    def run(self, job: Callable[..., T], *args: Any) -> Deferred[T]:
        """Run C{job(*args)}; the Deferred fires with its result in the reactor's thread."""

    def call(self, done: Callable[[Any], object], job: Callable[..., Any], *args: Any) -> None:
        """
        Run C{job(*args)}, and call C{done} in the reactor's thread with its result, or a Failure. A Deferred less for a caller
        that has one of its own.
        """
        self.run(job, *args).addBoth(done)


def shielded(running: Deferred[T]) -> Deferred[T]:
    """
    Return a Deferred that fires when C{running} does. Cancelling it ends only this wait, and does not cancel
    C{running}.
    """
    waiting: Deferred[T] = Deferred()
    running.addBoth(waiting.callback)
    return waiting
